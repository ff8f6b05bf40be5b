"""Stream millions of samples from the time-series collection, worker after worker, page by page."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from exporter.core.periods import to_datetime
from exporter.storage.aggregation import window
from exporter.storage.collection import HistoryCollection
from exporter.storage.mongo import Document

TIME = "time"
"""The key of a streamed sample's time in milliseconds since 1970: integers decode much faster than dates."""
PAGE_SAMPLES = 10_000
"""Samples of one page of a stream: some 5 MB."""

Pages = AsyncGenerator[tuple[str, list[Document]], None]
"""What `stream` yields: a worker's id and some of its samples, as documents with TIME and the wanted keys they have."""
_PageQueue = asyncio.Queue[tuple[str, list[Document]] | None]


async def stream(history: HistoryCollection, worker_ids: Sequence[str], start: int, end: int, keys: Sequence[str]) -> Pages:
    """Yield the samples in [start, end) UTC seconds, worker after worker, oldest first.

    For millions of samples: memory holds the page that was yielded and one more, while mongod prepares a third.
    Use it under contextlib.aclosing.

    Args:
        history: the collection.
        worker_ids: in the order wanted; one without samples yields nothing.
        start: inclusive.
        end: exclusive.
        keys: of the documents; TIME comes with them.
    """
    pages: _PageQueue = asyncio.Queue(maxsize=1)
    producer = asyncio.create_task(_put_pages(history, pages, worker_ids, start, end, keys))
    try:
        while (page := await pages.get()) is not None:
            yield page
        await producer
    finally:
        # More than once: asyncio.wait_for, under the driver, loses a cancellation that comes with the answer (Python 3.11).
        while not producer.done():
            producer.cancel()
            await asyncio.wait([producer], timeout=0.1)
        if not producer.cancelled():
            producer.exception()  # a consumer that left early is not told of it


async def _put_pages(
    history: HistoryCollection, pages: _PageQueue, worker_ids: Sequence[str], start: int, end: int, keys: Sequence[str]
) -> None:
    """Put the pages into the queue, and None after the last one or an error."""
    projection: Document = {"_id": 0, TIME: {"$toLong": "$timestamp"}, **dict.fromkeys(keys, 1)}
    try:
        for worker_id in worker_ids:
            match = window(history, worker_id, to_datetime(start), to_datetime(end))
            # One cursor a worker: its sort is small. One over all workers would be sorted on mongod's disk.
            async with history.samples.find(match, projection, batch_size=PAGE_SAMPLES).sort("timestamp", 1) as cursor:
                while True:
                    async with history.operation("find"):
                        page = await cursor.to_list(PAGE_SAMPLES)
                    if not page:
                        break
                    await pages.put((worker_id, page))
    except Exception:  # not a cancellation: then the consumer takes nothing from the queue any more
        await pages.put(None)
        raise
    await pages.put(None)
