"""Whether an exporter has written into a database before. A mistyped one has no workers, and gets no collections either."""

from exporter.storage.collection import HistoryCollection
from exporter.storage.mongo import STATE, durable, operation


async def is_in_use(history: HistoryCollection) -> bool:
    """Return whether the history exists, or the state that an exporter keeps beside it.

    Raises:
        IncompatibleStoreError: the collection of the history cannot be used as one.
        StoreError: MongoDB does not answer.
    """
    if (await history.verify()).exists:
        return True
    async with operation(history.database, STATE, "find"):
        return await durable(history.database)[STATE].find_one({}, {"_id": 1}) is not None
