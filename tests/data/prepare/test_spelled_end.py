"""A template whose end of a turn is no token here: told wherever rows are prepared or checked, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from honed.data.lint.lint import check
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.prepare.spelled_end import spelled_ends
from honed.data.prepare.stream import RowStream
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.plain import PlainTemplate

FOREIGN = (
    "{%- for m in messages %}{{- '<|turn|>' + m['role'] + '\\n' + m['content'] + '<|over|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n' }}{%- endif %}"
)
TALKS = [
    {"messages": [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": f"For {n} reasons."}]}
    for n in range(4)
]
TEXTS = [{"text": f"{n} words about <|over|> and more"} for n in range(4)]


def notes_of(tokenizer: Any, rows: Any) -> list[str]:
    return [note for note in prepare(rows, tokenizer, PrepareOptions()).ledger.notes if "<|over|>" in note]


def test_it_is_told_once_with_the_fix(tokenizer_with: Callable[..., Any]) -> None:
    foreign = tokenizer_with(FOREIGN)
    [note] = notes_of(foreign, TALKS)
    assert "ends answers with '<|over|>'" in note and "add_tokens=['<|over|>'] and eos_token='<|over|>'" in note
    stream = RowStream(TALKS, foreign, PrepareOptions(), shuffle_buffer=0)
    next(stream.rows())
    assert note in stream.ledger.notes
    [finding] = check(TALKS, PrepareOptions(), tokenizer=foreign).findings
    assert (finding.kind.name, finding.count, finding.spots[0].detail) == ("spelled_end", 4, "ends with '<|over|>'")


def test_the_fix_mends_it(tokenizer_with: Callable[..., Any]) -> None:
    mended = tokenizer_with(FOREIGN, special=("<|over|>",), eos_token="<|over|>")
    assert not notes_of(mended, TALKS) and not check(TALKS, PrepareOptions(), tokenizer=mended).findings
    assert prepare(TALKS, mended, PrepareOptions()).ledger.stop_tokens == {"<|over|>": 4}


def test_rows_without_conversations_are_let_alone(tokenizer_with: Callable[..., Any]) -> None:
    foreign = tokenizer_with(FOREIGN)
    assert not notes_of(foreign, [{"text": "no word of it"}] * 3)
    assert not check([{"text": f"no word {n} of it"} for n in range(3)], PrepareOptions(), tokenizer=foreign).findings


@pytest.mark.parametrize("end", ["<|eot_id|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "<|return|>"])
def test_ends_that_models_have(tokenizer_with: Callable[..., Any], end: str) -> None:
    lacking = tokenizer_with(FOREIGN.replace("<|over|>", end))
    assert spelled_ends(JinjaTemplate(lacking), lacking) == [end]
    having = tokenizer_with(FOREIGN.replace("<|over|>", end), special=(end,))
    assert spelled_ends(JinjaTemplate(having), having) == []


def test_templates_that_are_none(tokenizer_with: Callable[..., Any]) -> None:
    own = tokenizer_with("{{ raise_exception('no') }}")
    assert spelled_ends(None, own) == spelled_ends(PlainTemplate(), own) == spelled_ends(JinjaTemplate(own), own) == []
