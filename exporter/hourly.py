"""The history by the hour, kept in memory day by day once it was read: a dashboard asks for the same month in thirty ways.

Belongs to one event loop.
"""

import asyncio
import time
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from exporter.periods import DAY, HOUR, align
from exporter.rollup import Part, column, ends

FRESH = 60
"""Seconds for which a day counts whose samples may still come."""
FINAL = HOUR
"""Seconds for which another one does: somebody may write samples without the exporter's knowing."""
MOST = 40_000
"""Days of single workers that are kept, of some 2.5 kB each: forty days of a thousand."""
READS = 3
"""Days read from MongoDB at once; each keeps one of its cores busy."""


class History(Protocol):
    """What is needed of the history."""

    async def hours(self, worker_ids: Collection[str], day: int) -> list[Part]:
        """The samples of the UTC day that begins at second `day` by the hour, for each worker and region that has any."""


@dataclass(slots=True)
class _Read:
    """The parts of one worker on one day, and how long they count."""

    mark: str | None
    """The backfill's when it was read, None where only the time counts."""
    until: float
    parts: list[Part] = field(default_factory=list)


@dataclass(slots=True)
class _Day:
    reads: dict[str, _Read] = field(default_factory=dict)
    reading: "asyncio.Task[None] | None" = None


class Hourly:
    """Columns of the history by the hour, with the times of the hours' ends; only whole hours.

    Args:
        history: where the samples are.
        backfill_mark: changes when somebody has written samples older than `heal`; None while somebody may.
        heal: seconds for which samples still come by themselves.
        wall: UTC seconds.
        monotonic: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        history: History,
        backfill_mark: Callable[[], Awaitable[str | None]],
        *,
        heal: int,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history = history
        self._backfill_mark = backfill_mark
        self._heal = heal
        self._wall = wall
        self._monotonic = monotonic
        self._days: OrderedDict[int, _Day] = OrderedDict()
        self._mark: str | None = None
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
        days = range(align(start // 1000 - HOUR, DAY), last, DAY)
        if not worker_ids or not days:
            return
        self._mark = await self._backfill_mark()
        wanted = set(worker_ids)
        ready = await asyncio.gather(*(self._ready(day, wanted) for day in reversed(days)))
        found = dict(zip(reversed(days), ready, strict=True))
        for worker_id in sorted(wanted):
            for region, (stamps, values) in _joined(worker_id, found, name).items():
                inside = slice(bisect_left(stamps, start), bisect_left(stamps, last * 1000 + 1))
                if stamps[inside]:
                    yield worker_id, region, stamps[inside], values[inside]

    async def _ready(self, day: int, wanted: set[str]) -> _Day:
        """Return the day once it has all workers that are wanted."""
        kept = self._days.setdefault(day, _Day())
        self._days.move_to_end(day)
        while lacking := {worker_id for worker_id in wanted if not self._counts(kept.reads.get(worker_id))}:
            if kept.reading is None or kept.reading.done():
                kept.reading = asyncio.create_task(self._read(day, kept, lacking))
                kept.reading.add_done_callback(_heard)
            # Who gives up leaves it running: the next one to ask finds it.
            await asyncio.shield(kept.reading)
        return kept

    def _counts(self, read: _Read | None) -> bool:
        return read is not None and self._monotonic() < read.until and read.mark in (None, self._mark)

    async def _read(self, day: int, kept: _Day, worker_ids: set[str]) -> None:
        mark = self._mark if day + DAY + self._heal + HOUR < self._wall() else None
        async with self._slots:
            parts = await self._history.hours(worker_ids, day)
        until = self._monotonic() + (FRESH if mark is None else FINAL)
        kept.reads |= {worker_id: _Read(mark, until) for worker_id in worker_ids}
        for part in parts:
            kept.reads[part.worker_id].parts.append(part)
        self._forget()

    def _forget(self) -> None:
        """Let go of the days that nobody asked for longest."""
        total = sum(len(day.reads) for day in self._days.values())
        while total > MOST and len(self._days) > 1:
            total -= len(self._days.popitem(last=False)[1].reads)


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
