"""`verify --repair`: samples that are stored twice lose their copies, and nothing else changes, wherever it is killed."""

import asyncio
import io
import multiprocessing
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from exporter.commands.verify import repair
from exporter.core.errors import ConfigError, IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, align, rfc3339, to_datetime
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.storage import rewrite
from exporter.storage.duplicates import DuplicatedTime, count_duplicates, duplicated_times
from exporter.storage.lease import BACKFILL, INSERT, Lease
from exporter.storage.mongo import STATE, Database, Document
from exporter.storage.privileges import REPAIR_PRIVILEGES, least_role
from exporter.storage.repository import WorkerMetricsRepository
from exporter.storage.rewrite import Scope, WorkerRewrite, unfinished_rewrite
from tests.fixtures.mongo import AuthMongod, connect, fresh_database
from tests.fixtures.process import RunCommand, RunExporter
from tests.helpers.exporter_process import READY_WITHIN
from tests.helpers.killed_repair import When, run_repair
from tests.helpers.mongo_proxy import HoldingProxy

NAME, COPY = "worker_metrics_timeseries", "worker_metrics_timeseries_repair"
PERIOD = 300
NOW = align(int(time.time()), PERIOD)
START = NOW - 20 * HOUR
"""A running exporter searches its last day for copies, and the tests may begin hours after this module was read."""
EVERY = int(os.environ.get("REPAIR_KILL_EVERY", "20"))
"""Of how many kill points one is tried; 1: all."""


def sample(worker_id: str, k: int, **fields: object) -> Document:
    return {
        "worker_id": worker_id,
        "timestamp": to_datetime(START + k * PERIOD),
        "region": "eu-west-1",
        "cpu_utilization": 10.0 + k / 7,
        "active_labs_count": k % 5,
        "status": "running",
        **fields,
    }


def once() -> list[Document]:
    """Three workers; one of them has fields of another program, an unaligned time, and an id that is no ObjectId."""
    found = [sample("w1", k) for k in range(35)] + [sample("w2", k) for k in range(12)] + [sample("w3", k) for k in range(8)]
    found += [
        sample("w2", 20, note={"by": ["another", 1]}, _id="own"),
        sample("w2", 21) | {"timestamp": to_datetime(START + 7)},
    ]
    return found


def copies() -> list[Document]:
    """Copies: equal ones, one with fewer values (as gap filling writes it), and one that is there three times."""
    poorer = {key: value for key, value in sample("w1", 3).items() if key not in ("status", "active_labs_count")}
    return [*(sample("w1", k) for k in range(10, 20)), poorer, sample("w2", 5), sample("w2", 5)]


def plain(documents: list[Document]) -> list[Document]:
    """Without generated ids, in one order."""
    kept = [{key: value for key, value in one.items() if key != "_id" or value == "own"} for one in documents]
    return sorted(kept, key=lambda one: (one["worker_id"], one["timestamp"], len(one)))


@dataclass(frozen=True, slots=True)
class Store:
    uri: str
    database: Database

    async def fill(self) -> None:
        history = WorkerMetricsRepository(self.database)
        await history.ensure_collection()
        await self.database[NAME].insert_many([dict(one) for one in once() + copies()])

    async def stored(self) -> list[Document]:
        return plain(await self.database[NAME].find().to_list(None))

    async def repair(
        self,
        *workers: str,
        since: int = START - DAY,
        prompt: Callable[[str], str] | None = None,
        patience: float = 1,
        **options: Any,  # noqa: ANN401  # Options' fields
    ) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        settings = Settings.model_validate({"mongodb": {"uri": self.uri}})
        wanted = repair.Options(since, workers, **{"yes": True, **options})
        status = await repair.run(settings, wanted, out, err, prompt=prompt, patience=patience)
        return status, out.getvalue(), err.getvalue()

    async def assert_clean(self) -> None:
        """No copy is left, and nothing is unfinished."""
        assert COPY not in await self.database.list_collection_names()
        state = await self.database[STATE].find_one({"_id": f"repair:{NAME}"})
        assert state is None or state["phase"] == "done"


