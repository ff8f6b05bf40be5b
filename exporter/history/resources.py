"""Averages of the newest published periods, for `/resources`. Pure.

CloudWatch publishes a datapoint minutes after its period has ended, so "the last 5 minutes" are nearly always empty there. A
window therefore ends with the newest period that is published, as long as that is fresh enough to be shown as a gauge.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from exporter.core.periods import MINUTE
from exporter.history.points import Point

SHARED_WINDOW_SECONDS = 10 * MINUTE
"""Windows up to this length are read with one query, so that a client that asks for several is billed once."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Average CPU and memory of one worker in [start, end) UTC seconds: percent, None where CloudWatch has no datapoint."""

    instance_id: str | None
    region: str
    start: int
    end: int
    cpu: float | None
    memory: float | None


def published_window(points: Sequence[Point], start: int, end: int, oldest: int, resolution: int) -> tuple[int, int]:
    """Return the window of the same length that ends with the newest published period.

    That is the newest period in which every metric that has fresh datapoints has been published; the agent and EC2 publish at
    different times. Should a metric have fresh datapoints after that window alone, the window is extended to the first of them.
    Without a fresh datapoint it is [start, end).

    Args:
        points: of the periods before `end`, oldest first.
        start, end: the requested window, in whole periods (UTC seconds).
        oldest: start of the oldest period whose datapoint is fresh (UTC seconds).
        resolution: seconds of a period.
    """
    columns = (
        [point.start for point in points if point.cpu is not None],
        [point.start for point in points if point.memory is not None],
    )
    newest = [column[-1] for column in columns if column and oldest <= column[-1] < end]
    if not newest:
        return start, end
    length = end - start
    end = min(newest) + resolution
    start = end - length
    for column in columns:
        within = [at for at in column if at >= start]
        if within and within[-1] >= oldest:
            end = max(end, within[0] + resolution)
    return start, end


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None without one."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
