"""The real parts of one exporter in this process, on a simulated clock: hours of collection cycles in seconds.

MongoDB, the outbox, the HTTP requests to CloudWatch and the routes are real. Only the time is simulated, and nothing runs
between two cycles.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prometheus_client import CollectorRegistry

from exporter.core.budget import Budget, ReaderBudget
from exporter.core.errors import ExporterError, StoreError
from exporter.core.model import Fleet
from exporter.core.periods import align
from exporter.core.settings import Settings
from exporter.history.cloudwatch_archive import CloudWatchArchive
from exporter.history.hourly_cache import HourlyCache
from exporter.history.reader import HistoryReader
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.collector import Collector
from exporter.pipeline.handover import Handover
from exporter.pipeline.history_watch import HistoryWatch
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.mirror import Mirror
from exporter.pipeline.observer import OBSERVE_OFFSET_SECONDS
from exporter.pipeline.outbox import SPENT_BY_READERS, Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.pipeline.poller import POLL_OFFSET_SECONDS
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.extra_series import ExtraSeries
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.sources.protocols import MetricSource
from exporter.storage.handover import HandedWorkers
from exporter.storage.history_marker import HistoryMarker
from exporter.storage.inventory import Inventory
from exporter.storage.layout import Layout
from exporter.storage.lease import BACKFILL, Lease
from exporter.storage.mongo import Database
from exporter.storage.repository import repository
from exporter.storage.snapshot_store import SnapshotStore
from exporter.web.application import create_app
from exporter.web.backend import Backend, LoopBridge
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member, assert_true, expected_history
from tests.helpers.fake_cloudwatch import FakeCloudWatch

T = TypeVar("T")
PERIOD = 300
DECIDED = 1500
"""Seconds after the start of a period by which its sample is final with the settings below, also without a memory value."""


class Clock:
    """A clock that tests set."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class ShiftedAggregates:
    """The real worker documents, dated with the simulated time."""

    def __init__(self, source: Aggregates, clock: Clock) -> None:
        self._source, self._clock = source, clock

    async def read(self) -> Fleet:
        return replace(await self._source.read(), date=int(self._clock()))


