"""The routes: parse → call → respond. What they say is decided elsewhere; what they need of the exporter is `Backend`."""

import asyncio
import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from exporter import exposition, landing
from exporter.auth import BasicAuth
from exporter.errors import StoreError
from exporter.model import STATUSES, InventoryEntry, OwnMetrics, Snapshot, WorkerGauges
from exporter.periods import rfc3339

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Also for a Prometheus that prefers OpenMetrics: it takes what it gets, and one rendered body serves all."""
RETRY_AFTER = 10
"""Seconds after which a store that is down is worth another request."""
DEFAULT_LIMIT, MAX_LIMIT = 500, 1000


class Backend(Protocol):
    """What the routes need of the exporter."""

    period: int
    retention: int

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest worker block; None before the first."""

    @property
    def own_metrics(self) -> OwnMetrics:
        """What the exporter says of itself."""

    @property
    def ready(self) -> bool:
        """Whether the first observation was tried, whatever came of it."""

    def health(self) -> Mapping[str, str | None]:
        """Source ("mongodb", "cloudwatch eu-west-1", "history") → its last error, None where it is fine."""

    def now(self) -> float:
        """UTC seconds of the local clock."""

    async def inventory(self) -> Sequence[InventoryEntry]:
        """Everything remembered of every worker, empty where there is no history; raises StoreError."""

    async def latest(self, worker_ids: Collection[str]) -> Mapping[str, int]:
        """Start of the newest period the history has of each worker that has any; raises StoreError."""


# -- the handlers ------------------------------------------------------------------------------------------------------


async def index(request: Request) -> Response:
    """Serve the landing page."""
    backend = _backend(request)
    snapshot = backend.snapshot
    page = await asyncio.to_thread(
        landing.page,
        snapshot.workers if snapshot else (),
        fresh=_is_fresh(backend, snapshot),
        ready=backend.ready,
        health=backend.health(),
        links=[(endpoint.path, endpoint.description) for endpoint in ROUTES if endpoint.path != request.url.path],
    )
    return HTMLResponse(
        page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}
    )


async def metrics(request: Request) -> Response:
    """Serve the worker block as the last round rendered it, and the exporter's own metrics as they were a moment ago.

    A worker block that should have been renewed is left out: a hung collector must look like one.
    """
    backend = _backend(request)
    snapshot = backend.snapshot
    fresh = snapshot if _is_fresh(backend, snapshot) else None
    own = backend.own_metrics
    headers = {"Vary": "Accept-Encoding"}
    if prefers_gzip(",".join(request.headers.getlist("accept-encoding"))):
        body = exposition.continued(fresh.gzipped if fresh else b"", own)
        headers["Content-Encoding"] = "gzip"
    else:
        body = (fresh.body if fresh else b"") + own.text
    return Response(body, media_type=CONTENT_TYPE, headers=headers)


async def healthy(request: Request) -> Response:
    """Answer that the process is alive."""
    return PlainTextResponse("CML worker exporter is healthy.\n")


async def ready(request: Request) -> Response:
    """Say whether the first observation was made, and how each source does; a source that is down is no reason for a 503."""
    backend = _backend(request)
    sources = {source: {"ok": error is None, "error": error} for source, error in sorted(backend.health().items())}
    return JSONResponse(
        {"ready": backend.ready, "sources": sources},
        HTTPStatus.OK if backend.ready else HTTPStatus.SERVICE_UNAVAILABLE,
    )


async def workers(request: Request) -> Response:
    """List the fleet, and the workers that are gone but still have history."""
    backend = _backend(request)
    query = WorkersQuery.parse(request)
    snapshot = backend.snapshot
    if snapshot is None:
        raise HTTPException(503, "The fleet has not been read yet; /-/ready says why.", {"Retry-After": str(RETRY_AFTER)})
    fresh = _is_fresh(backend, snapshot)
    remembered = {entry.worker_id: entry for entry in await backend.inventory()}
    listed = {gauge.worker.id for gauge in snapshot.workers}
    oldest = int(backend.now()) - backend.retention
    gone = [_gone_worker(entry) for entry in remembered.values() if entry.worker_id not in listed and entry.last_seen >= oldest]
    gone = [found for found in gone if query.selects(found)]
    newest = await backend.latest([found.worker_id for found in gone])
    gone = [found for found in gone if newest.get(found.worker_id, 0) >= oldest]

    def answer() -> Response:
        here = (_listed_worker(gauge, remembered.get(gauge.worker.id), fresh) for gauge in snapshot.workers)
        return JSONResponse(_page([*filter(query.selects, here), *gone], query.limit, backend.period))

    # In a thread: 10,000 workers take a tenth of a second, in which no scrape would be answered.
    return await asyncio.to_thread(answer)


