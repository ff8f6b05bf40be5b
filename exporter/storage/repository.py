"""The customer's repository of worker metrics, over the pieces that read, write and verify the collection."""

import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase

from exporter.core.errors import ConfigError, StoreError
from exporter.core.model import MetricsAggregation, Statistics, WorkerMetricsSample
from exporter.core.periods import as_utc
from exporter.core.settings import Settings
from exporter.storage.collection import HistoryCollection
from exporter.storage.mongo import Database
from exporter.storage.rows import StatisticsRow
from exporter.storage.sample_reader import SampleReader
from exporter.storage.sample_writer import SampleWriter


class WorkerMetricsRepository:
    """The samples of all workers in one time-series collection, with the customer's signatures.

    Args:
        database: of an AsyncMongoClient; its options don't matter.
        collection: name of the time-series collection.
        period: resolution of the history, in seconds.
        retention: expireAfterSeconds of a collection that is created, in seconds.
        apply_retention: whether `retention` was set explicitly; then a longer one is applied to an existing collection.
        wall: the clock that tells which samples are past retention, in UTC seconds.

    Every method raises StoreUnavailableError, IncompatibleStoreError or StoreError.
    """

    def __init__(
        self,
        database: Database,
        *,
        collection: str,
        period: int,
        retention: int,
        apply_retention: bool,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.collection = HistoryCollection(
            database, name=collection, period=period, retention=retention, apply_retention=apply_retention, wall=wall
        )
        self.reader = SampleReader(self.collection)
        self.writer = SampleWriter(self.collection)

    @property
    def namespace(self) -> str:
        """Return database.collection, for messages."""
        return self.collection.namespace

    async def ensure_collection(self) -> None:
        """Create or verify the collection, see `HistoryCollection.ensure`."""
        await self.collection.ensure()

    async def add_sample(self, sample: WorkerMetricsSample) -> None:
        """Insert one sample, whether or not it is stored already.

        Raises:
            StoreError: MongoDB rejects it.
        """
        await self.add_samples([sample])

    async def add_samples(self, samples: Sequence[WorkerMetricsSample]) -> int:
        """Insert samples, whether or not they are stored already; return how many.

        Raises:
            StoreError: MongoDB rejects some of them; the others are stored.
        """
        rejected = await self.writer.insert(samples)
        if rejected:
            raise StoreError(
                f"{self.namespace} rejects {len(rejected)} of {len(samples)} samples (the others are stored), "
                f"the first because of: {rejected[0][1]}",
                reason="rejected",
            )
        return len(samples)

    async def get_samples(self, worker_id: str, start_time: datetime, end_time: datetime) -> list[WorkerMetricsSample]:
        """Return the samples of a worker in [start_time, end_time), oldest first, without those past retention."""
        return await self.reader.read_records(worker_id, start_time, end_time)

    async def get_aggregated_stats(
        self, worker_id: str, start_time: datetime, end_time: datetime, interval: timedelta
    ) -> list[MetricsAggregation]:
        """Return avg, min, max and count per metric for each interval that has samples, oldest first.

        Only samples in [start_time, end_time) count. Intervals are aligned to UTC: to the epoch, and whole weeks to Monday.

        Raises:
            ValueError: the interval is not a positive whole number of seconds.
        """
        seconds = interval // timedelta(seconds=1)
        if seconds <= 0 or timedelta(seconds=seconds) != interval:
            raise ValueError(f"interval {interval} must be a positive whole number of seconds")
        return [_aggregation(row) for row in await self.reader.statistics(worker_id, start_time, end_time, seconds)]

    async def latest_timestamps(self, worker_ids: Collection[str]) -> dict[str, int]:
        """Return the UTC second of the newest sample of each worker that has any."""
        return await self.reader.latest_timestamps(worker_ids)


def _aggregation(row: StatisticsRow) -> MetricsAggregation:
    return MetricsAggregation(
        timestamp=as_utc(row["timestamp"]),
        cpu_utilization=Statistics(**row["cpu_utilization"]),
        memory_utilization=Statistics(**row["memory_utilization"]),
        active_labs_count=Statistics(**row["active_labs_count"]),
        status_share=row["status_share"],
    )


def repository(
    settings: Settings,
    database: AsyncDatabase[dict[str, Any]],
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


def require_history(settings: Settings, purpose: str) -> str:
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
