"""Query parameters: their descriptions and bounds, and how they are parsed. Pure functions."""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from typing import cast
from zoneinfo import ZoneInfo

from exporter.core.errors import RequestError
from exporter.core.local_time import LOCAL_INTERVALS, time_zone
from exporter.core.model import STATUSES
from exporter.core.periods import DAY, WEEK, format_duration, parse_duration, parse_time, rfc3339
from exporter.history.reader import PageRequest
from exporter.sources.cloudwatch.retention import OLDEST
from exporter.web import chart, worker_chart
from exporter.web.chart import Theme
from exporter.web.discovery import NODE_EXPORTER_PORT
from exporter.web.openapi import Parameter, Schema
from exporter.web.worker_chart import Metric

WORKERS_LIMIT, MAX_WORKERS = 500, 1000
HISTORY_LIMIT, MAX_ROWS = 1000, 10_000
MAX_POINTS = 1_000_000
"""Rows that a range may have on all its pages: two years of minutes."""
MAX_PARAMETER_CHARACTERS = 4096
"""Characters of a parameter; the longest is the cursor of a worker id of 1,024 characters."""
MAX_FUTURE_SECONDS = DAY
"""Seconds that `end` may lie in the future, so that the end of today is accepted."""

MAX_SHIFT_SECONDS = 371 * DAY
"""The longest distance of two ranges that are compared: a year in whole weeks, rounded up."""
MIN_RESOURCES_SECONDS = 30
"""The shortest range of a worker's resources, in seconds: the shortest that the manager's UI offers."""

_CURSOR = re.compile("([0-9]{1,14}):([0-9]{1,11}):([0-9]{1,7})(?::([A-Za-z0-9_+/-]{1,64}))?")
_DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"}
_TIME: Schema = {
    "type": "string",
    "pattern": "^(now|(now-|-)?([0-9]+(ms|[smhdwy]))+|[0-9]{1,14}([.][0-9]{1,9})?|[0-9]{4}-[0-9]{2}-[0-9]{2}"
    "([Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?([Zz]|[+-][0-9]{2}:[0-9]{2})?)?)$",
    "examples": ["2026-01-31T12:00:00Z", "2026-01-31", "1767225600", "-24h", "now"],
}

LIMIT_WORKERS = Parameter(
    "limit",
    f"Workers per page. Default: {WORKERS_LIMIT}.",
    {"type": "integer", "minimum": 1, "maximum": MAX_WORKERS, "default": WORKERS_LIMIT},
)
CURSOR = Parameter("cursor", "`next` of the previous page.", {"type": "string"})
STATUS = Parameter(
    "status", "Only workers with this status; may be repeated.", {"type": "string", "enum": list(STATUSES)}, many=True
)
REGION = Parameter("region", "Only workers in this region; may be repeated.", {"type": "string"}, many=True)
WORKERS = (LIMIT_WORKERS, CURSOR, STATUS, REGION)

WORKER_ID = Parameter(
    "worker_id",
    "Id of the worker. Characters other than letters, digits and -._~ are percent-encoded (%2F for /).",
    {"type": "string"},
    "path",
)
START = Parameter(
    "start",
    "Start of the range, inclusive: RFC 3339, a date (with or without a time of day, in `tz`), Unix seconds or milliseconds, "
    "or a duration before now such as `-7d`. Default: 24h before "
    f"`end`. At the earliest {format_duration(OLDEST)} ago, or the retention of the history ago if that is longer.",
    _TIME,
)
END = Parameter(
    "end",
    "End of the range, exclusive, in the formats of `start`. Default: now, also for an end up to a day in the future.",
    _TIME,
)
INTERVAL = Parameter(
    "interval",
    "Length of the intervals for which avg, min, max and count of each metric and the share of each status are returned, "
    f"instead of samples: a multiple of `period`, up to {format_duration(WEEK)}, aligned to UTC, 7d to Monday. With `tz` "
    "days (1d) and weeks (7d) are local.",
    {**_DURATION, "examples": ["5m", "1h", "1d", "7d"]},
)
LIMIT_ROWS = Parameter(
    "limit",
    f"Rows per page. Default: {HISTORY_LIMIT}.",
    {"type": "integer", "minimum": 1, "maximum": MAX_ROWS, "default": HISTORY_LIMIT},
)
CURSOR_ROWS = Parameter(
    "cursor",
    "`next` of the previous page. It contains start, end, interval and tz, so `start` and `end` are ignored.",
    {"type": "string"},
)
FORMAT = Parameter(
    "format", "`json` or `csv`; takes precedence over the Accept header.", {"type": "string", "enum": ["json", "csv"]}
)
TZ = Parameter(
    "tz",
    "Time zone of days, weeks, and times without an offset, such as America/New_York; a local day has 23 to 25 hours. Default: "
    "UTC.",
    {"type": "string", "examples": ["America/New_York", "Europe/Berlin"]},
)
HISTORY = (WORKER_ID, START, END, INTERVAL, TZ, LIMIT_ROWS, CURSOR_ROWS, FORMAT)

