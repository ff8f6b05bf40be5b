"""Several exporters divide a fleet: together they do what one does, and another division loses, doubles and bills nothing."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from exporter.core.periods import align, to_datetime
from exporter.core.shards import shard_of
from exporter.pipeline.observer import OBSERVE_OFFSET_SECONDS
from exporter.pipeline.poller import POLL_OFFSET_SECONDS
from exporter.storage.mongo import STATE, Database
from exporter.web.application import create_app
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter

REGIONS = ("eu-west-1", "us-east-1")
WORKERS = 20
BEFORE, AFTER = 3, 6
"""Cycles before a change of the division, and after it, when the samples of the periods around it are final."""
Queried = Counter[tuple[str, str, str]]


class DividedFleet:
    """Exporters on one clock, one CloudWatch and one database, and the workers that they divide."""

    def __init__(self, folder: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> None:
        self.folder, self.database, self.fake, self.clock = folder, database, fake, clock
        self.began = int(clock())
        self.members: list[Member] = []

    async def add_workers(self, count: int = WORKERS) -> None:
        for number in range(len(self.members), len(self.members) + count):
            member = Member(f"worker-{number}", instance_id(number), REGIONS[number % 2], self.began)
            self.fake.add(member.instance_id, member.region, runs=[(self.began, None)], agent=number % 5 != 4)
            self.members.append(member)
        await self.database["workers"].insert_many([member.aggregate() for member in self.members[-count:]])

    def exporter(self, folder: int | str, **workers: object) -> InProcessExporter:
        """An exporter of these settings of `workers`, with the data folder of that name."""
        return InProcessExporter(self.folder / str(folder), self.database, self.fake, self.clock, workers=workers)

    def shards(self, count: int) -> list[InProcessExporter]:
        return [self.exporter(index, shard=f"{index}/{count}") for index in range(count)]

    async def cycles(self, exporters: Iterable[InProcessExporter], count: int = 1) -> Queried:
        """Run so many collection cycles of all of them at once; return what CloudWatch was asked for, how often."""
        self.fake.reset()
        exporters = list(exporters)
        for _ in range(count):
            boundary = align(int(self.clock()), PERIOD) + PERIOD
            self.clock.now = boundary + OBSERVE_OFFSET_SECONDS
            for one in exporters:
                await one.lease.acquire_or_renew()
            for one in exporters:
                await one.observe()
                await one.exchange()
            for one in exporters:  # it comes every few seconds
                await one.exchange()
            self.clock.now = boundary + POLL_OFFSET_SECONDS
            for one in exporters:
                await one.ask()
                await one.lease.acquire_or_renew()  # its 30 seconds are the machine's, which may be busy
                await one.mirror_all()
        assert [error for one in exporters for error in one.errors] == []
        return Counter(self.fake.queried)

    async def stop(self, exporters: Iterable[InProcessExporter], *, kill: bool = False) -> None:
        """End exporters; one that is killed keeps its lease until it expires."""
        for one in exporters:
            if not kill:
                await one.lease.release()
            await one.close()

    async def expire_leases(self) -> None:
        past = {"$set": {"expires": to_datetime(0)}}
        await self.database[STATE].update_many({"_id": {"$regex": "^lease:mirror"}}, past)

    async def assert_complete(self, exporter: InProcessExporter) -> None:
        """Compare the history with the ledger; every sample has the status that was observed, so none is a filled gap."""
        assert await exporter.assert_history_is_true(self.fake, self.members) > 0
        assert [d for d in await exporter.documents() if "status" not in d] == []

    async def waiting(self) -> int:
        """How many workers were handed over and not taken."""
        pieces = self.database[STATE].find({"_id": {"$regex": "^handover:"}})
        return sum([len(piece["workers"]) async for piece in pieces])


@asynccontextmanager
async def closing(*exporters: InProcessExporter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for one in exporters:
            await one.close()


def once(queried: Queried, cycles: int) -> bool:
    """Whether every metric of the fleet was billed once in each cycle: 16 of the 20 workers have an agent."""
    return len(queried) == WORKERS + WORKERS * 4 // 5 and set(queried.values()) == {cycles}


async def test_four_shards_do_and_cost_what_one_exporter_does(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    fleet = DividedFleet(tmp_path, database, fake, clock)
    await fleet.add_workers()
    shards = fleet.shards(4)
    async with closing(*shards):
        assert once(await fleet.cycles(shards, AFTER), AFTER)
        await fleet.assert_complete(shards[0])
        shown = [{gauge.worker.id for gauge in one.collector.snapshot.workers} for one in shards if one.collector.snapshot]
        assert sum(map(len, shown)) == len(set[str]().union(*shown)) == WORKERS
        for index, ids in enumerate(shown):
            assert {shard_of(id_, 4) for id_ in ids} == {index}
        for one, ids in zip(shards, shown, strict=True):
            transport = httpx.ASGITransport(app=create_app(one.backend))
            async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
                listed = (await client.get("/api/workers")).json()["data"]
            assert {(each["worker_id"], each["status"]) for each in listed} == {(id_, "running") for id_ in ids}, (
                "and none has left"
            )
        assert [one.lease.held for one in shards] == [True] * 4
        assert {one.lease.id for one in shards} == {f"lease:mirror:{index}/4" for index in range(4)}


async def test_whole_documents_are_read_of_the_own_shard_alone(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """Of the others only what decides whose they are; so a field that is malformed there is not complained about here."""
    fleet = DividedFleet(tmp_path, database, fake, clock)
    await fleet.add_workers()
    await database["workers"].update_many({}, {"$set": {"active_labs_count": "many"}})
    await database["workers"].insert_one({"_id": ""})
    shards = fleet.shards(4)
    async with closing(*shards):
        for index, one in enumerate(shards):
            read = await one.aggregates.read()
            about = {member.worker_id for member in fleet.members if any(member.worker_id + "'" in c for c in read.complaints)}
            assert about == {worker.id for worker in read.workers}
            assert read.elsewhere.keys() == {member.worker_id for member in fleet.members} - about
            assert read.skipped == ({"no_id": 1} if index == 0 else {}), "one exporter reports a document without an id"


async def test_from_four_to_five_shards_nothing_is_lost_doubled_or_billed_twice(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """All stop between two cycles, and five start, four of them with the folders there are."""
    fleet = DividedFleet(tmp_path, database, fake, clock)
    await fleet.add_workers()
    four = fleet.shards(4)
    assert once(await fleet.cycles(four, BEFORE), BEFORE)
    held = sum(one.outbox.outbox.counts()["observed"] for one in four)
    assert held > WORKERS, "there is something to hand over"
    await fleet.stop(four)
    five = fleet.shards(5)
    async with closing(*five):
        assert once(await fleet.cycles(five, AFTER), AFTER)
        await fleet.assert_complete(five[0])
        assert [one.lease.held for one in five] == [True] * 5
        assert await fleet.waiting() == 0
        moved = {member.worker_id for member in fleet.members if shard_of(member.worker_id, 5) == 4}
        assert set(five[4].outbox.outbox.states()) == moved
        for one in five[:4]:
            assert not moved & (one.outbox.outbox.states().keys() | one.outbox.outbox.workers())


@pytest.mark.nightly("test_from_four_to_five_shards_nothing_is_lost_doubled_or_billed_twice")
@pytest.mark.timeout(1200)
async def test_from_one_to_sixteen_shards_nothing_is_lost_doubled_or_billed_twice(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """One more after each cycle."""
    fleet = DividedFleet(tmp_path, database, fake, clock)
    await fleet.add_workers()
    exporters = fleet.shards(1)
    assert once(await fleet.cycles(exporters, 3), 3)
    for count in range(2, 17):
        await fleet.stop(exporters)
        exporters = fleet.shards(count)
        assert once(await fleet.cycles(exporters), 1), count
    async with closing(*exporters):
        assert once(await fleet.cycles(exporters, 6), 6)
        await fleet.assert_complete(exporters[0])
        assert await fleet.waiting() == 0


async def test_a_change_of_the_division_waits_for_the_last_exporter_of_the_old_one(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """They are restarted one after the other; those of both kinds never collect together, and none of the samples is a gap."""
    fleet = DividedFleet(tmp_path, database, fake, clock)
    await fleet.add_workers()
    old = fleet.shards(4)
    await fleet.cycles(old, BEFORE)
    new: list[InProcessExporter] = []
    while old:
        await fleet.stop([old.pop(0)])
        new.append(fleet.exporter(len(new), shard=f"{len(new)}/5"))
        for one in new:
            await one.lease.acquire_or_renew()
            assert one.layout.in_force == one.lease.held == (not old)
            assert one.collector.snapshot is None or not one.collector.snapshot.workers
            await one.observe()
            await one.exchange()
            assert bool(one.collector.fleet.workers) == (not old)
            if old:  # all that it held is on the way to the exporters of the new division
                assert (one.outbox.outbox.states(), one.outbox.outbox.workers()) == ({}, set())
    new.append(fleet.exporter(4, shard="4/5"))
    async with closing(*new):
        assert once(await fleet.cycles(new, AFTER), AFTER)
        await fleet.assert_complete(new[0])
        assert await fleet.waiting() == 0


async def test_an_exporter_of_the_old_division_that_was_away_hands_over_what_it_has_and_stops_polling(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """It was paused, or cut off from MongoDB, until its lease had expired and the others were five."""
    fleet = DividedFleet(tmp_path, database, fake, clock)
    await fleet.add_workers()
    old = fleet.shards(4)
    await fleet.cycles(old, BEFORE)
    await fleet.stop(old[:3])
    await fleet.expire_leases()
    away = old[3]
    five = [*(fleet.exporter(index, shard=f"{index}/5") for index in range(3)), fleet.exporter("new", shard="3/5")]
    five.append(fleet.exporter(4, shard="4/5"))
    async with closing(away, *five):
        for one in five:
            assert await one.lease.acquire_or_renew()
        assert once(await fleet.cycles([away, *five], AFTER), AFTER)
        assert not away.layout.in_force
        assert not away.lease.held
        assert away.collector.fleet.workers == ()
        assert (away.outbox.outbox.states(), away.outbox.outbox.workers()) == ({}, set())
        await fleet.assert_complete(five[0])
        assert await fleet.waiting() == 0


@pytest.mark.nightly("test_from_four_to_five_shards_nothing_is_lost_doubled_or_billed_twice")
async def test_killed_exporters_are_replaced_by_another_number_and_at_last_by_one(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """From four to five, to two, to one; each time all are killed, and their leases expire. Folders left over stay away."""
    fleet = DividedFleet(tmp_path, database, fake, clock)
    await fleet.add_workers()
    exporters = fleet.shards(4)
    await fleet.cycles(exporters, BEFORE)
    for count in (5, 2, 1):
        await fleet.stop(exporters, kill=True)
        exporters = fleet.shards(count)
        assert not any([await one.lease.acquire_or_renew() for one in exporters[1:]]), "others hold their leases"
        await fleet.expire_leases()
        assert once(await fleet.cycles(exporters, AFTER), AFTER)
    async with closing(*exporters):
        assert await exporters[0].assert_history_is_true(fake, fleet.members) > 0


async def test_a_worker_that_changes_its_region_is_handed_over_and_has_not_disappeared(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """One exporter has each region: each has its own lease, and a worker that moves has a status in every sample."""
    fleet = DividedFleet(tmp_path, database, fake, clock)
    await fleet.add_workers()
    exporters = [fleet.exporter(region, regions=[region]) for region in REGIONS]
    async with closing(*exporters):
        await fleet.cycles(exporters, 6)
        assert [one.lease.held for one in exporters] == [True, True]
        mover = fleet.members[0]
        fake.add(instance_id(999), REGIONS[1], runs=[(int(clock()), None)])
        await database["workers"].update_one(
            {"_id": mover.worker_id}, {"$set": {"aws_region": REGIONS[1], "aws_instance_id": instance_id(999)}}
        )
        await fleet.cycles(exporters, 9)
        assert [mover.worker_id in {worker.id for worker in one.collector.fleet.workers} for one in exporters] == [False, True]
        samples = await exporters[0].documents(worker_id=mover.worker_id)
        starts = [document["timestamp"] for document in samples]
        assert len(starts) == len(set(starts)) >= 12
        assert [document for document in samples if "status" not in document] == []
        assert mover.worker_id not in exporters[0].outbox.outbox.states()
        entry = await database["worker_metrics_inventory"].find_one({"_id": mover.worker_id})
        assert entry is not None
        assert [each["id"] for each in entry["instances"]] == [mover.instance_id, instance_id(999)]


async def test_a_filter_leaves_the_other_workers_alone(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """Workers that fit no exporter's filter have no gauges and no samples, and nothing of what they have is deleted."""
    fleet = DividedFleet(tmp_path, database, fake, clock)
    await fleet.add_workers()
    whole = fleet.exporter(0)
    await fleet.cycles([whole], 6)
    before = {document["worker_id"]: document for document in await whole.documents()}
    await fleet.stop([whole])
    some = fleet.exporter(0, filter={"id": "worker-[0-9]", "name": "cml worker-.*"})
    async with closing(some):
        queried = await fleet.cycles([some], 6)
        assert {instance for _, instance, _ in queried} == {member.instance_id for member in fleet.members[:10]}
        after: dict[str, Any] = {document["worker_id"]: document for document in await some.documents()}
        assert after.keys() == before.keys()
        assert [id_ for id_ in before if after[id_]["timestamp"] == before[id_]["timestamp"]] == sorted(
            member.worker_id for member in fleet.members[10:]
        )
