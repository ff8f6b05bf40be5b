"""Compresses data and pages for clients that accept it; not /metrics, whose worker block is compressed beforehand."""

import asyncio
import zlib
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

import cramjam
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exporter.web.negotiation import Coding, preferred_coding

MIN_BYTES = 1024
"""Bytes of the smallest body that is compressed: of a smaller one, headers are the greater part."""
MAX_BYTES_IN_LOOP = 1 << 15
"""Bytes that are compressed on the event loop, in less than a millisecond; more of them go to a thread."""
GZIP_LEVEL, ZSTD_LEVEL = 3, 3
"""Three quarters of what the highest level of gzip saves, in a tenth of its time."""
MEDIA_TYPES = frozenset(
    ("application/json", "application/problem+json", "text/csv", "text/html", "text/css", "text/javascript", "image/svg+xml")
)


class _Compressor(Protocol):
    def add(self, data: bytes) -> bytes:
        """Return what is to be sent once `data` is in."""

    def end(self) -> bytes:
        """Return the rest."""


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.compressobj(GZIP_LEVEL, wbits=31)

    def add(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._stream.flush()


class _Zstd:
    def __init__(self) -> None:
        self._stream = cramjam.zstd.Compressor(ZSTD_LEVEL)

    def add(self, data: bytes) -> bytes:
        self._stream.compress(data)
        return bytes(self._stream.flush())

    def end(self) -> bytes:
        return bytes(self._stream.finish())


_COMPRESSORS: dict[Coding, Callable[[], _Compressor]] = {"gzip": _Gzip, "zstd": _Zstd}


def compressed(body: bytes, coding: Coding) -> bytes:
    """Return a whole body in this coding."""
    if coding == "zstd":
        return bytes(cramjam.zstd.compress(body, ZSTD_LEVEL))
    return zlib.compress(body, GZIP_LEVEL, wbits=31)


class Compression:
    """ASGI middleware that compresses bodies with zstd or gzip, as Accept-Encoding weighs them.

    A body that is sent in parts is compressed part by part, and each part is sent at once: never more than one is in memory.
    A response that has a Content-Encoding, or another media type than `MEDIA_TYPES`, passes as it is.

    Args:
        app: whose responses are compressed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        accepted = ",".join(Headers(scope=scope).getlist("accept-encoding"))
        await self._app(scope, receive, _Sender(send, preferred_coding(accepted)).send)


class _Sender:
    """Sends one response, compressed if it can be.

    Args:
        send: of the server.
        coding: what the client prefers; None: the plain body.
    """

    def __init__(self, send: Send, coding: Coding | None) -> None:
        self._send, self._coding = send, coding
        self._start: Message | None = None
        """The beginning of a response that may be compressed, until its body shows whether it is."""
        self._stream: _Compressor | None = None

    async def send(self, message: Message) -> None:
        """Send a message of the response."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif self._start is not None:
            start, self._start = self._start, None
            await self._first(start, message)
        elif self._stream is not None:
            await self._part(self._stream, message)
        else:
            await self._send(message)

    async def _begin(self, start: Message) -> None:
        headers = MutableHeaders(scope=start)
        media_type = headers.get("content-type", "").partition(";")[0]
        # A 304 has no media type; it has the headers that the response would have whose place it takes.
        if start["status"] == HTTPStatus.NOT_MODIFIED or (media_type in MEDIA_TYPES and "content-encoding" not in headers):
            headers.add_vary_header("Accept-Encoding")
            if self._coding is not None and start["status"] != HTTPStatus.NOT_MODIFIED:
                self._start = start
                return
        await self._send(start)

    async def _first(self, start: Message, message: Message) -> None:
        """Send the beginning, and the first part of the body or all of it."""
        assert self._coding is not None
        body, headers = message.get("body", b""), MutableHeaders(scope=start)
        if message.get("more_body", False):
            headers["Content-Encoding"] = self._coding
            del headers["Content-Length"]
            self._stream = _COMPRESSORS[self._coding]()
            await self._send(start)
            await self._part(self._stream, message)
            return
        if len(body) >= MIN_BYTES:
            headers["Content-Encoding"] = self._coding
            body = await _run(compressed, body, self._coding)
            headers["Content-Length"] = str(len(body))
        await self._send(start)
        await self._send({**message, "body": body})

    async def _part(self, stream: _Compressor, message: Message) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        data = await _run(stream.add, body) if body else b""
        await self._send({**message, "body": data if more else data + stream.end()})


async def _run(compress: Callable[..., bytes], body: bytes, *arguments: object) -> bytes:
    """Compress in a thread where that takes longer than a change of threads: scrapes must not wait for it."""
    if len(body) <= MAX_BYTES_IN_LOOP:
        return compress(body, *arguments)
    return await asyncio.to_thread(compress, body, *arguments)
