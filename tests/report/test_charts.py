"""Line charts: what is drawn is read back from the SVG through the tick labels, and must be the data."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence

import pytest

from honed.quantities import duration_text, percent_text, short_text
from honed.report.axis import step_axis, tick_text, value_axis
from honed.report.charts import Chart, Series, line_chart, thinned
from honed.report.json_values import finite
from honed.report.run.charts import logged_points, run_charts, smoothed

SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def chart_of(points: Sequence[tuple[float, float | None]], **changes: object) -> Chart:
    series = Series(name="train", points=tuple(points))
    return Chart(**{"key": "c", "title": "Loss", "unit": "nats", "series": (series,), **changes})  # type: ignore[arg-type]


def figure_of(chart: Chart) -> ET.Element:
    return ET.fromstring(line_chart(chart))


def with_class(figure: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in figure.iter() if name in element.get("class", "").split()]


def spoken(label: str) -> float:
    """The number that a reader takes from a tick's label."""
    scale = SUFFIXES.get(label[-1], 1.0)
    return float(label.rstrip("kMGT").replace(",", "")) * scale


def reader_of(figure: ET.Element, tick_class: str, attribute: str) -> Callable[[float], float]:
    """A function from a place (0 to 1 of the plot) to a value, from the first and last tick alone."""
    ticks = with_class(figure, tick_class)
    places = [float(tick.get(attribute, "").rstrip("%")) / 100 for tick in ticks]
    values = [spoken(tick.text or "") for tick in ticks]
    slope = (values[-1] - values[0]) / (places[-1] - places[0])
    return lambda place: values[0] + slope * (place - places[0])


def drawn_points(figure: ET.Element, path: ET.Element) -> list[tuple[float, float]]:
    pairs = re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", path.get("d", ""))
    across, up = reader_of(figure, "tick-x", "x"), reader_of(figure, "tick-y", "y")
    return [(across(float(x) / 1000), up(float(y) / 1000)) for x, y in pairs]


@pytest.mark.parametrize(
    "values",
    [
        [4.81, 3.0, 2.2, 1.7, 1.5, 0.31],
        [2e-4, 1.5e-4, 1e-4, 3e-5, 0.0, 1e-6],
        [612.0, 640.5, 598.2, 611.0, 700.0, 3.0],
        [-3.0, 2.0, -1.0, 0.0, 4.0, 1.0],
        [1.2e6, 3.4e6, 2.2e6, 9e5, 1e6, 1.7e6],
        [1e200, 2e200, 5e199, 1e200, 0.0, 3e200],
        [3e-280, 1e-280, 2e-280, 9e-281, 5e-280, 2e-280],
        [1_000_000.1, 1_000_000.2, 1_000_000.3, 1_000_000.25, 1_000_000.05, 1_000_000.0],
    ],
)
def test_points_read_through_the_ticks_are_the_data(values: list[float]) -> None:
    steps = [1, 2, 3, 10, 11, 40]
    data = list(zip(steps, values, strict=True))
    figure = figure_of(chart_of(data))
    (path,) = with_class(figure, "line")
    shown = [spoken(tick.text or "") for tick in with_class(figure, "tick-y")]
    precision = 1e-4 * (max(shown) - min(shown))
    for (step, value), (read_step, read_value) in zip(data, drawn_points(figure, path), strict=True):
        assert read_step == pytest.approx(step, abs=0.01)
        assert read_value == pytest.approx(value, rel=0, abs=precision)
    assert min(shown) <= min(values) and max(values) <= max(shown)


def test_every_tick_has_its_own_label_at_its_own_value() -> None:
    for values in ([0.0, 1e-4], [999.0, 1001.0], [1e9, 1e9 + 7], [0.0, 2.5e7], [-1e-12, 1e-12], [4.0, 4.0]):
        axis = value_axis(values)
        labels = [axis.label(tick) for tick in axis.ticks]
        assert len(set(labels)) == len(labels) >= 3
        for tick, label in zip(axis.ticks, labels, strict=True):
            assert spoken(label) == pytest.approx(tick, rel=1e-9, abs=1e-9 * axis.step)


def test_ticks_are_round_and_hold_the_data() -> None:
    axis = value_axis([0.31, 4.81])
    assert axis.ticks == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert step_axis([1, 120]).ticks == (20.0, 40.0, 60.0, 80.0, 100.0, 120.0)
    assert all(tick == int(tick) for tick in step_axis([1, 3]).ticks)


def test_an_axis_from_zero_only_where_nothing_is_negative() -> None:
    assert value_axis([600.0, 640.0], from_zero=True).low == 0
    assert value_axis([600.0, 640.0]).low > 500
    assert value_axis([-1.0, 640.0], from_zero=True).low < 0


@pytest.mark.parametrize("constant", [0.0, 2.4, -7.0, 1e-300, 1e299, 2e-5])
def test_a_constant_series_is_a_level_line_inside_the_plot(constant: float) -> None:
    figure = figure_of(chart_of([(1, constant), (2, constant), (3, constant)]))
    (path,) = with_class(figure, "line")
    heights = {y for _, y in re.findall(r"([\d.]+),(-?[\d.]+)", path.get("d", ""))}
    assert len(heights) == 1
    assert 0 <= float(heights.pop()) <= 1000
    assert len(with_class(figure, "tick-y")) >= 2


