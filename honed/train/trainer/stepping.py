"""SFTTrainer's forward and backward passes, by micro-batch, which become smaller when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin
from accelerate.utils.memory import clear_device_cache
from torch import nn
from transformers import Trainer

from honed.data.batch.collate import Batch
from honed.data.batch.table import PackedRows
from honed.errors import RunError
from honed.ops import attention
from honed.ops.attention_layout import Layout
from honed.train.forward import seams
from honed.train.forward.compiled import compiled_layers
from honed.train.forward.float8 import float8_linears
from honed.train.forward.neftune import noisy_embeddings
from honed.train.forward.offload import offloaded, on_host
from honed.train.optimizers.rates import with_rates
from honed.train.optimizers.step_in_backward import stepping_in_backward
from honed.train.rows.token_batches import micro_batches
from honed.train.trainer.evaluating import EvaluatingTrainer
from honed.train.trainer.out_of_memory import Splits, can_be_cut, halves, is_out_of_memory, size_of
from honed.train.trainer.overrides import scale_note

logger = logging.getLogger(__name__)


class SteppingTrainer(EvaluatingTrainer):
    """The layer of `SFTTrainer` that runs forward and backward.

    A micro-batch that does not fit into memory is split in two, and the step is repeated from its first micro-batch,
    because an aborted backward pass leaves partial gradients. A step's micro-batches are kept until its end anyway, so
    this costs nothing while memory suffices. With a custom loss, or an optimizer that steps during the backward pass,
    the error is raised; with several processes the run ends and reports what did not fit.

    Attributes:
        splits: the micro-batches that did not fit.
    """

    splits: Splits
    _window: list[list[Batch]]
    _scaled: bool | None = None  # whether `compute_loss` got the step's token weight; None before its first call
    _overrides_loss: bool  # a subclass has a `compute_loss` of its own
    _scale_checked = False
    _rate_made_with: float | None = None  # the learning rate of an optimizer that was created here

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Disables compilation of the whole model (`_layers_changed` compiles its layers) and copies batches
        asynchronously on CUDA, see `Ranks.on_device`."""
        args: dict[str, Any] = super()._build_accelerator_args(**kwargs)
        if self.args.device.type == "cuda" and self.args.dataloader_pin_memory:
            args["dataloader_config"].non_blocking = True
        return {**args, "dynamo_plugin": TorchDynamoPlugin(backend="no")} if self.args.torch_compile else args

    def create_optimizer(self, model: Any = None) -> Any:
        """Creates the optimizer, with the learning rates per weight (see `honed.train.optimizers.rates`).

        A second `train()` continues with the first one's, as in transformers, and with `args.learning_rate` of now.
        """
        before, kept = self._rate_made_with, self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not kept or before is not None:  # else the optimizer was passed by the user
            self._rate_made_with = self.args.learning_rate
        if kept and before and before != self.args.learning_rate:
            for group in optimizer.param_groups:
                group["initial_lr"] = group.get("initial_lr", before) * (self.args.learning_rate / before)
        return with_rates(optimizer, self.model if model is None else model, self.args.learning_rates)

    def _prepare_input(self, data: Any) -> Any:
        """Moves a batch to the device if its loader did not (streams)."""
        if self.args.device.type == "cuda" and isinstance(data, (torch.Tensor, Layout)):
            data = data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    @contextmanager
    def _layers_changed(self) -> Iterator[None]:
        """Runs the layers in float8 and compiled within the block, if configured."""
        args, model = self.args, self.model
        with (
            float8_linears(model, emulate=args.fp8 == "emulate") if args.fp8 else nullcontext(),
            compiled_layers(
                model,
                backend=args.torch_compile_backend,
                mode=args.torch_compile_mode,
                checkpointed=bool(args.gradient_checkpointing),
            )
            if args.torch_compile
            else nullcontext(),
        ):
            yield

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        attention.remember(prepared)
        return prepared if self._sequence_group is None else {**prepared, "sequence_group": self._sequence_group}

    def get_total_train_batch_size(self, args: Any) -> int:
        """The rows of a step; sequence-parallel ranks share theirs."""
        return int(super().get_total_train_batch_size(args)) // self.args.sequence_parallel_size

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Gets the batches of one optimizer step from the loader."""
        self._window = []
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Runs forward and backward on one batch of the loader; returns its share of the step's loss."""
        self._window.append(self.splits.fitting(micro_batches(inputs)))
        before = self.metrics.mark()
        loss = self._add_gradients(model, self._window[-1], num_items_in_batch)
        while loss is None:
            model.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
            for parts in self._window:
                self.metrics.back_to(before)  # earlier micro-batches have been counted already
                loss = self._add_gradients(model, parts, num_items_in_batch)
                if loss is None:
                    break
        return loss

    def _add_gradients(self, model: nn.Module, parts: list[Batch], total: Any) -> torch.Tensor | None:
        """Returns the sum of the parts' losses; None if one did not fit and was split in two."""
        losses = []
        for number, part in enumerate(parts):
            last = number == len(parts) - 1 or self.args.world_size == 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                loss = self._tried(model, part, total)
            if loss is None:
                parts[number : number + 1] = self._cut(part)
                return None
            losses.append(loss)
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _tried(self, model: nn.Module, part: Batch, total: Any) -> torch.Tensor | None:
        try:
            return self._micro_batch(model, part, total)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if not self._can_do_again():
                self._tell_not_alone(part, error)
                raise
        return None  # outside the except block, in which the error still references the activations

    def _micro_batch(self, model: nn.Module, part: Batch, total: Any) -> torch.Tensor:
        """Runs forward and backward, with NEFTune's noise and offloaded activations if configured."""
        embeddings = seams.base_model(self.model).get_input_embeddings()
        offload = self.args.activation_offloading and not on_host(self.args.device)
        early = stepping_in_backward(self.optimizer)
        if self.args.torch_compile:
            torch.compiler.cudagraph_mark_step_begin()  # earlier outputs of CUDA graphs may be overwritten
        counted = self.metrics.mark()
        with (
            noisy_embeddings(embeddings, self.args.neftune_noise_alpha, part),
            offloaded(self.args.device) if offload else nullcontext(),
            nullcontext() if early is None else early.in_backward(),
        ):
            loss = super().training_step(model, part, total)
        self._check_scale()
        if self.metrics.mark()[0] == counted[0]:  # the caller's own loss counts nothing
            self.metrics.count(**seams.known_counts(part))
        return loss

    def _check_scale(self) -> None:
        """Warns once of a subclass whose own `compute_loss` is not divided by the tokens of the whole step."""
        if self._scale_checked or not self._overrides_loss:
            return
        self._scale_checked = True
        declared = hasattr(Trainer, "loss_is_scaled_for_ga") and self.loss_is_scaled_for_ga is not None
        if declared or not self.model_accepts_loss_kwargs:  # then transformers divides by the micro-batches if need be
            return
        note = scale_note(type(self), self.args.gradient_accumulation_steps, self._scaled)
        if note is not None and self.is_world_process_zero():
            logger.warning(note)

    def _can_do_again(self) -> bool:
        elsewhere = self.args.world_size > 1 or self.is_deepspeed_enabled or self._has_loss_func
        adds_up = self._scaled or not self._overrides_loss  # the losses of two halves
        return not elsewhere and adds_up and stepping_in_backward(self.optimizer) is None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called by Trainer between backward and the optimizer's step."""
        early = stepping_in_backward(self.optimizer)
        if early is None:
            return super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = early.norm()
        if not torch.isfinite(norm):
            raise RunError(
                f"The loss or its gradient is not finite in step {self.state.global_step + 1}, and "
                "optimizer_in_backward has already applied it to the weights.",
                fix="resume from the last checkpoint with a lower learning_rate, or without optimizer_in_backward",
            )
        return norm

    def _tell_not_alone(self, part: Batch, error: RuntimeError) -> None:
        """With several processes, reports what did not fit: all must run the same number of passes, so none can retry.

        Raises:
            RunError: there are several processes, and the batch has `input_ids`.
        """
        if self.args.world_size == 1 or "input_ids" not in part:
            return
        raise RunError(
            f"{self._name(part)} does not fit into memory on rank {self.args.process_index} with {size_of(part):,} "
            f"tokens, and with several processes a step is not retried: {str(error).splitlines()[0]:.200}",
            fix="lower per_device_train_batch_size (and raise gradient_accumulation_steps) or max_length, or set "
            "gradient_checkpointing=True",
        ) from error

    def _cut(self, part: Batch) -> tuple[Batch, Batch]:
        found, tokens = halves(part), part["input_ids"].numel()
        if found is None:
            raise RunError(
                f"{self._name(part)} does not fit into memory with {tokens:,} tokens, and cannot be cut further.",
                fix="lower max_length, or set gradient_checkpointing=True"
                + ("" if can_be_cut(part) else ", or lower per_device_train_batch_size"),
            )
        if self.splits.add(part):
            step = self.state.global_step + 1
            logger.warning(
                f"step {step}: out of memory with {tokens:,} tokens at a time. From here on they are computed in "
                "smaller micro-batches, and the step is repeated: the loss is the same. Lower "
                "per_device_train_batch_size (and raise gradient_accumulation_steps) to avoid the failed attempt."
            )
        return found

    def _name(self, part: Batch) -> str:
        """Names the prepared rows of this step that did not fit."""
        rows = self.rows_of(self.state.global_step + 1)
        if rows is None or not isinstance(self.train_dataset, PackedRows):
            return "A batch"
        ids = part["input_ids"].flatten().cpu().tolist()
        batch = rows[len(self._window) - 1]
        holding = [row for row in batch if _holds(self.train_dataset[row].input_ids.tolist(), ids)] or batch
        return f"Training row {', '.join(map(str, holding))} (counted from 0, as by trainer.show)"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `out_of_memory`, the number of micro-batches that did not fit since the last log, if any."""
        if "loss" in logs and self.splits.count:
            logs = {**logs, "out_of_memory": float(self.splits.count)}
            self.splits.count = 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return sum(super(SteppingTrainer, self).floating_point_ops(part) for part in micro_batches(inputs))

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        for part in micro_batches(inputs):
            super()._track_num_input_tokens(part)


def _holds(row: list[int], ids: list[int]) -> bool:
    return any(row[start : start + len(ids)] == ids for start in range(len(row) - len(ids) + 1))
