"""Agents as people configure them: memory under another namespace, name and dimension. Real HTTP requests to AWS."""

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from exporter.commands import estimate
from exporter.commands.check.aws import check_aws
from exporter.core.periods import DAY, HOUR, align
from exporter.pipeline.lifecycle import Rules
from exporter.storage.mongo import Database
from exporter.web.application import create_app
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, Series, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter, series

NOW = align(1_790_000_000, DAY) + 2 * HOUR
REGION, ONE = "eu-west-1", instance_id(1)
OWN_MEMORY = {"memory": {"namespace": "Lab/Linux", "metric": "MemoryUsed", "dimension": "host"}}


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def own_memory(fake: FakeCloudWatch) -> None:
    """Let the agents of the fake publish memory as OWN_MEMORY."""
    fake.memory_metric, fake.memory_dimension = ("Lab/Linux", "MemoryUsed"), "host"


async def running(database: Database, began: int = NOW - 2 * DAY) -> Member:
    member = Member("w1", ONE, REGION, began)
    await database["workers"].insert_one(member.aggregate())
    return member


@pytest.mark.usefixtures("own_memory")
async def test_memory_of_another_agent_is_in_gauge_history_resources_estimate_and_check(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    member = await running(database, NOW - 20 * HOUR)
    fake.add(ONE, runs=[(member.created, None)])
    exporter = InProcessExporter(tmp_path, database, fake, clock, cloudwatch=OWN_MEMORY)
    await exporter.history.ensure_collection()
    await exporter.round(8)  # the gaps of the day before are filled from it, too

    assert await exporter.assert_history_is_true(fake, [member]) > 230
    documents = await exporter.documents()
    assert sum("memory_utilization" in document for document in documents) > 230
    newest = align(int(clock()), PERIOD) - PERIOD
    (value,) = series(await exporter.scrape(), "cml_worker_memory_utilization_ratio").values()
    assert value == pytest.approx(fake.value(ONE, "memory", newest) / 100)

    transport = httpx.ASGITransport(app=create_app(exporter.backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
        path = f"/api/workers/region/{REGION}/workers/w1/resources?start_time=5m"
        assert float((await client.get(path)).json()["avg_memory_utilization"]) == pytest.approx(value * 100, abs=0.06)

    fleet = exporter.collector.fleet
    listing = await exporter.cloudwatch.list_memory(REGION, recent=True)
    found = estimate.estimate(fleet, {REGION: listing}, Rules.from_settings(exporter.settings))
    assert (found.agents, found.usage.metrics) == (1, 2)
    checks = {result.check: result for result in await check_aws(exporter.settings, fleet, clock)}
    memory = checks[f"CloudWatch memory, {REGION}"]
    assert memory.status == "ok"
    assert "1 instance with Lab/Linux MemoryUsed in the last 3 h" in memory.text
    await exporter.close()


@pytest.mark.usefixtures("own_memory")
async def test_the_default_agent_is_not_found_there_and_check_names_the_setting(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    member = await running(database)
    fake.add(ONE, runs=[(member.created, None)])
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.round()
    assert not series(await exporter.scrape(), "cml_worker_memory_utilization_ratio")
    (memory,) = [
        r for r in await check_aws(exporter.settings, exporter.collector.fleet, clock) if r.check.startswith("CloudWatch mem")
    ]
    assert memory.status == "warn"
    assert memory.text.endswith("or set cloudwatch.memory to the metric that it publishes")
    await exporter.close()


@pytest.mark.usefixtures("own_memory")
async def test_old_memory_that_is_no_longer_listed_is_guessed_by_the_dimension_of_the_setting(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    member = await running(database, NOW - 60 * DAY)
    gone = (None, NOW - 20 * DAY)
    fake.add(ONE, runs=[(member.created, None)], memory=[Series((("host", ONE),), (gone,))])
    exporter = InProcessExporter(tmp_path, database, fake, clock, cloudwatch=OWN_MEMORY)
    await exporter.observe()
    worker = replace(exporter.collector.fleet.workers[0])
    day = align(NOW - 30 * DAY, PERIOD)
    archive = exporter.backend.reader._archive
    assert archive is not None
    points = await archive.window(worker, None, day, day + HOUR, PERIOD)
    assert [point.memory for point in points] == [fake.value(ONE, "memory", point.start) for point in points]
    assert len(points) == 12
    await exporter.close()
