"""One exporter's real parts in this process, on a pretended clock: hours of rounds in seconds.

MongoDB, the outbox, CloudWatch's wire and the routes are real; only the time is not, and nothing runs between two rounds.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from exporter.core.budget import Budget
from exporter.core.errors import ExporterError, StoreError
from exporter.core.model import ExporterMetrics, Fleet, InventoryEntry, Snapshot
from exporter.core.periods import align
from exporter.core.settings import Settings
from exporter.history.cloudwatch_archive import CloudWatchArchive
from exporter.history.hourly_cache import HourlyCache
from exporter.history.reader import HistoryReader
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.collector import Collector
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.mirror import Mirror
from exporter.pipeline.observer import OBSERVE_OFFSET_SECONDS
from exporter.pipeline.outbox import Outbox, OutboxThread
from exporter.pipeline.poller import POLL_OFFSET_SECONDS
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.sources.protocols import MetricSource
from exporter.storage.inventory import Inventory
from exporter.storage.lease import BACKFILL, Lease
from exporter.storage.mongo import Database
from exporter.storage.repository import repository
from exporter.web.application import create_app
from tests.helpers.expected_history import Member, assert_true, expected_history
from tests.helpers.fake_cloudwatch import FakeCloudWatch

PERIOD = 300
DECIDED = 1500
"""Seconds after it began a period is decided by the settings below: 20 minutes after its end a missing agent is believed."""


class Clock:
    """A clock that is moved by hand."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class ShiftedAggregates:
    """The real aggregates, read at the pretended time."""

    def __init__(self, source: Aggregates, clock: Clock) -> None:
        self._source, self._clock = source, clock

    async def read(self) -> Fleet:
        return replace(await self._source.read(), date=int(self._clock()))


