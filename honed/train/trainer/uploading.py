"""SFTTrainer's uploads: what was trained is saved first, and a Hub that cannot be reached is told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from honed.errors import HonedError, RunError, first_line
from honed.train.forward import seams
from honed.train.trainer.resuming import ResumingTrainer


class UploadingTrainer(ResumingTrainer):
    """The base of `SFTTrainer` that uploads; it overrides hooks of transformers' Trainer only."""

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Makes the repository of the Hub; see `transformers.Trainer.init_hf_repo`.

        Raises:
            RunError: it cannot be made. What was trained is saved before.
        """
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # the Hub's client raises dozens of kinds
            trained = getattr(self, "state", None) is not None and self.state.global_step > 0
            if trained:
                self.save_model(_internal_call=True)  # as transformers does next, on all ranks
            raise self._not_uploaded(error, trained=trained) from error

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Uploads the model; see `transformers.Trainer.push_to_hub`.

        Raises:
            RunError: it cannot be uploaded; it is saved in `output_dir`.
        """
        seams.base_model(self.model).add_model_tags(["honed", "sft"])
        try:
            return super().push_to_hub(*args, **kwargs)
        except HonedError:
            raise
        except Exception as error:
            raise self._not_uploaded(error, trained=True) from error

    def _not_uploaded(self, error: Exception, *, trained: bool) -> RunError:
        folder = self.args.output_dir
        name = self.hub_model_id or self.args.hub_model_id or Path(folder).name
        later = f"`hf upload {name} {folder}`"
        if not trained:
            fix = f"mend that, or train without push_to_hub and upload afterwards: {later}"
            return RunError(f"{name} cannot be made on the Hub: {first_line(error)}", fix=fix)
        problem = f"The model is saved in {folder}, but cannot be uploaded: {first_line(error)}"
        return RunError(problem, fix=f"upload it when the Hub can be reached: {later}")
