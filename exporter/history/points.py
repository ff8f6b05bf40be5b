"""Converts CloudWatch datapoints to rows of a history page. Pure."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from exporter.core.distribution import Distribution, distribution_of
from exporter.core.local_time import interval_start
from exporter.storage.rows import EPOCH, FieldStatistics, HistoryRow


class Point(NamedTuple):
    """CloudWatch averages of a worker in the period that starts at UTC second `start`, in percent; at least one is not None."""

    start: int
    cpu: float | None
    memory: float | None


def point_samples(points: Iterable[Point]) -> list[HistoryRow]:
    """Return rows of samples, in the order of `points`; CloudWatch has neither labs nor status."""
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


def point_statistics(
    points: Iterable[Point],
    interval: int,
    zone: ZoneInfo | None = None,
    wanted: Distribution | None = None,
    resolution: int = 0,
) -> list[HistoryRow]:
    """Return one row of statistics per `interval` (seconds; days and weeks of `zone`) with points, oldest first.

    Further ones are those of CloudWatch's averages over `resolution` seconds.
    """

    def statistics(values: Sequence[float | None]) -> FieldStatistics:
        found = _statistics(values)
        return found if wanted is None else {**found, **distribution_of(values, wanted, resolution)}

    by_start: dict[int, list[Point]] = {}
    for point in points:
        by_start.setdefault(interval_start(point.start, interval, zone), []).append(point)
    return [
        {
            "timestamp": EPOCH + timedelta(seconds=start),
            "cpu_utilization": (cpu := statistics([point.cpu for point in by_start[start]])),
            "memory_utilization": statistics([point.memory for point in by_start[start]]),
            "active_labs_count": statistics([]),
            "status_share": {},
            "known_samples": cpu["samples"],
            "running_samples": cpu["samples"],
        }
        for start in sorted(by_start)
    ]


def _statistics(values: Iterable[float | None]) -> FieldStatistics:
    known = [value for value in values if value is not None]
    return {
        "avg": sum(known) / len(known) if known else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
        "samples": len(known),
    }
