"""The composition root: builds the objects of one exporter from its settings, starts its loops and stops them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import anyio
from prometheus_client import CollectorRegistry

from exporter.core import logs
from exporter.core.budget import Budget, ReaderBudget
from exporter.core.errors import StoreError
from exporter.core.heap import freeze
from exporter.core.history_settings import HistorySettings
from exporter.core.liveness import MIN_INTERVAL_SECONDS, Liveness
from exporter.core.otlp_settings import OtlpSettings
from exporter.core.periods import HOUR
from exporter.core.revision import revision
from exporter.core.settings import Settings
from exporter.core.shards import Part
from exporter.forwarding.forwarding import Forwarding
from exporter.forwarding.worker_labels import WorkerLabels
from exporter.history.cloudwatch_archive import CloudWatchArchive
from exporter.history.hourly_cache import HourlyCache
from exporter.history.reader import HistoryReader
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.collector import Collector
from exporter.pipeline.duplicate_search import search_forever
from exporter.pipeline.handover import Handover
from exporter.pipeline.history_watch import HistoryWatch
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.loop_group import LoopGroup
from exporter.pipeline.mirror import BackfillRange, Mirror
from exporter.pipeline.outbox import SPENT_BY_READERS, Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CALL_SECONDS, CloudWatch
from exporter.sources.cloudwatch.extra_series import ExtraSeries
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.storage.credential_rotation import rotation_of
from exporter.storage.duplicates import count_duplicates
from exporter.storage.handover import HandedWorkers
from exporter.storage.history_marker import HistoryMarker
from exporter.storage.inventory import Inventory
from exporter.storage.layout import Layout
from exporter.storage.lease import BACKFILL, LEASE_SECONDS, Lease
from exporter.storage.lease_keeper import LeaseKeeper
from exporter.storage.mongo import Database, connect, read_preference, without_hosts
from exporter.storage.repository import WorkerMetricsRepository, repository
from exporter.storage.sample_reader import SampleReader
from exporter.storage.snapshot_store import SnapshotStore
from exporter.web.backend import Backend, BridgedArchive, LoopBridge
from exporter.web.lookup import is_fresh

_log = logs.get("exporter")
BEAT_INTERVAL_SECONDS = 30
"""Interval of the sign of life of the collector's event loop: a loop that is blocked for three of them counts as hung."""

RELEASE_SECONDS = 2.0
"""How long the release of the lease may delay the end of the process; MongoDB may hang."""


