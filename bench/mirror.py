"""Compares the mirror and the backfill with a bare insert_many of the same documents: own CPU, wall time, mongod's CPU.

    python -m bench.mirror [--workers 1000] [--periods 100] [--cycles 10] [--days 1] [--repeat 5] [--only backlog]

Starts a mongod (a replica set of one node) and a fake CloudWatch. The ways alternate, each into an empty history, so that a
busy machine slows all of them; the figures are medians and ratios of medians. `cpu` is that of this process with its threads.

backlog   periods of each worker wait in the outbox, as after an outage: workers x periods samples, most of them side by side
live      one period of each of workers x periods / cycles workers becomes final, cycle after cycle
backfill  the command `backfill` of some days, against a signed client that makes the same GetMetricData calls and inserts
          the same documents. Its insert part is told separately: the mirror on such rows, against insert_many
"""

import argparse
import asyncio
import gc
import io
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, WriteConcern

from exporter.commands.backfill import command
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.backfill.planner import Options
from exporter.core import logs
from exporter.core.periods import DAY, align, to_datetime
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.history_watch import HistoryWatch
from exporter.pipeline.lifecycle import PendingSample
from exporter.pipeline.mirror import BATCH_SAMPLES, Mirror
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.storage.collection import DEFAULT_COLLECTION, TIMESERIES_OPTIONS
from exporter.storage.history_marker import HistoryMarker
from exporter.storage.lease import Lease, keep_renewed
from exporter.storage.mongo import Database, connect_uri
from exporter.storage.repository import WorkerMetricsRepository
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import MAX_QUERIES, instance_id
from tests.helpers.ports import free_port

