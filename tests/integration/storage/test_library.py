"""The repository as a library beside the manager: its own client, the right collection, and never a sample twice."""

import asyncio
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from exporter import WorkerMetricsRepository, WorkerMetricsSample
from exporter.core.errors import ConfigError, IncompatibleStoreError, StoreUnavailableError
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.storage import sample_writer
from exporter.storage.collection import DEFAULT_COLLECTION, DEFAULT_PERIOD, DEFAULT_RETENTION
from exporter.storage.lease import INSERT, LEASE_SECONDS, Lease
from exporter.storage.mongo import STATE, Database
from exporter.storage.repository import repository
from tests.fixtures.mongo import AuthMongod
from tests.helpers.library_job import keys
from tests.integration.storage.test_repository import stalled_inserts

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 1, 31, 12, 7, 31, 500_000, tzinfo=UTC)
PERIOD_START = datetime(2026, 1, 31, 12, 5, tzinfo=UTC)


def sample(worker: str = "w1", at: datetime = NOW, cpu: float | None = 10.0) -> WorkerMetricsSample:
    return WorkerMetricsSample(worker, "us-east-1", at, cpu, 50.0, 3, "running")


@pytest.fixture
def library(database: Database) -> WorkerMetricsRepository:
    """A repository with its defaults, in a database without any collection; its clock shows NOW."""
    return WorkerMetricsRepository(database, wall=NOW.timestamp)


async def kind(database: Database) -> str:
    (found,) = await (await database.list_collections(filter={"name": DEFAULT_COLLECTION})).to_list()
    return str(found["type"])


async def stored(database: Database) -> list[dict[str, Any]]:
    return await database[DEFAULT_COLLECTION].find({}, {"_id": 0}).sort("timestamp").to_list()


def test_the_defaults_are_those_of_the_settings(database: Database) -> None:
    settings = Settings.model_validate({"mongodb": {"uri": "mongodb://unused"}})
    wanted = (settings.mongodb.history, settings.period, settings.mongodb.retention)
    assert wanted == (DEFAULT_COLLECTION, DEFAULT_PERIOD, DEFAULT_RETENTION)
    ours, theirs = (
        {name: vars(each.collection)[name] for name in ("name", "period", "_wanted_retention", "_apply_retention", "_wall")}
        for each in (WorkerMetricsRepository(database), repository(settings, database, DEFAULT_COLLECTION))
    )
    assert ours == theirs


async def test_connect_opens_a_client_writes_into_the_database_of_the_uri_and_closes_the_client(
    mongod: Mongod, database: Database
) -> None:
    uri = mongod.uri.replace("/?", f"/{database.name}?")
    async with WorkerMetricsRepository.connect(uri, wall=NOW.timestamp) as library:
        assert library.namespace == f"{database.name}.worker_metrics_timeseries"
        assert await library.add_sample(sample()) is True
        assert [each.timestamp for each in await library.get_samples("w1", NOW - timedelta(hours=1), NOW)] == [PERIOD_START]
    with pytest.raises(Exception, match="after close"):
        await library.collection.database.client.admin.command("ping")
    async with WorkerMetricsRepository.connect(mongod.uri) as other:
        assert other.namespace == "cml_cloud_manager.worker_metrics_timeseries"


async def test_a_malformed_connection_string_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError, match=r"^uri is not a MongoDB connection string") as refused:
        async with WorkerMetricsRepository.connect("mongodb://manager:s3cr:et@db/cml"):
            pass
    assert "s3cr" not in str(refused.value)


async def test_the_first_sample_creates_the_collection_of_the_history(
    library: WorkerMetricsRepository, database: Database
) -> None:
    assert await library.add_samples([]) == 0
    assert await database.list_collection_names() == []
    assert await library.add_sample(sample())
    assert await kind(database) == "timeseries"
    assert library.collection.retention == DEFAULT_RETENTION
    index = {"worker_id": 1, "timestamp": 1}
    assert index in [each["key"] async for each in await database[DEFAULT_COLLECTION].list_indexes()]
    noted = await database[STATE].find_one({"_id": f"history:{DEFAULT_COLLECTION}"})
    assert noted is not None
    assert noted["period"] == 300


