"""`serve`: run the collector and the web server until SIGINT or SIGTERM."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import uvicorn
from anyio.from_thread import start_blocking_portal
from starlette.applications import Starlette

from exporter.app import Exporter, build
from exporter.commands.reload import Reloader
from exporter.commands.supervision import feed_watchdog, on_hangup
from exporter.core import logs, version
from exporter.core.allocator import return_memory_early
from exporter.core.settings import Settings
from exporter.core.settings_summary import differing
from exporter.metrics.telemetry import Telemetry
from exporter.web.application import create_app
from exporter.web.connections import REASONS, Connections, Limits
from exporter.web.http_protocol import protect
from exporter.web.listen import bind, shown
from exporter.web.live_config import LiveWebConfig
from exporter.web.systemd import Notifier, inherited_sockets

_log = logs.get("exporter")
REFRESH_SECONDS = 1
"""How often the exporter metrics are rendered ahead of scrapes while the process is busy: then rendering takes many times as
long as the rest of a scrape. While it is idle, a scrape renders them itself."""
BUSY_SHARE = 0.05
"""Share of a CPU from which the process is busy. Between two cycles it uses less than a tenth of this."""
IDLE_SECONDS = 5
"""How long an idle process waits before it finds out whether it is busy, and whether file descriptors run out."""
SWITCH_INTERVAL_SECONDS = 0.0002
"""How long a thread of a collection cycle may keep a scrape waiting for the interpreter."""

STOP_SECONDS = 3.0
"""How long an orderly end may take after a signal; Docker kills after 10 seconds, an operator waits 5."""
REPORT_SECONDS = 0.2
"""How long the log line about an end in disorder may take."""
WORKER_THREADS = 2
"""Threads that render for routes. A scrape may have to wait for the interpreter behind each of them."""

KEEP_ALIVE_SECONDS = 330
"""How long an idle connection stays open: longer than Prometheus keeps one for its next request (5 minutes, IdleConnTimeout in
prometheus/common). Otherwise a request may meet the closing connection, and Prometheus does not repeat a POST such as a
remote read."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, systemd: Notifier) -> None:
        super().__init__(config)
        self._systemd = systemd
        self._stopped = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and tell systemd."""
        await super().startup(sockets)
        self._systemd.ready()

    def stop(self) -> None:
        """Begin to end, which takes `STOP_SECONDS` at most, and tell systemd."""
        if not self.should_exit:
            self._systemd.stopping()
            end_in_time()
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """Wait for `stop`. uvicorn's own loop wakes ten times a second, also for the Date header: see `LimitedProtocol`."""
        await self._stopped.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`: uvicorn would raise them again before anything is closed."""
        yield


async def refresh(telemetry: Telemetry, connections: Connections) -> None:
    """Keep the exporter metrics rendered while the process is busy, and watch the file descriptors, until cancelled."""
    loop, used, pause = asyncio.get_running_loop(), time.process_time(), REFRESH_SECONDS
    with ThreadPoolExecutor(1, "refresh") as thread:  # requests may keep all threads of the default executor busy
        while True:
            await asyncio.sleep(pause)
            connections.probe_descriptors()
            before, used = used, time.process_time()
            busy = used - before > BUSY_SHARE * pause
            if busy:
                await loop.run_in_executor(thread, telemetry.refresh)
            pause = REFRESH_SECONDS if busy else IDLE_SECONDS


def limited_connections(telemetry: Telemetry, trusted: Sequence[str]) -> Connections:
    """Return the connections of the web server, whose number and ends the exporter metrics show."""
    for reason in REASONS:  # start at 0: increase() ignores a counter's first value
        telemetry.http_connections_closed.labels(reason)
    return Connections(
        Limits.of_process(),
        opened=telemetry.http_connections.set,
        closed=lambda reason: telemetry.http_connections_closed.labels(reason).inc(),
        trusted=trusted,
    )


def end_in_time() -> None:
    """End the process after `STOP_SECONDS` whatever still runs: a server that hangs must not delay a restart.

    Being killed at any moment loses nothing, so ending without closing does not either. In a thread of its own, because the
    event loops may be what hangs.
    """

    def report() -> None:
        _log.warning("not everything was closed in time; ended nevertheless, no sample is lost", seconds=STOP_SECONDS)

    def end() -> None:
        # The log's lock may be held by a thread that reports hundreds of requests it had to cancel.
        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        reporter.join(REPORT_SECONDS)
        os._exit(0)

    timer = threading.Timer(STOP_SECONDS, end)
    timer.daemon = True
    timer.start()


@contextmanager
def collecting(exporter: Exporter) -> Iterator["Future[None]"]:
    """Run the exporter's loops in a thread of their own until the block is left; the future ends earlier only if they fail."""
    # uvloop: the timers of MongoDB's driver, which wake several times a second, take a third of the CPU.
    with start_blocking_portal(backend_options={"use_uvloop": True}) as portal:  # waits at the end until `run` has closed all
        future = portal.start_task_soon(exporter.run)
        try:
            yield future
        finally:
            future.cancel()


def _configured(routes: Starlette, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        routes,
        log_config=None,
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.web.trusted_proxies),
        forwarded_allow_ips=settings.web.trusted_proxies,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


async def serve(settings: Settings, load: Callable[[], Settings]) -> int:
    """Run one exporter until SIGINT or SIGTERM; return the exit status.

    Args:
        settings: validated.
        load: reads the settings again, for a reload.

    Raises:
        ExporterError: it cannot start, or cannot go on; the sentence says what to do.
    """
    began = time.monotonic()
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    return_memory_early()
    web = LiveWebConfig(settings.web.config_file)
    systemd = Notifier()
    sockets = inherited_sockets() or bind(settings.web.listen_address)
    try:
        exporter = build(settings)
        reloader = Reloader(settings, load, web, exporter)
        lifecycle = reloader.reload if settings.web.enable_lifecycle else None
        routes = create_app(exporter.backend, settings.web, users=lambda: web.users, http=web.current, reload=lifecycle)
        config = _configured(routes, settings)
        web.apply(config)
        connections = limited_connections(exporter.telemetry, settings.web.trusted_proxies)
        protect(config, connections, admits=web.admits)
        server, loop = _Server(config, systemd), asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(WORKER_THREADS, "web"))

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.stop)
        loop.add_signal_handler(signal.SIGHUP, on_hangup(reloader, systemd))
        _log.info("starting", **version.facts(), **differing(settings))
        _log.info(
            "listening",
            addresses=",".join(map(shown, sockets)),
            data_dir=str(settings.data_dir),
        )
        refreshing = asyncio.create_task(refresh(exporter.telemetry, connections))
        watchdog = asyncio.create_task(feed_watchdog(systemd, exporter.liveness))
        with collecting(exporter) as future:
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(server.stop))
            await server.serve(sockets=sockets)
            refreshing.cancel()
            watchdog.cancel()
            if future.done():
                future.result()  # raises what ended the loops
        await exporter.backend.close()
        _log.info("stopped; the outbox keeps what is not in the history yet", seconds=round(time.monotonic() - began, 1))
        return 0
    finally:
        for listener in sockets:
            with contextlib.suppress(OSError):
                listener.close()
