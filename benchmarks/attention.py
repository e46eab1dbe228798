"""Attention over packed rows, forward and backward: honed against alternatives; same tensors, one thread, interleaved.

    python benchmarks/attention.py [--repeats 5] [--out benchmarks/results/NAME.json]

The alternatives:
    dense    SDPA with one T x T mask, as transformers does with packed rows on a CPU
    slices   one SDPA call per document, on slices of the row
    padded   documents of similar length (at most 15% padding) gathered into one causal SDPA call
    blocks   adjacent documents of at most 256 tokens in total in one SDPA call with a small mask

Outputs and gradients of all are compared first, in the dtype of the run. Times are medians of interleaved runs. Memory
is what the forward pass saves for the backward pass, excluding queries, keys and values.

The layer has SmolLM2-135M's shape: 9 heads of size 64, 3 key/value heads, float32. Lengths: GSM8K questions with
answers from ../shared/data, in Qwen tokens (without that folder: the starter set, four characters per token), tiny
documents, one long document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import date
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F

from honed.ops.attention import document_attention

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("HONED_SHARED", ROOT.parent / "shared")) / "data"
H, K, E = 9, 3, 64
WINDOW = 128
QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round: whether it works, not how fast it is")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for name in cases():
        results.append(compare(name, 1 if args.quick else args.repeats))
        print(describe(results[-1]), flush=True)
    if args.out:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1, "torch": torch.__version__}
        record = {"date": date.today().isoformat(), "machine": machine, "results": results}
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def cases() -> dict[str, tuple[list[int], int | None]]:
    """Lengths of the documents in a row, and the layer's sliding window."""
    draw = random.Random(0)
    real = real_lengths()
    tiny = [draw.randint(4, 24) for _ in range(200)]
    return {
        "real lengths, 1024": (until(real, 1024), None),
        "real lengths, 4096": (until(real, 4096), None),
        "4 to 24 tokens each, 1024": (until(tiny, 1024), None),
        "8 tokens each, 512": ([8] * 64, None),
        "one document, 2048": ([2048], None),
        f"one document, 2048, window {WINDOW}": ([2048], WINDOW),
    }


def real_lengths() -> list[int]:
    if (SHARED / "gsm8k_train.jsonl").is_file():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(SHARED / "qwen_tokenizer")
        lines = (SHARED / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:100]
        rows = [json.loads(line) for line in lines]
        return [len(tokenizer(f"{row['question']}\n{row['answer']}")["input_ids"]) for row in rows]
    lines = (ROOT / "honed/data/starter/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [sum(len(m["content"]) for m in json.loads(line)["messages"]) // 4 + 8 for line in lines]


def until(lengths: list[int], tokens: int) -> list[int]:
    ends = accumulate(lengths)
    return [length for length, end in zip(lengths, ends, strict=False) if end <= tokens]


def compare(name: str, repeats: int) -> dict[str, Any]:
    lengths, window = cases()[name]
    chosen = {way: prepare(lengths, window) for way, prepare in WAYS.items()}
    tensors = qkv(sum(lengths))
    upstream = torch.randn(1, sum(lengths), H, E)
    expected = forward_backward(chosen["dense"], tensors, upstream)
    for way, function in chosen.items():
        found = forward_backward(function, tensors, upstream)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=lambda text, way=way: f"{way}: {text}")
    times: dict[str, list[float]] = {way: [] for way in chosen}
    for _ in range(repeats):
        for way, function in chosen.items():
            start = time.perf_counter()
            forward_backward(function, tensors, upstream)
            times[way].append(time.perf_counter() - start)
    milliseconds = {way: round(statistics.median(taken) * 1e3, 2) for way, taken in times.items()}
    ratios = {
        way: round(statistics.median(b / a for a, b in zip(times["honed"], taken, strict=True)), 2)
        for way, taken in times.items()
    }
    return {
        "case": name,
        "documents": len(lengths),
        "tokens": sum(lengths),
        "milliseconds": milliseconds,
        "time_over_ours": ratios,
        "kept_mb": {way: kept_mb(function, tensors) for way, function in chosen.items()},
    }


def forward_backward(function: Callable[[QKV], torch.Tensor], tensors: QKV, upstream: torch.Tensor) -> tuple[Any, ...]:
    output = function(tensors)
    return output.detach(), *torch.autograd.grad(output, tensors, upstream)


