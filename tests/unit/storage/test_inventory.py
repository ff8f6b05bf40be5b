"""Inventory entries, and which instances may have run in a period."""

from dataclasses import replace
from typing import Any

import pytest

from exporter.core.instances import instances_during, updated_entry
from exporter.core.model import InstanceInterval, InventoryEntry, Worker
from exporter.storage.inventory import _only_the_time_is_new

WORKER = Worker(
    id="w1", region="us-east-1", instance_id="i-a", status="running", name="lab one", instance_type="m5.large", created_at=50
)


def candidates(entry: InventoryEntry | None, start: int, end: int) -> tuple[str, ...]:
    return instances_during(entry, Worker("w", "eu-west-1", None, "running"), start, end)[1]


def seen(*steps: tuple[int, str | None]) -> InventoryEntry:
    """Return the entry after reads of WORKER at these times on these instances."""
    entry: InventoryEntry | None = None
    for now, instance in steps:
        entry = updated_entry(entry, replace(WORKER, instance_id=instance), now)
    assert entry is not None
    return entry


def test_a_new_worker_has_one_instance_interval() -> None:
    entry = updated_entry(None, WORKER, 100)
    assert (entry.worker_id, entry.name, entry.first_seen, entry.last_seen, entry.created_at) == ("w1", "lab one", 100, 100, 50)
    assert entry.instances == (InstanceInterval("i-a", "us-east-1", 100, 100),)


def test_a_worker_without_an_instance_has_no_interval() -> None:
    assert seen((100, None)).instances == ()
    assert candidates(seen((100, None)), 0, 300) == ()


def test_the_same_instance_seen_again_only_extends_its_interval() -> None:
    entry = seen((100, "i-a"), (200, "i-a"), (300, "i-a"))
    assert entry.instances == (InstanceInterval("i-a", "us-east-1", 100, 300),)
    assert (entry.first_seen, entry.last_seen) == (100, 300)


def test_a_replaced_instance_has_a_second_interval() -> None:
    assert [(s.instance_id, s.first, s.last) for s in seen((100, "i-a"), (200, "i-b")).instances] == [
        ("i-a", 100, 100),
        ("i-b", 200, 200),
    ]


def test_an_instance_that_returns_has_a_third_interval() -> None:
    instances = seen((100, "i-a"), (200, "i-b"), (300, "i-a")).instances
    assert [(s.instance_id, s.first, s.last) for s in instances] == [("i-a", 100, 100), ("i-b", 200, 200), ("i-a", 300, 300)]


def test_a_worker_document_that_lacks_its_instance_once_ends_no_interval() -> None:
    assert seen((100, "i-a"), (200, None), (300, "i-a")).instances == (InstanceInterval("i-a", "us-east-1", 100, 300),)
    assert seen((100, "i-a"), (200, None)).instances == (InstanceInterval("i-a", "us-east-1", 100, 100),)


def test_a_new_name_replaces_the_old_one_and_a_missing_one_does_not() -> None:
    entry = updated_entry(seen((100, "i-a")), replace(WORKER, name="lab two"), 200)
    assert entry.name == "lab two"
    bare = updated_entry(entry, replace(WORKER, name=None, instance_type=None, created_at=None), 300)
    assert (bare.name, bare.instance_type, bare.created_at) == ("lab two", "m5.large", 50)


def test_a_worker_created_again_under_its_id_is_no_longer_terminated() -> None:
    entry = updated_entry(seen((100, "i-a")), replace(WORKER, status="terminated", terminated_at=190), 200)
    assert entry.terminated_at == 190
    entry = updated_entry(entry, replace(WORKER, status="terminated", terminated_at=None), 250)
    assert entry.terminated_at == 190
    entry = updated_entry(entry, replace(WORKER, instance_id="i-b"), 300)
    assert (entry.terminated_at, entry.status, entry.first_seen) == (None, "running", 100)
    assert [s.instance_id for s in entry.instances] == ["i-a", "i-b"]


def test_a_clock_that_goes_back_never_shortens_an_interval() -> None:
    entry = seen((100, "i-a"), (90, "i-a"))
    assert (entry.last_seen, entry.instances[0].last) == (100, 100)


def test_an_unknown_worker_has_no_candidates() -> None:
    assert candidates(None, 0, 300) == ()


REPLACED = seen((100, "i-a"), (200, "i-a"), (800, "i-b"), (900, "i-b"))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 50, ("i-a",)),  # before the first interval: the first has no lower bound
        (100, 200, ("i-a",)),  # ends while the old one was seen, so the new one cannot have run
        (100, 201, ("i-b", "i-a")),  # the new one may have started within the last second
        (300, 600, ("i-b", "i-a")),  # between two reads, either may have run
        (800, 1100, ("i-b", "i-a")),  # the read at 800 may have been at 800.9
        (801, 1100, ("i-b",)),
        (9000, 9300, ("i-b",)),  # the last has no upper bound
    ],
)
def test_candidates_are_those_between_the_last_read_before_and_the_first_after(
    start: int, end: int, expected: tuple[str, ...]
) -> None:
    assert candidates(REPLACED, start, end) == expected


def test_an_instance_seen_twice_is_one_candidate() -> None:
    entry = seen((100, "i-a"), (200, "i-b"), (300, "i-a"))
    assert candidates(entry, 0, 600) == ("i-a", "i-b")


def test_every_instance_that_could_have_run_is_a_candidate() -> None:
    """Against brute force: worker runs i-0, i-1, … with changes at any second, read every 7 s."""
    for first_change in range(1, 30):
        for second_change in range(first_change, 30):
            running = ["i-0"] * first_change + ["i-1"] * (second_change - first_change) + ["i-2"] * (40 - second_change)
            entry = seen(*((now, running[now]) for now in range(0, 40, 7)))
            names = {s.instance_id for s in entry.instances}
            for start in range(0, 35, 5):
                ran = set(running[start : start + 5]) & names
                assert ran <= set(candidates(entry, start, start + 5)), (first_change, second_change, start)


@pytest.mark.parametrize(
    ("change", "now", "is_same"),
    [
        ({}, 200, True),
        ({"instance_id": None}, 200, True),
        ({"name": None}, 200, True),  # a missing name removes nothing
        ({}, 90, True),  # the clock went back
        ({"name": "lab two"}, 200, False),
        ({"status": "stopped"}, 200, False),
        ({"terminated_at": 150, "status": "terminated"}, 200, False),
        ({"account_id": "123456789012"}, 200, False),
        ({"cml_version": "2.9"}, 200, False),
        ({"instance_id": "i-b"}, 200, False),
        ({"region": "eu-west-1"}, 200, False),
    ],
)
def test_a_read_in_which_only_the_time_is_new_is_told_from_others(change: dict[str, Any], now: int, is_same: bool) -> None:
    before = seen((50, "i-0"), (100, "i-a"))
    worker = replace(WORKER, **{"instance_id": "i-a", **change})
    after = updated_entry(before, worker, now)
    assert _only_the_time_is_new(before, after, bool(worker.cloudwatch_instance)) is is_same
