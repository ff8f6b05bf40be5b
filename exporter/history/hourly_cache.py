"""In-memory cache of the hourly aggregates, one entry per worker and UTC day; a dashboard reads the same month many times.

Belongs to one event loop.
"""

import asyncio
import math
import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from exporter.core.async_cache import AsyncCache
from exporter.core.history_metrics import MEASURED_BY
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
"""Queries to MongoDB at the same time; each keeps one of its cores busy."""
WORKER_DAYS_PER_READ = 1000
"""Workers × days of one query: a second of MongoDB's time, after which waiting queries of others get their turn."""
JOINED_TTL_SECONDS = 20
"""Seconds for which a field of the same workers and days is served from one piece: as long as a dashboard takes to open."""
MAX_JOINED_BYTES = 32 << 20
"""Bytes of values kept for that: a week of a thousand workers takes 1.5 MB a field."""
JOINED_RANGES = 8
"""Ranges of days that are looked through for one that contains those of a query."""


class HourlySource(Protocol):
    """The hourly aggregates in MongoDB; part of the repository."""

    async def hours(self, worker_ids: Collection[str], days: range, distribution: str | None = None) -> list[WorkerDay]:
        """Return the hourly aggregates of adjacent UTC days, one entry per day, worker, and region with samples.

        With `distribution`, a measured field, the values are its `distribution_fields`, otherwise FIELDS.
        """

    async def load_gap_window(self) -> int:
        """Return the gap-filling window, in seconds, of the exporter that writes the history."""


_JoinedOf = tuple[str, float, tuple[str, ...], str | None]
"""Field, scale, worker ids, and the change marker of the backfill lease."""
_RowsOf = tuple[range, tuple[str, ...], str | None, str | None]
"""Days, worker ids, the change marker of the backfill lease, and what is read together: see `HourlySource.hours`."""
_Key = tuple[int, str, str | None]
"""First second of a UTC day, worker id, and what is read together: see `HourlySource.hours`."""


class HourBlock(NamedTuple):
    """Values of one field of the workers that have some in the same hours: most of a fleet."""

    rows: list[tuple[str, str]]
    """Worker id and region of each row."""
    stamps: "array[int]"
    """Ends of the hours in milliseconds, ascending; one column each."""
    values: "array[float]"
    """Row after row, without NaN."""

    def by_row(self) -> Iterator[tuple[str, str, "array[float]"]]:
        """Yield worker id, region, and values."""
        for (worker_id, region), first in zip(self.rows, range(0, len(self.values), len(self.stamps)), strict=True):
            yield worker_id, region, self.values[first : first + len(self.stamps)]

    def part(self, first: int, last: int) -> "HourBlock":
        """Return the rows from `first` until before `last`."""
        size = len(self.stamps)
        return self._replace(rows=self.rows[first:last], values=self.values[first * size : last * size])

    def within(self, start: int, end: int) -> "HourBlock":
        """Return the columns in [start, end] milliseconds."""
        inside = slice(bisect_left(self.stamps, start), bisect_left(self.stamps, end + 1))
        stamps, size = self.stamps[inside], len(self.stamps)
        if len(stamps) == size:
            return self
        values = memoryview(self.values)
        parts = [values[first + inside.start : first + inside.stop] for first in range(0, len(values), size)]
        return HourBlock(self.rows, stamps, array("d", b"".join(parts)))

    def reduced(self, function: "Callable[[array[float]], float]") -> "HourBlock":
        """Return one column, at the newest hour: what the function makes of the values of each row."""
        return HourBlock(self.rows, self.stamps[-1:], array("d", [function(values) for _, _, values in self.by_row()]))


class _Rows(NamedTuple):
    """Workers with samples in the same hours of some days."""

    stamps: "array[int]"
    """See `HourBlock.stamps`."""
    rows: list[tuple[str, str]]
    """Worker id and region of each row."""
    parts: list[list[WorkerDay]]
    """The days of each row, ascending."""


class _CachedDay(NamedTuple):
    """The hourly aggregates of one worker on one day."""

    day: int
    """First UTC second."""
    marker: str | None
    """Change marker of the backfill lease before the read; None when samples of the day could still arrive."""
    parts: tuple[WorkerDay, ...]
    """One per region; empty when the worker has no samples on that day."""
    read_at: float
    """Monotonic seconds."""


def days_of(start: int, end: int) -> range:
    """Return the UTC days, each as its first second, whose hourly aggregates can have a timestamp in [start, end] seconds."""
    return range(align(start - HOUR, DAY), end, DAY)


