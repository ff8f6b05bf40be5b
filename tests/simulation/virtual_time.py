"""An event loop whose time advances only when no task can run: ten hours take a second, always in the same order."""

import asyncio
import selectors
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Leaper(selectors.SelectSelector):
    """A selector that waits for no file and skips the time the loop would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits for another one")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock begins at 0. Functions for threads run at once, since nothing else may be concurrent."""

    def __init__(self) -> None:
        self._leaper = _Leaper()
        super().__init__(self._leaper)
        self.complaints: list[Mapping[str, Any]] = []
        """What asyncio would have logged, such as an exception that was never retrieved."""
        self.set_exception_handler(lambda _, context: self.complaints.append(context))

    def time(self) -> float:
        return self._leaper.now

    def run_in_executor(self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> "asyncio.Future[T]":
        """Call now, deliver later, so that other tasks come in between as they would with a thread."""
        future: asyncio.Future[T] = self.create_future()
        try:
            result = func(*args)
        except BaseException as error:  # noqa: BLE001  # raised where the future is awaited
            self.call_soon(_deliver, future, future.set_exception, error)
        else:
            self.call_soon(_deliver, future, future.set_result, result)
        return future


def _deliver(future: "asyncio.Future[T]", how: Callable[[Any], None], what: object) -> None:
    if not future.done():  # cancelled meanwhile
        how(what)
