"""The history on real MongoDB servers: standalone, replica set, with credentials, with cut connections, killed."""

import asyncio
import inspect
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import bson.errors
import pymongo.errors
import pytest
from pymongo.errors import OperationFailure
from pymongo.write_concern import WriteConcern

from exporter.core.cloudwatch_snapshot import CloudWatchSnapshot
from exporter.core.distribution import Distribution
from exporter.core.errors import IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.interval_statistics import Statistics
from exporter.core.model import FinalSample, Fleet, Worker, WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, align_interval, to_datetime, to_seconds
from exporter.demo.mongod import Mongod
from exporter.storage import aggregation, collection, sample_documents, sample_reader, sample_writer
from exporter.storage.inventory import INVENTORY, Inventory
from exporter.storage.lease import Lease
from exporter.storage.mongo import STATE, Database, Document, operation, translate
from exporter.storage.privileges import least_role
from exporter.storage.repository import WorkerMetricsRepository
from exporter.storage.sample_writer import Key
from exporter.storage.snapshot_store import SnapshotStore
from exporter.storage.statistics import statistics_pipeline
from tests.fixtures.mongo import AuthMongod, connect
from tests.helpers.deadlines import scaled
from tests.helpers.mongo_proxy import CUTS, Cut, CuttingProxy

NAME = "worker_metrics_timeseries"
START = 1_767_225_600  # Thursday 2026-01-01T00:00:00Z
PERIOD = 300
INDEX = {"worker_id": 1, "timestamp": 1}


def repository(
    database: Database, *, period: int = PERIOD, retention: int = 30 * DAY, apply: bool = False, now: float = START + DAY
) -> WorkerMetricsRepository:
    return WorkerMetricsRepository(
        database, collection=NAME, period=period, retention=retention, apply_retention=apply, wall=lambda: now
    )


@pytest.fixture
async def samples(database: Database) -> WorkerMetricsRepository:
    repo = repository(database)
    await repo.ensure_collection()
    return repo


def sample(worker: str = "w1", at: int = START, cpu: float | None = 10.0, **fields: object) -> WorkerMetricsSample:
    bare = WorkerMetricsSample(worker_id=worker, region="us-east-1", timestamp=to_datetime(at), cpu_utilization=cpu)
    return replace(bare, **fields)  # type: ignore[arg-type]  # impossible values are wanted here


def batch(workers: int, periods: int) -> list[WorkerMetricsSample]:
    return [sample(f"w{w}", START + p * PERIOD, float(w), status="running") for p in range(periods) for w in range(workers)]


def keys(items: Iterable[WorkerMetricsSample]) -> list[Key]:
    return [(item.worker_id, to_seconds(item.timestamp)) for item in items]


async def stored(database: Database) -> Counter[Key]:
    return Counter([(d["worker_id"], to_seconds(d["timestamp"])) async for d in database[NAME].find()])


async def options(database: Database) -> Document:
    cursor = await database.list_collections(filter={"name": NAME})
    (found,) = await cursor.to_list(None)
    return dict(found)


@asynccontextmanager
async def stalled_inserts(database: Database) -> AsyncIterator[None]:
    """Keep every insert from finishing on the server inside the block."""
    admin = database.client.admin
    await admin.command("fsync", lock=True)
    try:
        yield
    finally:
        await admin.command("fsyncUnlock")


