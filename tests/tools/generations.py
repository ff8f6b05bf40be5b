"""Write worker documents in the shape of every generation of the manager, and compare all that the exporter makes of them.

    python -m tests.tools.generations

Twelve workers, nine statuses, a real mongod, the exporter's own steps and routes on a simulated clock, and the fake CloudWatch.
Prints worker × field × /metrics × API × history, each "as written" or what differs; exits with 1 on a difference. What is
expected is stated here, without the exporter's parser.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

from exporter.core.model import MetricName
from exporter.core.periods import align, rfc3339
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from exporter.web.application import create_app
from tests.fixtures.mongo import connect
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.generations import DISK_BYTES, DISK_USED, MEMORY_BYTES, WORKERS, Times, Written, document
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter
from tests.helpers.mongod import NO_TTL
from tests.helpers.ports import free_port

NOT_OF_A_WORKER_THAT_DOES_NOT_RUN = frozenset(
    {"labs", "cpu", "memory", "nodes_running", "nodes_total", "ready", "uptime", "disk_used", "disk_ratio", "idle_pause"}
)
"""Fields that /metrics and the API leave out where the status is stopped or terminated."""

ROUNDS = 8
"""Collection cycles until the first sample is final, also without an agent."""
Value = str | float | None
Document = dict[str, Any]


# -- what is expected


def expected(worker: Written, times: Times) -> dict[str, Value]:
    """Return field → value as written, without CloudWatch."""
    unmeasured = worker.memory == 0  # the manager writes 0 where CloudWatch had no datapoint
    values: dict[str, Value] = {
        "status": worker.status,
        "region": worker.region or "",
        "name": f"cml {worker.id}",
        "instance": worker.instance,
        "instance_type": "m5zn.metal",
        "version": None if not worker.synced else "2.7.0" if worker.generation[0] in "fc" else "2.9.1",
        "labs": worker.labs,
        "cpu": None if unmeasured and worker.cpu == 0 else worker.cpu,
        "memory": None if unmeasured else worker.memory,
        "last_activity": times.activity if worker.synced else None,
        "created": times.created,
        "terminated": times.terminated if worker.status == "terminated" else None,
    }
    further: dict[str, Value] = {
        "ready": float(worker.synced),
        "auto_pauses": 2,
        "idle_pause": times.idle_pause,
        "detailed_monitoring": 1,
        "ec2_instance": _known(worker.checks[0], "ok impaired insufficient-data initializing not-applicable"),
        "ec2_system": _known(worker.checks[1], "ok impaired insufficient-data initializing not-applicable"),
        "service_status": _known(worker.service, "available unavailable starting error"),
        "license_status": _known(worker.license, "registered unregistered evaluation expired invalid"),
    }
    if worker.synced:
        further |= {
            "uptime": 86_400,
            "disk_used": DISK_USED,
            "disk_total": DISK_BYTES,
            "disk_ratio": DISK_USED / DISK_BYTES,
            "memory_total": MEMORY_BYTES,
            "nodes_running": worker.nodes[0],
            "nodes_total": worker.nodes[1],
            "licensed": float(worker.license == "registered"),
        }
    absent = worker.generation == "customer"
    return values | {name: None if absent else further.get(name) for name in FIELDS if name not in values}


def _known(stored: object, states: str) -> str:
    text = str(stored["value"] if isinstance(stored, dict) else stored).lower()
    return text if text in states.split() else "unknown"


# -- what is found


class Field(NamedTuple):
    """Where a field is to be found: /metrics, a row of /api/workers, a page of history. None: not there."""

    metric: str
    """Name of the family; where the value is a label of it, with that label after a blank."""
    api: str | None = None
    sample: str | None = None
    """Key of the sample of the first period."""
    worker: str | None = None
    """Key of the page's worker."""
    labels: Mapping[str, str] = {}
    scale: float = 1


def _text(metric: str, api: str, check: str = "") -> Field:
    return Field(f"{metric} state", api, labels={"check": check} if check else {})


