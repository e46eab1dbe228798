"""SFTTrainer: transformers' Trainer with honed's data and loss. Hooks only; seams: `honed.train.forward.seams`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from honed.data.batch.table import PackedRows
from honed.data.ledger import Ledger
from honed.data.prepare.stream import Place
from honed.errors import RecipeError
from honed.loss.objective import total_weight
from honed.loss.router import aux_loss_coefficient, aux_loss_of
from honed.model.adapters.adapters import ready_to_train
from honed.model.load.vocabulary import agree_on_stops
from honed.train.forward import seams, shared_prefixes, vision
from honed.train.forward.checkpointing import choose_layers
from honed.train.optimizers.optimizers import optimizer_of
from honed.train.optimizers.precision import notes_on_masters
from honed.train.options import legacy, rules
from honed.train.rows import filling, new_tokens, stream, token_batches
from honed.train.rows.rows import TOKEN_COLUMNS, Datasets, GroupedByLength
from honed.train.trainer import start
from honed.train.trainer.adapter_callbacks import adapter_callbacks
from honed.train.trainer.callbacks import TrainingProgress, early_stopping
from honed.train.trainer.out_of_memory import Splits
from honed.train.trainer.overrides import check_subclass, overridden, reads_batches
from honed.train.trainer.stops import SavesAndStops, keep_workers
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
        HonedError: rows, template, options or model cannot be used; the message says which and how to mend it.
    """

    stream_loader: stream.StreamLoader | None = None
    _stream_after: tuple[Place, int] | None = None

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
        args = start.own_arguments(args, model)
        processing_class, notes = legacy.adopt(args, old, processing_class, inspect.signature(SFTTrainer))
        self.notes: list[str] = [*legacy.folded([*args.old_names, *notes]), *rules.check(args)]
        self.notes += check_subclass(type(self), SFTTrainer, args)
        padded, own_loss = reads_batches(type(self), SFTTrainer), overridden(type(self), SFTTrainer, "compute_loss")
        looked_at = None if data_collator is not None or args.streaming else train_dataset
        processing_class = start.make_processing_class(processing_class, start.model_name(model), args, looked_at)
        sees = vision.is_processor(processing_class)
        tokenizer = processing_class.tokenizer if sees else processing_class
        train_dataset, eval_dataset = start.prepare_early(
            (train_dataset, eval_dataset), data_collator is None and model, args, processing_class, formatting_func
        )
        loaded = start.make_model(model, args, quantization_config, self.notes, sees=sees)
        self.notes += start.fit_to_model(args, loaded, tokenizer)
        processor = processing_class if sees and data_collator is None else None
        if processor is not None:
            peft_config, notes = vision.fit(args, loaded, peft_config)
            self.notes += notes
        set_seed(args.seed)  # Trainer does so only after the adapter's weights are drawn
        reruns = args.gradient_checkpointing not in (False, "auto")  # "auto" is decided when the rows are known
        trained, notes = ready_to_train(loaded, peft_config, tokenizer=tokenizer, checkpointing=reruns, **args.chosen)
        self._plain_loss = compute_loss_func is not None
        found = seams.lora_alone(trained) if self._plain_loss else seams.find_seams(trained)
        found = vision.without_attention(found, trained) if sees else found
        self.seams, flat = start.choose_attention(found, model, trained, args, padded=padded)
        self.notes += notes + ([vision.freeze_vision(trained)] if args.freeze_vision else [])
        self.notes += start.fit_padding(args, trained, flat=flat) + self.seams.notes + notes_on_masters(trained, args)
        self._datasets = Datasets(
            args,
            tokenizer,
            formatting_func=formatting_func,
            collator=data_collator,
            flat=flat,
            shares_prefixes=shared_prefixes.decide(args, trained, self.seams),
            processor=processor,
            pixels=seams.base_model(trained).dtype,
        )
        token_batches.check(args, self._datasets.collator)
        own_parts = any((data_collator, compute_loss_func, compute_metrics, processor))
        start.fit_ranks(args, trained, self.seams, checkpoints=reruns, own_parts=own_parts)
        use_cache = getattr(seams.base_model(trained).config, "use_cache", None)
        super().__init__(
            model=trained,
            args=args,
            data_collator=self._datasets.collator,
            train_dataset=self._datasets.make("train", train_dataset),
            eval_dataset=self._datasets.make_evaluation(eval_dataset),
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_of(args, trained, (optimizers, optimizer_cls_and_kwargs), self.notes),
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if use_cache is not None:  # Trainer switches it off, and would save that
            seams.base_model(self.model).config.use_cache = use_cache
        self.model_accepts_loss_kwargs = True  # honed's loss is divided by the step's token weight already
        self.neftune_noise_alpha = None  # see `SteppingTrainer`
        for callback in [*adapter_callbacks(trained, fp16=args.fp16), *early_stopping(args)]:
            self.add_callback(callback)
        self._progress, self._window, self._own_loss = TrainingProgress(), [], own_loss
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.remove_callback(PrinterCallback)
            self.add_callback(self._progress)
        self.metrics, self.watch, self.splits = self._new_metrics(), StepWatch(), Splits()
        self.notes += choose_layers(self, trained, padded=not flat, sees=sees)
        if stop_ids := self._datasets.stop_ids():
            agree_on_stops(seams.base_model(self.model), tokenizer, stop_ids)
        streams = self._datasets.streamed is not None
        self.add_callback(SavesAndStops(self._go_on, self._stops, self._save_now, streams=streams))
        told = self._datasets.notes + self._datasets.weights_not_seen(own_loss=self._plain_loss)
        self.notes += told + new_tokens.notes_on_new_tokens(trained, tokenizer, self.train_dataset)
        for note in self.notes if self.is_world_process_zero() else ():
            logger.warning(note)

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
            RunError: there is no checkpoint to resume from, or too many steps had no finite loss or gradient.
        """
        resume = self.checkpoint_to_resume(resume_from_checkpoint)
        if isinstance(self.train_dataset, stream.StreamDataset):
            self._stream_after = stream.place_to_resume(resume)
        try:
            with self._seams_open(), start.checkpointing_undone(self.model), self._layers_changed():
                return super().train(resume, *args, **kwargs)
        finally:
            self._progress.close(finished=False)  # if training broke off

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if not self._plain_loss:
            return inputs
        ours = set(seams.NOT_FOR_THE_MODEL) - {"labels"}
        return {**{key: value for key, value in inputs.items() if key not in ours}, "use_cache": False}

    def get_train_dataloader(self) -> Any:
        """The batches of this rank; a stream deals them out itself, without accelerate."""
        if not isinstance(self.train_dataset, stream.StreamDataset):
            return keep_workers(self._rows_loader())
        size, after = self._train_batch_size, self._stream_after
        self.stream_loader = stream.loader_of(self.train_dataset, self.args, size=size, after=after)
        return self.stream_loader

    def _rows_loader(self) -> Any:
        """Batches of rows; accelerate deals them to the ranks, and the last round is filled up with empty rows."""
        rows, collate, size = self.train_dataset, self.data_collator, self._train_batch_size
        if self.args.tokens_per_step is not None:
            return token_batches.loader_of(rows, self._datasets.collator, self.args, size=size)
        if self.args.world_size == 1 or not self._fills_rounds():
            return super().get_train_dataloader()
        self.data_collator = filling.FilledCollator(collate=collate, untrained=filling.untrained_row(rows))
        try:
            loader = self._get_dataloader(
                filling.FilledRows(rows),
                description="Training",
                batch_size=size,
                sampler_fn=lambda _: self._get_train_sampler(rows),
                is_training=True,
            )
        finally:
            self.data_collator = collate
        filling.fill_up(loader)
        return loader

    def _fills_rounds(self) -> bool:
        return not self._plain_loss and filling.can_fill(self.train_dataset, self.data_collator)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's share of the step's loss: sum of token losses / token weight of the whole step."""
        self._scaled = num_items_in_batch is not None
        objective = self.args.objective()
        if self._plain_loss or "labels" not in inputs:
            if objective.kind != "nll":
                raise RecipeError(
                    f"loss_type={objective.kind!r} has no effect beside your own compute_loss_func, or without labels.",
                    fix="leave one of them out",
                )
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        own = total_weight(inputs["labels"], inputs.get("loss_weights"))
        total = own if num_items_in_batch is None else num_items_in_batch
        total = total + (total == 0)  # without a trained token the loss is 0
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = total / self.accelerator.num_processes  # data-parallel wrappers average over ranks
        config = seams.base_model(self.model).config.get_text_config()  # evaluation is without the auxiliary loss
        aux_coefficient = aux_loss_coefficient(config, self.args.router_aux_loss_coef if model.training else 0.0)
        scores, output = seams.token_scores(
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
        self.metrics.add(scores, tokens=seams.token_count(inputs), aux_loss=aux_loss)
        return (loss, output) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The token weight of all micro-batches of this step on all ranks."""
        batches = [part for batch in batch_samples for part in token_batches.micro_batches(batch)]
        if self._plain_loss or not batches or "labels" not in batches[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        weights = [total_weight(batch["labels"], batch.get("loss_weights")) for batch in batches]
        total = torch.stack(weights).sum().to(device, non_blocking=True)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total.reshape(1)).sum()
        return total

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(rows, PackedRows):
            return super()._get_train_sampler(train_dataset)
        args = self.args
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.data_parallel_size
        return GroupedByLength(rows, per_step, seed=args.seed if args.data_seed is None else args.data_seed)

    def _set_signature_columns_if_needed(self) -> None:
        # prepared rows have no columns; of unprepared rows, collators get the token columns, or all if there are none
        columns = list(getattr(self.train_dataset, "column_names", None) or [])
        tokenised = "input_ids" in columns
        self._signature_columns = [name for name in columns if not tokenised or name in TOKEN_COLUMNS]

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator
