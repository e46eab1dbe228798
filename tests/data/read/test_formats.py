"""Rows of every format, and rows of none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from honed.data.example import Conversation, Document, PromptCompletion, RowError, Source, Tokens
from honed.data.read.formats import FORMATS, ReadOptions, check_columns, formats_of, read_example
from honed.errors import RecipeError

SOURCE = Source(file="f", row=1)
USER, ANSWER = {"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}


def read(row: Any, format: str = "auto", **options: Any) -> Any:
    return read_example(row, SOURCE, ReadOptions(**options), format=format)


def turns(row: Any, **options: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in read(row, **options).messages]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, ANSWER]}, "user why assistant yes"),
        ({"messages": [{"role": "Developer", "content": "hm"}, USER, ANSWER]}, "system hm user why assistant yes"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "user a assistant b"),
        # as Arrow fills them where rows differ
        ({"messages": [{"role": None, "from": "human", "content": None, "value": "a"}, ANSWER]},
         "user a assistant yes"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "3"},
                            {"from": "gpt", "value": "b"}]}, "user a tool 3 assistant b"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                       ANSWER]}, "user ab assistant yes"),
        ({"conversations": [USER, ANSWER], "system": "hm"}, "system hm user why assistant yes"),
        ({"messages": [USER, ANSWER], "system": "hm"}, "system hm user why assistant yes"),
        ({"instruction": "a", "output": "b"}, "user a assistant b"),
        ({"instruction": "a", "input": "", "response": "b", "text": "whole"}, "user a assistant b"),
        ({"instruction": "a", "input": "c", "output": "b"}, "user a\nc assistant b"),
        ({"instruction": "", "input": "c", "output": "b"}, "user c assistant b"),
        ({"instruction": "a", "output": "b", "history": [["1", "2"], ["3", "4"]], "system": "hm"},
         "system hm user 1 assistant 2 user 3 assistant 4 user a assistant b"),
        ({"prompt": [USER], "completion": [ANSWER]}, "user why assistant yes"),
    ],
)  # fmt: skip
def test_conversations(row: dict[str, Any], expected: str) -> None:
    assert " ".join(f"{role} {content}" for role, content in turns(row)) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "completion": " b"}, PromptCompletion(prompt="a", completion=" b", source=SOURCE)),
        ({"text": " a\n"}, Document(text=" a\n", source=SOURCE)),
        ({"text": "a", "prompt": None, "completion": "b"}, Document(text="a", source=SOURCE)),
        ({"input_ids": [5, 6]}, Tokens(input_ids=(5, 6), weights=(1, 1), source=SOURCE)),
        ({"input_ids": np.array([5, 6])}, Tokens(input_ids=(5, 6), weights=(1, 1), source=SOURCE)),
        ({"input_ids": [5, 6], "labels": [-100, 6]}, Tokens(input_ids=(5, 6), weights=(0, 1), source=SOURCE)),
        ({"input_ids": [5, 6], "completion_mask": [0, 1]}, Tokens(input_ids=(5, 6), weights=(0, 1), source=SOURCE)),
        ({"input_ids": [5, 6], "assistant_masks": [1, 0]}, Tokens(input_ids=(5, 6), weights=(1, 0), source=SOURCE)),
        ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [1, 0, 1]},
         Tokens(input_ids=(5, 6, 7), weights=(0, 0, 1), source=SOURCE)),
        ({"input_ids": [5, 6], "loss_mask": [0.5, 0]}, Tokens(input_ids=(5, 6), weights=(0.5, 0), source=SOURCE)),
    ],
)  # fmt: skip
def test_other_kinds(row: dict[str, Any], expected: Any) -> None:
    assert read(row) == expected


def test_options() -> None:
    talk = {"conversations": [USER, ANSWER]}
    assert turns(talk, system="mine") == [("system", "mine"), ("user", "why"), ("assistant", "yes")]
    assert turns({**talk, "system": "own"}, system="mine")[0] == ("system", "own")
    assert turns({"messages": [{"role": "system", "content": "own"}, USER, ANSWER]}, system="mine")[0][1] == "own"
    assert turns({"instruction": "a", "input": "b", "output": "c"}, alpaca_separator="")[0] == ("user", "ab")
    assert read({"body": "a"}, text_field="body") == Document(text="a", source=SOURCE)
    assert read({"text": "a", "messages": [ANSWER]}, format="text") == Document(text="a", source=SOURCE)


def trains(row: dict[str, Any]) -> list[bool | None]:
    return [message.train for message in read(row).messages]


def test_train_flags() -> None:
    assert trains({"messages": [USER, {**ANSWER, "train": False}, USER, {**ANSWER, "train": 1}]}) == [
        None, False, None, True,
    ]  # fmt: skip
    assert trains({"messages": [USER, {**ANSWER, "train": 0}]}) == [None, False]
    # what stands in the prompt is context, also the answers of few-shot examples
    assert trains({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}) == [False, False, False, None]
    assert trains({"instruction": "a", "output": "b"}) == [False, None]


def test_weights_of_messages() -> None:
    row = {
        "messages": [USER, {**ANSWER, "weight": 0.3}, {**ANSWER, "weight": 0}, {**ANSWER, "weight": 2, "train": False}]
    }
    assert [message.loss_weight for message in read(row).messages] == [1.0, 0.3, 0.0, 0.0]


def test_columns_of_other_names() -> None:
    talk = {"chat": [{"who": "human", "text": "a"}, {"who": "bot", "text": "b"}], "sys": "hm", "text": "not this"}
    columns = {"messages": "chat", "role": "who", "content": "text", "system": "sys"}
    assert turns(talk, columns=columns) == [("system", "hm"), ("user", "a"), ("assistant", "b")]
    pair = read({"question": "a", "answer": "b"}, columns={"prompt": "question", "completion": "answer"})
    assert pair == PromptCompletion(prompt="a", completion="b", source=SOURCE)


@pytest.mark.parametrize(
    ("row", "columns", "problem"),
    [
        ({"talk": [], "id": 1}, {"messages": "chat"}, "column not found: 'chat' of data.columns; keys seen: talk, id"),
        ({"messages": [{"name": "a", "content": "b"}]}, {"role": "who"},
         "key not found in a message: 'who' of data.columns; keys seen: name, content"),
    ],
)  # fmt: skip
def test_mapped_columns_that_are_absent(row: dict[str, Any], columns: dict[str, str], problem: str) -> None:
    with pytest.raises(RowError, match=re.escape(problem)):
        read(row, columns=columns)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [({"mesages": "chat"}, "did you mean 'messages'"), ({"messages": 5}, "columns: messages is 5")],
)
def test_columns_that_no_format_has(columns: Any, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        check_columns(columns)


SUM = {"name": "sum", "arguments": {"a": 1}}
FUNCTION = {"type": "function", "function": SUM}


@pytest.mark.parametrize(
    ("turn", "calls"),
    [
        ({"from": "function_call", "value": json.dumps(SUM)}, [FUNCTION]),
        ({"from": "function_call", "value": json.dumps([SUM, SUM])}, [FUNCTION, FUNCTION]),
        ({"role": "assistant", "content": "", "tool_calls": json.dumps([FUNCTION])}, [FUNCTION]),
        ({"role": "assistant", "content": None, "tool_calls": [SUM]}, [FUNCTION]),
        ({"role": "assistant", "content": None, "function_call": {**SUM, "arguments": '{"a": 1}'}}, [FUNCTION]),
        ({"role": "assistant", "tool_calls": [{"id": "x", "type": "function", "index": None,
                                              "function": {"name": "sum", "arguments": '{"a": 1}'}}]},
         [{"id": "x", **FUNCTION}]),
        # not an object: the template gets the text
        ({"role": "assistant", "tool_calls": [{"name": "sum", "arguments": "[1]"}]},
         [{"type": "function", "function": {"name": "sum", "arguments": "[1]"}}]),
    ],
)  # fmt: skip
def test_tool_calls(turn: dict[str, Any], calls: list[Any]) -> None:
    result = {"role": "tool", "content": "3", "tool_call_id": "x", "name": "sum"}
    talk = read({"messages": [USER, turn, result, ANSWER]})
    assert (talk.messages[1].role, talk.messages[1].content) == ("assistant", "")
    assert talk.messages[1].extra["tool_calls"] == calls
    assert talk.messages[2].as_template_input() == result


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER], "tools": [{"name": "sum", "parameters": {}}]},
        {"messages": [USER, ANSWER], "tools": '[{"name": "sum", "parameters": {}}]'},
        {"messages": [USER, ANSWER], "functions": [{"name": "sum", "parameters": {}}]},
        {"conversations": [{"role": "system", "content": "", "tools": '[{"name": "sum", "parameters": {}}]'},
                           USER, ANSWER]},
        {"messages": [USER, ANSWER], "tools": {"type": "function", "function": {"name": "sum", "parameters": {}}}},
    ],
)  # fmt: skip
def test_tools(row: dict[str, Any]) -> None:
    assert read(row).tools == ({"type": "function", "function": {"name": "sum", "parameters": {}}},)


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_no_tools(tools: Any) -> None:
    assert read({"messages": [USER, ANSWER], "tools": tools}).tools == ()


def test_all_tool_calls_of_glaive(shared_data: Path) -> None:
    rows = json.loads((shared_data / "lf_glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    talks = [read(row) for row in rows]
    calls = [m.extra["tool_calls"] for talk in talks for m in talk.messages if "tool_calls" in m.extra]
    assert (len(talks), len(calls)) == (300, 211)
    assert all(isinstance(call["function"]["arguments"], dict) for [call] in calls)
    assert sum(bool(talk.tools) for talk in talks) == 191


def test_thinking_under_every_name() -> None:
    thought = {"thinking": "hm", "reasoning_content": "hm"}
    for extra in ({"thinking": "hm"}, {"reasoning_content": "hm"}, {"reasoning": "hm"}):
        found = read({"messages": [USER, {**ANSWER, **extra}]}).messages[1].as_template_input()
        assert found == {**ANSWER, **thought, **extra}
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]
    assert read({"messages": [USER, {"role": "assistant", "content": parts}]}).messages[1].reasoning == "hm"
    channels = [{"role": "assistant", "channel": "analysis", "content": "hm"}, {**ANSWER, "channel": "final"}]
    merged = read({"messages": [USER, *channels]}).messages
    assert [(m.role, m.content, m.reasoning) for m in merged[1:]] == [("assistant", "yes", "hm")]


def test_images_are_passed_on() -> None:
    image = {"type": "image_url", "image_url": {"url": "a.png"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "what"}, image]}
    talk = read({"messages": [asked, ANSWER]})
    assert (talk.messages[0].content, talk.messages[0].parts, talk.has_images) == (
        "what",
        tuple(asked["content"]),
        True,
    )
    assert read({"messages": [USER, ANSWER], "images": ["a.png", "b.png"]}).images == ("a.png", "b.png")
    assert read({"conversations": [USER, ANSWER], "image": "a.png"}).images == ("a.png",)
    assert not read({"messages": [USER, ANSWER], "images": []}).has_images


def test_further_keys_and_tools_reach_the_template() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "sum"}], "name": None}
    talk = read({"messages": [USER, call], "tools": '[{"name": "sum"}]'})
    assert talk.messages[1].as_template_input() == {
        "role": "assistant", "content": "", "tool_calls": [{"name": "sum"}],
    }  # fmt: skip
    assert talk.tools == ({"name": "sum"},)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (["a"], "row is not an object: found list"),
        ({}, "keys seen: none"),
        ({"messages": []}, "no messages"),
        ({"messages": "hi"}, "no messages"),
        ({"messages": [USER]}, "nothing to train"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "empty answer: message 2"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "text expected: `content` holds NoneType"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "unknown role: found 'wizard'; known: system"),
        ({"messages": ["why"]}, "message is not an object: found 'why'"),
        ({"messages": [USER, {**ANSWER, "train": "no"}]}, "train is not true or false: found 'no'"),
        ({"messages": [USER, {**ANSWER, "weight": -1}]}, "weight is not a number from 0 on: found -1"),
        ({"messages": [USER, {**ANSWER, "weight": True}]}, "weight is not a number from 0 on: found True"),
        ({"conversations": [USER, {"from": "function_call", "value": "{sum"}]}, "tool calls are not JSON"),
        ({"conversations": [USER, {"from": "function_call", "value": "[1]"}]}, "tool calls are not objects"),
        ({"conversations": [USER, {"from": "function_call", "value": None}]}, "tool calls are not objects: found None"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": ""}}]}]}, "tool call without a name"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}, ANSWER]}, "text expected"),
        ({"prompt": "a", "completion": "b", "images": ["a.png"]}, "images in a text-only template"),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "tools are not JSON"),
        ({"messages": [USER, ANSWER], "tools": "[" * 100_000}, "tools are not JSON"),
        ({"messages": [USER, ANSWER], "tools": [1]}, "tools are not a list of objects"),
        ({"conversations": [USER, ANSWER], "system": 5}, "text expected: `system` holds int"),
        ({"instruction": "a", "output": 5}, "text expected: `output` holds int"),
        ({"instruction": "a", "output": "b", "history": ["ab"]}, "history is not a list"),
        ({"prompt": "a", "completion": " "}, "empty answer"),
        ({"prompt": "a", "completion": [ANSWER]}, "prompt and completion differ in kind"),
        ({"prompt": ["a"], "completion": [ANSWER]}, "not a prompt_completion row"),
        ({"text": " "}, "empty text"),
        ({"text": 5}, "text expected"),
        ({"input_ids": [1.5]}, "not a tokens row"),
        ({"input_ids": "12"}, "not a tokens row"),
        ({"input_ids": [float("inf")]}, "not a tokens row"),
        ({"input_ids": [-1, 2**31]}, "token ids out of range: found -1 to 2147483648"),
        ({"input_ids": [1, 2], "labels": [1]}, "mask and input_ids differ in length: 1 and 2"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "labels differ from input_ids"),
        ({"input_ids": [1], "loss_mask": [float("nan")]}, "loss weights out of range"),
        ({"input_ids": [1], "loss_mask": [1e39]}, "loss weights out of range"),  # infinite as float32
        ({"input_ids": [1], "loss_mask": [10**400]}, "loss weights out of range"),
        ({"messages": [USER, {**ANSWER, "weight": 1e39}]}, "weight is not a number from 0 on: found 1e+39"),
        ({"messages": [USER, {**ANSWER, "weight": 10**400}]}, "weight is not a number from 0 on: found 1000"),
    ],
)
def test_rows_that_cannot_be_used(row: Any, problem: str) -> None:
    with pytest.raises(RowError) as caught:
        read(row)
    assert problem in str(caught.value)


def test_unknown_format_lists_the_keys_seen_and_the_formats_known() -> None:
    with pytest.raises(RowError, match="unknown format") as caught:
        read({"who": "a", "what": "b"})
    assert "keys seen: who, what. Formats known:" in caught.value.detail
    assert all(name in caught.value.detail for name in FORMATS)


KEYS = ["messages", "conversations", "instruction", "input", "output", "response", "history", "system", "prompt",
        "completion", "text", "input_ids", "labels", "completion_mask", "tools", "role", "from", "content", "value",
        "train", "tool_calls", "type", "weight", "function_call", "function", "arguments", "name", "channel",
        "thinking", "images"]  # fmt: skip
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
leaves |= st.sampled_from(["user", "assistant", "function_call", "text", "image", "[]", "{}", "[[]]"])
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner), max_leaves=8
)
rows = values | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), values, max_size=5)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(row=rows, format=st.sampled_from(["auto", *FORMATS]))
@example(row={"input_ids": [float("inf")]}, format="auto")
@example(row={"messages": [{"role": "user", "content": "a", "train": {}}]}, format="auto")
def test_whatever_json_holds_it_is_read_or_refused(row: Any, format: str) -> None:
    try:
        found = read(row, format=format)
    except RowError:
        return
    if isinstance(found, Conversation):
        assert all(isinstance(message.content, str) for message in found.messages)
    if isinstance(found, Tokens):
        assert len(found.input_ids) == len(found.weights)


ALPACA = {"instruction": "a", "input": "", "output": "b"}
HUMAN = [{"from": "human", "value": "why"}, {"from": "gpt", "value": "yes"}]


@pytest.mark.parametrize(
    ("row", "named", "unnamed"),
    [
        ({**ALPACA, "text": "c"}, "text", "alpaca"),
        ({"conversations": [USER, ANSWER], "text": "c"}, "text", "sharegpt"),
        ({"conversations": HUMAN, "text": "c"}, "sharegpt", "sharegpt"),
        ({"messages": [USER, ANSWER], "text": "c"}, "messages", "messages"),
        ({"messages": "not turns", "text": "c"}, "text", "messages"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "prompt_completion", "prompt_completion"),
        ({"prompt": [USER], "completion": [ANSWER], "messages": [USER, ANSWER]}, "prompt_completion",
         "prompt_completion"),
        ({"input_ids": [1], "text": "c"}, "tokens", "tokens"),
        ({**ALPACA, "text": None}, "alpaca", "alpaca"),
        ({"text": "c"}, "text", "text"),
    ],
)  # fmt: skip
def test_what_comes_first_where_several_formats_fit(row: dict[str, Any], named: str, unnamed: str) -> None:
    """The order of TRL 1.16 where a text column is named, as its SFTConfig always does."""
    assert formats_of(row, ReadOptions(text_field="text"))[0] == named
    assert formats_of(row, ReadOptions())[0] == unnamed
    if named == "text":
        assert read(row, text_field="text") == Document(text="c", source=SOURCE)
        assert formats_of(row, ReadOptions(text_field="other"))[0] == unnamed


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        ({**ALPACA, "text": "c"}, "text"),
        ({"conversations": [USER, ANSWER], "text": "c"}, "text"),
        ({"conversations": HUMAN, "text": "c"}, "messages"),
        ({"messages": [USER, ANSWER], "text": "c"}, "messages"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "prompt"),
        ({"prompt": [USER], "completion": [ANSWER], "messages": [USER, ANSWER]}, "prompt"),
    ],
)
def test_the_order_is_that_of_trl(row: dict[str, Any], chosen: str, tiny_tokenizer: Any) -> None:
    """Asked of TRL's own preparation, where TRL is installed."""
    trl = pytest.importorskip("trl")
    if not trl.__version__.startswith("1.16."):
        pytest.skip(f"this asks functions of TRL 1.16 that are not public; here is {trl.__version__}")
    from types import SimpleNamespace

    from datasets import Dataset

    asked: list[str] = []

    def tokenize(processor: Any, given: Any, **more: Any) -> dict[str, Any]:
        row_of = {json.dumps(row.get(key)): key for key in ("text", "prompt", "messages")}
        asked.append(row_of.get(json.dumps(given), "messages" if isinstance(given, list) else "text"))
        return {"input_ids": [1]}

    module = __import__("trl.trainer.sft_trainer", fromlist=["x"])
    trainer = SimpleNamespace(_tokenizer=tiny_tokenizer, chat_template=None, completion_only_loss=False)
    args = SimpleNamespace(
        dataset_num_proc=None,
        dataset_text_field="text",
        assistant_only_loss=False,
        max_length=None,
        shuffle_dataset=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_tokenize", tokenize)
        trl.SFTTrainer._prepare_dataset(trainer, Dataset.from_list([row]), tiny_tokenizer, args, False, None, "train")
    assert asked[0] == chosen


def test_a_column_that_is_null_is_named() -> None:
    for row, key in (({"messages": None}, "messages"), ({"text": None, "id": 1}, "text"),
                     ({"prompt": "a", "completion": None}, "completion")):  # fmt: skip
        with pytest.raises(RowError, match=f"^`{key}` is null: keys seen: "):
            read(row)
    with pytest.raises(RowError, match=r"^`body` is null"):
        read({"body": None}, text_field="body")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "a", "answer": "b"}, "a b"),
        ({"input": "a", "output": "b"}, "a b"),
        ({"prompt": "a", "response": "b"}, "a b"),
        ({"query": "a", "response": "b"}, "a b"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a b"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, "why yes"),
        ({"prompt": "why", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "why yes"),
        ({"chosen": "a b", "rejected": "a c"}, "a b"),
    ],
)
def test_every_option_that_is_advised_reads_the_row(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(RowError, match=r"^unknown format: ") as caught:
        read(row)
    assert ("honed does SFT" in caught.value.detail) is ("chosen" in row)
    for text in re.findall(r"data\.columns='\{(.*?)\}'", caught.value.detail):
        columns = dict(pair.split(": ") for pair in text.split(", "))
        assert repr(columns) in caught.value.detail, "as Python takes it"
        example = read(row, columns=columns)
        messages = [message.content for message in getattr(example, "messages", ())]
        texts = messages or [getattr(example, key) for key in ("prompt", "completion", "text") if hasattr(example, key)]
        assert " ".join(texts) == expected


def test_messages_as_json() -> None:
    """As CSV files and many parquet files hold them."""
    assert turns({"messages": json.dumps([USER, ANSWER])}) == [("user", "why"), ("assistant", "yes")]
    assert turns({"conversations": json.dumps(HUMAN)}) == [("user", "why"), ("assistant", "yes")]
    own = {"chat": json.dumps([{"who": "human", "content": "why"}, {"who": "ai", "content": "yes"}])}
    assert turns(own, columns={"messages": "chat", "role": "who"}) == [("user", "why"), ("assistant", "yes")]
    tools = [{"role": "system", "content": "hm", "tools": '[{"name": "sum"}]'}, USER, ANSWER]
    assert read({"messages": json.dumps(tools)}).tools == ({"name": "sum"},)
    with pytest.raises(RowError, match="messages are not JSON"):
        read({"messages": "[{'role': 'user'}]"})


def test_names_of_roles_in_any_case() -> None:
    named = [{"role": "Human", "content": "why"}, {"role": "AI", "content": "yes"}]
    assert turns({"messages": named}) == [("user", "why"), ("assistant", "yes")]
