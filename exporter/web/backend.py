"""What the routes query: the bridge to the collector's event loop, and cached reads."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from exporter.core.budget import Budget
from exporter.core.errors import SourceError, StoreUnavailableError
from exporter.core.model import InventoryEntry, Worker
from exporter.history.cloudwatch_archive import CloudWatchArchive
from exporter.history.points import Point

T = TypeVar("T")
INVENTORY_TTL_SECONDS = 10
"""How old the whole inventory may be when routes answer from it: to read 10,000 workers takes a tenth of a second."""


class LoopBridge:
    """The loop that collects, for what the routes' loop wants of it."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """None before it runs, and once it ends."""

    async def run(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        """Call `function` there and return what it returns.

        Raises:
            StoreUnavailableError: that loop does not run.
        """
        if self.loop is None:
            raise StoreUnavailableError("the exporter is starting or stopping; ask again in a few seconds", reason="starting")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*arguments), self.loop))


class BridgedArchive:
    """The archive for the routes' loop: it shares CloudWatch, its pace and its budget with the rounds."""

    def __init__(self, archive: CloudWatchArchive, elsewhere: LoopBridge, budget: Budget) -> None:
        self._archive, self._elsewhere, self._budget = archive, elsewhere, budget

    async def points(
        self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int, limit: int
    ) -> list[Point]:
        """As CloudWatchArchive.points, on the collector's loop; raises SourceError when the budget is spent."""
        self._check_budget(worker)
        return await self._elsewhere.run(self._archive.points, worker, entry, start, end, resolution, limit)

    async def window(self, worker: Worker, entry: InventoryEntry | None, start: int, end: int, resolution: int) -> list[Point]:
        """As CloudWatchArchive.window, on the collector's loop; raises SourceError when the budget is spent."""
        self._check_budget(worker)
        return await self._elsewhere.run(self._archive.window, worker, entry, start, end, resolution)

    def _check_budget(self, worker: Worker) -> None:
        if self._budget.spare <= 0:
            raise SourceError(
                "cloudwatch",
                "BudgetSpent",
                "what is left of cloudwatch.max_usd_per_day is kept for the running workers' gauges; ask again after 00:00 UTC",
                region=worker.region,
            )
