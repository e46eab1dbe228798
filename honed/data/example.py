"""The canonical forms of a source row: what every format is turned into before anything else happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a row came from: the file (or data set) and its 1-based line or row number."""

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
        train: True or False where the row itself says so, None to follow `train_on`.
        extra: further keys that a chat template may read (`name`, `tool_calls`, `reasoning_content`), as found.
    """

    role: str
    content: str
    train: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_template_input(self) -> dict[str, Any]:
        """The dict that chat templates expect."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in order, with the tools that the template should announce."""

    messages: tuple[Message, ...]
    source: Source
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCompletion:
    """Plain text in, plain text out, no template: the completion is trained."""

    prompt: str
    completion: str
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Text of which every token is trained (continued pre-training)."""

    text: str
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Token ids made earlier, with a loss weight for each (0 = not trained)."""

    input_ids: tuple[int, ...]
    weights: tuple[float, ...]
    source: Source


Example = Conversation | PromptCompletion | Document | Tokens
