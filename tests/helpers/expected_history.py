"""Compare the history with the fake's ledger, as sets of (worker, timestamp, cpu, memory).

Exactly once means: the collection holds every datapoint that CloudWatch ever had, each once, and nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.core.model import METRICS
from exporter.core.periods import align, to_datetime, to_seconds
from tests.helpers.fake_cloudwatch.instances import Instances

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


Values = tuple[float | None, float | None]
"""CPU and memory in percent, at least one of them."""


def expected_values(cloudwatch: Instances, member: Member, end: int, period: int = 300) -> dict[int, Values]:
    """Return what the history must hold of a worker, by the start of the period, of those that begin before `end`.

    That is all that CloudWatch has of its instance since the worker's creation.
    """
    instance = cloudwatch.instances.get((member.region, member.instance_id))
    if instance is None:
        return {}
    first = align(member.created, period)
    cpu, memory = (cloudwatch.final(instance, metric, first, end, period) for metric in METRICS)
    return {start: (cpu.get(start), memory.get(start)) for start in sorted(cpu.keys() | memory.keys())}


def expected_history(cloudwatch: Instances, members: Iterable[Member], end: int, period: int = 300) -> set[Point]:
    """Return the points that the history must hold of all members, see `expected_values`."""
    return {
        (member.worker_id, start, *values)
        for member in members
        for start, values in expected_values(cloudwatch, member, end, period).items()
    }


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


@dataclass
class Comparison:
    """The history compared with CloudWatch's ledger, worker by worker, so that no fleet is too large for the memory.

    Args:
        cloudwatch: has the final values.
        final_before: samples of periods that begin before must exist. Later ones may be missing; those there are must be right.
        end: the history has no period that begins at or after it.
    """

    cloudwatch: Instances
    final_before: int
    end: int
    due: int = 0
    """Samples that must exist."""
    rows: int = 0
    """Documents compared."""
    equal: int = 0
    """Samples that must exist, and do, each with CloudWatch's values."""
    faults: Counter[str] = field(default_factory=Counter)
    """Samples by what is wrong with them: lost, doubled, foreign (CloudWatch has none, or other values), with null."""
    examples: dict[str, str] = field(default_factory=dict)
    """One sample of each fault."""

    def add(self, member: Member, documents: Iterable[Mapping[str, Any]]) -> None:
        """Compare all documents that the history has of one worker."""
        expected = expected_values(self.cloudwatch, member, self.end)
        found = dict[int, Values]()
        for document in documents:
            ((_, start, *values),) = points_of([document])
            self.rows += 1
            if None in document.values():
                self._note("with null", member, start)
            if start in found:
                self._note("doubled", member, start)
            elif expected.get(start) != tuple(values):
                self._note("foreign", member, start)
            found[start] = (values[0], values[1])
        for start, both in expected.items():
            if start < self.final_before:
                self.due += 1
                self.equal += found.get(start) == both
                if start not in found:
                    self._note("lost", member, start)

    def _note(self, fault: str, member: Member, start: int) -> None:
        self.faults[fault] += 1
        self.examples.setdefault(fault, f"{member.worker_id} at {start}")

    def check(self) -> None:
        """Fail unless every sample that must exist does, once and with CloudWatch's values, and nothing else is there.

        Raises:
            AssertionError: the message says how many samples have which fault.
        """
        wrong = [f"{count} {fault}, such as {self.examples[fault]}" for fault, count in sorted(self.faults.items())]
        assert not wrong, f"of {self.due} samples that must exist and {self.rows} in the history: {'; '.join(wrong)}"
        assert self.equal == self.due


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
