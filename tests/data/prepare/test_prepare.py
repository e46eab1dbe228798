"""Rows to packed rows: the ledger adds up, nothing is lost, and every error names its rows and the fix."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import Prepared, make_template, prepare, tokenizer_with_template
from honed.data.prepare.reader import RowReader
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.plain import PlainTemplate
from honed.errors import DataError, RecipeError
from honed.quantities import counted

USER, ANSWER = {"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}
CHAT = {"messages": [USER, ANSWER]}
PAIR = {"prompt": [USER], "completion": [ANSWER]}
ASKED = "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n"


def documents(prepared: Prepared) -> Counter[tuple[Any, ...]]:
    """Each document's ids and weights, taken out of the packed rows."""
    found: Counter[tuple[Any, ...]] = Counter()
    for row in map(prepared.rows.__getitem__, range(len(prepared.rows))):
        for start, end in itertools.pairwise([0, *itertools.accumulate(row.lengths)]):
            found[tuple(row.input_ids[start:end].tolist()), tuple(row.weights[start:end].tolist())] += 1
    return found


def trained_texts(prepared: Prepared, tokenizer: Any) -> list[str]:
    rows = map(prepared.rows.__getitem__, range(len(prepared.rows)))
    return [tokenizer.decode(row.input_ids[row.weights > 0]) for row in rows]


some_row = st.sampled_from([
    CHAT,
    {"messages": [USER, ANSWER, USER, {"role": "assistant", "content": "no " * 40}]},
    {"messages": [USER]},
    {"messages": [{"role": "wizard", "content": "a"}]},
    {"instruction": "why", "output": " yes "},
    {"instruction": "why " * 60, "output": "yes"},
    {"prompt": "why", "completion": " \ud83e"},
    {"text": "the fox " * 9},
    {"text": ""},
    {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]},
    {"input_ids": [5, 6], "completion_mask": [1, 0]},
    {"input_ids": []},
    {"what": 1},
    None,
])  # fmt: skip
# drops the answers of earlier turns: one view per answer
REWRITES = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'user' or loop.last %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    rows=st.lists(some_row, max_size=8),
    overlong=st.sampled_from(["drop", "truncate"]),
    packing=st.booleans(),
    max_length=st.sampled_from([2, 20, 40, 200]),
    template=st.sampled_from(["auto", "plain", "rewrites"]),
)
def test_every_row_is_accounted_for(
    tiny_tokenizer: Any,
    tokenizer_with: Any,
    *,
    rows: list[Any],
    overlong: str,
    packing: bool,
    max_length: int,
    template: str,
) -> None:
    tokenizer = tiny_tokenizer
    if template == "rewrites":
        tokenizer, template = tokenizer_with(REWRITES), "auto"
    options = PrepareOptions(
        overlong=overlong, packing=packing, max_length=max_length, template=template, bad_rows="drop"
    )
    before = copy.deepcopy(rows)
    try:
        prepared = prepare(rows, tokenizer, options)
    except DataError as error:
        assert str(error).startswith("No row is left to train on")
        assert f"{counted(len(rows), 'row')} in, 0 trained, {len(rows)} dropped" in str(error)
        return
    ledger, found = prepared.ledger, documents(prepared)
    assert rows == before
    assert ledger.rows_in == len(rows) == ledger.rows_trained + ledger.rows_dropped.total()
    assert ledger.documents == found.total() >= ledger.rows_trained
    assert ledger.tokens == sum(len(ids) * n for (ids, _), n in found.items())
    assert ledger.trained_tokens == sum(sum(w > 0 for w in weights) * n for (_, weights), n in found.items())
    assert all(any(weights) and weights[0] == 0 and len(weights) <= max_length for _, weights in found)
    assert ledger.packed_rows == len(prepared.rows)
    if packing:  # holds the very documents that there are without
        assert found == documents(prepare(rows, tokenizer, PrepareOptions(
            overlong=overlong, max_length=max_length, template=template, bad_rows="drop",
        )))  # fmt: skip
        lengths = [len(prepared.rows[n].input_ids) for n in range(len(prepared.rows))]
        assert max(lengths) <= max_length
        assert ledger.fill == sum(lengths) / (len(lengths) * max_length)


LONG = {"messages": [USER, {"role": "assistant", "content": "yes " * 50}]}


