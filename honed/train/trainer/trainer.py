"""SFTTrainer: transformers' Trainer with honed's data and loss. Hooks only; seams: `honed.train.forward.seams`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from honed.data.ledger import Ledger
from honed.errors import RecipeError, RunError
from honed.loss.objective import total_weight
from honed.loss.router import aux_loss_coefficient, aux_loss_of
from honed.model.load.vocabulary import agree_on_stops
from honed.train.forward import sequence_parallel, shared_prefixes, vision
from honed.train.forward.checkpointing import choose_layers
from honed.train.forward.seams import NOT_FOR_THE_MODEL, base_model, token_count, token_scores
from honed.train.optimizers.optimizers import optimizer_of
from honed.train.optimizers.precision import notes_on_masters
from honed.train.options import legacy, rules
from honed.train.options.kinds import check_kinds
from honed.train.rows import stream, token_batches
from honed.train.rows.ahead import prepare_ahead
from honed.train.rows.notes import notes_on_new_tokens
from honed.train.rows.rows import Datasets
from honed.train.trainer import start
from honed.train.trainer.adalora import adalora_callbacks
from honed.train.trainer.callbacks import TrainingProgress, early_stopping
from honed.train.trainer.out_of_memory import Splits
from honed.train.trainer.overrides import adds_metrics, check_subclass, overridden, reads_batches
from honed.train.trainer.stopping import SavesAndStops
from honed.train.trainer.uploading import UploadingTrainer
from honed.train.trainer.watched import StepWatch

logger = logging.getLogger(__name__)


class SFTTrainer(UploadingTrainer):
    """Supervised fine-tuning of a causal language model.

    Args:
        model: a name or folder, a transformers model, or a peft model.
        args: `SFTConfig`, or plain `TrainingArguments`; None for the defaults.
        data_collator: replaces honed's batches. It gets the token ids of each prepared row, and labels unless it makes
            its own; with `dataset_kwargs={"skip_prepare_dataset": True}`, the rows as they are.
        train_dataset: whatever `honed.data.read.sources.read_rows` reads: a file, rows, a `Dataset`. Not changed.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer, or for rows with images the processor; loaded from the model's folder when
            absent. Not changed.
        compute_loss_func, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics: as in transformers.
        quantization_config: how to quantise a model that is given by name.
        peft_config: attaches this adapter; not changed.
        formatting_func: row -> text, messages, a pair or another row; see `honed.data.read.formatting.Formatting`.
        **old: arguments that TRL's trainer took in the past; see `honed.train.options.legacy`.

    Attributes:
        ledger: what became of every training row.
        notes: what the user should know: options without effect, seams that the model did not take. Logged as well.

    Raises:
        HonedError: rows, template, options or model cannot be used; the message says which and how to fix it.
    """

    def __init__(  # noqa: PLR0917 - the order is transformers' and TRL's, and scripts rely on it
        self,
        model: str | nn.Module,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Callable[..., torch.Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, Any] | None = None,
        preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Callable[[Any], Any] | None = None,
        **old: Any,
    ) -> None:
        # Options, as a copy of our own: old names are moved into it, and what cannot work together is refused.
        check_kinds(model, args, old.get("tokenizer", processing_class), peft_config)
        args = start.own_arguments(args, model)
        processing_class, self.notes = legacy.adopt(args, old, processing_class, inspect.signature(SFTTrainer))
        self.notes += rules.check(args) + check_subclass(type(self), SFTTrainer, args)
        self._try_arguments(args, eval_dataset, compute_metrics, callbacks, (*optimizers, optimizer_cls_and_kwargs))

        # Tokenizer or processor, then the rows: errors in both are reported before weights are loaded.
        inspected = None if data_collator is not None or args.streaming else train_dataset
        processing_class = start.make_processing_class(processing_class, start.model_name(model), args, inspected)
        if not isinstance(model, nn.Module) and data_collator is None:  # the caller's collator may want other rows
            given: dict[str, Any] = {"processing_class": processing_class, "formatting_func": formatting_func}
            train_dataset = prepare_ahead(train_dataset, args=args, **given)
            eval_dataset = prepare_ahead(eval_dataset, args=args, name="eval", **given)

        # Model and adapter; options are lowered to what the model can do.
        trained, notes = start.trainable_model(
            model,
            args,
            processing_class,
            quantization_config=quantization_config,
            peft_config=peft_config,
            custom_batches=data_collator is not None,
        )
        self.notes += notes

        # Attention and head: which of honed's the model takes, by trial. This decides whether batches are flat.
        self._has_loss_func, is_multimodal = compute_loss_func is not None, vision.is_processor(processing_class)
        found = start.try_seams(trained, has_loss_func=self._has_loss_func, is_multimodal=is_multimodal)
        padded = reads_batches(type(self), SFTTrainer)
        self.seams, flat = start.choose_attention(found, model, trained, args, padded=padded)
        self.notes += start.fit_padding(args, trained, flat=flat) + self.seams.notes + notes_on_masters(trained, args)
        shares_prefixes, notes = shared_prefixes.decide(args, trained, self.seams)
        self.notes += notes

        # Batches, how ranks share them, and the rows.
        self._datasets = Datasets(
            args,
            processing_class,
            formatting_func=formatting_func,
            collator=data_collator,
            flat=flat,
            shares_prefixes=shares_prefixes,
            pixel_dtype=base_model(trained).dtype,
        )
        token_batches.check(args, self._datasets.collator)
        custom_parts = any((data_collator, compute_loss_func, compute_metrics, is_multimodal))
        sequence_parallel.check(args, trained, self.seams, custom_parts=custom_parts)
        start.fit_ranks(args, trained)
        train_dataset = self._datasets.make("train", train_dataset)
        eval_dataset = self._datasets.make_evaluation(eval_dataset)

        # transformers' Trainer, and what its constructor sets differently.
        own_optimizer, notes = optimizer_of(args, trained, optimizers[0], optimizer_cls_and_kwargs)
        self.notes += notes
        use_cache = getattr(base_model(trained).config, "use_cache", None)
        super().__init__(
            model=trained,
            args=args,
            data_collator=self._datasets.collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=own_optimizer,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if use_cache is not None:  # Trainer switches it off, and would save that
            base_model(trained).config.use_cache = use_cache
        self.model_accepts_loss_kwargs = True  # honed's loss is divided by the step's token weight already
        self._overrides_loss = overridden(type(self), SFTTrainer, "compute_loss")
        self.neftune_noise_alpha = None  # see `SteppingTrainer`
        self.metrics, self.watch, self.splits, self._window = self._new_metrics(), StepWatch(), Splits(), []

        # What depends on the prepared rows, and all notes.
        self._fit_to_rows(padded=not flat, is_multimodal=is_multimodal)
        for note in self.notes if self.is_world_process_zero() else ():
            logger.warning(note)

    def _try_arguments(
        self, args: Any, eval_dataset: Any, compute_metrics: Any, callbacks: Any, own_parts: tuple[Any, ...]
    ) -> None:
        """Refuses settings that transformers would find wrong only while it trains."""
        start.try_arguments(args, type(self), SFTTrainer, *own_parts)
        if eval_dataset is not None and not adds_metrics(type(self), SFTTrainer, callbacks or ()):
            sets = list(eval_dataset) if isinstance(eval_dataset, dict) else [""]
            start.need_best_metric(args, sets, more=compute_metrics is not None)

    def _fit_to_rows(self, *, padded: bool, is_multimodal: bool) -> None:
        """What depends on the prepared rows: layers that recompute, tokens that end an answer, callbacks, and notes."""
        model, data, rows = self.model, self._datasets, self.train_dataset
        layers, notes = choose_layers(self.args, model, rows, padded=padded, is_multimodal=is_multimodal)
        self._add_callbacks(layers)
        if stop_ids := data.stop_ids():
            agree_on_stops(base_model(model), data.tokenizer, stop_ids)
        self.notes += notes + data.notes + data.notes_on_weights(has_loss_func=self._has_loss_func)
        self.notes += notes_on_new_tokens(model, data.tokenizer, rows)

    def _add_callbacks(self, layers: list[TrainerCallback]) -> None:
        """Adds honed's callbacks, and replaces transformers' progress bar."""
        self._progress = TrainingProgress()
        callbacks = [*adalora_callbacks(self.model, fp16=self.args.fp16), *early_stopping(self.args)]
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.remove_callback(PrinterCallback)
            callbacks.append(self._progress)
        streams = self._datasets.streamed is not None
        stops = SavesAndStops(self._restore_position, self._is_asked_to_stop, self._save_now, streams=streams)
        for callback in [*callbacks, *layers, stops]:
            self.add_callback(callback)

    @property
    def ledger(self) -> Ledger | None:
        """What became of the training rows (of a stream: so far); None where they were not prepared."""
        if self.stream_loader is not None:
            return self.stream_loader.ledger
        return self._datasets.ledger()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains; see `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: a checkpoint; True: the newest good one in `output_dir`; "auto": that one, or none.

        Raises:
            RunError: there is no checkpoint to resume from, too many steps had no finite loss or gradient, or another
                model was assigned to `trainer.model`.
        """
        self.refuse_cast_weights()
        self._refuse_another_model()
        resume = self.checkpoint_to_resume(resume_from_checkpoint)
        if isinstance(self.train_dataset, stream.StreamDataset):
            self._stream_after = stream.place_to_resume(resume)
        try:
            with self._seams_open(), start.checkpointing_undone(self.model), self._layers_changed():
                return super().train(resume, *args, **kwargs)
        finally:
            self._progress.close(finished=False)  # if training broke off

    def _refuse_another_model(self) -> None:
        """Refuses a model that a script has put in the place of the one that was prepared for training.

        Raises:
            RunError: it has.
        """
        prepared, present = (self.accelerator.unwrap_model(model) for model in (self.model_wrapped, self.model))
        if base_model(prepared) is not base_model(present):
            raise RunError(
                "trainer.model was replaced after the trainer was made, so it would not be prepared for training.",
                fix="make a new SFTTrainer with the other model",
            )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if not self._has_loss_func:
            return inputs
        ours = set(NOT_FOR_THE_MODEL) - {"labels"}
        return {**{key: value for key, value in inputs.items() if key not in ours}, "use_cache": False}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's share of the step's loss: sum of token losses / token weight of the whole step."""
        self._scaled = num_items_in_batch is not None
        objective = self.args.objective()
        if self._has_loss_func or "labels" not in inputs:
            if objective.kind != "nll":
                raise RecipeError(
                    f"loss_type={objective.kind!r} has no effect with your own compute_loss_func, or without labels.",
                    fix="leave one of them out",
                )
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        own = total_weight(inputs["labels"], inputs.get("loss_weights"))
        total = own if num_items_in_batch is None else num_items_in_batch
        total = total + (total == 0)  # without a trained token the loss is 0
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = total / self.accelerator.num_processes  # data-parallel wrappers average over ranks
        config = base_model(self.model).config.get_text_config()  # evaluation is without the auxiliary loss
        aux_coefficient = aux_loss_coefficient(config, self.args.router_aux_loss_coef if model.training else 0.0)
        scores, output = token_scores(
            model,
            inputs,
            None if return_outputs else self._head,  # a subclass that asks for outputs needs the logits
            objective=objective,
            total=total,
            extras=self.args.token_metrics,
            router_logits=aux_coefficient > 0,
        )
        loss, aux_loss = scores.loss, aux_loss_of(output) if aux_coefficient else None
        if aux_loss is not None:
            loss = loss + aux_coefficient * aux_loss * (own / total)
        self.metrics.add(scores, tokens=token_count(inputs), aux_loss=aux_loss)
        return (loss, output) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The token weight of all micro-batches of this step on all ranks."""
        batches = [part for batch in batch_samples for part in token_batches.micro_batches(batch)]
        if self._has_loss_func or not batches or "labels" not in batches[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        weights = [total_weight(batch["labels"], batch.get("loss_weights")) for batch in batches]
        total = torch.stack(weights).sum().to(device, non_blocking=True)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total.reshape(1)).sum()
        return total
