"""Source row -> Example: one small reader per format, recognised row by row or forced by name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from honed.data.example import Conversation, Document, Example, Message, PromptCompletion, RowError, Source, Tokens
from honed.data.read.messages import (
    LARGEST_WEIGHT,
    check_depth,
    checked,
    parsed_turns,
    read_messages,
    read_template_arguments,
    read_text,
    read_tools,
)
from honed.data.read.unknown import unknown_format
from honed.errors import RecipeError
from honed.recipe import suggest

Row = Mapping[str, Any]
# What `columns` may rename: keys of rows, and keys of the messages in them.
LISTS_OF_MESSAGES = ("messages", "conversations", "prompt", "completion")
OTHER_CONTENT = ("text", "input_ids", "instruction", "input", "output", "response", "history")
ROW_KEYS = (*LISTS_OF_MESSAGES, *OTHER_CONTENT, "system", "tools", "images",
            "labels", "completion_mask", "assistant_masks", "loss_mask")  # fmt: skip
MESSAGE_KEYS = ("role", "content", "from", "value", "train", "weight", "name", "tool_calls", "tool_call_id",
                "reasoning_content", "thinking")  # fmt: skip
IGNORE_INDEX = -100  # PyTorch's default for untrained labels


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How rows are read.

    Attributes:
        system: system prompt for conversations without one.
        alpaca_separator: the text between `instruction` and a non-empty `input`.
        text_field: the column of plain-text rows, if one was named; it then takes precedence over columns of ShareGPT
            (with `role` and `content`) and Alpaca, as in TRL. None: `text`, after all other formats.
        columns: the name that a format expects -> the row's name for it; also keys of messages.
    """

    system: str | None = None
    alpaca_separator: str = "\n"
    text_field: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def text_column(self) -> str:
        """The column with the text of plain-text rows."""
        return self.text_field or "text"


