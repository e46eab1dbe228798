"""What `honed data` prints: findings as text and JSON, and a row with its trained tokens standing out."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO

from honed.data.formats import RowError
from honed.data.lint import Checked
from honed.data.lint_kinds import SEVERITIES, Finding
from honed.data.lint_tokens import TokenCheck, reading_of
from honed.data.lint_view import ShownToken, TokenViewer, visible

if TYPE_CHECKING:
    from honed.cli.data import Plan
    from honed.data.prepare import PrepareOptions

WIDTH = 100
SHORT_CONTEXT = 240  # characters kept at each end of a long untrained stretch
PLURALS = {"error": "Errors", "warning": "Warnings", "hint": "Hints"}


def fails(checked: Checked, fail_on: str) -> bool:
    """True where a finding is as grave as `fail_on` or graver."""
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on in SEVERITIES else ()
    return any(finding.kind.severity in grave for finding in checked.findings)


def as_json(checked: Checked, plan: Plan) -> str:
    """Everything found, as one JSON object in ASCII (so that no row can command the terminal)."""
    counts = {severity: sum(f.kind.severity == severity for f in checked.findings) for severity in SEVERITIES}
    return json.dumps(
        {
            "files": list(plan.files),
            "evaluation": plan.evaluation,
            "model": plan.model,
            "ledger": checked.ledger.as_dict(),
            "found": counts,
            "findings": [finding.as_dict() for finding in checked.findings],
            "lengths": length_facts(checked),
            "scripts": checked.scripts,
            "notes": [*checked.notes, *plan.notes],
        }
    )


def as_text(checked: Checked, plan: Plan) -> str:
    """The ledger, the findings by severity, and what was not checked."""
    by = f" for {plan.model}" if plan.model else ""
    lines = [f"{', '.join(plan.files)}{by}", ""]
    lines += checked.ledger.summary().splitlines() if plan.model else [_plain_summary(checked)]
    if facts := length_facts(checked):
        lines.append(
            f"{facts['unit']} of a row: half have at most {facts['median']:,}, "
            f"99% at most {facts['p99']:,}, the longest {facts['longest']:,}"
        )
    for severity in SEVERITIES:
        kinds = dict.fromkeys(f.kind.name for f in checked.findings if f.kind.severity == severity)
        lines += ["", PLURALS[severity]] if kinds else []
        for name in kinds:
            lines += _of_one_kind([finding for finding in checked.findings if finding.kind.name == name])
    lines += [
        "",
        *([] if checked.findings else ["Nothing was found."]),
        *(f"note: {note}" for note in (*checked.notes, *plan.notes)),
    ]
    return "\n".join(visible(line) for line in lines).rstrip()


def length_facts(checked: Checked) -> dict[str, Any]:
    """The spread of the rows' lengths; empty without rows."""
    import numpy as np

    if not len(checked.lengths):
        return {}
    median, high = np.quantile(checked.lengths, [0.5, 0.99], method="higher")
    return {
        "unit": checked.unit,
        "median": int(median),
        "p99": int(high),
        "longest": int(checked.lengths.max()),
    }


def _plain_summary(checked: Checked) -> str:
    ledger = checked.ledger
    lines = [f"{ledger.rows_in:,} rows in, {ledger.rows_trained:,} can be read, {ledger.rows_dropped.total():,} cannot"]
    return "\n".join(lines + [f"  {n:,}: {reason}" for reason, n in ledger.rows_dropped.most_common()])


def _of_one_kind(found: list[Finding]) -> Iterator[str]:
    """Findings of one kind: what it means and how to mend it stand there once."""
    kind = found[0].kind
    yield ""
    yield f"  {kind.name.replace('_', ' ')}: {kind.says}"
    for finding in found:
        yield f"  {finding.count:>9,}  {finding.subject or 'rows'}"
        # what to do about an unusable row is in its detail: that is shown whole, and unbroken, to be copied
        most = 2000 if kind.name == "unusable" else 110
        before = ""
        for spot in finding.spots:
            detail = _flat(spot.detail, most)
            yield f"{'':13}{spot.source}{'  ' + detail if detail != before else ''}"
            before = detail
    yield from textwrap.wrap(f"fix: {kind.fix}", WIDTH, initial_indent=" " * 13, subsequent_indent=" " * 18)


