"""Admit requests to the application: scrapes and probes always, all others a few at a time."""

from collections.abc import Collection
from contextlib import AsyncExitStack

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from exporter.web.connections import client_of
from exporter.web.turns import TOO_MANY, TooManyWaitingError, Turns, while_connected

MAX_RUNNING = 16
"""Requests that are answered at once, scrapes and probes aside. Remote reads, half of which may wait for MongoDB, have 8."""
MAX_WAITING = 64
"""Requests of one client that wait for that."""


class Admission:
    """ASGI middleware that keeps what scrapes need: other requests wait for a turn, and end when their client hangs up.

    Args:
        app: the application.
        reserved: paths that need no turn.
    """

    def __init__(self, app: ASGIApp, reserved: Collection[str]) -> None:
        self._app, self._reserved = app, frozenset(reserved)
        self._turns = Turns(MAX_RUNNING, MAX_WAITING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application once it has a turn."""
        if scope["type"] != "http" or scope["path"] in self._reserved:
            await self._app(scope, receive, send)
            return
        async with AsyncExitStack() as stack:
            turn = self._turns.turn(client_of(scope.get("client")))
            try:
                _, receive = await while_connected(receive, stack.enter_async_context(turn))
            except TooManyWaitingError:
                await TOO_MANY(scope, receive, send)
            except ClientDisconnect:
                return
            else:
                await self._app(scope, receive, send)
