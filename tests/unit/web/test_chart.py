"""The SVG of a chart: its points are the values, gaps are gaps, the axis is the zone's wall clock, texts are only text."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import pytest

from exporter.core.periods import DAY, HOUR
from exporter.web.chart import (
    MAX_WIDTH,
    MIN_HEIGHT,
    MIN_WIDTH,
    Chart,
    Line,
    Mark,
    Point,
    Range,
    State,
    render,
    style,
)
from exporter.web.time_axis import time_ticks
from tests.helpers.charts import SVG, elements, points, texts

NOW = 1_790_000_000 // DAY * DAY
STEP = 300
VALUES = [Point(NOW + STEP * number, float(number * 7919 % 1000) / 10) for number in range(288)]
CHART = Chart("CPU of one", " %", NOW, NOW + DAY, [Line("CPU", VALUES, STEP)], top=100)


def test_the_points_of_the_line_are_the_values() -> None:
    (found,) = points(render(CHART))
    assert [time for time, _ in found] == pytest.approx([point.time for point in VALUES], abs=2)
    assert [value for _, value in found] == pytest.approx([point.value for point in VALUES], abs=0.005)


@pytest.mark.parametrize(
    ("points_given", "lengths"),
    [
        pytest.param(VALUES[:10] + VALUES[12:20], [10, 8], id="no row"),
        pytest.param([*VALUES[:10], Point(VALUES[10].time, None), *VALUES[11:20]], [10, 9], id="a row without a value"),
        pytest.param([Point(VALUES[0].time, None), VALUES[1], Point(VALUES[2].time, None)], [1], id="one value alone"),
        pytest.param([], [], id="nothing"),
    ],
)
def test_a_gap_is_a_gap(points_given: list[Point], lengths: list[int]) -> None:
    drawn = render(replace(CHART, lines=[Line("CPU", points_given, STEP)]))
    assert [len(run) for run in points(drawn)] == lengths
    assert ("No values in this range" in texts(drawn)) == (not lengths)


def test_the_band_has_the_lowest_and_highest_of_each_run_without_bridging_a_gap() -> None:
    line = Line("mean", VALUES[:4] + VALUES[8:12], STEP)
    band = [Range(point.time, (point.value or 0) / 2, (point.value or 0)) for point in line.points]
    polygons = elements(render(replace(CHART, lines=[line], band=band)), "polygon")
    assert [len(polygon.attrib["points"].split()) for polygon in polygons] == [8, 8]


def test_a_comparison_is_behind_the_subject_and_dashed() -> None:
    earlier = Line("7d earlier", VALUES, STEP, earlier=True)
    lines = elements(render(replace(CHART, lines=[*CHART.lines, earlier])), "polyline")
    assert [line.attrib["class"] for line in lines] == ["line earlier", "line main"]
    assert [("stroke-dasharray" in line.attrib) for line in lines] == [True, False]


def test_a_text_of_a_worker_document_is_only_text() -> None:
    name = '</text><script>alert(1)</script>"\x00\ud800 & \u202e'
    drawn = render(replace(CHART, title=name, marks=[Mark(NOW + HOUR, name)], states=[State(NOW, NOW + DAY, name)]))
    assert not elements(drawn, "script")
    assert ElementTree.fromstring(drawn.encode()).attrib["aria-label"].startswith("</text><script>alert(1)</script>")
    drawn.encode()  # no lone surrogate is left


@pytest.mark.parametrize(("unit", "highest", "labels"), [(" %", 100.0, ["0 %", "50 %", "100 %"]), ("", 1.0, ["0", "1"])])
def test_the_value_axis_begins_at_zero_and_has_round_numbers(unit: str, highest: float, labels: list[str]) -> None:
    chart = Chart("x", unit, NOW, NOW + DAY, [Line("x", [Point(NOW, highest)], STEP)])
    found = elements(render(chart, 480, 160), "text")
    assert [each.text for each in found if each.attrib.get("text-anchor") == "end"] == labels


def test_a_value_above_the_top_is_not_cut() -> None:
    (found,) = points(render(replace(CHART, lines=[Line("CPU", [Point(NOW, 130.0), Point(NOW + STEP, 20.0)], STEP)])))
    assert [value for _, value in found] == pytest.approx([130, 20], abs=0.01)
    assert all(float(text.attrib["y"]) >= 0 for text in elements(render(CHART), "text"))


def test_ticks_are_at_whole_hours_of_the_wall_clock_across_a_change_of_the_clocks() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    start = int(datetime(2026, 10, 24, 22, tzinfo=UTC).timestamp())  # midnight of the day with 25 hours
    ticks = time_ticks(start, start + 25 * HOUR, 9, berlin)
    assert [label for _, label in ticks] == ["Oct 25", "03:00", "06:00", "09:00", "12:00", "15:00", "18:00", "21:00", "Oct 26"]
    assert ticks[1][0] - ticks[0][0] == 4 * HOUR
    spring = int(datetime(2026, 3, 28, 23, tzinfo=UTC).timestamp())
    assert time_ticks(spring, spring + 23 * HOUR, 9, berlin)[-1] == (spring + 23 * HOUR, "Mar 30")


@pytest.mark.parametrize(
    ("days", "labels"),
    [
        (1 / 24, ["Sep 21", "00:15", "00:30", "00:45", "01:00"]),
        (7, ["Sep 22", "Sep 24", "Sep 26", "Sep 28"]),
        (400, ["Oct 2026", "Jan 2027", "Apr 2027", "Jul 2027", "Oct 2027"]),
    ],
)
def test_ticks_fit_the_range(days: float, labels: list[str]) -> None:
    begin = int(datetime(2026, 9, 21, tzinfo=UTC).timestamp())
    assert [label for _, label in time_ticks(begin, begin + int(days * DAY), 5, UTC)] == labels


@pytest.mark.parametrize("width", [MIN_WIDTH, 400, 960, MAX_WIDTH])
def test_nothing_lies_outside_the_image(width: int) -> None:
    title = "CPU of a worker with quite a long name, longer than a phone is wide"
    drawn = render(replace(CHART, title=title, states=[State(NOW - DAY, NOW + 2 * DAY, "running")]), width, MIN_HEIGHT)
    for text in elements(drawn, "text"):
        length, x = len(text.text or "") * 5.5, float(text.attrib["x"])
        left = x - {"end": length, "middle": length / 2}.get(text.attrib.get("text-anchor", ""), 0)
        assert left >= -1, text.text
        assert left + length <= width + 1, text.text
    for rect in elements(drawn, "rect"):
        assert float(rect.attrib.get("x", 0)) + float(rect.attrib["width"]) <= width


def test_themes_have_the_contrast_that_text_needs() -> None:
    """WCAG 2.2 AA: 4.5:1 for text, https://www.w3.org/TR/WCAG22/#contrast-minimum."""
    for theme in ("light", "dark"):
        rules = style(theme)
        page = _color(rules, r"\.page\{fill:")
        for name in (r" text\{fill:", r"\.title\{fill:"):
            assert _contrast(_color(rules, name), page) >= 4.5, (theme, name)
        for name in (r"\.main\{stroke:", r"\.earlier\{stroke:"):
            assert _contrast(_color(rules, name), page) >= 3, (theme, name)
    assert "prefers-color-scheme:dark" in style("auto")


def _color(rules: str, before: str) -> str:
    found = re.search(before + "(#[0-9a-f]{6})", rules)
    assert found
    return found[1]


def _contrast(one: str, other: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_reader_who_does_not_see_it_is_told_the_figures() -> None:
    label = ElementTree.fromstring(render(CHART)).find(f"{SVG}title")
    assert label is not None
    assert label.text is not None
    assert label.text.startswith("CPU of one, 2026-")
    assert re.search("CPU: mean [0-9.]+ %, lowest 0 %, highest 99.[0-9] %", label.text)
