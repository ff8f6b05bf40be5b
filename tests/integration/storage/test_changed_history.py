"""The collection of the history is dropped, or takes another form, while an exporter writes it."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from exporter.core.errors import IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import DAY, to_datetime, to_seconds
from exporter.storage.mongo import STATE, Database
from exporter.storage.privileges import least_role
from exporter.storage.repository import WorkerMetricsRepository
from tests.fixtures.mongo import AuthMongod, connect
from tests.helpers.reliability import record

Documents = Sequence[Mapping[str, Any]]
Rejected = list[tuple[WorkerMetricsSample, str]]
NAME = "worker_metrics_timeseries"
START = 1_767_225_600
PERIOD = 300


def batch(workers: int = 2, periods: int = 3) -> list[WorkerMetricsSample]:
    return [
        WorkerMetricsSample(f"w{w}", "us-east-1", to_datetime(START + p * PERIOD), cpu_utilization=float(p), status="running")
        for w in range(workers)
        for p in range(periods)
    ]


def history(database: Database) -> WorkerMetricsRepository:
    return WorkerMetricsRepository(database, collection=NAME, retention=30 * DAY, wall=lambda: START + DAY)


@pytest.fixture
async def repo(database: Database) -> WorkerMetricsRepository:
    made = history(database)
    made.collection.gap_fill_window = 7200
    await made.ensure_collection()
    return made


async def kinds(database: Database) -> dict[str, str]:
    return {each["name"]: each["type"] for each in await (await database.list_collections()).to_list(None)}


async def stored(database: Database, name: str = NAME) -> list[tuple[str, int]]:
    return sorted([(d["worker_id"], to_seconds(d["timestamp"])) async for d in database[name].find()])


def keys(samples: Sequence[WorkerMetricsSample]) -> list[tuple[str, int]]:
    return sorted((each.worker_id, to_seconds(each.timestamp)) for each in samples)


async def assert_whole(database: Database) -> None:
    """The collection is what `ensure` makes: time series, retention, index, and what is noted beside it."""
    (found,) = await (await database.list_collections(filter={"name": NAME})).to_list(None)
    assert found["type"] == "timeseries"
    assert found["options"]["expireAfterSeconds"] == 30 * DAY
    assert found["options"]["timeseries"]["metaField"] == "worker_id"
    assert "worker_id_1_timestamp_1" in await database[NAME].index_information()
    noted = await database[STATE].find_one({"_id": f"history:{NAME}"})
    assert noted == {"_id": f"history:{NAME}", "schema": 1, "period": PERIOD, "gap_fill_window": 7200}


@pytest.mark.parametrize("dropped", ["collection", "database"])
async def test_what_was_dropped_comes_back_as_the_time_series_that_it_was(
    repo: WorkerMetricsRepository, database: Database, dropped: str
) -> None:
    await repo.writer.insert(batch())
    await (database[NAME].drop() if dropped == "collection" else database.client.drop_database(database.name))
    await repo.writer.ensure_collection()
    await repo.writer.insert(batch())
    await assert_whole(database)
    assert await stored(database) == keys(batch())
    record("history-dropped", doubled=0, note="status and labs since the drop")


async def test_an_unchanged_collection_is_verified_with_one_command(
    repo: WorkerMetricsRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repo.collection, "ensure", None)
    await repo.writer.ensure_collection()


@pytest.mark.parametrize("documents_per_insert", [1000, 2])
async def test_nothing_is_inserted_into_a_missing_collection(
    repo: WorkerMetricsRepository, database: Database, monkeypatch: pytest.MonkeyPatch, documents_per_insert: int
) -> None:
    monkeypatch.setattr("exporter.storage.sample_writer.DOCUMENTS_PER_UNFENCED_INSERT", documents_per_insert)
    await database[NAME].drop()
    with pytest.raises(StoreUnavailableError, match=r"was dropped; it is created again") as failed:
        await repo.writer.insert(batch())
    assert failed.value.reason == "dropped"
    assert NAME not in await kinds(database)


async def test_dropped_between_two_inserts_of_a_batch(
    repo: WorkerMetricsRepository, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.storage.sample_writer.DOCUMENTS_PER_UNFENCED_INSERT", 2)
    insert = repo.writer._insert_batch
    done = []

    async def then_drop(samples: list[WorkerMetricsSample], documents: Documents) -> Rejected:
        result = await insert(samples, documents)
        done.append(1)
        if len(done) == 2:
            await database[NAME].drop()
        return result

    monkeypatch.setattr(repo.writer, "_insert_batch", then_drop)
    with pytest.raises(StoreUnavailableError, match="dropped"):
        await repo.writer.insert(batch())
    assert len(done) == 2
    assert NAME not in await kinds(database)


async def drop_before_insert(
    repo: WorkerMetricsRepository, database: Database, monkeypatch: pytest.MonkeyPatch, *, times: int = 1
) -> None:
    """Drop the collection between the check and the insert, in which no client can lock the name."""
    insert, left = repo.writer._insert_batch, [times]

    async def dropped_first(samples: list[WorkerMetricsSample], documents: Documents) -> Rejected:
        if left[0]:
            left[0] -= 1
            await database[NAME].drop()
        return await insert(samples, documents)

    monkeypatch.setattr(repo.writer, "_insert_batch", dropped_first)


async def lose_the_race(repo: WorkerMetricsRepository, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an insert make a normal collection; another program writes there too, at a time that is not a start of a period."""
    await drop_before_insert(repo, database, monkeypatch)
    with pytest.raises(IncompatibleStoreError, match="normal collection"):
        await repo.writer.insert(batch())
    assert (await kinds(database))[NAME] == "collection"
    await database[NAME].insert_one({"worker_id": "other", "timestamp": to_datetime(START + 7), "cpu_utilization": 1.0})


