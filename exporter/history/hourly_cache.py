"""In-memory cache of the hourly aggregates, one entry per worker and UTC day; a dashboard reads the same month many times.

Belongs to one event loop.
"""

import asyncio
import time
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from exporter.core.async_cache import AsyncCache
from exporter.core.periods import DAY, HOUR, align
from exporter.storage.hourly import WorkerDay, column, ends

RECENT_TTL_SECONDS = 60
"""Seconds for which every cached day is used."""
FINAL_TTL_SECONDS = 6 * HOUR
"""Seconds for which a day is used that no exporter fills any more, unless a backfill has written since it was read.

It ends, because another program may write samples, too.
"""
MAX_CACHED_WORKER_DAYS = 40_000
"""Cached days of single workers, some 2.5 kB each: forty days of a thousand workers."""
READS = 3
"""Days read from MongoDB at the same time; each read keeps one of MongoDB's cores busy."""


class HourlySource(Protocol):
    """The hourly aggregates in MongoDB; part of the repository."""

    async def hours(self, worker_ids: Collection[str], day: int) -> list[WorkerDay]:
        """Return the hourly aggregates of the UTC day that begins at second `day`, one per worker and region with samples."""

    async def load_gap_window(self) -> int:
        """Return the gap-filling window, in seconds, of the exporter that writes the history."""


_Key = tuple[int, str]
"""First second of a UTC day, worker id."""


class _CachedDay(NamedTuple):
    """The hourly aggregates of one worker on one day."""

    marker: str | None
    """Change marker of the backfill lease before the read; None when samples of the day could still arrive."""
    parts: tuple[WorkerDay, ...]
    """One per region; empty when the worker has no samples on that day."""


def days_of(start: int, end: int) -> range:
    """Return the UTC days, each as its first second, whose hourly aggregates can have a timestamp in [start, end] seconds."""
    return range(align(start - HOUR, DAY), end, DAY)


class HourlyCache:
    """Columns of hourly aggregates, each value at the end of its hour; only hours that have ended.

    Args:
        history: the hourly aggregates in MongoDB.
        change_marker: returns a text that changes when a backfill writes samples older than `gap_fill_window`, None while
            a backfill may be writing.
        gap_fill_window: seconds for which the exporter fills gaps; a longer window saved by the writing exporter counts.
        wall: UTC seconds.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(
        self,
        history: HourlySource,
        change_marker: Callable[[], Awaitable[str | None]],
        *,
        gap_fill_window: int,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history = history
        self._change_marker = change_marker
        self._gap_fill_window = gap_fill_window
        self._wall = wall
        self._days: AsyncCache[_Key, _CachedDay] = AsyncCache(monotonic=monotonic)
        self._slots = asyncio.Semaphore(READS)

    async def columns(
        self, worker_ids: Collection[str], start: int, end: int, field: str | None
    ) -> AsyncIterator[tuple[str, str, "array[int]", "array[float]"]]:
        """Yield (worker id, region, milliseconds, values) of a `HourlyMetric.field` in [start, end] milliseconds.

        Raises:
            StoreError: MongoDB does not answer. The days that it returned before stay in the cache.
        """
        assert field is not None
        last = min(end // 1000, int(self._wall()))
        days = days_of(start // 1000, last)
        if not worker_ids or not days:
            return
        workers = sorted(set(worker_ids))
        cached = await self._cached_days(days, workers)
        for worker_id, *entries in zip(workers, *cached, strict=True):
            for region, (stamps, values) in _joined(days, entries, field).items():
                inside = slice(bisect_left(stamps, start), bisect_left(stamps, last * 1000 + 1))
                if stamps[inside]:
                    yield worker_id, region, stamps[inside], values[inside]

    async def _cached_days(self, days: range, workers: Sequence[str]) -> list[list[_CachedDay]]:
        """Return for each day the entries of all workers, in their order; read what is missing, the newest days first."""
        marker = await self._change_marker()
        window = max(self._gap_fill_window, await self._history.load_gap_window())
        final_before = self._wall() - window - HOUR
        keys = {day: [(day, worker_id) for worker_id in workers] for day in days}
        # No more reads are started than can run at once: when one fails, the others are not needed.
        started = asyncio.Semaphore(READS)

        async def cached_day(day: int) -> list[_CachedDay]:
            async with started:
                return await self._cached_day(day, keys[day], marker if day + DAY < final_before else None)

        # The newest days first: they are part of the most queries, so that most concurrent callers wait for them.
        tasks = [asyncio.create_task(cached_day(day)) for day in reversed(days)]
        try:
            newest_first = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            for day in days:  # so that the oldest day of a query is evicted first
                self._days.touch(keys[day])
            self._days.evict(MAX_CACHED_WORKER_DAYS)
        return newest_first[::-1]

    async def _cached_day(self, day: int, keys: Sequence[_Key], marker: str | None) -> list[_CachedDay]:
        def is_fresh(cached: _CachedDay, age: float) -> bool:
            return age < RECENT_TTL_SECONDS or (age < FINAL_TTL_SECONDS and marker is not None and cached.marker == marker)

        async def read(missing: Sequence[_Key]) -> Mapping[_Key, _CachedDay]:
            async with self._slots:
                found = await self._history.hours([worker_id for _, worker_id in missing], day)
            parts: dict[str, list[WorkerDay]] = {worker_id: [] for _, worker_id in missing}
            for part in found:
                parts[part.worker_id].append(part)
            return {(day, worker_id): _CachedDay(marker, tuple(of_worker)) for worker_id, of_worker in parts.items()}

        cached = await self._days.get_many(keys, read, is_fresh)
        return [cached[key] for key in keys]


def _joined(days: Iterable[int], entries: Iterable[_CachedDay], field: str) -> dict[str, tuple["array[int]", "array[float]"]]:
    """Return region → (ends of the hours with samples in milliseconds, ascending; values of `field`) of one worker."""
    joined: dict[str, tuple[array[int], array[float]]] = {}
    for day, entry in zip(days, entries, strict=True):
        for part in entry.parts:
            stamps, values = joined.setdefault(part.region, (array("q"), array("d")))
            stamps += ends(day, part.hours)
            values += column(part, field)
    return joined
