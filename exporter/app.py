"""The composition root: builds the objects of one exporter from its settings, starts the loops, stops them."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import uvicorn
from anyio.from_thread import start_blocking_portal
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConfigurationError, InvalidURI

from exporter.core import logs
from exporter.core.budget import Budget
from exporter.core.errors import ConfigError, SourceError, StoreError, StoreMisfit, StoreUnavailable
from exporter.core.model import InventoryEntry, OwnMetrics, Snapshot, Worker
from exporter.core.periods import HOUR
from exporter.core.settings import Settings
from exporter.history.cloudwatch_archive import Archive
from exporter.history.hourly_cache import Hourly
from exporter.history.reader import Reader
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.collector import Collector
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.mirror import Mirror, Old
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.transactions import OutboxThread
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.storage.inventory import Inventory
from exporter.storage.lease import BACKFILL, Lease
from exporter.storage.repository import WorkerMetricsRepository
from exporter.storage.rows import Point
from exporter.web import webconfig
from exporter.web.routes import create_app

DEFAULT_DATABASE = "cml_cloud_manager"
LEASE_SECONDS = 30
REFRESH_SECONDS = 1
"""How old the exporter's own metrics may be when they are scraped. To render them takes longer than all the rest of a scrape,
and many times as long while a round keeps the interpreter busy."""
SWITCH_INTERVAL = 0.0002
"""Seconds. Scrapes are answered between the Python work of the rounds' threads, each of which may keep them waiting so long."""

KEEP_ALIVE = 330
"""Seconds an idle connection stays open: longer than Prometheus keeps one for its next question (5 minutes, IdleConnTimeout in
prometheus/common). Else it may ask at the moment we close, and as a remote read is a POST it does not ask again."""
INVENTORY_SECONDS = 10
"""How old the whole inventory may be when routes answer from it: to read 10,000 workers takes a tenth of a second."""

_log = logs.get("exporter")
T = TypeVar("T")


def awake() -> float:
    """Seconds that go on while the machine is suspended, unlike time.monotonic: a lease does not wait for us."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def rules_of(settings: Settings) -> Rules:
    """The part of the settings that the life of a sample depends on."""
    return Rules(
        period=settings.period,
        interval=settings.cloudwatch.interval,
        settle=settings.settle,
        give_up=settings.give_up,
        heal=settings.heal,
        max_age=settings.max_age,
        terminated_grace=settings.terminated_grace,
    )


def connect(settings: Settings) -> tuple[AsyncMongoClient[dict[str, Any]], AsyncDatabase[dict[str, Any]]]:
    """Make the MongoDB client and its database; nothing is sent yet.

    Raises:
        ConfigError: the connection string is malformed.
    """
    try:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            settings.mongodb_uri,
            tz_aware=True,
            serverSelectionTimeoutMS=5000,
            connectTimeoutMS=5000,
            appname="cml-worker-exporter",
        )
        return client, client.get_default_database(DEFAULT_DATABASE)
    except (InvalidURI, ConfigurationError, ValueError) as error:
        # The driver's sentence may repeat a part of the password, so it is not ours to print.
        raise ConfigError(
            f"mongodb.uri is not a MongoDB connection string ({type(error).__name__}); it looks like "
            "mongodb://user:password@host:27017/database, with / : @ and % in user and password written as %2F %3A %40 %25"
        ) from None


def repository(
    settings: Settings,
    database: AsyncDatabase[dict[str, Any]],
    collection: str,
    *,
    wall: Callable[[], float] = time.time,
) -> WorkerMetricsRepository:
    """The history as the settings want it; only a retention somebody wrote down is applied to an existing collection."""
    return WorkerMetricsRepository(
        database,
        collection=collection,
        period=settings.period,
        retention=settings.mongodb.retention,
        apply_retention="retention" in settings.mongodb.model_fields_set,
        wall=wall,
    )


def history_name(settings: Settings, to_do: str) -> str:
    """Return the collection of the history, for a command that has something `to_do` with it.

    Raises:
        ConfigError: the settings name none.
    """
    if settings.mongodb.history is None:
        raise ConfigError(f"mongodb.history is null, so there is no history to {to_do}; name the collection")
    return settings.mongodb.history


class _Elsewhere:
    """The loop that collects, for what the routes' loop wants of it."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """None before it runs, and once it ends."""

    async def run(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        """Call `function` there and return what it returns.

        Raises:
            StoreUnavailable: that loop does not run.
        """
        if self.loop is None:
            raise StoreUnavailable("the exporter is starting or stopping; ask again in a few seconds", reason="starting")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*arguments), self.loop))


