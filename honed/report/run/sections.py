"""The sections of a run's page, pure functions of the record: header, notices, charts, answers, appendix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from honed.quantities import count_text, counted, duration_text, percent_text, short_text
from honed.report.charts import Point, line_chart
from honed.report.json_values import finite, mapping, text_of
from honed.report.ledger_section import key_value_table, plain_text
from honed.report.markup import Html, join, tag
from honed.report.page import answer_half, answers_section, badge, numbers_table, page_header, tile
from honed.report.run.charts import (
    logged_points,
    metric_names,
    metrics_problems,
    missing_charts,
    run_charts,
    values_of,
)
from honed.report.run.record import RUN_FILES, Answer, Samples, SavedRun

STATUS_WORDS = {"finished": "Finished", "interrupted": "Interrupted", "running": "Still running"}
SHOWN_ANSWERS = 6


def model_name(run: SavedRun) -> str:
    """The trained model, or the name of the folder if run.json does not say."""
    return text_of(run.facts.get("model")) or run.name or "unnamed run"


def header(run: SavedRun) -> Html:
    """Model, status, date, command and the headline numbers."""
    status = text_of(run.facts.get("status")) or "unknown"
    known = status if status in STATUS_WORDS else "unknown"
    words = STATUS_WORDS.get(status, "Status unknown" if status == "unknown" else status)
    return page_header(
        "training run",
        model_name(run),
        tag("span", words, class_=f"status {known}"),
        meta=_meta(run),
        command=text_of(run.facts.get("honed_command")) or "",
        tiles=join(_tiles(run)),
    )


def notices(run: SavedRun) -> Html:
    """What the reader must know before trusting the page: an unfinished run, missing or garbled files."""
    sentences = [*_unfinished(run), *run.problems, *metrics_problems(run.metrics)]
    absent = [tag("li", tag("code", name), f" is missing: {RUN_FILES[name]}.") for name in run.missing]
    items = [*(tag("li", sentence) for sentence in sentences), *absent]
    return tag("aside", tag("ul", join(items)), class_="notices") if items else join([])


def charts_section(run: SavedRun) -> Html:
    """All charts, and a list of those that could not be drawn."""
    if not run.metrics:
        words = "metrics.jsonl is missing." if "metrics.jsonl" in run.missing else "metrics.jsonl holds no numbers."
        return _empty_section("How it learned", f"Nothing to draw: {words}")
    missing = missing_charts(run.metrics)
    absent = tag("p", f"Not logged in this run: {', '.join(missing)}.", class_="quiet") if missing else ""
    charts = tag("div", join(line_chart(chart) for chart in run_charts(run.metrics)), class_="charts")
    return tag("section", tag("h2", "How it learned"), charts, absent, _metrics_table(run))


def missing_ledger() -> Html:
    """The section in place of a missing ledger."""
    return _empty_section("What was trained on", f"There is no ledger.json: {RUN_FILES['ledger.json']}.")


def samples_section(run: SavedRun) -> Html:
    """The answers before and after training, side by side."""
    if run.samples is None or not run.samples.answers:
        why = "samples.json holds no answers." if run.samples else f"No samples.json: {RUN_FILES['samples.json']}."
        return _empty_section("Before and after", why)
    cards = [_answer_card(answer) for answer in run.samples.answers]
    return answers_section("Before and after", run.samples.rule, cards, shown=SHOWN_ANSWERS)


def appendix(run: SavedRun) -> Html:
    """Recipe, times, device, versions and everything else in run.json, folded."""
    known = {"seconds", "versions", "device", "status", "started", "model", "honed_command"}
    others = {key: value for key, value in run.facts.items() if key not in known}
    parts = [
        _recipe(run),
        _folded("Where the time went", _time_pairs(mapping(run.facts.get("seconds")))),
        _folded("Device", _pairs(mapping(run.facts.get("device")))),
        _folded(
            "Versions",
            [(key, text_of(value) or "") for key, value in mapping(run.facts.get("versions")).items()],
        ),
        _folded("More about the run", _pairs(others)),
    ]
    return tag("section", tag("h2", "What it was made of"), join(parts))


def _empty_section(title: str, sentence: str) -> Html:
    return tag("section", tag("h2", title), tag("p", sentence, class_="card quiet"))


def _unfinished(run: SavedRun) -> list[str]:
    status = run.facts.get("status")
    if status == "interrupted":
        return ["This run was interrupted. Everything below covers the part that ran."]
    if status == "running":
        return ["This page was made while the run was in progress. Everything below covers the part run by then."]
    return []


def _meta(run: SavedRun) -> list[str]:
    device = mapping(run.facts.get("device"))
    parameters, trainable = finite(run.facts.get("parameters")), finite(run.facts.get("trainable_parameters"))
    words = [_date(run), _progress(run), text_of(device.get("name")), text_of(device.get("dtype"))]
    if parameters:
        share = "" if trainable is None else f", {percent_text(trainable / parameters)} trained"
        words.append(f"{_parameters_text(parameters)} parameters{share}")
    return [word for word in words if word]


def _parameters_text(number: float) -> str:
    """134515008 -> "135M"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{short_text(number / size)}{letter}"
    return count_text(number)


def _date(run: SavedRun) -> str:
    """The start as "2026-07-24 14:05 UTC"; as written if it is not an ISO date; "" if it is missing."""
    written = text_of(run.facts.get("started")) or ""
    try:
        # Python 3.10 does not parse the Z.
        start = datetime.fromisoformat(written[:-1] + "+00:00" if written.endswith("Z") else written)
    except ValueError:
        return written
    return f"{start:%Y-%m-%d %H:%M} {start.tzname() or ''}".strip()