async def test_a_normal_collection_that_a_race_made_is_set_aside_and_its_samples_are_moved(
    repo: WorkerMetricsRepository, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose_the_race(repo, database, monkeypatch)
    await repo.writer.ensure_collection()
    await assert_whole(database)
    assert await stored(database) == sorted([("other", START + 7), *keys(batch())])
    assert await repo.writer.insert_missing(batch()) == (0, [])
    assert await stored(database) == sorted([("other", START + 7), *keys(batch())])
    (set_aside,) = [name for name in await kinds(database) if name.startswith(f"{NAME}_2")]
    assert await stored(database, set_aside) == sorted([("other", START + 7), *keys(batch())])


async def test_a_move_that_an_error_interrupts_is_finished_before_the_next_batch(
    repo: WorkerMetricsRepository, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose_the_race(repo, database, monkeypatch)
    with monkeypatch.context() as patch:

        async def step_down(samples: object) -> None:
            raise StoreUnavailableError("MongoDB has no primary", reason="not_primary")

        patch.setattr(repo.writer, "insert_missing", step_down)
        with pytest.raises(StoreUnavailableError):
            await repo.writer.ensure_collection()
    assert await stored(database) == []
    await repo.writer.ensure_collection()
    assert await stored(database) == sorted([("other", START + 7), *keys(batch())])
    await assert_whole(database)


async def test_a_library_call_after_a_drop_and_in_the_race(
    repo: WorkerMetricsRepository, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database[NAME].drop()
    assert await repo.add_samples(batch()) == len(batch())
    await assert_whole(database)
    await drop_before_insert(repo, database, monkeypatch)
    more = [WorkerMetricsSample("w9", "us-east-1", to_datetime(START), cpu_utilization=1.0)]
    with pytest.raises(StoreError):
        await repo.add_samples(more)
    await repo.add_samples(more)  # as its documentation says: repeat the call
    await assert_whole(database)
    assert await stored(database) == keys(more)


async def test_a_normal_collection_with_anything_else_in_it_is_not_touched(
    repo: WorkerMetricsRepository, database: Database
) -> None:
    await database[NAME].drop()
    await database[NAME].insert_many([{"worker_id": "w", "timestamp": to_datetime(START)}, {"name": "of another program"}])
    for call in (repo.writer.ensure_collection(), repo.writer.insert(batch()), repo.add_samples(batch())):
        with pytest.raises(IncompatibleStoreError, match="is a normal collection"):
            await call
    assert await database[NAME].count_documents({}) == 2


async def test_a_process_that_never_saw_the_time_series_touches_no_normal_collection(database: Database) -> None:
    await database[NAME].insert_one({"worker_id": "w", "timestamp": to_datetime(START)})
    with pytest.raises(IncompatibleStoreError, match="rename or drop it"):
        await history(database).writer.ensure_collection()
    assert (await kinds(database))[NAME] == "collection"


async def test_with_the_least_role_the_operator_renames_the_normal_collection(
    mongo_auth: AuthMongod, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "changed_history"
    async with (
        connect(mongo_auth.user(name, least_role(name), "changed")) as client,
        connect(mongo_auth.root_uri) as root,
    ):
        repo, database = history(client[name]), root[name]
        await repo.ensure_collection()
        await drop_before_insert(repo, database, monkeypatch)
        with pytest.raises(IncompatibleStoreError):
            await repo.writer.insert(batch())
        with pytest.raises(IncompatibleStoreError, match="this user may not rename") as refused:
            await repo.writer.ensure_collection()
        assert refused.value.reason == "collection"
        await database[NAME].drop()
        await repo.writer.ensure_collection()
        assert await repo.writer.insert_missing(batch()) == (len(batch()), [])
        assert (await kinds(database))[NAME] == "timeseries"
        await root.drop_database(name)


async def test_dropped_again_and_again_it_is_never_a_normal_one_after_a_success(
    repo: WorkerMetricsRepository, database: Database
) -> None:
    """Drops at any moment of a batch: whatever the writer reports as stored went into a time series."""
    done, pauses = asyncio.Event(), random.Random(16)

    async def drop() -> None:
        while not done.is_set():
            await database[NAME].drop()
            # On a slow machine no batch gets between two quick drops.
            await asyncio.sleep(pauses.uniform(0, 0.3 * (1 + refused)))

    succeeded = refused = 0
    dropping = asyncio.create_task(drop())
    try:
        for _ in range(60):
            try:
                await repo.writer.ensure_collection()
                await repo.writer.insert(batch())
                succeeded, refused = succeeded + 1, 0
            except StoreError:
                refused += 1
    finally:
        done.set()
        await dropping
    await repo.writer.ensure_collection()
    await assert_whole(database)
    assert succeeded
