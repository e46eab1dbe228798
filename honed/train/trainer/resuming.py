"""SFTTrainer's checkpoints: verified to be complete, and resumed as if the run had not stopped.

Besides transformers' own files, `position.json` holds what transformers does not save (loss and counts since the last
log, elapsed time, the position in a stream), and `manifest.json` lists all files with checksums (see `checkpoint.py`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from transformers.trainer_pt_utils import AcceleratorConfig

from honed.errors import RunError
from honed.train.forward.zero3 import shard_weights
from honed.train.optimizers.rates import notes_on_warm_up
from honed.train.options.deepspeed import zero_stage
from honed.train.ranks import others_alive, tensor_parallel_size
from honed.train.run_folder import checkpoint, engines, other_ranks
from honed.train.run_folder.identity import digest_of_rows, identity_of_model
from honed.train.run_folder.secrets import sealed_arguments
from honed.train.trainer import agreement
from honed.train.trainer.resumed_settings import set_rates, settings_of
from honed.train.trainer.rotation import Rotation
from honed.train.trainer.tied_weights import lacking, without_copies
from honed.train.trainer.watched import WatchedTrainer

logger = logging.getLogger(__name__)

# A checkpoint that differs in one of these belongs to another run: its steps had other rows, or its weights were
# trained with another optimizer. It is resumed only by name.
_IDENTITY = (
    *("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy"),
    *("dataloader_drop_last", "streaming", "shuffle_buffer", "tokens_per_step"),
    *("optim", "optim_args", "learning_rate", "learning_rates", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
)
# Of `accelerator_config`; a checkpoint holds those that are not the default.
_LOADING = ("split_batches", "even_batches", "use_seedable_sampler")
# These may change on resuming; the change is reported.
_CHANGEABLE = (
    *("num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "neftune_noise_alpha"),
    *("bf16", "fp16", "lr_scheduler_kwargs", "loss_type", "label_smoothing_factor", "router_aux_loss_coef"),
)


class ResumingTrainer(WatchedTrainer):
    """The layer of `SFTTrainer` that saves and resumes, through hooks of transformers' Trainer.

    Attributes:
        tell: receives a line for each checkpoint that is skipped, and for the one that is resumed.
    """

    tell: Callable[[str], None] = staticmethod(logger.warning)
    _first_step: int | None = None  # the step at which this process began to train
    _partial_folder: Path | None = None
    _saved = False  # whether `_save` was called for this rank
    _search_folder: Path | None = None  # a folder without checkpoints, while transformers must not find any
    _rotation: Rotation
    _identity: dict[str, Any] | None = None
    _resumed: dict[str, Any]  # the position in the checkpoint that is resumed; {} for a new run
    _start_time: float  # time.time() when this process began to train

    def checkpoint_to_resume(self, given: Any) -> str | None:
        """Returns the checkpoint to resume, or None to start at the beginning.

        Args:
            given: a checkpoint; True for the newest intact one in `output_dir`; "auto" for the same, if there is one.

        Raises:
            RunError: there is no checkpoint to resume, or the given one is damaged.
        """
        if not given:
            return None
        if given not in (True, "auto"):
            self._check_named(Path(given))
            return str(given)
        path, notes = self._newest_good()
        for note in notes:
            self._say(note)
        if path is None and given is True:
            raise RunError(
                f"{self.args.output_dir} holds no checkpoint to resume from. {' '.join(notes)}".strip(),
                fix="name a checkpoint to resume from it anyway, or train(resume_from_checkpoint='auto'), which "
                "starts from scratch if there is none",
            )
        if path is not None:
            for note in other_ranks.notes(path, checkpoint.read_position(path)[1], self.args.world_size):
                self._say(note)
            self._report_changes(path)
            self._say(f"resuming from {path.name}")
        return None if path is None else str(path)

    def _newest_good(self) -> tuple[Path | None, list[str]]:
        """The first rank's finding: others may see the folder later, or have no weights to compare yet."""
        found: list[Any] = [None]
        folder, identity = self.args.output_dir, self.identity()
        if self.args.process_index == 0:
            try:
                found = [checkpoint.latest_good(folder, identity, engine=self._engine(), alike=self._may_resume)]
            except RunError as error:  # broadcast, and raised on all ranks
                found = [error]
        with others_alive(folder):
            newest: tuple[Path | None, list[str]] | RunError = broadcast_object_list(found)[0]
        if isinstance(newest, RunError):
            raise newest
        return newest

    def _may_resume(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is of this run; the number of ranks may differ if each step keeps its rows."""
        return other_ranks.keep_rows(there, here) if self._fills_rounds() else there == here

    def _engine(self) -> str:
        """The name of the engine that trains."""
        if self.is_deepspeed_enabled:
            return engines.deepspeed(zero3=zero_stage(self.args) == 3, processes=self.args.world_size)
        if not self.is_fsdp_enabled:
            return engines.PLAIN
        return engines.FSDP_IN_PARTS if self._checkpoints_in_parts() else engines.FSDP

    def _say(self, line: str) -> None:
        if self.is_world_process_zero():
            self.tell(line)

    def identity(self) -> dict[str, Any]:
        """What must match in a checkpoint, as JSON: data, model, and the settings that determine each step's rows."""
        if self._identity is None:
            args = self.args.to_dict()
            settings = {name: args.get(name) for name in _IDENTITY}
            given, default = self.args.accelerator_config.to_dict(), AcceleratorConfig().to_dict()
            settings |= {name: given[name] for name in _LOADING if given[name] != default[name]}
            data, model = digest_of_rows(self.train_dataset), identity_of_model(self.model)
            ranks = {"ranks": self.args.world_size}
            if self.args.sequence_parallel_size > 1:  # not in older checkpoints
                ranks["sequence_parallel_size"] = self.args.sequence_parallel_size
            self._identity = {**settings, **ranks, **model, "data": data}
        return self._identity

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains; see `transformers.Trainer.train`.

        Raises:
            RunError: the processes do not start with the same settings, rows or weights.
        """
        identity = self.identity()  # before the weights are sharded
        with others_alive(self.args.output_dir):
            agreement.check(self, identity)
            self._join_ranks()
            shard_weights(self.model, self.args)
            return super().train(*args, **kwargs)

    def _check_named(self, path: Path) -> None:
        """Refuses a damaged checkpoint that the user named, and reports how it differs from this run.

        Raises:
            RunError: a file is missing or has changed, or another engine wrote the checkpoint.
        """
        if problem := engines.why_another(path, self._engine()):
            raise RunError(
                f"Cannot resume from {path}: {problem}.",
                fix="start the run as the one that wrote it, or name no checkpoint",
            )
        if not (path / checkpoint.MANIFEST).exists():
            if problem := engines.why_unreadable(path):
                raise RunError(f"Cannot resume from {path}: {problem}.", fix="name another checkpoint, or none")
            self._say(f"{path} has no {checkpoint.MANIFEST}: another program made it, so it cannot be checked.")
            self._report_optimizer(path)
            return
        if problems := checkpoint.check(path):
            raise RunError(f"Cannot resume from {path}: {problems[0]}.", fix="name another checkpoint, or none")
        here = json.loads(json.dumps(self.identity()))
        for difference in checkpoint.differences(checkpoint.read_position(path)[1], here):
            self._say(f"{path.name}: {difference}. The run continues, but is no longer the same run.")
        self._report_changes(path)

    def _report_changes(self, path: Path) -> None:
        told = checkpoint.read_position(path)[0].get("settings", {})
        here = self._changeable_settings()
        for difference in checkpoint.differences(
            told, {name: here.get(name) for name in told}
        ):  # older ones hold fewer
            self._say(f"{path.name}: {difference}. The rest of the run uses the new value.")
        self._report_optimizer(path)

    def _report_optimizer(self, path: Path) -> None:
        if engines.engine_in(path) is None:
            self._say(
                f"{path.name} holds no optimizer's state (save_only_model): the optimizer starts from scratch, and the "
                "learning rate's schedule starts from its beginning."
            )

    def _changeable_settings(self) -> dict[str, Any]:
        args = self.args.to_dict()
        return dict(json.loads(json.dumps({name: args.get(name) for name in _CHANGEABLE})))

    # ---- saving: transformers writes into a temporary folder next to the checkpoint's final one ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        first, step = self.args.should_save, self.state.global_step
        with checkpoint.written(folder, step, first=first, meet=self.accelerator.wait_for_everyone) as part:
            self._partial_folder = part.parent
            try:
                with checkpoint.failures_of_ranks():
                    super()._save_checkpoint(model, trial)
            finally:
                self._partial_folder = None
            position = self._position()
            best = folder / f"checkpoint-{self.state.best_global_step}"
            if self.state.best_global_step == step or best.exists():  # else it is in the folder resumed from
                self.state.best_model_checkpoint = str(best)  # transformers has the temporary folder's path
            if first:
                self.state.save_to_json(str(part / "trainer_state.json"))
                checkpoint.write_position(part, position, self.identity())
        place = folder / f"checkpoint-{step}"
        if first:
            self._rotation.after_saving(place)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))

    def _of_others(self, folder: Path) -> list[Path]:
        return checkpoint.of_others(folder, self.identity(), self._may_resume)

    def _save_now(self) -> None:
        self._save_checkpoint(self.model, trial=None)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the whole model; all ranks must call it. See `transformers.Trainer.save_model`."""
        self._saved = self.args.should_save
        super().save_model(output_dir, _internal_call)
        if not self._saved and tensor_parallel_size(self.model) > 1:
            # transformers 5.17 calls `_save` on one rank only, which then waits for the other ranks' shards
            self.model.save_pretrained(output_dir or self.args.output_dir)
        if _internal_call or not self._checkpoints_in_parts():
            return
        whole = self.accelerator.get_state_dict(self.model)  # with sharded checkpoints transformers writes no weights
        if self.args.should_save:
            self._save(output_dir, state_dict=whole)

    def _checkpoints_in_parts(self) -> bool:
        return self.is_fsdp_enabled and "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._partial_folder or self._search_folder or super()._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._partial_folder is not None:  # the folder is about to be renamed; `_save_checkpoint` uploads afterwards
            return
        with self._sealed():
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        self._saved = True
        with self._sealed():
            super()._save(output_dir, None if state_dict is None else without_copies(state_dict, self.model))

    @contextmanager
    def _sealed(self) -> Iterator[None]:
        """Masks secrets and restores the original log filter in the arguments while transformers pickles them."""
        given = self.args
        self.args = sealed_arguments(given)
        self.args.logging_nan_inf_filter |= self._filters_logged  # see `WatchedTrainer`
        try:
            yield
        finally:
            self.args = given

    def _position(self) -> dict[str, Any]:
        """The state of steps and logs that transformers does not save; all ranks must call it."""
        of_this_rank = {
            "loss": float(self._tr_loss),
            "total_loss": self._total_loss_scalar,
            "metrics": self.metrics.state(),
            "watch": self.watch.state(),
        }
        place = None if self.stream_loader is None else self.stream_loader.place
        return {
            "step": self.state.global_step,
            "last_logged": self._globalstep_last_logged,
            "seconds": self._resumed.get("seconds", 0.0) + time.time() - self._start_time,
            "stream": None if place is None else place.as_dict(),
            "settings": self._changeable_settings(),
            "ranks": gather_object([of_this_rank]),
        }

    # ---- resuming ----

    def _restore_position(self) -> None:
        """Restores what transformers does not; called after transformers has reset its own counts."""
        self._start_time = time.time()
        self._first_step = self.state.global_step
        self._rotation = Rotation(self.args, self.state, of_others=self._of_others, say=self._say)
        rates: list[float] = getattr(self.lr_scheduler, "get_last_lr", list)()
        steps = 0 if not rates or any(rates) else self.state.max_steps
        for note in notes_on_warm_up(self.args.get_warmup_steps(steps), steps):
            self._say(note)
        self.forget_after(self.state.global_step)
        ranks = self._resumed.get("ranks", [])
        if not ranks:  # written by another program
            return
        mine = other_ranks.shared_anew(ranks, self.args.world_size)[self.args.process_index]
        self._tr_loss.fill_(mine["loss"])
        self._total_loss_scalar = mine["total_loss"]
        self._globalstep_last_logged = self._resumed["last_logged"]
        self._initial_global_step = 0  # the final loss and speed are those of the whole run
        self.metrics.restore(mine["metrics"])
        self.watch.restore(mine["watch"])

    def _load_optimizer_and_scheduler(self, path: str | None) -> None:
        """Called by Trainer; keeps the settings of this run. DeepSpeed has loaded its own states before."""
        settings = [settings_of(group) for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(path)
        if path is None or self.is_deepspeed_enabled:
            return
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate wraps it
        before = checkpoint.read_position(path)[1].get("learning_rate", self.args.learning_rate)
        if not set_rates(scheduler) and before != self.args.learning_rate:
            self._say(
                f"learning_rate={self.args.learning_rate:g} has no effect: the schedule "
                f"({type(scheduler).__name__}) continues from the checkpoint's learning rate."
            )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Called by Trainer with the names that a checkpoint lacks; of tied weights, one name is enough."""
        missing = lacking(self.model, load_result.missing_keys)
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _inner_training_loop(self, *args: Any, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        self._resumed = {} if resume_from_checkpoint is None else checkpoint.read_position(resume_from_checkpoint)[0]
        return super()._inner_training_loop(*args, resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # else transformers takes one step too many
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        self._search_folder = Path(super()._get_output_dir(trial), "none")  # else it deletes those of other runs
        try:
            ended = super()._finalize_training(trial, num_train_samples, start_time - self._resumed.get("seconds", 0.0))
        finally:
            self._search_folder = None
        if self.args.should_save:
            self._rotation.at_the_end()
        return ended
