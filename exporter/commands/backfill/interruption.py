"""Stop a long command gracefully on SIGINT and SIGTERM."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from exporter.commands.terminal import say
from exporter.pipeline.loop import wait

GRACE_SECONDS = 10
"""Time that calls in progress have to finish after the first signal: AWS bills them in any case."""


class GracefulStop:
    """A stop request by signal: the first lets work in progress finish, the second or `GRACE_SECONDS` cancel the task.

    Attributes:
        requested: set by the first signal.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self._graceful = False

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM within the block; the current task is the one that is cancelled."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # this is called from a coroutine

        def stop() -> None:
            if self.requested.is_set() or not self._graceful:
                task.cancel()
            else:
                loop.call_later(GRACE_SECONDS, task.cancel)
            self.requested.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    @contextmanager
    def graceful(self) -> Iterator[None]:
        """Let a signal that comes within the block wait for work in progress; elsewhere it cancels at once."""
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False

    async def pause(self, seconds: float) -> None:
        """Sleep until the time is over or a stop is requested."""
        await wait(self.requested, seconds)


async def until_signalled(run: Callable[[GracefulStop], Awaitable[int]], err: TextIO) -> int:
    """Return the exit status of `run`, or 130 where SIGINT or SIGTERM cancelled it."""
    stop = GracefulStop()
    with stop.by_signals():
        try:
            return await run(stop)
        except asyncio.CancelledError:
            if not stop.requested.is_set():
                raise
            say("Interrupted; run the same command to go on.", err)
            return 130
