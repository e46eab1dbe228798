"""Sequence parallelism: the ranks of a group share each row, each with a slice of its tokens.

    row of 8 tokens     | a a a b b b b . |     `.` is padding up to a multiple of the ranks
    rank 0 computes     | a a a b |             and is scored with the labels of tokens 1 to 4
    rank 1 computes             | b b b . |     and is scored with those of tokens 5 to 7

Attention gets the whole row through an all-to-all (`honed.ops.all_to_all`); everything else works on single tokens.
Each rank's loss is the sum over its own tokens, so the step's sum over all ranks, its division by the step's token
weight and the averaging of gradients are the same as in data parallelism.

Shapes: T tokens of the row, N trained tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from math import lcm
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from honed.data.batch.collate import Batch, FlatCollator
from honed.errors import ModelError, RecipeError
from honed.loss.objective import IGNORE_INDEX, next_token_targets
from honed.loss.router import aux_loss_coefficient
from honed.train.forward.lengths import notes_on_rotations
from honed.train.forward.seams import Seams, are_same, base_model, on_device_of, probe_rows, token_scores
from honed.train.options.config import SFTConfig
from honed.train.ranks import tensor_parallel_size


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicingCollator(FlatCollator):
    """Collates this rank's slices of flat batches; `multiple_of` is a multiple of `ranks`.

    Attributes:
        rank, ranks: this rank's number in the group, and the group's size.
    """

    rank: int
    ranks: int

    def __call__(self, rows: Any) -> Batch:
        """See `slice_of`."""
        return slice_of(FlatCollator.__call__(self, rows), self.rank, self.ranks)


def collator_of(args: SFTConfig, *, multiple_of: int, **options: Any) -> FlatCollator:
    """Returns the collator of flat batches or, with sequence parallelism, of this rank's slices of them."""
    ranks = args.sequence_parallel_size
    if ranks == 1:
        return FlatCollator(multiple_of=multiple_of, **options)
    multiple_of = lcm(multiple_of, ranks)
    return SlicingCollator(multiple_of=multiple_of, rank=args.process_index % ranks, ranks=ranks, **options)


def slice_of(batch: Batch, rank: int, ranks: int) -> Batch:
    """Returns one rank's slice of a flat batch, as views.

    Args:
        batch: a flat batch of T tokens, a multiple of `ranks`.

    Returns:
        input_ids, position_ids (1, T / ranks); counts for the slice; boundaries of the whole row. Labels and their
        weights include the next slice's first token, if any: after the shift it scores the slice's last position.
    """
    size = batch["input_ids"].shape[1] // ranks
    start, end = rank * size, (rank + 1) * size
    own = {name: batch[name][:, start:end] for name in ("input_ids", "position_ids")}
    further = {name: batch[name][:, start : end + 1] for name in ("labels", "loss_weights")}
    counts = {
        "num_tokens": min(max(batch["num_tokens"] - start, 0), size),  # padding is at the end
        "num_targets": int((next_token_targets(further["labels"]) != IGNORE_INDEX).sum()),
    }
    return {**batch, **own, **further, **counts}


def check(args: SFTConfig, model: nn.Module, seams: Seams, *, custom_parts: bool) -> None:
    """Refuses rows that ranks cannot share.

    Args:
        seams: that training opens.
        custom_parts: whether the collator, the loss or the metrics are the caller's, or a processor makes images.

    Raises:
        ModelError: batches are not flat, or attention is not honed's.
        RecipeError: an option is set that cannot be computed on slices.
    """
    if args.sequence_parallel_size == 1:
        return
    out = "leave sequence_parallel_size out"
    if custom_parts:
        raise RecipeError(
            "With sequence_parallel_size a data_collator, compute_loss_func or compute_metrics would get slices of "
            "rows, and images are not shared.",
            fix="leave one of them out",
        )
    if not seams.flat:
        raise ModelError(
            "sequence_parallel_size needs honed's attention and flat batches: "
            + ("; ".join(seams.notes) or "this model, or this trainer's own methods, use padded ones"),
            fix=f"leave attn_implementation out if it is set, or {out}",
        )
    if tensor_parallel_size(model) > 1:
        raise RecipeError("Ranks cannot split both rows (sequence_parallel_size) and matrices (tp_plan).", fix=out)
    if aux_loss_coefficient(base_model(model).config.get_text_config(), args.router_aux_loss_coef):
        raise RecipeError(
            "The router's auxiliary loss is a mean over a micro-batch's tokens, and each rank has only a slice.",
            fix=f"set router_aux_loss_coef=0, or {out}",
        )
    if notes := notes_on_rotations(model, args.max_length):
        raise RecipeError(f"Slices of a row would have their own positions. {notes[0]}", fix=f"do so, or {out}")


def make_group(args: SFTConfig, model: nn.Module) -> dist.ProcessGroup:
    """Returns the group of ranks that share this rank's rows, in the order of their slices.

    All ranks must call it, with the model's seams open. The model is tested: the ranks' slices must have the scores of
    the whole row.

    Raises:
        ModelError: the model mixes tokens outside attention, or its heads cannot be divided among the ranks.
    """
    size, limit = args.sequence_parallel_size, timedelta(seconds=args.ddp_timeout)
    group = tried = dist.new_subgroups(size, timeout=limit)[0]
    if next(model.parameters()).device.type != args.device.type:  # FSDP moves weights to the GPU later
        tried = dist.new_subgroups(size, timeout=limit, backend="gloo")[0]
    fits = torch.tensor(int(_slices_fit(model, tried)), device=args.device)
    dist.all_reduce(fits, dist.ReduceOp.MIN)
    if not fits:
        raise ModelError(
            f"{type(base_model(model)).__name__} scores slices of a row differently from the whole row: it "
            "computes across tokens outside of attention, too.",
            fix="leave sequence_parallel_size out",
        )
    return group


def share_rows(loader: Any, ranks: int) -> Any:
    """Changes a loader that accelerate prepared so that all ranks of a group get the same batches."""
    if ranks > 1:
        shard = loader.batch_sampler
        shard.num_processes, shard.process_index = shard.num_processes // ranks, shard.process_index // ranks
    return loader


@torch.no_grad()
def _slices_fit(model: nn.Module, group: dist.ProcessGroup) -> bool:
    """Whether this rank's slice of a row with two documents has the same scores as in the whole row."""
    ranks, inner, was_training = group.size(), base_model(model), model.training
    batch = FlatCollator(multiple_of=ranks)(probe_rows(inner, (3 * ranks + 1, 4 * ranks + 2)))
    slices = [slice_of(batch, rank, ranks) for rank in range(ranks)]
    own = {**on_device_of(model, slices[group.rank()]), "sequence_group": group}
    model.eval()
    try:
        whole_N = token_scores(model, on_device_of(model, batch), None)[0].nll_N
        found_N = token_scores(model, own, None)[0].nll_N
    finally:
        model.train(was_training)
    expected_N = whole_N.split([part["num_targets"] for part in slices])[group.rank()]
    return are_same([found_N], [expected_N], inner.dtype)
