"""Run aggregation pipelines on the history: of a time window, type-checked where that is needed, and for many workers."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from exporter.core.periods import as_utc, to_datetime
from exporter.storage.collection import HistoryCollection
from exporter.storage.mongo import Document, chunks
from exporter.storage.rows import StatisticsRow
from exporter.storage.statistics import statistics, statistics_pipeline

_BATCH_ROWS = 10_000
"""Rows of a cursor's batch."""
GROUPS_PER_QUERY = 24_000
"""Groups of one query of statistics of many workers: half of the 100 MB of $group."""

T = TypeVar("T")


def window(history: HistoryCollection, workers: str | Sequence[str], start: datetime, end: datetime) -> Document:
    """Match the samples of one worker, or of some, in [start, end).

    Those past retention are left out here: MongoDB expires whole buckets, and late.
    """
    low, oldest = as_utc(start), history.oldest
    if oldest is not None:
        low = max(low, to_datetime(oldest))
    ids = workers if isinstance(workers, str) else {"$in": list(workers)}
    return {"worker_id": ids, "timestamp": {"$gte": low, "$lt": as_utc(end)}}


async def aggregate(
    history: HistoryCollection, pipeline: Callable[..., list[Document]], decode: Callable[[list[bytes], bool], list[T] | None]
) -> list[T]:
    """Run a pipeline and decode its result; a second time type-checked where a value is non-numeric."""
    for type_checked in (False, True):
        async with history.operation("find"):
            cursor = await history.samples.aggregate_raw_batches(
                pipeline(type_checked=type_checked), allowDiskUse=True, batchSize=_BATCH_ROWS
            )
            batches: list[Any] = [batch async for batch in cursor]
            found = await asyncio.to_thread(decode, batches, type_checked)
        if found is not None:
            return found
    raise AssertionError("a type-checked result has only numbers")


async def fleet_statistics(
    history: HistoryCollection, worker_ids: Collection[str], start: datetime, end: datetime, interval: int
) -> AsyncGenerator[tuple[str, list[StatisticsRow]], None]:
    """Yield worker id and statistics of the samples in [start, end), as `SampleReader.statistics`, of workers that have any.

    As many workers share a query as fit into the memory of a $group; while one part is decoded, MongoDB reads the next.
    """
    rows_of_worker = max(1, math.ceil((end - start).total_seconds() / interval))
    ids = sorted(set(worker_ids))
    size = max(1, GROUPS_PER_QUERY // rows_of_worker)

    async def read(some: Sequence[str]) -> list[tuple[str, list[StatisticsRow]]]:
        match = window(history, some, start, end)
        return await aggregate(history, partial(statistics_pipeline, match, interval, by_worker=True), statistics)

    following: asyncio.Task[list[tuple[str, list[StatisticsRow]]]] | None = None
    try:
        for part in (*chunks(ids, size), None):
            found = await following if following else []
            following = asyncio.create_task(read(part)) if part else None
            for worker_id, of_worker in sorted(found):
                yield worker_id, of_worker
    finally:
        if following:
            following.cancel()
