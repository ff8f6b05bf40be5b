"""Compares the history API with the queries that it runs: one worker, 30 days of 5 minutes, in a collection of many workers.

    python -m bench.history [--workers 1000] [--repeat 15]

Starts a mongod and an exporter process (without CloudWatch; its JSON is not parsed). pymongo, in this process, decodes the same
samples into Python objects. The measurements alternate, so that a busy machine slows all of them; the figures are medians and
ratios.
"""

import argparse
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pymongo import MongoClient
from pymongo.collection import Collection

from exporter.core.periods import DAY, HOUR, align, to_datetime
from exporter.demo.mongod import Mongod
from exporter.demo.ports import free_port
from tests.helpers.exporter_process import ExporterProcess

PERIOD, DAYS = 300, 30
HISTORY, INVENTORY = "worker_metrics_timeseries", "worker_metrics_inventory"
FIELDS = ("cpu_utilization", "memory_utilization", "active_labs_count")
Document = dict[str, Any]
PLAIN = {"Accept-Encoding": "identity"}
"""Headers of a client for which nothing is compressed: MongoDB's answer is not, either."""


def create(history: "Collection[Document]", days: int | None = None) -> None:
    """Create the time series with its index, as the exporter does; samples expire after so many days, None: never."""
    expiry = {} if days is None else {"expireAfterSeconds": days * DAY}
    options: Document = {"timeseries": {"timeField": "timestamp", "metaField": "worker_id", "granularity": "minutes"}, **expiry}
    history.database.create_collection(history.name, **options)
    history.create_index([("worker_id", 1), ("timestamp", 1)])


def fill(history: "Collection[Document]", workers: int, end: int) -> None:
    """Insert every sample of every worker until UTC second `end`; each worker is stopped for a few hours of some nights."""
    create(history, DAYS + 1)
    dice = random.Random(1)
    stamps = [to_datetime(at) for at in range(end - DAYS * DAY, end, PERIOD)]
    for number in range(workers):
        history.insert_many(
            [
                {
                    "worker_id": worker_id(number),
                    "timestamp": stamp,
                    "region": "eu-west-1",
                    "cpu_utilization": dice.random() * 100,
                    "memory_utilization": dice.random() * 100,
                    "active_labs_count": n % 5,
                    "status": "stopped" if n // 36 % 16 == 0 else "running",
                }
                for n, stamp in enumerate(stamps)
            ],
            ordered=False,
        )


def worker_id(number: int) -> str:
    return f"worker-{number:05d}"


def inventory(workers: int, end: int) -> list[Document]:
    first, last = to_datetime(end - DAYS * DAY), to_datetime(end)
    return [
        {
            "_id": worker_id(number),
            "worker_id": worker_id(number),
            "name": f"cml {number}",
            "region": "eu-west-1",
            "status": "running",
            "first_seen": first,
            "last_seen": last,
            "instances": [{"id": f"i-{number:017x}", "region": "eu-west-1", "from": first, "to": last}],
        }
        for number in range(workers)
    ]


def bare_hours(match: Document) -> list[Document]:
    """Return the pipeline that one would write by hand: avg, min, and max of each metric per hour."""
    group: Document = {"_id": {"$dateTrunc": {"date": "$timestamp", "unit": "hour"}}}
    for field in FIELDS:
        group |= {f"{field}_{how}": {f"${how}": f"${field}"} for how in ("avg", "min", "max")}
    return [{"$match": match}, {"$group": group}, {"$sort": {"_id": 1}}]


def exporter_process(uri: str, folder: Path) -> ExporterProcess:
    """Return an exporter without CloudWatch, not yet started."""
    return ExporterProcess(folder / "exporter", {"mongodb": {"uri": uri}, "cloudwatch": {"enabled": False}}, {})


def measure(
    queries: Mapping[str, Callable[[], int]], repeat: int, say: Callable[[str], None] = print
) -> dict[str, list[float]]:
    """Run all queries alternately and say their times; each returns its number of rows, which must not change."""
    took: dict[str, list[float]] = {name: [] for name in queries}
    rows = {name: query() for name, query in queries.items()}  # warms caches and connections
    for _ in range(repeat):
        for name, query in queries.items():
            began = time.perf_counter()
            count = query()
            took[name].append(time.perf_counter() - began)
            if count != rows[name]:
                raise RuntimeError(f"{name}: {count} rows after {rows[name]}")
    for name, times in took.items():
        say(f"{name:28} {statistics.median(times) * 1e3:7.1f} ms median, {min(times) * 1e3:6.1f} best, {rows[name]:5} rows")
    return took