async def test_the_least_role_of_the_exporter_suffices(mongo_auth: AuthMongod) -> None:
    async with WorkerMetricsRepository.connect(
        mongo_auth.exporter_uri(f"test_{uuid.uuid4().hex}"), wall=NOW.timestamp
    ) as library:
        assert [await library.add_sample(sample()) for _ in range(2)] == [True, False]
        assert len(await library.get_samples("w1", NOW - timedelta(hours=1), NOW)) == 1


async def test_a_collection_that_was_dropped_meanwhile_becomes_a_time_series_again(
    library: WorkerMetricsRepository, database: Database
) -> None:
    assert await library.add_sample(sample())
    await database.drop_collection(DEFAULT_COLLECTION)
    assert await library.add_sample(sample())
    assert await kind(database) == "timeseries"


async def test_a_normal_collection_of_that_name_is_refused_and_stays_empty(
    library: WorkerMetricsRepository, database: Database
) -> None:
    await database.create_collection(DEFAULT_COLLECTION)
    with pytest.raises(IncompatibleStoreError, match="is a normal collection, not a time-series collection; rename or drop it"):
        await library.add_sample(sample())
    assert await stored(database) == []


async def test_a_history_of_another_period_is_refused(library: WorkerMetricsRepository, database: Database) -> None:
    await WorkerMetricsRepository(database, period=60).ensure_collection()
    with pytest.raises(IncompatibleStoreError, match="holds samples of 1m, but period is 5m"):
        await library.add_sample(sample())
    with pytest.raises(ValueError, match="period 7 must be whole minutes"):
        WorkerMetricsRepository(database, period=7)


async def test_a_sample_is_stored_at_the_start_of_its_period_and_the_first_one_stays(
    library: WorkerMetricsRepository, database: Database
) -> None:
    assert await library.add_sample(sample(cpu=1.0)) is True
    assert await library.add_sample(sample(cpu=2.0, at=PERIOD_START)) is False
    assert await library.add_sample(sample(cpu=3.0, at=NOW.replace(tzinfo=None))) is False
    assert await library.add_sample(sample(cpu=4.0, at=NOW.astimezone(timezone(timedelta(hours=5, minutes=45))))) is False
    later = PERIOD_START + timedelta(minutes=5)
    others = [
        sample(at=later, cpu=5.0),
        sample(at=later + timedelta(seconds=1), cpu=6.0),
        sample("w2", cpu=7.0),
        sample(cpu=8.0),
    ]
    assert await library.add_samples(others) == 2
    assert [(each["worker_id"], each["timestamp"], each["cpu_utilization"]) for each in await stored(database)] == [
        ("w1", PERIOD_START, 1.0),
        ("w2", PERIOD_START, 7.0),
        ("w1", later, 5.0),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"worker_id": ""}, "worker_id '' of a sample must be a text that is not empty"),
        ({"worker_id": None}, "worker_id None"),
        ({"timestamp": 1_767_225_600}, "timestamp 1767225600 of a sample of 'w1' must be a datetime"),
        ({"cpu_utilization": "45.2"}, "cpu_utilization '45.2' of a sample of 'w1' must be a number, or None"),
        ({"active_labs_count": True}, "active_labs_count True"),
        ({"status": 3}, "status 3 of a sample of 'w1' must be a text; use `.value` of an enumeration"),
    ],
)
async def test_a_malformed_sample_is_named_and_nothing_is_written(
    library: WorkerMetricsRepository, database: Database, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        await library.add_samples([sample("w0"), replace(sample(), **fields)])
    assert await database.list_collection_names() == []


def motor_database() -> object:
    """A database as Motor's: every attribute is a collection. Motor itself is no dependency of this project."""
    return type("AsyncIOMotorDatabase", (), {"__module__": "motor.motor_asyncio", "__getattr__": lambda self, name: self})()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (motor_database, "motor.motor_asyncio.AsyncIOMotorDatabase"),
        (lambda: MongoClient[dict[str, Any]](connect=False)["db"], "pymongo.synchronous.database.Database"),
    ],
)
def test_a_database_of_another_driver_is_refused_with_a_sentence_that_names_connect(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"not a {name}; use `async with WorkerMetricsRepository.connect\\(uri\\)`"):
        WorkerMetricsRepository(make())


