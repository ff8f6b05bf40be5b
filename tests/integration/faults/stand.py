"""A running exporter with its MongoDB and CloudWatch, in fast motion: what an operator sees of a fault, and what it costs."""

import html
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pymongo import MongoClient

from exporter.demo.mongod import Mongod
from tests.helpers.deadlines import pause, scaled
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id

PERIOD = 60
CYCLE_SECONDS = 60
TWO_CYCLES_SECONDS = 2 * CYCLE_SECONDS
STOP_SECONDS = 5
"""How long the exporter may take to end after SIGTERM, whatever fails."""
WORKERS = 4
REGION = "eu-west-1"
MONGODB_UP = 'cml_exporter_source_up{region="",source="mongodb"}'
CLOUDWATCH_UP = f'cml_exporter_source_up{{region="{REGION}",source="cloudwatch"}}'


def fast_settings(uri: str, fake: FakeCloudWatch) -> dict[str, Any]:
    """Settings with a period of a minute, and samples that are final two minutes later."""
    return {
        "mongodb": {"uri": uri},
        "cloudwatch": {"endpoint_url": fake.url, "interval": "1m"},
        "period": "1m",
        "settle_delay": "1m",
        "absence_timeout": "2m",
    }


def add_fleet(client: MongoClient[dict[str, Any]], database: str, fake: FakeCloudWatch, age: int = 1800) -> None:
    """Insert the documents of `WORKERS` workers that have run for `age` seconds, and add their instances to CloudWatch."""
    created = time.time() - age
    for number in range(WORKERS):
        fake.add(instance_id(number), REGION, runs=[(int(created), None)])
    client[database]["workers"].insert_many(
        {
            "_id": f"worker-{number}",
            "aws_region": REGION,
            "aws_instance_id": instance_id(number),
            "status": "running",
            "active_labs_count": 1,
        }
        for number in range(WORKERS)
    )


@dataclass
class Stand:
    """The parts of one test."""

    exporter: ExporterProcess
    mongod: Mongod
    fake: FakeCloudWatch
    admin_uri: str
    database: str

    def sources(self) -> Mapping[str, str | None]:
        """Return part → its error, of /-/ready."""
        body = self.exporter.get("/-/ready").json()
        return {name: source["error"] for name, source in body["sources"].items()}

    def metric(self, series: str) -> float | None:
        return self.exporter.metrics().get(series)

    def shown(self, name: str) -> int:
        """Return how many series of a metric /metrics has."""
        return sum(series.startswith(f"{name}{{") for series in self.exporter.metrics())

    def wait_until_well(self, within: float = 90) -> float:
        """Wait until every part is well and this exporter leads; return the seconds it took."""
        return self.wait_for(
            lambda: (
                self.exporter.get("/-/ready").json()["status"] == "ok"
                and self.metric("cml_exporter_leader") == 1
                and self.metric(MONGODB_UP) == 1
                and self.metric(CLOUDWATCH_UP) == 1
                and self.written() > 0
            ),
            within,
            "well",
        )

    def wait_for(self, condition: Callable[[], object], within: float, what: str) -> float:
        """Wait until a condition holds; return the seconds it took, and fail with /-/ready and the log when it does not."""
        began = time.monotonic()
        within = scaled(within)
        while not condition():
            waited = time.monotonic() - began
            if waited > within:
                raise AssertionError(f"not {what} within {within:g} s: {self.sources()}\n{self.exporter.tail()}")
            time.sleep(pause(waited))
        return time.monotonic() - began

    def wait_for_error(self, part: str, words: str, within: float) -> float:
        """Wait until /-/ready and the fleet page show an error of a part; return the seconds it took."""
        seconds = self.wait_for(lambda: words in (self.sources().get(part) or ""), within, f"failing in {part}: {words}")
        response = self.exporter.get("/-/ready")
        assert response.status_code == 200, "a target with right gauges stays in rotation"
        assert response.json()["status"] == "degraded"
        page = html.unescape(self.exporter.get("/").text)
        assert "Degraded:" in page
        assert words in page
        return seconds

    def written(self) -> int:
        """Return how many samples the history has, 0 while MongoDB does not answer."""
        with MongoClient[dict[str, Any]](self.admin_uri, serverSelectionTimeoutMS=2000) as client:
            return int(client[self.database]["worker_metrics_timeseries"].count_documents({}))

    def figures(self, since: float, until: float) -> tuple[int, int]:
        """Wait until the periods between two UTC seconds are in the history with a status; return (lost, doubled).

        Lost are those that are not, five minutes later; doubled are counted over the whole history.
        """
        first, last = int(since) // PERIOD * PERIOD, int(until) // PERIOD * PERIOD
        wanted = {(f"worker-{number}", start) for number in range(WORKERS) for start in range(first, last, PERIOD)}
        deadline = time.monotonic() + scaled(300)
        with MongoClient[dict[str, Any]](self.admin_uri, tz_aware=True, serverSelectionTimeoutMS=10_000) as client:
            history = client[self.database]["worker_metrics_timeseries"]
            while True:
                documents = list(history.find({}))
                known = {_key(document) for document in documents if "status" in document}
                if wanted <= known or time.monotonic() > deadline:
                    break
                time.sleep(1)
        return len(wanted - known), len(documents) - len({_key(document) for document in documents})

    def check_log(self) -> None:
        """Check that no warning or error was repeated, and that nothing was unexpected."""
        texts = Counter(
            line.partition(" ")[2]
            for line in self.exporter.logged().splitlines()
            if " level=warn" in line or " level=error" in line
        )
        repeated = {text: count for text, count in texts.items() if count > 2}
        assert not repeated, repeated
        assert "Traceback" not in self.exporter.logged()

    def stop_in_time(self) -> float:
        """End the exporter with SIGTERM while the fault lasts; return the seconds it took."""
        began = time.monotonic()
        assert self.exporter.stop(within=60) == 0
        seconds = time.monotonic() - began
        assert seconds < scaled(STOP_SECONDS), f"{seconds:.1f} s\n{self.exporter.tail()}"
        return seconds


def _key(document: Mapping[str, Any]) -> tuple[str, int]:
    return document["worker_id"], int(document["timestamp"].timestamp())
