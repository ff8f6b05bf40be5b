"""The fake CloudWatch as a process of its own, so that its CPU counts for no subject; and its values, computed here too."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from exporter.core.model import MetricName
from tests.helpers.fake_cloudwatch.process import FakeCloudWatchProcess

REGIONS = ("eu-west-1", "us-east-1")


class Counted(NamedTuple):
    """What arrived since the last count: requests, and billed metrics."""

    calls: int
    billed: int
    span: float
    """Seconds from the first request to the last answer."""
    began: float | None
    """The first request, in monotonic seconds, which all processes share; None: there was none."""


class FakeAws(FakeCloudWatchProcess):
    """A fake CloudWatch with a fleet that always ran and detailed monitoring; a context manager."""

    def __init__(
        self, folder: Path, workers: int, latency: float = 0, period: int = 60, regions: Sequence[str] = REGIONS
    ) -> None:
        super().__init__(folder, workers, latency, period, regions)

    def count(self) -> Counted:
        """Return what arrived since the last time, and count from 0 again."""
        counters = self.control({"brief": True, "reset": True})
        calls = sum(counters["calls"].get(name, 0) for name in ("GetMetricData", "ListMetrics", "GetMetricStatistics"))
        return Counted(calls, sum(counters["metrics_billed"].values()), counters["span"], counters["first_request"])

    def value(self, instance: str, metric: MetricName, start: int) -> float:
        """Return the percent of the period that starts at UTC second `start`."""
        return self.instances.value(instance, metric, start)
