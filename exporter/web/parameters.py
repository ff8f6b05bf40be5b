"""Query parameters: their descriptions and bounds, and how they are parsed. Pure functions."""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from exporter.core.errors import RequestError
from exporter.core.model import STATUSES
from exporter.core.periods import format_duration, rfc3339
from exporter.core.regions import normal_region
from exporter.sources.cloudwatch.retention import OLDEST
from exporter.web.discovery import NODE_EXPORTER_PORT
from exporter.web.openapi import Parameter, Schema
from exporter.web.query_values import (
    MAX_FUTURE_SECONDS,
    duration_of,
    given_values,
    single,
    time_bound,
    whole_number,
)
from exporter.web.schemas import FleetWorker

WORKERS_LIMIT, MAX_WORKERS = 500, 1000

MIN_RESOURCES_SECONDS = 30
"""The shortest range of a worker's resources, in seconds: the shortest that the manager's UI offers."""

DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"}
_DATE, _CLOCK = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME: Schema = {
    "type": "string",
    "pattern": "^(now|(now-|-)?([0-9]+(ms|[smhdwy]))+|[0-9]{1,14}([.][0-9]{1,9})?|"
    f"{_DATE}([Tt ]{_CLOCK}(:[0-5][0-9]([.][0-9]{{1,9}})?)?([Zz]|[+ -]{_CLOCK})?)?)$",
}

_ANY_FIELD = "|".join(FleetWorker.model_fields)
LIMIT_WORKERS = Parameter(
    "limit",
    f"Workers per page. Default: {WORKERS_LIMIT}.",
    {"type": "integer", "minimum": 1, "maximum": MAX_WORKERS, "default": WORKERS_LIMIT},
)
CURSOR_TEXT: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_=-]+$"}
CURSOR = Parameter("cursor", "`next` of the previous page.", CURSOR_TEXT)
STATUS = Parameter(
    "status",
    "Only workers with this status; may be repeated.",
    {"type": "string", "title": "WorkerStatus", "enum": list(STATUSES)},
    many=True,
)
REGION = Parameter("region", "Only workers in this region; may be repeated.", {"type": "string"}, many=True)
NAME = Parameter(
    "name[]",
    "Only the metric families with this name; may be repeated. A name that does not exist is ignored.",
    {"type": "string"},
    many=True,
)
METRICS = (NAME,)
FIELDS = Parameter(
    "fields",
    "Only these keys of each worker, separated by commas; `worker_id` is always there. Default: all.",
    {"type": "string", "pattern": f"^ *({_ANY_FIELD})( *, *({_ANY_FIELD}))* *$", "examples": ["name,status,cpu_utilization"]},
)
WORKER_NAME = Parameter(
    "name",
    "Only workers with exactly this name, present and past; may be repeated. Names need not be unique: each is a row.",
    {"type": "string"},
    many=True,
)
FORMAT = Parameter(
    "format",
    "`json` or `csv`; takes precedence over the Accept header.",
    {"type": "string", "title": "TableFormat", "enum": ["json", "csv"]},
)
WORKERS = (LIMIT_WORKERS, CURSOR, STATUS, REGION, WORKER_NAME, FIELDS, FORMAT)

_ENCODED = "Characters other than letters, digits and -._~ are percent-encoded (%2F for /)."
WORKER_ID = Parameter(
    "worker_id",
    "Id of the worker, or its name. An id comes first, then the name of a worker in the fleet, then that of a past one; a name "
    f"of several is refused. {_ENCODED}",
    {"type": "string"},
    "path",
)
WORKER = (WORKER_ID, FIELDS)
START = Parameter(
    "start",
    "Start of the range, inclusive: RFC 3339, a date (with or without a time of day, in `tz`), Unix seconds or milliseconds, "
    "or a duration before now such as `-7d`. Default: 24h before "
    f"`end`. At the earliest {format_duration(OLDEST)} ago, or the retention of the history ago if that is longer.",
    {**_TIME, "examples": ["-24h", "-7d", "now-1h"]},  # relative ones, which are right at any time
)
END = Parameter(
    "end",
    "End of the range, exclusive, in the formats of `start`. Default: now, also for an end up to a day in the future.",
    {**_TIME, "examples": ["now", "-1h", "-5m"]},
)
TZ = Parameter(
    "tz",
    "Time zone of days, weeks, and times without an offset, such as America/New_York; a local day has 23 to 25 hours. Default: "
    "UTC.",
    {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_+/-]{0,63}$", "examples": ["America/New_York", "Europe/Berlin"]},
)
RESOURCES_REGION = Parameter("region", "AWS region of the worker.", {"type": "string"}, "path")
RESOURCES_WORKER = replace(
    WORKER_ID, description=f"Id or name of the worker, or id of an EC2 instance that it runs or ran on. {_ENCODED}"
)
START_TIME = Parameter(
    "start_time",
    f"Length of the range before `end_time`: a duration from {format_duration(MIN_RESOURCES_SECONDS)} to "
    f"{format_duration(OLDEST)}, rounded up to whole periods. The range ends with the newest period that CloudWatch has "
    "published, if that is at most `max_age` old; `start_time` and `end_time` of the response are the range that was averaged. "
    "Default: 10m.",
    {**DURATION, "default": "10m", "examples": ["30s", "5m", "10m", "1h", "7d"]},
)
END_TIME = replace(
    END, name="end_time", description="End of the range, exclusive, in the formats of `end` of the history. Default: now."
)
RESOURCES = (RESOURCES_REGION, RESOURCES_WORKER, START_TIME, END_TIME)

