"""Outbox → history, exactly once.

No index can make a sample unique, and an insert may go on in the server after its client has died. So every batch, always: wait
until no insert is running, read back what is there, insert the missing, delete the rows. There is no state that could be wrong,
and no special case for the start: whatever happened before, the next batch finds out.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from exporter.core import logs
from exporter.core.errors import IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import rfc3339, to_datetime, to_seconds
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.lifecycle import PendingSample
from exporter.pipeline.outbox import OutboxThread

BATCH = 5000
"""Rows read back and inserted at once: some hundred milliseconds of work."""
RETRY = 5
"""Seconds after a failure: an insert whose connection broke is finished or gone by then."""
QUIESCE = 20
"""How long an insert of somebody else may go on before the batch starts over, in seconds."""
BACKFILL_YIELD_SECONDS = 1.5
"""Seconds between two batches of old samples, in which a backfill or a purge can have its turn."""
INSERT_MARGIN_SECONDS = 2
"""Seconds before the end of the lease at which an insert is given up, here and in the server."""
MIN_LEASE_SECONDS = 10
"""Seconds of the lease that must be left when an insert begins; a batch takes a fraction of one."""

_log = logs.get("mirror")


class SampleStore(Protocol):
    """What the mirror needs of the history."""

    async def ensure_collection(self) -> None:
        """Create or verify the collection."""

    async def no_insert_running(self) -> bool:
        """Whether no insert into the collection is running."""

    async def existing_keys(self, keys: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
        """Which of these (worker id, period start) are there, acknowledged by a majority."""

    async def insert(
        self, samples: Sequence[WorkerMetricsSample], *, within: float | None
    ) -> list[tuple[WorkerMetricsSample, str]]:
        """Insert within so many seconds; return those that are rejected for good, with the reason."""


class WriterLease(Protocol):
    """Who may write."""

    @property
    def held(self) -> bool:
        """Whether this process may."""

    @property
    def remaining(self) -> float:
        """For how many seconds it still may."""

    @property
    def fence(self) -> int:
        """Another number whenever somebody else held it in between."""


class SharedLease(WriterLease, Protocol):
    """Who may write what is older than the live window: this exporter's mirror, or a backfill."""

    async def acquire_or_renew(self) -> bool:
        """Take it if it is free; whether it is ours."""

    async def release(self) -> None:
        """Let others have it."""


@dataclass(frozen=True, slots=True)
class BackfillRange:
    """Where the samples begin that a backfill may be writing too."""

    lease: SharedLease
    age: int
    """Seconds; a little less than `gap_fill_window`, the age a backfill writes from, because two clocks may differ."""
    now: Callable[[], float]
    """MongoDB's clock, as the backfill reads it too."""


