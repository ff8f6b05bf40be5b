"""The table of routes, and the handlers that describe it."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from exporter.history import remote_read
from exporter.web import (
    chart_query,
    compare_query,
    examples,
    fleet_query,
    history_query,
    openapi,
    parameters,
    responses,
)
from exporter.web.history_handlers import fleet_history, worker_history
from exporter.web.lifecycle import healthy, ready, reload
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
from exporter.web.prometheus_handlers import metrics, read_series, scrape_targets
from exporter.web.schemas import (
    FleetHistoryPage,
    FleetPage,
    FleetWorker,
    HistoryResponse,
    OpenApiDocument,
    Readiness,
    ResourceUsage,
    TargetGroups,
)
from exporter.web.trends import TRENDS, trends_page
from exporter.web.worker_handlers import worker, worker_resources, workers
from exporter.web.worker_path import PLACEHOLDER

_JSON = "application/json"


async def openapi_document(request: Request) -> Response:
    """Respond with the OpenAPI document."""
    return JSONResponse(_document(request))


async def routes_page(request: Request) -> Response:
    """Respond with the OpenAPI document as a page."""
    return HTMLResponse(await asyncio.to_thread(api_page.render, _document(request), "./"), headers=PAGE_HEADERS)


def _document(request: Request) -> dict[str, Any]:
    state = request.app.state
    here = f"{request.url.scheme}://{request.url.netloc}{state.prefix}"
    return openapi.document(ROUTES, state.external_url or here)


_TEXT = {"type": "string"}
_PAGE = {"text/html": examples.PAGE_EXAMPLE}

ROUTES: tuple[Endpoint, ...] = (
    Endpoint(
        "/",
        fleet_page,
        "page of the fleet: figures, health of every source, and a table of the workers",
        ResponseSpec(
            {"text/html": _TEXT},
            (400,),
            {"ETag": "changes with what is shown; sent back as If-None-Match: 304"},
            examples=_PAGE,
        ),
        "pages",
        fleet_query.FLEET,
    ),
    Endpoint(
        "/api",
        routes_page,
        "page of these routes, with their parameters and responses",
        ResponseSpec({"text/html": _TEXT}, examples=_PAGE),
        "pages",
    ),
    Endpoint(
        "/metrics",
        metrics,
        "metrics of the workers and the exporter, for Prometheus",
        ResponseSpec({"text/plain": _TEXT}, (400,), examples={"text/plain": examples.METRICS_EXAMPLE}),
        "prometheus",
        parameters.METRICS,
    ),
    Endpoint(
        "/-/healthy",
        healthy,
        "liveness: every loop of the process makes progress",
        ResponseSpec(
            {"text/plain": _TEXT}, also={503: ("text/plain", _TEXT)}, examples={"text/plain": examples.HEALTHY_EXAMPLE}
        ),
        "operations",
    ),
    Endpoint(
        "/-/ready",
        ready,
        "readiness: the worker documents have been read once; state of each source",
        ResponseSpec({_JSON: Readiness}, also={503: (_JSON, Readiness)}),
        "operations",
    ),
    Endpoint(
        "/-/reload",
        reload,
        "reloads the configuration; only with --web.enable-lifecycle",
        ResponseSpec({"text/plain": _TEXT}, (403, 500), examples={"text/plain": examples.RELOADED_EXAMPLE}),
        "operations",
        method="POST",
    ),
    Endpoint(
        "/api/workers",
        workers,
        "the fleet, and workers that have left it but have history",
        ResponseSpec(
            {_JSON: FleetPage, "text/csv": _TEXT},
            (400, 503),
            responses.FLEET_HEADERS,
            examples={"text/csv": examples.WORKERS_CSV_EXAMPLE},
        ),
        "workers",
        parameters.WORKERS,
    ),
    Endpoint(
        f"/api/workers/{PLACEHOLDER}/metrics/history",
        worker_history,
        "samples or statistics of one worker; from CloudWatch where they are older than MongoDB's retention",
        ResponseSpec(
            {_JSON: HistoryResponse, "text/csv": _TEXT},
            (400, 404, 429, 503),
            responses.PAGE_HEADERS,
            examples={"text/csv": examples.HISTORY_CSV_EXAMPLE},
        ),
        "history",
        history_query.HISTORY,
        f"/workers/{PLACEHOLDER}/metrics/history",
    ),
    Endpoint(
        "/api/metrics/history",
        fleet_history,
        "samples or statistics of many workers: named ones, those of a region, or all, one after the other",
        ResponseSpec(
            {_JSON: FleetHistoryPage, "text/csv": _TEXT},
            (400, 404, 429, 503),
            responses.FLEET_HEADERS,
            examples={"text/csv": examples.FLEET_HISTORY_CSV_EXAMPLE},
        ),
        "history",
        history_query.FLEET_HISTORY,
    ),
    Endpoint(
        f"/api/workers/region/{{region}}/workers/{PLACEHOLDER}/resources",
        worker_resources,
        "average CPU and memory of one worker over the last minutes, from CloudWatch",
        ResponseSpec({_JSON: ResourceUsage}, (400, 404, 429, 503)),
        "workers",
        parameters.RESOURCES,
    ),
    Endpoint(  # after the longer paths, which it would match as well
        f"/api/workers/{PLACEHOLDER}",
        worker,
        "one worker by its id or name, present or past, as /api/workers lists it",
        ResponseSpec({_JSON: FleetWorker}, (400, 404, 503)),
        "workers",
        parameters.WORKER,
    ),
    Endpoint(
        f"/workers/{PLACEHOLDER}/chart.svg",
        chart_image,
        "chart of one worker's CPU, memory or labs as an image, for wikis, chat and other pages",
        ResponseSpec({SVG: _TEXT}, (400, 404, 429, 503), examples={SVG: examples.SVG_EXAMPLE}),
        "pages",
        chart_query.CHART,
    ),
    Endpoint(
        f"/workers/{PLACEHOLDER}",
        worker_page,
        "page of one worker: charts, hours by status, days, and what is known of it now",
        ResponseSpec({"text/html": _TEXT}, (400, 404, 429, 503), examples=_PAGE),
        "pages",
        chart_query.PAGE,
    ),
    Endpoint(
        "/compare",
        compare_page,
        "page that compares workers: CPU, memory and labs of up to eight workers in one chart each",
        ResponseSpec({"text/html": _TEXT}, (400, 404, 429, 503), examples=_PAGE),
        "pages",
        compare_query.COMPARE,
    ),
    Endpoint(
        "/trends",
        trends_page,
        "page of the fleet by day and week, its busiest and idlest workers, and what hours without a lab cost",
        ResponseSpec({"text/html": _TEXT}, (400,), examples=_PAGE),
        "pages",
        TRENDS,
    ),
    Endpoint(
        "/runbook",
        runbook_page,
        "runbook: what each alert means, how to investigate it, what to do; `#` and the alert's name in lower case leads to it",
        ResponseSpec({"text/html": _TEXT}, examples=_PAGE),
        "pages",
    ),
    Endpoint(
        "/static/{name}",
        static_file,
        "style sheet and scripts of the pages",
        ResponseSpec(
            {"text/css": _TEXT, "text/javascript": _TEXT},
            (404,),
            examples={"text/css": examples.CSS_EXAMPLE, "text/javascript": examples.SCRIPT_EXAMPLE},
        ),
        "pages",
        (chart_query.NAME,),
    ),
    Endpoint(
        "/api/v1/read",
        read_series,
        "Prometheus remote read of the history; its series have the label store=history",
        ResponseSpec({remote_read.CONTENT_TYPE: {"type": "string", "format": "binary"}}, (400, 413, 503)),
        "prometheus",
        method="POST",
        takes=(remote_read.CONTENT_TYPE, "application/octet-stream"),
    ),
    Endpoint(
        "/sd/workers",
        scrape_targets,
        "running workers as targets, for Prometheus's HTTP service discovery",
        ResponseSpec({_JSON: TargetGroups}, (400, 503)),
        "prometheus",
        parameters.DISCOVERY,
    ),
    Endpoint(
        "/openapi.json",
        openapi_document,
        "OpenAPI 3.1 of these routes",
        ResponseSpec({_JSON: OpenApiDocument}),
        "operations",
    ),
)
