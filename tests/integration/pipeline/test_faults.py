"""Sources and stores that fail in every way we know: /metrics answers, nothing settled is lost, no worker hides another."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from bson import Int64
from pymongo import AsyncMongoClient, MongoClient

from exporter.core.model import Listing, MetricQuery, MetricResults
from exporter.core.periods import align
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from tests.fixtures.mongo import AuthMongod
from tests.fixtures.process import RunExporter
from tests.helpers.expected_history import Member, assert_true, truth
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, series
from tests.helpers.in_process_exporter import InProcessExporter as Rig
from tests.helpers.ports import free_port

GOOD, BAD = "eu-west-1", "us-east-1"
HOUR = 3600
FOR_EVER = 10**6
ASKED_AFTER = 180
"""Seconds after a period's end at which a round asks: the newest datapoint is that old."""


@pytest.fixture
def clock() -> Clock:
    return Clock(align(int(time.time()), PERIOD))


@pytest.fixture
async def fake(clock: Clock, aws_credentials: None) -> AsyncIterator[FakeCloudWatch]:
    with FakeCloudWatch(now=clock) as fake:
        yield fake


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a call is retried is tested elsewhere; here the last attempt has failed."""
    monkeypatch.setattr("exporter.sources.cloudwatch.sessions.ATTEMPTS", 1)


MakeRig = Callable[..., Rig]


@pytest.fixture
async def make_rig(tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> AsyncIterator[MakeRig]:
    """Make a rig over the shared mongod; it is closed after the test."""
    rigs: list[Rig] = []

    def make(**options: Any) -> Rig:  # noqa: ANN401  # those of Rig
        rig = Rig(tmp_path / "data", options.pop("database", database), fake, clock, **options)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        await rig.close()


def hire(fake: FakeCloudWatch, since: int, count: int = 4, regions: Sequence[str] = (GOOD, BAD)) -> list[Member]:
    """A fleet whose instances the fake knows; the last one has no agent."""
    members = [Member(f"worker-{k}", instance_id(k), regions[k % len(regions)], since) for k in range(count)]
    for member in members:
        fake.add(member.instance_id, member.region, runs=[(since, None)], agent=member is not members[-1])
    return members


async def enrol(database: Database, members: Sequence[Member]) -> None:
    await database["workers"].insert_many([member.aggregate() for member in members])


def in_region(text: str, region: str) -> dict[str, float]:
    return {
        name: value for name, value in series(text, "cml_worker_cpu_utilization_ratio{").items() if f'region="{region}"' in name
    }


# -- CloudWatch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "operation", "code"),
    [
        ("throttle", "GetMetricData", "Throttling"),
        ("429", "GetMetricData", "429"),
        ("500", "GetMetricData", "503"),
        ("cut", "GetMetricData", "ConnectionClosedError"),
        ("trunc", "GetMetricData", "IncompleteBody"),
        ("empty", "GetMetricData", "IncompleteBody"),
        ("partial", "GetMetricData", None),
        ("slow-drip", "GetMetricData", None),
        ("hang", "GetMetricData", None),
        ("access_denied", "ListMetrics", "AccessDenied"),
        ("expired_token", "*", "ExpiredToken"),
        ("validation", "GetMetricData", "ValidationError"),
    ],
)
async def test_a_region_whose_cloudwatch_fails_is_reported_and_loses_nothing_and_the_other_region_goes_on(
    make_rig: MakeRig, database: Database, fake: FakeCloudWatch, clock: Clock, mode: str, operation: str, code: str | None
) -> None:
    members = hire(fake, int(clock()) - HOUR)
    await enrol(database, members)
    rig = make_rig(deadline=3)
    await rig.round()
    clock.now += 2 * PERIOD  # the listings grow old, too
    fake.fault(operation, mode, FOR_EVER, BAD)
    await rig.round()
    text = await rig.scrape()
    assert rig.value("cml_exporter_source_up", source="cloudwatch", region=BAD) == 0
    assert rig.value("cml_exporter_source_up", source="cloudwatch", region=GOOD) == 1
    assert rig.collector.healthy[f"cloudwatch {GOOD}"] is None
    assert rig.collector.healthy[f"cloudwatch {BAD}"]
    failures = series(text, "cml_exporter_cloudwatch_request_failures_total{")
    assert code is None or any(f'code="{code}"' in name and f'region="{BAD}"' in name for name in failures), failures
    assert not any(f'region="{GOOD}"' in name for name in failures)
    assert len(in_region(text, GOOD)) == 2
    newest = series(text, 'cml_worker_sample_timestamp_seconds{metric="cpu",')
    assert [time for name, time in newest.items() if GOOD in name] == [clock() - ASKED_AFTER] * 2
    await rig.round()
    fake.clear()
    await rig.round(5)
    assert rig.value("cml_exporter_source_up", source="cloudwatch", region=BAD) == 1
    assert len(in_region(await rig.scrape(), BAD)) == 2
    assert await rig.assert_history_is_true(fake, members) >= 4 * 15


async def test_a_worker_in_a_region_that_does_not_exist_hides_no_other(
    make_rig: MakeRig, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = hire(fake, int(clock()) - HOUR)
    nowhere = Member("worker-nowhere", instance_id(99), "mars north 1", int(clock()) - HOUR)
    typing_error = Member("worker-typo", instance_id(98), "eu-wset-1", int(clock()) - HOUR)
    fake.fault("*", "cut", FOR_EVER, "eu-wset-1")  # what would be a name without an address
    await enrol(database, [*members, nowhere, typing_error])
    rig = make_rig()
    await rig.round(3)
    text = await rig.scrape()
    assert len(in_region(text, GOOD)) == len(in_region(text, BAD)) == 2
    assert rig.value("cml_exporter_source_up", source="cloudwatch", region="mars north 1") == 0
    assert rig.value("cml_exporter_source_up", source="cloudwatch", region="eu-wset-1") == 0
    assert "mars north 1" in str(rig.collector.healthy["cloudwatch mars north 1"])
    assert 'worker_id="worker-nowhere"' in text  # its status and labs are known all the same
    assert rig.errors == []
    assert await rig.assert_history_is_true(fake, members) > 0


async def test_a_malformed_instance_id_is_found_once_and_the_others_of_its_call_are_answered(
    make_rig: MakeRig, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = hire(fake, int(clock()) - HOUR, 9, [GOOD])
    since = int(clock()) - HOUR
    await enrol(database, [*members, Member("worker-bad", "pending…", GOOD, since), Member("worker-odd", "i-XYZ", GOOD, since)])
    rig = make_rig()
    await rig.round()
    assert len(in_region(await rig.scrape(), GOOD)) == len(members)
    fake.reset()
    await rig.round()
    assert "cml_exporter_cloudwatch_request_failures_total" in await rig.scrape()
    assert fake.calls["GetMetricData"] == 1, "the malformed ones are not asked about again"
    assert rig.value("cml_exporter_source_up", source="cloudwatch", region=GOOD) == 1
    await rig.round(5)
    observed = [document for document in await rig.documents() if document["worker_id"] in ("worker-bad", "worker-odd")]
    assert observed
    assert all(document["status"] == "running" and "cpu_utilization" not in document for document in observed)
    found = [document for document in await rig.documents() if document not in observed]
    now = int(clock())
    assert assert_true(found, truth(fake, members, align(now, PERIOD)), align(now - 1500, PERIOD)) > 0


async def test_a_malformed_instance_id_that_a_worker_had_for_a_while_costs_nothing_of_its_good_one(
    make_rig: MakeRig, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = hire(fake, int(clock()) - HOUR, 2, [GOOD])
    await enrol(database, members)
    rig = make_rig()
    await rig.round(2)
    await database["workers"].update_one({"_id": "worker-0"}, {"$set": {"aws_instance_id": "to be replaced"}})
    await rig.round()
    await database["workers"].update_one({"_id": "worker-0"}, {"$set": {"aws_instance_id": members[0].instance_id}})
    await rig.round(6)
    assert len(in_region(await rig.scrape(), GOOD)) == 2
    assert await rig.assert_history_is_true(fake, members) > 0


async def test_two_aggregates_with_one_instance_both_get_its_values(
    make_rig: MakeRig, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    (member,) = hire(fake, int(clock()) - HOUR, 1)
    twin = Member("twin", member.instance_id, member.region, member.created)
    await enrol(database, [member, twin])
    rig = make_rig()
    await rig.round(6)
    assert len(set(in_region(await rig.scrape(), GOOD).values())) == 1
    assert len(in_region(await rig.scrape(), GOOD)) == 2
    assert await rig.assert_history_is_true(fake, [member, twin]) > 0
    assert any("same instance" in complaint for complaint in rig.collector.fleet.complaints)


class Stuck:
    """A CloudWatch whose answer never comes, without any deadline."""

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        await asyncio.Event().wait()
        raise AssertionError

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        return Listing()


async def test_a_stuck_asking_loop_takes_the_worker_series_from_metrics_and_leaves_the_exporters_own(
    make_rig: MakeRig, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    await enrol(database, hire(fake, int(clock()) - HOUR))
    rig = make_rig(source=Stuck())
    began = clock()
    await rig.observe()
    rig.collector.observed.set()
    asking = asyncio.create_task(rig.collector.poll_forever())
    try:
        assert "cml_worker_status" in await rig.scrape()
        processor = []
        for seconds in range(PERIOD, 5 * PERIOD, PERIOD):  # the observing loop goes on and on
            clock.now = began + seconds
            await rig.observe()
            spent = time.process_time()
            while time.process_time() < spent + 0.02:  # the kernel counts CPU time in ticks of 10 ms
                pass
            processor.append(series(await rig.scrape(), "process_cpu_seconds_total")["process_cpu_seconds_total"])
        text = await rig.scrape()
        assert not series(text, "cml_worker_")
        up = series(text, "cml_exporter_source_last_success_timestamp_seconds{")
        assert list(up.values()) == [clock()]
        assert processor == sorted(processor)
        assert processor[-1] > processor[0]
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


# -- the aggregates ----------------------------------------------------------------------------------------------------


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


async def test_garbage_of_every_kind_beside_good_aggregates_costs_the_good_ones_nothing(
    make_rig: MakeRig, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = hire(fake, int(clock()) - HOUR)
    await enrol(database, members)
    await database["workers"].insert_many([dict(document) for document in GARBAGE])
    rig = make_rig()
    await rig.round(6)
    text = await rig.scrape()
    assert len(in_region(text, GOOD)) >= 2
    assert len(in_region(text, BAD)) == 2
    assert sum(series(text, "cml_exporter_workers_skipped{").values()) >= 3
    assert rig.errors == []
    mine = [document for document in await rig.documents() if document["worker_id"].startswith("worker-")]
    now = int(clock())
    assert assert_true(mine, truth(fake, members, align(now, PERIOD)), align(now - 1500, PERIOD)) > 0


# -- MongoDB -----------------------------------------------------------------------------------------------------------


async def test_while_mongodb_is_away_gauges_go_on_even_after_a_restart_and_afterwards_nothing_is_missing(
    tmp_path: Path, own_mongod: Mongod, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = hire(fake, int(clock()) - HOUR)
    client = AsyncMongoClient[dict[str, Any]](own_mongod.uri, tz_aware=True, serverSelectionTimeoutMS=300)
    rig = Rig(tmp_path / "data", client["faults"], fake, clock, reach=2)
    try:
        await enrol(client["faults"], members)
        await rig.round(2)
        own_mongod.kill()
        await rig.round(2, mongodb=False)
        text = await rig.scrape()
        assert rig.value("cml_exporter_source_up", source="mongodb", region="") == 0
        assert len(in_region(text, GOOD)) == len(in_region(text, BAD)) == 2
        assert series(text, "cml_worker_status{")

        await rig.close()  # as a crash: a new process that has never seen MongoDB
        rig = Rig(tmp_path / "data", client["faults"], fake, clock, reach=2)
        await rig.collector.restore()
        await rig.round(2, mongodb=False)
        text = await rig.scrape()
        assert len(in_region(text, GOOD)) == len(in_region(text, BAD)) == 2
        assert not series(text, "cml_worker_status{"), "nobody knows the status for more than max_age"
        assert not series(text, "cml_worker_active_labs{")

        own_mongod.start()
        await rig.round(8)
        assert rig.value("cml_exporter_source_up", source="mongodb", region="") == 1
        assert await rig.assert_history_is_true(fake, members) >= 4 * 20
        statuses = [document.get("status") for document in await rig.documents(worker_id="worker-0")]
        assert statuses.count("running") >= 8
    finally:
        await rig.close()
        await client.close()


def settings(uri: str, fake: FakeCloudWatch) -> dict[str, Any]:
    return {"mongodb": {"uri": uri}, "cloudwatch": {"endpoint_url": fake.url}, "absence_timeout": "10m"}


async def test_with_the_least_role_a_fleets_history_is_written_and_true(
    mongo_auth: AuthMongod, fake_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    name = f"least_{os.getpid()}_{time.monotonic_ns()}"
    members = hire(fake_cloudwatch, align(int(time.time()), PERIOD) - HOUR)
    with MongoClient[dict[str, Any]](mongo_auth.root_uri, tz_aware=True) as root:
        root[name]["workers"].insert_many([member.aggregate() for member in members])
        exporter = run_exporter(settings(mongo_auth.exporter_uri(name), fake_cloudwatch))
        settled = align(int(time.time()) - 1500, PERIOD)
        points = truth(fake_cloudwatch, members, settled)

        def is_written() -> bool:
            return root[name]["worker_metrics_timeseries"].count_documents({}) >= len(points)

        await asyncio.to_thread(exporter.wait_for, is_written, 30, "done with the history")
        assert await asyncio.to_thread(exporter.stop) == 0
        documents = list(root[name]["worker_metrics_timeseries"].find({}, {"_id": 0}))
        assert assert_true(documents, truth(fake_cloudwatch, members, align(int(time.time()), PERIOD)), settled) > 0
        assert "not allow" not in exporter.logged()
        root.drop_database(name)


async def test_a_normal_collection_of_the_historys_name_ends_serve_with_a_sentence(
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


async def test_started_without_mongodb_it_serves_metrics_and_leads_once_mongodb_comes(
    tmp_path: Path, fake_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    mongod = Mongod(tmp_path / "mongod", free_port())
    exporter = await asyncio.to_thread(run_exporter, settings(mongod.uri.replace("/?", "/late?"), fake_cloudwatch))

    def shows(leader: int, up: int) -> bool:
        # Not gzip: httpx decodes the first of two members only.
        own = series(exporter.get("/metrics", headers={"Accept-Encoding": "identity"}).text, "cml_exporter_")
        return own["cml_exporter_leader"] == leader and own['cml_exporter_source_up{region="",source="mongodb"}'] == up

    assert shows(leader=0, up=0)
    with mongod:
        await asyncio.to_thread(exporter.wait_for, lambda: shows(leader=1, up=1), 30, "the leader")
        assert await asyncio.to_thread(exporter.stop) == 0


# -- the outbox --------------------------------------------------------------------------------------------------------


async def test_when_the_disk_is_full_gauges_go_on_and_with_room_again_nothing_is_missing(
    make_rig: MakeRig, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = hire(fake, int(clock()) - HOUR)
    await enrol(database, members)
    rig = make_rig()
    await rig.round(2)
    pages = await limit(rig, 1)  # SQLite refuses the next page with SQLITE_FULL, as a full disk makes it do
    since = int(clock()) - 20 * HOUR
    late = [Member(f"worker-late-{k}", instance_id(50 + k), GOOD, since) for k in range(6)]
    for member in late:
        fake.add(member.instance_id, GOOD, runs=[(since, None)])
    await enrol(database, late)
    await rig.round(2)
    assert any("the disk is full" in error for error in rig.errors)
    text = await rig.scrape()
    assert len(in_region(text, GOOD)) == 2 + len(late)
    assert len(in_region(text, BAD)) == 2
    await limit(rig, 2**31 - 2)
    assert pages > 0
    await rig.round(8)
    assert await rig.assert_history_is_true(fake, [*members, *late]) > 6 * 200


async def limit(rig: Rig, pages: int) -> int:
    """Let the outbox's file grow to so many pages (at least what it has); return what was granted."""

    def set_limit() -> int:
        granted: int = rig.outbox.outbox._db.execute(f"PRAGMA max_page_count={pages}").fetchone()[0]
        return granted

    return await rig.outbox(set_limit)