@pytest.fixture(params=["mongod", "mongo_rs"])
def server(request: pytest.FixtureRequest) -> Mongod:
    found: Mongod = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def store(server: Mongod) -> AsyncIterator[Store]:
    async for database in fresh_database(server.uri):
        made = Store(server.uri.replace("/?", f"/{database.name}?"), database)
        await made.fill()
        yield made


# -- finding them ------------------------------------------------------------------------------------------------------


async def test_copies_are_counted_per_worker_and_named_by_time(store: Store) -> None:
    collection = WorkerMetricsRepository(store.database).collection
    assert await count_duplicates(collection, START, NOW) == {"w1": 11, "w2": 2}
    assert await count_duplicates(collection, START, NOW, ["w2", "w3"]) == {"w2": 2}
    assert await count_duplicates(collection, START + 11 * PERIOD, START + 13 * PERIOD) == {"w1": 2}
    assert await duplicated_times(collection, "w2", START, NOW) == [DuplicatedTime((START + 5 * PERIOD) * 1000, 3)]


# -- removing them -----------------------------------------------------------------------------------------------------


async def test_each_sample_is_there_once_and_nothing_else_changes(store: Store) -> None:
    status, printed, progress = await store.repair()
    first, last = rfc3339(START), rfc3339(START + 34 * PERIOD)
    lines = printed.splitlines()
    assert lines[0] == f"Samples of {store.database.name}.{NAME} since {rfc3339(START - DAY)} that are stored twice:"
    assert lines[2].split() == ["w1", "11", "46", first, last]
    assert "up to 0.1 MB of disk" in printed.replace("\n", " ")
    assert lines[-3:] == [
        "w1: removed 11 copies, 1 of them with other values; 35 samples stored once.",
        "w2: removed 2 copies; 14 samples stored once.",
        "0 samples stored twice.",
    ]
    assert progress.splitlines() == [f"{w}: {step}" for w in ("w1", "w2") for step in ("copying", "deleting", "inserting")]
    assert status == 0
    assert await store.stored() == plain(once())
    await store.assert_clean()
    status, printed, _ = await store.repair()
    assert (status, printed) == (
        0,
        f"No sample of {store.database.name}.{NAME} since {rfc3339(START - DAY)} is stored twice.\n",
    )


async def test_only_the_chosen_worker_and_range(store: Store) -> None:
    status, printed, _ = await store.repair("w2")
    assert (status, printed.splitlines()[-1]) == (0, "0 samples stored twice.")
    collection = WorkerMetricsRepository(store.database).collection
    assert await count_duplicates(collection, START, NOW) == {"w1": 11}
    status, printed, _ = await store.repair(since=START + 20 * PERIOD)
    assert (status, "is stored twice" in printed) == (0, True)


async def test_a_dry_run_and_a_missing_confirmation_change_nothing(store: Store) -> None:
    before = await store.stored()
    assert (await store.repair(dry_run=True))[0] == 0
    status, printed, _ = await store.repair(yes=False)
    assert (status, printed.splitlines()[-1]) == (1, "Nothing was changed. Use --yes to do it.")
    status, printed, _ = await store.repair(yes=False, prompt=lambda _: "y")
    assert (status, printed.splitlines()[-1]) == (1, "Nothing was changed.")
    assert await store.stored() == before
    status, _, _ = await store.repair(yes=False, prompt=lambda _: "yes")
    assert status == 0
    assert await store.stored() == plain(once())


@pytest.mark.parametrize(("name", "problem"), [(BACKFILL, "a backfill, an import"), (INSERT, "another process has been")])
async def test_without_a_lease_it_refuses(store: Store, name: str, problem: str) -> None:
    before = await store.stored()
    lease = Lease(store.database, owner="other", name=name)
    assert await lease.acquire_or_renew()
    with pytest.raises(IncompatibleStoreError, match=f"{problem}.* so nothing was changed; try again"):
        await store.repair()
    assert await store.stored() == before
    await lease.release()
    assert (await store.repair())[0] == 0


