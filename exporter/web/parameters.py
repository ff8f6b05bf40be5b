"""What a request may ask for: each parameter with its description and its bounds, and how it is read. Pure."""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from exporter.core.errors import RequestError
from exporter.core.model import STATUSES
from exporter.core.periods import DAY, MINUTE, WEEK, format_duration, parse_duration, parse_time, rfc3339
from exporter.history.reader import PageRequest
from exporter.sources.cloudwatch.retention import OLDEST
from exporter.web.discovery import NODE_EXPORTER
from exporter.web.openapi import Parameter, Schema

WORKERS_LIMIT, MAX_WORKERS = 500, 1000
HISTORY_LIMIT, MAX_ROWS = 1000, 10_000
MAX_POINTS = 1_000_000
"""Rows a range may have on all its pages: two years of minutes."""
LONGEST_PARAMETER = 4096
"""Characters; a cursor of a worker id of 1,024 is the longest."""
MAX_FUTURE_SECONDS = DAY
"""Seconds that `end` may lie in the future, as the end of today does; nothing is there, of course."""

_CURSOR = re.compile("([0-9]{1,14}):([0-9]{1,11}):([0-9]{1,7})")
_DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"}
_TIME: Schema = {
    "type": "string",
    "pattern": "^(now|(now-|-)?([0-9]+(ms|[smhdwy]))+|[0-9]{1,11}([.][0-9]{1,9})?"
    "|[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2}))?)$",
    "examples": ["2026-01-31T12:00:00Z", "1767225600", "-24h", "now"],
}

LIMIT_WORKERS = Parameter(
    "limit",
    f"Workers on a page, {WORKERS_LIMIT} if not given.",
    {"type": "integer", "minimum": 1, "maximum": MAX_WORKERS, "default": WORKERS_LIMIT},
)
CURSOR = Parameter("cursor", "The `next` of the page before.", {"type": "string"})
STATUS = Parameter("status", "Only workers of this status.", {"type": "string", "enum": list(STATUSES)}, many=True)
REGION = Parameter("region", "Only workers of this region.", {"type": "string"}, many=True)
WORKERS = (LIMIT_WORKERS, CURSOR, STATUS, REGION)

WORKER_ID = Parameter(
    "worker_id",
    "The worker, percent-encoded where the id has other characters than letters, digits and -._~ (also %2F for /).",
    {"type": "string"},
    "path",
)
START = Parameter(
    "start",
    "First moment: RFC 3339, unix seconds, or a duration before now such as `-7d`; 24h before `end` if not given. At the "
    f"earliest {format_duration(OLDEST)} ago, or as long ago as the history keeps samples if that is longer.",
    _TIME,
)
END = Parameter(
    "end", "The moment after the last, as `start`; now if not given, or if it lies in the future (at most a day).", _TIME
)
INTERVAL = Parameter(
    "interval",
    "Gives avg, min, max and count of every metric and the share of time in every status per interval of this length, "
    f"instead of samples: whole periods of the history, up to {format_duration(WEEK)}, aligned to UTC, 7d to Monday.",
    {**_DURATION, "examples": ["5m", "1h", "1d", "7d"]},
)
LIMIT_ROWS = Parameter(
    "limit",
    f"Rows on a page, {HISTORY_LIMIT} if not given.",
    {"type": "integer", "minimum": 1, "maximum": MAX_ROWS, "default": HISTORY_LIMIT},
)
CURSOR_ROWS = Parameter(
    "cursor",
    "The `next` of the page before. It holds start, end and interval, so `start` and `end` have no effect beside it.",
    {"type": "string"},
)
FORMAT = Parameter(
    "format", "As `Accept: application/json` or `text/csv`, and wins over it.", {"type": "string", "enum": ["json", "csv"]}
)
HISTORY = (WORKER_ID, START, END, INTERVAL, LIMIT_ROWS, CURSOR_ROWS, FORMAT)

