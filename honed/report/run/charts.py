"""The charts of a run's metrics: loss with evaluations, learning rate, speed, memory, and more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from honed.report.charts import Chart, Point, Series, finite_points
from honed.report.json_values import finite

Metrics = Sequence[Mapping[str, object]]

# With at least this many points, a noisy line also gets a smoothed one.
SMOOTH_FROM = 50
EVALUATION_LOSS = re.compile(r"eval_(?:(.*)_)?loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The specification of a chart: `lines` are (metric, name in the legend, number of the colour)."""

    key: str
    title: str
    unit: str
    lines: tuple[tuple[str, str, int], ...]
    from_zero: bool = True
    wide: bool = False
    smooth: bool = False


LOSS = Plan(
    key="loss",
    title="Loss",
    unit="nats per trained token",
    lines=(("loss", "train", 1),),
    from_zero=False,
    wide=True,
    smooth=True,
)
LEARNING_RATE = Plan(
    key="learning-rate",
    title="Learning rate",
    unit="scale of each update",
    lines=(("learning_rate", "learning rate", 1),),
)
THROUGHPUT = Plan(
    key="throughput",
    title="Throughput",
    unit="tokens per second",
    lines=(("tokens_per_second", "all tokens", 1), ("trained_tokens_per_second", "trained tokens", 2)),
)
MEMORY = Plan(key="memory", title="Memory", unit="GB", lines=(("memory_gb", "memory", 1),))
ACCURACY = Plan(
    key="accuracy",
    title="Token accuracy",
    unit="share of trained tokens",
    lines=(("mean_token_accuracy", "train", 1), ("eval_mean_token_accuracy", "evaluation", 2)),
)
GRADIENT = Plan(
    key="gradient-norm",
    title="Gradient norm",
    unit="before clipping",
    lines=(("grad_norm", "gradient norm", 1),),
)
ENTROPY = Plan(
    key="entropy",
    title="Entropy",
    unit="nats per trained token",
    lines=(("entropy", "train", 1),),
    smooth=True,
)
# The page says which of the first four were not logged; the others are omitted without a note.
EXPECTED = (LOSS, LEARNING_RATE, THROUGHPUT, MEMORY)
OPTIONAL = (ACCURACY, GRADIENT, ENTROPY)


def run_charts(metrics: Metrics) -> list[Chart]:
    """The charts of a run, loss first, without those whose metrics were never logged."""
    plans = [replace(LOSS, lines=LOSS.lines + _evaluation_lines(metrics)), *EXPECTED[1:], *OPTIONAL]
    charts = (_chart(plan, metrics) for plan in plans)
    return [chart for chart in charts if chart.series]


def missing_charts(metrics: Metrics) -> list[str]:
    """Lower-case titles of the charts that every run should have but this one lacks."""
    drawn = {chart.key for chart in run_charts(metrics)}
    return [plan.title.lower() for plan in EXPECTED if plan.key not in drawn]


def logged_points(metrics: Metrics, key: str) -> tuple[Point, ...]:
    """A metric by ascending step; None where it was null or not finite.

    Lines without the key or without a step are skipped. If a step was logged twice, for example after a resume, the
    later line counts.
    """
    by_step: dict[float, float | None] = {}
    for line in metrics:
        step = finite(line.get("step"))
        if key in line and step is not None:
            by_step[step] = finite(line[key])
    return tuple(sorted(by_step.items(), key=lambda point: point[0]))


def smoothed(points: Sequence[Point], width: int) -> tuple[Point, ...]:
    """The centred mean over `width` points (an odd number); gaps stay gaps and are ignored in the mean.

    Near the ends the window shrinks symmetrically, so that a falling loss is not delayed, as with a running mean, and
    its last value not too high.
    """
    values = [value for _, value in points]
    return tuple(
        (step, None if value is None else _centred_mean(values, i, width // 2))
        for i, (step, value) in enumerate(points)
    )


def metrics_problems(metrics: Metrics) -> list[str]:
    """Sentences about lines that the charts omit: those without a step, and steps logged twice."""
    steps = [step for line in metrics if "loss" in line and (step := finite(line.get("step"))) is not None]
    stray = sum(finite(line.get("step")) is None for line in metrics)
    twice = len(steps) - len(set(steps))
    notes = []
    if stray:
        notes.append(f"metrics.jsonl: {stray} of {len(metrics)} lines name no step and are not drawn.")
    if twice:
        notes.append(
            f"metrics.jsonl: {twice} of {len(steps)} training lines repeat a step, as after a resume; "
            "the later line is drawn."
        )
    return notes


def _centred_mean(values: Sequence[float | None], i: int, reach: int) -> float:
    reach = min(reach, i, len(values) - 1 - i)
    window = [value for value in values[i - reach : i + reach + 1] if value is not None]
    return sum(value / len(window) for value in window)


def _chart(plan: Plan, metrics: Metrics) -> Chart:
    series = [
        Series(name=name, points=points, colour=colour, dots=key.startswith("eval"))
        for key, name, colour in plan.lines
        if (points := logged_points(metrics, key))
    ]
    drawn = [line for one in series for line in (_with_smooth(one) if plan.smooth else [one])]
    return Chart(
        key=plan.key,
        title=plan.title,
        unit=plan.unit,
        series=tuple(drawn),
        from_zero=plan.from_zero,
        wide=plan.wide,
    )


def _with_smooth(series: Series) -> list[Series]:
    count = len(finite_points(series))
    if count < SMOOTH_FROM or series.dots:
        return [series]
    width = min(201, 2 * (count // 40) + 3)
    name = f"{series.name}, mean of {width}"
    return [
        replace(series, faint=True),
        replace(series, name=name, points=smoothed(series.points, width)),
    ]


def _evaluation_lines(metrics: Metrics) -> tuple[tuple[str, str, int], ...]:
    """A line for `eval_loss` and for each `eval_<name>_loss`, in the order of their first lines."""
    found = {key: match[1] for line in metrics for key in line if (match := EVALUATION_LOSS.fullmatch(key))}
    names = {key: f"evaluation: {name}" if name else "evaluation" for key, name in found.items()}
    return tuple((key, name, 2 + i % 5) for i, (key, name) in enumerate(names.items()))


def values_of(metrics: Metrics, key: str) -> list[float]:
    """The finite values of a metric, by step."""
    return [value for _, value in logged_points(metrics, key) if value is not None]


def metric_names(metrics: Iterable[Mapping[str, object]]) -> list[str]:
    """Every logged key except "step", in order of first appearance."""
    return [key for key in dict.fromkeys(key for line in metrics for key in line) if key != "step"]
