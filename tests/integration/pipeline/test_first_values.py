"""Gauges first: what is missing at a start is asked for again soon, and the periods of a long stop come after the gauges."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exporter.core.periods import HOUR, align
from exporter.pipeline import collector, transactions
from exporter.pipeline.lifecycle import PendingSample
from exporter.pipeline.loop_group import LoopGroup
from exporter.storage.lease import keep_renewed
from exporter.storage.mongo import Database
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import Clock, InProcessExporter, series
from tests.helpers.reliability import record

WORKERS, STOPPED_HOURS = 40, 12
PIECE_SECONDS = 0.2
"""How long each piece takes, until CloudWatch has been polled: some of all that 10,000 workers would take."""


@asynccontextmanager
async def collecting(exporter: InProcessExporter, *further: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the loops of a collector, whose ticks never come: the clock stands. And further ones."""
    collect = exporter.collector
    loops = LoopGroup()
    for loop in (collect.observe_forever(), collect.poll_forever(), collect.open_gaps_forever(), *further):
        loops.create_task(loop, name="of a test")
    try:
        yield
    finally:
        await loops.end()
        await exporter.close()


async def values(exporter: InProcessExporter, count: int) -> None:
    """Wait until so many workers have a CPU value on /metrics."""
    async with asyncio.timeout(scaled(60)):
        while len(series(await exporter.scrape(), "cml_worker_cpu_utilization_ratio{")) != count:  # noqa: ASYNC110  # only a scrape tells
            await asyncio.sleep(0.05)


@pytest.fixture
def young(clock: Clock) -> Clock:
    """A clock that stands long before the next tick of both loops."""
    clock.now = align(int(clock.now), HOUR) + 190
    return clock


async def test_workers_that_appear_after_the_start_are_read_and_polled_within_seconds(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, young: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "FIRST_RETRY_SECONDS", 0.1)
    exporter = InProcessExporter(tmp_path, database, fake, young)
    async with collecting(exporter):
        async with asyncio.timeout(scaled(60)):
            await exporter.collector.polled.wait()
        member = Member("worker-00", instance_id(0), "eu-west-1", int(young()) - HOUR)
        fake.add(member.instance_id, runs=[(member.created, None)])
        await database["workers"].insert_one(member.aggregate())
        await values(exporter, 1)


async def test_a_region_that_has_not_answered_yet_is_polled_again_within_seconds_and_only_it(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, young: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "FIRST_RETRY_SECONDS", 0.1)
    regions = ("eu-west-1", "us-east-1")
    members = [Member(f"worker-{k}", instance_id(k), region, int(young()) - HOUR) for k, region in enumerate(regions)]
    for member in members:
        fake.add(member.instance_id, region=member.region, runs=[(member.created, None)])
    await database["workers"].insert_many([member.aggregate() for member in members])
    fake.fault("GetMetricData", "access_denied", 2, region="us-east-1")
    exporter = InProcessExporter(tmp_path, database, fake, young)
    async with collecting(exporter):
        await values(exporter, 2)
        assert exporter.collector.healthy["cloudwatch us-east-1"] is None
        calls = fake.counters()
        await asyncio.sleep(0.5)  # several pauses
        assert fake.counters() == calls, "once it has answered, the next poll is at the tick"
    asked = [count for (_, name, metric), count in fake.queried.items() if (name, metric) == (instance_id(0), "CPUUtilization")]
    assert asked == [1], "what has answered is not paid for again"


async def test_the_first_poll_after_a_long_stop_waits_for_one_piece_of_the_stop_at_most(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = int(clock())
    members = [Member(f"worker-{k:02}", instance_id(k), "eu-west-1", began) for k in range(WORKERS)]
    for member in members:
        fake.add(member.instance_id, runs=[(began, None)])
    await database["workers"].insert_many([member.aggregate() for member in members])
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.round(3)
    await exporter.lease.release()
    await exporter.close()
    clock.now += STOPPED_HOURS * HOUR

    monkeypatch.setattr(transactions, "PIECE_SAMPLES", 100)
    monkeypatch.setattr(collector, "FIRST_GAPS_SECONDS", 0)
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    outbox, polled = exporter.outbox.outbox, exporter.collector.polled
    opened: list[bool] = []
    """For each piece whether CloudWatch had been polled before it."""
    insert = outbox.open

    def slow(samples: Iterable[PendingSample]) -> int:
        opened.append(polled.is_set())
        if not polled.is_set():
            time.sleep(PIECE_SECONDS)
        return insert(samples)

    monkeypatch.setattr(outbox, "open", slow)
    await exporter.lease.acquire_or_renew()
    # On a busy machine this takes longer than a lease lasts, and who does not lead opens no gaps.
    async with collecting(exporter, keep_renewed(exporter.lease)), asyncio.timeout(scaled(60)):
        await polled.wait()
        text = await exporter.scrape()
        while len(opened) < WORKERS:  # noqa: ASYNC110  # another thread appends
            await asyncio.sleep(0.05)
    assert len(series(text, "cml_worker_cpu_utilization_ratio{")) == WORKERS
    assert opened.count(True) > opened.count(False) > 0, "most of the stop is opened when the gauges are there"
    record("long-stop", note=f"polled after {opened.count(False)} of {len(opened)} pieces")


async def test_the_first_poll_of_a_large_fleet_does_not_wait_for_gaps(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "FIRST_GAPS_SECONDS", HOUR)
    monkeypatch.setattr(collector, "FIRST_GAPS_WORKERS", 1)
    members = [Member(f"worker-{k}", instance_id(k), "eu-west-1", int(clock()) - HOUR) for k in range(2)]
    for member in members:
        fake.add(member.instance_id, runs=[(member.created, None)])
    await database["workers"].insert_many([member.aggregate() for member in members])
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.lease.acquire_or_renew()
    held = asyncio.Event()
    monkeypatch.setattr(exporter.collector, "open_gaps", held.wait)
    async with collecting(exporter), asyncio.timeout(scaled(30)):
        await exporter.collector.polled.wait()
    assert len(series(await exporter.scrape(), "cml_worker_cpu_utilization_ratio{")) == 2
