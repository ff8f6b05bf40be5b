"""A Prometheus whose targets have a label `region` of their own: the shipped job must not lose the exporter's."""

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from exporter.core.model import Worker, WorkerGauges
from exporter.metrics.telemetry import Telemetry
from tests.fixtures.prometheus import RunPrometheus
from tests.helpers.deadlines import scaled
from tests.helpers.prometheus import Prometheus
from tests.helpers.worker_families import render
from tests.tools.mutate_rules import PROMETHEUS

PATIENCE = 60


class TwoRegions(BaseHTTPRequestHandler):
    """/metrics of an exporter whose CloudWatch answers in one region and not in the other."""

    def do_GET(self) -> None:
        now = int(time.time())
        fleet = [
            WorkerGauges(Worker(f"w-{region}", region, f"i-{region}", "running"), now, True)
            for region in ("eu-west-1", "us-east-1")
        ]
        telemetry = Telemetry(CollectorRegistry())
        telemetry.source_succeeded("cloudwatch", "eu-west-1", now, 0.5)
        telemetry.source_failed("cloudwatch", "us-east-1", 0.5)
        body = render(fleet, []) + generate_latest(telemetry.registry)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def exporter() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), TwoRegions) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def shipped_job(target: str) -> dict[str, Any]:
    """The job of prometheus/prometheus.yml with another address, and a target with a label of its own."""
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    (job,) = (job for job in jobs if job["job_name"] == "cml-worker-exporter")
    return {**job, "static_configs": [{"targets": [target], "labels": {"region": "mgmt"}}]}


def alert_expression() -> str:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "exporter_alerts.yml").read_text())["groups"]
    (rule,) = (rule for group in groups for rule in group["rules"] if rule.get("alert") == "CMLExporterSourceFailing")
    return str(rule["expr"])


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + scaled(PATIENCE)
    while not condition():
        assert time.monotonic() < deadline, "the condition was not true in time"
        time.sleep(0.2)


@pytest.fixture
def run(run_prometheus: RunPrometheus, exporter: str) -> Callable[..., Prometheus]:
    def start(**changes: object) -> Prometheus:
        job = {**shipped_job(exporter), **changes}
        server = run_prometheus({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]})
        eventually(lambda: server.values("cml_exporter_source_up"))
        return server

    return start


def regions(server: Prometheus, query: str) -> set[str]:
    return {dict(labels).get("region", "") for labels in server.values(query)}


def test_with_the_shipped_job_the_alert_sees_the_region_that_fails(run: Callable[..., Prometheus]) -> None:
    server = run()
    assert regions(server, "cml_worker_info") == {"eu-west-1", "us-east-1"}
    assert regions(server, alert_expression()) == {"us-east-1"}
    assert {dict(labels)["job"] for labels in server.values("cml_worker_info")} == {"cml-worker-exporter"}


def test_without_honor_labels_the_region_that_answers_would_hide_it(run: Callable[..., Prometheus]) -> None:
    server = run(honor_labels=False)
    assert regions(server, alert_expression()) == set()
