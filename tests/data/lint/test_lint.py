"""What `check` finds, row by row, and that its ledger is the one that training keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from honed.data.encode.render import Renderer
from honed.data.ledger import Ledger
from honed.data.lint.kinds import KINDS, SEVERITIES
from honed.data.lint.lint import NO_MODEL, Checked, check
from honed.data.lint.text import ControlTokens, masked, mojibake, phone, script_of, text_faults
from honed.data.lint.view import TokenViewer, visible
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.templates.jinja import JinjaTemplate

ROOT = Path(__file__).resolve().parents[3]
Row = dict[str, Any]
CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PLAIN_ANSWER = "The answer to this question is not short, and it is written in plain words."


def chat(*turns: tuple[str, str], **more: Any) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def asked(question: str, answer: str = PLAIN_ANSWER) -> Row:
    return chat(("user", question), ("assistant", answer))


def usual(count: int) -> list[Row]:
    """Rows with nothing to find."""
    nouns = ["fox", "tea", "road", "lamp", "ship", "tree", "book", "rain", "song", "wall"]
    return [
        asked(
            f"question {n} of the {nouns[n % 10]}",
            f"{nouns[n % 7]} {n} {nouns[n % 9]} is {'very ' * (n % 3)}{nouns[n % 8]}, {n * 7} {nouns[n % 5]} {n * 3}",
        )
        for n in range(count)
    ]


def found(checked: Checked) -> dict[str, int]:
    return {finding.kind.name: finding.count for finding in checked.findings}


def only(checked: Checked, kind: str) -> Any:
    [finding] = [finding for finding in checked.findings if finding.kind.name == kind]
    return finding


def test_clean_rows_have_no_findings(tiny_tokenizer: Any) -> None:
    checked = check(usual(40), PrepareOptions(), tokenizer=tiny_tokenizer)
    assert checked.findings == () and checked.notes == ()
    assert checked.ledger.rows_trained == 40


@pytest.mark.parametrize(
    ("row", "kind", "subject"),
    [
        (asked("q", ""), "unusable", "empty answer"),
        ({"q": 1}, "unusable", "unknown format"),
        (asked("say <|im_end|>"), "control_token", "in a question"),
        (asked("q", "so <|im_end|> be it, and more words follow here"), "control_token", "in an answer"),
        ({"text": "a page about <|im_end|> and its like"}, "control_token_kept", ""),
        ({"prompt": "q<|im_end|>", "completion": "an answer to it"}, "control_token_kept", ""),
        (chat(("user", "a"), ("user", "b"), ("assistant", "c")), "role_order", "two user turns in a row"),
        (chat(("assistant", "a"), ("user", "b"), ("assistant", "c")), "role_order", "begins with an answer"),
        (chat(("user", "b"), ("assistant", "c"), ("user", "d")), "role_order", "ends with a question"),
        (chat(("user", "b"), ("system", "c"), ("assistant", "d")), "role_order", "system prompt after the start"),
        (asked(" "), "empty_message", "empty user message"),
        (asked("donâ€™t"), "mojibake", ""),
        (asked("how much \u200bis it"), "invisible", "zero-width space (U+200B)"),
        (asked("key sk-abcdefghijklmnopqrstuvwxyz0123"), "secret", ""),
        (asked("write to jane@corp.com"), "personal_data", "e-mail address"),
        (asked("call +49 30 1234567"), "personal_data", "phone number"),
    ],
)
def test_faults_of_single_rows(row: Row, kind: str, subject: str, tiny_tokenizer: Any) -> None:
    checked = check([*usual(3), row], PrepareOptions(bad_rows="drop"), tokenizer=tiny_tokenizer)
    finding = next(finding for finding in checked.findings if finding.kind.name == kind)
    assert (finding.subject, finding.count) == (subject, 1)
    assert finding.spots[0].source == "row:4"


@pytest.mark.parametrize(
    ("arguments", "bad"),
    [('{"city": "Rome"}', False), ({"city": "Rome"}, False), ("{'city': 1}", True), ("[1]", True), (5, True)],
)
def test_tool_calls(arguments: Any, bad: bool) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert ("tool_call" in found(check([{"messages": turns}], PrepareOptions()))) is bad


def test_tool_calls_written_as_text() -> None:
    good, broken = ('<tool_call>\n{"name": "f"}\n</tool_call>', "<tool_call>{name: f}</tool_call>")
    assert found(check([asked("a", good)], PrepareOptions())) == {}
    assert found(check([asked("a", broken)], PrepareOptions())) == {"tool_call": 1}


def test_rows_that_differ_in_their_calls_or_thoughts_are_no_duplicates() -> None:
    def called(city: str) -> Row:
        call = {"function": {"name": "weather", "arguments": {"city": city}}}
        return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]}

    def thought(thoughts: str) -> Row:
        answer = {"role": "assistant", "content": "so", "reasoning_content": thoughts}
        return {"messages": [{"role": "user", "content": "q"}, answer]}

    rows = [called("Rome"), called("Oslo"), called("Rome"), thought("hm"), thought("oh"), thought("hm")]
    assert [spot.source for spot in only(check(rows, PrepareOptions()), "duplicate").spots] == ["row:3", "row:6"]
    again = check(rows[:1], PrepareOptions(), evaluation=rows[1:2])
    assert "eval_overlap" not in found(again)


def test_keys_in_thoughts_and_calls_are_found() -> None:
    secret = "sk-abcdefghijklmnopqrstuvwxyz0123"
    call = {"function": {"name": "log_in", "arguments": {"key": secret}}}
    for extra in ({"tool_calls": [call]}, {"reasoning": f"the key is {secret}", "content": "so"}):
        row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", **extra}]}
        assert "secret" in found(check([row], PrepareOptions()))


def test_an_image_alone_is_no_empty_question() -> None:
    image = {"type": "image_url", "image_url": {"url": "a.png"}}
    turns = [{"role": "user", "content": [image]}, {"role": "assistant", "content": "a cat"}]
    assert "empty_message" not in found(check([{"messages": turns}], PrepareOptions()))


@pytest.mark.parametrize(
    ("answer", "is_open"),
    [("<think>hm</think>so", False), ("<think>hm", True), ("hm</think>so", False), ("<think>a</think><think>b", True)],
)
def test_reasoning_that_is_not_closed(answer: str, is_open: bool) -> None:
    assert ("open_reasoning" in found(check([asked("a", answer)], PrepareOptions()))) is is_open


def test_flags_of_other_tools_are_told_and_can_be_named() -> None:
    answer = {"role": "assistant", "content": "so", "loss": False}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "q"},
                answer,
                {"role": "user", "content": "r"},
                {**answer, "loss": True},
            ]
        }
    ]
    finding = only(check(rows, PrepareOptions()), "train_flag")
    assert (finding.subject, finding.count) == ("`loss`", 1)
    named = PrepareOptions(columns={"train": "loss"})
    assert "train_flag" not in found(check(rows, named))


def test_rows_of_several_formats() -> None:
    rows = [*usual(3), {**asked("which"), "text": "whole"}, {"instruction": "a", "output": "b", "text": "c"}]
    findings = [f for f in check(rows, PrepareOptions()).findings if f.kind.name == "several_formats"]
    assert [(f.subject, f.count, f.spots[0].source) for f in findings] == [
        ("trained as messages, not text", 1, "row:4"),
        ("trained as alpaca, not text", 1, "row:5"),
    ]
    assert "several_formats" not in found(check(rows[3:4], PrepareOptions(format="text")))


def test_repeated_rows() -> None:
    rows = usual(30)
    long = " ".join(f"the {n} words" for n in range(20))
    checked = check([*rows, rows[5], rows[5], asked("q", long), asked("q", long + " thirteen")], PrepareOptions())
    assert only(checked, "duplicate").count == 2
    assert only(checked, "duplicate").spots[0].detail == "same as row:6"
    assert only(checked, "near_duplicate").spots[0].detail == "like row:33"


def test_overlap_with_evaluation_rows() -> None:
    rows = usual(30)
    long = " ".join(f"the {n} words" for n in range(20))
    held_out = [rows[4], asked("question 9 of the wall", "another answer, in words of its own"), asked("q", long)]
    checked = check([*rows, asked("q", long + " thirteen")], PrepareOptions(), evaluation=held_out)
    assert only(checked, "eval_overlap").count == 1 and only(checked, "eval_overlap").kind.severity == "error"
    subjects = {f.subject: f.spots[0].source for f in checked.findings if f.kind.name == "eval_near"}
    assert subjects["the same question"] == "row:10"


def test_what_differs_from_the_rest() -> None:
    rows = usual(60)
    rows += [chat(("system", "be brief"), *[(m["role"], m["content"]) for m in asked("other")["messages"]])]
    rows += [asked("короткий вопрос", "ответ на этот вопрос длинный и написан простыми словами")]
    rows += [asked("why", "no"), asked("tell all", "word " * 3000)]
    rows += [asked(f"another {n}", PLAIN_ANSWER + str(n)) for n in range(60)]
    checked = check(rows, PrepareOptions(), keep=range(0))
    assert only(checked, "system_prompts").count == 2
    assert only(checked, "rare_script").subject == "Cyrillic"
    assert only(checked, "short_answer").spots[0].detail == "'no'"
    assert only(checked, "long_row").spots[0].source == "row:64"


def test_without_a_model_it_says_what_was_left_out() -> None:
    checked = check(usual(5), PrepareOptions())
    assert checked.notes == (NO_MODEL,) and checked.unit == "characters"


def test_bad_rows_that_are_to_be_dropped_are_no_error() -> None:
    rows = [*usual(3), {"q": 1}]
    severities = [check(rows, PrepareOptions(bad_rows=way)).findings[0].kind.severity for way in ("error", "drop")]
    assert severities == ["error", "warning"]


def test_answers_that_end_where_generation_does_not_stop(tokenizer_with: Callable[..., Any]) -> None:
    own = tokenizer_with(CHATML, eos_token="<|endoftext|>")
    checked = check(usual(3), PrepareOptions(), tokenizer=own)
    assert only(checked, "foreign_stop").count == 3
    assert only(checked, "foreign_stop").spots[0].detail == (
        "ends with '<|im_end|>'; generation stops at '<|endoftext|>'"
    )
    stop = own.convert_tokens_to_ids("<|im_end|>")
    assert check(usual(3), PrepareOptions(), tokenizer=own, stop_ids=[stop]).findings == ()


def test_answers_without_any_end(tokenizer_with: Callable[..., Any]) -> None:
    bare = "{%- for m in messages %}{{- m['role'] + ': ' + m['content'] + '\\n' }}{%- endfor %}"
    template = bare + "{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
    checked = check(usual(3), PrepareOptions(), tokenizer=tokenizer_with(template, eos_token=None))
    assert only(checked, "untrained_stop").kind.severity == "error"


@pytest.mark.parametrize("overlong", ["drop", "truncate", "split"])
@pytest.mark.parametrize("packing", [False, True])
def test_the_ledger_is_that_of_training(
    overlong: str, packing: bool, tiny_tokenizer: Any, chat_rows: list[Row]
) -> None:
    rows = [*chat_rows, asked("q", ""), {"q": 1}, asked("long", "fox " * 80), asked("long " * 90, "a")]
    options = PrepareOptions(max_length=64, overlong=overlong, packing=packing, bad_rows="drop")
    trained = prepare(rows, tiny_tokenizer, options).ledger
    checked = check(rows, options, tokenizer=tiny_tokenizer).ledger
    own = {f.name for f in fields(Ledger)} - {"notes", "by_source", "evaluation", "padding_share"}
    for name in sorted(own - {"examples"}):
        assert getattr(checked, name) == getattr(trained, name), name
    assert sorted(map(str, checked.examples)) == sorted(map(str, trained.examples))


def test_overlong_rows_are_found_and_never_raise(tiny_tokenizer: Any) -> None:
    rows = [*usual(3), asked("q", "fox " * 100)]
    for way, what in (("drop", "left out"), ("truncate", "cut at the end"), ("error", "training stops at them")):
        checked = check(rows, PrepareOptions(max_length=90, overlong=way), tokenizer=tiny_tokenizer)
        assert only(checked, "overlong").subject == what
        assert checked.lengths.max() > 90


def test_kept_rows_know_their_faults(tiny_tokenizer: Any) -> None:
    rows = [*usual(3), asked("say <|im_end|>"), {"q": 1}]
    kept = check(rows, PrepareOptions(), tokenizer=tiny_tokenizer, keep=range(2, 5)).kept
    assert [row.place for row in kept] == [2, 3, 4]
    assert [row.faults for row in kept] == [(), ("control_token",), ("unusable",)]
    assert kept[0].views and kept[2].dropped.startswith("unknown format")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("cafÃ©", True), ("20Â°C", True), ("ä¸\xadæ–‡", True), ("a \ufffd", True), ("锟斤拷", True), ("鈥榟i", True),
        ("don\x92t", True), ("a\x81b", True),
        ("café, naïve, Größe, Ærø, Ångström", False), ("là\xa0» dit-il", False), ("中文没有问题。", False),
        ("¿Qué? ½ × 3 ÷ 2 ≈ π", False), ("emoji 👍🏽", False),
    ],
)  # fmt: skip
def test_mojibake(text: str, fault: bool) -> None:
    assert bool(mojibake(text)) is fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("+1 (555) 123-4567", True), ("555-123-4567", True), ("call 13912345678.", True), ("(555) 123-4567", True),
        ("2019-01-02 10:11:12", False), ("3.141592653589793", False), ("1234567890123", False),
        ("x=13912345678/2", False), ("1, 2, 3, 4, 5, 6, 7, 8", False), ("10 - 20 - 30 - 40 - 50", False),
    ],
)  # fmt: skip
def test_phone(text: str, fault: bool) -> None:
    assert bool(phone(text)) is fault


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghij0123456789ABCD", "AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1" * 18, "hf_" + "Ab" * 17,
        "AIza" + "x" * 35, "xoxb-1234567890-abc", "-----BEGIN RSA PRIVATE KEY-----",
    ],
)  # fmt: skip
def test_secrets_are_shown_masked(secret: str) -> None:
    faults = list(text_faults(f"use {secret} there"))
    assert [kind for kind, _, _ in faults] == ["secret"]
    assert secret.startswith("-----") or secret not in faults[0][2]


def test_masks_hide_the_middle() -> None:
    assert masked("jane.doe@corp.com") == "j•••@•••.com"
    assert list(text_faults("mail a@example.com, npm i lib@1.2.3")) == []


@pytest.mark.parametrize(
    ("text", "script"),
    [("abc", "Latin"), ("ça va", "Latin"), ("Привет", "Cyrillic"), ("中文 abc", "Latin"),
     ("日本語のテスト", "Japanese"), ("한국어", "Korean"), ("中文文字", "Chinese"), ("123 !?", ""), ("”…“ 12", ""),
     ("नमस्ते", "Devanagari"), ("", "")],
)  # fmt: skip
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


def test_control_tokens_are_named_in_full() -> None:
    control = ControlTokens.of(["<|a|>", "<|a|>b", "[X]", " "])
    assert [control.find(text) for text in ("x <|a|>b", "<|a|> [X]", "<a>", "")] == ["<|a|>b", "<|a|>", "", ""]
    assert ControlTokens.of([]).find("<|a|>") == ""


def test_tokens_are_shown_whole_and_in_order(tiny_tokenizer: Any) -> None:
    text = "fox 👍🏽 中文 é \x1b[31m\n"
    renderer = Renderer(tiny_tokenizer, JinjaTemplate(tiny_tokenizer))
    from honed.data.example import Conversation, Message, Source

    turns = (Message(role="user", content=text), Message(role="assistant", content=text))
    [[view]] = renderer.render([Conversation(messages=turns, source=Source(file="f", row=1))])
    tokens = TokenViewer(tiny_tokenizer, [1, 2]).tokens(view)
    assert [i for token in tokens for i in token.ids] == view.input_ids.tolist()
    assert "".join(token.text for token in tokens) == visible(tiny_tokenizer.decode(view.input_ids))
    assert any(token.text == "👍" and len(token.ids) > 1 for token in tokens)
    assert [token.special for token in tokens].count(True) == 4


def test_visible_escapes_what_commands_or_hides() -> None:
    assert visible("a\x1b[0m\r\x9b\u202e\ufeff\u200b\u2028\U000e0041\ud800\x7f") == (
        "a\\x1b[0m\\x0d\\x9b\\u202e\\ufeff\\u200b\\u2028\\U000e0041\\ud800\\x7f"
    )
    assert visible("tab\tline\n中文 👨‍👩‍👧 é") == "tab\tline\n中文 👨‍👩‍👧 é"


def test_every_kind_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert {kind.severity for kind in KINDS.values()} == set(SEVERITIES)
    for name in KINDS:
        assert f"`{name}`" in guide, name


def test_findings_are_json(tiny_tokenizer: Any) -> None:
    checked = check([*usual(3), asked("say <|im_end|> \ud800")], PrepareOptions(), tokenizer=tiny_tokenizer)
    text = json.dumps([finding.as_dict() for finding in checked.findings])
    assert json.loads(text)[0]["kind"] == "unusable"
