"""Read the worker documents (the manager's aggregates) from MongoDB; the exporter never writes them.

Another program writes these documents, so any field may hold anything. A malformed document costs at most one value or one
worker, never the whole read. `Fleet.skipped` counts the documents left out, `Fleet.complaints` says why.
"""

import asyncio
from typing import Any

import pymongo
from bson import CodecOptions
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError

from exporter.core.errors import SourceError
from exporter.core.model import Fleet
from exporter.core.periods import to_seconds
from exporter.core.settings import WorkersSettings
from exporter.sources.worker_documents import parse, projection
from exporter.storage.mongo import translate

SERVER_SELECTION_SECONDS = 10.0
"""Seconds to find a server that answers; an election takes about that long. pymongo.timeout replaces serverSelectionTimeoutMS,
so without this bound the exporter would wait for a server that is down as long as for a slow read."""

TIMEOUT = 30.0
"""Seconds to read all documents; 10,000 take about one."""

BATCH = 2000
"""Documents decoded at once; more would block the event loop, fewer cost round trips."""

# A malformed string or a date beyond the year 9999 in one document must not fail the decoding of its whole batch.
_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    unicode_decode_error_handler="replace", datetime_conversion=DatetimeConversion.DATETIME_AUTO
)


class Aggregates:
    """The manager's collection of worker documents, read completely at every call.

    Args:
        database: the database of the collection.
        collection: its name.
        settings: additional field names and gauges.
        reach: seconds to wait for a server that answers.
    """

    def __init__(
        self,
        database: AsyncDatabase[dict[str, Any]],
        collection: str,
        settings: WorkersSettings,
        *,
        reach: float = SERVER_SELECTION_SECONDS,
    ) -> None:
        self._database = database
        self._namespace = f"{database.name}.{collection}"
        self._collection = database.get_collection(collection, codec_options=_CODEC)
        self._projection = projection(settings)
        self._settings = settings
        self._reach = reach

    async def read(self) -> Fleet:
        """Read and parse all worker documents; `Fleet.date` is MongoDB's clock right before the first one was read.

        Raises:
            SourceError: MongoDB did not answer completely; the message says what to do.
        """
        try:
            with pymongo.timeout(self._reach):
                hello = await self._database.command("hello")
            with pymongo.timeout(TIMEOUT):
                cursor = self._collection.find({}, self._projection, batch_size=BATCH)
                documents = await cursor.to_list(None)
        except (PyMongoError, BSONError) as error:
            raise SourceError("mongodb", _code(error), str(translate(error, self._namespace, "find"))) from error
        return await asyncio.to_thread(parse, documents, to_seconds(hello["localTime"]), self._settings)


def _code(error: Exception) -> str:
    """Return MongoDB's name of the error, else its number, else the name of the driver's class."""
    if isinstance(error, OperationFailure):
        return str((error.details or {}).get("codeName") or error.code or type(error).__name__)
    return type(error).__name__
