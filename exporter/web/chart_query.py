"""Query parameters of charts and pages: their descriptions and bounds, and how they are parsed. Pure functions."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast
from zoneinfo import ZoneInfo

from exporter.core.errors import RequestError
from exporter.core.periods import DAY, format_duration
from exporter.web import chart, worker_chart
from exporter.web.chart import Theme
from exporter.web.openapi import Parameter
from exporter.web.parameters import DURATION, END, START, TZ, WORKER_ID
from exporter.web.query_values import (
    check_range,
    choice,
    duration_of,
    given_values,
    single,
    time_bound,
    whole_number,
    zone_named,
)
from exporter.web.worker_chart import Metric

MAX_SHIFT_SECONDS = 371 * DAY
"""The longest distance of two ranges that are compared: a year in whole weeks, rounded up."""

METRIC = Parameter(
    "metric",
    "What is drawn: CPU or memory in percent, or labs. Default: `cpu`.",
    {"type": "string", "title": "ChartMetric", "enum": list(worker_chart.METRICS), "default": "cpu"},
)
COMPARE = Parameter(
    "compare",
    f"Draw the range this long before, too, over the other one: a duration up to {format_duration(MAX_SHIFT_SECONDS)}, such "
    "as `1w`.",
    {**DURATION, "examples": ["1d", "1w"]},
)
THEME = Parameter(
    "theme",
    "Colors; `auto` follows the preference of the reader's browser. Default: `auto`.",
    {"type": "string", "title": "ChartTheme", "enum": list(chart.THEMES), "default": "auto"},
)
WIDTH = Parameter(
    "width",
    f"Pixels. Default: {chart.DEFAULT_WIDTH}.",
    {"type": "integer", "minimum": chart.MIN_WIDTH, "maximum": chart.MAX_WIDTH, "default": chart.DEFAULT_WIDTH},
)
HEIGHT = Parameter(
    "height",
    f"Pixels. Default: {chart.DEFAULT_HEIGHT}.",
    {"type": "integer", "minimum": chart.MIN_HEIGHT, "maximum": chart.MAX_HEIGHT, "default": chart.DEFAULT_HEIGHT},
)
CHART_TZ = replace(
    TZ, description="Time zone of the time axis, and of times without an offset, such as America/New_York. Default: UTC."
)
CHART = (WORKER_ID, METRIC, START, END, CHART_TZ, COMPARE, THEME, WIDTH, HEIGHT)
PAGE = (WORKER_ID, *(replace(each, empty=True) for each in (START, END, CHART_TZ, COMPARE)))
NAME = Parameter("name", "Name of the file.", {"type": "string", "examples": ["pages.css"]}, "path")


@dataclass(frozen=True, slots=True)
class ChartQuery:
    """The parameters of a chart."""

    metric: Metric
    start: int
    """UTC second, as `end`."""
    end: int
    zone: ZoneInfo | None
    shift: int | None
    """Seconds between the range and the one it is compared with; None: no comparison."""
    theme: Theme
    width: int
    height: int

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]], *, now: int, reach: int | None) -> "ChartQuery":
        """Parse the query's (name, value) pairs; raises RequestError. The arguments are those of `HistoryQuery.parse`."""
        given = given_values(items, CHART)
        zone = zone_named(single(given, "tz"))
        end = time_bound(given, "end", now, now, zone)
        start = time_bound(given, "start", now, min(end, now) - DAY, zone)
        check_range(start, end, now, reach)
        text = single(given, "compare")
        sentence = f"compare must be a duration up to {format_duration(MAX_SHIFT_SECONDS)}, such as 1d or 1w."
        shift = None if text is None else duration_of(text, sentence)
        if shift is not None and not 0 < shift <= MAX_SHIFT_SECONDS:
            raise RequestError(sentence)
        return cls(
            cast(Metric, choice(given, METRIC)),
            start,
            min(end, now),
            zone,
            shift,
            cast(Theme, choice(given, THEME)),
            whole_number(given, WIDTH),
            whole_number(given, HEIGHT),
        )
