"""Which rank trains which rows at 1 to 1,024 ranks, the balance of work and the padding. No GPU, nothing timed.

    python benchmarks/scaling_simulation.py [--rows 500000] [--out benchmarks/results/NAME.json]

Lengths: question and answer pairs of ../shared/data (without that folder, of the packaged starter set), rendered and
tokenised by honed; `--rows` lengths are then drawn from them with seed 0, because 1,024 ranks need more rows. Orders
and rows come from honed's own code: `pack_best_fit`, the plain loop's `Plan`, `GroupedByLength`, `StreamDataset`; and
accelerate's `BatchSamplerShard` with `FilledOrder`, which distribute the batches of `SFTTrainer`. It stops if a row is
missing or trained twice.

Work is counted in operations of the planner (attention included) for one model. All ranks wait for the slowest, so the
share of time spent on real tokens is

    work on real tokens, summed over ranks / (ranks x work of the busiest rank with its padding)
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

RANKS = (1, 8, 64, 1024)
CAPACITY = 2048  # max_length of recipes/multi_gpu.yaml
BATCH = 4  # its per_device_train_batch_size
MODEL = "Qwen3-8B"
Ranks = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Micro-batches in training order: for each the work on real tokens, the work with padding, and its tokens."""

    name: str
    real: np.ndarray
    padded: np.ndarray
    tokens: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--out")
    args = parser.parse_args()
    distinct, source = real_lengths()
    lengths = np.random.default_rng(0).choice(distinct, args.rows)
    record = {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "lengths": describe_lengths(distinct, source),
        "rows": args.rows,
        "capacity": CAPACITY,
        "model": MODEL,
        "fill": fill(distinct, lengths),
    }
    show_fill(record)
    rows = packed(lengths)
    record["order"] = [order(len(rows), ranks) for ranks in args.ranks]
    same_steps(len(rows), args.ranks)
    show_order(record["order"])
    record["load"] = [one for layout, ranks in layouts(lengths, rows, args.ranks) for one in loads(layout, ranks)]
    show_load(record["load"])
    if args.out:
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def real_lengths() -> tuple[np.ndarray, str]:
    """Tokens of each conversation as honed prepares it; those above the capacity are dropped, as in recipes."""
    from data_preparation import SHARED, distinct_pairs, load_tokenizer

    from honed.data.prepare.options import PrepareOptions
    from honed.data.prepare.prepare import prepare

    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in distinct_pairs()
    ]
    options = PrepareOptions(max_length=CAPACITY, overlong="drop")
    made = prepare(rows, load_tokenizer(), options)
    return made.rows.table.lengths, "../shared/data" if SHARED.is_dir() else "the starter set"


def describe_lengths(lengths: np.ndarray, source: str) -> dict[str, Any]:
    percentiles = {f"p{p}": int(np.percentile(lengths, p)) for p in (5, 50, 95, 99)}
    mean, longest = round(float(lengths.mean()), 1), int(lengths.max())
    return {"source": source, "distinct": len(lengths), "mean": mean, **percentiles, "max": longest}


# ---- fill: how much of a row is tokens


def packed(lengths: np.ndarray) -> list[list[int]]:
    from honed.data.batch.pack import pack_best_fit

    return pack_best_fit(lengths, CAPACITY)


def packed_by_blocks(lengths: np.ndarray) -> list[list[int]]:
    """Packs like a stream, `stream.BLOCK` rows at a time. Row numbers are those of the whole set."""
    from honed.data.prepare.stream import BLOCK

    starts = range(0, len(lengths), BLOCK)
    return [[start + n for n in row] for start in starts for row in packed(lengths[start : start + BLOCK])]


