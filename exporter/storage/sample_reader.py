"""Read samples, statistics and hourly aggregates from the time-series collection."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.read_preferences import Primary

from exporter.core.distribution import Distribution
from exporter.core.local_time import LOCAL_INTERVALS, interval_start, later_start
from exporter.core.model import FinalSample, WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, to_datetime, to_seconds
from exporter.storage import hourly, rows
from exporter.storage.aggregation import GROUPS_PER_QUERY, aggregate, run, window
from exporter.storage.collection import HistoryCollection
from exporter.storage.hourly_distribution import distribution_days, distribution_pipeline
from exporter.storage.mongo import WHOLE_HISTORY_SECONDS, Document, ReadMode, chunks
from exporter.storage.rows import SampleRow, StatisticsRow, number, text
from exporter.storage.statistics import IntervalColumns, in_sequence, statistics, statistics_pipeline, statistics_rows

COLUMN_SAMPLES = 100_000
"""Samples of one column query: a few MB on the server, and far below the 16 MiB of a result document."""
SAMPLES_PER_STATISTICS_QUERY = 4000
"""Periods of one worker, two weeks of 5m, above which a range is read in halves."""
WORKERS_PER_QUERY = 200
"""× 14 d of 1m periods stays far below the 16 MiB of one result document each, and the 100 MB of $group."""
HOURLY_WORKER_DAYS_PER_QUERY = GROUPS_PER_QUERY // 24
HOURLY_DAYS_PER_QUERY = 366
"""Days of one query; the values of so many 1m periods are half of the 16 MiB of a result document."""

T = TypeVar("T")

_ALL_TIMESTAMPS: Document = {"$push": {"$toLong": "$timestamp"}}  # milliseconds: integers decode much faster than dates
# No expression here: mongod 6.0 answers a $max of one from the bucket's bounds, and so with nothing.
_NEWEST_TIMESTAMP: Document = {"$max": "$timestamp"}


class Extent(NamedTuple):
    """How many samples a worker has, and the UTC seconds of the first and the last."""

    samples: int
    first: int
    last: int


class FieldColumn(NamedTuple):
    """One field of a worker's samples: milliseconds since 1970 and values, in no particular order, as many of each."""

    worker_id: str
    region: str
    stamps: list[int]
    values: list[Any]


PRIMARY = Primary()


