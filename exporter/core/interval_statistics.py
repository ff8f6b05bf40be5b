"""The library's statistics of a worker by interval.

They are made by the ten thousand, and are not frozen: setting a field of a frozen dataclass takes four times as long.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(slots=True)
class Statistics:
    """avg, min and max (percent, or a number of labs) of `samples` samples; all None when that is 0.

    The others are None where they were not asked for, too.
    """

    avg: float | None
    min: float | None
    max: float | None
    samples: int
    p50: float | None = None
    p95: float | None = None
    """Percentiles by nearest rank, so each is the value of a sample."""
    p99: float | None = None
    above_seconds: float | None = None
    """Seconds of the samples whose value is greater than the threshold."""


@dataclass(slots=True)
class MetricsAggregation:
    """The samples of one worker in the interval [timestamp, timestamp + interval)."""

    timestamp: datetime
    cpu_utilization: Statistics
    memory_utilization: Statistics
    active_labs_count: Statistics
    status_share: Mapping[str, float] = field(default_factory=dict)
    """Share of the samples that have a status, by status; sums to 1 when there are any."""
