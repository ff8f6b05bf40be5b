"""Comparisons: what is asked for, lines that differ without color, and tables of the values."""

from datetime import UTC, datetime

import pytest

from exporter.core.errors import RequestError
from exporter.core.model import Worker
from exporter.core.periods import DAY, HOUR
from exporter.history.reader import WorkerRef
from exporter.storage.rows import SampleRow
from exporter.web import chart
from exporter.web.compare_query import CompareQuery
from exporter.web.numbered_lines import LOOKS, MAX_NUMBERED
from exporter.web.pages import compare_page
from exporter.web.pages.compare_page import CompareView, Subject
from exporter.web.worker_chart import WorkerRows
from tests.helpers.charts import elements, points

NOW = 1_790_000_000


def query(*pairs: tuple[str, str]) -> CompareQuery:
    return CompareQuery.parse(pairs, now=NOW, reach=30 * DAY)


def test_each_worker_is_compared_once_and_at_most_eight_are() -> None:
    assert query(("worker", " a "), ("worker", ""), ("worker", "b"), ("worker", "a")).workers == ("a", "b")
    assert query().workers == ()
    eight = [("worker", str(number)) for number in range(MAX_NUMBERED)]
    assert len(query(*eight).workers) == 8
    with pytest.raises(RequestError, match="9 workers are chosen; choose at most 8"):
        query(*eight, ("worker", "one more"))


def test_the_range_is_a_day_unless_it_is_given() -> None:
    asked = query(("worker", "a"))
    assert (asked.start, asked.end, asked.start_text) == (NOW - DAY, NOW, "-24h")
    asked = query(("start", "2026-09-20T10:00"), ("end", "2026-09-20T12:00"), ("tz", "Europe/Berlin"))
    assert (asked.end - asked.start, asked.start) == (2 * HOUR, int(datetime(2026, 9, 20, 8, tzinfo=UTC).timestamp()))
    with pytest.raises(RequestError, match="start is too early"):
        query(("start", "-31d"))


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#151b22"])
def test_the_lines_have_the_contrast_of_graphics_on_both_backgrounds(background: str) -> None:
    assert len(LOOKS) == MAX_NUMBERED
    assert [color for color, _ in LOOKS if contrast(color, background) < 3] == []


def test_lines_differ_in_color_dashes_and_number() -> None:
    lines = [
        chart.Line(str(number), [chart.Point(at, number + at / DAY) for at in range(0, DAY, HOUR)], HOUR, number=number)
        for number in range(1, 9)
    ]
    drawn = chart.render(chart.Chart("CPU", " %", 0, DAY, lines))
    found = elements(drawn, "polyline")
    assert len({each.attrib["stroke"] for each in found}) == 8
    assert len({each.attrib["stroke-dasharray"] for each in found}) == 8
    badges = [each for each in elements(drawn, "text") if each.attrib.get("class") == "badge"]
    assert sorted(each.text or "" for each in badges) == sorted(str(number) for number in range(1, 9) for _ in range(3))
    places = {(each.attrib["x"], each.attrib["y"]) for each in badges}
    assert len(places) == 24, "no number hides another"
    assert points(drawn, "n3")[0][1] == pytest.approx((HOUR, 3 + 1 / 24), abs=60)
    empty = chart.render(chart.Chart("CPU", " %", 0, DAY, [chart.Line("x", [], HOUR, number=1)]))
    assert "No values in this range" in empty


def subject(name: str, *cpu: float | None) -> Subject:
    rows = [
        SampleRow(
            timestamp=datetime.fromtimestamp(NOW - 2 * HOUR + number * 300, UTC).replace(tzinfo=None),
            cpu_utilization=value,
            memory_utilization=None,
            active_labs_count=0,
            status="running",
        )
        for number, value in enumerate(cpu)
    ]
    return Subject(
        WorkerRef(Worker(name, "eu-west-1", "i-1", "running", name=f"<b>{name}</b>"), None), "running", WorkerRows(rows, 300)
    )


def test_the_page_has_figures_of_each_worker_and_an_address_without_it() -> None:
    asked = query(("worker", "a/1"), ("worker", "b"), ("start", "-7d"), ("tz", "Europe/Berlin"))
    page = compare_page.render(CompareView(asked, [subject("a/1", 10, 20, None, 60), subject("b")]), "./")
    assert "<b>a" not in page
    assert "&lt;b&gt;a/1&lt;/b&gt;" in page
    assert 'href="?worker=b&amp;start=-7d&amp;tz=Europe%2FBerlin">remove' in page
    assert 'href="./workers/a%2F1?start=-7d&amp;tz=Europe%2FBerlin"' in page
    assert "<td>30</td><td>10</td><td>60</td><td>–</td>" in page
    assert "<td>–</td><td>–</td><td>–</td>" in page
    assert "<td>30 %</td><td>–</td>" in page, "the table behind the chart"
    assert "2 of at most 8" in page
