"""What one exporter polls of CloudWatch, shown by the exporters that stand by: AWS bills it once."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from exporter.app import build
from exporter.core.errors import StoreError
from exporter.core.periods import align, to_seconds
from exporter.core.settings import Settings
from exporter.pipeline import shared_snapshot
from exporter.storage.mongo import STATE, Database
from exporter.storage.privileges import least_role
from tests.fixtures.mongo import AuthMongod, connect
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter, series

CPU, MEMORY = "cml_worker_cpu_utilization_ratio{", "cml_worker_memory_utilization_ratio{"
URI = "mongodb://127.0.0.1:1/unused"
TIME = "cml_exporter_leader_snapshot_timestamp_seconds"


def worker_lines(text: str) -> list[str]:
    """Return the series of the workers, without the times at which each exporter has read the worker documents itself."""
    return [line for line in text.splitlines() if line.startswith("cml_worker_") and 'metric="state"' not in line]


class Replicas:
    """A leader and a standby on three workers."""

    def __init__(self, folder: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> None:
        self.folder, self.database, self.fake, self.clock = folder, database, fake, clock
        self.began = int(clock())
        self.members = [Member(f"worker-{k}", instance_id(k), "eu-west-1", self.began - 6 * PERIOD) for k in range(3)]
        self.leader, self.standby = self.make("leader"), self.make("standby")

    def make(self, name: str) -> InProcessExporter:
        return InProcessExporter(self.folder / name, self.database, self.fake, self.clock, absence_timeout="1h", shares=True)

    async def round(self, count: int = 1) -> None:
        """Run cycles of the leader, each followed by one of the standby, with what their loops do in between."""
        for _ in range(count):
            await self.leader.round()
            assert not await self.standby.lease.acquire_or_renew()
            assert await self.leader.lease.acquire_or_renew()
            await self.leader.share()
            await self.standby.observe()
            await self.standby.share()
            await self.standby.ask()

    def billed(self, exporter: InProcessExporter) -> float:
        return exporter.value("cml_exporter_cloudwatch_metrics_requested_total", region="eu-west-1") or 0.0


@pytest.fixture
async def replicas(tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> AsyncIterator[Replicas]:
    made = Replicas(tmp_path, database, fake, clock)
    for member in made.members:
        fake.add(member.instance_id, runs=[(member.created, None)])
    await database["workers"].insert_many([member.aggregate() for member in made.members])
    yield made
    await made.leader.close()
    await made.standby.close()


async def test_a_standby_shows_what_the_leader_polled_and_polls_nothing(replicas: Replicas) -> None:
    await replicas.round(4)
    leader, standby = await replicas.leader.scrape(), await replicas.standby.scrape()
    assert len(series(standby, CPU)) == len(series(standby, MEMORY)) == 3
    assert worker_lines(standby) == worker_lines(leader)
    assert series(standby, TIME) == {TIME: replicas.clock()}
    assert series(leader, TIME) == {}
    assert replicas.billed(replicas.leader) > 0
    assert replicas.billed(replicas.standby) == 0
    assert "cml_exporter_cloudwatch_requests_total{" not in standby, "neither GetMetricData nor ListMetrics"
    assert 'cml_exporter_source_up{region="eu-west-1"' not in standby, "what is not polled is neither up nor down"
    replicas.clock.now += 12
    condition = replicas.standby.backend.conditions()["cloudwatch"]
    assert (condition.error, condition.note) == (None, "stands by: serves the leader's snapshot of 12s ago")
    assert replicas.standby.errors == replicas.leader.errors == []


async def test_an_exporter_alone_writes_no_snapshot(replicas: Replicas) -> None:
    await replicas.leader.round(2)
    await replicas.leader.share()
    assert await replicas.database[STATE].count_documents({"_id": {"$regex": "snapshot"}}) == 0

    await replicas.round()
    assert await replicas.database[STATE].count_documents({"_id": "snapshot:mirror"}) == 1


async def test_a_snapshot_that_is_not_renewed_is_left_for_ones_own_polls_until_there_is_a_newer_one(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    await replicas.round(2)
    await replicas.standby.round(mongodb=False)
    assert replicas.billed(replicas.standby) == 0, "it is one interval old"

    await replicas.standby.round(mongodb=False)
    await replicas.standby.round(mongodb=False)
    assert replicas.billed(replicas.standby) == 2 * 3 * 2, "two cycles of three workers with two metrics"
    assert replicas.standby.backend.conditions()["cloudwatch eu-west-1"].error is None
    assert "cloudwatch" not in replicas.standby.backend.conditions()
    text = await replicas.standby.scrape()
    assert series(text, TIME) == {}
    assert set(series(text, "cml_worker_sample_timestamp_seconds{").values()) >= {align(int(replicas.clock()), PERIOD)}

    before = replicas.billed(replicas.standby)
    await replicas.round(2)
    assert replicas.billed(replicas.standby) == before
    assert "cloudwatch" in replicas.standby.backend.conditions()


async def test_a_standby_polls_where_the_leader_leaves_no_snapshot(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader of an older version, one with `standby: poll`, or one that may not write."""
    monkeypatch.setattr(shared_snapshot, "FIRST_SNAPSHOT_SECONDS", 0.1)
    await replicas.leader.round()
    assert not await replicas.standby.lease.acquire_or_renew()
    await replicas.standby.observe()
    await replicas.standby.share()
    await replicas.standby.ask()
    assert len(series(await replicas.standby.scrape(), CPU)) == 3
    assert replicas.billed(replicas.standby) > 0


