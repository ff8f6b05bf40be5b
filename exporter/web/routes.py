"""The routes: parse the request, query the `Backend`, render the response."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from exporter.core.instances import worker_from_inventory
from exporter.core.model import Snapshot, WorkerGauges
from exporter.core.periods import DAY
from exporter.history import remote_read, series
from exporter.history.reader import WorkerRef
from exporter.metrics.gzip_member import continued
from exporter.sources.cloudwatch.retention import OLDEST
from exporter.web import chart, discovery, landing, openapi, parameters, responses, worker_chart
from exporter.web.backend import Backend
from exporter.web.negotiation import prefers_csv, prefers_gzip
from exporter.web.openapi import Endpoint, ResponseSpec
from exporter.web.parameters import ChartQuery, HistoryQuery, ResourcesQuery, WorkersQuery, resuming
from exporter.web.schemas import FleetPage, HistoryPage, Readiness, ResourceUsage, TargetGroups

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Also for a Prometheus that prefers OpenMetrics: it accepts this format too, so that one rendered body is enough."""
REMOTE_READ_SECONDS = 65
"""Timeout of a remote read, in seconds; that of Prometheus is 60 s."""
RETRY_AFTER_SECONDS = 10
"""Seconds after which a client should retry when MongoDB or CloudWatch is unavailable."""

_JSON = "application/json"
_SVG = "image/svg+xml"
_CHART_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "private, max-age=30",
}
"""A chart opened by its address is a document of its own: its style sheet is in it, and it needs nothing else."""
MAX_ROWS_IN_LOOP = 1000
"""Rows of history that are rendered on the event loop: they take less than a millisecond."""


# -- the handlers ------------------------------------------------------------------------------------------------------


async def index(request: Request) -> Response:
    """Respond with the landing page."""
    backend = _backend(request)
    snapshot = backend.snapshot
    page = await asyncio.to_thread(
        landing.page,
        snapshot.workers if snapshot else (),
        fresh=_is_fresh(backend, snapshot),
        ready=backend.ready,
        collection=backend.worker_collection,
        health=backend.health(),
        links=[(endpoint.title, endpoint.description) for endpoint in ROUTES if endpoint.path != "/"],
    )
    return HTMLResponse(
        page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}
    )


async def metrics(request: Request) -> Response:
    """Respond with the worker block of the last collection cycle and the exporter metrics of the last second.

    A worker block that is overdue for renewal is left out, so that a hung collector is noticed.
    """
    backend = _backend(request)
    snapshot = backend.snapshot
    fresh = snapshot if _is_fresh(backend, snapshot) else None
    exporter_metrics = backend.exporter_metrics
    headers = {"Vary": "Accept-Encoding"}
    if prefers_gzip(",".join(request.headers.getlist("accept-encoding"))):
        body = continued(fresh.gzipped if fresh else b"", exporter_metrics)
        headers["Content-Encoding"] = "gzip"
    else:
        body = (fresh.body if fresh else b"") + exporter_metrics.text
    return Response(body, media_type=CONTENT_TYPE, headers=headers)


async def healthy(request: Request) -> Response:
    """Respond that the process is alive."""
    return PlainTextResponse("CML worker exporter is healthy.\n")


async def ready(request: Request) -> Response:
    """Respond with readiness and the state of each source; 503 only until the first read of the worker documents."""
    backend = _backend(request)
    state = responses.readiness(backend.ready, backend.health())
    return _json(state, HTTPStatus.OK if state.ready else HTTPStatus.SERVICE_UNAVAILABLE)


