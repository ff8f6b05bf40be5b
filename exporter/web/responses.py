"""Bodies and headers of responses: workers, pages of history as JSON and CSV, resources, problems. Pure functions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode

from exporter.core.condition import Condition
from exporter.core.model import InventoryEntry, WorkerFacts, WorkerGauges
from exporter.core.periods import rfc3339
from exporter.history.resources import Resources
from exporter.web.csv_table import table
from exporter.web.parameters import ResourcesQuery, encoded
from exporter.web.schemas import (
    FleetPage,
    FleetWorker,
    InstanceRecord,
    Problem,
    Readiness,
    ResourceUsage,
    SourceState,
)

NEXT, SOURCE, RESOLUTION, NOTE = "X-Next-Cursor", "X-Source", "X-Resolution-Seconds", "X-Note"
PAGE_HEADERS: Mapping[str, str] = {
    "Link": 'link to the next page, rel="next"; absent on the last page',
    NEXT: "cursor of the next page; absent on the last page",
    SOURCE: "`mongodb`, `cloudwatch`, or `mixed` for rows of both",
    RESOLUTION: "seconds that a sample stands for; the greatest where there are several",
    NOTE: "remark on the page; absent if there is none",
}

FLEET_HEADERS = {name: PAGE_HEADERS[name] for name in ("Link", NEXT)}

# -- workers -----------------------------------------------------------------------------------------------------------


class ListedWorker(NamedTuple):
    """A worker that /api/workers may list. Its row is built only for its page: building 10,000 rows would hold up a scrape."""

    worker_id: str
    region: str
    status: str | None
    name: str | None
    row: Callable[[], FleetWorker]


def listed_worker(gauge: WorkerGauges, entry: InventoryEntry | None, fresh: bool) -> ListedWorker:
    """Return a worker of the newest collection cycle; values that are too old for /metrics are null here too."""
    worker = gauge.worker
    state = fresh and gauge.show_state
    load = state and gauge.show_load
    status = worker.status if state else None

    def row() -> FleetWorker:
        return FleetWorker(
            worker_id=worker.id,
            region=worker.region,
            status=status,
            name=worker.name,
            instance_id=worker.instance_id,
            private_ip=worker.address,
            instance_type=worker.instance_type,
            cml_version=worker.cml_version,
            cpu_utilization=gauge.cpu if fresh else None,
            cpu_time=_time(gauge.cpu_time),
            memory_utilization=gauge.memory if fresh else None,
            memory_time=_time(gauge.memory_time),
            active_labs_count=gauge.active_labs if fresh else None,
            **_facts(worker.facts if state else WorkerFacts(), load=load),
            last_activity_at=_time(worker.last_activity_at),
            created_at=_time(worker.created_at),
            terminated_at=_time(worker.terminated_at),
            observed_at=_time(gauge.observed_at),
            extra=dict(worker.extra) if state else {},
            first_seen=_time(entry.first_seen) if entry else None,
            last_seen=_time(entry.last_seen) if entry else None,
            instances=worker_instances(entry),
        )

    return ListedWorker(worker.id, worker.region, status, worker.name, row)


def gone_worker(entry: InventoryEntry) -> ListedWorker:
    """Return a worker that has left the fleet. Unless it was terminated its status is null: its last one is out of date."""
    status = "terminated" if entry.status == "terminated" else None

    def row() -> FleetWorker:
        return FleetWorker(
            worker_id=entry.worker_id,
            region=entry.region,
            status=status,
            name=entry.name,
            instance_id=entry.instances[-1].instance_id if entry.instances else None,
            private_ip=None,
            instance_type=entry.instance_type,
            cml_version=entry.cml_version,
            cpu_utilization=None,
            cpu_time=None,
            memory_utilization=None,
            memory_time=None,
            active_labs_count=None,
            **_facts(WorkerFacts(), load=False),
            last_activity_at=None,
            created_at=_time(entry.created_at),
            terminated_at=_time(entry.terminated_at),
            observed_at=None,
            extra={},
            first_seen=_time(entry.first_seen),
            last_seen=_time(entry.last_seen),
            instances=worker_instances(entry),
        )

    return ListedWorker(entry.worker_id, entry.region, status, entry.name, row)


def _facts(facts: WorkerFacts, *, load: bool) -> dict[str, Any]:
    """Return the keys of what the worker document says; those of a running instance are null without `load`."""
    running = facts if load else WorkerFacts()
    return {
        "nodes_running": running.nodes_running,
        "nodes_total": running.nodes_total,
        "ready": running.ready,
        "uptime_seconds": running.uptime,
        "disk_used_bytes": running.disk_used,
        "disk_total_bytes": facts.disk_total,
        "memory_total_bytes": facts.memory_total,
        "licensed": facts.licensed,
        "license_status": facts.license_status,
        "service_status": facts.service_status,
        "ec2_instance_check": facts.instance_check,
        "ec2_system_check": facts.system_check,
        "detailed_monitoring": facts.detailed_monitoring,
        "auto_pauses": facts.auto_pauses,
        "idle_pause_at": _time(running.idle_pause_at),
    }


def worker_instances(entry: InventoryEntry | None) -> tuple[InstanceRecord, ...]:
    """Return the instances that a worker was seen with, oldest first; none without an entry."""
    return tuple(
        InstanceRecord(
            instance_id=each.instance_id, region=each.region, first_seen=rfc3339(each.first), last_seen=rfc3339(each.last)
        )
        for each in (entry.instances if entry else ())
    )


def fleet_page(found: Sequence[ListedWorker], limit: int, period: int) -> FleetPage:
    """Return a page of the workers with the first ids.

    Args:
        found: workers of this and all later pages, in any order.
        limit: number of workers on the page.
        period: seconds between two samples.
    """
    ordered = sorted(found, key=lambda each: each.worker_id)
    shown = ordered[:limit]
    following = encoded(shown[-1].worker_id) if len(ordered) > limit else None
    return FleetPage(data=tuple(each.row() for each in shown), next=following, source="mongodb", resolution_seconds=period)


def fleet_json(page: FleetPage, fields: frozenset[str] | None) -> str:
    """Return a page of workers as JSON, with these keys of each worker; None: all."""
    if fields is None:
        return page.model_dump_json()
    return page.model_dump_json(include={**dict.fromkeys(FleetPage.model_fields, True), "data": {"__all__": set(fields)}})


def fleet_csv(page: FleetPage, fields: frozenset[str] | None) -> bytes:
    """Return a page of workers as CSV."""
    names = [name for name in FleetWorker.model_fields if fields is None or name in fields]
    found = [worker.model_dump(mode="json", include=set(names)) for worker in page.data]
    return table(names, [[row[name] for row in found] for name in names])


def fleet_headers(following: str | None, parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers of a page of workers: where the next one is, which CSV cannot say.

    Args:
        following: cursor of the next page, None on the last.
        parameters: those of the request.
    """
    kept = [(name, value) for name, value in parameters if name != "cursor"]
    return {"Vary": "Accept"} | (next_page(following, kept) if following else {})


