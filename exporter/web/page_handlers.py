"""The handlers of the pages for people, their charts and files."""

import asyncio
from http import HTTPStatus
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from exporter.core.local_time import interval_start
from exporter.core.periods import DAY
from exporter.history.reader import HistoryReader, WorkerRef
from exporter.web import chart, responses, worker_chart
from exporter.web.chart_query import ChartQuery
from exporter.web.lookup import backend_of, current_status, find, is_fresh, unknown
from exporter.web.pages import templates
from exporter.web.pages import worker_page as page_of_worker
from exporter.web.schemas import FleetWorker
from exporter.web.worker_chart import WorkerRows

SVG = "image/svg+xml"
_CHART_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "private, max-age=30",
}
"""A chart opened by its address is a document of its own: its style sheet is in it, and it needs nothing else."""
_STATIC_HEADERS = {"Cache-Control": "public, max-age=31536000, immutable"}
"""The pages name the version of each file in its address."""


async def chart_image(request: Request) -> Response:
    """Respond with a chart of one worker as an SVG image."""
    backend = backend_of(request)
    reach = await backend.reader.reach()
    query = ChartQuery.parse(request.query_params.multi_items(), now=int(backend.now()), reach=reach)
    worker_id = request.path_params["worker_id"]
    found = await find(backend, worker_id)
    if found is None:
        raise unknown(worker_id)
    ref = found[0]
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
    found = await find(backend, worker_id)
    if found is None:
        raise unknown(worker_id)
    ref, gauge = found
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
    return HTMLResponse(body, headers={"Content-Security-Policy": templates.POLICY, "Cache-Control": "private, no-cache"})


async def static_file(request: Request) -> Response:
    """Respond with a file that the pages load."""
    found = templates.STATIC.get(request.path_params["name"])
    if found is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such file.")
    return Response(found.body, media_type=found.media_type, headers=_STATIC_HEADERS)


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
