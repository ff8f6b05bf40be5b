"""The handlers of the history of one worker, and of many."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from exporter.core.model import InventoryEntry, Snapshot, WorkerGauges
from exporter.history import grid
from exporter.history.reader import HistoryReader, PageRequest, WorkerRef
from exporter.storage.rows import HistoryRow
from exporter.web import history_responses
from exporter.web.backend import Backend
from exporter.web.csv_table import CSV
from exporter.web.history_query import (
    MAX_NAMED_WORKERS,
    MAX_ROWS,
    FleetHistoryQuery,
    HistoryQuery,
    resuming,
    resuming_fleet,
)
from exporter.web.history_responses import WorkerPage
from exporter.web.lookup import backend_of, current_status, find_named, not_read_yet
from exporter.web.negotiation import sends_csv

MAX_ROWS_IN_LOOP = 1000
"""Rows of history that are rendered on the event loop: they take less than a millisecond."""
Found = tuple[WorkerRef, WorkerGauges | None]


async def worker_history(request: Request) -> Response:
    """Respond with a page of one worker's samples or statistics, as JSON or CSV."""
    backend = backend_of(request)
    given = request.query_params.multi_items()
    reach = await backend.reader.reach()
    query = HistoryQuery.parse(given, now=int(backend.now()), period=backend.period, reach=reach)
    found = await find_named(backend, request.path_params["worker_id"])
    shown = await _read(backend, found, query, query.span, reach)
    following = shown.page.following
    cursor = resuming(query.span, following) if following else None

    def render(csv: bool) -> bytes:
        if csv:
            return history_responses.history_csv(shown, query)
        return history_responses.history_json(shown, cursor, query)

    headers = history_responses.page_headers(shown.page, cursor, given)
    return await _respond(request, query, len(shown.page.rows), render, headers)


async def fleet_history(request: Request) -> Response:
    """Respond with a page of the history of many workers, one after the other."""
    backend = backend_of(request)
    given = request.query_params.multi_items()
    reach = await backend.reader.reach()
    query = FleetHistoryQuery.parse(given, now=int(backend.now()), period=backend.period, reach=reach)
    span = query.rows.span
    left, cursor = span.limit, None
    shown: list[WorkerPage] = []
    # One after the other: many histories read at once would keep MongoDB from the mirror.
    for found in await _chosen(backend, query):
        worker_id = found[0].worker.id
        if left <= 0 or len(shown) == MAX_NAMED_WORKERS:
            cursor = resuming_fleet(span, worker_id, span.start)
            break
        start = query.at if worker_id == query.first else span.start
        read = await _read(backend, found, query.rows, replace(span, start=start, limit=left), reach)
        shown.append(read)
        left -= len(read.page.rows)
        if read.page.following:
            cursor = resuming_fleet(span, worker_id, read.page.following)
            break

    def render(csv: bool) -> bytes:
        if csv:
            return history_responses.fleet_history_csv(shown, query.rows)
        return history_responses.fleet_history_json(shown, cursor, query.rows)

    headers = history_responses.fleet_page_headers(cursor, given)
    return await _respond(request, query.rows, span.limit - left, render, headers)


async def _chosen(backend: Backend, query: FleetHistoryQuery) -> list[Found]:
    """Return the workers of this and all later pages, sorted by id; raises HTTPException for a name that is none."""
    chosen: dict[str, Found] = {}
    for name in query.names:
        try:
            found = await find_named(backend, name)
        except HTTPException as error:
            if error.status_code != HTTPStatus.NOT_FOUND or "," not in name:
                raise
            raise HTTPException(error.status_code, f"Unknown worker {name}; give worker= once for each of several.") from error
        chosen[found[0].worker.id] = found
    if not query.names:
        if (snapshot := backend.snapshot) is None:
            raise not_read_yet()
        entries = await backend.inventory()
        # In a thread: 10,000 workers take milliseconds, and scrapes must not wait for them.
        chosen = await asyncio.to_thread(_of_regions, backend, query, snapshot, entries)
    return [chosen[worker_id] for worker_id in sorted(chosen) if worker_id >= query.first]


def _of_regions(
    backend: Backend, query: FleetHistoryQuery, snapshot: Snapshot, inventory: Sequence[InventoryEntry]
) -> dict[str, Found]:
    """Return id → worker, of the fleet and of those that may have left it within the range."""
    gauges = {gauge.worker.id: gauge for gauge in snapshot.workers}
    entries = {
        entry.worker_id: entry
        for entry in inventory
        if entry.worker_id in gauges or (entry.last_seen >= query.rows.span.start // 1000 and not backend.is_elsewhere(entry))
    }
    chosen: dict[str, Found] = {}
    for worker_id in gauges.keys() | entries.keys():
        gauge = gauges.get(worker_id)
        ref = WorkerRef.of(gauge.worker if gauge else None, entries.get(worker_id))
        if ref is not None and (not query.regions or ref.region in query.regions):
            chosen[worker_id] = ref, gauge
    return chosen


async def _read(backend: Backend, found: Found, query: HistoryQuery, span: PageRequest, reach: int | None) -> WorkerPage:
    """Read the page of one worker that begins at `span.start`, and the rows beside its rows."""
    ref, gauge = found
    page = await backend.reader.page(ref, span)
    earlier: Sequence[HistoryRow | None] | None = None
    if query.shift is not None:
        oldest = 0 if reach is None else int(backend.now()) - reach
        begin = max(oldest * 1000, span.start - query.shift * 1000)
        until = (page.following // 1000 if page.following else span.end) - query.shift
        rows = await _all_rows(backend.reader, ref, replace(span, start=begin, end=until, limit=MAX_ROWS, fill=False))
        earlier = grid.beside(page.rows, rows, query.shift, backend.period, span.interval, span.zone)
    return WorkerPage(history_responses.history_worker(ref, current_status(backend, ref, gauge)), page, earlier)


async def _all_rows(reader: HistoryReader, ref: WorkerRef, span: PageRequest) -> list[HistoryRow]:
    """Return the rows of all pages."""
    rows: list[HistoryRow] = []
    following: int | None = span.start
    while following is not None and following < span.end * 1000:
        page = await reader.page(ref, replace(span, start=following))
        rows += page.rows
        following = page.following
    return rows


async def _respond(
    request: Request, query: HistoryQuery, rows: int, render: Callable[[bool], bytes], headers: dict[str, str]
) -> Response:
    """Respond in the format that is wanted; `render` returns the body, as CSV or JSON."""
    csv = sends_csv(query.format, ",".join(request.headers.getlist("accept")))
    # In a thread: a large page takes milliseconds, and scrapes must not wait for it. For a small one, the change takes longer.
    body = await asyncio.to_thread(render, csv) if csv or rows > MAX_ROWS_IN_LOOP else render(csv)
    return Response(body, media_type=CSV if csv else "application/json", headers=headers)