async def test_a_job_of_the_manager_and_an_exporter_wait_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that are to be written in the middle of a repair are written after it: none is deleted with the others."""
    history = WorkerMetricsRepository(store.database)
    delete, jobs = WorkerRewrite._delete, []

    async def meanwhile(self: WorkerRewrite, scope: Scope) -> bool:
        new = WorkerMetricsSample(scope.worker_id, "eu-west-1", to_datetime(START + 100 * PERIOD), cpu_utilization=1.0)
        jobs.append(asyncio.create_task(history.add_samples([new])))
        await asyncio.sleep(0.3)
        done = await delete(self, scope)
        await asyncio.sleep(0.3)
        return done

    monkeypatch.setattr(WorkerRewrite, "_delete", meanwhile)
    assert (await store.repair())[0] == 0
    assert await asyncio.gather(*jobs) == [1, 1]
    new = [
        {"worker_id": w, "timestamp": to_datetime(START + 100 * PERIOD), "region": "eu-west-1", "cpu_utilization": 1.0}
        for w in ("w1", "w2")
    ]
    assert await store.stored() == plain([*once(), *new])


@pytest.fixture
async def replicated(mongo_rs: Mongod) -> AsyncIterator[tuple[Store, HoldingProxy, Store]]:
    """A history on a replica set: directly, and through a proxy that can hold inserts back."""
    async for database in fresh_database(mongo_rs.uri):
        direct = Store(mongo_rs.uri.replace("/?", f"/{database.name}?"), database)
        await direct.fill()
        async with HoldingProxy(mongo_rs.port) as proxy, connect(proxy.uri) as client:
            yield direct, proxy, Store(proxy.uri.replace("/?", f"/{database.name}?"), client[database.name])


@pytest.mark.parametrize("step", ["_fill", "_delete", "_insert", "_prove"])
async def test_a_late_insert_of_another_writer_is_refused_at_every_step(
    replicated: tuple[Store, HoldingProxy, Store], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The network holds an insert of an exporter, whose lease expires, and delivers it in the middle of the repair."""
    store, proxy, held_back = replicated
    new = [
        WorkerMetricsSample(w, "eu-west-1", to_datetime(START + k * PERIOD), cpu_utilization=1.0)
        for w in ("w1", "w2")
        for k in (5, 100)
    ]
    late: list[Document] = []
    original = getattr(WorkerRewrite, step)

    async def delivering(self: WorkerRewrite, *arguments: object) -> object:
        late.extend(await proxy.deliver())
        return await original(self, *arguments)

    writer = WorkerMetricsRepository(held_back.database).writer
    proxy.hold()
    with pytest.raises(StoreUnavailableError):
        async with writer.insert_lease() as seconds_left:
            await writer.insert(new, within=seconds_left)
    await store.database[STATE].update_one({"_id": f"lease:{INSERT}"}, {"$set": {"expires": to_datetime(0)}})
    monkeypatch.setattr(WorkerRewrite, step, delivering)
    status, printed, _ = await store.repair()
    assert [reply.get("code") for reply in late] == [225]
    assert (status, await store.stored()) == (0, plain(once())), printed
    await store.assert_clean()


async def test_a_late_insert_of_the_repair_itself_is_refused(replicated: tuple[Store, HoldingProxy, Store]) -> None:
    """It loses the answer of its insert, does it again by itself, and the first one arrives in the end."""
    store, proxy, held_back = replicated
    proxy.hold(2)
    status, printed, progress = await held_back.repair(patience=60)
    assert (status, printed.splitlines()[-1]) == (0, "0 samples stored twice.")
    assert progress.count("inserting") == 4  # three for the first worker
    assert await store.stored() == plain(once())
    assert [reply.get("code") for reply in await proxy.deliver()] == [225, 225]
    assert await store.stored() == plain(once())
    await store.assert_clean()


async def test_another_program_that_inserts_without_the_lease_is_noticed_before_anything_is_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = WorkerRewrite._fill

    async def meanwhile(self: WorkerRewrite, scope: Scope) -> None:
        await store.database[NAME].insert_one(sample("w1", 99))
        await fill(self, scope)

    monkeypatch.setattr(WorkerRewrite, "_fill", meanwhile)
    with pytest.raises(StoreError, match="another program inserts without the lease"):
        await store.repair()
    assert await store.stored() == plain([*once(), *copies(), sample("w1", 99)])
    monkeypatch.undo()
    assert (await store.repair())[0] == 0
    assert await store.stored() == plain([*once(), sample("w1", 99)])


