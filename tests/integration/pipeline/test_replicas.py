"""Two exporter processes on one fleet: AWS bills it once, whichever of them is killed or hangs, and no gauges go stale."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from pymongo import MongoClient

from exporter.core.periods import align
from exporter.demo.mongod import Mongod
from tests.fixtures.process import RunExporter
from tests.helpers.expected_history import Member, assert_true, expected_history
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.reliability import record

pytestmark = pytest.mark.timeout(1200)  # minutes of collection cycles, one of which fails, and until the last sample is final
PERIOD, HOUR, WORKERS = 60, 3600, 6
DATABASE, HISTORY = "cml_cloud_manager", "worker_metrics_timeseries"
TAKEN_OVER_WITHIN = 45
"""Seconds: a lease lasts 30 s, and the other exporter tries to take it every 10 s."""
A_CYCLE = 2 * WORKERS
"""Metrics that AWS bills for a collection cycle: CPU and memory of each worker."""
LEADER, SNAPSHOT = "cml_exporter_leader", "cml_exporter_leader_snapshot_timestamp_seconds"
BILLED = 'cml_exporter_cloudwatch_metrics_requested_total{region="eu-west-1"}'
RUNNER = (
    "import os; from exporter import cli; from exporter.pipeline import collector; "
    "collector.POLL_OFFSET_SECONDS = int(os.environ['POLL_AT']); cli.main()"
)
"""The unmodified process except for the second of the minute at which it polls, so that no test waits for it."""


@dataclass
class Replicas:
    """Two exporters on one fleet, with the servers."""

    mongod: Mongod
    fake: FakeCloudWatch
    members: list[Member]
    began: float
    start: Callable[[], ExporterProcess]

    def pair(self) -> tuple[ExporterProcess, ExporterProcess]:
        """Start two exporters; return the leader and the one that stands by, once both show the fleet."""
        leader = self.start()
        leader.wait_for(lambda: shown(leader), 20, "serving the fleet")
        assert leader.metrics()[LEADER] == 1
        standby = self.start()
        standby.wait_for(lambda: shown(standby) and SNAPSHOT in standby.metrics(), 40, "serving the leader's snapshot")
        return leader, standby

    def documents(self) -> list[dict[str, Any]]:
        with MongoClient[dict[str, Any]](self.mongod.uri, tz_aware=True) as client:
            return list(client[DATABASE][HISTORY].find({}, {"_id": 0}))

    def is_complete_until(self, time: int) -> bool:
        return len(self.documents()) >= len(expected_history(self.fake, self.members, time, PERIOD))

    def periods(self, until: int) -> int:
        """Return how many periods of all workers there are before `until`."""
        return sum((until - member.created) // PERIOD for member in self.members)

    def compare(self, until: int) -> int:
        """Compare the history with the ledger, for the periods before `until`; return how many samples."""
        points = expected_history(self.fake, self.members, align(int(time.time()), PERIOD), PERIOD)
        return assert_true(self.documents(), points, until)


@pytest.fixture
def replicas(
    own_mongod: Mongod, aws_credentials: None, run_exporter: RunExporter, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Replicas]:
    monkeypatch.setattr("tests.helpers.exporter_process.COMMAND", (sys.executable, "-c", RUNNER))
    began = time.time()
    with ExitStack() as stack:
        fake = stack.enter_context(FakeCloudWatch(period=PERIOD))
        created = align(int(began) - HOUR, PERIOD)
        members = [Member(f"worker-{k}", instance_id(k), "eu-west-1", created) for k in range(WORKERS)]
        for member in members:
            fake.add(member.instance_id, runs=[(created, None)])
        with MongoClient[dict[str, Any]](own_mongod.uri) as client:
            client[DATABASE]["workers"].insert_many([member.aggregate() for member in members])

        def start() -> ExporterProcess:
            settings = {
                "mongodb": {"uri": own_mongod.uri},
                "cloudwatch": {"endpoint_url": fake.url, "interval": "1m"},
                "period": "1m",
                "settle_delay": "1m",
                "absence_timeout": "2m",
            }
            return run_exporter(settings, env={"POLL_AT": str(int(began + 50) % PERIOD)})

        yield Replicas(own_mongod, fake, members, began, start)


def shown(exporter: ExporterProcess) -> bool:
    """Return whether CPU and memory of every worker are on /metrics."""
    found = exporter.metrics()
    return all(
        sum(name.startswith(f"cml_worker_{metric}_utilization_ratio{{") for name in found) == WORKERS
        for metric in ("cpu", "memory")
    )


def values(exporter: ExporterProcess) -> dict[str, float]:
    """Return CPU and memory, with their times."""
    pattern = re.compile(r"cml_worker_(cpu|memory)_utilization_ratio|cml_worker_sample_timestamp_seconds.*(cpu|memory)")
    return {name: value for name, value in exporter.metrics().items() if pattern.match(name)}


def billed(exporter: ExporterProcess) -> float:
    return exporter.metrics().get(BILLED, 0.0)


def wait_for_cycles(exporter: ExporterProcess, count: int) -> None:
    """Wait until an exporter has polled `count` times more."""
    wanted = billed(exporter) + count * A_CYCLE
    exporter.wait_for(lambda: billed(exporter) >= wanted, count * PERIOD + 20, f"done with {count} cycles")


@pytest.mark.nightly("test_a_standby_shows_what_the_leader_polled_and_polls_nothing")
@pytest.mark.waits(240)
def test_two_replicas_are_billed_as_one_and_show_the_same_and_one_goes_on_when_the_other_is_killed(replicas: Replicas) -> None:
    leader, standby = replicas.pair()
    began = replicas.fake.metrics_billed
    assert began == billed(leader)
    wait_for_cycles(leader, 2)
    assert replicas.fake.metrics_billed - began == 2 * A_CYCLE, "those of one"
    assert billed(standby) == 0
    standby.wait_for(lambda: values(standby) == values(leader), 15, "showing the same values")
    sources = standby.get("/-/ready").json()["sources"]
    assert re.fullmatch(r"stands by: serves the leader's snapshot of \d+s ago", sources["cloudwatch"]["note"])

    before = replicas.fake.metrics_billed
    leader.kill()
    killed = time.monotonic()
    standby.wait_for(lambda: standby.metrics()[LEADER] == 1, TAKEN_OVER_WITHIN, "the leader")
    recovery = time.monotonic() - killed
    assert shown(standby)
    wait_for_cycles(standby, 1)
    seconds = time.monotonic() - killed
    assert replicas.fake.metrics_billed - before <= (seconds // PERIOD + 1) * A_CYCLE, "a cycle for each minute"
    until = align(int(time.time()) - 4 * PERIOD, PERIOD)
    standby.wait_for(lambda: replicas.is_complete_until(until), PERIOD + 20, "done with the history")
    assert standby.stop() == 0
    compared = replicas.compare(until)
    assert compared == replicas.periods(until)
    record("replica-killed", lost=0, doubled=0, recovery=recovery, note=f"of {compared:,}; billed once")


@pytest.mark.nightly("test_after_each_change_of_the_leader_one_exporter_polls")
@pytest.mark.waits(150)
def test_a_leader_that_was_paused_stands_by_when_it_goes_on_and_polls_no_more(replicas: Replicas) -> None:
    leader, standby = replicas.pair()
    leader.pause()
    standby.wait_for(lambda: standby.metrics()[LEADER] == 1, TAKEN_OVER_WITHIN, "the leader")
    wait_for_cycles(standby, 1)
    leader.resume()
    leader.wait_for(lambda: SNAPSHOT in leader.metrics(), 40, "serving the snapshot of the one that took over")
    leader.wait_for(lambda: leader.metrics()[LEADER] == 0, 15, "noticing that another one leads")
    at = billed(leader)
    wait_for_cycles(standby, 1)
    assert billed(leader) == at
    leader.wait_for(lambda: values(standby) == values(leader), 15, "showing the same values")
    until = align(int(time.time()) - 4 * PERIOD, PERIOD)
    standby.wait_for(lambda: replicas.is_complete_until(until), PERIOD + 20, "done with the history")
    assert leader.stop() == 0
    assert standby.stop() == 0
    assert replicas.compare(until) == replicas.periods(until)


@pytest.mark.nightly("test_a_snapshot_that_is_not_renewed_is_left_for_ones_own_polls_until_there_is_a_newer_one")
@pytest.mark.waits(330)
def test_without_mongodb_each_polls_for_itself_and_afterwards_one_stands_by_again(replicas: Replicas) -> None:
    leader, standby = replicas.pair()
    replicas.mongod.kill()
    standby.wait_for(lambda: SNAPSHOT not in standby.metrics(), 2 * PERIOD, "showing the snapshot no more")
    wait_for_cycles(standby, 1)
    wait_for_cycles(leader, 1)
    now = time.time()
    for exporter in (leader, standby):
        assert shown(exporter)
        assert min(value for name, value in values(exporter).items() if "timestamp" in name) > now - 4 * PERIOD
        assert exporter.get("/-/ready").json()["sources"]["cloudwatch eu-west-1"]["ok"]

    replicas.mongod.start()
    standby.wait_for(
        lambda: sorted((leader.metrics()[LEADER], standby.metrics()[LEADER])) == [0, 1], 2 * TAKEN_OVER_WITHIN, "one leads"
    )
    leader, standby = (leader, standby) if leader.metrics()[LEADER] else (standby, leader)
    standby.wait_for(lambda: SNAPSHOT in standby.metrics(), 2 * PERIOD, "serving the leader's snapshot")
    at = billed(standby)
    wait_for_cycles(leader, 1)
    assert billed(standby) == at
    until = align(int(time.time()) - 4 * PERIOD, PERIOD)
    leader.wait_for(lambda: replicas.is_complete_until(until), PERIOD + 20, "done with the history")
    assert leader.stop() == 0
    assert standby.stop() == 0
    assert replicas.compare(until) == replicas.periods(until)
