"""The plain template: roles in plain words, message by message, in training and when served."""

from __future__ import annotations

from typing import Any

import pytest
from conversations import FAMILIES, answers, contents, conversation, dicts, quick, texts_of_turns
from hypothesis import example, given
from hypothesis import strategies as st

from honed.data.encode.render import Renderer
from honed.data.example import RowError
from honed.data.templates.compiled import ChatJinja
from honed.data.templates.plain import PLAIN_SYSTEM_PROMPT, PlainTemplate


@quick
@given(turns=st.tuples(contents, answers, contents, answers), apart=st.booleans())
def test_plain_template_is_served_as_it_is_trained(tiny_tokenizer: Any, turns: tuple[str, ...], apart: bool) -> None:
    talk, template = conversation(*turns), PlainTemplate()
    renderer = Renderer(tiny_tokenizer, template)
    planned = template.views(talk, train_on="assistant", apart=apart)
    [views] = renderer.encode([(talk, planned)])
    found = [(view, turn) for view in views for turn in view.turns]
    for (view, turn), number in zip(found, (1, 3), strict=True):
        prompt = renderer.prompt_ids(template.prompt(talk.messages[:number]))
        assert view.input_ids[: turn.start].tolist() == prompt
    assert texts_of_turns(tiny_tokenizer, views) == [f"{turns[1]}<|im_end|>", f"{turns[3]}<|im_end|>"]


def test_plain_template_shows_no_tools() -> None:
    with pytest.raises(RowError, match="can show neither tools nor tool calls"):
        PlainTemplate().views(conversation("why", "yes", tools=({"name": "sum"},)), train_on="assistant")


@quick
@given(system=st.text() | st.sampled_from(["It's", "a\\", "\\'", "a\r\nb\n", "{{ x }} %} {# #}", PLAIN_SYSTEM_PROMPT]))
@example(system="It's")
@example(system="a\r\nb\\n\\")
def test_plain_template_round_trips_through_jinja(tokenizer_with: Any, system: str) -> None:
    template = PlainTemplate(system=system)
    assert PlainTemplate.from_jinja(template.jinja()) == template
    talk = conversation("why", "yes", "b", "no")
    [view] = template.views(talk, train_on="assistant")
    assert ChatJinja(tokenizer_with(template.jinja()), {})(dicts(talk.messages), ()) == view.text


@pytest.mark.parametrize("text", ["", "{{ messages }}", FAMILIES["chatml"].jinja])
def test_other_templates_are_not_taken_for_the_plain_one(text: str) -> None:
    assert PlainTemplate.from_jinja(text) is None