RESOURCES_REGION = Parameter("region", "AWS region of the worker.", {"type": "string"}, "path")
RESOURCES_WORKER = replace(WORKER_ID, description="Id of the worker, or of an EC2 instance that it runs or ran on.")
START_TIME = Parameter(
    "start_time",
    f"Length of the range before `end_time`: a duration from {format_duration(MIN_RESOURCES_SECONDS)} to "
    f"{format_duration(OLDEST)}, rounded up to whole periods. The range ends with the newest period that CloudWatch has "
    "published, if that is at most `max_age` old; `start_time` and `end_time` of the response are the range that was averaged. "
    "Default: 10m.",
    {**_DURATION, "default": "10m", "examples": ["30s", "5m", "10m", "1h", "7d"]},
)
END_TIME = Parameter("end_time", "End of the range, exclusive, in the formats of `end` of the history. Default: now.", _TIME)
RESOURCES = (RESOURCES_REGION, RESOURCES_WORKER, START_TIME, END_TIME)

PORT = Parameter(
    "port",
    f"Port of the targets. Default: {NODE_EXPORTER_PORT} (node_exporter).",
    {"type": "integer", "minimum": 1, "maximum": 65535, "default": NODE_EXPORTER_PORT},
)
DISCOVERY = (PORT,)

