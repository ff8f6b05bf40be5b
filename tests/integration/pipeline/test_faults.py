"""Sources and stores that fail in every known way: /metrics answers, no final sample is lost, no worker affects another."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from bson import Int64
from pymongo import AsyncMongoClient, MongoClient
from structlog.testing import capture_logs

from exporter.core.model import Listing, MetricQuery, MetricResults
from exporter.core.periods import DAY, align, to_seconds
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from tests.fixtures.mongo import AuthMongod
from tests.fixtures.process import RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member, assert_true, expected_history
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter, series
from tests.helpers.ports import free_port

GOOD, BAD = "eu-west-1", "us-east-1"
HOUR = 3600
ALL_CALLS = 10**6
POLLED_AFTER = 180
"""Seconds after a period's end at which a cycle polls: the newest datapoint is that old."""


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one attempt per call: retries are tested elsewhere."""
    monkeypatch.setattr("exporter.sources.cloudwatch.transport.ATTEMPTS", 1)
    monkeypatch.setattr("exporter.sources.cloudwatch.sessions.ATTEMPTS", 1)


MakeExporter = Callable[..., InProcessExporter]


@pytest.fixture
async def make_exporter(tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> AsyncIterator[MakeExporter]:
    """Return a function that makes an exporter on the shared mongod; it is closed after the test."""
    made: list[InProcessExporter] = []

    def make(**options: Any) -> InProcessExporter:  # noqa: ANN401  # those of InProcessExporter
        exporter = InProcessExporter(tmp_path / "data", options.pop("database", database), fake, clock, **options)
        made.append(exporter)
        return exporter

    yield make
    for exporter in made:
        await exporter.close()


def add_instances(fake: FakeCloudWatch, since: int, count: int = 4, regions: Sequence[str] = (GOOD, BAD)) -> list[Member]:
    """Add a fleet's instances to the fake and return its members; the last one has no agent."""
    members = [Member(f"worker-{k}", instance_id(k), regions[k % len(regions)], since) for k in range(count)]
    for member in members:
        fake.add(member.instance_id, member.region, runs=[(since, None)], agent=member is not members[-1])
    return members


async def insert_workers(database: Database, members: Sequence[Member]) -> None:
    await database["workers"].insert_many([member.aggregate() for member in members])


def in_region(text: str, region: str) -> dict[str, float]:
    return {
        name: value for name, value in series(text, "cml_worker_cpu_utilization_ratio{").items() if f'region="{region}"' in name
    }


# -- CloudWatch --------------------------------------------------------------------------------------------------------


