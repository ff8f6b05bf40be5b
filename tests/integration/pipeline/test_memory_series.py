"""Memory under several dimension sets: after a cold start `/metrics`, the history, and `/resources` have the same value.

The first cycle fills gaps, so it queries every listed series; the following ones query as few as possible.
"""

import asyncio
import os
import re
import time
from pathlib import Path
from random import Random

import pytest

from exporter.core.model import Dimensions
from exporter.core.periods import HOUR, align, rfc3339, to_datetime, to_seconds
from exporter.storage.mongo import Database
from tests.fixtures.process import RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, Series, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter, series

REGION, TYPE = "eu-west-1", "m5.2xlarge"
LAG = 660
"""Seconds after its end at which a period is published: even its absence is final then, so that the first cycle decides it."""
STARTS = int(os.environ.get("COLD_STARTS", "2"))


def dimension_sets(instance: str) -> list[Dimensions]:
    """Sets of one instance, the likeliest first, as the documentation ranks them."""
    return [
        (("InstanceId", instance),),
        (("InstanceId", instance), ("InstanceType", TYPE)),
        (("ImageId", "ami-1"), ("InstanceId", instance), ("InstanceType", TYPE)),
        (("ImageId", "ami-2"), ("InstanceId", instance), ("InstanceType", TYPE)),
        (("InstanceId", instance), ("host", "ip-10-0-0-1")),
        (("InstanceId", instance), ("InstanceType", "t3.large")),
    ]


def add_with_three_series(fake: FakeCloudWatch, instance: str, random: Random, now: int) -> float:
    """Add an instance with three series, of which the likeliest may have stopped; return by what that one's values differ.

    Every series shows another value. One that has stopped did so an hour ago: it is still listed.
    """
    chosen = sorted(random.sample(range(6), 3))
    stopped = random.randrange(3)
    found = [
        Series(dimension_sets(instance)[rank], ((None, now - HOUR),) if place < stopped else ((None, None),), (place + 1) / 10)
        for place, rank in enumerate(chosen)
    ]
    random.shuffle(found)
    fake.add(instance, memory=found, lag=LAG)
    return (stopped + 1) / 10


async def sample_at(database: Database, worker_id: str, at: int) -> float | None:
    """Return the memory of a sample of the history in percent."""
    key = {"worker_id": worker_id, "timestamp": to_datetime(at)}
    document = await database["worker_metrics_timeseries"].find_one(key)
    return document.get("memory_utilization") if document else None


@pytest.mark.nightly("test_every_cycle_shows_one_value_while_series_stop_and_return_and_the_exporter_restarts")
@pytest.mark.waits(30)
@pytest.mark.timeout(600)
async def test_cold_starts_with_three_series_show_one_value(
    fake_cloudwatch: FakeCloudWatch, database: Database, run_exporter: RunExporter
) -> None:
    fake = fake_cloudwatch
    uri = "mongodb://{}:{}/{}?directConnection=true".format(*(await database.client.address or ("", 0)), database.name)
    settings = {
        "mongodb": {"uri": uri},
        "cloudwatch": {"endpoint_url": fake.url},
        "absence_timeout": "10m",
        "max_age": "30m",
        "gap_fill_window": "4h",
    }
    random = Random(11)
    print("start  worker     period                gauge     history   /resources")
    for number in range(STARTS):
        # Not in the seconds in which the next datapoint appears: the three are not read at the same moment.
        await asyncio.sleep(max(0, (time.time() - LAG) % PERIOD - (PERIOD - 20)))
        instance, worker_id = instance_id(number), f"worker-{number}"
        plus = add_with_three_series(fake, instance, random, int(fake.now()))
        await database["workers"].delete_many({})
        member = Member(worker_id, instance, REGION, int(fake.now()) - 3 * HOUR)
        await database["workers"].insert_one(member.aggregate(instance_type=TYPE))

        exporter = run_exporter(settings)  # with a data folder of its own
        exporter.wait_for(lambda exporter=exporter: memory_of(exporter), 30, "showing memory")  # type: ignore[misc]
        gauge = memory_of(exporter)[worker_id] * 100
        resources = exporter.get(f"/api/workers/region/{REGION}/workers/{worker_id}/resources?start_time=30s").json()
        newest = align(int(fake.now()) - LAG, PERIOD) - PERIOD
        assert (resources["start_time"], resources["end_time"]) == (rfc3339(newest), rfc3339(newest + PERIOD))
        history = await wait_for_sample(exporter, database, worker_id, newest)
        assert exporter.stop() == 0

        answered = resources["avg_memory_utilization"]
        print(f"{number:5}  {worker_id:9}  {rfc3339(newest)}  {gauge:8.4f}  {history:8.4f}  {answered:>8}")
        expected = fake.value(instance, "memory", newest) + plus
        assert gauge == pytest.approx(expected)
        assert history == expected
        assert resources["avg_memory_utilization"] == f"{expected:.1f}"


