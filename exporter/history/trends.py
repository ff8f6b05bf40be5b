"""Figures of the whole fleet by day and of each worker, summed from the hourly aggregates.

A month of a thousand workers is 720,000 hours. They come from the hourly cache, are summed in a thread, and the result is kept
for some minutes, so that neither the page nor the scrapes beside it wait for them twice.
"""

import asyncio
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from exporter.core.async_cache import AsyncCache
from exporter.core.history_metrics import RUNNING
from exporter.core.local_time import interval_start
from exporter.core.periods import DAY, HOUR, align, align_up
from exporter.storage.hourly import WorkerDay, column

TRENDS_TTL_SECONDS = 300
"""Seconds for which figures are used again."""
FIELDS = (RUNNING, "cpu_utilization_avg", "memory_utilization_avg", "active_labs_count_avg", "active_labs_count_max")


class HourSource(Protocol):
    """The hourly aggregates of whole UTC days; see `HourlyCache`."""

    async def worker_days(self, worker_ids: Collection[str], start: int, end: int) -> list[WorkerDay]:
        """Return all hourly aggregates of the UTC days that [start, end) UTC seconds touches; raises StoreError."""


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
        self.running += other.running
        self.idle += other.idle
        self.counted += other.counted
        self.cpu += other.cpu
        self.cpu_hours += other.cpu_hours
        self.memory += other.memory
        self.memory_hours += other.memory_hours
        self.labs += other.labs
        self.cost += other.cost
        self.priced += other.priced

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
    """Day, by its first UTC second → its figures; days without a sample are missing."""
    workers: Mapping[str, Totals]
    """Worker id → its figures; workers without a sample are missing."""


class DayPart(NamedTuple):
    """The hours of a UTC day that are on one day of a time zone."""

    day: int
    """The first UTC second of the zone's day."""
    first: int
    """The hours, 0 to 23, from `first` until before `last`."""
    last: int


def day_parts(start: int, end: int, zone: ZoneInfo | None) -> dict[int, list[DayPart]]:
    """Return UTC day, by its first second → the days of a zone that its hours are on, for the whole hours in [start, end).

    An hourly aggregate cannot be split: where midnight is not at a whole hour of UTC, as in India, the hour around it is
    counted to the day in which it begins.
    """
    hours = range(align_up(start, HOUR), align(end, HOUR), HOUR)
    found: dict[int, list[DayPart]] = {}
    for (utc, day), group in groupby(hours, lambda hour: (align(hour, DAY), interval_start(hour, DAY, zone))):
        of_day = [(hour - utc) // HOUR for hour in group]
        found.setdefault(utc, []).append(DayPart(day, of_day[0], of_day[-1] + 1))
    return found


def add_hours(part: WorkerDay, first: int, last: int, price: float | None, totals: Totals) -> None:
    """Add the hours from `first` until before `last` (0 to 23) of a worker's UTC day.

    A value counts by the share of the hour in which the worker ran. An hour counts as idle if it had no lab in all of it.

    Args:
        part: the day, in one region.
        first: inclusive.
        last: exclusive.
        price: US dollars per hour; None: not known.
        totals: changed.
    """
    inside = slice(bisect_left(part.hours, first), bisect_left(part.hours, last))
    running, cpu, memory, labs, most_labs = (column(part, name)[inside] for name in FIELDS)
    whole = running.count(1) == len(running)  # most days of most workers
    totals.running += len(running) if whole else sum(share for share in running if share > 0)  # without NaN
    (of_cpu, cpu_hours), (of_memory, memory_hours), (of_labs, counted) = (
        _weighted(values, None if whole else running) for values in (cpu, memory, labs)
    )
    totals.cpu, totals.cpu_hours = totals.cpu + of_cpu, totals.cpu_hours + cpu_hours
    totals.memory, totals.memory_hours = totals.memory + of_memory, totals.memory_hours + memory_hours
    totals.labs, totals.counted = totals.labs + of_labs, totals.counted + counted
    idle: float = most_labs.count(0)
    if idle and not whole:
        idle = sum(share for share, most in zip(running, most_labs, strict=True) if most == 0 and share > 0)
    totals.idle += idle
    if price is not None:
        totals.priced += idle
        totals.cost += idle * price


def _weighted(values: "array[float]", weights: "array[float] | None") -> tuple[float, float]:
    """Return the sum of values × weights, and of the weights (None: each is 1); NaN counts as missing in both."""
    total = sum(values)
    if weights is None:
        if total == total:
            return total, len(values)
        found = [value for value in values if value == value]
        return sum(found), len(found)
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value == value and weight > 0]
    return sum(value * weight for value, weight in known), sum(weight for _, weight in known)


