"""Gauges first: after a long stop CloudWatch's values are shown while the periods of the stop are still being opened."""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from exporter.core.periods import HOUR
from exporter.pipeline import collector, transactions
from exporter.pipeline.lifecycle import PendingSample
from exporter.storage.mongo import Database
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import Clock, InProcessExporter, series
from tests.helpers.reliability import record

WORKERS, STOPPED_HOURS = 40, 12
PIECE_SECONDS = 0.2
"""How long each piece takes, until CloudWatch has been polled: some of all that 10,000 workers would take."""


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
    loops = [
        asyncio.create_task(loop())
        for loop in (
            exporter.collector.observe_forever,
            exporter.collector.poll_forever,
            exporter.collector.open_gaps_forever,
        )
    ]
    try:
        async with asyncio.timeout(scaled(60)):
            await polled.wait()
            text = await exporter.scrape()
            while len(opened) < WORKERS:  # noqa: ASYNC110  # another thread appends
                await asyncio.sleep(0.05)
    finally:
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await exporter.close()
    assert len(series(text, "cml_worker_cpu_utilization_ratio{")) == WORKERS
    assert opened.count(True) > opened.count(False) > 0, "most of the stop is opened when the gauges are there"
    record("long-stop", note=f"polled after {opened.count(False)} of {len(opened)} pieces")