async def workers(request: Request) -> Response:
    """Respond with the fleet, and the workers that have left it but still have history."""
    backend = _backend(request)
    query = WorkersQuery.parse(request.query_params.multi_items())
    snapshot = backend.snapshot
    if snapshot is None:
        raise _not_read_yet()
    fresh = _is_fresh(backend, snapshot)
    remembered = {entry.worker_id: entry for entry in await backend.inventory()}
    listed = {gauge.worker.id for gauge in snapshot.workers}
    kept = await backend.reader.retention()
    oldest = 0 if kept is None else int(backend.now()) - kept
    gone = [
        responses.gone_worker(entry)
        for entry in remembered.values()
        if entry.worker_id not in listed and entry.last_seen >= oldest
    ]
    gone = [found for found in gone if _selects(query, found)]
    newest = await backend.latest([found.worker_id for found in gone])
    gone = [found for found in gone if newest.get(found.worker_id, -1) >= oldest]

    def render() -> Response:
        present = (responses.listed_worker(gauge, remembered.get(gauge.worker.id), fresh) for gauge in snapshot.workers)
        chosen = [*(found for found in present if _selects(query, found)), *gone]
        return _json(responses.fleet_page(chosen, query.limit, backend.period))

    # In a thread: 10,000 workers take a tenth of a second, and scrapes must not wait for it.
    return await asyncio.to_thread(render)


async def history(request: Request) -> Response:
    """Respond with a page of one worker's samples or statistics, as JSON or CSV."""
    backend = _backend(request)
    given = request.query_params.multi_items()
    reach = await backend.reader.reach()
    query = HistoryQuery.parse(given, now=int(backend.now()), period=backend.period, reach=reach)
    worker_id = request.path_params["worker_id"]
    found = await _find(backend, worker_id)
    if found is None:
        raise _unknown(worker_id)
    subject, gauge = found
    page = await backend.reader.page(subject, query.span)
    cursor = resuming(query.span, page.following) if page.following else None
    headers = {"Vary": "Accept"} | responses.page_headers(page, cursor, given)
    as_csv = query.format == "csv" or (query.format is None and prefers_csv(",".join(request.headers.getlist("accept"))))

    def render() -> Response:
        if as_csv:
            body = responses.history_csv(page, query.span.interval)
            return Response(body, media_type="text/csv; charset=utf-8; header=present", headers=headers)
        worker = responses.history_worker(subject, _status(backend, subject, gauge))
        return Response(responses.history_json(page, cursor, worker), media_type=_JSON, headers=headers)

    # In a thread, as above, unless a change of threads would take longer.
    small = len(page.rows) <= MAX_ROWS_IN_LOOP and not as_csv
    return render() if small else await asyncio.to_thread(render)


async def worker_chart_image(request: Request) -> Response:
    """Respond with a chart of one worker as an SVG image."""
    backend = _backend(request)
    reach = await backend.reader.reach()
    query = ChartQuery.parse(request.query_params.multi_items(), now=int(backend.now()), reach=reach)
    worker_id = request.path_params["worker_id"]
    found = await _find(backend, worker_id)
    if found is None:
        raise _unknown(worker_id)
    reader, ref = backend.reader, found[0]
    interval = worker_chart.chart_interval(query.start, query.end, backend.period)
    shown = await worker_chart.read_rows(reader, ref, query.start, query.end, interval)
    earlier, shift = None, query.shift or 0
    if shift:
        oldest = 0 if reach is None else int(backend.now()) - reach
        begin = max(oldest, query.start - shift)
        earlier = await worker_chart.read_rows(reader, ref, begin, max(begin, query.end - shift), interval)

    def render() -> Response:
        drawn = worker_chart.worker_chart(
            ref, query.metric, query.start, query.end, shown, earlier=earlier, shift=shift, zone=query.zone
        )
        body = chart.render(drawn, query.width, query.height, query.theme)
        return Response(body, media_type=_SVG, headers=_CHART_HEADERS)

    # In a thread: thousands of points take some milliseconds.
    return await asyncio.to_thread(render)


async def resources(request: Request) -> Response:
    """Respond with a worker's average CPU and memory over the last minutes, from CloudWatch."""
    backend = _backend(request)
    query = ResourcesQuery.parse(request.query_params.multi_items(), now=int(backend.now()))
    id_, region = request.path_params["worker_id"], request.path_params["region"]
    found = await _find(backend, id_)
    subject = found[0] if found else await _find_instance(backend, id_, region)
    if subject is None:
        raise _unknown(id_)
    if not subject.region:
        raise HTTPException(
            HTTPStatus.NOT_FOUND, f"Worker {id_} has no region, so CloudWatch cannot be queried; the manager must write it."
        )
    if subject.region != region:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"Worker {id_} is not in region {region}, but in {subject.region}.")
    usage = await backend.reader.resources(subject, query.seconds, query.end)
    return _json(responses.resource_usage(usage, query))


