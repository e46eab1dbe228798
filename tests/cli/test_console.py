"""Text in columns: Chinese characters take two, and nothing is lost or wider than its column."""

from __future__ import annotations

from typing import Any

import pytest

from honed.cli.console import columns, counts_table, pad, show_result, side_by_side, wrap

TEXTS = [
    "plain words that go on for a while, longer than one line",
    "为什么天空是蓝色的？因为空气分子散射蓝光比红光多得多。",
    "mixed 中文 and English，with a long_word_that_does_not_break_anywhere_at_all 好",
    "first line\nsecond 行\n\nlast\tone",
    "",
    "x" * 61,
    "宽" * 31,
]


def gbk_width(text: str) -> int:
    """GBK spends two bytes on what terminals show two columns wide, and one on ASCII."""
    return len(text.encode("gbk"))


@pytest.mark.parametrize("text", TEXTS)
def test_columns_are_what_gbk_spends(text: str) -> None:
    assert columns(text) == gbk_width(text)


@pytest.mark.parametrize("width", [2, 7, 20, 61])
@pytest.mark.parametrize("text", TEXTS)
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert max(map(gbk_width, lines)) <= width
    assert "".join("".join(lines).split()) == "".join(text.split())


@pytest.mark.parametrize("text", [*TEXTS[1:3], ""])
def test_pad(text: str) -> None:
    assert gbk_width(pad(text, 90)) == 90
    assert pad(text, 3).startswith(text)


def samples(n: int = 1, **answer: Any) -> dict[str, Any]:
    row = {"prompt": TEXTS[2], "before": TEXTS[1], "after": TEXTS[3], "before_stopped": False, "after_stopped": True}
    return {
        "before": {"of": n, "stopped": 0, "followed_form": 1},
        "after": {"of": n, "stopped": n, "followed_form": n},
        "rule": "三行",
        "answers": [{**row, **answer}] * n,
    }


@pytest.mark.parametrize("width", [1, 20, 41, 80, 140])
def test_side_by_side_fits_and_loses_nothing(width: int) -> None:
    lines = side_by_side(samples(), width=width).splitlines()
    assert max(map(gbk_width, lines)) <= max(width, 20)
    body = [line.partition(" |") for line in lines if " |" in line]
    left = "".join(before for before, _, _ in body)
    right = "".join(after for _, _, after in body)
    assert "".join(left.split()) == "before" + "".join(TEXTS[1].split()) + "[cut]"
    assert "".join(right.split()) == "after" + "".join(TEXTS[3].split())
    assert len({gbk_width(before) for before, _, _ in body}) == 1


def test_side_by_side_counts_what_it_leaves_out() -> None:
    text = side_by_side(samples(7), width=80, shown=5)
    assert text.count("Q: ") == 5
    assert text.endswith("(2 more in the report)")


def test_counts_table() -> None:
    lines = [line.split() for line in counts_table(samples(16)).splitlines()]
    assert lines[0] == ["before", "after"]
    assert lines[1] == ["ended", "their", "turn", "0/16", "16/16"]
    assert lines[2] == ["followed", "the", "form", "1/16", "16/16", "(form:", "三行)"]


def test_no_form_no_row() -> None:
    counts = samples()
    del counts["before"]["followed_form"], counts["after"]["followed_form"]
    assert "form" not in counts_table(counts)


def test_a_terminal_of_no_width_is_survived(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    show_result(tmp_path, samples())
    assert f"honed chat {tmp_path}" in capsys.readouterr().out
