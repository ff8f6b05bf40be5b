"""The routes of a supervisor: is the process alive, is it ready, and reload its configuration."""

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from exporter.core.errors import ExporterError
from exporter.web import responses
from exporter.web.lookup import backend_of


async def healthy(request: Request) -> Response:
    """Respond that every loop of the process makes progress; with 503 once one hangs, so that the process is restarted."""
    if dead := request.app.state.backend.dead_loops():
        sentence = f"CML worker exporter hangs; without progress: {', '.join(dead)}. Restart it.\n"
        return PlainTextResponse(sentence, HTTPStatus.SERVICE_UNAVAILABLE)
    return PlainTextResponse("CML worker exporter is healthy.\n")


async def ready(request: Request) -> Response:
    """Respond with readiness and the state of each source; 503 only until the first read of the worker documents."""
    backend = backend_of(request)
    state = responses.readiness(backend.ready, backend.conditions())
    status = HTTPStatus.OK if state.ready else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(state.model_dump_json(), status, media_type="application/json")


async def reload(request: Request) -> Response:
    """Reload the configuration; respond with what changed, or with 500 and the reason why nothing did."""
    run = request.app.state.reload
    if run is None:
        raise HTTPException(
            HTTPStatus.FORBIDDEN,
            "The lifecycle API is not enabled; start the exporter with --web.enable-lifecycle, or send SIGHUP.",
        )
    try:
        return PlainTextResponse(f"{await run()}\n")
    except ExporterError as error:
        raise HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, f"Not reloaded, nothing has changed: {error}") from error
