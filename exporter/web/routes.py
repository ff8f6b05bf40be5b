"""The routes: parse the request, query the `Backend`, render the response."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from exporter.core.model import ExporterMetrics, Snapshot
from exporter.core.periods import DAY
from exporter.core.regions import normal_region
from exporter.history import remote_read, series
from exporter.metrics.families import select
from exporter.metrics.gzip_member import continued, deflated
from exporter.sources.cloudwatch.retention import OLDEST
from exporter.web import chart_query, compare_query, discovery, fleet_query, history_query, openapi, parameters, responses
from exporter.web.backend import Backend
from exporter.web.connections import client_of
from exporter.web.history_handlers import fleet_history, history
from exporter.web.lifecycle import healthy, reload
from exporter.web.lookup import (
    RETRY_AFTER_SECONDS,
    backend_of,
    find,
    find_instance,
    is_fresh,
    not_read_yet,
    unknown,
)
from exporter.web.negotiation import prefers_gzip
from exporter.web.openapi import Endpoint, ResponseSpec
from exporter.web.page_handlers import (
    PAGE_HEADERS,
    SVG,
    chart_image,
    compare_page,
    fleet_page,
    runbook_page,
    static_file,
    worker_page,
)
from exporter.web.pages import api_page
from exporter.web.parameters import ResourcesQuery
from exporter.web.parts_response import PartsResponse
from exporter.web.schemas import (
    FleetHistoryPage,
    FleetPage,
    FleetWorker,
    HistoryResponse,
    Readiness,
    ResourceUsage,
    TargetGroups,
)
from exporter.web.trends import TRENDS, trends_page
from exporter.web.turns import TooManyWaitingError, Turns, while_connected
from exporter.web.worker_handlers import worker, workers
from exporter.web.worker_path import PLACEHOLDER

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Also for a Prometheus that prefers OpenMetrics: it accepts this format too, so that one rendered body is enough."""
REMOTE_READ_SECONDS = 65
"""Timeout of a remote read, in seconds; that of Prometheus is 60 s."""
_JSON = "application/json"
_SELECTING = ThreadPoolExecutor(1, "select")  # of its own: requests may keep all other threads busy, scrapes must not wait
_SELECTIONS = Turns(1, 8)
"""Who may select metrics by name next, and how many requests of a client may wait for it."""


# -- the handlers ------------------------------------------------------------------------------------------------------


async def metrics(request: Request) -> Response:
    """Respond with the worker block of the last collection cycle and the exporter metrics of the last two seconds.

    A worker block that is overdue for renewal is left out, so that a hung collector is noticed.
    """
    backend = backend_of(request)
    snapshot = backend.snapshot
    fresh = snapshot if is_fresh(backend, snapshot) else None
    exporter_metrics = backend.exporter_metrics()
    if names := parameters.metric_names(request.query_params.multi_items()):
        # In a thread: a large fleet takes milliseconds, and other scrapes must not wait for them.
        turn = partial(_select, client_of(request.scope.get("client")), fresh, exporter_metrics, names)
        try:
            (fresh, exporter_metrics), _ = await while_connected(request.receive, turn())
        except TooManyWaitingError as error:
            raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, str(error), {"Retry-After": str(RETRY_AFTER_SECONDS)}) from error
    headers = {"Vary": "Accept-Encoding"}
    if prefers_gzip(",".join(request.headers.getlist("accept-encoding"))):
        headers["Content-Encoding"] = "gzip"
        return PartsResponse(continued(fresh.gzipped if fresh else b"", exporter_metrics), CONTENT_TYPE, headers)
    return PartsResponse((*(fresh.texts if fresh else ()), exporter_metrics.text), CONTENT_TYPE, headers)


async def _select(
    client: str, worker_block: Snapshot | None, own: ExporterMetrics, names: frozenset[str]
) -> tuple[None, ExporterMetrics]:
    """Select in a thread, one request after the other; raises TooManyWaitingError."""
    async with _SELECTIONS.turn(client):
        return await asyncio.get_running_loop().run_in_executor(_SELECTING, _named, worker_block, own, names)


def _named(worker_block: Snapshot | None, own: ExporterMetrics, names: frozenset[str]) -> tuple[None, ExporterMetrics]:
    """Return the families of both blocks with these names, as one block."""
    text = select((worker_block.body if worker_block else b"") + own.text, names)
    return None, ExporterMetrics(text, deflated(text))


async def ready(request: Request) -> Response:
    """Respond with readiness and the state of each source; 503 only until the first read of the worker documents."""
    backend = backend_of(request)
    state = responses.readiness(backend.ready, backend.conditions())
    return _json(state, HTTPStatus.OK if state.ready else HTTPStatus.SERVICE_UNAVAILABLE)


async def resources(request: Request) -> Response:
    """Respond with a worker's average CPU and memory over the last minutes, from CloudWatch."""
    backend = backend_of(request)
    query = ResourcesQuery.parse(request.query_params.multi_items(), now=int(backend.now()))
    id_, region = request.path_params["worker_id"], normal_region(request.path_params["region"])
    found = await find(backend, id_)
    subject = found[0] if found else await find_instance(backend, id_, region)
    if subject is None:
        raise unknown(id_)
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
    backend = backend_of(request)
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
    backend = backend_of(request)
    port = parameters.discovery_port(request.query_params.multi_items())
    snapshot = backend.snapshot
    if snapshot is None or not is_fresh(backend, snapshot):
        raise not_read_yet()
    # In a thread: 10,000 workers take a tenth of a second, and scrapes must not wait for it.
    return await asyncio.to_thread(lambda: _json(TargetGroups(discovery.targets(snapshot.workers, port))))


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
    return JSONResponse(_document(request))


