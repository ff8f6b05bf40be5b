"""What a supervisor sees of `serve`: notifications and watchdog of systemd, SIGHUP."""

import asyncio
import contextlib
from collections.abc import Callable

from exporter.commands.reload import Reloader
from exporter.core.errors import ExporterError
from exporter.core.liveness import Liveness
from exporter.web.systemd import Notifier

BEATS_PER_TIMEOUT = 3
"""How often the watchdog is fed within its timeout."""


async def feed_watchdog(systemd: Notifier, liveness: Liveness) -> None:
    """Tell systemd that no loop hangs, until cancelled. It runs in the web server's loop, so a hung one is noticed, too."""
    while systemd.watchdog_seconds:
        if not liveness.dead():
            systemd.alive()
        await asyncio.sleep(systemd.watchdog_seconds / BEATS_PER_TIMEOUT)


def on_hangup(reloader: Reloader, systemd: Notifier) -> Callable[[], None]:
    """Return the handler of SIGHUP, which starts a reload in the running loop."""
    running: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        systemd.reloading()
        with contextlib.suppress(ExporterError):  # logged and counted by the reloader; the process goes on as before
            await reloader.reload()
        systemd.ready()

    def handle() -> None:
        task = asyncio.get_running_loop().create_task(reload())
        running.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(running.discard)

    return handle
