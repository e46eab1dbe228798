"""A row as the model will see it, as text in which trained tokens stand out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TextIO

from honed.data.encode.render import Rendered
from honed.data.example import RowError
from honed.data.lint.tokens import TokenCheck
from honed.data.lint.view import ShownToken, TokenViewer, visible
from honed.data.prepare.options import PrepareOptions, reading_of
from honed.data.read.formats import read_example
from honed.quantities import counted

SHORT_CONTEXT = 240  # characters kept at each end of a long untrained stretch
HINT = "; --context all shows them"
NO_TOKENS = "(the messages only: name a model to see the template, the tokens and what is trained)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How trained tokens stand out.

    Attributes:
        paint: "colour", "reverse" (a terminal without colours) or "brackets" (no terminal).
        tokens, ids: mark where tokens begin, and show their ids.
        whole: show long untrained stretches in full.
        brief: shorten long trained stretches too.
    """

    paint: str = "brackets"
    tokens: bool = False
    ids: bool = False
    whole: bool = False
    brief: bool = False

    @classmethod
    def of(cls, stream: TextIO, **choices: bool) -> Style:
        """The style for this stream and environment (https://no-color.org)."""
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        paint = "brackets" if not terminal else "reverse" if os.environ.get("NO_COLOR") else "colour"
        return cls(paint=paint, **choices)

    def around(self, text: str, weight: float, special: bool) -> str:
        """Marks the text of adjacent tokens of equal weight."""
        if self.paint == "brackets":
            return f"«{_weight_mark(weight)}{text}»" if weight else text
        code = ("7" if self.paint == "reverse" else "30;42" if weight == 1 else "30;43") if weight else "2"
        if not weight and not special:
            return text
        # end the colour before each line end, otherwise it would fill the line
        marked = text if self.tokens or not weight else text.replace("\n", "⏎\n")
        lines = (_weight_mark(weight) + marked).split("\n")
        return "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else "" for line in lines)


def row_text(
    found: tuple[Any, Any], options: PrepareOptions, tokenizer: Any, style: Style, *, explained: bool = True
) -> str:
    """One row as the model will see it: every view, with trained tokens marked, and a legend if `explained`."""
    source, row = found
    try:
        if tokenizer is None:
            example = read_example(row, source, reading_of(options), format=options.format)
            return "\n".join([visible(str(source)), *_messages(example), "", NO_TOKENS])
        views = shown_views(found, options, tokenizer)
    except RowError as error:
        raw = visible(json.dumps(row, ensure_ascii=False, indent=2, default=str))
        return f"{visible(str(source))}\nThis row cannot be trained on: {visible(str(error))}\n\n{raw}"
    parts = [visible(str(source))]
    for head, tokens in views:
        parts += ["", head, view_text(tokens, style)]
    return "\n".join([*parts, "", legend(style)] if explained else parts)


def shown_views(found: tuple[Any, Any], options: PrepareOptions, tokenizer: Any) -> list[tuple[str, list[ShownToken]]]:
    """A headline and the tokens of each view of a source row, before the length policy.

    Raises:
        RowError: the row cannot be trained on.
    """
    source, row = found
    check = TokenCheck(tokenizer, options)
    example = read_example(row, source, check.reading, format=options.format)
    [views] = check.encode([(example, check.plan(example))])
    viewer = TokenViewer(check.tokenizer, check.special_ids)
    return [(_head(n, len(views), view, options), viewer.tokens(view)) for n, view in enumerate(views, start=1)]


def _messages(example: Any) -> Iterator[str]:
    for message in getattr(example, "messages", ()):
        mark = "" if message.train is None or message.role != "assistant" else f" (train: {message.train})"
        yield f"\n{message.role}{mark}:\n{visible(message.content)}"
        for key, value in message.extra.items():
            yield visible(f"  {key}: {json.dumps(value, ensure_ascii=False, default=str)}")
    for name in ("prompt", "completion", "text"):
        if hasattr(example, name):
            yield f"\n{name}:\n{visible(getattr(example, name))}"
    if hasattr(example, "input_ids"):
        yield f"\n{counted(len(example.input_ids), 'token id')}: {' '.join(map(str, example.input_ids[:50]))} ..."


def _head(number: int, of: int, view: Rendered, options: PrepareOptions) -> str:
    """'view 1 of 2: 30 tokens, 12 of them trained'."""
    too_long = options.max_length is not None and len(view) > options.max_length
    note = f"; longer than max_length {options.max_length:,} (overlong={options.overlong})" if too_long else ""
    return f"view {number} of {of}: {counted(len(view), 'token')}, {view.trained:,} of them trained{note}"


def view_text(tokens: Iterable[ShownToken], style: Style) -> str:
    """The tokens as text, adjacent ones of equal weight marked together; special ones apart, except in brackets."""
    apart = style.paint != "brackets"
    stretches = []
    for (weight, special), group in groupby(tokens, key=lambda t: (t.weight, t.special and apart)):
        text = _joined(list(group), style)
        if not style.whole and (style.brief or not weight):
            text = shortened(text, hint="" if style.brief else HINT)
        stretches.append(style.around(text, weight, special))
    return "".join(stretches)


def _joined(tokens: list[ShownToken], style: Style) -> str:
    if not style.tokens:
        return "".join(token.text for token in tokens)
    return "".join(_marked(token, style.ids) for token in tokens)


def _marked(token: ShownToken, ids: bool) -> str:
    """A token after a bar, with its ids; a line break in it is shown as ⏎ and made after the token."""
    own = f"⟨{' '.join(map(str, token.ids))}⟩" if ids else ""
    return "|" + token.text.replace("\n", "⏎") + own + ("\n" if "\n" in token.text else "")


def shortened(text: str, *, hint: str = HINT) -> str:
    """Both ends of a long stretch, and how much is omitted between them."""
    left_out = len(text) - 2 * SHORT_CONTEXT
    if left_out < SHORT_CONTEXT:
        return text
    return f"{text[:SHORT_CONTEXT]}\n[... {left_out:,} characters{hint} ...]\n{text[-SHORT_CONTEXT:]}"


def _weight_mark(weight: float) -> str:
    return f"{weight:g}:" if weight not in (0, 1) else ""


def legend(style: Style) -> str:
    """A line that explains the marks."""
    shown = {"brackets": "«...»", "reverse": "reversed", "colour": "coloured"}[style.paint]
    marks = "; | begins a token" if style.tokens else ""
    return f"({shown}: trained; weights other than 1 are shown before the text{marks})"