def fill(distinct: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """The share of tokens in packed rows, in padded batches like TRL's default, and in batches sorted by length."""
    from honed.data.batch.pack import fill_rate

    def of(rows: list[list[int]], of_lengths: np.ndarray = lengths) -> float:
        return round(fill_rate(of_lengths, rows, CAPACITY), 5)

    shuffled, grouped = (lengths[: len(lengths) // 8 * 8].reshape(-1, 8), batches_by_length(lengths, 8))
    return {
        "packed, distinct rows, whole set": of(packed(distinct), distinct),
        "packed, distinct rows, blocks of 1,000": of(packed_by_blocks(distinct), distinct),
        "packed, all rows, whole set": of(packed(lengths)),
        "packed, all rows, blocks of 1,000": of(packed_by_blocks(lengths)),
        "padded batches of 8, as they come": round(float(lengths.sum() / padded_tokens(shuffled).sum()), 5),
        "padded batches of 8, grouped by length": round(float(lengths.sum() / padded_tokens(grouped).sum()), 5),
        "padded to 2,048": round(float(lengths.mean() / CAPACITY), 5),
    }


def padded_tokens(batches: Any) -> np.ndarray:
    return np.array([len(batch) * max(batch) for batch in batches])


def batches_by_length(lengths: np.ndarray, size: int, ranks: int = 1) -> list[np.ndarray]:
    """Lengths in the batches of `train_sampling_strategy="group_by_length"`; a step has one batch of each rank."""
    from honed.train.rows.rows import GroupedByLength

    class Rows:
        def __len__(self) -> int:
            return len(lengths)

        def __getitem__(self, n: int) -> Any:
            return SimpleNamespace(lengths=(int(lengths[n]),))

    order = np.fromiter(GroupedByLength(Rows(), size * ranks, seed=0), dtype=np.int64)  # type: ignore[arg-type]
    return [lengths[order[n : n + size]] for n in range(0, len(order), size)]


# ---- order: which rank trains what


def order(rows: int, ranks: int) -> dict[str, Any]:
    """Every rank's batches of an epoch, for the three ways in which honed distributes them.

    Raises:
        SystemExit: a row is missing, or is trained more often than it should be.
    """
    from honed.train.loop.plan import epoch_order

    plain, weightless = dealt_by_plan(rows, ranks)
    trained = Counter(row for of_rank in plain for batch in of_rank for row in batch)
    check(len(trained) == rows and set(trained.values()) == {1}, f"plain loop, {ranks} ranks: not each row once")
    epoch = epoch_order(rows, 0, 0)
    check(in_turn(plain)[:rows] == epoch, f"plain loop, {ranks} ranks: another order")
    dealt = dealt_by_accelerate(epoch, ranks)
    check(in_turn(dealt) == epoch, f"trainer, {ranks} ranks: another order")
    check(len({len(of_rank) for of_rank in dealt}) == 1, f"trainer, {ranks} ranks: unequal numbers of steps")
    check_stream(ranks)
    return {
        "ranks": ranks,
        "rows": rows,
        "steps": len(dealt[0]),
        "each_row_once": True,
        "order_of_one_rank": True,
        "weightless_batches": weightless,
    }


def plan_of(rows: int, ranks: int, accumulation: int = 1) -> Any:
    from honed.train.loop.config import LoopConfig
    from honed.train.loop.plan import Plan

    return Plan(config=LoopConfig(batch_size=BATCH, accumulation=accumulation, seed=0), rows=rows, world=ranks)


def dealt_by_plan(rows: int, ranks: int) -> tuple[list[list[list[int]]], int]:
    """Each rank's batches with weight, and how many batches without weight fill the last step."""
    plan, weightless, dealt = plan_of(rows, ranks), 0, []
    for rank in range(ranks):
        batches, lacks_one = plan.batches(0, rank)
        weightless += lacks_one
        dealt.append(batches[: len(batches) - lacks_one])
    return dealt, weightless


def dealt_by_accelerate(epoch: list[int], ranks: int) -> list[list[list[int]]]:
    """Rows of each rank's batches; batches with which honed only fills the last round are empty."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    from honed.train.rows.filling import FilledOrder

    batches = BatchSampler(FilledOrder(epoch, BATCH * ranks), BATCH, drop_last=False)
    dealt = [BatchSamplerShard(batches, ranks, rank) if ranks > 1 else batches for rank in range(ranks)]
    return [[[row for row in batch if row < len(epoch)] for batch in of_rank] for of_rank in dealt]


def in_turn(dealt: list[list[list[int]]]) -> list[int]:
    """Rows by step, and in a step by rank."""
    steps = max(len(batches) for batches in dealt)
    return [row for step in range(steps) for batches in dealt if step < len(batches) for row in batches[step]]


def check_stream(ranks: int, rounds: int = 4) -> None:
    """Checks that `StreamDataset` gives each batch of a stream to one rank, also when resumed from a checkpoint."""
    from honed.data.prepare.stream import Place
    from honed.train.rows.stream import StreamDataset

    class Numbers:
        ledger = None

        def batches(self, size: int, start: Place | None) -> Iterator[tuple[Place, int]]:
            for n in range(0 if start is None else start.batch, rounds * ranks):
                yield Place(batch=n), n

    for after in (None, Place(batch=ranks)):  # a checkpoint of rank 0's second batch counts the others' as done
        given = [
            [number for _, _, number in StreamDataset(Numbers(), 1, lambda n: n, rank=r, world=ranks, after=after)]  # type: ignore[arg-type,return-value]
            for r in range(ranks)
        ]
        first = 0 if after is None else 2 * ranks
        numbers = [given[rank][step] for step in range(len(given[0])) for rank in range(ranks)]
        check(numbers == list(range(first, rounds * ranks)), f"stream, {ranks} ranks: another order")


def same_steps(rows: int, ranks: Ranks) -> None:
    """Checks that steps with equally many micro-batches (ranks x accumulation) have the same rows for any ranks."""
    most, steps = max(ranks), []
    for world in (n for n in ranks if most % n == 0):
        plan = plan_of(rows, world, most // world)
        dealt = [plan.batches(0, rank)[0] for rank in range(world)]
        rows_of = [
            sorted(row for of_rank in dealt for batch in of_rank[at : at + plan.config.accumulation] for row in batch)
            for at in range(0, rows // (BATCH * most) * plan.config.accumulation, plan.config.accumulation)
        ]
        steps.append(rows_of)
    check(all(one == steps[0] for one in steps), "a step has other rows with another number of ranks")


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(otherwise)


# ---- load: how even the ranks' work is


def work_of() -> Callable[[np.ndarray], np.ndarray]:
    """Operations of full training on a document of n tokens: a n + b n^2, fitted to the planner at two lengths."""
    from honed.model.plan import plan
    from honed.model.plan.step_time import flops_per_step

    job = plan.job_for(MODEL, method="full", length=1)
    one, two = (flops_per_step(replace(job, length=n)) for n in (1000, 2000))
    b = (two - 2 * one) / (2000**2 - 2 * 1000**2)
    a = one / 1000 - b * 1000
    return lambda n: a * n + b * n.astype(np.float64) ** 2


def layouts(lengths: np.ndarray, rows: list[list[int]], ranks: Ranks) -> Iterator[tuple[Layout, Ranks]]:
    """The same rows as micro-batches in several ways, with the numbers of ranks that use them.

    Except for padding, each has equally many tokens on average.
    """
    work = work_of()
    each, tokens = work(lengths), lengths.astype(np.float64)
    for name, of in (("packed, whole set", rows), ("packed, blocks of 1,000", packed_by_blocks(lengths))):
        batches = [[d for row in batch for d in of[row]] for batch in plan_batches(len(of), BATCH)]
        yield layout_of(name, batches, each, tokens), ranks
    size = round(BATCH * CAPACITY / lengths.mean())
    batches = plan_batches(len(lengths), size)
    yield layout_of("flat, not packed", batches, each, tokens), ranks
    yield padded_layout("padded", [lengths[batch] for batch in batches], work), ranks
    for world in ranks:
        grouped = batches_by_length(lengths, size, world)
        yield padded_layout("padded, grouped by length", grouped, work), (world,)


def plan_batches(rows: int, size: int) -> list[list[int]]:
    """All ranks' micro-batches in order; `order` has checked that batch b belongs to rank b mod ranks."""
    from honed.train.loop.config import LoopConfig
    from honed.train.loop.plan import Plan

    batches, _ = Plan(config=LoopConfig(batch_size=size, seed=0), rows=rows).batches(0, 0)
    return batches


def layout_of(name: str, batches: list[list[int]], each: np.ndarray, tokens: np.ndarray) -> Layout:
    real = np.array([each[batch].sum() for batch in batches])
    return Layout(name=name, real=real, padded=real, tokens=np.array([tokens[batch].sum() for batch in batches]))


def padded_layout(name: str, batches: list[np.ndarray], work: Callable[[np.ndarray], np.ndarray]) -> Layout:
    return Layout(
        name=name,
        real=np.array([work(batch).sum() for batch in batches]),
        padded=np.array([len(batch) * work(batch.max()) for batch in batches]),
        tokens=padded_tokens(batches).astype(np.float64),
    )


def loads(layout: Layout, ranks: Ranks) -> Iterator[dict[str, Any]]:
    """Steps of one micro-batch per rank; the last, incomplete one is left out."""
    for world in ranks:
        steps = (len(layout.real) - 1) // world
        real, done, tokens = (
            a[: steps * world].reshape(steps, world) for a in (layout.real, layout.padded, layout.tokens)
        )
        yield {
            "layout": layout.name,
            "ranks": world,
            "steps": steps,
            "tokens_per_rank": round(float(tokens.mean())),
            "tokens_max_over_mean": ratio(tokens),
            "work_max_over_mean": ratio(done),
            "share_on_real_tokens": round(float(real.sum() / (world * done.max(axis=1)).sum()), 4) if steps else None,
            "share_if_work_were_even": round(float(real.sum() / done.sum()), 4) if steps else None,
        }


def ratio(numbers_SR: np.ndarray) -> float | None:
    """The ratio of the busiest rank to the average rank, averaged over steps; numbers by step and rank."""
    return round(float((numbers_SR.max(axis=1) / numbers_SR.mean(axis=1)).mean()), 4) if len(numbers_SR) else None


# ---- tables


def show_fill(record: dict[str, Any]) -> None:
    print(f"{record['rows']:,} rows with lengths of", json.dumps(record["lengths"]))
    for name, share in record["fill"].items():
        print(f"  {name:42}{share:>9.2%} tokens{1 - share:>9.2%} wasted")


def show_order(found: list[dict[str, Any]]) -> None:
    print(f"\n{'ranks':>6}{'packed rows':>13}{'steps':>8}  each once  order of one rank  weightless")
    for one in found:
        print(
            f"{one['ranks']:>6,}{one['rows']:>13,}{one['steps']:>8,}  {'yes':>9}  {'yes':>17}"
            f"{one['weightless_batches']:>12,}"
        )


def show_load(found: list[dict[str, Any]]) -> None:
    print(f"\n{'':28}{'ranks':>6}{'steps':>7}{'tokens/rank':>13}{'max/mean':>10}{'work':>8}{'real':>8}{'if even':>9}")
    for one in (one for one in found if one["steps"]):
        print(
            f"{one['layout']:28}{one['ranks']:>6,}{one['steps']:>7,}{one['tokens_per_rank']:>13,}"
            f"{one['tokens_max_over_mean']:>10.3f}{one['work_max_over_mean']:>8.3f}"
            f"{one['share_on_real_tokens']:>8.1%}{one['share_if_work_were_even']:>9.1%}"
        )


if __name__ == "__main__":
    main()