async def remote(request: Request) -> Response:
    """Respond to a remote read of Prometheus with series of the history."""
    backend = _backend(request)
    queries = remote_read.decode(await _body(request, remote_read.MAX_BODY))
    if backend.columns is None or backend.hourly is None:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "mongodb.history is null, so there is no history to read.")
    state = request.app.state
    try:
        # Few at once: each may hold millions of samples until it is sent. The timeout includes the time in the queue.
        slots = state.hourly_reads if series.only_hourly_metrics(queries) else state.sample_reads
        async with asyncio.timeout(REMOTE_READ_SECONDS), slots:
            found = await _read(backend, backend.columns, backend.hourly, queries)
            body = await asyncio.to_thread(remote_read.encode_response, found)
    except TimeoutError as error:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"The history could not be read within {REMOTE_READ_SECONDS} s; select fewer workers or a shorter range.",
            {"Retry-After": str(RETRY_AFTER_SECONDS)},
        ) from error
    return Response(body, media_type=remote_read.CONTENT_TYPE, headers={"Content-Encoding": "snappy"})


async def _read(
    backend: Backend, history: series.ColumnSource, hourly: series.ColumnSource, queries: Sequence[remote_read.SeriesSelector]
) -> list[list[remote_read.Series]]:
    """Return the series of each query; all queries together share one limit of samples."""
    entries, kept = await backend.inventory(), await backend.reader.retention()
    now = int(backend.now())
    first_seen = (time for entry in entries for time in (entry.created_at, entry.first_seen) if time is not None)
    # MongoDB deletes expired samples late. Without a retention, no sample is older than CloudWatch's data of the first worker.
    oldest = now - kept if kept is not None else min(first_seen, default=now) - OLDEST
    left, found = series.MAX_SAMPLES, []
    for query in queries:
        within = replace(query, end=min(query.end, (now + DAY) * 1000))
        found.append(await series.read(within, entries, history, hourly, period=backend.period, oldest=oldest, most=left))
        left -= sum(each.samples for each in found[-1])
    return found


async def discover(request: Request) -> Response:
    """Respond with the running workers as targets; with 503 while they are not known, so that Prometheus keeps its targets."""
    backend = _backend(request)
    port = parameters.discovery_port(request.query_params.multi_items())
    snapshot = backend.snapshot
    if snapshot is None or not _is_fresh(backend, snapshot):
        raise _not_read_yet()
    return _json(TargetGroups(discovery.targets(snapshot.workers, port)))


def _json(body: BaseModel, status: int = HTTPStatus.OK) -> Response:
    return Response(body.model_dump_json(), status, media_type=_JSON)


