"""Draws values over time as an SVG document: lines with gaps, a min/max band, a status band, marks. Pure.

Own code because no library has gaps, bands, a time axis in a time zone and themes at this speed; docs/dependencies.md has the
figures. The document has no script, loads nothing, and is the same in an `<img>` and inside a page. Its `data-` attributes
(`start`, `end`, `low`, `high`: what the edges of the plot stand for; `left`, `right`, `top`, `bottom`: where they are) are what
a reader needs to turn a point of a line back into a time and a value.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Literal, NamedTuple
from xml.sax.saxutils import escape

from exporter.web.numbered_lines import LOOKS, MAX_NUMBERED, badge
from exporter.web.time_axis import LABEL_PIXELS, time_ticks

Theme = Literal["auto", "light", "dark"]
THEMES: tuple[Theme, ...] = ("auto", "light", "dark")
"""auto: light or dark as the reader's browser prefers."""
MIN_WIDTH, MAX_WIDTH, DEFAULT_WIDTH = 240, 4096, 960
MIN_HEIGHT, MAX_HEIGHT, DEFAULT_HEIGHT = 120, 2160, 280
"""Pixels."""


class Point(NamedTuple):
    """One value."""

    time: int
    """UTC second."""
    value: float | None
    """None: there is none, which interrupts the line."""


class Range(NamedTuple):
    """The lowest and highest value of one interval."""

    time: int
    """UTC second of its start."""
    low: float
    high: float


class State(NamedTuple):
    """A status that a worker had in [start, end), UTC seconds."""

    start: int
    end: int
    status: str


class Mark(NamedTuple):
    """Something that happened at a UTC second."""

    time: int
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of values.

    Attributes:
        label: for the legend.
        points: by time.
        step: seconds between two points; a longer distance is a gap.
        earlier: whether it is another range, drawn thin and dashed behind the others.
        number: 1 to `MAX_NUMBERED` of a line among equals: it has a color, dashes, and this number on it; 0: the only one.
    """

    label: str
    points: Sequence[Point]
    step: int
    earlier: bool = False
    number: int = 0


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn.

    Attributes:
        title: such as the metric and the worker.
        unit: behind each number, such as " %"; may be empty.
        start, end: UTC seconds of the plot's edges.
        lines: the first one is the subject.
        band: lowest and highest values around the first line.
        states: the status band below the plot; empty: none.
        marks: vertical lines.
        top: the value of the upper edge; None: as the values need.
        zone: of the time axis.
    """

    title: str
    unit: str
    start: int
    end: int
    lines: Sequence[Line]
    band: Sequence[Range] = ()
    states: Sequence[State] = ()
    marks: Sequence[Mark] = ()
    top: float | None = None
    zone: tzinfo = UTC


_LIGHT = {"page": "#ffffff", "text": "#1c2530", "soft": "#5b6673", "grid": "#e3e7ec", "main": "#0b62b8", "earlier": "#767f8a"}
_DARK = {"page": "#151b22", "text": "#e5eaf0", "soft": "#9aa7b5", "grid": "#2b3540", "main": "#6cb2ff", "earlier": "#8b97a4"}
_STATUS = {
    "running": "#2f9e63",
    "stopped": "#8a96a3",
    "terminated": "#59636e",
    "failed": "#cf3a4e",
    "unknown": "#b08bd6",
}
_TRANSITION = "#d99a2b"
"""The color of pending, starting, stopping and shutting-down. Status colors have 3:1 on both backgrounds but for `stopped`."""

_RULES = """
.chart{{font:12px system-ui,"Segoe UI",Roboto,sans-serif}}
.chart .page{{fill:{page}}}.chart text{{fill:{soft}}}.chart .title{{fill:{text};font-size:14px;font-weight:600}}
.chart .badge{{fill:{text};font-size:10px}}
.chart .grid{{stroke:{grid}}}.chart .main{{stroke:{main}}}.chart .dot{{fill:{main}}}.chart .band{{fill:{main}}}
.chart .earlier{{stroke:{earlier}}}.chart .mark{{stroke:{soft}}}
"""


def style(theme: Theme) -> str:
    """Return the style sheet of a chart."""
    if theme == "dark":
        return _RULES.format(**_DARK)
    light = _RULES.format(**_LIGHT)
    return light if theme == "light" else f"{light}@media (prefers-color-scheme:dark){{{_RULES.format(**_DARK)}}}"


@dataclass(frozen=True, slots=True)
class _Plot:
    """The rectangle that values are drawn in, in pixels, and what its edges stand for."""

    left: float
    right: float
    top: float
    bottom: float
    start: int
    end: int
    low: float
    high: float

    def x(self, time: float) -> float:
        return self.left + (time - self.start) * (self.right - self.left) / (self.end - self.start)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.low) * (self.bottom - self.top) / (self.high - self.low)


