"""One page of a worker's history: which source answers it, and where the next page begins.

A page has one source and one resolution. A range that reaches back beyond MongoDB's retention begins with CloudWatch's pages,
coarser ones first, and goes on with MongoDB's.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Protocol

from exporter.core.async_cache import AsyncCache
from exporter.core.errors import IncompatibleStoreError, SourceError
from exporter.core.instances import instances_during, worker_from_inventory
from exporter.core.model import InventoryEntry, Worker
from exporter.core.periods import align, align_up, format_duration, rfc3339
from exporter.history.points import Point, point_samples, point_statistics
from exporter.history.segments import Segment, Source, split_range
from exporter.sources.cloudwatch.retention import OLDEST, resolution_at
from exporter.storage import rows
from exporter.storage.rows import HistoryRow

RETENTION_TTL_SECONDS = 60
"""Seconds for which the collection's retention is taken to be what it was: `retention --set` may change it any time."""


class HistoryStore(Protocol):
    """What is needed of the history."""

    async def current_retention(self) -> int | None:
        """Seconds it keeps its samples, None: for good."""

    async def read_samples(
        self, worker_id: str, start: int, end: int, *, limit: int
    ) -> tuple[Sequence[HistoryRow], int | None]:
        """Samples in [start, end) milliseconds, and where the rest begins."""

    async def read_statistics(
        self, worker_id: str, start: int, end: int, interval: int, *, limit: int
    ) -> tuple[Sequence[HistoryRow], int | None]:
        """Statistics in [start, end) seconds, and where the rest begins."""


class Archived(Protocol):
    """What is needed of CloudWatch."""

    async def points(
        self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int, limit: int
    ) -> list[Point]:
        """The first `limit` points of [start, end)."""

    async def window(self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int) -> list[Point]:
        """All points of [start, end)."""