class DirectBridge(LoopBridge):
    """A bridge for tests in which the collector and the routes share one event loop."""

    async def run(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        return await function(*arguments)


class InProcessExporter:
    """One exporter process on a simulated clock, and the backend of its routes."""

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
        absence_timeout: str = "10m",
        aws: Mapping[str, Any] | None = None,
        cloudwatch: Mapping[str, Any] | None = None,
        workers: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        shares: bool = False,
    ) -> None:
        """`source` replaces CloudWatch; `deadline` is that of one call, `reach` the timeout of MongoDB, both in seconds.

        `aws`, `cloudwatch`, `workers`, and `metrics` are settings of these sections; the endpoints are the fake's unless they
        say so. `shares` the snapshot of CloudWatch with the other exporters of the database; `share` does so once.
        """
        settings = self.settings = Settings.model_validate(
            {
                "mongodb": {"uri": "mongodb://127.0.0.1:1/unused"},
                "cloudwatch": {"endpoint_url": fake.url, "max_usd_per_day": max_usd_per_day, **(cloudwatch or {})},
                "aws": {"sts_endpoint_url": fake.url, **(aws or {})},
                "workers": workers or {},
                "metrics": metrics or {},
                "absence_timeout": absence_timeout,
                "data_dir": str(folder),
            }
        )
        self.clock = clock
        self.registry = CollectorRegistry()
        self.database = database
        telemetry = self.telemetry = Telemetry(self.registry)
        self.outbox = OutboxThread(Outbox(folder, PERIOD), telemetry)
        self.history = repository(settings, database, "worker_metrics_timeseries", wall=clock)
        self.part = settings.workers.part
        outbox = self.outbox.outbox
        self.layout = Layout(database, self.part, folder=outbox.folder, on_change=self._layout_changed)
        self.lease = Lease(
            database,
            owner=outbox.owner,
            folder=outbox.folder,
            part=self.part.own_name,
            allowed=self.layout.check,
            announces=shares,
        )
        self.aggregates = Aggregates(database, settings.mongodb.worker_collections, settings.workers, self.part, reach=reach)
        day, spent = self.outbox.outbox.spent()
        self.budget = Budget(max_usd_per_day, wall=clock, day=day, spent=spent)
        day, spent = self.outbox.outbox.spent(SPENT_BY_READERS)
        self.readers = ReaderBudget(self.budget, settings.cloudwatch.reader_budget_share, day=day, spent=spent)
        self.cloudwatch = CloudWatch(settings, telemetry, budget=self.budget, wall=clock, deadline=scaled(deadline))
        series = MemorySeriesIndex(self.cloudwatch, monotonic=clock)
        self.extra_series = self._extra_series(series)
        watch = HistoryWatch(
            HistoryMarker(self.history.collection, self.part.own_name),
            self.outbox,
            telemetry,
            on_replaced=lambda: self.collector.lead(),
        )
        self.mirror = Mirror(self.outbox, self.history.writer, self.lease, telemetry, watch=watch, wall=clock)
        self.collector = Collector(
            settings,
            Rules.from_settings(settings),
            telemetry,
            self.outbox,
            ShiftedAggregates(self.aggregates, clock),
            source or self.cloudwatch,
            history=self.history.reader,
            inventory=Inventory(database),
            lease=self.lease,
            series=series,
            budget=self.budget,
            extra_series=self.extra_series,
            readers=self.readers,
            snapshots=SnapshotStore(database, self.lease.id) if shares else None,
            wall=clock,
            monotonic=clock,
        )
        self.handover = Handover(HandedWorkers(database), self.lease, self.outbox, lambda: None)
        self.backend = self._build_backend(series)
        self.errors: list[str] = []
        """The errors that the loops would have logged, each of which ended a part of a cycle."""

    def _extra_series(self, series: MemorySeriesIndex) -> ExtraSeries | None:
        gauges, list_metric = self.settings.cloudwatch.extra, partial(self.cloudwatch.list_metric, recent=True)
        return ExtraSeries(gauges, list_metric, account_of=series.account_of, monotonic=self.clock) if gauges else None

    def _build_backend(self, series: MemorySeriesIndex) -> Backend:
        settings, clock, database = self.settings, self.clock, self.database
        marker = Lease(database, owner="", name=BACKFILL).change_marker
        return Backend(
            period=PERIOD,
            collector=self.collector,
            telemetry=self.telemetry,
            reader=HistoryReader(
                period=PERIOD,
                history=self.history.reader,
                archive=CloudWatchArchive(
                    partial(self.cloudwatch.get_metric_data, readers=self.readers),
                    series,
                    memory_dimension=settings.cloudwatch.memory.dimension,
                    wall=clock,
                    monotonic=clock,
                ),
                wanted_retention=settings.mongodb.retention,
                max_age=settings.max_age,
                wall=clock,
                monotonic=clock,
            ),
            bridge=DirectBridge(),
            client=database.client,
            mirror=self.mirror,
            history=self.history.reader,
            hourly_price=settings.workers.hourly_price,
            hourly=HourlyCache(
                self.history.reader, marker, gap_fill_window=settings.gap_fill_window, wall=clock, monotonic=clock
            ),
            inventory=Inventory(database),
            fleet_inventory=Inventory(database),
            wall=clock,
            monotonic=clock,
        )

    def _layout_changed(self, in_force: bool) -> None:
        self.aggregates.part = replace(self.part, idle=not in_force)

    async def close(self) -> None:
        await self.cloudwatch.close()
        self.outbox.close()

    async def round(self, count: int = 1, *, mongodb: bool = True) -> None:
        """Run `count` collection cycles: each observes, polls and mirrors, at the times of the next period.

        Without `mongodb` the lease is not renewed and nothing is mirrored: both would only wait for their timeouts.
        """
        for _ in range(count):
            boundary = align(int(self.clock()), PERIOD) + PERIOD
            self.clock.now = boundary + OBSERVE_OFFSET_SECONDS
            if mongodb:
                await self.lease.acquire_or_renew()
            await self.observe()
            if mongodb:
                await self.exchange()
            self.clock.now = boundary + POLL_OFFSET_SECONDS
            await self.ask()
            if mongodb:
                await self.mirror_all()

    async def observe(self) -> None:
        try:
            await self.collector.observe()
            await self.collector.open_gaps()
        except ExporterError as error:
            self.errors.append(str(error))

    async def exchange(self) -> None:
        try:
            await self.handover.exchange(self.collector.fleet)
        except ExporterError as error:
            self.errors.append(str(error))

    async def ask(self) -> None:
        try:
            await self.collector.poll()
        except ExporterError as error:
            self.errors.append(str(error))

    async def share(self) -> None:
        """Leave the snapshot of CloudWatch for other exporters, or show that of the leader."""
        assert self.collector.shared is not None
        await self.collector.shared.exchange()

    async def mirror_all(self) -> None:
        try:
            while await self.mirror.step():
                pass
        except StoreError as error:
            self.errors.append(str(error))

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of an exporter metric."""
        return self.registry.get_sample_value(name, labels)

    async def scrape(self) -> str:
        """Return the text of /metrics, with exporter metrics that have just been rendered."""
        await asyncio.to_thread(self.telemetry.refresh)
        transport = httpx.ASGITransport(app=create_app(self.backend))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
            response = await client.get("/metrics", headers={"Accept-Encoding": "identity"})
            response.raise_for_status()
            return response.text

    async def documents(self, **query: object) -> list[dict[str, Any]]:
        """Return the documents of the history, sorted by worker and time."""
        cursor = self.database["worker_metrics_timeseries"].find(query, {"_id": 0}).sort([("worker_id", 1), ("timestamp", 1)])
        return await cursor.to_list(None)

    async def assert_history_is_true(self, fake: FakeCloudWatch, members: Collection[Member]) -> int:
        """Compare the history with the ledger; return how many samples that are final were compared."""
        now = int(self.clock())
        return assert_true(
            await self.documents(), expected_history(fake, members, align(now, PERIOD)), align(now - DECIDED, PERIOD)
        )


def series(text: str, start: str) -> dict[str, float]:
    """Return series → value of the lines of /metrics that begin with `start`."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(start))
    return {name: float(value) for name, _, value in lines}
