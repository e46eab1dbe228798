"""One optimizer step of the trainer as a loss and a gradient, and the same from first principles.

The trainer is used through its public methods only: a step of plain SGD at rate 1 moves the weights by the gradient.

Shapes: T tokens of a document, N trained tokens, V vocabulary.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.trainer_callback import PrinterCallback

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.data.batch.table import PackedRows
from honed.train.forward.seams import NOT_FOR_THE_MODEL, Seams, on_device_of, opened, token_scores
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

# Every step is logged as it is, and nothing else is written or shown.
QUIET: dict[str, Any] = {
    "bf16": False,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "token_metrics": False,
}
ONE_STEP: dict[str, Any] = {
    **QUIET,
    "max_steps": 1,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "weight_decay": 0.0,
    "train_sampling_strategy": "sequential",
    "gradient_checkpointing": False,
    "max_length": 1 << 20,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Loss of a step, and the gradient of every trained weight."""

    loss: float
    gradient: dict[str, torch.Tensor]


def apart(found: Step, expected: Step) -> float:
    """The larger one of the relative distances of the losses and of the gradients."""
    loss = abs(found.loss - expected.loss) / max(abs(expected.loss), 1e-300)
    return worst(loss, weights_apart(found.gradient, expected.gradient))


def weights_apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The norm of the difference over the norm of what was expected; inf for other weights."""
    if found.keys() != expected.keys():
        return math.inf
    difference = sum(float((found[n].double() - expected[n].double()).square().sum()) for n in expected)
    norm = sum(float(expected[n].double().square().sum()) for n in expected)
    return math.sqrt(difference / norm) if norm else math.inf


def worst(*distances: float) -> float:
    """The maximum, or NaN if there is one: with NaN, `max` depends on the order."""
    return math.nan if any(map(math.isnan, distances)) else max(distances)


def trained(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained weights, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def reference(model: Any, rows: PackedRows) -> Step:
    """Loss and gradient from first principles: each document by itself, torch's own cross-entropy, one division.

    Args:
        model: its gradients are overwritten.
        rows: one document in each.
    """
    device = next(model.parameters()).device
    total, loss = float(rows.table.weights.sum()), 0.0
    model.zero_grad()
    for row in rows:  # type: ignore[attr-defined]
        ids_1T = torch.from_numpy(row.input_ids).long()[None].to(device)
        weights_T = torch.from_numpy(row.weights)[1:].to(device)
        chosen_T = weights_T > 0
        logits_NV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1][chosen_T]
        wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        nll_N = F.cross_entropy(wide_NV, ids_1T[0, 1:][chosen_T], reduction="none")
        share = (nll_N * weights_T[chosen_T]).sum() / total
        share.backward()
        loss += float(share.detach())
    gradient = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}
    return Step(loss=loss, gradient=gradient)


def make_trainer(
    kind: type[SFTTrainer], model: Any, rows: Any, tokenizer: Any, folder: str, *, padded: bool = False, **changes: Any
) -> SFTTrainer:
    """A trainer for one step on rows that are prepared already.

    Args:
        padded: pad batches even if the model takes flat ones.
        changes: arguments of SFTConfig.
    """
    on_host = next(model.parameters()).device.type == "cpu"
    args = SFTConfig(**{**ONE_STEP, "output_dir": folder, "use_cpu": on_host, **changes})
    collate = PaddedCollator(pad_token_id=tokenizer.pad_token_id) if padded else None
    return silent(kind(model, args=args, data_collator=collate, train_dataset=rows, processing_class=tokenizer))


def silent(trainer: SFTTrainer) -> SFTTrainer:
    """The trainer without its printing callback."""
    trainer.remove_callback(PrinterCallback)
    return trainer


def one_step(
    kind: type[SFTTrainer], model: Any, rows: PackedRows, tokenizer: Any, *, accumulation: int = 1, **changes: Any
) -> Step:
    """Loss and gradient of the trainer's first step over all rows.

    Args:
        accumulation: number of micro-batches.
        changes: see `make_trainer`.
    """
    size = {"per_device_train_batch_size": -(-len(rows) // accumulation), "gradient_accumulation_steps": accumulation}
    before = trained(model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(kind, model, rows, tokenizer, folder, **{**size, **changes})
        trainer.train()
    after = trained(trainer.model)
    loss = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    return Step(loss=float(loss), gradient={name: before[name] - after[name] for name in before})


@torch.no_grad()
def head_apart(model: Any, rows: PackedRows, found: Seams) -> tuple[float, int]:
    """The largest relative distance between scores at the scoring head and from whole logits; the number of tokens."""
    batch = on_device_of(model, FlatCollator()([rows[n] for n in range(len(rows))]))
    if not found.flat:  # then as one long document
        batch = {key: batch[key] for key in ("input_ids", "labels", "loss_weights")}
    with opened(model, found) as head:
        scored_N = token_scores(model, batch, head)[0].nll_N
    with opened(model, Seams(flat=found.flat)):
        inputs = {key: value for key, value in batch.items() if key not in NOT_FOR_THE_MODEL}
        logits_TV = model(**inputs, use_cache=False).logits[0]
    positions = (batch["labels"][0, 1:] >= 0).nonzero()[:, 0]
    targets_N = batch["labels"][0, positions + 1]
    wide_NV = logits_TV[positions]
    wide_NV = wide_NV if wide_NV.dtype == torch.float64 else wide_NV.float()
    plain_N = F.cross_entropy(wide_NV, targets_N, reduction="none")
    return float((scored_N - plain_N).abs().max() / plain_N.abs().max()), len(plain_N)
