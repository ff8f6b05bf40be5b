"""The handlers of the pages for people, their charts and files."""

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from exporter.core.errors import StoreError
from exporter.core.local_time import interval_start
from exporter.core.periods import DAY
from exporter.history.reader import HistoryReader, WorkerRef
from exporter.web import chart, responses, worker_chart
from exporter.web.backend import Backend
from exporter.web.chart_query import ChartQuery
from exporter.web.compare_query import CompareQuery
from exporter.web.fleet_query import FleetQuery
from exporter.web.lookup import backend_of, current_status, find_named, is_fresh
from exporter.web.pages import compare_page as page_of_comparison
from exporter.web.pages import fleet_page as page_of_fleet
from exporter.web.pages import fleet_table, templates
from exporter.web.pages import runbook_page as page_of_runbook
from exporter.web.pages import worker_page as page_of_worker
from exporter.web.schemas import FleetWorker
from exporter.web.sparklines import Sparklines, read_sparklines
from exporter.web.worker_chart import WorkerRows

SVG = "image/svg+xml"
_CHART_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "private, max-age=30",
}
"""A chart opened by its address is a document of its own: its style sheet is in it, and it needs nothing else. Other pages
embed it as an image, which `frame-ancestors` does not concern."""
PAGE_HEADERS = {"Content-Security-Policy": templates.POLICY, "Cache-Control": "private, no-cache"}
SPARKLINES_SECONDS = 2
"""Seconds that the fleet page waits for the history."""
_VERSIONED_HEADERS = {"Cache-Control": "public, max-age=31536000, immutable"}
"""The pages name the version of each file in its address. A page of a newer exporter may ask an older one beside it, which has
another version of the file: that is not kept."""


async def fleet_page(request: Request) -> Response:
    """Respond with the page of the fleet; with 304 to a client that has what it shows."""
    backend = backend_of(request)
    query = FleetQuery.parse(request.query_params.multi_items())
    snapshot, fresh = backend.snapshot, is_fresh(backend, backend.snapshot)
    workers = snapshot.workers if snapshot else ()
    # In a thread, as below: a large fleet takes milliseconds, and scrapes must not wait for them.
    selection = await asyncio.to_thread(fleet_table.select, workers, query, fresh)
    now = int(backend.now())
    lines, problem = await _sparklines(backend, [each.worker.id for each in selection.rows], now)
    view = page_of_fleet.FleetView(
        selection=selection,
        query=query,
        lines=lines,
        lines_problem=problem,
        conditions=backend.conditions(),
        collection=backend.worker_collection,
        ready=backend.ready,
        known=snapshot is not None,
        fresh=fresh,
        observed_at=max((gauge.observed_at for gauge in workers), default=None),
        now=now,
    )
    sent = ",".join(request.headers.getlist("if-none-match"))
    known = {tag.strip().removeprefix("W/") for tag in sent.split(",")}

    def respond() -> Response:
        content = page_of_fleet.content(view)
        headers = {**PAGE_HEADERS, "ETag": content.etag}
        if content.etag.removeprefix("W/") in known:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return HTMLResponse(page_of_fleet.render(content, "./", now), headers=headers)

    return await asyncio.to_thread(respond)


async def _sparklines(backend: Backend, worker_ids: Sequence[str], now: int) -> tuple[Mapping[str, Sparklines], str | None]:
    """Return the sparklines of some workers, and why there are none, as a sentence. The page never waits for a dead MongoDB."""
    if backend.hourly is None:
        return {}, "No sparklines: no history is kept, because mongodb.history is null. Name a collection there to keep one."
    error: str | None = None
    mongodb = backend.conditions().get("mongodb")
    if mongodb is not None and mongodb.error is not None:
        error = "MongoDB cannot be read"
    else:
        try:
            async with asyncio.timeout(SPARKLINES_SECONDS):
                return await read_sparklines(backend.hourly, worker_ids, now), None
        except TimeoutError:
            error = f"MongoDB has not answered within {SPARKLINES_SECONDS} s"
        except StoreError as failure:
            error = str(failure)
    return {}, f"No sparklines: {error}. They come back by themselves once the history can be read."


