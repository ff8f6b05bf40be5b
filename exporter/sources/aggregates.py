"""Aggregates of the manager → [Worker], and the one place that reads their collection. Nothing here writes.

Documents come from another program, so everything in them is doubted: whatever one aggregate holds costs at most that value or
that worker, never the reading. What was left out is counted in `Fleet.skipped` and told in `Fleet.complaints`.
"""

import asyncio
import re
from typing import Any

import pymongo
from bson import CodecOptions
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from exporter.core.errors import SourceError
from exporter.core.model import Fleet
from exporter.core.periods import to_seconds
from exporter.core.settings import WorkersSettings
from exporter.sources.worker_documents import parse, projection

SERVER_SELECTION_SECONDS = 10.0
"""Seconds to find a server that answers; an election takes about that long. pymongo.timeout replaces serverSelectionTimeoutMS,
so without a bound of its own a server that is down would be waited for as long as a slow one may read."""

TIMEOUT = 30.0
"""Seconds for the documents; 10,000 take about one."""

BATCH = 2000
"""Documents decoded at once; more would hold up the event loop, fewer cost round trips."""

# A malformed string or a date beyond the year 9999 in one aggregate must not fail the decoding of its whole batch.
_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    unicode_decode_error_handler="replace", datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
_UNAUTHORIZED, _AUTHENTICATION_FAILED = 13, 18


class Aggregates:
    """The manager's collection, read completely at every call.

    Args:
        database: where the collection lives.
        collection: its name.
        settings: further field names and gauges.
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
        self._name = f"{database.name}.{collection}"
        self._collection = database.get_collection(collection, codec_options=_CODEC)
        self._projection = projection(settings)
        self._settings = settings
        self._reach = reach

    async def read(self) -> Fleet:
        """Read all aggregates; `Fleet.date` is MongoDB's clock from before the first of them was read.

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
            raise self._translated(error) from error
        return await asyncio.to_thread(parse, documents, to_seconds(hello["localTime"]), self._settings)

    def _translated(self, error: Exception) -> SourceError:
        code = error.code if isinstance(error, OperationFailure) else None
        name = (error.details or {}).get("codeName") if isinstance(error, OperationFailure) else None
        # What follows is the driver's own bookkeeping.
        reason = re.split(r" \(configured timeouts|, Timeout:|, full error", str(error))[0]
        if code == _AUTHENTICATION_FAILED:
            message = "MongoDB refuses the user or the password; correct them, or authSource, in mongodb.uri"
        elif code == _UNAUTHORIZED:
            message = f"MongoDB does not let us read {self._name}; grant the user of mongodb.uri the privilege find on it"
        elif isinstance(error, ServerSelectionTimeoutError):
            message = f"MongoDB is out of reach ({reason}); start it, or correct mongodb.uri"
        else:
            message = f"reading {self._name} failed ({reason}); it is tried again at the next period, see MongoDB's own log"
        return SourceError("mongodb", str(name or code or type(error).__name__), message)
