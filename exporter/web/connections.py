"""The open connections of the web server, and the limits that keep one client from using up what scrapes need.

A new connection is always accepted. Where there are too many, the least valuable ones are closed: those that have not sent a
request, then idle ones, then those that do not read their response, then the longest request. A scrape sends its request at
once and is answered within milliseconds, so it is none of these. `http_protocol` reports what a connection does.
"""

import asyncio
import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Protocol

from exporter.core import logs

MAX_CONNECTIONS = 512
"""Connections of all clients; half as many as file descriptors, where these are fewer than 1,024."""
SWEEP_SECONDS = 1.0
"""Time between two looks at the deadlines of all connections."""
SHED_DELAY_SECONDS = 0.01
"""Time between too many connections and the closing of some, in which the requests of new ones are read."""
YOUNG_SECONDS = 1.0
"""Age up to which a connection without a request is spared, unless such connections are half of the limit."""
LOG_SECONDS = 60.0
"""Time between two log lines of the same reason."""
MAX_DESCRIPTORS = 65_536
"""The limit of file descriptors is raised to this, as far as the hard limit allows."""
SEND_BUFFER_BYTES = 1 << 18
"""Bytes of a response that the kernel holds for a client; by default these are megabytes, which take milliseconds to copy."""
SPARE_DESCRIPTORS = 32
"""File descriptors that connections do not use up: the outbox, MongoDB and CloudWatch need some for new connections."""

REASONS = (
    *("incomplete_request", "header_bytes", "pipelined", "unread", "unread_bytes"),
    *("client_limit", "connection_limit", "descriptors", "client_certificate"),
)
"""Why connections are closed: values of the label `reason` of cml_exporter_http_connections_closed_total."""

MAX_CLIENT_CHARACTERS = 64
"""Of what stands for a client that has no address."""

_log = logs.get("connections")


class Phase(IntEnum):
    """What a connection does."""

    RECEIVING = 0
    """No whole request has arrived: it is silent, or its TLS handshake, headers or body are incomplete."""
    IDLE = 1
    """Its last response was written."""
    BUSY = 2
    """A request is being answered."""


