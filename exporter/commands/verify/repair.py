"""`cml-worker-exporter verify --repair`: list the samples that are stored twice, and remove the copies after a confirmation.

Each worker with copies is rewritten, see `storage.rewrite`, under two leases: the one that every insert takes, also those of a
running exporter and of the manager's jobs, and the one for old samples, which a backfill, an import and a purge hold. The first
comes with the fence against late inserts, `storage.insert_fence`, which is raised before each attempt to rewrite a worker.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TextIO

from exporter.commands import terminal
from exporter.commands.backfill.plan import counted
from exporter.commands.terminal import say
from exporter.core import logs
from exporter.core.errors import IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.periods import HOUR, rfc3339, to_datetime
from exporter.core.process_identity import new_owner
from exporter.core.settings import Settings
from exporter.storage.duplicates import count_duplicates, duplicated_times
from exporter.storage.insert_fence import InsertFence
from exporter.storage.lease import BACKFILL, Lease, keep_renewed
from exporter.storage.mongo import connect
from exporter.storage.repository import WorkerMetricsRepository, repository, require_history
from exporter.storage.rewrite import DELETE_SECONDS, RANGE_WIRE_VERSION, Rewritten, Scope, WorkerRewrite, unfinished_rewrite
from exporter.storage.sample_reader import Extent

LEASE_SECONDS = 2 * DELETE_SECONDS
"""Duration of the leases; renewed while the command runs."""
PATIENCE_SECONDS = LEASE_SECONDS + 30
"""How long to wait for the leases: until those of a repair that was killed have expired."""
COPY_BYTES_PER_SAMPLE = 350
"""Space of a sample in the copy, with its key and the index."""
NOT_REPAIRED = 1
_POLL_SECONDS = 0.5

Prompt = Callable[[str], str]
"""Shows a text and returns the line that the operator types."""

_log = logs.get("verify")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `verify --repair`."""

    since: int
    """UTC second from which on duplicates are searched for."""
    workers: tuple[str, ...] = ()
    """Worker ids; empty: all workers."""
    dry_run: bool = False
    yes: bool = False
    """Confirms without a prompt."""


@dataclass(frozen=True, slots=True)
class Doubled:
    """A worker with samples that are stored twice."""

    scope: Scope
    extent: Extent
    """All samples of the worker."""
    copies: int
    """Samples beyond the first of their time."""


async def run(
    settings: Settings,
    options: Options,
    out: TextIO,
    err: TextIO,
    *,
    prompt: Prompt | None = None,
    patience: float = PATIENCE_SECONDS,
) -> int:
    """Print which samples are stored twice, and remove the copies after a confirmation.

    Args:
        settings: where the history is.
        options: of the command line.
        out: for the plan and the result.
        err: for the progress.
        prompt: asks for a confirmation; None when there is no terminal.
        patience: seconds to wait for each lease.

    Returns:
        The exit status: 0 no sample is stored twice (any more), 1 some are.

    Raises:
        ConfigError: there is no history.
        StoreError: MongoDB does not answer, a privilege is missing, or another process holds a lease.
    """
    name = require_history(settings, "repair")
    client, database = connect(settings)
    async with client:
        history = repository(settings, database, name)
        history.collection.retention = await history.collection.current_retention()  # refuses what is not a history
        repair = _Repair(history, options, out, err, patience)
        unfinished = await unfinished_rewrite(history.collection)
        plan = await repair.plan()
        repair.show(plan, unfinished)
        if options.dry_run:
            return 0
        if not plan and unfinished is None:
            return 0
        if not options.yes and not _confirmed(prompt, out):
            return NOT_REPAIRED
        await repair.carry_out(unfinished)
        left = sum((await count_duplicates(history.collection, options.since, _until(), options.workers or None)).values())
        say(f"{counted(left, 'sample')} stored twice.", out)
        return NOT_REPAIRED if left else 0


