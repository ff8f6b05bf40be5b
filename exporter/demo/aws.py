"""The demo's fake AWS: moto's server in a thread of this process, with the fleet's datapoints in its CloudWatch.

moto keeps everything in memory. The fleet is a function of the world, so a restart publishes the same values again.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from moto.cloudwatch import urls
from moto.cloudwatch.models import CloudWatchBackend, MetricDatumBase, cloudwatch_backends
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.server import ThreadedMotoServer

from exporter.core.model import MetricName
from exporter.core.periods import DAY, align, to_datetime
from exporter.demo.fleet import PERIOD, DemoDatapoint, DemoWorker, World, datapoints, dimension_sets, fleet, published_at

KEPT = 14 * DAY
"""Age in seconds up to which a restart publishes: the longest `gap_fill_window`."""
SERIES: Mapping[MetricName, tuple[str, str]] = {"cpu": ("AWS/EC2", "CPUUtilization"), "memory": ("CWAgent", "mem_used_percent")}
"""Namespace and name of each metric."""


class FakeAws:
    """CloudWatch and STS with the datapoints published so far; by default on a free port of 127.0.0.1."""

    def __init__(self, world: World, host: str = "127.0.0.1", port: int = 0) -> None:
        self._world = world
        self._server = ThreadedMotoServer(host, port, verbose=False)
        self._next: dict[DemoWorker, int] = {}
        self._regions = {worker.region: SeriesBackend(worker.region, DEFAULT_ACCOUNT_ID) for worker in fleet(world)}

    def start(self) -> str:
        """Start serving and return the endpoint URL."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
        cloudwatch_backends[DEFAULT_ACCOUNT_ID].update(self._regions)
        self._server.start()
        host, port = self._server.get_host_and_port()
        return f"http://{host}:{port}"

    def stop(self) -> None:
        """Stop serving and forget every datapoint."""
        self._server.stop()
        for region in self._regions:
            del cloudwatch_backends[DEFAULT_ACCOUNT_ID][region]

    def publish(self, now: int) -> int:
        """Publish the datapoints that became due since the last call, at first all of the world, and return their number."""
        count = 0
        for worker in fleet(self._world):
            start = end = self._next.get(worker, max(self._world.begin, align(now - KEPT, PERIOD)))
            while published_at(self._world, worker, end) <= now:
                end += PERIOD
            self._next[worker] = end
            for point in datapoints(self._world, worker, start, end):
                self._put(point)
                count += 1
        return count

    def _put(self, point: DemoDatapoint) -> None:
        namespace, name = SERIES[point.metric]
        # Without a zone, as moto's request parser leaves it.
        datum = {"MetricName": name, "Timestamp": _naive(point.period), "Value": point.value, "Unit": "Percent"}
        for dimensions in dimension_sets(point.worker, point.metric):
            members = [{"Name": key, "Value": value} for key, value in dimensions]
            self._regions[point.worker.region].put_metric_data(namespace, [{**datum, "Dimensions": members}])


_Series = tuple[str, str, tuple[tuple[str, str], ...]]
"""Namespace, name and dimensions."""


class SeriesBackend(CloudWatchBackend):
    """moto's CloudWatch of one region, with a separate moto backend per series.

    moto 5.2.5 scans all datapoints for every period of every query (24 queries of 25 h: 3.5 s, so 0.4 s), ignores the namespace
    of a query with dimensions, and lists a series with several dimensions once for each of its datapoints (2 s, so 0.1 s).
    For a single series it is correct and fast enough.
    """

    _url_module = urls  # else moto searches for it beside this file

    def __init__(self, region_name: str, account_id: str) -> None:
        super().__init__(region_name, account_id)
        self._series: dict[_Series, CloudWatchBackend] = {}

    def put_metric_data(self, namespace: str, metric_data: Sequence[dict[str, Any]]) -> None:
        """Hand each datum to its series."""
        for datum in metric_data:
            key = _series(namespace, datum)
            if key not in self._series:
                self._series[key] = CloudWatchBackend(self.region_name, self.account_id)
            self._series[key].put_metric_data(namespace, [datum])

    def get_metric_data(
        self, queries: Sequence[dict[str, Any]], start_time: datetime, end_time: datetime, scan_by: str = "TimestampAscending"
    ) -> list[dict[str, Any]]:
        """Return the result of each query from its series alone; the exporter sends no expressions."""
        nothing = CloudWatchBackend(self.region_name, self.account_id)
        results: list[dict[str, Any]] = []
        for query in queries:
            metric = query["MetricStat"]["Metric"]
            series = self._series.get(_series(metric["Namespace"], metric), nothing)
            results += series.get_metric_data([query], start_time, end_time, scan_by)
        return results

    def get_filtered_metrics(self, metric_name: str, namespace: str, dimensions: list[dict[str, str]]) -> list[MetricDatumBase]:
        """List each series once."""
        firsts = [backend.metric_data[0] for backend in list(self._series.values())]
        return [datum for datum in firsts if datum.filter(namespace, metric_name, dimensions)]

    def get_all_metrics(self) -> list[MetricDatumBase]:
        """Return the datapoints of all series, for GetMetricStatistics."""
        return [datum for backend in list(self._series.values()) for datum in backend.metric_data]


def _series(namespace: str, metric: Mapping[str, Any]) -> _Series:
    return namespace, metric["MetricName"], tuple((part["Name"], part["Value"]) for part in metric.get("Dimensions", ()))


def _naive(time: int) -> datetime:
    return to_datetime(time).replace(tzinfo=None)
