"""Stop a backfill gracefully on SIGINT and SIGTERM."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 10
"""Seconds that calls under way have after the first Ctrl-C: they are paid for."""


class GracefulStop:
    """The first signal lets what is under way come to its end, the second or `GRACE` seconds end everything."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.gentle = False
        """Whether there is something to let come to its end."""

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """Listen to SIGINT and SIGTERM; the task that entered is cancelled."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # this is called from a coroutine

        def stop() -> None:
            if self.came.is_set() or not self.gentle:
                task.cancel()
            else:
                loop.call_later(GRACE, task.cancel)
            self.came.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond an interruption."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.came.wait()
