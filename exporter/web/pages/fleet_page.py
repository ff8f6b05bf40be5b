"""The fleet page: tiles, health of every part, and the table of workers. Pure."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from exporter.core.condition import Condition
from exporter.web import sparklines
from exporter.web.fleet_query import DEFAULT_SORT, FIRST_ORDER, FleetQuery, Sort
from exporter.web.pages import templates
from exporter.web.pages.fleet_table import PAGE_ROWS, Selection, ShownWorker
from exporter.web.pages.templates import ago, moment, number
from exporter.web.sparklines import Sparklines

MAX_TEXT_CHARACTERS = 80
"""Characters of a text from a worker document (the manager's aggregate) that are shown."""
_COLUMNS: tuple[tuple[str, Sort], ...] = (
    ("Worker", "name"),
    ("Region", "region"),
    ("Status", "status"),
    ("CPU", "cpu"),
    ("Memory", "memory"),
    ("Labs", "labs"),
    ("Idle", "idle"),
)
_PARTS = {
    "mongodb": "Worker documents in MongoDB",
    "history": "Writing the history to MongoDB",
    "inventory": "Inventory of the workers in MongoDB",
    "outbox": "Outbox on the disk",
    "gauges": "Collection cycles",
    "observing": "Reading worker documents on schedule",
    "polling": "Polling CloudWatch on schedule",
    "cloudwatch": "CloudWatch",
    "sharing": "Sharing the snapshot of CloudWatch with other exporters",
    "budget": "CloudWatch budget of the day",
}


class Head(NamedTuple):
    """The head of a column."""

    label: str
    sort: str
    address: str
    order: str | None
    """As ARIA names it; None: the table is not sorted by it."""


class Row(NamedTuple):
    """A worker of the table."""

    name: str
    id: str
    worker_id: str
    """The id in full."""
    address: str
    region: str
    instance_type: str
    status: str | None
    cpu: str
    memory: str
    cpu_line: Markup
    memory_line: Markup
    labs: str
    idle: Markup


class Part(NamedTuple):
    """A source or another part of the exporter."""

    name: str
    error: str | None
    since: Markup
    """Empty: not tried yet."""
    note: str | None
    """What the exporter does in place of reading it."""


@dataclass(frozen=True, slots=True)
class FleetView:
    """What the page shows.

    Attributes:
        selection: of the newest collection cycle.
        query: what was asked for.
        lines: worker id → its sparklines.
        lines_problem: why there are none, as a sentence; None: there are.
        conditions: part of the exporter → whether it works.
        collection: database.collection of the worker documents; empty before it is known.
        ready: whether the exporter has tried to read the worker documents once.
        known: whether it has read them once.
        fresh: whether the newest cycle is recent enough for /metrics to show its values.
        observed_at: UTC second of the newest read of the worker documents.
        now: UTC second.
    """

    selection: Selection
    query: FleetQuery
    lines: Mapping[str, Sparklines]
    lines_problem: str | None
    conditions: Mapping[str, Condition]
    collection: str
    ready: bool
    known: bool
    fresh: bool
    observed_at: int | None
    now: int


class Content(NamedTuple):
    """What a page shows beside its own age."""

    page: Mapping[str, Any]
    etag: str
    """An entity tag, weak because the age of the page is not part of it."""


def content(view: FleetView) -> Content:
    """Return what the page shows."""
    found, query = view.selection, view.query
    failing = sorted(part for part, condition in view.conditions.items() if condition.error is not None)
    page: dict[str, Any] = {
        "notice": _notice(view),
        "failing": failing,
        "summary": _summary(found, query),
        "tiles": _tiles(view, len(failing)),
        "parts": list(_parts(view)),
        "collection": view.collection,
        "read": "" if view.observed_at is None else ago(view.observed_at, view.now),
        "query": query,
        "default_sort": query.sort == DEFAULT_SORT and query.order == FIRST_ORDER[DEFAULT_SORT],
        "statuses": list(found.statuses.items()),
        "regions": list(found.regions.items()),
        "heads": [
            Head(label, sort, query.sorted_by(sort).address(), _ARIA[query.order] if query.sort == sort else None)
            for label, sort in _COLUMNS
        ],
        "rows": [_row(each, view) for each in found.rows],
        "fleet": found.totals.workers,
        "matches": found.matches,
        "first": (found.page - 1) * PAGE_ROWS + 1,
        "page": found.page,
        "pages": found.pages,
        "previous": replace(query, page=found.page - 1).address() if found.page > 1 else None,
        "next": replace(query, page=found.page + 1).address() if found.page < found.pages else None,
        "lines_problem": view.lines_problem,
    }
    shown = repr((templates.VERSION, page, sorted(query.statuses), sorted(query.regions), query.search))
    return Content(page, f'W/"{hashlib.sha256(shown.encode()).hexdigest()[:32]}"')


def render(content: Content, root: str, now: int) -> str:
    """Return the page; `root` is the relative path to the root of the exporter, `now` the UTC second that it is as of."""
    return templates.render("fleet.html", root=root, page=content.page, etag=content.etag, now=now)


_ARIA = {"asc": "ascending", "desc": "descending"}


def _notice(view: FleetView) -> str | None:
    """Return why values are missing and what to do, as a sentence; None: none are missing."""
    mongodb = view.conditions.get("mongodb", Condition())
    if not view.ready:
        return (
            "Starting: the worker documents have not been read yet. That takes some seconds; if this stays for more than a "
            "minute, run cml-worker-exporter check with the same configuration."
        )
    if not view.known:
        return (
            "The worker documents have never been read since the start. Mend what is listed under Health; the exporter tries "
            "again by itself."
        )
    if not view.fresh:
        return (
            "No recent values: no collection cycle has ended in time, so the last values are not shown here and are gone from "
            "/metrics. Mend what is listed under Health; if nothing fails there, restart the exporter."
        )
    if mongodb.error is not None:
        return (
            "MongoDB cannot be read: status and labs are those of the last read, and disappear after max_age; "
            "CPU and memory go on. Check that MongoDB runs and can be reached; the exporter needs no restart."
        )
    if not view.selection.totals.workers:
        where = view.collection or "MongoDB"
        return (
            f"No workers: {where} has no worker documents, or the exporter skipped all of them. Check that mongodb.uri and "
            "mongodb.workers name the manager's collection; the log says why a document was skipped."
        )
    return None


def _summary(found: Selection, query: FleetQuery) -> str:
    fleet, running = found.totals.workers, found.totals.running
    known = "" if running is None else f", {running:,} running"
    selected = f"; {found.matches:,} match the filter" if query.filters else ""
    return f"{fleet:,} {'worker' if fleet == 1 else 'workers'}{known}{selected}."


def _tiles(view: FleetView, failing: int) -> list[tuple[str, str]]:
    """Return (label, figure) of each tile."""
    totals = view.selection.totals

    def count(value: int | None) -> str:
        return "–" if value is None or not view.known else f"{value:,}"

    return [
        ("workers", count(totals.workers)),
        ("running", count(totals.running)),
        ("idle: running without a lab", count(totals.idle)),
        ("labs", count(totals.labs)),
        ("mean CPU of running workers", number(totals.cpu, " %")),
        ("mean memory of running workers", number(totals.memory, " %")),
        ("failing now", f"{failing:,}"),
    ]


def _parts(view: FleetView) -> Iterable[Part]:
    """Yield the health of each part, those that fail first."""
    for part, condition in sorted(view.conditions.items(), key=lambda pair: (pair[1].error is None, pair[0])):
        region = part.removeprefix("cloudwatch ")
        name = f"CloudWatch in {region}" if region != part else _PARTS.get(part, part)
        yield Part(name, condition.error, _since(condition.since, view.now), condition.note)


def _since(time: int | None, now: int) -> Markup:
    return Markup("") if time is None else Markup("{} ({})").format(moment(time), ago(time, now))


def _row(found: ShownWorker, view: FleetView) -> Row:
    worker = found.worker
    lines = view.lines.get(worker.id, Sparklines({}, {}))
    return Row(
        name=_short(worker.display_name),
        id=_short(worker.id),
        worker_id=worker.id,
        address=f"workers/{quote(worker.id, safe='')}",
        region=_short(worker.region or "–"),
        instance_type=_short(worker.instance_type or ""),
        status=found.status,
        cpu=_percent(found.cpu),
        memory=_percent(found.memory),
        cpu_line=sparklines.draw("CPU", lines.cpu),
        memory_line=sparklines.draw("Memory", lines.memory),
        labs="–" if found.labs is None else f"{found.labs:,}",
        idle=Markup("–") if found.active_at is None else ago(found.active_at, view.now),
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[: MAX_TEXT_CHARACTERS - 1] + "…"
