"""The history by the hour, kept in memory day by day once it was read: a dashboard asks for the same month in thirty ways.

Belongs to one event loop.
"""

import asyncio
import time
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from exporter.core.errors import StoreError
from exporter.core.periods import DAY, HOUR, align
from exporter.storage.hourly import WorkerDay, column, ends

RECENT_TTL_SECONDS = 60
"""Seconds for which a day counts in any case."""
FINAL_TTL_SECONDS = 6 * HOUR
"""Seconds for which a day counts that has all its samples, unless a backfill has written: somebody else may write some."""
MAX_CACHED_WORKER_DAYS = 40_000
"""Days of single workers that are kept, of some 2.5 kB each: forty days of a thousand."""
READS = 3
"""Days read from MongoDB at once; each keeps one of its cores busy."""


class HourlySource(Protocol):
    """What is needed of the history."""

    async def hours(self, worker_ids: Collection[str], day: int) -> list[WorkerDay]:
        """The samples of the UTC day that begins at second `day` by the hour, for each worker and region that has any."""

    async def load_gap_window(self) -> int:
        """Seconds for which the exporter that writes fills gaps by itself."""


@dataclass(slots=True)
class _Read:
    """The parts of one worker on one day."""

    at: float
    mark: str | None
    """The backfill's before it was read; None where samples were still to come."""
    parts: list[WorkerDay] = field(default_factory=list)


@dataclass(slots=True)
class _Day:
    reads: dict[str, _Read] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()
    """Of whom `reading` reads."""
    reading: "asyncio.Task[None] | None" = None


def days_of(start: int, end: int) -> range:
    """Return the UTC days, as their first second, with the hours that end in [start, end] seconds."""
    return range(align(start - HOUR, DAY), end, DAY)


class HourlyCache:
    """Columns of the history by the hour, with the times of the hours' ends; only whole hours.

    Args:
        history: where the samples are.
        backfill_mark: changes when somebody has written samples older than `gap_fill_window`; None while somebody may.
        gap_fill_window: seconds for which samples still come by themselves, unless the exporter that writes has noted more.
        wall: UTC seconds.
        monotonic: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        history: HourlySource,
        backfill_mark: Callable[[], Awaitable[str | None]],
        *,
        gap_fill_window: int,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history = history
        self._backfill_mark = backfill_mark
        self._heal = gap_fill_window
        self._wall = wall
        self._monotonic = monotonic
        self._days: dict[int, _Day] = {}
        self._slots = asyncio.Semaphore(READS)

    async def columns(
        self, worker_ids: Collection[str], start: int, end: int, name: str | None
    ) -> AsyncIterator[tuple[str, str, "array[int]", "array[float]"]]:
        """Yield (worker id, region, milliseconds, values) of one of rollup.FIELDS in [start, end] milliseconds.

        Raises:
            StoreError: MongoDB does not answer; what it did answer is kept.
        """
        assert name is not None
        last = min(end // 1000, int(self._wall()))
        days = days_of(start // 1000, last)
        if not worker_ids or not days:
            return
        wanted = frozenset(worker_ids)
        newest_first = days[::-1]  # which is what most others wait for
        found = dict(zip(newest_first, await self._all_ready(newest_first, wanted), strict=True))
        for day in days:
            self._days[day] = self._days.pop(day, found[day])
        self._forget()
        for worker_id in sorted(wanted):
            for region, (stamps, values) in _joined(worker_id, found, name).items():
                inside = slice(bisect_left(stamps, start), bisect_left(stamps, last * 1000 + 1))
                if stamps[inside]:
                    yield worker_id, region, stamps[inside], values[inside]

    async def _all_ready(self, days: range, wanted: frozenset[str]) -> list[_Day]:
        mark = await self._backfill_mark()
        final = self._wall() - max(self._heal, await self._history.load_gap_window()) - HOUR
        # No more are begun than can be read at once: when one fails, the others need not be.
        begun = asyncio.Semaphore(READS)

        async def ready(day: int) -> _Day:
            async with begun:
                return await self._ready(day, wanted, mark if day + DAY < final else None)

        tasks = [asyncio.create_task(ready(day)) for day in days]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _ready(self, day: int, wanted: frozenset[str], mark: str | None) -> _Day:
        """Return the day once it has all workers that are wanted."""
        kept = self._days.setdefault(day, _Day())
        while lacking := frozenset(each for each in wanted if not self._counts(kept.reads.get(each), mark)):
            if kept.reading is None or kept.reading.done():
                kept.asked = lacking
                kept.reading = asyncio.create_task(self._read(day, kept, lacking, mark))
                kept.reading.add_done_callback(_heard)
            asked = kept.asked
            try:
                # Who gives up leaves it running: the next one to ask finds it.
                await asyncio.shield(kept.reading)
            except StoreError:
                if asked & wanted:
                    raise
        return kept

    def _counts(self, read: _Read | None, mark: str | None) -> bool:
        if read is None:
            return False
        age = self._monotonic() - read.at
        return age < RECENT_TTL_SECONDS or (age < FINAL_TTL_SECONDS and mark is not None and read.mark == mark)

    async def _read(self, day: int, kept: _Day, worker_ids: frozenset[str], mark: str | None) -> None:
        async with self._slots:
            parts = await self._history.hours(worker_ids, day)
        now = self._monotonic()
        kept.reads |= {worker_id: _Read(now, mark) for worker_id in worker_ids}
        for part in parts:
            kept.reads[part.worker_id].parts.append(part)

    def _forget(self) -> None:
        """Let go of the days that nobody asked for longest, of those asked for together of the oldest."""
        total = sum(len(day.reads) for day in self._days.values())
        while total > MAX_CACHED_WORKER_DAYS and len(self._days) > 1:
            total -= len(self._days.pop(next(iter(self._days))).reads)


def _heard(task: "asyncio.Task[None]") -> None:
    """Nobody may be left to hear of its error."""
    if not task.cancelled():
        task.exception()


def _joined(worker_id: str, days: Mapping[int, _Day], name: str) -> dict[str, tuple["array[int]", "array[float]"]]:
    """Region → the ends of the hours with a sample there, ascending, and the values."""
    joined: dict[str, tuple[array[int], array[float]]] = {}
    for day in sorted(days):
        for part in days[day].reads[worker_id].parts:
            stamps, values = joined.setdefault(part.region, (array("q"), array("d")))
            stamps += ends(day, part.hours)
            values += column(part, name)
    return joined