async def test_what_is_wrong_after_the_insert_keeps_the_copy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = WorkerRewrite._insert

    async def loses_one(self: WorkerRewrite, times: Any) -> None:  # noqa: ANN401
        await insert(self, sorted(times)[1:])

    monkeypatch.setattr(WorkerRewrite, "_insert", loses_one)
    with pytest.raises(StoreError, match="not equal to their copy"):
        await store.repair()
    assert COPY in await store.database.list_collection_names()
    monkeypatch.undo()
    assert await unfinished_rewrite(WorkerMetricsRepository(store.database).collection) == Scope("w1")
    status, printed, _ = await store.repair()
    assert (status, printed.splitlines()[0]) == (0, "The interrupted repair of w1 comes first.")
    assert await store.stored() == plain(once())
    await store.assert_clean()


async def test_from_mongodb_7_on_only_the_range_is_rewritten_and_where_that_is_refused_the_whole_worker(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This mongod refuses to delete a range, which is the fallback; a delete of exactly the range is played by the test."""
    monkeypatch.setattr(repair, "RANGE_WIRE_VERSION", 13)
    steps: list[Document] = []
    delete_many = type(store.database[NAME]).delete_many

    async def noted(self: Any, query: Document, *arguments: Any) -> Any:  # noqa: ANN401
        steps.append(query)
        return await delete_many(self, query, *arguments)

    monkeypatch.setattr(type(store.database[NAME]), "delete_many", noted)
    with pytest.raises(OperationFailure):
        await store.database[NAME].delete_many({"timestamp": {"$gte": to_datetime(START)}})
    steps.clear()
    status, printed, _ = await store.repair()
    between = {"$gte": to_datetime(START + 3 * PERIOD), "$lte": to_datetime(START + 19 * PERIOD) + timedelta(seconds=1)}
    assert steps[:2] == [{"worker_id": "w1", "timestamp": between}, {"worker_id": "w1"}]
    assert status == 0, printed
    assert await store.stored() == plain(once())
    await store.assert_clean()


async def test_the_least_role_of_the_readme_is_enough_and_that_of_the_exporter_is_not(mongo_auth: AuthMongod) -> None:
    name = "repair_role"
    async with connect(mongo_auth.root_uri) as root:
        await Store("", root[name]).fill()
        least = Store(mongo_auth.exporter_uri(name), root[name])
        with pytest.raises(IncompatibleStoreError, match="dropCollection"):
            await least.repair()
        more = [
            {"resource": {"db": name, "collection": collection}, "actions": list(actions)}
            for collection, actions in REPAIR_PRIVILEGES.items()
        ]
        enough = Store(mongo_auth.user(name, [*least_role(name), *more], "repair"), root[name])
        assert (await enough.repair())[0] == 0
        assert await enough.stored() == plain(once())
        await root.drop_database(name)


def test_the_command_line(run_command: RunCommand, mongod: Mongod) -> None:
    uri = mongod.uri.replace("/?", "/repair_command?")
    flags = ("verify", "--mongodb.uri", uri, "--since", "2d")
    with MongoClient[Document](uri, tz_aware=True) as client:
        client.drop_database("repair_command")
        asyncio.run(_fill(uri))
        done = run_command(*flags, "--repair", "--sample", "5%", "--json")
        assert (done.returncode, "does not take --sample, --json; leave it out" in done.stderr) == (3, True)
        assert run_command(*flags, "--yes").returncode == 3
        assert run_command(*flags, "--repair").returncode == 1
        done = run_command(*flags, "--repair", "--yes")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 samples stored twice.")
        assert plain(list(client["repair_command"][NAME].find())) == plain(once())
        client.drop_database("repair_command")


@pytest.mark.waits(20)
def test_a_running_exporter_shows_the_copies_and_goes_on_during_a_repair(
    run_exporter: RunExporter, run_command: RunCommand, mongod: Mongod
) -> None:
    uri = mongod.uri.replace("/?", "/repair_command?")
    with MongoClient[Document](uri, tz_aware=True) as client:
        client.drop_database("repair_command")
        asyncio.run(_fill(uri))
        client["repair_command"]["workers"].insert_one({"id": "w9", "aws_region": "eu-west-1", "status": "running"})
        exporter = run_exporter({"mongodb": {"uri": uri}, "cloudwatch": {"enabled": False}})
        gauge = "cml_exporter_history_duplicates"
        exporter.wait_for(lambda: exporter.metrics().get(gauge) == 13, READY_WITHIN, "showing 13 copies")
        assert "samples are stored twice" in exporter.logged()
        done = run_command("verify", "--mongodb.uri", uri, "--since", "2d", "--repair", "--yes")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 samples stored twice."), done.stderr
        assert exporter.running
        assert plain(list(client["repair_command"][NAME].find({"worker_id": {"$ne": "w9"}}))) == plain(once())
        client.drop_database("repair_command")


async def _fill(uri: str) -> None:
    async with connect(uri) as client:
        await Store(uri, client["repair_command"]).fill()


async def test_without_a_history_it_says_so(store: Store) -> None:
    settings = Settings.model_validate({"mongodb": {"uri": store.uri, "history": None}})
    with pytest.raises(ConfigError, match="no history to repair"):
        await repair.run(settings, repair.Options(START), io.StringIO(), io.StringIO())


# -- killed at any point -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def children() -> Any:  # noqa: ANN401  # multiprocessing's context
    """Processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.killed_repair"])
    return context


def _run(children: Any, uri: str, number: int, when: When) -> int:  # noqa: ANN401
    child = children.Process(target=run_repair, args=(uri, START - DAY, number, when))
    child.start()
    child.join()
    return int(child.exitcode)


def _expire_leases(database: Any) -> None:  # noqa: ANN401
    """As if time had passed: what the killed process held is free."""
    database[STATE].update_many({"_id": {"$regex": "^lease:"}}, {"$set": {"expires": to_datetime(0)}})


def _write_meanwhile(database: Any, rng: random.Random) -> list[Document]:  # noqa: ANN401
    """Do what a live exporter does between the two runs: add a new sample, and fill a hole with a poorer one."""
    new = sample("w1", 200 + rng.randrange(50))
    stored = {one["timestamp"] for one in database[NAME].find({"worker_id": "w1"})}
    holes = [k for k in range(35) if sample("w1", k)["timestamp"] not in stored]
    filled = [{**sample("w1", k), "status": None, "cpu_utilization": 1.0} for k in holes[:3]]
    database[NAME].insert_many([dict(new), *({k: v for k, v in one.items() if v is not None} for one in filled)])
    return [new]


@pytest.mark.parametrize("when", ["started", "succeeded"])
def test_killed_at_any_command_the_next_repair_finishes_and_no_sample_is_lost_or_doubled(
    server: Mongod,
    children: Any,  # noqa: ANN401
    when: When,
) -> None:
    name = f"repair_killed_{when}"
    uri = server.uri.replace("/?", f"/{name}?")
    rng = random.Random(f"{when}")
    killed, number = 0, 1 + rng.randrange(EVERY)
    with MongoClient[Document](uri, tz_aware=True) as client:
        database = client[name]
        while True:
            client.drop_database(name)
            asyncio.run(_fill_database(uri, name))
            status = _run(children, uri, number, when)
            if status == 0:
                break
            assert status == -9, f"at {number}"
            _expire_leases(database)
            new = _write_meanwhile(database, rng) if rng.random() < 0.5 else []
            assert _run(children, uri, 0, when) == 0, f"at {number}"
            assert plain(list(database[NAME].find())) == plain([*once(), *new]), f"at {number}"
            assert COPY not in database.list_collection_names()
            killed, number = killed + 1, number + EVERY
        client.drop_database(name)
    assert killed >= 60 // EVERY
    print(f"{when}: killed at {killed} of {number} commands")


async def _fill_database(uri: str, name: str) -> None:
    async with connect(uri) as client:
        await Store(uri, client[name]).fill()


def test_small_pages_are_those_of_the_module() -> None:
    assert rewrite.PAGE_SAMPLES > 100