async def _body(request: Request, most: int) -> bytes:
    """Return the body of the request; raises HTTPException 413 as soon as it has more than `most` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has more than {most} bytes.")
    return bytes(body)


async def describe(request: Request) -> Response:
    """Respond with the OpenAPI document."""
    state = request.app.state
    here = f"{request.url.scheme}://{request.url.netloc}{state.prefix}"
    return JSONResponse(openapi.document(ROUTES, state.external_url or here))


_TEXT = {"type": "string"}

ROUTES: tuple[Endpoint, ...] = (
    Endpoint("/", index, "landing page: version, sources, overview of the fleet", ResponseSpec({"text/html": _TEXT})),
    Endpoint(
        "/metrics", metrics, "metrics of the workers and the exporter, for Prometheus", ResponseSpec({"text/plain": _TEXT})
    ),
    Endpoint("/-/healthy", healthy, "liveness: the process runs", ResponseSpec({"text/plain": _TEXT})),
    Endpoint(
        "/-/ready",
        ready,
        "readiness: the worker documents have been read once; state of each source",
        ResponseSpec({_JSON: Readiness}, also={503: (_JSON, Readiness)}),
    ),
    Endpoint(
        "/api/workers",
        workers,
        "the fleet, and workers that have left it but have history",
        ResponseSpec({_JSON: FleetPage}, (400, 503)),
        parameters.WORKERS,
    ),
    Endpoint(
        "/api/workers/{worker_id:path}/metrics/history",
        history,
        "samples or statistics of one worker; from CloudWatch where they are older than MongoDB's retention",
        ResponseSpec({_JSON: HistoryPage, "text/csv": _TEXT}, (400, 404, 503), responses.PAGE_HEADERS),
        parameters.HISTORY,
        "/workers/{worker_id:path}/metrics/history",
    ),
    Endpoint(
        "/api/workers/region/{region}/workers/{worker_id:path}/resources",
        resources,
        "average CPU and memory of one worker over the last minutes, from CloudWatch",
        ResponseSpec({_JSON: ResourceUsage}, (400, 404, 503)),
        parameters.RESOURCES,
    ),
    Endpoint(
        "/workers/{worker_id:path}/chart.svg",
        worker_chart_image,
        "chart of one worker's CPU, memory or labs as an image, for wikis, chat and other pages",
        ResponseSpec({_SVG: _TEXT}, (400, 404, 503)),
        parameters.CHART,
    ),
    Endpoint(
        "/api/v1/read",
        remote,
        "Prometheus remote read of the history; its series have the label store=history",
        ResponseSpec({remote_read.CONTENT_TYPE: {"type": "string", "format": "binary"}}, (400, 413, 503)),
        method="POST",
    ),
    Endpoint(
        "/sd/workers",
        discover,
        "running workers as targets, for Prometheus's HTTP service discovery",
        ResponseSpec({_JSON: TargetGroups}, (400, 503)),
        parameters.DISCOVERY,
    ),
    Endpoint("/openapi.json", describe, "OpenAPI 3.1 of these routes", ResponseSpec({_JSON: {"type": "object"}})),
)


# -- which worker ------------------------------------------------------------------------------------------------------


async def _find(backend: Backend, worker_id: str) -> tuple[WorkerRef, WorkerGauges | None] | None:
    """Return what is known of a worker, None if it is unknown; raises HTTPException 503 before the fleet has been read."""
    entry = await backend.remembered(worker_id)
    snapshot = backend.snapshot
    listed = snapshot.workers if snapshot else ()
    gauge = next((gauge for gauge in listed if gauge.worker.id == worker_id), None)
    subject = WorkerRef.of(gauge.worker if gauge else None, entry)
    if subject is None and snapshot is None:
        raise _not_read_yet()
    return (subject, gauge) if subject else None


async def _find_instance(backend: Backend, instance_id: str, region: str) -> WorkerRef | None:
    """Return the worker of an instance, without its other instances; None if no worker has run on it."""
    snapshot = backend.snapshot
    for gauge in snapshot.workers if snapshot else ():
        if gauge.worker.instance_id == instance_id:
            return WorkerRef(gauge.worker, None)
    for entry in await backend.inventory():
        for interval in entry.instances:
            if (interval.instance_id, interval.region) == (instance_id, region):
                worker = worker_from_inventory(entry)
                return WorkerRef(replace(worker, instance_id=instance_id, region=region, created_at=None), None)
    return None


def _status(backend: Backend, subject: WorkerRef, gauge: WorkerGauges | None) -> str | None:
    """Return today's status as in /api/workers, None if it is not known."""
    if gauge is None:
        return "terminated" if subject.worker.status == "terminated" else None
    return gauge.worker.status if gauge.show_state and _is_fresh(backend, backend.snapshot) else None


def _selects(query: WorkersQuery, found: responses.ListedWorker) -> bool:
    """Return whether a worker belongs on this page or a later one."""
    return (
        found.worker_id > query.after
        and (not query.statuses or found.status in query.statuses)
        and (not query.regions or found.region in query.regions)
    )


def _is_fresh(backend: Backend, snapshot: Snapshot | None) -> bool:
    return snapshot is not None and backend.now() < snapshot.fresh_until


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


# -- errors ------------------------------------------------------------------------------------------------------------


def _not_read_yet() -> HTTPException:
    return HTTPException(
        503,
        "The fleet has not been read yet; /-/ready shows the errors of the sources.",
        {"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _unknown(worker_id: str) -> HTTPException:
    return HTTPException(HTTPStatus.NOT_FOUND, f"Unknown worker {worker_id}; /api/workers lists all workers, present and past.")
