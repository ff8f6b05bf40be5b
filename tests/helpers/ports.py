"""Ports of 127.0.0.1 for the servers of tests, which no other process of the run is given, nor a connection by the system."""

import itertools
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from exporter.demo import ports

FIRST, LAST, SHARE = 10_000, 32_000, 1_000
"""A process of a run takes its ports from a share of these. Linux takes those of connections, and of servers that leave the
choice to it, from 32,768 on: between the choice of such a port and its use, another process may be given it."""
OF_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a port on which nothing listens."""
    if not _below_connections():
        return ports.free_port()
    return next(port for port in _share() if ports.is_free(port))


@cache
def _below_connections() -> bool:
    return OF_CONNECTIONS.exists() and int(OF_CONNECTIONS.read_text().split()[0]) > LAST


@cache
def _share() -> Iterator[int]:
    """The ports of this process, again and again; the first differs between runs."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    begin = FIRST + number * SHARE % (LAST - FIRST)
    first = os.getpid() % SHARE
    return itertools.cycle([begin + (first + step) % SHARE for step in range(SHARE)])