class TestCollection:
    async def test_it_is_created_with_the_customers_options_an_index_and_its_period(self, database: Database) -> None:
        repo = repository(database)
        await repo.ensure_collection()
        found = await options(database)
        assert found["type"] == "timeseries"
        assert found["options"]["expireAfterSeconds"] == 2592000
        assert found["options"]["timeseries"].items() >= {
            ("timeField", "timestamp"),
            ("metaField", "worker_id"),
            ("granularity", "minutes"),
        }
        indexes = [index["key"] async for index in await database[NAME].list_indexes()]
        assert INDEX in indexes
        assert await database[STATE].find_one({"_id": f"history:{NAME}"}) == {
            "_id": f"history:{NAME}",
            "schema": 1,
            "period": 300,
        }
        assert (repo.collection.retention, repo.collection.notices) == (30 * DAY, ())

    async def test_several_exporters_may_create_it_at_once_and_again(self, database: Database) -> None:
        for _ in range(2):
            await asyncio.gather(*(repository(database).ensure_collection() for _ in range(6)))
        assert (await options(database))["type"] == "timeseries"

    async def test_a_normal_collection_of_that_name_is_refused(self, database: Database) -> None:
        await database[NAME].insert_one({"precious": True})
        with pytest.raises(IncompatibleStoreError) as caught:
            await repository(database).ensure_collection()
        assert str(caught.value) == (
            f"{database.name}.{NAME} is a normal collection, not a time-series collection; "
            "rename or drop it, or give mongodb.history another name"
        )
        assert await database[NAME].count_documents({}) == 1

    async def test_a_view_of_that_name_is_refused(self, database: Database) -> None:
        await database.create_collection(NAME, viewOn="workers", pipeline=[])
        with pytest.raises(IncompatibleStoreError, match="is a view, not a time-series collection"):
            await repository(database).ensure_collection()

    async def test_other_time_series_fields_are_refused(self, database: Database) -> None:
        await database.create_collection(NAME, timeseries={"timeField": "ts", "metaField": "meta"})
        with pytest.raises(
            IncompatibleStoreError, match="timeField ts and metaField meta, but the history needs timestamp and worker_id"
        ):
            await repository(database).ensure_collection()

    async def test_another_granularity_is_only_a_notice(self, database: Database) -> None:
        timeseries = {"timeField": "timestamp", "metaField": "worker_id", "granularity": "hours"}
        await database.create_collection(NAME, timeseries=timeseries)
        repo = repository(database)
        await repo.ensure_collection()
        assert repo.collection.notices == (f"{database.name}.{NAME} has granularity hours; samples pack best with minutes",)

    async def test_the_index_may_exist_under_another_name(self, database: Database) -> None:
        await database.create_collection(NAME, timeseries={"timeField": "timestamp", "metaField": "worker_id"})
        await database[NAME].create_index(list(INDEX.items()), name="theirs")
        await repository(database).ensure_collection()

    async def test_another_period_is_refused_with_both_periods_and_the_remedies(self, database: Database) -> None:
        await repository(database, period=300).ensure_collection()
        with pytest.raises(IncompatibleStoreError) as caught:
            await repository(database, period=60).ensure_collection()
        assert caught.value.reason == "period"
        assert str(caught.value) == (
            f"{database.name}.{NAME} holds samples of 5m, but period is 1m; set period to 5m, "
            "or give mongodb.history another name for a history of 1m"
        )

    async def test_a_history_of_another_schema_is_refused(self, database: Database) -> None:
        await database[STATE].insert_one({"_id": f"history:{NAME}", "schema": 2, "period": 300})
        with pytest.raises(IncompatibleStoreError, match="another version of the exporter"):
            await repository(database).ensure_collection()

    async def test_an_old_server_is_refused(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(collection, "MIN_WIRE_VERSION", 99)
        with pytest.raises(IncompatibleStoreError, match=r"needs MongoDB 5\.0 or newer"):
            await repository(database).ensure_collection()

    @pytest.mark.parametrize(
        ("existing", "wanted", "apply", "kept"),
        [
            (30 * DAY, 90 * DAY, True, 90 * DAY),  # longer, and set explicitly
            (30 * DAY, 90 * DAY, False, 30 * DAY),  # only the default
            (90 * DAY, 30 * DAY, True, 90 * DAY),  # a shorter one would delete two months
            (90 * DAY, 30 * DAY, False, 90 * DAY),
            (None, 30 * DAY, True, None),  # a history without limit stays one
        ],
    )
    async def test_retention_is_only_ever_lengthened_and_only_on_request(
        self, database: Database, existing: int | None, wanted: int, apply: bool, kept: int | None
    ) -> None:
        extra: dict[str, Any] = {} if existing is None else {"expireAfterSeconds": existing}
        timeseries = {"timeField": "timestamp", "metaField": "worker_id", "granularity": "minutes"}
        await database.create_collection(NAME, timeseries=timeseries, **extra)
        repo = repository(database, retention=wanted, apply=apply)
        await repo.ensure_collection()
        assert (await options(database))["options"].get("expireAfterSeconds") == kept
        assert repo.collection.retention == kept
        assert len(repo.collection.notices) == (1 if apply else 0)
        if apply and kept == existing:
            assert "left alone; to shorten it, run: cml-worker-exporter retention --set 30d --yes" in repo.collection.notices[0]


class TestSamples:
    async def test_a_document_has_the_customers_shape_and_no_key_without_a_value(
        self, database: Database, samples: WorkerMetricsRepository
    ) -> None:
        await samples.add_sample(sample(cpu=12.5, memory_utilization=math.nan, active_labs_count=3, status="running"))
        await samples.add_sample(sample(at=START + PERIOD, cpu=None, memory_utilization=50.0))
        documents = await database[NAME].find({}, {"_id": 0}).sort("timestamp").to_list(None)
        assert documents == [
            {
                "worker_id": "w1",
                "timestamp": to_datetime(START),
                "region": "us-east-1",
                "cpu_utilization": 12.5,
                "active_labs_count": 3,
                "status": "running",
            },
            {
                "worker_id": "w1",
                "timestamp": to_datetime(START + PERIOD),
                "region": "us-east-1",
                "memory_utilization": 50.0,
            },
        ]

    async def test_samples_are_returned_unchanged_oldest_first_without_the_end(self, samples: WorkerMetricsRepository) -> None:
        written = [
            sample(at=START + n * PERIOD, cpu=float(n), memory_utilization=None, active_labs_count=n, status="running")
            for n in range(5)
        ]
        assert await samples.add_samples([*reversed(written), sample("w2")]) == 6
        read = await samples.get_samples("w1", to_datetime(START), to_datetime(START + 4 * PERIOD))
        assert read == written[:4]
        assert read[0].timestamp.tzinfo is UTC

    async def test_naive_times_are_utc_and_other_zones_are_converted(self, samples: WorkerMetricsRepository) -> None:
        zone = timezone(timedelta(hours=5))
        await samples.add_samples(
            [
                replace(sample(), timestamp=datetime(2026, 1, 1, 0, 5)),
                replace(sample(), timestamp=datetime(2026, 1, 1, 5, 0, tzinfo=zone)),
            ]
        )
        read = await samples.get_samples("w1", datetime(2026, 1, 1), datetime(2026, 1, 1, 5, 10, tzinfo=zone))
        assert [to_seconds(s.timestamp) for s in read] == [START, START + 300]

    async def test_what_is_past_retention_is_not_returned_though_mongodb_still_has_it(self, database: Database) -> None:
        late = repository(database, now=START + 30 * DAY + PERIOD)
        await late.ensure_collection()
        await late.add_samples([sample(at=START), sample(at=START + PERIOD)])
        window = to_datetime(START - DAY), to_datetime(START + DAY)
        assert [to_seconds(s.timestamp) for s in await late.get_samples("w1", *window)] == [START + PERIOD]
        (day,) = await late.get_aggregated_stats("w1", *window, timedelta(days=1))
        assert day.cpu_utilization.samples == 1

    async def test_non_numeric_values_of_another_program_are_returned_as_missing(
        self, database: Database, samples: WorkerMetricsRepository
    ) -> None:
        non_numeric = {"cpu_utilization": "45.2", "memory_utilization": math.nan, "active_labs_count": 2.0}
        await database[NAME].insert_one({"worker_id": "w1", "timestamp": to_datetime(START), **non_numeric})
        (read,) = await samples.get_samples("w1", to_datetime(START), to_datetime(START + 1))
        assert (read.cpu_utilization, read.memory_utilization, read.active_labs_count, read.status) == (None, None, 2, None)

    async def test_latest_timestamps_finds_the_newest_of_each_worker_at_any_age(self, database: Database) -> None:
        repo = repository(database, now=START + 40 * DAY)
        await repo.ensure_collection()
        await repo.add_samples([sample("old", START), sample("old", START + PERIOD)])
        await repo.add_samples([sample("live", START + 40 * DAY - n * PERIOD) for n in range(500)])
        await repo.add_samples([sample("silent", START + 39 * DAY + HOUR)])
        assert await repo.latest_timestamps(["old", "live", "silent", "never"]) == {
            "old": START + PERIOD,
            "live": START + 40 * DAY,
            "silent": START + 39 * DAY + HOUR,
        }

    async def test_timestamps_are_those_since_a_time_for_each_of_the_workers(
        self, database: Database, samples: WorkerMetricsRepository
    ) -> None:
        await samples.add_samples(batch(workers=3, periods=4))
        half = to_datetime(START + 2 * PERIOD) + timedelta(milliseconds=500)  # another program's, not the start of a period
        await database[NAME].insert_one({"worker_id": "w0", "timestamp": half})
        assert await samples.reader.timestamps(["w0", "w2", "never"], START + PERIOD) == {
            "w0": {START + PERIOD, START + 2 * PERIOD, START + 3 * PERIOD},
            "w2": {START + PERIOD, START + 2 * PERIOD, START + 3 * PERIOD},
            "never": set(),
        }


class TestStatistics:
    async def test_they_equal_those_computed_in_python(self, samples: WorkerMetricsRepository) -> None:
        dice = random.Random(2)
        written = [
            sample(
                at=START + n * PERIOD,
                cpu=dice.choice([None, dice.uniform(0, 100)]),
                memory_utilization=dice.choice([None, None, dice.uniform(0, 100)]),
                active_labs_count=dice.choice([None, dice.randrange(5)]),
                status=dice.choice([None, "running", "running", "stopped"]),
            )
            for n in range(288)
            if dice.random() < 0.8
        ]
        await samples.add_samples([*written, sample("w2", cpu=99.9)])
        start, end, interval = START + 20 * PERIOD, START + 250 * PERIOD, 2 * HOUR
        found = await samples.get_aggregated_stats("w1", to_datetime(start), to_datetime(end), timedelta(hours=2))
        inside = [s for s in written if start <= to_seconds(s.timestamp) < end]
        begins = sorted({to_seconds(s.timestamp) // interval * interval for s in inside})
        assert [to_seconds(row.timestamp) for row in found] == begins
        for row in found:
            begin = to_seconds(row.timestamp)
            members = [s for s in inside if begin <= to_seconds(s.timestamp) < begin + interval]
            for field in ("cpu_utilization", "memory_utilization", "active_labs_count"):
                values = [getattr(s, field) for s in members if getattr(s, field) is not None]
                got: Statistics = getattr(row, field)
                assert (got.samples, got.min, got.max) == (len(values), min(values, default=None), max(values, default=None))
                assert got.avg == (pytest.approx(sum(values) / len(values)) if values else None)
            statuses = [s.status for s in members if s.status]
            assert row.status_share == {k: pytest.approx(n / len(statuses)) for k, n in Counter(statuses).items()}

    @pytest.mark.parametrize("groups", [1, 50, 24_000])
    async def test_statistics_of_many_workers_are_those_of_each(
        self, database: Database, samples: WorkerMetricsRepository, monkeypatch: pytest.MonkeyPatch, groups: int
    ) -> None:
        monkeypatch.setattr(aggregation, "GROUPS_PER_QUERY", groups)
        statuses = ("running", "stopped", None)
        await samples.add_samples(
            sample(f"w{k}", at=START + n * PERIOD, cpu=float(n * k), status=statuses[(n // 20 + k) % 3])
            for k in range(5)
            for n in range(100)
        )
        await database[NAME].insert_one({"worker_id": "w3", "timestamp": to_datetime(START + 1), "cpu_utilization": "odd"})
        workers = ["w4", "w0", "w1", "w3", "absent", "w2", "w4"]
        window = to_datetime(START + 10 * PERIOD), to_datetime(START + 90 * PERIOD)
        found = await samples.get_aggregated_stats(workers, *window, timedelta(hours=1))
        assert list(found) == [f"w{k}" for k in range(5)]
        for worker_id, of_worker in found.items():
            assert of_worker == await samples.get_aggregated_stats(worker_id, *window, timedelta(hours=1))
            assert len(of_worker) == 8
        assert await samples.get_aggregated_stats([], *window, timedelta(hours=1)) == {}
        assert await samples.get_aggregated_stats(("absent",), *window, timedelta(hours=1)) == {}

    @pytest.mark.parametrize("values", [50, 500_000])
    @pytest.mark.parametrize("interval", [HOUR, DAY, 3 * 7 * DAY])
    async def test_percentiles_and_time_above_a_threshold_are_those_of_the_samples(
        self, samples: WorkerMetricsRepository, monkeypatch: pytest.MonkeyPatch, interval: int, values: int
    ) -> None:
        """Also where an interval is longer than a week: its values come in several documents."""
        monkeypatch.setattr(aggregation, "VALUES_PER_QUERY", values)
        dice, step = random.Random(interval), 7 * PERIOD
        stored = [
            sample(
                f"w{k}", at=at, cpu=dice.choice((None, dice.uniform(0, 100))), status=dice.choice(("running", "stopped", None))
            )
            for k in range(3)
            for at in range(START, START + 20 * DAY, step)
        ]
        await samples.add_samples(stored)
        window = to_datetime(START), to_datetime(START + 20 * DAY)
        further: dict[str, Any] = {"percentiles": True, "above": 49.5}
        found = await samples.get_aggregated_stats(["w0", "w1", "w2"], *window, timedelta(seconds=interval), **further)
        alone = await samples.get_aggregated_stats("w1", *window, timedelta(seconds=interval), **further)
        begins = {each.timestamp: align_interval(to_seconds(each.timestamp), interval) for each in stored}
        for worker_id, of_worker in [*found.items(), ("w1", alone)]:
            assert [to_seconds(row.timestamp) for row in of_worker] == sorted(set(begins.values()))
            for row in of_worker:
                members = [s for s in stored if s.worker_id == worker_id and begins[s.timestamp] == to_seconds(row.timestamp)]
                known = sorted(s.cpu_utilization for s in members if s.cpu_utilization is not None)
                ranks = [known[math.ceil(percent * len(known) / 100) - 1] if known else None for percent in (50, 95, 99)]
                got = row.cpu_utilization
                assert [got.p50, got.p95, got.p99] == ranks
                assert got.above_seconds == (sum(value > 49.5 for value in known) * PERIOD if known else None)
                assert (got.samples, got.min, got.max) == (len(known), min(known, default=None), max(known, default=None))
                assert got.avg == (pytest.approx(sum(known) / len(known)) if known else None)

    @pytest.mark.parametrize("zone", [None, ZoneInfo("America/New_York")])
    @pytest.mark.parametrize("interval", [300, HOUR, DAY, 7 * DAY, 21 * DAY])
    async def test_the_halves_of_a_long_range_are_one_list(
        self, samples: WorkerMetricsRepository, monkeypatch: pytest.MonkeyPatch, interval: int, zone: ZoneInfo | None
    ) -> None:
        stored = [
            sample(at=at, cpu=at % 977 / 10, status=("running", "stopped")[at // 7200 % 2])
            for at in range(START, START + 20 * DAY, 1800)
        ]
        await samples.add_samples(stored)
        window = START + 1800, START + 19 * DAY - 1800, interval
        wanted = Distribution(percentiles=True, above=50)
        monkeypatch.setattr(sample_reader, "SAMPLES_PER_STATISTICS_QUERY", 10**6)
        whole, _ = await samples.reader.read_statistics("w1", *window, limit=10_000, zone=zone, wanted=wanted)
        monkeypatch.setattr(sample_reader, "SAMPLES_PER_STATISTICS_QUERY", 1)
        halves, _ = await samples.reader.read_statistics("w1", *window, limit=10_000, zone=zone, wanted=wanted)
        assert sum(row["cpu_utilization"]["samples"] for row in whole) == 19 * 48 - 2
        assert [row["timestamp"] for row in halves] == [row["timestamp"] for row in whole]
        for half, row in zip(halves, whole, strict=True):
            assert half["cpu_utilization"].pop("avg") == pytest.approx(row["cpu_utilization"].pop("avg"))  # type: ignore[misc]
            assert half == row

    @pytest.mark.parametrize(("every_value", "interval"), [(True, 21 * DAY), (True, HOUR), (False, 300)])
    async def test_no_document_of_statistics_holds_more_than_a_week(
        self, database: Database, samples: WorkerMetricsRepository, every_value: bool, interval: int
    ) -> None:
        """A year of one-minute periods would exceed MongoDB's limit of 16 MiB."""
        await samples.add_samples([sample(at=at) for at in range(START, START + 20 * DAY, 2 * HOUR)])
        pipeline = statistics_pipeline({"worker_id": "w1"}, interval, every_value=every_value)
        found = await (await database[NAME].aggregate(pipeline)).to_list()
        key = "cpu_utilization_values" if every_value else "start"
        sizes = [sum(len(each) if every_value else 1 for each in document[key]) for document in found]
        assert (len(found), sum(sizes)) == (4, 240)
        assert max(sizes) == 7 * 12

    async def test_only_the_statistics_that_are_asked_for_are_returned(self, samples: WorkerMetricsRepository) -> None:
        await samples.add_samples([sample(at=START, cpu=50.0)])
        window = to_datetime(START), to_datetime(START + HOUR), timedelta(hours=1)
        (plain,) = await samples.get_aggregated_stats("w1", *window)
        assert plain.cpu_utilization == Statistics(50, 50, 50, 1)
        (above,) = await samples.get_aggregated_stats("w1", *window, above=0)
        assert above.cpu_utilization == Statistics(50, 50, 50, 1, above_seconds=PERIOD)
        (ranks,) = await samples.get_aggregated_stats("w1", *window, percentiles=True)
        assert ranks.cpu_utilization == Statistics(50, 50, 50, 1, 50, 50, 50)
        with pytest.raises(ValueError, match="above nan must be a finite number"):
            await samples.get_aggregated_stats("w1", *window, above=math.nan)

    async def test_weeks_begin_on_monday_and_days_at_midnight_utc(self, samples: WorkerMetricsRepository) -> None:
        await samples.add_samples([sample(at=START + n * DAY) for n in range(10)])
        window = to_datetime(START), to_datetime(START + 10 * DAY)
        weeks = await samples.get_aggregated_stats("w1", *window, timedelta(days=7))
        assert [(w.timestamp.isoformat(), w.cpu_utilization.samples) for w in weeks] == [
            ("2025-12-29T00:00:00+00:00", 4),
            ("2026-01-05T00:00:00+00:00", 6),
        ]
        days = await samples.get_aggregated_stats("w1", *window, timedelta(days=1))
        assert [to_seconds(d.timestamp) for d in days] == [START + n * DAY for n in range(10)]
        assert all(w.timestamp.weekday() == 0 for w in weeks)

    async def test_non_numeric_values_do_not_count(self, database: Database, samples: WorkerMetricsRepository) -> None:
        non_numeric: list[object] = ["99", math.nan, None, 7.0]
        await database[NAME].insert_many(
            [
                {"worker_id": "w1", "timestamp": to_datetime(START + n), "cpu_utilization": value}
                for n, value in enumerate(non_numeric)
            ]
        )
        (row,) = await samples.get_aggregated_stats("w1", to_datetime(START), to_datetime(START + 60), timedelta(minutes=1))
        assert row.cpu_utilization == Statistics(avg=7.0, min=7.0, max=7.0, samples=1)
        assert row.memory_utilization == Statistics(avg=None, min=None, max=None, samples=0)
        assert row.status_share == {}

    @pytest.mark.parametrize("interval", [timedelta(0), timedelta(seconds=-5), timedelta(milliseconds=1500)])
    async def test_an_impossible_interval_is_refused(self, samples: WorkerMetricsRepository, interval: timedelta) -> None:
        with pytest.raises(ValueError, match="must be a positive whole number of seconds"):
            await samples.get_aggregated_stats("w1", to_datetime(START), to_datetime(START + DAY), interval)


class TestRejected:
    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ({"status": "\ud800"}, "UnicodeEncodeError"),
            ({"active_labs_count": 2**70}, "OverflowError"),
            ({"status": "x" * 17 * 1024 * 1024}, "exceed 1048576"),
            ({"status": object()}, "InvalidDocument"),
        ],
        ids=["surrogate", "too many labs", "too large", "no BSON"],
    )
    async def test_one_impossible_sample_is_returned_and_the_others_are_stored(
        self, database: Database, samples: WorkerMetricsRepository, bad: dict[str, Any], reason: str
    ) -> None:
        poison = sample("w1", START, **bad)
        good = batch(workers=3, periods=2)
        ((rejected, why),) = await samples.writer.insert([*good[:3], poison, *good[3:]])
        assert rejected is poison
        assert reason in why
        assert set(await stored(database)) == set(keys(good))

    async def test_a_document_the_server_rejects_does_not_hold_up_the_others(
        self, database: Database, samples: WorkerMetricsRepository
    ) -> None:
        good, poison = sample("w1"), sample("w2")
        documents: list[Document] = [{"worker_id": "w2"}, {"worker_id": "w1", "timestamp": good.timestamp}]
        ((rejected, why),) = await samples.writer._insert_batch([poison, good], documents)
        assert rejected is poison
        assert why.startswith("code 2: 'timestamp' must be present")
        assert set(await stored(database)) == {("w1", START)}

    async def test_adding_a_rejected_sample_raises_after_storing_the_others(
        self, database: Database, samples: WorkerMetricsRepository
    ) -> None:
        with pytest.raises(StoreError, match=r"rejects 1 of 2 samples \(the others are stored\)") as caught:
            await samples.add_samples([sample("w1"), sample("w2", active_labs_count=2**70)])
        assert caught.value.reason == "rejected"
        assert set(await stored(database)) == {("w1", START)}


class TestExactlyOnce:
    async def test_existing_keys_are_those_of_the_stored_samples(
        self, database: Database, samples: WorkerMetricsRepository
    ) -> None:
        there = [*batch(workers=3, periods=3), sample("far", START + 20 * DAY)]
        await samples.writer.insert(there)
        await database[NAME].insert_one({"worker_id": "w9", "timestamp": to_datetime(START) + timedelta(milliseconds=1)})
        absent = [("w0", START + 10 * PERIOD), ("w9", START), ("never", START)]
        assert await samples.writer.existing_keys([*keys(there)[2:], *absent]) == set(keys(there)[2:])
        assert await samples.writer.existing_keys([]) == set()

    async def test_stored_samples_have_the_values_of_the_history_whoever_wrote_them(
        self, database: Database, samples: WorkerMetricsRepository
    ) -> None:
        await samples.writer.insert([*batch(workers=3, periods=3), sample("far", START + 20 * DAY, None)])
        moment = timedelta(milliseconds=1)
        await database[NAME].insert_many(
            [
                {"worker_id": "w9", "timestamp": to_datetime(START), "cpu_utilization": "much", "active_labs_count": 2.0},
                {"worker_id": "w9", "timestamp": to_datetime(START) + moment, "cpu_utilization": 9},
            ]
        )
        wanted = [("w1", START + PERIOD), ("far", START + 20 * DAY), ("w9", START), ("w0", START + 9 * PERIOD)]
        assert sorted(await samples.writer.stored_samples(wanted)) == [
            FinalSample("far", START + 20 * DAY, "us-east-1"),
            FinalSample("w1", START + PERIOD, "us-east-1", 1.0, None, None, "running"),
            FinalSample("w9", START, "", None, None, 2, None),
        ]
        assert await samples.writer.stored_samples([]) == []

    async def test_an_insert_of_more_than_one_batch_is_complete(
        self, database: Database, samples: WorkerMetricsRepository
    ) -> None:
        big = batch(workers=20, periods=288)
        assert await samples.writer.insert(big) == []
        assert await stored(database) == Counter(keys(big))

    async def test_a_running_insert_is_seen(self, samples: WorkerMetricsRepository, database: Database) -> None:
        assert await samples.writer.no_insert_running()
        async with stalled_inserts(database):
            insert = asyncio.create_task(samples.writer.insert(batch(workers=10, periods=1)))
            await until_no_insert_runs(samples, False)
            assert not insert.done()
        await insert
        assert await samples.writer.no_insert_running()

    async def test_inserts_into_other_collections_and_databases_do_not_count(
        self, samples: WorkerMetricsRepository, database: Database
    ) -> None:
        async with stalled_inserts(database):
            others = [database["other"], database.client[database.name + "_other"][NAME]]
            inserts = [asyncio.create_task(other.insert_one({"a": 1})) for other in others]
            await asyncio.sleep(0.3)
            assert await samples.writer.no_insert_running()
        await asyncio.gather(*inserts)
        await database.client.drop_database(database.name + "_other")

    async def test_an_insert_past_its_limit_ends_on_the_server_too(
        self, samples: WorkerMetricsRepository, database: Database
    ) -> None:
        async with stalled_inserts(database):
            with pytest.raises(StoreUnavailableError) as caught:
                await samples.writer.insert([sample()], within=lambda: 0.5)
            assert caught.value.reason == "timeout"
            await until_no_insert_runs(samples)
        assert await samples.writer.existing_keys([("w1", START)]) == set()

    async def test_the_limit_of_an_insert_is_asked_when_all_documents_are_made_and_an_error_there_sends_nothing(
        self, samples: WorkerMetricsRepository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make, order = sample_documents._documents, []

        def made(rows: Sequence[Any]) -> Iterator[Document]:
            for document in make(rows):
                order.append("made")
                yield document

        def lost() -> float:
            order.append("asked")
            raise StoreUnavailableError("the lease is lost", reason="lease")

        monkeypatch.setattr(sample_documents, "_documents", made)
        with pytest.raises(StoreUnavailableError, match="the lease is lost"):
            await samples.writer.insert([sample("w1"), sample("w2")], within=lost)
        assert order == ["made", "made", "asked"]
        assert await samples.writer.existing_keys([("w1", START), ("w2", START)]) == set()

    async def test_a_sample_that_a_majority_does_not_hold_yet_is_unsettled(self, rs_database: Database) -> None:
        repo = repository(rs_database)
        await repo.ensure_collection()
        await repo.writer.insert([sample("w1")])
        point = {"configureFailPoint": "disableSnapshotting"}
        admin = rs_database.client.admin
        await admin.command(point | {"mode": "alwaysOn"})
        try:
            unreplicated = rs_database[NAME].with_options(write_concern=WriteConcern(1))
            await unreplicated.insert_one({"worker_id": "w2", "timestamp": to_datetime(START)})
            assert await repo.writer.existing_keys([("w1", START)]) == {("w1", START)}
            with pytest.raises(StoreUnavailableError) as caught:
                await repo.writer.existing_keys([("w1", START), ("w2", START)])
            assert caught.value.reason == "unsettled"
        finally:
            await admin.command(point | {"mode": "off"})
        await repo.writer.insert([sample("w3")])
        assert await repo.writer.existing_keys([("w2", START), ("w3", START)]) == {("w2", START), ("w3", START)}


async def until_no_insert_runs(repo: WorkerMetricsRepository, expected: bool = True) -> None:
    async with asyncio.timeout(scaled(20)):
        while await repo.writer.no_insert_running() is not expected:  # noqa: ASYNC110  # the event is in another process
            await asyncio.sleep(0.02)


async def mirror(repo: WorkerMetricsRepository, wanted: list[WorkerMetricsSample]) -> int:
    """Store a batch as the mirror does, until it succeeds; return how often it failed."""
    failures = 0
    while True:
        try:
            await until_no_insert_runs(repo)
            there = await repo.writer.existing_keys(keys(wanted))
            assert await repo.writer.insert([s for s, key in zip(wanted, keys(wanted), strict=True) if key not in there]) == []
        except StoreUnavailableError:
            failures += 1
            await asyncio.sleep(0.05)
        else:
            return failures


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["standalone", "replica set"])
async def test_a_connection_cut_around_an_insert_neither_loses_nor_duplicates(
    request: pytest.FixtureRequest, kind: str, cut: Cut
) -> None:
    server: Mongod = request.getfixturevalue("mongod" if kind == "standalone" else "mongo_rs")
    wanted = batch(workers=30, periods=40)
    async with CuttingProxy(server.port) as proxy, connect(proxy.uri) as client, connect(server.uri) as direct:
        name = f"test_cut_{cut}_{kind[0]}"
        repo = repository(client[name])
        await repo.ensure_collection()
        proxy.cut(cut, cut, cut)
        failures = await mirror(repo, wanted)
        assert proxy.cuts >= 1
        assert failures > 0 or kind == "replica set"  # there the driver repeats a write by itself
        assert await stored(direct[name]) == Counter(keys(wanted))
        await direct.drop_database(name)


async def test_a_mongod_killed_between_insert_and_acknowledgement_neither_loses_nor_duplicates(own_mongod: Mongod) -> None:
    wanted = batch(workers=20, periods=30)
    plan: tuple[Cut, ...] = ("mid", "after")
    async with CuttingProxy(own_mongod.port) as proxy, connect(proxy.uri, patience=20) as client:
        repo = repository(client["cml"])
        await repo.ensure_collection()
        for attempt, cut in enumerate(plan):
            part = wanted[attempt * 300 :][:300]
            proxy.cut(cut)
            with pytest.raises(StoreUnavailableError):
                await repo.writer.insert(part)
            own_mongod.kill()
            await asyncio.to_thread(own_mongod.start)
            async with connect(own_mongod.uri) as direct:
                on_server = await stored(direct["cml"])
                assert await repo.writer.existing_keys(keys(part)) == {key for key in keys(part) if key in on_server}
                if cut == "after":  # journaled before it was acknowledged
                    assert set(keys(part)) <= on_server.keys()
            await mirror(repo, part)
        async with connect(own_mongod.uri) as direct:
            assert await stored(direct["cml"]) == Counter(keys(wanted))


class TestCredentials:
    async def test_the_least_role_is_sufficient_for_everything(self, mongo_auth: AuthMongod) -> None:
        async with connect(mongo_auth.exporter_uri("least")) as client:
            database = client["least"]
            await repository(database).ensure_collection()
            repo = repository(database, retention=60 * DAY, apply=True)
            await repo.ensure_collection()
            assert repo.collection.retention == 60 * DAY
            assert await mirror(repo, batch(workers=3, periods=3)) == 0
            assert await repo.writer.existing_keys([("w0", START)]) == {("w0", START)}
            window = to_datetime(START), to_datetime(START + DAY)
            assert len(await repo.get_samples("w1", *window)) == 3
            assert len(await repo.get_aggregated_stats("w1", *window, timedelta(days=1))) == 1
            assert (await repo.latest_timestamps(["w1"])).keys() == {"w1"}
            assert len((await repo.reader.timestamps(["w1"], START))["w1"]) == 3
            await Inventory(database).record(Fleet(START, (worker(),)))
            await Inventory(database).record(Fleet(START + 60, (worker(),)))
            lease = Lease(database, owner="me", announces=True)
            assert await lease.acquire_or_renew()
            await lease.release()
            snapshots = SnapshotStore(database, lease.id)
            for at in (START, START + 300):
                await snapshots.write(CloudWatchSnapshot(at, {}, {}))
                assert await snapshots.read(at - 1) == CloudWatchSnapshot(at, {}, {})
            assert await database["workers"].find_one() is None

    async def test_a_running_insert_is_seen_with_the_least_role(self, mongo_auth: AuthMongod) -> None:
        async with connect(mongo_auth.exporter_uri("running")) as client, connect(mongo_auth.root_uri) as root:
            repo = repository(client["running"])
            await repo.ensure_collection()
            async with stalled_inserts(root["running"]):
                insert = asyncio.create_task(repo.writer.insert([sample()]))
                await until_no_insert_runs(repository(root["running"]), False)
                assert not await repo.writer.no_insert_running()
                assert not await repo.writer.no_insert_running()
            await insert
            log = (await root.admin.command("getLog", "global"))["log"]
            assert not [line for line in log if "uthoriz" in line and "currentOp" in line], "MongoDB logs what it refuses"

    @pytest.mark.parametrize(
        ("collection", "action"),
        [
            ("", "listCollections"),
            (NAME, "createIndex"),
            (NAME, "collMod"),
            (NAME, "insert"),
            (NAME, "find"),
            (STATE, "update"),
        ],
    )
    async def test_a_missing_privilege_is_named_with_its_collection(
        self, mongo_auth: AuthMongod, collection: str, action: str
    ) -> None:
        name = f"lacks_{action}_{collection[:6]}"
        privileges = least_role(name)
        for privilege in privileges:
            if privilege["resource"]["collection"] == collection:
                privilege["actions"].remove(action)
        privileges = [privilege for privilege in privileges if privilege["actions"]]
        async with connect(mongo_auth.user(name, privileges)) as client:

            async def work() -> None:
                await repository(client[name]).ensure_collection()
                await repository(client[name], retention=60 * DAY, apply=True).ensure_collection()
                await repository(client[name]).writer.insert([sample()])
                await repository(client[name]).writer.existing_keys([("w1", START)])

            with pytest.raises(IncompatibleStoreError) as caught:
                await work()
        assert caught.value.reason == "not_authorized"
        where = f"{name}.{collection or NAME}"
        assert str(caught.value).startswith(f"MongoDB does not allow this user `{action}` on {where}; grant it the least role")

    async def test_wrong_credentials_are_reported_as_such(self, mongo_auth: AuthMongod) -> None:
        async with connect(mongo_auth.uri("exporter", "wrong", "wrong_user")) as client:
            with pytest.raises(IncompatibleStoreError, match="refuses the credentials") as caught:
                await repository(client["wrong_user"]).ensure_collection()
        assert caught.value.reason == "credentials"
        assert "wrong" not in str(caught.value)


def worker(id: str = "w1", instance: str | None = "i-a", **fields: object) -> Worker:
    bare = Worker(id=id, region="us-east-1", instance_id=instance, status="running")
    return replace(bare, **fields)  # type: ignore[arg-type]


class TestInventory:
    async def test_loaded_entries_equal_the_recorded_ones(self, database: Database) -> None:
        recorded = Inventory(database)
        steps = [
            (worker(), worker("w2", None), worker("w3", "i-c", name="lab", created_at=START - 5)),
            (worker("w1"), worker("w2", None), worker("w3", "i-c", name="lab", created_at=START - 5)),
            (worker("w1", "i-b"), worker("w2", "i-x"), worker("w3", "i-c", status="terminated", terminated_at=START + 100)),
            (worker("w1", "i-a"), worker("w2", "i-x")),
            (worker("w1", None), worker("w2", "i-x"), worker("w4")),
            (worker("w1", None), worker("w2", "i-x"), worker("w4")),
        ]
        for n, workers in enumerate(steps):
            await recorded.record(Fleet(START + n * 60, workers))
            loaded = Inventory(database)
            await loaded.load()
            assert loaded.entries == recorded.entries
        w1, w3 = recorded.entries["w1"], recorded.entries["w3"]
        assert [(s.instance_id, s.first - START, s.last - START) for s in w1.instances] == [
            ("i-a", 0, 60),
            ("i-b", 120, 120),
            ("i-a", 180, 180),
        ]
        assert (w3.name, w3.status, w3.last_seen, w3.terminated_at) == ("lab", "terminated", START + 120, START + 100)

    async def test_documents_have_the_designed_shape(self, database: Database) -> None:
        inventory = Inventory(database)
        await inventory.record(Fleet(START, (worker(),)))
        await inventory.record(Fleet(START + 60, (worker(),)))
        assert await database[INVENTORY].find_one() == {
            "_id": "w1",
            "worker_id": "w1",
            "region": "us-east-1",
            "status": "running",
            "instances": [{"id": "i-a", "region": "us-east-1", "from": to_datetime(START), "to": to_datetime(START + 60)}],
            "first_seen": to_datetime(START),
            "last_seen": to_datetime(START + 60),
        }

    async def test_a_restarted_process_continues_what_was_recorded_without_an_explicit_load(self, database: Database) -> None:
        await Inventory(database).record(Fleet(START, (worker(),)))
        again = Inventory(database)
        await again.record(Fleet(START + 600, (worker(instance="i-b"),)))
        assert [s.instance_id for s in again.entries["w1"].instances] == ["i-a", "i-b"]

    async def test_entries_that_could_not_be_written_are_written_the_next_time(self, own_mongod: Mongod) -> None:
        async with connect(own_mongod.uri, patience=1) as client:
            inventory = Inventory(client["cml"])
            await inventory.record(Fleet(START, (worker(), worker("w2"))))
            own_mongod.kill()
            with pytest.raises(StoreUnavailableError):
                await inventory.record(Fleet(START + 60, (worker(instance="i-b"), worker("w2"))))
            await asyncio.to_thread(own_mongod.start)
            await inventory.record(Fleet(START + 120, (worker(instance="i-c"),)))
            loaded = Inventory(client["cml"])
            await loaded.load()
            assert loaded.entries == inventory.entries
            assert [s.instance_id for s in loaded.entries["w1"].instances] == ["i-a", "i-b", "i-c"]
            assert loaded.entries["w2"].last_seen == START + 60


UNAVAILABLE, INCOMPATIBLE, OTHER = StoreUnavailableError, IncompatibleStoreError, StoreError
EXPECTED: dict[str, tuple[type[StoreError], str]] = {
    "AutoReconnect": (UNAVAILABLE, "connection"),
    "ConnectionFailure": (UNAVAILABLE, "connection"),
    "NetworkTimeout": (UNAVAILABLE, "timeout"),
    "NotPrimaryError": (UNAVAILABLE, "not_primary"),
    "ServerSelectionTimeoutError": (UNAVAILABLE, "unreachable"),
    "WaitQueueTimeoutError": (UNAVAILABLE, "timeout"),
    "ExecutionTimeout": (UNAVAILABLE, "timeout"),
    "WriteConcernError": (UNAVAILABLE, "write_concern"),
    "WTimeoutError": (UNAVAILABLE, "write_concern"),
    "BulkWriteError": (UNAVAILABLE, "write_error"),
    "CursorNotFound": (UNAVAILABLE, "transient"),
    "DuplicateKeyError": (UNAVAILABLE, "transient"),
    "CollectionInvalid": (INCOMPATIBLE, "error"),
    "ConfigurationError": (INCOMPATIBLE, "error"),
    "InvalidURI": (INCOMPATIBLE, "error"),
    "InvalidName": (INCOMPATIBLE, "error"),
    "DocumentTooLarge": (OTHER, "invalid_document"),
    "BSONError": (OTHER, "invalid_document"),
    "InvalidBSON": (OTHER, "invalid_document"),
    "InvalidDocument": (OTHER, "invalid_document"),
    "InvalidId": (OTHER, "invalid_document"),
    "InvalidStringData": (OTHER, "invalid_document"),
    "OperationFailure": (OTHER, "error"),
    "WriteError": (OTHER, "error"),
    "ClientBulkWriteException": (OTHER, "error"),
    "EncryptionError": (OTHER, "error"),
    "EncryptedCollectionError": (OTHER, "error"),
    "InvalidOperation": (OTHER, "error"),
    "ProtocolError": (OTHER, "error"),
    "PyMongoError": (OTHER, "error"),
    "_OperationCancelled": (UNAVAILABLE, "connection"),
}
SAMPLES: dict[str, Exception] = {
    "BulkWriteError": pymongo.errors.BulkWriteError({"writeErrors": [{"code": 112, "errmsg": "conflict"}]}),
    "CursorNotFound": pymongo.errors.CursorNotFound("gone", 43),
    "DuplicateKeyError": pymongo.errors.DuplicateKeyError("twice", 11000),
    "ClientBulkWriteException": pymongo.errors.ClientBulkWriteException({}, False),
    "EncryptionError": pymongo.errors.EncryptionError(ValueError("key")),
    "EncryptedCollectionError": pymongo.errors.EncryptedCollectionError(ValueError("key"), {}),
}


def driver_errors(module: ModuleType) -> dict[str, type[Exception]]:
    return {
        name: kind
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__ == module.__name__
    }


class TestTranslation:
    def test_every_error_class_of_the_driver_is_mapped(self) -> None:
        kinds = driver_errors(pymongo.errors) | driver_errors(bson.errors)
        translated = {
            name: translate(SAMPLES[name] if name in SAMPLES else kind("because"), "cml.history", "insert")
            for name, kind in kinds.items()
        }
        assert {name: (type(error), error.reason) for name, error in translated.items()} == EXPECTED

    @pytest.mark.parametrize(
        ("code", "kind", "reason"),
        [
            (13, IncompatibleStoreError, "not_authorized"),
            (18, IncompatibleStoreError, "credentials"),
            (50, StoreUnavailableError, "timeout"),
            (72, IncompatibleStoreError, "options"),
            (91, StoreUnavailableError, "transient"),
            (112, StoreUnavailableError, "transient"),
            (10107, StoreUnavailableError, "transient"),
            (26, StoreError, "error"),
        ],
    )
    def test_the_servers_code_decides_the_kind_and_reason(self, code: int, kind: type[StoreError], reason: str) -> None:
        error = translate(OperationFailure("because", code), "cml.history", "insert")
        assert (type(error), error.reason) == (kind, reason)

    def test_a_retryable_label_of_the_server_makes_it_unavailable(self) -> None:
        error = OperationFailure("because", 4711, {"errorLabels": ["RetryableWriteError"]})
        assert type(translate(error, "cml.history", "insert")) is StoreUnavailableError

    @pytest.mark.parametrize(
        ("details", "kind", "reason"),
        [
            ({"writeErrors": [{"code": 2}, {"code": 13}]}, IncompatibleStoreError, "not_authorized"),
            ({"writeErrors": [], "writeConcernErrors": [{"code": 64}]}, StoreUnavailableError, "write_concern"),
        ],
    )
    def test_the_parts_of_a_bulk_error_decide(self, details: Document, kind: type[StoreError], reason: str) -> None:
        error = translate(pymongo.errors.BulkWriteError(details), "cml.history", "insert")
        assert (type(error), error.reason) == (kind, reason)

    @pytest.mark.parametrize("error", [OverflowError("8 bytes"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates")])
    async def test_errors_of_python_itself_are_translated_too(self, database: Database, error: Exception) -> None:
        async def fail() -> None:
            async with operation(database, NAME, "insert"):
                raise error

        with pytest.raises(StoreError) as caught:
            await fail()
        assert caught.value.reason == "invalid_document"


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ({"w1": (0, 0), "w2": (0, 0), "w3": (0, 0)}, [(["w1", "w2", "w3"], 0, 0)]),
        ({"w1": (0, 9), "w2": (0, 9), "w3": (5, 9)}, [(["w1", "w2", "w3"], 0, 9)]),
        ({"w1": (0, 0), "w2": (100, 100)}, [(["w1"], 0, 0), (["w2"], 100, 100)]),
        ({"w1": (0, 99), "w2": (0, 0), "w3": (0, 0)}, [(["w2", "w3"], 0, 0), (["w1"], 0, 99)]),
    ],
    ids=["one period", "about the same", "far apart", "a backlog and live samples"],
)
def test_workers_are_read_back_together_where_their_ranges_are_about_the_same(
    spans: dict[str, tuple[int, int]], expected: list[tuple[list[str], int, int]]
) -> None:
    wanted = [(worker, START + at * PERIOD) for worker, span in spans.items() for at in sorted({*span})]
    found = [
        (ids, (low - START) // PERIOD, (high - START) // PERIOD) for ids, low, high in sample_writer._reads(wanted, PERIOD)
    ]
    assert found == expected
    assert list(sample_writer._reads([*reversed(wanted)], PERIOD)) == list(sample_writer._reads(wanted, PERIOD))
    assert list(sample_writer._reads([], PERIOD)) == []


def test_a_read_back_has_at_most_so_many_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_writer, "MAX_PERIODS_PER_READ", 30)
    wanted = [(f"w{n}", START + at * PERIOD) for n in range(10) for at in (0, 9)]
    assert [len(ids) for ids, _, _ in sample_writer._reads(wanted, PERIOD)] == [3, 3, 3, 1]
