"""Reads a worker's history page by page, from MongoDB and, beyond its retention, from CloudWatch.

A range that begins before MongoDB's retention starts with segments from CloudWatch, coarser ones first, and continues with one
from MongoDB. A page may have several of them; each has one source and one resolution, and no row combines two.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from exporter.core.async_cache import AsyncCache
from exporter.core.distribution import Distribution
from exporter.core.errors import IncompatibleStoreError, SourceError
from exporter.core.instances import instances_during, worker_from_inventory
from exporter.core.model import InventoryEntry, Worker
from exporter.core.periods import MINUTE, align, align_up, format_duration, rfc3339
from exporter.history.grid import filled, limited
from exporter.history.points import Point, point_samples, point_statistics
from exporter.history.resources import SHARED_WINDOW_SECONDS, Resources, mean, published_window
from exporter.history.segments import Segment, Source, split_range
from exporter.sources.cloudwatch.retention import OLDEST, resolution_at
from exporter.storage import rows
from exporter.storage.rows import HistoryRow

RETENTION_TTL_SECONDS = 60
"""Seconds for which the collection's retention is cached; `retention --set` may change it at any time."""


class HistoryStore(Protocol):
    """The history in MongoDB; part of the repository."""

    async def current_retention(self) -> int | None:
        """Return the retention in seconds, None when samples are kept permanently."""

    async def read_samples(
        self, worker_id: str, start: int, end: int, *, limit: int
    ) -> tuple[Sequence[HistoryRow], int | None]:
        """Return samples in [start, end) milliseconds, and the millisecond where the rest begins, None without a rest."""

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
    ) -> tuple[Sequence[HistoryRow], int | None]:
        """Return statistics in [start, end) seconds, and the second where the rest begins, None without a rest."""


class ArchiveSource(Protocol):
    """The archive in CloudWatch; see `CloudWatchArchive`."""

    async def points(
        self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int, limit: int
    ) -> list[Point]:
        """Return the first `limit` points in [start, end) UTC seconds, oldest first; raises SourceError."""

    async def window(self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int) -> list[Point]:
        """Return all points in [start, end) UTC seconds, oldest first; raises SourceError."""


@dataclass(frozen=True, slots=True)
class WorkerRef:
    """A worker, and its entry in the inventory."""

    worker: Worker
    """From its worker document (the manager's aggregate) or, when that is gone, from the inventory."""
    entry: InventoryEntry | None

    @property
    def region(self) -> str:
        """The region in the worker document, else the last known one; empty where none is known."""
        return self.worker.region or (self.entry.region if self.entry else "")

    @property
    def display_name(self) -> str:
        """The name in the worker document, else the last known one, else the id: never empty."""
        return self.worker.name or (self.entry.name if self.entry else None) or self.worker.id

    @classmethod
    def of(cls, worker: Worker | None, entry: InventoryEntry | None) -> "WorkerRef | None":
        """Return the reference of a worker, None when it is in neither source."""
        if worker is None and entry is not None:
            worker = worker_from_inventory(entry)
        return None if worker is None else cls(worker, entry)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for one page of a worker's history in [start, end), from the first page or from a cursor."""

    start: int
    """Milliseconds since 1970, as `Page.following`."""
    end: int
    """UTC second."""
    interval: int | None
    """Seconds of a row of statistics; None for samples."""
    limit: int
    """Rows of the page, 1 or more."""
    zone: ZoneInfo | None = None
    """The time zone of days and weeks; None: UTC."""
    wanted: Distribution | None = None
    """Further statistics of each interval; None: none."""
    fill: bool = False
    """Whether there is a row for each interval or period, also where nothing is stored."""


