"""Texts that end with EOS and white space, as a chat template writes them, get no second one, whichever way they go."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from honed.data.encode.render import Renderer
from honed.data.example import Document, PromptCompletion, Source
from honed.data.lint.lint import check
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import Prepared, prepare
from honed.data.prepare.stream import RowStream

SOURCE = Source(file="f", row=1)
TALK = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]


def plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("behind", ["\n", " ", "\n\n  ", "\t\r\n"])
@pytest.mark.parametrize("kind", ["text", "pair"])
def test_white_space_behind_eos_is_not_closed_again(behind: str, kind: str, tiny_tokenizer: Any) -> None:
    text = f"so<|im_end|>{behind}"
    pair = PromptCompletion(prompt="why<|im_end|>", completion=text, source=SOURCE)
    example = Document(text=text, source=SOURCE) if kind == "text" else pair
    [[view]] = Renderer(tiny_tokenizer, None).render([example])
    before = [] if kind == "text" else plain(tiny_tokenizer, "why<|im_end|>")
    own = plain(tiny_tokenizer, text)
    assert view.input_ids.tolist() == [*before, *own]
    trained = [1.0] * len(own)
    assert view.weights.tolist() == ([0.0] * len(before) + trained if before else [0.0, *trained[1:]])
    [turn] = view.turns
    assert turn.stop == tiny_tokenizer.eos_token_id == view.input_ids[turn.end - 1]
    assert view.brings_closing


@pytest.mark.parametrize(
    "text", ["so", "so\n", "a<|im_end|>\nso", "a<|im_end|>\nso\n", "<|im_start|>\n", "< |im_end|>\n"]
)
def test_others_are_closed(text: str, tiny_tokenizer: Any) -> None:
    [[view]] = Renderer(tiny_tokenizer, None).render([Document(text=text, source=SOURCE)])
    eos = tiny_tokenizer.eos_token_id
    assert view.input_ids.tolist() == [*plain(tiny_tokenizer, text), eos]
    assert view.turns[0].stop == eos and view.turns[0].end == len(view)
    assert not view.brings_closing


def test_an_eos_that_is_only_spelled_closes_nothing(tiny_tokenizer: Any) -> None:
    """As where special tokens are split: the text holds none, and the one inside it is another's end."""
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.split_special_tokens = True
    [[view]] = Renderer(tokenizer, None).render([Document(text="so<|im_end|>\n", source=SOURCE)])
    assert view.input_ids.tolist() == [*plain(tokenizer, "so<|im_end|>\n"), tokenizer.eos_token_id]


def documents(made: Prepared) -> list[tuple[list[int], list[float]]]:
    return [(made.rows[n].input_ids.tolist(), made.rows[n].weights.tolist()) for n in range(len(made.rows))]


def test_all_ways_make_the_same_and_count_the_same(tiny_tokenizer: Any, tmp_path: Path) -> None:
    text = tiny_tokenizer.apply_chat_template(TALK, tokenize=False)
    assert text.endswith("<|im_end|>\n")
    rows = [
        row
        for n in range(8)
        for row in ({"text": text}, {"text": f"{n} so"}, {"prompt": "why", "completion": f"{n}<|im_end|>\n"})
    ]
    options, file = PrepareOptions(max_length=64), tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    straight = prepare(rows, tiny_tokenizer, options)
    expected = documents(straight)
    assert expected[0][0] == plain(tiny_tokenizer, text)
    usual = prepare(rows, tiny_tokenizer, options, formatting_func=lambda row: row)
    stream = RowStream(str(file), tiny_tokenizer, options, shuffle_buffer=0)
    assert documents(usual) == documents(prepare(rows, tiny_tokenizer, options, workers=2)) == expected
    assert [(row.input_ids.tolist(), row.weights.tolist()) for _, row in islice(stream.rows(), 24)] == expected
    assert straight.stop_ids == usual.stop_ids == stream.stop_ids() == (tiny_tokenizer.eos_token_id,)
    checked = check(str(file), options, tokenizer=tiny_tokenizer)
    assert not any(finding.kind.name == "untrained_stop" for finding in checked.findings)
    for ledger in (straight.ledger, usual.ledger, stream.ledger, checked.ledger):
        assert ledger.rows_with_own_eos == 16
        assert any("texts of 16 rows end with EOS and white space" in note for note in ledger.notes)
