"""Find samples that are stored twice: a time-series collection has no unique index that would refuse them."""

from collections.abc import Sequence
from typing import NamedTuple

from exporter.core.periods import to_datetime
from exporter.storage.collection import HistoryCollection
from exporter.storage.mongo import Document, chunks
from exporter.storage.sample_reader import SampleReader

_WORKERS_PER_QUERY = 1000
"""A day of them is grouped in a quarter of a second, and within the 100 MB that MongoDB allows a stage."""


class DuplicatedTime(NamedTuple):
    """A time of which a worker has more than one sample."""

    time: int
    """Milliseconds since 1970."""
    samples: int
    """How many there are, at least two."""


async def count_duplicates(
    collection: HistoryCollection, start: int, end: int, worker_ids: Sequence[str] | None = None
) -> dict[str, int]:
    """Return how many samples of each worker are copies of others, without the workers that have none.

    Args:
        collection: the history.
        start: of the range searched, inclusive, in UTC seconds.
        end: exclusive.
        worker_ids: of the workers searched; None: all.

    Raises:
        StoreError: or one of its kinds.
    """
    if worker_ids is None:
        worker_ids = await SampleReader(collection).workers(start, end)
    found: dict[str, int] = {}
    for ids in chunks(sorted(set(worker_ids)), _WORKERS_PER_QUERY):
        pipeline: list[Document] = [
            {"$match": {"worker_id": {"$in": list(ids)}, "timestamp": _between(start, end)}},
            {"$group": {"_id": "$worker_id", "samples": {"$sum": 1}, "times": {"$addToSet": "$timestamp"}}},
            {"$project": {"copies": {"$subtract": ["$samples", {"$size": "$times"}]}}},
            {"$match": {"copies": {"$gt": 0}}},
        ]
        async with collection.operation("find"):
            cursor = await collection.samples.aggregate(pipeline, allowDiskUse=True)
            found |= {row["_id"]: row["copies"] async for row in cursor}
    return found


async def duplicated_times(collection: HistoryCollection, worker_id: str, start: int, end: int) -> list[DuplicatedTime]:
    """Return the times in [start, end) UTC seconds of which a worker has several samples, oldest first.

    Raises:
        StoreError: or one of its kinds.
    """
    pipeline: list[Document] = [
        {"$match": {"worker_id": worker_id, "timestamp": _between(start, end)}},
        {"$group": {"_id": {"$toLong": "$timestamp"}, "samples": {"$sum": 1}}},
        {"$match": {"samples": {"$gt": 1}}},
        {"$sort": {"_id": 1}},
    ]
    async with collection.operation("find"):
        cursor = await collection.samples.aggregate(pipeline, allowDiskUse=True)
        return [DuplicatedTime(row["_id"], row["samples"]) async for row in cursor]


def _between(start: int, end: int) -> Document:
    return {"$gte": to_datetime(start), "$lt": to_datetime(end)}
