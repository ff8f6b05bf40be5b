"""Further CloudWatch metrics as gauges (`cloudwatch.extra`), over HTTP: values, units, cost, and that they harm no sample."""

import io
import time
from pathlib import Path
from typing import Any

import pytest

from exporter.commands import estimate
from exporter.commands.check.aws import check_aws
from exporter.core.budget import DOLLARS_PER_METRIC
from exporter.core.model import Dimensions
from exporter.core.periods import DAY, HOUR, align
from exporter.pipeline.lifecycle import Rules
from exporter.storage.mongo import Database
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import ALWAYS, FakeCloudWatch, OtherSeries, Run, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter, series

NOW = align(1_790_000_000, DAY) + 2 * HOUR
REGION = "eu-west-1"
BEGAN = NOW - 4 * HOUR
ONE, TWO = Member("one", instance_id(1), REGION, BEGAN), Member("two", instance_id(2), REGION, BEGAN)
DISK = {
    "namespace": "CWAgent",
    "metric": "disk_used_percent",
    "dimensions": {"path": "/"},
    "name": "cml_worker_root_disk_ratio",
    "help": "Root file system in use, 0 to 1.",
    "unit": "percent",
}
NETWORK = {
    "namespace": "AWS/EC2",
    "metric": "NetworkIn",
    "statistic": "Maximum",
    "name": "cml_worker_network_in_bytes",
    "help": "Bytes received in the newest period.",
    "unit": "Bytes",
}
P95 = {
    "namespace": "AWS/EC2",
    "metric": "CPUUtilization",
    "statistic": "p95",
    "name": "cml_worker_cpu_p95_ratio",
    "help": "95th percentile of the CPU utilization, 0 to 1.",
    "unit": "Percent",
}
EXTRA = {"extra": [DISK, NETWORK, P95]}
LABELS = '{region="eu-west-1",worker_id="one"}'


def disk(instance: str, value: float, path: str = "/", runs: tuple[Run, ...] = ALWAYS, **more: str) -> OtherSeries:
    dimensions: Dimensions = tuple(sorted({"InstanceId": instance, "path": path, "fstype": "ext4", **more}.items()))
    return OtherSeries("CWAgent", "disk_used_percent", dimensions, value, runs)


def ec2(instance: str, name: str, value: float) -> OtherSeries:
    return OtherSeries("AWS/EC2", name, (("InstanceId", instance),), value)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def fleet(database: Database, fake: FakeCloudWatch) -> None:
    """Two running workers; only the first one's agent publishes disks."""
    one, two = ONE.instance_id, TWO.instance_id
    others = [disk(one, 75.0), disk(one, 12.0, "/boot"), ec2(one, "NetworkIn", 5000), ec2(one, "CPUUtilization", 40)]
    fake.add(one, runs=[(BEGAN, None)], others=others)
    fake.add(two, runs=[(BEGAN, None)], others=[ec2(two, "NetworkIn", 7)])
    await database["workers"].insert_many([member.aggregate() for member in (ONE, TWO)])


def shown(text: str) -> dict[str, float]:
    return {name: value for item in (DISK, NETWORK, P95) for name, value in series(text, str(item["name"])).items()}


