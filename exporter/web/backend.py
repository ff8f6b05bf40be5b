"""What the HTTP routes query: state of the collector, history, inventory; and the bridge to the collector's event loop."""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from exporter.core.async_cache import AsyncCache
from exporter.core.condition import Condition
from exporter.core.errors import StoreUnavailableError
from exporter.core.liveness import Liveness
from exporter.core.model import ExporterMetrics, Fleet, InventoryEntry, Snapshot, Worker
from exporter.core.shards import WorkerKey
from exporter.history.cloudwatch_archive import CloudWatchArchive
from exporter.history.points import Point
from exporter.history.reader import HistoryReader
from exporter.history.series import BlockSource, ColumnSource
from exporter.history.trends import HourSource, TrendReader

T = TypeVar("T")
EXPORTER_METRICS_SECONDS = 2
"""Age of the exporter metrics at a scrape, at most. `commands.serve` renders them twice as often while the process is busy."""
INVENTORY_TTL_SECONDS = 10
"""Maximum age of the whole inventory in a response, in seconds: reading 10,000 workers takes a tenth of a second."""


class CollectorState(Protocol):
    """What the backend reads of the collector, from another thread."""

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest worker block; None before the first collection cycle."""

    @property
    def observed(self) -> asyncio.Event:
        """Set by the first attempt to read the worker documents, also by a failed one."""

    @property
    def fleet(self) -> Fleet:
        """The last complete read of the worker documents."""

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """Source ("mongodb", "cloudwatch eu-west-1") → its last error, no error after a successful read; and since when."""


class RenderedMetrics(Protocol):
    """Exporter metrics, rendered ahead of the scrape while the process is busy."""

    def rendered(self, max_age: float) -> ExporterMetrics:
        """Return the exporter metrics as of at most `max_age` seconds ago."""


class MirrorState(Protocol):
    """What the backend reads of the mirror, from another thread."""

    @property
    def condition(self) -> Condition:
        """The last error, no error after a success; and since when."""


class ForwardingState(Protocol):
    """What the backend reads of the targets of `history.forward`, from another thread."""

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """Return "forward NAME" → its last error, no error after a success; and since when."""


class HourlyAggregates(BlockSource, HourSource, Protocol):
    """Hourly aggregates of many workers: see `HourlyCache`."""

    async def marker(self) -> str | None:
        """Return a text that changes when old samples are written; None while they may be. Raises StoreError."""


class SampleHistory(ColumnSource, Protocol):
    """Samples of many workers."""

    async def latest_timestamps(self, worker_ids: Collection[str]) -> Mapping[str, int]:
        """Return worker id → start of its newest period, UTC seconds, for the workers that have samples; raises StoreError."""


class InventoryReader(Protocol):
    """Single entries of the inventory."""

    async def read(self, worker_id: str) -> InventoryEntry | None:
        """Return the entry of one worker; raises StoreError."""


class InventoryLoader(Protocol):
    """The whole inventory."""

    @property
    def entries(self) -> Mapping[str, InventoryEntry]:
        """Worker id → entry, as of the last `load`."""

    async def load(self) -> None:
        """Read all entries; raises StoreError."""


class Closable(Protocol):
    """A client of MongoDB."""

    async def close(self) -> None:
        """Close its connections."""


class LoopBridge:
    """Runs coroutines on the collector's event loop on behalf of the web server."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """The collector's loop; None before it starts and once it ends."""

    async def run(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        """Call `function` on the collector's loop and return its result.

        Raises:
            StoreUnavailableError: the collector's loop does not run.
            Exception: whatever `function` raises.
        """
        if self.loop is None:
            raise StoreUnavailableError("the exporter is starting or stopping; try again in a few seconds", reason="starting")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*arguments), self.loop))

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """The same for a function that is no coroutine."""

        async def run() -> T:
            return function(*arguments)

        return await self.run(run)


class BridgedArchive:
    """The CloudWatch archive, called from the web server's loop. Connections and rate limit are those of the poller."""

    def __init__(self, archive: CloudWatchArchive, bridge: LoopBridge) -> None:
        self._archive, self._bridge = archive, bridge

    async def points(
        self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int, limit: int
    ) -> list[Point]:
        """Run CloudWatchArchive.points on the collector's loop; raises SourceError, such as ReaderBudgetError."""
        return await self._bridge.run(self._archive.points, worker, entry, start, end, resolution, limit)

    async def window(self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int) -> list[Point]:
        """Run CloudWatchArchive.window on the collector's loop; raises SourceError, such as ReaderBudgetError."""
        return await self._bridge.run(self._archive.window, worker, entry, start, end, resolution)


