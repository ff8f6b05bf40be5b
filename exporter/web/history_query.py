"""Query parameters of a worker's history, and of many workers': how they are parsed, and the cursors. Pure functions."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from exporter.core.distribution import Distribution
from exporter.core.errors import RequestError
from exporter.core.local_time import LOCAL_INTERVALS
from exporter.core.periods import DAY, WEEK, format_duration
from exporter.core.regions import normal_region
from exporter.history.reader import PageRequest
from exporter.web.chart_query import MAX_SHIFT_SECONDS
from exporter.web.openapi import Parameter
from exporter.web.parameters import CURSOR_TEXT, DURATION, END, REGION, START, TZ, WORKER_ID, decoded, encoded
from exporter.web.query_values import (
    MAX_FUTURE_SECONDS,
    check_range,
    duration_of,
    flag,
    given_values,
    interval_of,
    single,
    time_bound,
    whole_number,
    zone_named,
)

HISTORY_LIMIT, MAX_ROWS = 1000, 10_000
MAX_POINTS = 1_000_000
"""Rows that a range may have on all its pages: two years of minutes."""
MAX_NAMED_WORKERS = 100
"""Workers that a request may name, and workers on a page: each is read from MongoDB by a query of its own."""
HistoryFormat = Literal["json", "columns", "csv"]

_CURSOR = re.compile("([0-9]{1,14}):([0-9]{1,11}):([0-9]{1,7})(?::([A-Za-z0-9_+/-]{1,64}))?")
_NUMBER = re.compile(r"[0-9]{1,7}([.][0-9]{1,30})?([eE]-?[0-9]{1,3})?")
_CURSOR_SENTENCE = "cursor must be the value of next on the previous page."

INTERVAL = Parameter(
    "interval",
    "Length of the intervals for which avg, min, max and number of samples of each metric and the share of each status are "
    f"returned, instead of samples: a multiple of `period`, up to {format_duration(WEEK)}, aligned to UTC, 7d to Monday. With "
    "`tz` days (1d) and weeks (7d) are local.",
    {**DURATION, "examples": ["5m", "1h", "1d", "7d"]},
)
LIMIT_ROWS = Parameter(
    "limit",
    f"Rows per page. Default: {HISTORY_LIMIT}.",
    {"type": "integer", "minimum": 1, "maximum": MAX_ROWS, "default": HISTORY_LIMIT},
)
CURSOR_ROWS = Parameter(
    "cursor",
    "`next` of the previous page. It contains start, end, interval and tz, so `start` and `end` are ignored.",
    CURSOR_TEXT,
)
PERCENTILES = Parameter(
    "percentiles",
    "With `interval`: `true` adds p50, p95, and p99 of each metric (nearest rank: each is one of the values). "
    "Default: `false`.",
    {"type": "boolean", "default": False},
)
ABOVE = Parameter(
    "above",
    "With `interval`: adds `above_seconds`, the time for which a metric was greater than this number, in percent or labs.",
    {"type": "number", "minimum": 0, "maximum": 1_000_000, "examples": [80]},
)
FILL = Parameter(
    "fill",
    "`null`: a row for every interval, or every period of samples; its values are null where there are no samples. Default: "
    "only rows with samples.",
    {"type": "string", "title": "Fill", "enum": ["null"]},
)
COMPARE_ROWS = Parameter(
    "compare",
    "Beside each row the one this long before it (`earlier`, or columns that begin with `earlier_`): a duration up to "
    f"{format_duration(MAX_SHIFT_SECONDS)} that is a multiple of `interval`, such as `1w`. All rows are there, as with "
    "`fill=null`.",
    {**DURATION, "examples": ["1d", "1w"]},
)
FORMAT_ROWS = Parameter(
    "format",
    "`json`, `columns` (JSON with an array for each field, for charts) or `csv`; takes precedence over the Accept header.",
    {"type": "string", "title": "HistoryFormat", "enum": ["json", "columns", "csv"]},
)
_RANGE = (START, END, INTERVAL, TZ, PERCENTILES, ABOVE, FILL, COMPARE_ROWS, LIMIT_ROWS, CURSOR_ROWS, FORMAT_ROWS)
HISTORY = (WORKER_ID, *_RANGE)
WORKERS_BY_NAME = Parameter(
    "worker",
    f"Id or name of a worker, as in the path of one worker's history; repeated for up to {MAX_NAMED_WORKERS} workers.",
    {"type": "string", "minLength": 1},
    many=True,
)
HISTORY_REGION = replace(
    REGION,
    description="All workers of this region, present and past, in place of `worker`; may be repeated. Default: all workers.",
)
FLEET_HISTORY = (WORKERS_BY_NAME, HISTORY_REGION, *_RANGE)
KEPT = ("worker", "region", "limit", "interval", "percentiles", "above", "fill", "compare", "format")
"""Parameters that the next page has, too, beside its cursor."""


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """The parameters of a worker's history."""

    span: PageRequest
    format: HistoryFormat | None
    shift: int | None
    """Seconds between a row and the one beside it; None: none is."""

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]], *, now: int, period: int, reach: int | None) -> "HistoryQuery":
        """Parse the query's (name, value) pairs; raises RequestError.

        Args:
            items: the pairs.
            now: UTC seconds.
            period: seconds between two samples.
            reach: maximum age of a sample in seconds; None without limit.
        """
        given = given_values(items, HISTORY)
        cursor = single(given, "cursor")
        return _history(given, None if cursor is None else decoded(cursor), now, period, reach)


