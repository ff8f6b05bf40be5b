"""Gaps: the runs of periods that the history lacks, with their candidates; what was dropped is no gap again."""

import random
from dataclasses import replace

from exporter.core.instances import instances_during
from exporter.core.model import InstanceInterval, InventoryEntry, Worker
from exporter.pipeline.gaps import Gap, find_gaps, runs
from exporter.pipeline.lifecycle import PendingSample, Rules

RULES = Rules()
P = RULES.period
T = 1_767_225_600
WORKER = Worker("w1", "eu-west-1", "i-1", "running")


def ran(*instances: tuple[str, int, int], region: str = "eu-west-1") -> InventoryEntry:
    intervals = tuple(InstanceInterval(name, region, first, last) for name, first, last in instances)
    return InventoryEntry("w1", region, None, None, None, None, None, "running", 0, 0, intervals)


def gap(first: int, last: int, *instances: str) -> Gap:
    """Periods first to last - 1, counted from T."""
    return Gap("w1", "eu-west-1", instances or ("i-1",), T + first * P, T + last * P)


def found(
    worker: Worker = WORKER, entry: InventoryEntry | None = None, existing: set[int] | None = None, *dropped: Gap
) -> list[Gap]:
    entry = entry or ran(("i-1", T - 300 * P, T))
    return find_gaps(worker, T, entry, existing or set(), dropped, T + 12, RULES)


def test_gaps_are_the_periods_before_next_that_the_history_lacks_inner_holes_too() -> None:
    existing = {T - n * P for n in range(1, 289) if n not in (2, 7, 8)}
    assert found(WORKER, None, existing) == [gap(-8, -6), gap(-2, -1)]


def test_a_whole_day_is_one_gap_back_to_gap_fill_window_and_to_the_creation() -> None:
    assert found() == [gap(-287, 0)]
    assert found(replace(WORKER, created_at=T - 2 * P + 9)) == [gap(-2, 0)]
    assert found(replace(WORKER, created_at=T)) == []


def test_gaps_of_a_terminated_worker_end_with_its_termination() -> None:
    dead = replace(WORKER, status="terminated", terminated_at=T - 3 * P + 1, created_at=T - 5 * P)
    assert found(dead, ran(("i-1", T - 5 * P, T))) == [gap(-5, -2)]


def test_gaps_without_any_instance_are_not_opened() -> None:
    assert find_gaps(replace(WORKER, instance_id=None), T, None, set(), (), T + 12, RULES) == []


def test_what_was_dropped_is_no_gap_again_unless_another_instance_may_have_run() -> None:
    assert found(WORKER, None, None, gap(-287, 0)) == []
    assert found(WORKER, None, None, gap(-287, -10), gap(-4, 0)) == [gap(-10, -4)]
    assert found(WORKER, None, None, gap(-287, -10, "i-9", "i-1")) == [gap(-10, 0)], "all of its candidates had no value"
    assert found(WORKER, None, None, gap(-287, 0, "i-9")) == [gap(-287, 0)]
    assert found(WORKER, None, None, gap(-287, 0)._replace(region="us-east-1")) == [gap(-287, 0)]


def test_each_period_has_the_candidates_of_the_rule_whatever_the_history_has() -> None:
    rng = random.Random(1)
    for _ in range(300):
        at, instances = T - 40 * P, []
        for number in range(rng.randint(1, 4)):
            first = at + rng.randint(0, 5 * P)
            at = first + rng.choice([0, rng.randint(0, 8 * P), rng.randint(0, 8) * P])
            instances.append((f"i-{number}", first, at))
        entry = ran(*instances)
        existing = {T - n * P for n in range(1, 60) if rng.random() < 0.3}
        worker = replace(WORKER, created_at=T - 50 * P)
        expected = {
            start: instances_during(entry, worker, start, start + P)
            for start in range(T - 50 * P, T, P)
            if start not in existing
        }
        gaps = found(worker, entry, existing)
        assert {s: (one.region, one.instances) for one in gaps for s in range(one.start, one.end, P)} == expected
        assert sum((one.end - one.start) // P for one in gaps) == len(expected), "no period twice"


def test_samples_become_runs_of_consecutive_periods_with_the_same_candidates() -> None:
    def sample(at: int, *instances: str, worker: str = "w1") -> PendingSample:
        return PendingSample(worker, T + at * P, "eu-west-1", instances or ("i-1",))

    samples = [sample(3), sample(1), sample(2), sample(5), sample(4, "i-2"), sample(6, worker="w0")]
    assert runs(samples, P) == [
        gap(6, 7)._replace(worker_id="w0"),
        gap(1, 4),
        gap(4, 5, "i-2"),
        gap(5, 6),
    ]
