"""Samples by the hour: the pipeline that makes them of a day of many workers, and what comes back. Pure.

A month of a thousand workers is nine million samples, but 720,000 hours: what long looks at many workers are made of.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from exporter.core.history_metrics import FIELDS, METRIC_FIELDS, NEWEST, RUNNING
from exporter.core.periods import HOUR
from exporter.storage.rows import Document, documents
from exporter.storage.statistics import has_non_numeric, type_checked_value

_MEASURED = FIELDS[: FIELDS.index(RUNNING)]
_REGION: Document = {"$ifNull": ["$region", ""]}
"""None, a null and an empty text are one region, in which an hour is one value."""
_REGION_AS_TEXT: Document = {"$convert": {"input": "$region", "to": "string", "onError": "", "onNull": ""}}


class WorkerDay(NamedTuple):
    """The hours of a day in which a worker has samples in one region."""

    worker_id: str
    region: str
    hours: bytes
    """0 to 23, ascending."""
    values: "array[float]"
    """Those of the first of FIELDS, as many as there are hours, then those of the second; NaN where there is none."""


def pipeline(match: Document, *, careful: bool = False) -> list[Document]:
    """Group by worker, region and hour, then by worker and region.

    Args:
        match: which samples; all of one day.
        careful: look at the type of every value, where `parts` says so. That takes half as long again.
    """
    known = {"$cond": [{"$gt": ["$status", None]}, 0, None]}  # $avg passes over null
    group: Document = {
        "_id": {"w": "$worker_id", "r": _REGION_AS_TEXT if careful else _REGION, "h": {"$hour": "$timestamp"}},
        RUNNING: {"$avg": {"$cond": [{"$eq": ["$status", "running"]}, 1, known]}},
        NEWEST: {"$max": "$timestamp"},
    }
    for field in METRIC_FIELDS:
        value = type_checked_value(field) if careful else f"${field}"
        group |= {f"{field}_{how}": {f"${how}": value} for how in ("avg", "min", "max")}
    # Arrays decode many times faster than a document for each hour.
    columns: Document = {name: {"$push": f"${name}"} for name in FIELDS} | {NEWEST: {"$push": {"$toLong": f"${NEWEST}"}}}
    by_worker = {"_id": {"w": "$_id.w", "r": "$_id.r"}, "hours": {"$push": "$_id.h"}}
    return [{"$match": match}, {"$group": group}, {"$group": by_worker | columns}]


def parts(batches: Iterable[bytes], careful: bool, *, period: int) -> list[WorkerDay] | None:
    """Read what `pipeline` found; None where it must be asked with care, because a value is no number or a region no text."""
    found = documents(batches)
    if not careful and (
        has_non_numeric(value for row in found for name in _MEASURED for value in row[name])
        or not all(isinstance(row["_id"]["r"], str) for row in found)
    ):
        return None
    return [_part(row, period) for row in found]


def _part(row: Document, period: int) -> WorkerDay:
    hours: list[int] = row["hours"]
    order = sorted(range(len(hours)), key=hours.__getitem__)
    values = array("d")
    for name in FIELDS:
        column: Sequence[Any] = row[name]
        if name == NEWEST:
            values.extend(column[at] / 1000 + period for at in order)
        else:
            values.extend(math.nan if column[at] is None else column[at] for at in order)
    return WorkerDay(row["_id"]["w"], row["_id"]["r"], bytes(hours[at] for at in order), values)


@lru_cache(maxsize=4096)
def ends(day: int, hours: bytes) -> "array[int]":
    """The hours' ends in milliseconds: there stands what was over the hour, as Prometheus' own recorded series do.

    Most workers have all hours of a day, so it is made once for all of them.
    """
    return array("q", [(day + (hour + 1) * HOUR) * 1000 for hour in hours])


def column(part: WorkerDay, field: str) -> "array[float]":
    """The values of one of FIELDS."""
    at = FIELDS.index(field) * len(part.hours)
    return part.values[at : at + len(part.hours)]
