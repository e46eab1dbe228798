"""The canonical forms of a source row, and the error for rows that have none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Role names used by datasets -> the role that chat templates expect.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "ai", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "function_response", "tool_response"), "tool"),
}
# Keys for reasoning in different datasets and templates.
REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The origin of a row: the file (or dataset) and its 1-based line or row number."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: lower case, `system`, `user`, `assistant` or `tool`.
        content: the text.
        train: True or False if the row sets it, None to follow `train_on`.
        weight: loss weight of this turn's tokens if the row sets it; 0 means not trained, like `train=False`.
        extra: further keys that a chat template may read (`name`, `tool_calls`, `reasoning_content`), unchanged.
        parts: OpenAI's typed parts, unchanged, if some are not text; only vision-language models can use them.
    """

    role: str
    content: str
    train: bool | None = None
    weight: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Any, ...] = ()

    @property
    def loss_weight(self) -> float:
        """Loss weight of this turn, if its role is trained."""
        if self.train is False:
            return 0.0
        return 1.0 if self.weight is None else self.weight

    @property
    def reasoning(self) -> str | None:
        """Reasoning stored under a key of its own."""
        found = (self.extra.get(key) for key in REASONING)
        return next((text for text in found if isinstance(text, str) and text.strip()), None)

    def as_template_input(self) -> dict[str, Any]:
        """The dict that chat templates expect; reasoning is stored under both keys that templates read."""
        if not self.extra:
            return {"role": self.role, "content": self.content}
        given = {"role": self.role, "content": self.content, **self.extra}
        reasoning = next((given[key] for key in REASONING if given.get(key) is not None), None)
        return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in order, with the tools that the template should announce, and the images that they speak of.

    `template_arguments` are further variables of the template, of this conversation alone.
    """

    messages: tuple[Message, ...]
    source: Source
    tools: tuple[Mapping[str, Any], ...] = ()
    images: tuple[Any, ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_images(self) -> bool:
        """True if it has images or other media, in a message or separately."""
        return bool(self.images) or any(message.parts for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCompletion:
    """Plain text without a template: a prompt and a completion, of which the completion is trained."""

    prompt: str
    completion: str
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Text in which every token is trained (continued pre-training)."""

    text: str
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Existing token ids, with a loss weight for each (0 = not trained)."""

    input_ids: tuple[int, ...]
    weights: tuple[float, ...]
    source: Source


Example = Conversation | PromptCompletion | Document | Tokens


class RowError(ValueError):
    """This row cannot be used. `reason` is the same for all rows with the same fault, so that they can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)
