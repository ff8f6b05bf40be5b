"""Arithmetic on UTC seconds: periods, windows, durations, times. Pure; no clock is read here.

A period is [start, start + length). It is identified by its start, and closed once its end is in the past.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo

MINUTE, HOUR, DAY, WEEK = 60, 3600, 86400, 604800

_UNITS = {"ms": 0.001, "s": 1, "m": MINUTE, "h": HOUR, "d": DAY, "w": WEEK, "y": 365 * DAY}
_DURATION = re.compile(r"(\d+)(ms|[smhdwy])")
_UNIX = re.compile(r"([0-9]{1,14})(\.[0-9]{1,9})?")
MILLISECONDS_FROM = 10**11
"""A Unix time from here on is in milliseconds: as seconds it would be the year 5138, as milliseconds it is 1973."""
_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+\- ]\d\d:\d\d)?)?")
LATEST = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second that datetime can hold


def align(time: int, step: int) -> int:
    """Return the newest multiple of `step` that is not after `time` (both in seconds)."""
    return time - time % step


def align_up(time: int, step: int) -> int:
    """Return the oldest multiple of `step` that is not before `time` (both in seconds)."""
    return time + -time % step


def is_period(length: int) -> bool:
    """Return whether `length` (seconds) can be the period of a history.

    60 s is the finest resolution of EC2 metrics; a divisor of an hour makes every longer interval whole periods.
    """
    return length > 0 and length % MINUTE == 0 and HOUR % length == 0


def closed_periods(start: int, length: int, now: int) -> Iterator[int]:
    """Yield the starts of all closed periods (end not after `now`) from `start`, which must be aligned."""
    return iter(range(start, align(now, length), length))


def next_tick(now: float, interval: int, offset: int) -> float:
    """Return the first time after `now` that lies `offset` seconds after a multiple of `interval`."""
    return (now - offset) // interval * interval + interval + offset


def parse_duration(text: str) -> int:
    """Parse a Prometheus duration ("90s", "1h30m", "30d") into whole seconds.

    The units are those of the Prometheus documentation, largest first: y (365 d), w, d, h, m, s, ms.

    Raises:
        ValueError: the text is not a duration, is not positive, or is not a whole number of seconds.
    """
    parts = _DURATION.findall(text)
    sizes = [_UNITS[unit] for _, unit in parts]
    if not parts or "".join(n + u for n, u in parts) != text or sizes != sorted(set(sizes), reverse=True):
        raise ValueError(f"{text!r} is not a duration; write a number and a unit, such as 30s, 5m, 1h30m or 30d")
    seconds = sum(int(n) * _UNITS[u] for n, u in parts)
    if seconds <= 0 or seconds != int(seconds):
        raise ValueError(f"{text!r} must be a positive whole number of seconds, such as 30s, 5m or 1h")
    return int(seconds)


def format_duration(seconds: int) -> str:
    """Format whole seconds as the shortest duration that `parse_duration` reads: 5400 → "1h30m"."""
    out = ""
    for unit in ("d", "h", "m", "s"):
        count, seconds = divmod(seconds, int(_UNITS[unit]))
        out += f"{count}{unit}" if count else ""
    return out or "0s"


def parse_time(text: str, now: int, zone: tzinfo = UTC) -> int:
    """Parse a time into UTC seconds, rounded down.

    The command line and the HTTP API share this grammar: `now`; a duration before now, "30d", "-30d" or "now-30d"; RFC 3339
    ("2026-01-31T12:00:00Z"), also without seconds, without a time of day (00:00), or without an offset (then in `zone`); Unix
    seconds or milliseconds. Times before 1970 or after 9999 are cut to these.

    Raises:
        ValueError: the text is none of these.
    """
    if text == "now":
        return now
    try:
        if unix := _UNIX.fullmatch(text):
            time = int(unix[1])
            time = time // 1000 if time >= MILLISECONDS_FROM else time
        elif _ISO_TIME.fullmatch(text):
            # A + that a client did not percent-encode arrives as a space, and so may the T.
            found = datetime.fromisoformat(re.sub(r"(:\d\d(?:\.\d+)?) (?=..:..$)", r"\1+", text).upper())
            time = to_seconds(found if found.tzinfo else found.replace(tzinfo=zone))
        else:
            time = now - parse_duration(text[4:] if text.startswith("now-") else text.removeprefix("-"))
        return min(max(0, time), LATEST)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a time; write a duration before now such as 30d, RFC 3339 such as 2026-01-31T12:00:00Z, "
            "unix seconds or milliseconds, or now"
        ) from None


def to_datetime(time: float) -> datetime:
    """Convert UTC seconds to an aware datetime."""
    return datetime.fromtimestamp(time, UTC)


def to_seconds(time: datetime) -> int:
    """Convert a datetime to whole UTC seconds, rounded down; a naive one is UTC, as in MongoDB."""
    return int(as_utc(time).timestamp() // 1)


def rfc3339(time: float) -> str:
    """Format UTC seconds as RFC 3339, such as 2026-01-31T12:00:00Z."""
    return to_datetime(time).strftime("%Y-%m-%dT%H:%M:%SZ")


_MONDAY = 4 * DAY  # 1970-01-05; the epoch is a Thursday


def align_interval(time: int, interval: int) -> int:
    """Return the start of the interval that contains `time`: aligned to UTC, whole weeks to Monday."""
    offset = _offset(interval)
    return align(time - offset, interval) + offset


def _offset(interval: int) -> int:
    return _MONDAY if interval % WEEK == 0 else 0


def as_utc(time: datetime) -> datetime:
    """Return the datetime with a time zone; a naive one is taken as UTC."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)
