"""CloudWatch as an archive of single workers, for history older than MongoDB's and for `/resources`, with a cache.

Users load the same charts repeatedly, and AWS bills every metric of a query. So results are cached: those of final windows
until they are evicted, those of recent windows for a minute. Older history is queried in chunks of `CHUNK` datapoints, because
the price is per metric and not per datapoint; the next page and the next chart are then in the cache.

Belongs to one event loop: that of its CloudWatch client.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import inf
from typing import NamedTuple

from exporter.core.async_cache import AsyncCache
from exporter.core.errors import SourceError
from exporter.core.instances import split_by_instance
from exporter.core.model import InventoryEntry, Listing, MetricQuery, MetricResults, Worker
from exporter.core.periods import DAY, align, align_up
from exporter.history.points import Point
from exporter.sources.cloudwatch.memory_series import (
    LISTED_FOR_SECONDS,
    RECENTLY_ACTIVE_SECONDS,
    SILENT_PERIODS,
    MemorySeriesIndex,
    series_values,
)
from exporter.sources.cloudwatch.queries import instance_queries
from exporter.sources.cloudwatch.retention import EXPIRY_MARGIN_SECONDS, reach

CHUNK = 2016
"""Datapoints of one metric per query: a week of five minutes. GetMetricData returns up to 100,800."""
FINAL_AFTER_SECONDS = DAY
"""Seconds after which a datapoint is final; those of EC2 and of the agent arrive within minutes."""
RECENT_TTL_SECONDS = 60
"""Seconds for which the result of a more recent window is cached."""
MAX_CACHED_DATAPOINTS = 200_000
"""Cached datapoints, some 110 bytes each."""
CALLS = 4
"""Concurrent calls: a long range must leave capacity to the poller."""


GetMetricData = Callable[[str, Sequence[MetricQuery], int, int, int], Awaitable[MetricResults]]
"""Region, queries, start, end, period → the results of one call, as `CloudWatch.get_metric_data`; raises SourceError."""


@dataclass(frozen=True, slots=True)
class Points:
    """Datapoints of one instance in one window: UTC second at which the period starts → percent."""

    cpu: Mapping[int, float]
    memory: Mapping[int, float]


class _Window(NamedTuple):
    """Arguments of one GetMetricData call, the key of the cache; [start, end) in UTC seconds."""

    region: str
    instance: str
    instance_type: str | None
    start: int
    end: int
    resolution: int


class CloudWatchArchive:
    """Cached CloudWatch datapoints of single workers.

    Args:
        get_metric_data: makes a call; shares rate limit and counters with the poller, and is paid by the readers' budget.
        series: the index of memory series; shared with the poller.
        memory_dimension: dimension of the memory metric whose value is the instance id.
        max_datapoints: limit of cached datapoints.
        wall: UTC seconds, which separate recent windows from final ones.
        monotonic: seconds of a clock that is never set, for the age of cached results.
    """

    def __init__(
        self,
        get_metric_data: GetMetricData,
        series: MemorySeriesIndex,
        *,
        memory_dimension: str = "InstanceId",
        max_datapoints: int = MAX_CACHED_DATAPOINTS,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._get_metric_data = get_metric_data
        self._wall = wall
        self._series_index = series
        self._memory_dimension = memory_dimension
        self._points: AsyncCache[_Window, Points] = AsyncCache(
            max_weight=max_datapoints,
            weigh=lambda points: 1 + len(points.cpu) + len(points.memory),
            monotonic=monotonic,
        )
        self._slots = asyncio.Semaphore(CALLS)

    async def points(
        self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int, limit: int
    ) -> list[Point]:
        """Return the first `limit` points of a worker in [start, end), oldest first.

        Args:
            worker: its current state; its instance is used only where `entry` has none.
            entry: the instances that the worker ran on, and when.
            start: UTC second.
            end: UTC second.
            resolution: seconds of a datapoint; CloudWatch must retain datapoints of this length in the range.
            limit: 1 or more; as many chunks are read as necessary.

        Raises:
            SourceError: CloudWatch does not answer, or only in part.
        """
        length = CHUNK * resolution
        start = align_up(start, resolution)
        if worker.created_at is not None:
            start = max(start, align(worker.created_at, resolution))  # no queries for the time before it existed
        found: list[Point] = []
        while start < end and len(found) < limit:
            # As many concurrent chunks as a worker without gaps needs, so that a long range is not read call by call.
            until = min(end, align(start, length) + length * (1 + (limit - len(found)) // CHUNK))
            now = int(self._wall())
            newest, oldest = (
                align_up(now, resolution),
                align_up(now - reach(resolution) + EXPIRY_MARGIN_SECONDS // 2, resolution),
            )
            # The oldest chunk begins before `start`, but never before the oldest datapoint of this resolution.
            retained = [(max(at, oldest), at + length) for at in range(align(start, length), until, length)]
            chunks = [(first, min(last, max(newest, first + resolution))) for first, last in retained if first < last]
            for points in await asyncio.gather(*(self._chunk(worker, entry, *chunk, resolution) for chunk in chunks)):
                found += (point for point in points if start <= point.start < until)
            start = until
        return found[:limit]

    async def window(self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int) -> list[Point]:
        """Return all points in [start, end), UTC seconds and multiples of `resolution`; raises SourceError."""
        if start >= end:
            return []
        starts = [*range(start, end, CHUNK * resolution)]
        if len(starts) > 1 and end - starts[-1] <= CHUNK // 4 * resolution:
            starts.pop()  # a call for a few datapoints more would cost as much as the others
        chunks = await asyncio.gather(*(self._chunk(worker, entry, *chunk, resolution) for chunk in pairwise((*starts, end))))
        return [point for chunk in chunks for point in chunk]

    async def _chunk(self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int) -> list[Point]:
        """Join the datapoints of each instance while it may have been the worker's; the newest instance wins (rule 4)."""
        cpu: dict[int, float] = {}
        memory: dict[int, float] = {}
        reads: dict[tuple[str, str], Awaitable[Points]] = {}
        intervals = split_by_instance(entry, worker, start, end, resolution)
        begin = start
        if end > self._wall() - DAY:  # the results must show which memory series are silent in the first periods already
            begin -= SILENT_PERIODS * resolution
        for _, _, region, instances in intervals:
            for instance in instances:
                if region and (region, instance) not in reads:
                    if entry and entry.account_id:
                        self._series_index.suggest_account(instance, entry.account_id)
                    type_ = _instance_type(worker, entry, instance)
                    reads[region, instance] = self._read(_Window(region, instance, type_, begin, end, resolution))
        by_instance = dict(zip(reads, await asyncio.gather(*reads.values()), strict=True))
        for first, last, region, instances in intervals:
            for instance in reversed(instances):  # a newer one overwrites
                points = by_instance.get((region, instance), Points({}, {}))
                for target, values in ((cpu, points.cpu), (memory, points.memory)):
                    target.update((at, value) for at, value in values.items() if first <= at < last)
        return [Point(at, cpu.get(at), memory.get(at)) for at in sorted(cpu.keys() | memory.keys())]

    async def _read(self, window: _Window) -> Points:
        final = window.end + FINAL_AFTER_SECONDS <= self._wall()
        return await self._points.get(window, partial(self._call, window), inf if final else RECENT_TTL_SECONDS)

    async def _call(self, window: _Window) -> Points:
        queries = await self._queries(window)
        async with self._slots:
            results = await self._get_metric_data(window.region, queries, window.start, window.end, window.resolution)
        by_query = [results.by_query[query] for query in queries]
        if not all(result.complete for result in by_query):
            raise SourceError(
                "cloudwatch",
                "PartialData",
                f"CloudWatch in {window.region} returned only a part of the data of {window.instance}; try again in a moment",
                region=window.region,
            )
        cpu, *memory = by_query
        return Points(cpu.values, series_values(memory, date=results.date_of(queries[0]), period=window.resolution))

    async def _queries(self, window: _Window) -> tuple[MetricQuery, ...]:
        """Return the queries of an instance.

        ListMetrics omits a series two weeks after its last datapoint, so the dimensions of an older instance are a guess: one.
        """
        age = int(self._wall()) - window.start
        await self._refresh_listing(window.region, recent=age <= RECENTLY_ACTIVE_SECONDS)
        queries = self._series_index.queries(window.region, window.instance, window.instance_type, since=window.start)
        if len(queries) == 1 and age > LISTED_FOR_SECONDS:
            account = self._series_index.account_of(window.region, window.instance)
            return instance_queries(window.instance, [((self._memory_dimension, window.instance),)], account)
        return queries

    async def _refresh_listing(self, region: str, *, recent: bool) -> None:
        """List the memory series; where that fails, the previous listing stays in use, as it does for the poller."""
        try:
            await self._series_index.listing(region, recent=recent)
        except SourceError:
            if self._series_index.listings(region)[0 if recent else 1] == Listing():
                raise


def _instance_type(worker: Worker, entry: InventoryEntry | None, instance: str) -> str | None:
    """Return the type of an instance; None for an earlier instance of the worker, whose type is not recorded."""
    known = entry.instances[-1].instance_id if entry and entry.instances else None
    if instance != (worker.instance_id or known):
        return None
    return worker.instance_type or (entry.instance_type if entry else None)
