"""Scrapes an exporter continuously, as the measure of how long a fault keeps /metrics silent."""

import threading
import time
from types import TracebackType
from typing import Self

import httpx

from tests.helpers.deadlines import scaled

EVERY_SECONDS = 0.1
"""Time between two scrapes; no shorter silence can be measured."""
PATIENCE_SECONDS = 120
"""How long one scrape is waited for: longer than any silence that a test should measure."""


class Scraper:
    """Scrapes `url`/metrics in a thread until the block is left.

    Args:
        url: of the exporter, without a path.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)
        self._longest = 0.0
        self._answered = 0.0
        self.answers = 0
        """Scrapes that were answered with 200."""

    @property
    def longest(self) -> float:
        """Seconds without an answer, at most, including the time since the last one."""
        return max(self._longest, time.monotonic() - self._answered)

    def __enter__(self) -> Self:
        self._answered = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._longest = self.longest
        self._answered = float("inf")  # the time after the block does not count
        self._ended.set()
        self._thread.join(scaled(PATIENCE_SECONDS))

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, trust_env=False, timeout=scaled(PATIENCE_SECONDS)) as client:
            while not self._ended.wait(EVERY_SECONDS):
                try:
                    succeeded = client.get("/metrics").status_code == httpx.codes.OK
                except httpx.TransportError:
                    continue
                if succeeded and not self._ended.is_set():
                    now = time.monotonic()
                    self._longest = max(self._longest, now - self._answered)
                    self._answered = now
                    self.answers += 1
