"""promtool, Prometheus's linter, accepts /metrics."""

import subprocess

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from exporter.core.budget import Budget, ReaderBudget
from exporter.core.metric_settings import UNITS, CloudWatchGauge
from exporter.core.model import STATUSES, Worker, WorkerGauges
from exporter.core.shards import Shard
from exporter.core.workers_settings import ExtraMetric
from exporter.metrics.telemetry import Telemetry
from tests.conftest import program
from tests.helpers.deadlines import scaled
from tests.helpers.worker_families import render

EXTRA = [ExtraMetric(metric="cml_worker_swap_utilization_ratio", field="disk", help='Disk in use, as "df" says.')]
CLOUDWATCH = [
    CloudWatchGauge(
        namespace="N", metric=f"m{number}", name=f"cml_worker_thing{number}{end}", help=f"Thing in {unit}.", unit=unit
    )
    for number, (unit, (end, _)) in enumerate(UNITS.items())
]
"""A gauge for every unit."""


def gauges(number: int) -> WorkerGauges:
    worker = Worker(
        id=f"w{number}",
        region="eu-west-1",
        instance_id=f"i-{number}",
        status=STATUSES[number % len(STATUSES)],
        name='quote " backslash \\ newline \n π ' + "x" * 10_000,
        active_labs=number,
        last_activity_at=1_769_860_700,
        created_at=1_760_000_000,
        extra=(("cml_worker_disk_utilization_ratio", 0.25),),
    )
    values = WorkerGauges(worker, 1_769_860_812, True, cpu=45.2, cpu_time=1_769_860_800, memory=62.8, memory_time=1_769_860_800)
    return values._replace(cloudwatch=tuple((each.name, 0.5) for each in CLOUDWATCH))


def used_telemetry() -> Telemetry:
    """Telemetry with at least one series in every family."""
    telemetry = Telemetry(CollectorRegistry())
    telemetry.show_shard(Shard(0, 1), collects=True)
    telemetry.leader_snapshot.value = 1_769_860_812.0
    telemetry.forward.know("archive")
    for gauge in (telemetry.forward.lag, telemetry.forward.pending, telemetry.forward.last_success):
        gauge.labels("archive").set(3)
    telemetry.otlp_pushes.labels("success")
    telemetry.leader.value = 1
    telemetry.source_succeeded("cloudwatch", "eu-west-1", 1_769_860_812, 0.5)
    telemetry.workers_skipped.labels("no_id").set(1)
    telemetry.requests.labels("GetMetricData", "eu-west-1").inc()
    telemetry.request_failures.labels("GetMetricData", "eu-west-1", "Throttling").inc()
    telemetry.metrics_were_requested("eu-west-1", 500)
    telemetry.outbox_samples.labels("observed").set(3)
    telemetry.outbox_oldest.value = 1_769_860_500
    telemetry.mirror_samples.labels("inserted").inc()
    telemetry.mirror_failures.labels("unavailable").inc()
    telemetry.mirror_last_success.value = 1_769_860_815
    telemetry.samples_unavailable.labels("cpu").inc()
    telemetry.http_connections_closed.labels("unread").inc()
    telemetry.accounts_answered("eu-west-1", ["111111111111"], "labs", "GetMetricData", ok=True)
    telemetry.outbox_free.value = 5e9
    telemetry.outbox_day.value = 4e6
    telemetry.history_duplicates.value = 0
    telemetry.show_budget(Budget(1.5), "ok")
    telemetry.show_readers(ReaderBudget(Budget(1.5), 0.1))
    return telemetry


def complaints(metrics: bytes) -> tuple[int, str]:
    promtool = program("promtool", "apt-get install prometheus")
    done = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True, timeout=scaled(60), check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("count", [0, 12], ids=["no worker", "twelve workers"])
def test_promtool_accepts_the_metrics(count: int) -> None:
    telemetry = used_telemetry()
    families = list(telemetry.registry.collect())
    assert all(family.samples for family in families)
    assert complaints(render([gauges(n) for n in range(count)], EXTRA, CLOUDWATCH) + generate_latest(telemetry.registry)) == (
        0,
        "",
    )


def test_promtool_rejects_a_malformed_metric() -> None:
    status, said = complaints(
        b"# HELP cml_worker_logins_total Logins.\n# TYPE cml_worker_logins_total gauge\ncml_worker_logins_total 1\n"
    )
    assert status != 0
    assert "cml_worker_logins_total" in said
