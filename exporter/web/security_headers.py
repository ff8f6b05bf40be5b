"""The security headers of every response: what a browser may do with it, and who may keep it."""

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
"""Those of data and errors. A response that has one of these headers keeps its own: pages, which load their style sheet, and
what may be cached."""
RAW_SECURITY_HEADERS = "".join(f"{name.lower()}: {value}\r\n" for name, value in SECURITY_HEADERS.items())
"""The same as lines of HTTP/1.1, for responses that no application sends."""


def with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """Return a `send` that adds to a response the headers which it does not have."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = MutableHeaders(scope=message)
            for name, value in headers.items():
                present.setdefault(name, value)
        await send(message)

    return send_with_headers


class SecurityHeaders:
    """ASGI middleware that adds the security headers which a response does not have.

    Args:
        app: whose responses get them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        await self._app(scope, receive, with_headers(send, SECURITY_HEADERS))
