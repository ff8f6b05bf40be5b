"""`cml-worker-exporter purge`: delete all that is stored of a worker, after saying what that is."""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from exporter.core.errors import ConfigError, IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.model import Fleet, InventoryEntry
from exporter.core.periods import format_duration, rfc3339
from exporter.core.settings import Settings
from exporter.sources.aggregates import Aggregates
from exporter.storage.inventory import INVENTORY, Inventory
from exporter.storage.lease import BACKFILL, Lease
from exporter.storage.mongo import Database, connect
from exporter.storage.repository import WorkerMetricsRepository, repository, require_history
from exporter.storage.sample_reader import Extent

LEASE_SECONDS = 120.0
"""Renewed before each worker; one deletion takes seconds, and is ended before the lease is."""
PATIENCE = 60.0
"""Seconds to wait for the lease and for inserts on their way: a live exporter holds it now and then, for a moment."""
_POLL = 0.5

Ask = Callable[[str], str]
"""Show a question and return the answer."""


@dataclass(frozen=True, slots=True)
class StoredWorker:
    """All that is stored of a worker."""

    worker_id: str
    samples: Extent | None
    entry: InventoryEntry | None

    def __str__(self) -> str:
        name = f" ({self.entry.name})" if self.entry and self.entry.name else ""
        parts = []
        if self.samples:
            count, first, last = self.samples
            parts.append(f"{count:,} samples, the first of {rfc3339(first)}, the last of {rfc3339(last)}")
        if self.entry:
            parts.append("its inventory entry (name, status, instances)")
        return f"{self.worker_id}{name}: {', and '.join(parts)}"


async def run(
    settings: Settings,
    worker_ids: Sequence[str],
    *,
    yes: bool,
    even_if_listed: bool,
    ask: Ask | None,
    out: TextIO,
    patience: float = PATIENCE,
) -> int:
    """Say what is stored of the workers, and delete it with `yes` or when their ids are typed.

    Args:
        settings: where the history is.
        worker_ids: whose traces go; all are looked at before anything is deleted.
        yes: do it without asking.
        even_if_listed: also of workers that an exporter may still write.
        ask: somebody at a terminal; None when there is nobody.
        out: for what is said.
        patience: seconds to wait for a backfill or another purge to end.

    Returns:
        The exit status: 0 deleted, 1 nothing was deleted because nobody confirmed.

    Raises:
        ConfigError: nothing is known of a worker, or it would come back.
        SourceError: the aggregates cannot be read.
        StoreError: MongoDB does not answer, does not allow it, or a backfill is running.
    """
    name = require_history(settings, "purge")
    client, database = connect(settings)
    async with client:
        history, inventory = repository(settings, database, name), Inventory(database)
        await history.collection.current_retention()  # refuses what is no history of ours
        await inventory.load()
        found = [
            StoredWorker(worker_id, await history.reader.extent(worker_id), inventory.entries.get(worker_id))
            for worker_id in dict.fromkeys(worker_ids)
        ]
        _check_known(found, history)
        if not even_if_listed:
            _check_gone(found, await Aggregates(database, settings.mongodb.workers, settings.workers).read(), settings)
        print(f"To be deleted from {history.namespace} and {database.name}.{INVENTORY}, for good:", file=out)
        for one in found:
            print(f"  {one}", file=out)
        if not yes and not _confirmed(found, ask, out):
            return 1
        try:
            await _delete(found, history, inventory, database, out, patience)
        except StoreError as error:
            raise _explained(error, history.namespace, f"{database.name}.{INVENTORY}") from error
    return 0


def _check_known(found: Sequence[StoredWorker], history: WorkerMetricsRepository) -> None:
    unknown = [repr(one.worker_id) for one in found if not one.samples and not one.entry]
    if unknown:
        raise ConfigError(
            f"--worker: {history.namespace} and the inventory know nothing of {', '.join(unknown)}, so nothing was deleted; "
            "GET /api/workers lists the ids"
        )


