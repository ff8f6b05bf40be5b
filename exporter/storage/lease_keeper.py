"""Whether this process writes the history: the lease is taken where there are workers, and kept."""

import asyncio
from collections.abc import Awaitable, Callable

from exporter.core import logs
from exporter.core.errors import IncompatibleStoreError, SourceError, StoreError
from exporter.storage.first_use import is_in_use
from exporter.storage.lease import Lease, keep_renewed
from exporter.storage.repository import WorkerMetricsRepository

PREPARE_SECONDS = 5.0
"""How long gauges wait at the start for the collection and the lease; more than a MongoDB that is well needs."""
FIRST_WORKER_SECONDS = 5.0
"""How often an exporter that has nothing to write yet looks whether there is a worker."""

_log = logs.get("exporter")


class LeaseKeeper:
    """Takes the lease of one exporter, and renews it. Where there is no worker yet, nothing is created in MongoDB.

    Args:
        history: the history to write.
        lease: to write it.
        any_document: returns whether there is a worker document; raises SourceError.
        namespace: returns where they are looked for, for the log.
        on_change: called with whether the lease is held, when that changed.
    """

    def __init__(
        self,
        history: WorkerMetricsRepository,
        lease: Lease,
        any_document: Callable[[], Awaitable[bool]],
        namespace: Callable[[], str],
        on_change: Callable[[bool], object],
    ) -> None:
        self._history, self._lease, self._on_change = history, lease, on_change
        self._any_document, self._namespace = any_document, namespace
        self._announced = False

    async def prepare(self, *, waits_for_credentials: bool) -> None:
        """Verify the collection and take the lease if it is free, so that the first read of the fleet is recorded.

        Gauges do not wait for a MongoDB that can be read and not written: what is not done in `PREPARE_SECONDS`, the mirror and
        the renewal of the lease do later. Where there is no worker yet, the database may be the wrong one.

        Args:
            waits_for_credentials: whether refused credentials may be replaced by others later.

        Raises:
            IncompatibleStoreError: the history cannot be used.
        """
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                # Verifies first: an incompatible collection ends the start also where writes hang.
                await self._begin()
        except TimeoutError:
            text = f"MongoDB has not completed the preparations within {PREPARE_SECONDS:g} s"
            _log.warning("history not available yet; gauges continue, samples wait in the outbox", error=text)
        except IncompatibleStoreError as error:
            if error.reason != "credentials" or not waits_for_credentials:
                raise
            _log.warning("MongoDB refuses the credentials; waiting until uri_file has others", error=str(error))
        except (SourceError, StoreError) as error:
            _log.warning("history not available yet; gauges continue, samples wait in the outbox", error=str(error))

    async def keep_forever(self, beat: Callable[[], object]) -> None:
        """Renew the lease; where there was no worker at the start, take it as soon as there is one.

        Args:
            beat: called before each attempt, as the sign of life of this loop.
        """
        repeats, was_held = logs.Repeats(), self._lease.held
        while not self._lease.held and not self._lease.held_elsewhere:
            beat()
            try:
                if await self._begin():
                    break
            except (SourceError, StoreError) as error:
                self._lease.problem = self._lease.problem or str(error)
                if repeats.is_due(str(error)):
                    _log.warning("lease not acquired", error=str(error), **repeats.count)
            await asyncio.sleep(FIRST_WORKER_SECONDS)
        if self._lease.held and not was_held:
            self._on_change(True)
        await keep_renewed(self._lease, self._on_change, keep_fence=self._history.writer.keep_fence, beat=beat)

    async def _may_create(self) -> bool:
        """Return whether this is a database of workers: one has a document, or an exporter has written here before.

        Raises:
            IncompatibleStoreError: the history cannot be used.
            SourceError, StoreError: MongoDB does not answer.
        """
        if await is_in_use(self._history.collection) or await self._any_document():
            return True
        if not self._announced:
            text = "no worker document yet; nothing is created in MongoDB before the first one"
            _log.warning(text, collection=self._namespace())
        self._announced = True
        return False

    async def _begin(self) -> bool:
        """Try to take the lease and create what is missing; return whether there is a history to write."""
        if not await self._may_create():
            return False
        await self._lease.acquire_or_renew()  # first: samples that wait are worth more than a changed option of the collection
        await self._history.ensure_collection()
        if problem := await self._history.writer.fence_problem():
            _log.warning("late inserts are not refused", problem=problem)
        return True
