"""A normal collection in place of the history: set aside, and its samples moved into a new time series.

MongoDB creates a missing collection at an insert, as a normal one. The exporter never inserts into a missing collection, but it
cannot lock the name between its check and its insert, and another program may insert without a check.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from pymongo.errors import OperationFailure

from exporter.core import logs
from exporter.core.errors import IncompatibleStoreError
from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import as_utc, to_seconds
from exporter.storage.collection import HistoryCollection
from exporter.storage.mongo import NOT_AUTHORIZED, Document, operation
from exporter.storage.sample_reader import record
from exporter.storage.time_series import list_collection

_NAMESPACE_NOT_FOUND, _ILLEGAL_OPERATION = 26, 20  # MongoDB's error codes
_PAGE_SAMPLES = 1000
# What a sample of the history looks like; a collection with anything else in it is not touched.
_NO_SAMPLE: Document = {"$or": [{"worker_id": {"$not": {"$type": "string"}}}, {"timestamp": {"$not": {"$type": "date"}}}]}

InsertMissing = Callable[[Sequence[WorkerMetricsSample]], Awaitable[tuple[int, list[tuple[WorkerMetricsSample, str]]]]]
"""`SampleWriter.insert_missing`."""

_log = logs.get("history")


async def set_aside_normal_collection(collection: HistoryCollection) -> bool:
    """Rename a normal collection that took the place of a history, and create the time series; `finish_move` moves the samples.

    Only where this process has seen the time series before, and only if every document is a sample. Nothing is deleted: the
    renamed collection stays for the operator.

    Args:
        collection: whose name is taken by something else.

    Returns:
        Whether the history is a time series now; False: the collection is none that may be touched.

    Raises:
        IncompatibleStoreError: the user may not rename a collection.
        StoreError: or another of its kinds.
    """
    found = await list_collection(collection.database, collection.name)
    if collection.identity is None or found is None or found.kind != "collection":
        return False
    async with collection.operation("find"):
        if await collection.samples.find_one(_NO_SAMPLE) is not None:
            return False
    name = f"{collection.name}_{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    if not await _rename(collection, name):
        return False
    collection.misplaced = name
    _log.error(
        "a normal collection had taken the place of the history; it is set aside and its samples are moved",
        history=collection.namespace,
        set_aside=name,
    )
    await collection.ensure()
    return True


async def finish_move(collection: HistoryCollection, insert_missing: InsertMissing) -> None:
    """Move the samples of the collection that was set aside last, unless that has been done.

    Args:
        collection: the history.
        insert_missing: stores each sample once.

    Raises:
        StoreError: or another of its kinds; the next call begins again.
    """
    if (name := collection.misplaced) is None:
        return
    collection.misplaced = None  # `insert_missing` verifies the collection, which comes here again
    try:
        moved, rejected = await _move(collection, name, insert_missing)
    except BaseException:
        collection.misplaced = name
        raise
    _log.info("samples moved into the history", history=collection.namespace, of=name, moved=moved, rejected=rejected)


async def _rename(collection: HistoryCollection, name: str) -> bool:
    async with collection.operation("renameCollectionSameDB"):
        try:
            await collection.samples.rename(name)
        except OperationFailure as error:
            if error.code == NOT_AUTHORIZED:
                raise IncompatibleStoreError(
                    f"{collection.namespace} was dropped and came up again as a normal collection, which this user may not "
                    "rename; drop or rename it: the exporter creates the time series then, and inserts the samples that wait",
                    reason="collection",
                ) from error
            if error.code in (_NAMESPACE_NOT_FOUND, _ILLEGAL_OPERATION):  # another exporter was faster
                return False
            raise
    return True


async def _move(collection: HistoryCollection, name: str, insert_missing: InsertMissing) -> tuple[int, int]:
    """Insert the samples of the renamed collection that begin at a whole second, which all of the exporter's do.

    Returns how many were inserted, and how many MongoDB rejects.
    """
    moved = refused = 0
    async with collection.database[name].find({}, {"_id": 0}).batch_size(_PAGE_SAMPLES) as cursor:
        while True:
            async with operation(collection.database, name, "find"):
                page = await cursor.to_list(_PAGE_SAMPLES)
            if not page:
                return moved, refused
            samples = [record(document) for document in page]
            whole = [one for one in samples if as_utc(one.timestamp).timestamp() == to_seconds(one.timestamp)]
            if whole:
                inserted, rejected = await insert_missing(whole)
                moved, refused = moved + inserted, refused + len(rejected)
