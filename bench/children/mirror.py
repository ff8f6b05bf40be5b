"""Own CPU and wall time of the mirror, and of insert_many with the same documents, alternately.

    python mirror.py URI COLLECTION WORKERS PERIODS REPEAT FOLDER

The outbox is filled before the time counts: as many final samples as WORKERS × PERIODS. Each repetition uses periods of its
own, later than the newest in the collection, so that neither finds what the other has written. insert_many has the mirror's
write concern and batches; it makes the documents of each batch from the same samples. The garbage collector runs as seldom as
in `serve` (`core.heap`), for both.
Prints {"mirror": {"cpu": […], "wall": […]}, "insert": …}.
"""

import asyncio
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from pymongo import MongoClient, WriteConcern

from exporter.core import logs
from exporter.core.periods import HOUR, align, to_datetime
from exporter.core.settings_loader import load
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.lifecycle import PendingSample
from exporter.pipeline.mirror import BATCH_SAMPLES, Mirror
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.storage.lease import Lease
from exporter.storage.mongo import connect
from exporter.storage.repository import repository

PERIOD = 300


def pending(workers: int, periods: int, begin: int) -> list[PendingSample]:
    """Return final samples of workers that the collection has, worker by worker."""
    return [
        PendingSample(
            f"worker-{number:05d}",
            begin + n * PERIOD,
            "eu-west-1",
            (f"i-{number:017x}",),
            "running",
            number % 5,
            cpu=(number * 7 + n) % 1000 / 10,
            memory=(number * 11 + n) % 1000 / 10,
            final=True,
        )
        for number in range(workers)
        for n in range(periods)
    ]


def documents(samples: list[PendingSample]) -> list[dict[str, Any]]:
    """Return what the mirror inserts for these samples."""
    return [
        {
            "worker_id": each.worker_id,
            "timestamp": to_datetime(each.start),
            "region": each.region,
            "cpu_utilization": each.cpu,
            "memory_utilization": each.memory,
            "active_labs_count": each.active_labs,
            "status": each.status,
        }
        for each in samples
    ]


async def mirror(uri: str, folder: Path, samples: list[PendingSample]) -> tuple[float, float]:
    """Return CPU and wall seconds of moving samples from a new outbox into the history."""
    settings = load(None, {"CML_EXPORTER_MONGODB__URI": uri, "CML_EXPORTER_DATA_DIR": str(folder)})
    client, database = connect(settings)
    outbox = Outbox(folder, settings.period)
    with outbox.transaction():
        outbox.open(samples)
    history = repository(settings, database, settings.mongodb.history or "")
    lease, telemetry = Lease(database, owner="bench"), Telemetry(CollectorRegistry())
    step = Mirror(OutboxThread(outbox), history.writer, lease, telemetry, wall=time.time).step
    await history.ensure_collection()
    await lease.acquire_or_renew()
    wall, cpu = time.perf_counter(), time.process_time()
    while await step():
        pass
    took = time.process_time() - cpu, time.perf_counter() - wall
    left = outbox.counts()
    await client.close()
    outbox.close()
    if any(left.values()) or telemetry.mirrored != len(samples):
        raise RuntimeError(f"mirrored {telemetry.mirrored} of {len(samples)} samples; the outbox has {left}")
    return took


def insert(uri: str, collection: str, samples: list[PendingSample]) -> tuple[float, float]:
    """Return CPU and wall seconds of insert_many in batches of the mirror's size."""
    with MongoClient[dict[str, Any]](uri) as client:
        concern = WriteConcern("majority", j=True)
        target = client.get_default_database().get_collection(collection, write_concern=concern)
        wall, cpu = time.perf_counter(), time.process_time()
        for first in range(0, len(samples), BATCH_SAMPLES):
            target.insert_many(documents(samples[first : first + BATCH_SAMPLES]), ordered=False)
        return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    uri, collection, *numbers, folder = sys.argv[1:]
    workers, periods, repeat = map(int, numbers)
    logs.configure("error", "logfmt")
    took: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in ("mirror", "insert")}
    with MongoClient[dict[str, Any]](uri) as client:
        newest = client.get_default_database()[collection].find_one({}, sort=[("timestamp", -1)])
    begin = align(int((newest["timestamp"].timestamp() if newest else time.time()) + HOUR), PERIOD)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 20)  # not by the exporter's function: an older checkout that is measured lacks it
    for number in range(repeat + 1):  # the first one warms up
        for name in took:
            samples = pending(workers, periods, begin)
            begin += periods * PERIOD
            if name == "mirror":
                cpu, wall = asyncio.run(mirror(uri, Path(f"{folder}_{number}"), samples))
            else:
                cpu, wall = insert(uri, collection, samples)
            if number:
                took[name]["cpu"].append(cpu)
                took[name]["wall"].append(wall)
    print(json.dumps(took))


if __name__ == "__main__":
    main()
