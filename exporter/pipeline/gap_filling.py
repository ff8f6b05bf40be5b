"""Open the gaps of the history in the outbox, in the background and in pieces (rule 3 of the sample lifecycle)."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from exporter.core import logs
from exporter.core.errors import StoreError
from exporter.core.model import Fleet, InventoryEntry, Worker
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.pipeline.transactions import open_gaps

PIECE_WORKERS = 100
"""Workers whose gaps are opened in one transaction: a crash repeats one piece, and a collection cycle waits for one at most."""

_log = logs.get("collector")


class SampleTimes(Protocol):
    """The history, as the search for gaps needs it."""

    async def timestamps(self, worker_ids: Collection[str], since: int) -> dict[str, set[int]]:
        """Return the starts of the periods since `since` (UTC seconds) that the history has, by worker id.

        Raises:
            StoreError: the history cannot be read.
        """


class Leadership(Protocol):
    """The lease of the process that writes the history."""

    @property
    def held(self) -> bool:
        """Whether this process may mirror samples."""

    @property
    def held_elsewhere(self) -> bool:
        """Whether another process is known to hold the lease."""

    @property
    def awaited(self) -> bool:
        """Whether this process holds the lease, and another one is known to stand by."""


class GapFilling:
    """Searches for the gaps of each worker once per process, while this process leads.

    Those of a worker that was read without a region are searched for again when it has one: then its instance is known.

    Args:
        times: the history.
        lease: of the process that writes the history.
        rules: the settings of the sample lifecycle.
        outbox: where gaps are opened.
        gate: awaited before each piece, so that more urgent work comes first.
    """

    def __init__(
        self,
        times: SampleTimes,
        lease: Leadership,
        rules: Rules,
        outbox: OutboxThread,
        gate: Callable[[], Awaitable[None]],
    ) -> None:
        self._times = times
        self._lease = lease
        self._rules = rules
        self._outbox = outbox
        self._gate = gate
        self._fleet = Fleet(0, ())
        self._entries: Mapping[str, InventoryEntry] = {}
        self._searched: set[tuple[str, bool]] = set()
        """(worker id, whether it had a region) of the workers whose gaps were searched for."""
        self.due = asyncio.Event()
        """Set when gaps are left to be searched for, until `open` begins."""
        self.on_progress: Callable[[], object] = lambda: None
        """Called after each piece."""
        self._opening = False

    def repeat(self) -> None:
        """Search for the gaps of every worker again, from the next observation on."""
        self._searched = set()

    def note(self, fleet: Fleet, entries: Mapping[str, InventoryEntry]) -> None:
        """Use this read and this inventory (by worker id) from now on."""
        self._fleet, self._entries = fleet, entries
        present = {worker.id for worker in fleet.workers}  # one that left may have been forgotten when it returns
        self._searched.difference_update([key for key in self._searched if key[0] not in present])
        if self._left():
            self.due.set()

    def _left(self) -> list[Worker]:
        return [worker for worker in self._fleet.workers if _key(worker) not in self._searched]

    async def open(self) -> int:
        """Open the gaps of the workers that are left, piece by piece; return how many periods were opened.

        It ends early, and `note` makes it due again, where the history cannot be read or this process no longer leads.

        Raises:
            StoreError: the outbox cannot be written.
        """
        self.due.clear()
        self._opening = True
        try:
            opened = await self._open(self._left())
        finally:
            self._opening = False
        return opened

    @property
    def pending(self) -> bool:
        """Whether gaps are being opened, or are due to be."""
        return self._opening or self.due.is_set()

    async def _open(self, left: Sequence[Worker]) -> int:
        opened = 0
        for first in range(0, len(left), PIECE_WORKERS):
            await self._gate()
            if not self._lease.held:
                break
            piece = left[first : first + PIECE_WORKERS]
            searched, now = self._searched, self._fleet.date
            since = now - self._rules.gap_fill_window - self._rules.period
            try:
                existing = await self._times.timestamps([worker.id for worker in piece], since)
            except StoreError as error:
                _log.error("cannot read history; gap detection postponed", error=str(error))
                break
            entries = {worker.id: entry for worker in piece if (entry := self._entries.get(worker.id))}
            count, found = await self._outbox(open_gaps, self._outbox.outbox, piece, entries, existing, now, self._rules)
            searched |= {_key(worker) for worker in found}  # `repeat` has begun a new set if it came in between
            opened += count
            self.on_progress()
        if opened:
            _log.info("gaps opened", samples=opened, workers=len(left))
        return opened


def _key(worker: Worker) -> tuple[str, bool]:
    return worker.id, bool(worker.region)