class Endpoint(NamedTuple):
    """One route: its path, what answers it, and what it is in one line, for the landing page and docs/http.md."""

    path: str
    handler: Callable[[Request], Awaitable[Response]]
    description: str


ROUTES: tuple[Endpoint, ...] = (
    Endpoint("/", index, "this page: version, sources, fleet at a glance"),
    Endpoint("/metrics", metrics, "gauges of the workers and the exporter, for Prometheus"),
    Endpoint("/-/healthy", healthy, "the process is alive"),
    Endpoint("/-/ready", ready, "the first observation is done; state of each source"),
    Endpoint("/api/workers", workers, "the fleet, and workers that are gone but have history"),
)


# -- what a request asks for -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkersQuery:
    """The parameters of /api/workers."""

    limit: int = DEFAULT_LIMIT
    after: str = ""
    """Worker id the page begins behind."""
    statuses: frozenset[str] = frozenset()
    """Empty: any, or none known."""
    regions: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, request: Request) -> "WorkersQuery":
        """Read the parameters, or refuse them (HTTPException 400)."""
        parameters = request.query_params
        allowed = ("limit", "cursor", "status", "region")
        for name in parameters:
            if name not in allowed:
                raise _bad_parameter(f"{name} is not a parameter of this route; allowed are {', '.join(allowed)}.")
        limit = parameters.get("limit", str(DEFAULT_LIMIT))
        if not re.fullmatch("[0-9]{1,9}", limit) or not 1 <= int(limit) <= MAX_LIMIT:
            raise _bad_parameter(f"limit must be a whole number from 1 to {MAX_LIMIT}.")
        statuses = frozenset(parameters.getlist("status"))
        if not statuses <= set(STATUSES):
            raise _bad_parameter(f"status must be one of {', '.join(STATUSES)}; give it several times for several.")
        cursor = parameters.get("cursor", "")
        return cls(int(limit), _worker_id(cursor), statuses, frozenset(parameters.getlist("region")))

    def selects(self, found: "Found") -> bool:
        """Whether a worker is asked for, on this page or a later one."""
        return (
            found.worker_id > self.after
            and (not self.statuses or found.status in self.statuses)
            and (not self.regions or found.region in self.regions)
        )


def prefers_gzip(accept_encoding: str) -> bool:
    """Read an Accept-Encoding header (RFC 9110, 12.5.3): gzip unless it is not accepted, or identity is liked better."""
    weights: dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        coding, *parameters = (piece.strip() for piece in part.split(";"))
        weights[coding] = _weight(parameters)
    weight = next((weights[coding] for coding in ("gzip", "x-gzip", "*") if coding in weights), 0)
    return weight > 0 and weight >= weights.get("identity", 0)


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            # What is not a weight is taken for a refusal, since plain text suits everybody.
            return float(value) if re.fullmatch(r"\s*[01](\.\d{0,3})?", value) else 0
    return 1


def _cursor(worker_id: str) -> str:
    return base64.urlsafe_b64encode(worker_id.encode()).decode().rstrip("=")


def _worker_id(cursor: str) -> str:
    try:
        worker_id = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise _bad_parameter("cursor must be the text that the page before gave as next.") from error
    return worker_id


# -- what is answered --------------------------------------------------------------------------------------------------

Row = dict[str, Any]


class Found(NamedTuple):
    """A worker to choose from; its row is built when it is on the page, because 10,000 of them would hold up a scrape."""

    worker_id: str
    region: str
    status: str | None
    facts: Callable[[], Row]
    entry: InventoryEntry | None

    def row(self) -> Row:
        """Build what is answered."""
        own = {"worker_id": self.worker_id, "region": self.region, "status": self.status}
        return own | self.facts() | _remembered(self.entry)


def _listed_worker(gauge: WorkerGauges, entry: InventoryEntry | None, fresh: bool) -> Found:
    """A worker of the newest round; what is too old for /metrics is null here too."""
    worker = gauge.worker
    state = fresh and gauge.show_state

    def facts() -> Row:
        return {
            "name": worker.name,
            "instance_id": worker.instance_id,
            "private_ip": worker.address,
            "instance_type": worker.instance_type,
            "cml_version": worker.cml_version,
            "cpu_utilization": gauge.cpu if fresh else None,
            "cpu_time": _time(gauge.cpu_time),
            "memory_utilization": gauge.memory if fresh else None,
            "memory_time": _time(gauge.memory_time),
            "active_labs_count": worker.active_labs if state else None,
            "last_activity_at": _time(worker.last_activity_at),
            "created_at": _time(worker.created_at),
            "terminated_at": _time(worker.terminated_at),
            "observed_at": _time(gauge.observed_at),
            "extra": dict(worker.extra) if state else {},
        }

    return Found(worker.id, worker.region, worker.status if state else None, facts, entry)