def test_overlong_rows(tiny_tokenizer: Any) -> None:
    size = len(tiny_tokenizer(ASKED)["input_ids"])

    def run(overlong: str, max_length: int) -> Prepared:
        return prepare([CHAT, LONG], tiny_tokenizer, PrepareOptions(overlong=overlong, max_length=max_length))

    dropped = run("drop", size + 10)
    assert (dropped.ledger.rows_dropped, dropped.ledger.rows_cut) == ({"overlong": 1}, {})
    cut = run("truncate", size + 10)
    assert (cut.ledger.rows_dropped, cut.ledger.rows_cut) == ({}, {"overlong: cut at the end": 1})
    whole = tiny_tokenizer(ASKED + "yes " * 50)["input_ids"]
    assert cut.rows[1].input_ids.tolist() == whole[: size + 10]
    assert cut.ledger.stop_tokens == {"<|im_end|>": 1}  # the cut turn has no end
    late = {"messages": [{"role": "user", "content": "why " * 50}, *LONG["messages"][1:]]}  # behind max_length
    options = PrepareOptions(overlong="truncate", max_length=size + 10)
    none_fits = prepare([CHAT, late], tiny_tokenizer, options)
    assert none_fits.ledger.rows_dropped == {"overlong: nothing to train within max_length": 1}
    with pytest.raises(DataError, match=rf"row:2: \d+ tokens, more than max_length {size + 10}"):
        run("error", size + 10)
    with pytest.raises(DataError, match="No row is left") as caught:  # the cut leaves nothing that is trained
        run("truncate", size)
    assert "dropped 2: overlong" in str(caught.value)
    assert prepare([CHAT, LONG], tiny_tokenizer, PrepareOptions(max_length=None)).ledger.rows_trained == 2


def test_bad_rows_are_listed_with_their_place_and_the_fix(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = ['{"messages": []}'] * 4 + ['{"text": ""}'] * 2 + ['{"what": 1}'] * 2
    path.write_text("\n".join(['{"text": "the fox"}', *bad]))
    with pytest.raises(DataError) as caught:
        prepare(path, tiny_tokenizer, PrepareOptions())
    lines = str(caught.value).split("\n")
    assert lines[0] == "8 of 9 rows cannot be trained on:"
    assert [line.split(": ")[0].strip() for line in lines[1:6]] == [f"{path}:{row}" for row in (2, 3, 4, 6, 7)]
    assert lines[6:] == [
        "  ... and 3 more",
        "  fix: fix these rows, or leave them out with data.bad_rows=drop (they stay in the ledger)",
    ]
    assert prepare(path, tiny_tokenizer, PrepareOptions(bad_rows="drop")).ledger.rows_dropped.total() == 8


def test_overlong_rows_are_no_bad_rows(tiny_tokenizer: Any) -> None:
    assert prepare([CHAT, LONG], tiny_tokenizer, PrepareOptions(max_length=60)).ledger.rows_dropped.total() == 1


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("the fox", "the fox<|im_end|>"),
        ([USER, ANSWER], f"{ASKED}yes<|im_end|>\n"),
        ({"prompt": "why", "completion": " yes"}, "why yes<|im_end|>"),
    ],
)
@pytest.mark.parametrize("text_field", ["text", "body"])
def test_formatting_func(tiny_tokenizer: Any, result: Any, text: str, text_field: str) -> None:
    row = {"a": 1}
    options = PrepareOptions(text_field=text_field)
    prepared = prepare([row], tiny_tokenizer, options, formatting_func=lambda given: result if given is row else None)
    assert tiny_tokenizer.decode(prepared.rows[0].input_ids) == text


def test_formatting_func_that_returns_something_else(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"row:1: formatting_func: it must return a text, .* a row; returned int: 5"):
        prepare([CHAT], tiny_tokenizer, PrepareOptions(), formatting_func=lambda row: 5)


