"""The least that a poll can cost in Python: the exporter's GetMetricData calls, signed by botocore, and nothing else.

    python -m bench.bare_client --url http://127.0.0.1:5602 --workers 1000 [--every 60]

Each poll makes the queries of all workers, writes and parses JSON with orjson, sends over kept connections with 8 threads, and
keeps the newest datapoint of each worker and metric in a dict. It polls once at its start, then every so many seconds, until it
is terminated.
"""

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from bench.fake_aws import REGIONS
from tests.helpers.fake_cloudwatch import MAX_QUERIES, instance_id

PERIOD, WINDOW_SECONDS, THREADS = 60, 300, 8
FURTHER_DIMENSIONS = [{"Name": "ImageId", "Value": "ami-0c"}, {"Name": "InstanceType", "Value": "m5.2xlarge"}]
Key = tuple[str, str]
"""Instance and metric."""
HEADERS = {
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Target": "GraniteServiceVersion20100801.GetMetricData",
}


def queries(workers: int, region: str) -> list[tuple[Key, dict[str, Any]]]:
    """Return the queries of the fleet of `tests.helpers.fake_cloudwatch`: CPU of all, memory where there is an agent."""
    found: list[tuple[Key, dict[str, Any]]] = []
    for k in range(REGIONS.index(region), workers, len(REGIONS)):
        instance = instance_id(k)
        series = [("AWS/EC2", "CPUUtilization", [{"Name": "InstanceId", "Value": instance}])]
        if k % 50 != 49:
            further = [] if k % 10 == 0 else FURTHER_DIMENSIONS
            series.append(("CWAgent", "mem_used_percent", [{"Name": "InstanceId", "Value": instance}, *further]))
        for namespace, name, dimensions in series:
            metric = {"Namespace": namespace, "MetricName": name, "Dimensions": dimensions}
            query = {"Id": f"q{len(found)}", "MetricStat": {"Metric": metric, "Period": PERIOD, "Stat": "Average"}}
            found.append(((instance, name), query))
    return found


class SignedClient:
    """Sends GetMetricData calls to one URL over kept connections; safe from `THREADS` threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._credentials = Credentials("bench", "bench")
        self._http = urllib3.PoolManager(maxsize=THREADS)

    def results(self, region: str, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Make a call and return its MetricDataResults."""
        body = orjson.dumps(fields)
        request = AWSRequest("POST", self._url, headers=HEADERS, data=body)
        SigV4Auth(self._credentials, "monitoring", region).add_auth(request)
        answer = self._http.request("POST", self._url, body=body, headers=dict(request.headers.items()))
        if answer.status != 200:
            raise RuntimeError(f"the fake CloudWatch answered {answer.status}: {answer.data[:200]!r}")
        found: list[dict[str, Any]] = orjson.loads(answer.data)["MetricDataResults"]
        return found


class BareClient:
    """Polls one fake CloudWatch; `values` holds time and value of the newest datapoint by instance and metric."""

    def __init__(self, url: str, workers: int) -> None:
        self._client, self._workers = SignedClient(url), workers
        self._threads = ThreadPoolExecutor(THREADS)
        self.values: dict[Key, tuple[float, float]] = {}

    def poll(self) -> None:
        """Make all calls and keep the newest datapoints."""
        calls = [
            (region, wanted[first : first + MAX_QUERIES])
            for region in REGIONS
            for wanted in [queries(self._workers, region)]
            for first in range(0, len(wanted), MAX_QUERIES)
        ]
        for found in self._threads.map(lambda call: self._call(*call), calls):
            self.values |= found

    def _call(self, region: str, wanted: Sequence[tuple[Key, dict[str, Any]]]) -> dict[Key, tuple[float, float]]:
        end = int(time.time()) // PERIOD * PERIOD
        fields = {"MetricDataQueries": [query for _, query in wanted], "StartTime": end - WINDOW_SECONDS, "EndTime": end}
        keys = {query["Id"]: key for key, query in wanted}
        results = self._client.results(region, fields)
        return {
            keys[each["Id"]]: max(zip(each["Timestamps"], each["Values"], strict=True)) for each in results if each["Values"]
        }


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--every", type=float, default=60, help="seconds between two polls")
    options = parser.parse_args()
    client, next_poll = BareClient(options.url, options.workers), time.monotonic()
    while True:
        client.poll()
        next_poll += options.every
        time.sleep(max(0, next_poll - time.monotonic()))


if __name__ == "__main__":
    main()
