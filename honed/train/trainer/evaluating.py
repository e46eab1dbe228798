"""How SFTTrainer evaluates, predicts and shows rows: prepared as for training, with one exact loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import SequentialSampler

from honed.data.batch.collate import FlatCollator
from honed.data.batch.table import PackedRows
from honed.errors import RecipeError, RunError
from honed.loss.head import ScoringHead
from honed.loss.objective import total_weight
from honed.loss.router import aux_loss_coefficient
from honed.train.forward import seams
from honed.train.forward.sequence_parallel import make_group, share_rows
from honed.train.metrics import StepMetrics
from honed.train.ranks import Ranks, keep_workers, tensor_parallel_size
from honed.train.rows.filling import FilledRows, evenly_filled
from honed.train.rows.rows import show_row
from honed.train.trainer.loading import LoadingTrainer

logger = logging.getLogger(__name__)

OF_THE_END = ("num_tokens", "mean_token_accuracy", "entropy", "aux_loss")  # speeds would include saving and evaluation


class EvaluatingTrainer(LoadingTrainer):
    """transformers' Trainer with honed's evaluation; `SFTTrainer` sets the attributes.

    Attributes:
        metrics: those of the current training or evaluation.
        seams: what is changed in the model while it trains or evaluates.
    """

    metrics: StepMetrics
    notes: list[str]
    seams: seams.Seams
    _head: ScoringHead | None = None
    _sequence_group: Any = None  # the ranks that share this one's rows
    _cast_for_good = False  # an evaluation has cast the weights to 16 bits
    _training_draws: torch.Tensor | None = None  # during evaluation: the random state of training

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates; a dataset passed here is prepared like the one given to the constructor."""
        if not isinstance(eval_dataset, str):
            eval_dataset = self._datasets.make_evaluation(eval_dataset)
            self._tell_new_notes()
        return super().evaluate(eval_dataset, *args, **kwargs)

    def refuse_cast_weights(self) -> None:
        """Refuses to train the weights that an evaluation outside of training has rounded to 16 bits.

        Raises:
            RunError: one has.
        """
        if self._cast_for_good:
            option = "bf16_full_eval" if self.args.bf16_full_eval else "fp16_full_eval"
            raise RunError(
                f"An evaluation has cast the model's weights to 16 bits ({option}=True), so training would start from "
                "rounded weights.",
                fix=f"leave {option} out (bf16=True evaluates in bfloat16 as well), or make a new trainer",
            )

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the logits and labels of rows, one document per row; see `transformers.Trainer.predict`.

        Raises:
            RecipeError: with sequence parallelism no rank has all logits of a row.
        """
        if self.args.sequence_parallel_size > 1:
            raise RecipeError(
                "With sequence_parallel_size no process has the logits of a whole row.", fix="predict with one process"
            )
        rows = self._datasets.make("test", test_dataset)
        self._tell_new_notes()
        return super().predict(rows, *args, **kwargs)

    def _tell_new_notes(self) -> None:
        """Logs the notes on a dataset that was prepared after the constructor logged its own."""
        new = [note for note in self._datasets.notes if note not in self.notes]
        self.notes += new
        for note in new if self.is_world_process_zero() else ():
            logger.warning(note)

    def show(self, row: int = 0, rows: Any = None) -> None:
        """Shows a prepared row with its trained tokens marked: coloured text, or HTML in a notebook.

        Args:
            row: the index of the row, from 0.
            rows: the prepared rows; None for `train_dataset`.

        Raises:
            DataError: the rows are not prepared, or the index is out of range.
        """
        show_row(self.train_dataset if rows is None else rows, self.processing_class, row)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Returns the evaluation loader; its batches are padded, one document per row, for `compute_metrics`."""
        with self._rows_apart(self.compute_metrics is not None, eval_dataset):
            if eval_dataset is None or isinstance(eval_dataset, str):
                return super().get_eval_dataloader(eval_dataset)
            kept = self.__dict__.pop("_eval_dataloaders", {})  # else transformers reuses another dataset's loader
            try:
                return super().get_eval_dataloader(eval_dataset)
            finally:
                self._eval_dataloaders = kept

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Returns the loader for `predict`, with padded batches."""
        with self._rows_apart(True, test_dataset):
            return super().get_test_dataloader(test_dataset)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        ranks = self.args.sequence_parallel_size
        if kwargs.get("is_training"):
            return share_rows(super()._get_dataloader(dataset, *args, **kwargs), ranks)
        if isinstance(dataset, PackedRows) and self.args.world_size > 1 and dataset:
            dataset = evenly_filled(dataset, self.args.eval_batch_size * self.args.data_parallel_size)
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False  # meant for training only
        try:
            return keep_workers(share_rows(super()._get_dataloader(dataset, *args, **kwargs), ranks))
        finally:
            self.args.dataloader_drop_last = drops

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Keeps prepared rows in order even if training groups them by length: `FilledRows` needs its filling last."""
        if isinstance(eval_dataset, (PackedRows, FilledRows)):
            return SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    def _new_metrics(self) -> StepMetrics:
        args = self.args
        ranks = Ranks(device=args.device, rank=args.process_index, world=args.world_size)
        parts = tensor_parallel_size(self.model)  # tensor-parallel ranks have the same rows
        return StepMetrics(args.device, over_ranks=lambda *values: [total / parts for total in ranks.sum(*values)])

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluates or predicts with training's changes to the model; the loss is the mean over all trained tokens.

        Raises:
            RecipeError: FSDP2 has not sharded the model yet.
        """
        untrained = not self.accelerator._models
        if untrained and self.accelerator.is_fsdp2:
            raise RecipeError(
                "FSDP2 shards the model when training begins, so there is no sharded model to evaluate before that.",
                fix="set eval_on_start=True to evaluate before the first step, or evaluate after train()",
            )
        self._cast_for_good |= not self.is_in_train and (self.args.bf16_full_eval or self.args.fp16_full_eval)
        before = self.metrics
        self.metrics = self._new_metrics()
        self._evaluated = torch.zeros(2, device=self.args.device)
        try:
            # Loaders draw their seed from torch's generator; it is restored so that training is not affected.
            self._training_draws = torch.random.get_rng_state()
            with self._seams_open(), torch.random.fork_rng(devices=[]):
                self._join_ranks()
                output = super().evaluation_loop(dataloader, *args, **kwargs)
            if isinstance(rows := getattr(dataloader, "dataset", None), FilledRows):
                output = output._replace(num_samples=rows.total_dataset_length)
            prefix = kwargs.get("metric_key_prefix", "eval")
            logs = self.metrics.read()
            shown: dict[str, float] = {key: logs[key] for key in ("mean_token_accuracy", "entropy") if key in logs}
            loss, weight = self.accelerator.gather(self._evaluated[None]).sum(0).tolist()
            if weight > 0:
                shown["loss"] = loss / weight
            output.metrics.update({f"{prefix}_{key}": value for key, value in shown.items()})
            return output
        finally:
            if untrained and not self.is_deepspeed_enabled:
                self._forget_preparation()
            self._training_draws = None
            self.metrics = before
            self.metrics.start_clock()

    def _forget_preparation(self) -> None:
        """Makes `train` prepare the model again: after an evaluation accelerate considers it prepared.

        Otherwise the model is not wrapped in DistributedDataParallel and each rank silently trains on its rows only.
        """
        self.accelerator._models.clear()
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # `train` applies autocast again
        self.model.__dict__.pop("_is_accelerate_prepared", None)
        self.model_wrapped = self.model

    @property
    def aux_loss_enabled(self) -> bool:
        """Whether training adds the load-balancing loss of a mixture of experts (the name is TRL's)."""
        config = seams.base_model(self.model).config.get_text_config()
        return aux_loss_coefficient(config, self.args.router_aux_loss_coef) > 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds honed's metrics to training logs; to the final one, those of the steps not logged yet."""
        if "loss" in logs:  # other logs are not copied: Trainer adds `epoch` to what `evaluate` returns
            logs = {**logs, **self.metrics.read()}
        elif "train_runtime" in logs:  # changed in place: `train` returns these metrics, as in TRL
            rest = self.metrics.read()
            logs.update({key: rest[key] for key in OF_THE_END if key in rest})
        super().log(logs, start_time)
        self.metrics.start_clock()

    def _join_ranks(self) -> None:
        """Creates the sequence-parallel group once, with the seams open; all ranks must call it."""
        if self.args.sequence_parallel_size > 1 and self._sequence_group is None:
            self._sequence_group = make_group(self.args, self.model)

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves the random state of training even if SIGTERM requests the checkpoint during an evaluation."""
        with torch.random.fork_rng(devices=[]):
            if self._training_draws is not None:
                torch.random.set_rng_state(self._training_draws)
            super()._save_rng_state(output_dir)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Loss of a batch; logits and labels as well unless `prediction_loss_only`, from a plain forward pass."""
        if self._has_loss_func or "labels" not in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        items = self._get_num_items_in_batch([inputs], self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, dict(inputs), num_items_in_batch=items)  # a copy: it may pop the labels
            ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            weight = total_weight(inputs["labels"], inputs.get("loss_weights"))
            total = loss * items / ranks
            self._evaluated = self._evaluated + torch.stack([total, weight])
            loss = torch.where(weight > 0, total / weight, loss)  # this batch's own mean, for include_for_metrics
            if prediction_loss_only:
                return loss, None, None
            plain = {key: value for key, value in inputs.items() if key not in seams.NOT_FOR_THE_MODEL}
            return loss, model(**plain, use_cache=False).logits, inputs["labels"]

    @contextmanager
    def _rows_apart(self, apart: bool, rows: Any) -> Iterator[None]:
        if rows is None or isinstance(rows, str):
            rows = self.eval_dataset if rows is None else self.eval_dataset[rows]
        packed = isinstance(rows, PackedRows) and len(rows) < len(rows.table)
        before = self.data_collator
        self.data_collator = (
            self._datasets.padded if apart and not packed and isinstance(before, FlatCollator) else before
        )
        try:
            yield
        finally:
            self.data_collator = before

    @contextmanager
    def _seams_open(self) -> Iterator[None]:
        outer = self._head
        with seams.opened(self.model, self.seams) as head:
            self._head = head
            try:
                yield
            finally:
                self._head = outer
