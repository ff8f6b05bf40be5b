"""Sparklines: the last 24 hours of CPU and memory as small pictures in a line of text."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from markupsafe import Markup

from exporter.core.periods import HOUR, align
from exporter.history.series import BlockSource

HOURS = 24
_WIDTH, _HEIGHT, _EDGE = 96, 22, 2
"""Pixels."""
_FIELDS = {"cpu": "cpu_utilization_avg", "memory": "memory_utilization_avg"}
Hours = Mapping[int, float]
"""Number of the hour in the range, 0 to 23 → its mean, percent."""


class Sparklines(NamedTuple):
    """The last hours of one worker."""

    cpu: Hours
    memory: Hours


async def read_sparklines(hourly: BlockSource, worker_ids: Collection[str], now: int) -> Mapping[str, Sparklines]:
    """Return worker id → means of the last 24 whole hours before `now`, UTC seconds, for the workers that have any.

    Both metrics come from the same hourly aggregates: MongoDB is queried once for each UTC day of the range, for all workers,
    unless the days are cached.

    Raises:
        StoreError: MongoDB does not answer.
    """
    end = align(now, HOUR)
    begin = end - HOURS * HOUR
    found: dict[str, Sparklines] = {}
    for metric, field in _FIELDS.items():
        for block in await hourly.blocks(worker_ids, (begin + 1) * 1000, end * 1000, field):
            numbers = [(stamp // 1000 - begin) // HOUR - 1 for stamp in block.stamps]  # a value is at the end of its hour
            for worker_id, _, values in block.by_row():
                of_worker = found.setdefault(worker_id, Sparklines({}, {}))
                hours = {**getattr(of_worker, metric), **dict(zip(numbers, values, strict=True))}
                found[worker_id] = of_worker._replace(**{metric: hours})
    return found


def draw(label: str, hours: Hours) -> Markup:
    """Return a sparkline as SVG, from 0 to 100 percent; empty without values. A line never bridges an hour without a value."""
    if not hours:
        return Markup("")
    step = (_WIDTH - 2 * _EDGE) / (HOURS - 1)
    path = []
    for hour in sorted(hours):
        x = _EDGE + hour * step
        y = _HEIGHT - _EDGE - min(max(hours[hour], 0), 100) / 100 * (_HEIGHT - 2 * _EDGE)
        path.append(f"{'L' if hour - 1 in hours else 'M'}{x:.1f} {y:.1f}")
        if hour - 1 not in hours and hour + 1 not in hours:
            path.append("h.1")  # a dot, by the round ends of the line
    low, high = min(hours.values()), max(hours.values())
    text = f"{label} in the last 24 h: {low:.0f} to {high:.0f} %"
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{text}"><path d="{d}"/></svg>'
    ).format(w=_WIDTH, h=_HEIGHT, text=text, d="".join(path))
