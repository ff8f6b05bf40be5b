"""Figures of the whole fleet by day and of each worker, summed from the hourly aggregates.

A month of a thousand workers is 720,000 hours. They come from the hourly cache, are summed in a thread in batches, and the
result is kept for some minutes, so that neither the page nor the scrapes beside it wait for them twice.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from exporter.core.async_cache import AsyncCache
from exporter.core.history_metrics import RUNNING
from exporter.core.periods import DAY, HOUR
from exporter.history.series import ColumnSource

TRENDS_TTL_SECONDS = 300
"""Seconds for which figures are used again."""
_BATCH_WORKERS = 250
"""Workers whose hours are read together; each batch costs MongoDB one query a day."""
_YIELD_WORKERS = 20
"""Workers after which the event loop gets its turn."""
FIELDS = (RUNNING, "cpu_utilization_avg", "memory_utilization_avg", "active_labs_count_avg", "active_labs_count_max")


@dataclass(slots=True)
class Totals:
    """Sums over hours of workers.

    Attributes:
        running: hours in which a worker ran; a part of an hour is a fraction.
        idle: those of them without a lab.
        counted: those of them whose number of labs is known.
        cpu, memory: percent × hours.
        cpu_hours, memory_hours: running hours with a value.
        labs: labs × running hours.
        cost: US dollars of the idle hours whose price is known.
        priced: idle hours whose price is known.
    """

    running: float = 0
    idle: float = 0
    counted: float = 0
    cpu: float = 0
    cpu_hours: float = 0
    memory: float = 0
    memory_hours: float = 0
    labs: float = 0
    cost: float = 0
    priced: float = 0

    def add(self, other: "Totals") -> None:
        """Add the sums of other hours."""
        for name in Totals.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def mean_cpu(self) -> float | None:
        """The mean over the running hours, in percent; None without a value."""
        return self.cpu / self.cpu_hours if self.cpu_hours else None

    @property
    def mean_memory(self) -> float | None:
        """As `mean_cpu`."""
        return self.memory / self.memory_hours if self.memory_hours else None


@dataclass(slots=True)
class Span:
    """A day or a week of the fleet."""

    totals: Totals = field(default_factory=Totals)
    observed: set[int] = field(default_factory=set)
    """The hours, by their UTC second, in which any worker has a sample."""

    def add(self, other: "Span") -> None:
        """Add another day."""
        self.totals.add(other.totals)
        self.observed |= other.observed

    @property
    def mean_running(self) -> float | None:
        """Workers that ran at a time, on average over the observed hours; None without any."""
        return self.totals.running / len(self.observed) if self.observed else None

    @property
    def mean_labs(self) -> float | None:
        """Labs at a time: the mean of a running worker whose labs are known, times the running workers; None without any."""
        running, totals = self.mean_running, self.totals
        return None if running is None or not totals.counted else totals.labs / totals.counted * running


class Trends(NamedTuple):
    """The fleet over some days."""

    days: Mapping[int, Span]
    """UTC day, by its first second → its figures; days without a sample are missing."""
    workers: Mapping[str, Totals]
    """Worker id → its figures; workers without a sample are missing."""


_Column = tuple[Sequence[int], Sequence[float]]
"""The ends of some hours in milliseconds, and a value for each."""
Hour = tuple[int, float, float, float, float, float]
"""The hour's end in milliseconds, and the values of FIELDS; NaN where there is none."""


def add_worker(hours: Collection[Hour], price: float | None, days: dict[int, Span]) -> Totals:
    """Add the hours of one worker to the days, and return their sum.

    A value counts by the share of the hour in which the worker ran. An hour counts as idle if it had no lab in all of it.

    Args:
        hours: of one region.
        price: US dollars per hour; None: not known.
        days: UTC day, by its first second → its figures; changed.
    """
    whole, of_day, current = Totals(), Totals(), None
    for stamp, running, cpu, memory, labs, most_labs in hours:
        hour = stamp // 1000 - HOUR
        day = hour - hour % DAY
        if day != current:
            whole.add(of_day)
            if current is not None:
                days[current].totals.add(of_day)
            of_day, current = Totals(), day
        days.setdefault(day, Span()).observed.add(hour)
        if not running > 0:  # NaN, too
            continue
        of_day.running += running
        if cpu == cpu:
            of_day.cpu += cpu * running
            of_day.cpu_hours += running
        if memory == memory:
            of_day.memory += memory * running
            of_day.memory_hours += running
        if labs == labs:
            of_day.labs += labs * running
            of_day.counted += running
        if most_labs == 0:
            of_day.idle += running
            if price is not None:
                of_day.priced += running
                of_day.cost += running * price
    whole.add(of_day)
    if current is not None:
        days[current].totals.add(of_day)
    return whole


