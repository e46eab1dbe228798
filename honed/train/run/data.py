"""A recipe's data: files or weighted sources, the held-out share, and the questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from honed.data.mix.mixture import Mixture, Part, mixture_from
from honed.data.mix.split import split
from honed.data.read.sources import STARTER, read_rows, starter_file
from honed.errors import DataError, RecipeError
from honed.recipe import DataRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Training rows, evaluation rows (None without evaluation), and a note on how they were split ("" for none)."""

    train: Any
    held_out: Any
    note: str = ""


def check_data(data: DataRecipe, *, seed: int, max_steps: int) -> None:
    """Refuses options that cannot work, before any data is read.

    Raises:
        RecipeError: options are mutually exclusive, or a source is invalid.
    """
    if data.workers < 1:
        raise RecipeError(f"data.workers is {data.workers}.", fix="set 1 or more")
    if data.sources and data.files != DataRecipe().files:
        raise RecipeError("data.files and data.sources are both set.", fix="move the files into data.sources")
    if data.held_out and data.eval_share is not None:
        raise RecipeError("data.held_out and data.eval_share are both set.", fix="leave one of them out")
    if data.eval_share is not None and not 0 < data.eval_share < 1:
        raise RecipeError(f"data.eval_share is {data.eval_share}.", fix="set a share above 0 and below 1, such as 0.02")
    if data.streaming and max_steps < 1:
        raise RecipeError("data.streaming has no end, and nothing says when to stop.", fix="set max_steps=NUMBER")
    if data.eval_share is not None and data.streaming:
        raise RecipeError(
            "data.eval_share needs all rows to be compared, and data.streaming never holds them.",
            fix="name a separate file with data.held_out",
        )
    _mixture(data, seed)


def run_data(data: DataRecipe, *, seed: int) -> RunData:
    """Reads the training and evaluation rows.

    Raises:
        HonedError: see `check_data`, `sources.read_rows` and `split.split`.
    """
    if data.eval_share is None:
        rows = _mixture(data, seed) if data.sources else list(data.files)
        return RunData(train=rows, held_out=data.held_out)
    mixture = _mixture(data, seed)
    parted = split(mixture, data.eval_share, seed=seed, columns=data.columns, text_field=data.text_field)
    return RunData(train=parted.train, held_out=parted.held_out, note=parted.note)


def read_questions(name: str) -> list[str]:
    """Reads the `prompt` of every row of a JSONL file, or of the packaged held-out set.

    Raises:
        DataError: the file cannot be read, or a row has no prompt.
    """
    path = starter_file("held_out.jsonl") if name == STARTER else Path(name)
    questions = []
    for source, row in read_rows(str(path)):
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"{source}: no `prompt`, found {row!r:.80}", fix='each line must be like {"prompt": "..."}')
        questions.append(prompt)
    return questions


def _mixture(data: DataRecipe, seed: int) -> Mixture:
    if data.sources:
        return mixture_from(data.sources, seed=seed)
    return Mixture(parts=(Part(data=list(data.files), name=", ".join(data.files)),), seed=seed)
