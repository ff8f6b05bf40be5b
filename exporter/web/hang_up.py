"""Clients that hang up during a request: it ends quietly, since that is no error of the exporter and anyone can cause it."""

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CLOSED_TRANSPORT = "handler is closed"
"""How uvloop's RuntimeError ends when the connection was closed before the response to a pipelined request was written."""


class HangUp:
    """ASGI middleware that ends a request whose client has hung up.

    Args:
        app: whose errors of this kind end here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; drop what it sends after the connection was closed."""

        async def send_or_drop(message: Message) -> None:
            try:
                await send(message)
            except OSError:
                pass
            except RuntimeError as error:
                if not str(error).endswith(_CLOSED_TRANSPORT):
                    raise

        try:
            await self._app(scope, receive, send_or_drop)
        except ClientDisconnect:  # while the body was read
            return