class SampleReader:
    """Reads the history: samples as records, rows, or columns, and statistics per interval or hour.

    Samples past retention are left out where `HistoryCollection.retention` is known: MongoDB deletes them late.

    Args:
        collection: of the samples.
        reads: member of a replica set that is read; whoever decides by what is stored reads the primary.

    Every method raises StoreUnavailableError, IncompatibleStoreError or StoreError.
    """

    def __init__(self, collection: HistoryCollection, reads: ReadMode = PRIMARY) -> None:
        self._collection = collection
        self._samples = collection.samples.with_options(read_preference=reads)

    async def current_retention(self) -> int | None:
        """Return how many seconds the samples are kept, see `HistoryCollection.current_retention`."""
        return await self._collection.current_retention()

    async def load_gap_window(self) -> int:
        """Return how many seconds back the live exporter fills gaps, see `HistoryCollection.load_gap_window`."""
        return await self._collection.load_gap_window()

    # -- one worker

    async def read_records(self, worker_id: str, start: datetime, end: datetime) -> list[WorkerMetricsSample]:
        """Return the samples of a worker in [start, end) as records, oldest first."""
        async with self._collection.operation("find"):
            cursor = self._samples.find(window(self._collection, worker_id, start, end), {"_id": 0}).sort("timestamp", 1)
            return [record(document) async for document in cursor]

    async def read_samples(self, worker_id: str, start: int, end: int, *, limit: int) -> tuple[list[SampleRow], int | None]:
        """Return the samples of a worker in [start, end) as rows, oldest first, and the time at which the rest begins.

        Times are in milliseconds since 1970, since other writers' samples may lie between two seconds.

        Args:
            worker_id: of the worker.
            start: inclusive.
            end: exclusive.
            limit: rows, at least 1; more only where more samples have the very same time, so that a time is enough to continue.
        """
        found = await self._rows(worker_id, start, end, limit + 1)
        if len(found) <= limit:
            return found, None
        following = found.pop()["timestamp"]
        while found and found[-1]["timestamp"] == following:
            found.pop()
        at = rows.milliseconds(following)
        return (found, at) if found else (await self._rows(worker_id, at, at + 1, 0), at + 1)

    async def read_statistics(
        self,
        worker_id: str,
        start: int,
        end: int,
        interval: int,
        *,
        limit: int,
        zone: ZoneInfo | None = None,
        wanted: Distribution | None = None,
    ) -> tuple[list[StatisticsRow], int | None]:
        """Return the statistics of a worker's samples in [start, end) as rows, and the interval at which the rest begins.

        Args:
            worker_id: of the worker.
            start, end: UTC seconds.
            interval: seconds; aligned to `zone` if it is a day or a week (None: UTC), else to UTC; weeks to Monday.
            limit: rows, at least 1. Only as many intervals are read; then the time of the next sample.
            wanted: percentiles and time above a threshold; None: neither.
        """
        until = min(end, later_start(start, interval, zone, limit))
        columns = await self.statistics(worker_id, to_datetime(start), to_datetime(until), interval, zone, wanted)
        found = statistics_rows(columns) if columns else []
        if until >= end:
            return found, None
        async with self._collection.operation("find"):
            later = window(self._collection, worker_id, to_datetime(until), to_datetime(end))
            first = await self._samples.find_one(later, {"_id": 0, "timestamp": 1}, sort=[("timestamp", 1)])
        if first is None:
            return found, None
        following = interval_start(to_seconds(first["timestamp"]), interval, zone)
        if found:
            return found, following
        return await self.read_statistics(worker_id, following, end, interval, limit=limit, zone=zone, wanted=wanted)

    async def statistics(
        self,
        worker_id: str,
        start: datetime,
        end: datetime,
        interval: int,
        zone: ZoneInfo | None = None,
        wanted: Distribution | None = None,
    ) -> IntervalColumns | None:
        """Return the statistics of a worker's samples in [start, end) by interval, in seconds; None without samples.

        The halves of a long range are read at the same time, by two cores of MongoDB.
        """
        zone, bounds = zone if interval in LOCAL_INTERVALS else None, [start, end]
        first, last = to_seconds(start), to_seconds(end)
        middle = interval_start((first + last) // 2, interval, zone)
        if first < middle < last and last - first > SAMPLES_PER_STATISTICS_QUERY * self._collection.period:
            bounds.insert(1, to_datetime(middle))

        async def read(begin: datetime, until: datetime) -> list[tuple[str, IntervalColumns]]:
            match = window(self._collection, worker_id, begin, until)
            return await aggregate(
                self._collection,
                self._samples,
                partial(statistics_pipeline, match, interval, zone, every_value=wanted is not None),
                partial(statistics, zone=zone, wanted=wanted, period=self._collection.period),
            )

        found = await asyncio.gather(*(read(begin, until) for begin, until in pairwise(bounds)))
        return in_sequence([columns for part in found for _, columns in part])

    async def extent(self, worker_id: str) -> Extent | None:
        """Return what is stored of a worker, including what is past retention but not deleted yet; None: nothing is."""
        group: Document = {
            "_id": None,
            "samples": {"$sum": 1},
            "first": {"$min": "$timestamp"},
            "last": {"$max": "$timestamp"},
        }
        async with self._collection.operation("find"):
            cursor = await self._samples.aggregate([{"$match": {"worker_id": worker_id}}, {"$group": group}])
            found = await cursor.to_list(None)
        return Extent(found[0]["samples"], to_seconds(found[0]["first"]), to_seconds(found[0]["last"])) if found else None

    # -- many workers

    async def latest_timestamps(self, worker_ids: Collection[str]) -> dict[str, int]:
        """Return the UTC second of the newest sample of each worker that has any."""
        found: dict[str, int] = {}
        now = int(self._collection.now())
        # For a live fleet the newest buckets are enough; only workers without a recent sample need a scan of all their buckets.
        for since in (now - HOUR, now - DAY, None):
            missing = sorted(set(worker_ids) - found.keys())
            for ids in chunks(missing, WORKERS_PER_QUERY):
                newest = await _group(self._collection, self._samples, ids, _NEWEST_TIMESTAMP, since)
                found |= {worker_id: to_seconds(stamp) for worker_id, stamp in newest.items()}
        return found

    async def timestamps(self, worker_ids: Collection[str], since: int) -> dict[str, set[int]]:
        """Return the UTC seconds of all samples from `since` on, for each of the workers.

        One array per worker is four times cheaper to send and decode than one document per sample. Read from a majority: what
        a failover may still roll back is a gap.
        """
        found: dict[str, set[int]] = {worker_id: set() for worker_id in worker_ids}
        for ids in chunks(sorted(found), WORKERS_PER_QUERY):
            found |= await stored_seconds(self._collection, self._collection.majority, ids, since)
        return found

    async def workers(self, start: int, end: int) -> list[str]:
        """Return the sorted ids of the workers that may have samples in [start, end) UTC seconds; fast, but not exact."""
        # In this form mongod answers from the buckets' bounds; the lower one is rounded down to an hour.
        bounds = {"$group": {"_id": "$worker_id", "first": {"$min": "$timestamp"}, "last": {"$max": "$timestamp"}}}
        async with self._collection.operation("find", WHOLE_HISTORY_SECONDS):
            cursor = await self._samples.aggregate([bounds], allowDiskUse=True)
            found = await cursor.to_list(None)
        low, high = to_datetime(start), to_datetime(end)
        return sorted(row["_id"] for row in found if isinstance(row["_id"], str) and row["last"] >= low and row["first"] < high)

    async def columns(
        self, worker_ids: Collection[str], start: int, end: int, field: str | None
    ) -> AsyncGenerator[FieldColumn, None]:
        """Yield one field of the samples in [start, end], for each worker and region: all times, all values.

        Arrays decode several times faster than documents. What is held at once, here and on the server, stays within some
        megabytes: workers are read together only as far as their samples fit, and a long range of one worker in parts.

        Args:
            worker_ids: of the workers.
            start: milliseconds since 1970.
            end: milliseconds since 1970, included.
            field: of a sample, None for the times alone; samples without it are left out.
        """
        oldest, period = self._collection.oldest, self._collection.period
        low = start if oldest is None else max(start, round(oldest * 1000))
        periods = max(0, end - low) // (period * 1000) + 1
        together = max(1, min(WORKERS_PER_QUERY, COLUMN_SAMPLES // periods))
        step = COLUMN_SAMPLES * period * 1000
        for ids in chunks(sorted(worker_ids), together):
            found: dict[tuple[str, str], FieldColumn] = {}
            for at in range(low, end + 1, step):
                for column in await _read_columns(self._collection, self._samples, ids, at, min(end, at + step - 1), field):
                    earlier = found.setdefault((column.worker_id, column.region), column)
                    if earlier is not column:
                        earlier.stamps.extend(column.stamps)
                        earlier.values.extend(column.values)
            for column in found.values():
                yield column

    async def hours(self, worker_ids: Collection[str], days: range, distribution: str | None = None) -> list[hourly.WorkerDay]:
        """Return the hourly aggregates of adjacent UTC days, one entry per day, worker, and region with samples.

        Few workers over many days are faster than many workers over one: a bucket, which begins at any hour, is read for each
        query that needs a part of it.

        Args:
            worker_ids: of the workers.
            days: the first seconds of the days, in steps of a day.
            distribution: a measured field, for its `distribution_fields`; None for FIELDS.
        """
        found: list[hourly.WorkerDay] = []
        for first in range(0, len(days), HOURLY_DAYS_PER_QUERY):
            some = days[first : first + HOURLY_DAYS_PER_QUERY]
            between = {"$gte": to_datetime(some[0]), "$lt": to_datetime(some[-1] + DAY)}
            for ids in chunks(sorted(worker_ids), max(1, HOURLY_WORKER_DAYS_PER_QUERY // len(some))):
                found += await self._hours({"worker_id": {"$in": list(ids)}, "timestamp": between}, distribution)
        return found

    async def _hours(self, match: Document, distribution: str | None) -> list[hourly.WorkerDay]:
        history, period = self._collection, self._collection.period
        if distribution is not None:
            decode = partial(distribution_days, field=distribution, period=period)
            return await run(history, history.samples, distribution_pipeline(match, distribution), decode)
        return await aggregate(
            history, history.samples, partial(hourly.pipeline, match), partial(hourly.worker_days, period=period)
        )

    # -- queries

    async def _rows(self, worker_id: str, start: int, end: int, limit: int) -> list[SampleRow]:
        """Read at most `limit` samples, 0: all."""
        match = window(self._collection, worker_id, _from_milliseconds(start), _from_milliseconds(end))
        pipeline: list[Document] = [
            {"$match": match},
            {"$sort": {"timestamp": 1}},  # by time alone: so mongod reads no more buckets than it takes, one after the other
            *([{"$limit": limit}] if limit else []),
            {"$group": rows.COLUMNS},
        ]
        return await run(self._collection, self._samples, pipeline, rows.sample_rows)


async def _read_columns(
    history: HistoryCollection, samples: AsyncCollection[Document], ids: Sequence[str], start: int, end: int, field: str | None
) -> list[FieldColumn]:
    """Read one field of the samples in [start, end] milliseconds with one query, for each worker and region."""
    match: Document = {
        "worker_id": {"$in": list(ids)},
        "timestamp": {"$gte": _from_milliseconds(start), "$lte": _from_milliseconds(end)},
    }
    group: Document = {"_id": {"w": "$worker_id", "r": "$region"}, "stamps": _ALL_TIMESTAMPS}
    if field is not None:
        types = ["string"] if field == "status" else ["double", "int", "long"]
        match[field] = {"$type": types, "$not": {"$type": "array"}}  # of whose elements $type would be
        group["values"] = {"$push": f"${field}"}
    async with history.operation("find"):
        cursor = await samples.aggregate([{"$match": match}, {"$group": group}], allowDiskUse=True)
        return [
            FieldColumn(
                row["_id"]["w"],
                str(row["_id"].get("r") or ""),
                row["stamps"],
                row.get("values") or [1] * len(row["stamps"]),
            )
            async for row in cursor
        ]


async def stored_seconds(
    history: HistoryCollection, source: AsyncCollection[Document], ids: Sequence[str], since: int, until: int | None = None
) -> dict[str, set[int]]:
    """Return the UTC seconds of the samples in [since, until] of each worker that has any.

    Args:
        history: the collection.
        source: its `samples` or `majority`.
        ids: of at most WORKERS_PER_QUERY workers.
        since: UTC second.
        until: UTC second, None: without end.
    """
    found = await _group(history, source, ids, _ALL_TIMESTAMPS, since, until)
    return {worker_id: _whole_seconds(stamps) for worker_id, stamps in found.items()}


async def _group(
    history: HistoryCollection,
    source: AsyncCollection[Document],
    ids: Sequence[str],
    accumulator: Document,
    since: int | None,
    until: int | None = None,
) -> dict[str, Any]:
    """Return worker_id → the accumulated timestamps in [since, until]."""
    match: Document = {"worker_id": {"$in": list(ids)}}
    if since is not None:
        match["timestamp"] = {"$gte": to_datetime(since)}
    if until is not None:
        match["timestamp"]["$lte"] = to_datetime(until)
    pipeline = [{"$match": match}, {"$group": {"_id": "$worker_id", "stamps": accumulator}}]
    async with history.operation("find"):
        cursor = await source.aggregate(pipeline, allowDiskUse=True)
        return {row["_id"]: row["stamps"] async for row in cursor}


def _whole_seconds(stamps: Sequence[int]) -> set[int]:
    """Convert milliseconds to seconds, without those in between: another program wrote them."""
    return {stamp // 1000 for stamp in stamps if stamp % 1000 == 0}


def _from_milliseconds(time: int) -> datetime:
    return to_datetime(0) + timedelta(milliseconds=time)


def record(document: Mapping[str, Any]) -> WorkerMetricsSample:
    """Return a sample's document as the customer's record."""
    labs = number(document.get("active_labs_count"))
    return WorkerMetricsSample(
        worker_id=document["worker_id"],
        region=str(document.get("region", "")),
        timestamp=document["timestamp"],
        cpu_utilization=_float(document.get("cpu_utilization")),
        memory_utilization=_float(document.get("memory_utilization")),
        active_labs_count=None if labs is None else int(labs),
        status=text(document.get("status")),
    )


def final_sample(document: Mapping[str, Any]) -> FinalSample:
    """Return a sample's document as it left the outbox."""
    known = record(document)
    values = known.cpu_utilization, known.memory_utilization, known.active_labs_count
    return FinalSample(known.worker_id, to_seconds(known.timestamp), known.region, *values, known.status)


def _float(value: object) -> float | None:
    known = number(value)
    return None if known is None else float(known)