PORT = Parameter(
    "port",
    f"Port of the targets. Default: {NODE_EXPORTER_PORT} (node_exporter).",
    {"type": "integer", "minimum": 1, "maximum": 65535, "default": NODE_EXPORTER_PORT},
)
DISCOVERY = (PORT,)


# -- the queries -------------------------------------------------------------------------------------------------------


def selected(given: Mapping[str, Sequence[str]]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the statuses and the regions that a query selects, none where it selects all; raises RequestError."""
    statuses = frozenset(given.get("status", ()))
    if not statuses <= set(STATUSES):
        raise RequestError(f"status must be one of {', '.join(STATUSES)}; repeat the parameter for several.")
    return statuses, frozenset(map(normal_region, given.get("region", ())))


@dataclass(frozen=True, slots=True)
class WorkersQuery:
    """The parameters of /api/workers."""

    limit: int = WORKERS_LIMIT
    after: str = ""
    """Worker id after which the page begins."""
    statuses: frozenset[str] = frozenset()
    """Empty: workers with any status, also an unknown one."""
    regions: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    fields: frozenset[str] | None = None
    """Keys of each worker; None: all."""
    format: str | None = None

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]]) -> "WorkersQuery":
        """Parse the query's (name, value) pairs; raises RequestError."""
        given = given_values(items, WORKERS)
        statuses, regions = selected(given)
        return cls(
            limit=whole_number(given, LIMIT_WORKERS),
            after=decoded(given["cursor"][0]) if "cursor" in given else "",
            statuses=statuses,
            regions=regions,
            names=frozenset(given.get("name", ())),
            fields=_fields(given),
            format=_format(given),
        )


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
        given = given_values(items, RESOURCES)
        relative = given["start_time"][0] if "start_time" in given else "10m"
        shortest = format_duration(MIN_RESOURCES_SECONDS)
        sentence = f"start_time must be a duration from {shortest} to {format_duration(OLDEST)}, such as 10m, 1h or 7d."
        seconds = duration_of(relative, sentence)
        if not MIN_RESOURCES_SECONDS <= seconds <= OLDEST:
            raise RequestError(sentence)
        end = time_bound(given, "end_time", now, now)
        if end > now + MAX_FUTURE_SECONDS:
            raise RequestError(f"end_time is in the future ({rfc3339(end)}); leave it out to use now.")
        if end - seconds < now - OLDEST:
            raise RequestError(f"CloudWatch has no data before {rfc3339(now - OLDEST)}; use a later end_time.")
        return cls(relative, seconds, min(end, now))


def worker_fields(items: Iterable[tuple[str, str]]) -> frozenset[str] | None:
    """Return the keys that a request for one worker selects, None for all; raises RequestError."""
    return _fields(given_values(items, WORKER))


def _fields(given: Mapping[str, Sequence[str]]) -> frozenset[str] | None:
    text = single(given, FIELDS.name)
    if text is None:
        return None
    wanted = [name.strip(" ") for name in text.split(",")]
    for name in wanted:
        if name not in FleetWorker.model_fields:
            raise RequestError(f"fields has no {name[:80] or 'empty name'}; allowed are {', '.join(FleetWorker.model_fields)}.")
    return frozenset((*wanted, "worker_id"))


def _format(given: Mapping[str, Sequence[str]]) -> str | None:
    text = single(given, FORMAT.name)
    if text not in (None, "json", "csv"):
        raise RequestError("format must be json or csv.")
    return text


def metric_names(items: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Return the families that a request to /metrics selects, empty for all; raises RequestError.

    Other parameters are ignored: a scrape configuration may have some for all of its targets.
    """
    return frozenset(given_values(((name, value) for name, value in items if name == NAME.name), METRICS).get(NAME.name, ()))


def discovery_port(items: Iterable[tuple[str, str]]) -> int:
    """Return the port of a request to /sd/workers; raises RequestError."""
    return whole_number(given_values(items, DISCOVERY), PORT)


# -- cursors -----------------------------------------------------------------------------------------------------------


def encoded(text: str) -> str:
    """Return a text as a cursor of URL-safe characters."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decoded(cursor: str) -> str:
    """Return the text of a cursor; raises RequestError."""
    try:
        if not cursor:
            raise ValueError
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise RequestError("cursor must be the value of next on the previous page.") from error
