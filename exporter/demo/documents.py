"""The demo's worker documents at any moment, in the generations of the manager, as pure functions of the fleet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.core.periods import DAY, MINUTE, align, rfc3339, to_datetime
from exporter.demo.fleet import (
    PAUSE,
    PERIOD,
    RUNNING,
    DemoWorker,
    World,
    active_labs,
    fleet,
    published_at,
    ran,
    share,
    status,
    value,
)

_COLLECT = 5 * MINUTE
"""Seconds between two runs of the metrics job of the real manager, which copies CloudWatch into the worker document."""


def worker_document(world: World, worker: DemoWorker, time: int) -> dict[str, Any]:
    """Return the worker document (the manager's aggregate) at a time, in the worker's generation of field names."""
    collected = _last_collected(worker, time)
    last_cpu, last_memory = (None, None) if collected is None else _newest(world, worker, collected)
    gone = status(worker, time) == "terminated"
    # No private_ip: the stack's Prometheus would ask the machine that has the address, whosever it is, for a node_exporter.
    common = {
        "name": worker.name,
        "aws_region": worker.region,
        "aws_instance_id": worker.instance_id,
        "status": status(worker, time),
        "instance_type": worker.instance_type,
        **_checks(worker, time),
    }
    times = {
        "cloudwatch_last_collected_at": None if last_cpu is None else collected,
        "last_activity_at": _last_activity(world, worker, time),
        "created_at": worker.created_at,
        "terminated_at": worker.terminated_at if gone else None,
    }
    labs = active_labs(world, worker, time)
    cml = _cml(world, worker, time)
    if worker.nested:
        measured = {
            "cloudwatch_cpu_utilization": last_cpu,
            "cloudwatch_memory_utilization": 0.0 if last_cpu is not None and last_memory is None else last_memory,
        }
        iso = {name: None if at is None else rfc3339(at) for name, at in times.items()}
        return {"_id": worker.id, "state": {"id": worker.id, **common, **measured, **iso, **_newest_shape(worker, labs, cml)}}
    measured = {"active_labs_count": labs, "cpu_utilization": last_cpu, "memory_utilization": last_memory}
    dates = {name: None if at is None else to_datetime(at) for name, at in times.items()}
    return {"_id": worker.id, **common, **measured, **dates, **_first_shape(worker, cml)}


@dataclass(frozen=True, slots=True)
class _Cml:
    """What CML on a worker says of itself: sizes in bytes."""

    ready: bool
    uptime: int | None
    running_nodes: int
    total_nodes: int
    disk_used: int
    disk_total: int
    memory: int
    licensed: bool


def _cml(world: World, worker: DemoWorker, time: int) -> _Cml:
    """Return what CML would answer at a time: four nodes a lab; one worker's disk is nearly full, one has no license, on one
    CML does not start."""
    used = 0.94 if worker.name == "cml-iad-03" else 0.3 + 0.4 * share(world, worker.id, "disk")
    ready = status(worker, time) == "running" and worker.name != "cml-dub-02"
    return _Cml(
        ready=ready,
        uptime=time - worker.created_at - 2 * MINUTE if ready else None,
        running_nodes=4 * active_labs(world, worker, time),
        total_nodes=4 * worker.labs + 3,
        disk_used=int(used * 400e9),
        disk_total=int(400e9),
        memory=192 * 2**30,
        licensed=worker.name != "cml-iad-04",
    )


def _checks(worker: DemoWorker, time: int) -> dict[str, Any]:
    """Return what the manager reads from EC2 and keeps of its own, in every generation; one worker's host is impaired."""
    up = status(worker, time) in RUNNING
    return {
        "service_status": "available" if up and worker.name != "cml-dub-02" else "unavailable",
        "ec2_instance_state_detail": "ok" if up else "not-applicable",
        "ec2_system_status_check": ("impaired" if worker.name == "cml-dub-03" else "ok") if up else "not-applicable",
        "cloudwatch_detailed_monitoring_enabled": False,
        "auto_pause_count": 2 if worker.restarts else 0,
    }


def _newest_shape(worker: DemoWorker, labs: int, cml: _Cml) -> dict[str, Any]:
    """Return the value objects of the manager's newest generation."""
    info = {
        "memory_total": cml.memory,
        "disk_total": cml.disk_total,
        "disk_used": cml.disk_used,
        "total_nodes": cml.total_nodes,
        "running_nodes": cml.running_nodes,
    }
    metrics = {
        "version": worker.cml_version,
        "ready": cml.ready,
        "uptime_seconds": cml.uptime,
        "labs_count": labs,
        "system_info": info,
        "system_health": {"valid": cml.licensed, "is_licensed": cml.licensed},
    }
    return {"metrics": metrics, "license": {"status": "REGISTERED" if cml.licensed else "UNREGISTERED", "token": None}}


def _first_shape(worker: DemoWorker, cml: _Cml) -> dict[str, Any]:
    """Return the flat fields of the manager's first generation, with CML's own units: KiB."""
    stats = {
        "disk": {"size_kb": cml.disk_used // 1024, "capacity_kb": cml.disk_total // 1024},
        "memory": {"total_kb": cml.memory // 1024},
        "dominfo": {"running_nodes": cml.running_nodes, "total_nodes": cml.total_nodes},
    }
    return {
        "cml_version": worker.cml_version,
        "cml_ready": cml.ready,
        "cml_uptime_seconds": cml.uptime,
        "cml_system_info": {"compute-1": {"stats": stats}},
        "cml_system_health": {"valid": cml.licensed, "is_licensed": cml.licensed},
        "license_status": "registered" if cml.licensed else "unregistered",
    }


def worker_documents(world: World, time: int) -> Mapping[str, dict[str, Any]]:
    """Return all worker documents at a time, by worker id."""
    return {worker.id: worker_document(world, worker, time) for worker in fleet(world)}


def _last_collected(worker: DemoWorker, time: int) -> int | None:
    """Return the second at which the manager's metrics job last ran for a running instance; it skips others."""
    ended = [end - MINUTE for end in (worker.stopped_at, worker.terminated_at) if end is not None]
    phase = int(worker.instance_id[-4:], 16) % _COLLECT
    newest = align(min(time, *ended) if ended else time, _COLLECT) + phase
    # The pause of a restarting worker is the longest time without a run.
    for at in range(newest, newest - PAUSE - 3 * _COLLECT, -_COLLECT):
        if at <= time and status(worker, at) == "running":
            return at
    return None


def _newest(world: World, worker: DemoWorker, time: int) -> tuple[float | None, float | None]:
    """Return (cpu, memory) of the newest period published at a time, as the manager's metrics job reads them."""
    for period in range(align(time, PERIOD), align(time, PERIOD) - 4 * PERIOD, -PERIOD):
        if published_at(world, worker, period) <= time and ran(worker, period):
            memory = value(world, worker, "memory", period) if worker.agent else None
            return value(world, worker, "cpu", period), memory
    return None, None


def _last_activity(world: World, worker: DemoWorker, time: int) -> int:
    """Return the last minute with an active lab in the last half day, else the time the worker was created."""
    ended = [end for end in (worker.stopped_at, worker.terminated_at) if end is not None]
    newest = align(min(time, *ended) if ended else time, MINUTE)
    if worker.labs:
        for minute in range(newest, newest - DAY // 2, -MINUTE):
            if active_labs(world, worker, minute):
                return minute
    return worker.created_at
