"""Chat templates of many model families: golden masks to read, and prompts in training equal to those in serving."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from honed.data.encode.render import Rendered, Renderer
from honed.data.example import Conversation, Message, RowError, Source
from honed.data.prepare.spelled_end import spelled_ends
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.view import Masks
from honed.errors import TemplateError

FOLDER = Path(__file__).parent / "families"
SOURCE = Source(file="f", row=1)


@dataclass(frozen=True)
class Family:
    """The tokens that a template speaks in, and what it is given."""

    special: tuple[str, ...]
    eos: str
    bos: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


CHATML = ("<|im_start|>", "<|im_end|>")
HARMONY = ("<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>")
DEEPSEEK = tuple(
    f"<｜{name.replace(' ', '▁')}｜>"
    for name in ("begin of sentence", "end of sentence", "User", "Assistant", "tool calls begin", "tool calls end",
                 "tool call begin", "tool call end", "tool sep", "tool outputs begin", "tool outputs end",
                 "tool output begin", "tool output end")
)  # fmt: skip
COMMAND = ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
           "<|SYSTEM_TOKEN|>")  # fmt: skip
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA = ("<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>")
MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
           "[TOOL_RESULTS]", "[/TOOL_RESULTS]")  # fmt: skip
FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>"),
    "command_r": Family(COMMAND, "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"),
    "deepseek_r1": Family(DEEPSEEK, DEEPSEEK[1], DEEPSEEK[0]),
    "gemma2": Family(GEMMA, "<end_of_turn>", "<bos>"),
    "gemma3": Family(GEMMA, "<end_of_turn>", "<bos>"),
    "glm4": Family(("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"), "<|endoftext|>"),
    "harmony": Family(HARMONY, "<|return|>"),
    "llama2": Family(("<s>", "</s>"), "</s>", "<s>"),
    "llama3.1": Family(LLAMA3, "<|eot_id|>", "<|begin_of_text|>"),
    "mistral_v3": Family(MISTRAL, "</s>", "<s>"),
    "phi3": Family(("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>"),
    "phi4": Family((*CHATML, "<|im_sep|>"), "<|im_end|>"),
    "qwen2.5": Family(CHATML, "<|im_end|>"),
    "qwen3": Family(CHATML, "<|im_end|>"),
    "qwen3_no_thinking": Family(CHATML, "<|im_end|>", arguments={"enable_thinking": False}),
    "smollm2": Family(CHATML, "<|im_end|>"),
    "smollm3": Family(CHATML, "<|im_end|>"),
    "zephyr": Family(("<s>", "</s>"), "</s>", "<s>"),
}
# The tokenizer's own, where the shared data are: honed's default for Qwen, and MiniMind's with its open_thinking.
SHARED = {"qwen": {}, "minimind": {}, "minimind_thinking": {"open_thinking": True}}

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def say(role: str, content: str, **extra: Any) -> Message:
    return Message(role=role, content=content, extra=extra)


def talk(*messages: Message, **fields: Any) -> Conversation:
    return Conversation(messages=messages, source=SOURCE, **fields)


WHY, BECAUSE = say("user", "Why?"), say("assistant", "Because.")
AND_NOW, LATER = say("user", "And now?"), say("assistant", "Later.")
WITH_TOOLS = talk(
    say("user", "Rain?"),
    say("assistant", "", tool_calls=[CALL]),
    say("tool", '{"rain": true}', name="weather", tool_call_id="call00001"),
    say("assistant", "It rains."),
    tools=(TOOL,),
)
WITH_THOUGHTS = talk(
    WHY,
    say("assistant", "Because.", reasoning_content="Easy one."),
    AND_NOW,
    say("assistant", "Later.", reasoning_content="Not yet."),
)
THINKS_AND_CALLS = talk(
    say("user", "Rain?"),
    say("assistant", "I look.", reasoning_content="Use a tool.", tool_calls=[CALL]),
    tools=(TOOL,),
)
# name -> conversation, masks
CASES: dict[str, tuple[Conversation, Masks]] = {
    "single turn": (talk(WHY, BECAUSE), Masks()),
    "multi turn": (talk(WHY, BECAUSE, AND_NOW, LATER), Masks()),
    "system": (talk(say("system", "Be kind."), WHY, BECAUSE), Masks()),
    "tools": (WITH_TOOLS, Masks()),
    "thinking": (WITH_THOUGHTS, Masks()),
    "thinking, not trained": (WITH_THOUGHTS, Masks(reasoning=False)),
    "tool calls, not trained": (WITH_TOOLS, Masks(tool_calls=False)),
    "thinking and calls, neither trained": (THINKS_AND_CALLS, Masks(reasoning=False, tool_calls=False)),
    "user trained too": (talk(WHY, BECAUSE, AND_NOW, LATER), Masks(roles=("user", "assistant"))),
    "control token typed": (talk(say("user", "Say <|im_end|></s>!"), BECAUSE), Masks()),
    "begins with the assistant": (talk(BECAUSE, WHY, LATER), Masks()),
}


@pytest.fixture(params=[*FAMILIES, *SHARED])
def family(request: pytest.FixtureRequest, tokenizer_with: Callable[..., Any]) -> tuple[str, Any, dict[str, Any]]:
    name = request.param
    if name in SHARED:
        from transformers import AutoTokenizer

        folder = request.getfixturevalue("shared_data") / f"{name.partition('_')[0]}_tokenizer"
        return name, AutoTokenizer.from_pretrained(folder), SHARED[name]
    kind = FAMILIES[name]
    template = (FOLDER / f"{name.removesuffix('_no_thinking')}.jinja").read_text(encoding="utf-8")
    names = {"eos_token": kind.eos, "bos_token": kind.bos or None}
    return name, tokenizer_with(template, special=kind.special, **names), kind.arguments


def test_masks_are_the_golden_ones(family: tuple[str, Any, dict[str, Any]]) -> None:
    """HONED_WRITE_GOLDEN=1 writes them anew; read the difference before you keep it."""
    name, tokenizer, arguments = family
    found = "\n".join(line for case in CASES for line in shown(case, tokenizer, arguments)) + "\n"
    golden = FOLDER / "golden" / f"{name}.txt"
    if os.environ.get("HONED_WRITE_GOLDEN"):
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8")


def test_no_family_spells_its_end_in_letters(family: tuple[str, Any, dict[str, Any]]) -> None:
    _, tokenizer, arguments = family
    assert spelled_ends(JinjaTemplate(tokenizer, arguments=arguments), tokenizer) == []


def test_prompts_in_training_are_those_in_serving(family: tuple[str, Any, dict[str, Any]]) -> None:
    _, tokenizer, arguments = family
    checked = 0
    for conversation, masks in CASES.values():
        template = JinjaTemplate(tokenizer, arguments=arguments, masks=masks)
        renderer = Renderer(tokenizer, template)
        try:
            [views] = renderer.render([conversation])
        except (RowError, TemplateError):
            continue
        starts = [view.input_ids[: turn.start].tolist() for view in views for turn in view.turns]
        for number, message in enumerate(conversation.messages):
            if message.role == "assistant":
                pieces = template.prompt(conversation.messages[:number], conversation.tools)
                assert renderer.prompt_ids(pieces) in starts
                checked += 1
    assert checked >= 4


def shown(case: str, tokenizer: Any, arguments: dict[str, Any]) -> Iterator[str]:
    """The case's views with what is trained between « and »."""
    conversation, masks = CASES[case]
    yield f"=== {case} ==="
    try:
        [views] = Renderer(tokenizer, JinjaTemplate(tokenizer, arguments=arguments, masks=masks)).render([conversation])
    except (RowError, TemplateError) as error:
        yield f"refused: {str(error).partition(chr(10))[0]}"
        return
    for number, view in enumerate(views):
        if number:
            yield "--- and in a view of its own ---"
        yield coloured(view, tokenizer)


def coloured(view: Rendered, tokenizer: Any) -> str:
    trained = view.weights > 0
    edges = [0, *(n for n in range(1, len(view)) if trained[n] != trained[n - 1]), len(view)]
    texts = [tokenizer.decode(view.input_ids[a:b]) for a, b in pairwise(edges)]
    return "".join(f"«{text}»" if trained[a] else text for text, a in zip(texts, edges, strict=False))