RESOURCES_REGION = Parameter("region", "The worker's AWS region.", {"type": "string"}, "path")
RESOURCES_WORKER = replace(WORKER_ID, description="The worker's id, or that of an instance it runs or ran on.")
START_TIME = Parameter(
    "start_time",
    f"How far back from `end_time`: a duration of 1m to {format_duration(OLDEST)}, 10m if not given.",
    {**_DURATION, "default": "10m", "examples": ["10m", "1h", "7d"]},
)
END_TIME = Parameter("end_time", "The moment after the last, as `end` of the history; now if not given.", _TIME)
RESOURCES = (RESOURCES_REGION, RESOURCES_WORKER, START_TIME, END_TIME)

PORT = Parameter(
    "port",
    f"The port of every target, {NODE_EXPORTER} (node_exporter's) if not given.",
    {"type": "integer", "minimum": 1, "maximum": 65535, "default": NODE_EXPORTER},
)
DISCOVERY = (PORT,)


# -- the queries -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkersQuery:
    """The parameters of /api/workers."""

    limit: int = WORKERS_LIMIT
    after: str = ""
    """Worker id the page begins behind."""
    statuses: frozenset[str] = frozenset()
    """Empty: any, or none known."""
    regions: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]]) -> "WorkersQuery":
        """Read the query's (name, value) pairs, or raise RequestError."""
        given = _given(items, WORKERS)
        statuses = frozenset(given.get("status", ()))
        if not statuses <= set(STATUSES):
            raise RequestError(f"status must be one of {', '.join(STATUSES)}; give it several times for several.")
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
        """Read the query's (name, value) pairs, or raise RequestError.

        Args:
            items: the pairs.
            now: UTC seconds.
            period: seconds of a sample.
            reach: seconds of history there may be, None: without bound.
        """
        given = _given(items, HISTORY)
        limit = _limit(given, LIMIT_ROWS)
        format_ = _one(given, "format")
        if format_ not in (None, "json", "csv"):
            raise RequestError("format must be json or csv.")
        interval = _interval(_one(given, "interval"), period)
        cursor = _one(given, "cursor")
        if cursor is not None:
            span = _resumed(cursor, limit, now, period, reach)
            if interval not in (None, span.interval):
                raise RequestError("interval is not that of the page before; leave it out, or begin again without the cursor.")
        else:
            end = _time(given, "end", now, now)
            start = _time(given, "start", now, min(end, now) - DAY)
            _check_range(start, end, now, reach)
            span = PageRequest(start * 1000, min(end, now), interval, limit)
        points = (span.end - span.start // 1000) // (span.interval or period)
        if points > MAX_POINTS:
            raise RequestError(
                f"From start to end there may be {points} rows, over {MAX_POINTS}; take a longer interval or a later start."
            )
        return cls(span, format_)


@dataclass(frozen=True, slots=True)
class ResourcesQuery:
    """The parameters of a worker's resources."""

    relative: str
    """As it was given."""
    seconds: int
    end: int

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]], *, now: int) -> "ResourcesQuery":
        """Read the query's (name, value) pairs, or raise RequestError."""
        given = _given(items, RESOURCES)
        relative = given["start_time"][0] if "start_time" in given else "10m"
        sentence = f"start_time must be a duration from 1m to {format_duration(OLDEST)}, such as 10m, 1h or 7d."
        seconds = _duration(relative, sentence)
        if not MINUTE <= seconds <= OLDEST:
            raise RequestError(sentence)
        end = _time(given, "end_time", now, now)
        if end > now + MAX_FUTURE_SECONDS:
            raise RequestError("end_time lies in the future; leave it out to mean now.")
        if end - seconds < now - OLDEST:
            raise RequestError(f"CloudWatch has nothing from before {rfc3339(now - OLDEST)}; take a later end_time.")
        return cls(relative, seconds, min(end, now))


def discovery_port(items: Iterable[tuple[str, str]]) -> int:
    """Read the parameters of /sd/workers, or raise RequestError."""
    return _limit(_given(items, DISCOVERY), PORT)


# -- the single parameters ---------------------------------------------------------------------------------------------


