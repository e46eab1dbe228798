"""SFTTrainer: transformers' Trainer with honed's data, loss and seams. Hooks only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from honed.data.collate import FlatCollator, PaddedCollator
from honed.data.completion_collator import DataCollatorForCompletionOnlyLM, TokenRows
from honed.data.ledger import Ledger
from honed.data.prepare import Prepared, PrepareOptions, prepare
from honed.data.prepared_cache import prepare_cached
from honed.data.stream import Place, RowStream
from honed.data.table import PackedRows
from honed.errors import ModelError, RecipeError
from honed.loss.head import ScoringHead
from honed.loss.objective import total_weight
from honed.loss.router import aux_loss_coefficient, aux_loss_of
from honed.model.adapters import attach
from honed.model.load import load_model, load_tokenizer
from honed.model.vocabulary import agree_on_stops, with_pad_token
from honed.train import rules, seams, stream
from honed.train.callbacks import TrainingProgress
from honed.train.config import SFTConfig
from honed.train.metrics import StepMetrics


class SFTTrainer(Trainer):
    """Supervised fine-tuning of a causal language model.

    Args:
        model: a name or folder, a transformers model, or a peft model.
        args: `SFTConfig`, or plain `TrainingArguments`; None for the defaults.
        data_collator: replaces honed's batches. It gets the rows of the data set as they are; a
            `DataCollatorForCompletionOnlyLM` gets their token ids.
        train_dataset: whatever `honed.data.sources.read_rows` reads: a file, rows, a `datasets.Dataset`. Not changed.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; loaded from the model's folder when absent. Not changed.
        compute_loss_func, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics: as in transformers.
        peft_config: attaches this adapter; not changed.
        formatting_func: row -> text, messages, a pair or another row; see `honed.data.formatting.Formatting`.

    Attributes:
        ledger: what became of every training row.
        notes: what the user should know: options without effect, seams that the model did not take.

    Raises:
        HonedError: rows, template, options or model cannot be used; the message says which and how to mend it.
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
        peft_config: Any = None,
        formatting_func: Callable[[Any], Any] | None = None,
    ) -> None:
        args = as_sft_config(args)
        self.notes = rules.check(args)
        name = model if isinstance(model, str) else seams.base_model(model).config.name_or_path
        loaded = (
            model
            if isinstance(model, nn.Module)
            else load_model(name, device=args.device, **(args.model_init_kwargs or {}))
        )
        tokenizer = with_pad_token(processing_class if processing_class is not None else load_tokenizer(name))
        set_seed(args.seed)  # Trainer does so too, but after the adapter's weights are drawn
        trained: nn.Module = attach(loaded, peft_config) if peft_config is not None else loaded
        self._plain_loss = compute_loss_func is not None or data_collator is not None
        self.seams = seams.Seams() if self._plain_loss else seams.find_seams(trained)
        self.notes += self.seams.notes
        if args.packing and not self.seams.flat and data_collator is None:
            raise ModelError(
                "packing=True, but documents cannot share a row in this model: " + "; ".join(self.seams.notes),
                fix="set packing=False",
            )
        if args.packing and isinstance(data_collator, DataCollatorForCompletionOnlyLM):
            raise RecipeError("packing=True packs nothing for a DataCollatorForCompletionOnlyLM.", fix="leave it out")
        self._prepared: dict[str, Prepared] = {}
        self.stream_loader: stream.StreamLoader | None = None
        self._stream_after: Place | None = None
        self._head: ScoringHead | None = None
        self._formatting_func = formatting_func
        train_rows = self._rows("train", train_dataset, tokenizer, args, data_collator)
        super().__init__(
            model=trained,
            args=args,
            data_collator=data_collator or self._collator(tokenizer, args),
            train_dataset=train_rows,
            eval_dataset=self._eval_rows(eval_dataset, tokenizer, args, data_collator),
            processing_class=tokenizer,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # our loss is divided by the step's token weight already, whatever the model's own loss would do
        self.model_accepts_loss_kwargs = True
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.remove_callback(PrinterCallback)
            self.add_callback(TrainingProgress())
        self.metrics = StepMetrics(self.args.device)
        if self.ledger is not None and "eval" in self._prepared:
            self.ledger.evaluation = self._prepared["eval"].ledger.as_dict()
        if "train" in self._prepared:
            agree_on_stops(seams.base_model(self.model), tokenizer, self._prepared["train"].stop_ids)
        elif isinstance(self.train_dataset, stream.StreamDataset):
            agree_on_stops(seams.base_model(self.model), tokenizer, self.train_dataset.stream.stop_ids())
            self.add_callback(stream.KeepsPlace(lambda: self.stream_loader))

    @property
    def ledger(self) -> Ledger | None:
        """What became of the training rows (of a stream: so far); None where a custom collator took them whole."""
        if self.stream_loader is not None:
            return self.stream_loader.ledger
        return self._prepared["train"].ledger if "train" in self._prepared else None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains; see `transformers.Trainer.train`."""
        if isinstance(self.train_dataset, stream.StreamDataset):
            resume = args[0] if args else kwargs.get("resume_from_checkpoint")
            self._stream_after = stream.place_to_resume(resume, self.args.output_dir)
        with self._seams_open():
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """The batches of this rank. Those of a stream are shared out here already, not by accelerate."""
        if not isinstance(self.train_dataset, stream.StreamDataset):
            return super().get_train_dataloader()
        size, after = self._train_batch_size, self._stream_after
        self.stream_loader = stream.loader_of(self.train_dataset, self.args, size=size, after=after)
        return self.stream_loader

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates or predicts with the same seams as training."""
        before = self.metrics
        self.metrics = StepMetrics(self.args.device)
        try:
            with self._seams_open():
                output = super().evaluation_loop(*args, **kwargs)
            prefix = kwargs.get("metric_key_prefix", "eval")
            logs = self.metrics.read()
            shown = {key: logs[key] for key in ("mean_token_accuracy", "entropy") if key in logs}
            output.metrics.update({f"{prefix}_{key}": value for key, value in shown.items()})
            return output
        finally:
            self.metrics = before
            self.metrics.start_clock()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's share of the step's loss: sum of token losses / token weight of the whole step."""
        objective = self.args.objective()
        if self._plain_loss or "labels" not in inputs:
            if objective.kind != "nll":
                raise RecipeError(
                    f"loss_type={objective.kind!r} has no effect beside your own compute_loss_func or data_collator.",
                    fix="leave one of them out",
                )
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        own = total_weight(inputs["labels"], inputs.get("loss_weights"))
        total = own if num_items_in_batch is None else num_items_in_batch
        total = total + (total == 0)  # without a trained token the loss is 0
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = total / self.accelerator.num_processes  # data-parallel wrappers average over ranks
        config = seams.base_model(self.model).config.get_text_config()
        aux_coefficient = aux_loss_coefficient(config, self.args.router_aux_loss_coef)
        logits_wanted = return_outputs and bool(self.compute_metrics or self.preprocess_logits_for_metrics)
        scores, output = seams.token_scores(
            model,
            inputs,
            None if logits_wanted else self._head,
            objective=objective,
            total=total,
            extras=self.args.token_metrics,
            router_logits=aux_coefficient > 0,
        )
        loss, aux_loss = scores.loss, aux_loss_of(output) if aux_coefficient else None
        if aux_loss is not None:
            loss = loss + aux_coefficient * aux_loss * (own / total)
        self.metrics.add(scores, tokens=seams.token_count(inputs), aux_loss=aux_loss)
        if self._head is not None and not logits_wanted:  # what stands there are none
            output = type(output)(**{key: value for key, value in output.items() if key != "logits"})
        return (loss, output) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The token weight of all micro-batches of this step on all ranks."""
        if self._plain_loss or not batch_samples or "labels" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        weights = [total_weight(batch["labels"], batch.get("loss_weights")) for batch in batch_samples]
        total = torch.stack(weights).sum().to(device, non_blocking=True)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total.reshape(1)).sum()
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds honed's metrics to the training lines."""
        training = "loss" in logs
        super().log({**logs, **self.metrics.read()} if training else dict(logs), start_time)
        self.metrics.start_clock()

    def _set_signature_columns_if_needed(self) -> None:
        # rows reach the collator as `PackedRow`s, and a custom collator gets them whole
        self._signature_columns = list(getattr(self.train_dataset, "column_names", None) or [])

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator

    @contextmanager
    def _seams_open(self) -> Iterator[None]:
        outer = self._head
        with seams.opened(self.model, self.seams) as head:
            self._head = head
            try:
                yield
            finally:
                self._head = outer

    def _collator(self, tokenizer: Any, args: SFTConfig) -> Any:
        if self.seams.flat:
            return FlatCollator()
        return PaddedCollator(pad_token_id=tokenizer.pad_token_id, multiple_of=args.pad_to_multiple_of or 1)

    def _eval_rows(self, dataset: Any, tokenizer: Any, args: SFTConfig, collator: Any) -> Any:
        if isinstance(dataset, dict):
            return {name: self._rows(name, rows, tokenizer, args, collator) for name, rows in dataset.items()}
        return self._rows("eval", dataset, tokenizer, args, collator)

    def _rows(self, name: str, dataset: Any, tokenizer: Any, args: SFTConfig, collator: Any) -> Any:
        """The prepared rows; a custom collator gets the data set as it is, but for the one that needs token ids."""
        finds_completions = isinstance(collator, DataCollatorForCompletionOnlyLM)
        if dataset is None or isinstance(dataset, PackedRows) or (collator is not None and not finds_completions):
            return dataset
        options = args.prepare_options(evaluation=name != "train")
        if name == "train" and not finds_completions and stream.is_streamed(dataset, args):
            return self._streamed(dataset, tokenizer, options, args)
        if finds_completions:  # which tells apart what is trained; so all is rendered, each document in its own row
            options = replace(options, train_on="all", packing=False)
        desc = f"Preparing {name} data"
        prepared = prepare_cached if args.data_cache else prepare
        self._prepared[name] = prepared(dataset, tokenizer, options, formatting_func=self._formatting_func, desc=desc)
        rows = self._prepared[name].rows
        return TokenRows(rows) if finds_completions else rows

    def _streamed(self, dataset: Any, tokenizer: Any, options: PrepareOptions, args: SFTConfig) -> stream.StreamDataset:
        rows = RowStream(
            dataset,
            tokenizer,
            options,
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffle_buffer=args.shuffle_buffer,
            formatting_func=self._formatting_func,
        )
        args.ignore_data_skip = True  # a resumed stream starts at its place; nothing is read only to be skipped
        return stream.StreamDataset(rows, args.per_device_train_batch_size, self._collator(tokenizer, args))


def as_sft_config(args: TrainingArguments | None) -> SFTConfig:
    """The arguments as an SFTConfig of our own; the caller's object is not changed."""
    if args is None:
        return SFTConfig(output_dir="trainer_output")
    if isinstance(args, SFTConfig):
        return copy.deepcopy(args)
    given = {key: value for key, value in args.to_dict().items() if key in SFTConfig.__dataclass_fields__}
    given["hub_token"] = args.hub_token  # to_dict masks it
    return SFTConfig(**given)
