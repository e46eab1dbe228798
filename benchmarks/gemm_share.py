"""The share of the machine's GEMM speed that a training step reaches: python benchmarks/gemm_share.py [--out FILE]

A model of SmolLM2-135M's shape (random weights) is trained on real rows of training_step.py in flat batches, float32,
one thread, AdamW, gradient checkpointing off. Between the steps, large square products run through oneDNN and through
torch.mm; the better median is the machine's speed. Both are measured in processor time.

Two conventions, both for parameters that take part in products (the tied head does, an embedding look-up does not):

- 6 N tokens: two operations per parameter and token forward, four backward, every token through the head.
- done: the same, but the head counts only at trained positions, where honed computes it.

Attention's products and everything else that takes time count as no work in either.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_preparation import machine
from training_step import CASES, Case, model_of, rows_of

from honed.data.batch.collate import Batch, FlatCollator
from honed.data.batch.table import PackedRow
from honed.loss.objective import total_weight
from honed.ops import products
from honed.train.forward import seams

SQUARE = 2048  # larger squares were no faster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--case", default="smollm2-135m", choices=[name for name, case in CASES.items() if not case.lora]
    )
    parser.add_argument("--steps", type=int, default=6, help="of which the first is not timed")
    parser.add_argument("--quick", action="store_true", help="two steps: whether it works, not how fast it is")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(args.case, steps=2 if args.quick else args.steps)
    print(json.dumps(result, indent=1))
    if args.out:
        versions = {"torch": torch.__version__}
        record = {"date": date.today().isoformat(), "machine": machine(), "versions": versions, "results": [result]}
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure(name: str, *, steps: int) -> dict[str, Any]:
    """Medians over the steps; the speed of products is measured in the same minutes."""
    case = CASES[name]
    model = model_of(case).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    found = seams.find_seams(model)
    gemm: dict[str, list[float]] = {way: [] for way in ways()}
    taken = []
    batches = batches_of(case, steps)
    with seams.opened(model, found) as head:
        for batch in batches:
            taken.append(seconds(lambda batch=batch: train(model, optimizer, batch, head)))
            for way, product in ways().items():
                gemm[way].append(2 * SQUARE**3 / seconds(product))
    speeds = {way: statistics.median(found) for way, found in gemm.items()}
    best = max(speeds.values())
    layers, of_head = parameters(model)
    shares: dict[str, list[float]] = {"six_n_tokens": [], "done": []}
    for batch, spent in list(zip(batches, taken, strict=True))[1:]:
        tokens = batch["num_tokens"]
        shares["six_n_tokens"].append(6 * (layers + of_head) * tokens / spent / best)
        shares["done"].append(6 * (layers * tokens + of_head * batch["num_targets"]) / spent / best)
    return {
        "case": name,
        "parameters": {"layers": layers, "head": of_head},
        "tokens_per_step": statistics.mean(batch["num_tokens"] for batch in batches[1:]),
        "trained_per_step": statistics.mean(batch["num_targets"] for batch in batches[1:]),
        "seconds_per_step": round(statistics.median(taken[1:]), 3),
        "gemm_gflops": {way: round(speed / 1e9, 1) for way, speed in speeds.items()},
        "share": {convention: round(statistics.median(found), 3) for convention, found in shares.items()},
    }


def ways() -> dict[str, Callable[[], torch.Tensor]]:
    """A large square product through each available library of torch."""
    a, b = torch.ones(SQUARE, SQUARE), torch.ones(SQUARE, SQUARE)
    found = {"torch.mm": lambda: torch.mm(a, b)}
    return found | ({"oneDNN": lambda: products.mm(a, b)} if products.onednn_is_faster() else {})


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def train(model: Any, optimizer: Any, batch: Batch, head: Any) -> None:
    """One optimizer step, as in a run."""
    total = total_weight(batch["labels"], batch["loss_weights"])
    scores, _ = seams.token_scores(model, batch, head, total=total, extras=True)
    scores.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def batches_of(case: Case, steps: int) -> list[Batch]:
    rows = [packed(row) for row in rows_of(case, steps * case.batch)]
    return [FlatCollator()(rows[start : start + case.batch]) for start in range(0, len(rows), case.batch)]


def packed(row: dict[str, list[int]]) -> PackedRow:
    weights = (np.array(row["labels"]) >= 0).astype(np.float32)
    return PackedRow(input_ids=np.array(row["input_ids"], dtype=np.int32), weights=weights, lengths=(len(weights),))


def parameters(model: Any) -> tuple[int, int]:
    """Number of parameters in the layers' products, and in the head's."""
    head = model.get_output_embeddings()
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return sum(linear.weight.numel() for linear in linears), head.weight.numel()


if __name__ == "__main__":
    main()
