"""What an exporter that stood by knows when it writes again: inventory and marker of the exporter that wrote meanwhile."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exporter.core.periods import to_datetime
from exporter.pipeline.history_watch import load_mark
from exporter.storage.inventory import INVENTORY
from exporter.storage.lease import Lease
from exporter.storage.mongo import STATE, Database, Document
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter
from tests.helpers.reliability import record

HISTORY = "worker_metrics_timeseries"
WORKER = "worker-0"
FIRST, SECOND, THIRD = instance_id(1), instance_id(2), instance_id(3)


class Pair:
    """Two exporters on one worker, of which one leads; the worker's instance is replaced while the other stands by."""

    def __init__(self, folder: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> None:
        self.database, self.fake, self.clock = database, fake, clock
        self.exporters = [InProcessExporter(folder / name, database, fake, clock) for name in ("one", "other")]

    async def run_on(self, instance: str) -> None:
        """Have the worker run on another instance from the next period on."""
        self.fake.add(instance, runs=[(int(self.clock()), None)])
        document = {"aws_region": "eu-west-1", "status": "running", "aws_instance_id": instance}
        await self.database["workers"].update_one({"_id": WORKER}, {"$set": document}, upsert=True)

    async def lead(self, leader: InProcessExporter, rounds: int) -> None:
        """Run cycles of the leader, each followed by an observation of the one that stands by."""
        (standby,) = (one for one in self.exporters if one is not leader)
        for _ in range(rounds):
            await leader.round()
            assert not await standby.lease.acquire_or_renew()
            await standby.observe()

    async def instances(self) -> list[str]:
        """Return the instances of the worker that MongoDB knows."""
        entry = await self.database[INVENTORY].find_one({"_id": WORKER})
        return [each["id"] for each in entry["instances"]] if entry else []


@pytest.fixture
async def pair(tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> AsyncIterator[Pair]:
    made = Pair(tmp_path, database, fake, clock)
    await made.run_on(FIRST)
    yield made
    for exporter in made.exporters:
        await exporter.close()


async def test_an_exporter_that_stood_by_keeps_the_instances_that_the_leader_has_seen(pair: Pair) -> None:
    one, other = pair.exporters
    await pair.lead(one, 2)
    await one.lease.release()
    await pair.run_on(SECOND)
    await pair.lead(other, 2)
    await pair.run_on(THIRD)
    await other.lease.release()

    await one.round()  # without `lead`, which the lease's loop calls: nobody may hold the lease when periods are opened
    assert await pair.instances() == [FIRST, SECOND, THIRD], "an inventory of before would have lost the second"
    record("instance-replaced-on-standby", note="2 instances, both known")


async def test_where_no_exporter_can_hold_the_lease_periods_are_opened_with_the_leaders_instances(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair.exporters
    await pair.lead(one, 2)
    await one.lease.release()
    await pair.run_on(SECOND)
    began = int(pair.clock())
    await pair.lead(other, 2)
    ended = int(pair.clock())
    await pair.run_on(THIRD)
    await pair.lead(other, 1)
    monkeypatch.setattr(Lease, "held", property(lambda lease: False))
    monkeypatch.setattr(Lease, "held_elsewhere", property(lambda lease: False))

    await one.round(mongodb=False)
    rows = one.outbox.outbox._rows("state<2", ())
    meanwhile = [row for row in rows if began < row.start < ended - PERIOD]
    assert meanwhile
    assert all(SECOND in row.instances for row in meanwhile), "it ran there, and is in no worker document any more"


async def stored_marker(database: Database) -> Document:
    found = await database[STATE].find_one({"_id": f"marker:{HISTORY}"})
    assert found is not None
    return found


async def test_a_marker_that_another_exporter_moved_on_counts_and_one_older_than_that_is_a_replaced_history(pair: Pair) -> None:
    one, _ = pair.exporters
    await one.round(7)
    namespace = f"{pair.database.name}.{HISTORY}"
    known, state = load_mark(one.outbox.outbox, namespace), pair.database[STATE]
    assert known is not None
    newest = to_datetime(known.newest + 10 * PERIOD)
    await state.update_one({"_id": f"marker:{HISTORY}"}, {"$inc": {"sequence": 100}, "$set": {"newest": newest}})

    await one.mirror_all()  # with nothing to mirror
    taken = load_mark(one.outbox.outbox, namespace)
    assert taken is not None
    assert (taken.sequence, to_datetime(taken.newest)) == (known.sequence + 100, newest)
    assert one.value("cml_exporter_history_replaced_total", reason="backup") == 0

    # A backup of between: newer than what this exporter wrote itself, older than what it has seen.
    await state.update_one({"_id": f"marker:{HISTORY}"}, {"$inc": {"sequence": -50}})
    await one.mirror_all()
    assert one.value("cml_exporter_history_replaced_total", reason="backup") == 1
    assert (await stored_marker(pair.database))["sequence"] > known.sequence + 100
    assert one.errors == []
