"""Assemble the ASGI application: routes, middleware, error handlers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exporter.core.async_cache import AsyncCache
from exporter.core.errors import ReaderBudgetError, RequestError, SourceError, StoreError
from exporter.core.periods import DAY
from exporter.core.settings import WebSettings
from exporter.history.remote_read import SeriesSelector
from exporter.web import responses
from exporter.web.admission import Admission
from exporter.web.backend import Backend
from exporter.web.compression import Compression
from exporter.web.error_pages import error as error_page
from exporter.web.error_pages import problem
from exporter.web.hang_up import HangUp
from exporter.web.live_config import LiveAuth
from exporter.web.lookup import RETRY_AFTER_SECONDS
from exporter.web.prometheus_handlers import MAX_ANSWER_BYTES
from exporter.web.routes import ROUTES
from exporter.web.security_headers import SECURITY_HEADERS, SecurityHeaders
from exporter.web.toolkit_http import HttpConfig, ToolkitHttp

DEFAULTS = WebSettings()
PROBES = ("/-/healthy", "/-/ready")
"""Routes that need no password unless `web.probes_need_auth` is set: kubelet and Docker have none."""
RESERVED_PATHS = ("/metrics", *PROBES)
"""Routes that are answered at once, whatever other requests wait for: they read what is in memory."""
Users = Callable[[], Mapping[str, bytes]]
"""Returns name → bcrypt hash as of now."""
MAX_SAMPLE_READS = 2
"""Remote reads of samples that run at once; each may hold 3 million samples."""
MAX_HOURLY_READS = 6
"""Remote reads of hourly aggregates that run at once; each holds a third of that. A browser sends six requests at once."""


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # The errors that Starlette raises carry only the phrase of the status code.
    details = {
        404: f"There is nothing at {request.url.path}; the page at /api lists the routes.",
        405: f"{request.url.path} does not support {request.method}, only {_methods(error)}.",
    }
    without_detail = error.detail == HTTPStatus(error.status_code).phrase
    detail = details.get(error.status_code, error.detail) if without_detail else error.detail
    return error_page(request, error.status_code, detail, error.headers)


def _methods(error: HTTPException) -> str:
    return " and ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))


async def _on_bad_request(request: Request, error: Exception) -> Response:
    return error_page(request, HTTPStatus.BAD_REQUEST, str(error))


async def _on_unavailable(request: Request, error: Exception) -> Response:
    """Answer 503: MongoDB or CloudWatch failed."""
    detail = request.app.state.backend.public(str(error))
    return error_page(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": str(RETRY_AFTER_SECONDS)})


async def _on_spent(request: Request, error: Exception) -> Response:
    """Answer 429: readers have spent their share of the CloudWatch budget of the day, which ends at 00:00 UTC."""
    left = DAY - int(request.app.state.backend.now()) % DAY
    return error_page(request, HTTPStatus.TOO_MANY_REQUESTS, str(error), {"Retry-After": str(left)})


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after sending this, and uvicorn logs it with its traceback. No middleware is around it.
    sentence = "Internal error; the log of the exporter has the details."
    return error_page(request, HTTPStatus.INTERNAL_SERVER_ERROR, sentence, SECURITY_HEADERS)


async def _to_fleet_page(request: Request) -> Response:
    """Redirect the prefix without a slash, relative to the request: a proxy may have changed host, scheme and path."""
    last = request.url.path.rpartition("/")[2]
    return Response(status_code=HTTPStatus.PERMANENT_REDIRECT, headers={"Location": f"./{last}/"})


def _authentication(users: Users, settings: WebSettings) -> Middleware:
    exempt = () if settings.probes_need_auth else PROBES
    challenge = {"WWW-Authenticate": 'Basic realm="cml-worker-exporter", charset="UTF-8"'}
    refusal = problem(
        HTTPStatus.UNAUTHORIZED, "This exporter requires a user name and a password; they are missing or wrong.", challenge
    )
    return Middleware(LiveAuth, users, refusal, frozenset(settings.prefix + path for path in exempt))


def _middleware(settings: WebSettings, users: Users | None, http: Callable[[], HttpConfig] | None) -> list[Middleware]:
    """Return the middleware in the order in which a request passes it."""
    prefix, middleware = settings.prefix, [Middleware(HangUp), Middleware(SecurityHeaders)]
    if http is not None:
        refused = problem(HTTPStatus.TOO_MANY_REQUESTS, "More requests than rate_limit of the web configuration allows.")
        middleware.append(Middleware(ToolkitHttp, http, refused))
    if settings.cors_origins:
        # Before the authentication, because a browser's preflight request carries no credentials.
        middleware.append(
            Middleware(
                CORSMiddleware,
                settings.cors_origins,
                allow_credentials=settings.cors_credentials,
                allow_methods=["GET", "HEAD"],
                allow_headers=["Authorization"],
                expose_headers=[*responses.PAGE_HEADERS, "Retry-After"],
            )
        )
    if users is not None:
        middleware.append(_authentication(users, settings))
    middleware.append(Middleware(Admission, [prefix + path for path in RESERVED_PATHS]))
    middleware.append(Middleware(Compression))
    return middleware


def create_app(
    backend: Backend,
    settings: WebSettings = DEFAULTS,
    *,
    users: Users | None = None,
    http: Callable[[], HttpConfig] | None = None,
    reload: Callable[[], Awaitable[str]] | None = None,
) -> Starlette:
    """Return the ASGI application.

    Args:
        backend: what the routes query.
        settings: origins of CORS, external URL and route prefix.
        users: returns name → bcrypt hash as of now; if there are any, every route but the probes requires basic authentication.
        http: returns the headers and the rate limit as of now; None: neither.
        reload: reloads the configuration, see `Reloader.reload`; None where `web.enable_lifecycle` is false.
    """
    prefix = settings.prefix
    handlers: dict[Any, Any] = {
        HTTPException: _on_http_error,
        RequestError: _on_bad_request,
        StoreError: _on_unavailable,
        SourceError: _on_unavailable,
        ReaderBudgetError: _on_spent,
        Exception: _on_bug,
    }
    app = Starlette(
        routes=[
            *(
                Route(prefix + path, endpoint.handler, methods=[endpoint.method])
                for endpoint in ROUTES
                for path in (endpoint.path, endpoint.also)
                if path
            ),
            *([Route(prefix, _to_fleet_page)] if prefix else []),
        ],
        middleware=_middleware(settings, users, http),
        exception_handlers=handlers,
    )
    app.router.redirect_slashes = False  # Starlette's redirect is absolute, and so leads behind a proxy
    app.state.backend = backend
    app.state.reload = reload
    app.state.prefix = prefix
    app.state.external_url = settings.external_url
    app.state.grafana_url = settings.grafana_url
    app.state.sample_reads = asyncio.Semaphore(MAX_SAMPLE_READS)
    app.state.hourly_reads = asyncio.Semaphore(MAX_HOURLY_READS)
    app.state.answers = AsyncCache[tuple[tuple[SeriesSelector, ...], str], bytes](max_weight=MAX_ANSWER_BYTES, weigh=len)
    return app
