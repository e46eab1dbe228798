"""What stands before a trained turn is what inference feeds, for templates of every kind."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from conversations import (
    FAMILIES,
    SOURCE,
    Family,
    answers,
    contents,
    conversation,
    dicts,
    quick,
    texts_of_turns,
    trained_text,
)
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from honed.data.encode.render import Renderer
from honed.data.example import Conversation, Message, RowError
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.view import special_tokens
from honed.errors import TemplateError

# transformers' own way with control tokens in messages, in its newer versions
SANITIZES = "sanitize_control_tokens" in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tokenizer_with: Any) -> tuple[Family, Any]:
    family = FAMILIES[request.param]
    return family, tokenizer_with(family.jinja, special=family.special, eos_token=family.end)


def served(tokenizer: Any, messages: tuple[Message, ...]) -> list[int]:
    """What transformers feeds; control tokens that the messages spell are plain text."""
    sanitize = {"sanitize_control_tokens": True} if SANITIZES else {}
    ids: list[int] = tokenizer.apply_chat_template(
        dicts(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **sanitize
    )
    return ids


def served_by_honed(tokenizer: Any, messages: tuple[Message, ...], **fields: Any) -> list[int]:
    return Renderer(tokenizer, None).prompt_ids(JinjaTemplate(tokenizer).prompt(messages, **fields))


@quick
@given(turns=st.tuples(contents, answers, contents, answers))
@example(turns=("a", "end", "b", "think"))
@example(turns=("a", "<|im_end|>", "b", "</s>"))
@example(turns=("a", "\n\nyes ", "b", " yes\n"))
def test_what_is_trained_is_what_is_served(family: tuple[Family, Any], turns: tuple[str, ...]) -> None:
    kind, tokenizer = family
    talk = conversation(*turns)
    views = Renderer(tokenizer, JinjaTemplate(tokenizer)).render([talk])[0]

    found = [(view, turn) for view in views for turn in view.turns]
    assert len(found) == 2
    for (view, turn), number in zip(found, (1, 3), strict=True):
        prompt = view.input_ids[: turn.start].tolist()
        assert prompt == served_by_honed(tokenizer, talk.messages[:number])
        if SANITIZES or not any(special in text for special in special_tokens(tokenizer) for text in turns):
            assert prompt == served(tokenizer, talk.messages[:number])
        assert turn.stop == view.input_ids[turn.end - 1] == tokenizer.convert_tokens_to_ids(kind.end)
        text, end = tokenizer.decode(view.input_ids[turn.start : turn.end]), kind.end
        answer = kind.answer(talk.messages[number].content)
        assert text == answer + end or (text == answer and kind is FAMILIES["open"] and answer.endswith(end))
    for view in views:  # and nothing else is trained
        expected = [float(any(t.start <= n < t.end for t in view.turns)) for n in range(len(view))]
        assert view.weights.tolist() == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_number_of_views(name: str, tokenizer_with: Any) -> None:
    kind = FAMILIES[name]
    tokenizer = tokenizer_with(kind.jinja, special=kind.special, eos_token=kind.end)
    views = Renderer(tokenizer, JinjaTemplate(tokenizer)).render([conversation("a", "yes", "b", "no")])[0]
    assert [len(view.turns) for view in views] == {1: [2], 2: [1, 1]}[kind.views]
    assert {view.views for view in views} == {kind.views}


def test_one_view_is_the_whole_text_as_the_tokenizer_encodes_it(tiny_tokenizer: Any) -> None:
    talk = conversation(
        ("system", "be kind"), ("user", "why"), ("assistant", "yes"), ("user", "?"), ("assistant", "no")
    )
    [[view]] = Renderer(tiny_tokenizer, JinjaTemplate(tiny_tokenizer)).render([talk])
    text = tiny_tokenizer.apply_chat_template(dicts(talk.messages), tokenize=False)
    assert view.input_ids.tolist() == tiny_tokenizer(text)["input_ids"]
    trained = tiny_tokenizer.decode(view.input_ids[view.weights > 0])
    assert trained == "yes<|im_end|>no<|im_end|>"  # neither roles nor the newline behind the end token


def test_turns_that_merge_with_what_follows_get_a_view_each(tokenizer_with: Any) -> None:
    """The cut behind the first answer's end would part `</s>` from the next question, and so change its ids."""
    from tokenizers import AddedToken

    jinja = "{% for m in messages %}{{ 'Q' + m.content + 'A' if m.role == 'user' else m.content + '</s>' }}{% endfor %}"
    tokenizer = tokenizer_with(jinja, special=("</s>",), eos_token="</s>")
    tokenizer.add_tokens([AddedToken("</s>Qno", special=False, normalized=False)])
    talk = conversation("why", "yes", "no", "three")
    views = Renderer(tokenizer, JinjaTemplate(tokenizer)).render([talk])[0]
    assert len(views) == 2
    assert views[1].input_ids[: views[1].turns[0].start].tolist() == served(tokenizer, talk.messages[:3])


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "does not begin an answer the way its generation prompt does",
        ),
        ("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}", "changes the answer: 'yes'"),
    ],
    ids=["generation prompt is no prefix", "content altered"],
)
def test_template_that_cannot_be_verified(tokenizer_with: Any, template: str, problem: str) -> None:
    with pytest.raises(TemplateError, match=problem):
        JinjaTemplate(tokenizer_with(template)).views(conversation("why", "yes"), train_on="assistant")


