"""The worker block of /metrics: golden bytes, and the same bytes prometheus_client makes of the same families."""

import dataclasses
import gzip
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from exporter.core.catalog import LONGEST_LABEL, STATUS, STATUS_CODE, STATUS_FORMS, WORKER_METRICS, StatusForm
from exporter.core.metric_settings import CloudWatchGauge
from exporter.core.model import (
    EC2_CHECK_STATES,
    LICENSE_STATES,
    SERVICE_STATES,
    STATUS_CODES,
    STATUSES,
    Worker,
    WorkerFacts,
    WorkerGauges,
)
from exporter.core.workers_settings import ExtraMetric
from exporter.metrics.worker_block import WorkerBlock
from grafana.promql import CODES
from tests.helpers.worker_families import families, render

SHOWN = [metric for metric in WORKER_METRICS if metric is not STATUS_CODE]
DISK = ExtraMetric(metric="cml_worker_disk_ratio", field="disk", help='Disk in use,\nby "df" \\ 1.')
WORKER = Worker(
    id="w1",
    region="eu-west-1",
    instance_id="i-1",
    status="running",
    name="lab one",
    instance_type="m5zn.metal",
    cml_version="2.8.0",
    active_labs=3,
    last_activity_at=1_769_860_700,
    created_at=1_760_000_000,
    facts=WorkerFacts(
        ready=True,
        uptime=86_400,
        nodes_running=7,
        nodes_total=12,
        disk_used=3e9,
        disk_total=4e9,
        memory_total=2**33,
        licensed=False,
        auto_pauses=2,
        idle_pause_at=1_769_870_000,
        detailed_monitoring=False,
        instance_check="impaired",
        system_check="ok",
        service_status="available",
        license_status="evaluation",
    ),
    extra=(("cml_worker_disk_ratio", 0.25),),
)
GAUGES = WorkerGauges(
    WORKER,
    observed_at=1_769_860_812,
    show_state=True,
    cpu=45.2,
    cpu_time=1_769_860_800,
    memory=62.8,
    memory_time=1_769_860_500,
    hourly_price=3.96,
)
GOLDEN = """\
# HELP cml_worker_info Name, instance, version and AWS account of the worker as labels; `worker` is the name, else the id. Always 1.
# TYPE cml_worker_info gauge
cml_worker_info{account_id="",cml_version="2.8.0",instance_id="i-1",instance_type="m5zn.metal",name="lab one",region="eu-west-1",worker="lab one",worker_id="w1"} 1.0
# HELP cml_worker_status Whether the worker is in this status; exactly one of its series is 1.
# TYPE cml_worker_status gauge
cml_worker_status{region="eu-west-1",status="pending",worker_id="w1"} 0.0
cml_worker_status{region="eu-west-1",status="starting",worker_id="w1"} 0.0
cml_worker_status{region="eu-west-1",status="running",worker_id="w1"} 1.0
cml_worker_status{region="eu-west-1",status="stopping",worker_id="w1"} 0.0
cml_worker_status{region="eu-west-1",status="stopped",worker_id="w1"} 0.0
cml_worker_status{region="eu-west-1",status="shutting-down",worker_id="w1"} 0.0
cml_worker_status{region="eu-west-1",status="terminated",worker_id="w1"} 0.0
cml_worker_status{region="eu-west-1",status="failed",worker_id="w1"} 0.0
cml_worker_status{region="eu-west-1",status="unknown",worker_id="w1"} 0.0
# HELP cml_worker_cpu_utilization_ratio Average CPU utilization of the newest period, 0 to 1.
# TYPE cml_worker_cpu_utilization_ratio gauge
cml_worker_cpu_utilization_ratio{region="eu-west-1",worker_id="w1"} 0.452
# HELP cml_worker_memory_utilization_ratio Average memory utilization of the newest period, 0 to 1.
# TYPE cml_worker_memory_utilization_ratio gauge
cml_worker_memory_utilization_ratio{region="eu-west-1",worker_id="w1"} 0.628
# HELP cml_worker_active_labs Labs on the worker as counted by the manager.
# TYPE cml_worker_active_labs gauge
cml_worker_active_labs{region="eu-west-1",worker_id="w1"} 3.0
# HELP cml_worker_last_activity_timestamp_seconds Time of the last activity that the manager saw on the worker.
# TYPE cml_worker_last_activity_timestamp_seconds gauge
cml_worker_last_activity_timestamp_seconds{region="eu-west-1",worker_id="w1"} 1.7698607e+09
# HELP cml_worker_created_timestamp_seconds Time the worker was created.
# TYPE cml_worker_created_timestamp_seconds gauge
cml_worker_created_timestamp_seconds{region="eu-west-1",worker_id="w1"} 1.76e+09
# HELP cml_worker_ready Whether CML on the worker is ready, as the manager saw it last.
# TYPE cml_worker_ready gauge
cml_worker_ready{region="eu-west-1",worker_id="w1"} 1.0
# HELP cml_worker_uptime_seconds Time since CML on the worker started.
# TYPE cml_worker_uptime_seconds gauge
cml_worker_uptime_seconds{region="eu-west-1",worker_id="w1"} 86400.0
# HELP cml_worker_nodes Nodes of the labs on the worker: those that run, and all.
# TYPE cml_worker_nodes gauge
cml_worker_nodes{region="eu-west-1",state="running",worker_id="w1"} 7.0
cml_worker_nodes{region="eu-west-1",state="total",worker_id="w1"} 12.0
# HELP cml_worker_disk_used_bytes Disk space in use on the worker.
# TYPE cml_worker_disk_used_bytes gauge
cml_worker_disk_used_bytes{region="eu-west-1",worker_id="w1"} 3e+09
# HELP cml_worker_disk_total_bytes Disk space of the worker.
# TYPE cml_worker_disk_total_bytes gauge
cml_worker_disk_total_bytes{region="eu-west-1",worker_id="w1"} 4e+09
# HELP cml_worker_disk_utilization_ratio Share of the disk space in use, 0 to 1.
# TYPE cml_worker_disk_utilization_ratio gauge
cml_worker_disk_utilization_ratio{region="eu-west-1",worker_id="w1"} 0.75
# HELP cml_worker_memory_total_bytes Memory of the worker.
# TYPE cml_worker_memory_total_bytes gauge
cml_worker_memory_total_bytes{region="eu-west-1",worker_id="w1"} 8.589934592e+09
# HELP cml_worker_licensed Whether CML on the worker has a valid license.
# TYPE cml_worker_licensed gauge
cml_worker_licensed{region="eu-west-1",worker_id="w1"} 0.0
# HELP cml_worker_license_status Whether the license of the worker is in this state; exactly one of its series is 1.
# TYPE cml_worker_license_status gauge
cml_worker_license_status{region="eu-west-1",state="registered",worker_id="w1"} 0.0
cml_worker_license_status{region="eu-west-1",state="unregistered",worker_id="w1"} 0.0
cml_worker_license_status{region="eu-west-1",state="evaluation",worker_id="w1"} 1.0
cml_worker_license_status{region="eu-west-1",state="expired",worker_id="w1"} 0.0
cml_worker_license_status{region="eu-west-1",state="invalid",worker_id="w1"} 0.0
cml_worker_license_status{region="eu-west-1",state="unknown",worker_id="w1"} 0.0
# HELP cml_worker_service_status Whether the HTTPS service of CML is in this state; exactly one of its series is 1.
# TYPE cml_worker_service_status gauge
cml_worker_service_status{region="eu-west-1",state="available",worker_id="w1"} 1.0
cml_worker_service_status{region="eu-west-1",state="unavailable",worker_id="w1"} 0.0
cml_worker_service_status{region="eu-west-1",state="starting",worker_id="w1"} 0.0
cml_worker_service_status{region="eu-west-1",state="error",worker_id="w1"} 0.0
cml_worker_service_status{region="eu-west-1",state="unknown",worker_id="w1"} 0.0
# HELP cml_worker_ec2_status_check Whether the instance or system check of EC2 has this result; exactly one of a check's series is 1.
# TYPE cml_worker_ec2_status_check gauge
cml_worker_ec2_status_check{check="instance",region="eu-west-1",state="ok",worker_id="w1"} 0.0
cml_worker_ec2_status_check{check="instance",region="eu-west-1",state="impaired",worker_id="w1"} 1.0
cml_worker_ec2_status_check{check="instance",region="eu-west-1",state="insufficient-data",worker_id="w1"} 0.0
cml_worker_ec2_status_check{check="instance",region="eu-west-1",state="initializing",worker_id="w1"} 0.0
cml_worker_ec2_status_check{check="instance",region="eu-west-1",state="not-applicable",worker_id="w1"} 0.0
cml_worker_ec2_status_check{check="instance",region="eu-west-1",state="unknown",worker_id="w1"} 0.0
cml_worker_ec2_status_check{check="system",region="eu-west-1",state="ok",worker_id="w1"} 1.0
cml_worker_ec2_status_check{check="system",region="eu-west-1",state="impaired",worker_id="w1"} 0.0
cml_worker_ec2_status_check{check="system",region="eu-west-1",state="insufficient-data",worker_id="w1"} 0.0
cml_worker_ec2_status_check{check="system",region="eu-west-1",state="initializing",worker_id="w1"} 0.0
cml_worker_ec2_status_check{check="system",region="eu-west-1",state="not-applicable",worker_id="w1"} 0.0
cml_worker_ec2_status_check{check="system",region="eu-west-1",state="unknown",worker_id="w1"} 0.0
# HELP cml_worker_detailed_monitoring Whether CloudWatch's detailed monitoring is enabled for the instance.
# TYPE cml_worker_detailed_monitoring gauge
cml_worker_detailed_monitoring{region="eu-west-1",worker_id="w1"} 0.0
# HELP cml_worker_auto_pauses How often the manager's idle detection has paused the worker.
# TYPE cml_worker_auto_pauses gauge
cml_worker_auto_pauses{region="eu-west-1",worker_id="w1"} 2.0
# HELP cml_worker_idle_pause_timestamp_seconds Time at which the manager will pause the worker unless it sees activity.
# TYPE cml_worker_idle_pause_timestamp_seconds gauge
cml_worker_idle_pause_timestamp_seconds{region="eu-west-1",worker_id="w1"} 1.76987e+09
# HELP cml_worker_hourly_price_dollars Price in US dollars of an hour of the worker's instance type; absent where workers.hourly_price does not name the type.
# TYPE cml_worker_hourly_price_dollars gauge
cml_worker_hourly_price_dollars{region="eu-west-1",worker_id="w1"} 3.96
# HELP cml_worker_sample_timestamp_seconds Time of the value: end of the period for cpu and memory, time of the read for state.
# TYPE cml_worker_sample_timestamp_seconds gauge
cml_worker_sample_timestamp_seconds{metric="cpu",region="eu-west-1",worker_id="w1"} 1.7698608e+09
cml_worker_sample_timestamp_seconds{metric="memory",region="eu-west-1",worker_id="w1"} 1.7698605e+09
cml_worker_sample_timestamp_seconds{metric="state",region="eu-west-1",worker_id="w1"} 1.769860812e+09
# HELP cml_worker_disk_ratio Disk in use,\\nby "df" \\\\ 1.
# TYPE cml_worker_disk_ratio gauge
cml_worker_disk_ratio{region="eu-west-1",worker_id="w1"} 0.25
"""  # noqa: E501


