"""SFTTrainer's uploads: the model is saved first, and a failed upload is reported in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from honed.errors import HonedError, RunError, first_line
from honed.train.forward import seams
from honed.train.trainer.stopping import StoppingTrainer


class UploadingTrainer(StoppingTrainer):
    """The layer of `SFTTrainer` that uploads; it overrides only hooks of transformers' Trainer."""

    _tag_names: Sequence[str] = ("honed", "sft")  # tags of every model card; TRL's name, which subclasses set

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # read by peft's cards, by push_to_hub of the model, and by transformers' push_to_hub
        seams.base_model(self.model).add_model_tags(list(self._tag_names))

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Creates the repository on the Hub; see `transformers.Trainer.init_hf_repo`.

        Raises:
            RunError: the repository cannot be created. A model that was trained is saved first.
        """
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # the Hub's client raises dozens of types
            trained = getattr(self, "state", None) is not None and self.state.global_step > 0
            if trained:
                self.save_model(_internal_call=True)  # as transformers does next, on all ranks
            raise self._not_uploaded(error, trained=trained) from error

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Uploads the model; see `transformers.Trainer.push_to_hub`.

        Raises:
            RunError: the upload failed; the model is saved in `output_dir`.
        """
        try:
            return super().push_to_hub(*args, **kwargs)
        except HonedError:
            raise
        except Exception as error:
            raise self._not_uploaded(error, trained=True) from error

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes README.md with honed's tags; see `transformers.Trainer.create_model_card`.

        Args:
            model_name: as in transformers. The first three arguments have the order of TRL's method.
            dataset_name: TRL's name for `dataset`.
            tags: tags to add, also to the model's own, from which peft makes the card of an adapter.
            **kwargs: transformers' other arguments.
        """
        if dataset_name is not None:
            ids = {} if Path(dataset_name).exists() else {"dataset_tags": dataset_name}  # which are ids of the Hub
            kwargs = {"dataset": dataset_name, **ids, **kwargs}
        base = seams.base_model(self.model)
        base.add_model_tags(list(tags) if tags and not isinstance(tags, str) else tags or [])
        super().create_model_card(model_name=model_name, tags=list(base.model_tags), **kwargs)

    def _not_uploaded(self, error: Exception, *, trained: bool) -> RunError:
        folder = self.args.output_dir
        name = self.hub_model_id or self.args.hub_model_id or Path(folder).name
        later = f"`hf upload {name} {folder}`"
        if not trained:
            fix = f"fix that, or train without push_to_hub and upload afterwards: {later}"
            return RunError(f"{name} cannot be made on the Hub: {first_line(error)}", fix=fix)
        problem = f"The model is saved in {folder}, but cannot be uploaded: {first_line(error)}"
        return RunError(problem, fix=f"upload it when the Hub can be reached: {later}")
