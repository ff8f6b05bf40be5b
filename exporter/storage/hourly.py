"""Hourly aggregates: the pipeline that makes them of some days of many workers, and what it returns. Pure.

A month of a thousand workers is nine million samples, but 720,000 hours: queries over long ranges and many workers use these.
"""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from exporter.core.history_metrics import FIELDS, METRIC_FIELDS, NEWEST, RUNNING, RUNNING_LABS, UNUSED_CPU
from exporter.core.periods import DAY, HOUR, align
from exporter.storage.rows import Document, documents
from exporter.storage.statistics import has_non_numeric, type_checked_value

_CPU, _LABS, _MOST_LABS = "cpu_utilization_avg", "active_labs_count_avg", "active_labs_count_max"
_MEASURED = FIELDS[: FIELDS.index(RUNNING)]
_REGION: Document = {"$ifNull": ["$region", ""]}
"""A missing region, a null and an empty text are one region, in which an hour is one value."""
_HOUR: Document = {"$dateTrunc": {"date": "$timestamp", "unit": "hour"}}
_REGION_AS_TEXT: Document = {"$convert": {"input": "$region", "to": "string", "onError": "", "onNull": ""}}


class WorkerDay(NamedTuple):
    """The hours of a day in which a worker has samples in one region."""

    worker_id: str
    region: str
    day: int
    """Its first UTC second."""
    hours: bytes
    """0 to 23, ascending."""
    values: "array[float]"
    """One value for each hour of the first of FIELDS, then of the second, and so on; NaN where there is none."""


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
        "_id": {"w": "$worker_id", "r": _REGION_AS_TEXT if type_checked else _REGION, "h": _HOUR},
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
        has_non_numeric(value for row in found for name in _MEASURED for value in row[name])
        or not all(isinstance(row["_id"]["r"], str) for row in found)
    ):
        return None
    return [day for row in found for day in _worker_days(row, period)]


def _worker_days(row: Document, period: int) -> Iterator[WorkerDay]:
    hours: list[int] = [stamp // 1000 for stamp in row["hours"]]
    order = sorted(range(len(hours)), key=hours.__getitem__)
    hours.sort()
    columns = []
    for name in FIELDS:
        column: Sequence[Any] = row[name]
        if name == NEWEST:
            column = [stamp / 1000 + period for stamp in column]
        elif None in column:
            column = [math.nan if value is None else value for value in column]
        columns.append(array("d", map(column.__getitem__, order)))
    first = 0
    while first < len(hours):
        day = align(hours[first], DAY)
        last = bisect_left(hours, day + DAY, first)
        values = array("d")
        for part in columns:
            values += part[first:last]
        yield WorkerDay(row["_id"]["w"], row["_id"]["r"], day, bytes((at - day) // HOUR for at in hours[first:last]), values)
        first = last


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
    """Return the values of one of FIELDS, UNUSED_CPU, or RUNNING_LABS, one for each of the hours; NaN where not known."""
    if field == UNUSED_CPU:
        of = zip(_measured(part, _CPU), _measured(part, RUNNING), _measured(part, _MOST_LABS), strict=True)
        return array("d", [_unused_cpu(cpu, ran, labs) for cpu, ran, labs in of])
    if field == RUNNING_LABS:
        of_labs = zip(_measured(part, _LABS), _measured(part, RUNNING), strict=True)
        return array("d", [0.0 if ran == 0 else math.nan if math.isnan(ran) else labs for labs, ran in of_labs])
    return _measured(part, field)


def _measured(part: WorkerDay, field: str) -> "array[float]":
    at = FIELDS.index(field) * len(part.hours)
    return part.values[at : at + len(part.hours)]


def _unused_cpu(cpu: float, ran: float, labs: float) -> float:
    if math.isnan(cpu) or math.isnan(ran) or math.isnan(labs):
        return math.nan
    return cpu if ran == 1 and labs == 0 else math.inf
