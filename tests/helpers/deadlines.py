"""Deadlines of the product, as long as a machine that is busy with something else needs for them."""

import os
from contextlib import suppress
from pathlib import Path

TASKS_PER_CPU = 2
"""How many runnable tasks a CPU may have without a longer deadline."""


def runnable() -> float:
    """Return how many tasks want a CPU: the average of the last minute, or those of this moment where they are more.

    The average alone would tell nothing of a load that has just begun, such as that of the run itself in its first minute.
    """
    tasks = os.getloadavg()[0]
    with suppress(OSError):  # there is no /proc where the system is not Linux
        tasks = max(tasks, float(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]))
    return tasks


def pause(waited: float) -> float:
    """Return for how many seconds to sleep before the next look at what has been waited for since `waited` seconds.

    A twentieth of them, so that a wait of minutes does not cost a processor what hundreds of looks cost, and notices the end
    almost as soon: 50 ms at the beginning, half a second at most.
    """
    return min(0.5, max(0.05, waited / 20))


def scaled(seconds: float) -> float:
    """Return a deadline for this machine now: `seconds`, and in proportion more while its CPUs have many tasks."""
    return seconds * max(1.0, runnable() / (TASKS_PER_CPU * (os.cpu_count() or 1)))
