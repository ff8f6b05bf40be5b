"""Which loops of the process have stopped to make progress: hung, blocked, or ended. Pure; the clock is passed in.

The loops call `beat`, `/-/healthy` and the watchdog of systemd call `dead` from another thread. Only the times of the beats are
shared, so the answer does not depend on the loop that is asked about.
"""

import time
from collections.abc import Callable

INTERVALS = 3
"""Intervals without a beat after which a loop counts as dead."""
MIN_INTERVAL_SECONDS = 300
"""The shortest interval of a collecting loop: with a period of 1m the first observation of a large fleet may take several."""


class Liveness:
    """The last sign of life of each loop.

    Args:
        monotonic: seconds of a clock that is never set. It should stand still while the machine is suspended, as
            time.monotonic does: no loop could beat meanwhile.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._loops: dict[str, tuple[float, float]] = {}

    def expect(self, loop: str, interval: float) -> Callable[[], None]:
        """Begin to expect beats of a loop every `interval` seconds, and return the function that makes one."""

        def beat() -> None:
            self._loops[loop] = self._monotonic(), interval

        beat()
        return beat

    def dead(self) -> list[str]:
        """Return a phrase for each loop that has been silent for more than `INTERVALS` intervals, such as "poll for 901 s"."""
        now = self._monotonic()
        return [
            f"{loop} for {now - last:.0f} s"
            for loop, (last, interval) in self._loops.copy().items()
            if now - last > INTERVALS * interval
        ]