def _check_gone(found: Sequence[StoredWorker], fleet: Fleet, settings: Settings) -> None:
    """Refuse what an exporter would write again: a worker that is listed, or was, less than `gap_fill_window` ago."""
    listed = {worker.id: worker.status for worker in fleet.workers}
    gap_fill_window = format_duration(settings.gap_fill_window)
    for one in found:
        if one.worker_id in listed:
            raise ConfigError(
                f"--worker: {one.worker_id!r} is still among the aggregates in {settings.mongodb.workers} "
                f"({listed[one.worker_id]}), so an exporter would go on with it, and fill up to "
                f"{gap_fill_window} (gap_fill_window) again when it "
                "starts; remove it there first, or say --even-if-listed to delete what there is now"
            )
        until = one.entry.last_seen + settings.gap_fill_window if one.entry else 0
        if fleet.date < until:
            raise ConfigError(
                f"--worker: {one.worker_id!r} was still seen at {rfc3339(until - settings.gap_fill_window)}, "
                f"less than {gap_fill_window} (gap_fill_window) ago, "
                f"so samples of it may be on their way in the outbox of an exporter; purge it after {rfc3339(until)}, "
                "or say --even-if-listed to delete what there is now"
            )


def _confirmed(found: Sequence[StoredWorker], ask: Ask | None, out: TextIO) -> bool:
    if ask is None:
        print("Nothing was deleted. Say --yes to do it.", file=out)
        return False
    for one in found:
        if ask(f"Type {one.worker_id} to delete it, anything else to leave all as it is: ").strip() != one.worker_id:
            print("Nothing was deleted.", file=out)
            return False
    return True


async def _delete(
    found: Sequence[StoredWorker],
    history: WorkerMetricsRepository,
    inventory: Inventory,
    database: Database,
    out: TextIO,
    patience: float,
) -> None:
    owner = f"purge-{uuid.uuid4().hex[:12]}@{socket.gethostname()}:{os.getpid()}"
    lease = Lease(database, owner=owner, ttl=LEASE_SECONDS, name=BACKFILL)
    deadline = time.monotonic() + patience
    await _wait(
        lease.acquire_or_renew, deadline, "a backfill or another purge is running, so nothing was deleted; try again after it"
    )
    try:
        # An insert goes on in the server after its client has died, and would bring some of it back.
        await _wait(
            history.writer.no_insert_running,
            deadline,
            "an insert into the history is still running, so nothing was deleted; try again",
        )
        for one in found:
            if not await lease.acquire_or_renew():
                raise StoreUnavailableError("somebody else took the lease meanwhile", reason="lease")
            # The samples first: as long as the entry is there, the worker is known to the next attempt.
            count = await history.writer.purge(one.worker_id, within=lease.remaining)
            forgotten = await inventory.forget(one.worker_id)
            entry = " and its inventory entry" if forgotten else ""
            print(f"Deleted {count:,} samples of {one.worker_id}{entry}.", file=out)
    finally:
        await lease.release()


async def _wait(done: Callable[[], Awaitable[bool]], deadline: float, otherwise: str) -> None:
    while not await done():
        if time.monotonic() >= deadline:
            raise IncompatibleStoreError(otherwise, reason="busy")
        await asyncio.sleep(_POLL)


def _explained(error: StoreError, history: str, inventory: str) -> StoreError:
    """The same for somebody who waits: what to grant, and that nothing is tried again by itself here."""
    if error.reason == "not_authorized":
        return IncompatibleStoreError(
            f"MongoDB does not let this user delete ({error.__cause__ and str(error.__cause__).partition(', full error')[0]}); "
            f"grant it `remove` on {history} and {inventory}, which only purge needs, see README.md, and purge again",
            reason=error.reason,
        )
    if isinstance(error, StoreUnavailableError):
        return StoreUnavailableError(
            f"MongoDB failed while it deleted ({error.__cause__ or error}); some may be deleted, purge again for the rest",
            reason=error.reason,
        )
    return error
