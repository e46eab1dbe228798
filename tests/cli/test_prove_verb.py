"""`honed prove`, as its user sees it."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_a_tiny_model_holds(honed: Callable[..., Any], model_folder: Path, rows_file: Path, tmp_path: Path) -> None:
    """All statements, two processes included."""
    proof = tmp_path / "proof.json"
    shown = honed("prove", "--model", model_folder, "--data", rows_file, "--json", proof, "lora.r=4")
    assert shown.status == 0, shown.out + shown.err
    assert re.search(r"^  time   17 statements, about [\d.]+ s\n\nstatement ", shown.out, flags=re.MULTILINE), shown.out
    assert "17 pass, 0 FAIL, 0 not checked" in shown.out and "whole: 2 layers of 32" in shown.out
    known = json.loads(proof.read_text(encoding="utf-8"))
    assert known["command"].startswith("honed prove") and len(known["statements"]) == 17
    for statement in known["statements"]:
        assert statement["status"] == "pass" and statement["measured"] <= statement["bound"], statement
        assert statement["statement"] in shown.out and statement["detail"][:40] in shown.out


def test_what_fails_and_what_breaks_ends_with_status_1(
    honed: Callable[..., Any], model_folder: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from honed.prove import prove
    from honed.prove.statement import Measured

    def breaks(subject: Any) -> Measured:
        raise ValueError("inside a library")

    for check, words in (
        (lambda _: Measured(value=0.5, bound=1e-6, detail="half"), ("0.5", "1e-06", "FAIL", "half")),
        (lambda _: Measured(value=float("nan"), bound=1e-6, detail="nothing"), ("nan", "FAIL")),
        (breaks, ("FAIL", "the check itself broke: ValueError: inside a library")),
    ):
        monkeypatch.setattr(prove, "STATEMENTS", {"it is so": check})
        shown = honed("prove", "--model", model_folder, "--data", rows_file)
        assert shown.status == 1 and all(word in shown.out for word in words), shown.out


def test_bad_input_is_one_screen(honed: Callable[..., Any], model_folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n', encoding="utf-8")
    for arguments, words in (
        (("--model", tmp_path / "no", "--data", rows), "No such model folder"),
        (("--model", model_folder, "--data", tmp_path / "no.jsonl"), "no.jsonl"),
        (("--model", model_folder, "--data", rows), "Of 1 row looked at, none can be trained on"),
    ):
        shown = honed("prove", *arguments)
        assert shown.status == 2 and words in shown.err, shown.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_told_what_is_under_way_and_what_is_left(
    honed: Callable[..., Any], model_folder: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from honed.prove import prove
    from honed.prove.statement import Measured

    checks = {name: (lambda _: Measured(value=0.0, bound=0.0, detail="all")) for name in ("this", "that")}
    monkeypatch.setattr(prove, "STATEMENTS", checks)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert honed("prove", "--model", model_folder, "--data", rows_file).status == 0
    shown = terminal.getvalue()
    assert re.search(r"1/2, about 1\.0 s left: this\r\x1b\[2K\r.*2/2, about 1\.0 s left: that", shown), shown


def test_a_step_that_breaks_gives_no_time(
    honed: Callable[..., Any], model_folder: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from honed.prove import sums

    def breaks(*_: Any) -> None:
        raise ValueError("inside a library")

    monkeypatch.setattr(sums, "reference", breaks)
    monkeypatch.setattr("honed.prove.prove.STATEMENTS", dict(list(sums.STATEMENTS.items())[:1]))
    shown = honed("prove", "--model", model_folder, "--data", rows_file)
    assert shown.status == 1 and "  time   1 statement\n" in shown.out and "the check itself broke" in shown.out
