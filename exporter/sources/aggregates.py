"""Read the worker documents (the manager's aggregates) from MongoDB; the exporter never writes them.

Another program writes these documents, so any field may hold anything. A malformed document costs at most one value or one
worker, never the whole read. `Fleet.skipped` counts the documents left out, `Fleet.complaints` says why.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import bson
import pymongo
from bson import CodecOptions
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from pymongo import ReadPreference
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_preferences import PrimaryPreferred

from exporter.core import logs
from exporter.core.errors import SourceError
from exporter.core.model import Fleet
from exporter.core.periods import to_seconds
from exporter.core.setting_types import OWN_COLLECTIONS
from exporter.core.shards import Part, WorkerKey
from exporter.core.workers_settings import WorkersSettings
from exporter.sources.document_cache import DocumentCache, documents
from exporter.sources.document_keys import DocumentKeys
from exporter.sources.worker_documents import parse, projection
from exporter.storage.mongo import NOT_AUTHORIZED, chunks, translate

SERVER_SELECTION_SECONDS = 10.0
"""Seconds to find a server that answers; an election takes about that long. pymongo.timeout replaces serverSelectionTimeoutMS,
so without this bound the exporter would wait for a server that is down as long as for a slow read."""

PING_TIMEOUT_SECONDS = 5.0
"""Seconds for a ping; with its repetition an outage shows within 30 s."""

TIMEOUT = 60.0
"""Seconds to read all documents; 10,000 take about one, 100,000 on a busy machine twenty."""

MAX_STALENESS_SECONDS = 120
"""How far a secondary may be behind the others to be read in place of a missing primary; the driver accepts 90 or more."""

BATCH = 2000
"""Documents decoded at once; more would block the event loop, fewer cost round trips."""

MAX_SEARCHED_COLLECTIONS = 100
"""Collections of the database that are searched for worker documents where the configured ones hold none."""

_log = logs.get("observer")

LENIENT: CodecOptions[dict[str, Any]] = CodecOptions(
    unicode_decode_error_handler="replace", datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
"""A malformed string or a date beyond the year 9999 in one document must not fail the decoding of its whole batch."""


class _Documents(NamedTuple):
    """What one read of a collection returned."""

    batches: Sequence[bytes] = ()
    """The documents of this part as BSON, many in one piece."""
    elsewhere: Mapping[str, WorkerKey] = MappingProxyType({})
    """The workers of other parts, by id."""
    found: bool = False
    """Whether the collection holds any document."""


class Aggregates:
    """The manager's collection of worker documents, read completely at every call.

    Where the exporter has a part of the fleet, it reads of all documents what decides that, then its own documents as a whole.
    MongoDB cannot compute the hash; and regions and patterns are not left to its query, because a worker that has changed its
    region must be told from one that has disappeared.

    Of several collections the first that holds documents is used, and from then on only that one. Without a primary a
    secondary is read: without a majority the manager cannot write either, so its documents are the newest.

    Args:
        database: the database of the collections.
        collections: their names, in the order of search.
        settings: additional field names and gauges.
        part: the workers of this exporter; it may be replaced between two reads.
        reach: seconds to wait for a server that answers.
    """

    def __init__(
        self,
        database: AsyncDatabase[dict[str, Any]],
        collections: Sequence[str],
        settings: WorkersSettings,
        part: Part = Part(),  # noqa: B008  # immutable
        *,
        reach: float = SERVER_SELECTION_SECONDS,
    ) -> None:
        if database.read_preference == ReadPreference.PRIMARY:  # the driver's default; another one is the operator's choice
            database = database.with_options(read_preference=PrimaryPreferred(max_staleness=MAX_STALENESS_SECONDS))
        self._database = database
        self._collections = tuple(collections)
        self._projection = projection(settings)
        self._settings = settings
        self._cache = DocumentCache(settings, LENIENT)
        self._keys = DocumentKeys(settings, LENIENT)
        self.part = part
        self._reach = reach

    async def read(self) -> Fleet:
        """Read and parse all worker documents; `Fleet.date` is MongoDB's clock right before the first one was read.

        Raises:
            SourceError: MongoDB did not answer completely; the message says what to do.
        """
        try:
            with pymongo.timeout(self._reach):
                hello = await self._database.command("hello", read_preference=self._database.read_preference)
        except (PyMongoError, BSONError) as error:
            raise self._source_error(error, self._collections[0]) from error
        part = self.part
        read, note = await self._find(part)
        try:
            fleet = await asyncio.to_thread(self._cache.fleet, read.batches, to_seconds(hello["localTime"]))
        except BSONError as error:
            raise self._source_error(error, self._collections[0]) from error
        notes = (note, None if read.found else await self._search_other_collections())
        fleet = replace(fleet, complaints=(*fleet.complaints, *(note for note in notes if note)))
        return replace(fleet, namespace=self.namespace, part=part, elsewhere=read.elsewhere)

    async def ping(self) -> None:
        """Ask a server whether it answers; without a primary a secondary, as `read` does.

        Raises:
            SourceError: it does not, within `PING_TIMEOUT_SECONDS`.
        """
        try:
            with pymongo.timeout(PING_TIMEOUT_SECONDS):
                await self._database.command("ping", read_preference=self._database.read_preference)
        except (PyMongoError, BSONError) as error:
            raise self._source_error(error, self._collections[0]) from error

    async def any_document(self) -> bool:
        """Return whether one of the collections holds a document that this user may read.

        Raises:
            SourceError: MongoDB does not answer.
        """
        for name in self._collections:
            try:
                if await self._read_collection(name, limit=1):
                    return True
            except OperationFailure as error:
                if error.code != NOT_AUTHORIZED:
                    raise self._source_error(error, name) from error
            except (PyMongoError, BSONError) as error:
                raise self._source_error(error, name) from error
        return False

    @property
    def namespace(self) -> str:
        """Return database.collection of each collection that is searched."""
        return " or ".join(f"{self._database.name}.{name}" for name in self._collections)

    async def _find(self, part: Part) -> tuple[_Documents, str | None]:
        """Return what was read of the first collection that holds any documents, and use only that one from now on.

        The second value is a sentence for the log: which further collection holds documents, or why one could not be read where
        no other holds any.
        """
        refusal: SourceError | None = None
        answered = False
        for name in self._collections:
            try:
                read = await self._read_part(name, part)
            except OperationFailure as error:
                if error.code != NOT_AUTHORIZED:
                    raise self._source_error(error, name) from error
                refusal = refusal or self._source_error(error, name)  # the role may cover only the one that is in use
                continue
            except (PyMongoError, BSONError) as error:
                raise self._source_error(error, name) from error
            answered = True
            if read.found:
                note = None
                if len(self._collections) > 1:
                    note = await self._note_unused(name)
                    self._collections = (name,)
                    _log.info("worker documents found", collection=f"{self._database.name}.{name}")
                return read, note
        if refusal is not None and not answered:
            raise refusal
        return _Documents(), None if refusal is None else str(refusal)

    async def _note_unused(self, used: str) -> str | None:
        """Return a sentence that names the searched collections after `used` that hold documents, too; None without one."""
        unused = []
        for name in self._collections[self._collections.index(used) + 1 :]:
            with suppress(PyMongoError, BSONError):  # what cannot be read is not used anyway
                if await self._read_collection(name, limit=1):
                    unused.append(f"{self._database.name}.{name}")
        if not unused:
            return None
        return (
            f"{' and '.join(unused)} also holds documents and is not read, because {self._database.name}.{used} is searched "
            "first; set mongodb.workers to the collection of the manager"
        )

    async def _read_part(self, name: str, part: Part) -> _Documents:
        """Return the documents of a part of a collection, and which workers it has besides."""
        if part.is_whole:
            whole = await self._read_collection(name)
            return _Documents(whole, found=bool(whole))
        keys = await self._read_collection(name, projection=self._keys.projection)
        division = await asyncio.to_thread(self._keys.divide, keys, part)
        batches: list[bytes] = []
        for ids in chunks(division.own, BATCH):
            batches += await self._read_collection(name, {"_id": {"$in": list(ids)}})
        return _Documents(batches, division.elsewhere, division.count > 0)

    async def _read_collection(
        self,
        name: str,
        query: Mapping[str, object] = MappingProxyType({}),
        limit: int = 0,
        projection: Mapping[str, int] | None = None,
    ) -> list[bytes]:
        """Return the documents of a collection as BSON, many in one piece; an empty list where there is none."""
        with pymongo.timeout(TIMEOUT):
            cursor = self._database[name].find_raw_batches(
                dict(query), projection or self._projection, batch_size=BATCH, limit=limit
            )
            return [batch async for batch in cast(AsyncIterator[bytes], cursor) if batch]  # its type says documents

    async def _search_other_collections(self) -> str | None:
        """Return a sentence that names another collection of the database with worker documents, None without one.

        Only collections that the user may read are searched; a failure says nothing about the fleet and is not reported.
        """
        try:
            with pymongo.timeout(TIMEOUT):
                present = await self._database.list_collection_names(authorizedCollections=True)
            for name in sorted(present)[:MAX_SEARCHED_COLLECTIONS]:
                if name in (*self._collections, *OWN_COLLECTIONS) or name.startswith("system."):
                    continue
                some = documents(await self._read_collection(name, limit=3))
                found = parse((bson.decode(each, LENIENT) for each in some), 0, self._settings).workers
                if any(worker.instance_id and worker.status != "unknown" for worker in found):
                    return (
                        f"{self.namespace} holds no worker document, but {self._database.name}.{name} does; "
                        f"set mongodb.workers to {name}"
                    )
        except (PyMongoError, BSONError):
            return None
        return None

    def _source_error(self, error: Exception, collection: str) -> SourceError:
        sentence = translate(error, f"{self._database.name}.{collection}", "find", self._database.client)
        return SourceError("mongodb", _code(error), str(sentence))


def _code(error: Exception) -> str:
    """Return MongoDB's name of the error, else its number, else the name of the driver's class."""
    if isinstance(error, OperationFailure):
        return str((error.details or {}).get("codeName") or error.code or type(error).__name__)
    return type(error).__name__
