"""One mixture-of-experts layer, forward and backward, on the CPU: honed's sorted dispatch against a loop over experts
with boolean masks (as in MiniMind's own training code), and against transformers' Mixtral experts.

    python benchmarks/moe_dispatch.py [--tokens 2048] [--repeats 7] [--threads 1] [--out benchmarks/results/NAME.json]

All sides have the same weights and the same routing, in float32. Outputs and gradients are compared first; then the
sides run in turn, and each ratio is the median over the rounds of the other side's processor time divided by honed's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from honed.model.minimind.moe import SwiGLU, dispatch

HIDDEN, INTERMEDIATE, TOP_K = 512, 1408, 2
# the layer, its parameters, and how to find the first expert's down projection among their gradients
Side = tuple[Callable[..., torch.Tensor], list[nn.Parameter], Callable[[Any], torch.Tensor]]


def main() -> None:
    args = arguments()
    if args.quick:
        args.tokens, args.repeats = 256, 2
    torch.set_num_threads(args.threads)
    results = []
    for experts in args.experts:
        for name, skew in (("even", 0.0), ("skewed", 2.0)):
            results.append({"experts": experts, "routing": name, **compare(experts, skew, args)})
            print(describe(results[-1]), flush=True)
    if args.out:
        shape = {"tokens": args.tokens, "hidden": HIDDEN, "intermediate": INTERMEDIATE, "top_k": TOP_K}
        record = {"date": date.today().isoformat(), "machine": machine(args.threads), "versions": versions()}
        Path(args.out).write_text(json.dumps({**record, **shape, "results": results}, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--experts", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="256 tokens, two rounds: whether it works, not how fast it is"
    )
    parser.add_argument("--out")
    return parser.parse_args()


def compare(experts: int, skew: float, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every side and the ratios to honed's; stops if their results differ."""
    sides = {name: make(experts) for name, make in SIDES.items()}
    torch.manual_seed(0)
    x_ND = torch.randn(args.tokens, HIDDEN, requires_grad=True)
    logits_NE = torch.randn(args.tokens, experts) + torch.linspace(skew, -skew, experts)
    share_NK, expert_NK = logits_NE.softmax(-1).topk(TOP_K)
    work = {name: partial(step, side, x_ND, expert_NK, share_NK.requires_grad_()) for name, side in sides.items()}
    check(work)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(args.repeats):
        for name, run in work.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    result = {f"{name}_ms": round(1e3 * statistics.median(times), 1) for name, times in seconds.items()}
    for name, times in seconds.items():
        ratios = [other / ours for ours, other in zip(seconds["honed"], times, strict=True)]
        result[f"{name}_ratio"] = round(statistics.median(ratios), 2)
    return result


def check(work: dict[str, Callable[[], list[torch.Tensor]]]) -> None:
    """Checks that all sides give the same output and gradients, up to float32 rounding; also warms them up."""
    expected = work["honed"]()
    for name, run in work.items():
        for a, b in zip(run(), expected, strict=True):
            if float((a - b).abs().max()) > 1e-5 * float(b.abs().max()):
                raise SystemExit(f"{name} does not compute the same")


def step(side: Side, x_ND: torch.Tensor, expert_NK: torch.Tensor, share_NK: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of tokens, shares and the first expert's down projection."""
    run, parameters, first_down = side
    y_ND = run(x_ND, expert_NK, share_NK)
    gradients = torch.autograd.grad(y_ND.square().sum(), [x_ND, share_NK, *parameters])
    return [y_ND, *gradients[:2], first_down(gradients[2:])]


def swiglus(experts: int) -> nn.ModuleList:
    torch.manual_seed(1)
    return nn.ModuleList(SwiGLU(HIDDEN, INTERMEDIATE) for _ in range(experts))


def honed(experts: int) -> Side:
    modules = swiglus(experts)
    return partial(dispatch, experts=modules), list(modules.parameters()), lambda gradients: gradients[2]


def loop(experts: int) -> Side:
    """Every token is repeated K times, and each expert makes two boolean masks over all of them."""
    modules = swiglus(experts)

    def run(x_ND: torch.Tensor, expert_NK: torch.Tensor, share_NK: torch.Tensor) -> torch.Tensor:
        x_SD, slots_S = x_ND.repeat_interleave(expert_NK.shape[1], dim=0), expert_NK.reshape(-1)
        y_SD = torch.empty_like(x_SD)
        for number, module in enumerate(modules):
            y_SD[slots_S == number] = module(x_SD[slots_S == number])
        return (y_SD.view(*expert_NK.shape, -1) * share_NK[..., None]).sum(1)

    return run, list(modules.parameters()), lambda gradients: gradients[2]


def mixtral(experts: int, *, implementation: str) -> Side:
    """transformers' stacked experts, with one of the implementations that a configuration can name."""
    shape = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_local_experts": experts}
    stacked = MixtralExperts(MixtralConfig(**shape, experts_implementation=implementation))
    modules = swiglus(experts)
    stacked.gate_up_proj.data = torch.stack([torch.cat((m.gate_proj.weight, m.up_proj.weight)) for m in modules]).data
    stacked.down_proj.data = torch.stack([m.down_proj.weight for m in modules]).data
    return stacked, [stacked.gate_up_proj, stacked.down_proj], lambda gradients: gradients[1][0]


SIDES = {
    "honed": honed,
    "loop": loop,
    "mixtral_eager": partial(mixtral, implementation="eager"),
    "mixtral_grouped_mm": partial(mixtral, implementation="grouped_mm"),
}


def describe(result: dict[str, Any]) -> str:
    others = "  ".join(
        f"{name} {result[f'{name}_ms']:.0f} ms ({result[f'{name}_ratio']:.2f}x)" for name in SIDES if name != "honed"
    )
    return f"{result['experts']:>3} experts, {result['routing']:6}  honed {result['honed_ms']:.0f} ms  {others}"


def machine(threads: int) -> dict[str, Any]:
    return {"processor": platform.machine(), "cores": os.cpu_count(), "threads": threads, "system": platform.system()}


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("honed", "torch", "transformers")}


if __name__ == "__main__":
    main()
