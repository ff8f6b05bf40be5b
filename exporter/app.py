"""The composition root: builds the objects of one exporter from its settings, starts the loops, stops them."""

import asyncio
import gc
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import anyio
from prometheus_client import CollectorRegistry

from exporter.core import logs
from exporter.core.async_cache import AsyncCache
from exporter.core.budget import Budget
from exporter.core.errors import IncompatibleStoreError, StoreError
from exporter.core.model import ExporterMetrics, InventoryEntry, Snapshot
from exporter.core.periods import HOUR
from exporter.core.settings import Settings
from exporter.history.cloudwatch_archive import CloudWatchArchive
from exporter.history.hourly_cache import HourlyCache
from exporter.history.reader import HistoryReader
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.collector import Collector
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.mirror import BackfillRange, Mirror
from exporter.pipeline.outbox import Outbox, OutboxThread
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.storage.inventory import Inventory
from exporter.storage.lease import BACKFILL, LEASE_SECONDS, Lease, boottime, keep_renewed
from exporter.storage.mongo import connect
from exporter.storage.repository import WorkerMetricsRepository, repository
from exporter.storage.sample_reader import SampleReader
from exporter.web.backend import INVENTORY_TTL_SECONDS, BridgedArchive, LoopBridge

_log = logs.get("exporter")
T = TypeVar("T")