class Mirror:
    """Moves settled rows from the outbox into the history while the lease is held."""

    def __init__(
        self,
        outbox: OutboxThread,
        target: SampleStore,
        lease: WriterLease,
        telemetry: Telemetry,
        *,
        old: BackfillRange | None = None,
        wall: Callable[[], float] = time.time,
        batch: int = BATCH,
    ) -> None:
        """Move nothing yet; without `old` this is the only writer there is, however old a sample."""
        self._old = old
        self._outbox, self._target, self._lease, self._telemetry = outbox, target, lease, telemetry
        self._wall = wall
        self._batch = batch
        self._ensured = False
        self._waits = False
        self.wake = asyncio.Event()
        """Set when rows may be ready."""
        self.problem: str | None = None
        """The last failure, None after a success; for /-/ready."""

    async def run_forever(self) -> None:
        """Mirror whenever there are rows; after a failure start over a few seconds later."""
        while True:
            self.wake.clear()
            try:
                while await self.step():
                    pass
            except StoreError as error:
                self._telemetry.mirror_failures.labels(error.reason).inc()
                if str(error) != self.problem:
                    _log.error("mirroring failed; it is tried again, nothing is lost", reason=error.reason, error=str(error))
                self.problem = str(error)
                # What somebody must mend is not mended within seconds.
                await asyncio.sleep(60 if isinstance(error, IncompatibleStoreError) else RETRY)
                continue
            except Exception:  # noqa: BLE001  # a bug must not end the mirror; it is reported in full and tried again
                self._telemetry.mirror_failures.labels("bug").inc()
                _log.exception("mirroring failed for a reason nobody expected; please report it")
                await asyncio.sleep(RETRY)
                continue
            try:
                async with asyncio.timeout(RETRY):
                    await self.wake.wait()
            except TimeoutError:
                continue

    async def step(self) -> bool:
        """Mirror one batch; return whether there may be more.

        Raises:
            StoreError: nothing is known of what was written; the rows are still in the outbox.
        """
        if not self._lease.held:
            self.problem = None  # it is the other exporter's now
            return False
        if not self._ensured:
            await self._target.ensure_collection()
            self._ensured = True
        since = int(self._old.now()) - self._old.age if self._old else 0
        rows = await self._outbox(self._outbox.outbox.ready, self._batch, since)
        if rows:
            await self._move(rows, (self._lease,))
        if self._old and len(rows) < self._batch:
            rows = await self._step_old(self._old, since)
        if len(rows) < self._batch:
            self._telemetry.mirror_last_success.value = self._wall()
        self.problem = None
        return len(rows) == self._batch

    async def _step_old(self, old: BackfillRange, since: int) -> list[PendingSample]:
        """Mirror a batch of what a backfill may be writing too: only one of the two at a time, and the newer samples first."""
        rows = await self._outbox(self._outbox.outbox.ready, self._batch, 0)
        if not rows:
            return []
        if not await old.lease.acquire_or_renew():
            if not self._waits:
                _log.info("samples older than the live window wait until a backfill has ended", before=rfc3339(since))
            self._waits = True
            return []
        self._waits = False
        try:
            # One read back before the lease was ours may have been written by the backfill since; `_move` reads anew.
            await self._move(rows, (self._lease, old.lease))
        finally:
            await old.lease.release()
        if len(rows) == self._batch:
            await asyncio.sleep(BACKFILL_YIELD_SECONDS)  # whoever waits for the lease asks for it once a second
        return rows

    async def _move(self, rows: Sequence[PendingSample], leases: Sequence[WriterLease]) -> None:
        fences = [lease.fence for lease in leases]
        await self._wait_for_running_inserts()
        existing = await self._target.existing_keys([(row.worker_id, row.start) for row in rows])
        missing = [row for row in rows if (row.worker_id, row.start) not in existing]
        rejected = await self._insert(missing, leases, fences)
        await self._outbox(self._outbox.outbox.set_aside, rejected)
        await self._outbox(self._outbox.outbox.delete, [r for r in rows if (r.worker_id, r.start) not in rejected])
        inserted = [row for row in missing if (row.worker_id, row.start) not in rejected]
        self._telemetry.samples_were_mirrored(
            inserted=len(inserted),
            already_present=len(rows) - len(missing),
            rejected=len(rejected),
            gap_filled=sum(row.healed for row in inserted),
        )
        await self._outbox.export_gauges(self._telemetry)

    async def _wait_for_running_inserts(self) -> None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + QUIESCE
        while not await self._target.no_insert_running():
            if clock() > deadline:
                raise StoreUnavailableError("another insert into the history is still running", reason="busy")
            await asyncio.sleep(0.05)

    async def _insert(
        self, rows: Sequence[PendingSample], leases: Sequence[WriterLease], fences: Sequence[int]
    ) -> set[tuple[str, int]]:
        if not rows:
            return set()
        if [lease.fence for lease in leases] != fences:
            # This process was paused; somebody else was the writer, and what was read back is no longer true.
            raise StoreUnavailableError("another exporter held the lease while this batch was read back", reason="lease")
        remaining = min(lease.remaining for lease in leases)
        if remaining < MIN_LEASE_SECONDS:
            # Somebody else may be the writer before the server has finished; a renewal is seconds away.
            raise StoreUnavailableError("the lease ends too soon to write", reason="lease")
        rejected = await self._target.insert([sample(row) for row in rows], within=remaining - INSERT_MARGIN_SECONDS)
        for bad, reason in rejected:
            _log.error("MongoDB rejects a sample for good; it is set aside", worker_id=bad.worker_id, reason=reason)
        return {(bad.worker_id, to_seconds(bad.timestamp)) for bad, _ in rejected}


def sample(row: PendingSample) -> WorkerMetricsSample:
    """A settled row as the customer's record."""
    return WorkerMetricsSample(
        worker_id=row.worker_id,
        region=row.region,
        timestamp=to_datetime(row.start),
        cpu_utilization=row.cpu,
        memory_utilization=row.memory,
        active_labs_count=row.active_labs,
        status=row.status,
    )
