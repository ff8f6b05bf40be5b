"""CPU of polling alone, from planning to merged answers, beside a bare signed client that makes the same calls.

    python -m bench.polling [--workers 1000] [--rounds 12] [--json]

The fake CloudWatch is a process of its own. Both subjects run in this process, in turn, cycle by cycle: the exporter's `plan`
and `CloudWatch.get_metric_data` for every running worker; and the same calls, prepared in advance, which botocore signs,
urllib3 sends over kept connections, and orjson writes and parses. The clock is simulated: each cycle is one minute later. The
values of both are compared, so that neither is fast because it is wrong.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client import CollectorRegistry

from bench.bare_client import SignedClient
from bench.fake_aws import REGIONS, FakeAws
from exporter.core.heap import freeze
from exporter.core.model import MetricQuery, Worker
from exporter.core.settings_loader import load
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.calls import MAX_CONCURRENT_CALLS
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.planning import MetricDataCall, live_queries, plan, revisit
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from tests.helpers.fake_cloudwatch import instance_id

PERIOD = 60
WARM_UP_CYCLES = 2
Values = dict[tuple[str, str], float]
"""(instance, metric) → its newest value in percent."""


class Polling:
    """The exporter's part: plans and makes the calls of one cycle."""

    def __init__(self, url: str, workers: int) -> None:
        tree = {
            "CML_EXPORTER_MONGODB__URI": "mongodb://127.0.0.1/bench",
            "CML_EXPORTER_CLOUDWATCH__ENDPOINT_URL": url,
            "CML_EXPORTER_PERIOD": "1m",
            "CML_EXPORTER_CLOUDWATCH__INTERVAL": "1m",
            "CML_EXPORTER_ABSENCE_TIMEOUT": "10m",
            "CML_EXPORTER_GAP_FILL_WINDOW": "15m",
        }
        settings = load(None, tree)
        self._rules = Rules.from_settings(settings)
        self._offset = 0.0
        self._source = CloudWatch(settings, Telemetry(CollectorRegistry()), wall=self.wall)
        self._series = MemorySeriesIndex(self._source)
        self._fleet = [Worker(f"worker-{k:05d}", REGIONS[k % 2], instance_id(k), "running") for k in range(workers)]

    def wall(self) -> float:
        return time.time() + self._offset

    def advance(self, offset: float) -> None:
        self._offset = offset

    def plan(self) -> list[MetricDataCall]:
        """Return the calls of the cycle."""
        now, rules = int(self.wall()), self._rules
        return plan(revisit(live_queries(self._fleet, now, rules), now, rules), self._queries, now, rules)

    def _queries(self, worker_id: str, region: str, instance: str) -> tuple[MetricQuery, ...]:
        return self._series.queries(region, instance, None)

    async def poll(self) -> tuple[list[MetricDataCall], Values]:
        """Plan and make the calls; return them, and the newest values."""
        for region in REGIONS:
            await self._series.listing(region, recent=True)
        calls, slots = self.plan(), asyncio.Semaphore(MAX_CONCURRENT_CALLS)
        self._series.forget_activity()
        values: Values = {}

        async def make(call: MetricDataCall) -> None:
            async with slots:
                results = await self._source.get_metric_data(call.region, call.queries, call.start, call.end, PERIOD)
            self._series.note_activity(call.region, results, PERIOD)
            for query, result in results.by_query.items():
                if result.values:
                    values[query.instance_id, query.metric] = result.values[max(result.values)]

        await asyncio.gather(*map(make, calls))
        return calls, values

    async def close(self) -> None:
        await self._source.close()


