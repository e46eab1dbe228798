"""What ranks must have alike. Runs that are refused: `tests/distributed/test_agreement_of_ranks.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from honed.errors import RunError
from honed.train.run_folder.identity import digest_of_weights
from honed.train.trainer import agreement
from honed.train.trainer.agreement import ROWS, WEIGHTS, refuse_differences


def test_ranks_that_agree_are_let_through() -> None:
    refuse_differences([{"seed": 0, ROWS: "8"}] * 3)


@pytest.mark.parametrize(
    ("other", "says", "fix"),
    [
        ({"seed": 1, ROWS: "8"}, "seed is 0 on rank 0 and 1 on rank 2", "the same arguments"),
        ({"seed": 0, ROWS: "6"}, "the training rows are '8' on rank 0 and '6' on rank 2", "the same files"),
        ({"seed": 0, ROWS: "8", "the evaluation rows": "5"}, "the evaluation rows are None", "the same files"),
        ({"seed": 0, ROWS: "8", WEIGHTS: "ab"}, "the weights are None on rank 0 and 'ab' on rank 2", "same weights"),
    ],
)
def test_what_differs_is_named(other: dict[str, Any], says: str, fix: str) -> None:
    first = {"seed": 0, ROWS: "8"}
    with pytest.raises(RunError) as caught:
        refuse_differences([first, first, other])
    assert says in caught.value.problem and fix in caught.value.fix


def test_a_digest_tells_the_ends_of_each_weight() -> None:
    """New rows stand at the end of a matrix."""
    model = torch.nn.Linear(50, 50)
    before = digest_of_weights(model)
    assert digest_of_weights(model) == before
    model.weight.data[-1, -1] += 1
    after = digest_of_weights(model)
    model.bias.data[0] += 1
    assert len({before, after, digest_of_weights(model)}) == 3


@pytest.mark.parametrize("others", [[True, True], [True, False]], ids=["one folder", "another one on rank 2"])
def test_all_ranks_must_see_the_folder_of_checkpoints(
    others: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each machine may have a folder of its own under that name; nothing is left in it."""
    monkeypatch.setattr(agreement, "broadcast_object_list", lambda values: values)
    monkeypatch.setattr(agreement, "gather_object", lambda values: [*values, *others])
    if all(others):
        agreement.need_one_folder(tmp_path / "run", first=True)
    else:
        with pytest.raises(RunError, match="not the same folder on rank 0 and rank 2"):
            agreement.need_one_folder(tmp_path / "run", first=True)
    assert list((tmp_path / "run").iterdir()) == []


def test_another_machine_s_folder_is_known_by_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    assert agreement._appears(tmp_path / "mark")
    assert not agreement._appears(tmp_path / "other" / "mark", seconds=0)