@pytest.mark.usefixtures("fleet")
async def test_the_metrics_named_are_gauges_of_the_worker_in_the_unit_of_their_name(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    exporter = InProcessExporter(tmp_path, database, fake, clock, cloudwatch=EXTRA)
    await exporter.history.ensure_collection()
    await exporter.round(8)
    text = await exporter.scrape()
    assert shown(text) == {
        f"cml_worker_root_disk_ratio{LABELS}": 0.75,
        f"cml_worker_network_in_bytes{LABELS}": 5001,
        f"cml_worker_network_in_bytes{LABELS.replace('one', 'two')}": 8,
        f"cml_worker_cpu_p95_ratio{LABELS}": pytest.approx(0.405),
    }
    assert "# HELP cml_worker_root_disk_ratio Root file system in use, 0 to 1." in text.splitlines()
    assert await exporter.assert_history_is_true(fake, [ONE, TWO]) > 80, "gauges only; CPU and memory are as ever"
    assert {key for document in await exporter.documents() for key in document} <= {
        "worker_id",
        "region",
        "timestamp",
        "cpu_utilization",
        "memory_utilization",
        "active_labs_count",
        "status",
    }
    await exporter.close()


@pytest.mark.usefixtures("fleet")
async def test_a_stopped_worker_has_none_of_them_and_old_values_are_not_shown(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    exporter = InProcessExporter(tmp_path, database, fake, clock, cloudwatch=EXTRA)
    await exporter.round(2)
    assert len(shown(await exporter.scrape())) == 4
    await database["workers"].update_one({"_id": "one"}, {"$set": {"status": "stopped"}})
    billed = fake.metrics_billed
    await exporter.round()
    assert [name for name in shown(await exporter.scrape()) if "one" in name] == []
    await exporter.round()
    assert fake.metrics_billed - billed <= 2 * (2 + 2) + 2 * 2, "and it is not queried for them"
    fake.change(TWO.instance_id, others=())
    await exporter.round(2)
    assert len(shown(await exporter.scrape())) == 1, "younger than max_age"
    await exporter.round(2)
    assert shown(await exporter.scrape()) == {}
    await exporter.close()


@pytest.mark.usefixtures("fleet")
async def test_they_are_in_the_estimate_and_off_by_default(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    plain = InProcessExporter(tmp_path / "plain", database, fake, clock)
    await plain.round(8)
    before = fake.metrics_billed
    await plain.round()
    assert fake.metrics_billed - before == 4
    assert shown(await plain.scrape()) == {}
    await plain.close()

    exporter = InProcessExporter(tmp_path / "extra", database, fake, clock, cloudwatch=EXTRA)
    await exporter.round(8)
    before, calls = fake.metrics_billed, fake.calls["GetMetricData"]
    await exporter.round()
    found = await estimated(exporter)
    # Metrics of AWS/EC2 are not listed, so each is queried of both; the disk is listed for one.
    assert (fake.metrics_billed - before, found.usage.metrics, found.extra) == (4 + 5, 4 + 5, 5)
    assert fake.calls["GetMetricData"] - calls == found.usage.calls == 2
    out = io.StringIO()
    estimate.show(exporter.settings, exporter.collector.fleet, found, Rules.from_settings(exporter.settings), [], out)
    text = " ".join(out.getvalue().split())
    assert (
        "5 of the metrics of a cycle are those of cloudwatch.extra (cml_worker_root_disk_ratio, cml_worker_network_in_bytes, "
        "cml_worker_cpu_p95_ratio)." in text
    )
    await exporter.close()


async def estimated(exporter: InProcessExporter) -> estimate.Estimate:
    fleet, settings = exporter.collector.fleet, exporter.settings
    types = {worker.instance_id: worker.instance_type for worker in fleet.workers}
    listing = await exporter.cloudwatch.list_memory(REGION, recent=True)
    extra = exporter.extra_series
    assert extra is not None
    await extra.refresh(REGION)
    return estimate.estimate(
        fleet,
        {REGION: listing},
        Rules.from_settings(settings),
        lambda worker, region, instance: extra.queries(region, instance, types.get(instance), most_likely=True),
    )


@pytest.mark.usefixtures("fleet")
async def test_the_budget_counts_them(tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> None:
    exporter = InProcessExporter(
        tmp_path, database, fake, clock, cloudwatch=EXTRA, max_usd_per_day=(4 + 5 + 9 + 9 + 8) * DOLLARS_PER_METRIC
    )
    for _ in range(8):
        await exporter.round()
        assert exporter.budget.spent()[1] == fake.metrics_billed <= 35
    assert fake.metrics_billed > 35 - 9
    assert exporter.value("cml_exporter_cloudwatch_budget_state", state="polling_paused") == 1
    await exporter.close()


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(("metrics", "state"), [(EXTRA, "gap_filling_paused"), ({}, "ok")])
async def test_the_budget_reserves_them_until_midnight(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, metrics: dict[str, Any], state: str
) -> None:
    budget = 2000 * DOLLARS_PER_METRIC  # 263 cycles until midnight, of 4 metrics, or of 9 with the further ones
    exporter = InProcessExporter(tmp_path, database, fake, clock, cloudwatch=metrics, max_usd_per_day=budget)
    await exporter.round(3)
    assert exporter.value("cml_exporter_cloudwatch_budget_state", state=state) == 1
    assert len(shown(await exporter.scrape())) == (4 if metrics else 0), "the gauges go on"
    await exporter.close()


async def test_of_several_series_the_rule_of_memory_chooses_one_and_replaces_it_when_it_falls_silent(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    one, until = ONE.instance_id, NOW + 2 * PERIOD
    await database["workers"].insert_one(ONE.aggregate())
    fake.add(
        one,
        runs=[(BEGAN, None)],
        others=[disk(one, 10.0, runs=((None, until),), device="nvme0n1"), disk(one, 20.0, device="xvda")],
    )
    exporter = InProcessExporter(tmp_path, database, fake, clock, cloudwatch={"extra": [DISK]})
    values = []
    for _ in range(9):
        await exporter.round()
        values.append(shown(await exporter.scrape()).get(f"cml_worker_root_disk_ratio{LABELS}"))
    assert values[:2] == [0.1, 0.1], "the lexically first"
    assert values[-1] == 0.2
    assert [value for value in values if value is not None] == sorted(value for value in values if value is not None)
    await exporter.close()


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize("lie", ["partial", "failed", "malformed"])
async def test_what_goes_wrong_with_them_delays_no_sample(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, lie: str
) -> None:
    def change(operation: str, request: Any, answer: Any) -> object:  # noqa: ANN401  # JSON
        if operation != "GetMetricData":
            return answer
        names = [query["MetricStat"]["Metric"]["MetricName"] for query in request["MetricDataQueries"]]
        if "NetworkIn" in names:
            if lie == "failed":
                return b"<html></html>"
            for result in answer["MetricDataResults"]:
                if lie == "partial":
                    result["StatusCode"] = "PartialData"
                else:
                    result["Values"] = [-1 for _ in result["Values"]]
        return answer

    fake.lie = change
    exporter = InProcessExporter(tmp_path, database, fake, clock, cloudwatch=EXTRA)
    await exporter.history.ensure_collection()
    await exporter.round(8)
    assert await exporter.assert_history_is_true(fake, [ONE, TWO]) > 80
    if lie == "malformed":
        assert shown(await exporter.scrape()) == {}
        assert (exporter.value("cml_exporter_cloudwatch_malformed_total", kind="negative") or 0) > 0
    else:
        assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 0
    await exporter.close()


@pytest.mark.usefixtures("fleet")
async def test_check_tells_for_whom_they_are_listed_and_which_series_are_not_told_apart(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    every_path = {key: value for key, value in DISK.items() if key != "dimensions"}
    for extra, status, text in (
        (DISK, "ok", "CWAgent disk_used_percent is listed for 1 of 2 running workers"),
        (
            every_path,
            "warn",
            "CWAgent disk_used_percent is listed for 1 of 2 running workers, some with several series, such as "
            f"InstanceId={ONE.instance_id}, fstype=ext4, path=/ and InstanceId={ONE.instance_id}, fstype=ext4, path=/boot; "
            "tell them apart by dimensions",
        ),
        (
            {**DISK, "namespace": "CWAgents"},
            "warn",
            "CWAgents disk_used_percent is listed for 0 of 2 running workers; compare namespace, metric, dimension and "
            "dimensions with what is published",
        ),
    ):
        exporter = InProcessExporter(tmp_path, database, fake, clock, cloudwatch={"extra": [extra, P95]})
        await exporter.observe()
        rows = [row for row in await check_aws(exporter.settings, exporter.collector.fleet, clock) if "extra" in row.check]
        assert [(row.check, row.status, row.text) for row in rows] == [
            (f"CloudWatch extra cml_worker_root_disk_ratio, {REGION}", status, text)
        ]
        await exporter.close()


@pytest.mark.usefixtures("fleet")
async def test_the_estimate_command_lists_them_itself_and_assumes_them_where_it_cannot(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    clock.now = time.time()  # the command uses this machine's
    exporter = InProcessExporter(tmp_path, database, fake, clock, cloudwatch=EXTRA)
    await exporter.observe()
    fleet, settings = exporter.collector.fleet, exporter.settings
    await exporter.close()
    types = {worker.instance_id: worker.instance_type for worker in fleet.workers}
    for refused, metrics in ((0, 5), (100, 6)):
        fake.fault("ListMetrics", "access_denied", refused)
        listings, extra, extra_of, problems = await estimate._listings(settings, [REGION], types)
        found = estimate.estimate(fleet, listings, Rules.from_settings(settings), extra_of, extra.listings)
        assert found.extra == metrics
        assert found.listing_pages == (1 if refused else 2), "at least one where it is refused"
        assert len(problems) == (2 if refused else 0)
