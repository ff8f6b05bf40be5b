"""The first use of a database: a mistyped one has no workers, and gets no collections either."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from exporter.core import logs
from exporter.core.errors import SourceError, StoreError
from exporter.storage.lease import Lease
from exporter.storage.mongo import STATE, durable, operation
from exporter.storage.repository import WorkerMetricsRepository

RETRY_SECONDS = 5.0
"""How often an exporter that may not create anything yet looks whether there is a worker."""

_log = logs.get("exporter")


class WorkerCollections(Protocol):
    """Where the worker documents are."""

    @property
    def namespace(self) -> str:
        """Database and collection, for messages."""

    async def any_document(self) -> bool:
        """Return whether there is one; raises SourceError."""


class FirstUse:
    """Lets an exporter write only where there is a worker, or where one has written before.

    Args:
        history: that is written.
        lease: of its writer.
        workers: the worker documents.
    """

    def __init__(self, history: WorkerMetricsRepository, lease: Lease, workers: WorkerCollections) -> None:
        self.history, self._lease, self._workers = history, lease, workers
        self._announced = False

    async def may_create(self) -> bool:
        """Return whether this is a database of workers: one has a document, or there is a history or an exporter's state.

        Raises:
            IncompatibleStoreError: the history cannot be used.
            SourceError, StoreError: MongoDB does not answer.
        """
        if (await self.history.collection.verify()).exists or await self._has_state() or await self._workers.any_document():
            return True
        if not self._announced:
            where = self._workers.namespace
            _log.warning("no worker document yet; nothing is created in MongoDB before the first one", collection=where)
        self._announced = True
        return False

    async def take(self) -> None:
        """Take the lease if it is free; raises StoreError."""
        await self._lease.acquire_or_renew()
        if problem := await self.history.writer.fence_problem():
            _log.warning("late inserts are not refused", problem=problem)

    async def wait_and_take(self, beat: Callable[[], object]) -> None:
        """Wait until it may write, and try to take the lease; returns at once where a process is known to hold it.

        Args:
            beat: called before each attempt, as the sign of life of this loop.
        """
        repeats = logs.Repeats()
        while not self._lease.held and not self._lease.held_elsewhere:
            beat()
            try:
                if await self.may_create():
                    await self.take()
                    return
            except (SourceError, StoreError) as error:
                self._lease.problem = self._lease.problem or str(error)
                if repeats.is_due(str(error)):
                    _log.warning("lease not acquired", error=str(error), **repeats.count)
            await asyncio.sleep(RETRY_SECONDS)

    async def _has_state(self) -> bool:
        database = durable(self.history.collection.database)
        async with operation(database, STATE, "find"):
            return await database[STATE].find_one({}, {"_id": 1}) is not None
