"""Evaluates the runs of gpu_training.py: whether the sides computed the same, and how they differ in cost."""

from __future__ import annotations

import statistics
from typing import Any

from apart import Record, Run
from card import peak_tflops
from gpu_cases import REFERENCE, SIDES

# Relative errors up to which sides agree: the median over all parameters, and that of a loss.
SLICE = 0.05  # a slice of two layers, against float32
STEP = 0.1  # the whole model's first step, between two bfloat16 runs
LOSS = 0.02
# Tokens/s of one H100, LoRA on Llama 3 8B, rows of 4,096: docs.nvidia.com/nemo/automodel, "Performance Summary".
PUBLISHED = {"llama-3-8b, LoRA": {"NeMo AutoModel, H100": 12_473}}
Gradients = dict[str, str]  # by parameter, numbers as text


def settle(record: Record) -> None:
    """Replaces gradients with errors, except for the runs that the others are compared with."""
    for case in {run["case"] for run in record["runs"]}:
        runs = [run for run in record["runs"] if run["case"] == case]
        exact = next((run.get("slice") for run in runs if run["side"] == REFERENCE), None)
        base = base_of(runs)
        for run in runs:
            if run["side"] == REFERENCE or "failed" in run:
                continue
            if exact and "slice" in run:
                run["slice_error"] = error(run.pop("slice"), exact)
            if base is not None and run is not base and "gradients" in run:
                run["loss_error"] = loss_error(run["losses"], base["losses"])
                gradients = run.pop("gradients")
                run["step_error"] = error(gradients, base["gradients"]) if gradients else None


def base_of(runs: list[Run]) -> Run | None:
    """The first exact run of honed that has gradients of its first step."""
    ours = (run for run in runs if run["side"] in SIDES and SIDES[run["side"]].package == "honed")
    return next((run for run in ours if SIDES[run["side"]].exact and run.get("gradients")), None)


def error(found: Gradients, expected: Gradients) -> dict[str, Any]:
    """The relative error of a parameter's elements in norm: the median over parameters, and the worst with its name."""
    if found.keys() != expected.keys():
        return {"median": float("inf"), "worst": float("inf"), "of": sorted(found.keys() ^ expected.keys())[0]}
    errors = {name: relative(floats(found[name]), floats(line)) for name, line in expected.items()}
    worst = max(errors, key=lambda name: errors[name])
    return {"median": short(statistics.median(errors.values())), "worst": short(errors[worst]), "of": worst}


def floats(line: str) -> list[float]:
    return [float(number) for number in line.split()]


def relative(found: list[float], expected: list[float]) -> float:
    off = sum((a - b) ** 2 for a, b in zip(found, expected, strict=True)) ** 0.5
    return off / max(sum(b**2 for b in expected) ** 0.5, 1e-30) if off else 0.0


def loss_error(found: list[float], expected: list[float]) -> float:
    return short(max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)))


def short(number: float) -> float:
    return float(f"{number:.2g}")


def compared(name: str, case: dict[str, Any], record: Record) -> dict[str, Any]:
    """Medians of all sides of a case, the ratios of those that agree, and why others are missing."""
    runs = [run for run in record["runs"] if run["case"] == name and run["side"] != REFERENCE]
    gemm = next((run["gemm_tflops"] for run in record["runs"] if run["side"] == "gemm" and "failed" not in run), None)
    found = {side: [run for run in runs if run["side"] == side and "failed" not in run] for side in SIDES}
    sides = {side: side_of(of, gemm, peak_tflops(record["machine"])) for side, of in found.items() if of}
    fair = {side: one for side, one in sides.items() if SIDES[side].exact and not one["differs"]}
    best = {package: fastest(package, fair) for package in ("honed", "trl")}
    return {
        "case": name,
        **{key: case[key] for key in ("rows", "length", "whole", "lora", "nf4")},
        "gemm_tflops": gemm,
        "sides": sides,
        "not_run": {run["side"]: run["failed"] for run in runs if "failed" in run},
        "best": best,
        **ratios(fair, best),
        "published_tokens_per_second": PUBLISHED.get(name, {}),
    }