FIELDS: Mapping[str, Field] = {
    "status": Field("cml_worker_status status", "status", "status"),
    "region": Field("cml_worker_info region", "region", worker="region"),
    "name": Field("cml_worker_info name", "name", worker="name"),
    "instance": Field("cml_worker_info instance_id", "instance_id"),
    "instance_type": Field("cml_worker_info instance_type", "instance_type", worker="instance_type"),
    "version": Field("cml_worker_info cml_version", "cml_version", worker="cml_version"),
    "labs": Field("cml_worker_active_labs", "active_labs_count", "active_labs_count"),
    "cpu": Field("cml_worker_cpu_utilization_ratio", "cpu_utilization", "cpu_utilization", scale=100),
    "memory": Field("cml_worker_memory_utilization_ratio", "memory_utilization", "memory_utilization", scale=100),
    "last_activity": Field("cml_worker_last_activity_timestamp_seconds", "last_activity_at"),
    "created": Field("cml_worker_created_timestamp_seconds", "created_at", worker="created_at"),
    "terminated": Field("", "terminated_at", worker="terminated_at"),
    "ready": Field("cml_worker_ready", "ready"),
    "uptime": Field("cml_worker_uptime_seconds", "uptime_seconds"),
    "disk_used": Field("cml_worker_disk_used_bytes", "disk_used_bytes"),
    "disk_total": Field("cml_worker_disk_total_bytes", "disk_total_bytes"),
    "disk_ratio": Field("cml_worker_disk_utilization_ratio"),
    "nodes_running": Field("cml_worker_nodes", "nodes_running", labels={"state": "running"}),
    "nodes_total": Field("cml_worker_nodes", "nodes_total", labels={"state": "total"}),
    "licensed": Field("cml_worker_licensed", "licensed"),
    "auto_pauses": Field("cml_worker_auto_pauses", "auto_pauses"),
    "idle_pause": Field("cml_worker_idle_pause_timestamp_seconds", "idle_pause_at"),
    "detailed_monitoring": Field("cml_worker_detailed_monitoring", "detailed_monitoring"),
    "memory_total": Field("cml_worker_memory_total_bytes", "memory_total_bytes"),
    "ec2_instance": _text("cml_worker_ec2_status_check", "ec2_instance_check", "instance"),
    "ec2_system": _text("cml_worker_ec2_status_check", "ec2_system_check", "system"),
    "service_status": _text("cml_worker_service_status", "service_status"),
    "license_status": _text("cml_worker_license_status", "license_status"),
}

_CLOUDWATCH: Mapping[str, MetricName] = {"cpu": "cpu", "memory": "memory"}

NOWHERE = object()
"""The field does not belong to this output."""


@dataclass
class Found:
    """All that the exporter says of the workers."""

    series: dict[tuple[str, str], list[tuple[Mapping[str, str], float]]] = field(default_factory=dict)
    """(family, worker id) → labels and value."""
    rows: dict[str, Document] = field(default_factory=dict)
    """Worker id → row of /api/workers."""
    samples: dict[str, list[Document]] = field(default_factory=dict)
    """Worker id → samples of the first period, by the history route."""
    pages: dict[str, Document] = field(default_factory=dict)
    """Worker id → worker of the page of history."""

    def gauge(self, worker_id: str, where: Field) -> object:
        """Return the value on /metrics."""
        family, _, label = where.metric.partition(" ")
        if not family:
            return NOWHERE
        found = [
            (labels, value)
            for labels, value in self.series.get((family, worker_id), [])
            if where.labels.items() <= labels.items() and (not label or value == 1)
        ]
        if len(found) > 1:
            return f"{len(found)} series"
        if not found:
            return None
        labels, value = found[0]
        return value * where.scale if not label else labels[label] or (None if label != "region" else "")

    def row(self, worker_id: str, where: Field) -> object:
        """Return the value in /api/workers."""
        return _seconds(self.rows.get(worker_id, {}).get(where.api, "no row")) if where.api else NOWHERE

    def sample(self, worker_id: str, where: Field) -> object:
        """Return the value in the history."""
        if where.worker:
            return _seconds(self.pages[worker_id][where.worker])
        if not where.sample:
            return NOWHERE
        samples = self.samples[worker_id]
        return samples[0][where.sample] if len(samples) == 1 else f"{len(samples)} samples"


def _seconds(value: object) -> object:
    """Return the UTC seconds of an RFC 3339 time, any other value as it is."""
    try:
        return datetime.fromisoformat(str(value)).timestamp() if "T" in str(value) else value
    except ValueError:
        return value