# -- several writers


async def test_a_call_waits_for_another_writer_and_gives_up_with_advice(
    library: WorkerMetricsRepository, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await library.ensure_collection()
    other = Lease(database, owner="other", ttl=LEASE_SECONDS, name=INSERT)
    assert await other.acquire_or_renew()
    waiting = asyncio.create_task(library.add_sample(sample()))
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    assert not done
    await other.release()
    assert await waiting is True
    assert await other.acquire_or_renew()  # the library has released it
    monkeypatch.setattr(sample_writer, "INSERT_LEASE_WAIT_SECONDS", 0.2)
    with pytest.raises(StoreUnavailableError, match=r"another process has been inserting .* try again") as busy:
        await library.add_sample(sample("w2"))
    assert busy.value.reason == "busy"


async def test_a_writer_that_died_delays_others_only_until_its_lease_expires(
    library: WorkerMetricsRepository, database: Database
) -> None:
    assert await Lease(database, owner="dead", ttl=1, name=INSERT).acquire_or_renew()
    assert await library.add_sample(sample()) is True


async def test_after_an_insert_that_was_not_acknowledged_others_wait_until_its_time_limit_is_over(
    library: WorkerMetricsRepository, database: Database
) -> None:
    assert await library.add_sample(sample("w0"))
    library.writer._lease.ttl = 4
    began = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailableError):
        async with library.writer.insert_lease(), stalled_inserts(database):
            await library.writer.insert([sample(at=PERIOD_START)], within=lambda: 0.5)
    other = WorkerMetricsRepository(database, wall=NOW.timestamp)
    await other.add_sample(sample())
    assert asyncio.get_running_loop().time() - began >= 4
    assert Counter(each["worker_id"] for each in await stored(database)) == {"w0": 1, "w1": 1}


async def test_a_failure_before_the_insert_releases_the_lease_at_once(
    library: WorkerMetricsRepository, database: Database
) -> None:
    await library.ensure_collection()
    with pytest.raises(StoreUnavailableError, match="unsettled"):
        async with library.writer.insert_lease():
            raise StoreUnavailableError("unsettled", reason="unsettled")
    assert await Lease(database, owner="other", ttl=LEASE_SECONDS, name=INSERT).acquire_or_renew()


async def test_concurrent_calls_of_one_process_store_each_sample_once(
    library: WorkerMetricsRepository, database: Database
) -> None:
    other = WorkerMetricsRepository(database, wall=NOW.timestamp)
    calls = [each.add_sample(sample(f"w{n % 5}")) for n in range(20) for each in (library, other)]
    assert sum(await asyncio.gather(*calls)) == 5
    assert Counter(each["worker_id"] for each in await stored(database)) == {f"w{n}": 1 for n in range(5)}


async def test_processes_that_start_at_once_on_an_empty_database_create_one_collection_and_store_each_sample_once(
    mongod: Mongod, database: Database
) -> None:
    start, workers, periods, processes = int(NOW.timestamp()) // 300 * 300, 4, 10, 4
    uri = mongod.uri.replace("/?", f"/{database.name}?")
    jobs = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.helpers.library_job", uri, *map(str, (start, workers, periods, 300))),
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        for _ in range(processes)
    ]
    inserted = [int((await job.communicate())[0]) for job in jobs]
    assert [job.returncode for job in jobs] == [0] * processes
    assert await kind(database) == "timeseries"
    found = Counter((each["worker_id"], int(each["timestamp"].timestamp())) for each in await stored(database))
    assert found == Counter(keys(start, workers, periods, 300))
    assert sum(inserted) == workers * periods
