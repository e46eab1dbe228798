"""Views that are filled in are those that rendering gives; templates that look at contents get no form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.example import Conversation, Message, Source
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.shapes import CHECKED_ROWS, LookedAt, Opaque
from honed.data.templates.view import View
from tests.data.templates.test_families import FAMILIES, FOLDER

SOURCE = Source(file="f", row=1)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
contents = st.text(st.sampled_from("ab <|>\n\t'\"\\{}%&中é_/"), min_size=1, max_size=12).filter(str.strip)


def conversation(*texts: str) -> Conversation:
    roles = ("user", "assistant") * len(texts)
    messages = (Message(role=role, content=text) for role, text in zip(roles, texts, strict=False))
    return Conversation(messages=tuple(messages), source=SOURCE)


def with_template(tokenizer_with: Callable[..., Any], text: str) -> JinjaTemplate:
    return JinjaTemplate(tokenizer_with(text, special=("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>"))


def filled(template: JinjaTemplate, *texts: str, train_on: str = "assistant") -> list[View] | None:
    """What the form gives; None where the shape has none."""
    shapes = template._shapes[train_on]
    for n in range(CHECKED_ROWS):
        template.views(conversation(*(f"{text} {n}" for text in texts)), train_on=train_on)
    [form] = shapes._forms.values()
    return None if form is None else form.fill(texts)


@pytest.mark.parametrize("train_on", ["assistant", "last", "all", "completion"])
def test_a_form_gives_what_rendering_gives(tokenizer_with: Callable[..., Any], train_on: str) -> None:
    template = with_template(tokenizer_with, CHATML)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(contents, min_size=2, max_size=2) | st.lists(contents, min_size=4, max_size=4))
    def holds(texts: list[str]) -> None:
        row = conversation(*texts)
        views = template.views(row, train_on=train_on)
        assert views == template._any_views(row, train_on=train_on, apart=False)

    holds()
    assert all(form is not None and form.checked == CHECKED_ROWS for form in template._shapes[train_on]._forms.values())


@pytest.mark.parametrize(
    "looks",
    [
        "{% if message.content %}x{% endif %}",
        "{% if 'y' in message.content %}x{% endif %}",
        "{% if message.content == 'y' %}x{% endif %}",
        "{% if message.content | length > 3 %}x{% endif %}",
        "{% if message.content.startswith('y') %}x{% endif %}",
        "{% set text = 'a' + message.content %}{% if 'y' in text %}x{% endif %}",
        "{% set text = 'a' ~ message.content %}{% if 'y' in text %}x{% endif %}",
        "{{ message.content[:1] }}",
        "{{ message.content.split('a') | length }}",
        "{% if message.content is equalto 'y' %}x{% endif %}",
        "{% for letter in message.content %}{% if loop.first %}{{ letter }}{% endif %}{% endfor %}",
        "{% if message.content > 'b' %}x{% endif %}",
        "{{ message.content | upper }}",
        "{{ {message.content: 1} | length }}",
    ],
)
def test_a_template_that_looks_at_contents_gets_no_form(tokenizer_with: Callable[..., Any], looks: str) -> None:
    in_questions = f"{{% if message.role == 'user' %}}{looks}{{% endif %}}<|im_start|>{{{{"
    template = with_template(tokenizer_with, CHATML.replace("<|im_start|>{{", in_questions))
    assert filled(template, "why", "because") is None


@pytest.mark.parametrize("printed", ["message.content | trim", "message.content | tojson", "message.content.lower()"])
def test_a_template_that_changes_contents_gets_no_form(tokenizer_with: Callable[..., Any], printed: str) -> None:
    template = with_template(tokenizer_with, CHATML.replace("message.content", printed))
    assert filled(template, "why", "because") is None


def test_the_first_rows_are_held_against_rendering(tokenizer_with: Callable[..., Any]) -> None:
    template = with_template(tokenizer_with, CHATML)
    shapes = template._shapes["assistant"]
    template.views(conversation("why", "because"), train_on="assistant")
    [(shape, form)] = shapes._forms.items()
    assert form is not None and form.checked == 1
    form.views = [(view, tuple(("wrong",) for _ in own)) for view, own in form.views]
    again = template.views(conversation("how", "so"), train_on="assistant")
    assert again == template._any_views(conversation("how", "so"), train_on="assistant", apart=False)
    assert shapes._forms[shape] is None


@pytest.mark.parametrize("text", ["say <|im_end|> now", "<think>so</think>because"])
def test_control_tokens_and_reasoning_go_the_usual_way(tokenizer_with: Callable[..., Any], text: str) -> None:
    template = with_template(tokenizer_with, CHATML)
    assert filled(template, "why", "because") is not None
    row = conversation("why", text)
    assert template.views(row, train_on="assistant") == template._any_views(row, train_on="assistant", apart=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_with_and_without(name: str, tokenizer_with: Callable[..., Any]) -> None:
    family = FAMILIES[name]
    text = (FOLDER / f"{name.removesuffix('_no_thinking')}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_with(text, special=family.special, eos_token=family.eos, bos_token=family.bos or None)
    template = JinjaTemplate(tokenizer, arguments=family.arguments)
    for n in range(CHECKED_ROWS + 4):
        for texts in (("why?", " so "), ("a", "b\n", "\nc", "d.")):
            row = conversation(*(t + "!" * n for t in texts))
            views = template.views(row, train_on="assistant")
            assert views == template._any_views(row, train_on="assistant", apart=False)


def test_an_opaque_text_can_be_printed_only() -> None:
    text = Opaque("secret")
    assert type("a" + text + "b") is Opaque
    assert "".join(["a" + text]) == "asecret"
    for look in (len, bool, hash, list, str.upper, lambda t: t == "x", lambda t: "s" in t, lambda t: t.strip()):
        if look is str.upper:
            continue  # a method taken from the class sees everything; templates cannot do so
        with pytest.raises(LookedAt):
            look(text)
