"""The cost of CloudWatch: the price of a metric, the usage of calls, and the budget of a day."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from exporter.core.periods import DAY, align

DOLLARS_PER_METRIC = 0.01 / 1000
"""Price of a metric in GetMetricData, regardless of the number of datapoints: https://aws.amazon.com/cloudwatch/pricing/"""
MONTH = 30 * DAY
"""Seconds of the month that cost estimates are given for."""

BudgetState = Literal["ok", "gap_filling_paused", "polling_paused"]
BUDGET_STATES: tuple[BudgetState, ...] = ("ok", "gap_filling_paused", "polling_paused")


def dollars(metrics: float) -> float:
    """Return the price of so many metrics requested by GetMetricData."""
    return metrics * DOLLARS_PER_METRIC


@dataclass(frozen=True, slots=True)
class Usage:
    """GetMetricData calls and the metrics they query, which is what AWS bills."""

    calls: float = 0
    metrics: float = 0

    @classmethod
    def of(cls, sizes: Iterable[int]) -> "Usage":
        """Return the usage of calls with so many queries each."""
        sizes = list(sizes)
        return cls(len(sizes), sum(sizes))

    def times(self, factor: float) -> "Usage":
        """Return the usage of `factor` times as much."""
        return Usage(self.calls * factor, self.metrics * factor)

    @property
    def dollars(self) -> float:
        """The price in dollars."""
        return dollars(self.metrics)


class Budget:
    """The metrics billed since 00:00 UTC, against the limit of a day.

    Thread-safe. The day is that of the local clock: a bill needs no exact time.

    Args:
        max_usd: dollars per day; None: no limit, metrics are only counted.
        wall: UTC seconds.
        day: start of the day that `spent` belongs to, in UTC seconds, as saved by an earlier process.
        spent: metrics billed on that day.
    """

    def __init__(
        self, max_usd: float | None = None, *, wall: Callable[[], float] = time.time, day: int = 0, spent: int = 0
    ) -> None:
        self.limit(max_usd)
        self._wall = wall
        self._lock = threading.Lock()
        self._day, self._spent = day, spent
        self._reserved = 0

    def limit(self, max_usd: float | None) -> None:
        """Set the dollars per day; None: no limit."""
        self.max_usd = max_usd
        self._most = None if max_usd is None else int(max_usd / DOLLARS_PER_METRIC + 1e-6)

    def spent(self) -> tuple[int, int]:
        """Return the start of today in UTC seconds and the metrics billed since; save both for the next process."""
        with self._lock:
            self._start_day()
            return self._day, self._spent

    @property
    def left(self) -> float:
        """Metrics that may still be queried today; infinite without a limit."""
        _, spent = self.spent()
        return float("inf") if self._most is None else max(0, self._most - spent)

    @property
    def spare(self) -> float:
        """Metrics left for queries that can wait: those that `assess` did not reserve for the live cycles until midnight."""
        return self.left - self._reserved

    @property
    def seconds_left(self) -> float:
        """Seconds until the next day begins."""
        return self.spent()[0] + DAY - self._wall()

    def take(self, metrics: int) -> bool:
        """Count a request of so many metrics before it is sent; return False and count nothing if it would exceed the limit."""
        with self._lock:
            self._start_day()
            if metrics and self._most is not None and self._spent + metrics > self._most:
                return False
            self._spent += metrics
            return True

    def give_back(self, metrics: int) -> None:
        """Undo a `take` whose request failed and is therefore not billed."""
        with self._lock:
            self._start_day()
            self._spent = max(0, self._spent - metrics)

    def _start_day(self) -> None:
        """Reset the count if a new day has begun."""
        today = align(int(self._wall()), DAY)
        # A clock that is set back a little must not grant a second budget, one that was far ahead must not block it for years.
        if today > self._day or today < self._day - DAY:
            self._day, self._spent = today, 0

    def assess(self, live: int, interval: int) -> BudgetState:
        """Return what a collection cycle may query, and reserve the live cycles until midnight UTC.

        Args:
            live: metrics the cycle needs for the gauges and the newest samples of the running workers.
            interval: seconds between two cycles.

        Returns:
            "polling_paused" if the rest of the day's budget does not pay for this cycle; "gap_filling_paused" if it pays no
            more than the live queries of the cycles until midnight UTC, this one included; else "ok".
        """
        left = self.left
        if live > left or left <= 0:
            return "polling_paused"
        cycles = 1 + int(self.seconds_left // interval)
        self._reserved = live * cycles
        return "gap_filling_paused" if live * cycles >= left else "ok"
