"""The labels of a time axis: whole hours, days or months of a zone's clocks. Pure."""

from datetime import date, datetime, timedelta, tzinfo

from exporter.core.periods import DAY, HOUR, MINUTE

_HOUR_STEPS = (5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR)
_DAY_STEPS = (1, 2, 7, 14)
LABEL_PIXELS = 76
"""Room for a label of the time axis."""


def time_ticks(start: int, end: int, room: float, zone: tzinfo) -> list[tuple[int, str]]:
    """Return (UTC second, label) of the grid lines in [start, end], at whole hours, days or months of the zone's clocks.

    Args:
        start, end: UTC seconds.
        room: how many labels fit.
        zone: across a change of its clocks an hour is missing or longer, as on a wall clock.
    """
    rough = (end - start) / max(1.0, room)
    first, last = (datetime.fromtimestamp(moment, zone).date() for moment in (start, end))
    if rough <= _HOUR_STEPS[-1]:
        step = next(step for step in _HOUR_STEPS if step >= rough)
        wanted = [
            datetime.combine(first + timedelta(days=day), datetime.min.time()) + timedelta(seconds=second)
            for day in range((last - first).days + 1)
            for second in range(0, DAY, step)
        ]
    elif rough <= _DAY_STEPS[-1] * DAY:
        days = next(step for step in _DAY_STEPS if step * DAY >= rough)
        begin = first.toordinal() - (first.toordinal() - 1) % days  # day 1 of the calendar was a Monday
        wanted = [_midnight(date.fromordinal(ordinal)) for ordinal in range(begin, last.toordinal() + 1, days)]
    else:
        months = next(step for step in (1, 2, 3, 6, 12, 60, 1200) if step * 30 * DAY >= rough)
        begin, until = (each.year * 12 + each.month - 1 for each in (first, last))
        numbers = range(begin - begin % months, until + 1, months)
        wanted = [datetime(number // 12, number % 12 + 1, 1) for number in numbers]  # a wall clock
    ticks = {int(wall.replace(tzinfo=zone).timestamp()): _label(wall, rough) for wall in wanted}
    return [(moment, ticks[moment]) for moment in sorted(ticks) if start <= moment <= end]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)  # a wall clock


def _label(wall: datetime, rough: float) -> str:
    if rough > _DAY_STEPS[-1] * DAY:
        return f"{wall:%b %Y}"
    return f"{wall:%H:%M}" if wall.hour or wall.minute else f"{wall:%b} {wall.day}"
