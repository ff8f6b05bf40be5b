"""The cost of CloudWatch: estimated, counted, and never more than the budget."""

import asyncio
import io
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from exporter.commands import estimate
from exporter.core.budget import DOLLARS_PER_METRIC
from exporter.core.model import MetricResults
from exporter.core.periods import DAY, align
from exporter.storage.mongo import Database
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member, assert_true, expected_history
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import DECIDED, PERIOD, Clock, InProcessExporter


@pytest.fixture
def clock() -> Clock:
    """Some minutes after midnight: the day of the budget is long enough for every test."""
    return Clock(align(int(time.time()), DAY) + 2 * PERIOD)


async def fleet(database: Database, fake: FakeCloudWatch, began: int, regions: Sequence[str]) -> list[Member]:
    """Workers that have run since `began`; the last of each region has no agent, and one more is stopped."""
    members = []
    for k, region in enumerate(region for region in regions for _ in range(4)):
        member = Member(f"worker-{k}", instance_id(k), region, began)
        fake.add(member.instance_id, region=region, runs=[(began, None)], agent=k % 4 < 3)
        members.append(member)
    await database["workers"].insert_many([member.aggregate() for member in members])
    stopped = Member("stopped", instance_id(99), regions[0], began)
    fake.add(stopped.instance_id, region=regions[0], runs=[(began, began + PERIOD)])
    await database["workers"].insert_one(stopped.aggregate(status="stopped"))
    return [*members, stopped]


