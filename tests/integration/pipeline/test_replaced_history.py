"""What MongoDB had acknowledged is gone: collection or database dropped, an older backup restored, the server replaced.

The exporter goes on running. Every period within gap_fill_window is in the history again afterwards, once, in a time series.
"""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from exporter.core.model import Fleet, Worker
from exporter.core.periods import to_datetime
from exporter.demo.mongod import Mongod
from exporter.pipeline.history_watch import load_mark
from exporter.storage.history_marker import HistoryMarker
from exporter.storage.inventory import INVENTORY, Inventory
from exporter.storage.mongo import STATE, Database, Document
from tests.fixtures.mongo import connect, need_mongod
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter
from tests.helpers.mongod import NO_TTL
from tests.helpers.ports import free_port
from tests.helpers.reliability import record

NAME = "worker_metrics_timeseries"
BEFORE, AFTER = 6, 7
"""Collection cycles before and after the backup."""
AT_NIGHT = pytest.mark.nightly("test_what_was_dropped_comes_back_as_the_time_series_that_it_was")
FINAL = 5
"""Cycles after which the samples of the first are final; gap filling takes as long."""


class Setting:
    """A running exporter with its own mongod, whose data can be replaced."""

    def __init__(self, folder: Path, server: Mongod, database: Database, fake: FakeCloudWatch, clock: Clock) -> None:
        self.folder, self.server, self.database, self.fake, self.clock = folder, server, database, fake, clock
        began = int(clock())
        self.members = [Member(f"worker-{k}", instance_id(k), "eu-west-1", began) for k in range(4)]
        for member in self.members:
            fake.add(member.instance_id, runs=[(began, None)], agent=member is not self.members[-1])
        self.exporter = InProcessExporter(folder / "data", database, fake, clock)

    async def list_workers(self) -> None:
        await self.database["workers"].insert_many([member.aggregate() for member in self.members])

    async def back_up(self) -> None:
        self.server.stop()
        shutil.copytree(self.server.dbpath, self.folder / "backup")
        await self.start()

    async def restore(self) -> None:
        self.server.stop()
        shutil.rmtree(self.server.dbpath)
        shutil.copytree(self.folder / "backup", self.server.dbpath)
        await self.start()

    async def start(self) -> None:
        """Start the server, and have the client notice that its connections are broken: in-process cycles have no retry."""
        self.server.start()
        with suppress(PyMongoError):
            await self.database["ping"].delete_one({})

    async def replace_by_an_empty_server(self) -> None:
        self.server.stop()
        shutil.rmtree(self.server.dbpath)
        await self.start()
        with MongoClient[Document](self.server.uri) as client:  # the manager's part is there again
            client[self.database.name]["workers"].insert_many([member.aggregate() for member in self.members])

    def replaced(self, reason: str) -> float | None:
        return self.exporter.value("cml_exporter_history_replaced_total", reason=reason)

    async def assert_whole(self, samples: int) -> None:
        """All that is final is there, once, and in a time series; `samples` is the least number of them."""
        assert await self.exporter.assert_history_is_true(self.fake, self.members) >= samples
        (found,) = await (await self.database.list_collections(filter={"name": NAME})).to_list(None)
        assert found["type"] == "timeseries"


@pytest.fixture(
    params=[
        pytest.param(False, id="standalone", marks=pytest.mark.nightly("test_the_history_is_whole_again")),
        pytest.param(True, id="replica-set"),
    ]
)
async def setting(tmp_path: Path, fake: FakeCloudWatch, clock: Clock, request: pytest.FixtureRequest) -> AsyncIterator[Setting]:
    need_mongod()
    with Mongod(tmp_path / "mongod", free_port(), replica_set=request.param, parameters=NO_TTL) as server:
        async with connect(server.uri, patience=20) as client:
            made = Setting(tmp_path, server, client["fleet"], fake, clock)
            await made.list_workers()
            yield made
            await made.exporter.close()


async def drop_collection(setting: Setting) -> None:
    await setting.database[NAME].drop()


async def drop_database(setting: Setting) -> None:
    await setting.database.client.drop_database(setting.database.name)
    await setting.list_workers()


async def restore(setting: Setting) -> None:
    await setting.restore()


async def another_server(setting: Setting) -> None:
    await setting.replace_by_an_empty_server()


async def drop_state(setting: Setting) -> None:
    await setting.database[STATE].drop()


