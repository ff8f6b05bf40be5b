"""Two exporters on one fleet: one writes, and when it dies or hangs the other takes over; each sample is written once."""

import asyncio
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
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member, assert_true, expected_history
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.reliability import record
from tests.tools.crash_tests import COLLECTION, DATABASE, InsertProxy

PERIOD, HOUR = 60, 3600
TAKEN_OVER_WITHIN = 45
"""Seconds: a lease lasts 30 s, and the other exporter tries to take it every 10 s."""
RUNNER = (
    "import os, time; from exporter import app, cli; from exporter.pipeline import collector, mirror, planning; "
    "from exporter.storage import sample_documents, sample_writer; exec(os.environ['TUNE']); cli.main()"
)
"""The unmodified process except for a few constants, so that the test is fast."""
STOPS_ITSELF = (
    "documents, stop = sample_documents._documents, iter([lambda: (os.kill(os.getpid(), 19), time.sleep(1))]); "
    "sample_documents._documents = lambda rows: (next(stop, int)(), documents(rows))[1]"
)
"""With SIGSTOP, once, before the first document is made; the threads of a process stop one after the other."""


@dataclass
class Pair:
    """Two exporters, each behind its own proxy, with the fleet and the servers."""

    mongod: Mongod
    fake: FakeCloudWatch
    members: list[Member]
    began: float
    start: Callable[..., ExporterProcess]

    def documents(self) -> list[dict[str, Any]]:
        with MongoClient[dict[str, Any]](self.mongod.uri, tz_aware=True) as client:
            return list(client[DATABASE][COLLECTION].find({}, {"_id": 0}))

    def compare(self) -> int:
        """Compare the history with the ledger, for all periods that were final when the test began; return how many samples."""
        points = expected_history(self.fake, self.members, align(int(time.time()), PERIOD), PERIOD)
        return assert_true(self.documents(), points, self.final_before)

    def is_complete(self) -> bool:
        return len(self.documents()) >= len(expected_history(self.fake, self.members, self.final_before, PERIOD))

    @property
    def final_before(self) -> int:
        return align(int(self.began) - 240, PERIOD)


@pytest.fixture
def pair(
    own_mongod: Mongod, aws_credentials: None, run_exporter: RunExporter, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pair]:
    monkeypatch.setattr("tests.helpers.exporter_process.COMMAND", (sys.executable, "-c", RUNNER))
    began = time.time()
    with ExitStack() as stack:
        fake = stack.enter_context(FakeCloudWatch(period=PERIOD))
        created = align(int(began) - 5 * HOUR, PERIOD)
        members = [Member(f"worker-{k}", instance_id(k), "eu-west-1", created) for k in range(8)]
        for member in members:
            fake.add(member.instance_id, runs=[(created, None)])
        with MongoClient[dict[str, Any]](own_mongod.uri) as client:
            client[DATABASE]["workers"].insert_many([member.aggregate() for member in members])

        def start(proxy: InsertProxy, poll_at: int, tune: str = "") -> ExporterProcess:
            """Start an exporter that polls `poll_at` seconds after the beginning of the test, then every minute."""
            settings = {
                "mongodb": {"uri": proxy.uri},
                "cloudwatch": {"endpoint_url": fake.url, "interval": "1m"},
                "period": "1m",
                "settle_delay": "1m",
                "absence_timeout": "2m",
            }
            offset = int(began + poll_at) % PERIOD
            tuned = f"collector.POLL_OFFSET_SECONDS = {offset}; planning.DUE_TOLERANCE_SECONDS = {PERIOD}; {tune}"
            return run_exporter(settings, env={"TUNE": tuned}, wait=False)

        yield Pair(own_mongod, fake, members, began, start)


def metric(exporter: ExporterProcess, name: str) -> float:
    return exporter.metrics()[name]


def shows_the_fleet(exporter: ExporterProcess, members: list[Member]) -> bool:
    return sum(name.startswith("cml_worker_cpu_utilization_ratio{") for name in exporter.metrics()) == len(members)


