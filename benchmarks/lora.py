"""LoRA layers as one function (honed) against peft's own, forward and backward, on a flat batch of documents.

    python benchmarks/lora.py [--tokens 2048] [--layers 30] [--repeats 3] [--out benchmarks/results/lora.json]

First each linear layer of SmolLM2-135M's shape alone, then a step of the whole model (random weights, LoRA of rank 16
on all linear layers, an eighth of the tokens trained). Both sides use honed's attention and head, so that only the LoRA
layers differ; then again with honed's products (`ops/products.py`) in peft's layers as well. Float32, one thread.
Gradients are compared first; then the sides run in turn, and each ratio is the median over the rounds of peft's
processor time divided by honed's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import numpy as np
import torch
from data_preparation import machine
from torch import nn
from training_step import CASES, model_of, versions

from honed.data.batch.collate import FlatCollator
from honed.data.batch.table import PackedRow
from honed.model.adapters.fused_lora import fused_lora
from honed.ops.products import FastLinear
from honed.train.forward import seams

SHAPES = {"q, o": (576, 576), "k, v": (576, 192), "gate, up": (576, 1536), "down": (1536, 576)}
SIDES = ("honed", "peft")
SAME = 1e-4  # relative error of float32 gradients that were summed in another order
TRAINED_SHARE = 8
Gradients = list[torch.Tensor]
Step = Callable[[], Gradients]


def main() -> None:
    args = arguments()
    if args.quick:
        args.layers, args.tokens, args.repeats = 2, 256, 1
    torch.set_num_threads(1)
    results = []
    for name, (inputs, outputs) in SHAPES.items():
        results.append({"work": f"layer {name}", **compare(layer_steps(inputs, outputs, args.tokens), args.repeats)})
        print(describe(results[-1]), flush=True)
    for products in (False, True):
        work = f"model of {args.layers} layers{', products too' if products else ''}"
        results.append({"work": work, **compare(model_steps(args, products=products), args.repeats)})
        print(describe(results[-1]), flush=True)
    if args.out:
        record = {"date": date.today().isoformat(), "machine": machine(), "versions": versions(), "tokens": args.tokens}
        Path(args.out).write_text(json.dumps({**record, "results": results}, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two layers, one round: whether it works")
    parser.add_argument("--out")
    return parser.parse_args()


def compare(steps: dict[str, Step], repeats: int) -> dict[str, Any]:
    """Milliseconds of both sides and their ratio; stops if gradients differ."""
    pairs = zip(*(steps[side]() for side in SIDES), strict=True)
    error = max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs)
    if error > SAME:
        raise SystemExit(f"the sides did not compute the same gradients: they are {error:.0e} apart")
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            start = time.process_time()
            steps[side]()
            seconds[side].append(time.process_time() - start)
    ratios = [theirs / ours for ours, theirs in zip(*(seconds[side] for side in SIDES), strict=True)]
    return {
        **{f"{side}_ms": round(1e3 * statistics.median(times), 1) for side, times in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "gradient_error": float(f"{error:.1e}"),
    }


def layer_steps(inputs: int, outputs: int, tokens: int) -> dict[str, Step]:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=["0"])
    model = inject_adapter_in_model(config, nn.Sequential(nn.Linear(inputs, outputs, bias=False)))
    nn.init.normal_(model[0].lora_B["default"].weight, std=0.01)
    x_MI, dy_MO = torch.randn(tokens, inputs, requires_grad=True), torch.randn(tokens, outputs)
    trained = [x_MI, *(p for p in model.parameters() if p.requires_grad)]

    def step(side: str) -> Gradients:
        with fused_lora(model) if side == "honed" else nullcontext():
            return list(torch.autograd.grad(model(x_MI), trained, dy_MO))

    return {side: lambda side=side: step(side) for side in SIDES}


def model_steps(args: argparse.Namespace, *, products: bool) -> dict[str, Step]:
    """Steps of the whole model; with `products`, peft's layers use honed's products as well."""
    model = model_of(replace(CASES["smollm2-135m-lora"], layers=args.layers)).train()
    found = seams.find_seams(model)
    sides = {"honed": found, "peft": replace(found, lora=False)}
    batch = FlatCollator()(draw_rows(args.tokens))

    def step(side: str) -> Gradients:
        model.zero_grad()
        with seams.opened(model, sides[side]) as head:
            if side == "peft" and not products:
                for layer in [layer for layer in model.modules() if type(layer) is FastLinear]:
                    layer.__class__ = nn.Linear
            scores, _ = seams.token_scores(model, batch, head, total=args.tokens / TRAINED_SHARE)
            scores.loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    return {side: lambda side=side: step(side) for side in SIDES}


def draw_rows(tokens: int) -> list[PackedRow]:
    """Documents of about 256 random tokens, of which the last are trained."""
    draw = np.random.default_rng(0)
    lengths = [len(part) for part in np.array_split(np.arange(tokens), max(1, tokens // 256))]
    return [
        PackedRow(
            input_ids=draw.integers(3, 49_152, length).astype(np.int32),
            weights=(np.arange(length) >= length - length // TRAINED_SHARE).astype(np.float32),
            lengths=(length,),
        )
        for length in lengths
    ]


def describe(result: dict[str, Any]) -> str:
    times = "  ".join(f"{side} {result[f'{side}_ms']:8.1f} ms" for side in SIDES)
    return f"{result['work']:32}  {times}  {result['ratio']:.2f}x  gradients {result['gradient_error']:.0e} apart"


if __name__ == "__main__":
    main()
