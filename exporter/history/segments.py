"""Splits a time range into segments: MongoDB within the retention, CloudWatch before it, each at one resolution. Pure.

CloudWatch retains datapoints of 60 s for 15 days, of 300 s for 63 days, and of 1 hour for 455 days
(https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/cloudwatch_concepts.html, Metrics retention).
"""

from dataclasses import dataclass
from typing import Literal
from zoneinfo import ZoneInfo

from exporter.core.local_time import interval_start_from
from exporter.core.periods import align_up
from exporter.sources.cloudwatch.retention import EXPIRY_MARGIN_SECONDS, TIERS

Source = Literal["mongodb", "cloudwatch"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a time range with one source and one resolution: [start, end) in UTC seconds."""

    source: Source
    start: int
    end: int
    resolution: int
    """Seconds of a sample."""
    interval: int | None
    """Seconds of the rows that the samples are aggregated into; None for the samples themselves."""

    @property
    def step(self) -> int:
        """Seconds from one row to the next."""
        return self.interval or self.resolution


def split_range(
    start: int, end: int, now: int, *, period: int, interval: int | None, boundary: int | None, zone: ZoneInfo | None = None
) -> list[Segment]:
    """Split [start, end) into segments, oldest first.

    No row spans two segments: each cut is where a row of the older, coarser segment ends.

    Args:
        start: UTC second.
        end: UTC second.
        now: UTC second that ages are relative to.
        period: seconds of a sample in MongoDB.
        interval: seconds of a row, None for samples. Rows are longer where CloudWatch retains only coarser datapoints.
        boundary: UTC second from which MongoDB has the samples; None when it has all.
        zone: of days and weeks; None: UTC.
    """
    found: list[Segment] = []
    at = start
    for younger, resolution in _tiers(period):
        step = align_up(interval, resolution) if interval else resolution
        cut = end if boundary is None else min(boundary, now - younger + EXPIRY_MARGIN_SECONDS if younger else boundary)
        cut = min(end, interval_start_from(cut, step, zone))
        if boundary is not None and at < min(cut, boundary):
            found.append(Segment("cloudwatch", at, cut, resolution, step if interval else None))
            at = cut
    if at < end and (boundary is None or at >= boundary):
        found.append(Segment("mongodb", at, end, period, interval))
    return found


def _tiers(period: int) -> list[tuple[int, int]]:
    """Return (age in seconds at which the tier begins, resolution in seconds), oldest first; equal resolutions are merged."""
    ages = [0, *(limit for limit, _ in TIERS)]
    tiers: dict[int, int] = {}
    for younger, (_, finest) in zip(ages, TIERS, strict=False):
        tiers.setdefault(align_up(period, finest), younger)
    return sorted(((younger, resolution) for resolution, younger in tiers.items()), reverse=True)