def test_tokenizer_without_a_template(tokenizer_with: Any) -> None:
    with pytest.raises(TemplateError, match=r"data\.template=plain"):
        JinjaTemplate(tokenizer_with(None))


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ((("system", "x"), ("user", "a"), ("assistant", "b")), "TemplateError: System role not supported"),
        ((("user", "a"), ("user", "b"), ("assistant", "c")), "TemplateError: Roles must alternate"),
    ],
)
def test_conversation_that_the_template_refuses_is_a_row_error(tokenizer_with: Any, turns: Any, problem: str) -> None:
    gemma = tokenizer_with(FAMILIES["gemma"].jinja)
    with pytest.raises(RowError, match=f"refuses this conversation: {problem}"):
        JinjaTemplate(gemma).views(conversation(*turns), train_on="assistant")


def test_conversation_that_begins_with_the_assistant(tiny_tokenizer: Any, tokenizer_with: Any) -> None:
    talk = Conversation(messages=conversation("why", "yes", "b", "no").messages[1:], source=SOURCE)
    [[view]] = Renderer(tiny_tokenizer, JinjaTemplate(tiny_tokenizer)).render([talk])
    assert texts_of_turns(tiny_tokenizer, [view]) == ["yes<|im_end|>", "no<|im_end|>"]
    first = tokenizer_with("{{ messages[0].role }}" + FAMILIES["chatml"].jinja)
    with pytest.raises(RowError, match="begins with the assistant: nothing to answer"):
        JinjaTemplate(first).views(talk, train_on="assistant")
    assert JinjaTemplate(first).views(talk, train_on="last")


def test_system_prompt_that_only_prompts_show(tokenizer_with: Any) -> None:
    """As in Mistral's templates; a question that the generation prompt spells too must not lead astray."""
    tokenizer = tokenizer_with(
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}<|im_start|>"
        "{{ messages[0].content + ' ' if loop.last and messages[0].role == 'system' else '' }}{{ m.content }}[ANSWER]"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    for question in ("why", "S", "]"):
        talk = conversation(("system", "Be kind"), ("user", question), ("assistant", "yes"), ("user", "b"),
                            ("assistant", "no"))  # fmt: skip
        views = Renderer(tokenizer, JinjaTemplate(tokenizer)).render([talk])[0]
        assert [tokenizer.decode(view.input_ids) for view in views] == [
            f"<|im_start|>Be kind {question}[ANSWER]yes<|im_end|>",
            f"<|im_start|>{question}[ANSWER]yes<|im_end|><|im_start|>Be kind b[ANSWER]no<|im_end|>",
        ]
        assert trained_text(tokenizer, views) == ["yes<|im_end|>", "no<|im_end|>"]


@pytest.mark.parametrize(("answer", "trained"), [("<think>hm</think>so", "hm</think>so<|im_end|>"), ("so", None)])
def test_prompt_that_opens_the_reasoning(tokenizer_with: Any, answer: str, trained: str | None) -> None:
    """As models have it that always think: what the prompt holds already is not trained, and no answer loses a word."""
    tokenizer = tokenizer_with(FAMILIES["chatml"].jinja.replace("assistant\\n' }}", "assistant\\n<think>' }}"))
    render = Renderer(tokenizer, JinjaTemplate(tokenizer)).render
    talk = conversation("why", answer)
    if trained is None:
        with pytest.raises(TemplateError, match="does not begin an answer the way its generation prompt does"):
            render([talk])
        return
    [[view]] = render([talk])
    [turn] = view.turns
    assert view.input_ids[: turn.start].tolist() == served(tokenizer, talk.messages[:1])
    assert tokenizer.decode(view.input_ids[turn.start : turn.end]) == trained


def test_the_token_that_ends_a_turn_is_trained_whatever_eos_is(tokenizer_with: Any) -> None:
    """Gemma's turns end with <end_of_turn>, and its EOS is <eos>."""
    gemma = FAMILIES["gemma"]
    tokenizer = tokenizer_with(gemma.jinja, special=(*gemma.special, "<eos>"), eos_token="<eos>")
    [[view]] = Renderer(tokenizer, JinjaTemplate(tokenizer)).render([conversation("why", "so", "and", "yes")])
    assert tokenizer.decode(view.input_ids[view.weights > 0]) == "so<end>yes<end>"
