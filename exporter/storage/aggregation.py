"""Run aggregation pipelines on the history: of a time window, type-checked where that is needed, and for many workers."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

from pymongo.asynchronous.collection import AsyncCollection

from exporter.core.distribution import Distribution
from exporter.core.periods import as_utc, to_datetime
from exporter.storage.collection import HistoryCollection
from exporter.storage.mongo import Document, chunks
from exporter.storage.statistics import IntervalColumns, statistics, statistics_pipeline

_BATCH_ROWS = 10_000
"""Rows of a cursor's batch."""
GROUPS_PER_QUERY = 24_000
"""Groups of one query of statistics of many workers: half of the 100 MB of $group."""
VALUES_PER_QUERY = 500_000
"""Samples of one query that returns all of their values, some 16 bytes each for each metric."""

QUERIES = 2
"""Queries of statistics of many workers that run at once."""

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
    history: HistoryCollection,
    samples: AsyncCollection[Document],
    pipeline: Callable[..., list[Document]],
    decode: Callable[..., list[T] | None],
) -> list[T]:
    """Run a pipeline and decode its result; a second time type-checked where a value is non-numeric.

    Args:
        history: the collection.
        samples: the same, with the read preference of the query.
        pipeline: returns the pipeline, given `type_checked`.
        decode: returns the result, given the batches and `type_checked`; None: it must be type-checked.
    """
    for type_checked in (False, True):
        found = await run(history, samples, pipeline(type_checked=type_checked), partial(decode, type_checked=type_checked))
        if found is not None:
            return found
    raise AssertionError("a type-checked result has only numbers")


async def run(
    history: HistoryCollection,
    samples: AsyncCollection[Document],
    pipeline: list[Document],
    decode: Callable[[list[bytes]], T],
) -> T:
    """Run a pipeline once and decode its raw batches, in a thread."""
    async with history.operation("find"):
        cursor = await samples.aggregate_raw_batches(pipeline, allowDiskUse=True, batchSize=_BATCH_ROWS)
        batches: list[Any] = [batch async for batch in cursor]
        return await asyncio.to_thread(decode, batches)


async def fleet_statistics(
    history: HistoryCollection,
    worker_ids: Collection[str],
    start: datetime,
    end: datetime,
    interval: int,
    wanted: Distribution | None = None,
) -> AsyncGenerator[list[tuple[str, IntervalColumns]], None]:
    """Yield, query by query, the statistics of each worker's samples in [start, end), as `SampleReader.statistics`.

    The workers are ascending by id; one without samples has no entry.

    As many workers share a query as fit into the memory of a $group. QUERIES run at once, each on one of MongoDB's cores.
    """
    seconds = (end - start).total_seconds()
    size = GROUPS_PER_QUERY // max(1, math.ceil(seconds / interval))
    if wanted is not None:
        size = min(size, VALUES_PER_QUERY // max(1, math.ceil(seconds / history.period)))
    ids = sorted(set(worker_ids))

    async def read(some: Sequence[str]) -> list[tuple[str, IntervalColumns]]:
        pipeline = partial(
            statistics_pipeline,
            window(history, some, start, end),
            interval,
            by_worker=True,
            every_value=wanted is not None,
        )
        return await aggregate(history, history.samples, pipeline, partial(statistics, wanted=wanted, period=history.period))

    size = min(size, math.ceil(len(ids) / QUERIES))
    running: deque[asyncio.Task[list[tuple[str, IntervalColumns]]]] = deque()
    try:
        for part in chunks(ids, max(1, size)):
            if len(running) == QUERIES:
                yield sorted(await running.popleft(), key=itemgetter(0))
            running.append(asyncio.create_task(read(part)))
        while running:
            yield sorted(await running.popleft(), key=itemgetter(0))
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)  # so that asyncio logs none of their errors