class TrendReader:
    """Reads the figures of a fleet, and keeps them for `TRENDS_TTL_SECONDS`. Belongs to one event loop.

    Args:
        hourly: the hourly aggregates, cached.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(self, hourly: ColumnSource, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._hourly = hourly
        self._found: AsyncCache[tuple[int, int], Trends] = AsyncCache(max_weight=4, monotonic=monotonic)
        self._turn = asyncio.Semaphore(1)
        self._reading: set[asyncio.Task[Trends]] = set()

    async def read(self, prices: Mapping[str, float | None], start: int, end: int, seconds: float) -> Trends | None:
        """Return the figures of [start, end); None if they need more than `seconds`: they are read on, for the next caller.

        Args:
            prices: worker id → US dollars per hour, None where it is not known.
            start, end: UTC seconds of whole days; `end` may be in the future.
            seconds: how long to wait.

        Raises:
            StoreError: MongoDB does not answer.
        """
        load = self._found.get((start, end), lambda: self._sum(prices, start, end), TRENDS_TTL_SECONDS)
        task = asyncio.ensure_future(load)
        self._reading.add(task)
        task.add_done_callback(self._forget)
        done, _ = await asyncio.wait({task}, timeout=seconds)
        return task.result() if done else None

    def _forget(self, task: "asyncio.Task[Trends]") -> None:
        self._reading.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that has gone asks for it no more

    async def _sum(self, prices: Mapping[str, float | None], start: int, end: int) -> Trends:
        days: dict[int, Span] = {}
        workers: dict[str, Totals] = {}
        async with self._turn:
            workers_left = sorted(prices)
            for first in range(0, len(workers_left), _BATCH_WORKERS):
                columns = await self._columns(workers_left[first : first + _BATCH_WORKERS], start, end)
                await asyncio.to_thread(_add_all, columns, prices, days, workers)
        return Trends(days, workers)

    async def _columns(self, worker_ids: Sequence[str], start: int, end: int) -> Mapping[tuple[str, str], list[_Column]]:
        """Return (worker id, region) → a column for each of FIELDS."""
        found: dict[tuple[str, str], list[_Column]] = {}
        for name in FIELDS:
            count = 0
            # An hourly aggregate is at the end of its hour, so that the first one of the range is an hour after its start.
            async for worker_id, region, stamps, values in self._hourly.columns(
                worker_ids, (start + HOUR) * 1000, end * 1000, name
            ):
                found.setdefault((worker_id, region), []).append((stamps, values))
                count += 1
                if count % _YIELD_WORKERS == 0:
                    await asyncio.sleep(0)
        return found


def _add_all(
    columns: Mapping[tuple[str, str], list[_Column]],
    prices: Mapping[str, float | None],
    days: dict[int, Span],
    workers: dict[str, Totals],
) -> None:
    for (worker_id, _), of_worker in columns.items():
        workers.setdefault(worker_id, Totals()).add(add_worker(list(_hours(of_worker)), prices[worker_id], days))


def _hours(columns: Sequence[_Column]) -> Iterator[Hour]:
    """Yield the hours that every column has: one may have been added while the fields were read one after the other."""
    stamps = columns[0][0]
    if len(columns) == len(FIELDS) and all(each == stamps for each, _ in columns):
        yield from zip(stamps, *(values for _, values in columns), strict=True)
        return
    by_hour = [dict(zip(*column, strict=True)) for column in columns]
    for stamp in stamps if len(columns) == len(FIELDS) else ():
        if all(stamp in values for values in by_hour):
            yield stamp, *(values[stamp] for values in by_hour)  # type: ignore[misc]  # as many as FIELDS
