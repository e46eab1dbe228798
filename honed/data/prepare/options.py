"""How rows become training tokens: options of a recipe's data section, `SFTConfig` and `prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from honed.data.mix.mixture import Part
from honed.data.read.formats import FORMATS, ReadOptions, check_columns
from honed.data.templates.view import TRAIN_ON, Masks, Template
from honed.errors import RecipeError
from honed.recipe import DataRecipe

OVERLONG = ("drop", "truncate", "split", "error")
PACKING_STRATEGIES = ("bfd", "bfd_split", "wrapped")
BAD_ROWS = ("error", "drop")
DEFAULT_MAX_LENGTH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """How rows become training tokens.

    Attributes:
        format: a name of `formats.FORMATS`, or "auto": detected row by row.
        template: "auto" (the tokenizer's own), "plain", or the path of a Jinja file.
        template_arguments: further variables of the template.
        columns: key that the format expects -> the dataset's own name for it, as in `{messages: chat, role: who}`.
        system: system prompt for conversations without one.
        train_on: "assistant" (every answer), "last" (the last one), "all" (the whole text, as in TRL: `train` and
            `weight` of messages are ignored), or "completion" (only the answers in rows that separate question and
            answer, the whole text of other rows: TRL's default).
        train_roles: roles whose turns are trained.
        train_reasoning: False sets the weight of reasoning inside trained turns to 0.
        train_tool_calls: False sets the weight of tool calls inside trained turns to 0.
        max_length: maximum tokens of a document, and the capacity of a packed row; None for no limit (no packing then).
        overlong: what to do with longer documents: "drop", "truncate" (keep the start, count what was cut), "split"
            (into parts, each a separate document), "error".
        packing: put several documents into a row, isolated from each other.
        packing_strategy: "bfd" (best-fit decreasing: no document is split), "bfd_split" (also sets overlong=split) or
            "wrapped" (rows are completely full, documents are cut where a row ends; for pre-training).
        share_prefixes: packing puts documents with a common prefix into one row, which holds the prefix once.
        bad_rows: "error" (stop and list them) or "drop" (count them).
        text_field: column of plain-text rows. If set, its text takes precedence over columns of ShareGPT (with `role`
            and `content`) and Alpaca, as in TRL; None: `text`, after all other formats.
    """

    format: str = "auto"
    template: str = "auto"
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    train_on: str = "assistant"
    train_roles: tuple[str, ...] = ("assistant",)
    train_reasoning: bool = True
    train_tool_calls: bool = True
    max_length: int | None = DEFAULT_MAX_LENGTH
    overlong: str = "drop"
    packing: bool = False
    packing_strategy: str = "bfd"
    share_prefixes: bool = False
    bad_rows: str = "error"
    text_field: str | None = None

    def __post_init__(self) -> None:
        _one_of("format", self.format, ("auto", *FORMATS))
        check_columns(self.columns)
        self.masks()
        _one_of("train_on", self.train_on, TRAIN_ON)
        _one_of("overlong", self.overlong, OVERLONG)
        _one_of("bad_rows", self.bad_rows, BAD_ROWS)
        _one_of("packing_strategy", self.packing_strategy, PACKING_STRATEGIES)
        if self.max_length is not None and self.max_length < 2:
            raise RecipeError(
                f"max_length is {self.max_length}.", fix="a document needs at least 2 tokens to be trained"
            )
        if self.packing and self.max_length is None:
            raise RecipeError("packing needs max_length.", fix="set max_length: it is the length of a packed row")

    @property
    def overlong_policy(self) -> str:
        """The policy for overlong documents, with packing taken into account."""
        return "split" if self.packing and self.packing_strategy == "bfd_split" else self.overlong

    @property
    def longest_document(self) -> int | None:
        """Maximum tokens; None for no limit. Wrapped packing cuts documents, so it has no limit."""
        return None if self.packing and self.packing_strategy == "wrapped" else self.max_length

    def masks(self) -> Masks:
        """Which turns, and which parts of them, are trained."""
        return Masks(roles=tuple(self.train_roles), reasoning=self.train_reasoning, tool_calls=self.train_tool_calls)


def options_from(data: DataRecipe) -> PrepareOptions:
    """These options, as set in the data section of a recipe."""
    own = {f.name: getattr(data, f.name) for f in fields(PrepareOptions) if hasattr(data, f.name)}
    return PrepareOptions(**own)


def reading_of(options: PrepareOptions, template: Template | None = None) -> ReadOptions:
    """How to read rows with these options; the template sets the separator in Alpaca questions."""
    return ReadOptions(
        system=options.system,
        alpaca_separator=template.alpaca_separator if template else "\n",
        text_field=options.text_field,
        columns=options.columns,
    )


def part_options(part: Part, options: PrepareOptions) -> PrepareOptions:
    """The options for the rows of one source."""
    return replace(options, **part.reading())


def lowered_length(
    max_length: int | None, tokenizer: Any, positions: int | None = None
) -> tuple[int | None, list[str]]:
    """Lowers the default `max_length` to the limit of the tokenizer or model, with a note; keeps any other value.

    TRL did the same (`min(tokenizer.model_max_length, 1024)`) until its default became a plain 1024.

    Args:
        positions: number of position embeddings of the model; None if it computes them or is not loaded.
    """
    of_tokenizer = getattr(tokenizer, "model_max_length", None)
    limits = [(of_tokenizer, "the tokenizer's limit"), (positions, "the number of the model's positions")]
    limit, name = min([(n, name) for n, name in limits if n is not None], default=(DEFAULT_MAX_LENGTH, ""))
    if max_length != DEFAULT_MAX_LENGTH or limit >= DEFAULT_MAX_LENGTH:
        return max_length, []
    return limit, [f"max_length is {limit}, {name}. Set max_length for another."]


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"{name} is {value!r}.", fix=f"choose one of: {', '.join(known)}")