Reader = Callable[[Row, Source, ReadOptions], Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format: its name, the keys that identify a row (any of the sets), its reader, and other keys that it reads."""

    name: str
    keys: tuple[frozenset[str], ...]
    read: Reader
    reads: frozenset[str] = frozenset()

    def matches(self, found: frozenset[Any]) -> bool:
        """Whether these keys of a row (those with values) include all of one of the sets."""
        return any(keys <= found for keys in self.keys)


def read_example(row: Any, source: Source, options: ReadOptions, *, format: str = "auto") -> Example:
    """Reads a row as an Example.

    Args:
        row: a mapping, as parsed from the source.
        source: where the row came from, for messages.
        options: see `ReadOptions`.
        format: a name in `FORMATS`, or "auto" to recognise the row by its keys.

    Raises:
        RowError: the row has no known format, or lacks what its format needs.
    """
    if not isinstance(row, Mapping):
        if isinstance(row, RowError):  # a line that could not be parsed
            raise row
        raise RowError("row is not an object", f"found {type(row).__name__}")
    row = _renamed(row, options.columns) if options.columns else row
    chosen = _format_of(row, format, options)
    try:
        return chosen.read(row, source, options)
    except RowError:
        raise
    except RecursionError:
        raise RowError("nested too deeply", "lists and objects inside each other") from None
    except (TypeError, ValueError, KeyError, AttributeError, StopIteration) as error:
        # A wrong type deep inside a row: the row is at fault, and the user can only fix the row.
        raise RowError(f"not a {chosen.name} row", f"{type(error).__name__}: {error}") from None


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuses names that no format knows.

    Raises:
        RecipeError: a key is unknown, or a value is not a column name.
    """
    for key, column in columns.items():
        if key not in (*ROW_KEYS, *MESSAGE_KEYS):
            raise RecipeError(f"columns: no format has {key!r}.", fix=suggest(str(key), (*ROW_KEYS, *MESSAGE_KEYS)))
        if not isinstance(column, str):
            raise RecipeError(f"columns: {key} is {column!r}.", fix="name a column of the rows")


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """Returns the row, and the messages in it, with the names that formats expect."""
    own = {key: column for key, column in columns.items() if key in ROW_KEYS}
    renamed = _with_names(row, own, "column not found", needed=tuple(own))
    inner = {key: column for key, column in columns.items() if key in MESSAGE_KEYS}
    lists = [key for key in LISTS_OF_MESSAGES if isinstance(renamed.get(key), Sequence)] if inner else []
    for key in lists:
        turns = parsed_turns(renamed[key]) if key in ("messages", "conversations") else renamed[key]
        if not isinstance(turns, str):
            renamed[key] = [_renamed_message(turn, inner) for turn in turns]
    return renamed


def _renamed_message(turn: Any, columns: Mapping[str, str]) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    return _with_names(turn, columns, "key not found in a message", needed=("role", "from"))


def _with_names(row: Row, names: Mapping[str, str], reason: str, *, needed: Sequence[str]) -> dict[str, Any]:
    absent = [column for key, column in names.items() if column not in row and key in needed]
    if absent:
        raise RowError(reason, f"{absent[0]!r} of data.columns; keys seen: {', '.join(map(str, row)) or 'none'}")
    taken = set(names.values())
    kept = {key: value for key, value in row.items() if key not in taken}
    return kept | {key: row[column] for key, column in names.items() if column in row}


def formats_of(row: Row, options: ReadOptions) -> list[str]:
    """Returns the formats whose columns this row has, first the one that is used; none for an unusable row."""
    try:
        row = _renamed(row, options.columns) if options.columns else row
        chosen = _format_of(row, "auto", options)
    except RowError:
        return []
    found = frozenset(key for key, value in row.items() if value is not None)
    others = [f.name for f in FORMATS.values() if f is not chosen and f.name != "text" and f.matches(found)]
    text = ["text"] if chosen.name != "text" and isinstance(row.get(options.text_column), str) else []
    return [chosen.name, *others, *text]


def _format_of(row: Row, name: str, options: ReadOptions) -> Format:
    if name != "auto":
        return FORMATS[name]
    found = format_of_keys(tuple(key for key, value in row.items() if value is not None))
    named = options.text_field
    if named is not None and isinstance(row.get(named), str) and not _is_before_text(found, row):
        return FORMATS["text"]
    if found is None:
        keys = {f.name: f.keys for f in FORMATS.values() if f.name != "text"}
        raise unknown_format(row, {**keys, "text": (frozenset({options.text_column}),)})
    return FORMATS[found]


def _is_before_text(name: str | None, row: Row) -> bool:
    """Whether TRL also prefers this format of the row to the named text column."""
    if name == "messages":
        return "role" in _first(row["messages"])
    if name == "sharegpt":
        return {"from", "value"} <= _first(row["conversations"]).keys()
    return name in ("tokens", "prompt_completion")


def _first(turns: Any) -> Mapping[str, Any]:
    first = turns[0] if isinstance(turns, (list, tuple)) and turns else None
    return first if isinstance(first, Mapping) else {}


@lru_cache(maxsize=1024)  # rows of a file have few different sets of keys
def format_of_keys(keys: tuple[Any, ...]) -> str | None:
    """Returns the first format of a row whose non-empty keys are these; None if there is none."""
    found = frozenset(keys)
    return next((candidate.name for candidate in FORMATS.values() if candidate.matches(found)), None)


def _messages(row: Row, source: Source, options: ReadOptions) -> Conversation:
    return _talk("messages", row, source, options)


def _sharegpt(row: Row, source: Source, options: ReadOptions) -> Conversation:
    return _talk("conversations", row, source, options)


def _talk(key: str, row: Row, source: Source, options: ReadOptions) -> Conversation:
    if isinstance(row[key], str):  # JSON, in tables without nested types
        row = {**row, key: parsed_turns(row[key])}
    return _conversation(read_messages(row[key]), row, source, options)


def _alpaca(row: Row, source: Source, options: ReadOptions) -> Conversation:
    answer = next(row[key] for key in ("output", "response") if row.get(key) is not None)
    instruction, extra = read_text(row["instruction"], "instruction"), read_text(row.get("input") or "", "input")
    question = options.alpaca_separator.join(part for part in (instruction, extra) if part)
    turns: list[tuple[str, str]] = []
    for pair in row.get("history") or ():
        if not (isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2):
            raise RowError("history is not a list of [question, answer] pairs", f"found {pair!r:.80}")
        turns += [("user", read_text(pair[0], "history")), ("assistant", read_text(pair[1], "history"))]
    turns += [("user", question), ("assistant", read_text(answer, "output"))]
    # Questions are marked as untrained, so that an Alpaca row counts as prompt and completion.
    messages = tuple(
        Message(role=role, content=content, train=None if role == "assistant" else False) for role, content in turns
    )
    return _conversation(checked(messages), row, source, options)


def _prompt_completion(row: Row, source: Source, options: ReadOptions) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise RowError("empty answer", "`completion` holds no text")
        if _images(row):
            raise RowError("images in a text-only template", "images need messages, a vision model and its processor")
        return PromptCompletion(prompt=prompt, completion=completion, source=source)
    if not (isinstance(prompt, (list, tuple)) and isinstance(completion, (list, tuple))):
        kinds = f"found {type(prompt).__name__} and {type(completion).__name__}"
        raise RowError(
            "prompt and completion differ in kind", f"both must be texts, or both lists of messages; {kinds}"
        )
    # Conversational: the prompt is context, whatever the roles in it.
    asked = [{**message, "train": False} if isinstance(message, Mapping) else message for message in prompt]
    return _conversation(read_messages([*asked, *completion]), row, source, options)


def _text_row(row: Row, source: Source, options: ReadOptions) -> Document:
    text = read_text(row.get(options.text_column), options.text_column)
    if not text.strip():
        raise RowError("empty text", f"`{options.text_column}` holds no text")
    return Document(text=text, source=source)


def _tokens(row: Row, source: Source, options: ReadOptions) -> Tokens:
    ids = tuple(operator.index(i) for i in row["input_ids"])  # int() would also accept 1.7 and "1"
    if not all(0 <= i < 2**31 for i in ids):
        raise RowError("token ids out of range", f"found {min(ids)} to {max(ids)}")
    weights = _token_weights(row, ids)
    if len(weights) != len(ids):
        raise RowError("mask and input_ids differ in length", f"{len(weights)} and {len(ids)}")
    return Tokens(input_ids=ids, weights=weights, source=source)


def _token_weights(row: Row, ids: tuple[int, ...]) -> tuple[float, ...]:
    """Returns the weights from labels or masks; if there are several of these, all must agree."""
    if row.get("labels") is not None:
        labels = tuple(row["labels"])
        if any(label not in (i, IGNORE_INDEX) for label, i in zip(labels, ids, strict=False)):
            raise RowError("labels differ from input_ids", f"each must be its token's id, unshifted, or {IGNORE_INDEX}")
        return tuple(0.0 if label == IGNORE_INDEX else 1.0 for label in labels)
    masks = [row[key] for key in ("completion_mask", "assistant_masks", "loss_mask") if row.get(key) is not None]
    weights = tuple(map(min, zip(*masks, strict=True))) if masks else (1.0,) * len(ids)
    if not all(0 <= weight <= LARGEST_WEIGHT for weight in weights):
        raise RowError("loss weights out of range", "a mask holds 0, 1 or another finite weight")
    return tuple(map(float, weights))


BESIDE_MESSAGES = frozenset({"system", "tools", "functions", "images", "image", "chat_template_kwargs"})
_MADE_BY_TOKENIZERS = {"attention_mask", "position_ids", "token_type_ids", "special_tokens_mask"}  # beside input_ids
# In the order in which they are tried: TRL's order for the formats that TRL has.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            name="tokens",
            keys=(frozenset({"input_ids"}),),
            read=_tokens,
            reads=frozenset({"labels", "completion_mask", "assistant_masks", "loss_mask", *_MADE_BY_TOKENIZERS}),
        ),
        Format(
            name="prompt_completion",
            keys=(frozenset({"prompt", "completion"}),),
            read=_prompt_completion,
            reads=BESIDE_MESSAGES,
        ),
        Format(name="messages", keys=(frozenset({"messages"}),), read=_messages, reads=BESIDE_MESSAGES),
        Format(name="sharegpt", keys=(frozenset({"conversations"}),), read=_sharegpt, reads=BESIDE_MESSAGES),
        Format(
            name="alpaca",
            keys=(frozenset({"instruction", "output"}), frozenset({"instruction", "response"})),
            read=_alpaca,
            reads=BESIDE_MESSAGES | {"input", "history"},
        ),
        Format(name="text", keys=(frozenset({"text"}),), read=_text_row),
    )
}