METRIC = Parameter(
    "metric",
    "What is drawn: CPU or memory in percent, or labs. Default: `cpu`.",
    {"type": "string", "enum": list(worker_chart.METRICS), "default": "cpu"},
)
COMPARE = Parameter(
    "compare",
    f"Draw the range this long before, too, over the other one: a duration up to {format_duration(MAX_SHIFT_SECONDS)}, such "
    "as `1w`.",
    {**_DURATION, "examples": ["1d", "1w"]},
)
THEME = Parameter(
    "theme",
    "Colors; `auto` follows the preference of the reader's browser. Default: `auto`.",
    {"type": "string", "enum": list(chart.THEMES), "default": "auto"},
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


# -- the queries -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkersQuery:
    """The parameters of /api/workers."""

    limit: int = WORKERS_LIMIT
    after: str = ""
    """Worker id after which the page begins."""
    statuses: frozenset[str] = frozenset()
    """Empty: workers with any status, also an unknown one."""
    regions: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]]) -> "WorkersQuery":
        """Parse the query's (name, value) pairs; raises RequestError."""
        given = _given(items, WORKERS)
        statuses = frozenset(given.get("status", ()))
        if not statuses <= set(STATUSES):
            raise RequestError(f"status must be one of {', '.join(STATUSES)}; repeat the parameter for several.")
        return cls(
            _limit(given, LIMIT_WORKERS), _decoded(_one(given, "cursor") or ""), statuses, frozenset(given.get("region", ()))
        )


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """The parameters of a worker's history."""

    span: PageRequest
    format: str | None

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]], *, now: int, period: int, reach: int | None) -> "HistoryQuery":
        """Parse the query's (name, value) pairs; raises RequestError.

        Args:
            items: the pairs.
            now: UTC seconds.
            period: seconds between two samples.
            reach: maximum age of a sample in seconds; None without limit.
        """
        given = _given(items, HISTORY)
        limit = _limit(given, LIMIT_ROWS)
        format_ = _one(given, "format")
        if format_ not in (None, "json", "csv"):
            raise RequestError("format must be json or csv.")
        interval = _interval(_one(given, "interval"), period)
        zone = _zone(_one(given, "tz"))
        cursor = _one(given, "cursor")
        if cursor is not None:
            span = _resumed(cursor, limit, now, period, reach)
            if interval not in (None, span.interval):
                raise RequestError("interval differs from that of the cursor; leave it out, or start again without the cursor.")
            if zone not in (None, span.zone):
                raise RequestError("tz differs from that of the cursor; leave it out, or start again without the cursor.")
        else:
            end = _time(given, "end", now, now, zone)
            start = _time(given, "start", now, min(end, now) - DAY, zone)
            _check_range(start, end, now, reach)
            span = PageRequest(start * 1000, min(end, now), interval, limit, zone)
        _check_local(span)
        points = (span.end - span.start // 1000) // (span.interval or period)
        if points > MAX_POINTS:
            raise RequestError(
                f"The range may have {points} rows, more than {MAX_POINTS}; use a longer interval or a later start."
            )
        return cls(span, format_)


@dataclass(frozen=True, slots=True)
class ResourcesQuery:
    """The parameters of a worker's resources."""

    relative: str
    """`start_time` as it was given."""
    seconds: int
    end: int

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]], *, now: int) -> "ResourcesQuery":
        """Parse the query's (name, value) pairs; raises RequestError."""
        given = _given(items, RESOURCES)
        relative = given["start_time"][0] if "start_time" in given else "10m"
        shortest = format_duration(MIN_RESOURCES_SECONDS)
        sentence = f"start_time must be a duration from {shortest} to {format_duration(OLDEST)}, such as 10m, 1h or 7d."
        seconds = _duration(relative, sentence)
        if not MIN_RESOURCES_SECONDS <= seconds <= OLDEST:
            raise RequestError(sentence)
        end = _time(given, "end_time", now, now)
        if end > now + MAX_FUTURE_SECONDS:
            raise RequestError("end_time is in the future; leave it out to use now.")
        if end - seconds < now - OLDEST:
            raise RequestError(f"CloudWatch has no data before {rfc3339(now - OLDEST)}; use a later end_time.")
        return cls(relative, seconds, min(end, now))


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
        given = _given(items, CHART)
        zone = _zone(_one(given, "tz"))
        end = _time(given, "end", now, now, zone)
        start = _time(given, "start", now, min(end, now) - DAY, zone)
        _check_range(start, end, now, reach)
        text = _one(given, "compare")
        sentence = f"compare must be a duration up to {format_duration(MAX_SHIFT_SECONDS)}, such as 1d or 1w."
        shift = None if text is None else _duration(text, sentence)
        if shift is not None and not 0 < shift <= MAX_SHIFT_SECONDS:
            raise RequestError(sentence)
        return cls(
            cast(Metric, _choice(given, METRIC)),
            start,
            min(end, now),
            zone,
            shift,
            cast(Theme, _choice(given, THEME)),
            _limit(given, WIDTH),
            _limit(given, HEIGHT),
        )


def discovery_port(items: Iterable[tuple[str, str]]) -> int:
    """Return the port of a request to /sd/workers; raises RequestError."""
    return _limit(_given(items, DISCOVERY), PORT)


# -- the single parameters ---------------------------------------------------------------------------------------------


def _time(given: Mapping[str, Sequence[str]], name: str, now: int, default: int, zone: ZoneInfo | None = None) -> int:
    text = _one(given, name)
    if text is None:
        return default
    try:
        return parse_time(text, now, zone or UTC)
    except ValueError:
        raise RequestError(
            f"{name} must be a time such as 2026-01-31T12:00:00Z, unix seconds, now, or a duration before now such as -24h."
        ) from None


def _zone(name: str | None) -> ZoneInfo | None:
    if name is None:
        return None
    try:
        return time_zone(name)
    except ValueError:
        raise RequestError("tz must be the name of a time zone, such as America/New_York, Europe/Berlin or UTC.") from None


def _check_local(span: PageRequest) -> None:
    """Refuse intervals that have no meaning in a time zone: several days but no week have no first day."""
    if span.zone and span.interval and span.interval > DAY and span.interval not in LOCAL_INTERVALS:
        raise RequestError("With tz, interval must be 1d, 7d, or shorter than a day.")


