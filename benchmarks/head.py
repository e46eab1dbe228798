"""The LM head's loss and gradients alone: honed against alternatives.

    python benchmarks/head.py [--only CASE ...] [--sides SIDE ...] [--rounds 1] [--minutes 2] [--out FILE]

From hidden states and the head's weight to the mean loss of all tokens and its gradients with respect to the hidden
states and, if the head is trained, the weight. On a GPU in bfloat16, 8,192 tokens; on CPU in float32, one thread, fewer
tokens.

    honed           ops/linear_cross_entropy.py
    plain           whole logits, then cross_entropy
    plain-compiled  the same through torch.compile (GPU only)
    torch           torch.nn.functional.linear_cross_entropy, with its own chunk size (torch >= 2.13; no soft cap)
    torch-512       the same, in chunks of 512 tokens
    trl             TRL 1.16's ChunkedLogProbFunction, which its trainers use
    liger           Liger's fused linear cross entropy (GPU only)
    cce             Apple's Cut Cross Entropy, which skips values too small for bfloat16 (GPU only)

Each run is a separate process, with the sides in turn. First both gradients of a call with a few tokens are compared
with float64, then these tokens' share of the measured call; ratios are given only for sides that agree. Time is
processor time on CPU, device time on a GPU. Peak memory is what a call needs beyond its inputs, including gradients: on
CPU the process's resident memory, on a GPU that of torch's allocator. A side that is not installed or fails is listed
with the reason. With `--out` an interrupted command can be resumed; `--minutes` stops it in time.

On CPUs where MKL does not use AVX-512, honed's products go through oneDNN (gemm_share.py has both speeds), which is
part of the difference in time.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from apart import Record, Run, answer, carry_out, open_record, write
from card import memory_of, name_of_device, one_gpu, seconds_of, versions
from data_preparation import THREADS

CHECKED_TOKENS = 16
CALLS = {"cpu": 1, "cuda": 10}  # timed per round
SAME = {"cpu": 1e-4, "cuda": 2e-2}  # relative error of the gradients, float32 and bfloat16
TRL_CHUNK = 32_768  # vocabulary entries per tile, as in TRL's trainers
PACKAGES = {"trl": "trl", "liger": "liger_kernel", "cce": "cut_cross_entropy"}
GPU_ONLY = ("plain-compiled", "liger", "cce")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A head; `tokens` for CPU and for GPU."""

    hidden: int
    vocabulary: int
    tokens: tuple[int, int]
    softcap: float | None = None
    frozen: bool = False


HEADS = {
    "qwen3-0.6b": Case(hidden=1024, vocabulary=151_936, tokens=(1024, 8192)),
    "llama-3-8b": Case(hidden=4096, vocabulary=128_256, tokens=(256, 8192)),
    "gemma-2-2b": Case(hidden=2304, vocabulary=256_000, tokens=(256, 8192), softcap=30.0),
    "smollm2-135m": Case(hidden=576, vocabulary=49_152, tokens=(1024, 8192)),
    "head-heavy": Case(hidden=384, vocabulary=151_936, tokens=(1024, 8192)),
}
CASES = HEADS | {
    f"{name}, frozen": Case(
        hidden=case.hidden, vocabulary=case.vocabulary, tokens=case.tokens, softcap=case.softcap, frozen=True
    )
    for name, case in HEADS.items()
}
QUICK = {
    "tiny": Case(hidden=64, vocabulary=1024, tokens=(256, 256)),
    "tiny, capped, frozen": Case(hidden=64, vocabulary=1024, tokens=(256, 256), softcap=30.0, frozen=True),
}
Way = Callable[[Any, Any, Any, "float | None"], Any]