def buckets_read(history: "Collection[Document]", match: Document) -> str:
    """Return how mongod finds the samples: the index, and the number of buckets read."""
    plan = history.database.command(
        "explain",
        {"aggregate": history.name, "pipeline": bare_hours(match), "cursor": {}},
        verbosity="executionStats",
    )
    text = json.dumps(plan, default=str)
    names = sorted(set(re.findall(r'"indexName": "([^"]+)"', text)))
    examined = max(map(int, re.findall(r'"totalDocsExamined": (\d+)', text)), default=0)
    return f"{', '.join(names) or 'no index'}; {examined} buckets read"


@contextmanager
def database(*, replica_set: bool = False) -> Iterator[tuple[Mongod, str, Path]]:
    """Run a mongod that deletes nothing by itself; yields it, the URI of its database `bench`, and a folder that is removed."""
    parameters = {"ttlMonitorEnabled": "false"}
    with (
        tempfile.TemporaryDirectory() as name,
        Mongod(Path(name, "mongo"), free_port(), replica_set=replica_set, parameters=parameters) as mongod,
    ):
        yield mongod, mongod.uri.replace("/?", "/bench?"), Path(name)


def run(workers: int, repeat: int) -> None:
    """Fill the database, start the exporter, measure, and print."""
    end = align(int(time.time()), HOUR)
    with database() as (_, uri, folder), MongoClient[Document](uri, tz_aware=True) as client:
        history = client.bench[HISTORY]
        began = time.perf_counter()
        fill(history, workers, end)
        client.bench[INVENTORY].insert_many(inventory(workers, end))
        print(f"{workers} workers, {workers * DAYS * DAY // PERIOD:,} samples, filled in {time.perf_counter() - began:.0f} s")
        chosen = worker_id(workers // 2)
        match = {
            "worker_id": chosen,
            "timestamp": {"$gte": to_datetime(end - DAYS * DAY), "$lt": to_datetime(end)},
        }
        print(f"index: {buckets_read(history, match)}")
        exporter = exporter_process(uri, folder)
        exporter.start()
        try:
            with httpx.Client(base_url=exporter.url, trust_env=False, timeout=60, headers=PLAIN) as http:
                report(timings(http, history, match, chosen, end, repeat))
        finally:
            exporter.stop()


def timings(
    http: httpx.Client,
    history: "Collection[Document]",
    match: Document,
    worker: str,
    end: int,
    repeat: int,
    say: Callable[[str], None] = print,
) -> dict[str, list[float]]:
    """Return the seconds of the API's answers about one worker, and of the queries that it runs."""
    path = f"/api/workers/{worker}/metrics/history"
    window = {"start": str(end - DAYS * DAY), "end": str(end)}

    def pages(**parameters: str) -> int:
        rows, cursor = 0, ""
        while True:
            response = http.get(path, params={**window, **parameters, **({"cursor": cursor} if cursor else {})})
            response.raise_for_status()
            rows += response.content.count(b'"timestamp"')
            cursor = response.headers.get("x-next-cursor", "")
            if not cursor:
                return rows

    projection = {"_id": 0, "timestamp": 1, **dict.fromkeys(FIELDS, 1), "status": 1}
    return measure(
        {
            "bare find": lambda: len(list(history.find(match).sort("timestamp", 1))),
            "bare find, projected": lambda: len(list(history.find(match, projection).sort("timestamp", 1))),
            "API raw, limit=10000": lambda: pages(limit="10000"),
            "API raw, 9 pages of 1000": lambda: pages(limit="1000"),
            "API raw, CSV": lambda: rows_of_csv(http, path, window),
            "bare hourly pipeline": lambda: len(list(history.aggregate(bare_hours(match)))),
            "API hourly": lambda: pages(interval="1h"),
            "API daily": lambda: pages(interval="1d"),
        },
        repeat,
        say,
    )


def report(took: Mapping[str, Sequence[float]]) -> None:
    """Print the ratios."""
    middle = {name: statistics.median(times) for name, times in took.items()}
    print(f"raw  / bare find               {middle['API raw, limit=10000'] / middle['bare find']:.2f}")
    print(f"raw  / bare find, projected    {middle['API raw, limit=10000'] / middle['bare find, projected']:.2f}")
    print(f"hourly / bare pipeline         {middle['API hourly'] / middle['bare hourly pipeline']:.2f}")


def rows_of_csv(http: httpx.Client, path: str, window: Mapping[str, str]) -> int:
    response = http.get(path, params={**window, "limit": "10000", "format": "csv"})
    response.raise_for_status()
    return response.content.count(b"\r\n") - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=15)
    options = parser.parse_args()
    run(options.workers, options.repeat)


if __name__ == "__main__":
    main()