async def wait_for(exporter: ExporterProcess, condition: Callable[[], object], within: float, what: str) -> None:
    await asyncio.to_thread(exporter.wait_for, condition, within, what)


@pytest.mark.waits(90)
async def test_when_the_leader_is_killed_with_an_insert_in_flight_the_other_takes_over_and_the_history_equals_the_ledger(
    pair: Pair,
) -> None:
    async with InsertProxy(pair.mongod.port) as proxy, InsertProxy(pair.mongod.port) as other_proxy:
        leader: ExporterProcess
        trap = proxy.arm("mid", lambda: leader.kill(), hold=True)
        leader = await asyncio.to_thread(pair.start, proxy, 50)
        await asyncio.to_thread(leader.wait_until_ready)
        await wait_for(leader, lambda: metric(leader, "cml_exporter_leader") == 1, 30, "the leader")
        # Started as early as can be: after 20 s the leader gives an insert up that is held, and writes it again.
        other = await asyncio.to_thread(pair.start, other_proxy, 50)
        await asyncio.to_thread(other.wait_until_ready)
        await asyncio.wait_for(trap.caught.wait(), scaled(60))
        assert metric(leader, "cml_exporter_leader") == 1
        assert metric(other, "cml_exporter_leader") == 0
        await wait_for(leader, lambda: shows_the_fleet(leader, pair.members), 20, "serving the fleet")
        assert other_proxy.inserts == 0

        trap.go.set()
        await trap.sprung
        killed = time.monotonic()
        await wait_for(other, lambda: metric(other, "cml_exporter_leader") == 1, TAKEN_OVER_WITHIN, "the leader")
        recovery = time.monotonic() - killed
        print(f"killed {trap.sprung.result()}, taken over after {recovery:.0f} s")
        await wait_for(other, lambda: shows_the_fleet(other, pair.members), 20, "serving the fleet")
        await wait_for(other, pair.is_complete, PERIOD + 20, "done with the history")
        assert pair.compare() >= 8 * 290
        assert await asyncio.to_thread(other.stop) == 0
        compared = pair.compare()
        assert compared >= 8 * 290
        record("leader-killed", lost=0, doubled=0, recovery=recovery, note=f"of {compared:,}, CPU and memory")


@pytest.mark.nightly("test_an_insert_of_a_writer_that_was_paused_until_another_took_over_is_refused")
@pytest.mark.waits(90)
@pytest.mark.parametrize("moment", ["after the read-back", "while it encodes"])
async def test_a_leader_that_was_paused_between_read_back_and_insert_writes_nothing_after_it_was_replaced(
    pair: Pair, moment: str
) -> None:
    # The pause must be longer than the lease, but not so long that the read-back times out by itself (30 s).
    short = "app.LEASE_SECONDS = 12; mirror.MIN_LEASE_SECONDS = 3"
    async with InsertProxy(pair.mongod.port) as proxy, InsertProxy(pair.mongod.port) as other_proxy:
        leader: ExporterProcess
        if moment == "after the read-back":
            proxy.arm_readback(lambda: leader.pause())
        leader = await asyncio.to_thread(
            pair.start, proxy, 25, f"{short}; {STOPS_ITSELF if moment == 'while it encodes' else ''}"
        )
        await wait_for(leader, lambda: leader.is_paused, 30, "paused")
        other = await asyncio.to_thread(pair.start, other_proxy, 25, short)
        await asyncio.to_thread(other.wait_until_ready)
        assert proxy.inserts == 0
        await wait_for(other, lambda: metric(other, "cml_exporter_leader") == 1, TAKEN_OVER_WITHIN, "the leader")
        await wait_for(other, pair.is_complete, PERIOD + 20, "done with the history")
        written = len(pair.documents())

        leader.resume()
        await asyncio.to_thread(leader.wait_until_ready)
        await wait_for(leader, lambda: metric(leader, "cml_exporter_leader") == 0, 20, "aware that it was replaced")
        await asyncio.sleep(7)  # longer than the mirror waits before it retries
        assert metric(other, "cml_exporter_leader") == 1
        assert proxy.inserts == 0
        assert len(pair.documents()) >= written
        assert pair.compare() >= 8 * 290
