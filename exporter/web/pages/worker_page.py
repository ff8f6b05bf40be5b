"""The page of one worker: charts, hours, days, and what is known of it now. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

from markupsafe import Markup

from exporter.core.history_metrics import METRIC_FIELDS
from exporter.core.periods import WEEK, format_duration
from exporter.history.reader import WorkerRef
from exporter.storage.rows import FieldStatistics, HistoryRow, StatisticsRow, milliseconds
from exporter.web import chart, worker_chart
from exporter.web.pages import templates
from exporter.web.pages.ranges import RANGES, Link, range_fields
from exporter.web.pages.templates import duration, moment, number
from exporter.web.schemas import FleetWorker
from exporter.web.worker_chart import WorkerRows

_WIDE, _NARROW = (1200, 250), (440, 230)
"""Pixels of a chart on a screen and on a phone: a picture that is scaled down has letters too small to read."""
DASHBOARD = "cml-worker"
"""Uid of the Grafana dashboard of one worker."""
_NO_FIGURES: FieldStatistics = {"avg": None, "min": None, "max": None, "samples": 0}


class Figure(NamedTuple):
    """A chart of the page."""

    label: str
    wide: Markup
    narrow: Markup
    """The same chart for a phone."""
    image: str
    """Address of the same chart as an image."""


class Day(NamedTuple):
    """A day of the range."""

    date: str
    figures: tuple[FieldStatistics, ...]
    """Of CPU, memory, labs."""
    statuses: str


@dataclass(frozen=True, slots=True)
class Hours:
    """How long a worker was what, in seconds of the range; None where nothing is known of it."""

    running: float | None
    idle: float | None
    """Running without a lab."""
    other: float | None
    coverage: float
    """Share of the range for which a status or a CPU value is stored, 0 to 1."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What the page shows.

    Attributes:
        ref: the worker.
        row: its row in /api/workers; None: it is neither in the fleet nor in the inventory's list.
        status: today's, None if it is not known.
        start, end: UTC seconds.
        start_text: `start` as the address has it.
        shown: the rows of the charts.
        earlier: the rows of the week before; None: no comparison.
        days: statistics by day.
        zone: None: UTC.
        note: why something is missing; None: nothing is.
        grafana_url: where the dashboards are; None: not known.
    """

    ref: WorkerRef
    row: FleetWorker | None
    status: str | None
    start: int
    end: int
    start_text: str
    shown: WorkerRows
    earlier: WorkerRows | None
    days: Sequence[HistoryRow]
    zone: ZoneInfo | None
    note: str | None
    grafana_url: str | None


def render(view: WorkerView, root: str) -> str:
    """Return the page; `root` is the relative path to the root of the exporter."""
    worker_id = quote(view.ref.worker.id, safe="")
    here = f"{root}workers/{worker_id}"
    common = {"tz": view.zone.key} if view.zone else {}
    compare = {"compare": "1w"} if view.earlier is not None else {}
    exact = {"start": str(view.start), "end": str(view.end)}
    history = f"{root}api/workers/{worker_id}/metrics/history"
    links = [
        Link("Compare with other workers", f"{root}compare?{urlencode({'worker': view.ref.worker.id, **exact, **common})}"),
        Link("Samples as CSV", f"{history}?{urlencode({**exact, **common, 'format': 'csv', 'limit': '10000'})}"),
        Link("Samples as JSON", f"{history}?{urlencode({**exact, **common})}"),
    ]
    if view.grafana_url:
        query = urlencode({"var-worker_id": view.ref.worker.id, "from": view.start * 1000, "to": view.end * 1000})
        links.append(Link("Grafana dashboard", f"{view.grafana_url.rstrip('/')}/d/{DASHBOARD}?{query}"))
    page: dict[str, Any] = {
        "name": view.ref.display_name,
        "status": view.status,
        "region": view.ref.region,
        "note": view.note,
        "ranges": [
            Link(label, "?" + urlencode({"start": start, **common, **compare}), start == view.start_text)
            for label, start in RANGES
        ],
        **range_fields(view.start, view.end, view.zone),
        "compare": "1w" if compare else "",
        "resolution": f"in steps of {format_duration(view.shown.step)}",
        "charts": list(_figures(view, here, {**exact, **common, **compare})),
        "hours": hours(view.shown, view.start, view.end),
        "days": [_day(row, view.zone) for row in view.days],
        "empty": "Choose a range in which the worker existed." if view.note is None else "",
        "facts": list(_facts(view)),
        "links": links,
    }
    return templates.render("worker.html", root=root, page=page)


def _figures(view: WorkerView, here: str, query: Mapping[str, str]) -> Iterable[Figure]:
    for metric, drawn in worker_chart.METRICS.items():
        made = worker_chart.worker_chart(
            view.ref, metric, view.start, view.end, view.shown, earlier=view.earlier, shift=WEEK, zone=view.zone
        )
        # The pictures are drawn by the very same code, from numbers and escaped texts.
        wide, narrow = (Markup(chart.render(made, *size, theme=None)) for size in (_WIDE, _NARROW))
        yield Figure(f"{drawn.title} over time", wide, narrow, f"{here}/chart.svg?{urlencode({'metric': metric, **query})}")


def hours(shown: WorkerRows, start: int, end: int) -> Hours:
    """Return how long a worker was running, idle, and neither.

    A sample with CPU and without a status was running: AWS has CPU values of running instances only. An interval of statistics
    counts as idle as far as the worker ran, if it had no lab in all of it.

    Args:
        shown: the rows of the range.
        start, end: UTC seconds of the range.
    """
    running = idle = known = 0.0
    for row, seconds in zip(shown.rows, shown.resolutions or [shown.step] * len(shown.rows), strict=True):
        if "status_share" in row:
            interval = cast(StatisticsRow, row)
            ran, covered = interval["running_samples"], interval["known_samples"]
            labs = interval["active_labs_count"]["max"]
        else:
            presumed = row["status"] is None and row["cpu_utilization"] is not None
            ran, covered = int(presumed or row["status"] == "running"), int(presumed or row["status"] is not None)
            labs = row["active_labs_count"]
        running += ran * seconds
        known += covered * seconds
        idle += ran * seconds if labs == 0 else 0
    if not known:  # missing data is not zero hours
        return Hours(None, None, None, 0)
    return Hours(running, idle, known - running, min(1.0, known / max(1, end - start)))


def _day(row: HistoryRow, zone: ZoneInfo | None) -> Day:
    statistics = cast(StatisticsRow, row)
    figures = tuple(cast(FieldStatistics, statistics.get(field, _NO_FIGURES)) for field in METRIC_FIELDS)
    shares = Counter(statistics["status_share"]).most_common(2)
    statuses = ", ".join(f"{status} {number(100 * share, ' %')}" for status, share in shares)
    begin = datetime.fromtimestamp(milliseconds(row["timestamp"]) // 1000, zone or UTC)
    return Day(f"{begin:%a %Y-%m-%d}", figures, statuses)


_GIB = 2**30


def _facts(view: WorkerView) -> Iterable[tuple[str, object]]:
    """Yield (name, value) of what is known now; what is not known is left out."""
    row = view.row
    if row is None:
        return
    yield "Id", row.worker_id
    zone = view.zone
    found: tuple[tuple[str, object], ...] = (
        ("Instance", row.instance_id),
        ("Instance type", row.instance_type),
        ("Private address", row.private_ip),
        ("CML version", row.cml_version),
        ("CPU", None if row.cpu_utilization is None else number(row.cpu_utilization, " %")),
        ("Memory", None if row.memory_utilization is None else number(row.memory_utilization, " %")),
        ("Labs", row.active_labs_count),
        ("Nodes running", row.nodes_running),
        ("Nodes", row.nodes_total),
        ("CML ready", _yes(row.ready)),
        ("CML uptime", None if row.uptime_seconds is None else duration(row.uptime_seconds)),
        ("Disk used", _share(row.disk_used_bytes, row.disk_total_bytes)),
        ("Memory installed", None if row.memory_total_bytes is None else number(row.memory_total_bytes / _GIB, " GiB")),
        ("License", row.license_status),
        ("Service", row.service_status),
        ("EC2 instance check", row.ec2_instance_check),
        ("EC2 system check", row.ec2_system_check),
        ("Detailed monitoring", _yes(row.detailed_monitoring)),
        ("Pauses by the manager", row.auto_pauses),
        ("Will be paused", row.idle_pause_at and moment(row.idle_pause_at, zone)),
        ("Last activity", row.last_activity_at and moment(row.last_activity_at, zone)),
        ("Created", row.created_at and moment(row.created_at, zone)),
        ("Terminated", row.terminated_at and moment(row.terminated_at, zone)),
        ("Document read", row.observed_at and moment(row.observed_at, zone)),
    )
    yield from ((name, value) for name, value in found if value is not None)
    yield from row.extra.items()
    for instance in row.instances:
        yield (
            f"Instance {instance.instance_id}",
            moment(instance.first_seen, zone) + Markup(" to ") + moment(instance.last_seen, zone),
        )


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _share(used: float | None, total: float | None) -> str | None:
    if used is None or not total:
        return None
    return f"{number(100 * used / total, ' %')} of {number(total / _GIB, ' GiB')}"