def memory_of(exporter: ExporterProcess) -> dict[str, float]:
    """Return worker id → memory as a ratio, of /metrics."""
    found = (re.fullmatch(r'cml_worker_memory_utilization_ratio{.*worker_id="([^"]*)".*}', name) for name in exporter.metrics())
    metrics = exporter.metrics()
    return {match[1]: metrics[match[0]] for match in found if match}


async def wait_for_sample(exporter: ExporterProcess, database: Database, worker_id: str, at: int) -> float:
    deadline = time.monotonic() + scaled(60)
    while (found := await sample_at(database, worker_id, at)) is None:
        assert exporter.running
        assert time.monotonic() < deadline, f"no sample of {rfc3339(at)}:\n{exporter.tail()}"
        await asyncio.sleep(0.1)
    return found


async def test_every_cycle_shows_one_value_while_series_stop_and_return_and_the_exporter_restarts(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """Three hours on a simulated clock; gauge and `/resources` of each cycle are compared with the history in the end."""
    began = int(clock())
    members = [Member(f"worker-{number}", instance_id(number), REGION, began - 3 * HOUR) for number in range(6)]
    random = Random(7)
    for member in members:
        chosen = [dimension_sets(member.instance_id)[rank] for rank in random.sample(range(6), 3)]
        stops = [began + PERIOD * random.randrange(30) for _ in chosen]
        memory = [
            Series(each, ((None, stop), (stop + PERIOD * random.randrange(1, 15), None)), (place + 1) / 10)
            for place, (each, stop) in enumerate(zip(chosen, stops, strict=True))
        ]
        fake.add(member.instance_id, memory=memory)
        await database["workers"].insert_one(member.aggregate(instance_type=TYPE))
    exporter = InProcessExporter(tmp_path / "0", database, fake, clock, absence_timeout="1h")
    shown: dict[tuple[str, int], set[float]] = {}
    for cycle in range(36):
        if cycle % 9 == 8:  # every second time without its outbox
            await exporter.lease.release()
            await exporter.close()
            exporter = InProcessExporter(tmp_path / str(cycle // 18), database, fake, clock, absence_timeout="1h")
        if cycle % 13 == 5:
            fake.fault("ListMetrics", "access_denied", 1)
        await exporter.round()
        gauges = series(await exporter.scrape(), "cml_worker_memory_utilization_ratio")
        for gauge in exporter.collector.snapshot.workers if exporter.collector.snapshot else ():
            if gauge.memory is None or gauge.memory_time is None:
                continue
            at = gauge.memory_time - PERIOD
            assert any(value * 100 == pytest.approx(gauge.memory) for value in gauges.values())
            shown.setdefault((gauge.worker.id, at), set()).add(gauge.memory)
            points = await exporter.backend.reader._archive.window(gauge.worker, None, at - 3 * PERIOD, at + PERIOD, PERIOD)  # type: ignore[union-attr]
            assert {point.start: point.memory for point in points}[at] == gauge.memory, f"cycle {cycle}: {gauge.worker.id}"
    await exporter.round(16)  # until all of it is final
    await exporter.close()
    history = {
        (document["worker_id"], to_seconds(document["timestamp"])): document.get("memory_utilization")
        for document in await exporter.documents()
    }
    differing = {key: (values, history.get(key)) for key, values in shown.items() if values != {history.get(key)}}
    assert not differing, f"{len(differing)} of {len(shown)} periods, such as {min(differing.items())}"
    assert len(shown) > 6 * 28, "gauges of most periods were compared"
    print(f"{len(shown)} periods of {len(members)} workers: the gauge of each is the value in the history")