@pytest.mark.parametrize(
    ("replace", "reason"),
    [
        pytest.param(drop_collection, "collection", marks=AT_NIGHT),
        pytest.param(drop_database, "collection", marks=AT_NIGHT),
        (restore, "backup"),
        pytest.param(another_server, "collection", marks=AT_NIGHT),
        (drop_state, "marker"),
    ],
)
async def test_the_history_is_whole_again(setting: Setting, replace: Callable[[Setting], Awaitable[None]], reason: str) -> None:
    exporter = setting.exporter
    await exporter.round(BEFORE)
    await setting.back_up()
    await exporter.round(AFTER)
    samples = len(setting.members) * (BEFORE + AFTER - FINAL)
    await setting.assert_whole(samples)
    assert setting.replaced(reason) == 0

    generation = HistoryMarker(exporter.history.collection).generation
    before = await generation()  # hourly aggregates in memory count as read before the replacement
    await replace(setting)
    await exporter.round(1 + FINAL)
    assert await generation() != before
    assert setting.replaced(reason) == 1
    await setting.assert_whole(samples + len(setting.members))
    assert exporter.value("cml_exporter_leader") is None
    noted = await setting.database[STATE].find_one({"_id": f"history:{NAME}"})
    assert noted is not None
    assert (noted["schema"], noted["period"]) == (1, PERIOD)

    await exporter.round(4)
    assert [setting.replaced(each) for each in ("collection", "backup", "marker")].count(0) == 2, "counted once"
    assert exporter.errors == []
    record("older-backup", doubled=0, note="status and labs since the backup")


async def test_a_backup_restored_while_the_exporter_was_off_is_noticed_at_the_start(setting: Setting) -> None:
    await setting.exporter.round(BEFORE)
    await setting.back_up()
    await setting.exporter.round(AFTER)
    await setting.exporter.close()
    await setting.restore()
    setting.exporter = InProcessExporter(setting.folder / "data", setting.database, setting.fake, setting.clock)
    await setting.exporter.round(1 + FINAL)
    assert setting.replaced("backup") == 1
    await setting.assert_whole(len(setting.members) * (BEFORE + AFTER - FINAL + 1))


async def test_replaced_between_insert_and_acknowledgement_the_samples_stay_in_the_outbox(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = setting.exporter
    await exporter.round(BEFORE)
    insert, left = exporter.history.writer.insert, [1]

    async def then_lose(*arguments: object, **named: object) -> object:
        result = await insert(*arguments, **named)  # type: ignore[arg-type]
        if left[0]:
            left[0] = 0
            await drop_database(setting)
        return result

    monkeypatch.setattr(exporter.history.writer, "insert", then_lose)
    await exporter.round(1)
    assert left == [0]
    (error,) = exporter.errors
    assert "was replaced while samples were inserted; they will be inserted again" in error
    assert exporter.outbox.outbox.counts()["final"] > 0
    exporter.errors.clear()
    await exporter.round(1 + FINAL)
    await setting.assert_whole(len(setting.members) * BEFORE)


async def test_a_restart_and_another_exporter_are_no_replacement(setting: Setting) -> None:
    """Two exporters take turns; each finds the other's marker, which is newer than its own."""
    await setting.exporter.round(BEFORE)
    await setting.exporter.lease.release()
    other = InProcessExporter(setting.folder / "other", setting.database, setting.fake, setting.clock)
    await other.round(BEFORE)
    await other.lease.release()
    await setting.exporter.round(2)
    await setting.exporter.lease.release()
    await other.round(2)
    for exporter in (setting.exporter, other):
        for reason in ("collection", "backup", "marker"):
            assert exporter.value("cml_exporter_history_replaced_total", reason=reason) == 0
        assert exporter.errors == []
    mark = load_mark(other.outbox.outbox, f"fleet.{NAME}")
    assert mark is not None
    stored = await setting.database[STATE].find_one({"_id": f"marker:{NAME}"})
    assert stored is not None
    assert (mark.sequence, to_datetime(mark.newest)) == (stored["sequence"], stored["newest"])
    await other.close()


async def test_instances_that_only_memory_knows_survive_an_older_inventory(database: Database) -> None:
    day = 86_400
    inventory = Inventory(database)

    def worker(name: str, instance: str) -> Worker:
        return Worker(name, "eu-west-1", instance, "running")

    await inventory.record(Fleet(10 * day, (worker("old", "i-o"), worker("w", "i-1"))))
    backup = await database[INVENTORY].find().to_list(None)
    await inventory.record(Fleet(12 * day, (worker("w", "i-2"), worker("new", "i-n"))))
    await database[INVENTORY].drop()
    await database[INVENTORY].insert_many(backup)
    await database[INVENTORY].delete_one({"_id": "old"})  # purged meanwhile: it was last seen two days ago
    await inventory.load()
    assert [each.instance_id for each in inventory.entries["w"].instances] == ["i-1", "i-2"]
    assert sorted(inventory.entries) == ["new", "w"]
    await inventory.record(Fleet(12 * day + 300, (worker("w", "i-2"), worker("new", "i-n"))))
    fresh = Inventory(database)
    await fresh.load()
    assert fresh.entries == inventory.entries

    await database[INVENTORY].drop()
    await inventory.load()
    await inventory.record(Fleet(12 * day + 600, (worker("new", "i-n"),)))
    await fresh.load()
    assert sorted(fresh.entries) == ["new", "w"]
