"""Runs the plain loop from a recipe: converts SFTConfig, and gives the loop the trainer's interface."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from honed.errors import ModelError, RecipeError
from honed.model.adapters.adapters import ready_to_train
from honed.model.load.added_tokens import with_rows, with_tokens
from honed.model.load.vocabulary import agree_on_stops, with_pad_token
from honed.train.forward.checkpointing import decide, largest_batch, recomputes
from honed.train.forward.lengths import fit_length, notes_on_rotations
from honed.train.forward.seams import base_model, find_seams
from honed.train.loop import loop
from honed.train.loop.config import LoopConfig
from honed.train.loop.state import seed_everything
from honed.train.optimizers.muon import note_on_muon
from honed.train.optimizers.rates import notes_on_rates
from honed.train.options import rules
from honed.train.options.config import SFTConfig
from honed.train.options.optim import Own
from honed.train.ranks import Stopped
from honed.train.rows.ahead import prepare_rows


class PlainTrainer:
    """The plain loop with the part of `SFTTrainer`'s interface that `run.py` uses; see there for the arguments.

    Attributes:
        model: the model that is trained, with its adapter.
        notes: notes for the user.
        ledger: what happened to every training row.
        stream_loader: None; the loop does not stream.
    """

    def __init__(
        self,
        model: Any,
        *,
        args: SFTConfig,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: Any,
        peft_config: Any = None,
    ) -> None:
        if hasattr(processing_class, "image_processor"):
            raise RecipeError("The plain engine trains on text only.", fix="set engine=trainer for rows with images")
        self.config, self.notes, self.stream_loader = config_of(args), rules.check(args), None
        self._args = copy.copy(args)
        self._tokenizer = with_pad_token(with_tokens(processing_class, **args.token_options))
        seed_everything(args.seed)  # for the adapter's initial weights
        self.notes += with_rows(model, self._tokenizer, args.add_tokens)
        self.model, notes = ready_to_train(
            model,
            peft_config,
            tokenizer=self._tokenizer,
            checkpointing=recomputes(args),
            trainable=args.trainable,
            added=args.add_tokens,
        )
        self.notes += fit_length(self._args, self.model, self._tokenizer) + notes
        self._seams = find_seams(self.model)
        self.notes += self._seams.notes + notes_on_rotations(self.model, self._args.max_length)
        if args.optim is Own.MUON:
            self.notes.append(note_on_muon(self.model))
        self.notes += notes_on_rates(self.model, args.learning_rates)
        if args.packing and not self._seams.flat:
            raise ModelError(
                "packing is set, but this model cannot keep documents in a row apart.", fix="packing=false"
            )
        train = self._prepare("train", train_dataset)
        self._rows, self.ledger = train.rows, train.ledger
        self._choose_checkpointing()
        self._eval_rows = None
        if eval_dataset is not None:
            held_out = self._prepare("eval", eval_dataset)
            self._eval_rows, self.ledger.evaluation = held_out.rows, held_out.ledger.as_dict()
        agree_on_stops(base_model(self.model), self._tokenizer, train.stop_ids)

    def train(self, resume_from_checkpoint: Any = None) -> None:
        """Trains, resuming from the newest checkpoint in the run's folder if there is one.

        Args:
            resume_from_checkpoint: ignored; the config already contains it.

        Raises:
            Stopped: SIGTERM came.
        """
        outcome = loop.train(
            self.model,
            self._rows,
            self.config,
            eval_rows=self._eval_rows,
            folder=Path(self._args.output_dir or "."),
            seams=self._seams,
            pad_token_id=self._tokenizer.pad_token_id,
            bar=not self._args.disable_tqdm,
        )
        if outcome.stopped:
            raise Stopped(f"Stopped at step {outcome.steps} and saved; the same command resumes from there.")

    def save_model(self, place: str) -> None:
        """Saves the weights (only the adapter's, if there is one) and the tokenizer in the usual formats."""
        self.model.save_pretrained(place)
        self._tokenizer.save_pretrained(place)

    def _choose_checkpointing(self) -> None:
        largest = largest_batch(self._rows, self._args, padded=not self._seams.flat)
        found = decide(self._args, self.model, largest)
        if found.layers is not None:
            count = found.layers
            self.config = dataclasses.replace(self.config, gradient_checkpointing=count > 0, recomputed_layers=count)
            self.notes += [found.note] if found.note else []

    def _prepare(self, name: str, rows: Any) -> Any:
        options = self._args.prepare_options(evaluation=name != "train")
        return prepare_rows(rows, self._tokenizer, options, self._args, desc=f"Preparing {name} data")


def known_to_transformers(train: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a recipe's `train` for SFTConfig: the loop's own schedule moves into `lr_scheduler_kwargs`."""
    if train.get("lr_scheduler_type") != "minimind":
        return dict(train)
    return {**train, "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"schedule": "minimind"}}


def config_of(args: SFTConfig) -> LoopConfig:
    """Converts training arguments into the plain loop's settings.

    Raises:
        RecipeError: an argument is set that the loop does not support.
    """
    _refuse_unknown(args)
    schedule, floor = _schedule(args)
    return LoopConfig(
        epochs=args.num_train_epochs,
        max_steps=args.max_steps if args.max_steps > 0 else None,
        batch_size=args.per_device_train_batch_size,
        eval_batch_size=args.per_device_eval_batch_size,
        accumulation=args.gradient_accumulation_steps,
        optimizer=OPTIMIZERS[args.optim.value],
        learning_rate=args.learning_rate,
        learning_rates=args.learning_rates,
        schedule=schedule,
        # as in transformers, whose "constant" has no warm-up
        warmup=0.0 if args.lr_scheduler_type.value == "constant" else args.warmup_steps,
        floor=floor,
        weight_decay=args.weight_decay,
        betas=(args.adam_beta1, args.adam_beta2),
        epsilon=args.adam_epsilon,
        max_grad_norm=args.max_grad_norm,
        dtype="bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        router_aux_loss_coef=args.router_aux_loss_coef,
        neftune_alpha=args.neftune_noise_alpha,
        shuffle=args.train_sampling_strategy == "random",
        seed=args.seed,
        data_seed=args.data_seed,
        gradient_checkpointing=bool(args.gradient_checkpointing),
        device="cpu" if args.use_cpu else None,
        workers=args.dataloader_num_workers,
        token_metrics=args.token_metrics,
        log_every=_every(args.logging_strategy.value, args.logging_steps),
        eval_every=_every(args.eval_strategy.value, args.eval_steps or args.logging_steps),
        save_every=_every(args.save_strategy.value, args.save_steps),
        keep=args.save_total_limit,
        trackers=tuple(args.report_to),
        project=None if args.project == _default("project") else args.project,
        run_name=args.run_name,
        resume=_resume(args.resume_from_checkpoint),
    )


OPTIMIZERS = {"adamw_torch_fused": "adamw", "adamw_torch": "adamw", "muon": "muon"}  # `optim` -> the loop's name

# Arguments that `config_of` uses, that data preparation uses, and that make no difference here.
_TAKEN = {
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16", "optim"),
    "router_aux_loss_coef",
    *("neftune_noise_alpha", "train_sampling_strategy", "seed", "data_seed", "gradient_checkpointing", "use_cpu"),
    *("activation_checkpointing", "dataloader_num_workers", "token_metrics", "logging_strategy", "logging_steps"),
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit", "report_to", "project"),
    *("run_name", "resume_from_checkpoint", "trainable", "learning_rates", "add_tokens"),
    *("bos_token", "eos_token", "pad_token", "unk_token"),
}
_DATA = {
    *("dataset_text_field", "max_length", "packing", "packing_strategy", "eval_packing", "assistant_only_loss"),
    *("completion_only_loss", "train_on", "template", "template_arguments", "data_format"),
    *("columns", "system", "train_roles", "train_reasoning", "train_tool_calls", "overlong", "bad_rows"),
    *("data_cache", "dataset_num_proc", "chat_template_path", "shuffle_buffer", "memory_budget"),
}
_NO_BEARING = {
    *("output_dir", "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "do_train", "do_eval"),
    *("do_predict", "dataloader_pin_memory", "remove_unused_columns", "label_names", "local_rank", "hub_token"),
    *("logging_nan_inf_filter", "prediction_loss_only", "accelerator_config"),
    *("ddp_timeout", "skip_memory_metrics", "include_num_input_tokens_seen"),
}


def _refuse_unknown(args: SFTConfig) -> None:
    for field in dataclasses.fields(args):
        if field.name in _TAKEN | _DATA | _NO_BEARING or not field.init:
            continue
        if (value := getattr(args, field.name)) not in (_default(field.name), None, False, []):
            raise RecipeError(
                f"engine=plain does not support {field.name} (it is {value!r}).",
                fix="leave it out, or set engine=trainer",
            )
    if args.optim.value not in OPTIMIZERS:
        raise RecipeError(
            f"engine=plain supports AdamW and Muon, not optim={args.optim.value}.", fix="set engine=trainer"
        )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise RecipeError(
            f"engine=plain does not support train_sampling_strategy={args.train_sampling_strategy}.",
            fix="set random or sequential, or engine=trainer",
        )


def _default(name: str) -> Any:
    field = SFTConfig.__dataclass_fields__[name]
    return field.default if field.default is not dataclasses.MISSING else None


def _schedule(args: SFTConfig) -> tuple[str, float]:
    """Returns the schedule's name and the fraction of the learning rate at its end."""
    name, options = args.lr_scheduler_type.value, dict(args.lr_scheduler_kwargs or {})
    if options == {"schedule": "minimind"}:
        return "minimind", 0.0
    if name == "cosine_with_min_lr" and len(options) == 1 and "min_lr_rate" in options:
        return "cosine", float(options["min_lr_rate"])
    if name == "cosine_with_min_lr" and len(options) == 1 and "min_lr" in options:
        return "cosine", float(options["min_lr"]) / args.learning_rate
    if options or name not in ("constant", "constant_with_warmup", "linear", "cosine"):
        raise RecipeError(
            f"engine=plain does not support lr_scheduler_type={name} {options or ''}.".replace(" .", "."),
            fix="set constant, constant_with_warmup, linear, cosine or minimind; or set engine=trainer",
        )
    return name.removesuffix("_with_warmup"), 0.0


def _every(strategy: str, steps: float) -> float | str:
    if strategy in ("no", "epoch"):
        return "epoch" if strategy == "epoch" else 0
    if strategy != "steps":
        raise RecipeError(f"engine=plain does not support the strategy {strategy!r}.", fix="set no, steps or epoch")
    return steps


def _resume(given: Any) -> str | None:
    """Resumes from the folder's newest checkpoint by default, so that the same command continues a run."""
    if given in (None, True, "True", "true"):
        return "auto"
    return str(Path(given))
