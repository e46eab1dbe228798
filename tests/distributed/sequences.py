"""One rank's part of `test_shared_rows.py`: slices of rows against the whole row here. It is no test itself.

Shapes: T tokens of the row, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from honed.data.batch.collate import Batch, FlatCollator
from honed.data.batch.table import PackedRow
from honed.ops.attention import document_attention
from honed.train.forward.seams import Seams, opened, token_scores
from honed.train.forward.sequence_parallel import slice_of
from tests.conftest import make_tiny_model
from tests.train.test_combinations import model_of

SIZE = 8  # of a head
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 5},
    "sinks": {"s_aux": True},
    "soft-capped": {"softcap": 2.0, "scaling": 0.3},
    "branches": {"shared_prefixes": torch.tensor([[-1, 0, 0], [0, 12, 7]], dtype=torch.int32)},
}
ROW = torch.tensor([0, 12, 17, 24], dtype=torch.int32)  # boundaries of documents; 12 slices of two tokens


def compare_all(job: dict[str, Any], rank: int) -> None:
    """What the job asks for, each by its name; how far slices are from the whole row is in OUT/far-RANK.json."""
    dist.init_process_group("gloo", rank=rank, world_size=job["world"])
    group, _ = dist.new_subgroups(job["world"])
    told: dict[str, Any] = {}
    for heads, shared in job["sequences"].get("heads", ()):
        for name in RULES:
            told[f"{heads} heads, {shared} shared, {name}"] = attention_apart(name, heads, shared, group)
    for family in job["sequences"].get("models", ()):
        run = {"family": family, "precision": "float64", "weights": "all", "rows": "flat"}
        told[family] = model_apart(model_of(run, make_tiny_model), group)
    (Path(job["out"]) / f"far-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def attention_apart(name: str, heads: int, shared: int, group: dist.ProcessGroup) -> dict[str, float]:
    """Relative distances of this rank's slice of the output and of the gradients; the sinks' gradient is summed up."""
    draw, tokens, options = torch.Generator().manual_seed(0), int(ROW[-1]), dict(RULES[name])
    q, k, v = (torch.randn(1, h, tokens, SIZE, dtype=torch.float64, generator=draw) for h in (heads, shared, shared))
    weights = torch.randn(1, tokens, heads, SIZE, dtype=torch.float64, generator=draw)
    given = [q, k, v, *([torch.randn(heads, dtype=torch.float64, generator=draw)] if options.pop("s_aux", 0) else [])]
    whole = [x.clone().requires_grad_() for x in given]
    size = tokens // group.size()
    here = slice(group.rank() * size, (group.rank() + 1) * size)
    own = [(x[:, :, here] if x.ndim == 4 else x).clone().requires_grad_() for x in given]

    def attend(inputs: list[torch.Tensor], **more: Any) -> torch.Tensor:
        sinks = inputs[3] if len(inputs) > 3 else None
        return document_attention(nn.Module(), *inputs[:3], None, cu_seq_lens_q=ROW, s_aux=sinks, **options, **more)[0]

    wanted, found = attend(whole), attend(own, sequence_group=group)
    (wanted * weights).sum().backward()
    (found * weights[:, here]).sum().backward()
    far = {"output": distance(found, wanted[:, here])}
    for x, y, which in zip(own, whole, ("query", "key", "value", "sinks"), strict=False):
        if which == "sinks":
            dist.all_reduce(x.grad, group=group)
        far[which] = distance(x.grad, y.grad[:, :, here] if y.ndim == 4 else y.grad)
    return far


def model_apart(model: Any, group: dist.ProcessGroup) -> dict[str, float]:
    """Relative distances of the loss and of all gradients, both summed over ranks; and the saved bytes' ratio."""
    batch = FlatCollator(multiple_of=group.size())([row_of(29, 50, 1, 43, 6)])
    total = batch["loss_weights"].sum()
    loss, bytes_of_whole = backward(model, batch, total)
    gradients = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}
    model.zero_grad()
    own = slice_of(batch, group.rank(), group.size())
    part, bytes_of_slice = backward(model, {**own, "sequence_group": group}, total)
    dist.all_reduce(part, group=group)
    far = {"loss": distance(part, loss)}
    for name, parameter in model.named_parameters():
        if name in gradients:
            dist.all_reduce(parameter.grad, group=group)
            far[name] = distance(parameter.grad, gradients[name])
    return {**far, "saved bytes": bytes_of_slice / bytes_of_whole}


def row_of(*lengths: int) -> PackedRow:
    """Documents with random ids and weights, 0 among them."""
    draw, tokens = np.random.default_rng(0), sum(lengths)
    weights = draw.choice([0.0, 0.5, 1.0], size=tokens).astype(np.float32)
    weights[np.cumsum([0, *lengths[:-1]])] = 0.0
    return PackedRow(input_ids=draw.integers(3, 400, size=tokens), weights=weights, lengths=lengths)


def backward(model: Any, batch: Batch, total: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The loss of the batch's tokens, and the bytes that forward keeps for backward beside the weights."""
    weights, kept = {x.data_ptr() for x in model.parameters()}, {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    model.train()
    with opened(model, Seams(flat=True)):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            scores, _ = token_scores(model, batch, None, total=total)
        scores.loss.backward()
    return scores.loss.detach(), sum(kept.values())


def distance(found: Any, wanted: Any) -> float:
    """Relative, in the Euclidean norm."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-300))


def mixes_outside_of_attention(model: Any) -> None:
    """Each layer's MLP gets a part of the token before, but never of another document: flat rows stay what they are."""
    positions: list[torch.Tensor] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        positions[:] = [kwargs["position_ids"]]

    def mix(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (args[0] + 0.5 * args[0].roll(1, dims=1) * (positions[0] > 0)[..., None],)

    for layer in model.model.layers:
        layer.register_forward_pre_hook(note, with_kwargs=True)
        layer.mlp.register_forward_pre_hook(mix)
