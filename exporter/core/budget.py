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

UNLIMITED_DAY_DOLLARS = 10.0
"""What the readers' share is a share of where no budget is set. The default, 10 % of it, pays for 100,000 metrics a day: a
program that reads CPU and memory of one worker once a minute needs 2,880 of them, so some 34 workers can be watched all day."""

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

    def take(self, metrics: int, *, spare_only: bool = False) -> bool:
        """Count a request of so many metrics before it is sent; return False and count nothing if it would exceed the limit.

        Args:
            metrics: that the request queries.
            spare_only: whether the request must also leave what `assess` reserved for the live cycles.
        """
        with self._lock:
            self._start_day()
            reserved = self._reserved if spare_only else 0
            if metrics and self._most is not None and self._spent + metrics > self._most - reserved:
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


class ReaderBudget:
    """The metrics that HTTP readers may query since 00:00 UTC: a share of the day's budget, less than polling leaves of it.

    Thread-safe. What readers spend is a part of what `budget` counts.

    Args:
        budget: the budget of the day.
        share: of `budget.max_usd`, or of UNLIMITED_DAY_DOLLARS where that is None; 0 to 1.
        day: start of the day that `spent` belongs to, in UTC seconds, as saved by an earlier process.
        spent: metrics billed on behalf of readers on that day.
    """

    def __init__(self, budget: Budget, share: float, *, day: int = 0, spent: int = 0) -> None:
        self._budget, self._share = budget, share
        self._lock = threading.Lock()
        self._day, self._spent = day, spent

    @property
    def max_usd(self) -> float:
        """Dollars a day; follows the budget, which a reload may change."""
        most = self._budget.max_usd
        return self._share * (UNLIMITED_DAY_DOLLARS if most is None else most)

    def spent(self) -> tuple[int, int]:
        """Return the start of today in UTC seconds and the metrics billed on behalf of readers since."""
        with self._lock:
            self._start_day()
            return self._day, self._spent

    def take(self, metrics: int) -> bool:
        """Count a request of so many metrics here and in the budget; return False and count nothing if one refuses it."""
        with self._lock:
            self._start_day()
            most = int(self.max_usd / DOLLARS_PER_METRIC + 1e-6)
            if (metrics and self._spent + metrics > most) or not self._budget.take(metrics, spare_only=True):
                return False
            self._spent += metrics
            return True

    def give_back(self, metrics: int) -> None:
        """Undo a `take` whose request failed and is therefore not billed."""
        with self._lock:
            self._start_day()
            self._spent = max(0, self._spent - metrics)
            self._budget.give_back(metrics)

    def _start_day(self) -> None:
        today = self._budget.spent()[0]
        if today != self._day:
            self._day, self._spent = today, 0