async def test_a_sample_that_cloudwatch_never_answers_in_full_is_given_up_after_the_gap_fill_window(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """As long as the answers are partial nothing is decided; then the status and labs of the period go into the history."""
    members = add_instances(fake, int(clock()) - DAY)
    await insert_workers(database, members)
    exporter = make_exporter()
    fake.fault("GetMetricData", "partial", count=ALL_CALLS)
    await exporter.round(3)
    observed = align(int(clock()), PERIOD) - PERIOD
    undecided = exporter.outbox.outbox.counts()["observed"]
    oldest_given_up = exporter.value("cml_exporter_samples_unavailable_total", metric="cpu") or 0
    assert undecided > 0
    assert await exporter.documents() == []

    clock.now += DAY + PERIOD
    await exporter.round()

    given_up = [each for each in await exporter.documents() if to_seconds(each["timestamp"]) <= observed]
    assert {each["worker_id"] for each in given_up} == {member.worker_id for member in members}
    assert all("status" in each and "cpu_utilization" not in each for each in given_up)
    assert exporter.value("cml_exporter_samples_unavailable_total", metric="cpu") == oldest_given_up + undecided


LIKE_ANOTHER = pytest.mark.nightly(
    "test_a_region_whose_cloudwatch_fails_is_reported_and_loses_nothing_and_the_other_region_is_not_affected"
)


@pytest.mark.parametrize(
    ("mode", "operation", "code"),
    [
        ("throttle", "GetMetricData", "Throttling"),
        pytest.param("429", "GetMetricData", "429", marks=LIKE_ANOTHER),
        pytest.param("500", "GetMetricData", "503", marks=LIKE_ANOTHER),
        pytest.param("cut", "GetMetricData", "ConnectionClosedError", marks=LIKE_ANOTHER),
        pytest.param("trunc", "GetMetricData", "IncompleteBody", marks=LIKE_ANOTHER),
        ("empty", "GetMetricData", "IncompleteBody"),
        ("partial", "GetMetricData", None),
        pytest.param("slow-drip", "GetMetricData", None, marks=LIKE_ANOTHER),
        pytest.param("hang", "GetMetricData", None, marks=pytest.mark.waits(25)),
        ("access_denied", "ListMetrics", "AccessDenied"),
        pytest.param("expired_token", "*", "ExpiredToken", marks=LIKE_ANOTHER),
        pytest.param("validation", "GetMetricData", "ValidationError", marks=LIKE_ANOTHER),
    ],
)
async def test_a_region_whose_cloudwatch_fails_is_reported_and_loses_nothing_and_the_other_region_is_not_affected(
    make_exporter: MakeExporter,
    database: Database,
    fake: FakeCloudWatch,
    clock: Clock,
    mode: str,
    operation: str,
    code: str | None,
) -> None:
    members = add_instances(fake, int(clock()) - HOUR)
    await insert_workers(database, members)
    exporter = make_exporter(deadline=8)  # of the healthy region, too: a loaded machine needs seconds
    await exporter.round()
    clock.now += 2 * PERIOD  # the listings expire, too
    fake.fault(operation, mode, ALL_CALLS, BAD)
    await exporter.round()
    text = await exporter.scrape()
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=BAD) == 0
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=GOOD) == 1
    assert exporter.collector.healthy[f"cloudwatch {GOOD}"] is None
    assert exporter.collector.healthy[f"cloudwatch {BAD}"]
    failures = series(text, "cml_exporter_cloudwatch_request_failures_total{")
    assert code is None or any(f'code="{code}"' in name and f'region="{BAD}"' in name for name in failures), failures
    assert not any(f'region="{GOOD}"' in name for name in failures)
    assert len(in_region(text, GOOD)) == 2
    newest = series(text, 'cml_worker_sample_timestamp_seconds{metric="cpu",')
    assert [time for name, time in newest.items() if GOOD in name] == [clock() - POLLED_AFTER] * 2
    await exporter.round()
    fake.clear()
    await exporter.round(5)
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=BAD) == 1
    assert len(in_region(await exporter.scrape(), BAD)) == 2
    assert await exporter.assert_history_is_true(fake, members) >= 4 * 15


async def test_a_worker_in_a_region_that_does_not_exist_affects_no_other(
    make_exporter: MakeExporter,
    database: Database,
    fake: FakeCloudWatch,
    clock: Clock,
) -> None:
    members = add_instances(fake, int(clock()) - HOUR)
    nowhere = Member("worker-nowhere", instance_id(99), "mars north 1", int(clock()) - HOUR)
    typing_error = Member("worker-typo", instance_id(98), "eu-wset-1", int(clock()) - HOUR)
    fake.fault("*", "cut", ALL_CALLS, "eu-wset-1")  # stands for a host name that cannot be resolved
    await insert_workers(database, [*members, nowhere, typing_error])
    exporter = make_exporter()
    with capture_logs() as log:
        await exporter.round(3)
    text = await exporter.scrape()
    assert len(in_region(text, GOOD)) == len(in_region(text, BAD)) == 2
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region="mars north 1") is None, "it is not queried"
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region="eu-wset-1") == 0
    assert "aws_region is 'mars north 1', not an AWS region such as eu-west-1" in str(log)
    assert 'worker_id="worker-nowhere"' in text  # its status and labs are known nevertheless
    documents = await exporter.documents(worker_id="worker-nowhere")
    assert documents
    assert {document["status"] for document in documents} == {"running"}
    await database["worker_metrics_timeseries"].delete_many({"worker_id": "worker-nowhere"})
    assert exporter.errors == []
    assert await exporter.assert_history_is_true(fake, members) > 0


