"""The choice of a range of time that pages with charts have. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

RANGES = (("24 h", "-24h"), ("7 d", "-7d"), ("30 d", "-30d"))
"""Label and `start` of the ranges that are one click away."""


class Link(NamedTuple):
    """A link."""

    label: str
    address: str
    current: bool = False


def _local_time(second: int, zone: tzinfo | None) -> str:
    """Return a UTC second as the browser's field for times has it; zone None: UTC."""
    return f"{datetime.fromtimestamp(second, zone or UTC):%Y-%m-%dT%H:%M}"


def range_fields(start: int, end: int, zone: ZoneInfo | None) -> Mapping[str, object]:
    """Return what the templates need for a range of UTC seconds and its form; zone None: UTC."""
    return {
        "start": start,
        "end": end,
        "start_local": _local_time(start, zone),
        "end_local": _local_time(end, zone),
        "zone": zone.key if zone else "UTC",
        "tz": zone,
    }
