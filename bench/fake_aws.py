"""The fake CloudWatch as a process of its own, so that its CPU counts for no subject; and its values, computed here too."""

import json
import os
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from bench.processes import Process
from exporter.core.model import MetricName
from exporter.demo.ports import free_port
from tests.helpers.fake_cloudwatch import FakeCloudWatch

REGIONS = ("eu-west-1", "us-east-1")
START_SECONDS = 60


class Counted(NamedTuple):
    """What arrived since the last count: requests, and billed metrics."""

    calls: int
    billed: int
    span: float
    """Seconds from the first request to the last answer."""
    began: float | None
    """The first request, in monotonic seconds, which all processes share; None: there was none."""


def control(url: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Give an order to the fake CloudWatch at a URL, and return its answer."""
    request = urllib.request.Request(f"{url}/ctl", data=json.dumps(order).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=START_SECONDS) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


class FakeAws:
    """A fake CloudWatch with a fleet that always ran and detailed monitoring; a context manager.

    Args:
        latency: seconds before each answer.
        period: of its datapoints, in seconds.
        regions: that the instances are divided among.
    """

    def __init__(
        self, folder: Path, workers: int, latency: float = 0, period: int = 60, regions: Sequence[str] = REGIONS
    ) -> None:
        self.port = free_port()
        self.workers = workers
        self._values = FakeCloudWatch(period=period)  # never started: value() is a pure function of the seed
        self._command = [
            *(sys.executable, "-m", "tests.helpers.fake_cloudwatch", "--port", str(self.port), "--workers", str(workers)),
            *("--latency", str(latency), "--period", str(period), "--regions", ",".join(regions)),
        ]
        self._log = folder / f"fake_aws_{self.port}.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        here = Path(__file__).resolve().parents[1]
        self._process = Process(self._command, self._log, {**os.environ, "PYTHONPATH": str(here)}, here)
        deadline = time.monotonic() + START_SECONDS
        while self.url not in self._log.read_text():
            if time.monotonic() > deadline or not self._process.pid:
                raise RuntimeError(f"the fake CloudWatch did not start within {START_SECONDS} s; see {self._log}")
            time.sleep(0.05)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.__exit__(kind, error, trace)

    def count(self) -> Counted:
        """Return what arrived since the last time, and count from 0 again."""
        counters = control(self.url, {"brief": True, "reset": True})
        calls = sum(counters["calls"].get(name, 0) for name in ("GetMetricData", "ListMetrics", "GetMetricStatistics"))
        return Counted(calls, sum(counters["metrics_billed"].values()), counters["span"], counters["first_request"])

    def value(self, instance: str, metric: MetricName, start: int) -> float:
        """Return the percent of the period that starts at UTC second `start`."""
        return self._values.value(instance, metric, start)