PERIOD, REGION = 300, "eu-west-1"
CALLS_AT_ONCE = 3
"""Calls of the bare client that run together, as in the backfill."""
Document = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What one run took, in seconds."""

    cpu: float
    """Of this process, all threads."""
    wall: float
    mongod: float
    """CPU of mongod."""


Costs = dict[str, list[Cost]]
"""Name of the way → what each of its runs took."""


@contextmanager
def mongod_of_bench() -> Iterator[tuple[Mongod, str, Path]]:
    """Run a replica set of one node; yields it, the URI of its database `bench`, and a folder that is removed."""
    with (
        tempfile.TemporaryDirectory() as name,
        Mongod(Path(name, "mongo"), free_port(), replica_set=True, parameters={"ttlMonitorEnabled": "false"}) as mongod,
    ):
        yield mongod, mongod.uri.replace("/?", "/bench?"), Path(name)


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def cost(mongod: Mongod, work: Awaitable[object]) -> Cost:
    """Run something and return what it took."""
    gc.collect()
    gc.freeze()  # as in `serve`: the samples of the bench must not be searched for garbage again and again
    cpu, wall, server = time.process_time(), time.perf_counter(), cpu_of(mongod.pid)
    await work
    return Cost(time.process_time() - cpu, time.perf_counter() - wall, cpu_of(mongod.pid) - server)


# -- the same samples as rows and as documents


def cycles_of(workers: int, periods: int, cycles: int, *, observed: bool = True) -> list[list[PendingSample]]:
    """Return the final rows of each cycle, of `workers` each, worker by worker in time order.

    Args:
        workers: of a cycle.
        periods: of each worker in a cycle, which follow each other.
        cycles: how many; each has the periods after those of the one before.
        observed: whether the rows have a status and labs, which those of a backfill lack.
    """
    dice = random.Random(1)
    begin = align(int(time.time()), PERIOD) - (periods * cycles + 2) * PERIOD
    return [
        [
            PendingSample(
                f"4ad5e0e2-0000-4000-8000-{number:012d}", start, REGION, (instance_id(number),),
                "running" if observed else None, number % 5 if observed else None,
                cpu=dice.random() * 100, memory=dice.random() * 100, final=True,
            )
            for number in range(workers)
            for start in range(begin + cycle * periods * PERIOD, begin + (cycle + 1) * periods * PERIOD, PERIOD)
        ]
        for cycle in range(cycles)
    ]  # fmt: skip


def document_of(row: PendingSample) -> Document:
    document: Document = {"worker_id": row.worker_id, "timestamp": to_datetime(row.start), "region": row.region}
    document |= {"cpu_utilization": row.cpu, "memory_utilization": row.memory}
    return document if row.status is None else document | {"active_labs_count": row.active_labs, "status": row.status}


def batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """Yield copies, because insert_many adds an _id to each document."""
    for first in range(0, len(documents), BATCH_SAMPLES):
        yield [dict(document) for document in documents[first : first + BATCH_SAMPLES]]


async def empty_history(database: Database) -> None:
    await database.client.drop_database(database.name)
    await database.create_collection(DEFAULT_COLLECTION, timeseries=TIMESERIES_OPTIONS, expireAfterSeconds=30 * DAY)
    await database[DEFAULT_COLLECTION].create_index([("worker_id", 1), ("timestamp", 1)])


async def stored(database: Database, wanted: int) -> None:
    """Check that the history has exactly so many samples."""
    found = await database[DEFAULT_COLLECTION].count_documents({})
    if found != wanted:
        raise RuntimeError(f"the history has {found} samples instead of {wanted}")


# -- the mirror


async def bare_insert(database: Database, inserts: Sequence[Sequence[list[Document]]]) -> None:
    """Insert the batches of each cycle, durably, as one would without the exporter."""
    history = database[DEFAULT_COLLECTION].with_options(write_concern=WriteConcern("majority", j=True))
    for cycle in inserts:
        for batch in cycle:
            await history.insert_many(batch, ordered=False)


async def mirror_cost(mongod: Mongod, uri: str, cycles: Sequence[Sequence[PendingSample]]) -> Cost:
    """Return what the mirror takes to move the rows of each cycle; filling the outbox is not measured."""
    client, database = connect_uri(uri)
    spent: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder, closing(OutboxThread(Outbox(Path(folder), PERIOD))) as thread:
        async with client:
            history, telemetry = WorkerMetricsRepository(database), Telemetry(CollectorRegistry())
            lease = Lease(database, owner="bench", ttl=300)  # renewed in time however busy the machine is
            watch = HistoryWatch(HistoryMarker(history.collection), thread, telemetry, lambda: None)
            mirror = Mirror(thread, history.writer, lease, telemetry, watch=watch)
            await lease.acquire_or_renew()
            renewing = asyncio.create_task(keep_renewed(lease))
            await mirror.step()

            async def drain() -> None:
                while await mirror.step():
                    pass

            for rows in cycles:
                with thread.outbox.transaction():
                    thread.outbox.open(rows)
                spent.append(await cost(mongod, drain()))
            renewing.cancel()
    return Cost(*(sum(getattr(each, name) for each in spent) for name in ("cpu", "wall", "mongod")))


async def compare_mirror(mongod: Mongod, uri: str, cycles: Sequence[Sequence[PendingSample]], repeat: int) -> Costs:
    """Return what the bare insert_many and the mirror take for the same samples, alternately `repeat` times."""
    costs: Costs = {"insert_many": [], "mirror": []}
    documents = [[document_of(row) for row in rows] for rows in cycles]
    async with AsyncMongoClient[Document](uri, tz_aware=True) as client:
        database = client.get_default_database()
        for _ in range(repeat):
            await empty_history(database)
            inserts = [list(batches(each)) for each in documents]
            costs["insert_many"].append(await cost(mongod, bare_insert(database, inserts)))
            del inserts
            await stored(database, sum(map(len, cycles)))
            await empty_history(database)
            costs["mirror"].append(await mirror_cost(mongod, uri, cycles))
            await stored(database, sum(map(len, cycles)))
    return costs


# -- the backfill


class BareClient:
    """Makes the GetMetricData calls of a backfill, signed by botocore, and inserts what they return."""

    def __init__(self, url: str, workers: int, start: int, end: int) -> None:
        self._url, self._start, self._end = url, start, end
        self._credentials, self._http = Credentials("bench", "bench"), urllib3.PoolManager(maxsize=CALLS_AT_ONCE)
        together = min(MAX_QUERIES, 100_800 * PERIOD // (end - start)) // 2
        self._calls = [range(first, min(first + together, workers)) for first in range(0, workers, together)]

    async def run(self, database: Database) -> None:
        """Poll and insert; up to three calls run at once, each in a thread."""
        at_once = asyncio.Semaphore(CALLS_AT_ONCE)

        async def call(numbers: range) -> None:
            async with at_once:
                documents = await asyncio.to_thread(self._fetch, numbers)
            await bare_insert(database, [list(batches(documents))])

        await asyncio.gather(*(call(numbers) for numbers in self._calls))

    def _fetch(self, numbers: range) -> list[Document]:
        """Return the documents of some workers."""
        found: dict[tuple[int, float], Document] = {}
        for number, metric, times, values in self._answers(numbers):
            for at, value in zip(times, values, strict=True):
                document = found.get((number, at))
                if document is None:
                    document = {"worker_id": f"w{number:05d}", "timestamp": to_datetime(at), "region": REGION}
                    found[number, at] = document
                document[metric] = value
        return [found[key] for key in sorted(found)]

    def _answers(self, numbers: range) -> Iterator[tuple[int, str, list[float], list[float]]]:
        """Yield worker, field, times and values of each query."""
        queries: list[Document] = []
        meanings: list[tuple[int, str]] = []
        for number in numbers:
            for field, namespace, name, dimensions in _metrics(number):
                metric = {"Namespace": namespace, "MetricName": name, "Dimensions": dimensions}
                stat = {"Metric": metric, "Period": PERIOD, "Stat": "Average"}
                queries.append({"Id": f"q{len(queries)}", "MetricStat": stat})
                meanings.append((number, field))
        body = orjson.dumps({"MetricDataQueries": queries, "StartTime": self._start, "EndTime": self._end})
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": "GraniteServiceVersion20100801.GetMetricData",
        }
        request = AWSRequest("POST", self._url, headers=headers, data=body)
        SigV4Auth(self._credentials, "monitoring", REGION).add_auth(request)
        answer = self._http.request("POST", self._url, body=body, headers=dict(request.headers.items()))
        if answer.status != 200:
            raise RuntimeError(f"the fake CloudWatch answered {answer.status}: {answer.data[:200]!r}")
        for result in orjson.loads(answer.data)["MetricDataResults"]:
            yield *meanings[int(result["Id"][1:])], result["Timestamps"], result["Values"]


def _metrics(number: int) -> Iterator[tuple[str, str, str, list[Document]]]:
    """Yield field, namespace, name and dimensions of the series of a worker of `tests.helpers.fake_cloudwatch.fleet`."""
    own = {"Name": "InstanceId", "Value": instance_id(number)}
    yield "cpu_utilization", "AWS/EC2", "CPUUtilization", [own]
    if number % 50 != 49:
        others = {"ImageId": "ami-0c", "InstanceType": "m5.2xlarge"} if number % 10 else {}
        further = [{"Name": name, "Value": value} for name, value in others.items()]
        yield "memory_utilization", "CWAgent", "mem_used_percent", [*further[:1], own, *further[1:]]


@contextmanager
def fake_cloudwatch(workers: int) -> Iterator[str]:
    """Run a fake CloudWatch in a process of its own, which has always had these workers' instances; yields its URL."""
    words = [sys.executable, "-m", "tests.helpers.fake_cloudwatch", "--workers", str(workers), "--regions", REGION]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def backfill(settings: Settings, since: int) -> None:
    """Run the command; raises RuntimeError where it leaves something."""
    out, err = io.StringIO(), io.StringIO()
    if await command.run(settings, Options(since, str(since)), out, err, GracefulStop()) != 0:
        raise RuntimeError(out.getvalue() + err.getvalue())