@dataclass(frozen=True, slots=True)
class PageSegment:
    """The rows of a page, oldest first, that have one source and one resolution."""

    rows: Sequence[HistoryRow]
    start: int
    """UTC second from which they were read."""
    source: Source
    resolution: int
    """Seconds of a sample."""
    interval: int | None
    """Seconds of a row of statistics; None for samples."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of rows."""

    segments: Sequence[PageSegment]
    """Oldest first; at least one. One without rows is left out where another one has some."""
    following: int | None
    """Milliseconds since 1970 where the next page begins; None for the last page."""
    note: str | None = None
    """A limitation of this page, as a sentence for the client."""

    @property
    def rows(self) -> Sequence[HistoryRow]:
        """All rows, oldest first."""
        if len(self.segments) == 1:
            return self.segments[0].rows
        return [row for segment in self.segments for row in segment.rows]

    @property
    def source(self) -> Source | Literal["mixed"]:
        """Where the rows come from."""
        sources = {segment.source for segment in self.segments}
        return "mixed" if len(sources) > 1 else sources.pop()

    @property
    def resolution(self) -> int:
        """Seconds of a sample; the greatest of several resolutions."""
        return max(segment.resolution for segment in self.segments)

    @property
    def interval(self) -> int | None:
        """Seconds of a row of statistics, the greatest of several; None for samples."""
        return max((segment.interval for segment in self.segments if segment.interval is not None), default=None)


