"""Source row -> Example: one small reader per format, recognised row by row or forced by name."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from honed.data.example import Conversation, Document, Example, Message, PromptCompletion, Source, Tokens

Row = Mapping[str, Any]
IGNORE_INDEX = -100  # PyTorch's own default for labels that are not trained

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


class RowError(ValueError):
    """This row cannot be used. `reason` is the same for all rows with the same fault, so that it can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How rows are read.

    Attributes:
        system: system prompt for conversations that have none of their own.
        alpaca_separator: what stands between `instruction` and a non-empty `input`.
        text_field: the column of plain-text rows.
    """

    system: str | None = None
    alpaca_separator: str = "\n"
    text_field: str = "text"


Reader = Callable[[Row, Source, ReadOptions], Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format's name, the keys by which a row is recognised (any of the sets), and its reader."""

    name: str
    keys: tuple[frozenset[str], ...]
    read: Reader

    def matches(self, row: Row) -> bool:
        """True when the row has all keys of one of the sets."""
        return any(all(row.get(key) is not None for key in keys) for keys in self.keys)


def read_example(row: Any, source: Source, options: ReadOptions, *, format: str = "auto") -> Example:
    """One row as an Example.

    Args:
        row: a mapping as parsed from the source.
        source: where it came from, kept for messages.
        options: see `ReadOptions`.
        format: a name of `FORMATS`, or "auto" to recognise the row by its keys.

    Raises:
        RowError: the row has no known format, or does not hold what its format needs.
    """
    if not isinstance(row, Mapping):
        raise RowError("row is not an object", f"found {type(row).__name__}")
    chosen = _format_of(row, format, options)
    try:
        return chosen.read(row, source, options)
    except RowError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, StopIteration) as error:
        # a wrong type deep inside a row: the row is at fault, and the reader of the message can only mend the row
        raise RowError(f"not a {chosen.name} row", f"{type(error).__name__}: {error}") from None


def _format_of(row: Row, name: str, options: ReadOptions) -> Format:
    if name != "auto":
        return FORMATS[name]
    for candidate in FORMATS.values():
        if candidate.matches(row):
            return candidate
    if isinstance(row.get(options.text_field), str):
        return FORMATS["text"]
    known = "; ".join(f"{f.name} ({' or '.join('+'.join(sorted(k)) for k in f.keys)})" for f in FORMATS.values())
    raise RowError("unknown format", f"keys seen: {', '.join(map(str, row)) or 'none'}. Formats known: {known}")


def _messages(row: Row, source: Source, options: ReadOptions) -> Conversation:
    return _conversation(row["messages"], row, source, options)


def _sharegpt(row: Row, source: Source, options: ReadOptions) -> Conversation:
    return _conversation(row["conversations"], row, source, options)


def _alpaca(row: Row, source: Source, options: ReadOptions) -> Conversation:
    answer = next(row[key] for key in ("output", "response") if row.get(key) is not None)
    instruction, extra = _text(row["instruction"], "instruction"), _text(row.get("input") or "", "input")
    question = options.alpaca_separator.join(part for part in (instruction, extra) if part)
    turns: list[tuple[str, str]] = []
    for pair in row.get("history") or ():
        if not (isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2):
            raise RowError("history is not a list of [question, answer] pairs", f"found {pair!r:.80}")
        turns += [("user", _text(pair[0], "history")), ("assistant", _text(pair[1], "history"))]
    turns += [("user", question), ("assistant", _text(answer, "output"))]
    # questions are marked as not trained, so that an Alpaca row counts as prompt and completion
    messages = tuple(
        Message(role=role, content=content, train=None if role == "assistant" else False) for role, content in turns
    )
    conversation = Conversation(messages=_checked(messages), source=source)
    return _with_system(conversation, row, options)


def _prompt_completion(row: Row, source: Source, options: ReadOptions) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise RowError("empty answer", "`completion` holds no text")
        return PromptCompletion(prompt=prompt, completion=completion, source=source)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise RowError("prompt and completion differ in kind", "both must be texts, or both lists of messages")
    # conversational: what stands in the prompt is context, whatever its role
    asked = [{**message, "train": False} for message in prompt]
    return _conversation([*asked, *completion], row, source, options)


def _text_row(row: Row, source: Source, options: ReadOptions) -> Document:
    text = _text(row.get(options.text_field), options.text_field)
    if not text.strip():
        raise RowError("empty text", f"`{options.text_field}` holds no text")
    return Document(text=text, source=source)


