"""Bind the listening sockets."""

import errno
import os
import socket
from collections.abc import Sequence

from exporter.core.errors import ConfigError

BACKLOG = 512
"""Connections that wait to be accepted."""


def bind(addresses: Sequence[str]) -> list[socket.socket]:
    """Return the listening sockets for each host:port; several for a name with several addresses.

    `[::]:9877` accepts IPv4 too, as `:9877` does, and as both do in Prometheus's own servers.

    Raises:
        ConfigError: an address is in use or not one of this machine, or a name cannot be resolved.
    """
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets.extend(_bind(address))
    except ConfigError:
        for listener in sockets:
            listener.close()
        raise
    return sockets


def shown(listener: socket.socket) -> str:
    """Return host:port of a socket, an IPv6 address in brackets; the path of a Unix socket."""
    name = listener.getsockname()
    if isinstance(name, str):
        return name
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(address: str) -> list[socket.socket]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if host in ("", "::"):
        return [_listen(address, *_any_address(host), int(port))]
    found: list[socket.socket] = []
    missing: ConfigError | None = None
    for family, numeric in _resolve(address, host):
        try:
            # With port 0 the addresses of a name share the port that the first one gets.
            found.append(_listen(address, family, numeric, found[0].getsockname()[1] if found else int(port)))
        except ConfigError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for listener in found:
                    listener.close()
                raise
            missing = missing or error  # such as ::1 of localhost where IPv6 is off
    if not found:
        assert missing is not None
        raise missing
    return found


def _any_address(host: str) -> tuple[socket.AddressFamily, str]:
    return (socket.AF_INET6, "::") if host or socket.has_dualstack_ipv6() else (socket.AF_INET, "")


def _resolve(address: str, host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Return family and number of each address of a host, without duplicates."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: a label of more than 63 characters
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise ConfigError(
            f"web.listen_address: cannot resolve {host!r} of {address} ({reason}); "
            "write an address of this machine, or a name that has one"
        ) from error
    return list(dict.fromkeys((family, _numeric(where)) for family, _, _, _, where in found))


def _numeric(where: tuple[object, ...]) -> str:
    """Return the host of a socket address, with the scope of a link-local one."""
    host, scope = str(where[0]), where[3] if len(where) > 3 else 0
    return f"{host}%{scope}" if scope and "%" not in host else host


def _listen(address: str, family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    dual = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
    try:
        where: tuple[str, int] = (host, port)
        if "%" in host:
            where = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]  # type: ignore[assignment]  # 4 items
        return socket.create_server(where, family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except OSError as error:
        raise ConfigError(
            f"web.listen_address: cannot listen on {address} ({os.strerror(error.errno) if error.errno else error}); "
            "stop what uses it, or choose another with --web.listen-address"
        ) from error
