"""A day by hour of many workers: with the library, and in one aggregate by hand, alternately.

    python statistics.py URI COLLECTION WORKERS END REPEAT

Each repetition asks for another day, END going back day by day. Prints {"library": {"cpu": […], "wall": […]}, "bare": …}.
"""

import asyncio
import inspect
import json
import sys
import time
from datetime import timedelta
from typing import Any

from pymongo import MongoClient

from exporter import WorkerMetricsRepository
from exporter.core.periods import DAY, HOUR, to_datetime

FIELDS = ("cpu_utilization", "memory_utilization", "active_labs_count")


MANY = "Collection" in str(inspect.signature(WorkerMetricsRepository.get_aggregated_stats))
"""Whether this version of the library takes many workers at once."""


async def library(repository: Any, workers: list[str], end: int) -> int:  # noqa: ANN401  # of any version
    """Return the number of rows of the library's statistics: of all workers in one call where it can, else one by one."""
    window = to_datetime(end - DAY), to_datetime(end), timedelta(hours=1)
    if MANY:
        found = await repository.get_aggregated_stats(workers, *window)
        return sum(map(len, found.values()))
    return sum([len(await repository.get_aggregated_stats(worker, *window)) for worker in workers])


def bare(client: "MongoClient[dict[str, Any]]", collection: str, workers: list[str], end: int) -> int:
    """Return the number of rows of one aggregate that gives the same: average, minimum, maximum, count, by worker and hour."""
    group: dict[str, Any] = {
        "_id": {"worker": "$worker_id", "start": {"$dateTrunc": {"date": "$timestamp", "unit": "hour"}}},
        "samples": {"$sum": 1},
    }
    for field in FIELDS:
        group |= {f"{field}_{how}": {f"${how}": f"${field}"} for how in ("avg", "min", "max")}
    match = {"worker_id": {"$in": workers}, "timestamp": {"$gte": to_datetime(end - DAY), "$lt": to_datetime(end)}}
    return len(list(client.get_default_database()[collection].aggregate([{"$match": match}, {"$group": group}])))


async def run(uri: str, collection: str, workers: list[str], end: int, repeat: int) -> dict[str, dict[str, list[float]]]:
    """Measure both alternately; the first repetition warms up."""
    took: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in ("library", "bare")}
    with MongoClient[dict[str, Any]](uri) as client:
        async with WorkerMetricsRepository.connect(uri, collection=collection, retention=31 * DAY) as repository:
            for number in range(repeat + 1):
                rows = {}
                for name, values in took.items():
                    wall, cpu = time.perf_counter(), time.process_time()
                    if name == "library":
                        rows[name] = await library(repository, workers, end)
                    else:
                        rows[name] = bare(client, collection, workers, end)
                    if number:
                        values["cpu"].append(time.process_time() - cpu)
                        values["wall"].append(time.perf_counter() - wall)
                if rows["library"] != rows["bare"] or not rows["bare"]:
                    raise RuntimeError(f"rows differ: {rows}")
                end -= DAY
    return took


def main() -> None:
    uri, collection, *numbers = sys.argv[1:]
    workers, end, repeat = map(int, numbers)
    names = [f"worker-{number:05d}" for number in range(workers)]
    print(json.dumps(asyncio.run(run(uri, collection, names, end - end % HOUR, repeat))))


if __name__ == "__main__":
    main()