async def chart_image(request: Request) -> Response:
    """Respond with a chart of one worker as an SVG image."""
    backend = backend_of(request)
    reach = await backend.reader.reach()
    query = ChartQuery.parse(request.query_params.multi_items(), now=int(backend.now()), reach=reach)
    ref, _ = await find_named(backend, request.path_params["worker_id"])
    shown, earlier = await _read(backend.reader, ref, query, reach, int(backend.now()))

    def render() -> Response:
        drawn = worker_chart.worker_chart(
            ref, query.metric, query.start, query.end, shown, earlier=earlier, shift=query.shift or 0, zone=query.zone
        )
        body = chart.render(drawn, query.width, query.height, query.theme)
        return Response(body, media_type=SVG, headers=_CHART_HEADERS)

    # In a thread: thousands of points take some milliseconds.
    return await asyncio.to_thread(render)


async def worker_page(request: Request) -> Response:
    """Respond with the page of one worker."""
    backend = backend_of(request)
    given = request.query_params.multi_items()
    reach = await backend.reader.reach()
    now = int(backend.now())
    # An empty field of the form is the same as none.
    query = ChartQuery.parse([(name, value) for name, value in given if value], now=now, reach=reach)
    worker_id = request.path_params["worker_id"]
    ref, gauge = await find_named(backend, worker_id)
    shown, earlier = await _read(backend.reader, ref, query, reach, now)
    first = max(interval_start(query.start, DAY, query.zone), 0 if reach is None else now - reach)
    days = await worker_chart.read_rows(backend.reader, ref, first, query.end, DAY, query.zone)
    entry = ref.entry
    row: FleetWorker | None = None
    if gauge is not None:
        row = responses.listed_worker(gauge, entry, is_fresh(backend, backend.snapshot)).row()
    elif entry is not None:
        row = responses.gone_worker(entry).row()
    view = page_of_worker.WorkerView(
        ref=ref,
        row=row,
        status=current_status(backend, ref, gauge),
        start=query.start,
        end=query.end,
        start_text=request.query_params.get("start") or "-24h",
        shown=shown,
        earlier=earlier,
        days=days.rows,
        zone=query.zone,
        note=shown.note,
        grafana_url=request.app.state.grafana_url,
    )
    root = "../" * (quote(worker_id, safe="/").count("/") + 1 if b"%2F" not in request.scope.get("raw_path", b"") else 1)
    body = await asyncio.to_thread(page_of_worker.render, view, root)
    return HTMLResponse(body, headers=PAGE_HEADERS)


async def compare_page(request: Request) -> Response:
    """Respond with the page that compares workers."""
    backend = backend_of(request)
    now, reach = int(backend.now()), await backend.reader.reach()
    query = CompareQuery.parse(request.query_params.multi_items(), now=now, reach=reach)
    interval = worker_chart.chart_interval(query.start, query.end, backend.reader.period)
    subjects: dict[str, page_of_comparison.Subject] = {}
    # One after the other: eight histories read at once would keep MongoDB from the mirror.
    for named in query.workers:
        ref, gauge = await find_named(backend, named)
        if ref.worker.id not in subjects:
            rows = await worker_chart.read_rows(backend.reader, ref, query.start, query.end, interval)
            subjects[ref.worker.id] = page_of_comparison.Subject(ref, current_status(backend, ref, gauge), rows)
    view = page_of_comparison.CompareView(query, [*subjects.values()])
    return HTMLResponse(await asyncio.to_thread(page_of_comparison.render, view, "./"), headers=PAGE_HEADERS)


async def runbook_page(request: Request) -> Response:
    """Respond with the runbook of the alerts."""
    return HTMLResponse(await asyncio.to_thread(page_of_runbook.render, "./"), headers=PAGE_HEADERS)


async def static_file(request: Request) -> Response:
    """Respond with a file that the pages load."""
    found = templates.STATIC.get(request.path_params["name"])
    if found is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such file.")
    is_version = request.query_params.get("v") == found.version
    headers = _VERSIONED_HEADERS if is_version else {"Cache-Control": "no-cache"}
    return Response(found.body, media_type=found.media_type, headers=headers)


async def _read(
    reader: HistoryReader, ref: WorkerRef, query: ChartQuery, reach: int | None, now: int
) -> tuple[WorkerRows, WorkerRows | None]:
    """Return the rows of the range, and those of the one it is compared with."""
    interval = worker_chart.chart_interval(query.start, query.end, reader.period)
    shown = await worker_chart.read_rows(reader, ref, query.start, query.end, interval)
    if query.shift is None:
        return shown, None
    begin = max(0 if reach is None else now - reach, query.start - query.shift)
    return shown, await worker_chart.read_rows(reader, ref, begin, max(begin, query.end - query.shift), interval)