class Exporter:
    """One exporter process: the loops that collect and mirror, and the backend of its HTTP routes.

    It uses two event loops, each in a thread of its own: `run` collects in one, the web server answers in the other. A
    collection cycle of a large fleet is hundreds of milliseconds of Python, and no scrape should wait for it.
    """

    def __init__(self, settings: Settings, outbox: Outbox) -> None:
        self.settings = settings
        self.liveness = Liveness()
        """Which loops make progress."""
        self.telemetry = Telemetry(CollectorRegistry(), revision=revision())
        self._outbox = OutboxThread(outbox, self.telemetry)
        self._client, database = connect(settings)
        if rotation := rotation_of(self._client):
            rotation.on_change = self._credentials_changed
        day, spent = outbox.spent()
        self._budget = Budget(settings.cloudwatch.max_usd_per_day, day=day, spent=spent)
        day, spent = outbox.spent(SPENT_BY_READERS)
        self._readers = ReaderBudget(self._budget, settings.cloudwatch.reader_budget_share, day=day, spent=spent)
        self.telemetry.show_budget(self._budget, "ok")
        self._cloudwatch = None
        if settings.cloudwatch.enabled:
            # A call that ends within its interval shows a CloudWatch that never answers before the next cycle is due.
            deadline = min(CALL_SECONDS, settings.cloudwatch.interval * 3 / 4)
            self._cloudwatch = CloudWatch(settings, self.telemetry, budget=self._budget, deadline=deadline)
        self._series = MemorySeriesIndex(self._cloudwatch) if self._cloudwatch else None
        self._extra = None
        if self._cloudwatch and self._series and settings.cloudwatch.extra:
            list_metric = partial(self._cloudwatch.list_metric, recent=True)
            self._extra = ExtraSeries(settings.cloudwatch.extra, list_metric, account_of=self._series.account_of)
        self._history = repository(settings, database, settings.mongodb.history) if settings.mongodb.history else None
        shares = self._history is not None and settings.cloudwatch.enabled and settings.cloudwatch.standby == "snapshot"
        part = self._part = settings.workers.part
        self._lease = _lease(database, outbox, part, self._layout_changed, announces=shares)
        self._forwarding = Forwarding(self._outbox, WorkerLabels(Inventory(database)), self.telemetry)
        self._forwarding.use(settings.history)
        self._mirror = self._build_mirror(database, self._history, outbox) if self._history is not None else None
        self._aggregates = Aggregates(database, settings.mongodb.worker_collections, settings.workers, part)
        self._keeper = self._build_keeper(self._history) if self._history is not None else None
        wake = self._mirror.wake.set if self._mirror else lambda: None
        self.telemetry.show_shard(part.shard, collects=True)
        self.collector = Collector(
            settings,
            Rules.from_settings(settings),
            self.telemetry,
            self._outbox,
            self._aggregates,
            self._cloudwatch,
            history=self._history.reader if self._history else None,
            inventory=Inventory(database),
            lease=self._lease,
            series=self._series,
            budget=self._budget,
            extra_series=self._extra,
            readers=self._readers,
            snapshots=SnapshotStore(database, self._lease.id) if shares else None,
            on_ready=wake,
            liveness=self.liveness,
        )
        self._handover = Handover(HandedWorkers(database), self._lease, self._outbox, wake)
        self._bridge = LoopBridge()
        self.backend = self._build_backend(database, outbox.owner)
        """What the HTTP routes query; its owner closes it once the web server has stopped."""

    def _build_mirror(self, database: Database, history: WorkerMetricsRepository, outbox: Outbox) -> Mirror:
        window = self.settings.gap_fill_window
        backfill = BackfillRange(
            Lease(database, owner=outbox.owner, folder=outbox.folder, ttl=LEASE_SECONDS, name=BACKFILL),
            window - min(HOUR, window // 2),  # an hour less: two clocks may differ by minutes, and an insert takes seconds
            now=lambda: self.collector.now(),
        )
        watch = HistoryWatch(
            HistoryMarker(history.collection, self._part.own_name),
            self._outbox,
            self.telemetry,
            on_replaced=lambda: self.collector.lead(),
        )
        queued = self._forwarding.mirrored
        return Mirror(self._outbox, history.writer, self._lease, self.telemetry, old=backfill, watch=watch, on_mirrored=queued)

    def _build_keeper(self, history: WorkerMetricsRepository) -> LeaseKeeper:
        documents = self._aggregates
        return LeaseKeeper(history, self._lease, documents.any_document, lambda: documents.namespace, self._leadership_changed)

    def _build_backend(self, database: Database, owner: str) -> Backend:
        settings, name = self.settings, self.settings.mongodb.history
        client, web_database = connect(settings)  # a client belongs to one event loop
        self._web_client = client
        repo = repository(settings, web_database, name) if name else None
        # Hourly aggregates are kept, so a secondary that is behind must not be their source.
        history = SampleReader(repo.collection, read_preference(settings)) if repo else None
        old = Lease(web_database, owner=owner, name=BACKFILL)
        archive = (
            BridgedArchive(
                CloudWatchArchive(
                    partial(self._cloudwatch.get_metric_data, readers=self._readers),
                    self._series,
                    memory_dimension=settings.cloudwatch.memory.dimension,
                ),
                self._bridge,
            )
            if self._cloudwatch and self._series
            else None
        )
        return Backend(
            period=settings.period,
            collector=self.collector,
            telemetry=self.telemetry,
            reader=HistoryReader(
                period=settings.period,
                history=history,
                archive=archive,
                wanted_retention=settings.mongodb.retention,
                max_age=settings.max_age,
            ),
            bridge=self._bridge,
            client=client,
            mirror=self._mirror,
            public=lambda text: without_hosts(without_hosts(text, client), self._client),
            forwarding=self._forwarding,
            history=history,
            hourly=HourlyCache(
                repo.reader,
                partial(_change_marker, old, HistoryMarker(repo.collection)),
                gap_fill_window=settings.gap_fill_window,
            )
            if repo
            else None,
            inventory=Inventory(web_database) if history else None,
            fleet_inventory=Inventory(database) if history else None,
            hourly_price=settings.workers.hourly_price,
            liveness=self.liveness,
        )

    # -- the loops

    async def run(self) -> None:
        """Collect and mirror until cancelled, then release all resources.

        Raises:
            IncompatibleStoreError: a collection in MongoDB is incompatible; the process ends, since retrying cannot help.
        """
        self._bridge.loop = asyncio.get_running_loop()
        try:
            await self.collector.restore()
            if self._keeper is not None and self._history is not None:
                self._history.collection.gap_fill_window = self.settings.gap_fill_window
                await self._keeper.prepare(waits_for_credentials=self.settings.mongodb.uri_file is not None)
                self.telemetry.leader.value = float(self._lease.held)
                _log.info("collecting", writes_history=self._lease.held)
            async with LoopGroup() as group:
                group.create_task(self.collector.observe_forever(), name="observe")
                group.create_task(self.collector.poll_forever(), name="poll")
                group.create_task(self.collector.open_gaps_forever(), name="gaps")
                if self.collector.shared is not None:
                    beat = self.liveness.expect("sharing the snapshot", MIN_INTERVAL_SECONDS)
                    group.create_task(self.collector.shared.run_forever(beat), name="share")
                group.create_task(self.collector.watch_forever(self._aggregates.ping), name="watch")
                group.create_task(self._freeze(), name="freeze")
                if self.settings.otlp.endpoint is not None:
                    pushing = push_forever(self.settings.otlp, self.backend, self._outbox.outbox.owner, self.telemetry)
                    group.create_task(pushing, name="otlp")
                group.create_task(beat_forever(self.liveness), name="beat")
                group.create_task(self._forwarding.run_forever(), name="forward")
                if self._mirror is not None and self._history is not None and self._keeper is not None:
                    self._mirror.beat = self.liveness.expect("mirroring", MIN_INTERVAL_SECONDS)
                    group.create_task(self._mirror.run_forever(), name="mirror")
                    beat = self.liveness.expect("the renewal of the lease", LEASE_SECONDS)
                    group.create_task(self._keeper.keep_forever(beat), name="lease")
                    beat = self.liveness.expect("handing over workers", MIN_INTERVAL_SECONDS)
                    group.create_task(self._handover.run_forever(self.collector, beat), name="handover")
                    if self._part.shard.index == 0:  # the whole history is searched, which one exporter does for all
                        count = partial(count_duplicates, self._history.collection)
                        searching = search_forever(count, self._lease, self._mirror, self.telemetry, self.collector.now)
                        group.create_task(searching, name="duplicates")
        finally:
            self._bridge.loop = None
            with anyio.CancelScope(shield=True):
                await self._close()

    async def _freeze(self) -> None:
        await self.collector.polled.wait()
        freeze()

    # -- a reload, from the web server's loop

    async def refresh_credentials(self) -> bool:
        """Use the user and password that `mongodb.uri_file` has now, in every client; return whether they are new.

        Raises:
            ConfigError: the file is not usable; nothing has changed.
            StoreUnavailableError: the collector's loop does not run.
        """
        ours, theirs = rotation_of(self._client), rotation_of(self._web_client)
        if ours is None or theirs is None:
            return False
        changed = await self._bridge.run(ours.refresh)
        return await theirs.refresh() or changed

    async def forward(self, settings: HistorySettings) -> None:
        """Forward to these targets from now on; raises ConfigError, or StoreUnavailableError where the loop does not run."""
        await self._bridge.call(self._forwarding.use, settings)

    def limit_cost(self, max_usd_per_day: float | None) -> None:
        """Set the daily budget for CloudWatch; the next collection cycle shows it."""
        self._budget.limit(max_usd_per_day)

    def _credentials_changed(self) -> None:
        """Read the worker documents now: until the next tick the gauges would lack what changed during the refusal."""
        self.collector.reobserve.set()
        if self._mirror is not None:
            self._mirror.wake.set()

    def _layout_changed(self, in_force: bool) -> None:
        """Collect this exporter's part of the fleet, or nothing and hand everything over, from a new read of the fleet on."""
        self._aggregates.part = replace(self._part, idle=not in_force)
        self.telemetry.show_shard(self._part.shard, collects=in_force)
        self.collector.reobserve.set()

    def _leadership_changed(self, held: bool) -> None:
        _log.info("lease acquired; this exporter writes the history" if held else "lease lost; this exporter does not write")
        if held:
            self.collector.lead()
        self.telemetry.leader.value = float(held)

    async def _close(self) -> None:
        """Release the lease, save the spent budget and close all connections; the outbox keeps its samples."""
        await self.collector.keep_spent()
        if self._history is not None and self._lease.held:
            try:
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._lease.release()
            except (StoreError, TimeoutError) as error:
                _log.warning("lease not released; it expires by itself", error=str(error) or "MongoDB does not answer")
        if self._cloudwatch is not None:
            await self._cloudwatch.close()
        await self._client.close()
        await asyncio.to_thread(self._outbox.close)


def _lease(
    database: Database, outbox: Outbox, part: Part, on_layout_change: Callable[[bool], object], *, announces: bool
) -> Lease:
    layout = Layout(database, part, folder=outbox.folder, on_change=on_layout_change)
    return Lease(
        database,
        owner=outbox.owner,
        folder=outbox.folder,
        ttl=LEASE_SECONDS,
        part=part.own_name,
        allowed=layout.check,
        announces=announces,
    )


async def beat_forever(liveness: Liveness) -> None:
    """Show that the event loop itself is not blocked."""
    beat = liveness.expect("the collector's event loop", BEAT_INTERVAL_SECONDS)
    while True:
        beat()
        await asyncio.sleep(BEAT_INTERVAL_SECONDS / 3)


async def push_forever(settings: OtlpSettings, backend: Backend, owner: str, telemetry: Telemetry) -> None:
    """Push to the OpenTelemetry collector what a scrape would show."""
    from exporter.otlp.push import OtlpPush  # an extra

    def texts() -> Sequence[bytes]:
        snapshot = backend.snapshot
        shown = [snapshot.body] if snapshot is not None and is_fresh(backend, snapshot) else []
        return [*shown, backend.exporter_metrics().text]

    assert settings.endpoint is not None
    await OtlpPush(settings.endpoint, settings.interval, owner, texts, telemetry).run_forever()


async def _change_marker(old: Lease, marker: HistoryMarker) -> str | None:
    """Return a text that changes when old samples are written, or the history is replaced; None while they may be written."""
    text = await old.change_marker()
    return None if text is None else f"{text} {await marker.generation()}"


def build(settings: Settings) -> Exporter:
    """Return an exporter with an open outbox; its loops do not run yet.

    Raises:
        OutboxLockedError, IncompatibleStoreError, StoreError, ConfigError: it cannot start; the message says what to do.
    """
    outbox = Outbox(settings.data_dir, settings.period)
    try:
        return Exporter(settings, outbox)
    except BaseException:
        outbox.close()
        raise
