"""Statistics per interval: the aggregation pipeline, and the rows made of its result. Pure."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from bson.int64 import Int64

from exporter.core.distribution import Distribution, add_distribution
from exporter.core.history_metrics import METRIC_FIELDS
from exporter.core.local_time import local_to_utc, utc_offsets
from exporter.core.periods import align_interval, to_datetime, to_seconds
from exporter.storage.rows import Document, FieldStatistics, StatisticsRow, documents, text

_KEYS = {field: tuple(f"{field}_{how}" for how in ("sum", "min", "max", "count")) for field in METRIC_FIELDS}
_MEASURED = [key for total, lowest, highest, _ in _KEYS.values() for key in (total, lowest, highest)]
_NUMBER_TYPES = {float, int, Int64}
_NOT_FINITE = [math.nan, math.inf, -math.inf]


def statistics_pipeline(
    match: Document,
    interval: int,
    zone: ZoneInfo | None = None,
    *,
    by_worker: bool = False,
    every_value: bool = False,
    type_checked: bool = False,
) -> list[Document]:
    """Return the pipeline that groups samples by interval and status in one stage; `statistics` joins the statuses.

    Args:
        match: which samples; with a zone it bounds `timestamp` on both sides.
        interval: seconds.
        zone: of days and weeks. Then the start of a group is the time that its clocks show.
        by_worker: group by worker, too.
        every_value: return every value of each group, too; MongoDB has percentiles from 7.0 on only.
        type_checked: check the type of every value. That takes half as long again, so it is done only where `has_non_numeric`
            found another type.
    """
    time: object = "$timestamp" if zone is None else {"$add": ["$timestamp", _utc_offset(match["timestamp"], zone)]}
    offset = align_interval(0, interval) * 1000
    stamp: object = {"$toLong": time}
    if offset:
        stamp = {"$subtract": [stamp, offset]}
    into = {"$mod": [stamp, interval * 1000]}
    group: Document = {
        "_id": {"start": {"$subtract": [time, into]}, "status": "$status"},
        "samples": {"$sum": 1},
    }
    if by_worker:
        group["_id"]["worker"] = "$worker_id"
    for field in METRIC_FIELDS:
        value = type_checked_value(field) if type_checked else f"${field}"
        known = {"$cond": [{"$gt": [value, None]}, 1, 0]}
        accumulators = ({"$sum": value}, {"$min": value}, {"$max": value}, {"$sum": known})
        group |= dict(zip(_KEYS[field], accumulators, strict=True))
        if every_value:
            group[f"{field}_values"] = {"$push": value}
    return [{"$match": match}, {"$group": group}]


def _utc_offset(between: Document, zone: ZoneInfo) -> object:
    """Return a MongoDB expression: a zone's offset in milliseconds at `timestamp`.

    The changes within the range stand in it, so that MongoDB needs no rules of the zones, which may be older than ours.
    """
    (_, first), *changes = utc_offsets(zone, to_seconds(between["$gte"]), to_seconds(between["$lt"]))
    offset: object = first * 1000
    if changes:
        earlier = (first, *(after for _, after in changes[:-1]))
        branches = [
            {"case": {"$lt": ["$timestamp", to_datetime(at)]}, "then": before * 1000}
            for (at, _), before in zip(changes, earlier, strict=True)
        ]
        offset = {"$switch": {"branches": branches, "default": changes[-1][1] * 1000}}
    return offset


def type_checked_value(field: str) -> object:
    """Return a MongoDB expression: the field's value, null where it is not a finite number."""
    value = f"${field}"
    typed = {"$in": [{"$type": value}, ["int", "long", "double"]]}
    return {"$cond": [{"$and": [typed, {"$not": [{"$in": [value, _NOT_FINITE]}]}]}, value, None]}


def has_non_numeric(measured: Iterable[object]) -> bool:
    """Return whether a non-numeric value was among the samples with these extremes and sums or averages.

    Every other type shows in an extreme, as does NaN. A Decimal128 between two numbers does not, but it makes the sum one.
    """
    known: list[Any] = [value for value in measured if value is not None]
    return not set(map(type, known)) <= _NUMBER_TYPES or not all(map(math.isfinite, known))


def statistics(
    batches: Iterable[bytes],
    type_checked: bool,
    zone: ZoneInfo | None = None,
    wanted: Distribution | None = None,
    period: int = 0,
) -> list[tuple[str, list[StatisticsRow]]] | None:
    """Return what `statistics_pipeline` found; None where it must run type-checked.

    Args:
        batches: raw batches of the cursor.
        type_checked: whether the pipeline was.
        zone: that of the pipeline.
        wanted: of the values that the pipeline returned, too; None: it did not.
        period: of the samples, in seconds.

    Returns:
        Worker id (empty unless grouped by worker), and its rows, oldest first.
    """
    parts = documents(batches)
    if not type_checked and has_non_numeric(part[key] for part in parts for key in _MEASURED):
        return None
    workers: dict[str, dict[datetime, list[Document]]] = {}
    for part in parts:
        start = part["_id"]["start"]
        of_worker = workers.setdefault(part["_id"].get("worker", ""), {})
        of_worker.setdefault(start if zone is None else local_to_utc(start, zone), []).append(part)
    found = [(worker, [_joined(start, of[start]) for start in sorted(of)]) for worker, of in workers.items()]
    if wanted is not None:
        for worker, its_rows in found:
            for row in its_rows:
                _add_distributions(row, workers[worker][row["timestamp"]], wanted, period)
    return found


def _add_distributions(row: StatisticsRow, parts: Sequence[Document], wanted: Distribution, period: int) -> None:
    for name, of_field in (
        ("cpu_utilization", row["cpu_utilization"]),
        ("memory_utilization", row["memory_utilization"]),
        ("active_labs_count", row["active_labs_count"]),
    ):
        add_distribution(of_field, (value for part in parts for value in part[f"{name}_values"]), wanted, period)


def _joined(start: datetime, parts: Sequence[Document]) -> StatisticsRow:
    whole = parts[0] if len(parts) == 1 else _sum(parts)  # one status in an interval is by far the most common
    return {
        "timestamp": start,
        "cpu_utilization": _field(whole, "cpu_utilization"),
        "memory_utilization": _field(whole, "memory_utilization"),
        "active_labs_count": _field(whole, "active_labs_count"),
        "status_share": _shares(parts),
        "known_samples": sum(_known(part) for part in parts),
        "running_samples": sum(_known(part) for part in parts if part["_id"].get("status") in (None, "running")),
    }


def _known(part: Document) -> int:
    """Return the samples of a status; of those without one, which may be stopped ones, only those with a CPU value."""
    known: int = part["cpu_utilization_count" if part["_id"].get("status") is None else "samples"]
    return known


def _field(whole: Document, field: str) -> FieldStatistics:
    sum_, min_, max_, count = _KEYS[field]
    known = whole[count]
    return {"avg": whole[sum_] / known if known else None, "min": whole[min_], "max": whole[max_], "count": known}


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
        status = text(parts[0]["_id"].get("status"))
        return {} if status is None else {status: 1.0}
    samples: dict[str, int] = {}
    for part in parts:
        status = text(part["_id"].get("status"))
        if status is not None:
            samples[status] = samples.get(status, 0) + part["samples"]
    total = sum(samples.values())
    return {status: samples[status] / total for status in sorted(samples)}
