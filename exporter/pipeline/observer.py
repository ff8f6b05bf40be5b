"""Read the worker documents (the manager's aggregates) after each period and open the closed periods in the outbox."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from exporter.core import logs
from exporter.core.clock import ServerClock, check_skew
from exporter.core.errors import SourceError, StoreError
from exporter.core.model import Fleet, InventoryEntry
from exporter.core.shards import Part
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.fleet_store import FleetStore
from exporter.pipeline.gap_filling import GapFilling, Leadership
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.outbox_file import DAMAGED
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.pipeline.publisher import Publisher
from exporter.pipeline.source_health import SourceHealth
from exporter.pipeline.transactions import open_periods, open_piece
from exporter.sources.protocols import FleetSource

OBSERVE_OFFSET_SECONDS = 12
"""Seconds after a period's end: the manager has written, and a server clock slightly behind has passed the end too."""

_log = logs.get("collector")


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

    def note(self, fleet: Fleet) -> None:
        """Apply a read of the worker documents to the entries, to be written with the next `record`."""

    async def record(self, fleet: Fleet) -> None:
        """Write what a read of the worker documents changed.

        Raises:
            StoreError: the inventory cannot be written.
        """


@dataclass(frozen=True, slots=True)
class HistoryAccess:
    """What only a process that may write the history needs."""

    inventory: InventoryStore
    lease: Leadership
    gaps: GapFilling

    @property
    def may_open(self) -> bool:
        """Whether periods are opened: unless another process is known to write the history (rule 14).

        Where MongoDB can be read but not written, nobody can renew the lease. The outbox takes the samples all the same, and
        the mirror reads back before it inserts: what another exporter has written meanwhile is not written again.
        """
        return self.lease.held or not self.lease.held_elsewhere