class Backend:
    """What the HTTP routes query. Belongs to the web server's event loop.

    Args:
        period: seconds between two samples of a worker.
        collector: supplies the snapshot, readiness and the errors of the sources.
        telemetry: supplies the rendered exporter metrics.
        reader: the history of single workers.
        bridge: leads to the collector's event loop.
        client: the MongoDB client of this event loop; `close` closes it.
        mirror: supplies the last error of the history.
        forwarding: supplies the last error of each database that gets copies.
        history: samples of many workers; None if `mongodb.history` is null, and so are the following.
        hourly: hourly aggregates of many workers.
        inventory: reads single entries, on this event loop.
        fleet_inventory: reads the whole inventory, on the collector's event loop: no scrape should wait for 10,000 entries.
        hourly_price: instance type → US dollars per hour.
        liveness: knows which loops make progress.
        public: see the attribute.
        wall: UTC seconds.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(
        self,
        *,
        period: int,
        collector: CollectorState,
        telemetry: RenderedMetrics,
        reader: HistoryReader,
        bridge: LoopBridge,
        client: Closable,
        mirror: MirrorState | None = None,
        forwarding: ForwardingState | None = None,
        history: SampleHistory | None = None,
        hourly: HourlyAggregates | None = None,
        inventory: InventoryReader | None = None,
        fleet_inventory: InventoryLoader | None = None,
        hourly_price: Mapping[str, float] | None = None,
        liveness: Liveness | None = None,
        public: Callable[[str], str] = str,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.period = period
        self.public = public
        """Returns an error's text without what HTTP clients must not learn: where MongoDB is."""
        self.reader = reader
        self.hourly = hourly
        self.trends = TrendReader(hourly, wall, monotonic) if hourly else None
        """The figures of the fleet; None where no history is kept."""
        self.hourly_price: Mapping[str, float] = hourly_price or {}
        self._collector, self._telemetry, self._mirror = collector, telemetry, mirror
        self._bridge, self._client, self._forwarding = bridge, client, forwarding
        self._history = history
        self._inventory, self._fleet_inventory = inventory, fleet_inventory
        self._liveness = liveness or Liveness(monotonic)
        self._wall = wall
        self._entries: AsyncCache[None, tuple[InventoryEntry, ...]] = AsyncCache(monotonic=monotonic)

    @property
    def columns(self) -> ColumnSource | None:
        """The samples of many workers; None where no history is kept."""
        return self._history

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest worker block; None before the first collection cycle."""
        return self._collector.snapshot

    def exporter_metrics(self) -> ExporterMetrics:
        """Return the exporter metrics as of at most `EXPORTER_METRICS_SECONDS` ago."""
        return self._telemetry.rendered(EXPORTER_METRICS_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether the exporter has tried to read the worker documents once."""
        return self._collector.observed.is_set()

    @property
    def worker_collection(self) -> str:
        """Return database.collection of the worker documents; empty before the first read."""
        return self._collector.fleet.namespace

    def is_elsewhere(self, entry: InventoryEntry) -> bool:
        """Return whether another exporter of the fleet has, or had, the worker, so that this one does not know how it is."""
        fleet = self._collector.fleet
        return entry.worker_id in fleet.elsewhere or not fleet.part.has(
            WorkerKey(entry.worker_id, entry.region, entry.name or "")
        )

    def health(self) -> Mapping[str, str | None]:
        """Return part ("mongodb", "cloudwatch eu-west-1", "outbox", "history") → its last error, None after a success.

        "gauges" is listed while the worker block is too old for /metrics, because the collecting loops hang.
        """
        return {part: condition.error for part, condition in self.conditions().items()}

    def conditions(self) -> Mapping[str, Condition]:
        """Return the parts of `health` with the time since which each has failed, or worked."""
        conditions = dict(self._collector.conditions)
        snapshot = self._collector.snapshot
        if snapshot is not None and self._wall() > snapshot.fresh_until:
            problem = "no collection cycle has ended within max_age, so /metrics has no workers; restart the exporter"
            conditions["gauges"] = Condition(problem, int(snapshot.fresh_until))
        if self._mirror is not None:
            conditions["history"] = self._mirror.condition
        if self._forwarding is not None:
            conditions |= self._forwarding.conditions
        return {part: one._replace(error=one.error and self.public(one.error)) for part, one in conditions.items()}

    def dead_loops(self) -> list[str]:
        """Return a phrase for each loop of the exporter that hangs; asks no loop."""
        return self._liveness.dead()

    def now(self) -> float:
        """Return the local clock's UTC seconds."""
        return self._wall()

    async def inventory(self) -> Sequence[InventoryEntry]:
        """Return all entries of the inventory, at most `INVENTORY_TTL_SECONDS` old; empty where no history is kept.

        Raises:
            StoreError: MongoDB does not answer, or the collector's loop does not run.
        """
        if self._fleet_inventory is None:
            return ()
        source = self._fleet_inventory

        async def load() -> tuple[InventoryEntry, ...]:
            await self._bridge.run(source.load)
            return tuple(source.entries.values())

        return await self._entries.get(None, load, INVENTORY_TTL_SECONDS)

    async def remembered(self, worker_id: str) -> InventoryEntry | None:
        """Return the inventory's entry of one worker, None where there is none; raises StoreError."""
        return None if self._inventory is None else await self._inventory.read(worker_id)

    async def latest(self, worker_ids: Collection[str]) -> Mapping[str, int]:
        """Return worker id → start of its newest period in the history, UTC seconds; raises StoreError."""
        return {} if self._history is None else await self._history.latest_timestamps(worker_ids)

    async def close(self) -> None:
        """Close the connections to MongoDB."""
        await self._client.close()
