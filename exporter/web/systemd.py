"""The two protocols of systemd that a service speaks: notifications (sd_notify) and inherited sockets (sd_listen_fds).

Both are a few lines and stable by promise of systemd, whose manual shows them for programs without libsystemd; the packages for
Python are unmaintained or must be compiled (docs/dependencies.md).
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

import os
import socket
import time
from collections.abc import MutableMapping

from exporter.core import logs

_FIRST_INHERITED = 3

_log = logs.get("systemd")


def inherited_sockets(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Return the listening sockets that systemd opened for this process (socket activation); none without systemd.

    The variables are removed, so that no child process takes the sockets for its own.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = [socket.socket(fileno=number) for number in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count))]
    for each in sockets:
        os.set_inheritable(each.fileno(), False)
        each.setblocking(False)
    return sockets


class Notifier:
    """Tells systemd the state of the service; does nothing without systemd.

    Args:
        environment: NOTIFY_SOCKET names the socket of systemd, WATCHDOG_USEC and WATCHDOG_PID the watchdog.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path  # @: the abstract namespace
        microseconds, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID") or str(os.getpid())
        ours = bool(self._address) and microseconds.isdecimal() and pid == str(os.getpid())
        self.watchdog_seconds = int(microseconds) / 1e6 if ours else None
        """Seconds after which systemd restarts a service that sent no `alive`; None without a watchdog."""

    def ready(self) -> None:
        """Report that the service has started, or that a reload is finished."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that a reload begins."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Report that the service stops."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Keep the watchdog from restarting the service."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            _log.warning("systemd was not notified", message=message.partition("\n")[0], error=str(error))
