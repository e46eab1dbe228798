"""Invisible characters: found where nothing needs them, and left alone where a script or an emoji does."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from honed.data.lint.invisible import invisible
from honed.data.lint.lint import check
from honed.data.prepare.options import PrepareOptions


@pytest.mark.parametrize(
    ("text", "name", "place"),
    [
        ("how much less \u200bis it", "zero-width space (U+200B)", "w much less \\u200bis it"),
        ("pro-\u00adgovernment", "soft hyphen (U+00AD)", "pro-\\xadgovernment"),
        ("a\ufeffb", "byte order mark (U+FEFF)", "a\\ufeffb"),
        ("\ufeff中文", "byte order mark (U+FEFF)", "\\ufeff中文"),
        ("中\u200b文", "zero-width space (U+200B)", "中\\u200b文"),
        ("pass\u200cword", "zero-width non-joiner (U+200C)", "pass\\u200cword"),
        ("a\u200db", "zero-width joiner (U+200D)", "a\\u200db"),
        ("if admin \u202e{}", "direction control (U+202E)", "if admin \\u202e{}"),
        ("one\u2028two", "line separator (U+2028)", "one\\u2028two"),
        ("10\u2060%", "word joiner (U+2060)", "10\\u2060%"),
        ("hi\U000e0041\U000e0042", "tag character (U+E0041)", "hi\\U000e0041\\U000e0042"),
    ],
)
def test_found_and_shown(text: str, name: str, place: str) -> None:
    assert list(invisible(text)) == [(name, place)]


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم", "ق\u200dم", "क्\u200dष क्\u200cष", "ක්\u200dර", "שלום \u200fABC\u200f!", "قال \u202bنعم\u202c",
        "ภาษา\u200bไทย", "ភាសា\u200bខ្មែរ", "👨\u200d👩\u200d👧", "❤️\u200d🔥",
        "🏴\U000e0067\U000e0062\U000e0073\U000e007f",
        "👩🏽\u200d🚀", "🏳️\u200d🌈", "⛹️\u200d♀️", "中文，没有问题。", "日本語です", "한국어",
        "naïve, Größe — “quotes”…", "a\u00a0b",
    ],
)  # fmt: skip
def test_what_a_script_or_an_emoji_needs(text: str) -> None:
    assert list(invisible(text)) == []


def test_only_what_cannot_be_seen_is_named() -> None:
    """Of all characters, alone in Latin text, those that Unicode says format, separate lines, or are ignored."""
    found = {chr(code) for code in range(0x80, 0x110000) if list(invisible(f"a{chr(code)}b"))}
    assert all(unicodedata.category(one) in ("Cf", "Zl", "Zp", "Cn") for one in found)
    spoken = {"\u0600", "\u06dd", "\u070f", "\u08e2", "\U000110bd"}  # signs around numbers, which are seen
    assert {"\u200b", "\u00ad", "\u2028"} <= found and not found & spoken


def test_shared_data_have_no_false_ones(shared_data: Path) -> None:
    """What is found in the real files was looked at: soft hyphens, spaces and separators that came with copied text."""
    expected = {"gsm8k_train.jsonl": [2382, 7389], "lf_c4_demo.jsonl": [146, 148, 193, 210]}
    for path in sorted(shared_data.glob("*.jsonl")):
        lines = path.read_text("utf-8").split("\n")
        texts = [json.dumps(json.loads(line), ensure_ascii=False) if line else "" for line in lines]
        found = [number for number, text in enumerate(texts, start=1) if list(invisible(text))]
        assert found == expected.get(path.name, []), path.name


def test_keys_that_stand_twice(tmp_path: Path) -> None:
    """In lines, in a list, and deep inside; the reader itself keeps the last value, as before."""
    twice = '{"prompt": "a", "prompt": "b", "completion": "c"}'
    deep = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x", "content": "y"}]}'
    fine = '{"prompt": "say {\\"a\\": 1, \\"a\\": 2}", "completion": "c"}'
    lines, whole = tmp_path / "lines.jsonl", tmp_path / "list.json"
    lines.write_text("\n".join([fine, "", twice, "no json", deep]), "utf-8")
    whole.write_text(f"[{fine},\n{deep}]", "utf-8")
    checked = check([str(lines), str(whole)], PrepareOptions(bad_rows="drop"))
    found: Any = next(finding for finding in checked.findings if finding.kind.name == "repeated_key")
    assert found.count == 3
    assert [(Path(spot.source).name, spot.detail.split("`")[1]) for spot in found.spots] == [
        ("lines.jsonl:3", "prompt"),
        ("lines.jsonl:5", "messages[1].content"),
        ("list.json:2", "messages[1].content"),
    ]
