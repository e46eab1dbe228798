"""Chat templates: what stands before a trained turn is what inference feeds, for templates of every kind."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from honed.data.encode.render import Renderer
from honed.data.example import Conversation, Message, RowError, Source
from honed.data.templates.compiled import ChatJinja
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.plain import PLAIN_SYSTEM_PROMPT, PlainTemplate
from honed.data.templates.view import Masks, special_tokens
from honed.errors import RecipeError, TemplateError

SOURCE = Source(file="f", row=1)
# transformers' own way with control tokens in messages, in its newer versions
SANITIZES = "sanitize_control_tokens" in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
quick = settings(deadline=None, derandomize=True, max_examples=40)


@dataclass(frozen=True)
class Family:
    """A template like those in use. `answer` gives the trained text without the end; `views` how many for two turns."""

    jinja: str
    end: str
    special: tuple[str, ...] = ()
    lead: str = ""
    strips: bool = False
    views: int = 1

    def answer(self, content: str) -> str:
        return self.lead + (content.strip() if self.strips else content)


FAMILIES = {
    "chatml": Family(
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
        end="<|im_end|>",
    ),
    "smollm": Family(
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\\nYou are helpful"
        "<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        end="<|im_end|>",
    ),
    "llama3": Family(
        "{{ '<|begin|>' }}{% for m in messages %}{{ '<|header|>' + m.role + '<|/header|>\\n\\n' + m.content | trim "
        "+ '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\\n\\n' }}{% endif %}",
        end="<|eot|>",
        special=("<|begin|>", "<|header|>", "<|/header|>", "<|eot|>"),
        strips=True,
    ),
    "gemma": Family(
        "{{ '<bos>' }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}"
        "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}",
        end="<end>",
        special=("<bos>", "<turn>", "<end>"),
        strips=True,
    ),
    "mistral": Family(
        "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}",
        end="</s>",
        special=("<s>", "</s>"),
        lead=" ",
    ),
    # history loses its reasoning, so each answer is trained where it was given
    "qwen3": Family(
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\\nhm\\n</think>\\n\\n' }}{% endif %}"
        "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        end="<|im_end|>",
        lead="<think>\nhm\n</think>\n\n",
        views=2,
    ),
    # nothing ends an answer, so EOS is added
    "open": Family(
        "{% for m in messages %}{{ m.role + ': ' + m.content | trim + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
        end="<|im_end|>",
        lead=" ",
        strips=True,
        views=2,
    ),
}

fragments = st.sampled_from(
    ["yes", "user", "assistant", "model", "end", "think", "hm", " ", "  ", "\n", "\n\n", "\t", "'s", "?", "🦊", "答案",
     "\u2028", "\u00a0", "<|im_end|>", "<|im_start|>user\n", "<|eot|>", "<end>", "</s>", "[/INST]", "</think>",
     "{{ x }}"]
)  # fmt: skip
contents = st.lists(fragments, max_size=6).map("".join) | st.text(max_size=12)
answers = contents.filter(str.strip)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tokenizer_with: Any) -> tuple[Family, Any]:
    family = FAMILIES[request.param]
    return family, tokenizer_with(family.jinja, special=family.special, eos_token=family.end)


def conversation(*turns: str | tuple[str, str], **fields: Any) -> Conversation:
    """Texts are user and assistant by turns; pairs bring their own role."""
    pairs = [turn if isinstance(turn, tuple) else (("user", "assistant")[n % 2], turn) for n, turn in enumerate(turns)]
    return Conversation(messages=tuple(Message(role=r, content=c) for r, c in pairs), source=SOURCE, **fields)


def dicts(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content, **message.extra} for message in messages]


def served(tokenizer: Any, messages: tuple[Message, ...]) -> list[int]:
    """What transformers feeds; control tokens that the messages spell are plain text."""
    sanitize = {"sanitize_control_tokens": True} if SANITIZES else {}
    ids: list[int] = tokenizer.apply_chat_template(
        dicts(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **sanitize
    )
    return ids


def served_by_honed(tokenizer: Any, messages: tuple[Message, ...], **fields: Any) -> list[int]:
    return Renderer(tokenizer, None).prompt_ids(JinjaTemplate(tokenizer).prompt(messages, **fields))


def texts_of_turns(tokenizer: Any, views: list[Any]) -> list[str]:
    return [tokenizer.decode(view.input_ids[turn.start : turn.end]) for view in views for turn in view.turns]


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


CHANNELS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% else %}<|start|>"
    "assistant<|channel|>final<|message|>{{ m.content }} <|return|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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


def trained_text(tokenizer: Any, views: list[Any]) -> list[str]:
    return [tokenizer.decode(view.input_ids[view.weights > 0]) for view in views]


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