async def test_the_estimate_is_what_the_metric_says_and_what_cloudwatch_counts(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    await fleet(database, fake, int(clock()) - DAY, ["eu-west-1", "us-east-1"])
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.round(8)  # the gaps of the day before are filled, late values are final
    billed, calls = fake.metrics_billed, fake.calls["GetMetricData"]
    counted = exporter.value("cml_exporter_cloudwatch_estimated_cost_dollars_total") or 0
    await exporter.round(6)

    fleet_now = await exporter.collector._observer._source.read()
    listings = {region: await exporter.cloudwatch.list_memory(region, recent=True) for region in ("eu-west-1", "us-east-1")}
    found = estimate.estimate(fleet_now, listings, exporter.collector._rules)
    assert (found.running, found.agents, found.usage.calls, found.usage.metrics) == (8, 6, 2, 14)
    assert fake.metrics_billed - billed == 6 * found.usage.metrics
    assert fake.calls["GetMetricData"] - calls == 6 * found.usage.calls
    cost = (exporter.value("cml_exporter_cloudwatch_estimated_cost_dollars_total") or 0) - counted
    assert cost == pytest.approx(6 * found.usage.dollars)
    assert exporter.value("cml_exporter_cloudwatch_day_cost_dollars") == pytest.approx(fake.metrics_billed * DOLLARS_PER_METRIC)
    await exporter.close()


async def test_the_budget_pauses_gap_filling_first_then_polling_until_midnight_and_a_restart_does_not_reset_it(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    clock.now = align(int(clock()), DAY) + DAY - 20 * PERIOD  # 20 cycles to midnight
    began = int(clock()) - DAY // 4
    members = await fleet(database, fake, began, ["eu-west-1"])  # 7 metrics per cycle
    gone = Member("gone", instance_id(50), "eu-west-1", began)
    fake.add(gone.instance_id, region="eu-west-1", runs=[(began, int(clock()))])
    await database["workers"].insert_one(gone.aggregate())
    limit = 7 * 6 + 4

    def state(exporter: InProcessExporter) -> str:
        states = ("ok", "gap_filling_paused", "polling_paused")
        (shown,) = [s for s in states if exporter.value("cml_exporter_cloudwatch_budget_state", state=s) == 1]
        return shown

    exporter = InProcessExporter(tmp_path, database, fake, clock, max_usd_per_day=limit * DOLLARS_PER_METRIC)
    await exporter.round()
    await database["workers"].update_one({"_id": "gone"}, {"$set": {"status": "stopped"}})
    await exporter.round()
    assert state(exporter) == "gap_filling_paused"
    assert exporter.value("cml_exporter_cloudwatch_budget_dollars") == pytest.approx(limit * DOLLARS_PER_METRIC)
    spent = fake.metrics_billed
    await exporter.round()
    assert fake.metrics_billed == spent + 7, "only the running workers are queried"
    waiting = exporter.outbox.outbox.counts()["observed"]
    assert waiting > 0
    assert "max_usd_per_day" in (exporter.collector.healthy["budget"] or "")

    for _ in range(2):
        spent = fake.metrics_billed
        await exporter.close()
        exporter = InProcessExporter(tmp_path, database, fake, clock, max_usd_per_day=limit * DOLLARS_PER_METRIC)
        await exporter.round(3)
        assert spent <= fake.metrics_billed <= limit
    assert state(exporter) == "polling_paused"
    assert fake.metrics_billed > limit - 8
    sent = dict(fake.calls)
    await exporter.round(4)
    assert dict(fake.calls) == sent, "nothing at all is sent"
    assert exporter.value("cml_exporter_samples_unavailable_total", metric="cpu") in (0, None), "nothing is recorded as absent"

    clock.now = align(int(clock()), DAY) + DAY
    await exporter.round(12)
    assert state(exporter) == "ok" or fake.metrics_billed <= 2 * limit
    await exporter.close()
    exporter = InProcessExporter(tmp_path, database, fake, clock)  # without the limit
    await exporter.round(8)
    # Some samples of the stopped worker have only its status; all values that CloudWatch had are there.
    documents = await exporter.documents()
    values = [document for document in documents if "cpu_utilization" in document]
    stopped_at = align(int(clock()) - DECIDED, PERIOD)
    assert assert_true(values, expected_history(fake, [*members, gone], align(int(clock()), PERIOD)), stopped_at) > 5 * 72
    await exporter.close()


async def test_a_cycles_spending_is_saved_before_its_calls_so_that_a_kill_during_them_cannot_spend_it_twice(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet(database, fake, int(clock()) - DAY, ["eu-west-1"])
    killed = InProcessExporter(tmp_path / "killed", database, fake, clock)
    query, billed = killed.cloudwatch.get_metric_data, asyncio.Event()

    async def never_return(*args: Any) -> MetricResults:  # noqa: ANN401  # those of get_metric_data
        await query(*args)
        billed.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(killed.cloudwatch, "get_metric_data", never_return)
    await killed.lease.acquire_or_renew()
    await killed.observe()
    cycle = asyncio.create_task(killed.collector.poll())
    await asyncio.wait_for(billed.wait(), scaled(30))
    shutil.copytree(tmp_path / "killed", tmp_path / "data")  # the files as a kill would leave them at this moment
    cycle.cancel()
    await asyncio.gather(cycle, return_exceptions=True)
    await killed.close()
    spent = fake.metrics_billed
    assert spent > 0

    limit = spent * DOLLARS_PER_METRIC
    restarted = InProcessExporter(tmp_path / "data", database, fake, clock, max_usd_per_day=limit)
    assert restarted.budget.spent()[1] >= spent
    await restarted.round(2)
    assert fake.metrics_billed == spent
    assert restarted.value("cml_exporter_cloudwatch_budget_state", state="polling_paused") == 1
    await restarted.close()


async def test_the_estimate_is_a_table_that_shows_what_the_budget_pays_for(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    await fleet(database, fake, int(clock()) - DAY, ["eu-west-1"])
    exporter = InProcessExporter(tmp_path, database, fake, clock, max_usd_per_day=100 * 7 * DOLLARS_PER_METRIC)
    fleet_now = await exporter.collector._observer._source.read()
    listing = await exporter.cloudwatch.list_memory("eu-west-1", recent=True)
    rules, out = exporter.collector._rules, io.StringIO()
    estimate.show(exporter.settings, fleet_now, estimate.estimate(fleet_now, {"eu-west-1": listing}, rules), rules, [], out)
    text = " ".join(out.getvalue().split())
    assert "a cycle (every 5m) 1 7 0.0001" in text
    assert "a day 288 2,016 0.0202" in text
    assert "4 of 5 workers are running; 3 of them have a CloudWatch agent" in text
    assert "enough for 100 of 288 cycles a day" in text
    await exporter.close()


def test_a_region_that_cannot_be_listed_is_estimated_with_two_metrics_per_worker() -> None:
    from exporter.core.model import Fleet, Worker
    from exporter.pipeline.lifecycle import Rules

    workers = tuple(Worker(f"w{k}", "eu-west-1", instance_id(k), "running") for k in range(300))
    found = estimate.estimate(Fleet(1_767_225_600, workers), {"eu-west-1": None}, Rules())
    assert found.usage.metrics == 600
    assert found.usage.calls == 2
