"""Deadlines of the product, as long as a machine that is busy with something else needs for them."""

import os

TASKS_PER_CPU = 2
"""How many runnable tasks a CPU may have without a longer deadline."""


def scaled(seconds: float) -> float:
    """Return a deadline for this machine now: `seconds`, and in proportion more while its CPUs have many tasks."""
    return seconds * max(1.0, os.getloadavg()[0] / (TASKS_PER_CPU * (os.cpu_count() or 1)))
