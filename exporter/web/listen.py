"""Bind the listening sockets."""

import os
import socket
from collections.abc import Sequence

from exporter.core.errors import ConfigError


def bind(addresses: Sequence[str]) -> list[socket.socket]:
    """Return a listening socket for each host:port.

    Raises:
        ConfigError: an address is in use, invalid, or not an address of this machine.
    """
    sockets: list[socket.socket] = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            if host:
                sockets.append(socket.create_server((host, int(port)), family=_family(host), backlog=512))
            else:
                dual = socket.has_dualstack_ipv6()
                family = socket.AF_INET6 if dual else socket.AF_INET
                sockets.append(socket.create_server(("", int(port)), family=family, dualstack_ipv6=dual, backlog=512))
        except OSError as error:
            for other in sockets:
                other.close()
            raise ConfigError(
                f"web.listen_address: cannot listen on {address} ({os.strerror(error.errno) if error.errno else error}); "
                "stop what uses it, or choose another with --web.listen-address"
            ) from error
    return sockets


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