@pytest.mark.parametrize(
    ("row", "train_on", "trained"),
    [
        (CHAT, "completion", f"{ASKED}yes<|im_end|>\n".removeprefix("<|im_start|>")),
        (PAIR, "completion", "yes<|im_end|>"),
        ({"instruction": "why", "output": "yes"}, "completion", "yes<|im_end|>"),
        ({"messages": [{**USER, "train": False}, ANSWER]}, "completion", "yes<|im_end|>"),
        ({"prompt": "why", "completion": " yes"}, "completion", " yes<|im_end|>"),
        ({"text": "\nwhy"}, "completion", "why<|im_end|>"),
        (PAIR, "all", f"{ASKED}yes<|im_end|>\n".removeprefix("<|im_start|>")),
        (CHAT, "assistant", "yes<|im_end|>"),
        ({"messages": [USER, ANSWER, USER, {**ANSWER, "content": "no"}]}, "last", "no<|im_end|>"),
    ],
)
def test_train_on(tiny_tokenizer: Any, row: Any, train_on: str, trained: str) -> None:
    prepared = prepare([row], tiny_tokenizer, PrepareOptions(train_on=train_on))
    assert trained_texts(prepared, tiny_tokenizer) == [trained]


def test_stop_ids_come_most_frequent_first(tiny_tokenizer: Any, tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with(tiny_tokenizer.chat_template, eos_token="<|endoftext|>")
    prepared = prepare([{"text": "the fox"}, CHAT, CHAT], tokenizer, PrepareOptions())
    assert [tokenizer.decode([i]) for i in prepared.stop_ids] == ["<|im_end|>", "<|endoftext|>"]
    assert prepared.ledger.stop_tokens == {"<|im_end|>": 2, "<|endoftext|>": 1}


def test_views_are_counted_by_conversation(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with(REWRITES)
    two = {"messages": [USER, ANSWER, USER, ANSWER]}
    ledger = prepare([CHAT, two, two], tokenizer, PrepareOptions()).ledger
    assert (ledger.rows_trained, ledger.documents, ledger.conversations_split_into_views) == (3, 5, 2)


LONG_TEXT, EMPTY_TEXT = {"text": "why " * 99}, {"text": ""}
UNTRAINED = {"input_ids": [5, 6, 7], "loss_mask": [0, 0, 0]}


@pytest.mark.parametrize(
    ("rows", "options", "told", "fix"),
    [
        ([], {}, "0 rows in", "fix: pass at least one row"),
        ([LONG_TEXT] * 2 + [EMPTY_TEXT], {}, "row:1: overlong: ", "which is 8, or set data.overlong=split"),
        ([LONG_TEXT] * 2 + [EMPTY_TEXT], {}, "row:3: empty text: `text` holds", "fix: raise max_length"),
        ([CHAT], {"overlong": "truncate"}, "row:1: overlong: ", "which is 8: nothing to be trained fits in"),
        ([LONG_TEXT] + [EMPTY_TEXT] * 2, {}, "dropped 2: empty text", "fix: fix these rows; `honed data check`"),
        ([UNTRAINED, UNTRAINED, LONG_TEXT], {}, "row:1: nothing to train: 3", "train_on and data.train_roles"),
    ],
)
def test_nothing_left(rows: list[Any], options: dict[str, Any], told: str, fix: str, tiny_tokenizer: Any) -> None:
    """The fix is that of the most frequent reason."""
    with pytest.raises(DataError, match="No row is left to train on") as caught:
        prepare(rows, tiny_tokenizer, PrepareOptions(max_length=8, bad_rows="drop", **options))
    assert told in str(caught.value) and fix in str(caught.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"format": "sharegtp"}, "choose one of: auto, tokens, prompt_completion, messages"),
        ({"train_on": "user"}, "train_on is 'user'"),
        ({"overlong": "cut"}, "choose one of: drop, truncate, split, error"),
        ({"bad_rows": "skip"}, "choose one of: error, drop"),
        ({"max_length": 1}, "at least 2 tokens"),
        ({"max_length": None, "packing": True}, "packing needs max_length"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        PrepareOptions(**options)


def test_templates_by_name(tiny_tokenizer: Any, tokenizer_with: Any, tmp_path: Path) -> None:
    assert isinstance(make_template(tiny_tokenizer, PrepareOptions()), JinjaTemplate)
    plain = PlainTemplate(system="It's me")
    assert make_template(tiny_tokenizer, PrepareOptions(template="plain", system="It's me")) == plain
    file = tmp_path / "plain.jinja"
    file.write_text(plain.jinja(), encoding="utf-8")
    # the plain template is known again, in a file and in the tokenizer that a run saved
    assert make_template(tiny_tokenizer, PrepareOptions(template=str(file))) == plain
    saved = tokenizer_with_template(tiny_tokenizer, str(file))
    assert make_template(saved, PrepareOptions()) == plain
    assert tiny_tokenizer.chat_template != saved.chat_template
    assert make_template(tokenizer_with(None), PrepareOptions()) is None
    with pytest.raises(RecipeError, match=r"no such file: missing\.jinja"):
        make_template(tiny_tokenizer, PrepareOptions(template="missing.jinja"))


def test_the_plain_template_needs_its_tokens() -> None:
    def no_special_tokens(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    with pytest.raises(RecipeError, match=r"needs <\|im_start\|> as one token"):
        make_template(no_special_tokens, PrepareOptions(template="plain"))


def test_progress_counts_rows_not_files(
    tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "the fox"}\n' * 3)
    prepare([str(path)], tiny_tokenizer, PrepareOptions(), desc="Reading")
    assert capsys.readouterr().err.startswith("Reading: 3 rows in ")
    prepare([CHAT], tiny_tokenizer, PrepareOptions(), desc="Reading")
    assert capsys.readouterr().err.startswith("Reading: 1/1 row in ")


def test_starter_set_in_the_plain_template(tiny_tokenizer: Any) -> None:
    ledger = prepare("starter", tiny_tokenizer, PrepareOptions(template="plain", max_length=None)).ledger
    assert ledger.rows_trained == ledger.rows_in > 0
    assert ledger.notes == [
        "the plain template is encoded message by message; serve it with honed, which does the same"
    ]


def test_split_keeps_every_token_and_counts_the_row(tiny_tokenizer: Any) -> None:
    row = {"text": "the quick brown fox asks why " * 10}
    whole = prepare([row], tiny_tokenizer, PrepareOptions(max_length=None)).rows.table
    parts = prepare([row], tiny_tokenizer, PrepareOptions(max_length=16, overlong="split"))
    table = parts.rows.table
    assert table.input_ids.tolist() == whole.input_ids.tolist() and table.lengths.max() == 16
    assert parts.ledger.rows_cut == {"overlong: split into parts": 1} and parts.ledger.rows_trained == 1
    untrained = np.flatnonzero(table.weights == 0).tolist()
    assert untrained == table.starts[:-1].tolist()  # only what stands first, which nothing predicts


def test_wrapped_packing_fills_rows_and_says_what_it_tore(tiny_tokenizer: Any) -> None:
    rows = [{"text": "fox " * n} for n in (3, 40, 7, 25)]
    bfd = prepare(rows, tiny_tokenizer, PrepareOptions(max_length=16, packing=True, overlong="split"))
    wrapped = prepare(rows, tiny_tokenizer, PrepareOptions(max_length=16, packing=True, packing_strategy="wrapped"))
    assert (
        wrapped.rows.table.input_ids.tolist()
        == prepare(rows, tiny_tokenizer, PrepareOptions()).rows.table.input_ids.tolist()
    )
    lengths = [sum(wrapped.rows[n].lengths) for n in range(len(wrapped.rows))]
    assert set(lengths[:-1]) == {16} and len(wrapped.rows) <= len(bfd.rows)
    assert wrapped.ledger.rows_dropped.total() == 0 and "tore" in wrapped.ledger.notes[0]
    whole = prepare(rows, tiny_tokenizer, PrepareOptions(max_length=256, packing=True, packing_strategy="wrapped"))
    assert not whole.ledger.notes  # nothing was torn
    assert wrapped.ledger.trained_tokens == int((wrapped.rows.table.weights > 0).sum())


@pytest.mark.parametrize(("rows", "much"), [(3, False), (60, True)])
def test_much_text_is_encoded_the_fast_way_from_the_first_row(
    rows: int, much: bool, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("honed.data.prepare.prepare.MUCH_TEXT", 5_000)
    ready: list[RowReader] = []
    monkeypatch.setattr(RowReader, "get_ready", lambda reader: ready.append(reader))  # noqa: PLW0108 - a method gets self
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "What is it?", "completion": " It is a row, and nothing else. And so it goes on for a while."}
    file.write_text(f"{json.dumps(row)}\n" * rows)
    prepare(str(file), tiny_tokenizer, PrepareOptions())
    prepare([row] * rows, tiny_tokenizer, PrepareOptions())
    assert len(ready) == 2 * much