async def compare_backfill(mongod: Mongod, uri: str, workers: int, days: int, repeat: int) -> Costs:
    """Return what the command and the bare client take for the same calls and samples, alternately `repeat` times."""
    costs: Costs = {"bare client": [], "backfill": []}
    with fake_cloudwatch(workers) as url:
        os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench")
        async with AsyncMongoClient[Document](uri, tz_aware=True) as client:
            database = client.get_default_database()
            for _ in range(repeat):
                end = align(int(time.time()) - DAY, PERIOD)
                start = end - days * DAY
                await empty_history(database)
                costs["bare client"].append(await cost(mongod, BareClient(url, workers, start, end).run(database)))
                await stored(database, workers * days * DAY // PERIOD)
                await empty_history(database)
                members = [Member(f"w{k:05d}", instance_id(k), REGION, start - DAY) for k in range(workers)]
                await database["workers"].insert_many([member.aggregate() for member in members])
                with tempfile.TemporaryDirectory() as folder:
                    tree = {"mongodb": {"uri": uri}, "cloudwatch": {"endpoint_url": url}, "data_dir": folder}
                    costs["backfill"].append(await cost(mongod, backfill(Settings.model_validate(tree), start)))
                found = await database[DEFAULT_COLLECTION].count_documents({})
                if abs(found - workers * days * DAY // PERIOD) > 3 * workers:  # the command's window moves with the clock
                    raise RuntimeError(f"the backfill wrote {found} samples")
    return costs


# -- the report


def median(costs: Sequence[Cost], name: str) -> float:
    return float(statistics.median(getattr(each, name) for each in costs))


def show(title: str, costs: Mapping[str, Sequence[Cost]]) -> None:
    """Print the medians, and the ratios to the first way."""
    print(title)
    first = next(iter(costs.values()))
    for way, runs in costs.items():
        cells = [f"{name} {median(runs, name):6.2f} s ({median(runs, name) / median(first, name):5.2f} x)" for name in NAMES]
        print(f"  {way:12} {', '.join(cells)}", flush=True)


NAMES = ("cpu", "wall", "mongod")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000, help="workers of the backlog")
    parser.add_argument("--periods", type=int, default=100, help="periods of each of them")
    parser.add_argument("--cycles", type=int, default=10, help="cycles of the live samples, as many in all as in the backlog")
    parser.add_argument("--days", type=int, default=1, help="days of the backfill, of 350 workers")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=("backlog", "live", "backfill"))
    options = parser.parse_args()
    logs.configure("error", "logfmt")
    samples = options.workers * options.periods

    def wanted(what: str) -> bool:
        return options.only in (None, what)

    with mongod_of_bench() as (mongod, uri, _):

        def mirror(cycles: Sequence[Sequence[PendingSample]]) -> Costs:
            return asyncio.run(compare_mirror(mongod, uri, cycles, options.repeat))

        if wanted("backlog"):
            show(f"backlog, {samples:,} samples", mirror(cycles_of(options.workers, options.periods, 1)))
        if wanted("live"):
            live = cycles_of(samples // options.cycles, 1, options.cycles)
            show(f"live, {options.cycles} cycles of {samples // options.cycles:,} samples", mirror(live))
        if wanted("backfill"):
            periods = options.days * DAY // PERIOD
            whole = asyncio.run(compare_backfill(mongod, uri, 350, options.days, options.repeat))
            show(f"backfill, {350 * periods:,} samples", whole)
            show("  of it the insert part", mirror(cycles_of(350, periods, 1, observed=False)))


if __name__ == "__main__":
    main()
