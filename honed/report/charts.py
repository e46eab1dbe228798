"""Line charts as inline SVG: a pure function from series to HTML, readable without scripts.

A chart must fit pages from 380 to 1200 pixels wide without scaling its text, so it consists of two nested drawings:

    <svg class="axes">      no viewBox: 100% wide, positions in percent; grid, ticks, text, dots
      <svg class="lines">   viewBox 0 0 1000 1000, stretched over the plot; lines of constant stroke

A point is at x = 1000 * Axis.position(step), y = 1000 * (1 - Axis.position(value)) in the inner drawing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from honed.quantities import counted, short_text
from honed.report.axis import Axis, step_axis, value_axis
from honed.report.markup import Html, join, tag

# An optimizer step and its value; None if the value was null or not finite, which breaks the line.
Point = tuple[float, float | None]

MOST_POINTS = 1500
MOST_DOTS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: points by ascending step; `colour` from 1 to 6; `faint` for the raw line under a smoothed one."""

    name: str
    points: tuple[Point, ...]
    colour: int = 1
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What to draw: `key` is unique on the page, `unit` is shown beside the title."""

    key: str
    title: str
    unit: str
    series: tuple[Series, ...]
    from_zero: bool = False
    wide: bool = False


def line_chart(chart: Chart) -> Html:
    """The chart as a `<figure>`; if there is no finite value, it says so in words."""
    drawn = tuple(series for series in chart.series if finite_points(series))
    if not drawn:
        return tag("figure", caption(chart.title, chart.unit), _empty(chart), class_=_classes(chart))
    across = step_axis([step for series in drawn for step, _ in series.points])
    up = value_axis([value for series in drawn for _, value in finite_points(series)], from_zero=chart.from_zero)
    return tag(
        "figure",
        caption(chart.title, chart.unit, _legend(drawn) if len(drawn) > 1 else ""),
        tag("div", _drawing(chart, drawn, across, up), class_=_plot_class(up)),
        join(tag("p", note, class_="chart-note") for note in gap_notes(chart.series)),
        class_=_classes(chart),
        data_chart=_read_out(drawn, across, up),
    )


def finite_points(series: Series) -> list[tuple[float, float]]:
    """The points that have a value."""
    return [(step, value) for step, value in series.points if value is not None]


def segments(points: Iterable[Point]) -> list[list[tuple[float, float]]]:
    """Splits a line at None values: [(1, 2.0), (2, None), (3, 1.0)] -> [[(1, 2.0)], [(3, 1.0)]]."""
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in points:
        if value is not None:
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points that look the same: each stretch keeps its ends, its extremes and a gap."""
    if len(points) <= most:
        return list(points)
    size = -(-len(points) * 5 // most)
    kept = (_landmarks(points[start : start + size]) for start in range(0, len(points), size))
    return [point for stretch in kept for point in stretch]


def _landmarks(stretch: Sequence[Point]) -> list[Point]:
    indices = {0, len(stretch) - 1}
    known = [(value, i) for i, (_, value) in enumerate(stretch) if value is not None]
    if known:
        indices |= {min(known)[1], max(known)[1]}
    gap = next((i for i, (_, value) in enumerate(stretch) if value is None), None)
    return [stretch[i] for i in sorted(indices if gap is None else indices | {gap})]


def path_data(points: Sequence[Point], across: Axis, up: Axis) -> str:
    """The `d` of a `<path>` in the 1000 x 1000 drawing; a single point has no length there and is drawn as a dot."""
    lines = []
    for run in segments(points):
        xy = [f"{1000 * across.position(s):.2f},{1000 * (1 - up.position(v)):.2f}" for s, v in run]
        lines.append("M" + "L".join(xy))
    return "".join(lines)


def gap_notes(all_series: Iterable[Series]) -> list[str]:
    """A sentence for each series with values that cannot be drawn."""
    notes = []
    for series in all_series:
        lost = [step for step, value in series.points if value is None]
        if lost and not series.faint:
            where = f"at step {lost[0]:g}" if len(lost) == 1 else f"the first at step {lost[0]:g}"
            verb = "is" if len(lost) == 1 else "are"
            notes.append(
                f"{series.name}: {counted(len(lost), 'value')} {verb} null or not finite ({where}); "
                "the line breaks there."
            )
    return notes


def describe(chart: Chart, drawn: Sequence[Series]) -> str:
    """The chart in a sentence, for screen readers."""
    parts = []
    for series in drawn:
        points = finite_points(series)
        (first, start), (last, end) = points[0], points[-1]
        parts.append(f"{series.name} from {short_text(start)} at step {first:g} to {short_text(end)} at step {last:g}")
    return f"{chart.title} ({chart.unit}) by optimizer step: {'; '.join(parts)}."


def caption(title: str, unit: str, legend: str = "") -> Html:
    """The caption above a drawing."""
    return tag(
        "figcaption", tag("span", title, class_="chart-title"), " ", tag("span", unit, class_="chart-unit"), legend
    )


def drawing(key: str, words: str, *parts: Html) -> Html:
    """The `axes` drawing, with `words` for screen readers."""
    title, whole = f"{key}-title", {"width": "100%", "height": "100%"}
    return tag("svg", tag("title", words, id=title), *parts, class_="axes", role="img", aria_labelledby=title, **whole)


def value_ticks(up: Axis) -> Html:
    """The vertical axis: a line across the plot and a label at each tick."""
    return join(_value_tick(up.label(tick), percent(1 - up.position(tick))) for tick in up.ticks)


def percent(share: float) -> str:
    """A position in the `axes` drawing."""
    return f"{100 * share:.3f}%"


def _classes(chart: Chart) -> str:
    return "chart chart-wide" if chart.wide else "chart"


def _plot_class(up: Axis) -> str:
    """Leaves more room on the left for long labels, such as those of a value that hardly changes."""
    return "plot deep" if max(len(up.label(tick)) for tick in up.ticks) > 6 else "plot"


def _empty(chart: Chart) -> Html:
    return join(tag("p", note, class_="chart-empty") for note in gap_notes(chart.series) or ["Nothing was logged."])


def _legend(drawn: Sequence[Series]) -> Html:
    return tag("ul", join(_legend_entry(series) for series in drawn), class_="legend")


def _legend_entry(series: Series) -> Html:
    line = tag("line", x1="1", y1="5", x2="17", y2="5", class_=_line_class(series))
    return tag("li", tag("svg", line, width="18", height="10", aria_hidden="true"), " ", series.name)


def _line_class(series: Series) -> str:
    return f"line series-{series.colour}{' faint' if series.faint else ''}"


def _drawing(chart: Chart, drawn: Sequence[Series], across: Axis, up: Axis) -> Html:
    paths = join(
        tag("path", class_=_line_class(series), d=path_data(thinned(series.points), across, up)) for series in drawn
    )
    return drawing(
        chart.key,
        describe(chart, drawn),
        value_ticks(up),
        _step_ticks(across),
        tag("svg", paths, class_="lines", viewBox="0 0 1000 1000", preserveAspectRatio="none",
            width="100%", height="100%"),
        join(_dots(series, across, up) for series in drawn),
    )  # fmt: skip


def _value_tick(label: str, y: str) -> Html:
    line = tag("line", x1="0", y1=y, x2="100%", y2=y, class_="grid")
    return join([line, tag("text", label, x="-8", y=y, dy="0.32em", text_anchor="end", class_="tick tick-y")])


def _step_ticks(across: Axis) -> Html:
    base = tag("line", x1="0", y1="100%", x2="100%", y2="100%", class_="base")
    name = tag("text", "optimizer step", x="100%", y="100%", dy="36", text_anchor="end", class_="axis-name")
    ticks = (_step_tick(across.label(tick), percent(across.position(tick))) for tick in across.ticks)
    return join([base, *ticks, name])


def _step_tick(label: str, x: str) -> Html:
    # A tick hangs below the plot: a nested drawing combines a position in percent with an offset in pixels.
    mark = tag("svg", tag("line", x1="0", y1="0", x2="0", y2="5", class_="base"), x=x, y="100%", class_="mark")
    return join([mark, tag("text", label, x=x, y="100%", dy="19", text_anchor="middle", class_="tick tick-x")])


def _dots(series: Series, across: Axis, up: Axis) -> Html:
    """Dots where a line alone would not be visible: single points, and evaluations if they are few."""
    few = series.dots and len(series.points) <= MOST_DOTS
    runs = segments(series.points)
    return join(
        tag("circle", cx=percent(across.position(step)), cy=percent(1 - up.position(value)), r="3",
            class_=f"dot series-{series.colour}")
        for run in runs if few or len(run) == 1
        for step, value in run
    )  # fmt: skip


def _read_out(drawn: Sequence[Series], across: Axis, up: Axis) -> str:
    """The data with which the script shows values under the pointer, as JSON."""
    lines = []
    for series in drawn:
        steps, values = zip(*finite_points(Series(name="", points=tuple(thinned(series.points)))), strict=True)
        rounded = [float(f"{value:.6g}") for value in values]
        lines.append({"name": series.name, "colour": series.colour, "x": steps, "y": rounded})
    document = {"x": [across.low, across.high], "y": [up.low, up.high], "series": lines}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
