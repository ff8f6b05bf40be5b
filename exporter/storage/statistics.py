"""Statistics per interval: the aggregation pipeline, and the rows made of its result. Pure."""

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from exporter.core.distribution import Distribution, DistributionStatistics, distribution_of
from exporter.core.history_metrics import METRIC_FIELDS
from exporter.core.local_time import local_to_utc, utc_offsets
from exporter.core.periods import WEEK, align_interval, to_datetime, to_seconds
from exporter.storage.rows import Document, FieldStatistics, StatisticsRow, are_numeric, documents, text

T = TypeVar("T")
_KEYS = {field: tuple(f"{field}_{how}" for how in ("sum", "min", "max", "count")) for field in METRIC_FIELDS}
_MEASURED = [key for total, lowest, highest, _ in _KEYS.values() for key in (total, lowest, highest)]
"""A non-numeric value shows in these: every other type and NaN in an extreme; a Decimal128 between two numbers only in the sum,
which it makes one."""
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
    """Return the pipeline that groups samples by interval and status; `statistics` joins the statuses.

    Arrays decode several times faster than a document for each group, so there is one for each worker and week, which keeps
    it far below MongoDB's limit of 16 MiB.

    Args:
        match: which samples; with a zone it bounds `timestamp` on both sides.
        interval: seconds.
        zone: of days and weeks. Then the start of a group is the time that its clocks show.
        by_worker: group by worker, too.
        every_value: return every value of each group, too; MongoDB has percentiles from 7.0 on only.
        type_checked: check the type of every value. That takes half as long again, so it is done only where the result
            shows another type.
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
    week: Document = {"$dateTrunc": {"date": "$_id.start", "unit": "week"}}
    if every_value and interval > WEEK:  # then one group may be too large for a document
        group["_id"]["week"], week = {"$dateTrunc": {"date": "$timestamp", "unit": "week"}}, {"$ifNull": ["$_id.week", None]}
    columns: Document = {
        "_id": {"worker": "$_id.worker", "week": week},
        "start": {"$push": "$_id.start"},
        "status": {"$push": {"$ifNull": ["$_id.status", None]}},
    }
    columns |= {name: {"$push": f"${name}"} for name in group if name != "_id"}
    return [{"$match": match}, {"$group": group}, {"$group": columns}]


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


class FieldColumns(NamedTuple):
    """One metric over the intervals of a worker, in the metric's unit; see `FieldStatistics`."""

    averages: list[float | None]
    lowest: list[float | None]
    highest: list[float | None]
    counts: list[int]
    distributions: list[DistributionStatistics]
    """Empty where it is not wanted."""


class IntervalColumns(NamedTuple):
    """The statistics of a worker by interval, oldest first; see `StatisticsRow`."""

    start: list[datetime]
    """Naive, in UTC."""
    cpu: FieldColumns
    memory: FieldColumns
    labs: FieldColumns
    status_share: list[dict[str, float]]
    known_samples: list[int]
    running_samples: list[int]


def statistics(
    batches: Iterable[bytes],
    type_checked: bool,
    zone: ZoneInfo | None = None,
    wanted: Distribution | None = None,
    period: int = 0,
) -> list[tuple[str, IntervalColumns]] | None:
    """Return what `statistics_pipeline` found; None where it must run type-checked.

    Args:
        batches: raw batches of the cursor.
        type_checked: whether the pipeline was.
        zone: that of the pipeline.
        wanted: of the values that the pipeline returned, too; None: it did not.
        period: of the samples, in seconds.

    Returns:
        Worker id (empty unless grouped by worker), and its statistics.
    """
    parts = documents(batches)
    if not type_checked and not are_numeric([part[key] for part in parts for key in _MEASURED]):
        return None
    workers: dict[str, Document] = {}
    for part in parts:
        worker = part.pop("_id").get("worker", "")
        whole = workers.setdefault(worker, part)
        if whole is not part:
            for name, column in part.items():
                whole[name] += column
    return [(worker, _intervals(groups, zone, wanted, period)) for worker, groups in workers.items()]


def in_sequence(parts: Sequence[IntervalColumns]) -> IntervalColumns | None:
    """Join the statistics of ranges that follow each other, each from the start of an interval; None without a part."""
    if len(parts) < 2:
        return parts[0] if parts else None

    def joined(columns: Iterable[list[T]]) -> list[T]:
        return list(chain.from_iterable(columns))

    def field(of: Sequence[FieldColumns]) -> FieldColumns:
        return FieldColumns(*map(joined, zip(*of, strict=True)))

    starts, cpu, memory, labs, *others = zip(*parts, strict=True)
    return IntervalColumns(joined(starts), field(cpu), field(memory), field(labs), *map(joined, others))


