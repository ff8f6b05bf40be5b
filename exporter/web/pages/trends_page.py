"""The page of the fleet's trends: days, weeks, busiest and idlest workers, and what idle hours cost. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

from markupsafe import Markup

from exporter.core.local_time import interval_start, later_start
from exporter.core.periods import DAY, HOUR, WEEK
from exporter.history.trends import Span, Totals, Trends
from exporter.web import chart
from exporter.web.chart import Chart, Line, Point
from exporter.web.numbered_lines import swatch
from exporter.web.pages import templates
from exporter.web.pages.ranges import Link
from exporter.web.pages.templates import number

RANGES = (("7 d", 7), ("14 d", 14), ("30 d", 30))
TOP_WORKERS = 10
"""Rows of the tables of the busiest and the idlest workers."""
MIN_RUNNING_HOURS = 1
"""Hours that a worker must have run to be among the busiest."""
_WIDE, _NARROW = (1200, 220), (440, 220)
_MOST_TYPES = 5
"""Instance types without a price that are named."""


class TrendWorker(NamedTuple):
    """A worker, as the tables name it."""

    name: str
    region: str
    instance_type: str | None
    price: float | None
    """US dollars per hour; None: not known."""


@dataclass(frozen=True, slots=True)
class TrendsView:
    """What the page shows.

    Attributes:
        trends: None: there are no figures.
        workers: worker id → worker.
        days: how many are shown.
        wanted: how many were asked for.
        end: UTC second of the end of today.
        now: UTC second.
        notice: what is missing and what to do, as a sentence; None: nothing is.
        zone: of the days and weeks; None: UTC.
    """

    trends: Trends | None
    workers: Mapping[str, TrendWorker]
    days: int
    wanted: int
    end: int
    now: int
    notice: str | None
    zone: ZoneInfo | None = None

    @property
    def begin(self) -> int:
        """Return the UTC second at which the first day begins."""
        return later_start(self.end - 1, DAY, self.zone, 1 - self.days)

    def day(self, second: int) -> datetime:
        """Return the day that begins at a UTC second, by the clocks of the zone."""
        return datetime.fromtimestamp(second, self.zone or UTC)


class Row(NamedTuple):
    """A day, a week, or the whole range."""

    label: str
    running: str
    cpu: str
    memory: str
    labs: str
    hours: str
    idle: str
    cost: str
    covered: str
    """Share of the hours that have samples."""


class WorkerRow(NamedTuple):
    """A worker of a table."""

    name: str
    address: str
    region: str
    instance_type: str
    cpu: str
    memory: str
    hours: str
    idle: str
    share: str
    cost: str


class Figure(NamedTuple):
    """A chart, with a legend where it has several lines."""

    label: str
    wide: Markup
    narrow: Markup
    legend: Sequence[tuple[Markup, str]]


def render(view: TrendsView, root: str) -> str:
    """Return the page; `root` is the relative path to the root of the exporter."""
    fewer = f"{len(view.workers):,} workers: {view.days} of {view.wanted} days are shown." if view.days < view.wanted else ""
    page: dict[str, Any] = {
        "notice": view.notice,
        "ranges": [
            Link(label, "?" + urlencode({"days": days} | ({"tz": view.zone.key} if view.zone else {})), days == view.wanted)
            for label, days in RANGES
        ],
        "first": f"{view.day(view.begin):%Y-%m-%d}",
        "last": f"{view.day(view.end - 1):%Y-%m-%d}",
        "wanted": view.wanted,
        "zone": view.zone.key if view.zone else "UTC",
        "split": any(span % HOUR for span in (view.begin, view.end)),
        "fewer": fewer,
        "days": None,
    }
    if view.trends is not None and view.trends.days:
        page |= _figures(view, view.trends)
    return templates.render("trends.html", root=root, page=page)


def _figures(view: TrendsView, trends: Trends) -> dict[str, Any]:
    whole, weeks = Span(), dict[int, Span]()
    for day, span in sorted(trends.days.items()):
        whole.add(span)
        weeks.setdefault(interval_start(day, WEEK, view.zone), Span()).add(span)
    busiest = _ranked(trends.workers, lambda each: each.mean_cpu if each.running >= MIN_RUNNING_HOURS else None)
    idlest = _ranked(trends.workers, lambda each: each.idle or None)
    days, newest_weeks = sorted(trends.days, reverse=True), sorted(weeks, reverse=True)
    return {
        "tiles": _tiles(whole),
        "charts": list(_charts(view, trends)),
        "days": [_row(_day(day, view), trends.days[day], day, DAY, view) for day in days],
        "weeks": [_row(f"from {_day(week, view)}", weeks[week], week, WEEK, view) for week in newest_weeks],
        "busiest": [_worker(worker_id, view) for worker_id in busiest],
        "idlest": [_worker(worker_id, view) for worker_id in idlest],
        "cost": _cost(view, trends, whole.totals),
        "counted": _counted(whole.totals),
    }


def _tiles(whole: Span) -> list[tuple[str, str]]:
    totals = whole.totals
    return [
        ("running at a time", number(whole.mean_running)),
        ("mean CPU while running", number(totals.mean_cpu, " %")),
        ("mean memory while running", number(totals.mean_memory, " %")),
        ("labs at a time", number(whole.mean_labs)),
        ("hours running", _hours(totals.running)),
        ("of them without a lab", _hours(totals.idle)),
        ("what these cost", _dollars(totals)),
    ]


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 or hours == 0 else f"{hours:.1f} h"


def _dollars(totals: Totals) -> str:
    """Return the cost of idle hours; a dash where no price is known."""
    return f"${totals.cost:,.2f}" if totals.priced or not totals.idle else "–"


def _day(second: int, view: TrendsView) -> str:
    return f"{view.day(second):%a %Y-%m-%d}"


def _row(label: str, span: Span, start: int, interval: int, view: TrendsView) -> Row:
    totals = span.totals
    end = min(later_start(start, interval, view.zone), view.now)
    elapsed = max(1, (end - max(start, view.begin)) // HOUR)
    return Row(
        label=label,
        running=number(span.mean_running),
        cpu=number(totals.mean_cpu, " %"),
        memory=number(totals.mean_memory, " %"),
        labs=number(span.mean_labs),
        hours=_hours(totals.running),
        idle=_hours(totals.idle),
        cost=_dollars(totals),
        covered=f"{min(1.0, len(span.observed) / elapsed):.0%}".replace("%", " %"),
    )


def _ranked(workers: Mapping[str, Totals], rank: Callable[[Totals], float | None]) -> Sequence[str]:
    """Return the ids of the workers with the greatest ranks, greatest first; those without a rank are left out."""
    ranks = {worker_id: value for worker_id, totals in workers.items() if (value := rank(totals)) is not None}
    return sorted(ranks, key=lambda worker_id: (-ranks[worker_id], worker_id))[:TOP_WORKERS]


def _worker(worker_id: str, view: TrendsView) -> WorkerRow:
    assert view.trends is not None
    worker, totals = view.workers[worker_id], view.trends.workers[worker_id]
    return WorkerRow(
        name=worker.name,
        address=f"workers/{quote(worker_id, safe='')}?start=-{view.days}d",
        region=worker.region or "–",
        instance_type=worker.instance_type or "–",
        cpu=number(totals.mean_cpu, " %"),
        memory=number(totals.mean_memory, " %"),
        hours=_hours(totals.running),
        idle=_hours(totals.idle),
        share=f"{totals.idle / totals.running:.0%}".replace("%", " %") if totals.running else "–",
        cost=_dollars(totals),
    )


def _cost(view: TrendsView, trends: Trends, totals: Totals) -> str:
    """Return for how many workers the cost is known, as a sentence."""
    idle = [worker_id for worker_id, each in trends.workers.items() if each.idle]
    if not idle:
        return "No worker ran without a lab."
    unpriced = [view.workers[worker_id].instance_type for worker_id in idle if view.workers[worker_id].price is None]
    types = sorted({each for each in unpriced if each})
    share = f"{totals.priced / totals.idle:.0%}".replace("%", " %")
    known = len(idle) - len(unpriced)
    text = f"A price is known for {known:,} of {len(idle):,} workers that ran without a lab ({share} of these hours)."
    if types:
        more = f", and {len(types) - _MOST_TYPES} more" if len(types) > _MOST_TYPES else ""
        text += f" Add to workers.hourly_price: {', '.join(types[:_MOST_TYPES])}{more}."
    return text


def _counted(totals: Totals) -> str:
    """Return for which part of the running hours the labs are known, as a sentence; empty where that is most of them."""
    share = totals.counted / totals.running if totals.running else 1
    if share >= 0.8:
        return ""
    return (
        f"The number of labs is known for {share:.0%}".replace("%", " %")
        + " of the running hours; hours without it do not count as idle, so the idle hours are too low."
    )


def _charts(view: TrendsView, trends: Trends) -> Iterable[Figure]:
    def points(value: Callable[[Span], float | None]) -> list[Point]:
        return [Point(day, value(span)) for day, span in sorted(trends.days.items())]

    def cpu(span: Span) -> float | None:
        return span.totals.mean_cpu

    def memory(span: Span) -> float | None:
        return span.totals.mean_memory

    step = DAY if view.zone is None else DAY + HOUR  # where the clocks go back a day has 25 hours
    zone = view.zone or UTC
    running = [Line("mean of a day", points(lambda span: span.mean_running), step)]
    loads = [Line("CPU", points(cpu), step, number=1), Line("memory", points(memory), step, number=2)]
    labs = [Line("mean of a day", points(lambda span: span.mean_labs), step)]
    figures = (
        Chart("Running workers", "", view.begin, view.end, running, zone=zone),
        Chart("CPU and memory while running", " %", view.begin, view.end, loads, top=100, zone=zone),
        Chart("Labs", "", view.begin, view.end, labs, zone=zone),
    )
    for drawn in figures:
        wide, narrow = (Markup(chart.render(drawn, *size, theme=None)) for size in (_WIDE, _NARROW))
        legend = [(Markup(swatch(line.number)), line.label) for line in drawn.lines if line.number]
        yield Figure(drawn.title, wide, narrow, legend)