def _tokens(row: Row, source: Source, options: ReadOptions) -> Tokens:
    ids = tuple(operator.index(i) for i in row["input_ids"])  # int() would also take 1.7 and "1"
    if not all(0 <= i < 2**31 for i in ids):
        raise RowError("token ids out of range", f"found {min(ids)} to {max(ids)}")
    weights = _token_weights(row, ids)
    if len(weights) != len(ids):
        raise RowError("mask and input_ids differ in length", f"{len(weights)} and {len(ids)}")
    return Tokens(input_ids=ids, weights=weights, source=source)


def _token_weights(row: Row, ids: tuple[int, ...]) -> tuple[float, ...]:
    """Labels say which tokens are trained; masks may come alone or together, and then all must agree."""
    if row.get("labels") is not None:
        labels = tuple(row["labels"])
        if any(label not in (i, IGNORE_INDEX) for label, i in zip(labels, ids, strict=False)):
            raise RowError("labels differ from input_ids", f"each must be its token's id, unshifted, or {IGNORE_INDEX}")
        return tuple(0.0 if label == IGNORE_INDEX else 1.0 for label in labels)
    masks = [row[key] for key in ("completion_mask", "assistant_masks", "loss_mask") if row.get(key) is not None]
    weights = tuple(float(min(column)) for column in zip(*masks, strict=True)) if masks else (1.0,) * len(ids)
    if not all(0 <= weight < math.inf for weight in weights):
        raise RowError("loss weights out of range", "a mask holds 0, 1 or another finite weight")
    return weights


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(name="tokens", keys=(frozenset({"input_ids"}),), read=_tokens),
        Format(name="messages", keys=(frozenset({"messages"}),), read=_messages),
        Format(name="sharegpt", keys=(frozenset({"conversations"}),), read=_sharegpt),
        Format(name="prompt_completion", keys=(frozenset({"prompt", "completion"}),), read=_prompt_completion),
        Format(
            name="alpaca",
            keys=(frozenset({"instruction", "output"}), frozenset({"instruction", "response"})),
            read=_alpaca,
        ),
        Format(name="text", keys=(frozenset({"text"}),), read=_text_row),
    )
}


def _conversation(turns: Any, row: Row, source: Source, options: ReadOptions) -> Conversation:
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise RowError("no messages", f"expected a list of messages, found {turns!r:.80}")
    messages = _checked(tuple(_message(turn) for turn in turns))
    conversation = Conversation(messages=messages, source=source, tools=_tools(row.get("tools")))
    return _with_system(conversation, row, options)


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError("message is not an object", f"found {turn!r:.80}")
    # not get(key, default): Arrow fills the keys that other rows have with None
    role = turn["role"] if turn.get("role") is not None else turn.get("from")
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise RowError("unknown role", f"found {role!r}; known: {', '.join(ROLES)}")
    train = turn.get("train")
    if train not in (None, True, False):
        raise RowError("train is not true or false", f"found {train!r:.80}")
    known = {"role", "from", "content", "value", "train"}
    extra = {key: value for key, value in turn.items() if key not in known and value is not None}
    text = "" if content is None and extra.get("tool_calls") else _text(content, "content")
    return Message(role=ROLES[role.lower()], content=text, train=None if train is None else bool(train), extra=extra)


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    for number, message in enumerate(messages, start=1):
        if message.role == "assistant" and not message.content.strip() and not message.extra.get("tool_calls"):
            raise RowError("empty answer", f"message {number} (assistant) holds no text")
    if not any(message.role == "assistant" for message in messages):
        raise RowError("nothing to train", "the conversation has no assistant message")
    return messages


def _with_system(conversation: Conversation, row: Row, options: ReadOptions) -> Conversation:
    """A conversation that starts without a system message gets the row's own, else that of the options."""
    system = row.get("system") or options.system
    if not system or conversation.messages[0].role == "system":
        return conversation
    message = Message(role="system", content=_text(system, "system"))
    return Conversation(
        messages=(message, *conversation.messages), source=conversation.source, tools=conversation.tools
    )


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    if not tools:
        return ()
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise RowError("tools are not JSON", str(error)) from None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("tools are not a list of objects", f"found {tools!r:.80}")
    return tuple(tools)


def _text(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)  # OpenAI's typed parts
    raise RowError("text expected", f"`{key}` holds {type(value).__name__}: {value!r:.80}")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
