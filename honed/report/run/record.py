"""Reads a run folder defensively: any file may be missing, truncated or garbled.

    metrics.jsonl --.
    ledger.json   --|
    samples.json  --+--> SavedRun: typed, every field optional, with a sentence for each missing file
    recipe.yaml   --|
    run.json      --|
    worst_steps.json, not_finite.jsonl: not every run has them

Unknown keys are kept (`others`) and shown on the page, so that nothing is dropped silently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from honed.errors import RunError
from honed.quantities import counted
from honed.report.json_values import finite, mapping, text_of
from honed.report.ledger import SavedLedger, parse_ledger

# Each file that a run writes, and what is missing on the page without it.
RUN_FILES = {
    "run.json": "status, times, versions and device are unknown",
    "metrics.jsonl": "there is nothing to draw",
    "ledger.json": "what became of each row is unknown",
    "samples.json": "there are no answers from before and after",
    "recipe.yaml": "the recipe cannot be shown",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many of `of` answers stopped by themselves, and how many had the form."""

    stopped: float | None
    followed_form: float | None
    of: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One prompt with the answers before and after training; None for what was not recorded."""

    prompt: str
    before: str | None
    after: str | None
    before_stopped: bool | None
    after_stopped: bool | None
    before_follows: bool | None
    after_follows: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Answers before and after training; `rule` is the required form, in words."""

    before: Score
    after: Score
    rule: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """One run folder in memory.

    `metrics` are the logged objects in file order; `facts` is run.json; `missing` names the files of `RUN_FILES` that
    do not exist; `problems` are sentences about what could not be read; `worst_steps` are the steps with the highest
    losses, and `not_taken` those whose loss or gradient was not finite, with their rows.
    """

    name: str
    metrics: tuple[Mapping[str, object], ...] = ()
    ledger: SavedLedger | None = None
    samples: Samples | None = None
    recipe: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    worst_steps: tuple[Mapping[str, object], ...] = ()
    not_taken: tuple[Mapping[str, object], ...] = ()


def read_run(run_dir: Path) -> SavedRun:
    """Reads a run folder, finished or not.

    Raises:
        RunError: `run_dir` is not a folder. Missing or garbled files inside are recorded, never raised.
    """
    if not run_dir.is_dir():
        raise RunError(f"{run_dir} is not a folder.", fix="name the output folder of a run (output_dir in its recipe)")
    problems: list[str] = []
    texts = {name: _read_text(run_dir / name, problems) for name in RUN_FILES}
    ledger = _read_object("ledger.json", texts, problems)
    samples = _read_object("samples.json", texts, problems)
    worst = _object_or_none(_read_text(run_dir / "worst_steps.json", problems) or "{}")
    if worst is None:
        problems.append("worst_steps.json does not hold a JSON object; the worst steps are unknown.")
    return SavedRun(
        name=run_dir.resolve().name,
        metrics=parse_lines("metrics.jsonl", texts["metrics.jsonl"] or "", problems),
        ledger=None if ledger is None else parse_ledger(ledger),
        samples=None if samples is None else parse_samples(samples),
        recipe=texts["recipe.yaml"],
        facts=_read_object("run.json", texts, problems) or {},
        missing=tuple(name for name in RUN_FILES if not (run_dir / name).exists()),
        worst_steps=_objects(mapping(worst).get("steps")),
        not_taken=parse_lines("not_finite.jsonl", _read_text(run_dir / "not_finite.jsonl", problems) or "", problems),
        problems=tuple(problems),
    )


def parse_lines(name: str, text: str, problems: list[str]) -> tuple[Mapping[str, object], ...]:
    """The objects of a JSON-lines text; other lines are skipped, and counted in a sentence added to `problems`."""
    # Not splitlines(), which would split a line at U+2028 inside a string.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    parsed = [(number, _object_or_none(line)) for number, line in lines]
    bad = [number for number, value in parsed if value is None]
    if bad:
        last = " (the last one: the run was cut off while writing)" if bad == [lines[-1][0]] else f" (line {bad[0]})"
        was = "was" if len(bad) == 1 else "were"
        problems.append(f"{name}: {counted(len(bad), 'line')} could not be read and {was} skipped{last}.")
    return tuple(value for _, value in parsed if value is not None)


def parse_samples(raw: Mapping[str, object]) -> Samples:
    """Samples from their JSON; values of the wrong type count as not recorded."""
    answers = raw.get("answers")
    return Samples(
        before=_score(mapping(raw.get("before"))),
        after=_score(mapping(raw.get("after"))),
        rule=text_of(raw.get("rule")) or "",
        answers=tuple(_answer(mapping(item)) for item in answers) if isinstance(answers, list) else (),
    )


def _objects(value: object) -> tuple[Mapping[str, object], ...]:
    return tuple(item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _score(raw: Mapping[str, object]) -> Score:
    return Score(
        stopped=finite(raw.get("stopped")),
        followed_form=finite(raw.get("followed_form")),
        of=finite(raw.get("of")),
    )


def _answer(raw: Mapping[str, object]) -> Answer:
    return Answer(
        prompt=text_of(raw.get("prompt")) or "",
        before=text_of(raw.get("before")),
        after=text_of(raw.get("after")),
        before_stopped=_flag(raw.get("before_stopped")),
        after_stopped=_flag(raw.get("after_stopped")),
        before_follows=_flag(raw.get("before_follows")),
        after_follows=_flag(raw.get("after_follows")),
    )


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _read_text(path: Path, problems: list[str]) -> str | None:
    """The text of a file, None if it is missing; bytes that are not UTF-8 become U+FFFD."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path.name} could not be read: {error.strerror or error}.")
        return None


def _read_object(name: str, texts: Mapping[str, str | None], problems: list[str]) -> Mapping[str, object] | None:
    text = texts[name]
    value = None if text is None else _object_or_none(text)
    if text is not None and value is None:
        problems.append(f"{name} does not hold a JSON object; {RUN_FILES[name]}.")
    return value


def _object_or_none(text: str) -> Mapping[str, object] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
