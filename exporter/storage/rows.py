"""The rows of a worker's history as they are answered, from MongoDB's documents and from CloudWatch's datapoints. Pure.

No record is made of each sample on the way: a month of them is 8,640, and what is made must be thrown away again. A row of
samples has `timestamp`, the three metrics and `status`; one of statistics has `timestamp` (the interval's start), for each
metric avg, min, max and count, and `status_share`. Timestamps are naive datetimes in UTC, which is what BSON decodes to fastest
and orjson writes as 2026-01-31T12:00:00Z. Missing is None.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import bson
from bson.codec_options import CodecOptions
from bson.int64 import Int64

from exporter.history.segments import align_interval

Row = dict[str, Any]
Document = dict[str, Any]

METRIC_FIELDS = ("cpu_utilization", "memory_utilization", "active_labs_count")
PROJECTION: Document = {"_id": 0, "timestamp": 1, **dict.fromkeys(METRIC_FIELDS, 1), "status": 1}
"""Of a sample's document, what a row needs."""
EPOCH = datetime(1970, 1, 1)

_NAIVE: CodecOptions[Document] = CodecOptions(tz_aware=False)
_KEYS = {field: tuple(f"{field}_{how}" for how in ("sum", "min", "max", "count")) for field in METRIC_FIELDS}
_MEASURED = [key for total, lowest, highest, _ in _KEYS.values() for key in (total, lowest, highest)]
_NUMBERS = {float, int, Int64}
_NO_NUMBERS = [math.nan, math.inf, -math.inf]


class Point(NamedTuple):
    """What CloudWatch has of a worker in the period that starts at `start`: Averages in percent, at least one of them."""

    start: int
    cpu: float | None
    memory: float | None


def documents(batches: Iterable[bytes]) -> list[Document]:
    """Decode raw batches of a cursor; raises bson's errors."""
    return [document for batch in batches for document in bson.decode_all(batch, _NAIVE)]


def number(value: object) -> float | None:
    """Return what counts as a value in a sample's document; None for what others may have written there, a text or NaN."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def milliseconds(time: datetime) -> int:
    """Naive UTC datetime → milliseconds since 1970."""
    return (time - EPOCH) // timedelta(milliseconds=1)


# -- samples -----------------------------------------------------------------------------------------------------------


def samples(found: Iterable[Document]) -> list[Row]:
    """Rows of samples from documents with the keys of PROJECTION."""
    return [
        {
            "timestamp": document["timestamp"],
            "cpu_utilization": number(document.get("cpu_utilization")),
            "memory_utilization": number(document.get("memory_utilization")),
            "active_labs_count": number(document.get("active_labs_count")),
            "status": _text(document.get("status")),
        }
        for document in found
    ]


def point_samples(points: Iterable[Point]) -> list[Row]:
    """Rows of samples from CloudWatch's datapoints, which know neither labs nor status."""
    return [
        {
            "timestamp": EPOCH + timedelta(seconds=point.start),
            "cpu_utilization": point.cpu,
            "memory_utilization": point.memory,
            "active_labs_count": None,
            "status": None,
        }
        for point in points
    ]


# -- statistics --------------------------------------------------------------------------------------------------------


def statistics_pipeline(match: Document, interval: int, *, careful: bool = False) -> list[Document]:
    """Group by interval and status, in one stage; `statistics` joins what belongs to one interval.

    Args:
        match: which samples.
        interval: seconds.
        careful: look at the type of every value. That takes half as long again, so it is done only when `is_odd` says so.
    """
    offset = align_interval(0, interval) * 1000
    stamp: object = {"$toLong": "$timestamp"}
    if offset:
        stamp = {"$subtract": [stamp, offset]}
    into = {"$mod": [stamp, interval * 1000]}
    group: Document = {
        "_id": {"start": {"$subtract": ["$timestamp", into]}, "status": "$status"},
        "samples": {"$sum": 1},
    }
    for field in METRIC_FIELDS:
        value = careful_value(field) if careful else f"${field}"
        known = {"$cond": [{"$gt": [value, None]}, 1, 0]}
        accumulators = ({"$sum": value}, {"$min": value}, {"$max": value}, {"$sum": known})
        group |= dict(zip(_KEYS[field], accumulators, strict=True))
    return [{"$match": match}, {"$group": group}]