class HistoryReader:
    """Reads the history of single workers from MongoDB and, beyond its retention, from CloudWatch.

    Args:
        period: seconds of a sample.
        history: the history in MongoDB, None when the exporter keeps none.
        archive: the archive in CloudWatch, None when CloudWatch is disabled.
        wanted_retention: seconds, used while the collection does not exist.
        max_age: seconds after its period up to which a datapoint is fresh.
        wall: UTC seconds.
        monotonic: seconds of a clock that is never set, for the age of the cached retention.

    Its methods raise StoreError when MongoDB does not answer, and SourceError when CloudWatch does not.
    """

    def __init__(
        self,
        *,
        period: int,
        history: HistoryStore | None,
        archive: ArchiveSource | None,
        wanted_retention: int,
        max_age: int = 15 * MINUTE,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.period = period
        self._history = history
        self._archive = archive
        self._wanted_retention = wanted_retention
        self._max_age = max_age
        self._wall = wall
        self._retention: AsyncCache[None, int | None] = AsyncCache(monotonic=monotonic)

    async def retention(self) -> int | None:
        """Return the retention of the history in seconds, None when samples are kept permanently, 0 without a history."""
        if self._history is None:
            return 0
        return await self._retention.get(None, partial(self._read_retention, self._history), RETENTION_TTL_SECONDS)

    async def _read_retention(self, history: HistoryStore) -> int | None:
        try:
            return await history.current_retention()
        except IncompatibleStoreError as error:
            if error.reason != "collection":
                raise
            return self._wanted_retention

    async def reach(self) -> int | None:
        """Return the greatest age in seconds of a sample that can be queried, None when there is no limit."""
        kept = await self.retention()
        return None if kept is None else max(kept, OLDEST)

    async def page(self, ref: WorkerRef, request: PageRequest) -> Page:
        """Return the first page of the requested range."""
        now = int(self._wall())
        kept = await self.retention()
        boundary = None if kept is None or self._archive is None else now - kept
        if self._history is None:
            boundary = request.end
        start = request.start // 1000
        note = self._note(start, now, kept)
        segments = split_range(
            start, request.end, now, period=self.period, interval=request.interval, boundary=boundary, zone=request.zone
        )
        oldest = 0 if kept is None else now - kept
        read: list[PageSegment] = []
        following, left = None, request.limit
        for segment in segments:
            if left <= 0:
                following = segment.start * 1000
                break
            rest = replace(request, limit=left)
            found, following = await self._read_segment(ref, segment, rest, now, oldest)
            read.append(PageSegment(found, segment.start, segment.source, segment.resolution, segment.interval))
            left -= len(found)
            if following is not None:
                break
        shown = [each for each in read if each.rows] or read[-1:]
        return Page(shown or [PageSegment([], start, "mongodb", self.period, request.interval)], following, note)

    async def _read_segment(
        self, ref: WorkerRef, segment: Segment, request: PageRequest, now: int, oldest: int
    ) -> tuple[Sequence[HistoryRow], int | None]:
        """Return the rows of the first segment of a page, and where the rest of it begins, in milliseconds; None: no rest.

        `oldest` is the UTC second from which MongoDB's samples count: it deletes late.
        """
        begin = max(request.start, segment.start * 1000, oldest * 1000 if segment.source == "mongodb" else 0)
        first, end, rows = align_up(begin, 1000) // 1000, segment.end, request.limit
        if request.fill:
            end = limited(first, segment.end, segment.resolution, segment.interval, request.zone, rows)
        part = replace(segment, end=end)
        if segment.source == "cloudwatch":
            found, following = await self._read_archive(ref, part, request, now)
        else:
            found, following = await self._read_history(ref, part, begin, request)
        if request.fill:
            until = end if following is None else following // 1000
            found = filled(found, first, until, segment.resolution, segment.interval, request.zone, request.wanted)
        if following is None and end < segment.end:
            following = end * 1000
        return found, following

    def _note(self, start: int, now: int, kept: int | None) -> str | None:
        if self._history is None and self._archive is None:
            return (
                "This exporter keeps no history (mongodb.history is null) and does not query CloudWatch, so there is no data. "
                "Name a collection in mongodb.history to keep one."
            )
        if self._history is None:
            return (
                "This exporter keeps no history (mongodb.history is null); the data is CloudWatch's, without status and labs. "
                "Name a collection in mongodb.history to keep one."
            )
        if self._archive is None and kept is not None and start < now - kept:
            return (
                f"The history begins at {rfc3339(now - kept)}, as samples are kept for {format_duration(kept)}; "
                "CloudWatch, which may have older ones, is not queried (cloudwatch.enabled is false)."
            )
        return None

    async def _read_history(
        self, ref: WorkerRef, segment: Segment, begin: int, request: PageRequest
    ) -> tuple[Sequence[HistoryRow], int | None]:
        assert self._history is not None
        worker_id, limit = ref.worker.id, request.limit
        if segment.interval is None:
            return await self._history.read_samples(worker_id, begin, segment.end * 1000, limit=limit)
        start = align_up(begin, 1000) // 1000
        found, following = await self._history.read_statistics(
            worker_id, start, segment.end, segment.interval, limit=limit, zone=request.zone, wanted=request.wanted
        )
        return found, None if following is None else following * 1000

    async def _read_archive(
        self, ref: WorkerRef, segment: Segment, request: PageRequest, now: int
    ) -> tuple[Sequence[HistoryRow], int | None]:
        if self._archive is None:
            return [], None
        limit = request.limit
        end = min(segment.end, align(now, segment.resolution))  # without the period that has not ended
        points_needed = limit if segment.interval is None else (end - segment.start) // segment.resolution + 1
        points = await self._archive.points(ref.worker, ref.entry, segment.start, end, segment.resolution, points_needed + 1)
        interval = segment.interval
        if interval is None:
            found = point_samples(points)
        else:
            found = point_statistics(points, interval, request.zone, request.wanted, segment.resolution)
        if len(found) <= limit:
            return found, None
        return found[:limit], rows.milliseconds(found[limit]["timestamp"])

    async def resources(self, ref: WorkerRef, seconds: int, end: int) -> Resources:
        """Return CloudWatch's averages over `seconds` (at least one period) before `end` (UTC second).

        The window consists of whole periods. It ends with the newest published one, if that ended up to `max_age` ago; else
        with the last period that has ended.
        """
        if self._archive is None:
            raise SourceError(
                "cloudwatch",
                "Disabled",
                "cloudwatch.enabled is false, so there are no live values; the worker's metrics/history has stored ones.",
            )
        now = int(self._wall())
        resolution = resolution_at(now - end + seconds, self.period)
        length, end = align_up(seconds, resolution), align(end, resolution)
        start, fresh = end - length, align_up(now - self._max_age - resolution, resolution)
        read_from = start
        if fresh < end:  # the window may move back until it ends with the period at `fresh`
            read_from = fresh + resolution - max(length, align(SHARED_WINDOW_SECONDS, resolution))
        points = await self._archive.window(ref.worker, ref.entry, min(start, read_from), end, resolution)
        start, end = published_window(points, start, end, fresh, resolution)
        region, instances = instances_during(ref.entry, ref.worker, start, end)
        within = [point for point in points if start <= point.start < end]
        return Resources(
            instance_id=instances[0] if instances else None,
            region=region,
            start=start,
            end=end,
            cpu=mean(point.cpu for point in within),
            memory=mean(point.memory for point in within),
        )