def statistics_rows(found: IntervalColumns) -> list[StatisticsRow]:
    """Return statistics as rows of the API."""
    fields = zip(*map(_field_rows, (found.cpu, found.memory, found.labs)), strict=True)
    return [
        {
            "timestamp": start,
            "cpu_utilization": cpu,
            "memory_utilization": memory,
            "active_labs_count": labs,
            "status_share": share,
            "known_samples": known,
            "running_samples": running,
        }
        for start, (cpu, memory, labs), share, known, running in zip(
            found.start, fields, found.status_share, found.known_samples, found.running_samples, strict=True
        )
    ]


def _field_rows(of: FieldColumns) -> list[FieldStatistics]:
    values = zip(of.averages, of.lowest, of.highest, of.counts, strict=True)
    rows: list[FieldStatistics] = [
        {"avg": avg, "min": low, "max": high, "samples": samples} for avg, low, high, samples in values
    ]
    if not of.distributions:
        return rows
    return [{**row, **further} for row, further in zip(rows, of.distributions, strict=True)]


class _Joining:
    """Joins the groups of a worker, one for each interval and status, to one value for each interval.

    Args:
        starts: the interval of each group.
    """

    def __init__(self, starts: Sequence[datetime]) -> None:
        self._first: list[int] = []
        """The index of the first group of each interval, oldest first."""
        self._several: dict[int, list[int]] = {}
        """Number of an interval → the indices of its groups, where it has several: statuses seldom change."""
        for index in sorted(range(len(starts)), key=starts.__getitem__):
            if self._first and starts[self._first[-1]] == starts[index]:
                self._several.setdefault(len(self._first) - 1, [self._first[-1]]).append(index)
            else:
                self._first.append(index)

    def column(self, column: Sequence[T], join: Callable[[list[T]], T]) -> list[T]:
        """Return a value for each interval; those of several groups are joined by `join`."""
        found = list(map(column.__getitem__, self._first))
        for interval, indices in self._several.items():
            found[interval] = join([column[index] for index in indices])
        return found

    def shares(self, statuses: Sequence[object], samples: Sequence[int]) -> list[dict[str, float]]:
        """Return the share of each status in the samples of each interval that have one."""
        named = list(map(text, statuses))
        found: list[dict[str, float]] = [{} if (status := named[index]) is None else {status: 1.0} for index in self._first]
        for interval, indices in self._several.items():
            counts: dict[str, int] = {}
            for index in indices:
                status = named[index]
                if status is not None:
                    counts[status] = counts.get(status, 0) + samples[index]
            total = sum(counts.values())
            found[interval] = {status: counts[status] / total for status in sorted(counts)}
        return found


def _intervals(groups: Document, zone: ZoneInfo | None, wanted: Distribution | None, period: int) -> IntervalColumns:
    joining = _Joining(groups["start"])
    starts = joining.column(groups["start"], itemgetter(0))

    def field(name: str) -> FieldColumns:
        total, lowest, highest, count = _KEYS[name]
        totals, counts = joining.column(groups[total], sum), joining.column(groups[count], sum)
        averages = [total / count if count else None for total, count in zip(totals, counts, strict=True)]
        distribution: list[DistributionStatistics] = []
        if wanted is not None:
            values = joining.column(groups[f"{name}_values"], lambda parts: list(chain.from_iterable(parts)))
            distribution = [distribution_of(of_interval, wanted, period) for of_interval in values]
        return FieldColumns(
            averages,
            joining.column(groups[lowest], partial(_extreme, min)),
            joining.column(groups[highest], partial(_extreme, max)),
            counts,
            distribution,
        )

    statuses, samples = groups["status"], groups["samples"]
    # Of the samples without a status, which may be stopped ones, only those with a CPU value are known.
    known = [
        with_cpu if status is None else all_
        for status, all_, with_cpu in zip(statuses, samples, groups["cpu_utilization_count"], strict=True)
    ]
    running = [of if status in (None, "running") else 0 for status, of in zip(statuses, known, strict=True)]
    return IntervalColumns(
        starts if zone is None else [local_to_utc(start, zone) for start in starts],
        field("cpu_utilization"),
        field("memory_utilization"),
        field("active_labs_count"),
        joining.shares(statuses, samples),
        joining.column(known, sum),
        joining.column(running, sum),
    )


def _extreme(which: Callable[..., float | None], values: Iterable[float | None]) -> float | None:
    return which((value for value in values if value is not None), default=None)
