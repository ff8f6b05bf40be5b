"""The loops of an exporter, which end together; one that loses its cancellation is cancelled again."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import anyio

AGAIN_SECONDS = 1.0
"""After how long a loop that has not ended is cancelled again."""


class LoopGroup:
    """Runs loops until the group is cancelled or one of them fails; then it ends all. Use it as an async context manager.

    Unlike asyncio.TaskGroup it does not cancel only once: a library may take a cancellation for a failure of its own call, as
    the driver of MongoDB does now and then, and the loop would go on as after any failure.

    Raises:
        BaseExceptionGroup: of the errors of the loops, when the block is left.
    """

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def create_task(self, loop: Coroutine[Any, Any, None], *, name: str) -> None:
        """Start a loop."""
        self._tasks.append(asyncio.create_task(loop, name=name))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            with anyio.CancelScope(shield=True):
                await self.end()
        failed = [found for task in self._tasks if not task.cancelled() and (found := task.exception())]
        if failed:
            raise BaseExceptionGroup("a loop of the exporter failed", failed)

    async def end(self) -> None:
        """Cancel the loops until all have ended."""
        while pending := [task for task in self._tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=AGAIN_SECONDS)
