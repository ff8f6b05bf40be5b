"""Who answers which part of a range of time, and how finely: MongoDB within the retention, CloudWatch before it. Pure.

What CloudWatch still has (https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/cloudwatch_concepts.html, Metrics
retention): datapoints of 60 s for 15 days, of 300 s for 63 days, of 1 hour for 455 days.
"""

from dataclasses import dataclass
from typing import Literal

from exporter.core.periods import align_interval_up, align_up
from exporter.sources.cloudwatch.retention import EXPIRY_MARGIN_SECONDS, TIERS

Source = Literal["mongodb", "cloudwatch"]


@dataclass(frozen=True, slots=True)
class Segment:
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


def split_range(start: int, end: int, now: int, *, period: int, interval: int | None, boundary: int | None) -> list[Segment]:
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
    found: list[Segment] = []
    at = start
    for younger, resolution in _tiers(period):
        step = align_up(interval, resolution) if interval else resolution
        cut = end if boundary is None else min(boundary, now - younger + EXPIRY_MARGIN_SECONDS if younger else boundary)
        cut = min(end, align_interval_up(cut, step))
        if boundary is not None and at < min(cut, boundary):
            found.append(Segment("cloudwatch", at, cut, resolution, step if interval else None))
            at = cut
    if at < end and (boundary is None or at >= boundary):
        found.append(Segment("mongodb", at, end, period, interval))
    return found


def _tiers(period: int) -> list[tuple[int, int]]:
    """(the age at which the tier begins, its resolution), oldest first; tiers of one resolution are one."""
    ages = [0, *(limit for limit, _ in TIERS)]
    tiers: dict[int, int] = {}
    for younger, (_, finest) in zip(ages, TIERS, strict=False):
        tiers.setdefault(align_up(period, finest), younger)
    return sorted(((younger, resolution) for resolution, younger in tiers.items()), reverse=True)
