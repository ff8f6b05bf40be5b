"""The page that compares workers: a chart for each metric with a line for each worker, and tables of the values. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from markupsafe import Markup

from exporter.core.periods import DAY, HOUR, WEEK, align_interval, format_duration
from exporter.history.reader import WorkerRef
from exporter.storage.rows import HistoryRow, milliseconds
from exporter.web import chart, worker_chart
from exporter.web.compare_query import CompareQuery
from exporter.web.numbered_lines import MAX_NUMBERED, swatch
from exporter.web.pages import templates
from exporter.web.pages.ranges import RANGES, Link, range_fields
from exporter.web.pages.templates import moment
from exporter.web.pages.worker_page import Hours, hours
from exporter.web.worker_chart import WorkerRows

_WIDE, _NARROW = (1200, 300), (440, 280)
"""Pixels of a chart on a screen and on a phone."""
MAX_TABLE_ROWS = 31
"""Rows of the table behind a chart."""
_TABLE_STEPS = (HOUR, 2 * HOUR, 6 * HOUR, 12 * HOUR, DAY, WEEK, 4 * WEEK, 16 * WEEK)


class Subject(NamedTuple):
    """A worker that is compared."""

    ref: WorkerRef
    status: str | None
    """Today's, None if it is not known."""
    rows: WorkerRows


class Compared(NamedTuple):
    """A worker as the page shows it."""

    name: str
    id: str
    address: str
    region: str
    status: str | None
    swatch: Markup
    without: str
    """Address of the comparison without it."""
    figures: Sequence[tuple[float | None, float | None, float | None]]
    """Mean, lowest, and highest value of CPU, memory, labs."""
    hours: Hours


class Figure(NamedTuple):
    """A chart, and the table of its values."""

    label: str
    unit: str
    wide: Markup
    narrow: Markup
    step: str
    table: Sequence[tuple[Markup, Sequence[float | None]]]
    """(time, the mean of each worker)."""


@dataclass(frozen=True, slots=True)
class CompareView:
    """What the page shows.

    Attributes:
        query: what was asked for.
        subjects: the workers, in the order of the query.
    """

    query: CompareQuery
    subjects: Sequence[Subject]


def render(view: CompareView, root: str) -> str:
    """Return the page; `root` is the relative path to the root of the exporter."""
    query, subjects = view.query, view.subjects
    common = [("tz", query.zone.key)] if query.zone else []
    chosen = [("worker", each.ref.worker.id) for each in subjects]
    as_written = [("start", query.start_text)] if query.start_text in {start for _, start in RANGES} else _exact(query)
    page: dict[str, Any] = {
        "most": MAX_NUMBERED,
        "workers": [_compared(each, number, chosen, [*as_written, *common], query) for number, each in enumerate(subjects, 1)],
        "ids": [value for _, value in chosen],
        "kept": [*as_written, *common],
        "ranges": [
            Link(label, "?" + urlencode([*chosen, ("start", start), *common]), start == query.start_text)
            for label, start in RANGES
        ],
        **range_fields(query.start, query.end, query.zone),
        "charts": list(_figures(view)) if subjects else [],
        "notes": sorted({each.rows.note for each in subjects if each.rows.note}),
    }
    return templates.render("compare.html", root=root, page=page)


def _exact(query: CompareQuery) -> list[tuple[str, str]]:
    return [("start", str(query.start)), ("end", str(query.end))]


def _compared(
    subject: Subject, number: int, chosen: Sequence[tuple[str, str]], kept: Sequence[tuple[str, str]], query: CompareQuery
) -> Compared:
    worker_id = subject.ref.worker.id
    others = [pair for pair in chosen if pair[1] != worker_id]
    return Compared(
        name=subject.ref.display_name,
        id=worker_id,
        address=f"workers/{quote(worker_id, safe='')}?{urlencode(kept)}",
        region=subject.ref.region,
        status=subject.status,
        swatch=Markup(swatch(number)),
        without="?" + urlencode([*others, *kept]),
        figures=[_extremes(subject.rows.rows, drawn.key) for drawn in worker_chart.METRICS.values()],
        hours=hours(subject.rows, query.start, query.end),
    )


def _extremes(rows: Iterable[HistoryRow], key: str) -> tuple[float | None, float | None, float | None]:
    """Return mean, lowest, and highest value of a metric."""
    total, count, lows, highs = 0.0, 0, [], []
    for row in rows:
        value: Any = row[key]  # type: ignore[literal-required]  # one of the metrics
        if value is None or (isinstance(value, dict) and not value["samples"]):
            continue
        number, mean, low, high = (
            (value["samples"], value["avg"], value["min"], value["max"])
            if isinstance(value, dict)
            else (1, value, value, value)
        )
        total, count = total + mean * number, count + number
        lows.append(low)
        highs.append(high)
    return (total / count, min(lows), max(highs)) if count else (None, None, None)


def _figures(view: CompareView) -> Iterable[Figure]:
    query = view.query
    span = query.end - query.start
    step = next((each for each in _TABLE_STEPS if span / each <= MAX_TABLE_ROWS), _TABLE_STEPS[-1])
    for metric, drawn in worker_chart.METRICS.items():
        made = worker_chart.comparison_chart(
            metric,
            query.start,
            query.end,
            [each.rows for each in view.subjects],
            [each.ref.display_name for each in view.subjects],
            query.zone,
        )
        # The pictures are drawn from numbers and escaped texts.
        wide, narrow = (Markup(chart.render(made, *size, theme=None)) for size in (_WIDE, _NARROW))
        table = list(_table(view, drawn.key, step, query.zone))
        yield Figure(drawn.title, drawn.unit, wide, narrow, format_duration(step), table)


def _table(view: CompareView, key: str, step: int, zone: tzinfo | None) -> Iterable[tuple[Markup, Sequence[float | None]]]:
    """Yield (start of an interval, mean of each worker in it)."""
    columns: list[dict[int, list[tuple[float, int]]]] = []
    for subject in view.subjects:
        means: dict[int, list[tuple[float, int]]] = {}
        for row in subject.rows.rows:
            value: Any = row[key]  # type: ignore[literal-required]  # one of the metrics
            mean, count = (value["avg"], value["samples"]) if isinstance(value, dict) else (value, 1)
            if mean is not None:
                begin = align_interval(milliseconds(row["timestamp"]) // 1000, step)
                means.setdefault(begin, []).append((mean, count))
        columns.append(means)
    for begin in sorted({begin for column in columns for begin in column}):
        yield (
            moment(begin, zone),
            [
                sum(mean * count for mean, count in found) / sum(count for _, count in found) if found else None
                for found in (column.get(begin, []) for column in columns)
            ],
        )