def render(chart: Chart, width: int = DEFAULT_WIDTH, height: int = DEFAULT_HEIGHT, theme: Theme | None = "auto") -> str:
    """Return the chart as an SVG document of `width` × `height` pixels; theme None: the page around it has the style sheet."""
    high, steps = _value_axis(chart, height)
    widest = max(len(_number(value)) for value in steps) + len(chart.unit)
    narrow = width < 560
    plot = _Plot(
        left=14 + 6.6 * widest,
        right=width - 14,
        top=56 if narrow else 40,
        bottom=height - (44 if chart.states else 28),
        start=chart.start,
        end=chart.end,
        low=0,
        high=high,
    )
    edges = " ".join(f'data-{name}="{getattr(plot, name):g}"' for name in ("left", "right", "top", "bottom", "low", "high"))
    summary = _summary(chart)
    return "".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label="{_text(summary)}" '
            f'data-start="{chart.start}" data-end="{chart.end}" {edges} data-unit="{_text(chart.unit)}" '
            f'data-zone="{chart.zone}"><title>{_text(summary)}</title>',
            f"<style>{style(theme)}</style>" if theme else "",
            f'<rect class="page" width="{width}" height="{height}"/>',
            f'<text class="title" x="14" y="22">{_text(_shortened(chart.title, (width - 28) / 7.6))}</text>',
            *_legend(chart, width, narrow),
            *_value_grid(chart, plot, steps),
            *_time_grid(chart, plot),
            *_marks(chart, plot),
            *_band(chart, plot),
            *(part for line in sorted(chart.lines, key=lambda one: not one.earlier) for part in _line(line, plot)),
            *(part for line in chart.lines for part in _badges(line, plot)),
            *_states(chart, plot),
            *_nothing(chart, plot),
            "</svg>",
        )
    )


# -- axes --------------------------------------------------------------------------------------------------------------


