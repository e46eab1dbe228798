"""Options in combination on two ranks, under DDP and FSDP2: every pair of values below, held against the oracle.

As in `tests/train/test_combinations.py`: losses, norms and evaluations of each step, and the weights at the end, are
those of each document alone through the unmodified model in one process, and of AdamW by hand. Every row is trained
once an epoch, on one of the ranks or, where they share rows (`sharing`), on all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from combined import LAUNCHES
from safetensors.torch import load_file

from honed.model.adapters.adapters import attach
from tests.train.oracle import ByHand, Step, Training, loss_of_step
from tests.train.rows_by_hand import assert_same_documents, documents_in, documents_of, rows_of
from tests.train.test_combinations import (
    REFUSED,
    TOLERANCES,
    Run,
    adapter_of,
    assert_same_log,
    covering_runs,
    how_of,
    model_of,
    name_of,
    relative,
    shaken,
    works,
)

if TYPE_CHECKING:
    from conftest import Ranks

OPTIONS: dict[str, tuple[Any, ...]] = {  # the first value goes with every other option
    "launch": tuple(LAUNCHES),
    "rows": ("bfd", "flat", "padded", "tokens_per_step", "stream"),
    "family": ("llama", "tied", "mixtral"),
    "weights": ("all", "some", "lora", "lora and head"),
    "around": ("nothing", "evaluations", "resumed"),
    "checkpointing": (False, True, "selective", "reentrant"),
    "objective": ("nll", "dft", "smoothed"),
    "precision": ("float32", "float64"),
    "data": ("chat", "tokens"),
    "accumulation": (2, 1),
    "share_prefixes": (False, "auto"),
    "sampling": ("random", "group_by_length"),
    "count": (9, 2),  # rows: one rank of two has none in some rounds
    "sharing": (1, 2),  # how many ranks share a row
    "rates": ("one", "two"),
    "engine": ("trainer",),
    "optimizer": ("adamw",),
    "length": (256,),
    "schedule": ("linear",),
}
NOT_HERE = (
    *REFUSED,
    {"launch": ("offloaded",), "family": ("tied",), "weights": ("lora and head",)},
    {"family": ("mixtral",), "checkpointing": ("reentrant",)},
    {"sharing": (2,), "rows": ("padded",)},
    {"sharing": (2,), "family": ("mixtral",)},  # the balance is a mean over tokens that no rank has
    {"sharing": (2,), "launch": ("offloaded",)},
)
RUNS = list(covering_runs(OPTIONS, NOT_HERE))
RANKS = 2


def test_every_pair_occurs() -> None:
    """But for those that are refused."""
    for first, second in combinations(OPTIONS, 2):
        found = {(run[first], run[second]) for run in RUNS}
        assert found == {
            (a, b) for a in OPTIONS[first] for b in OPTIONS[second] if works({first: a, second: b}, NOT_HERE)
        }


@pytest.fixture(scope="module")
def trained(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run. The first one asked for of a launch has all of that launch trained, in one process group."""
    folders: dict[str, Path] = {}

    def folder_of(run: Run) -> Path:
        runs, launch = [other for other in RUNS if other["launch"] == run["launch"]], run["launch"]
        if launch not in folders:
            folders[launch] = tmp_path_factory.mktemp("launch")
            ended = ranks(launch, out=folders[launch], runs=runs, limit=300)
            assert ended.statuses == [0] * RANKS, "".join(ended.err(rank)[-3000:] for rank in range(RANKS))
        return folders[launch] / str(runs.index(run))

    return folder_of


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_it_is_what_the_oracle_computes(
    run: Run, trained: Callable[..., Path], tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    folder = trained(run)
    found = [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(RANKS)]
    assert found[0]["wrapper"].startswith("DistributedDataParallel" if run["launch"] == "ddp" else "FSDP")
    documents = documents_of(rows_of(run["data"], seed=0, count=run["count"]), run, tiny_tokenizer)
    held_out = documents_of(rows_of(run["data"], seed=5, count=7), run, tiny_tokenizer)
    model, before = model_of(run, tiny_model), model_of(run, tiny_model)
    if adapter_of(run) is not None:
        before = shaken(attach(before, adapter_of(run)), model.dtype)
    how, steps = how_of(run, model), steps_of(run, found, documents)
    oracle = ByHand(before, how, len(steps))
    for step in steps:
        oracle.take(step)
        if run["around"] == "evaluations":
            plain = Training(loss=how.loss, smoothing=how.smoothing)
            oracle.log[-1]["eval_loss"] = float(loss_of_step(before, [held_out], plain).detach())
    assert_same_log(found[0]["log"], oracle.log, TOLERANCES[run["precision"]])
    for name, weight in before.named_parameters():
        weights = [rank["weights"][name] for rank in found]
        assert torch.equal(weights[0], weights[1]), name
        if not re.search(r"k_proj\.bias", name):  # its gradient is 0, but for rounding
            assert relative(weights[0], weight) <= (TOLERANCES[run["precision"]] if weight.requires_grad else 0), name
    assert_saved(folder / "saved", found[0]["weights"])


def steps_of(run: Run, found: list[dict[str, Any]], documents: list[Any]) -> list[Step]:
    """The documents of each step, in the micro-batches of all ranks; each epoch must hold all rows once."""
    total, rows = found[0]["total"], found[0]["rows"]
    if run["rows"] == "stream":  # rows without end, in their order, two in a micro-batch
        size = run["accumulation"] * RANKS // run["sharing"]
        batches = [(documents * 30)[at : at + 2] for at in range(0, 60 * RANKS, 2)]
        return [batches[n * size : (n + 1) * size] for n in range(total)]
    assert_same_documents(rows, documents)
    assert all(rank["steps"] == found[n - n % run["sharing"]]["steps"] for n, rank in enumerate(found))
    steps = [[batch for rank in found[:: run["sharing"]] for batch in rank["steps"][step]] for step in range(total)]
    for epoch in (steps[: total // 2], steps[total // 2 :]):
        assert sorted(row for step in epoch for batch in step for row in batch) == list(range(len(rows)))
    return [[[d for row in batch for d in documents_in(rows[row])] for batch in step if batch] for step in steps]


def assert_saved(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """The file holds what was trained, under the names of the model or those that peft gives an adapter."""
    [file] = folder.glob("*.safetensors")
    plain = {re.sub(r"\.(default|modules_to_save)(?=\.)", "", name): weight for name, weight in weights.items()}
    saved = load_file(file)
    assert saved.keys() & plain.keys()
    for name in saved.keys() & plain.keys():
        assert torch.equal(saved[name], plain[name]), name
