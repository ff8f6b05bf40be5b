"""Makes charts of a worker's history: reads its pages, chooses the interval, converts rows. What is drawn: `chart`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from typing import Any, Literal, cast
from zoneinfo import ZoneInfo

from exporter.core.model import InventoryEntry
from exporter.core.periods import DAY, HOUR, MINUTE, WEEK, format_duration
from exporter.history.reader import HistoryReader, PageRequest, WorkerRef
from exporter.storage.rows import HistoryRow, SampleRow, milliseconds
from exporter.web.chart import Chart, Line, Mark, Point, Range, State

Metric = Literal["cpu", "memory", "labs"]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """How a metric is drawn."""

    title: str
    key: str
    """Of the rows of the history."""
    unit: str
    top: float | None


METRICS: dict[Metric, _Drawn] = {
    "cpu": _Drawn("CPU", "cpu_utilization", " %", 100),
    "memory": _Drawn("Memory", "memory_utilization", " %", 100),
    "labs": _Drawn("Labs", "active_labs_count", "", None),
}
MAX_POINTS = 1100
"""Points of a line; more than that many intervals cannot be told apart at the width of a screen."""
_INTERVALS = (5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR, 12 * HOUR, DAY, WEEK)
PAGE_ROWS = 2000


@dataclass(frozen=True, slots=True)
class WorkerRows:
    """All rows of a range.

    Attributes:
        rows: oldest first.
        step: seconds between two rows.
        note: a limitation of the rows, as a sentence; None: there is none.
        resolutions: seconds of the samples of each row; empty: `step`, as with samples that have one step.
    """

    rows: Sequence[HistoryRow]
    step: int
    note: str | None = None
    resolutions: Sequence[int] = ()


def chart_interval(start: int, end: int, period: int) -> int | None:
    """Return the interval in seconds for which statistics are drawn; None: the range is so short that samples are.

    Args:
        start, end: UTC seconds.
        period: seconds between two samples.
    """
    if (end - start) // period <= MAX_POINTS:
        return None
    fitting = (each for each in _INTERVALS if each % period == 0 and (end - start) // each <= MAX_POINTS)
    return next(fitting, WEEK)


async def read_rows(
    reader: HistoryReader, ref: WorkerRef, start: int, end: int, interval: int | None, zone: ZoneInfo | None = None
) -> WorkerRows:
    """Read the rows in [start, end), UTC seconds; `zone` makes days local. Raises StoreError and SourceError."""
    rows: list[HistoryRow] = []
    resolutions: list[int] = []
    step, note = interval or reader.period, None
    request: PageRequest | None = PageRequest(start * 1000, end, interval, PAGE_ROWS, zone)
    while request is not None and start < end:
        page = await reader.page(ref, request)
        for segment in page.segments:
            rows += segment.rows
            resolutions += [segment.resolution] * len(segment.rows)
            step = max(step, segment.interval or segment.resolution)  # CloudWatch keeps older datapoints at a coarser one
        note = note or page.note
        request = None if page.following is None else replace(request, start=page.following)
    return WorkerRows(rows, step, note, resolutions)


def worker_chart(
    ref: WorkerRef,
    metric: Metric,
    start: int,
    end: int,
    shown: WorkerRows,
    *,
    earlier: WorkerRows | None = None,
    shift: int = 0,
    zone: ZoneInfo | None = None,
) -> Chart:
    """Return the chart of one metric of a worker.

    Args:
        ref: the worker.
        metric: what is drawn.
        start, end: UTC seconds.
        shown: the rows of this range.
        earlier: the rows of the range `shift` seconds before, drawn over it; None: no comparison.
        shift: seconds.
        zone: of the time axis; None: UTC.
    """
    drawn = METRICS[metric]
    statistics = bool(shown.rows) and "status_share" in shown.rows[0]
    lines = [Line("mean" if statistics else drawn.title, _points(shown.rows, drawn.key), shown.step)]
    if earlier is not None:
        lines.append(
            Line(f"{format_duration(shift)} earlier", _points(earlier.rows, drawn.key, shift), earlier.step, earlier=True)
        )
    name = ref.display_name
    axis: tzinfo = zone or UTC
    return Chart(
        f"{drawn.title} of {name}",
        drawn.unit,
        start,
        end,
        lines,
        band=_band(shown.rows, drawn.key) if statistics else (),
        states=states(shown),
        marks=_replacements(ref.entry, start, end),
        top=drawn.top,
        zone=axis,
    )


def comparison_chart(
    metric: Metric, start: int, end: int, workers: Sequence[WorkerRows], names: Sequence[str], zone: ZoneInfo | None
) -> Chart:
    """Return the chart of one metric of several workers, each a numbered line.

    Args:
        metric: what is drawn.
        start, end: UTC seconds.
        workers: the rows of each, at most `MAX_NUMBERED`.
        names: theirs.
        zone: of the time axis; None: UTC.
    """
    drawn = METRICS[metric]
    lines = [
        Line(name, _points(each.rows, drawn.key), each.step, number=number)
        for number, (name, each) in enumerate(zip(names, workers, strict=True), 1)
    ]
    return Chart(drawn.title, drawn.unit, start, end, lines, top=drawn.top, zone=zone or UTC)


def _points(rows: Iterable[HistoryRow], key: str, shift: int = 0) -> list[Point]:
    found = []
    for row in rows:
        value: Any = row[key]  # type: ignore[literal-required]  # one of the metrics
        found.append(Point(_second(row) + shift, value["avg"] if isinstance(value, dict) else value))
    return found


def _band(rows: Iterable[HistoryRow], key: str) -> list[Range]:
    found = []
    for row in rows:
        value: Any = row[key]  # type: ignore[literal-required]  # one of the metrics
        if value["min"] is not None:
            found.append(Range(_second(row), value["min"], value["max"]))
    return found


def states(shown: WorkerRows) -> list[State]:
    """Return the statuses by time; of an interval with several the one with the greatest share."""
    found: list[State] = []
    for row in shown.rows:
        status = _status(row)
        if status is None:
            continue
        begin = _second(row)
        if found and found[-1].status == status and begin - found[-1].end < shown.step:
            found[-1] = State(found[-1].start, begin + shown.step, status)
        else:
            found.append(State(begin, begin + shown.step, status))
    return found


def _status(row: HistoryRow) -> str | None:
    share = row.get("status_share")
    if not isinstance(share, dict):
        return cast(SampleRow, row)["status"]
    return max(share, key=lambda status: share[status], default=None)


def _replacements(entry: InventoryEntry | None, start: int, end: int) -> list[Mark]:
    """Return a mark where a worker got another instance."""
    later = entry.instances[1:] if entry else ()
    return [Mark(each.first, f"instance {each.instance_id}") for each in later if start <= each.first < end]


def _second(row: HistoryRow) -> int:
    return milliseconds(row["timestamp"]) // 1000
