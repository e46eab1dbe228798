"""Writes a recipe as YAML with comments: its origin, what was left out and why, and whose defaults it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import yaml

from honed.cli.new.translate import EMPTY, Draft, Line
from honed.recipe import SECTIONS

TOP = ("model", "dtype", "quantization")
SECRET = ("token", "secret", "api_key", "password")
WIDTH = 60


def page(draft: Draft, theirs: Mapping[str, Any], *, of: str) -> str:
    """Returns the whole file.

    Args:
        draft: the recipe's lines, and how each key was handled.
        theirs: the other trainer's file, for the values that were left out.
        of: the other trainer, and the name of its file.
    """
    return "\n".join([f"# Made by `honed new recipe` of {of}.", *_left_out(draft, theirs), *_body(draft)]) + "\n"


def shown(key: str, value: Any) -> str:
    """Returns a key and its value on one short line, without the value if it may be a secret."""
    if any(word in key.lower() for word in SECRET) and isinstance(value, str):
        return f"{key}: ..."
    text = " ".join(_yaml(value).split())
    return f"{key}: {text if len(text) <= WIDTH else text[: WIDTH - 3] + '...'}"


def _left_out(draft: Draft, theirs: Mapping[str, Any]) -> Iterator[str]:
    if draft.refused:
        yield "# NOT translated, so this recipe may train something else:"
    for key, refusal in draft.refused.items():
        yield f"#   {shown(key, theirs[key])} -- {refusal.why}; fix: {refusal.fix}"
    reasons: dict[str, list[str]] = {}
    for key, why in draft.needless.items():
        reasons.setdefault(why, []).append(key if why == EMPTY else shown(key, theirs[key]))
    if reasons:
        yield "# Left out, because it is not needed here:"
    for why, keys in reasons.items():
        yield f"#   {', '.join(keys)} -- {why}"


def _body(draft: Draft) -> Iterator[str]:
    """Yields the lines in the order of the packaged recipes: model, data, adapter, training, output."""
    lines = draft.lines
    yield from (_line(lines[key]) for key in TOP if key in lines)
    for section in (*SECTIONS, "train"):
        names = [f.name for f in fields(SECTIONS[section])] if section in SECTIONS else []
        own = [line for key, line in lines.items() if key.startswith(f"{section}.")]
        own.sort(key=lambda line: names.index(line.key.partition(".")[2]) if names else 0)
        if section in lines:
            yield from ("", _line(lines[section]))
        elif own:
            yield from ("", f"{section}:", *(_line(line, indent="  ") for line in own))
    if "output" in lines:
        yield from ("", _line(lines["output"]))


def _line(line: Line, indent: str = "") -> str:
    name = line.key.rpartition(".")[2]
    if isinstance(line.value, list) and line.value and isinstance(line.value[0], Mapping):
        text = "".join(f"\n{indent}  - {_yaml(item)}" for item in line.value)
        return f"{indent}{name}:{text}"
    comment = f" # {' '.join(line.comment.split())}" if line.comment else ""
    return f"{indent}{name}: {_yaml(line.value)}{comment}"


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
