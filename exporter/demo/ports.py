"""Ports of the demo on 127.0.0.1: which are taken, and those that a folder keeps from one start to the next.

    python3 -m exporter.demo.ports 9877     # exit status 1 and a sentence if the port is taken

Needs nothing but Python's own library, so that `make demo` can ask before it installs anything.
"""

import json
import socket
import sys
from pathlib import Path

from exporter.core.errors import ConfigError

HOST = "127.0.0.1"
PORTS = "ports.json"
"""File of the demo's folder: name of a part → its port."""


def is_free(port: int) -> bool:
    """Return whether a program can listen on a port of 127.0.0.1; false for what is no port."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
    except (OSError, OverflowError):
        return False
    return True


def refuse_taken(port: int) -> None:
    """Raise ConfigError if the port of the exporter is taken or no port."""
    if not is_free(port):
        raise ConfigError(
            f"the demo cannot listen on {HOST}:{port}, which is taken; stop the program that listens there, perhaps "
            "another demo, or choose another port: make demo PORT=…, or --port"
            if 0 < port < 65536
            else "the demo's port must be a number from 1 to 65535: make demo PORT=9999, or --port 9999"
        )


def port_near(wanted: int) -> int:
    """Return the wanted port, or a free one if it is taken."""
    return wanted if is_free(wanted) else free_port()


def free_port() -> int:
    """Return a port that the kernel says is free."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def kept_port(folder: Path, name: str, wanted: int | None = None) -> int:
    """Return the port of a part: `wanted`, else the one it had at the last start of the demo in `folder`, else a new one."""
    file = folder / PORTS
    try:
        ports = dict(json.loads(file.read_text()))
        last = int(ports.get(name, 0))
    except (FileNotFoundError, TypeError, ValueError):
        ports, last = {}, 0
    if wanted is not None and is_free(wanted):
        return wanted
    port = port_near(last or free_port())
    if ports.get(name) != port:
        file.write_text(json.dumps({**ports, name: port}) + "\n")
    return port


def main(arguments: list[str]) -> int:
    """Return 0 if the port is free or none is given, else 1 after saying so."""
    try:
        if arguments and arguments[0] != "0":
            refuse_taken(int(arguments[0]) if arguments[0].isdecimal() else -1)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