def _time(given: Mapping[str, Sequence[str]], name: str, now: int, default: int) -> int:
    text = _one(given, name)
    if text is None:
        return default
    try:
        return parse_time(text, now)
    except ValueError:
        raise RequestError(
            f"{name} must be a time such as 2026-01-31T12:00:00Z, unix seconds, now, or a duration before now such as -24h."
        ) from None


def _check_range(start: int, end: int, now: int, reach: int | None) -> None:
    if end > now + MAX_FUTURE_SECONDS:
        raise RequestError("end lies in the future; leave it out to mean now.")
    if start >= now:
        raise RequestError("start lies in the future; take an earlier one, such as -24h.")
    if start >= end:
        raise RequestError("start must be before end.")
    if start < 0 or (reach is not None and start < now - reach):
        oldest = f"-{format_duration(reach)}" if reach is not None else "1970-01-01T00:00:00Z"
        raise RequestError(f"start is too long ago, nothing that old is kept anywhere; take {oldest} at the earliest.")


def _interval(text: str | None, period: int) -> int | None:
    if text is None:
        return None
    shortest = format_duration(period)
    sentence = f"interval must be a duration from {shortest} to {format_duration(WEEK)}, such as 1h or 1d."
    seconds = _duration(text, sentence)
    if seconds < period:
        raise RequestError(
            f"interval is finer than the history, which has a sample every {shortest}; take {shortest} or longer."
        )
    if seconds > WEEK:
        raise RequestError(sentence)
    if seconds % period:
        raise RequestError(f"interval must be a whole multiple of {shortest}, which is how far samples are apart.")
    return seconds


def _duration(text: str, sentence: str) -> int:
    try:
        return parse_duration(text) if len(text) < 32 else _refuse(sentence)
    except ValueError as error:
        raise RequestError(sentence) from error


def _refuse(sentence: str) -> int:
    raise RequestError(sentence)


def _limit(given: Mapping[str, Sequence[str]], parameter: Parameter) -> int:
    text, most = _one(given, parameter.name), parameter.schema["maximum"]
    if text is None:
        return int(parameter.schema["default"])
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise RequestError(f"{parameter.name} must be a whole number from 1 to {most}.")
    return int(text)


def _given(items: Iterable[tuple[str, str]], parameters: Sequence[Parameter]) -> Mapping[str, Sequence[str]]:
    """Group the values by name; refuse unknown names, and a second value where one is wanted."""
    allowed = {parameter.name: parameter for parameter in parameters if parameter.place == "query"}
    given: dict[str, list[str]] = {}
    for name, value in items:
        if name not in allowed:
            raise RequestError(f"{name[:80]} is not a parameter of this route; allowed are {', '.join(allowed)}.")
        if name in given and not allowed[name].many:
            raise RequestError(f"{name} is there twice; give it once.")
        if len(value) > LONGEST_PARAMETER:
            raise RequestError(f"{name} is longer than {LONGEST_PARAMETER} characters; it cannot be right.")
        given.setdefault(name, []).append(value)
    return given


def _one(given: Mapping[str, Sequence[str]], name: str) -> str | None:
    return given[name][0] if name in given else None


# -- cursors -----------------------------------------------------------------------------------------------------------


def encoded(text: str) -> str:
    """Make a cursor, in letters that no URL changes."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def resuming(span: PageRequest, following: int) -> str:
    """Return the cursor of the page that follows one of `span`, from the milliseconds `following` on."""
    return encoded(f"{following}:{span.end}:{span.interval or 0}")


def _decoded(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise RequestError("cursor must be the text that the page before gave as next.") from error


def _resumed(cursor: str, limit: int, now: int, period: int, reach: int | None) -> PageRequest:
    """Read a cursor; one that nobody gave is refused as far as it could do harm."""
    found = _CURSOR.fullmatch(_decoded(cursor))
    at, end, interval = map(int, found.groups()) if found else (0, 0, 0)
    oldest = 0 if reach is None else now - reach - DAY  # a little more, because time goes on between two pages
    if not oldest <= at // 1000 < end <= now + MAX_FUTURE_SECONDS or interval > WEEK or interval % period:
        raise RequestError("cursor must be the text that the page before gave as next.")
    return PageRequest(at, end, interval or None, limit)
