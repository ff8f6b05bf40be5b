"""Hourly aggregates: the pipeline that makes them of some days of many workers, and what it returns. Pure.

A month of a thousand workers is nine million samples, but 720,000 hours: queries over long ranges and many workers use these.
"""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from exporter.core.history_metrics import (
    FIELDS,
    METRIC_FIELDS,
    NEWEST,
    RUNNING,
    RUNNING_CPU,
    RUNNING_LABS,
    RUNNING_MEMORY,
    UNUSED_CPU,
    distribution_fields,
)
from exporter.core.periods import DAY, HOUR, align
from exporter.storage.rows import Document, are_numeric, documents
from exporter.storage.statistics import type_checked_value

_CPU, _LABS, _MOST_LABS = "cpu_utilization_avg", "active_labs_count_avg", "active_labs_count_max"
_OF_RUNNING = {
    RUNNING_CPU: (_CPU, math.nan),
    RUNNING_MEMORY: ("memory_utilization_avg", math.nan),
    RUNNING_LABS: (_LABS, 0.0),
}
"""Value of an hour in which the worker ran → the average that it is, and what it is in other hours."""
_MEASURED = FIELDS[: FIELDS.index(RUNNING)]
_POSITIONS = {
    name: position for names in (FIELDS, *map(distribution_fields, METRIC_FIELDS)) for position, name in enumerate(names)
}
"""Field → the number of its column among those that are read together."""
_REGION: Document = {"$ifNull": ["$region", ""]}
"""A missing region, a null and an empty text are one region, in which an hour is one value."""
HOUR_OF_SAMPLE: Document = {"$dateTrunc": {"date": "$timestamp", "unit": "hour"}}
REGION_AS_TEXT: Document = {"$convert": {"input": "$region", "to": "string", "onError": "", "onNull": ""}}


class WorkerDay(NamedTuple):
    """The hours of a day in which a worker has samples in one region."""

    worker_id: str
    region: str
    day: int
    """Its first UTC second."""
    hours: bytes
    """0 to 23, ascending."""
    values: "array[float]"
    """One value for each hour of the first of FIELDS, then of the second, and so on; NaN where there is none. Or, where they
    were read for a measured field, so of its `distribution_fields`."""


def pipeline(match: Document, *, type_checked: bool = False) -> list[Document]:
    """Return the pipeline that groups samples by worker, region and hour, then by worker and region.

    Args:
        match: which samples.
        type_checked: check the type of every value, where `worker_days` found another. That takes half as long again.
    """
    cpu = type_checked_value("cpu_utilization") if type_checked else "$cpu_utilization"
    # AWS has CPU of running instances only, so a gap-filled period with CPU was one of running. $avg passes over null.
    unknown = {"$cond": [{"$gt": [cpu, None]}, 1, None]}
    known = {"$cond": [{"$gt": ["$status", None]}, 0, unknown]}
    group: Document = {
        "_id": {"w": "$worker_id", "r": REGION_AS_TEXT if type_checked else _REGION, "h": HOUR_OF_SAMPLE},
        RUNNING: {"$avg": {"$cond": [{"$eq": ["$status", "running"]}, 1, known]}},
        NEWEST: {"$max": "$timestamp"},
    }
    for field in METRIC_FIELDS:
        value = type_checked_value(field) if type_checked else f"${field}"
        group |= {f"{field}_{how}": {f"${how}": value} for how in ("avg", "min", "max")}
    # Arrays decode many times faster than a document for each hour.
    columns: Document = {name: {"$push": f"${name}"} for name in FIELDS} | {NEWEST: {"$push": {"$toLong": f"${NEWEST}"}}}
    by_worker = {"_id": {"w": "$_id.w", "r": "$_id.r"}, "hours": {"$push": {"$toLong": "$_id.h"}}}
    return [{"$match": match}, {"$group": group}, {"$group": by_worker | columns}]


def worker_days(batches: Iterable[bytes], type_checked: bool, *, period: int) -> list[WorkerDay] | None:
    """Decode what `pipeline` found; None where it must run type-checked: a value is non-numeric or a region is not a text.

    Args:
        batches: raw batches of the cursor.
        type_checked: whether the pipeline was.
        period: of the samples, in seconds.
    """
    found = documents(batches)
    if not type_checked and (
        not are_numeric([row[name] for row in found for name in _MEASURED])
        or not all(isinstance(row["_id"]["r"], str) for row in found)
    ):
        return None
    return [
        day
        for row in found
        for day in by_day(
            row["_id"]["w"],
            row["_id"]["r"],
            row["hours"],
            *([stamp / 1000 + period for stamp in row[name]] if name == NEWEST else row[name] for name in FIELDS),
        )
    ]


def by_day(worker_id: str, region: str, hours: Sequence[int], *columns: Sequence[float | None]) -> Iterator[WorkerDay]:
    """Divide columns of hours, in any order, into days.

    Args:
        worker_id: of the worker.
        region: of the worker in these hours.
        hours: milliseconds since 1970; each once.
        columns: values, one for each of the hours.
    """
    rows = sorted(zip(hours, *columns, strict=True), key=itemgetter(0))
    starts = [row[0] // 1000 for row in rows]
    of_day = bytes(start % DAY // HOUR for start in starts)
    first = 0
    while first < len(rows):
        day = align(starts[first], DAY)
        last = bisect_left(starts, day + DAY, first, min(first + DAY // HOUR, len(rows)))
        _, *values = zip(*rows[first:last], strict=True)
        yield WorkerDay(worker_id, region, day, of_day[first:last], _floats(chain.from_iterable(values)))
        first = last


def _floats(values: Iterable[float | None]) -> "array[float]":
    known: list[Any] = list(values)
    try:
        return array("d", known)  # of a list it is twice as fast as of another iterable
    except TypeError:
        return array("d", [math.nan if value is None else value for value in known])


@lru_cache(maxsize=4096)
def ends(day: int, hours: bytes) -> "array[int]":
    """Return the hours' ends in milliseconds: an hourly aggregate's timestamp, as in Prometheus's recorded series.

    Cached because most workers have all hours of a day.

    Args:
        day: its first UTC second.
        hours: as in WorkerDay.
    """
    return array("q", [(day + (hour + 1) * HOUR) * 1000 for hour in hours])


def column(part: WorkerDay, field: str) -> "array[float]":
    """Return the values of a field of `HourlyMetric`, one for each of the hours; NaN where not known."""
    if field == UNUSED_CPU:
        hours = zip(_measured(part, _CPU), _measured(part, RUNNING), _measured(part, _MOST_LABS), strict=True)
        return array("d", [_unused_cpu(cpu, ran, labs) for cpu, ran, labs in hours])
    if field in _OF_RUNNING:
        average, otherwise = _OF_RUNNING[field]
        if _measured(part, RUNNING).count(1.0) == len(part.hours):
            return _measured(part, average)
        values = zip(_measured(part, average), _measured(part, RUNNING), strict=True)
        return array("d", [otherwise if ran == 0 else math.nan if math.isnan(ran) else value for value, ran in values])
    return _measured(part, field)


def _measured(part: WorkerDay, field: str) -> "array[float]":
    at = _POSITIONS[field] * len(part.hours)
    return part.values[at : at + len(part.hours)]


def _unused_cpu(cpu: float, ran: float, labs: float) -> float:
    if math.isnan(cpu) or math.isnan(ran) or math.isnan(labs):
        return math.nan
    return cpu if ran == 1 and labs == 0 else math.inf
