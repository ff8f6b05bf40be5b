"""How long /metrics stays silent for a scraper on the same machine, and how much slower than alone programs run on it."""

import contextlib
import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tests.helpers.deadlines import scaled

PACE_SECONDS = 0.05
"""Time between two scrapes."""
PATIENCE_SECONDS = 120.0
"""Timeout of one scrape: far above what is allowed, so that the silence is measured and not cut."""
_BURSTS = """
import select, sys, time
wall = used = 0.0
while not select.select([sys.stdin], [], [], 0.3)[0]:
    begin, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.1:
        sum(range(1000))
    wall, used = wall + time.perf_counter() - begin, used + time.process_time() - cpu
print(max(1.0, wall / used) if used else 1.0)
"""
"""A program that works for 0.1 s of CPU time again and again, and prints by what factor that took longer than alone."""


class Scraper:
    """Scrapes /metrics all the time while the block runs, by turns on a new connection and on one that is kept.

    Attributes:
        longest: the longest time without a scrape that was answered with 200.
        slowdown: the factor by which a program that needs the processor took longer than alone.
        failures: what other scrapes ended with.
    """

    def __init__(self, port: int, headers: Mapping[str, str] | None = None, *, fresh_only: bool = False) -> None:
        self.longest, self.slowdown = 0.0, 1.0
        self.answered = 0
        self.failures: list[str] = []
        self._port, self._headers, self._fresh_only = port, dict(headers or {}), fresh_only
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._scrape)
        self._bursts: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._bursts = subprocess.Popen(
            [sys.executable, "-c", _BURSTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        time.sleep(4 * PACE_SECONDS)
        self._stop.set()
        self._thread.join()
        assert self._bursts is not None
        self.slowdown = float(self._bursts.communicate()[0])

    @property
    def allowed(self) -> float:
        """The silence that is allowed: one second on a machine that does nothing else."""
        return self.slowdown

    def _scrape(self) -> None:
        kept = self._connection()
        last = time.monotonic()
        number = 0
        while not self._stop.is_set():
            number += 1
            fresh = number % 2 == 1 or self._fresh_only
            connection = self._connection() if fresh else kept
            try:
                connection.request("GET", "/metrics", headers=self._headers)
                response = connection.getresponse()
                response.read()
                if response.status == 200:
                    now = time.monotonic()
                    self.longest = max(self.longest, now - last)
                    self.answered += 1
                    last = now
                else:
                    self.failures.append(str(response.status))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                kept.close()
            finally:
                if fresh:
                    connection.close()
            time.sleep(PACE_SECONDS)
        self.longest = max(self.longest, time.monotonic() - last)
        with contextlib.suppress(OSError):
            kept.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=scaled(PATIENCE_SECONDS))
