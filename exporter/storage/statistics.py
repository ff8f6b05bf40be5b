"""The aggregation pipeline for statistics per interval, and the rows made of its result."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from bson.int64 import Int64

from exporter.core.history_metrics import METRIC_FIELDS
from exporter.core.periods import align_interval
from exporter.storage.rows import Document, HistoryRow, _text, documents

_KEYS = {field: tuple(f"{field}_{how}" for how in ("sum", "min", "max", "count")) for field in METRIC_FIELDS}
_MEASURED = [key for total, lowest, highest, _ in _KEYS.values() for key in (total, lowest, highest)]
_NUMBERS = {float, int, Int64}
_NO_NUMBERS = [math.nan, math.inf, -math.inf]


# -- statistics --------------------------------------------------------------------------------------------------------


def statistics_pipeline(match: Document, interval: int, *, careful: bool = False) -> list[Document]:
    """Group by interval and status, in one stage; `statistics` joins what belongs to one interval.

    Args:
        match: which samples.
        interval: seconds.
        careful: look at the type of every value. That takes half as long again, so it is done only where
            `has_non_numeric` says so.
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
        value = type_checked_value(field) if careful else f"${field}"
        known = {"$cond": [{"$gt": [value, None]}, 1, 0]}
        accumulators = ({"$sum": value}, {"$min": value}, {"$max": value}, {"$sum": known})
        group |= dict(zip(_KEYS[field], accumulators, strict=True))
    return [{"$match": match}, {"$group": group}]


def type_checked_value(field: str) -> object:
    """An expression for a field that is null where it is no number."""
    value = f"${field}"
    typed = {"$in": [{"$type": value}, ["int", "long", "double"]]}
    return {"$cond": [{"$and": [typed, {"$not": [{"$in": [value, _NO_NUMBERS]}]}]}, value, None]}


def has_non_numeric(measured: Iterable[object]) -> bool:
    """Whether a value that is no number was among the samples of which these are the extremes, and the sum or the average.

    Every other type shows up in an extreme, as does NaN, but a Decimal128 between two numbers, which then makes the sum one.
    """
    known: list[Any] = [value for value in measured if value is not None]
    return not set(map(type, known)) <= _NUMBERS or not all(map(math.isfinite, known))


def statistics(batches: Iterable[bytes], careful: bool) -> list[HistoryRow] | None:
    """Rows of statistics from what `statistics_pipeline` found, oldest first; None where it must be asked with care."""
    parts = documents(batches)
    if not careful and has_non_numeric(part[key] for part in parts for key in _MEASURED):
        return None
    by_start: dict[datetime, list[Document]] = {}
    for part in parts:
        by_start.setdefault(part["_id"]["start"], []).append(part)
    return [_joined(start, by_start[start]) for start in sorted(by_start)]


def _joined(start: datetime, parts: Sequence[Document]) -> HistoryRow:
    whole = parts[0] if len(parts) == 1 else _sum(parts)  # one status in an interval is by far the most common
    row: HistoryRow = {"timestamp": start}
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