class Rig:
    """One exporter process of the pretended time; also what its routes ask (`api.Backend`)."""

    period = PERIOD

    def __init__(
        self,
        folder: Path,
        database: Database,
        fake: FakeCloudWatch,
        clock: Clock,
        *,
        deadline: float = 30,
        reach: float = 10,
        source: MetricSource | None = None,
        max_usd_per_day: float | None = None,
    ) -> None:
        """`source` stands in for CloudWatch; `deadline` is that of one call, `reach` the seconds to wait for a MongoDB."""
        settings = self.settings = Settings.model_validate(
            {
                "mongodb": {"uri": "mongodb://127.0.0.1:1/unused"},
                "cloudwatch": {"endpoint_url": fake.url, "max_usd_per_day": max_usd_per_day},
                "absence_timeout": "10m",
                "data_dir": str(folder),
            }
        )
        self.clock = clock
        self.registry = CollectorRegistry()
        self.database = database
        telemetry = self.telemetry = Telemetry(self.registry)
        self.outbox = OutboxThread(Outbox(folder, PERIOD))
        self.history = repository(settings, database, "worker_metrics_timeseries", wall=clock)
        self.lease = Lease(database, owner=self.outbox.outbox.owner)
        day, spent = self.outbox.outbox.spent()
        self.budget = Budget(max_usd_per_day, wall=clock, day=day, spent=spent)
        self.cloudwatch = CloudWatch(settings, telemetry, budget=self.budget, wall=clock, deadline=deadline)
        series = MemorySeriesIndex(self.cloudwatch, monotonic=clock)
        self.columns = self.history
        backfill = Lease(database, owner="", name=BACKFILL)
        self.hourly = HourlyCache(
            self.history, backfill.change_marker, gap_fill_window=settings.gap_fill_window, wall=clock, monotonic=clock
        )
        self.reader = HistoryReader(
            period=PERIOD,
            history=self.history,
            archive=CloudWatchArchive(self.cloudwatch, series, wall=clock, monotonic=clock),
            wanted_retention=settings.mongodb.retention,
            wall=clock,
            monotonic=clock,
        )
        self.mirror = Mirror(self.outbox, self.history, self.lease, telemetry, wall=clock)
        self.collector = Collector(
            settings,
            Rules.from_settings(settings),
            telemetry,
            self.outbox,
            ShiftedAggregates(Aggregates(database, settings.mongodb.workers, settings.workers, reach=reach), clock),
            source or self.cloudwatch,
            history=self.history,
            inventory=Inventory(database),
            lease=self.lease,
            series=series,
            budget=self.budget,
            wall=clock,
            monotonic=clock,
        )
        self.errors: list[str] = []
        """What the loops would have logged: every error that ended a part of a round."""

    async def close(self) -> None:
        await self.cloudwatch.close()
        self.outbox.close()

    async def round(self, count: int = 1, *, mongodb: bool = True) -> None:
        """The next period's observing, asking and mirroring, each at its time, `count` times over.

        Without `mongodb` the lease is not renewed and nothing mirrored: each would only wait until its time is over.
        """
        for _ in range(count):
            boundary = align(int(self.clock()), PERIOD) + PERIOD
            self.clock.now = boundary + OBSERVE_OFFSET_SECONDS
            if mongodb:
                await self.lease.acquire_or_renew()
            await self.observe()
            self.clock.now = boundary + POLL_OFFSET_SECONDS
            await self.ask()
            if mongodb:
                await self.mirror_all()

    async def observe(self) -> None:
        try:
            await self.collector.observe()
        except ExporterError as error:
            self.errors.append(str(error))

    async def ask(self) -> None:
        try:
            await self.collector.poll()
        except ExporterError as error:
            self.errors.append(str(error))

    async def mirror_all(self) -> None:
        try:
            while await self.mirror.step():
                pass
        except StoreError as error:
            self.errors.append(str(error))

    def value(self, name: str, **labels: str) -> float | None:
        """A metric of the exporter's own."""
        return self.registry.get_sample_value(name, labels)

    async def scrape(self) -> str:
        """GET /metrics, as Prometheus would; `app.serve` has rendered by then."""
        await asyncio.to_thread(self.telemetry.refresh)
        transport = httpx.ASGITransport(app=create_app(self))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
            answer = await client.get("/metrics", headers={"Accept-Encoding": "identity"})
            answer.raise_for_status()
            return answer.text

    @property
    def exporter_metrics(self) -> ExporterMetrics:
        return self.telemetry.rendered

    async def documents(self, **query: object) -> list[dict[str, Any]]:
        """The history's documents, by worker and time."""
        cursor = self.database["worker_metrics_timeseries"].find(query, {"_id": 0}).sort([("worker_id", 1), ("timestamp", 1)])
        return await cursor.to_list(None)

    async def assert_history_is_true(self, fake: FakeCloudWatch, members: Collection[Member]) -> int:
        """Compare with the ledger what is decided by now."""
        now = int(self.clock())
        expected = expected_history(fake, members, align(now, PERIOD))
        return assert_true(await self.documents(), expected, align(now - DECIDED, PERIOD))

    # -- api.Backend

    @property
    def snapshot(self) -> Snapshot | None:
        return self.collector.snapshot

    @property
    def ready(self) -> bool:
        return True

    def health(self) -> Mapping[str, str | None]:
        return self.collector.healthy

    def now(self) -> float:
        return self.clock()

    async def inventory(self) -> Sequence[InventoryEntry]:
        inventory = Inventory(self.database)
        await inventory.load()
        return tuple(inventory.entries.values())

    async def remembered(self, worker_id: str) -> InventoryEntry | None:
        return await Inventory(self.database).read(worker_id)

    async def latest(self, worker_ids: Collection[str]) -> Mapping[str, int]:
        return await self.history.latest_timestamps(worker_ids)


def series(text: str, start: str) -> dict[str, float]:
    """The lines of /metrics that begin so: series → value."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(start))
    return {name: float(value) for name, _, value in lines}
