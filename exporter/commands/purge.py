"""`cml-worker-exporter purge`: list what is stored of a worker, and delete it after a confirmation."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from exporter.commands import worker_documents
from exporter.commands.terminal import say
from exporter.core.errors import ConfigError, IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.model import Fleet, InventoryEntry
from exporter.core.periods import format_duration, rfc3339
from exporter.core.process_identity import new_owner
from exporter.core.settings import Settings
from exporter.sources.aggregates import Aggregates
from exporter.storage.inventory import INVENTORY, Inventory
from exporter.storage.lease import BACKFILL, Lease
from exporter.storage.mongo import Database, connect
from exporter.storage.repository import WorkerMetricsRepository, repository, require_history
from exporter.storage.sample_reader import Extent

LEASE_SECONDS = 120.0
"""Duration of the lease, renewed before each worker; a deletion is limited to what remains of it."""
PATIENCE_SECONDS = 60.0
"""How long to wait for the lease and for running inserts: a live exporter holds the lease now and then, for a moment."""
_POLL_SECONDS = 0.5

Prompt = Callable[[str], str]
"""Shows a text and returns the line that the operator types."""


@dataclass(frozen=True, slots=True)
class StoredWorker:
    """Everything that is stored of a worker: samples and inventory entry, at least one of them."""

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
    prompt: Prompt | None,
    out: TextIO,
    patience: float = PATIENCE_SECONDS,
) -> int:
    """Print what is stored of the workers, and delete it after a confirmation.

    Args:
        settings: where the history is.
        worker_ids: of the workers; all are checked before anything is deleted.
        yes: confirms without a prompt.
        even_if_listed: delete also workers that an exporter may still write.
        prompt: reads the ids that confirm from a terminal; None when there is no terminal.
        out: for the text.
        patience: seconds to wait for a backfill or another purge to end.

    Returns:
        The exit status: 0 deleted, 1 nothing was deleted because the operator did not confirm.

    Raises:
        ConfigError: nothing is stored of a worker, or an exporter would write it again.
        SourceError: the worker documents cannot be read.
        StoreError: MongoDB does not answer, a privilege is missing, or a backfill is running.
    """
    name = require_history(settings, "purge")
    client, database = connect(settings)
    async with client:
        history, inventory = repository(settings, database, name), Inventory(database)
        await history.collection.current_retention()  # refuses a collection that is not a history
        await inventory.load()
        found = [
            StoredWorker(worker_id, await history.reader.extent(worker_id), inventory.entries.get(worker_id))
            for worker_id in dict.fromkeys(worker_ids)
        ]
        _check_known(found, history)
        if not even_if_listed:
            fleet = await Aggregates(database, settings.mongodb.worker_collections, settings.workers).read()
            _check_absent(found, fleet, settings)
            say(f"{worker_documents.describe(fleet)}, none of them to be deleted.", out)
        say(f"To be deleted from {history.namespace} and {database.name}.{INVENTORY}, permanently:", out)
        for stored in found:
            say(f"  {stored}", out)
        if not yes and not _confirmed(found, prompt, out):
            return 1
        try:
            await _delete(found, history, inventory, database, out, patience)
        except StoreError as error:
            raise _for_purge(error, history.namespace, f"{database.name}.{INVENTORY}") from error
    return 0


def _check_known(found: Sequence[StoredWorker], history: WorkerMetricsRepository) -> None:
    unknown = [repr(stored.worker_id) for stored in found if not stored.samples and not stored.entry]
    if unknown:
        raise ConfigError(
            f"--worker: {history.namespace} and the inventory have nothing of {', '.join(unknown)}, so nothing was deleted; "
            "GET /api/workers lists the ids"
        )


def _check_absent(found: Sequence[StoredWorker], fleet: Fleet, settings: Settings) -> None:
    """Refuse a worker that an exporter would write again: it is listed, or was less than `gap_fill_window` ago."""
    listed = {worker.id: worker.status for worker in fleet.workers}
    gap_fill_window = format_duration(settings.gap_fill_window)
    for stored in found:
        if stored.worker_id in listed:
            raise ConfigError(
                f"--worker: {stored.worker_id!r} still has a worker document in {fleet.namespace} "
                f"({listed[stored.worker_id]}), so an exporter would continue to write it, and fill up to {gap_fill_window} "
                "(gap_fill_window) again when it starts; remove the document first, or use --even-if-listed to delete what is "
                "stored now"
            )
        until = stored.entry.last_seen + settings.gap_fill_window if stored.entry else 0
        if fleet.date < until:
            raise ConfigError(
                f"--worker: {stored.worker_id!r} was last seen at {rfc3339(until - settings.gap_fill_window)}, "
                f"less than {gap_fill_window} (gap_fill_window) ago, "
                f"so samples of it may still be in the outbox of an exporter; purge it after {rfc3339(until)}, "
                "or use --even-if-listed to delete what is stored now"
            )


def _confirmed(found: Sequence[StoredWorker], prompt: Prompt | None, out: TextIO) -> bool:
    if prompt is None:
        say("Nothing was deleted. Use --yes to do it.", out)
        return False
    for stored in found:
        typed = prompt(f"Type {stored.worker_id} to delete it, anything else to delete nothing: ")
        if typed.strip() != stored.worker_id:
            say("Nothing was deleted.", out)
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
    lease = Lease(database, owner=new_owner("purge-"), ttl=LEASE_SECONDS, name=BACKFILL)
    deadline = time.monotonic() + patience
    await _wait(
        lease.acquire_or_renew, deadline, "a backfill or another purge is running, so nothing was deleted; try again after it"
    )
    try:
        # An insert that arrives late, or goes on in the server after its client has died, would store some samples again.
        async with history.writer.insert_lease():
            await _wait(
                history.writer.no_insert_running,
                deadline,
                "an insert into the history is still running, so nothing was deleted; try again",
            )
        for stored in found:
            if not await lease.acquire_or_renew():
                raise StoreUnavailableError("another process took the lease meanwhile", reason="lease")
            # The samples first: while the entry exists, the next attempt finds the worker.
            count = await history.writer.purge(stored.worker_id, within=lease.remaining)
            forgotten = await inventory.forget(stored.worker_id)
            entry = " and its inventory entry" if forgotten else ""
            say(f"Deleted {count:,} samples of {stored.worker_id}{entry}.", out)
    finally:
        await lease.release()


async def _wait(condition: Callable[[], Awaitable[bool]], deadline: float, problem: str) -> None:
    """Wait until the condition holds; raise `problem` as a StoreError at the deadline (of time.monotonic)."""
    while not await condition():
        if time.monotonic() >= deadline:
            raise IncompatibleStoreError(problem, reason="busy")
        await asyncio.sleep(_POLL_SECONDS)


def _for_purge(error: StoreError, history: str, inventory: str) -> StoreError:
    """Return the error with what to do here: which privilege to grant, and that purge must be run again."""
    if error.reason == "not_authorized":
        return IncompatibleStoreError(
            f"MongoDB does not let this user delete ({error.__cause__ and str(error.__cause__).partition(', full error')[0]}); "
            f"grant it `remove` on {history} and {inventory}, which only purge needs, see docs/manager.md, and purge again",
            reason=error.reason,
        )
    if isinstance(error, StoreUnavailableError):
        return StoreUnavailableError(
            f"MongoDB failed while it deleted ({error.__cause__ or error}); some may be deleted, purge again for the rest",
            reason=error.reason,
        )
    return error
