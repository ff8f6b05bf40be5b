"""Move final samples from the outbox into the history, each exactly once.

A time-series collection has no unique index, and an insert may continue in the server after its client has died. Therefore each
batch takes the lease for inserting, waits until no insert is running, reads back which samples exist, inserts the missing ones,
and deletes the rows. No state is kept that could be wrong, and the start is no special case: each batch finds out what happened
before.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from exporter.core import logs
from exporter.core.condition import Condition
from exporter.core.errors import IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.model import FinalSample
from exporter.core.periods import rfc3339
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.history_watch import HistoryWatch
from exporter.pipeline.loop import wait
from exporter.pipeline.outbox_thread import OutboxThread

BATCH_SAMPLES = 10_000
"""Samples read back and inserted at once: some hundred milliseconds of work. Every batch costs a dozen round trips, of which
four wait for the journal."""
RETRY_SECONDS = 5
"""Wait after a failure: by then an insert whose connection broke is finished or gone."""
VERIFY_SECONDS = 60
"""How often the history is verified while there is nothing to mirror: another program may drop or replace it."""
OPERATOR_RETRY_SECONDS = 60
"""Wait after a failure that the operator must fix."""
INSERT_WAIT_SECONDS = 20
"""How long an insert of another process may run before the batch starts over."""
BACKFILL_YIELD_SECONDS = 1.5
"""Pause between two batches of old samples, so that a backfill or a purge can take the lease."""
INSERT_MARGIN_SECONDS = 2
"""How long before the end of the lease an insert is aborted, here and in the server."""
MIN_LEASE_SECONDS = 10
"""Rest of the lease that is required when an insert begins; a batch takes a fraction of a second."""

_log = logs.get("mirror")


class SampleStore(Protocol):
    """The history, as the mirror needs it."""

    async def ensure_collection(self) -> None:
        """Create or verify the collection; cheap where it has not changed."""

    def insert_lease(self) -> AbstractAsyncContextManager[Callable[[], float]]:
        """Keep every other process from inserting: a backfill, and a job of the manager.

        Yields:
            A function that returns the seconds left for inserting, or raises StoreUnavailableError.
        """

    async def no_insert_running(self) -> bool:
        """Whether no insert into the collection is running."""

    async def existing_keys(self, keys: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
        """Return which of these (worker id, period start in UTC seconds) exist, acknowledged by a majority.

        Raises:
            StoreUnavailableError: some exist that a majority has not acknowledged yet, or MongoDB does not answer.
        """

    async def stored_samples(self, keys: Collection[tuple[str, int]]) -> list[FinalSample]:
        """Return the samples of these keys as they are stored.

        Raises:
            StoreError: MongoDB does not answer.
        """

    async def insert(self, samples: Sequence[FinalSample], *, within: Callable[[], float]) -> list[tuple[FinalSample, str]]:
        """Insert samples; return those that MongoDB rejects permanently, with the reason.

        Args:
            samples: of many workers, worker by worker in time order.
            within: returns the seconds for it, or raises so that nothing is sent; asked right before sending.

        Raises:
            StoreError: any of them may or may not have been inserted.
        """


class WriterLease(Protocol):
    """The lease of the process that writes the history."""

    @property
    def held(self) -> bool:
        """Whether this process may write."""

    @property
    def remaining(self) -> float:
        """Seconds until the lease ends."""

    @property
    def fence(self) -> int:
        """A number that changes whenever another process has held the lease in between."""

    @property
    def problem(self) -> str | None:
        """Why it is unknown which process holds the lease, None when this or another one does."""


class SharedLease(WriterLease, Protocol):
    """The lease of the process that writes samples older than `gap_fill_window`: this exporter's mirror, or a backfill."""

    async def acquire_or_renew(self) -> bool:
        """Take the lease if it is free; return whether this process holds it."""

    async def release(self) -> None:
        """Free the lease."""


@dataclass(frozen=True, slots=True)
class BackfillRange:
    """The samples that a backfill may be writing at the same time: all that are older than `age`."""

    lease: SharedLease
    age: int
    """Seconds; slightly less than `gap_fill_window`, the age from which a backfill writes, because two clocks may differ."""
    now: Callable[[], float]
    """MongoDB's time in UTC seconds, the clock a backfill uses too."""