class Transport(Protocol):
    """What is used of an asyncio transport."""

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the client has not taken."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the web server; the defaults are those of an exporter with 1,024 file descriptors or more."""

    request_seconds: float = 30
    """Time until a whole request has arrived, counted from the connection or from the first byte of a later request."""
    unread_seconds: float = 30
    """Time in which a client must take some of a response."""
    header_bytes: int = 1 << 16
    """Bytes of a request outside its body: request line, headers, trailers, sizes of chunks."""
    pipelined: int = 16
    """Requests that a client may send before the response of the first."""
    connections: int = MAX_CONNECTIONS
    """Connections of all clients."""
    per_client: int = MAX_CONNECTIONS // 4
    """Connections of one client address, or of one /64 network of IPv6."""
    unread_bytes: int = 128 << 20
    """Bytes of responses that one client has not taken; a single response may be larger."""
    descriptors: int = 1024
    """File descriptors of the process."""

    @classmethod
    def of_process(cls) -> "Limits":
        """Raise the limit of file descriptors, and return limits of connections that leave half of them to the rest."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        descriptors = MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
        connections = min(MAX_CONNECTIONS, descriptors // 2)
        return cls(connections=connections, per_client=connections // 4, descriptors=descriptors)


@dataclass(slots=True, eq=False)
class Connection:
    """One connection; times are those of the clock of `Connections`."""

    transport: Transport
    """The TCP connection."""
    client: str
    """The address that its limits are shared by."""
    since: float
    """Time at which the phase began."""
    phase: Phase = Phase.RECEIVING
    end: Callable[[], None] = lambda: None
    """Closes the connection at once, whatever it does."""
    layers: list[Transport] = field(default_factory=list)
    """Transports above the TCP connection: TLS."""
    unread: int = 0
    """Bytes of responses that the client had not taken at the last measurement."""
    unread_since: float = 0
    """Time at which the client took the last bytes, or at which the response was written."""

    def measure(self, now: float) -> None:
        """Update `unread` and `unread_since`."""
        size = sum(transport.get_write_buffer_size() for transport in (self.transport, *self.layers))
        if size < self.unread or not self.unread:
            self.unread_since = now
        self.unread = size


class Connections:
    """All open connections. Belongs to the web server's event loop.

    Args:
        limits: the limits.
        opened: called with the number of open connections.
        closed: called with a reason for each connection that is closed because of a limit, and for a shortage of descriptors.
        trusted: addresses and networks of reverse proxies, which have the connections of many clients.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        opened: Callable[[float], None] = lambda number: None,
        closed: Callable[[str], None] = lambda reason: None,
        trusted: Collection[str] = (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._opened, self._closed = opened, closed
        self._trusted = [ip_network(each, strict=False) for each in trusted]
        self._monotonic = monotonic
        self._open: set[Connection] = set()
        self._per_client: Counter[str] = Counter()
        self._sweeping: asyncio.TimerHandle | None = None
        self._shedding: asyncio.TimerHandle | None = None
        self._logged: dict[str, tuple[float, int]] = {}

    def open(self, transport: asyncio.Transport, end: Callable[[], None]) -> Connection:
        """Register a new connection, which `end` closes; close others soon, where there are too many."""
        client = client_of(transport.get_extra_info("peername"))
        connection = Connection(transport, client, self._monotonic(), end=end)
        self._open.add(connection)
        self._per_client[connection.client] += 1
        self._opened(len(self._open))
        loop = asyncio.get_running_loop()
        if self._sweeping is None:
            self._sweeping = loop.call_later(SWEEP_SECONDS, self._sweep)
        connected = transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if connected.fileno() >= self.limits.descriptors - SPARE_DESCRIPTORS:
            self.out_of_descriptors()
        if self._shedding is None and (len(self._open) > self.limits.connections or self._excess(connection.client) > 0):
            self._shedding = loop.call_later(SHED_DELAY_SECONDS, self._shed)
        return connection

    def close(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        if connection not in self._open:
            return
        self._open.remove(connection)
        self._per_client[connection.client] -= 1
        if not self._per_client[connection.client]:
            del self._per_client[connection.client]
        self._opened(len(self._open))

    def enter(self, connection: Connection, phase: Phase) -> None:
        """Record what a connection does from now on."""
        connection.phase, connection.since = phase, self._monotonic()

    def abort(self, connection: Connection, reason: str) -> None:
        """Close a connection because of a limit; count it under the reason."""
        self.close(connection)
        connection.end()
        self.count(reason, connection.client)

    def count(self, reason: str, client: str) -> None:
        """Count a connection that is closed because of a limit, and log it, each reason at most once in LOG_SECONDS."""
        self._closed(reason)
        last, unlogged = self._logged.get(reason, (-LOG_SECONDS, 0))
        if self._monotonic() - last < LOG_SECONDS:
            self._logged[reason] = (last, unlogged + 1)
            return
        self._logged[reason] = (self._monotonic(), 0)
        _log.warning("connection closed", reason=reason, client=client, open=len(self._open), unlogged=unlogged)

    def check_unread(self, connection: Connection) -> None:
        """Close connections of a client that leaves too much unread, those first that took nothing for the longest time.

        Args:
            connection: the one that a response was just written to; it stays open.
        """
        now = self._monotonic()
        same = [each for each in self._open if each.client == connection.client]
        for each in same:
            each.measure(now)
        excess = sum(each.unread for each in same) - self.limits.unread_bytes
        for each in sorted(same, key=lambda each: each.unread_since):
            if excess <= 0:
                return
            if each is not connection and each.unread:
                excess -= each.unread
                self.abort(each, "unread_bytes")

    def probe_descriptors(self) -> None:
        """Find out whether file descriptors run out, whatever uses them: a failed accept is not reported by the event loop."""
        try:
            lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.out_of_descriptors()
            return
        os.close(lowest)
        if lowest >= self.limits.descriptors - SPARE_DESCRIPTORS:
            self.out_of_descriptors()

    def out_of_descriptors(self) -> None:
        """Close a quarter of the connections, the least valuable ones; log and count the shortage also where there are none."""
        self.count("descriptors", "")
        now = self._monotonic()
        young = [each for each in self._open if each.phase is Phase.RECEIVING and now - each.since < YOUNG_SECONDS]
        spared = set(young) if len(young) < SPARE_DESCRIPTORS // 2 else set()
        waiting = [each for each in self._ordered(self._open) if each.phase is not Phase.BUSY and each not in spared]
        for each in waiting[: max(SPARE_DESCRIPTORS, len(self._open) // 4)]:
            self.abort(each, "descriptors")

    # -- limits of all connections

    def _excess(self, client: str) -> int:
        """Return how many connections a client has above its share."""
        if self._is_trusted(client):
            return 0
        return self._per_client[client] - self.limits.per_client

    def _shed(self) -> None:
        self._shedding = None
        for client in tuple(self._per_client):
            if (excess := self._excess(client)) > 0:
                self._close_some([each for each in self._open if each.client == client], excess, "client_limit")
        self._close_some(self._open, len(self._open) - self.limits.connections, "connection_limit")

    def _close_some(self, candidates: Collection[Connection], excess: int, reason: str) -> None:
        for each in self._ordered(candidates)[: max(0, excess)]:
            self.abort(each, reason)

    def _ordered(self, candidates: Collection[Connection]) -> Sequence[Connection]:
        """Return connections in the order in which they are closed."""
        now = self._monotonic()
        flooded = sum(each.phase is Phase.RECEIVING for each in candidates) > len(candidates) // 2
        for each in candidates:
            each.measure(now)

        def rank(each: Connection) -> tuple[int, float]:
            if each.phase is Phase.RECEIVING:
                return (0 if flooded or now - each.since > YOUNG_SECONDS else 4), each.since
            if each.unread:
                return 2, each.unread_since
            return (1 if each.phase is Phase.IDLE else 3), each.since

        return sorted(candidates, key=rank)

    def _sweep(self) -> None:
        """Close the connections whose time is over."""
        now = self._monotonic()
        for each in tuple(self._open):
            each.measure(now)
            if each.unread and now - each.unread_since > self.limits.unread_seconds:
                self.abort(each, "unread")
            elif each.phase is Phase.RECEIVING and now - each.since > self.limits.request_seconds:
                self.abort(each, "incomplete_request")
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(SWEEP_SECONDS, self._sweep) if self._open else None

    def _is_trusted(self, client: str) -> bool:
        if not client or not self._trusted:
            return False
        address = ip_address(client)  # of IPv6 the /64 network, as `client_of` returns it
        own = ip_network((address, 64 if address.version == 6 else 32))
        return any(network.overlaps(own) for network in self._trusted if network.version == own.version)


def client_of(peer: object) -> str:
    """Return what a client's limits are shared by: its address, for IPv6 its /64 network, which one host may have."""
    if not isinstance(peer, tuple) or not peer:
        return ""
    try:
        address: IPv4Address | IPv6Address = ip_address(str(peer[0]).partition("%")[0])
    except ValueError:  # what a proxy wrote into X-Forwarded-For, such as "unknown"
        return str(peer[0])[:MAX_CLIENT_CHARACTERS]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(ip_network((address, 64), strict=False).network_address)
        address = address.ipv4_mapped
    return str(address)