def side_of(runs: list[Run], gemm: float | None, peak: float | None) -> dict[str, Any]:
    seconds = statistics.median(run["seconds"] for run in runs)
    first, operations = runs[0], runs[0]["operations"]
    both = operations["six_n_tokens"] + operations["attention"]
    counts = {"six_n_tokens": operations["six_n_tokens"], "with_attention": both, "done": operations["done"]}
    return {
        "ms": round(seconds * 1e3, 2),
        "tokens_per_second": round(first["tokens"] / seconds),
        "trained_per_second": round(first["trained"] / seconds),
        "peak_gb": statistics.median(run["peak_gb"] for run in runs),
        "reserved_gb": statistics.median(run["reserved_gb"] for run in runs),
        "mfu_of_data_sheet": shares(counts, seconds, peak),
        "mfu_of_gemm": shares(counts, seconds, gemm),
        "slice_error": first.get("slice_error"),
        "step_error": first.get("step_error"),
        "loss_error": first.get("loss_error"),
        "losses": first["losses"],
        "differs": differs(first),
    }


def shares(counts: dict[str, float], seconds: float, tflops: float | None) -> dict[str, float] | None:
    return tflops and {name: round(count / seconds / tflops / 1e12, 4) for name, count in counts.items()}


def differs(run: Run) -> list[str]:
    """How a run disagrees with the others; what was not compared counts as different."""
    limits = {"slice_error": SLICE, "step_error": STEP, "loss_error": LOSS}
    found = []
    for key, limit in limits.items():
        if key not in run and key != "slice_error" and run.get("gradients"):
            continue  # the run that the others are compared with
        value = run.get(key)
        if value is None and key == "step_error" and "step_error" in run:
            continue  # gradients were consumed in the backward pass; its slice and losses are compared
        value = value["median"] if isinstance(value, dict) else value
        if value is None or not value <= limit:
            found.append(key)
    return found


def fastest(package: str, fair: dict[str, dict[str, Any]]) -> str | None:
    own = [side for side in fair if SIDES[side].package == package]
    return min(own, key=lambda side: float(fair[side]["ms"]), default=None)


def ratios(fair: dict[str, dict[str, Any]], best: dict[str, str | None]) -> dict[str, float | None]:
    """TRL's time divided by honed's, and honed's memory divided by TRL's; None if either is missing."""
    pairs = {
        "best": (best["honed"], best["trl"]),
        "default": ("honed", "trl"),
        "of_default": ("honed", best["trl"]),
    }
    found: dict[str, float | None] = {}
    for label, (ours, theirs) in pairs.items():
        there = ours in fair and theirs in fair
        found[f"speed_{label}"] = round(fair[theirs]["ms"] / fair[ours]["ms"], 2) if there else None  # type: ignore[index]
        found[f"memory_{label}"] = (
            round(fair[ours]["peak_gb"] / fair[theirs]["peak_gb"], 2) if there else None  # type: ignore[index]
        )
    ours, theirs = (least_memory(package, fair) for package in ("honed", "trl"))
    found["memory_least"] = round(ours / theirs, 2) if ours and theirs else None
    return found


def least_memory(package: str, fair: dict[str, dict[str, Any]]) -> float | None:
    return min((one["peak_gb"] for side, one in fair.items() if SIDES[side].package == package), default=None)


def describe(result: dict[str, Any]) -> str:
    lines = [f"{result['case']}: {result['rows']} x {result['length']:,} tokens a step"]
    published = result["published_tokens_per_second"]
    lines[0] += "".join(f"; {name}: {speed:,} tokens/s" for name, speed in published.items())
    for side, one in result["sides"].items():
        share = (one["mfu_of_data_sheet"] or one["mfu_of_gemm"] or {}).get("six_n_tokens", 0)
        errors = ", ".join(f"{key.partition('_')[0]} {error_text(one[key])}" for key in
                           ("slice_error", "step_error", "loss_error"))  # fmt: skip
        numbers = f"{one['ms']:9.1f} ms {one['tokens_per_second']:9,} tokens/s {one['peak_gb']:7.2f} GB"
        mark = "" if not one["differs"] else f"  DIFFERS: {', '.join(one['differs'])}"
        lines.append(f"  {side:28}{numbers}  MFU {share:5.1%}  {errors}{mark}")
    lines += [f"  {side:28}{reason}" for side, reason in result["not_run"].items()]
    shown = {key: result[key] for key in result if key.startswith(("speed_", "memory_")) and result[key] is not None}
    best = f"{result['best']['honed']}, {result['best']['trl']}"
    lines.append(f"  TRL's time / ours, our memory / TRL's (best: {best}): {shown}")
    return "\n".join(lines)


def error_text(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.0e} (worst {value['worst']:.0e})"
    return "-" if value is None else f"{value:.0e}"
