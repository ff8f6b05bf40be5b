"""CloudWatch as an archive: what it still has of one worker, for history older than MongoDB's and for `/resources`.

People ask this, again and again for the same chart, and every metric asked for is billed. So answers are kept: those of windows
long past until newer ones need the room, those of recent windows for a minute. Older history is asked for in whole pieces of
`CHUNK` datapoints, since the price is per metric and not per datapoint; so the next page, and the next chart, find it here.

Belongs to one event loop: that of the CloudWatch it asks.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import NamedTuple

from exporter.core.async_cache import AsyncCache
from exporter.core.errors import SourceError
from exporter.core.instances import split_by_instance
from exporter.core.model import Dimensions, InventoryEntry, MetricResult, Worker
from exporter.core.periods import DAY, align, align_up
from exporter.history.points import Point
from exporter.sources.cloudwatch.memory_series import (
    RECENTLY_ACTIVE_SECONDS,
    MemorySeriesIndex,
    all_memory_series,
)
from exporter.sources.cloudwatch.queries import instance_queries
from exporter.sources.cloudwatch.retention import EXPIRY_MARGIN_SECONDS, reach
from exporter.sources.protocols import MetricSource

CHUNK = 2016
"""Datapoints of one metric asked for at once: a week of five minutes. GetMetricData answers up to 100,800."""
FINAL_AFTER_SECONDS = DAY
"""Seconds after which CloudWatch does not change a datapoint any more; EC2's and the agent's come within minutes."""
RECENT_TTL_SECONDS = 60
"""How long the answer about a more recent window is used, in seconds."""
MAX_CACHED_DATAPOINTS = 200_000
"""Datapoints kept, at some 110 bytes."""
CALLS = 4
"""Calls under way at once: a long look back must not take all places of the live rounds."""


@dataclass(frozen=True, slots=True)
class Points:
    """Period start → percent, of one instance in one window."""

    cpu: Mapping[int, float]
    memory: Mapping[int, float]


class _Window(NamedTuple):
    """One GetMetricData call."""

    region: str
    instance: str
    instance_type: str | None
    start: int
    end: int
    resolution: int


class CloudWatchArchive:
    """CloudWatch's memory of single workers, behind caches of its own.

    Args:
        source: CloudWatch; shared with the poller, and with it budget, rate limit and counters.
        series: the memory series; shared with the poller.
        max_datapoints: datapoints kept in memory.
        wall: UTC seconds, to tell a recent window from an old one.
        monotonic: seconds, for the age of what is kept.
    """

    def __init__(
        self,
        source: MetricSource,
        series: MemorySeriesIndex,
        *,
        max_datapoints: int = MAX_CACHED_DATAPOINTS,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._wall = wall
        self._series_index = series
        self._points: AsyncCache[_Window, Points] = AsyncCache(
            max_weight=max_datapoints,
            weigh=lambda points: 1 + len(points.cpu) + len(points.memory),
            monotonic=monotonic,
        )
        self._slots = asyncio.Semaphore(CALLS)

    async def points(
        self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int, limit: int
    ) -> list[Point]:
        """Return what there is of a worker in [start, end), oldest first, at most `limit` of it.

        Args:
            worker: as it is now; its instance counts only where `entry` knows none.
            entry: which instances the worker ran on, and when.
            start: UTC second.
            end: UTC second.
            resolution: seconds a datapoint stands for, one that CloudWatch still has in that range.
            limit: 1 or more; as many chunks are read as it takes.

        Raises:
            SourceError: CloudWatch does not answer.
        """
        length = CHUNK * resolution
        start = align_up(start, resolution)
        if worker.created_at is not None:
            start = max(start, align(worker.created_at, resolution))  # the years before it existed cost nothing
        found: list[Point] = []
        while start < end and len(found) < limit:
            # As many at once as a full worker would need, so that a long range is not a queue of calls.
            until = min(end, align(start, length) + length * (1 + (limit - len(found)) // CHUNK))
            now = int(self._wall())
            newest, oldest = (
                align_up(now, resolution),
                align_up(now - reach(resolution) + EXPIRY_MARGIN_SECONDS // 2, resolution),
            )
            # The oldest chunk begins before `start`, but never before what CloudWatch still has at this resolution.
            begins = [(max(at, oldest), at + length) for at in range(align(start, length), until, length)]
            ends = [(at, min(end_, max(newest, at + resolution))) for at, end_ in begins if at < end_]
            for part in await asyncio.gather(*(self._chunk(worker, entry, at, end_, resolution) for at, end_ in ends)):
                found += (point for point in part if start <= point.start < until)
            start = until
        return found[:limit]

    async def window(self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int) -> list[Point]:
        """Return all there is in exactly [start, end), multiples of `resolution`; raises SourceError."""
        if start >= end:
            return []
        step = CHUNK * resolution
        parts = await asyncio.gather(
            *(self._chunk(worker, entry, at, min(at + step, end), resolution) for at in range(start, end, step))
        )
        return [point for part in parts for point in part]

    async def _chunk(self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int) -> list[Point]:
        """Join what each instance measured while it may have been the worker; the newest instance wins (rule 4)."""
        cpu: dict[int, float] = {}
        memory: dict[int, float] = {}
        instance_type = worker.instance_type or (entry.instance_type if entry else None)
        asked: dict[tuple[str, str], Awaitable[Points]] = {}
        pieces = split_by_instance(entry, worker, start, end, resolution)
        for _, _, region, instances in pieces:
            for instance in instances:
                if region and (region, instance) not in asked:
                    asked[region, instance] = self._ask(_Window(region, instance, instance_type, start, end, resolution))
        answers = dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
        for first, last, region, instances in pieces:
            for instance in reversed(instances):  # a newer one overwrites
                points = answers.get((region, instance), Points({}, {}))
                for target, values in ((cpu, points.cpu), (memory, points.memory)):
                    target.update((at, value) for at, value in values.items() if first <= at < last)
        return [Point(at, cpu.get(at), memory.get(at)) for at in sorted(cpu.keys() | memory.keys())]

    async def _ask(self, window: _Window) -> Points:
        final = window.end + FINAL_AFTER_SECONDS <= self._wall()
        return await self._points.get(window, partial(self._call, window), inf if final else RECENT_TTL_SECONDS)

    async def _call(self, window: _Window) -> Points:
        queries = instance_queries(window.instance, await self._series(window))
        async with self._slots:
            answers = await self._source.get_metric_data(window.region, queries, window.start, window.end, window.resolution)
        given = [answers.by_query[query] for query in queries]
        if not all(answer.complete for answer in given):
            raise SourceError(
                "cloudwatch",
                "PartialData",
                f"CloudWatch in {window.region} answered only in part about {window.instance}; ask again in a moment",
                region=window.region,
            )
        return Points(given[0].values, _first_wins(given[1:]))

    async def _series(self, window: _Window) -> tuple[Dimensions, ...]:
        """The memory series of an instance, the most likely one first; the plainest where none is listed any more.

        ListMetrics forgets a series two weeks after its last datapoint, so of older instances only a guess is left.
        """
        recent = window.start >= self._wall() - RECENTLY_ACTIVE_SECONDS
        listing = await self._series_index.listing(window.region, recent=recent)
        return all_memory_series([listing], window.instance, window.instance_type) or ((("InstanceId", window.instance),),)


def _first_wins(answers: Sequence[MetricResult]) -> dict[int, float]:
    values: dict[int, float] = {}
    for answer in reversed(answers):
        values.update(answer.values)
    return values
