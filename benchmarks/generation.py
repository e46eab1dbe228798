"""Tokens per second of honed's engine against transformers' `generate`: the same model, the same prompts, interleaved.

    python benchmarks/generation.py [--threads 1] [--dtype float32] [--repeats 3] [--out benchmarks/results/NAME.json]

The model is SmolLM2-135M-Instruct with its real weights; decoding is greedy; there are 16 prompts. Three kinds of work:

    natural   questions of the packaged held-out set; each answer ends at its stop token, or after 96 tokens
    skewed    prompts of 16 to 300 tokens, answers of 4 to 160 tokens, stop tokens ignored
    equal     prompts of 64 tokens, answers of 48

`generate` takes all 16 as one left-padded batch, which runs until its longest answer ends; only requested tokens count.
The engine packs its weights again in every measurement, and its time includes that.

Both must give the same tokens. Sums in another order differ in the last bits, so a token may differ where, in the
model's plain forward, the two most likely are closer than 1e-3 (5e-2 in bfloat16). Such rows are counted; any other
difference stops the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
PROMPTS = 16
NATURAL_LIMIT = 96
SKEWED_PROMPTS = (16, 16, 20, 24, 24, 28, 32, 32, 40, 48, 56, 64, 96, 128, 200, 300)
SKEWED_ANSWERS = (4, 64, 8, 160, 6, 12, 32, 8, 16, 96, 12, 24, 16, 48, 24, 32)
NEAR_TIE = {"float32": 1e-3, "bfloat16": 5e-2}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Prompts, the length of each answer, and whether stop tokens count."""

    name: str
    prompts: list[list[int]]
    answers: list[int]
    stops: frozenset[int]


def main() -> None:
    args = arguments()
    if args.quick:
        args.work, args.repeats = ["equal"], 1
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    from honed.cli.console import quiet_libraries
    from honed.model.load.load import load_model, load_tokenizer

    quiet_libraries()
    torch.set_num_threads(args.threads)
    model = load_model(MODEL, device=torch.device("cpu"), dtype=args.dtype).eval()
    tokenizer = load_tokenizer(MODEL)
    results = []
    for work in works(tokenizer, frozenset({model.generation_config.eos_token_id})):
        if work.name in args.work:
            results.append(compare(model, work, repeats=args.repeats, tie=NEAR_TIE[args.dtype]))
            print(describe(results[-1]), flush=True)
    if args.out:
        options = {"threads": args.threads, "dtype": args.dtype, "repeats": args.repeats}
        record = {
            "date": date.today().isoformat(),
            "machine": machine(),
            "versions": versions(),
            **options,
            "results": results,
        }
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=tuple(NEAR_TIE), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--work", nargs="+", choices=("natural", "skewed", "equal"), default=["natural", "skewed", "equal"]
    )
    parser.add_argument(
        "--quick", action="store_true", help="one kind of work, one round: whether it works, not how fast it is"
    )
    parser.add_argument("--out")
    return parser.parse_args()


def works(tokenizer: Any, stops: frozenset[int]) -> list[Work]:
    from honed.data.read.sources import read_rows, starter_file

    questions = [row["prompt"] for _, row in read_rows(str(starter_file("held_out.jsonl")))][:PROMPTS]
    asked = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True)["input_ids"]
        for q in questions
    ]
    text = " ".join(m["content"] for _, row in read_rows(str(starter_file("train.jsonl"))) for m in row["messages"])
    ids = tokenizer.encode(text[:40_000])

    def cut(lengths: tuple[int, ...]) -> list[list[int]]:
        return [ids[n * 350 : n * 350 + length] for n, length in enumerate(lengths)]

    none: frozenset[int] = frozenset()
    return [
        Work(name="natural", prompts=asked, answers=[NATURAL_LIMIT] * len(asked), stops=stops),
        Work(name="skewed", prompts=cut(SKEWED_PROMPTS), answers=list(SKEWED_ANSWERS), stops=none),
        Work(name="equal", prompts=cut((64,) * PROMPTS), answers=[48] * PROMPTS, stops=none),
    ]


