"""The handlers of what Prometheus reads: metrics, series of the history by remote read, targets."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from exporter.core.model import ExporterMetrics, Snapshot
from exporter.core.periods import DAY
from exporter.history import remote_read, series
from exporter.metrics.families import select
from exporter.metrics.gzip_member import continued, deflated
from exporter.sources.cloudwatch.retention import OLDEST
from exporter.web import discovery, parameters
from exporter.web.backend import Backend
from exporter.web.connections import client_of
from exporter.web.lookup import RETRY_AFTER_SECONDS, backend_of, is_fresh, not_read_yet
from exporter.web.negotiation import prefers_gzip
from exporter.web.parts_response import PartsResponse
from exporter.web.schemas import TargetGroups
from exporter.web.turns import TooManyWaitingError, Turns, while_connected

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Also for a Prometheus that prefers OpenMetrics: it accepts this format too, so that one rendered body is enough."""
REMOTE_READ_SECONDS = 65
"""Timeout of a remote read, in seconds; that of Prometheus is 60 s."""
ANSWER_TTL_SECONDS = 10
"""Seconds for which an answer of hourly aggregates is sent again: as long as a dashboard takes to open."""
MAX_ANSWER_BYTES = 16 << 20
"""Bytes of answers kept for that: a week of a field of a thousand workers takes up to 1.5 MB."""
_SELECTING = ThreadPoolExecutor(1, "select")  # of its own: requests may keep all other threads busy, scrapes must not wait
_SELECTIONS = Turns(1, 8)
"""Who may select metrics by name next, and how many requests of a client may wait for it."""


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


async def read_series(request: Request) -> Response:
    """Respond to a remote read of Prometheus with series of the history."""
    backend = backend_of(request)
    queries = remote_read.decode(await _body(request, remote_read.MAX_BODY))
    if backend.columns is None or backend.hourly is None:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "mongodb.history is null, so there is no history to read.")
    state = request.app.state
    is_hourly = series.only_hourly_metrics(queries)
    # Few at once: each may hold millions of samples until it is sent.
    slots = state.hourly_reads if is_hourly else state.sample_reads
    answer = partial(_answer, slots, backend, backend.columns, backend.hourly, queries)
    # The panels of a dashboard select the same series several times.
    marker = await backend.hourly.marker() if is_hourly else None
    if marker is None:
        body = await answer()
    else:
        body = await state.answers.get((queries, marker), answer, ANSWER_TTL_SECONDS)
    return Response(body, media_type=remote_read.CONTENT_TYPE, headers={"Content-Encoding": "snappy"})


async def _answer(
    slots: asyncio.Semaphore,
    backend: Backend,
    history: series.ColumnSource,
    hourly: series.BlockSource,
    queries: Sequence[remote_read.SeriesSelector],
) -> bytes:
    """Return the encoded response; raises HTTPException 503 when that takes longer than Prometheus waits."""
    try:
        # The timeout includes the time in the queue.
        async with asyncio.timeout(REMOTE_READ_SECONDS), slots:
            found = await _read(backend, history, hourly, queries)
            return await asyncio.to_thread(remote_read.encode_response, found)
    except TimeoutError as error:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"The history could not be read within {REMOTE_READ_SECONDS} s; select fewer workers or a shorter range.",
            {"Retry-After": str(RETRY_AFTER_SECONDS)},
        ) from error


async def _read(
    backend: Backend, history: series.ColumnSource, hourly: series.BlockSource, queries: Sequence[remote_read.SeriesSelector]
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


async def _body(request: Request, most: int) -> bytes:
    """Return the body of the request; raises HTTPException 413 as soon as it has more than `most` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has more than {most} bytes.")
    return bytes(body)


async def scrape_targets(request: Request) -> Response:
    """Respond with the running workers as targets; with 503 while they are not known, so that Prometheus keeps its targets."""
    backend = backend_of(request)
    port = parameters.discovery_port(request.query_params.multi_items())
    snapshot = backend.snapshot
    if snapshot is None or not is_fresh(backend, snapshot):
        raise not_read_yet()
    # In a thread: 10,000 workers take a tenth of a second, and scrapes must not wait for it.

    def render() -> Response:
        found = TargetGroups(discovery.targets(snapshot.workers, port))
        return Response(found.model_dump_json(), media_type="application/json")

    return await asyncio.to_thread(render)