async def api(request: Request) -> Response:
    """Respond with the OpenAPI document as a page."""
    return HTMLResponse(await asyncio.to_thread(api_page.render, _document(request), "./"), headers=PAGE_HEADERS)


def _document(request: Request) -> dict[str, Any]:
    state = request.app.state
    here = f"{request.url.scheme}://{request.url.netloc}{state.prefix}"
    return openapi.document(ROUTES, state.external_url or here)


_TEXT = {"type": "string"}

ROUTES: tuple[Endpoint, ...] = (
    Endpoint(
        "/",
        fleet_page,
        "page of the fleet: figures, health of every source, and a table of the workers",
        ResponseSpec({"text/html": _TEXT}, (400,), {"ETag": "changes with what is shown; sent back as If-None-Match: 304"}),
        fleet_query.FLEET,
    ),
    Endpoint("/api", api, "page of these routes, with their parameters and responses", ResponseSpec({"text/html": _TEXT})),
    Endpoint(
        "/metrics",
        metrics,
        "metrics of the workers and the exporter, for Prometheus",
        ResponseSpec({"text/plain": _TEXT}, (400,)),
        parameters.METRICS,
    ),
    Endpoint(
        "/-/healthy",
        healthy,
        "liveness: every loop of the process makes progress",
        ResponseSpec({"text/plain": _TEXT}, also={503: ("text/plain", _TEXT)}),
    ),
    Endpoint(
        "/-/ready",
        ready,
        "readiness: the worker documents have been read once; state of each source",
        ResponseSpec({_JSON: Readiness}, also={503: (_JSON, Readiness)}),
    ),
    Endpoint(
        "/-/reload",
        reload,
        "reloads the configuration; only with --web.enable-lifecycle",
        ResponseSpec({"text/plain": _TEXT}, (403, 500)),
        method="POST",
    ),
    Endpoint(
        "/api/workers",
        workers,
        "the fleet, and workers that have left it but have history",
        ResponseSpec({_JSON: FleetPage, "text/csv": _TEXT}, (400, 503), responses.FLEET_HEADERS),
        parameters.WORKERS,
    ),
    Endpoint(
        f"/api/workers/{PLACEHOLDER}/metrics/history",
        history,
        "samples or statistics of one worker; from CloudWatch where they are older than MongoDB's retention",
        ResponseSpec({_JSON: HistoryResponse, "text/csv": _TEXT}, (400, 404, 429, 503), responses.PAGE_HEADERS),
        history_query.HISTORY,
        f"/workers/{PLACEHOLDER}/metrics/history",
    ),
    Endpoint(
        "/api/metrics/history",
        fleet_history,
        "samples or statistics of many workers, named or of a region, one after the other",
        ResponseSpec({_JSON: FleetHistoryPage, "text/csv": _TEXT}, (400, 404, 429, 503), responses.FLEET_HEADERS),
        history_query.FLEET_HISTORY,
    ),
    Endpoint(
        f"/api/workers/region/{{region}}/workers/{PLACEHOLDER}/resources",
        resources,
        "average CPU and memory of one worker over the last minutes, from CloudWatch",
        ResponseSpec({_JSON: ResourceUsage}, (400, 404, 429, 503)),
        parameters.RESOURCES,
    ),
    Endpoint(  # after the longer paths, which it would match as well
        f"/api/workers/{PLACEHOLDER}",
        worker,
        "one worker by its id or name, present or past, as /api/workers lists it",
        ResponseSpec({_JSON: FleetWorker}, (400, 404, 503)),
        parameters.WORKER,
    ),
    Endpoint(
        f"/workers/{PLACEHOLDER}/chart.svg",
        chart_image,
        "chart of one worker's CPU, memory or labs as an image, for wikis, chat and other pages",
        ResponseSpec({SVG: _TEXT}, (400, 404, 429, 503)),
        chart_query.CHART,
    ),
    Endpoint(
        f"/workers/{PLACEHOLDER}",
        worker_page,
        "page of one worker: charts, hours by status, days, and what is known of it now",
        ResponseSpec({"text/html": _TEXT}, (400, 404, 429, 503)),
        chart_query.PAGE,
    ),
    Endpoint(
        "/compare",
        compare_page,
        "page that compares workers: CPU, memory and labs of up to eight workers in one chart each",
        ResponseSpec({"text/html": _TEXT}, (400, 404, 429, 503)),
        compare_query.COMPARE,
    ),
    Endpoint(
        "/trends",
        trends_page,
        "page of the fleet by day and week, its busiest and idlest workers, and what hours without a lab cost",
        ResponseSpec({"text/html": _TEXT}, (400,)),
        TRENDS,
    ),
    Endpoint(
        "/runbook",
        runbook_page,
        "runbook: what each alert means, how to investigate it, what to do; `#` and the alert's name in lower case leads to it",
        ResponseSpec({"text/html": _TEXT}),
    ),
    Endpoint(
        "/static/{name}",
        static_file,
        "style sheet and scripts of the pages",
        ResponseSpec({"text/css": _TEXT, "text/javascript": _TEXT}, (404,)),
        (chart_query.NAME,),
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