def test_a_single_point_is_a_dot_in_the_middle() -> None:
    figure = figure_of(chart_of([(7, 1.5)]))
    (dot,) = with_class(figure, "dot")
    assert dot.get("cx") == "50.000%"
    assert [tick.text for tick in with_class(figure, "tick-x")] == ["6", "7", "8"]


def test_a_missing_value_breaks_the_line_and_is_said_in_words() -> None:
    figure = figure_of(chart_of([(1, 3.0), (2, 2.0), (3, None), (4, 1.0)]))
    (path,) = with_class(figure, "line")
    assert path.get("d", "").count("M") == 2
    assert len(with_class(figure, "dot")) == 1  # the lone point after the gap
    (note,) = with_class(figure, "chart-note")
    assert note.text == "train: 1 value is null or not finite (at step 3); the line breaks there."


def test_a_chart_without_any_value_says_so() -> None:
    figure = figure_of(chart_of([(1, None), (2, None)]))
    assert not with_class(figure, "line")
    assert "2 values are null or not finite" in (with_class(figure, "chart-empty")[0].text or "")
    assert "Nothing was logged" in line_chart(chart_of([]))


def test_a_chart_can_be_heard_and_has_title_unit_axis_and_legend() -> None:
    two = (
        Series(name="train", points=((1, 4.0), (9, 1.0))),
        Series(name="evaluation", points=((9, 2.0),), colour=2),
    )
    figure = figure_of(chart_of([], series=two))
    (drawing,) = with_class(figure, "axes")
    title = drawing.find("title")
    assert drawing.get("role") == "img"
    assert title is not None and drawing.get("aria-labelledby") == title.get("id")
    assert "train from 4 at step 1 to 1 at step 9; evaluation from 2" in (title.text or "")
    assert with_class(figure, "axis-name")[0].text == "optimizer step"
    assert len(with_class(figure, "legend")) == 1
    assert not with_class(figure_of(chart_of([(1, 2.0), (2, 1.0)])), "legend")


def test_names_are_escaped_in_text_and_in_the_script_data() -> None:
    hostile = Series(name='</script><b a="1">\'&', points=((1, 2.0), (2, 1.0)))
    page = line_chart(chart_of([], series=(hostile, hostile)))
    assert "<b" not in page and "</script" not in page
    data = json.loads(ET.fromstring(page).get("data-chart", ""))
    assert data["series"][0]["name"] == hostile.name


def test_thinning_keeps_ends_peaks_and_gaps_of_long_runs() -> None:
    points: list[tuple[float, float | None]] = [(i, math.sin(i / 500)) for i in range(100_000)]
    points[31_337] = (31_337, 50.0)
    points[77_777] = (77_777, None)
    few = thinned(points, 1500)
    assert len(few) <= 1500
    assert few[0] == points[0] and few[-1] == points[-1]
    assert points[31_337] in few and points[77_777] in few
    assert [step for step, _ in few] == sorted(step for step, _ in few)


def test_smoothing_is_centred_and_leaves_constants_lines_and_gaps_alone() -> None:
    straight = tuple((float(i), 10.0 - i / 10) for i in range(60))
    assert [v for _, v in smoothed(straight, 9)] == pytest.approx([v for _, v in straight])
    gappy = smoothed([(1, 1.0), (2, None), (3, 1.0), (4, 1.0)], 3)
    assert gappy == ((1, 1.0), (2, None), (3, 1.0), (4, 1.0))


def test_many_points_get_a_smoothed_line_and_few_do_not() -> None:
    lines = [{"step": i, "loss": 2 + (-1) ** i * 0.5} for i in range(1, 101)]
    raw, smooth = run_charts(lines)[0].series
    assert raw.faint and not smooth.faint and "mean of" in smooth.name
    assert all(abs((value or 0) - 2) < 0.2 for _, value in smooth.points[10:-10])
    assert len(run_charts(lines[:20])[0].series) == 1


def test_a_resumed_run_is_drawn_in_order_with_the_later_line() -> None:
    lines = [{"step": 1, "loss": 5}, {"step": 3, "loss": 9}, {"step": 2, "loss": 4}, {"step": 3, "loss": 3}]
    assert logged_points(lines, "loss") == ((1, 5.0), (2, 4.0), (3, 3.0))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("nan", None), (float("inf"), None), (None, None), (True, None), ([1], None), ("0.5", 0.5), (3, 3.0),
     (10**400, None), ("x", None), (1e305, None)],
)  # fmt: skip
def test_finite_takes_numbers_only(value: object, expected: float | None) -> None:
    assert finite(value) == expected


def test_numbers_read_well() -> None:
    assert [short_text(v) for v in (0, 4.8123, 999.7, 18231.2, 2e-5, 1.5e-5, 3e7)] == [
        "0", "4.81", "1,000", "18,231", "2e-5", "1.5e-5", "3e7",
    ]  # fmt: skip
    assert [duration_text(s) for s in (0.42, 9.97, 62, 304, 7500, 4 * 86400)] == [
        "0.4 s", "10 s", "62 s", "5 min 04 s", "2 h 05 min", "4 d 0 h",
    ]  # fmt: skip
    assert [percent_text(s) for s in (0, 0.034, 0.6, 1)] == ["0%", "3.4%", "60%", "100%"]
    assert tick_text(20000, step=5000, largest=30000) == "20,000"
    assert tick_text(250000, step=50000, largest=300000) == "250k"