async def read(exporter: InProcessExporter, first: int) -> Found:
    """Read /metrics, /api/workers and the history of every worker."""
    found = Found()
    for family in text_string_to_metric_families(await exporter.scrape()):
        for sample in family.samples:
            if "worker_id" in sample.labels:
                found.series.setdefault((sample.name, sample.labels["worker_id"]), []).append((sample.labels, sample.value))
    transport = httpx.ASGITransport(app=create_app(exporter.backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
        listed = (await client.get("/api/workers")).raise_for_status().json()
        found.rows = {row["worker_id"]: row for row in listed["data"]}
        for worker in WORKERS:
            window = {"start": rfc3339(first), "end": rfc3339(first + PERIOD)}
            page = (await client.get(f"/api/workers/{worker.id}/metrics/history", params=window)).raise_for_status().json()
            found.samples[worker.id], found.pages[worker.id] = page["data"], page["worker"]
    return found


# -- the comparison


class Row(NamedTuple):
    """One field of one worker: what /metrics, API and history have, in words."""

    worker: str
    generation: str
    field: str
    gauge: str
    api: str
    history: str

    @property
    def differs(self) -> bool:
        """Whether one of them is not as written."""
        return any("expected" in cell for cell in (self.gauge, self.api, self.history))


async def compare(database: Database, fake: FakeCloudWatch, clock: Clock, folder: Path) -> list[Row]:
    """Write the documents, run the exporter until the first samples are final, and return every field of every worker."""
    times = Times(align(int(clock()), PERIOD))
    clock.now = times.first
    for worker in WORKERS:
        if worker.in_cloudwatch and worker.instance:
            until = times.terminated if worker.status == "terminated" else None
            fake.add(worker.instance, worker.region or "", runs=[(times.created, until)])
    exporter = InProcessExporter(folder, database, fake, clock)
    try:
        for number in range(ROUNDS):
            collected_at = times.first + number * PERIOD + 240
            for worker in WORKERS:
                written = document(worker, times, collected_at)
                await database["cml_workers"].replace_one({"_id": worker.id}, written, upsert=True)
            await exporter.round()
        if exporter.errors:
            raise AssertionError(f"the exporter failed: {exporter.errors}")
        found = await read(exporter, times.first)
    finally:
        await exporter.close()
    newest = times.first + (ROUNDS - 1) * PERIOD
    return [row for worker in WORKERS for row in _rows(worker, expected(worker, times), found, fake, times.first, newest)]


def _rows(
    worker: Written, values: Mapping[str, Value], found: Found, fake: FakeCloudWatch, first: int, newest: int
) -> Iterable[Row]:
    for name, where in FIELDS.items():
        idle = worker.status in ("stopped", "terminated") and name in NOT_OF_A_WORKER_THAT_DOES_NOT_RUN
        shown, stored = values[name], values[name]
        metric = _CLOUDWATCH.get(name)
        if metric and worker.in_cloudwatch and worker.instance:
            shown, stored = (fake.value(worker.instance, metric, start) for start in (newest, first))
        gauge = _cell(found.gauge(worker.id, where), None if idle else shown)
        api = _cell(found.row(worker.id, where), None if idle else shown)
        yield Row(worker.id, worker.generation, name, gauge, api, _cell(found.sample(worker.id, where), stored))


def _cell(found: object, wanted: Value) -> str:
    if found is NOWHERE:
        return "–"
    same = found == wanted
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        same = abs(found - wanted) <= 1e-9 * max(1, abs(wanted))
    if same:
        return "as written" if wanted is not None else "absent, as it must"
    return f"{found!r}, expected {wanted!r}"


def show(rows: Sequence[Row], say: Callable[[str], None]) -> None:
    """Print the table, the rows that differ again, and the figures."""
    heading = Row("worker", "generation", "field", "/metrics", "API", "history")
    widths = [max(len(row[column]) for row in (heading, *rows)) for column in range(len(heading))]
    for row in (heading, *rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    different = [row for row in rows if row.differs]
    for row in different:
        say(f"DIFFERS: {'  '.join(row)}")
    statuses = len({worker.status for worker in WORKERS})
    say(f"{len(WORKERS)} workers, {statuses} statuses, {len(rows)} rows: {len(different)} differ")


async def run(folder: Path) -> list[Row]:
    """Compare on a mongod and a fake CloudWatch of its own, in `folder`."""
    clock = Clock(time.time())
    with Mongod(folder / "mongod", free_port(), parameters=NO_TTL) as mongod, FakeCloudWatch(now=clock) as fake:
        async with connect(mongod.uri) as client:
            return await compare(client["cml_cloud_manager"], fake, clock, folder / "exporter")


def main() -> int:
    """Print the table; return 1 if anything is not as written."""
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "AKIAGENERATIONS",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(run(Path(folder)))
    show(rows, print)
    return 1 if any(row.differs for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
