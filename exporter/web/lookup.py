"""Finds the worker of a request, and says what is wrong where there is none."""

from dataclasses import replace
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request

from exporter.core.instances import worker_from_inventory
from exporter.core.model import Snapshot, WorkerGauges
from exporter.history.reader import WorkerRef
from exporter.web.backend import Backend

RETRY_AFTER_SECONDS = 10
"""Seconds after which a client should retry when MongoDB or CloudWatch is unavailable."""


def backend_of(request: Request) -> Backend:
    """Return what the routes ask the exporter through."""
    backend: Backend = request.app.state.backend
    return backend


def is_fresh(backend: Backend, snapshot: Snapshot | None) -> bool:
    """Return whether a snapshot is there and recent enough to be shown."""
    return snapshot is not None and backend.now() < snapshot.fresh_until


async def find(backend: Backend, worker_id: str) -> tuple[WorkerRef, WorkerGauges | None] | None:
    """Return what is known of a worker, None if it is unknown; raises HTTPException 503 before the fleet has been read."""
    entry = await backend.remembered(worker_id)
    snapshot = backend.snapshot
    listed = snapshot.workers if snapshot else ()
    gauge = next((gauge for gauge in listed if gauge.worker.id == worker_id), None)
    subject = WorkerRef.of(gauge.worker if gauge else None, entry)
    if subject is None and snapshot is None:
        raise not_read_yet()
    return (subject, gauge) if subject else None


async def find_named(backend: Backend, name: str) -> tuple[WorkerRef, WorkerGauges | None]:
    """Return what is known of the worker with this id, else of the one in the fleet with this name, else of the past one.

    Raises:
        HTTPException: 404: there is none; 400: several workers have this name; 503: the fleet has not been read yet.
    """
    found = await find(backend, name)
    if found is not None:
        return found
    listed = backend.snapshot.workers if backend.snapshot else ()
    ids = [gauge.worker.id for gauge in listed if gauge.worker.name == name]
    if not ids and name:
        present = {gauge.worker.id for gauge in listed}
        past = [entry for entry in await backend.inventory() if entry.name == name and entry.worker_id not in present]
        ids = [entry.worker_id for entry in past if not backend.is_elsewhere(entry)]
    if len(ids) > 1:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"{len(ids)} workers are called {name}; use an id, such as {ids[0]}.")
    found = await find(backend, ids[0]) if ids else None
    if found is None:
        raise unknown(name)
    return found


async def find_instance(backend: Backend, instance_id: str, region: str) -> WorkerRef | None:
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


def current_status(backend: Backend, subject: WorkerRef, gauge: WorkerGauges | None) -> str | None:
    """Return today's status as in /api/workers, None if it is not known."""
    if gauge is None:
        return "terminated" if subject.worker.status == "terminated" else None
    return gauge.worker.status if gauge.show_state and is_fresh(backend, backend.snapshot) else None


def not_read_yet() -> HTTPException:
    """Return the error 503 of the time before the first read of the worker documents."""
    return HTTPException(
        503,
        "The fleet has not been read yet; /-/ready shows the errors of the sources.",
        {"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def unknown(worker_id: str) -> HTTPException:
    """Return the error 404 for a worker that is neither in the fleet nor remembered."""
    what = f"Unknown worker {worker_id}" if worker_id else "The address ends before the id of a worker"
    return HTTPException(HTTPStatus.NOT_FOUND, f"{what}; /api/workers lists all workers, present and past.")
