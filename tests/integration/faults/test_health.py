"""Faults of MongoDB, CloudWatch, clocks and clients, injected into a running exporter: health, cost, and the end by SIGTERM."""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import pytest
from pymongo import MongoClient

from exporter.core.errors import StoreError
from exporter.core.model import Fleet, Listing, MetricQuery, MetricResults
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from tests.fixtures.mongo import AuthMongod
from tests.fixtures.process import RunCommand, RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.in_process_exporter import Clock, InProcessExporter, series
from tests.helpers.reliability import record
from tests.helpers.scraper import Scraper
from tests.integration.faults.stand import (
    CLOUDWATCH_UP,
    MONGODB_UP,
    TWO_CYCLES_SECONDS,
    WORKERS,
    Stand,
    add_fleet,
    fast_settings,
)
from tests.integration.pipeline.test_faults import BAD, GOOD, HOUR, MakeExporter, add_instances, insert_workers, make_exporter

__all__ = ["make_exporter"]  # the fixture

pytestmark = pytest.mark.timeout(1200)  # outages of half a minute, then minutes until a sample is final

OUTAGE_SHOWN_SECONDS = 30
"""How soon an outage of MongoDB must show in source_up."""
OUTAGE_SECONDS = 30
NO_HOLDER = "no exporter is known to hold the lease"
ALL_CALLS = 10**6


def outage(stand: Stand, key: str, begin: Callable[[], object], end: Callable[[], object]) -> None:
    """Let MongoDB be away for half a minute, twice: the second time the exporter is ended."""
    with Scraper(stand.exporter.url) as scraper:
        since, began = time.time(), time.monotonic()
        begin()
        assert stand.wait_for(lambda: stand.metric(MONGODB_UP) == 0, 60, "down in source_up") < scaled(OUTAGE_SHOWN_SECONDS)
        stand.wait_for_error("mongodb", "MongoDB", 10)
        stand.wait_for_error("history", NO_HOLDER, 45)
        stand.wait_for(lambda: stand.metric("cml_exporter_leader") == 0, 45, "without a leader")
        time.sleep(max(0.0, began + OUTAGE_SECONDS - time.monotonic()))
        assert stand.shown("cml_worker_cpu_utilization_ratio") == WORKERS
        end()
        recovery = stand.wait_until_well()
        until = time.time()
    stand.check_log()
    lost, doubled = stand.figures(since, until)
    assert (lost, doubled) == (0, 0)
    begin()
    time.sleep(12)  # a renewal of the lease, a ping and an observation may be under way
    stopped = stand.stop_in_time()
    record(key, lost=lost, doubled=doubled, silence=scraper.longest, recovery=recovery, note=f"SIGTERM: {stopped:.1f} s")


@pytest.mark.waits(65)
def test_mongodb_is_killed(stand: Stand) -> None:
    outage(stand, "mongodb-killed", stand.mongod.kill, stand.mongod.start)


@pytest.mark.nightly("test_mongodb_is_killed")
@pytest.mark.waits(75)
def test_mongodb_hangs(stand: Stand) -> None:
    outage(
        stand,
        "mongodb-hung",
        lambda: os.kill(stand.mongod.pid, signal.SIGSTOP),
        lambda: os.kill(stand.mongod.pid, signal.SIGCONT),
    )


def reconfigure(uri: str, dead: int) -> None:
    """Make a replica set of one living member and so many dead ones; with two it has no majority, and so no primary."""
    with MongoClient[dict[str, Any]](uri) as client:
        config = client.admin.command("replSetGetConfig")["config"]
        config["version"] += 100
        config["members"] = config["members"][:1] + [
            {"_id": number, "host": f"127.0.0.1:{number}", "priority": 0} for number in range(1, 1 + dead)
        ]
        client.admin.command("replSetReconfig", config, force=True)


@pytest.mark.nightly("test_without_a_majority_no_status_is_lost_by_the_last_leader_its_restart_or_an_exporter_without_a_leader")
@pytest.mark.waits(60)
def test_a_replica_set_without_majority(stand: Stand, run_command: RunCommand) -> None:
    with Scraper(stand.exporter.url) as scraper:
        since = time.time()
        reconfigure(stand.admin_uri, dead=2)
        stand.wait_for_error("history", NO_HOLDER, 60)
        stand.wait_for(lambda: stand.metric("cml_exporter_leader") == 0, 45, "without a leader")
        assert stand.shown("cml_worker_cpu_utilization_ratio") == WORKERS
        checked = run_command("check", "--config.file", stand.exporter.config)
        assert checked.returncode == 1
        assert "replica set rs0 has no majority: 1 of 3 members answers" in checked.stdout, checked.stdout
        reconfigure(stand.admin_uri, dead=0)
        recovery = stand.wait_until_well()
        until = time.time()
    stand.check_log()
    lost, doubled = stand.figures(since, until)
    assert doubled == 0
    reconfigure(stand.admin_uri, dead=2)
    time.sleep(12)
    stopped = stand.stop_in_time()
    record(
        "mongodb-no-majority",
        lost=lost,
        doubled=doubled,
        silence=scraper.longest,
        recovery=recovery,
        note=f"SIGTERM: {stopped:.1f} s",
    )


