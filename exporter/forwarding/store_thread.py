"""The event loop on which stores encode and send, in a thread of its own: a batch must not hold up the collector's loop."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class StoreThread:
    """A running event loop; `close` ends it. It dies with the process: a store that hangs must not delay its end."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="forward", daemon=True).start()

    async def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]], seconds: float, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a coroutine function there and return its result; raises what it raises.

        Args:
            function: what to run.
            seconds: limit; then it is cancelled, which it may ignore.
            args, kwargs: its arguments.

        Raises:
            TimeoutError: it has not ended in time.
        """
        future = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), self._loop)
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the loop, whatever still runs there."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()
