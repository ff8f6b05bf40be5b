"""Compares PromQL over the history with pymongo: all workers for a day, one worker for 30 days, 30 days of hourly aggregates.

    python -m bench.remote_read [--workers 1000] [--repeat 9]

Starts a mongod, an exporter, and a Prometheus. "pymongo" decodes the same documents, projected to the necessary fields, into
Python objects. The measurements alternate; the figures are medians and ratios.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import cramjam
import httpx
from pymongo import MongoClient
from pymongo.collection import Collection

from bench.history import DAYS, HISTORY, INVENTORY, Document, database, exporter_process, fill, inventory, measure, worker_id
from exporter.core.periods import DAY, HOUR, align, to_datetime
from exporter.demo import prometheus as prometheus_module
from exporter.demo.prometheus import INSTALL, SOURCE
from exporter.history.series import MAX_WORKER_DAYS
from tests.helpers import prompb
from tests.helpers.prometheus import Prometheus

CPU = "cml_worker_cpu_utilization_ratio"
CPU_1H = "cml_worker:cpu_utilization_ratio:avg1h"
MAX_HOURLY_WORKERS = MAX_WORKER_DAYS // (DAYS + 1)
"""Workers above which the exporter refuses a query of hourly aggregates of 30 days, which begin within a day."""


def run(workers: int, repeat: int) -> None:
    """Fill the database, start the exporter and Prometheus, measure, and print."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit(f"prometheus is not on PATH; {INSTALL}")
    end = align(int(time.time()), HOUR)
    with database() as (_, uri, folder), MongoClient[Document](uri, tz_aware=True) as client:
        history = client.bench[HISTORY]
        fill(history, workers, end)
        client.bench[INVENTORY].insert_many(inventory(workers, end))
        exporter = exporter_process(uri, folder)
        exporter.start()
        configuration = prometheus_module.configuration(SOURCE, exporter.url.removeprefix("http://"))
        prometheus = Prometheus(program, folder / "prometheus", configuration)
        try:
            with httpx.Client(base_url=exporter.url, trust_env=False, timeout=60) as http:
                report(timings(http, prometheus, history, workers, end, repeat))
        finally:
            prometheus.stop()
            exporter.stop()


def timings(
    http: httpx.Client,
    prometheus: Prometheus | None,
    history: "Collection[Document]",
    workers: int,
    end: int,
    repeat: int,
    say: Callable[[str], None] = print,
) -> dict[str, list[float]]:
    """Return the seconds of remote read, of PromQL over it if there is a Prometheus, and of the same documents by pymongo."""
    one = worker_id(workers // 2)

    def documents(seconds: int, **match: str) -> Callable[[], int]:
        window = {"$gte": to_datetime(end - seconds), "$lt": to_datetime(end)}
        projection = {"_id": 0, "timestamp": 1, "worker_id": 1, "cpu_utilization": 1}
        return lambda: len(list(history.find({"timestamp": window, **match}, projection)))

    def remote_read(seconds: int, *matchers: tuple[str, str, str]) -> Callable[[], int]:
        body = prompb.request(((end - seconds) * 1000, end * 1000 - 1, [("__name__", "=", CPU), *matchers]))

        def post() -> bytes:
            response = http.post("/api/v1/read", content=body)
            response.raise_for_status()
            return response.content

        def size() -> int:
            return int(cramjam.snappy.decompress_raw_len(post()))  # the series may come in another order

        (found,) = prompb.parse_response(post())  # parsed once; later only its length is compared, as parsing is not measured
        samples, expected = sum(map(len, found.values())), size()
        return lambda: samples if size() == expected else -1

    def promql(prometheus: Prometheus, seconds: int, selector: str = "") -> Callable[[], int]:
        query = f'sum(count_over_time({CPU}{{store="history"{selector}}}[{seconds}s]))'
        return lambda: int(prometheus.value(query, end - 1))

    def hourly(prometheus: Prometheus, seconds: int) -> Callable[[], int]:
        query = f'sum(count_over_time({CPU_1H}{{store="history"}}[{seconds}s] offset -1s))'
        return lambda: int(prometheus.value(query, end))

    queries = {
        "all, 24 h: pymongo": documents(DAY),
        "all, 24 h: remote read": remote_read(DAY),
        "one, 30 d: pymongo": documents(DAYS * DAY, worker_id=one),
        "one, 30 d: remote read": remote_read(DAYS * DAY, ("worker_id", "=", one)),
    }
    if prometheus:
        queries |= {
            "all, 24 h: Prometheus": promql(prometheus, DAY),
            "one, 30 d: Prometheus": promql(prometheus, DAYS * DAY, f',worker_id="{one}"'),
        }
    if prometheus and workers <= MAX_HOURLY_WORKERS:
        began = time.perf_counter()
        hourly(prometheus, DAYS * DAY)()
        say(f"all, {DAYS} d hourly, cold cache: {time.perf_counter() - began:.1f} s")
        queries["all, 30 d hourly: Prometheus"] = hourly(prometheus, DAYS * DAY)
    return measure(queries, repeat, say)


def report(took: Mapping[str, Sequence[float]]) -> None:
    """Print the ratios."""
    middle = {name: statistics.median(times) for name, times in took.items()}
    for what in ("all, 24 h", "one, 30 d"):
        for how in ("remote read", "Prometheus"):
            print(f"{what}: {how:12} / pymongo  {middle[f'{what}: {how}'] / middle[f'{what}: pymongo']:.2f}")
    ratio = middle["all, 30 d hourly: Prometheus"] / middle["all, 24 h: pymongo"]
    print(f"all, 30 d hourly, warm cache: Prometheus / all, 24 h: pymongo  {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    run(options.workers, options.repeat)


if __name__ == "__main__":
    main()
