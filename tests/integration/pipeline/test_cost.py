"""What CloudWatch costs: estimated before, counted on the way, and never more than the budget."""

import asyncio
import io
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from exporter.commands import estimate
from exporter.core.budget import DOLLARS_PER_METRIC
from exporter.core.model import Listing, MetricQuery, MetricResults
from exporter.core.periods import DAY, align
from exporter.pipeline.outbox import Outbox
from exporter.storage.mongo import Database
from tests.helpers.expected_history import Member, assert_true, truth
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import DECIDED, PERIOD, Clock
from tests.helpers.in_process_exporter import InProcessExporter as Rig


@pytest.fixture
def clock() -> Clock:
    """Some minutes after midnight: the day of the budget is long enough for every test."""
    return Clock(align(int(time.time()), DAY) + 2 * PERIOD)


@pytest.fixture
async def fake(clock: Clock, aws_credentials: None) -> AsyncIterator[FakeCloudWatch]:
    with FakeCloudWatch(now=clock) as fake:
        yield fake


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
    rig = Rig(tmp_path, database, fake, clock)
    await rig.round(8)  # the day before is healed, late values are settled
    settled, calls = fake.metrics_billed, fake.calls["GetMetricData"]
    counted = rig.value("cml_exporter_cloudwatch_estimated_cost_dollars_total") or 0
    await rig.round(6)

    reading = await rig.collector._observer._source.read()
    listings = {region: await rig.cloudwatch.list_memory(region, recent=True) for region in ("eu-west-1", "us-east-1")}
    found = estimate.estimate(reading, listings, rig.collector._rules)
    assert (found.running, found.agents, found.usage.calls, found.usage.metrics) == (8, 6, 2, 14)
    assert fake.metrics_billed - settled == 6 * found.usage.metrics
    assert fake.calls["GetMetricData"] - calls == 6 * found.usage.calls
    cost = (rig.value("cml_exporter_cloudwatch_estimated_cost_dollars_total") or 0) - counted
    assert cost == pytest.approx(6 * found.usage.dollars)
    assert rig.value("cml_exporter_cloudwatch_day_cost_dollars") == pytest.approx(fake.metrics_billed * DOLLARS_PER_METRIC)
    await rig.close()