def main() -> None:
    args = arguments()
    if args.job:
        answer(args.job, measure)
        return
    device = "cpu" if args.quick or args.device == "cpu" or not has_cuda() else "cuda"
    out = Path(args.out) if args.out else None
    facts = {"date": date.today().isoformat(), "machine": name_of_device(device), "versions": versions(*PACKAGES)}
    record = open_record(out, {**facts, "device": device})
    cases = QUICK if args.quick else CASES
    chosen = [name for name in cases if not args.only or name in args.only]
    rounds = range(1 if args.quick else args.rounds)
    runs = [
        planned(name, cases[name], side, number, device) for number in rounds for name in chosen for side in args.sides
    ]
    environment = {**THREADS, "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    all_done = carry_out(
        __file__,
        runs,
        record,
        out=out,
        minutes=args.minutes,
        guess=20,
        together=args.quick,
        environment=environment,
    )
    record["results"] = [result for name in cases if (result := compared(name, cases[name], record))]
    print("\n".join(describe(result) for result in record["results"]))
    write(out, record)
    sys.exit(not all_done)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES)
    parser.add_argument("--sides", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", choices=("cpu",), help="not the GPU, although there is one")
    parser.add_argument("--minutes", type=float, help="begin no run that would not end within so many")
    parser.add_argument("--quick", action="store_true", help="tiny heads: whether it works, not how fast it is")
    parser.add_argument("--out")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def planned(name: str, case: Case, side: str, number: int, device: str) -> Run:
    run = {"case": name, "side": side, "round": number, "package": "all", "device": device, **asdict(case)}
    return run | {"missing": missing(side, device, case.softcap)}


def measure(run: Run) -> Run:
    """Measures one implementation on one head, in a separate process."""
    import torch

    device, softcap = run["device"], run["softcap"]
    if device == "cpu":
        torch.set_num_threads(1)
    count = run["tokens"][device == "cuda"]
    inputs = drawn(run, count, device)
    way = WAYS[run["side"]]()
    error, dh_ND = gradient_error(way, inputs, softcap, trained=not run["frozen"])
    used = memory_of(device, lambda: train(way, inputs, softcap))
    share_ND = inputs[0].grad[: len(dh_ND)].double() * (count / len(dh_ND))
    error = max(error, float((share_ND - dh_ND).norm() / dh_ND.norm()))
    calls = range(CALLS[device])
    spent = statistics.median(seconds_of(device, lambda: train(way, inputs, softcap)) for _ in calls)
    return {
        "gradient_error": float(f"{error:.1e}"),
        "ms": round(spent * 1e3, 2),
        "peak_mb": round(used / 1e6, 1),
        "summary": f"{spent * 1e3:10.1f} ms {used / 1e6:10.1f} MB  gradients {error:.0e} off",
    }


def missing(side: str, device: str, softcap: float | None) -> str | None:
    """Why this side cannot run here."""
    import torch

    if side in GPU_ONLY and device == "cpu":
        return "needs a GPU"
    if side in PACKAGES and find_spec(PACKAGES[side]) is None:
        return f"not installed (pip install {PACKAGES[side].replace('_', '-')})"
    if side.startswith("torch") and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        return f"torch {torch.__version__} has no linear_cross_entropy; 2.13 does"
    return "has no soft cap" if side.startswith("torch") and softcap else None


def drawn(run: Run, count: int, device: str) -> tuple[Any, Any, Any]:
    """Hidden states (N, D) and weight (V, D) that give logits of realistic size, and targets (N,)."""
    import torch

    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    h_ND = torch.randn(count, run["hidden"], device=device, dtype=dtype).requires_grad_()
    weight_VD = torch.randn(run["vocabulary"], run["hidden"], device=device, dtype=dtype).mul_(run["hidden"] ** -0.5)
    targets_N = torch.randint(run["vocabulary"], (count,), device=device)
    return h_ND, weight_VD.requires_grad_(not run["frozen"]), targets_N


def train(way: Way, inputs: tuple[Any, Any, Any], softcap: float | None) -> None:
    h_ND, weight_VD, _ = inputs
    h_ND.grad = weight_VD.grad = None
    way(*inputs, softcap).backward()


def gradient_error(
    way: Way, inputs: tuple[Any, Any, Any], softcap: float | None, *, trained: bool
) -> tuple[float, Any]:
    """The larger relative error, in norm, of both gradients on a few tokens; and the float64 gradient of their states.

    The reference computes softmax and products in float64, in parts of the vocabulary, so that no second weight is
    needed.
    """
    import torch

    h_ND, weight_VD, targets_N = inputs[0].detach()[:CHECKED_TOKENS].clone().requires_grad_(), *inputs[1:]
    few = (h_ND, weight_VD, targets_N[:CHECKED_TOKENS])
    train(way, few, softcap)
    with torch.no_grad():
        exact_ND, parts = h_ND.detach().double(), range(0, len(weight_VD), 16_384)
        logits = [exact_ND @ weight_VD[start : start + 16_384].double().t() for start in parts]
        logits_NV = torch.cat(logits, dim=1)
        slope_NV = 1.0
        if softcap is not None:
            tanh_NV = (logits_NV / softcap).tanh()
            logits_NV, slope_NV = softcap * tanh_NV, 1 - tanh_NV**2
        gradient_NV = logits_NV.softmax(-1)
        gradient_NV[torch.arange(len(h_ND)), few[2]] -= 1
        gradient_NV = gradient_NV * slope_NV / len(h_ND)
        dh_ND, off, size = torch.zeros_like(exact_ND), 0.0, 0.0
        for start in parts:
            part = slice(start, start + 16_384)
            dh_ND += gradient_NV[:, part] @ weight_VD[part].double()
            if trained:
                exact_vD = gradient_NV[:, part].t() @ exact_ND
                off += float((weight_VD.grad[part].double() - exact_vD).square().sum())
                size += float(exact_vD.square().sum())
        of_h = float((h_ND.grad.double() - dh_ND).norm() / dh_ND.norm())
    weight_VD.grad = None
    return max(of_h, (off / size) ** 0.5 if trained else 0.0), dh_ND


def honed() -> Way:
    import torch

    from honed.ops.linear_cross_entropy import linear_cross_entropy

    def way(h_ND: Any, weight_VD: Any, targets_N: Any, softcap: float | None) -> Any:
        weights_N = torch.full((len(h_ND),), 1 / len(h_ND), device=h_ND.device)
        return linear_cross_entropy(h_ND, weight_VD, targets_N, weights_N, softcap=softcap).loss

    return way


def plain() -> Way:
    from torch.nn import functional

    def way(h_ND: Any, weight_VD: Any, targets_N: Any, softcap: float | None) -> Any:
        logits_NV = h_ND @ weight_VD.t()
        if softcap is not None:
            logits_NV = softcap * (logits_NV / softcap).tanh()
        return functional.cross_entropy(logits_NV.float(), targets_N)

    return way


def plain_compiled() -> Way:
    import torch

    return torch.compile(plain())


def chunked_torch(**options: Any) -> Way:
    import torch

    how = torch.nn.LinearCrossEntropyOptions(**options)
    call = torch.nn.functional.linear_cross_entropy
    return lambda h_ND, weight_VD, targets_N, _: call(h_ND, weight_VD, targets_N, options=how)


def trl() -> Way:
    from trl.kernels import ChunkedLogProbFunction

    def way(h_ND: Any, weight_VD: Any, targets_N: Any, softcap: float | None) -> Any:
        scores = ChunkedLogProbFunction.apply(h_ND, weight_VD, None, targets_N, 1.0, TRL_CHUNK, softcap, 1.0, ())
        return -scores[0].mean()

    return way


def liger() -> Way:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = cache(lambda softcap: LigerFusedLinearCrossEntropyLoss(softcap=softcap))
    return lambda h_ND, weight_VD, targets_N, softcap: loss(softcap)(weight_VD, h_ND, targets_N)


def cut_cross_entropy() -> Way:
    from cut_cross_entropy import linear_cross_entropy

    return lambda h_ND, weight_VD, targets_N, softcap: linear_cross_entropy(h_ND, weight_VD, targets_N, softcap=softcap)


WAYS: dict[str, Callable[[], Way]] = {
    "honed": honed,
    "plain": plain,
    "torch-512": lambda: chunked_torch(chunking_method=None, batch_chunk_size=512),
    "trl": trl,
    "torch": chunked_torch,
    "plain-compiled": plain_compiled,
    "liger": liger,
    "cce": cut_cross_entropy,
}


def compared(name: str, case: Case, record: Record) -> dict[str, Any] | None:
    """Medians over the rounds, and of the ratios within each round; None before honed has run."""
    runs = [run for run in record["runs"] if run["case"] == name]
    found = {side: {run["round"]: run for run in runs if run["side"] == side and "ms" in run} for side in WAYS}
    found = {side: rounds for side, rounds in found.items() if rounds}
    if "honed" not in found:
        return None
    errors = {side: max(run["gradient_error"] for run in rounds.values()) for side, rounds in found.items()}
    right = [side for side, error in errors.items() if error <= SAME[record["device"]]]
    return {
        "case": name,
        **asdict(case),
        "tokens": case.tokens[record["device"] == "cuda"],
        "gradient_errors": errors,
        "ms": {side: median(rounds, "ms") for side, rounds in found.items()},
        "peak_mb": {side: median(rounds, "peak_mb") for side, rounds in found.items()},
        "time_over_ours": {side: over(found[side], found["honed"], "ms") for side in right},
        "memory_over_ours": {side: over(found[side], found["honed"], "peak_mb") for side in right},
        "not_run": {run["side"]: run["failed"] for run in runs if "failed" in run},
    }


def median(rounds: dict[int, Run], key: str) -> float:
    return round(statistics.median(run[key] for run in rounds.values()), 1)


def over(theirs: dict[int, Run], ours: dict[int, Run], key: str) -> float | None:
    both = [number for number in theirs.keys() & ours.keys() if ours[number][key] > 0]
    ratios = [theirs[number][key] / ours[number][key] for number in both]
    return round(statistics.median(ratios), 2) if ratios else None


def describe(result: dict[str, Any]) -> str:
    lines = [f"{result['case']}: {result['tokens']:,} tokens, {result['hidden']} x {result['vocabulary']:,}"]
    for side, spent in result["ms"].items():
        times, memory = (result[key].get(side, "-") for key in ("time_over_ours", "memory_over_ours"))
        error = result["gradient_errors"][side]
        peak = result["peak_mb"][side]
        lines.append(f"  {side:16}{spent:10.1f} ms {times}x {peak:10.1f} MB {memory}x  gradients {error:.0e} off")
    return "\n".join(lines + [f"  {side:16}{reason}" for side, reason in result["not_run"].items()])


def has_cuda() -> bool:
    import torch

    one_gpu()
    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
