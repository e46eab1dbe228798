"""Skips steps whose loss or gradient is not finite, and records the steps with the highest losses."""

from __future__ import annotations

import heapq
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from honed.errors import RunError
from honed.quantities import counted
from honed.train.run_folder.metrics_file import drop_after
from honed.train.trainer.stepping import SteppingTrainer

logger = logging.getLogger(__name__)

WORST = 10  # steps recorded
_SHOWN = 200  # characters of a row
_UNREAD = 1000  # losses kept on the device before they are read


class StepWatch:
    """Keeps the losses of this rank's steps.

    Attributes:
        not_finite: number of skipped steps.
        micro_batches: losses of the current step's micro-batches, on the device.
    """

    def __init__(self) -> None:
        self.not_finite = 0
        self.micro_batches: list[torch.Tensor] = []
        self._unread: list[tuple[int, torch.Tensor]] = []
        self._worst: list[tuple[float, int]] = []

    def loss(self) -> torch.Tensor:
        """The loss of the current step, summed over its micro-batches."""
        return torch.stack(self.micro_batches).sum()

    def end(self, step: int) -> None:
        """Ends the current step; its loss is read later."""
        self._unread.append((step, self.loss()))
        self.micro_batches = []
        if len(self._unread) == _UNREAD:
            self._read()

    def worst(self) -> list[tuple[int, float]]:
        """(step, loss) of the worst steps, worst first; NaN counts as the worst."""
        return [(step, loss) for loss, step in sorted(self._read(), key=_badness, reverse=True)]

    def state(self) -> dict[str, Any]:
        """The state as JSON, for `restore`."""
        worst = [[str(loss), step] for loss, step in self._read()]
        return {"not_finite": self.not_finite, "worst": worst}

    def restore(self, state: dict[str, Any]) -> None:
        self.not_finite = state["not_finite"]
        self._worst, self._unread = [(float(loss), step) for loss, step in state["worst"]], []

    def _read(self) -> list[tuple[float, int]]:
        """Reads all losses since the last call with one device synchronisation."""
        if self._unread:
            losses = torch.stack([loss for _, loss in self._unread]).tolist()
            steps = [step for step, _ in self._unread]
            self._worst = heapq.nlargest(WORST, [*self._worst, *zip(losses, steps, strict=True)], key=_badness)
            self._unread = []
        return self._worst


class WatchedTrainer(SteppingTrainer):
    """The layer of `SFTTrainer` that skips steps whose loss or gradient is not finite.

    This costs one scalar read per optimizer step. With float16 the gradient scaler skips such steps, and DeepSpeed has
    its own check. logging_nan_inf_filter is applied on the device: transformers would synchronise per micro-batch.

    Attributes:
        watch: the losses so far.
    """

    watch: StepWatch
    _filters_logged = False

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Runs forward and backward on one batch of the loader, and records its loss."""
        loss = super().training_step(*args, **kwargs)
        self.watch.micro_batches.append(loss)
        if not self._filters_logged:
            return loss
        mean = self._tr_loss / (1 + self.state.global_step - self._globalstep_last_logged)  # over the earlier steps
        return torch.where(torch.isfinite(loss), loss, mean.to(loss.dtype))

    def worst_steps(self) -> list[dict[str, Any]]:
        """Returns the steps with the highest losses on this rank, worst first, with their rows."""
        return [
            {"step": step, "loss": _number(loss), "rows": self._shown(self.rows_of(step))}
            for step, loss in self.watch.worst()
        ]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._filters_logged, self.args.logging_nan_inf_filter = self.args.logging_nan_inf_filter, False
        try:
            super()._run_epoch(*args, **kwargs)
        finally:
            self.args.logging_nan_inf_filter, self._filters_logged = self._filters_logged, False

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called by Trainer between backward and the optimizer's step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if hasattr(norm, "full_tensor"):  # a DTensor of FSDP2
            norm = norm.full_tensor()
        try:
            if not self._handled_elsewhere() and not self._finite(norm):
                model.zero_grad(set_to_none=True)  # optimizers skip parameters without a gradient
                self._tell_not_finite(float(norm))
        finally:  # also record the step that ends the run
            self.watch.end(self.state.global_step + 1)
        return norm

    def _handled_elsewhere(self) -> bool:
        return getattr(self.accelerator, "scaler", None) is not None or self.is_deepspeed_enabled

    def _finite(self, norm: Any) -> bool:
        """Whether loss and gradient are finite on all ranks: losses differ, but all ranks must skip the same steps."""
        loss = self.watch.loss()
        both = torch.isfinite(loss) & torch.isfinite(torch.as_tensor(norm, device=loss.device))
        if self.args.world_size == 1:
            return bool(both)
        return bool(self.accelerator.gather(both[None]).all())

    def _tell_not_finite(self, norm: float) -> None:
        """Writes the step's rows to `not_finite.jsonl`.

        Raises:
            RunError: there were more than `max_not_finite_steps`.
        """
        self.watch.not_finite += 1
        step = self.state.global_step + 1
        losses = [float(loss) for loss in self.watch.micro_batches]
        rows = self._shown(self.rows_of(step), losses)
        line = {"step": step, "rank": self.args.process_index, "grad_norm": _number(norm), "rows": rows}
        line["losses"] = [_number(loss) for loss in losses]
        path = self._not_finite_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        logger.warning(f"step {step} is not taken: loss {sum(losses)}, gradient norm {norm}. Its rows are in {path}.")
        allowed = getattr(self.args, "max_not_finite_steps", 0)
        if self.watch.not_finite > allowed:
            raise RunError(
                f"The loss or its gradient was not finite in {counted(self.watch.not_finite, 'step')}, the last of "
                f"them step {step} (max_not_finite_steps is {allowed}). Their rows are in {path}.",
                fix="lower learning_rate, warm up for longer, or look at those rows",
            )

    def _not_finite_file(self) -> Path:
        rank = f"-{self.args.process_index}" if self.args.process_index else ""
        return Path(self.args.output_dir) / f"not_finite{rank}.jsonl"

    def forget_after(self, step: int) -> None:
        """Removes later steps from this rank's file, left by an earlier run or by this run before it was resumed."""
        if (path := self._not_finite_file()).exists():
            drop_after(path, step)
            if not path.stat().st_size:
                path.unlink()

    def _shown(
        self, micro_batches: list[list[int]] | None, losses: list[float] | None = None
    ) -> list[dict[str, Any]] | None:
        """Rows with their text; those of a micro-batch whose loss is not finite are marked."""
        if micro_batches is None:
            return None
        whole = losses is None or all(map(math.isfinite, losses))
        shown = []
        for number, batch in enumerate(micro_batches):
            at_fault = {} if whole or losses is None else {"at_fault": not math.isfinite(losses[number])}
            for row in batch:
                text = self._datasets.tokenizer.decode(self.train_dataset[row].input_ids)[:_SHOWN]
                documents = [int(document) for document in self.train_dataset.rows[row]]
                shown.append({"row": int(row), "documents": documents, **at_fault, "text": text})
        return shown


def _badness(item: tuple[float, int]) -> float:
    return math.inf if math.isnan(item[0]) else item[0]


def _number(value: float) -> float | str:
    """NaN and infinity as strings: JSON has neither."""
    return value if math.isfinite(value) else str(value)
