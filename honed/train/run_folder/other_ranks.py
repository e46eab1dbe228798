"""Resuming a run's checkpoints with another number of processes: allowed if its steps keep their rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from honed.errors import RunError
from honed.quantities import counted

# What may differ if processes x accumulation does not; the last is the plain loop's name.
_OF_RANKS = {"ranks", "sequence_parallel_size", "gradient_accumulation_steps", "accumulation"}


def keep_rows(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether two identities belong to one run of SFTTrainer, and each step has the same rows in both.

    Not with `dataloader_drop_last`, which drops different rows on different numbers of ranks, nor with `split_batches`,
    which makes batches smaller on more ranks.
    """
    if there == here:
        return True
    same = _differ_in_ranks_alone(there, here) and not _depends_on_ranks(here)
    return same and _micro_batches(there) == _micro_batches(here)


def refuse(path: Path, there: Mapping[str, Any], here: Mapping[str, Any], engine: str = "") -> None:
    """Refuses to start over on top of a checkpoint of the same run that another number of processes wrote.

    Args:
        path: an intact checkpoint that this run cannot resume automatically.
        there, here: the identities of the checkpoint and of this run.
        engine: why this run's engine cannot read it; "" if it can.

    Raises:
        RunError: it is such a checkpoint.
    """
    now = int(here.get("ranks", 1))
    before = int(there.get("ranks", now))
    if before == now or not _differ_in_ranks_alone(there, here):
        return
    by_name = "" if engine or "accumulation" in here else f"; or {_by_name(path, there, here)}"
    why = f" ({engine})" if engine else ""
    raise RunError(
        f"{path} was written by this run on {_processes(before)}. It cannot be resumed as it is on "
        f"{_processes(now)}{why}, and starting over would overwrite it.",
        fix=f"start {_processes(before)} again{by_name}; or start over with --overwrite or in another folder (in a "
        "script: without resume_from_checkpoint)",
    )


def notes(path: Path, there: Mapping[str, Any], ranks: int) -> list[str]:
    """Returns a note on resuming from a checkpoint of another number of processes whose steps have the same rows."""
    before = there.get("ranks", ranks)
    if before == ranks:
        return []
    return [
        f"{path.name} was written by {_processes(before)}, and now there are {ranks:,}: each step has the same rows; "
        "dropout and noise, if there are any, differ."
    ]


def shared_anew(ranks: list[dict[str, Any]], world: int) -> list[dict[str, Any]]:
    """Converts the ranks' counts for another number of ranks: the first gets all counts, and losses are averaged."""
    if len(ranks) == world:
        return ranks
    counts = [rank["metrics"] for rank in ranks]
    added = ("tokens", "trained", "scored", "aux_tokens", "aux_sum")
    summed = {key: sum(count.get(key, 0) for count in counts) for key in added}
    sums = [sum(column) for column in zip(*(count["sums"] for count in counts), strict=True)]
    total = {"num_tokens": counts[0]["num_tokens"], "sums": sums, **summed}
    nothing = {**total, "sums": [0.0] * len(sums), **dict.fromkeys(summed, 0)}
    means = {key: sum(rank[key] for rank in ranks) / len(ranks) for key in ("loss", "total_loss")}
    first = {**ranks[0], **means}
    return [{**first, "metrics": nothing if number else total} for number in range(world)]


def readers(identity: Mapping[str, Any]) -> int:
    """The number of ranks with different rows; ranks that share rows count as one."""
    return int(identity.get("ranks", 1)) // int(identity.get("sequence_parallel_size", 1))


def _by_name(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Describes how to resume from it anyway, with the same rows in each step if possible."""
    named = f"resume with resume_from_checkpoint={path}"
    accumulation, rest = divmod(_micro_batches(there), readers(here))
    if here.get("tokens_per_step") is not None or _depends_on_ranks(here) or rest:
        return f"{named}, where steps may have other rows"
    if accumulation == here.get("gradient_accumulation_steps"):
        return f"{named}, where the last steps of an epoch have other rows"
    return f"{named} gradient_accumulation_steps={accumulation}, so that each step has the same rows"


def _depends_on_ranks(identity: Mapping[str, Any]) -> bool:
    return bool(identity.get("dataloader_drop_last") or identity.get("split_batches"))


def _differ_in_ranks_alone(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    return all(there.get(key) == here.get(key) for key in (there.keys() | here.keys()) - _OF_RANKS)


def _micro_batches(identity: Mapping[str, Any]) -> int:
    """The micro-batches per step over all ranks; with `tokens_per_step` a step's rows do not depend on the ranks."""
    ranks = 1 if identity.get("tokens_per_step") is not None else readers(identity)
    return ranks * int(identity.get("gradient_accumulation_steps", 1))


def _processes(count: int) -> str:
    return counted(count, "process", "processes")
