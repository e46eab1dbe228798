"""Histograms as inline SVG, like `charts`: percentages instead of a viewBox, so that text keeps its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from honed.quantities import count_text, counted
from honed.report.axis import Axis, value_axis
from honed.report.charts import caption, drawing, percent, value_ticks
from honed.report.markup import Html, join, tag

BINS = 40
FAR = 1.5  # times the 99.5% quantile: larger values share the last bar


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """What to draw.

    Attributes:
        key: unique on the page.
        title, unit: shown above the drawing.
        values: numbers, 0 or more.
        across: name of the horizontal axis.
        limit: a value to mark with a line; bars beyond it have another colour.
        limit_name: label of the line.
        top: end of the axis, such as 100 for percentages; None to choose it from the values.
        things: what is counted, such as "document".
    """

    key: str
    title: str
    unit: str
    values: np.ndarray
    across: str
    limit: float | None = None
    limit_name: str = ""
    top: float | None = None
    things: str = "document"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """`count` values in [low, high)."""

    low: float
    high: float
    count: int


def histogram(chart: Histogram) -> Html:
    """The histogram as a `<figure>`; if there are no values, it says so in words."""
    head = caption(chart.title, chart.unit)
    if not len(chart.values):
        return tag("figure", head, tag("p", "There is nothing to count.", class_="chart-empty"), class_="chart")
    across = _across(chart)
    bars = bars_of(chart.values, across)
    up = value_axis([0.0, float(max(bar.count for bar in bars))])
    over = int(np.count_nonzero(chart.values > across.high))
    note = f"The last bar holds {counted(over, chart.things)} beyond {count_text(across.high)}." if over else ""
    return tag(
        "figure",
        head,
        tag("div", _drawing(chart, bars, across, up), class_="plot still"),
        tag("p", note, class_="chart-aside") if note else "",
        class_="chart",
    )


def bars_of(values: np.ndarray, across: Axis) -> list[Bar]:
    """Bars of equal width over the axis that count every value once; the last one includes values beyond the axis."""
    whole = across.high - across.low <= BINS
    count = max(1, int(across.high - across.low)) if whole and across.high > 1 else BINS
    edges = np.linspace(across.low, across.high, count + 1)
    counts, _ = np.histogram(np.clip(values, across.low, across.high), bins=edges)
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
    return [Bar(low=low, high=high, count=n) for low, high, n in pairs]


def _across(chart: Histogram) -> Axis:
    """From 0 to the largest value, or to where nearly all values end."""
    longest = float(chart.values.max())
    usual = float(np.quantile(chart.values, 0.995)) * FAR
    high = max(min(longest, usual), 1.0) if chart.top is None else chart.top
    if chart.limit is not None and longest > chart.limit:
        high = max(high, chart.limit * 1.1)
    return value_axis([0.0, high], intervals=5)


def _drawing(chart: Histogram, bars: Sequence[Bar], across: Axis, up: Axis) -> Html:
    return drawing(
        chart.key,
        _described(chart, bars),
        value_ticks(up),
        join(_bar(bar, chart, across, up) for bar in bars if bar.count),
        _base(chart.across, across),
        _limit(chart, across),
    )


def _described(chart: Histogram, bars: Sequence[Bar]) -> str:
    fullest = max(bars, key=lambda bar: bar.count)
    return (
        f"{chart.title}: {counted(len(chart.values), chart.things)}, most of them "
        f"({count_text(fullest.count)}) from {count_text(fullest.low)} to {count_text(fullest.high)} {chart.across}."
    )


def _bar(bar: Bar, chart: Histogram, across: Axis, up: Axis) -> Html:
    left, right, height = across.position(bar.low), across.position(bar.high), up.position(bar.count)
    beyond = chart.limit is not None and bar.low >= chart.limit
    words = f"{count_text(round(bar.low, 1))} to {count_text(round(bar.high, 1))}: {counted(bar.count, chart.things)}"
    return tag(
        "rect",
        tag("title", words),
        x=percent(left),
        y=percent(1 - height),
        width=percent((right - left) * 0.92),
        height=percent(height),
        rx="1.5",
        class_=f"bar-{'beyond' if beyond else 'within'}",
    )


def _base(name: str, across: Axis) -> Html:
    line = tag("line", x1="0", y1="100%", x2="100%", y2="100%", class_="base")
    label = tag("text", name, x="100%", y="100%", dy="36", text_anchor="end", class_="axis-name")
    ticks = (
        tag("text", across.label(tick), x=percent(across.position(tick)), y="100%", dy="19",
            text_anchor="end" if tick == across.high else "middle", class_="tick tick-x")
        for tick in across.ticks
    )  # fmt: skip
    return join([line, *ticks, label])


def _limit(chart: Histogram, across: Axis) -> Html:
    if chart.limit is None or not across.low < chart.limit <= across.high:
        return join([])
    x = percent(across.position(chart.limit))
    anchor = "end" if across.position(chart.limit) > 0.5 else "start"
    line = tag("line", x1=x, y1="-4", x2=x, y2="100%", class_="limit")
    shift = "-6" if anchor == "end" else "6"
    return join(
        [
            line,
            tag("text", chart.limit_name, x=x, y="0", dx=shift, dy="6", text_anchor=anchor, class_="tick limit-name"),
        ]
    )