async def test_a_malformed_instance_id_is_found_once_and_the_others_of_its_call_have_results(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = add_instances(fake, int(clock()) - HOUR, 9, [GOOD])
    since = int(clock()) - HOUR
    await insert_workers(
        database, [*members, Member("worker-bad", "pending…", GOOD, since), Member("worker-bad-2", "i-XYZ", GOOD, since)]
    )
    exporter = make_exporter()
    await exporter.round()
    assert len(in_region(await exporter.scrape(), GOOD)) == len(members)
    fake.reset()
    await exporter.round()
    assert "cml_exporter_cloudwatch_request_failures_total" in await exporter.scrape()
    assert fake.calls["GetMetricData"] == 1, "the malformed ones are not queried again"
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=GOOD) == 1
    await exporter.round(5)
    observed = [document for document in await exporter.documents() if document["worker_id"] in ("worker-bad", "worker-bad-2")]
    assert observed
    assert all(document["status"] == "running" and "cpu_utilization" not in document for document in observed)
    found = [document for document in await exporter.documents() if document not in observed]
    now = int(clock())
    assert assert_true(found, expected_history(fake, members, align(now, PERIOD)), align(now - 1500, PERIOD)) > 0


async def test_a_malformed_instance_id_that_a_worker_had_for_a_while_loses_nothing_of_its_valid_one(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = add_instances(fake, int(clock()) - HOUR, 2, [GOOD])
    await insert_workers(database, members)
    exporter = make_exporter()
    await exporter.round(2)
    await database["workers"].update_one({"_id": "worker-0"}, {"$set": {"aws_instance_id": "to be replaced"}})
    await exporter.round()
    await database["workers"].update_one({"_id": "worker-0"}, {"$set": {"aws_instance_id": members[0].instance_id}})
    await exporter.round(6)
    assert len(in_region(await exporter.scrape(), GOOD)) == 2
    assert await exporter.assert_history_is_true(fake, members) > 0


async def test_two_workers_with_one_instance_both_have_its_values(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    (member,) = add_instances(fake, int(clock()) - HOUR, 1)
    other = Member("other", member.instance_id, member.region, member.created)
    await insert_workers(database, [member, other])
    exporter = make_exporter()
    await exporter.round(6)
    assert len(set(in_region(await exporter.scrape(), GOOD).values())) == 1
    assert len(in_region(await exporter.scrape(), GOOD)) == 2
    assert await exporter.assert_history_is_true(fake, [member, other]) > 0
    assert any("same instance" in complaint for complaint in exporter.collector.fleet.complaints)


class Stuck:
    """A CloudWatch that never answers, without any deadline."""

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        await asyncio.Event().wait()
        raise AssertionError

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        return Listing()


async def test_a_stuck_poller_removes_the_worker_series_from_metrics_and_keeps_the_exporter_metrics(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    await insert_workers(database, add_instances(fake, int(clock()) - HOUR))
    exporter = make_exporter(source=Stuck())
    began = clock()
    await exporter.observe()
    exporter.collector.observed.set()
    polling = asyncio.create_task(exporter.collector.poll_forever())
    try:
        assert "cml_worker_status" in await exporter.scrape()
        processor = []
        for seconds in range(PERIOD, 5 * PERIOD, PERIOD):  # the observer continues
            clock.now = began + seconds
            await exporter.observe()
            spent = time.process_time()
            while time.process_time() < spent + 0.02:  # the kernel counts CPU time in ticks of 10 ms
                pass
            processor.append(series(await exporter.scrape(), "process_cpu_seconds_total")["process_cpu_seconds_total"])
        text = await exporter.scrape()
        assert not series(text, "cml_worker_")
        up = series(text, "cml_exporter_source_last_success_timestamp_seconds{")
        assert list(up.values()) == [clock()]
        assert processor == sorted(processor)
        assert processor[-1] > processor[0]
    finally:
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)


# -- worker documents --------------------------------------------------------------------------------------------------


GARBAGE: tuple[dict[str, Any], ...] = (
    {"_id": None, "id": ""},
    {"_id": "g-no-region"},
    {"_id": "g-no-instance", "aws_region": GOOD},
    {"_id": "g-everything", "aws_region": GOOD, "aws_instance_id": {"a": 1}, "status": 7, "cpu_utilization": "much"},
    {"_id": "g-numbers", "aws_region": GOOD, "status": "RUNNING", "cpu_utilization": -3, "memory_utilization": float("nan")},
    {
        "_id": "g-large",
        "aws_region": GOOD,
        "cpu_utilization": "45.2",
        "memory_utilization": 250,
        "active_labs_count": Int64(2**60),
    },
    {"_id": "g-dates", "aws_region": GOOD, "created_at": "yesterday", "last_activity_at": 10**30 * 1.0},
    {"_id": "g-future", "aws_region": GOOD, "aws_instance_id": instance_id(70), "created_at": "2999-01-01T00:00:00Z"},
    {"_id": 'g-"quotes"\\and\nlines', "aws_region": GOOD, "name": 'a "b" \\ \n c', "status": "never heard of"},
    {"_id": "g-long", "aws_region": GOOD, "name": "x" * 10_000, "status": "running"},
    {"_id": "g-\x00", "aws_region": GOOD, "name": "nul \x00", "aws_instance_id": "i-\x00"},
    {"_id": "g-region", "aws_region": "x" * 5000, "aws_instance_id": instance_id(71), "status": "running"},
    {"_id": "g-state", "state": [1, 2]},
    {"_id": "i" * 5000, "aws_region": GOOD},
)


async def test_garbage_of_every_kind_among_valid_worker_documents_does_not_affect_the_valid_ones(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = add_instances(fake, int(clock()) - HOUR)
    await insert_workers(database, members)
    await database["workers"].insert_many([dict(document) for document in GARBAGE])
    exporter = make_exporter()
    await exporter.round(6)
    text = await exporter.scrape()
    assert len(in_region(text, GOOD)) >= 2
    assert len(in_region(text, BAD)) == 2
    assert sum(series(text, "cml_exporter_workers_skipped{").values()) == 2
    assert exporter.errors == []
    mine = [document for document in await exporter.documents() if document["worker_id"].startswith("worker-")]
    now = int(clock())
    assert assert_true(mine, expected_history(fake, members, align(now, PERIOD)), align(now - 1500, PERIOD)) > 0


# -- MongoDB -----------------------------------------------------------------------------------------------------------


async def test_while_mongodb_is_down_gauges_continue_even_after_a_restart_and_afterwards_nothing_is_missing(
    tmp_path: Path, own_mongod: Mongod, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = add_instances(fake, int(clock()) - HOUR)
    client = AsyncMongoClient[dict[str, Any]](own_mongod.uri, tz_aware=True, serverSelectionTimeoutMS=round(scaled(1) * 1000))
    exporter = InProcessExporter(tmp_path / "data", client["faults"], fake, clock, reach=2)
    try:
        await insert_workers(client["faults"], members)
        await exporter.round(2)
        own_mongod.kill()
        await exporter.round(2, mongodb=False)
        text = await exporter.scrape()
        assert exporter.value("cml_exporter_source_up", source="mongodb", region="") == 0
        assert len(in_region(text, GOOD)) == len(in_region(text, BAD)) == 2
        assert series(text, "cml_worker_status{")

        await exporter.close()  # as after a crash: a new process that has never reached MongoDB
        exporter = InProcessExporter(tmp_path / "data", client["faults"], fake, clock, reach=2)
        await exporter.collector.restore()
        await exporter.round(2, mongodb=False)
        text = await exporter.scrape()
        assert len(in_region(text, GOOD)) == len(in_region(text, BAD)) == 2
        assert not series(text, "cml_worker_status{"), "the status is older than max_age"
        assert not series(text, "cml_worker_active_labs{")

        own_mongod.start()
        await exporter.round(8)
        assert exporter.value("cml_exporter_source_up", source="mongodb", region="") == 1
        assert await exporter.assert_history_is_true(fake, members) >= 4 * 20
        statuses = [document.get("status") for document in await exporter.documents(worker_id="worker-0")]
        assert statuses.count("running") >= 8
    finally:
        await exporter.close()
        await client.close()


def settings(uri: str, fake: FakeCloudWatch) -> dict[str, Any]:
    return {"mongodb": {"uri": uri}, "cloudwatch": {"endpoint_url": fake.url}, "absence_timeout": "10m"}


async def test_with_the_least_role_a_fleets_history_is_written_and_correct(
    mongo_auth: AuthMongod, fake_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    name = f"least_{os.getpid()}_{time.monotonic_ns()}"
    members = add_instances(fake_cloudwatch, align(int(time.time()), PERIOD) - HOUR)
    with MongoClient[dict[str, Any]](mongo_auth.root_uri, tz_aware=True) as root:
        root[name]["workers"].insert_many([member.aggregate() for member in members])
        exporter = run_exporter(settings(mongo_auth.exporter_uri(name), fake_cloudwatch))
        final_before = align(int(time.time()) - 1500, PERIOD)
        points = expected_history(fake_cloudwatch, members, final_before)

        def is_written() -> bool:
            return root[name]["worker_metrics_timeseries"].count_documents({}) >= len(points)

        await asyncio.to_thread(exporter.wait_for, is_written, 30, "done with the history")
        assert await asyncio.to_thread(exporter.stop) == 0
        documents = list(root[name]["worker_metrics_timeseries"].find({}, {"_id": 0}))
        assert (
            assert_true(documents, expected_history(fake_cloudwatch, members, align(int(time.time()), PERIOD)), final_before)
            > 0
        )
        assert "not allow" not in exporter.logged()
        root.drop_database(name)


async def test_a_normal_collection_with_the_historys_name_ends_serve_with_a_clear_error(
    mongod: Mongod, fake_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    name = f"taken_{time.monotonic_ns()}"
    with MongoClient[dict[str, Any]](mongod.uri) as client:
        client[name]["worker_metrics_timeseries"].insert_one({"not": "a time series"})
        uri = mongod.uri.replace("/?", f"/{name}?")
        exporter = run_exporter(settings(uri, fake_cloudwatch), wait=False)
        assert await asyncio.to_thread(exporter.wait) == 1
        client.drop_database(name)
    assert (
        "worker_metrics_timeseries is a normal collection, not a time-series collection; rename or drop it" in exporter.logged()
    )
    assert "Traceback" not in exporter.logged()


@pytest.mark.waits(20)
async def test_started_without_mongodb_it_serves_metrics_and_leads_once_mongodb_is_up(
    tmp_path: Path, fake_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    mongod = Mongod(tmp_path / "mongod", free_port())
    exporter = await asyncio.to_thread(run_exporter, settings(mongod.uri.replace("/?", "/late?"), fake_cloudwatch))

    def shows(leader: int, up: int) -> bool:
        shown = exporter.metrics()
        return shown["cml_exporter_leader"] == leader and shown['cml_exporter_source_up{region="",source="mongodb"}'] == up

    assert shows(leader=0, up=0)
    with mongod:
        async with AsyncMongoClient[dict[str, object]](mongod.uri) as client:  # without a worker it would create nothing
            await client["late"]["workers"].insert_one({"id": "w", "aws_region": GOOD, "status": "stopped"})
        await asyncio.to_thread(exporter.wait_for, lambda: shows(leader=1, up=1), 30, "the leader")
        assert await asyncio.to_thread(exporter.stop) == 0


# -- the outbox --------------------------------------------------------------------------------------------------------


async def test_when_the_disk_is_full_gauges_continue_and_after_making_room_nothing_is_missing(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = add_instances(fake, int(clock()) - HOUR)
    await insert_workers(database, members)
    exporter = make_exporter()
    await exporter.round(2)
    pages = await limit(exporter, 1)  # SQLite refuses the next page with SQLITE_FULL, as a full disk makes it do
    since = int(clock()) - 20 * HOUR
    late = [Member(f"worker-late-{k}", instance_id(50 + k), GOOD, since) for k in range(6)]
    for member in late:
        fake.add(member.instance_id, GOOD, runs=[(since, None)])
    await insert_workers(database, late)
    await exporter.round(2)
    assert any("the disk is full" in error for error in exporter.errors)
    text = await exporter.scrape()
    assert len(in_region(text, GOOD)) == 2 + len(late)
    assert len(in_region(text, BAD)) == 2
    await limit(exporter, 2**31 - 2)
    assert pages > 0
    await exporter.round(8)
    assert await exporter.assert_history_is_true(fake, [*members, *late]) > 6 * 200


async def limit(exporter: InProcessExporter, pages: int) -> int:
    """Limit the outbox's file to so many pages (at least those it has); return the limit that SQLite accepted."""

    def set_limit() -> int:
        granted: int = exporter.outbox.outbox._db.execute(f"PRAGMA max_page_count={pages}").fetchone()[0]
        return granted

    return await exporter.outbox(set_limit)
