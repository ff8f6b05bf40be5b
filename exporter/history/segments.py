"""Who answers which part of a range of time, and how finely: MongoDB within the retention, CloudWatch before it. Pure.

What CloudWatch still has (https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/cloudwatch_concepts.html, Metrics
retention): datapoints of 60 s for 15 days, of 300 s for 63 days, of 1 hour for 455 days.
"""

from dataclasses import dataclass
from typing import Literal

from exporter.core.periods import DAY, HOUR, MINUTE, WEEK, align, align_up

Source = Literal["mongodb", "cloudwatch"]

TIERS = ((15 * DAY, MINUTE), (63 * DAY, 5 * MINUTE), (455 * DAY, HOUR))
"""(age, the finest datapoints CloudWatch has up to that age), both in seconds."""
OLDEST = TIERS[-1][0]
"""Seconds after which CloudWatch has nothing."""
MARGIN = HOUR
"""So much younger than its tier ends data is already asked for more coarsely: while we ask it goes on ageing."""
_MONDAY = 4 * DAY  # 1970-01-05; the epoch is a Thursday


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a range that one source answers evenly: [start, end) in UTC seconds.

    `resolution` is the length of the samples in seconds, `interval` that of the rows they are aggregated into, if they are.
    """

    source: Source
    start: int
    end: int
    resolution: int
    interval: int | None

    @property
    def step(self) -> int:
        """Seconds from one row to the next."""
        return self.interval or self.resolution


def align_interval(time: int, interval: int) -> int:
    """Return the start of the interval that `time` lies in: aligned to UTC, whole weeks to Monday."""
    offset = _offset(interval)
    return align(time - offset, interval) + offset


def align_interval_up(time: int, interval: int) -> int:
    """Return the first start of an interval that is not before `time`."""
    offset = _offset(interval)
    return align_up(time - offset, interval) + offset


def reach(resolution: int) -> int:
    """Return how many seconds back CloudWatch answers for periods of `resolution` seconds, which its datapoints must divide."""
    return max(age for age, finest in TIERS if resolution % finest == 0)


def resolution_at(age: int, period: int) -> int:
    """Return the resolution CloudWatch still has of what is `age` seconds old; never finer than `period`."""
    finest = next((finest for limit, finest in TIERS if age <= limit - MARGIN), TIERS[-1][1])
    return align_up(period, finest)


def stretches(start: int, end: int, now: int, *, period: int, interval: int | None, boundary: int | None) -> list[Stretch]:
    """Cut [start, end) into stretches, oldest first.

    A row never straddles two stretches: each cut lies where a row of the older, coarser one ends.

    Args:
        start: UTC second.
        end: UTC second.
        now: UTC second that ages are counted from.
        period: seconds of a sample in MongoDB.
        interval: seconds of a row, None for samples. Rows are longer where CloudWatch has nothing that fine.
        boundary: UTC second from which on MongoDB answers; None: everything.
    """
    found: list[Stretch] = []
    at = start
    for younger, resolution in _tiers(period):
        step = align_up(interval, resolution) if interval else resolution
        cut = end if boundary is None else min(boundary, now - younger + MARGIN if younger else boundary)
        cut = min(end, align_interval_up(cut, step))
        if boundary is not None and at < min(cut, boundary):
            found.append(Stretch("cloudwatch", at, cut, resolution, step if interval else None))
            at = cut
    if at < end and (boundary is None or at >= boundary):
        found.append(Stretch("mongodb", at, end, period, interval))
    return found


def _tiers(period: int) -> list[tuple[int, int]]:
    """(the age at which the tier begins, its resolution), oldest first; tiers of one resolution are one."""
    ages = [0, *(limit for limit, _ in TIERS)]
    tiers: dict[int, int] = {}
    for younger, (_, finest) in zip(ages, TIERS, strict=False):
        tiers.setdefault(align_up(period, finest), younger)
    return sorted(((younger, resolution) for resolution, younger in tiers.items()), reverse=True)


def _offset(interval: int) -> int:
    return _MONDAY if interval % WEEK == 0 else 0
