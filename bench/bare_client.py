"""The least that a poll can cost in Python: the exporter's GetMetricData calls, signed by botocore, and nothing else.

    python -m bench.bare_client --url http://127.0.0.1:5602 --workers 1000 [--every 60]

Requests are written and answers parsed by orjson, sent over kept connections by 8 threads. The newest value
of each query is kept in a dict. It polls once at its start, then every so many seconds, until it is terminated.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
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
HEADERS = {
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Target": "GraniteServiceVersion20100801.GetMetricData",
}


def queries(workers: int, region: str) -> list[dict[str, Any]]:
    """Return the queries of the fleet of `tests.helpers.fake_cloudwatch`: CPU of all, memory where there is an agent."""
    found: list[dict[str, Any]] = []
    for k in range(REGIONS.index(region), workers, len(REGIONS)):
        series = [("AWS/EC2", "CPUUtilization", [("InstanceId", instance_id(k))])]
        if k % 50 != 49:
            further = [] if k % 10 == 0 else [("ImageId", "ami-0c"), ("InstanceType", "m5.2xlarge")]
            series.append(("CWAgent", "mem_used_percent", [*further, ("InstanceId", instance_id(k))]))
        for namespace, name, dimensions in series:
            pairs = [{"Name": key, "Value": value} for key, value in dimensions]
            metric = {"Namespace": namespace, "MetricName": name, "Dimensions": pairs}
            found.append({"Id": f"q{len(found)}", "MetricStat": {"Metric": metric, "Period": PERIOD, "Stat": "Average"}})
    return found


def batches(queries: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    for first in range(0, len(queries), MAX_QUERIES):
        yield queries[first : first + MAX_QUERIES]


class BareClient:
    """Polls one fake CloudWatch; `values` holds the newest value by region and id of the query."""

    def __init__(self, url: str, workers: int) -> None:
        self._url = url
        self._credentials = Credentials("bench", "bench")
        self._http = urllib3.PoolManager(maxsize=THREADS)
        self._threads = ThreadPoolExecutor(THREADS)
        self._calls = [(region, batch) for region in REGIONS for batch in batches(queries(workers, region))]
        self.values: dict[tuple[str, int], dict[str, float]] = {}

    def poll(self) -> None:
        """Make all calls and keep the newest values."""
        end = int(time.time()) // PERIOD * PERIOD
        numbered = range(len(self._calls))
        for number, found in zip(numbered, self._threads.map(lambda number: self._call(number, end), numbered), strict=True):
            self.values[self._calls[number][0], number] = found

    def _call(self, number: int, end: int) -> dict[str, float]:
        region, batch = self._calls[number]
        body = orjson.dumps({"MetricDataQueries": batch, "StartTime": end - WINDOW_SECONDS, "EndTime": end})
        request = AWSRequest("POST", self._url, headers=HEADERS, data=body)
        SigV4Auth(self._credentials, "monitoring", region).add_auth(request)
        answer = self._http.request("POST", self._url, body=body, headers=dict(request.headers.items()))
        if answer.status != 200:
            raise RuntimeError(f"the fake CloudWatch answered {answer.status}: {answer.data[:200]!r}")
        results = orjson.loads(answer.data)["MetricDataResults"]
        return {result["Id"]: result["Values"][0] for result in results if result["Values"]}


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