class Exporter:
    """One exporter process; also what the HTTP routes ask (`api.Backend`).

    Two event loops, each in a thread of its own: `run` collects in one, the routes answer in the other. A round of a
    large fleet is hundreds of milliseconds of Python, and no scrape should wait for it.
    """

    def __init__(self, settings: Settings, outbox: Outbox) -> None:
        self.settings = settings
        self.period = settings.period
        self.telemetry = Telemetry(CollectorRegistry(), revision=os.environ.get("REVISION", ""))
        self._outbox = OutboxThread(outbox)
        self._client, database = connect(settings)
        self._web_client, self._web_database = connect(settings)  # a client belongs to one event loop
        day, spent = outbox.spent()
        self._budget = Budget(settings.cloudwatch.max_usd_per_day, day=day, spent=spent)
        self.telemetry.show_budget(self._budget, "ok")
        self._cloudwatch = CloudWatch(settings, self.telemetry, budget=self._budget) if settings.cloudwatch.enabled else None
        series = MemorySeriesIndex(self._cloudwatch) if self._cloudwatch else None
        self._history = repository(settings, database, settings.mongodb.history) if settings.mongodb.history else None
        self._web_history = (
            repository(settings, self._web_database, settings.mongodb.history) if settings.mongodb.history else None
        )
        backfill = Lease(self._web_database, owner=outbox.owner, name=BACKFILL)
        self._hourly = (
            HourlyCache(self._web_history.reader, backfill.change_marker, gap_fill_window=settings.gap_fill_window)
            if self._web_history
            else None
        )
        self._inventory = Inventory(database)
        self._all_remembered = Inventory(database)  # read for the routes: who does not write the history keeps no other
        self._web_inventory = Inventory(self._web_database)
        self._inventory_cache: AsyncCache[None, tuple[InventoryEntry, ...]] = AsyncCache()
        self._elsewhere = LoopBridge()
        self._reader = HistoryReader(
            period=settings.period,
            history=self._web_history.reader if self._web_history else None,
            archive=BridgedArchive(CloudWatchArchive(self._cloudwatch, series), self._elsewhere, self._budget)
            if self._cloudwatch and series
            else None,
            wanted_retention=settings.mongodb.retention,
        )
        self._lease = Lease(database, owner=outbox.owner, ttl=LEASE_SECONDS, monotonic=boottime)
        # An hour, because two clocks may differ by minutes and an insert takes seconds.
        old = BackfillRange(
            Lease(database, owner=outbox.owner, ttl=LEASE_SECONDS, name=BACKFILL, monotonic=boottime),
            settings.gap_fill_window - min(HOUR, settings.gap_fill_window // 2),
            now=lambda: self.collector.now(),
        )
        self._mirror = (
            Mirror(self._outbox, self._history.writer, self._lease, self.telemetry, old=old)
            if self._history is not None
            else None
        )
        self.collector = Collector(
            settings,
            Rules.from_settings(settings),
            self.telemetry,
            self._outbox,
            Aggregates(database, settings.mongodb.workers, settings.workers),
            self._cloudwatch,
            history=self._history.reader if self._history else None,
            inventory=self._inventory,
            lease=self._lease,
            series=series,
            budget=self._budget,
            on_ready=self._mirror.wake.set if self._mirror else lambda: None,
        )

    # -- the loops

    async def run(self) -> None:
        """Collect and mirror until cancelled, then let go of everything.

        Raises:
            IncompatibleStoreError: what is in MongoDB is not ours to use; better said at the start than logged for ever.
        """
        self._elsewhere.loop = asyncio.get_running_loop()
        try:
            await self.collector.restore()
            if self._history is not None:
                await self._prepare(self._history)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.collector.observe_forever(), name="observe")
                group.create_task(self.collector.ask_forever(), name="ask")
                group.create_task(self._freeze(), name="freeze")
                if self._mirror is not None:
                    group.create_task(self._mirror.run_forever(), name="mirror")
                    group.create_task(keep_renewed(self._lease, self._leadership_changed), name="lease")
        finally:
            self._elsewhere.loop = None
            with anyio.CancelScope(shield=True):
                await self._close()

    async def _freeze(self) -> None:
        await self.collector.asked.wait()
        freeze()

    async def _prepare(self, history: WorkerMetricsRepository) -> None:
        """Verify the collection and take the lease if it is free, so that the first observation counts."""
        try:
            await history.ensure_collection()
            await history.collection.save_gap_window(self.settings.gap_fill_window)
            await self._lease.acquire_or_renew()
        except IncompatibleStoreError:
            raise
        except StoreError as error:
            _log.warning("the history is not available yet; gauges go on, samples wait in the outbox", error=str(error))
        self.telemetry.leader.value = float(self._lease.held)
        _log.info("collecting", writes_history=self._lease.held)

    def _leadership_changed(self, held: bool) -> None:
        _log.info("lease acquired; this exporter writes the history" if held else "lease lost; this exporter does not write")
        if held:
            self.collector.lead()
        self.telemetry.leader.value = float(held)

    async def _close(self) -> None:
        """What is in the outbox stays there."""
        if self._history is not None and self._lease.held:
            try:
                await self._lease.release()
            except StoreError as error:
                _log.warning("the lease could not be released; it ends by itself", error=str(error))
        if self._cloudwatch is not None:
            await self._cloudwatch.close()
        await self.collector.keep_spent()
        await self._client.close()
        await asyncio.to_thread(self._outbox.close)

    async def close_web(self) -> None:
        """Let go of what the routes used."""
        await self._web_client.close()

    # -- what the routes ask

    @property
    def leader(self) -> bool:
        """Whether this exporter writes the history."""
        return self._history is not None and self._lease.held

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest worker block."""
        return self.collector.snapshot

    @property
    def exporter_metrics(self) -> ExporterMetrics:
        """The exporter's own metrics, at most `REFRESH_SECONDS` old."""
        return self.telemetry.rendered

    @property
    def ready(self) -> bool:
        """Whether the first observation was made, whatever came of it."""
        return self.collector.observed.is_set()

    def health(self) -> Mapping[str, str | None]:
        """The last error of each source, and of the history; None: it is fine."""
        health = dict(self.collector.healthy)
        if self._mirror is not None:
            health["history"] = self._mirror.problem
        return health

    def now(self) -> float:
        """The local clock."""
        return time.time()

    @property
    def reader(self) -> HistoryReader:
        """Who reads the history of single workers."""
        return self._reader

    @property
    def columns(self) -> SampleReader | None:
        """The samples of many workers, None where there is no history."""
        return self._web_history.reader if self._web_history else None

    @property
    def hourly(self) -> HourlyCache | None:
        """The same by the hour."""
        return self._hourly

    async def inventory(self) -> Sequence[InventoryEntry]:
        """Everything remembered of every worker, read again after a while: another exporter may be the one that writes it."""
        if self._history is None:
            return ()
        return await self._inventory_cache.get(None, self._load_inventory, INVENTORY_TTL_SECONDS)

    async def _load_inventory(self) -> tuple[InventoryEntry, ...]:
        # On the collector's loop, because no scrape should wait for 10,000 entries to be made.
        await self._elsewhere.run(self._all_remembered.load)
        return tuple(self._all_remembered.entries.values())

    async def remembered(self, worker_id: str) -> InventoryEntry | None:
        """What is remembered of one worker."""
        return None if self._history is None else await self._web_inventory.read(worker_id)

    async def latest(self, worker_ids: Collection[str]) -> Mapping[str, int]:
        """Start of the newest period the history has of each worker."""
        return await self._web_history.latest_timestamps(worker_ids) if self._web_history else {}


def freeze() -> None:
    """Keep the garbage collector off what is there for good (modules, boto's service models), and let it come less often.

    To look through all of it stops every thread for 80 to 110 ms, again and again, and scrapes with them. Of what a round makes
    little is a cycle: at the default thresholds it was searched for cycles, in vain, some 50 times a round.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 20)


def build(settings: Settings) -> Exporter:
    """Open the outbox and build everything around it; nothing runs yet.

    Raises:
        OutboxLocked, IncompatibleStoreError, StoreError, ConfigError: it cannot start; the sentence says what to do.
    """
    outbox = Outbox(settings.data_dir, settings.period)
    try:
        return Exporter(settings, outbox)
    except BaseException:
        outbox.close()
        raise
