"""Bodies and headers of pages of history: rows and columns as JSON, CSV. Pure functions.

Rows are not built as models, and not validated: that would take longer than reading them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import orjson

from exporter.core.distribution import Distribution
from exporter.core.history_metrics import METRIC_FIELDS
from exporter.core.model import STATUSES
from exporter.core.periods import rfc3339
from exporter.history.grid import second
from exporter.history.reader import Page, WorkerRef
from exporter.storage.rows import Document, HistoryRow
from exporter.web.csv_table import table
from exporter.web.history_query import KEPT, HistoryQuery
from exporter.web.responses import NOTE, RESOLUTION, SOURCE, next_page, worker_instances
from exporter.web.schemas import HistoryWorker

_STATISTICS = ("avg", "min", "max", "samples")
_ROW = ("timestamp", *METRIC_FIELDS, "status_share")
"""Keys of a row of statistics in the API."""


class WorkerPage(NamedTuple):
    """A page of one worker's history, as it is sent."""

    worker: HistoryWorker
    page: Page
    earlier: Sequence[HistoryRow | None] | None
    """The row beside each row; None: none was asked for."""


class _Column(NamedTuple):
    """A column of a table of rows."""

    name: str
    value: Callable[[Document], object]


# -- JSON --------------------------------------------------------------------------------------------------------------


def history_json(found: WorkerPage, cursor: str | None, query: HistoryQuery) -> bytes:
    """Return a page of one worker as the JSON of a `HistoryPage`, or of `HistoryColumns`."""
    return _dumps({**_body(found, query), "next": cursor})


def fleet_history_json(found: Sequence[WorkerPage], cursor: str | None, query: HistoryQuery) -> bytes:
    """Return a page of many workers as the JSON of a `FleetHistoryPage`."""
    return _dumps({"data": [_body(each, query) for each in found], "next": cursor})


def _dumps(body: Document) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


def _body(found: WorkerPage, query: HistoryQuery) -> Document:
    page = found.page
    body: Document = {"columns": _columns(found, query)} if query.format == "columns" else {"data": _data(found, query)}
    body |= {
        "source": page.source,
        "resolution_seconds": page.resolution,
        "interval_seconds": page.interval,
        "segments": [
            {
                "start": rfc3339(each.start),
                "source": each.source,
                "resolution_seconds": each.resolution,
                "interval_seconds": each.interval,
                "rows": len(each.rows),
            }
            for each in page.segments
        ],
        "worker": found.worker.model_dump(),
    }
    if page.note:
        body["note"] = page.note
    return body


def _data(found: WorkerPage, query: HistoryQuery) -> Sequence[object]:
    samples = query.span.interval is None

    def shown(row: HistoryRow) -> Any:  # noqa: ANN401 -- JSON
        return row if samples else {name: row.get(name) for name in _ROW}

    rows = found.page.rows
    if found.earlier is None:
        return rows if samples else list(map(shown, rows))
    beside = (None if row is None else shown(row) for row in found.earlier)
    return [{**shown(row), "earlier": earlier} for row, earlier in zip(rows, beside, strict=True)]


def _columns(found: WorkerPage, query: HistoryQuery) -> Document:
    rows = cast("Sequence[Document]", found.page.rows)
    columns = _columns_of(query.span.interval, query.span.wanted)
    body: Document = {"timestamp": [row["timestamp"] for row in rows], "unix_seconds": list(map(second, found.page.rows))}
    body |= {column.name: list(map(column.value, rows)) for column in columns}
    if found.earlier is not None:
        beside = cast("Sequence[Document | None]", found.earlier)
        body |= {f"earlier_{column.name}": [_of(column, row) for row in beside] for column in columns}
    return body


# -- CSV ---------------------------------------------------------------------------------------------------------------


def history_csv(found: WorkerPage, query: HistoryQuery) -> bytes:
    """Return a page of one worker as CSV; the columns are the same on every page."""
    return table(_names(query), _lines(found, query))


def fleet_history_csv(found: Sequence[WorkerPage], query: HistoryQuery) -> bytes:
    """Return a page of many workers as CSV, with the worker of each row."""
    lines = ((each.worker.worker_id, each.worker.name, *line) for each in found for line in _lines(each, query))
    return table(["worker_id", "name", *_names(query)], lines)


def _names(query: HistoryQuery) -> list[str]:
    names = [column.name for column in _columns_of(query.span.interval, query.span.wanted)]
    return ["timestamp", *names, *(f"earlier_{name}" for name in names if query.shift is not None)]


def _lines(found: WorkerPage, query: HistoryQuery) -> Iterable[list[object]]:
    columns = _columns_of(query.span.interval, query.span.wanted)
    rows = cast("Sequence[Document]", found.page.rows)
    beside = cast("Sequence[Document | None]", found.earlier or [None] * len(rows))
    for row, earlier in zip(rows, beside, strict=True):
        line = [f"{row['timestamp'].isoformat()}Z", *(column.value(row) for column in columns)]
        if query.shift is not None:
            line += [_of(column, earlier) for column in columns]
        yield line


def _of(column: _Column, row: Document | None) -> object:
    return None if row is None else column.value(row)


def _columns_of(interval: int | None, wanted: Distribution | None) -> list[_Column]:
    """Return the columns of samples (`interval` is None) or of statistics, after the timestamp."""
    if interval is None:
        return [_Column(name, _field(name)) for name in (*METRIC_FIELDS, "status")]
    hows = (*_STATISTICS, *(wanted.names if wanted else ()))
    return [
        *(_Column(f"{field}_{how}", _statistic(field, how)) for field in METRIC_FIELDS for how in hows),
        *(_Column(f"status_share_{status}", _share(status)) for status in STATUSES),
    ]


def _field(name: str) -> Callable[[Document], object]:
    return lambda row: row[name]


def _statistic(field: str, how: str) -> Callable[[Document], object]:
    return lambda row: row[field][how]


def _share(status: str) -> Callable[[Document], object]:
    """A status without samples has the share 0, unless no sample has a status."""
    return lambda row: row["status_share"].get(status, 0.0) if row["status_share"] else None


# -- the worker, and headers -------------------------------------------------------------------------------------------


def history_worker(ref: WorkerRef, status: str | None) -> HistoryWorker:
    """Return the worker that a page of history belongs to; `status` is today's, None if it is not known."""
    worker, entry = ref.worker, ref.entry

    def time(second: int | None) -> str | None:
        return None if second is None else rfc3339(second)

    return HistoryWorker(
        worker_id=worker.id,
        name=worker.name or (entry.name if entry else None),
        region=ref.region,
        status=status,
        instance_type=worker.instance_type or (entry.instance_type if entry else None),
        cml_version=worker.cml_version or (entry.cml_version if entry else None),
        created_at=time(worker.created_at),
        terminated_at=time(worker.terminated_at),
        first_seen=time(entry.first_seen) if entry else None,
        last_seen=time(entry.last_seen) if entry else None,
        instances=worker_instances(entry),
    )


def page_headers(page: Page, cursor: str | None, parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers of a page of one worker; CSV has no other place for this information.

    Args:
        page: the page.
        cursor: of the next page, None on the last.
        parameters: those of the request, for the link to the next page.
    """
    headers = {SOURCE: page.source, RESOLUTION: str(page.resolution)}
    if page.note:
        headers[NOTE] = page.note
    return headers | fleet_page_headers(cursor, parameters)


def fleet_page_headers(cursor: str | None, parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers of a page of many workers."""
    kept = [(name, value) for name, value in parameters if name in KEPT]
    return {"Vary": "Accept"} | (next_page(cursor, kept) if cursor else {})
