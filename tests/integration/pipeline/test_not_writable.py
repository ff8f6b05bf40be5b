"""MongoDB that can be read but not written: status and labs of every period are kept, and each sample is written once."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pymongo import AsyncMongoClient

from exporter.core.errors import StoreError
from exporter.core.periods import align, to_seconds
from exporter.core.workers_settings import WorkersSettings
from exporter.demo.mongod import Mongod
from exporter.sources.aggregates import Aggregates
from exporter.storage.lease import Lease
from exporter.storage.mongo import Database, Document
from tests.fixtures.mongo import connect, need_mongod
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter
from tests.helpers.reliability import record
from tests.helpers.replica_set import ReplicaSet


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    need_mongod()
    with ReplicaSet(tmp_path_factory.mktemp("three_nodes")) as replica_set:
        yield replica_set


@pytest.fixture
async def replicated(three_nodes: ReplicaSet) -> AsyncIterator[Database]:
    """An empty database on three nodes."""
    async with AsyncMongoClient[Document](three_nodes.uri, tz_aware=True, serverSelectionTimeoutMS=5000) as client:
        yield client[f"test_{uuid.uuid4().hex}"]


async def add_fleet(database: Database, fake: FakeCloudWatch, clock: Clock) -> list[Member]:
    began = int(clock())
    members = [Member(f"worker-{k}", instance_id(k), "eu-west-1", began) for k in range(4)]
    for member in members:
        fake.add(member.instance_id, runs=[(began, None)], agent=member is not members[-1])
    await database["workers"].insert_many([member.aggregate() for member in members])
    return members


async def until_the_lease_has_expired(lease: Lease) -> None:
    await asyncio.sleep(lease.remaining + 0.1)
    assert not lease.held


async def assert_each_once(exporter: InProcessExporter, fake: FakeCloudWatch, members: list[Member], at_least: int) -> None:
    """Compare the history with CloudWatch: each sample once."""
    assert await exporter.assert_history_is_true(fake, members) >= at_least
    keys = Counter((document["worker_id"], to_seconds(document["timestamp"])) for document in await exporter.documents())
    assert set(keys.values()) == {1}


async def assert_nothing_is_lost_or_doubled(
    exporter: InProcessExporter, fake: FakeCloudWatch, members: list[Member], at_least: int
) -> None:
    """The same, and every sample has status and labs."""
    await assert_each_once(exporter, fake, members, at_least)
    states = {(document.get("status"), document.get("active_labs_count")) for document in await exporter.documents()}
    assert states == {("running", 2)}


@pytest.mark.waits(35)
async def test_without_a_majority_no_status_is_lost_by_the_last_leader_its_restart_or_an_exporter_without_a_leader(
    three_nodes: ReplicaSet, replicated: Database, fake: FakeCloudWatch, clock: Clock, tmp_path: Path
) -> None:
    members = await add_fleet(replicated, fake, clock)
    exporter = InProcessExporter(tmp_path / "data", replicated, fake, clock)
    await exporter.round(3)
    assert exporter.lease.held
    lost = list(three_nodes.members[:2])
    for member in lost:
        await asyncio.to_thread(member.kill)
    await asyncio.to_thread(three_nodes.wait_for_no_primary)
    began = align(int(clock()), PERIOD)
    with pytest.raises(StoreError):
        await exporter.lease.acquire_or_renew()
    await until_the_lease_has_expired(exporter.lease)

    await exporter.round(4, mongodb=False)
    await exporter.close()
    exporter = InProcessExporter(tmp_path / "data", replicated, fake, clock)
    other = InProcessExporter(tmp_path / "other", replicated, fake, clock)
    for _ in range(4):
        await exporter.round(1, mongodb=False)
        await other.observe()  # at the time of the poll: within the length of a period after the period's end
    assert not exporter.lease.held
    assert not other.lease.held
    for one in (exporter, other):
        waiting = one.outbox.outbox._rows("state<2", ())
        assert {row.start for row in waiting} >= set(range(began + 4 * PERIOD, began + 8 * PERIOD, PERIOD))
        assert {(row.status, row.active_labs) for row in waiting if row.start >= began + 4 * PERIOD} == {("running", 2)}
    assert exporter.value("cml_exporter_source_up", source="mongodb", region="") == 1
    assert (await exporter.scrape()).count("\ncml_worker_active_labs{") == 4
    await Aggregates(replicated, ["workers"], WorkersSettings()).ping()  # between two reads, or source_up would be 0 in between

    for member in lost:
        await asyncio.to_thread(member.start)
    await asyncio.to_thread(three_nodes.primary)
    await exporter.round(6)
    await assert_nothing_is_lost_or_doubled(exporter, fake, members, 4 * 12)
    assert exporter.value("cml_exporter_samples_lost_total") == 0
    await exporter.lease.release()
    await other.round(4)  # the other exporter takes over with its own samples of the outage: none is written again
    await assert_each_once(other, fake, members, 4 * 14)
    assert (other.value("cml_exporter_mirror_samples_total", result="already_present") or 0) >= 4 * 4
    await exporter.close()
    await other.close()


@pytest.mark.waits(15)
async def test_step_downs_lose_and_double_nothing(
    three_nodes: ReplicaSet, replicated: Database, fake: FakeCloudWatch, clock: Clock, tmp_path: Path
) -> None:
    members = await add_fleet(replicated, fake, clock)
    exporter = InProcessExporter(tmp_path / "data", replicated, fake, clock)
    await exporter.round(2)
    for _ in range(3):
        await asyncio.to_thread(three_nodes.step_down)
        await exporter.round(1, mongodb=False)  # right away, when there is perhaps no primary
        await asyncio.to_thread(three_nodes.primary)
        await exporter.round(1)
    await exporter.round(5)
    await assert_nothing_is_lost_or_doubled(exporter, fake, members, 4 * 8)
    await exporter.close()


@pytest.mark.waits(25)
async def test_an_fsync_lock_loses_no_status(own_replica: Mongod, fake: FakeCloudWatch, clock: Clock, tmp_path: Path) -> None:
    async with connect(own_replica.uri) as client:
        database = client["locked"]
        members = await add_fleet(database, fake, clock)
        exporter = InProcessExporter(tmp_path / "data", database, fake, clock)
        await exporter.round(3)
        await client.admin.command("fsync", 1, lock=True)
        with pytest.raises(StoreError):
            await exporter.lease.acquire_or_renew()
        await until_the_lease_has_expired(exporter.lease)
        await exporter.round(4, mongodb=False)
        assert exporter.value("cml_exporter_source_up", source="mongodb", region="") == 1
        await client.admin.command("fsyncUnlock")
        await exporter.round(6)
        await assert_nothing_is_lost_or_doubled(exporter, fake, members, 4 * 8)
        await exporter.close()
        record("fsync-lock", lost=0, doubled=0)


@pytest.fixture
def own_replica(tmp_path: Path) -> Iterator[Mongod]:
    """A replica set of one node of this test alone, to be locked."""
    need_mongod()
    replica_set = ReplicaSet(tmp_path / "one_node", members=1)
    with replica_set:
        yield replica_set.members[0]


async def test_an_outage_beyond_gap_fill_window_is_counted(
    database: Database, fake: FakeCloudWatch, clock: Clock, tmp_path: Path
) -> None:
    await add_fleet(database, fake, clock)
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.round(2)
    clock.now += exporter.settings.gap_fill_window + 10 * PERIOD
    await exporter.round(1)
    assert exporter.value("cml_exporter_samples_lost_total") == 4 * 12  # the window begins within the twelfth
    await exporter.close()
