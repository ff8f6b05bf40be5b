"""What HTTP readers can spend on CloudWatch: a share of the day's budget, never what polling needs."""

import itertools
from pathlib import Path

import httpx
import pytest

from exporter.core.budget import DOLLARS_PER_METRIC
from exporter.core.model import Fleet, Worker
from exporter.core.periods import DAY, HOUR, align, rfc3339
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import Database
from exporter.web.application import create_app
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter, series
from tests.helpers.reliability import record

NOW = align(1_790_000_000, DAY) + 2 * HOUR
REGION, ONE = "eu-west-1", instance_id(1)
PER_CYCLE = 2
"""Metrics that polling the one worker bills in a cycle."""


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def folder(tmp_path: Path, database: Database, fake: FakeCloudWatch) -> Path:
    """The data folder of an exporter of one running worker that has an agent."""
    began = NOW - 440 * DAY
    fake.add(ONE, runs=[(began, None)])
    await database["workers"].insert_one(Member("w1", ONE, REGION, began).aggregate())
    await Inventory(database).record(Fleet(began, (Worker("w1", REGION, ONE, "running"),)))
    return tmp_path


async def anonymous_loop(exporter: InProcessExporter, requests: int) -> list[httpx.Response]:
    """Request other windows of `/resources` and other pages of old history each time, so that no cache helps."""
    transport = httpx.ASGITransport(app=create_app(exporter.backend))
    responses = []
    async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
        for n in itertools.islice(itertools.count(1), requests):
            end = NOW - 3 * HOUR - n * PERIOD
            path = f"/api/workers/region/{REGION}/workers/w1/resources?start_time=30m&end_time={rfc3339(end)}"
            if n % 3 == 0:
                day = NOW - (35 + n) * DAY
                path = f"/api/workers/w1/metrics/history?start={rfc3339(day)}&end={rfc3339(day + DAY)}"
            responses.append(await client.get(path))
    return responses


@pytest.mark.parametrize(
    "budget",
    [
        0.03,
        pytest.param(None, marks=pytest.mark.nightly("test_an_anonymous_loop_spends_the_share_of_readers_and_polling_goes_on")),
    ],
)
async def test_an_anonymous_loop_spends_the_share_of_readers_and_polling_goes_on(
    folder: Path, database: Database, fake: FakeCloudWatch, clock: Clock, budget: float | None
) -> None:
    exporter = InProcessExporter(folder, database, fake, clock, max_usd_per_day=budget)
    if budget is None:
        # A dollar a day without a budget; all but 300 metrics of it are spent.
        exporter.readers._spent, exporter.readers._day = 100_000 - 300, align(NOW, DAY)
    await exporter.history.ensure_collection()
    await exporter.round()
    polled = fake.metrics_billed

    responses = await anonymous_loop(exporter, 250)

    spent = fake.metrics_billed - polled
    assert spent == 300, "10 % of 0.03 dollars are 300 metrics"
    assert {response.status_code for response in responses} == {200, 429}
    refused = [response for response in responses if response.status_code == 429]
    assert int(refused[0].headers["Retry-After"]) == DAY - int(clock()) % DAY
    assert refused[0].headers["content-type"] == "application/problem+json"
    assert refused[0].json()["detail"] == (
        "CloudWatch in eu-west-1: HTTP readers have spent their share of today's CloudWatch budget, so "
        "cloudwatch:GetMetricData was not sent; gauges and history go on, try again after 00:00 UTC, or raise "
        "cloudwatch.reader_budget_share or cloudwatch.max_usd_per_day"
    )
    assert (exporter.value("cml_exporter_cloudwatch_reader_requests_refused_total") or 0) >= len(refused)

    await exporter.round(3)  # polling is as before
    assert fake.metrics_billed - polled - spent == 3 * PER_CYCLE
    assert exporter.value("cml_exporter_cloudwatch_budget_state", state="ok") == 1
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 1
    assert series(await exporter.scrape(), "cml_worker_cpu_utilization_ratio")
    limit = 1 if budget is None else budget / 10
    assert exporter.value("cml_exporter_cloudwatch_reader_budget_dollars") == pytest.approx(limit)
    assert exporter.value("cml_exporter_cloudwatch_reader_day_cost_dollars") == pytest.approx(limit)

    # A restart grants no second share, a new day does.
    await exporter.close()
    exporter = InProcessExporter(folder, database, fake, clock, max_usd_per_day=budget)
    (response,) = await anonymous_loop(exporter, 1)
    assert response.status_code == 429
    clock.now = align(NOW, DAY) + DAY + HOUR
    (response,) = await anonymous_loop(exporter, 1)
    assert response.status_code == 200
    await exporter.close()
    record("anonymous-reader", note=f"{spent:,} metrics of {len(responses)} requests, {len(refused)} refused")


async def test_readers_get_nothing_of_what_polling_needs_until_midnight(
    folder: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    clock.now = align(NOW, DAY) + DAY - HOUR - 2 * PERIOD
    exporter = InProcessExporter(folder, database, fake, clock, max_usd_per_day=1000 * DOLLARS_PER_METRIC)
    await exporter.round()  # 23:00, so that 23:05 to 23:55 follow
    assert exporter.budget.take(int(exporter.budget.left) - 14 * PER_CYCLE)
    await exporter.round()
    assert exporter.value("cml_exporter_cloudwatch_budget_state", state="ok") == 1

    responses = await anonymous_loop(exporter, 4)

    assert [response.status_code for response in responses] == [200, 429, 429, 429], "the share of readers is 100 metrics"
    await exporter.round(10)
    assert exporter.budget.left < 3 * PER_CYCLE
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 1
    assert exporter.value("cml_exporter_cloudwatch_budget_state", state="polling_paused") == 0
    await exporter.close()
