"""How long /metrics stays silent for a scraper on the same machine, and how long the machine itself stood still."""

import contextlib
import http.client
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

PACE_SECONDS = 0.05
"""Time between two scrapes."""
PATIENCE_SECONDS = 120.0
"""Timeout of one scrape: far above what is allowed, so that the silence is measured and not cut."""


class Scraper:
    """Scrapes /metrics all the time while the block runs, by turns on a new connection and on one that is kept.

    Attributes:
        longest: the longest time without a scrape that was answered with 200.
        stalled: the longest time by which a thread that only sleeps woke up late: what this machine adds at its present load.
        failures: what other scrapes ended with.
    """

    def __init__(self, port: int, headers: Mapping[str, str] | None = None, *, fresh_only: bool = False) -> None:
        self.longest = self.stalled = 0.0
        self.answered = 0
        self.failures: list[str] = []
        self._port, self._headers, self._fresh_only = port, dict(headers or {}), fresh_only
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._scrape), threading.Thread(target=self._sleep)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        time.sleep(4 * PACE_SECONDS)
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def allowed(self) -> float:
        """The silence that is allowed: one second, and what the machine itself stood still."""
        return 1.0 + 3 * self.stalled

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

    def _sleep(self) -> None:
        while not self._stop.is_set():
            begin = time.monotonic()
            time.sleep(PACE_SECONDS)
            self.stalled = max(self.stalled, time.monotonic() - begin - PACE_SECONDS)

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_SECONDS)