@dataclass(frozen=True, slots=True)
class _Repair:
    """One repair: what is doubled, and its removal."""

    history: WorkerMetricsRepository
    options: Options
    out: TextIO
    err: TextIO
    patience: float

    async def plan(self) -> list[Doubled]:
        """Return the workers whose samples are stored twice in the range."""
        collection = self.history.collection
        since, until = self.options.since, _until()
        async with collection.operation("hello"):
            hello = await collection.database.client.admin.command("hello")
        found: list[Doubled] = []
        for worker_id, copies in sorted(
            (await count_duplicates(collection, since, until, self.options.workers or None)).items()
        ):
            extent = await self.history.reader.extent(worker_id)
            if extent is None:
                continue
            scope = Scope(worker_id)
            if hello["maxWireVersion"] >= RANGE_WIRE_VERSION:
                times = await duplicated_times(collection, worker_id, since, until)
                # Whole seconds around the copies.
                scope = Scope(worker_id, to_datetime(times[0].time // 1000), to_datetime(times[-1].time // 1000 + 1))
            found.append(Doubled(scope, extent, copies))
        return found

    def show(self, plan: Sequence[Doubled], unfinished: Scope | None) -> None:
        """Print the plan."""
        namespace, out = self.history.namespace, self.out
        if unfinished is not None:
            say(f"The interrupted repair of {unfinished.worker_id} comes first.", out)
        if not plan:
            say(f"No sample of {namespace} since {rfc3339(self.options.since)} is stored twice.", out)
            return
        say(f"Samples of {namespace} since {rfc3339(self.options.since)} that are stored twice:", out)
        rows = [
            (
                each.scope.worker_id,
                f"{each.copies:,}",
                f"{each.extent.samples:,}",
                rfc3339(each.extent.first),
                rfc3339(each.extent.last),
            )
            for each in plan
        ]
        terminal.print_table(("worker", "copies", "samples", "first", "last"), rows, out)
        largest = max(each.extent.samples for each in plan) * COPY_BYTES_PER_SAMPLE / 1e6
        say(
            f"One worker after the other is copied to {self.history.collection.name}_repair (up to {max(0.1, largest):.1f} MB "
            "of disk), deleted, and inserted again; readers miss its samples meanwhile. An exporter may run: its samples wait.",
            out,
        )
        out.flush()

    async def carry_out(self, unfinished: Scope | None) -> None:
        """Rewrite the interrupted worker, then each one with copies."""
        old = Lease(self.history.collection.database, owner=new_owner("repair-"), ttl=LEASE_SECONDS, name=BACKFILL)
        async with self._held(old, "a backfill, an import of events, a purge or another repair is running"):
            if unfinished is not None:
                await self._rewrite(unfinished, old)
            for each in await self.plan():  # again: it may have changed while the leases were waited for
                await self._rewrite(each.scope, old)

    async def _rewrite(self, scope: Scope, old: Lease) -> None:
        """Rewrite one worker; between two of them other writers insert what waits."""
        fence = InsertFence(self.history.collection.database, owner=new_owner("repair-"), ttl=LEASE_SECONDS)

        def within() -> float:
            left = min(old.remaining, fence.lease.remaining)
            if left <= 0:
                raise StoreUnavailableError("a lease expired; run this again", reason="lease")
            return left

        rewrite = WorkerRewrite(self.history.collection, fence, within)
        busy = "another process has been inserting into the history all the time"
        async with self._held(fence.lease, busy, keep_fence=fence.keep):
            deadline = time.monotonic() + self.patience
            while True:
                try:
                    done = await self._attempt(rewrite, fence, scope, deadline)
                    break
                except StoreUnavailableError as error:  # the copy is there; the next attempt goes on with it
                    if error.reason == "lease" or time.monotonic() >= deadline:
                        raise
                    _log.warning("the rewrite of a worker failed; it goes on", worker=scope.worker_id, error=str(error))
                    await asyncio.sleep(_POLL_SECONDS)
        differing = f", {done.differing:,} of them with other values" if done.differing else ""
        print(
            f"{scope.worker_id}: removed {done.removed:,} {'copy' if done.removed == 1 else 'copies'}{differing}; "
            f"{counted(done.samples, 'sample')} stored once.",
            file=self.out,
            flush=True,
        )

    async def _attempt(self, rewrite: WorkerRewrite, fence: InsertFence, scope: Scope, deadline: float) -> Rewritten:
        """Raise the fence, wait for what is running, and rewrite the worker; only in this order nothing late can arrive."""
        if not await fence.lease.acquire_or_renew():
            raise StoreUnavailableError("another process took the lease for inserting; run this again", reason="lease")
        await fence.raise_number()  # fails where the lease was renewed at the same moment: the next attempt sees the renewal
        await _wait(rewrite.is_idle, deadline, "an insert into the history or a deletion is still running; try again")
        begun = await unfinished_rewrite(self.history.collection)  # of this worker, perhaps wider than `scope`
        return await rewrite.run(begun or scope, lambda step: print(f"{scope.worker_id}: {step}", file=self.err, flush=True))

    @asynccontextmanager
    async def _held(
        self, lease: Lease, problem: str, *, keep_fence: Callable[[], Awaitable[object]] | None = None
    ) -> AsyncIterator[None]:
        """Hold a lease within the block; raise `problem` if another process does not give it up."""
        await _wait(lease.acquire_or_renew, time.monotonic() + self.patience, f"{problem}, so nothing was changed; try again")
        renewing = asyncio.create_task(keep_renewed(lease, keep_fence=keep_fence), name=lease.id)
        try:
            yield
        finally:
            renewing.cancel()
            try:
                await lease.release()
            except StoreError as error:
                _log.warning("lease not released; it expires", error=str(error))


def _until() -> int:
    """Return the end of the range that is searched; a clock may be ahead."""
    return int(time.time()) + HOUR


def _confirmed(prompt: Prompt | None, out: TextIO) -> bool:
    if prompt is None:
        say("Nothing was changed. Use --yes to do it.", out)
        return False
    if prompt("Type yes to remove the copies, anything else to change nothing: ").strip() != "yes":
        say("Nothing was changed.", out)
        return False
    return True


async def _wait(condition: Callable[[], Awaitable[bool]], deadline: float, problem: str) -> None:
    """Wait until the condition holds; raise `problem` as a StoreError at the deadline (of time.monotonic)."""
    while not await condition():
        if time.monotonic() >= deadline:
            raise IncompatibleStoreError(problem, reason="busy")
        await asyncio.sleep(_POLL_SECONDS)
