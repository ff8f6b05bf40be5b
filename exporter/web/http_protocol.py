"""One HTTP connection: uvicorn's protocol, with TLS of its own and the limits of `connections`.

uvicorn limits neither the size of headers nor the time that a request takes to arrive or a response to be read. It starts TLS
before it knows of a connection, so that connections without a handshake would stay unnoticed.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from exporter.web import responses
from exporter.web.connections import Connection, Connections, Phase
from exporter.web.security_headers import RAW_SECURITY_HEADERS

NO_HTTP = (
    "This is no valid HTTP/1.1 request; percent-encode characters of the address that are not ASCII, and blanks: "
    "Pr%C3%BCfstand%201."
)
"""What is wrong with most requests that are none: a client sent a name of a worker as it is."""
PIECE_BYTES = 1 << 12
"""Bytes that are parsed before the limits are checked again."""
LINGER_SECONDS = 1.0
"""Time between a refusal and the end of the connection, in which the client can read it although it is still sending."""
MAX_DISCARDED_BYTES = 1 << 20
"""Bytes that are read, and discarded, in that time."""

Certificate = Mapping[str, Any]
"""A client certificate as `ssl.SSLSocket.getpeercert` returns it."""


@lru_cache(maxsize=1)
def _date(second: int) -> tuple[bytes, bytes]:
    """Return the Date header. uvicorn keeps it up to date ten times a second, whether there are requests or not."""
    return b"date", formatdate(second, usegmt=True).encode()


def protect(
    config: uvicorn.Config, connections: Connections, *, admits: Callable[[Certificate], bool] = lambda certificate: True
) -> None:
    """Have a server use `LimitedProtocol`, also for its TLS; call it last, once the configuration has its TLS context.

    Args:
        config: the server's configuration.
        connections: the limits, shared by all connections of the server.
        admits: whether a client may connect, by its verified certificate; only called where there is one.
    """
    if not config.loaded:
        config.load()
    tls, config.ssl = config.ssl, None
    config.http_protocol_class = partial(LimitedProtocol, connections, tls, admits)  # type: ignore[assignment]  # a factory
    config.ws_protocol_class = None


class LimitedProtocol(HttpToolsProtocol):
    """One connection: TLS handshake, then requests and responses, within the limits of `Connections`."""

    def __init__(
        self,
        connections: Connections,
        tls: ssl.SSLContext | None,
        admits: Callable[[Certificate], bool],
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limited, self._tls, self._admits = connections, tls, admits
        self._connection: Connection | None = None
        self._tcp: asyncio.Transport | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._early = b""
        """What arrived before TLS was started, and again what arrived with the end of its handshake."""
        self._piece = 0
        """Bytes of the piece that is being parsed."""
        self._outside = 0
        """Bytes of the current request that are outside its body."""
        self._cycles: list[RequestResponseCycle] = []
        """The requests without a whole response."""
        self._refused = False
        self._lost = False

    # -- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Register the connection; start TLS, or HTTP."""
        self._tcp = transport
        self._connection = self._limited.open(transport, self._end)
        if self._tls is None:
            super().connection_made(transport)
        else:
            transport.pause_reading()
            self._handshake = self.loop.create_task(self._secure(transport, self._connection, self._tls))

    async def _secure(self, transport: asyncio.Transport, connection: Connection, tls: ssl.SSLContext) -> None:
        seconds = self._limited.limits.request_seconds
        starting = self.loop.create_task(
            self.loop.start_tls(transport, self, tls, server_side=True, ssl_handshake_timeout=seconds)
        )
        await asyncio.sleep(0)  # it has replaced the protocol now, and calls that one's connection_made next
        self.loop.call_soon(self._begin_handshake, transport)
        try:
            secured = await starting
        except OSError:  # also errors of TLS and timeouts; scanners cause them all the time
            secured = None
        # uvloop reports success also where the TCP connection was aborted during the handshake, and tells no loss of it.
        if secured is None or self._lost or transport.is_closing():
            self._end()
            return
        certificate = secured.get_extra_info("peercert")
        if certificate and not self._admits(certificate):
            self._limited.abort(connection, "client_certificate")
            return
        connection.layers.append(secured)
        super().connection_made(secured)
        if self._early:
            self.data_received(self._early)

    def _begin_handshake(self, transport: asyncio.Transport) -> None:
        """Pass on what arrived before TLS was started: uvloop begins to read in spite of `pause_reading`."""
        early, self._early = memoryview(self._early), b""
        protocol: Any = transport.get_protocol()  # a BufferedProtocol, by its methods
        while early and protocol is not self:
            buffer = memoryview(protocol.get_buffer(len(early)))
            size = min(len(buffer), len(early))
            buffer[:size] = early[:size]
            protocol.buffer_updated(size)
            early = early[size:]

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._lost = True
        if self._connection is not None:
            self._limited.close(self._connection)
        self._disconnect()
        if self.transport is not None:
            super().connection_lost(exc)

    def _end(self) -> None:
        """Close the connection at once."""
        self._disconnect()
        if self._connection is not None:
            self._limited.close(self._connection)
        if self._tcp is not None:
            self._tcp.abort()

    def _disconnect(self) -> None:
        """Tell the requests that nobody waits for their response; uvicorn tells only the last of several."""
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        self._cycles.clear()

    def pause_writing(self) -> None:
        """Wait until the client has read, unless it leaves too much unread already."""
        if self.flow is not None:
            super().pause_writing()
        if self._connection is not None:
            self._limited.check_unread(self._connection)

    def resume_writing(self) -> None:
        """Continue to write."""
        if self.flow is not None:
            super().resume_writing()

    # -- the request

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, piece by piece."""
        if self.transport is None:
            self._early += data
            return
        if self._refused:
            self._outside += len(data)
            if self._outside > MAX_DISCARDED_BYTES and not self.transport.is_closing():
                self.transport.pause_reading()
            return
        if self._phase is Phase.IDLE:
            self._enter(Phase.RECEIVING)
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            self._piece = len(piece)
            self._outside += len(piece)
            super().data_received(piece)
            if self._refused or self.transport.is_closing():
                return
            if self._outside > self._limited.limits.header_bytes:
                self._refuse_headers()
                return

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._refused:
            return
        super().on_message_begin()
        self.server_state.default_headers = [_date(int(time.time())), *self.config.encoded_headers]
        self._outside = self._piece
        self._enter(Phase.RECEIVING)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        if not self._refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Have the application answer the request, unless its headers are too large."""
        if self._refused:
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limited.limits.header_bytes:
            self._refuse_headers()
        elif len(self.pipeline) >= self._limited.limits.pipelined:
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, "Too many requests were sent without waiting for a response.")
        else:
            super().on_headers_complete()
            self._cycles = [cycle for cycle in (*self._cycles, self.cycle) if not cycle.response_complete]

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        self._outside -= len(body)
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request; the connection waits for its response now."""
        if self._refused:
            return
        super().on_message_complete()
        self._outside = 0
        self._enter(Phase.IDLE if self.cycle.response_complete else Phase.BUSY)

    def on_response_complete(self) -> None:
        """End the response; the next request may begin."""
        super().on_response_complete()
        if self._phase is Phase.BUSY and (self.cycle is None or self.cycle.response_complete):
            self._enter(Phase.IDLE)

    # -- what is refused

    def _refuse_headers(self) -> None:
        most = self._limited.limits.header_bytes
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The headers of a request may have {most} bytes in all.")

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer with an error, and close the connection once the client could read it."""
        if self._refused:
            return
        self._refused = True
        assert self._connection is not None
        self._limited.count("header_bytes" if status == 431 else "pipelined", self._connection.client)
        if self.cycle is not None and not self.cycle.response_complete:
            self._end()  # an error in the middle of another response would be taken for its content
            return
        self.transport.write(_error(status, detail))
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP with an error, and close the connection. `msg` does not say what to do."""
        self.transport.write(_error(HTTPStatus.BAD_REQUEST, NO_HTTP))
        self.transport.close()

    @property
    def _phase(self) -> Phase:
        return self._connection.phase if self._connection is not None else Phase.RECEIVING

    def _enter(self, phase: Phase) -> None:
        if self._connection is not None:
            self._limited.enter(self._connection, phase)


def _error(status: HTTPStatus, detail: str) -> bytes:
    """Return an error that closes the connection, as HTTP/1.1."""
    body = responses.problem(status, detail).model_dump_json().encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/problem+json\r\n{RAW_SECURITY_HEADERS}"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