async def test_a_damaged_snapshot_is_replaced_by_the_next(replicas: Replicas) -> None:
    await replicas.round(2)
    await replicas.leader.round()
    assert await replicas.leader.lease.acquire_or_renew()
    await replicas.leader.share()
    await replicas.database[STATE].update_one({"_id": "snapshot:mirror"}, {"$set": {"columns": b"?"}})
    await replicas.standby.share()
    assert series(await replicas.standby.scrape(), TIME)[TIME] < replicas.clock(), "the one before"

    await replicas.round()
    assert series(await replicas.standby.scrape(), TIME)[TIME] == replicas.clock()
    assert replicas.billed(replicas.standby) == 0


async def test_a_standby_that_takes_over_mirrors_what_the_leader_had_not_within_one_interval(replicas: Replicas) -> None:
    await replicas.round(6)
    mirrored = len(await replicas.leader.documents())
    await replicas.leader.lease.release()  # it is gone, with its outbox

    standby = replicas.standby
    assert await standby.lease.acquire_or_renew()
    standby.collector.lead()
    await standby.round(1)
    final = align(int(replicas.clock()), PERIOD) - 2 * PERIOD  # the newest period that ended more than settle_delay ago
    documents = await standby.documents()
    assert len(documents) > mirrored
    created = replicas.members[0].created
    assert {to_seconds(document["timestamp"]) for document in documents} == set(range(created, final + PERIOD, PERIOD))
    assert len(documents) == 3 * ((final - created) // PERIOD + 1)


async def test_after_each_change_of_the_leader_one_exporter_polls(replicas: Replicas) -> None:
    await replicas.round(3)
    for _ in range(3):
        await replicas.leader.lease.release()
        assert await replicas.standby.lease.acquire_or_renew()
        replicas.leader, replicas.standby = replicas.standby, replicas.leader
        replicas.leader.collector.lead()
        before = replicas.billed(replicas.standby)
        await replicas.round(3)
        assert replicas.billed(replicas.standby) == before
    assert series(await replicas.standby.scrape(), CPU) == series(await replicas.leader.scrape(), CPU)


async def test_a_standby_that_may_only_read_mongodb_polls(
    mongo_auth: AuthMongod, tmp_path: Path, fake: FakeCloudWatch, clock: Clock
) -> None:
    name = "reads_only"
    privileges = [privilege | {"actions": ["find"]} for privilege in least_role(name) if privilege["resource"]["collection"]]
    member = Member("worker-0", instance_id(0), "eu-west-1", int(clock()) - PERIOD)
    fake.add(member.instance_id, runs=[(member.created, None)])
    async with connect(mongo_auth.root_uri) as root, connect(mongo_auth.user(name, privileges)) as client:
        await root[name]["workers"].insert_one(member.aggregate())
        leader = InProcessExporter(tmp_path / "leader", root[name], fake, clock, shares=True)
        standby = InProcessExporter(tmp_path / "standby", client[name], fake, clock, shares=True)
        await leader.round(2)
        with pytest.raises(StoreError, match="does not allow this user `update`"):
            await standby.lease.acquire_or_renew()
        await leader.share()
        await standby.observe()
        await standby.share()
        await standby.ask()
        assert len(series(await standby.scrape(), CPU)) == 1
        assert "cloudwatch" not in standby.backend.conditions()
        for exporter in (leader, standby):
            await exporter.close()


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, True),
        ({"cloudwatch": {"standby": "poll"}}, False),
        ({"cloudwatch": {"enabled": False}}, False),
        ({"mongodb": {"uri": URI, "history": None}}, False),
    ],
)
async def test_an_exporter_shares_unless_it_is_told_to_poll_or_has_nothing_to_share(
    settings: dict[str, Any], shares: bool, tmp_path: Path, aws_credentials: None
) -> None:
    exporter = build(Settings.model_validate({"mongodb": {"uri": URI}, "data_dir": str(tmp_path), **settings}))
    assert (exporter.collector.shared is not None) == shares
    assert exporter._lease._announces == shares
    await exporter._close()
    await exporter.backend.close()