class Mirror:
    """Moves final samples from the outbox into the history while the lease is held."""

    def __init__(
        self,
        outbox: OutboxThread,
        target: SampleStore,
        lease: WriterLease,
        telemetry: Telemetry,
        *,
        old: BackfillRange | None = None,
        watch: HistoryWatch | None = None,
        on_mirrored: Callable[[], object] = lambda: None,
        wall: Callable[[], float] = time.time,
        batch: int = BATCH_SAMPLES,
    ) -> None:
        """Move nothing yet.

        Args:
            outbox: where final samples are.
            target: the history.
            lease: of the writer of the history.
            telemetry: counts samples and failures.
            watch: notices a history that was replaced; None: nobody would search for gaps again.
            old: the samples that need a second lease; None if there is no other writer, however old a sample is.
            on_mirrored: called after samples were queued for other databases.
            wall: UTC seconds of this host, for the time of the last success.
            batch: samples moved at once.
        """
        self._old, self._watch, self._on_mirrored = old, watch, on_mirrored
        self._outbox, self._target, self._lease, self._telemetry = outbox, target, lease, telemetry
        self._wall = wall
        self._batch = batch
        self._waits_for_backfill = False
        self._verify_at = 0.0
        """When the history is to be verified although nothing is final, in seconds of the event loop's clock."""
        self._repeats = logs.Repeats()
        self.wake = asyncio.Event()
        """Set when samples may be final."""
        self.oldest_inserted: int | None = None
        """Start of the oldest period inserted since the last search for duplicates, which resets it; UTC seconds."""
        self.condition = Condition()
        """Whether the last batch succeeded, and since when; for /-/ready and the fleet page."""
        self.beat: Callable[[], object] = lambda: None
        """Called before each batch and each wait, as the sign of life of this loop."""

    async def run_forever(self) -> None:
        """Mirror whenever there are final samples; after a failure start over a few seconds later."""
        clock = asyncio.get_running_loop().time
        while True:
            self.wake.clear()
            self.beat()
            try:
                if clock() >= self._verify_at or not self._is_idle():
                    self._verify_at = 0.0
                    while await self.step():
                        self.beat()
                    self._verify_at = clock() + VERIFY_SECONDS
            except StoreError as error:
                self._telemetry.mirror_failures.labels(error.reason).inc()
                if self._repeats.is_due(str(error)):
                    _log.error(
                        "mirroring failed; retried, no final sample is lost",
                        reason=error.reason,
                        error=str(error),
                        **self._repeats.count,
                    )
                self._show(str(error))
                by_operator = isinstance(error, IncompatibleStoreError)
                # What an operator must mend is tried again at once when it may have been.
                await (wait(self.wake, OPERATOR_RETRY_SECONDS) if by_operator else asyncio.sleep(RETRY_SECONDS))
                continue
            except Exception as bug:  # noqa: BLE001  # a bug must not end the mirror; the log has its traceback
                self._telemetry.mirror_failures.labels("bug").inc()
                problem = f"mirroring failed with an unexpected {type(bug).__name__}: {bug}; please report it"
                self._show(problem)
                if self._repeats.is_due(problem):
                    _log.exception("mirroring failed with an unexpected error; please report it", **self._repeats.count)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            await wait(self.wake, RETRY_SECONDS)

    def _is_idle(self) -> bool:
        """Return whether nothing is final and nothing was wrong; where another exporter writes, its lease is watched."""
        nothing_failed = self.condition.error is None and self._outbox.problem is None
        return nothing_failed and self._lease.held and not self._outbox.outbox.counts()["final"]

    async def step(self) -> bool:
        """Mirror one batch; return whether there may be more.

        Raises:
            StoreError: samples may or may not have been written; their rows are still in the outbox. Or the outbox cannot be
                written: what it does not take in never reaches the history.
        """
        if not self._lease.held:
            self._show(self._lease.problem)  # None: another exporter writes now
            return False
        await self._target.ensure_collection()  # before every batch: it may have been dropped or replaced since the last one
        if self._watch is not None:
            await self._watch.verify()
        since = int(self._old.now()) - self._old.age if self._old else 0
        rows = await self._outbox(self._outbox.outbox.ready, self._batch, since)
        if rows:
            await self._move(rows, (self._lease,))
        if self._old and len(rows) < self._batch:
            rows = await self._step_old(self._old, since)
        if len(rows) < self._batch:
            if (problem := self._outbox.problem) is not None:
                raise StoreError(str(problem), reason=problem.reason)
            self._telemetry.mirror_last_success.value = self._wall()
        self._show(None)
        if self._repeats.reset():
            _log.info("mirroring succeeds again", **self._repeats.count)
        return len(rows) == self._batch

    @property
    def problem(self) -> str | None:
        """The last error, None after a success."""
        return self.condition.error

    def _show(self, problem: str | None) -> None:
        self.condition = self.condition.then(problem, self._wall())

    async def _step_old(self, old: BackfillRange, since: int) -> list[FinalSample]:
        """Mirror a batch that a backfill may be writing too, while it does not; return the rows that were moved."""
        rows = await self._outbox(self._outbox.outbox.ready, self._batch, 0)
        if not rows:
            return []
        if not await old.lease.acquire_or_renew():
            if not self._waits_for_backfill:
                _log.info("samples older than gap_fill_window wait until a backfill has ended", before=rfc3339(since))
            self._waits_for_backfill = True
            return []
        self._waits_for_backfill = False
        try:
            # `_move` reads back under the lease: before it was acquired, the backfill may have written any of these rows.
            await self._move(rows, (self._lease, old.lease))
        finally:
            await old.lease.release()
        if len(rows) == self._batch:
            await asyncio.sleep(BACKFILL_YIELD_SECONDS)  # a process that waits for the lease tries once a second
        return rows

    async def _move(self, rows: Sequence[FinalSample], leases: Sequence[WriterLease]) -> None:
        keys = [row[:2] for row in rows]
        async with self._target.insert_lease() as seconds_left:
            fences = [lease.fence for lease in leases]
            await self._wait_for_running_inserts()
            existing = await self._target.existing_keys(keys)
            missing = [row for row, key in zip(rows, keys, strict=True) if key not in existing] if existing else rows
            rejected = await self._insert(missing, leases, fences, seconds_left)
        if self._watch is not None:
            await self._watch.acknowledged(max({row.start for row in rows}))
        inserted = [row for row in missing if row[:2] not in rejected] if rejected else missing
        # What is there already may be another program's, with other values: a copy is one of the history.
        forward = [*inserted, *(await self._target.stored_samples(existing) if existing and self._forwards else ())]
        if rejected:
            await self._outbox(self._outbox.outbox.set_aside, rejected)
            await self._outbox(self._outbox.outbox.delete, [key for key in keys if key not in rejected], forward=forward)
        else:
            await self._outbox(self._outbox.outbox.delete, keys, all_read=True, forward=forward)
        self._on_mirrored()
        known = () if self.oldest_inserted is None else (self.oldest_inserted,)
        self.oldest_inserted = min({row.start for row in inserted}.union(known), default=None)
        self._telemetry.samples_were_mirrored(
            inserted=len(inserted),
            already_present=len(rows) - len(missing),
            rejected=len(rejected),
            gap_filled=sum(row.status is None for row in inserted),  # no period without a status was observed in time
        )
        await self._outbox.export_gauges(self._telemetry)

    @property
    def _forwards(self) -> bool:
        return bool(self._outbox.outbox.forward_to)

    async def _wait_for_running_inserts(self) -> None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + INSERT_WAIT_SECONDS
        while not await self._target.no_insert_running():
            if clock() > deadline:
                raise StoreUnavailableError("another insert into the history is still running", reason="busy")
            await asyncio.sleep(0.05)

    async def _insert(
        self,
        rows: Sequence[FinalSample],
        leases: Sequence[WriterLease],
        fences: Sequence[int],
        insert_seconds_left: Callable[[], float],
    ) -> set[tuple[str, int]]:
        if not rows:
            return set()

        def seconds_left() -> float:
            if [lease.fence for lease in leases] != fences:
                # This process was paused, another one has written meanwhile, and what was read back is outdated.
                raise StoreUnavailableError("another exporter held the lease while this batch was read back", reason="lease")
            remaining = min(lease.remaining for lease in leases)
            if remaining < MIN_LEASE_SECONDS:
                # Another process may become the writer before the server has finished. The next renewal is seconds away.
                raise StoreUnavailableError("the lease ends too soon to write", reason="lease")
            return min(remaining - INSERT_MARGIN_SECONDS, insert_seconds_left())

        rejected = await self._target.insert(rows, within=seconds_left)
        for bad, reason in rejected:
            _log.error("MongoDB rejects a sample permanently; it is set aside", worker_id=bad.worker_id, reason=reason)
        return {bad[:2] for bad, _ in rejected}
