"""Days and weeks of a time zone on UTC seconds. Pure; the rules of the zones are the operating system's (IANA).

A local day has 23, 24 or 25 hours. Only whole days and weeks differ between zones; shorter intervals stay aligned to UTC.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from exporter.core.periods import DAY, WEEK, align_interval, to_datetime

LOCAL_INTERVALS = (DAY, WEEK)
"""Seconds of the intervals that a time zone makes local."""


@lru_cache(maxsize=64)
def time_zone(name: str) -> ZoneInfo:
    """Return a time zone by its name.

    Raises:
        ValueError: there is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # a folder of the database, or a name that cannot be a file's
        raise ValueError(f"{name!r} is not a time zone; write a name such as America/New_York, Europe/Berlin or UTC") from None


def interval_start(time: int, interval: int, zone: ZoneInfo | None) -> int:
    """Return the start of the interval that contains `time` (UTC seconds): local days, weeks from Monday, else as in UTC."""
    if zone is None or interval not in LOCAL_INTERVALS:
        return align_interval(time, interval)
    day = to_datetime(time).astimezone(zone).date()
    return _midnight(day - timedelta(days=day.weekday() if interval == WEEK else 0), zone)


def later_start(time: int, interval: int, zone: ZoneInfo | None, count: int = 1) -> int:
    """Return the start of the interval that is `count` after the one that contains `time`."""
    start = interval_start(time, interval, zone)
    if zone is None or interval not in LOCAL_INTERVALS:
        return start + count * interval
    day = to_datetime(start).astimezone(zone).date()
    try:
        return _midnight(day + timedelta(seconds=count * interval), zone)
    except OverflowError:  # after the year 9999
        return start + count * interval


def interval_start_from(time: int, interval: int, zone: ZoneInfo | None) -> int:
    """Return the first interval start that is not before `time`."""
    start = interval_start(time, interval, zone)
    return start if start == time else later_start(time, interval, zone)


def local_to_utc(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the moment at which the clocks of a zone show `wall`; both are naive, the result is UTC."""
    return wall.replace(tzinfo=zone).astimezone(UTC).replace(tzinfo=None)


def utc_offsets(zone: ZoneInfo, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (UTC second, offset in seconds) for `start` and for each change of the offset in (start, end)."""
    at, offset = start, _offset(zone, start)
    yield at, offset
    while at < end:
        step = min(at + DAY, end)
        if _offset(zone, step) != offset:
            low, high = at, step  # the change lies in (low, high]
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle) == offset else (low, middle)
            if high >= end:
                return
            step, offset = high, _offset(zone, high)
            yield step, offset
        at = step


def _offset(zone: ZoneInfo, time: int) -> int:
    offset = to_datetime(time).astimezone(zone).utcoffset()
    assert offset is not None
    return offset // timedelta(seconds=1)


def _midnight(day: date, zone: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
