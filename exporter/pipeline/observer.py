"""Read the worker documents (the manager's aggregates) after each period and open the closed periods in the outbox."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from exporter.core import logs
from exporter.core.clock import ServerClock, check_skew
from exporter.core.errors import SourceError, StoreError
from exporter.core.model import Fleet, InventoryEntry
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.lifecycle import Rules, WorkerState
from exporter.pipeline.outbox import OutboxThread
from exporter.pipeline.publisher import Publisher
from exporter.pipeline.source_health import SourceHealth
from exporter.pipeline.transactions import open_gaps, open_periods
from exporter.sources.protocols import FleetSource

OBSERVE_OFFSET_SECONDS = 12
"""Seconds after a period's end: the manager has written, and a server clock slightly behind has passed the end too."""
GAP_CHUNK_WORKERS = 500
"""Workers whose gaps are searched for at once: a day of their samples fits easily into memory."""

_log = logs.get("collector")


class SampleTimes(Protocol):
    """The history, as the observer needs it."""

    async def timestamps(self, worker_ids: Collection[str], since: int) -> dict[str, set[int]]:
        """Return the starts of the periods since `since` (UTC seconds) that the history has, by worker id.

        Raises:
            StoreError: the history cannot be read.
        """


class InventoryStore(Protocol):
    """The permanent record of every worker."""

    @property
    def entries(self) -> Mapping[str, InventoryEntry]:
        """The entries by worker id, as loaded and recorded."""

    async def load(self) -> None:
        """Read every entry.

        Raises:
            StoreError: the inventory cannot be read.
        """

    async def record(self, fleet: Fleet) -> None:
        """Write what a read of the worker documents changed.

        Raises:
            StoreError: the inventory cannot be written.
        """


class Leadership(Protocol):
    """The lease of the process that writes the history."""

    @property
    def held(self) -> bool:
        """Whether this process may open and mirror samples."""


@dataclass(frozen=True, slots=True)
class HistoryAccess:
    """What only the process that writes the history needs."""

    times: SampleTimes
    inventory: InventoryStore
    lease: Leadership