class TrendReader:
    """Reads the figures of a fleet, and keeps them for `TRENDS_TTL_SECONDS`. Belongs to one event loop.

    Args:
        hourly: the hourly aggregates, cached.
        wall: UTC seconds.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(
        self,
        hourly: HourSource,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hourly = hourly
        self._wall = wall
        self._found: AsyncCache[tuple[int, int, str], Trends] = AsyncCache(max_weight=4, monotonic=monotonic)
        self._turn = asyncio.Semaphore(1)
        self._reading: set[asyncio.Task[Trends]] = set()

    async def read(
        self, prices: Mapping[str, float | None], start: int, end: int, seconds: float, zone: ZoneInfo | None = None
    ) -> Trends | None:
        """Return the figures of [start, end); None if they need more than `seconds`: they are read on, for the next caller.

        Args:
            prices: worker id → US dollars per hour, None where it is not known.
            start, end: UTC seconds of whole days of the zone; `end` may be in the future.
            seconds: how long to wait.
            zone: whose days they are; None: UTC.

        Raises:
            StoreError: MongoDB does not answer.
        """
        key = (start, end, zone.key if zone else "")
        load = self._found.get(key, lambda: self._sum(prices, start, end, zone), TRENDS_TTL_SECONDS)
        task = asyncio.ensure_future(load)
        self._reading.add(task)
        task.add_done_callback(self._forget)
        done, _ = await asyncio.wait({task}, timeout=seconds)
        return task.result() if done else None

    def _forget(self, task: "asyncio.Task[Trends]") -> None:
        self._reading.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that has gone asks for it no more

    async def _sum(self, prices: Mapping[str, float | None], start: int, end: int, zone: ZoneInfo | None) -> Trends:
        parts = day_parts(start, min(end, int(self._wall())), zone)
        async with self._turn:
            found = await self._hourly.worker_days(prices.keys(), start, end)
            return await asyncio.to_thread(sum_hours, found, prices, parts)


def sum_hours(found: Iterable[WorkerDay], prices: Mapping[str, float | None], parts: Mapping[int, list[DayPart]]) -> Trends:
    """Return the figures of the hours that are in `parts`.

    Args:
        found: worker after worker.
        prices: worker id → US dollars per hour, None where it is not known.
        parts: see `day_parts`.
    """
    days: dict[int, Span] = {}
    workers: dict[str, Totals] = {}
    observed: dict[int, set[bytes]] = {}  # few: most workers have the same hours
    for each in found:
        observed.setdefault(each.day, set()).add(each.hours)
        for day, first, last in parts.get(each.day, ()):
            if bisect_left(each.hours, first) == bisect_left(each.hours, last):
                continue
            totals = Totals()
            add_hours(each, first, last, prices[each.worker_id], totals)
            days.setdefault(day, Span()).totals.add(totals)
            workers.setdefault(each.worker_id, Totals()).add(totals)
    for utc, of_day in parts.items():
        hours = set[int]().union(*observed.get(utc, ()))
        for day, first, last in of_day:
            if day in days:
                days[day].observed |= {utc + hour * HOUR for hour in hours if first <= hour < last}
    return Trends(days, workers)