def _gone_worker(entry: InventoryEntry) -> Found:
    """A worker that has left /metrics. Unless it was terminated its status is null: the last one seen is no longer true."""

    def facts() -> Row:
        return {
            "name": entry.name,
            "instance_id": entry.instances[-1].instance_id if entry.instances else None,
            "private_ip": None,
            "instance_type": entry.instance_type,
            "cml_version": entry.cml_version,
            "cpu_utilization": None,
            "cpu_time": None,
            "memory_utilization": None,
            "memory_time": None,
            "active_labs_count": None,
            "last_activity_at": None,
            "created_at": _time(entry.created_at),
            "terminated_at": _time(entry.terminated_at),
            "observed_at": None,
            "extra": {},
        }

    return Found(entry.worker_id, entry.region, "terminated" if entry.status == "terminated" else None, facts, entry)


def _remembered(entry: InventoryEntry | None) -> Row:
    return {
        "first_seen": _time(entry.first_seen) if entry else None,
        "last_seen": _time(entry.last_seen) if entry else None,
        "instances": [
            {
                "instance_id": each.instance_id,
                "region": each.region,
                "first_seen": _time(each.first),
                "last_seen": _time(each.last),
            }
            for each in (entry.instances if entry else ())
        ],
    }


def _page(found: Sequence[Found], limit: int, period: int) -> Row:
    ordered = sorted(found, key=lambda each: each.worker_id)
    shown = ordered[:limit]
    following = _cursor(shown[-1].worker_id) if len(ordered) > limit else None
    data = [each.row() for each in shown]
    return {"data": data, "next": following, "source": "mongodb", "resolution_seconds": period}


def _time(time: int | None) -> str | None:
    return None if time is None else rfc3339(time)


def _is_fresh(backend: Backend, snapshot: Snapshot | None) -> bool:
    return snapshot is not None and backend.now() < snapshot.fresh_until


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


# -- errors: application/problem+json (RFC 9457) -----------------------------------------------------------------------


def _problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(problem, status, headers, media_type="application/problem+json")


def _bad_parameter(detail: str) -> HTTPException:
    return HTTPException(HTTPStatus.BAD_REQUEST, detail)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # Starlette's own carry no more than the phrase.
    own = {
        404: f"There is nothing at {request.url.path}; the page at / lists what there is.",
        405: f"{request.url.path} does not answer {request.method}, only GET and HEAD.",
    }
    unsaid = error.detail == HTTPStatus(error.status_code).phrase
    detail = own.get(error.status_code, error.detail) if unsaid else error.detail
    return _problem(error.status_code, detail, error.headers)


async def _on_store_error(request: Request, error: Exception) -> Response:
    return _problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": str(RETRY_AFTER)})


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again once this is sent, and uvicorn logs it with its traceback.
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "The exporter failed to answer; its log says why.")


def create_app(backend: Backend, *, cors_origins: Sequence[str] = (), users: Mapping[str, bytes] | None = None) -> Starlette:
    """Return the ASGI application.

    Args:
        backend: the exporter.
        cors_origins: origins whose pages may read the answers; "*" means any.
        users: name → bcrypt hash; when there are any, every route wants basic authentication.
    """
    middleware = []
    if cors_origins:
        # Outside the authentication, because a browser's preflight carries no credentials.
        middleware.append(Middleware(CORSMiddleware, cors_origins, ["GET", "HEAD"], ["Authorization"]))
    if users:
        challenge = {"WWW-Authenticate": 'Basic realm="cml-worker-exporter", charset="UTF-8"'}
        refusal = _problem(HTTPStatus.UNAUTHORIZED, "This exporter wants a user name and a password.", challenge)
        middleware.append(Middleware(BasicAuth, users, refusal))
    app = Starlette(
        routes=[Route(endpoint.path, endpoint.handler, methods=["GET"]) for endpoint in ROUTES],
        middleware=middleware,
        exception_handlers={HTTPException: _on_http_error, StoreError: _on_store_error, Exception: _on_bug},
    )
    app.state.backend = backend
    return app
