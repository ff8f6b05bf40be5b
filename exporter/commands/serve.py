"""`serve`: run the collector and the web server until SIGINT or SIGTERM."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import uvicorn
from anyio.from_thread import start_blocking_portal

from exporter.app import Exporter, build
from exporter.commands.reload import Reloader
from exporter.commands.supervision import feed_watchdog, on_hangup
from exporter.core import logs
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.web.application import create_app
from exporter.web.listen import bind
from exporter.web.live_config import LiveWebConfig
from exporter.web.systemd import Notifier, inherited_sockets

_log = logs.get("exporter")
REFRESH_SECONDS = 1
"""Age of the exporter metrics at a scrape, at most. Rendering them takes longer than the rest of a scrape, and many times as
long while a collection cycle keeps the interpreter busy."""
SWITCH_INTERVAL_SECONDS = 0.0002
"""How long a thread of a collection cycle may keep a scrape waiting for the interpreter."""

KEEP_ALIVE_SECONDS = 330
"""How long an idle connection stays open: longer than Prometheus keeps one for its next request (5 minutes, IdleConnTimeout in
prometheus/common). Otherwise a request may meet the closing connection, and Prometheus does not repeat a POST such as a
remote read."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, systemd: Notifier) -> None:
        super().__init__(config)
        self._systemd = systemd

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and tell systemd."""
        await super().startup(sockets)
        self._systemd.ready()

    def stop(self) -> None:
        """Begin to end, and tell systemd."""
        if not self.should_exit:
            self._systemd.stopping()
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`: uvicorn would raise them again before anything is closed."""
        yield


async def refresh(telemetry: Telemetry) -> None:
    """Keep the exporter metrics rendered until cancelled."""
    while True:
        await asyncio.to_thread(telemetry.refresh)
        await asyncio.sleep(REFRESH_SECONDS)


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"  # a text: the path of a Unix socket from systemd


@contextmanager
def collecting(exporter: Exporter) -> Iterator["Future[None]"]:
    """Run the exporter's loops in a thread of their own until the block is left; the future ends earlier only if they fail."""
    with start_blocking_portal() as portal:  # waits at the end until `run` has closed everything
        future = portal.start_task_soon(exporter.run)
        try:
            yield future
        finally:
            future.cancel()


async def serve(settings: Settings, load: Callable[[], Settings]) -> int:
    """Run one exporter until SIGINT or SIGTERM; return the exit status.

    Args:
        settings: validated.
        load: reads the settings again, for a reload.

    Raises:
        ExporterError: it cannot start, or cannot go on; the sentence says what to do.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    web = LiveWebConfig(settings.web.config_file)
    systemd = Notifier()
    sockets = inherited_sockets() or bind(settings.web.listen_address)
    try:
        exporter = build(settings)
        reloader = Reloader(settings, load, web, exporter)
        lifecycle = reloader.reload if settings.web.enable_lifecycle else None
        routes = create_app(exporter.backend, settings.web, users=lambda: web.users, reload=lifecycle)
        config = uvicorn.Config(
            routes,
            log_config=None,
            lifespan="off",
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.web.trusted_proxies),
            forwarded_allow_ips=settings.web.trusted_proxies,
            timeout_graceful_shutdown=3,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        web.apply(config)
        server, loop = _Server(config, systemd), asyncio.get_running_loop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.stop)
        loop.add_signal_handler(signal.SIGHUP, on_hangup(reloader, systemd))
        _log.info(
            "listening",
            addresses=",".join(map(_address, sockets)),
            data_dir=str(settings.data_dir),
        )
        refreshing = asyncio.create_task(refresh(exporter.telemetry))
        watchdog = asyncio.create_task(feed_watchdog(systemd, exporter.liveness))
        with collecting(exporter) as future:
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(server.stop))
            await server.serve(sockets=sockets)
            refreshing.cancel()
            watchdog.cancel()
            if future.done():
                future.result()  # raises what ended the loops
        await exporter.backend.close()
        return 0
    finally:
        for listener in sockets:
            with contextlib.suppress(OSError):
                listener.close()