class SameCalls:
    """Makes calls whose bodies are ready: signs, sends, parses, keeps the newest values."""

    def __init__(self, url: str) -> None:
        self._client = SignedClient(url)
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT_CALLS)

    def prepare(self, calls: Sequence[MetricDataCall]) -> list[tuple[str, dict[str, Any], Sequence[MetricQuery]]]:
        """Return the region, the body, and the queries of each call."""
        prepared: list[tuple[str, dict[str, Any], Sequence[MetricQuery]]] = []
        names = {"cpu": ("AWS/EC2", "CPUUtilization"), "memory": ("CWAgent", "mem_used_percent")}
        for call in calls:
            queries = [
                {
                    "Id": f"m{number}",
                    "MetricStat": {
                        "Metric": {
                            "Namespace": names[query.metric][0],
                            "MetricName": names[query.metric][1],
                            "Dimensions": [{"Name": name, "Value": value} for name, value in query.dimensions],
                        },
                        "Period": PERIOD,
                        "Stat": "Average",
                    },
                }
                for number, query in enumerate(call.queries)
            ]
            body = {"MetricDataQueries": queries, "StartTime": call.start, "EndTime": call.end, "ScanBy": "TimestampAscending"}
            prepared.append((call.region, body, call.queries))
        return prepared

    def poll(self, prepared: Sequence[tuple[str, dict[str, Any], Sequence[MetricQuery]]]) -> Values:
        values: Values = {}
        for found in self._threads.map(lambda each: self._call(*each), prepared):
            values |= found
        return values

    def _call(self, region: str, request: dict[str, Any], queries: Sequence[MetricQuery]) -> Values:
        results = self._client.results(region, request)
        return {
            (queries[int(result["Id"][1:])].instance_id, queries[int(result["Id"][1:])].metric): result["Values"][-1]
            for result in results
            if result["Values"]
        }


async def measure(workers: int, rounds: int) -> dict[str, Any]:
    """Return the CPU seconds of each cycle of both, the calls and the datapoints, and the ratio of the medians."""
    with TemporaryDirectory() as folder, FakeAws(Path(folder), workers, period=PERIOD) as fake:
        url = fake.url
        polling, bare = Polling(url, workers), SameCalls(url)
        cycles: list[dict[str, float]] = []
        offset = 0.0
        for index in range(rounds + WARM_UP_CYCLES):
            offset += (20 - time.time() - offset) % 60 or 60  # far from the moments at which datapoints become visible
            polling.advance(offset)
            fake.control({"set": {"offset": offset}})
            began = time.process_time()
            calls, values = await polling.poll()
            ours = time.process_time() - began
            prepared = bare.prepare(calls)
            began = time.process_time()
            expected = bare.poll(prepared)
            theirs = time.process_time() - began
            if values != expected:
                raise RuntimeError(f"{len(values)} values, the bare client has {len(expected)}, and they differ")
            began = time.process_time()
            polling.plan()
            planning = time.process_time() - began
            if index == WARM_UP_CYCLES - 1:
                freeze()
            if index >= WARM_UP_CYCLES:
                points = sum(len(call.queries) * (call.end - call.start) // PERIOD for call in calls)
                cycles.append(
                    {"polling": ours, "bare": theirs, "planning": planning, "calls": len(calls), "queried periods": points}
                )
        await polling.close()
    medians = {name: statistics.median(cycle[name] for cycle in cycles) for name in cycles[0]}
    return {"workers": workers, "cycles": cycles, "median": medians, "ratio": medians["polling"] / medians["bare"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "bench")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "bench")
    measured = asyncio.run(measure(options.workers, options.rounds))
    if options.json:
        print(json.dumps(measured))
        return
    median = measured["median"]
    print(
        f"{measured['workers']} workers, {median['calls']:.0f} calls, {median['queried periods']:.0f} periods queried a cycle"
    )
    print(f"CPU of polling      {median['polling'] * 1e3:.0f} ms, planning {median['planning'] * 1e3:.0f} ms of it")
    print(f"CPU of bare client  {median['bare'] * 1e3:.0f} ms")
    print(f"ratio               {measured['ratio']:.2f}")


if __name__ == "__main__":
    main()
