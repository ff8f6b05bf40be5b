"""CloudWatch datapoints as rows of a history page. Pure."""

from collections.abc import Iterable
from datetime import timedelta
from typing import NamedTuple

from exporter.core.periods import align_interval
from exporter.storage.rows import EPOCH, FieldStatistics, HistoryRow


class Point(NamedTuple):
    """What CloudWatch has of a worker in the period that starts at `start`: Averages in percent, at least one of them."""

    start: int
    cpu: float | None
    memory: float | None


def point_samples(points: Iterable[Point]) -> list[HistoryRow]:
    """Rows of samples from CloudWatch's datapoints, which know neither labs nor status."""
    return [
        {
            "timestamp": EPOCH + timedelta(seconds=point.start),
            "cpu_utilization": point.cpu,
            "memory_utilization": point.memory,
            "active_labs_count": None,
            "status": None,
        }
        for point in points
    ]


def point_statistics(points: Iterable[Point], interval: int) -> list[HistoryRow]:
    """Rows of statistics from CloudWatch's datapoints, oldest first."""
    by_start: dict[int, list[Point]] = {}
    for point in points:
        by_start.setdefault(align_interval(point.start, interval), []).append(point)
    return [
        {
            "timestamp": EPOCH + timedelta(seconds=start),
            "cpu_utilization": _of([point.cpu for point in by_start[start]]),
            "memory_utilization": _of([point.memory for point in by_start[start]]),
            "active_labs_count": _of([]),
            "status_share": {},
        }
        for start in sorted(by_start)
    ]


def _of(values: Iterable[float | None]) -> FieldStatistics:
    known = [value for value in values if value is not None]
    return {
        "avg": sum(known) / len(known) if known else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
        "count": len(known),
    }