class Observer:
    """The newest fleet, read from MongoDB; its periods are opened in the outbox while this process leads.

    Args:
        source: reads the worker documents.
        clock: synchronized with each read.
        rules: the settings of the sample lifecycle.
        outbox: where periods are opened.
        publisher: shows the fleet.
        health: records each read.
        telemetry: shows skipped documents and the outbox.
        history: None without a history; then only gauges are kept up to date.
        on_ready: called when samples may be ready for the mirror.
        wall: UTC seconds of this host.
    """

    def __init__(
        self,
        source: FleetSource,
        clock: ServerClock,
        rules: Rules,
        outbox: OutboxThread,
        publisher: Publisher,
        health: SourceHealth,
        telemetry: Telemetry,
        history: HistoryAccess | None,
        on_ready: Callable[[], object],
        wall: Callable[[], float],
    ) -> None:
        self._source = source
        self._clock = clock
        self._rules = rules
        self._outbox = outbox
        self._publisher = publisher
        self._health = health
        self._telemetry = telemetry
        self._history = history
        self._on_ready = on_ready
        self._wall = wall
        self._terminated_seen: dict[str, int] = {}
        self._complaints: set[str] = set()
        self._gaps_opened: set[tuple[str, bool]] = set()
        """(worker id, whether it had a region) of the workers whose gaps were searched for."""
        self._inventory_loaded = False

    async def restore(self) -> None:
        """Start with the fleet of the last run, in case MongoDB is unavailable.

        Raises:
            StoreError: the outbox cannot be read.
        """
        date, workers, terminated_seen = await self._outbox(self._outbox.outbox.last_fleet)
        self._use(Fleet(date, workers), terminated_seen)

    def reload(self) -> None:
        """Read the inventory and the history again at the next observation: another process may have written until now."""
        self._gaps_opened.clear()
        self._inventory_loaded = False

    async def observe(self) -> None:
        """Read the fleet completely, open the periods that have closed, search for gaps, and publish.

        Raises:
            StoreError: the outbox cannot be written. A failed read of the worker documents is recorded, not raised.
        """
        began = self._wall()
        try:
            fleet = await self._source.read()
            check_skew("mongodb", fleet.date, (began + self._wall()) / 2)
        except SourceError as error:
            self._health.failed(error, began)
        else:
            self._health.succeeded("mongodb", "", began)
            await self._accept(fleet)
        finally:
            self._publisher.mark_observed()
            await self._publisher.publish()

    def _use(self, fleet: Fleet, terminated_seen: dict[str, int]) -> None:
        self._terminated_seen = terminated_seen
        self._publisher.update_fleet(fleet, terminated_seen)

    async def _accept(self, fleet: Fleet) -> None:
        self._clock.synchronize(fleet.date)
        terminated = {worker.id for worker in fleet.workers if worker.status == "terminated"}
        self._use(fleet, {id_: self._terminated_seen.get(id_, fleet.date) for id_ in terminated})
        fleet = self._publisher.fleet  # with the accounts
        self._telemetry.workers_skipped.clear()
        for reason, count in fleet.skipped.items():
            self._telemetry.workers_skipped.labels(reason).set(count)
        for complaint in sorted(set(fleet.complaints) - self._complaints):
            _log.warning("malformed worker document", problem=complaint)
        self._complaints = set(fleet.complaints)
        await self._open_periods(fleet)
        await self._outbox(self._outbox.outbox.keep_fleet, fleet.workers, fleet.date, self._terminated_seen)

    async def _open_periods(self, fleet: Fleet) -> None:
        """Open closed periods and gaps, which only the leader may do."""
        history = self._history
        if history is None or not history.lease.held:
            return
        entries = await self._load_inventory(history.inventory)
        opened, states = await self._outbox(open_periods, self._outbox.outbox, fleet, entries, self._rules)
        try:
            await history.inventory.record(fleet)  # after `initial_state` has used the entries as they were before
        except StoreError as error:
            _log.error("cannot write the inventory; retried with the next observation", error=str(error))
        if entries is not None:
            opened += await self._open_gaps(history.times, fleet, states, entries)
        self._on_ready()
        await self._outbox.export_gauges(self._telemetry)
        _log.info(
            "worker documents read",
            collection=fleet.namespace,
            workers=len(fleet.workers),
            opened=opened,
            **fleet.skipped,
        )

    async def _load_inventory(self, inventory: InventoryStore) -> Mapping[str, InventoryEntry] | None:
        """Return the inventory before this observation; None while it cannot be read."""
        if not self._inventory_loaded:
            try:
                await inventory.load()
            except StoreError as error:
                _log.error("cannot read the inventory; new workers are postponed", error=str(error))
                return None
            self._inventory_loaded = True
        return inventory.entries

    async def _open_gaps(
        self,
        times: SampleTimes,
        fleet: Fleet,
        states: Mapping[str, WorkerState],
        entries: Mapping[str, InventoryEntry],
    ) -> int:
        """Open the gaps of each worker once per process, as soon as the history can be read (rule 3); return how many.

        Those of a worker that was read without a region are searched for again when it has one: then its instance is known.
        """
        present = {worker.id for worker in fleet.workers}  # one that left may have been forgotten when it returns
        self._gaps_opened = {key for key in self._gaps_opened if key[0] in present}
        workers = [worker for worker in fleet.workers if (worker.id, bool(worker.region)) not in self._gaps_opened]
        since = fleet.date - self._rules.gap_fill_window - self._rules.period
        opened = 0
        for first in range(0, len(workers), GAP_CHUNK_WORKERS):
            chunk = workers[first : first + GAP_CHUNK_WORKERS]
            try:
                existing = await times.timestamps([worker.id for worker in chunk], since)
            except StoreError as error:
                _log.error("cannot read history; gap detection postponed", error=str(error))
                break
            opened += await self._outbox(
                open_gaps, self._outbox.outbox, chunk, states, entries, existing, fleet.date, self._rules
            )
            self._gaps_opened |= {(worker.id, bool(worker.region)) for worker in chunk}
        return opened
