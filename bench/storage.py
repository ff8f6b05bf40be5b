"""Row `storage`: the disk that a sample takes in MongoDB, with its index.

Days of a fleet are inserted as they come: period after period, one sample of each worker, through a retryable majority write as
the mirror's. The utilizations are random numbers with all their digits, so they compress worse than those of real workers.
"""

import random
import time
from collections.abc import Iterator

from pymongo import MongoClient, WriteConcern
from pymongo.collection import Collection

from bench.context import Context
from bench.figures import Figure
from bench.history import DAYS, HISTORY, PERIOD, Document, create, database, worker_id
from bench.reads import stand
from exporter.core.periods import DAY, align, to_datetime

BATCH = 10_000
LONG_DAYS = 10
"""Days of the smallest fleet, in which MongoDB reuses the space of what it has written anew."""


def storage(context: Context) -> Iterator[Figure]:
    """Row `storage`: a day of each fleet and more of the smallest as they come, and 30 days written worker by worker."""
    for workers, days in [*((workers, 1) for workers in context.sizes), (context.sizes[0], LONG_DAYS)]:
        with database(replica_set=True) as (_, uri, _), MongoClient[Document](uri, tz_aware=True) as client:
            context.progress(f"{days} days of {workers:,} workers")
            collection = fill(client, workers, days)
            samples = days * workers * DAY // PERIOD
            length = "a day" if days == 1 else f"{days} days"
            yield from size(collection, f"{workers:,} workers, {length}, as they come", samples)
    for wanted in context.samples:
        here = stand(context, wanted)
        samples = here.collection.count_documents({})
        yield from size(here.collection, f"{here.case}, {DAYS} days, worker by worker", samples)


def size(collection: "Collection[Document]", case: str, samples: int) -> Iterator[Figure]:
    """Yield what so many samples take, after a checkpoint."""
    collection.database.client.admin.command("fsync")
    (found,) = collection.aggregate([{"$collStats": {"storageStats": {}}}])
    stats = found["storageStats"]
    yield Figure("storage", case, "data of a sample", "MongoDB", "bytes", (stats["storageSize"] / samples,))
    yield Figure("storage", case, "indexes of a sample", "MongoDB", "bytes", (stats["totalIndexSize"] / samples,))
    yield Figure("storage", case, "samples in a bucket", "MongoDB", "", (samples / stats["timeseries"]["bucketCount"],))


def fill(client: "MongoClient[Document]", workers: int, days: int) -> "Collection[Document]":
    """Insert days period by period; return the collection."""
    collection = client.bench[HISTORY].with_options(write_concern=WriteConcern("majority", j=True))
    create(collection)
    dice, end = random.Random(1), align(int(time.time()), DAY)
    for at in range(end - days * DAY, end, PERIOD):
        stamp = to_datetime(at)
        for first in range(0, workers, BATCH):
            collection.insert_many(
                [
                    {
                        "worker_id": worker_id(number),
                        "timestamp": stamp,
                        "region": "eu-west-1",
                        "cpu_utilization": dice.random() * 100,
                        "memory_utilization": dice.random() * 100,
                        "active_labs_count": number % 5,
                        "status": "running",
                    }
                    for number in range(first, min(first + BATCH, workers))
                ],
                ordered=False,
            )
    return collection
