"""Compare the history with the fake's ledger, as sets of (worker, timestamp, cpu, memory).

Exactly once means: the collection holds every datapoint that CloudWatch ever had, each once, and nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.core.periods import align, to_datetime, to_seconds
from tests.helpers.fake_cloudwatch import FakeCloudWatch

Point = tuple[str, int, float | None, float | None]
"""Worker id, start of the period in UTC seconds, CPU and memory in percent."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker of a test's fleet and the one instance it runs on."""

    worker_id: str
    instance_id: str
    region: str
    created: int

    def aggregate(self, **more: object) -> dict[str, Any]:
        """Return its worker document (the manager's aggregate), running."""
        return {
            "_id": self.worker_id,
            "name": f"cml {self.worker_id}",
            "aws_region": self.region,
            "aws_instance_id": self.instance_id,
            "status": "running",
            "active_labs_count": 2,
            "created_at": to_datetime(self.created),
            **more,
        }


def expected_history(fake: FakeCloudWatch, members: Iterable[Member], end: int, period: int = 300) -> set[Point]:
    """Return what the history must hold of the periods that begin before `end`: all that CloudWatch has since the creation."""
    members = list(members)
    first = align(min((member.created for member in members), default=end), period)
    ledger = fake.ledger(first, end, period)
    points = set[Point]()
    for member in members:
        for start in range(align(member.created, period), end, period):
            cpu, memory = (ledger.get((member.instance_id, metric, start)) for metric in ("cpu", "memory"))
            if cpu is not None or memory is not None:
                points.add((member.worker_id, start, cpu, memory))
    return points


def points_of(documents: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Return the points of the history's documents."""
    return [
        (
            document["worker_id"],
            to_seconds(document["timestamp"]),
            document.get("cpu_utilization"),
            document.get("memory_utilization"),
        )
        for document in documents
    ]


def assert_true(documents: Sequence[Mapping[str, Any]], points: set[Point], final_before: int) -> int:
    """Fail unless the history holds the expected points; return how many samples before `final_before` were compared.

    Samples of periods from `final_before` on may still be missing, but those that exist must be correct.
    """
    nulls = [document for document in documents if None in document.values()]
    assert not nulls, f"{len(nulls)} documents with a null, such as {nulls[0]}"
    found = points_of(documents)
    twice = [key for key, count in Counter((worker_id, start) for worker_id, start, _, _ in found).items() if count > 1]
    assert not twice, f"{len(twice)} samples exist twice, such as {sorted(twice)[:3]}"
    extra = set(found) - points
    assert not extra, f"{len(extra)} samples CloudWatch never had, such as {sorted(extra, key=str)[:3]}"
    due = {point for point in points if point[1] < final_before}
    missing = due - set(found)
    assert not missing, f"{len(missing)} of {len(due)} samples are missing, such as {sorted(missing, key=str)[:3]}"
    return len(due)


def manager_facts(running_nodes: int, now: int) -> dict[str, Any]:
    """What the manager writes of CML and the machine: of a worker that needs attention in every way."""
    return {
        "service_status": "available",
        "license": {"status": "EXPIRED"},
        "ec2_instance_state_detail": "ok",
        "ec2_system_status_check": "impaired",
        "cloudwatch_detailed_monitoring_enabled": True,
        "auto_pause_count": 3,
        "target_pause_at": to_datetime(now + 3600),
        "metrics": {
            "ready": False,
            "uptime_seconds": 86_400,
            "system_health": {"is_licensed": False},
            "system_info": {
                "memory_total": 2**36,
                "disk_total": 4 * 10**11,
                "disk_used": 38 * 10**10,
                "running_nodes": running_nodes,
                "total_nodes": 8,
            },
        },
    }
