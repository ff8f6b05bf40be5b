"""The push to a real receiver: what an OpenTelemetry collector would have is what /metrics shows."""

import asyncio
import gzip
import http.server
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from prometheus_client.parser import text_string_to_metric_families

from exporter.core.periods import HOUR
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from tests.fixtures.process import RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id

Point = tuple[str, str, tuple[tuple[str, str], ...]]
"""Worker id, metric, attributes."""


class Receiver(http.server.ThreadingHTTPServer):
    """An OTLP/HTTP receiver that keeps every request."""

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        self.status = 200
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/metrics" and receiver.status == 200:
                    receiver.requests.append(ExportMetricsServiceRequest.FromString(body))
                answer = ExportMetricsServiceResponse().SerializeToString()
                self.send_response(receiver.status if self.path == "/v1/metrics" else 404)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def points(self) -> dict[Point, float]:
        """The newest value of every series."""
        found: dict[Point, float] = {}
        for request in list(self.requests):
            for resource in request.resource_metrics:
                of = {each.key: each.value.string_value for each in resource.resource.attributes}
                for metric in (each for scope in resource.scope_metrics for each in scope.metrics):
                    for point in (metric.sum if metric.HasField("sum") else metric.gauge).data_points:
                        labels = tuple(sorted((each.key, each.value.string_value) for each in point.attributes))
                        found[of.get("cml.worker.id", ""), metric.name, labels] = point.as_double
        return found

    def resources(self) -> list[Mapping[str, str]]:
        return [
            {each.key: each.value.string_value for each in resource.resource.attributes}
            for resource in self.requests[-1].resource_metrics
        ]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + scaled(60)
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture
async def settings(
    mongod: Mongod, database: Database, fake_cloudwatch: FakeCloudWatch, receiver: Receiver
) -> Mapping[str, Any]:
    """Those of an exporter with two workers and a push every second."""
    now = int(time.time())
    for k in range(2):
        fake_cloudwatch.add(instance_id(k), runs=[(now - HOUR, None)])
    await database["workers"].insert_many(
        Member(f'worker "{k}"\n', instance_id(k), "eu-west-1", now - HOUR).aggregate() for k in range(2)
    )
    return {
        "mongodb": {"uri": mongod.uri.replace("/?", f"/{database.name}?")},
        "cloudwatch": {"endpoint_url": fake_cloudwatch.url},
        "aws": {"sts_endpoint_url": fake_cloudwatch.url},
        "otlp": {"endpoint": receiver.url, "interval": "1s"},
    }


def scraped(text: str) -> dict[Point, float]:
    """The series of /metrics in the form of `Receiver.points`."""
    found: dict[Point, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            worker_id = labels.pop("worker_id", "") if sample.name.startswith("cml_worker_") else ""
            if worker_id:
                labels.pop("region")
            found[worker_id, sample.name, tuple(sorted(labels.items()))] = sample.value
    return {key: value for key, value in found.items() if key[1] != "cml_worker_info"}


KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


async def test_a_collector_gets_what_a_scrape_gets(
    settings: Mapping[str, Any], receiver: Receiver, run_exporter: RunExporter
) -> None:
    exporter = await asyncio.to_thread(partial(run_exporter, settings, env=KEYS))

    def complete() -> bool:
        text = exporter.get("/metrics").text
        return (
            text.count("\ncml_worker_cpu_utilization_ratio{") == 2
            and len([key for key in receiver.points() if key[1] == "cml_worker_cpu_utilization_ratio"]) == 2
        )

    await asyncio.to_thread(until, complete, "no CPU was pushed")
    shown, pushed = scraped(exporter.get("/metrics").text), receiver.points()
    workers = {key: value for key, value in shown.items() if key[0] and "timestamp" not in key[1]}
    assert workers == {key: pushed[key] for key in workers}
    assert {key for key in shown if key[1].startswith("cml_exporter_")} <= set(pushed)
    of_workers = [each for each in receiver.resources() if "cml.worker.id" in each]
    assert {each["host.id"] for each in of_workers} == {instance_id(0), instance_id(1)}
    assert {(each["cloud.region"], each["cloud.provider"]) for each in of_workers} == {("eu-west-1", "aws")}
    assert {each["service.name"] for each in receiver.resources()} == {"cml-worker-exporter"}


async def test_a_collector_that_is_away_harms_nothing_shows_and_gets_the_newest_values_later(
    settings: Mapping[str, Any], receiver: Receiver, run_exporter: RunExporter
) -> None:
    receiver.status = 400
    exporter = await asyncio.to_thread(partial(run_exporter, settings, env=KEYS))

    def pushes(result: str) -> float:
        return scraped(exporter.get("/metrics").text)["", "cml_exporter_otlp_pushes_total", (("result", result),)]

    await asyncio.to_thread(until, lambda: pushes("failure") >= 2, "failures do not show")
    assert pushes("success") == 0
    assert exporter.get("/-/ready").status_code == 200
    assert exporter.tail(200).count("cannot push to the OpenTelemetry collector") == 1
    receiver.status = 200
    await asyncio.to_thread(until, lambda: pushes("success") >= 1, "it does not push again")
    assert receiver.points()


async def test_an_endpoint_that_is_no_url_is_refused(settings: Mapping[str, Any], run_exporter: RunExporter) -> None:
    wrong = {**settings, "otlp": {"endpoint": "collector:4318"}}
    exporter = await asyncio.to_thread(partial(run_exporter, wrong, env=KEYS, start=False))
    await asyncio.to_thread(partial(exporter.start, wait=False))
    await asyncio.to_thread(until, lambda: "it is not a URL" in exporter.tail(20), "no message")
