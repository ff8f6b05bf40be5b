"""A run of `backfill` or `import-events`: one half finds samples, the other writes them to MongoDB, until all is done.

The run ends earlier when it is interrupted or MongoDB stays away. Samples older than `gap_fill_window` have several writers;
the lease BACKFILL allows one at a time.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TextIO

from exporter.commands.backfill.fetcher import RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.backfill.journal import SampleJournal
from exporter.commands.terminal import say
from exporter.core import logs
from exporter.core.errors import IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.history_watch import HistoryWatch
from exporter.pipeline.loop import wait
from exporter.pipeline.mirror import RETRY_SECONDS, Mirror
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.storage.history_marker import HistoryMarker
from exporter.storage.lease import BACKFILL, Lease, keep_renewed
from exporter.storage.repository import WorkerMetricsRepository
from exporter.storage.sample_writer import SampleWriter

_log = logs.get("backfill")


class SampleSource(Protocol):
    """The half that finds samples and stores them in the journal."""

    async def load(self) -> None:
        """Read from the journal what is left to do; raises StoreError."""

    async def run(self) -> None:
        """Store samples in the journal until all are there, or the state or the stop request explain what is left."""


class FailureState(Protocol):
    """What both halves share."""

    failure: StoreError | None
    """The failure of the journal or of MongoDB that ended the run."""


class BackfillRun:
    """Runs both halves: the source fills the journal, the mirror moves its samples into the history.

    `state.failure` and the stop request end both; calls and batches in progress finish first.
    """

    def __init__(
        self,
        journal: SampleJournal,
        source: SampleSource,
        mirror: Mirror,
        lease: Lease,
        stop: GracefulStop,
        retry: RetryPolicy,
        state: FailureState,
    ) -> None:
        self._journal, self._source, self._mirror, self._lease = journal, source, mirror, lease
        self._stop, self._retry, self._state = stop, retry, state

    async def run(self) -> None:
        """Find and mirror samples until all is done, or `state` or the stop request explain what is left.

        Raises:
            StoreError: the journal cannot be read; nothing was done.
        """
        await self._source.load()
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(self._source.run(), name="fetch")
            fetching.add_done_callback(lambda _: self._mirror.wake.set())
            group.create_task(self._mirror_until(fetching), name="mirror")

    async def drain(self) -> None:
        """Mirror the samples that wait in the outbox; `state.failure` says why some are left."""
        await self._mirror_until(None)

    async def _mirror_until(self, fetching: "asyncio.Task[None] | None") -> None:
        """Mirror until no sample waits and the task that adds more is done; retry while MongoDB is unavailable."""
        failing_since: float | None = None
        while not self._stop.requested.is_set() and self._state.failure is None:
            self._mirror.wake.clear()
            if not self._journal.waiting:
                if fetching is None or fetching.done():
                    return
                await wait(self._mirror.wake, 0.5)
                continue
            problem = await self._mirror_batch()
            if problem is None:
                failing_since = None
                continue
            failing_since = failing_since or time.monotonic()
            if isinstance(problem, IncompatibleStoreError) or time.monotonic() - failing_since > self._retry.mongodb:
                self._state.failure = problem
                return
            await self._stop.pause(min(RETRY_SECONDS, self._retry.mongodb))

    async def _mirror_batch(self) -> StoreError | None:
        """Mirror one batch; return the error when it failed."""
        try:
            if not self._lease.held and not await self._lease.acquire_or_renew():
                return StoreUnavailableError(
                    "another backfill, an import of events or a purge has taken the lease to write old samples; "
                    "run this again when it has ended",
                    reason="lease",
                )
            await self._mirror.step()
        except StoreError as error:
            return error
        return None


@asynccontextmanager
async def watched(
    history: WorkerMetricsRepository,
    thread: OutboxThread,
    telemetry: Telemetry,
    state: FailureState,
    forget_plan: Callable[[], None],
) -> AsyncIterator[HistoryWatch]:
    """Watch the history within the block: where it loses samples that the run has written, end the run and forget its plan.

    Args:
        history: that is written.
        thread: of the journal, which keeps the marker.
        telemetry: counts the replacement.
        state: gets the failure.
        forget_plan: deletes the plan from the journal: its calls are done, and the samples of them are gone.
    """

    def replaced() -> None:
        state.failure = IncompatibleStoreError(
            f"{history.namespace} was dropped or replaced while this ran, and has lost samples that were written; run the same "
            "command again: it makes a new plan",
            reason="replaced",
        )

    try:
        yield HistoryWatch(HistoryMarker(history.collection), thread, telemetry, replaced)
    finally:
        if state.failure is not None and state.failure.reason == "replaced":
            await thread(forget_plan)


@asynccontextmanager
async def hold(lease: Lease, writer: SampleWriter, patience: float, err: TextIO) -> AsyncIterator[None]:
    """Hold the lease within the block, and keep the fence of the history up.

    Waits up to `patience` seconds for it: `serve` takes the lease only for moments, a backfill, an import or a purge for long.

    Raises:
        StoreUnavailableError: another process still holds it.
    """
    deadline, announced = time.monotonic() + patience, False
    while not await lease.acquire_or_renew():
        if time.monotonic() > deadline:
            raise StoreUnavailableError(
                "another backfill, an import of events or a purge is writing old samples, maybe from another machine; "
                "wait until it has ended",
                reason="lease",
            )
        if not announced:
            say(f"Another process holds the lease {BACKFILL!r}; waiting up to {patience:.0f} s.", err)
            announced = True
        await asyncio.sleep(min(1.0, patience / 2))
    renewing = asyncio.create_task(keep_renewed(lease, keep_fence=writer.keep_fence), name="lease")
    try:
        yield
    finally:
        renewing.cancel()
        try:
            await lease.release()
        except StoreError as error:
            _log.warning("lease not released; it expires", error=str(error))
