"""Assemble the ASGI application: routes, middleware, error handlers."""

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exporter.core.errors import RequestError, SourceError, StoreError
from exporter.web import responses
from exporter.web.auth import BasicAuth
from exporter.web.backend import Backend
from exporter.web.routes import RETRY_AFTER, ROUTES

READS = 2
"""Remote reads at once; each may hold 3 million samples."""
HOUR_READS = 6
"""Those of hours only, which hold a third of that and wait for one another's days: as many as a browser has under way."""


def _problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    body = responses.problem(status, detail).model_dump_json()
    return Response(body, status, headers, "application/problem+json")


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # Starlette's own carry no more than the phrase.
    own = {
        404: f"There is nothing at {request.url.path}; the page at / lists what there is.",
        405: f"{request.url.path} does not answer {request.method}, only {_methods(error)}.",
    }
    unsaid = error.detail == HTTPStatus(error.status_code).phrase
    detail = own.get(error.status_code, error.detail) if unsaid else error.detail
    return _problem(error.status_code, detail, error.headers)


def _methods(error: HTTPException) -> str:
    return " and ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))


async def _on_bad_parameter(request: Request, error: Exception) -> Response:
    return _problem(HTTPStatus.BAD_REQUEST, str(error))


async def _on_silence(request: Request, error: Exception) -> Response:
    """MongoDB or CloudWatch does not answer."""
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
        middleware.append(
            Middleware(
                CORSMiddleware,
                cors_origins,
                allow_methods=["GET", "HEAD"],
                allow_headers=["Authorization"],
                expose_headers=[*responses.PAGE_HEADERS, "Retry-After"],
            )
        )
    if users:
        challenge = {"WWW-Authenticate": 'Basic realm="cml-worker-exporter", charset="UTF-8"'}
        refusal = _problem(HTTPStatus.UNAUTHORIZED, "This exporter wants a user name and a password.", challenge)
        middleware.append(Middleware(BasicAuth, users, refusal))
    handlers: dict[Any, Any] = {
        HTTPException: _on_http_error,
        RequestError: _on_bad_parameter,
        StoreError: _on_silence,
        SourceError: _on_silence,
        Exception: _on_bug,
    }
    app = Starlette(
        routes=[
            Route(path, endpoint.handler, methods=[endpoint.method])
            for endpoint in ROUTES
            for path in (endpoint.path, endpoint.also)
            if path
        ],
        middleware=middleware,
        exception_handlers=handlers,
    )
    app.state.backend = backend
    app.state.reading = asyncio.Semaphore(READS)
    app.state.reading_hours = asyncio.Semaphore(HOUR_READS)
    return app