def compare(model: Any, work: Work, *, repeats: int, tie: float) -> dict[str, Any]:
    """Medians of both sides and of the pairwise ratios; stops if they did not choose the same tokens."""
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    cpu: dict[str, list[float]] = {"ours": [], "transformers": []}
    tokens: dict[str, list[list[int]]] = {}
    sides: dict[str, Callable[[Any, Work], list[list[int]]]] = {"ours": ours, "transformers": transformers}
    for _ in range(repeats):
        for side, answer in sides.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            tokens[side] = answer(model, work)
            seconds[side].append(time.perf_counter() - start)
            cpu[side].append(time.process_time() - cpu_start)
    ties = near_ties(model, work, tokens, tie)
    count = sum(map(len, tokens["ours"]))
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["transformers"], strict=True)]
    cpu_ratios = [b / a for a, b in zip(cpu["ours"], cpu["transformers"], strict=True)]
    return {
        "work": work.name,
        "tokens": count,
        "rows_that_differ_at_a_near_tie": ties,
        **{f"{side}_tokens_per_second": round(count / statistics.median(s), 1) for side, s in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "cpu_time_ratio": round(statistics.median(cpu_ratios), 2),
    }


def ours(model: Any, work: Work) -> list[list[int]]:
    from honed.generate.engine.engine import Engine
    from honed.generate.request import Request, complete

    requests = [
        Request(prompt_ids=prompt, max_new_tokens=new, stop_ids=work.stops)
        for prompt, new in zip(work.prompts, work.answers, strict=True)
    ]
    with Engine(model, slots=PROMPTS) as engine:
        return [list(answers[0].ids) for answers in complete(engine, requests)]


def transformers(model: Any, work: Work) -> list[list[int]]:
    from honed.generate.library import left_padded

    ids, mask = left_padded(work.prompts, model.config.pad_token_id)
    longest = max(work.answers)
    # -1 is not a token: nothing stops, and no token is suppressed, as it would be with `min_new_tokens`
    stops = sorted(work.stops) or -1
    options = {"max_new_tokens": longest, "do_sample": False, "pad_token_id": 0, "eos_token_id": stops}
    output = model.generate(input_ids=ids, attention_mask=mask, **options)
    rows = output[:, ids.shape[1] :].tolist()
    return [until_stop(row[:new], work.stops) for row, new in zip(rows, work.answers, strict=True)]


def until_stop(ids: list[int], stops: frozenset[int]) -> list[int]:
    end = next((n for n, token in enumerate(ids) if token in stops), None)
    return ids if end is None else ids[: end + 1]


def near_ties(model: Any, work: Work, tokens: dict[str, list[list[int]]], tie: float) -> int:
    """How many rows differ; each may differ only from where the two most likely tokens are nearly equal."""
    import torch

    count = 0
    for prompt, a, b in zip(work.prompts, tokens["ours"], tokens["transformers"], strict=True):
        if a == b:
            continue
        count += 1
        place = next((n for n, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + a[:place]]), use_cache=False).logits[0, -1].float()
        first, second = logits.topk(2).values.tolist()
        if first - second > tie * abs(first):
            raise SystemExit(
                f"{work.name}: different tokens at {place}, though the likeliest leads by {first - second}"
            )
    return count


def describe(result: dict[str, Any]) -> str:
    return (
        f"{result['work']:8} {result['tokens']:>5} tokens   ours {result['ours_tokens_per_second']:>6}/s"
        f"   transformers {result['transformers_tokens_per_second']:>6}/s   {result['ratio']:.2f}x"
        f"   (CPU time {result['cpu_time_ratio']:.2f}x)   rows apart at a near tie:"
        f" {result['rows_that_differ_at_a_near_tie']} of {PROMPTS}"
    )


def machine() -> dict[str, Any]:
    return {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers")}


if __name__ == "__main__":
    main()
