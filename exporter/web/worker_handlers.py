"""The handlers of the list of workers, and of one of them: what is known of it, and its resources."""

import asyncio
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from exporter.core.regions import normal_region
from exporter.web import parameters, responses
from exporter.web.csv_table import CSV
from exporter.web.lookup import backend_of, find, find_instance, find_named, is_fresh, not_read_yet, unknown
from exporter.web.negotiation import sends_csv
from exporter.web.parameters import ResourcesQuery, WorkersQuery


async def workers(request: Request) -> Response:
    """Respond with the fleet, and the workers that have left it but still have history."""
    backend = backend_of(request)
    given = request.query_params.multi_items()
    query = WorkersQuery.parse(given)
    snapshot = backend.snapshot
    if snapshot is None:
        raise not_read_yet()
    fresh = is_fresh(backend, snapshot)
    remembered = {entry.worker_id: entry for entry in await backend.inventory()}
    listed = {gauge.worker.id for gauge in snapshot.workers}
    kept = await backend.reader.retention()
    oldest = 0 if kept is None else int(backend.now()) - kept
    gone = [
        responses.gone_worker(entry)
        for entry in remembered.values()
        if entry.worker_id not in listed and entry.last_seen >= oldest and not backend.is_elsewhere(entry)
    ]
    gone = [found for found in gone if _selects(query, found)]
    newest = await backend.latest([found.worker_id for found in gone])
    gone = [found for found in gone if newest.get(found.worker_id, -1) >= oldest]

    def render() -> Response:
        present = (responses.listed_worker(gauge, remembered.get(gauge.worker.id), fresh) for gauge in snapshot.workers)
        chosen = [*(found for found in present if _selects(query, found)), *gone]
        page = responses.fleet_page(chosen, query.limit, backend.period)
        headers = responses.fleet_headers(page.next, given)
        if sends_csv(query.format, ",".join(request.headers.getlist("accept"))):
            return Response(responses.fleet_csv(page, query.fields), media_type=CSV, headers=headers)
        return Response(responses.fleet_json(page, query.fields), media_type="application/json", headers=headers)

    # In a thread: 10,000 workers take a tenth of a second, and scrapes must not wait for it.
    return await asyncio.to_thread(render)


async def worker(request: Request) -> Response:
    """Respond with one worker, present or past, as /api/workers lists it."""
    backend = backend_of(request)
    fields = parameters.worker_fields(request.query_params.multi_items())
    subject, gauge = await find_named(backend, request.path_params["worker_id"])
    if gauge is not None:
        listed = responses.listed_worker(gauge, subject.entry, is_fresh(backend, backend.snapshot))
    elif subject.entry is not None:
        listed = responses.gone_worker(subject.entry)
    else:
        raise unknown(subject.worker.id)
    return Response(
        listed.row().model_dump_json(include=None if fields is None else set(fields)), media_type="application/json"
    )


async def worker_resources(request: Request) -> Response:
    """Respond with a worker's average CPU and memory over the last minutes, from CloudWatch."""
    backend = backend_of(request)
    query = ResourcesQuery.parse(request.query_params.multi_items(), now=int(backend.now()))
    id_, region = request.path_params["worker_id"], normal_region(request.path_params["region"])
    found = await find(backend, id_)
    subject = found[0] if found else await find_instance(backend, id_, region)
    if subject is None:
        subject, _ = await find_named(backend, id_)
    if not subject.region:
        raise HTTPException(
            HTTPStatus.NOT_FOUND, f"Worker {id_} has no region, so CloudWatch cannot be queried; the manager must write it."
        )
    if subject.region != region:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"Worker {id_} is not in region {region}, but in {subject.region}.")
    usage = await backend.reader.resources(subject, query.seconds, query.end)
    return Response(responses.resource_usage(usage, query).model_dump_json(), media_type="application/json")


def _selects(query: WorkersQuery, found: responses.ListedWorker) -> bool:
    """Return whether a worker belongs on this page or a later one."""
    return (
        found.worker_id > query.after
        and (not query.statuses or found.status in query.statuses)
        and (not query.regions or found.region in query.regions)
        and (not query.names or found.name in query.names)
    )