def _progress(run: SavedRun) -> str:
    steps, epochs = logged_points(run.metrics, "loss"), values_of(run.metrics, "epoch")
    if not steps:
        return ""
    return counted(steps[-1][0], "step") + (f", {counted(round(epochs[-1], 2), 'epoch')}" if epochs else "")


def _tiles(run: SavedRun) -> list[Html]:
    return [
        _loss_tile(run),
        *_tokens_tile(run),
        *_time_tile(run),
        *_memory_tile(run),
        *_answer_tiles(run.samples),
    ]


def _loss_tile(run: SavedRun) -> Html:
    train, held_out = logged_points(run.metrics, "loss"), logged_points(run.metrics, "eval_loss")
    below = f"evaluation {' → '.join(_ends(held_out))}" if held_out else ""
    return tile("Loss", _ends(train) or ("not logged",), below)


def _ends(points: Sequence[Point]) -> tuple[str, ...]:
    """The first and last value, or the only one; NaN is shown, so that a run that ended in it does not look good."""
    ends = points if len(points) < 2 else (points[0], points[-1])
    return tuple("NaN" if value is None else short_text(value) for _, value in ends)


def _tokens_tile(run: SavedRun) -> list[Html]:
    if run.ledger is None or run.ledger.trained_tokens is None:
        return []
    trained, tokens = run.ledger.trained_tokens, run.ledger.tokens
    below = f"{percent_text(trained / tokens)} of {count_text(tokens)} in the data" if tokens else "in the data"
    return [tile("Trained tokens", [count_text(trained)], below)]


def _time_tile(run: SavedRun) -> list[Html]:
    seconds = _seconds(mapping(run.facts.get("seconds")))
    if not seconds:
        return []
    total = sum(seconds.values())
    below = f"{duration_text(seconds['train'])} of it training" if "train" in seconds else ""
    return [tile("Time", [duration_text(total)], below)]


def _memory_tile(run: SavedRun) -> list[Html]:
    peak = finite(run.facts.get("peak_memory_gb"))
    peak = max(values_of(run.metrics, "memory_gb"), default=None) if peak is None else peak
    return [] if peak is None else [tile("Peak memory", [f"{short_text(peak)} GB"], "")]


def _answer_tiles(samples: Samples | None) -> list[Html]:
    if samples is None:
        return []
    before, after = samples.before, samples.after
    sizes = list(dict.fromkeys(count_text(of) for of in (before.of, after.of) if of is not None))
    below = f"of {' → '.join(sizes)} answers" if sizes else "answers"
    scores = [
        ("Stop by themselves", before.stopped, after.stopped),
        ("Follow the form", before.followed_form, after.followed_form),
    ]
    return [
        tile(name, ["?" if number is None else count_text(number) for number in (first, last)], below)
        for name, first, last in scores
        if first is not None or last is not None
    ]


def _metrics_table(run: SavedRun) -> Html:
    head = ("Metric", "Logged", "First", "Last", "Least", "Greatest")
    rows = (_metric_row(run, key) for key in metric_names(run.metrics))
    return tag("details", tag("summary", "Every logged metric in numbers"), numbers_table(head, rows))


def _metric_row(run: SavedRun, key: str) -> list[str]:
    logged = [line[key] for line in run.metrics if key in line]
    values = [value for item in logged if (value := finite(item)) is not None]
    ends = [plain_text(logged[0]), plain_text(logged[-1]), "", ""]
    if values:
        ends = [_cell(logged[0]), _cell(logged[-1]), short_text(min(values)), short_text(max(values))]
    return [key, f"{len(logged):,}", *ends]


def _cell(value: object) -> str:
    number = finite(value)
    return plain_text(value) if number is None else short_text(number)


def _answer_card(answer: Answer) -> Html:
    return tag(
        "article",
        tag("div", answer.prompt, class_="prompt", dir="auto"),
        tag(
            "div",
            _answer_half("Before", answer.before, answer.before_stopped, answer.before_follows),
            _answer_half("After", answer.after, answer.after_stopped, answer.after_follows),
            class_="halves",
        ),
        class_="card answer",
    )


def _answer_half(title: str, text: str | None, stopped: bool | None, follows: bool | None) -> Html:
    states = [(stopped, "stopped", "ran on"), (follows, "form", "no form")]
    badges = [badge(state, good, bad) for state, good, bad in states if state is not None]
    nothing = tag("em", "not recorded" if text is None else "empty answer")
    return answer_half(title, text or nothing, badges, title.lower())


def _recipe(run: SavedRun) -> Html:
    if run.recipe is None:
        return tag("p", "There is no recipe.yaml in this run folder.", class_="quiet")
    return tag("details", tag("summary", "Recipe"), tag("pre", tag("code", run.recipe)))


def _folded(title: str, pairs: Iterable[tuple[str, str]]) -> Html:
    table = key_value_table(pairs)
    if "<tr>" not in table:
        return tag("p", f"{title}: not recorded.", class_="quiet")
    return tag("details", tag("summary", title), table)


def _pairs(values: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), plain_text(value)) for key, value in values.items()]


def _seconds(raw: Mapping[str, object]) -> dict[str, float]:
    return {key: number for key, value in raw.items() if (number := finite(value)) is not None}


def _time_pairs(raw: Mapping[str, object]) -> list[tuple[str, str]]:
    seconds = _seconds(raw)
    total = sum(seconds.values())
    shares = {key: f" ({percent_text(value / total)})" if total > 0 else "" for key, value in seconds.items()}
    pairs = [(key, f"{duration_text(value)}{shares[key]}") for key, value in seconds.items()]
    return [*pairs, ("total", duration_text(total))] if len(pairs) > 1 else pairs
