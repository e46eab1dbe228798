"""Answers, tools and tool calls are found where the template shows them, and what it leaves out is said."""

from __future__ import annotations

from typing import Any

import pytest
from conversations import SOURCE, THINKING, conversation, texts_of_turns

from honed.data.encode.render import Renderer
from honed.data.example import Conversation, Message, RowError
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.plain import PlainTemplate
from honed.errors import TemplateError

CHANNELS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% else %}<|start|>"
    "assistant<|channel|>final<|message|>{{ m.content }} <|return|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "special", "extra", "trained"),
    [
        (
            CHANNELS,
            ("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|end|>"),
            {},
            "<|channel|>final<|message|>final <|return|>",
        ),
        (THINKING, ("<think>", "</think>"), {"reasoning_content": "final"}, "<think>final</think>final<|im_end|>"),
    ],
    ids=["channel name", "reasoning"],
)
def test_answer_whose_words_stand_before_it_too(
    tokenizer_with: Any, template: str, special: tuple[str, ...], extra: dict[str, str], trained: str
) -> None:
    tokenizer = tokenizer_with(template, special=special)
    answer = Message(role="assistant", content="final", extra=extra)
    talk = Conversation(messages=(Message(role="user", content="why"), answer), source=SOURCE)
    views = Renderer(tokenizer, JinjaTemplate(tokenizer)).render([talk])[0]
    assert texts_of_turns(tokenizer, views) == [trained]


@pytest.mark.parametrize("content", ["", "let me look"])
def test_tool_calls_are_trained_to_their_end(tokenizer_with: Any, content: str) -> None:
    tokenizer = tokenizer_with(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}<call>"
        "{{ call.name }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        special=("<call>", "</call>"),
    )
    call = Message(role="assistant", content=content, extra={"tool_calls": [{"name": "sum"}, {"name": "max"}]})
    messages = (
        Message(role="user", content="add"),
        call,
        Message(role="tool", content="3"),
        Message(role="assistant", content="three"),
    )
    views = Renderer(tokenizer, JinjaTemplate(tokenizer)).render([Conversation(messages=messages, source=SOURCE)])[0]
    assert texts_of_turns(tokenizer, views) == [
        f"{content}<call>sum</call><call>max</call><|im_end|>",
        "three<|im_end|>",
    ]


def test_tools_and_arguments_reach_the_template(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with(
        "{{ tools[0].name }} {{ mood }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    talk = conversation("why", "yes", tools=({"name": "sum"},))
    [view] = JinjaTemplate(tokenizer, arguments={"mood": "glad"}).views(talk, train_on="assistant")
    assert view.text.startswith("sum glad<|im_start|>why")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [({"images": ("a.png",)}, "images need a vision model and its processor")],
)
@pytest.mark.parametrize("template", ["jinja", "plain"])
def test_images_are_refused(tiny_tokenizer: Any, template: str, fields: Any, problem: str) -> None:
    maker = JinjaTemplate(tiny_tokenizer) if template == "jinja" else PlainTemplate()
    with pytest.raises(RowError, match=problem):
        maker.views(conversation("why", "yes", **fields), train_on="assistant")


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"tool_calls": [{"function": {"name": "sum"}}]}, "does not show the tool calls of an answer: no 'sum'"),
        ({"reasoning_content": "hm so"}, "does not show the reasoning of an answer: no 'hm so'"),
    ],
)
def test_what_the_template_leaves_out_is_said(tiny_tokenizer: Any, extra: Any, problem: str) -> None:
    messages = (Message(role="user", content="why"), Message(role="assistant", content="yes", extra=extra))
    with pytest.raises(TemplateError, match=problem):
        JinjaTemplate(tiny_tokenizer).views(Conversation(messages=messages, source=SOURCE), train_on="assistant")
