"""The exporter metrics: each of the catalog, on a separate registry, without values that were never set."""

import platform

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from exporter import __version__
from exporter.core.catalog import METRICS_BY_NAME
from exporter.metrics.telemetry import Telemetry


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(CollectorRegistry(), revision="abc123")


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(f"cml_exporter_{name}", labels)


def test_build_info_has_the_running_version(telemetry: Telemetry) -> None:
    labels = {"version": __version__, "revision": "abc123", "python": platform.python_version()}
    assert value(telemetry, "build_info", **labels) == 1


def test_a_scrape_renders_what_is_older_than_it_may_be_and_nothing_else() -> None:
    now = 100.0
    telemetry = Telemetry(CollectorRegistry(), monotonic=lambda: now)
    telemetry.samples_dropped.inc(7)
    assert b"samples_dropped_total 0.0" in telemetry.rendered(2).text, "rendered at the start"
    now += 2.5
    assert b"samples_dropped_total 7.0" in telemetry.rendered(2).text
    assert telemetry.rendered(2) is telemetry.rendered(2)


def test_the_global_registry_is_left_alone(telemetry: Telemetry) -> None:
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("cml_")]
    Telemetry(CollectorRegistry())  # a second one in the same process is no conflict


def test_a_time_that_was_never_set_is_absent_and_not_1970(telemetry: Telemetry) -> None:
    assert value(telemetry, "mirror_last_success_timestamp_seconds") is None
    telemetry.mirror_last_success.value = 1_769_860_800
    assert value(telemetry, "mirror_last_success_timestamp_seconds") == 1_769_860_800
    telemetry.outbox_oldest.value = 5
    telemetry.outbox_oldest.value = None
    assert value(telemetry, "outbox_oldest_timestamp_seconds") is None


def test_a_failed_read_keeps_the_time_of_the_last_success(telemetry: Telemetry) -> None:
    telemetry.source_succeeded("cloudwatch", "eu-west-1", at=100.0, seconds=0.5)
    telemetry.source_failed("cloudwatch", "eu-west-1", seconds=9.0)
    labels = {"source": "cloudwatch", "region": "eu-west-1"}
    assert value(telemetry, "source_up", **labels) == 0
    assert value(telemetry, "source_duration_seconds", **labels) == 9.0
    assert value(telemetry, "source_last_success_timestamp_seconds", **labels) == 100.0


def test_a_source_that_only_ever_failed_has_no_time_of_success(telemetry: Telemetry) -> None:
    telemetry.source_failed("mongodb", "", seconds=1.0)
    assert value(telemetry, "source_last_success_timestamp_seconds", source="mongodb", region="") is None


def test_a_thousand_metrics_cost_a_cent(telemetry: Telemetry) -> None:
    telemetry.metrics_were_requested("eu-west-1", 400)
    telemetry.metrics_were_requested("us-east-1", 600)
    assert value(telemetry, "cloudwatch_metrics_requested_total", region="eu-west-1") == 400
    assert value(telemetry, "cloudwatch_estimated_cost_dollars_total") == pytest.approx(0.01)


def test_counters_start_at_zero_with_every_known_label_set() -> None:
    """Otherwise increase() would miss the first value. Codes and reasons of errors are not known before they occur."""
    telemetry = Telemetry(CollectorRegistry())
    telemetry.region_is_known("eu-west-1", ("GetMetricData", "ListMetrics"))
    shown = {family.name: family.samples for family in telemetry.registry.collect()}
    late = {
        "cml_exporter_cloudwatch_request_failures_total",
        "cml_exporter_mirror_failures_total",
        "cml_exporter_http_connections_closed_total",  # by the web server, before it listens
        "cml_exporter_forward_samples_total",  # of each target, before it is reached
        "cml_exporter_forward_failures_total",
        "cml_exporter_forward_samples_dropped_total",
        "cml_exporter_otlp_pushes_total",  # only with a collector, before the first push
    }
    counters = {metric.name for metric in METRICS_BY_NAME.values() if metric.kind == "counter"} - late
    assert {name for name in counters if not shown[name.removesuffix("_total")]} == set()
    assert all(sample.value == 0 for name in counters for sample in shown[name.removesuffix("_total")])
    for operation in ("GetMetricData", "ListMetrics"):
        assert value(telemetry, "cloudwatch_requests_total", operation=operation, region="eu-west-1") == 0
    for result in ("inserted", "already_present", "rejected"):
        assert value(telemetry, "mirror_samples_total", result=result) == 0


def test_counters_have_no_created_series_and_the_process_is_there(telemetry: Telemetry) -> None:
    telemetry.requests.labels("GetMetricData", "eu-west-1").inc()
    text = generate_latest(telemetry.registry).decode()
    assert "_created" not in text
    assert 'cml_exporter_cloudwatch_requests_total{operation="GetMetricData",region="eu-west-1"} 1.0\n' in text
    assert "process_resident_memory_bytes " in text
    assert "python_info{" in text
