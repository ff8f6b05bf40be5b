"""Worker documents in the shape of every generation of the manager: twelve workers with nine statuses."""

from dataclasses import dataclass
from typing import Any, Literal

from exporter.core.periods import rfc3339, to_datetime
from tests.helpers.fake_cloudwatch import instance_id

MEMORY_BYTES, DISK_BYTES, DISK_USED = 64 * 2**30, 500 * 10**9, 125 * 10**9

Document = dict[str, Any]
Generation = Literal["flat", "flat under state", "customer", "in-between", "nested"]


@dataclass(frozen=True)
class Written:
    """One worker as the manager knows it. Percent, counts, UTC seconds; None: the document does not have it."""

    id: str
    generation: Generation
    status: str
    """As an exporter must read it."""
    stored: object = None
    """As the document holds it, where that differs."""
    region: str | None = "eu-west-1"
    number: int = 0
    """Of the instance; 0: none."""
    labs: int | None = 3
    cpu: float | None = 41.5
    memory: float | None = 63.25
    in_cloudwatch: bool = False
    """CloudWatch has datapoints, which win over the document's values."""
    synced: bool = True
    """Whether the manager has reached the worker's API."""
    nodes: tuple[int, int] = (7, 9)
    license: object = "registered"
    service: object = "available"
    checks: tuple[str, str] = ("ok", "impaired")

    @property
    def instance(self) -> str | None:
        """The EC2 instance."""
        return instance_id(self.number) if self.number else None


WORKERS = (
    Written("w01", "flat", "running", number=1, in_cloudwatch=True),
    Written("w02", "flat", "stopped", number=2, labs=4, cpu=1.5, checks=("not-applicable", "not-applicable")),
    Written("w03", "flat under state", "running", {"value": "running"}, number=3, labs=0, cpu=0.0, memory=12.5),
    Written("w04", "flat under state", "terminated", number=4, labs=2, in_cloudwatch=True, service="unavailable"),
    Written("w05", "customer", "running", "RUNNING", number=5, cpu=45.2, memory=62.8),
    Written("w06", "customer", "stopping", number=6, labs=1),
    Written("w07", "customer", "failed", region=None, number=7, labs=5, cpu=99.5),
    Written("w08", "in-between", "shutting-down", "SHUTTING_DOWN", number=8, labs=6, cpu=0.0, memory=0.0, license="expired"),
    Written(
        "w09", "in-between", "starting", {"value": "starting"}, number=9, license={"value": "EVALUATION"}, service="starting"
    ),
    Written("w10", "nested", "running", number=10, region="us-east-1", in_cloudwatch=True, labs=12, nodes=(0, 30)),
    Written(
        "w11", "nested", "pending", labs=0, cpu=None, memory=None, synced=False, license="unregistered", service="unavailable"
    ),
    Written(
        "w12", "nested", "unknown", "hibernating", number=12, license="leased", service="broken", checks=("odd", "initializing")
    ),
)


# -- the documents


@dataclass(frozen=True)
class Times:
    """The UTC seconds in the documents, from the start of the first sample."""

    first: int

    @property
    def created(self) -> int:
        return self.first - 7200

    @property
    def activity(self) -> int:
        return self.first - 600

    @property
    def idle_pause(self) -> int:
        return self.first + 5400

    @property
    def terminated(self) -> int:
        return self.first + 200


def document(worker: Written, times: Times, collected_at: int) -> Document:
    """Return the document of a worker in the shape of its generation."""
    common: Document = {
        "id": worker.id,
        "name": f"cml {worker.id}",
        "aws_region": worker.region,
        "aws_instance_id": worker.instance,
        "instance_type": "m5zn.metal",
        "status": worker.stored or worker.status,
        "created_at": to_datetime(times.created),
        "updated_at": to_datetime(collected_at),
        "terminated_at": to_datetime(times.terminated) if worker.status == "terminated" else None,
        "last_activity_at": rfc3339(times.activity) if worker.synced else None,
        "cloudwatch_last_collected_at": to_datetime(collected_at),
    }
    if worker.generation == "customer":
        own = {"cpu_utilization": worker.cpu, "memory_utilization": worker.memory, "active_labs_count": worker.labs}
        return {"_id": worker.id, **common, **own, "cml_version": "2.7.0"}
    common |= {
        "service_status": worker.service,
        "ec2_instance_state_detail": worker.checks[0],
        "ec2_system_status_check": worker.checks[1],
        "cloudwatch_cpu_utilization": worker.cpu,
        "cloudwatch_memory_utilization": worker.memory,
        "cloudwatch_detailed_monitoring_enabled": True,
        "poll_interval": 300,
        "auto_pause_count": 2,
        "target_pause_at": to_datetime(times.idle_pause),
    }
    if worker.generation in ("flat", "flat under state"):
        flat = {**common, **_flat(worker)}
        return {"_id": worker.id, **flat} if worker.generation == "flat" else {"_id": worker.id, "state": flat}
    raw = worker.generation == "in-between"
    return {
        "_id": worker.id,
        **common,
        "metrics": _metrics(worker, raw=raw),
        "license": {"status": worker.license, "token": "t"},
    }


def _flat(worker: Written) -> Document:
    return {
        "cml_version": "2.7.0",
        "license_status": worker.license,
        "cml_system_info": _computes(worker, kilobytes=True),
        "cml_system_health": {"valid": True, "is_licensed": worker.license == "registered", "is_enterprise": True},
        "cml_ready": True,
        "cml_uptime_seconds": 86_400,
        "cml_labs_count": worker.labs,
    }


def _metrics(worker: Written, *, raw: bool) -> Document:
    if not worker.synced:
        unsynced = dict.fromkeys(("version", "uptime_seconds", "last_synced_at", "system_info", "system_health"))
        return {"ready": False, "labs_count": worker.labs, **unsynced}
    running, total = worker.nodes
    summary = {
        "cpu_count": 48,
        "memory_total": MEMORY_BYTES,
        "memory_free": MEMORY_BYTES // 2,
        "memory_used": MEMORY_BYTES // 2,
        "disk_total": DISK_BYTES,
        "disk_free": DISK_BYTES - DISK_USED,
        "disk_used": DISK_USED,
        "running_nodes": running,
        "total_nodes": total,
        "computes": _computes(worker, kilobytes=False),
    }
    return {
        "version": "2.9.1",
        "ready": True,
        "uptime_seconds": 86_400,
        "labs_count": worker.labs,
        "last_synced_at": None,
        "system_info": _computes(worker, kilobytes=False) if raw else summary,
        "system_health": {"valid": True, "is_licensed": worker.license == "registered", "is_enterprise": True},
    }


def _computes(worker: Written, *, kilobytes: bool) -> Document:
    running, total = worker.nodes
    memory = {"total_kb": MEMORY_BYTES // 1024, "available_kb": MEMORY_BYTES // 2048}
    if not kilobytes:
        memory = {"total": MEMORY_BYTES, "free": MEMORY_BYTES // 2, "used": MEMORY_BYTES // 2}
    disk = {"total": DISK_BYTES, "used": DISK_USED}
    dominfo = {"running_nodes": running, "total_nodes": total}
    return {"c-1": {"hostname": "cml", "stats": {"cpu": {"percent": 9.0}, "memory": memory, "disk": disk, "dominfo": dominfo}}}