class _ArchiveElsewhere:
    """The archive for the routes' loop: it shares CloudWatch, its pace and its budget with the rounds."""

    def __init__(self, archive: Archive, elsewhere: _Elsewhere, budget: Budget) -> None:
        self._archive, self._elsewhere, self._budget = archive, elsewhere, budget

    async def points(
        self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int, limit: int
    ) -> list[Point]:
        self._check_budget(worker)
        return await self._elsewhere.run(self._archive.points, worker, entry, start, end, resolution, limit)

    async def window(self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int) -> list[Point]:
        self._check_budget(worker)
        return await self._elsewhere.run(self._archive.window, worker, entry, start, end, resolution)

    def _check_budget(self, worker: Worker) -> None:
        if self._budget.spare <= 0:
            raise SourceError(
                "cloudwatch",
                "BudgetSpent",
                "what is left of cloudwatch.max_usd_per_day is kept for the running workers' gauges; ask again after 00:00 UTC",
                region=worker.region,
            )


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
        self._history = repository(settings, database, settings.mongodb.history) if settings.mongodb.history else None
        self._web_history = (
            repository(settings, self._web_database, settings.mongodb.history) if settings.mongodb.history else None
        )
        backfill = Lease(self._web_database, owner=outbox.owner, name=BACKFILL)
        self._hourly = Hourly(self._web_history, backfill.mark, heal=settings.heal) if self._web_history else None
        self._inventory = Inventory(database)
        self._all_remembered = Inventory(database)  # read for the routes: who does not write the history keeps no other
        self._web_inventory = Inventory(self._web_database)
        self._remembered: tuple[float, tuple[InventoryEntry, ...]] = (0, ())
        self._remembering = asyncio.Lock()
        self._elsewhere = _Elsewhere()
        self._reader = Reader(
            period=settings.period,
            history=self._web_history,
            archive=_ArchiveElsewhere(Archive(self._cloudwatch), self._elsewhere, self._budget) if self._cloudwatch else None,
            wanted_retention=settings.mongodb.retention,
        )
        self._lease = Lease(database, owner=outbox.owner, ttl=LEASE_SECONDS, monotonic=awake)
        # An hour, because two clocks may differ by minutes and an insert takes seconds.
        old = Old(
            Lease(database, owner=outbox.owner, ttl=LEASE_SECONDS, name=BACKFILL, monotonic=awake),
            settings.heal - min(HOUR, settings.heal // 2),
            now=lambda: self.collector.now(),
        )
        self._mirror = (
            Mirror(self._outbox, self._history, self._lease, self.telemetry, old=old) if self._history is not None else None
        )
        self.collector = Collector(
            settings,
            rules_of(settings),
            self.telemetry,
            self._outbox,
            Aggregates(database, settings.mongodb.workers, settings.workers),
            self._cloudwatch,
            history=self._history,
            inventory=self._inventory,
            lease=self._lease,
            budget=self._budget,
            on_ready=self._mirror.wake.set if self._mirror else lambda: None,
        )

    # -- the loops

    async def run(self) -> None:
        """Collect and mirror until cancelled, then let go of everything.

        Raises:
            StoreMisfit: what is in MongoDB is not ours to use; better said at the start than logged for ever.
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
                    group.create_task(self._keep_lease(), name="lease")
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
            await history.note_heal(self.settings.heal)
            await self._lease.acquire_or_renew()
        except StoreMisfit:
            raise
        except StoreError as error:
            _log.warning("the history is not available yet; gauges go on, samples wait in the outbox", error=str(error))
        self.telemetry.leader.value = float(self._lease.held)
        _log.info("collecting", writes_history=self._lease.held)

    async def _keep_lease(self) -> None:
        held, fence = self._lease.held, self._lease.fence
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            try:
                await self._lease.acquire_or_renew()
            except StoreError as error:
                _log.warning("the lease cannot be renewed", error=str(error))
            if (self._lease.held, self._lease.fence) != (held, fence):  # the fence tells of another writer in between
                held, fence = self._lease.held, self._lease.fence
                _log.info("this exporter writes the history" if held else "this exporter does not write the history")
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
    def own_metrics(self) -> OwnMetrics:
        """The exporter's own metrics, at most `REFRESH_SECONDS` old."""
        return self.telemetry.own

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
    def reader(self) -> Reader:
        """Who reads the history of single workers."""
        return self._reader

    @property
    def columns(self) -> WorkerMetricsRepository | None:
        """The samples of many workers, None where there is no history."""
        return self._web_history

    @property
    def hourly(self) -> Hourly | None:
        """The same by the hour."""
        return self._hourly

    async def inventory(self) -> Sequence[InventoryEntry]:
        """Everything remembered of every worker, read again after a while: another exporter may be the one that writes it."""
        if self._history is None:
            return ()
        async with self._remembering:
            if time.monotonic() >= self._remembered[0]:
                # Where the rounds run, because no scrape should wait for 10,000 entries to be made.
                await self._elsewhere.run(self._all_remembered.load)
                entries = tuple(self._all_remembered.entries.values())
                self._remembered = time.monotonic() + INVENTORY_SECONDS, entries
            return self._remembered[1]

    async def remembered(self, worker_id: str) -> InventoryEntry | None:
        """What is remembered of one worker."""
        return None if self._history is None else await self._web_inventory.read(worker_id)

    async def latest(self, worker_ids: Collection[str]) -> Mapping[str, int]:
        """Start of the newest period the history has of each worker."""
        return await self._web_history.latest_timestamps(worker_ids) if self._web_history else {}


# -- serving -----------------------------------------------------------------------------------------------------------


def bind(addresses: Sequence[str]) -> list[socket.socket]:
    """Listen on every host:port.

    Raises:
        ConfigError: an address is taken, or not this machine's.
    """
    sockets: list[socket.socket] = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            if host:
                sockets.append(socket.create_server((host, int(port)), family=_family(host), backlog=512))
            else:
                dual = socket.has_dualstack_ipv6()
                family = socket.AF_INET6 if dual else socket.AF_INET
                sockets.append(socket.create_server(("", int(port)), family=family, dualstack_ipv6=dual, backlog=512))
        except OSError as error:
            for other in sockets:
                other.close()
            raise ConfigError(
                f"web.listen_address: cannot listen on {address} ({os.strerror(error.errno) if error.errno else error}); "
                "stop what uses it, or choose another with --web.listen-address"
            ) from error
    return sockets


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`: uvicorn would raise them again before anything is closed."""
        yield


def freeze() -> None:
    """Keep the garbage collector off what is there for good (modules, boto's service models), and let it come less often.

    To look through all of it stops every thread for 80 to 110 ms, again and again, and scrapes with them. Of what a round makes
    little is a cycle: at the default thresholds it was searched for cycles, in vain, some 50 times a round.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 20)


async def refresh(telemetry: Telemetry) -> None:
    """Keep the exporter's own metrics rendered until cancelled."""
    while True:
        await asyncio.to_thread(telemetry.refresh)
        await asyncio.sleep(REFRESH_SECONDS)


@contextmanager
def collecting(exporter: Exporter) -> Iterator["Future[None]"]:
    """Run the exporter's loops in a thread of their own until the block is left; the future ends before only if they fail."""
    with start_blocking_portal() as portal:  # waits at the end until `run` has closed everything
        future = portal.start_task_soon(exporter.run)
        try:
            yield future
        finally:
            future.cancel()


def build(settings: Settings) -> Exporter:
    """Open the outbox and build everything around it; nothing runs yet.

    Raises:
        OutboxLocked, StoreMisfit, StoreError, ConfigError: it cannot start; the sentence says what to do.
    """
    outbox = Outbox(settings.data_dir, settings.period)
    try:
        return Exporter(settings, outbox)
    except BaseException:
        outbox.close()
        raise


async def serve(settings: Settings) -> int:
    """Run one exporter until SIGINT or SIGTERM; return the exit status.

    Raises:
        ExporterError: it cannot start, or cannot go on; the sentence says what to do.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    web = webconfig.load(settings.web.config_file) if settings.web.config_file else webconfig.WebConfig()
    sockets = bind(settings.web.listen_address)
    try:
        exporter = build(settings)
        routes = create_app(exporter, cors_origins=settings.web.cors_origins, users=web.users)
        config = uvicorn.Config(
            routes,
            log_config=None,
            lifespan="off",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=3,
            timeout_keep_alive=KEEP_ALIVE,
            **web.uvicorn_options(),
        )
        server, loop = _Server(config), asyncio.get_running_loop()

        def stop() -> None:
            server.should_exit = True

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        _log.info(
            "serving",
            addresses=",".join(f"{s.getsockname()[0]}:{s.getsockname()[1]}" for s in sockets),
            data_dir=str(settings.data_dir),
        )
        refreshing = asyncio.create_task(refresh(exporter.telemetry))
        with collecting(exporter) as future:
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(stop))
            await server.serve(sockets=sockets)
            refreshing.cancel()
            if future.done():
                future.result()  # raises what ended the loops
        await exporter.close_web()
        return 0
    finally:
        for listener in sockets:
            with contextlib.suppress(OSError):
                listener.close()
