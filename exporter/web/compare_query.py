"""Query parameters of the page that compares workers. Pure functions."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from exporter.core.errors import RequestError
from exporter.core.periods import DAY
from exporter.web.chart_query import CHART_TZ
from exporter.web.numbered_lines import MAX_NUMBERED
from exporter.web.openapi import Parameter
from exporter.web.parameters import END, START
from exporter.web.query_values import check_range, given_values, single, time_bound, zone_named

WORKER = Parameter(
    "worker",
    f"Id or name of a worker; repeated for up to {MAX_NUMBERED} workers.",
    {"type": "string"},
    many=True,
)
COMPARE = (WORKER, *(replace(each, empty=True) for each in (START, END, CHART_TZ)))


@dataclass(frozen=True, slots=True)
class CompareQuery:
    """The parameters of a comparison."""

    workers: tuple[str, ...]
    """Ids or names, each once."""
    start: int
    """UTC second, as `end`."""
    end: int
    start_text: str
    """`start` as it was written."""
    zone: ZoneInfo | None

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]], *, now: int, reach: int | None) -> "CompareQuery":
        """Parse the query's (name, value) pairs; raises RequestError. An empty field of the form is the same as none."""
        given = given_values(((name, value.strip()) for name, value in items if value.strip()), COMPARE)
        workers = tuple(dict.fromkeys(given.get("worker", ())))
        if len(workers) > MAX_NUMBERED:
            raise RequestError(f"{len(workers)} workers are chosen; choose at most {MAX_NUMBERED}.")
        zone = zone_named(single(given, "tz"))
        end = time_bound(given, "end", now, now, zone)
        start = time_bound(given, "start", now, min(end, now) - DAY, zone)
        check_range(start, end, now, reach)
        return cls(workers, start, min(end, now), single(given, "start") or "-24h", zone)