def _value_axis(chart: Chart, height: int) -> tuple[float, list[float]]:
    """Return the value of the upper edge, and the values of the grid lines, from 0 up."""
    values = [point.value for line in chart.lines for point in line.points if point.value is not None]
    highest = max([*values, *(each.high for each in chart.band)], default=0.0)
    high = chart.top if chart.top is not None and highest <= chart.top else highest
    step = _nice(max(high, 1.0) / max(2, min(6, height // 60)))
    if not chart.unit:
        step = max(1.0, step)  # counts have no half
    high = step * max(1, math.ceil(round(high / step, 9)))
    return high, [step * number for number in range(round(high / step) + 1)]


def _nice(rough: float) -> float:
    """Return the next of 1, 2, 2.5, 5 × a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _value_grid(chart: Chart, plot: _Plot, steps: Iterable[float]) -> Iterator[str]:
    for value in steps:
        y = plot.y(value)
        yield f'<path class="grid" d="M{plot.left:g} {y:.1f}H{plot.right:g}"/>'
        yield f'<text x="{plot.left - 6:g}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}{_text(chart.unit)}</text>'


def _time_grid(chart: Chart, plot: _Plot) -> Iterator[str]:
    room = (plot.right - plot.left) / LABEL_PIXELS
    below = plot.bottom + (32 if chart.states else 18)
    for moment, label in time_ticks(chart.start, chart.end, room, chart.zone):
        x = plot.x(moment)
        yield f'<path class="grid" d="M{x:.1f} {plot.top:g}V{plot.bottom:g}"/>'
        if plot.left + 14 <= x <= plot.right - 14:  # a label at the edge would be cut
            yield f'<text x="{x:.1f}" y="{below:g}" text-anchor="middle">{label}</text>'


# -- values ------------------------------------------------------------------------------------------------------------


def runs(line: Line) -> Iterator[Sequence[Point]]:
    """Yield the parts of a line without a gap."""
    points, begin = line.points, None
    for index, point in enumerate(points):
        if begin is not None and (point.value is None or point.time - points[index - 1].time > 1.5 * line.step):
            yield points[begin:index]
            begin = None
        if begin is None and point.value is not None:
            begin = index
    if begin is not None:
        yield points[begin:]


def _line(line: Line, plot: _Plot) -> Iterator[str]:
    name, look = ("earlier", 'stroke-width="1" stroke-dasharray="4 3"') if line.earlier else ("main", 'stroke-width="1.6"')
    fill = ""
    if line.number:
        color, dashes = LOOKS[line.number - 1]
        look = f'stroke="{color}" stroke-width="1.8" stroke-dasharray="{dashes}"'
        name, fill = f"n{line.number}", f' fill="{color}"'
    for run in runs(line):
        if len(run) == 1:
            time, value = run[0]
            kind = name if line.number else f"dot {name}"
            yield f'<circle class="{kind}"{fill} cx="{plot.x(time):.2f}" cy="{plot.y(value or 0):.2f}" r="1.6"/>'
            continue
        points = " ".join(f"{plot.x(time):.2f},{plot.y(value or 0):.2f}" for time, value in run)
        yield f'<polyline class="line {name}" fill="none" {look} stroke-linejoin="round" points="{points}"/>'


def _badges(line: Line, plot: _Plot) -> Iterator[str]:
    """Yield the number of a line at some of its points; those of other lines are elsewhere."""
    points, number = [point for run in runs(line) for point in run if line.number], line.number
    times, third = [point.time for point in points], (plot.end - plot.start) / 3
    wanted = (plot.start + (part + (number - 0.5) / MAX_NUMBERED) * third for part in range(3))
    places = {min(bisect_left(times, time), len(points) - 1) for time in wanted} if points else set()
    for time, value in (points[place] for place in sorted(places)):
        yield badge(number, plot.x(time), plot.y(value or 0))


def _band(chart: Chart, plot: _Plot) -> Iterator[str]:
    if not chart.band:
        return
    times = [each.time for each in chart.band]
    for run in runs(Line("", [Point(each.time, each.high) for each in chart.band], chart.lines[0].step)):
        begin = bisect_left(times, run[0].time)
        part = chart.band[begin : begin + len(run)]
        upper = " ".join(f"{plot.x(each.time):.1f},{plot.y(each.high):.1f}" for each in part)
        lower = " ".join(f"{plot.x(each.time):.1f},{plot.y(each.low):.1f}" for each in reversed(part))
        yield f'<polygon class="band" fill-opacity=".16" points="{upper} {lower}"/>'


def _states(chart: Chart, plot: _Plot) -> Iterator[str]:
    for state in chart.states:
        left, right = plot.x(max(state.start, chart.start)), plot.x(min(state.end, chart.end))
        color = _STATUS.get(state.status, _TRANSITION)
        said = f"{_text(state.status)} {_clock(state.start, chart.zone)} to {_clock(state.end, chart.zone)}"
        yield (
            f'<rect x="{left:.2f}" y="{plot.bottom + 6:g}" width="{max(0.5, right - left):.2f}" height="8" fill="{color}">'
            f"<title>{said}</title></rect>"
        )


def _marks(chart: Chart, plot: _Plot) -> Iterator[str]:
    for mark in chart.marks:
        x = plot.x(mark.time)
        said = f"{_clock(mark.time, chart.zone)} {_text(mark.text)}"
        line = f"M{x:.1f} {plot.top:g}V{plot.bottom:g}"
        yield f'<path class="mark" stroke-dasharray="2 2" d="{line}"><title>{said}</title></path>'
        yield f'<path class="mark" stroke-dasharray="2 2" d="{line}"><title>{said}</title></path>'


def _nothing(chart: Chart, plot: _Plot) -> Iterator[str]:
    if not any(point.value is not None for line in chart.lines for point in line.points):
        x, y = (plot.left + plot.right) / 2, (plot.top + plot.bottom) / 2
        yield f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">No values in this range</text>'


def _legend(chart: Chart, width: int, narrow: bool) -> Iterator[str]:
    if any(line.number for line in chart.lines):
        return  # the page has a legend of its own: names of workers are longer than the picture is wide
    entries = [(line.label, "earlier" if line.earlier else "main") for line in chart.lines]
    if chart.band:
        entries.insert(1, ("lowest to highest", "band"))
    if narrow or len(chart.title) * 7.6 + sum(len(label) * 6.6 + 34 for label, _ in entries) > width - 28:
        if not narrow:
            return  # a title that long leaves no room; the labels are in the summary, too
        x, y = 14.0, 40
    else:
        x, y = width - 14 - sum(len(label) * 6.6 + 34 for label, _ in entries), 22
    for label, name in entries:
        if name == "band":
            yield f'<rect class="band" fill-opacity=".16" x="{x:.1f}" y="{y - 9}" width="18" height="10"/>'
        else:
            dashes = ' stroke-dasharray="4 3"' if name == "earlier" else ""
            yield f'<path class="{name}" stroke-width="2"{dashes} d="M{x:.1f} {y - 4}h18"/>'
        yield f'<text x="{x + 23:.1f}" y="{y}">{_text(label)}</text>'
        x += len(label) * 6.6 + 34


# -- words -------------------------------------------------------------------------------------------------------------


def _summary(chart: Chart) -> str:
    """Return what the chart shows, for readers who do not see it."""
    window = f"{_clock(chart.start, chart.zone)} to {_clock(chart.end, chart.zone)}"
    parts = []
    for line in chart.lines:
        values = [point.value for point in line.points if point.value is not None]
        if values:
            figures = (_number(figure) + chart.unit for figure in (sum(values) / len(values), min(values), max(values)))
            parts.append("{}: mean {}, lowest {}, highest {}".format(line.label, *figures))
    return f"{chart.title}, {window}. " + ("; ".join(parts) + "." if parts else "No values in this range.")


def _clock(moment: int, zone: tzinfo) -> str:
    return f"{datetime.fromtimestamp(moment, zone):%Y-%m-%d %H:%M}"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 100 else f"{value:.0f}"


def _shortened(text: str, most: float) -> str:
    return text if len(text) <= most else text[: max(1, int(most) - 1)] + "…"


_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML 1.0 has no way to write: https://www.w3.org/TR/xml/#charsets"""


def _text(text: str) -> str:
    """Return a text as SVG: markup is escaped, characters that XML forbids become U+FFFD."""
    return escape(_FORBIDDEN.sub("\ufffd", text), {'"': "&quot;"})