async def test_the_budget_stops_healing_first_then_asking_until_midnight_and_a_restart_does_not_reset_it(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    clock.now = align(int(clock()), DAY) + DAY - 20 * PERIOD  # 20 rounds to midnight
    began = int(clock()) - DAY // 4
    members = await fleet(database, fake, began, ["eu-west-1"])  # 7 metrics a cycle
    gone = Member("gone", instance_id(50), "eu-west-1", began)
    fake.add(gone.instance_id, region="eu-west-1", runs=[(began, int(clock()))])
    await database["workers"].insert_one(gone.aggregate())
    limit = 7 * 6 + 4

    def state(rig: Rig) -> str:
        states = ("ok", "gap_filling_paused", "polling_paused")
        (shown,) = [s for s in states if rig.value("cml_exporter_cloudwatch_budget_state", state=s) == 1]
        return shown

    rig = Rig(tmp_path, database, fake, clock, max_usd_per_day=limit * DOLLARS_PER_METRIC)
    await rig.round()
    await database["workers"].update_one({"_id": "gone"}, {"$set": {"status": "stopped"}})
    await rig.round()
    assert state(rig) == "gap_filling_paused"
    assert rig.value("cml_exporter_cloudwatch_budget_dollars") == pytest.approx(limit * DOLLARS_PER_METRIC)
    spent = fake.metrics_billed
    await rig.round()
    assert fake.metrics_billed == spent + 7, "the running workers are asked about, and nobody else"
    waiting = rig.outbox.outbox.counts()["observed"]
    assert waiting > 0
    assert "max_usd_per_day" in (rig.collector.healthy["budget"] or "")

    for _ in range(2):
        spent = fake.metrics_billed
        await rig.close()
        rig = Rig(tmp_path, database, fake, clock, max_usd_per_day=limit * DOLLARS_PER_METRIC)
        await rig.round(3)
        assert spent <= fake.metrics_billed <= limit
    assert state(rig) == "polling_paused"
    assert fake.metrics_billed > limit - 8
    asked = dict(fake.calls)
    await rig.round(4)
    assert dict(fake.calls) == asked, "nothing at all is sent"
    assert rig.value("cml_exporter_samples_unavailable_total", metric="cpu") in (0, None), "nothing is given up for it"

    clock.now = align(int(clock()), DAY) + DAY
    await rig.round(12)
    assert state(rig) == "ok" or fake.metrics_billed <= 2 * limit
    await rig.close()
    rig = Rig(tmp_path, database, fake, clock)  # the limit is taken away
    await rig.round(8)
    # Of the stopped one there are samples with nothing but its status; what CloudWatch had of it is all there.
    documents = await rig.documents()
    values = [document for document in documents if "cpu_utilization" in document]
    stopped_at = align(int(clock()) - DECIDED, PERIOD)
    assert assert_true(values, truth(fake, [*members, gone], align(int(clock()), PERIOD)), stopped_at) > 5 * 72
    await rig.close()


async def test_the_estimate_is_a_table_that_says_what_the_budget_pays_for(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    await fleet(database, fake, int(clock()) - DAY, ["eu-west-1"])
    rig = Rig(tmp_path, database, fake, clock, max_usd_per_day=100 * 7 * DOLLARS_PER_METRIC)
    reading = await rig.collector._observer._source.read()
    listing = await rig.cloudwatch.list_memory("eu-west-1", recent=True)
    rules, out = rig.collector._rules, io.StringIO()
    estimate.show(rig.settings, reading, estimate.estimate(reading, {"eu-west-1": listing}, rules), rules, [], out)
    text = " ".join(out.getvalue().split())
    assert "a cycle (every 5m) │ 1 │ 7 │ 0.0001" in text
    assert "a day │ 288 │ 2,016 │ 0.0202" in text
    assert "4 of 5 workers are running; 3 of them have a CloudWatch agent" in text
    assert "enough for 100 of 288 cycles a day" in text
    await rig.close()


def test_a_region_that_cannot_be_listed_is_reckoned_with_two_metrics_a_worker() -> None:
    from exporter.core.model import Fleet, Worker
    from exporter.pipeline.lifecycle import Rules

    workers = tuple(Worker(f"w{k}", "eu-west-1", instance_id(k), "running") for k in range(300))
    found = estimate.estimate(Fleet(1_767_225_600, workers), {"eu-west-1": None}, Rules())
    assert found.usage.metrics == 600
    assert found.usage.calls == 2


class Unanswered:
    """CloudWatch that lists memory series and never answers GetMetricData."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.queries = 0

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        return Listing(date=1 << 40)

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        self.queries += len(queries)
        self.called.set()
        await asyncio.Event().wait()
        raise AssertionError("it never answers")


async def test_the_days_spending_is_saved_before_the_calls_so_that_a_kill_cannot_spend_it_twice(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    await fleet(database, fake, int(clock()) - DAY // 4, ["eu-west-1"])
    source = Unanswered()
    killed = Rig(tmp_path, database, fake, clock, source=source, max_usd_per_day=1)
    await killed.observe()
    cycle = asyncio.create_task(killed.collector.poll())
    await source.called.wait()  # AWS may have billed this call already
    outbox = tmp_path / "copy"
    shutil.copytree(tmp_path, outbox, ignore=shutil.ignore_patterns("copy", "lock"))  # the files as a kill leaves them
    cycle.cancel()
    await asyncio.gather(cycle, return_exceptions=True)
    await killed.close()

    restarted = Outbox(outbox, PERIOD)
    day, spent = restarted.spent()
    restarted.close()
    assert (day, spent) == (align(int(clock()), DAY), source.queries)
    assert source.queries > 0
