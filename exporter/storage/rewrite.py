"""Rewrite a worker's samples so that each is stored once: copy, prove the copy, delete, insert, prove, drop the copy.

Before MongoDB 7 a time-series collection deletes by worker only, so removing one of two equal samples means to delete all of
the worker and to insert them again; from 7 on it deletes by measurement, and only the range with duplicates is rewritten. Each
step finds out by itself how far the last one got, so a rewrite that was killed at any point is continued by the next one.

The caller holds the lease for inserting and the one for old samples, and has raised the fence before each `run`: no other
writer of the history inserts meanwhile, and what one has sent earlier is refused (not on a standalone server).
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

import bson
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError, OperationFailure
from pymongo.read_concern import ReadConcern

from exporter.core.errors import StoreError, StoreUnavailableError
from exporter.core.periods import HOUR
from exporter.storage.collection import HistoryCollection
from exporter.storage.insert_fence import InsertFence
from exporter.storage.mongo import STATE, WHOLE_HISTORY_SECONDS, Document, operation
from exporter.storage.rows import milliseconds

PAGE_SAMPLES = 1000
BYTES_PER_INSERT = 12 * 1024 * 1024
"""A command has at most 16 MiB."""
DELETE_SECONDS = 60.0
"""Time limit of the deletion; what is left of the leases must be longer."""
RANGE_WIRE_VERSION = 21
"""MongoDB 7.0, the first that deletes samples of a time range."""
_DUPLICATE_KEY = 11000
_UNSUPPORTED = frozenset({20, 72, 115})  # IllegalOperation, InvalidOptions, CommandNotSupported

Phase = Literal["copying", "rewriting", "done"]
"""copying: nothing was deleted yet, the copy may be incomplete; rewriting: the copy is complete, the history may not be."""
Fingerprints = dict[int, bytes]
"""Milliseconds since 1970 → checksum of the sample of that time."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which samples are rewritten: those of a worker, all or in a range of times."""

    worker_id: str
    first: datetime | None = None
    """None: from the beginning."""
    last: datetime | None = None
    """Inclusive; None: to the end."""

    @property
    def query(self) -> Document:
        """The query for exactly these samples."""
        if self.first is None or self.last is None:
            return {"worker_id": self.worker_id}
        return {"worker_id": self.worker_id, "timestamp": {"$gte": self.first, "$lte": self.last}}


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a rewrite did."""

    samples: int
    """Distinct samples; all are in the history."""
    removed: int
    """Copies that are gone."""
    differing: int
    """Times whose copies differed; the one with the most values was kept."""


async def unfinished_rewrite(collection: HistoryCollection) -> Scope | None:
    """Return what an interrupted rewrite was working on, None: there is none.

    Raises:
        StoreError: or one of its kinds.
    """
    async with operation(collection.database, STATE, "find"):
        found = await collection.database[STATE].find_one(_state_key(collection))
    return None if found is None or found["phase"] == "done" else _scope(found)


class WorkerRewrite:
    """Rewrites the samples of one worker at a time, with a copy in the collection `<history>_repair`.

    Args:
        collection: the history.
        fence: inserts; its lease is held, and its number was raised.
        within: returns the seconds that are left of the leases, and raises where they are lost.

    Every method raises StoreUnavailableError, IncompatibleStoreError or StoreError; the same call again continues.
    """

    def __init__(self, collection: HistoryCollection, fence: InsertFence, within: Callable[[], float]) -> None:
        self._collection, self._fence, self._within = collection, fence, within
        database = collection.database
        self.copy_name = f"{collection.name}_repair"
        self._copy: AsyncCollection[Document] = database[self.copy_name].with_options(read_concern=ReadConcern("majority"))
        self._state = database[STATE]
        self._key = _state_key(collection)

    async def run(self, scope: Scope, report: Callable[[str], object] = lambda step: None) -> Rewritten:
        """Rewrite the samples of `scope`, or continue the interrupted rewrite of it.

        Args:
            scope: must be that of `unfinished_rewrite` if there is one.
            report: called with each step before it begins.
        """
        phase = await self._phase(scope)
        if phase != "rewriting":
            report("copying")
            await self._drop_copy()
            await self._note("copying", scope)
        found, removed, differing = await self._read(scope)
        await self._fill(scope)
        copied = await self._fingerprints_of_copy()
        if found.keys() - copied.keys() or (phase != "rewriting" and copied != found):
            raise StoreError(
                f"{self._collection.namespace} changed while {scope.worker_id} was copied: another program inserts without the "
                "lease for inserting; stop it and run this again, nothing was deleted",
                reason="changed",
            )
        await self._note("rewriting", scope, copied)
        if removed or any(copied[at] != checksum for at, checksum in found.items()):
            report("deleting")
            if not await self._delete(scope):
                whole = Scope(scope.worker_id)
                await self._note("copying", whole)  # nothing was deleted
                return await self.run(whole, report)
            found = {}
        report("inserting")
        await self._insert(copied.keys() - found.keys())
        await self._prove(scope, copied)
        # In this order: without its copy, an interrupted rewrite of a history that was proven makes another copy of it.
        await self._drop_copy()
        await self._note("done", scope)
        return Rewritten(len(copied), removed, differing)

    async def is_idle(self) -> bool:
        """Return whether no insert and no deletion is running on the server: mongod finishes those of a client that died."""
        collection = self._collection
        running = [{"command.insert": collection.name}, {"command.delete": collection.name}]
        pipeline: list[Document] = [
            {"$currentOp": {"allUsers": False}},
            {"$match": {"active": True, "command.$db": collection.database.name, "$or": running}},
        ]
        async with collection.operation("find"):
            cursor = await collection.database.client.admin.aggregate(pipeline)
            return not await cursor.to_list(None)

    # -- steps

    async def _phase(self, scope: Scope) -> Phase | None:
        """Return how far the last rewrite got; raise where it was interrupted and was one of other samples."""
        async with operation(self._collection.database, STATE, "find"):
            found = await self._state.find_one(self._key)
        if found is None or found["phase"] == "done":
            return None
        if found["phase"] == "rewriting" and _scope(found) != scope:
            raise StoreError(
                f"the interrupted repair of {found['worker_id']} comes first; run `verify --repair` again", reason="changed"
            )
        phase: Phase = found["phase"]
        return phase

    async def _drop_copy(self) -> None:
        async with operation(self._collection.database, self.copy_name, "dropCollection"):
            await self._copy.drop()

    async def _note(self, phase: Phase, scope: Scope, copied: Fingerprints | None = None) -> None:
        changes: Document = {"phase": phase, "worker_id": scope.worker_id, "first": scope.first, "last": scope.last}
        if copied is not None:
            changes |= {"samples": len(copied), "checksum": _checksum(copied)}
        async with operation(self._collection.database, STATE, "update"):
            await self._state.update_one(self._key, {"$set": changes}, upsert=True)

    async def _read(self, scope: Scope) -> tuple[Fingerprints, int, int]:
        """Return the checksum of the sample to keep of each time, the copies beyond, and the times with unequal copies."""
        found: Fingerprints = {}
        removed = differing = 0
        async for at, samples in self._by_time(scope):
            checksums = {_fingerprint(sample) for sample in samples}
            found[at] = _fingerprint(_to_keep(samples))
            removed += len(samples) - 1
            differing += len({_fingerprint(_without_id(sample)) for sample in samples}) > 1 if len(checksums) > 1 else 0
        return found, removed, differing

    async def _fill(self, scope: Scope) -> None:
        """Copy the sample to keep of each time that the copy lacks; what the copy has, it keeps."""
        page: list[Document] = []
        async for at, samples in self._by_time(scope):
            page.append({"_id": at, "sample": _to_keep(samples)})
            if len(page) == PAGE_SAMPLES:
                await self._copy_page(page)
                page = []
        if page:
            await self._copy_page(page)

    async def _copy_page(self, page: Sequence[Document]) -> None:
        async with operation(self._collection.database, self.copy_name, "insert"):
            try:
                await self._copy.insert_many(page, ordered=False)
            except BulkWriteError as error:
                if error.details["writeConcernErrors"] or any(
                    each["code"] != _DUPLICATE_KEY for each in error.details["writeErrors"]
                ):
                    raise

    async def _delete(self, scope: Scope) -> bool:
        """Delete the samples; return False where this server deletes no range of times, and nothing was deleted."""
        await self._collection.require()

        def seconds() -> float:
            # No fence holds a deletion back, MongoDB has no retryable ones of many documents: its time ends before the leases.
            if self._within() < DELETE_SECONDS:
                raise StoreUnavailableError("too little of the leases is left for the deletion; run this again", reason="lease")
            return DELETE_SECONDS

        async with self._collection.operation("remove", seconds):
            try:
                await self._collection.samples.delete_many(scope.query)
            except OperationFailure as error:
                if scope.first is None or error.code not in _UNSUPPORTED:
                    raise
                return False
        return True

    async def _insert(self, times: Iterable[int]) -> None:
        ordered = sorted(times)
        for first in range(0, len(ordered), PAGE_SAMPLES):
            wanted = ordered[first : first + PAGE_SAMPLES]
            async with operation(self._collection.database, self.copy_name, "find"):
                rows = await self._copy.find({"_id": {"$in": wanted}}).sort("_id", 1).to_list(None)
            await self._collection.require()
            for documents in _by_size([row["sample"] for row in rows]):
                async with self._collection.operation("insert", lambda: min(DELETE_SECONDS, self._within())):
                    await self._fence.insert(self._collection.name, documents)

    async def _prove(self, scope: Scope, copied: Fingerprints) -> None:
        """Compare history and copy, sample by sample; raise where one is missing, doubled or another."""
        found, doubled, _ = await self._read(scope)
        oldest = self._collection.oldest  # MongoDB may have deleted what is past retention meanwhile
        since = 0 if oldest is None else round((oldest + HOUR) * 1000)
        wanted = {at: checksum for at, checksum in copied.items() if at >= since}
        if doubled or wanted != {at: checksum for at, checksum in found.items() if at >= since}:
            raise StoreError(
                f"the samples of {scope.worker_id} are not equal to their copy in {self.copy_name} after they were inserted; "
                "the copy is kept, run this again",
                reason="changed",
            )

    # -- reading

    async def _by_time(self, scope: Scope) -> AsyncIterator[tuple[int, list[Document]]]:
        """Yield the samples of each time, oldest first, as a majority has them."""
        at: int | None = None
        samples: list[Document] = []
        async with self._collection.majority.find(scope.query, batch_size=PAGE_SAMPLES).sort("timestamp", 1) as cursor:
            while True:
                async with self._collection.operation("find", WHOLE_HISTORY_SECONDS):
                    page = await cursor.to_list(PAGE_SAMPLES)
                for sample in page:
                    time = milliseconds(sample["timestamp"].replace(tzinfo=None))
                    if time != at:
                        if at is not None:
                            yield at, samples
                        at, samples = time, []
                    samples.append(sample)
                if not page:
                    break
        if at is not None:
            yield at, samples

    async def _fingerprints_of_copy(self) -> Fingerprints:
        found: Fingerprints = {}
        async with self._copy.find(batch_size=PAGE_SAMPLES) as cursor:
            while True:
                async with operation(self._collection.database, self.copy_name, "find", WHOLE_HISTORY_SECONDS):
                    page = await cursor.to_list(PAGE_SAMPLES)
                if not page:
                    return found
                found |= {row["_id"]: _fingerprint(row["sample"]) for row in page}


def _state_key(collection: HistoryCollection) -> Document:
    return {"_id": f"repair:{collection.name}"}


def _scope(noted: Mapping[str, Any]) -> Scope:
    return Scope(noted["worker_id"], noted.get("first"), noted.get("last"))


def _by_size(samples: Iterable[Document]) -> Iterator[list[Document]]:
    """Split samples into inserts of at most BYTES_PER_INSERT; one that is larger goes alone."""
    part: list[Document] = []
    size = 0
    for sample in samples:
        each = len(bson.encode(sample))
        if part and size + each > BYTES_PER_INSERT:
            yield part
            part, size = [], 0
        part.append(sample)
        size += each
    if part:
        yield part


def _to_keep(samples: Sequence[Document]) -> Document:
    """Return the one of several samples of a time that has the most values; the same one whatever their order."""
    return min(samples, key=lambda sample: (-len(sample), _fingerprint(sample)))


def _without_id(sample: Mapping[str, Any]) -> Document:
    return {key: value for key, value in sample.items() if key != "_id"}


def _fingerprint(sample: Mapping[str, Any]) -> bytes:
    """Return the checksum of a sample; the order of the fields does not count, MongoDB changes it."""
    return sha256(bson.encode(dict(sorted(sample.items())))).digest()


def _checksum(found: Fingerprints) -> str:
    """Return one checksum of all samples."""
    total = sha256()
    for at in sorted(found):
        total.update(at.to_bytes(8, "big", signed=True) + found[at])
    return total.hexdigest()
