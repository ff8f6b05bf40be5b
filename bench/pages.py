"""Measures what the fleet page costs the scrapes: scrape times while clients load `/` without a pause, against scrapes alone.

    python -m bench.pages [--workers 1000] [--readers 2] [--scrapes 300] [--page /]

Starts a mongod with worker documents and a day of history, and an exporter process (without CloudWatch). Scrapes alone and
scrapes beside readers alternate in blocks, so that a busy machine slows both; the figures are medians, 99th percentiles, and
their ratio.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
from pymongo import MongoClient

from bench.history import HISTORY, INVENTORY, Document, create, database, exporter_process, inventory, worker_id
from exporter.core.periods import DAY, HOUR, align, to_datetime

PERIOD = 300
BLOCKS = 6
"""Times that scrapes alone and scrapes beside readers take turns."""
PAUSE_SECONDS = 0.02
"""Between two scrapes: a scraper that never waits would measure only its own queue."""


def fill(client: "MongoClient[Document]", workers: int, end: int) -> None:
    """Insert worker documents, and a day of samples before UTC second `end`."""
    database = client.bench
    create(database[HISTORY])
    for number in range(workers):
        database[HISTORY].insert_many(
            [
                {
                    "worker_id": worker_id(number),
                    "timestamp": to_datetime(at),
                    "region": "eu-west-1",
                    "cpu_utilization": float((at // PERIOD + number) % 100),
                    "memory_utilization": 50.0,
                    "active_labs_count": number % 3,
                    "status": "running",
                }
                for at in range(end - DAY, end, PERIOD)
            ],
            ordered=False,
        )
    database.workers.insert_many(
        {
            "_id": worker_id(number),
            "name": f"cml {number}",
            "aws_region": "eu-west-1",
            "aws_instance_id": f"i-{number:017x}",
            "status": "running",
            "active_labs_count": number % 3,
            "cpu_utilization": float(number % 100),
        }
        for number in range(workers)
    )
    database[INVENTORY].insert_many(inventory(workers, end))


@contextmanager
def readers(url: str, count: int) -> Iterator[list[float]]:
    """Load a page without a pause in `count` threads; yields the list that the seconds of each load are added to."""
    stop, took = threading.Event(), list[float]()

    def read() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                began = time.perf_counter()
                client.get(url).raise_for_status()
                took.append(time.perf_counter() - began)

    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield took
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def scrape(client: httpx.Client, url: str, times: int) -> list[float]:
    """Return the seconds of some scrapes, compressed as Prometheus asks for them."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        with client.stream("GET", f"{url}/metrics", headers={"Accept-Encoding": "gzip"}) as response:
            response.raise_for_status()
            for _ in response.iter_raw():
                pass
        took.append(time.perf_counter() - began)
        time.sleep(PAUSE_SECONDS)
    return took


def line(name: str, took: Sequence[float]) -> str:
    """Return median and 99th percentile as text."""
    return f"{name:28} {statistics.median(took) * 1e3:7.1f} ms median, {_p99(took) * 1e3:7.1f} ms p99, {len(took):6} times"


def _p99(took: Sequence[float]) -> float:
    return statistics.quantiles(took, n=100)[98]


def timings(url: str, workers: int, count: int, scrapes: int, page: str) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of scrapes alone, of scrapes beside so many readers of a page, and of the page."""
    alone, beside, loads = list[float](), list[float](), list[float]()
    with httpx.Client(timeout=60) as client:
        while len(client.get(f"{url}/metrics").text) < 100 * workers:
            time.sleep(0.2)
        client.get(url + page).raise_for_status()  # warms the cache of the hours
        for _ in range(BLOCKS):
            alone += scrape(client, url, scrapes // BLOCKS)
            with readers(url + page, count) as took:
                beside += scrape(client, url, scrapes // BLOCKS)
            loads += took
    return alone, beside, loads


def run(workers: int, count: int, scrapes: int, page: str) -> None:
    """Fill the database, start the exporter, measure, and print."""
    end = align(int(time.time()), HOUR)
    with database() as (_, uri, folder):
        with MongoClient[Document](uri, tz_aware=True) as client:
            fill(client, workers, end)
        exporter = exporter_process(uri, folder)
        exporter.start()
        try:
            alone, beside, loads = timings(exporter.url, workers, count, scrapes, page)
        finally:
            exporter.kill()
    print(f"{workers} workers, {count} readers of {page}")
    print(line("scrape alone", alone))
    print(line("scrape beside the readers", beside))
    print(line("page", loads))
    ratio, ratio_p99 = statistics.median(beside) / statistics.median(alone), _p99(beside) / _p99(alone)
    print(f"ratio of the scrapes: {ratio:.2f} median, {ratio_p99:.2f} p99")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--readers", type=int, default=2, help="clients that load the page without a pause")
    parser.add_argument("--scrapes", type=int, default=300, help="of each kind")
    parser.add_argument("--page", default="/", help="path and query of the page")
    arguments = parser.parse_args()
    run(arguments.workers, arguments.readers, arguments.scrapes, arguments.page)
