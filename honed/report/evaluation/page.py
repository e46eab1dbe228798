"""One self-contained page about an evaluation: the numbers, the gate, and answers side by side.

    result (what `honed eval --json` writes) -> render_eval_page -> str -> write_eval_page: a file

All text from models and data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from honed.data.lint.view import visible
from honed.quantities import count_text, counted, short_text
from honed.report.evaluation.cells import cell_text, interval_text
from honed.report.markup import Html, join, tag
from honed.report.page import answer_half, answers_section, badge, numbers_table, page, page_header, tile, write_page

SHOWN_ANSWERS = 20  # the rest is folded away
Result = Mapping[str, Any]


def write_eval_page(target: Path, result: Result) -> Path:
    """Writes the page atomically and returns its path.

    Raises:
        RunError: it cannot be written.
    """
    return write_page(target, render_eval_page(result), fix="name a file in a folder that exists")


def render_eval_page(result: Result) -> str:
    """The whole page as HTML. Pure: the same result gives the same page."""
    sections = [_gate(result["gate"]), _measures(result), _lm_eval(result["lm_eval"]), _answers(result)]
    return page(
        visible(f"{result['model']} · honed eval"),
        header=_header(result),
        sections=sections,
        footer=tag("footer", "Made by ", tag("code", "honed eval --html"), "."),
    )


def _header(result: Result) -> Html:
    rows = result["rows"]
    versus = f"against {result['against']}" if result["against"] else ""
    dropped = sum(rows["rows_dropped"].values())
    words = [
        versus,
        f"on {result['data']}",
        f"{counted(rows['rows_trained'], 'row')}, {counted(rows['trained_tokens'], 'token')} scored",
        f"{counted(dropped, 'row')} left out" if dropped else "",
    ]
    failed = [verdict for verdict in result["gate"] if not verdict["passed"]]
    status = tag("span", f"{counted(len(failed), 'gate')} failed", class_="status") if failed else ""
    return page_header(
        "evaluation",
        visible(result["model"]),
        status,
        meta=[visible(word) for word in words if word],
        command=visible(result["command"]),
        tiles=join(_tiles(result["measures"])),
    )


def _tiles(measures: Sequence[Result]) -> list[Html]:
    """Loss, perplexity, and the shares of answers that stop and tasks that are solved."""
    known = {measure["name"]: measure for measure in measures}
    tiles = []
    for name, title in (("loss", "Held-out loss"), ("stops", "Stop by themselves"), ("tasks", "Tasks solved")):
        if measure := known.get(name):
            tiles.append(_tile(title, measure["base"], measure["value"], measure["unit"], f"95%: {_between(measure)}"))
    if loss := known.get("loss"):
        tiles.insert(1, _tile("Perplexity", loss["base_perplexity"], loss["perplexity"], "", "exp of the loss"))
    return tiles


def _tile(title: str, base: float | None, value: float | None, unit: str, below: str) -> Html:
    earlier = [] if base is None else [cell_text(base, unit)]
    return tile(title, [*earlier, cell_text(value, unit)], below)


def _between(measure: Result) -> str:
    return interval_text(measure["low"], measure["high"], measure["unit"], signed=_compares(measure))


def _compares(measure: Result) -> bool:
    return measure["base"] is not None


def _gate(verdicts: Sequence[Result]) -> Html:
    if not verdicts:
        return join([])
    rows = [
        [v["name"], _change(v, "change"), _change(v, "limit"), "✓ pass" if v["passed"] else "✗ fail"] for v in verdicts
    ]
    return tag("section", tag("h2", "Gate"), _table(["Measure", "Change", "Allowed", ""], rows))


def _change(verdict: Result, key: str) -> str:
    """The change in percent of the base for losses, unchanged for other measures."""
    value: float | None = verdict[key]
    if value is None:
        return "-"
    return f"{value:+.2%}" if verdict["relative"] else f"{value:+.4g}"


def _measures(result: Result) -> Html:
    measures = result["measures"]
    head = ["Measure", "Of", "Model", "95% interval"]
    if result["against"]:
        head = ["Measure", "Of", "Base", "Model", "Difference", "95% interval"]
    return tag("section", tag("h2", "What was measured"), _table(head, map(_cells, measures)))


def _cells(measure: Result) -> list[str]:
    unit, compares = measure["unit"], _compares(measure)
    name = visible(measure["label"].strip()) + ("" if unit == "share" else f", {unit}")
    cells = [name, count_text(measure["of"]), cell_text(measure["value"], unit), _between(measure)]
    if compares:
        cells[2:2] = [cell_text(measure["base"], unit)]
        cells[4:4] = [cell_text(measure["difference"], unit, signed=True)]
    return cells


def _lm_eval(found: Mapping[str, Any]) -> Html:
    if not found:
        return join([])
    rows = [
        [task, name, *(short_text(one[task][name]) if name in one.get(task, {}) else "-" for one in found.values())]
        for task, numbers in found["model"].items()
        for name in numbers
    ]
    return tag("section", tag("h2", "lm-evaluation-harness"), _table(["Task", "Number", *found], rows))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    return tag("div", numbers_table(head, rows), class_="card")


def _answers(result: Result) -> Html:
    cards = [_card(answer) for answer in result["answers"]]
    return answers_section("Answers", result["form"], cards, shown=SHOWN_ANSWERS) if cards else join([])


def _card(row: Result) -> Html:
    *before, question = row["messages"]
    history = (tag("div", f"{m['role']}: {m['content']}", class_="quiet", dir="auto") for m in before)
    asked = [
        tag("small", visible(row["source"]), class_="quiet"),
        *history,
        tag("div", question["content"], dir="auto"),
    ]
    halves = [
        *([_half("Base", row["against"], "before")] if "against" in row else []),
        _half("Model", row["model"], "after"),
    ]
    wanted = tag("div", row["reference"], class_="text", dir="auto")
    return tag(
        "article",
        tag("div", *asked, class_="prompt"),
        tag("div", *halves, class_="halves"),
        tag("details", tag("summary", "What the data say"), wanted),
        class_="card answer",
    )


def _half(title: str, said: Result, kind: str) -> Html:
    badges = [badge(said["stopped"], "stopped", "ran on")]
    if "passed" in said:
        badges.append(badge(said["passed"], "as asked", "not as asked"))
    return answer_half(title, said["text"] or tag("em", "empty answer"), badges, kind)