class HourlyCache:
    """Blocks of hourly aggregates, each value at the end of its hour; only hours that have ended.

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
        self._monotonic = monotonic
        self._days: AsyncCache[_Key, _CachedDay] = AsyncCache(monotonic=monotonic)
        self._joined: AsyncCache[tuple[_JoinedOf, range], list[HourBlock]] = AsyncCache(
            max_weight=MAX_JOINED_BYTES, weigh=_bytes_of_values, monotonic=monotonic
        )
        self._joined_ranges: deque[range] = deque(maxlen=JOINED_RANGES)
        self._rows: AsyncCache[_RowsOf, tuple[list[_Rows], float]] = AsyncCache(max_weight=JOINED_RANGES, monotonic=monotonic)
        self._slots = asyncio.Semaphore(READS)

    async def blocks(self, worker_ids: Collection[str], start: int, end: int, field: str, scale: float = 1) -> list[HourBlock]:
        """Return the values of a `HourlyMetric.field`, divided by `scale`, in [start, end] milliseconds.

        Raises:
            StoreError: MongoDB does not answer. The days that it returned before stay in the cache.
        """
        last = min(end // 1000, int(self._wall()))
        days = days_of(start // 1000, last)
        if not worker_ids or not days:
            return []
        workers, marker = tuple(sorted(set(worker_ids))), await self._change_marker()
        of = (field, scale, workers, marker)
        joined = self._peek(of, days)
        if joined is None:
            rows, until = await self._rows_of(days, workers, marker, MEASURED_BY.get(field))
            # In a thread: a month of many workers takes longer than other queries should wait.
            joined = await asyncio.to_thread(_joined, rows, field, scale)
            self._joined.put((of, days), joined, until - self._monotonic())
            if days not in self._joined_ranges:
                self._joined_ranges.append(days)
        found = (block.within(start, last * 1000) for block in joined)
        return [block for block in found if block.stamps]

    def _peek(self, of: "_JoinedOf", days: range) -> list[HourBlock] | None:
        """Return what was joined for these days or for more: the panels of a dashboard read parts of the same month."""
        for joined in self._joined_ranges:
            if joined.start <= days.start and days.stop <= joined.stop:
                found = self._joined.peek((of, joined))
                if found is not None:
                    return found
        return None

    async def _rows_of(
        self, days: range, workers: "tuple[str, ...]", marker: str | None, distribution: str | None
    ) -> tuple[list[_Rows], float]:
        """Return the workers by the hours in which they have samples, and the monotonic second until which they are used.

        They are the same for each field that a dashboard shows.
        """
        of = (days, workers, marker, distribution)
        found = self._rows.peek(of)
        if found is None:
            entries = await self._cached_days(days, workers, marker, distribution)
            until = self._monotonic() + min(JOINED_TTL_SECONDS, self._fresh_for(entries))
            found = await asyncio.to_thread(_by_hours, entries), until
            self._rows.put(of, found, until - self._monotonic())
        return found

    async def marker(self) -> str | None:
        """Return a text that changes when a backfill writes; None while one may be writing. Raises StoreError."""
        return await self._change_marker()

    async def worker_days(self, worker_ids: Collection[str], start: int, end: int) -> list[WorkerDay]:
        """Return all hourly aggregates of the UTC days that [start, end) UTC seconds touches, worker after worker.

        Hours that have not ended are among them.

        Raises:
            StoreError: MongoDB does not answer. What it returned before stays in the cache.
        """
        days = range(align(start, DAY), min(end, int(self._wall())), DAY)
        if not worker_ids or not days:
            return []
        found = await self._cached_days(days, sorted(set(worker_ids)), await self._change_marker())
        return [part for _, entries in found for entry in entries for part in entry.parts]

    def _fresh_for(self, workers: Iterable[tuple[str, Iterable[_CachedDay]]]) -> float:
        """Return the seconds until one of the days must be read again if no backfill writes until then."""
        times, now = {entry.read_at for _, entries in workers for entry in entries}, self._monotonic()
        ages = [now - read_at for read_at in times]
        return min((RECENT_TTL_SECONDS if age < RECENT_TTL_SECONDS else FINAL_TTL_SECONDS) - age for age in ages)

    async def _cached_days(
        self, days: range, workers: Sequence[str], marker: str | None, distribution: str | None = None
    ) -> list[tuple[str, list[_CachedDay]]]:
        """Return each worker with its entries of the days; read what is missing."""
        window = max(self._gap_fill_window, await self._history.load_gap_window())
        final_before = self._wall() - window - HOUR
        # No more reads are started than can run at once: when one fails, the others are not needed.
        started = asyncio.Semaphore(READS)

        async def cached(some: Sequence[str]) -> list[tuple[str, list[_CachedDay]]]:
            async with started:
                return await self._cached_part(days, some, distribution, marker, final_before)

        size = max(1, WORKER_DAYS_PER_READ // len(days))
        parts = [workers[first : first + size] for first in range(0, len(workers), size)]
        tasks = [asyncio.create_task(cached(part)) for part in parts]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            for day in days:  # so that the oldest day of a query is evicted first
                self._days.touch((day, worker_id, distribution) for worker_id in workers)
            self._days.evict(MAX_CACHED_WORKER_DAYS)
        return [entries for part in found for entries in part]

    async def _cached_part(
        self, days: range, workers: Sequence[str], distribution: str | None, marker: str | None, final_before: float
    ) -> list[tuple[str, list[_CachedDay]]]:
        def is_fresh(cached: _CachedDay, age: float) -> bool:
            if age < RECENT_TTL_SECONDS:
                return True
            final = cached.day + DAY < final_before
            return age < FINAL_TTL_SECONDS and final and marker is not None and cached.marker == marker

        async def read(missing: Sequence[_Key]) -> Mapping[_Key, _CachedDay]:
            parts: dict[_Key, list[WorkerDay]] = {key: [] for key in missing}
            for run, worker_ids in _runs(missing).items():
                async with self._slots:
                    for part in await self._history.hours(worker_ids, run, distribution):
                        parts[part.day, part.worker_id, distribution].append(part)
            now = self._monotonic()
            return {
                key: _CachedDay(key[0], marker if key[0] + DAY < final_before else None, tuple(found), now)
                for key, found in parts.items()
            }

        keys = [(day, worker_id, distribution) for worker_id in workers for day in days]
        cached = await self._days.get_many(keys, read, is_fresh)
        return [(worker_id, [cached[day, worker_id, distribution] for day in days]) for worker_id in workers]


def _runs(keys: Iterable[_Key]) -> dict[range, list[str]]:
    """Return adjacent days → the workers that need exactly these, so that one query reads all of them.

    Args:
        keys: worker by worker, the days ascending.
    """
    runs: dict[range, list[str]] = {}
    run, of = range(0), ""
    for day, worker_id, _ in keys:
        if worker_id == of and day == run.stop:
            run = range(run.start, day + DAY, DAY)
            continue
        if run:
            runs.setdefault(run, []).append(of)
        run, of = range(day, day + DAY, DAY), worker_id
    if run:
        runs.setdefault(run, []).append(of)
    return runs


def _by_hours(workers: Iterable[tuple[str, Iterable[_CachedDay]]]) -> list[_Rows]:
    """Return the workers, one row for each region, grouped by the hours in which they have samples."""
    found: dict[tuple[tuple[int, bytes], ...], _Rows] = {}
    for worker_id, entries in workers:
        regions: dict[str, list[WorkerDay]] = {}
        for entry in entries:
            for part in entry.parts:
                regions.setdefault(part.region, []).append(part)
        for region, parts in regions.items():
            hours = tuple([(part.day, part.hours) for part in parts])
            if hours not in found:
                stamps = array("q", chain.from_iterable(ends(day, of_day) for day, of_day in hours))
                found[hours] = _Rows(stamps, [], [])
            found[hours].rows.append((worker_id, region))
            found[hours].parts.append(parts)
    return list(found.values())


def _joined(groups: Iterable[_Rows], field: str, scale: float) -> list[HourBlock]:
    """Return the values of a field, divided by `scale`, of each row, grouped by the hours that have one."""
    blocks: list[HourBlock] = []
    for group in groups:
        values = array("d", b"".join([column(part, field) for parts in group.parts for part in parts]))
        block = HourBlock(group.rows, group.stamps, values)
        # An hour may have samples, but none with this field.
        blocks += _without_nan(block) if math.isnan(sum(values)) else [block]
    if scale == 1:
        return blocks
    return [block._replace(values=array("d", [value / scale for value in block.values])) for block in blocks]


def _without_nan(block: HourBlock) -> list[HourBlock]:
    """Return the rows again, grouped by the hours in which they have a value; without those that have none."""
    found: dict[bytes, HourBlock] = {}
    for worker_id, region, values in block.by_row():
        at = array("q", [stamp for stamp, value in zip(block.stamps, values, strict=True) if value == value])
        if at:
            rows, _, known = found.setdefault(at.tobytes(), HourBlock([], at, array("d")))
            rows.append((worker_id, region))
            known.extend(value for value in values if value == value)
    return list(found.values())


def _bytes_of_values(blocks: Iterable[HourBlock]) -> int:
    return sum(8 * len(block.values) for block in blocks)
