"""Parses single values of a query string; a mistake is a RequestError with what to write instead. Pure functions."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from zoneinfo import ZoneInfo

from exporter.core.errors import RequestError
from exporter.core.local_time import time_zone
from exporter.core.periods import DAY, WEEK, format_duration, parse_duration, parse_time, rfc3339
from exporter.web.openapi import Parameter

MAX_PARAMETER_CHARACTERS = 4096
"""Characters of a parameter; the longest is the cursor of a worker id of 1,024 characters."""
MAX_FUTURE_SECONDS = DAY
"""Seconds that `end` may lie in the future, so that the end of today is accepted."""


def time_bound(given: Mapping[str, Sequence[str]], name: str, now: int, default: int, zone: ZoneInfo | None = None) -> int:
    """Return the parameter `name` as UTC seconds; `default` where it is not given; raises RequestError."""
    text = single(given, name)
    if text is None:
        return default
    try:
        return parse_time(text, now, zone or UTC)
    except ValueError:
        raise RequestError(f"{name} {_no_time(text)}") from None


def _no_time(text: str) -> str:
    """Return what is wrong with a text that is no time, as the rest of a sentence."""
    if re.fullmatch(r"(now)?[+ ][0-9].{0,30}", text):  # a + that a client did not percent-encode arrives as a space
        return "is in the future, as a duration after now; durations are before now, such as -24h."
    if re.fullmatch(r"(now)?-?([0-9]*[.][0-9]+ ?[A-Za-z]{1,12}|[0-9]+ ?(?!(ms|[smhdwy])$)[A-Za-z]{1,12})", text):
        return "is no duration of whole numbers and the units ms, s, m, h, d, w, and y; write it such as -24h, -1h30m, or -30d."
    if re.fullmatch("[0-9]{15,20}", text):
        return f"has {len(text)} digits, so it is in microseconds or nanoseconds; write Unix seconds or milliseconds."
    return (
        "must be a time such as 2026-01-31T12:00:00Z, Unix seconds or milliseconds, now, or a duration before now such as -24h."
    )


def zone_named(name: str | None) -> ZoneInfo | None:
    """Return the time zone of this name, None for None; raises RequestError."""
    if name is None:
        return None
    try:
        return time_zone(name)
    except ValueError:
        raise RequestError("tz must be the name of a time zone, such as America/New_York, Europe/Berlin or UTC.") from None


def check_range(start: int, end: int, now: int, reach: int | None) -> None:
    """Raise RequestError unless [start, end) lies between the oldest data (`reach` seconds ago) and tomorrow."""
    if end > now + MAX_FUTURE_SECONDS:
        raise RequestError(f"end is in the future ({rfc3339(end)}); leave it out to use now.")
    if start == now:
        raise RequestError("start is now, after which there are no samples yet; use an earlier one, such as -24h.")
    if start > now:
        raise RequestError(f"start is in the future ({rfc3339(start)}); use an earlier one, such as -24h.")
    if start >= end:
        raise RequestError("start must be before end.")
    if start < 0 or (reach is not None and start < now - reach):
        oldest = f"-{format_duration(reach)}" if reach is not None else "1970-01-01T00:00:00Z"
        raise RequestError(f"start is too early ({rfc3339(start)}); no data is kept that long. The earliest start is {oldest}.")


def interval_of(text: str | None, period: int) -> int | None:
    """Return the length of an interval in seconds, a multiple of `period`; raises RequestError."""
    if text is None:
        return None
    shortest = format_duration(period)
    sentence = f"interval must be a duration from {shortest} to {format_duration(WEEK)}, such as 1h or 1d."
    seconds = duration_of(text, sentence)
    if seconds < period:
        raise RequestError(f"interval is shorter than the time between two samples; use {shortest} or longer.")
    if seconds > WEEK:
        raise RequestError(sentence)
    if seconds % period:
        raise RequestError(f"interval must be a multiple of {shortest}, the time between two samples.")
    return seconds


def duration_of(text: str, sentence: str) -> int:
    """Return a duration in seconds; raises RequestError with `sentence`."""
    try:
        return parse_duration(text) if len(text) < 32 else _refuse(sentence)
    except ValueError as error:
        raise RequestError(sentence) from error


def _refuse(sentence: str) -> int:
    raise RequestError(sentence)


def whole_number(given: Mapping[str, Sequence[str]], parameter: Parameter) -> int:
    """Return a number within the bounds of its parameter's schema, or its default; raises RequestError."""
    text, least, most = single(given, parameter.name), parameter.schema["minimum"], parameter.schema["maximum"]
    if text is None:
        return int(parameter.schema["default"])
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise RequestError(f"{parameter.name} must be a whole number from {least} to {most}.")
    return int(text)


def choice(given: Mapping[str, Sequence[str]], parameter: Parameter) -> str:
    """Return one of the values that the parameter's schema lists, or its default; raises RequestError."""
    text, allowed = single(given, parameter.name), parameter.schema["enum"]
    if text is not None and text not in allowed:
        raise RequestError(f"{parameter.name} must be one of {', '.join(allowed)}.")
    return str(parameter.schema["default"]) if text is None else text


def flag(given: Mapping[str, Sequence[str]], parameter: Parameter) -> bool:
    """Return whether a parameter is `true`; its default where it is not given; raises RequestError."""
    text = single(given, parameter.name)
    if text not in (None, "true", "false"):
        raise RequestError(f"{parameter.name} must be true or false.")
    return bool(parameter.schema["default"]) if text is None else text == "true"


def given_values(items: Iterable[tuple[str, str]], parameters: Sequence[Parameter]) -> Mapping[str, Sequence[str]]:
    """Return name → values; raises RequestError for unknown names, and for repeated ones that must not be."""
    allowed = {parameter.name: parameter for parameter in parameters if parameter.place == "query"}
    given: dict[str, list[str]] = {}
    for name, value in items:
        if name not in allowed:
            raise RequestError(f"{name[:80]} is not a parameter of this route; allowed are {', '.join(allowed)}.")
        if name in given and not allowed[name].many:
            raise RequestError(f"{name} is given twice; give it once.")
        if len(value) > MAX_PARAMETER_CHARACTERS:
            raise RequestError(f"{name} is longer than {MAX_PARAMETER_CHARACTERS} characters.")
        given.setdefault(name, []).append(value)
    return given


def single(given: Mapping[str, Sequence[str]], name: str) -> str | None:
    """Return the value of a parameter that is given at most once, None if it is not given."""
    return given[name][0] if name in given else None