@dataclass(frozen=True, slots=True)
class FleetHistoryQuery:
    """The parameters of many workers' history."""

    rows: HistoryQuery
    """Of each worker; the limit is that of all rows of the page."""
    names: tuple[str, ...]
    """Ids or names, each once; empty: all workers of `regions`."""
    regions: frozenset[str]
    """Empty: all regions."""
    first: str = ""
    """Id of the worker with which the page begins."""
    at: int = 0
    """Milliseconds since 1970 at which the page begins for that worker; for all others it is the start of the range."""

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]], *, now: int, period: int, reach: int | None) -> "FleetHistoryQuery":
        """Parse as `HistoryQuery.parse` does; raises RequestError."""
        given = given_values(items, FLEET_HISTORY)
        names, regions = tuple(dict.fromkeys(given.get("worker", ()))), frozenset(map(normal_region, given.get("region", ())))
        if "" in names:
            raise RequestError("worker is empty; give the id or name of a worker, or leave it out for all workers.")
        if names and regions:
            raise RequestError("Name workers (worker=) or regions (region=), but not both.")
        if len(names) > MAX_NAMED_WORKERS:
            raise RequestError(
                f"{len(names)} workers are named, more than {MAX_NAMED_WORKERS}; name fewer, or use region= with its pages."
            )
        cursor = single(given, "cursor")
        if cursor is None:
            return cls(_history(given, None, now, period, reach), names, regions)
        at, _, rest = decoded(cursor).partition(":")
        span, bar, first = rest.partition("|")
        if not re.fullmatch("[0-9]{1,14}", at) or not bar:
            raise RequestError(_CURSOR_SENTENCE)
        rows = _history(given, span, now, period, reach)
        if not rows.span.start <= int(at) < rows.span.end * 1000:
            raise RequestError(_CURSOR_SENTENCE)
        return cls(rows, names, regions, first, int(at))


def resuming(span: PageRequest, following: int) -> str:
    """Return the cursor of the next page of `span`, which begins at the millisecond `following`."""
    return encoded(_position(span, following))


def resuming_fleet(span: PageRequest, worker_id: str, following: int) -> str:
    """Return the cursor of the page that begins with this worker at the millisecond `following`; `span` is the whole range."""
    return encoded(f"{following}:{_position(span, span.start)}|{worker_id}")


def _position(span: PageRequest, at: int) -> str:
    zone = f":{span.zone.key}" if span.zone else ""
    return f"{at}:{span.end}:{span.interval or 0}{zone}"


