"""Turns at work that is limited: few at once, shared by client address, and none for a client that has hung up."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive

from exporter.core.errors import ExporterError
from exporter.web import responses

TOO_MANY = Response(
    responses.problem(429, "Too many requests of this client are waiting.").model_dump_json(),
    HTTPStatus.TOO_MANY_REQUESTS,
    {"Retry-After": "1"},
    "application/problem+json",
)
"""The response to a client that has as many requests waiting as it may."""

T = TypeVar("T")


class TooManyWaitingError(ExporterError):
    """A client has as many requests waiting as it may."""


class Turns:
    """Grants turns: `running` at once; of those that wait, each client in its turn, and of a client the one that came first.

    Args:
        running: turns that are granted at once.
        waiting: requests of one client that may wait.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._free = running
        self._most = waiting
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Client → its requests; the client whose turn is next comes first."""

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the block runs.

        Raises:
            TooManyWaitingError: the client has too many requests waiting.
        """
        if self._free and not self._waiting:
            self._free -= 1
        else:
            await self._wait(client)
        try:
            yield
        finally:
            self._free += 1
            self._grant()

    async def _wait(self, client: str) -> None:
        queue = self._waiting.setdefault(client, deque())
        if len(queue) >= self._most:
            raise TooManyWaitingError(f"{len(queue)} requests of this client are waiting already; try again later")
        granted = asyncio.get_running_loop().create_future()
        queue.append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # granted in the moment in which the client hung up
                self._free += 1
                self._grant()
            else:
                queue.remove(granted)
                if not queue and self._waiting.get(client) is queue:
                    del self._waiting[client]
            raise

    def _grant(self) -> None:
        while self._free and self._waiting:
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            granted = queue.popleft()
            if queue:
                self._waiting[client] = queue  # behind the others
            if not granted.done():
                self._free -= 1
                granted.set_result(None)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> tuple[T, Receive]:
    """Run a coroutine, or cancel it when the client hangs up.

    Returns:
        Its result, and the function by which the application receives the request: only the messages of the request tell
        whether the client is still there, so some have been received already.

    Raises:
        ClientDisconnect: the client has hung up.
    """
    received: deque[Message] = deque()

    async def listen() -> None:
        while True:
            message = await receive()
            received.append(message)
            if message["type"] == "http.disconnect":
                return
            if message.get("more_body"):  # the rest of a body is not read yet: it would fill the memory
                await asyncio.Event().wait()

    async def replay() -> Message:
        return received.popleft() if received else await receive()

    working, listening = asyncio.ensure_future(work), asyncio.ensure_future(listen())
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working, replay
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)