def qkv(tokens: int) -> QKV:
    """Queries, keys and values, strided like the outputs of a model's projections."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, heads, E).transpose(1, 2).requires_grad_() for heads in (H, K, K))
    return q, k, v


def honed(lengths: list[int], window: int | None) -> Callable[[QKV], torch.Tensor]:
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    layer = torch.nn.Identity()
    return lambda qkv: document_attention(layer, *qkv, None, cu_seq_lens_q=bounds, sliding_window=window)[0]


def dense(lengths: list[int], window: int | None) -> Callable[[QKV], torch.Tensor]:
    mask = mask_of(lengths, window)
    return lambda qkv: sdpa(*qkv, mask).transpose(1, 2).contiguous()


def slices(lengths: list[int], window: int | None) -> Callable[[QKV], torch.Tensor]:
    spans = list(pairwise([0, *accumulate(lengths)]))
    masks = {n: mask_of([n], window) if window else None for n in set(lengths)}

    def run(qkv: QKV) -> torch.Tensor:
        return torch.cat([sdpa(*(x[:, :, a:b] for x in qkv), masks[b - a]) for a, b in spans], 2).transpose(1, 2)

    return run


def blocks(lengths: list[int], window: int | None) -> Callable[[QKV], torch.Tensor]:
    groups: list[list[int]] = [[]]
    for length in lengths:
        if groups[-1] and sum(groups[-1]) + length > 256:
            groups.append([])
        groups[-1].append(length)
    sizes = [sum(group) for group in groups]
    masks = [mask_of(group, window) if len(group) > 1 or window else None for group in groups]

    def run(qkv: QKV) -> torch.Tensor:
        parts = zip(*(x.split(sizes, 2) for x in qkv), masks, strict=True)
        return torch.cat([sdpa(*part).transpose(1, 2) for part in parts], 1)

    return run


def padded(lengths: list[int], window: int | None) -> Callable[[QKV], torch.Tensor]:
    starts = [0, *accumulate(lengths)]
    groups: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        group = [*groups[-1], document] if groups else [document]
        if groups and lengths[group[0]] * len(group) <= 1.15 * sum(lengths[n] for n in group):
            groups[-1] = group
        else:
            groups.append([document])
    taken, place = [], [0] * starts[-1]
    for group in groups:
        for document in group:
            for n in range(lengths[group[0]]):
                inside = n < lengths[document]
                if inside:
                    place[starts[document] + n] = len(taken)
                taken.append(starts[document] + (n if inside else 0))
    index, back = torch.tensor(taken), torch.tensor(place)
    shapes = [(len(group), lengths[group[0]]) for group in groups]
    masks = [mask_of([length], window) if window else None for _, length in shapes]

    def batches(x: torch.Tensor) -> list[torch.Tensor]:
        flat = Gathered.apply(x.transpose(1, 2)[0].flatten(1), index, back)
        parts = flat.split([n * length for n, length in shapes])
        return [p.view(*shape, -1, E).transpose(1, 2) for p, shape in zip(parts, shapes, strict=True)]

    def run(qkv: QKV) -> torch.Tensor:
        parts = zip(*map(batches, qkv), masks, strict=True)
        flat = torch.cat([sdpa(*part).transpose(1, 2).flatten(0, 1).flatten(1) for part in parts])
        return flat.index_select(0, back).view(1, -1, H, E)

    return run


class Gathered(torch.autograd.Function):
    """Gathers the gradient as well, because padding gets none; adding it by index is slower."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.back = back
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return gradient.index_select(0, ctx.back), None, None


WAYS = {"honed": honed, "dense": dense, "slices": slices, "padded": padded, "blocks": blocks}


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


def mask_of(lengths: list[int], window: int | None) -> torch.Tensor:
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    age = torch.arange(sum(lengths))[:, None] - torch.arange(sum(lengths))
    mask = (document[:, None] == document) & (age >= 0)
    return mask if window is None else mask & (age < window)


def kept_mb(function: Callable[[QKV], torch.Tensor], tensors: QKV) -> float:
    """MB that the forward pass saves for the backward pass, excluding queries, keys and values."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(tensors)
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return round(sum(storage.nbytes() for place, storage in kept.items() if place not in own) / 1e6, 1)


def describe(result: dict[str, Any]) -> str:
    lines = [f"{result['case']} ({result['documents']} documents)"]
    for way, taken in result["milliseconds"].items():
        lines.append(
            f"  {way:8}{taken:9.1f} ms  {result['time_over_ours'][way]:6.2f}x ours   {result['kept_mb'][way]:7.1f} MB"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
