"""Errors: a problem (RFC 9457) for programs, a page with the same sentence for a browser."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from exporter.web import responses
from exporter.web.negotiation import prefers_html
from exporter.web.page_handlers import PAGE_HEADERS
from exporter.web.pages import templates


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as a problem; `detail` is a sentence that says what to do."""
    body = responses.problem(status, detail).model_dump_json()
    return Response(body, status, headers, "application/problem+json")


def error(request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as the client prefers it."""
    headers = {**(headers or {}), "Vary": "Accept"}
    if not prefers_html(",".join(request.headers.getlist("accept"))):
        return problem(status, detail, headers)
    page = {"title": HTTPStatus(status).phrase, "detail": detail, "retry": request.method == "GET" and status >= 500}
    body = templates.render("error.html", root=_root(request), page=page)
    return HTMLResponse(body, status, {**headers, **PAGE_HEADERS})


def _root(request: Request) -> str:
    """Return the relative path from the request's address to the root of the exporter: a proxy may serve it elsewhere."""
    # With the encoded path, because a %2F in the id of a worker is no level of the address.
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    path = raw.decode("ascii", "replace").removeprefix(request.app.state.prefix)
    return "../" * (path.count("/") - 1) or "./"