def next_page(cursor: str, parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers that lead to the next page. The link is relative, so that it works behind a proxy."""
    return {NEXT: cursor, "Link": f'<?{urlencode([*parameters, ("cursor", cursor)])}>; rel="next"'}


def _time(time: int | None) -> str | None:
    return None if time is None else rfc3339(time)


# -- resources ---------------------------------------------------------------------------------------------------------


def resource_usage(found: Resources, query: ResourcesQuery) -> ResourceUsage:
    """Return the resources with the keys of the customer's document; utilizations are texts there."""
    return ResourceUsage(
        id=found.instance_id,
        region_name=found.region,
        relative_start_time=query.relative,
        avg_cpu_utilization=None if found.cpu is None else f"{found.cpu:.1f}",
        avg_memory_utilization=None if found.memory is None else f"{found.memory:.1f}",
        start_time=rfc3339(found.start),
        end_time=rfc3339(found.end),
    )


# -- readiness and problems --------------------------------------------------------------------------------------------


def readiness(ready: bool, conditions: Mapping[str, Condition]) -> Readiness:
    """Return the state of the exporter; `conditions` is source → whether its last read succeeded.

    Only an exporter that has nothing to show yet is not ready. One that serves right gauges stays in rotation whatever else
    fails; that is visible in the status, the exporter metrics and the alerts.
    """
    sources = {
        source: SourceState(ok=condition.error is None, error=condition.error, note=condition.note)
        for source, condition in sorted(conditions.items())
    }
    degraded = any(condition.error for condition in conditions.values())
    return Readiness(ready=ready, status="starting" if not ready else "degraded" if degraded else "ok", sources=sources)


def problem(status: int, detail: str) -> Problem:
    """Return the body of an error: application/problem+json (RFC 9457)."""
    return Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)