def _check_range(start: int, end: int, now: int, reach: int | None) -> None:
    if end > now + MAX_FUTURE_SECONDS:
        raise RequestError("end is in the future; leave it out to use now.")
    if start >= now:
        raise RequestError("start is in the future; use an earlier one, such as -24h.")
    if start >= end:
        raise RequestError("start must be before end.")
    if start < 0 or (reach is not None and start < now - reach):
        oldest = f"-{format_duration(reach)}" if reach is not None else "1970-01-01T00:00:00Z"
        raise RequestError(f"start is too early; no data is kept that long. The earliest start is {oldest}.")


def _interval(text: str | None, period: int) -> int | None:
    if text is None:
        return None
    shortest = format_duration(period)
    sentence = f"interval must be a duration from {shortest} to {format_duration(WEEK)}, such as 1h or 1d."
    seconds = _duration(text, sentence)
    if seconds < period:
        raise RequestError(f"interval is shorter than the time between two samples; use {shortest} or longer.")
    if seconds > WEEK:
        raise RequestError(sentence)
    if seconds % period:
        raise RequestError(f"interval must be a multiple of {shortest}, the time between two samples.")
    return seconds


def _duration(text: str, sentence: str) -> int:
    try:
        return parse_duration(text) if len(text) < 32 else _refuse(sentence)
    except ValueError as error:
        raise RequestError(sentence) from error


def _refuse(sentence: str) -> int:
    raise RequestError(sentence)


def _limit(given: Mapping[str, Sequence[str]], parameter: Parameter) -> int:
    text, least, most = _one(given, parameter.name), parameter.schema["minimum"], parameter.schema["maximum"]
    if text is None:
        return int(parameter.schema["default"])
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise RequestError(f"{parameter.name} must be a whole number from {least} to {most}.")
    return int(text)


def _choice(given: Mapping[str, Sequence[str]], parameter: Parameter) -> str:
    text, allowed = _one(given, parameter.name), parameter.schema["enum"]
    if text is not None and text not in allowed:
        raise RequestError(f"{parameter.name} must be one of {', '.join(allowed)}.")
    return str(parameter.schema["default"]) if text is None else text


def _given(items: Iterable[tuple[str, str]], parameters: Sequence[Parameter]) -> Mapping[str, Sequence[str]]:
    """Return name → values; raises RequestError for unknown names, and for repeated ones that must not be."""
    allowed = {parameter.name: parameter for parameter in parameters if parameter.place == "query"}
    given: dict[str, list[str]] = {}
    for name, value in items:
        if name not in allowed:
            raise RequestError(f"{name[:80]} is not a parameter of this route; allowed are {', '.join(allowed)}.")
        if name in given and not allowed[name].many:
            raise RequestError(f"{name} is given twice; give it once.")
        if len(value) > MAX_PARAMETER_CHARACTERS:
            raise RequestError(f"{name} is longer than {MAX_PARAMETER_CHARACTERS} characters.")
        given.setdefault(name, []).append(value)
    return given


def _one(given: Mapping[str, Sequence[str]], name: str) -> str | None:
    return given[name][0] if name in given else None


# -- cursors -----------------------------------------------------------------------------------------------------------


def encoded(text: str) -> str:
    """Return a text as a cursor of URL-safe characters."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def resuming(span: PageRequest, following: int) -> str:
    """Return the cursor of the next page of `span`, which begins at the millisecond `following`."""
    zone = f":{span.zone.key}" if span.zone else ""
    return encoded(f"{following}:{span.end}:{span.interval or 0}{zone}")


def _decoded(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise RequestError("cursor must be the value of next on the previous page.") from error


def _resumed(cursor: str, limit: int, now: int, period: int, reach: int | None) -> PageRequest:
    """Return the page that a cursor stands for; raises RequestError for forged cursors that point outside the allowed range."""
    found = _CURSOR.fullmatch(_decoded(cursor))
    at, end, interval = map(int, found.groups()[:3]) if found else (0, 0, 0)
    oldest = 0 if reach is None else now - reach - DAY  # a day more, because time passes between two pages
    if not oldest <= at // 1000 < end <= now + MAX_FUTURE_SECONDS or interval > WEEK or interval % period:
        raise RequestError("cursor must be the value of next on the previous page.")
    return PageRequest(at, end, interval or None, limit, _zone(found[4]) if found else None)