@pytest.mark.nightly("test_an_fsync_lock_loses_no_status")
@pytest.mark.waits(45)
def test_started_while_mongodb_is_locked_against_writes_it_shows_gauges(
    own_replica_set: Mongod, fast_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    """A start must not wait until every write of its preparations has timed out."""
    with MongoClient[dict[str, Any]](own_replica_set.uri) as client:
        add_fleet(client, "locked", fast_cloudwatch)
        settings = fast_settings(own_replica_set.uri.replace("/?", "/locked?"), fast_cloudwatch)
        client.admin.command("fsync", lock=True)
        exporter = run_exporter(settings, wait=False)
        stand = Stand(exporter, own_replica_set, fast_cloudwatch, own_replica_set.uri, "locked")
        exporter.wait_until_ready()
        stand.wait_for(lambda: stand.shown("cml_worker_cpu_utilization_ratio") == WORKERS, 15, "showing gauges")
        stand.wait_for_error("history", NO_HOLDER, 60)
        assert exporter.get("/-/ready").status_code == 200
        client.admin.command("fsyncUnlock")
        stand.wait_until_well()


@pytest.mark.nightly("test_a_missing_privilege_is_named_with_its_collection")
@pytest.mark.waits(125)
def test_mongodb_withdraws_the_privileges(
    mongo_auth: AuthMongod, fast_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    name = f"refused_{time.monotonic_ns()}"
    with MongoClient[dict[str, Any]](mongo_auth.root_uri) as root:
        add_fleet(root, name, fast_cloudwatch)
        exporter = run_exporter(fast_settings(mongo_auth.exporter_uri(name), fast_cloudwatch))
        stand = Stand(exporter, mongo_auth.mongod, fast_cloudwatch, mongo_auth.root_uri, name)
        stand.wait_until_well()
        with Scraper(exporter.url) as scraper:
            since = time.time()
            root[name].command("revokeRolesFromUser", "exporter", roles=["exporter"])
            stand.wait_for(lambda: stand.metric(MONGODB_UP) == 0, TWO_CYCLES_SECONDS, "down in source_up")
            stand.wait_for_error("mongodb", "MongoDB", 10)
            # Either the lease or the mirror meets it first; the mirror repeats what an operator must mend once a minute.
            stand.wait_for_error("history", "MongoDB does not allow this user", 45)
            root[name].command("grantRolesToUser", "exporter", roles=["exporter"])
            recovery = stand.wait_until_well(within=TWO_CYCLES_SECONDS)
            until = time.time()
        stand.check_log()
        lost, doubled = stand.figures(since, until)
        assert (lost, doubled) == (0, 0)
        root[name].command("revokeRolesFromUser", "exporter", roles=["exporter"])
        time.sleep(12)
        stopped = stand.stop_in_time()
        root.drop_database(name)
    record(
        "mongodb-privileges",
        lost=lost,
        doubled=doubled,
        silence=scraper.longest,
        recovery=recovery,
        note=f"SIGTERM: {stopped:.1f} s",
    )


@pytest.mark.nightly("test_a_region_whose_cloudwatch_fails_is_reported_and_loses_nothing_and_the_other_region_is_not_affected")
@pytest.mark.waits(300)
def test_cloudwatch_never_answers(stand: Stand) -> None:
    # The poll at the start is out of step: what it has polled is not due in the next cycle, which would be a third one.
    polled = stand.fake.calls["GetMetricData"]
    stand.wait_for(lambda: stand.fake.calls["GetMetricData"] > polled, TWO_CYCLES_SECONDS, "polling in step")
    with Scraper(stand.exporter.url) as scraper:
        since = time.time()
        stand.fake.fault("*", "hang", ALL_CALLS)
        stand.wait_for(lambda: stand.metric(CLOUDWATCH_UP) == 0, TWO_CYCLES_SECONDS, "down in source_up")
        stand.wait_for_error("cloudwatch eu-west-1", "CloudWatch", 10)
        assert stand.sources()["history"] is None
        stand.fake.clear()
        recovery = stand.wait_until_well(within=TWO_CYCLES_SECONDS)
        until = time.time()
    stand.check_log()
    lost, doubled = stand.figures(since, until)
    assert (lost, doubled) == (0, 0)
    before = stand.fake.calls["GetMetricData"]
    stand.fake.fault("*", "hang", ALL_CALLS)
    stand.wait_for(lambda: stand.fake.calls["GetMetricData"] > before, TWO_CYCLES_SECONDS, "polling again")
    stopped = stand.stop_in_time()
    record(
        "cloudwatch-hangs",
        lost=lost,
        doubled=doubled,
        silence=scraper.longest,
        recovery=recovery,
        note=f"SIGTERM: {stopped:.1f} s",
    )


def test_clients_that_never_read_their_answers(stand: Stand) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: exporter\r\n\r\n"
    with Scraper(stand.exporter.url) as scraper, ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", stand.exporter.port)))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.sendall(request * 500)
        time.sleep(5)
        silence = scraper.longest
        stopped = stand.stop_in_time()
    record("unread-answers", silence=silence, note=f"SIGTERM: {stopped:.1f} s")


# -- on a simulated clock ----------------------------------------------------------------------------------------------


class FailingRegion:
    """CloudWatch, with a bug in one region: an exception that the exporter does not know."""

    def __init__(self, exporter: InProcessExporter, step: str) -> None:
        self._source, self._step = exporter.cloudwatch, step

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        if region == BAD and self._step == "data":
            raise TypeError("float expected")
        return await self._source.get_metric_data(region, queries, start, end, period)

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        if region == BAD and self._step == "listing":
            raise TypeError("float expected")
        return await self._source.list_memory(region, recent=recent)


@pytest.mark.parametrize(
    "step", [pytest.param("listing", marks=pytest.mark.nightly("test_a_bug_in_a_source_is_that_source_failing")), "data"]
)
async def test_a_bug_in_a_source_is_that_source_failing(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock, step: str
) -> None:
    members = add_instances(fake, int(clock()) - HOUR)
    await insert_workers(database, members)
    exporter = make_exporter()
    await exporter.round()
    failing = FailingRegion(exporter, step)
    poller = exporter.collector._poller
    assert poller._calls is not None
    assert poller._index is not None
    poller._calls._source = poller._index._source = failing
    exporter.clock.now += 900  # the listing is older than its TTL
    await exporter.round(2)
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=BAD) == 0
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=GOOD) == 1
    assert "unexpected TypeError: float expected" in str(exporter.backend.health()[f"cloudwatch {BAD}"])
    assert exporter.backend.health()[f"cloudwatch {GOOD}"] is None
    assert len([one for one in series(await exporter.scrape(), "cml_worker_cpu") if GOOD in one]) == 2
    poller._calls._source = poller._index._source = exporter.cloudwatch
    await exporter.round(6)
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=BAD) == 1
    assert await exporter.assert_history_is_true(fake, members) > 0
    record("source-bug", lost=0, doubled=0)