def careful_value(field: str) -> object:
    """An expression for a field that is null where it is no number."""
    value = f"${field}"
    typed = {"$in": [{"$type": value}, ["int", "long", "double"]]}
    return {"$cond": [{"$and": [typed, {"$not": [{"$in": [value, _NO_NUMBERS]}]}]}, value, None]}


def is_odd(measured: Iterable[object]) -> bool:
    """Whether a value that is no number was among the samples of which these are the extremes, and the sum or the average.

    Every other type shows up in an extreme, as does NaN, but a Decimal128 between two numbers, which then makes the sum one.
    """
    known: list[Any] = [value for value in measured if value is not None]
    return not set(map(type, known)) <= _NUMBERS or not all(map(math.isfinite, known))


def statistics(batches: Iterable[bytes], careful: bool) -> list[Row] | None:
    """Rows of statistics from what `statistics_pipeline` found, oldest first; None where it must be asked with care."""
    parts = documents(batches)
    if not careful and is_odd(part[key] for part in parts for key in _MEASURED):
        return None
    by_start: dict[datetime, list[Document]] = {}
    for part in parts:
        by_start.setdefault(part["_id"]["start"], []).append(part)
    return [_joined(start, by_start[start]) for start in sorted(by_start)]


def _joined(start: datetime, parts: Sequence[Document]) -> Row:
    whole = parts[0] if len(parts) == 1 else _sum(parts)  # one status in an interval is by far the most common
    row: Row = {"timestamp": start}
    for field, (sum_, min_, max_, count) in _KEYS.items():
        number_of = whole[count]
        row[field] = {
            "avg": whole[sum_] / number_of if number_of else None,
            "min": whole[min_],
            "max": whole[max_],
            "count": number_of,
        }
    row["status_share"] = _shares(parts)
    return row


def _sum(parts: Sequence[Document]) -> Document:
    whole: Document = {}
    for sum_, min_, max_, count in _KEYS.values():
        whole[sum_] = sum(part[sum_] for part in parts)
        whole[min_] = min((part[min_] for part in parts if part[count]), default=None)
        whole[max_] = max((part[max_] for part in parts if part[count]), default=None)
        whole[count] = sum(part[count] for part in parts)
    return whole


def _shares(parts: Sequence[Document]) -> dict[str, float]:
    if len(parts) == 1:
        status = _text(parts[0]["_id"].get("status"))
        return {} if status is None else {status: 1.0}
    samples: dict[str, int] = {}
    for part in parts:
        status = _text(part["_id"].get("status"))
        if status is not None:
            samples[status] = samples.get(status, 0) + part["samples"]
    total = sum(samples.values())
    return {status: samples[status] / total for status in sorted(samples)}


def point_statistics(points: Iterable[Point], interval: int) -> list[Row]:
    """Rows of statistics from CloudWatch's datapoints, oldest first."""
    by_start: dict[int, list[Point]] = {}
    for point in points:
        by_start.setdefault(align_interval(point.start, interval), []).append(point)
    return [
        {
            "timestamp": EPOCH + timedelta(seconds=start),
            "cpu_utilization": _of([point.cpu for point in by_start[start]]),
            "memory_utilization": _of([point.memory for point in by_start[start]]),
            "active_labs_count": _of([]),
            "status_share": {},
        }
        for start in sorted(by_start)
    ]


def _of(values: Iterable[float | None]) -> Mapping[str, float | None]:
    known = [value for value in values if value is not None]
    return {
        "avg": sum(known) / len(known) if known else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
        "count": len(known),
    }


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)
