"""Control tokens that rows spell stay text: in training, in serving, and in the ledger's count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.encode.render import Renderer
from honed.data.example import Conversation, Message, RowError, Source
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.plain import PlainTemplate

SOURCE = Source(file="f", row=1)
quick = settings(deadline=None, derandomize=True, max_examples=60)
spelled = st.lists(
    st.sampled_from(
        ["a", " ", "\n", "<|im_end|>", "<|im_start|>", "<|im_", "end|>", "\ufdd0", "\ufdd1", "é", "\ufdd0x"]
    ),
    max_size=6,
).map("".join)


def conversation(*turns: str, **fields: Any) -> Conversation:
    messages = tuple(Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(turns))
    return Conversation(messages=messages, source=SOURCE, **fields)


@quick
@given(turns=st.tuples(spelled, spelled.filter(str.strip), spelled, spelled.filter(str.strip)))
@pytest.mark.parametrize("kind", ["jinja", "plain"])
def test_only_the_template_s_own_are_control_tokens(tiny_tokenizer: Any, kind: str, turns: tuple[str, ...]) -> None:
    template = JinjaTemplate(tiny_tokenizer) if kind == "jinja" else PlainTemplate()
    renderer = Renderer(tiny_tokenizer, template)
    talk = conversation(*turns)
    [[view]] = renderer.render([talk])
    blank = renderer.render([conversation("a", "b", "a", "b")])[0][0]
    control = set(tiny_tokenizer.all_special_ids)
    ids = view.input_ids.tolist()
    assert [i for i in ids if i in control] == [i for i in blank.input_ids.tolist() if i in control]
    text = tiny_tokenizer.decode(ids)
    assert all(turn in text for turn in turns)
    assert [tiny_tokenizer.decode(ids[turn.start : turn.end]) for turn in view.turns] == [
        f"{turns[1]}<|im_end|>", f"{turns[3]}<|im_end|>",
    ]  # fmt: skip
    for turn, number in zip(view.turns, (1, 3), strict=True):
        assert ids[: turn.start] == renderer.prompt_ids(template.prompt(talk.messages[:number]))
    assert renderer.spells_control_tokens(renderer.plan(talk)) == any(
        token in turn for turn in turns for token in tiny_tokenizer.all_special_tokens
    )


def test_in_names_tools_arguments_and_reasoning(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with(
        "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content or '' }}"
        "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls else '' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"<|im_end|>": "<|im_start|>"}}}
    answer = Message(role="assistant", content="", extra={"tool_calls": [call], "thinking": "<|im_end|>?"})
    tools = ({"type": "function", "function": {"name": "f", "description": "ends with <|im_end|>"}},)
    talk = Conversation(messages=(Message(role="user", content="a"), answer), tools=tools, source=SOURCE)
    [[view]] = Renderer(tokenizer, JinjaTemplate(tokenizer)).render([talk])
    assert sum(view.input_ids == tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert sum(view.input_ids == tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert tokenizer.decode(view.input_ids).count("<|im_end|>") == 5


def test_rows_without_them_are_rendered_as_ever(tiny_tokenizer: Any) -> None:
    [view] = JinjaTemplate(tiny_tokenizer).views(conversation("a", "b"), train_on="assistant")
    assert not any(piece.literal for piece in view.pieces)


def test_template_that_reads_them_is_refused(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with(
        "{% for m in messages %}<|im_start|>{{ m.content | length }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    with pytest.raises(RowError, match="the chat template reads them"):
        JinjaTemplate(tokenizer).views(conversation("<|im_end|>", "b"), train_on="assistant")


def test_the_ledger_counts_them(tiny_tokenizer: Any) -> None:
    rows = [{"prompt": [{"role": "user", "content": text}], "completion": [{"role": "assistant", "content": "b"}]}
            for text in ("a", "<|im_end|>", "<|im_start|>")]  # fmt: skip
    ledger = prepare(rows, tiny_tokenizer, PrepareOptions()).ledger
    assert ledger.rows_with_control_tokens == 2
    assert any(n.startswith("control tokens in the text of 2 rows were encoded as plain text") for n in ledger.notes)
    assert prepare(rows[:1], tiny_tokenizer, PrepareOptions()).ledger.notes == []


def test_texts_without_a_template_keep_them(tiny_tokenizer: Any) -> None:
    ledger = prepare(
        [{"prompt": "<|im_start|>a", "completion": "b<|im_end|>"}], tiny_tokenizer, PrepareOptions()
    ).ledger
    assert (ledger.rows_with_control_tokens, ledger.tokens) == (0, 4)
