"""The customer's repository of worker metrics, over the pieces that read, write and verify the collection.

A program beside the exporter imports this module; it therefore needs only pymongo and structlog.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self, Unpack, overload

from pymongo.asynchronous.database import AsyncDatabase

from exporter.core.distribution import Distribution
from exporter.core.errors import ConfigError, StoreError
from exporter.core.history_metrics import METRIC_FIELDS
from exporter.core.interval_statistics import MetricsAggregation, Statistics
from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import align, to_datetime, to_seconds
from exporter.storage.aggregation import fleet_statistics
from exporter.storage.collection import HistoryCollection, HistoryOptions
from exporter.storage.mongo import Database, connect_uri
from exporter.storage.sample_reader import SampleReader
from exporter.storage.sample_writer import SampleWriter
from exporter.storage.statistics import FieldColumns, IntervalColumns

if TYPE_CHECKING:
    from exporter.core.settings import Settings


class WorkerMetricsRepository:
    """The samples of all workers in one time-series collection, with the customer's signatures.

    Args:
        database: of an AsyncMongoClient; its options don't matter. A program with Motor or without a client uses `connect`.
        options: see HistoryOptions; by default the collection, period and retention of the exporter's settings.

    Every method raises StoreUnavailableError, IncompatibleStoreError or StoreError; repeating the call is safe.

    Raises:
        TypeError: `database` belongs to another driver.
    """

    def __init__(self, database: Database, **options: Unpack[HistoryOptions]) -> None:
        if not isinstance(database, AsyncDatabase):
            given = type(database)
            raise TypeError(
                f"WorkerMetricsRepository needs the database of a pymongo.AsyncMongoClient, not a {given.__module__}."
                f"{given.__qualname__}; use `async with WorkerMetricsRepository.connect(uri)`, which opens its own client"
            )
        self.collection = HistoryCollection(database, **options)
        self.reader = SampleReader(self.collection)
        self.writer = SampleWriter(self.collection)
        self._ensured = False

    @classmethod
    @asynccontextmanager
    async def connect(cls, uri: str, **options: Unpack[HistoryOptions]) -> AsyncIterator[Self]:
        """Open a repository with its own MongoDB client, and close the client at the end of the `async with` block.

        Args:
            uri: MongoDB connection string with the database; without a database, cml_cloud_manager, as in the exporter.
            options: see HistoryOptions.

        Raises:
            ConfigError: the connection string is malformed.
        """
        client, database = connect_uri(uri)
        async with client:
            yield cls(database, **options)

    @property
    def namespace(self) -> str:
        """Return database.collection, for messages."""
        return self.collection.namespace

    async def ensure_collection(self) -> None:
        """Create or verify the collection, see `HistoryCollection.ensure`."""
        await self.collection.ensure()
        self._ensured = True

    async def add_sample(self, sample: WorkerMetricsSample) -> bool:
        """Insert one sample unless its period is stored already; return whether it was inserted. See `add_samples`."""
        return await self.add_samples([sample]) == 1

    async def add_samples(self, samples: Iterable[WorkerMetricsSample]) -> int:
        """Insert the samples whose period is not stored for their worker yet; return how many.

        A sample's time is rounded down to the start of its period. A stored sample is never changed, whether an exporter or
        another program wrote it, and several processes may write at the same time. The collection is created if it is absent.

        Raises:
            ValueError: a field of a sample is malformed; nothing is inserted.
            StoreError: MongoDB rejects some of them; the others are stored.
            StoreUnavailableError: some may be stored; repeat the call.
        """
        aligned = [_aligned(sample, self.collection.period) for sample in samples]
        if not aligned:
            return 0
        if not self._ensured:
            await self.ensure_collection()
        inserted, rejected = await self.writer.insert_missing(aligned)
        if rejected:
            raise StoreError(
                f"{self.namespace} rejects {len(rejected)} of {len(aligned)} samples (the others are stored), "
                f"the first because of: {rejected[0][1]}",
                reason="rejected",
            )
        return inserted

    async def get_samples(self, worker_id: str, start_time: datetime, end_time: datetime) -> list[WorkerMetricsSample]:
        """Return the samples of a worker in [start_time, end_time), oldest first, without those past retention."""
        return await self.reader.read_records(worker_id, start_time, end_time)

    @overload
    async def get_aggregated_stats(  # type: ignore[overload-overlap]  # a str is a Collection[str], too
        self, worker_id: str, start_time: datetime, end_time: datetime, interval: timedelta
    ) -> list[MetricsAggregation]: ...

    @overload
    async def get_aggregated_stats(  # type: ignore[overload-overlap]  # a str is a Collection[str], too
        self,
        worker_id: str,
        start_time: datetime,
        end_time: datetime,
        interval: timedelta,
        *,
        percentiles: bool = False,
        above: float | None = None,
    ) -> list[MetricsAggregation]: ...

    @overload
    async def get_aggregated_stats(
        self,
        worker_id: Collection[str],
        start_time: datetime,
        end_time: datetime,
        interval: timedelta,
        *,
        percentiles: bool = False,
        above: float | None = None,
    ) -> dict[str, list[MetricsAggregation]]: ...

    async def get_aggregated_stats(
        self,
        worker_id: str | Collection[str],
        start_time: datetime,
        end_time: datetime,
        interval: timedelta,
        *,
        percentiles: bool = False,
        above: float | None = None,
    ) -> list[MetricsAggregation] | dict[str, list[MetricsAggregation]]:
        """Return avg, min, max and number of samples per metric for each interval that has samples, oldest first.

        Only samples in [start_time, end_time) count. Intervals are aligned to UTC: to the epoch, and whole weeks to Monday.

        Args:
            worker_id: of a worker, or of many, which share queries: one call is much faster than one per worker. Then the
                result is worker id → that list, without workers that have no samples.
            start_time: inclusive.
            end_time: exclusive.
            interval: whole seconds.
            percentiles: p50, p95, and p99, too.
            above: the seconds for which each metric was greater than this number, in percent or labs, too.

        Raises:
            ValueError: the interval is not a positive whole number of seconds, or `above` is not a finite number.
        """
        seconds = interval // timedelta(seconds=1)
        if seconds <= 0 or timedelta(seconds=seconds) != interval:
            raise ValueError(f"interval {interval} must be a positive whole number of seconds")
        if above is not None and not math.isfinite(above):
            raise ValueError(f"above {above} must be a finite number, such as 80, or None")
        wanted = Distribution(percentiles, above) if percentiles or above is not None else None
        if isinstance(worker_id, str):
            of_one = await self.reader.statistics(worker_id, start_time, end_time, seconds, wanted=wanted)
            return _aggregations(of_one) if of_one else []
        found = fleet_statistics(self.collection, worker_id, start_time, end_time, seconds, wanted)
        # In a thread, a query at a time: a change of threads takes longer than a worker.
        parts = [await asyncio.to_thread(_aggregations_of, part) async for part in found]
        return {each: of_worker for part in parts for each, of_worker in part}

    async def latest_timestamps(self, worker_ids: Collection[str]) -> dict[str, int]:
        """Return the UTC second of the newest sample of each worker that has any."""
        return await self.reader.latest_timestamps(worker_ids)


def _aggregations_of(found: Iterable[tuple[str, IntervalColumns]]) -> list[tuple[str, list[MetricsAggregation]]]:
    return [(worker_id, _aggregations(columns)) for worker_id, columns in found]


def _aggregations(found: IntervalColumns) -> list[MetricsAggregation]:
    starts = (start.replace(tzinfo=UTC) for start in found.start)
    return list(map(MetricsAggregation, starts, *map(_of_metric, (found.cpu, found.memory, found.labs)), found.status_share))


def _of_metric(of: FieldColumns) -> Iterable[Statistics]:
    if not of.distributions:
        return map(Statistics, of.averages, of.lowest, of.highest, of.counts)
    columns = zip(of.averages, of.lowest, of.highest, of.counts, of.distributions, strict=True)
    return (Statistics(avg, low, high, samples, **further) for avg, low, high, samples, further in columns)


def _aligned(sample: WorkerMetricsSample, period: int) -> WorkerMetricsSample:
    """Return the sample at the start of its period; any object with the fields of a WorkerMetricsSample will do.

    Raises:
        ValueError: a field is of another type.
    """
    worker_id, time = sample.worker_id, sample.timestamp
    if not isinstance(worker_id, str) or not worker_id:
        raise ValueError(f"worker_id {worker_id!r} of a sample must be a text that is not empty")
    if not isinstance(time, datetime):
        raise ValueError(
            f"timestamp {time!r} of a sample of {worker_id!r} must be a datetime, such as datetime.now(timezone.utc)"
        )
    for field in METRIC_FIELDS:
        value = getattr(sample, field)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{field} {value!r} of a sample of {worker_id!r} must be a number, or None where it is missing")
    for field in ("region", "status"):
        value = getattr(sample, field)
        if not isinstance(value, str | None):
            raise ValueError(f"{field} {value!r} of a sample of {worker_id!r} must be a text; use `.value` of an enumeration")
    return WorkerMetricsSample(
        worker_id=worker_id,
        region=sample.region,
        timestamp=to_datetime(align(to_seconds(time), period)),
        cpu_utilization=sample.cpu_utilization,
        memory_utilization=sample.memory_utilization,
        active_labs_count=sample.active_labs_count,
        status=sample.status,
    )


def repository(
    settings: "Settings",
    database: Database,
    collection: str,
    *,
    wall: Callable[[], float] = time.time,
) -> WorkerMetricsRepository:
    """Build the repository of the settings; only a retention that is set explicitly is applied to an existing collection.

    Args:
        settings: of the exporter.
        database: where the collection is.
        collection: its name.
        wall: UTC seconds.
    """
    return WorkerMetricsRepository(
        database,
        collection=collection,
        period=settings.period,
        retention=settings.mongodb.retention,
        apply_retention="retention" in settings.mongodb.model_fields_set,
        wall=wall,
    )


def require_history(settings: "Settings", purpose: str) -> str:
    """Return the name of the history's collection, for a command that needs one.

    Args:
        settings: of the exporter.
        purpose: a verb for the message: "export", "purge".

    Raises:
        ConfigError: the settings name none.
    """
    if settings.mongodb.history is None:
        raise ConfigError(f"mongodb.history is null, so there is no history to {purpose}; name the collection")
    return settings.mongodb.history