class Families(Collector):
    """What prometheus_client would be given to render."""

    def __init__(self, gauges: list[WorkerGauges], extra: list[ExtraMetric], status: StatusForm) -> None:
        self._input = gauges, extra, status

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        return families(*self._input)


def by_the_client(gauges: list[WorkerGauges], extra: list[ExtraMetric], status: StatusForm = "state_set") -> bytes:
    return generate_latest(Families(gauges, extra, status))


def series(
    gauges: list[WorkerGauges], extra: list[ExtraMetric], status: StatusForm = "state_set"
) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The block as Prometheus reads it: samples by name."""
    text = render(gauges, extra, status=status).decode()
    parsed = text_string_to_metric_families(text)
    return {family.name: [(sample.labels, sample.value) for sample in family.samples] for family in parsed}


def test_the_block_is_exactly_this() -> None:
    assert render([GAUGES], [DISK]).decode() == GOLDEN


def test_no_workers_are_families_without_series() -> None:
    block = render([], [DISK])
    assert block == by_the_client([], [DISK])
    assert set(series([], [DISK])) == {metric.name for metric in SHOWN} | {DISK.metric}
    assert not any(series([], [DISK]).values())


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ['quote " backslash \\ newline \n', "\\n", "%s %(x)d {0}", "π ✓ 日本 \u2028 \r \x00", "x" * 10_000, '"' * 2000]
)
OPTIONAL_FLAGS = st.none() | st.booleans()
AMOUNTS = st.none() | st.floats(0, 2**63) | st.integers(0, 2**63)
COUNTS = st.none() | st.integers(0, 2**31 - 1)
PERCENTS = st.none() | st.floats(0, 100) | st.integers(0, 100)
SECONDS = st.none() | st.integers(1, 253_402_300_799)
FACTS = st.builds(
    WorkerFacts,
    ready=OPTIONAL_FLAGS,
    uptime=AMOUNTS,
    nodes_running=COUNTS,
    nodes_total=COUNTS,
    disk_used=AMOUNTS,
    disk_total=AMOUNTS,
    memory_total=AMOUNTS,
    licensed=OPTIONAL_FLAGS,
    auto_pauses=COUNTS,
    idle_pause_at=SECONDS,
    detailed_monitoring=OPTIONAL_FLAGS,
    instance_check=st.none() | st.sampled_from(EC2_CHECK_STATES),
    system_check=st.none() | st.sampled_from(EC2_CHECK_STATES),
    service_status=st.none() | st.sampled_from(SERVICE_STATES),
    license_status=st.none() | st.sampled_from(LICENSE_STATES),
)
EXTRA = [
    DISK,
    ExtraMetric(metric="cml_worker_boots_total", field="boots", help="Boots.", type="counter"),
    ExtraMetric(metric="cml_worker_phase", field="phase", help="Phase.", states=["50% done", "back\\slash", "Very_Late"]),
]
EXTRA_VALUES = {
    "cml_worker_disk_ratio": st.floats() | st.integers(-(2**60), 2**60).map(float),
    "cml_worker_boots_total": st.integers(0, 2**60).map(float),
    "cml_worker_phase": st.sampled_from(EXTRA[2].state_names),
}
WORKERS = st.builds(
    Worker,
    id=TEXTS,
    region=TEXTS,
    instance_id=st.none() | TEXTS,
    status=st.sampled_from(STATUSES),
    name=st.none() | TEXTS,
    instance_type=st.none() | TEXTS,
    cml_version=st.none() | TEXTS,
    active_labs=st.none() | st.integers(0, 2**31 - 1),
    last_activity_at=SECONDS,
    created_at=SECONDS,
    facts=FACTS,
    extra=st.fixed_dictionaries({}, optional=EXTRA_VALUES).map(lambda values: tuple(values.items())),
)
ALL_GAUGES = st.builds(
    WorkerGauges,
    WORKERS,
    observed_at=st.integers(1, 2**33),
    hourly_price=st.none() | st.floats(0.001, 100),
    show_state=st.booleans(),
    show_load=st.booleans(),
    cpu=PERCENTS,
    cpu_time=SECONDS,
    memory=PERCENTS,
    memory_time=SECONDS,
)


@given(st.lists(ALL_GAUGES, max_size=4), st.sampled_from(list(STATUS_FORMS)))
def test_the_block_is_byte_for_byte_what_prometheus_client_makes_of_the_same_families(
    gauges: list[WorkerGauges], status: StatusForm
) -> None:
    assert render(gauges, EXTRA, status=status) == by_the_client(gauges, EXTRA, status)


@given(st.lists(st.lists(ALL_GAUGES, max_size=3), min_size=2, max_size=3))
def test_a_block_that_was_rendered_before_is_what_one_rendered_for_the_first_time_is(cycles: list[list[WorkerGauges]]) -> None:
    block = WorkerBlock(EXTRA)
    for gauges in cycles:
        again = block.snapshot(gauges, 0)
        assert again.body == render(gauges, EXTRA)
        assert gzip.decompress(again.gzipped) == again.body


def test_only_what_has_changed_is_rendered_again() -> None:
    """A poll changes the values of CPU and their times; workers that come or go change every family."""

    def rendered_again(gauges: list[WorkerGauges]) -> set[str]:
        before, after = shown[-1], block.snapshot(gauges, 0)
        shown.append(after)
        texts = zip(before.texts, after.texts, strict=True)
        return {new.partition(b"{")[0].decode().split("\n")[-1] for old, new in texts if old is not new}

    block, other = WorkerBlock([DISK]), GAUGES._replace(worker=dataclasses.replace(WORKER, id="w2"))
    shown = [block.snapshot([GAUGES, other], 0)]
    assert rendered_again([GAUGES, other]) == set()
    polled = other._replace(cpu=99.0, cpu_time=1_769_861_100)
    assert rendered_again([GAUGES, polled]) == {"cml_worker_cpu_utilization_ratio", "cml_worker_sample_timestamp_seconds"}
    stopped = other._replace(worker=dataclasses.replace(other.worker, status="stopping"))
    assert "cml_worker_status" in rendered_again([GAUGES, stopped])
    assert len(rendered_again([GAUGES])) == len(SHOWN) + 1


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1e-7, 0.1 + 0.2, 999_999.0, 999_999.5, 1e6, 1_234_567.0, 1e21, -5.0, -2e9, 5e-324]
)
def test_a_number_is_written_the_way_go_writes_it(value: float) -> None:
    gauges = [GAUGES._replace(worker=dataclasses.replace(WORKER, extra=((DISK.metric, value),)))]
    assert render(gauges, EXTRA) == by_the_client(gauges, EXTRA)
    assert series(gauges, [DISK])[DISK.metric][0][1] == value


@pytest.mark.parametrize("status", STATUSES)
def test_exactly_one_status_is_1(status: str) -> None:
    gauges = GAUGES._replace(worker=dataclasses.replace(WORKER, status=status))
    found = {labels["status"]: value for labels, value in series([gauges], [])["cml_worker_status"]}
    assert found == {each: float(each == status) for each in STATUSES}


@pytest.mark.parametrize(("status", "code"), STATUS_CODES.items())
def test_the_status_may_be_one_series_with_a_number(status: str, code: int) -> None:
    gauges = GAUGES._replace(worker=dataclasses.replace(WORKER, status=status))
    found = series([gauges], [], "code")
    assert STATUS.name not in found
    assert found[STATUS_CODE.name] == [({"worker_id": "w1", "region": "eu-west-1"}, code)]
    assert not series([gauges._replace(show_state=False)], [], "code")[STATUS_CODE.name]


def test_the_numbers_are_those_of_the_recorded_series_and_every_status_has_one() -> None:
    assert set(STATUS_CODES) == set(STATUSES)
    assert STATUS_CODES == CODES


def test_state_that_is_too_old_is_left_out_while_its_time_and_the_rest_stay() -> None:
    found = series([GAUGES._replace(show_state=False)], [DISK])
    assert not found["cml_worker_status"]
    assert not found["cml_worker_active_labs"]
    assert not found[DISK.metric]
    assert len(found["cml_worker_info"]) == len(found["cml_worker_cpu_utilization_ratio"]) == 1
    assert [labels["metric"] for labels, _ in found["cml_worker_sample_timestamp_seconds"]] == ["cpu", "memory", "state"]


def test_what_is_not_known_is_absent_and_a_time_outlives_its_value() -> None:
    bare = Worker(id="w1", region="eu-west-1", instance_id=None, status="pending")
    found = series([WorkerGauges(bare, 1_769_860_812, True, cpu=None, cpu_time=1_769_860_800)], [DISK])
    present = {name for name, samples in found.items() if samples}
    assert present == {"cml_worker_info", "cml_worker_status", "cml_worker_sample_timestamp_seconds"}
    assert found["cml_worker_info"][0][0]["instance_id"] == ""
    assert [labels["metric"] for labels, _ in found["cml_worker_sample_timestamp_seconds"]] == ["cpu", "state"]


def test_a_label_of_ten_kilobytes_is_cut_before_it_is_escaped() -> None:
    gauges = GAUGES._replace(worker=dataclasses.replace(WORKER, name='"' * 10_000))
    ((labels, _),) = series([gauges], [])["cml_worker_info"]
    assert labels["name"] == '"' * LONGEST_LABEL
    assert render([gauges], []) == by_the_client([gauges], [])


def test_the_snapshot_is_the_block_and_one_gzip_member_of_it_the_same_every_time() -> None:
    made = WorkerBlock([DISK]).snapshot([GAUGES], 12.5)
    assert (made.workers, made.body.decode(), made.fresh_until) == ((GAUGES,), GOLDEN, 12.5)
    assert gzip.decompress(made.gzipped) == made.body
    assert made.gzipped[4:8] == bytes(4), "the header must hold no time"


def test_a_second_gzip_member_may_follow() -> None:
    own = gzip.compress(b"cml_exporter_leader 1.0\n")
    member = WorkerBlock().snapshot([GAUGES], 0).gzipped
    assert gzip.decompress(member + own).endswith(b"} 1.769860812e+09\ncml_exporter_leader 1.0\n")


def test_labels_are_those_of_the_catalog() -> None:
    found = series([GAUGES], [DISK])
    for metric in SHOWN:
        assert all(set(labels) == set(metric.labels) for labels, _ in found[metric.name]), metric.name


def test_gauges_of_cloudwatch_follow_with_the_labels_of_the_others() -> None:
    gauge = CloudWatchGauge(
        namespace="CWAgent", metric="used", name="cml_worker_root_disk_ratio", help='Root,\nby "df" \\.', unit="percent"
    )
    plain = render([GAUGES, GAUGES], [DISK])
    with_value = GAUGES._replace(cloudwatch=((gauge.name, 0.75),))
    family = GaugeMetricFamily(gauge.name, gauge.help, labels=["worker_id", "region"])
    family.add_metric(["w1", "eu-west-1"], 0.75)

    class One(Collector):
        def collect(self) -> Iterable[GaugeMetricFamily]:
            yield family

    registry = CollectorRegistry()
    registry.register(One())
    assert render([with_value, GAUGES], [DISK], [gauge]) == plain + generate_latest(registry)


def test_every_info_series_has_a_worker_label_that_is_never_empty() -> None:
    """Dashboards show it as it is: the name, else the id."""
    for name, shown in (("lab one", "lab one"), (None, "w1"), ("", "w1")):
        gauges = GAUGES._replace(worker=dataclasses.replace(WORKER, name=name))
        assert f',worker="{shown}",worker_id="w1"}} 1.0' in render([gauges], ()).decode()