def _conversation(messages: tuple[Message, ...], row: Row, source: Source, options: ReadOptions) -> Conversation:
    conversation = Conversation(
        messages=messages,
        source=source,
        tools=_tools(row),
        images=_images(row),
        template_arguments=read_template_arguments(row.get("chat_template_kwargs")),
    )
    if conversation.tools or any(message.extra or message.parts for message in messages):
        check_depth(conversation.tools, [(message.extra, message.parts) for message in messages])
    return _with_system(conversation, row, options)


def _tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    """Returns the row's tools, or those in the system message of MiniMind's rows."""
    for key in ("tools", "functions"):
        if tools := read_tools(row.get(key)):
            return tools
    first = next(iter(row.get("conversations") or row.get("messages") or ()), None)
    return read_tools(first.get("tools")) if isinstance(first, Mapping) else ()


def _images(row: Row) -> tuple[Any, ...]:
    """Returns the contents of the row's image columns; one or several images."""
    found = next((row[key] for key in ("images", "image") if row.get(key) is not None), ())
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)


def _with_system(conversation: Conversation, row: Row, options: ReadOptions) -> Conversation:
    """Adds the row's system prompt, or that of the options, to a conversation without a system message at its start."""
    own, first = row.get("system"), conversation.messages[0]
    if own and first.role == "system" and read_text(own, "system").strip() != first.content.strip():
        raise RowError("two system prompts", "`system` and the first message differ: join them, or take one out")
    system = own or options.system
    if not system or first.role == "system":
        return conversation
    message = Message(role="system", content=read_text(system, "system"))
    return replace(conversation, messages=(message, *conversation.messages))
