"""Bodies and headers of pages of history: rows and columns as JSON, CSV. Pure functions.

Rows are not built as models, and not validated: that would take longer than reading them.
"""

from collections.abc import Iterable, Sequence
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


Rows = Sequence[HistoryRow]
Earlier = Sequence[HistoryRow | None]
"""The row beside each row, None where there is none."""


class WorkerPage(NamedTuple):
    """A page of one worker's history, as it is sent."""

    worker: HistoryWorker
    page: Page
    earlier: Earlier | None
    """None: none was asked for."""


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
    body: Document = (
        {"columns": _columns(page.rows, found.earlier, query)} if query.format == "columns" else {"data": _data(found, query)}
    )
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


def _columns(rows: Rows, earlier: Earlier | None, query: HistoryQuery) -> dict[str, Sequence[object]]:
    """Return name → the values of all rows: the time, those of the rows, and those of the rows beside them."""
    interval, wanted = query.span.interval, query.span.wanted
    columns: dict[str, Sequence[object]] = {
        "timestamp": [row["timestamp"] for row in rows],
        "unix_seconds": list(map(second, rows)),
        **_values(rows, interval, wanted),
    }
    if earlier is not None:
        columns |= {f"earlier_{name}": values for name, values in _values(earlier, interval, wanted).items()}
    return columns


def _values(found: Rows | Earlier, interval: int | None, wanted: Distribution | None) -> dict[str, Sequence[object]]:
    """Return the columns of samples (`interval` is None) or of statistics, without the time; None where there is no row."""
    rows = cast("Sequence[Document | None]", found)  # the interval says which of the two kinds of row they are
    if interval is None:
        return {name: [row and row[name] for row in rows] for name in (*METRIC_FIELDS, "status")}
    columns: dict[str, Sequence[object]] = {}
    for field in METRIC_FIELDS:
        of_field = [row and row[field] for row in rows]
        for how in (*_STATISTICS, *(wanted.names if wanted else ())):
            columns[f"{field}_{how}"] = [values and values[how] for values in of_field]
    shares = [row and row["status_share"] for row in rows]
    for status in STATUSES:
        # A status without samples has the share 0, unless no sample has a status.
        columns[f"status_share_{status.replace('-', '_')}"] = [share.get(status, 0.0) if share else None for share in shares]
    return columns


# -- CSV ---------------------------------------------------------------------------------------------------------------


def history_csv(found: WorkerPage, query: HistoryQuery) -> bytes:
    """Return a page of one worker as CSV; the columns are the same on every page."""
    columns = _csv_columns(found.page.rows, found.earlier, query)
    return table(list(columns), columns.values())


def fleet_history_csv(found: Sequence[WorkerPage], query: HistoryQuery) -> bytes:
    """Return a page of many workers as CSV, with the worker of each row."""
    rows = [row for each in found for row in each.page.rows]
    earlier = None if query.shift is None else [row for each in found for row in each.earlier or ()]
    workers = [each.worker for each in found for _ in each.page.rows]
    columns: dict[str, Sequence[object]] = {
        "worker_id": [worker.worker_id for worker in workers],
        "name": [worker.name for worker in workers],
        **_csv_columns(rows, earlier, query),
    }
    return table(list(columns), columns.values())


def _csv_columns(rows: Rows, earlier: Earlier | None, query: HistoryQuery) -> dict[str, Sequence[object]]:
    columns = _columns(rows, earlier, query)
    del columns["unix_seconds"]
    return columns | {"timestamp": [f"{row['timestamp'].isoformat()}Z" for row in rows]}


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
