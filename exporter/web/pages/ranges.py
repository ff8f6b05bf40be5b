"""The choice of a range of time that pages with charts have. Pure."""

from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

RANGES = (("24 h", "-24h"), ("7 d", "-7d"), ("30 d", "-30d"))
"""Label and `start` of the ranges that are one click away."""


class Link(NamedTuple):
    """A link."""

    label: str
    address: str
    current: bool = False


def local_time(second: int, zone: tzinfo | None) -> str:
    """Return a UTC second as the browser's field for times has it; zone None: UTC."""
    return f"{datetime.fromtimestamp(second, zone or UTC):%Y-%m-%dT%H:%M}"
