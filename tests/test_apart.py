"""The benchmarks for GPUs, as far as no GPU is needed: runs apart, rows that fill a step, what counts as the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPT = """
import os, sys
from apart import answer
def work(run):
    if run["side"] == "raises":
        raise ValueError("no such thing")
    if run["side"] == "crashes":
        print("last words", flush=True)
        os._exit(7)
    return {"seconds": 1.0}
answer(sys.argv[2], work)
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in ("apart", "card", "data_preparation", "gpu_cases", "gpu_compare", "gpu_training"):
        sys.modules.pop(name, None)


def test_a_side_that_fails_is_a_result_and_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import apart

    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    sides = ("absent", "raises", "crashes", "works")
    runs = [{"case": "one", "side": side, "round": 0, "package": side} for side in sides]
    runs[0]["missing"] = "not installed"
    record: dict[str, Any] = {"runs": []}
    out = tmp_path / "out.json"
    options = {"out": out, "guess": 60.0, "environment": {"PYTHONPATH": f"{BENCHMARKS}"}}
    assert apart.carry_out(str(tmp_path / "script.py"), runs[:3], record, minutes=None, **options)
    assert [run["failed"] for run in record["runs"]] == [
        "not installed",
        "ValueError: no such thing",
        "its process ended with 7: last words",
    ]
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert not apart.carry_out(str(tmp_path / "script.py"), runs, kept, minutes=0.5, **options)  # a minute is expected
    assert kept["runs"] == record["runs"]
    assert apart.carry_out(str(tmp_path / "script.py"), runs, kept, minutes=None, **options)
    assert kept["runs"][3:] == [{"case": "one", "side": "works", "round": 0, "seconds": 1.0}]
    assert "1 runs are left" in capsys.readouterr().out


def test_another_machine_is_not_gone_on_with(tmp_path: Path) -> None:
    import apart

    out = tmp_path / "out.json"
    apart.write(out, apart.open_record(out, {"date": "2026-01-01", "machine": "one", "versions": {}}))
    assert apart.open_record(out, {"date": "2026-01-02", "machine": "one", "versions": {}})["date"] == "2026-01-01"
    with pytest.raises(SystemExit, match="another machine"):
        apart.open_record(out, {"date": "2026-01-01", "machine": "two", "versions": {}})


@pytest.mark.parametrize("name", ["qwen3-0.6b", "mistral-7b, QLoRA", "llama-3-8b, LoRA, whole"])
def test_steps_have_equally_many_tokens_and_documents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_cases

    lengths = [7, 60, 31, 500, 90, 12, 200, 45, 130]
    rows = [{"input_ids": [1] * n, "labels": [-100] + [1] * (n - 1)} for n in lengths]
    monkeypatch.setattr(gpu_cases, "encoded", lambda _: gpu_cases.cycle(rows))
    case = gpu_cases.CASES[name]
    steps = gpu_cases.steps_of(case, 5)
    assert {sum(len(row["input_ids"]) for row in step) for step in steps} == {case.rows * case.length}
    assert len({len(step) for step in steps}) == 1
    longest = case.length if case.whole else gpu_cases.LONGEST
    assert all(len(row["labels"]) == len(row["input_ids"]) <= longest for step in steps for row in step)


def test_one_wrong_parameter_is_named() -> None:
    import gpu_compare

    right = {"a": "1 2 3", "b": "0.5 0.25 0", "c": "0 0 0"}
    assert gpu_compare.error(dict(right), right)["worst"] == 0
    wrong = gpu_compare.error({**right, "b": "1 0.5 0"}, right)
    assert (wrong["of"], wrong["worst"]) == ("b", 1.0)
    assert gpu_compare.error({"a": "1 2 3"}, right)["median"] == float("inf")


def test_a_run_that_was_not_compared_gets_no_ratio() -> None:
    import gpu_compare

    same = {"slice_error": {"median": 0.01}, "step_error": {"median": 0.02}, "loss_error": 0.0}
    assert gpu_compare.differs(same) == []
    assert gpu_compare.differs({**same, "loss_error": 0.5}) == ["loss_error"]
    assert gpu_compare.differs({**same, "step_error": {"median": float("nan")}}) == ["step_error"]
    assert gpu_compare.differs({}) == ["slice_error", "step_error", "loss_error"]


def test_data_sheets_by_device() -> None:
    import card

    assert card.peak_tflops("NVIDIA H100 80GB HBM3, driver 580.1") == 989.4
    assert card.peak_tflops("NVIDIA H100 PCIe, driver 580.1") == 756.0
    assert card.peak_tflops("NVIDIA L40S") == 362.0
    assert card.peak_tflops("a card of another maker") is None


def test_first_come_the_sides_that_matter_most(tmp_path: Path) -> None:
    """A time limit leaves out the last sides of all cases, not the last cases."""
    import argparse

    import gpu_cases
    import gpu_training

    args = argparse.Namespace(sides=None, quick=False, steps=8, rounds=2)
    runs = gpu_training.planned(gpu_cases.CASES, args, "cuda", tmp_path)
    per_case = 1 + gpu_cases.FIRST_SIDES  # with the run in float32 that they are compared with
    first = [run["case"] for run in runs[1 : 1 + per_case * len(gpu_cases.CASES)]]
    assert first == [name for name in gpu_cases.CASES for _ in range(per_case)]
    assert [run["round"] for run in runs] == sorted(run["round"] for run in runs)
    assert len({(run["case"], run["side"], run["round"]) for run in runs}) == len(runs)


def test_without_any_tokenizer_tokens_are_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_cases

    def absent() -> None:
        raise OSError("no network")

    monkeypatch.setattr(gpu_cases, "load_tokenizer", absent)
    gpu_cases.any_tokenizer.cache_clear()
    tokenizer = gpu_cases.any_tokenizer()
    text = "naïve 模型"
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer) == 257
    assert len(tokenizer.encode(text)) == len(text.encode())
