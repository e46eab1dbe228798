"""Which turns are trained, what of them, and with which weight."""

from __future__ import annotations

from typing import Any

import pytest
from conversations import FAMILIES, SOURCE, THINKING, answers, conversation, quick, texts_of_turns, trained_text
from hypothesis import example, given

from honed.data.encode.render import Renderer
from honed.data.example import Conversation, Message, RowError
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.plain import PlainTemplate
from honed.data.templates.view import Masks
from honed.errors import RecipeError, TemplateError


@pytest.mark.parametrize(
    ("train_on", "trained"),
    [
        ("assistant", "yes<|im_end|>no<|im_end|>"),
        ("last", "no<|im_end|>"),
        ("all", "user\nwhy<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
                "<|im_start|>assistant\nno<|im_end|>\n"),
    ],
)  # fmt: skip
def test_train_on(tiny_tokenizer: Any, train_on: str, trained: str) -> None:
    renderer = Renderer(tiny_tokenizer, JinjaTemplate(tiny_tokenizer), train_on=train_on)
    [[view]] = renderer.render([conversation("why", "yes", "b", "no")])
    assert tiny_tokenizer.decode(view.input_ids[view.weights > 0]) == trained


@pytest.mark.parametrize("template", ["jinja", "plain"])
def test_messages_say_themselves_whether_they_are_trained(tiny_tokenizer: Any, template: str) -> None:
    maker = JinjaTemplate(tiny_tokenizer) if template == "jinja" else PlainTemplate()
    first = Message(role="assistant", content="yes", train=False)
    rest = conversation("why", "no").messages
    talk = Conversation(messages=(rest[0], first, *rest), source=SOURCE)
    [[view]] = Renderer(tiny_tokenizer, maker).render([talk])
    assert tiny_tokenizer.decode(view.input_ids[view.weights > 0]) == "no<|im_end|>"
    untrained = Conversation(messages=(rest[0], first), source=SOURCE)
    with pytest.raises(RowError, match="nothing to train"):
        maker.views(untrained, train_on="assistant")


@pytest.mark.parametrize("template", ["jinja", "plain"])
def test_weights_of_messages(tiny_tokenizer: Any, template: str) -> None:
    maker = JinjaTemplate(tiny_tokenizer) if template == "jinja" else PlainTemplate()
    user, answers = Message(role="user", content="why"), {"yes": 0.5, "no": 0.0, "three": None}
    messages = [m for text, w in answers.items() for m in (user, Message(role="assistant", content=text, weight=w))]
    talk = Conversation(messages=tuple(messages), source=SOURCE)
    [[view]] = Renderer(tiny_tokenizer, maker).render([talk])
    assert trained_text(tiny_tokenizer, [view]) == ["yes<|im_end|>three<|im_end|>"]
    first, second = (view.weights[turn.start : turn.end] for turn in view.turns)
    assert (set(first.tolist()), set(second.tolist())) == ({0.5}, {1.0})
    flags = Renderer(tiny_tokenizer, maker, train_on="all").render([talk])[0][0].weights
    assert set(flags[1:].tolist()) == {1.0}  # the whole text, whatever messages say of themselves


def test_eos_that_is_added_weighs_what_its_turn_does(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with(FAMILIES["open"].jinja)
    messages = (Message(role="user", content="why"), Message(role="assistant", content="yes", weight=0.5))
    [[view]] = Renderer(tokenizer, JinjaTemplate(tokenizer)).render([Conversation(messages=messages, source=SOURCE)])
    assert view.input_ids[-1] == tokenizer.eos_token_id
    assert set(view.weights[view.turns[0].start :].tolist()) == {0.5}


@pytest.mark.parametrize(
    ("template", "roles", "trained"),
    [
        ("jinja", ("user",), "why<|im_end|>b<|im_end|>"),
        ("jinja", ("user", "assistant"), "why<|im_end|>yes<|im_end|>b<|im_end|>no<|im_end|>"),
        ("plain", ("user",), "whyb"),
        ("plain", ("user", "assistant"), "whyyes<|im_end|>bno<|im_end|>"),
    ],
)
def test_other_roles_are_trained_and_ids_stay(
    tiny_tokenizer: Any, template: str, roles: tuple[str, ...], trained: str
) -> None:
    def views(masks: Masks) -> list[Any]:
        maker = JinjaTemplate(tiny_tokenizer, masks=masks) if template == "jinja" else PlainTemplate(masks=masks)
        return Renderer(tiny_tokenizer, maker).render([conversation("why", "yes", "b", "no")])[0]

    found = views(Masks(roles=roles))
    assert "".join(trained_text(tiny_tokenizer, found)) == trained
    assert "".join(texts_of_turns(tiny_tokenizer, found)) == trained
    assert found[0].input_ids.tolist() == views(Masks())[0].input_ids.tolist()


@quick
@given(reasoning=answers, content=answers)
@example(reasoning="yes", content="yes")
@example(reasoning=" hm\n", content="a")
def test_reasoning_is_left_out_of_the_loss_but_not_of_the_text(
    tokenizer_with: Any, reasoning: str, content: str
) -> None:
    tokenizer = tokenizer_with(THINKING)
    answer = Message(role="assistant", content=content, extra={"reasoning_content": reasoning})
    talk = Conversation(messages=(Message(role="user", content="why"), answer), source=SOURCE)
    [[with_it], [without]] = (
        Renderer(tokenizer, JinjaTemplate(tokenizer, masks=Masks(reasoning=trained))).render([talk])[0]
        for trained in (True, False)
    )
    assert without.input_ids.tolist() == with_it.input_ids.tolist()
    assert tokenizer.decode(with_it.input_ids[with_it.weights > 0]) == f"<think>{reasoning}</think>{content}<|im_end|>"
    silent = tokenizer.decode(without.input_ids[(with_it.weights > 0) & (without.weights == 0)])
    # a token over a border belongs to where it begins
    assert reasoning in f"{silent}</think>" and len(silent) <= len(reasoning) + 8


def test_inline_reasoning_is_left_out_of_the_loss(tiny_tokenizer: Any) -> None:
    talk = conversation("why", "<think>\nhm\n</think>\n\nyes")
    template = JinjaTemplate(tiny_tokenizer, masks=Masks(reasoning=False))
    views = Renderer(tiny_tokenizer, template).render([talk])[0]
    assert trained_text(tiny_tokenizer, views) == ["<think>\n\n</think>\n\nyes<|im_end|>"]


def test_what_cannot_be_located_is_refused(tokenizer_with: Any) -> None:
    twice = tokenizer_with(
        "{% for m in messages %}{{ m.reasoning_content or '' }}<|im_start|>{{ m.reasoning_content or '' }}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    answer = Message(role="assistant", content="yes", extra={"reasoning_content": "hm"})
    talk = Conversation(messages=(Message(role="user", content="why"), answer), source=SOURCE)
    with pytest.raises(TemplateError, match=r"The reasoning of message 2 \(assistant\) cannot be located"):
        JinjaTemplate(twice, masks=Masks(reasoning=False)).views(talk, train_on="assistant")


@pytest.mark.parametrize("roles", [(), ("wizard",), "user"])
def test_roles_that_there_are_not(roles: Any) -> None:
    with pytest.raises(RecipeError, match="train_roles is"):
        Masks(roles=roles)
