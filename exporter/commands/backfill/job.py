"""A backfill run: CloudWatch is queried and MongoDB written at the same time, until all is done or the run is interrupted."""

import asyncio
import time

from exporter.commands.backfill.fetcher import Fetcher, RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.backfill.journal import Journal
from exporter.commands.backfill.report import RunState
from exporter.core.errors import IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.pipeline.loop import wait
from exporter.pipeline.mirror import RETRY_SECONDS, Mirror
from exporter.storage.lease import Lease


class BackfillRun:
    """Runs both halves: the fetcher fills the journal, the mirror moves its samples into the history.

    `state.failure` and the stop request end both; calls and batches in progress finish first.
    """

    def __init__(
        self,
        journal: Journal,
        fetcher: Fetcher,
        mirror: Mirror,
        lease: Lease,
        stop: GracefulStop,
        retry: RetryPolicy,
        state: RunState,
    ) -> None:
        self._journal, self._fetcher, self._mirror, self._lease = journal, fetcher, mirror, lease
        self._stop, self._retry, self._state = stop, retry, state

    async def run(self) -> None:
        """Fetch and mirror until all is done, or `state` or the stop request explain what is left.

        Raises:
            StoreError: the journal cannot be read; no call was made.
        """
        await self._fetcher.load()
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(self._fetcher.run(), name="fetch")
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
                    "another backfill or a purge has taken the lease to write old samples; run this again when it has ended",
                    reason="lease",
                )
            await self._mirror.step()
        except StoreError as error:
            return error
        return None