async def test_a_bug_in_reading_the_worker_documents_is_mongodb_failing(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = add_instances(fake, int(clock()) - HOUR)
    await insert_workers(database, members)
    exporter = make_exporter()
    await exporter.round()
    source = exporter.collector._observer._source

    async def read() -> Fleet:
        raise KeyError("localTime")

    with monkeypatch.context() as patch:
        patch.setattr(source, "read", read)
        with pytest.raises(KeyError):
            await exporter.collector.observe()
    assert exporter.value("cml_exporter_source_up", source="mongodb", region="") == 0
    assert "unexpected KeyError" in str(exporter.backend.health()["mongodb"])
    await exporter.round()
    assert exporter.backend.health()["mongodb"] is None


async def test_a_bug_in_the_whole_of_polling_is_every_region_failing(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert_workers(database, add_instances(fake, int(clock()) - HOUR))
    exporter = make_exporter()
    await exporter.round()

    async def due(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(exporter.collector._poller, "_due", due)
        with pytest.raises(ZeroDivisionError):
            await exporter.collector.poll()
    for region in (GOOD, BAD):
        assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=region) == 0
    await exporter.round()
    for region in (GOOD, BAD):
        assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=region) == 1


@pytest.mark.parametrize("step", ["load", "record"])
async def test_an_inventory_that_cannot_be_read_or_written_shows_until_it_can(
    make_exporter: MakeExporter,
    database: Database,
    fake: FakeCloudWatch,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    await insert_workers(database, add_instances(fake, int(clock()) - HOUR))
    exporter = make_exporter()
    await exporter.round()
    assert "inventory" not in exporter.backend.health()
    observer = exporter.collector._observer
    assert observer._history is not None

    async def refuse(*_: object) -> None:
        raise StoreError("MongoDB does not allow this user the inventory")

    with monkeypatch.context() as patch:
        patch.setattr(observer._history.inventory, step, refuse)
        observer.reload()
        await exporter.round()
        assert "does not allow this user" in str(exporter.backend.health()["inventory"])
    await exporter.round()
    assert "inventory" not in exporter.backend.health()


async def test_clocks_apart(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = add_instances(fake, int(clock()) - HOUR)
    await insert_workers(database, members)
    exporter = make_exporter()
    await exporter.round(2)
    source = exporter.collector._observer._source
    read = source.read

    async def ahead() -> Fleet:
        fleet = await read()
        return replace(fleet, date=fleet.date + 600)

    with monkeypatch.context() as patch:
        patch.setattr(source, "read", ahead)
        fake.skew = 600
        await exporter.round()
        for name, labels in (("mongodb", ""), ("cloudwatch", GOOD), ("cloudwatch", BAD)):
            assert exporter.value("cml_exporter_source_up", source=name, region=labels) == 0
            assert "they may differ by 5m" in str(exporter.backend.health()[f"{name} {labels}".strip()])
    fake.skew = 0
    await exporter.round(8)
    assert set(exporter.backend.health().values()) == {None}
    assert await exporter.assert_history_is_true(fake, members) > 0
    record("clocks-apart", lost=0, doubled=0)
