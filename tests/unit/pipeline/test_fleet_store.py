"""The kept fleet: the last complete read comes back after a restart, and only what changed is written."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.core.model import Worker, WorkerFacts
from exporter.pipeline.fleet_store import FleetStore
from exporter.pipeline.outbox import Outbox

T, P = 1_767_225_600, 300
FIRST = Worker("w1", "eu-west-1", "i-1", "running", extra=(("cml_worker_disk", 0.5),), facts=WorkerFacts(ready=True))
DEAD = Worker("w2", "eu-west-1", None, "terminated", name='O"Neil\n')


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = Outbox(tmp_path, P)
    yield opened
    opened.close()


def written(outbox: Outbox) -> int:
    """How many rows any connection has changed."""
    return outbox._db.total_changes


def test_the_last_fleet_comes_back_and_replaces_the_previous_one(outbox: Outbox) -> None:
    store = FleetStore(outbox)
    assert store.last() == (0, (), {})
    store.keep([FIRST], T, {})
    store.keep([FIRST, DEAD], T + P, {"w2": T + 7})
    assert store.last() == FleetStore(outbox).last() == (T + P, (FIRST, DEAD), {"w2": T + 7})
    store.keep([DEAD], T + 2 * P, {"w2": T + 7})
    assert FleetStore(outbox).last() == (T + 2 * P, (DEAD,), {"w2": T + 7})
    FleetStore(outbox).keep([FIRST], T + 3 * P, {})
    assert FleetStore(outbox).last() == (T + 3 * P, (FIRST,), {})


def test_only_workers_that_changed_are_written(outbox: Outbox) -> None:
    fleet = [replace(FIRST, id=f"w{n}") for n in range(100)]
    store = FleetStore(outbox)
    store.keep(fleet, T, {})
    before = written(outbox)
    store.keep([*fleet[:-1], replace(fleet[-1], cpu=4.0)], T + P, {})
    assert written(outbox) - before == 2, "one worker and the time of the read"
    assert store.last()[1][-1] == replace(fleet[-1], cpu=4.0)


def test_a_failed_write_leaves_the_earlier_read_and_the_next_one_is_whole(outbox: Outbox) -> None:
    store = FleetStore(outbox)
    store.keep([FIRST, DEAD], T, {})

    def fails() -> Iterator[Worker]:
        yield FIRST
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        store.keep(fails(), T + P, {})
    outbox._db.execute("ALTER TABLE fleet RENAME TO elsewhere")
    with pytest.raises(Exception, match="no such table"):
        store.keep([replace(FIRST, cpu=1.0)], T + P, {})
    outbox._db.execute("ALTER TABLE elsewhere RENAME TO fleet")
    assert store.last() == (T, (FIRST, DEAD), {})
    store.keep([replace(FIRST, cpu=1.0)], T + P, {})
    assert store.last() == (T + P, (replace(FIRST, cpu=1.0),), {})


def test_the_read_of_an_earlier_release_has_its_time_in_each_row(outbox: Outbox) -> None:
    FleetStore(outbox).keep([FIRST], T, {})
    outbox._db.execute("DELETE FROM meta WHERE key='fleet_observed'")
    assert FleetStore(outbox).last() == (T, (FIRST,), {})
