"""What CloudWatch costs: the price, an estimate of what is coming, and the budget of a day."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from exporter.core.periods import DAY, align

DOLLARS_PER_METRIC = 0.01 / 1000
"""GetMetricData, whatever the number of datapoints: https://aws.amazon.com/cloudwatch/pricing/"""
MONTH = 30 * DAY

BudgetState = Literal["ok", "gap_filling_paused", "polling_paused"]
BUDGET_STATES: tuple[BudgetState, ...] = ("ok", "gap_filling_paused", "polling_paused")


def dollars(metrics: float) -> float:
    """Return the price of so many metrics requested by GetMetricData."""
    return metrics * DOLLARS_PER_METRIC


@dataclass(frozen=True, slots=True)
class Usage:
    """What is sent to CloudWatch in some time: GetMetricData calls and the metrics they ask for, which is what is billed."""

    calls: float = 0
    metrics: float = 0

    @classmethod
    def of(cls, sizes: Iterable[int]) -> "Usage":
        """Return the usage of calls with so many queries each."""
        sizes = list(sizes)
        return cls(len(sizes), sum(sizes))

    def times(self, factor: float) -> "Usage":
        """Return this so many times."""
        return Usage(self.calls * factor, self.metrics * factor)

    @property
    def dollars(self) -> float:
        """The price."""
        return dollars(self.metrics)


class Budget:
    """What may still be asked today, and what was: metrics billed since 00:00 UTC against `max_usd`.

    Safe from any thread. The day is the local clock's: a bill is not a sample.

    Args:
        max_usd: dollars a day; None: no limit, the day is counted all the same.
        wall: UTC seconds.
        day: start of the day that `spent` belongs to, as kept by an earlier process.
        spent: metrics billed on that day.
    """

    def __init__(
        self, max_usd: float | None = None, *, wall: Callable[[], float] = time.time, day: int = 0, spent: int = 0
    ) -> None:
        self.max_usd = max_usd
        self._most = None if max_usd is None else int(max_usd / DOLLARS_PER_METRIC + 1e-6)
        self._wall = wall
        self._lock = threading.Lock()
        self._day, self._spent = day, spent
        self._reserved = 0

    def spent(self) -> tuple[int, int]:
        """Return the start of today and the metrics billed since; what has to be kept over a restart."""
        with self._lock:
            self._turn()
            return self._day, self._spent

    @property
    def left(self) -> float:
        """Metrics that may still be asked for today; infinite without a limit."""
        _, spent = self.spent()
        return float("inf") if self._most is None else max(0, self._most - spent)

    @property
    def spare(self) -> float:
        """Metrics left beyond what the live rounds until midnight need, as it was judged last: for what can wait."""
        return self.left - self._reserved

    @property
    def seconds_left(self) -> float:
        """Seconds until the next day begins."""
        return self.spent()[0] + DAY - self._wall()

    def take(self, metrics: int) -> bool:
        """Count a request before it is sent; False, and nothing counted, where it would go beyond the limit."""
        with self._lock:
            self._turn()
            if metrics and self._most is not None and self._spent + metrics > self._most:
                return False
            self._spent += metrics
            return True

    def give_back(self, metrics: int) -> None:
        """Undo a `take`: the request was not answered, so that it is not billed."""
        with self._lock:
            self._turn()
            self._spent = max(0, self._spent - metrics)

    def _turn(self) -> None:
        today = align(int(self._wall()), DAY)
        # A clock that is set back a little gives no second budget; one that was far ahead must not take the budget for years.
        if today > self._day or today < self._day - DAY:
            self._day, self._spent = today, 0

    def judge(self, live: int, every: int) -> BudgetState:
        """Decide what a round may ask.

        Args:
            live: metrics the round needs for the gauges and the newest samples of the running workers.
            every: seconds between two rounds.

        Returns:
            "polling_paused" if the rest of the day's budget does not pay for this cycle; "gap_filling_paused" if it pays no
            more than the live queries of the cycles until midnight UTC, this one included; else "ok".
        """
        left = self.left
        if live > left or left <= 0:
            return "polling_paused"
        rounds = 1 + int(self.seconds_left // every)
        self._reserved = live * rounds
        return "gap_filling_paused" if live * rounds >= left else "ok"