@dataclass(frozen=True, slots=True)
class WorkerRef:
    """The worker that is asked about: as its aggregate says, or else as it is remembered, and what is remembered of it."""

    worker: Worker
    entry: InventoryEntry | None

    @classmethod
    def of(cls, worker: Worker | None, entry: InventoryEntry | None) -> "WorkerRef | None":
        """Join what is known; None when nothing is."""
        if worker is None and entry is not None:
            worker = worker_from_inventory(entry)
        return None if worker is None else cls(worker, entry)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What is asked of a worker's history: [start, end), all of it or what a cursor left over."""

    start: int
    """Milliseconds since 1970, as of every `following`."""
    end: int
    """UTC second."""
    interval: int | None
    """Seconds; None: samples."""
    limit: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page of rows, oldest first; see `rows`."""

    rows: Sequence[HistoryRow]
    following: int | None
    """Milliseconds since 1970 where the next page begins, None: this is the last."""
    source: Source
    resolution: int
    interval: int | None
    note: str | None = None
    """What the reader should know of it."""


@dataclass(frozen=True, slots=True)
class Resources:
    """CPU and memory of one worker over [start, end), averaged: percent, None where CloudWatch has nothing."""

    instance_id: str | None
    region: str
    start: int
    end: int
    cpu: float | None
    memory: float | None


class HistoryReader:
    """Reads the history of single workers, from MongoDB and beyond its retention from CloudWatch.

    Args:
        period: seconds of a sample.
        history: None where none is kept.
        archive: None where CloudWatch is not to be asked.
        wanted_retention: seconds, for a history that is not there yet.
        wall: UTC seconds.
        monotonic: seconds, for the age of the retention.

    Its methods raise StoreError or SourceError when who should answer does not.
    """

    def __init__(
        self,
        *,
        period: int,
        history: HistoryStore | None,
        archive: Archived | None,
        wanted_retention: int,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.period = period
        self._history = history
        self._archive = archive
        self._wanted = wanted_retention
        self._wall = wall
        self._retention: AsyncCache[None, int | None] = AsyncCache(monotonic=monotonic)

    async def retention(self) -> int | None:
        """Return how long the history keeps samples, in seconds; None: for good. 0 where there is none."""
        if self._history is None:
            return 0
        return await self._retention.get(None, partial(self._read_retention, self._history), RETENTION_TTL_SECONDS)

    async def _read_retention(self, history: HistoryStore) -> int | None:
        try:
            return await history.current_retention()
        except IncompatibleStoreError as error:
            if error.reason != "collection":
                raise
            return self._wanted

    async def reach(self) -> int | None:
        """Return how old the oldest sample may be that can be asked for, in seconds; None: as old as any."""
        kept = await self.retention()
        return None if kept is None else max(kept, OLDEST)

    async def page(self, subject: WorkerRef, span: PageRequest) -> Page:
        """Read one page of what `span` asks."""
        now = int(self._wall())
        kept = await self.retention()
        boundary = None if kept is None or self._archive is None else now - kept
        if self._history is None:
            boundary = span.end
        start = span.start // 1000
        note = self._note(start, now, kept)
        parts = split_range(start, span.end, now, period=self.period, interval=span.interval, boundary=boundary)
        if not parts:
            return Page([], None, "mongodb", self.period, span.interval, note)
        first, *rest = parts
        if first.source == "cloudwatch":
            page, following = await self._archived(subject, first, span.limit, now)
        else:
            oldest = 0 if kept is None else now - kept  # MongoDB deletes late
            begin = max(span.start, first.start * 1000, oldest * 1000)
            page, following = await self._stored(subject, first, begin, span.limit)
        if following is None and rest:
            following = rest[0].start * 1000
        return Page(page, following, first.source, first.resolution, first.interval, note)

    def _note(self, start: int, now: int, kept: int | None) -> str | None:
        if self._history is None and self._archive is None:
            return "This exporter keeps no history (mongodb.history is null) and does not ask CloudWatch, so there is nothing."
        if self._history is None:
            return "This exporter keeps no history (mongodb.history is null); CloudWatch answers, without status and labs."
        if self._archive is None and kept is not None and start < now - kept:
            return (
                f"The history begins at {rfc3339(now - kept)}, as samples are kept for {format_duration(kept)}; "
                "CloudWatch, which may have older ones, is not asked (cloudwatch.enabled is false)."
            )
        return None

    async def _stored(
        self, subject: WorkerRef, part: Segment, begin: int, limit: int
    ) -> tuple[Sequence[HistoryRow], int | None]:
        assert self._history is not None
        worker_id = subject.worker.id
        if part.interval is None:
            return await self._history.read_samples(worker_id, begin, part.end * 1000, limit=limit)
        start = align_up(begin, 1000) // 1000
        found, following = await self._history.read_statistics(worker_id, start, part.end, part.interval, limit=limit)
        return found, None if following is None else following * 1000

    async def _archived(
        self, subject: WorkerRef, part: Segment, limit: int, now: int
    ) -> tuple[Sequence[HistoryRow], int | None]:
        if self._archive is None:
            return [], None
        end = min(part.end, align(now, part.resolution))  # nothing of a period that is not over
        asked = limit if part.interval is None else (end - part.start) // part.resolution + 1
        points = await self._archive.points(subject.worker, subject.entry, part.start, end, part.resolution, asked + 1)
        found = point_samples(points) if part.interval is None else point_statistics(points, part.interval)
        if len(found) <= limit:
            return found, None
        return found[:limit], rows.milliseconds(found[limit]["timestamp"])

    async def resources(self, subject: WorkerRef, seconds: int, end: int) -> Resources:
        """Average what CloudWatch has of the `seconds` before `end`, in whole periods that are over."""
        if self._archive is None:
            raise SourceError(
                "cloudwatch",
                "Disabled",
                "cloudwatch.enabled is false, so there is nothing live to ask; the worker's metrics/history has what is kept.",
            )
        resolution = resolution_at(int(self._wall()) - end + seconds, self.period)
        end = align(end, resolution)
        start = align(end - seconds, resolution)
        region, instances = instances_during(subject.entry, subject.worker, start, end)
        points = await self._archive.window(subject.worker, subject.entry, start, end, resolution)
        return Resources(
            instance_id=instances[0] if instances else None,
            region=region,
            start=start,
            end=end,
            cpu=_mean(point.cpu for point in points),
            memory=_mean(point.memory for point in points),
        )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