def _flat(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How trained tokens stand out.

    Attributes:
        paint: "colour", "reverse" (a terminal without colours) or "brackets" (anything that is no terminal).
        tokens: mark where tokens begin.
        ids: write the ids behind tokens.
        whole: show all of long untrained stretches.
    """

    paint: str = "brackets"
    tokens: bool = False
    ids: bool = False
    whole: bool = False

    @classmethod
    def of(cls, stream: TextIO, **choices: bool) -> Style:
        """What suits this stream and the environment (https://no-color.org)."""
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        paint = "brackets" if not terminal else "reverse" if os.environ.get("NO_COLOR") else "colour"
        return cls(paint=paint, **choices)

    def around(self, text: str, weight: float, special: bool) -> str:
        """The text of neighbouring tokens of one weight."""
        if self.paint == "brackets":
            return f"«{_weight_mark(weight)}{text}»" if weight else text
        code = ("7" if self.paint == "reverse" else "30;42" if weight == 1 else "30;43") if weight else "2"
        if not weight and not special:
            return text
        # the colour ends before each line end, or it would fill the line
        marked = text if self.tokens or not weight else text.replace("\n", "⏎\n")
        lines = (_weight_mark(weight) + marked).split("\n")
        return "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else "" for line in lines)


def row_text(found: tuple[Any, Any], options: PrepareOptions, tokenizer: Any, style: Style) -> str:
    """One row as the model will see it: every view, with what is trained standing out."""
    from honed.data.formats import read_example

    source, row = found
    tokens = TokenCheck(tokenizer, options) if tokenizer is not None else None
    reading = tokens.reading if tokens else reading_of(options)
    try:
        example = read_example(row, source, reading, format=options.format)
        if tokens is None:
            return "\n".join([visible(str(source)), *_messages(example), "", NO_TOKENS])
        views = tokens.encode([(example, tokens.plan(example))])[0]
    except RowError as error:
        raw = visible(json.dumps(row, ensure_ascii=False, indent=2, default=str))
        return f"{visible(str(source))}\nThis row cannot be trained on: {visible(str(error))}\n\n{raw}"
    viewer = TokenViewer(tokens.tokenizer, tokens.special_ids)
    parts = [visible(str(source))]
    for number, view in enumerate(views, start=1):
        parts += ["", _view_head(number, len(views), view, options), _view_text(viewer.tokens(view), style)]
    return "\n".join([*parts, "", _legend(style)])


NO_TOKENS = "(the messages only: name a model to see the template, the tokens and what is trained)"


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
        yield f"\n{len(example.input_ids):,} token ids: {' '.join(map(str, example.input_ids[:50]))} ..."


def _view_head(number: int, of: int, view: Any, options: PrepareOptions) -> str:
    too_long = options.max_length is not None and len(view) > options.max_length
    note = f"; longer than max_length {options.max_length:,} (overlong={options.overlong})" if too_long else ""
    return f"view {number} of {of}: {len(view):,} tokens, {view.trained:,} of them trained{note}"


def _view_text(tokens: Iterable[ShownToken], style: Style) -> str:
    """Neighbours of one weight together; special tokens apart where only colour would show them."""
    apart = style.paint != "brackets"
    stretches = []
    for (weight, special), group in groupby(tokens, key=lambda t: (t.weight, t.special and apart)):
        text = _joined(list(group), style)
        stretches.append(style.around(text if weight or style.whole else shortened(text), weight, special))
    return "".join(stretches)


def _joined(tokens: list[ShownToken], style: Style) -> str:
    if not style.tokens:
        return "".join(token.text for token in tokens)
    return "".join(_marked(token, style.ids) for token in tokens)


def _marked(token: ShownToken, ids: bool) -> str:
    """A token behind a bar, with its ids; a line ends behind the token that ends it."""
    own = f"⟨{' '.join(map(str, token.ids))}⟩" if ids else ""
    return "|" + token.text.replace("\n", "⏎") + own + ("\n" if "\n" in token.text else "")


def shortened(text: str) -> str:
    """Both ends of a long untrained stretch, and how much is left out between them."""
    left_out = len(text) - 2 * SHORT_CONTEXT
    if left_out < SHORT_CONTEXT:
        return text
    return (
        f"{text[:SHORT_CONTEXT]}\n[... {left_out:,} characters; --context all shows them ...]\n{text[-SHORT_CONTEXT:]}"
    )


def _weight_mark(weight: float) -> str:
    return f"{weight:g}:" if weight not in (0, 1) else ""


def _legend(style: Style) -> str:
    shown = {"brackets": "«...»", "reverse": "reversed", "colour": "coloured"}[style.paint]
    marks = "; | begins a token" if style.tokens else ""
    return f"({shown}: trained; weights other than 1 stand before the text{marks})"