class Observer:
    """The newest fleet, read from MongoDB; its periods are opened in the outbox unless another process writes the history.

    Args:
        source: reads the worker documents.
        clock: synchronized with each read.
        rules: the settings of the sample lifecycle.
        outbox: where periods are opened.
        publisher: shows the fleet.
        health: records each read.
        telemetry: shows skipped documents and the outbox.
        history: None without a history; then only gauges are kept up to date.
        on_read: called when a read has ended and the gauges are published, before periods are opened.
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
        on_read: Callable[[], object],
        on_ready: Callable[[], object],
        wall: Callable[[], float],
    ) -> None:
        self._source = source
        self._clock = clock
        self._rules = rules
        self._outbox = outbox
        self._kept_fleet = FleetStore(outbox.outbox)
        self._publisher = publisher
        self._health = health
        self._telemetry = telemetry
        self._history = history
        self._on_read = on_read
        self._on_ready = on_ready
        self._wall = wall
        self._terminated_seen: dict[str, int] = {}
        self._complaints: set[str] = set()
        self._without_workers = logs.Repeats()
        self.read_failed = False
        """Whether the last read of the worker documents has failed."""
        self._inventory_loaded = False

    async def restore(self, part: Part) -> None:
        """Start with the fleet of the last run, in case MongoDB is unavailable.

        Args:
            part: the workers of this exporter; the last run may have had others.

        Raises:
            StoreError: the outbox cannot be read.
        """
        try:
            date, workers, terminated_seen = await self._outbox(self._kept_fleet.last)
        except StoreError as error:
            if error.reason != DAMAGED:
                raise
            return  # it was set aside, which was logged
        ours = tuple(worker for worker in workers if part.has(worker.key))
        self._use(Fleet(date, ours, part=part), terminated_seen)

    def reload(self) -> None:
        """Read the inventory and the history again at the next observation: another process may have written until now."""
        if self._history is not None:
            self._history.gaps.repeat()
        self._inventory_loaded = False

    async def observe(self) -> None:
        """Read the fleet completely, publish its gauges, then open the periods that have closed.

        Raises:
            StoreError: the outbox cannot be written. A failed read of the worker documents is recorded, not raised.
        """
        fleet = None
        try:
            fleet = await self._read()
        finally:
            self._publisher.mark_observed()
            await self._publisher.publish()
            self._on_read()
        if fleet is not None:
            await self._open_periods(fleet)
            await self._outbox(self._kept_fleet.keep, fleet.workers, fleet.date, self._terminated_seen)

    async def _read(self) -> Fleet | None:
        """Return the fleet as read and take it into use; record a failure and return None."""
        began = self._wall()
        self.read_failed = False
        try:
            fleet = await self._source.read()
            check_skew("mongodb", fleet.date, began, self._wall())
        except SourceError as error:
            self.read_failed = True
            self._health.failed(error, began)
            return None
        except Exception:  # a bug; `Collector.observe` records it
            self.read_failed = True
            raise
        self._health.succeeded("mongodb", "", began)
        self._clock.synchronize(fleet.date)
        if not self._publisher.fleet.elsewhere.keys().isdisjoint(worker.id for worker in fleet.workers):
            self._inventory_loaded = False  # another exporter has written the entries of workers that have come here
        terminated = {worker.id for worker in fleet.workers if worker.status == "terminated"}
        self._use(fleet, {id_: self._terminated_seen.get(id_, fleet.date) for id_ in terminated})
        fleet = self._publisher.fleet  # with the accounts
        self._telemetry.workers_skipped.clear()
        for reason, count in fleet.skipped.items():
            self._telemetry.workers_skipped.labels(reason).set(count)
        for complaint in sorted(set(fleet.complaints) - self._complaints):
            _log.warning(
                "malformed worker document" if fleet.skipped or fleet.workers else "no worker document", problem=complaint
            )
        self._complaints = set(fleet.complaints)
        return fleet

    def _use(self, fleet: Fleet, terminated_seen: dict[str, int]) -> None:
        self._terminated_seen = terminated_seen
        self._publisher.update_fleet(fleet, terminated_seen)

    async def _open_periods(self, fleet: Fleet) -> None:
        """Open closed periods, unless another process writes the history; the writer also records the inventory."""
        history = self._history
        if history is None:
            return
        if not history.may_open:
            self._inventory_loaded = False  # the process that writes the history changes it meanwhile
            return
        entries = await self._load_inventory(history.inventory)
        opened = lost = 0
        pieces = open_periods(self._outbox.outbox, fleet, entries, self._rules)
        while piece := await self._outbox(open_piece, pieces):  # what a poll needs of the outbox comes between two of them
            opened, lost = opened + piece.samples, lost + piece.lost
            self._telemetry.samples_lost.inc(piece.lost)
        self._on_ready()
        await self._outbox.export_gauges(self._telemetry)
        if fleet.workers:
            self._without_workers.reset()
        if fleet.workers or self._without_workers.is_due(str(fleet.skipped)):  # without workers they are read every few seconds
            _log.info(
                "worker documents read",
                collection=fleet.namespace,
                workers=len(fleet.workers),
                opened=opened,
                **({"lost": lost} if lost else {}),
                **fleet.skipped,
            )
        if history.lease.held:
            try:
                await history.inventory.record(fleet)  # after `open_periods` has used the entries as they were before
                if entries is not None:  # else it could not be read, which still shows
                    self._health.hide("inventory")
            except StoreError as error:
                self._health.show("inventory", str(error))
                _log.error("cannot write the inventory; retried with the next observation", error=str(error))
            if entries is not None:
                history.gaps.note(fleet, entries)
        elif entries is not None:
            history.inventory.note(fleet)

    async def _load_inventory(self, inventory: InventoryStore) -> Mapping[str, InventoryEntry] | None:
        """Return the inventory before this observation; None while it cannot be read."""
        if not self._inventory_loaded:
            try:
                await inventory.load()
            except StoreError as error:
                self._health.show("inventory", str(error))
                _log.error("cannot read the inventory; new workers are postponed", error=str(error))
                return None
            self._health.hide("inventory")
            self._inventory_loaded = True
        return inventory.entries