def _history(given: Mapping[str, Sequence[str]], cursor: str | None, now: int, period: int, reach: int | None) -> HistoryQuery:
    """Return the rows that are asked for; `cursor` is its text. Raises RequestError."""
    limit = whole_number(given, LIMIT_ROWS)
    interval = interval_of(single(given, "interval"), period)
    zone = zone_named(single(given, "tz"))
    if cursor is not None:
        span = _resumed(cursor, limit, now, period, reach)
        if interval not in (None, span.interval):
            raise RequestError("interval differs from that of the cursor; leave it out, or start again without the cursor.")
        if zone not in (None, span.zone):
            raise RequestError("tz differs from that of the cursor; leave it out, or start again without the cursor.")
    else:
        end = time_bound(given, "end", now, now, zone)
        start = time_bound(given, "start", now, min(end, now) - DAY, zone)
        check_range(start, end, now, reach)
        span = PageRequest(start * 1000, min(end, now), interval, limit, zone)
    if span.zone and span.interval and span.interval > DAY and span.interval not in LOCAL_INTERVALS:
        raise RequestError("With tz, interval must be 1d, 7d, or shorter than a day.")  # several days have no first day
    shift = _shift(single(given, "compare"), span.interval or period)
    span = replace(span, wanted=_wanted(given), fill=_fills(given) or shift is not None)
    if span.wanted and not span.interval:
        raise RequestError("percentiles and above need an interval, such as interval=1h.")
    points = (span.end - span.start // 1000) // (span.interval or period)
    if points > MAX_POINTS:
        raise RequestError(f"The range may have {points} rows, more than {MAX_POINTS}; use a longer interval or a later start.")
    return HistoryQuery(span, _format(given), shift)


def _resumed(cursor: str, limit: int, now: int, period: int, reach: int | None) -> PageRequest:
    """Return the page that a cursor stands for; raises RequestError for forged cursors that point outside the allowed range."""
    found = _CURSOR.fullmatch(cursor)
    at, end, interval = map(int, found.groups()[:3]) if found else (0, 0, 0)
    oldest = 0 if reach is None else now - reach - DAY  # a day more, because time passes between two pages
    if not oldest <= at // 1000 < end <= now + MAX_FUTURE_SECONDS or interval > WEEK or interval % period:
        raise RequestError(_CURSOR_SENTENCE)
    return PageRequest(at, end, interval or None, limit, zone_named(found[4]) if found else None)


def _wanted(given: Mapping[str, Sequence[str]]) -> Distribution | None:
    """Return the further statistics that are asked for, None for none; raises RequestError."""
    percentiles, text = flag(given, PERCENTILES), single(given, "above")
    if text is not None and (not _NUMBER.fullmatch(text) or float(text) > ABOVE.schema["maximum"]):
        raise RequestError("above must be a number from 0 to 1000000, such as 80 or 99.5.")
    return Distribution(percentiles, None if text is None else float(text)) if percentiles or text is not None else None


def _fills(given: Mapping[str, Sequence[str]]) -> bool:
    text = single(given, FILL.name)
    if text not in (None, "null"):
        raise RequestError("fill must be null, or left out.")
    return text is not None


def _shift(text: str | None, step: int) -> int | None:
    """Return the seconds of `compare`; raises RequestError where they are no whole number of rows, `step` seconds each."""
    if text is None:
        return None
    longest = format_duration(MAX_SHIFT_SECONDS)
    sentence = f"compare must be a duration up to {longest} and a multiple of {format_duration(step)}, such as 1w."
    seconds = duration_of(text, sentence)
    if seconds > MAX_SHIFT_SECONDS or seconds % step:
        raise RequestError(sentence)
    return seconds


def _format(given: Mapping[str, Sequence[str]]) -> HistoryFormat | None:
    text = single(given, FORMAT_ROWS.name)
    if text not in (None, "json", "columns", "csv"):
        raise RequestError("format must be json, columns or csv.")
    return cast("HistoryFormat | None", text)
