"""worker_metrics_inventory: every worker ever seen, so that a terminated worker keeps its name and instances."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import pymongo
from bson.errors import BSONError
from pymongo import ReadPreference, ReplaceOne, UpdateOne
from pymongo.errors import PyMongoError

from exporter.core.instances import updated_entry
from exporter.core.model import Fleet, InstanceInterval, InventoryEntry, Worker
from exporter.core.periods import DAY, to_datetime, to_seconds
from exporter.core.regions import normal_region
from exporter.storage.mongo import OPERATION_SECONDS, Database, Document, chunks, durable, operation, translate

INVENTORY = "worker_metrics_inventory"
_ENTRIES_PER_WRITE = 5000
_lasting = attrgetter(*(name for name in InventoryEntry.__dataclass_fields__ if name not in ("last_seen", "instances")))
"""An entry's fields that most reads of the worker documents leave as they are."""


class Inventory:
    """Entries of every worker ever seen and the instances it ran on; kept in memory, written to MongoDB as they change.

    Every method raises StoreUnavailableError, IncompatibleStoreError or StoreError; what could not be written is written the
    next time.
    """

    def __init__(self, database: Database) -> None:
        self._database = durable(database)
        self._collection = self._database[INVENTORY]
        self._entries: dict[str, InventoryEntry] = {}
        self._unsaved: set[str] = set()
        self._applied: Sequence[Worker] = ()
        """The workers that the entries were last updated with."""
        self._loaded = False

    @property
    def entries(self) -> Mapping[str, InventoryEntry]:
        """Return worker_id → its entry."""
        return MappingProxyType(self._entries)

    async def load(self) -> None:
        """Read all entries from MongoDB; those in memory are replaced unless they are newer, see `_newer_entries`.

        A secondary answers where there is no primary: a period is opened with the instances known so far, or not at all.
        """
        collection = self._collection.with_options(read_preference=ReadPreference.PRIMARY_PREFERRED)
        try:
            with pymongo.timeout(OPERATION_SECONDS):  # not `operation`, which looks for a primary first
                stored = {document["_id"]: _entry(document) async for document in collection.find()}
        except (PyMongoError, BSONError) as error:
            raise translate(error, f"{self._database.name}.{INVENTORY}", "find") from error
        missing = {id_: self._entries[id_] for id_ in self._unsaved & self._entries.keys() if id_ not in stored}
        later = _newer_entries(self._entries, stored) | missing  # what was noted and is not written yet is no purged entry
        self._entries = stored | later
        self._unsaved = set(later)
        self._applied = ()
        self._loaded = True

    async def read(self, worker_id: str) -> InventoryEntry | None:
        """Return one entry from MongoDB, None: there is none; those in memory stay as they are."""
        async with operation(self._database, INVENTORY, "find"):
            document = await self._collection.find_one({"_id": worker_id})
        return None if document is None else _entry(document)

    def note(self, fleet: Fleet) -> None:
        """Apply one complete read of the worker documents to the entries in memory; the next `record` writes them too."""
        self._unsaved |= self._apply(fleet)

    def _apply(self, fleet: Fleet) -> set[str]:
        """Update the entries in memory; return the ids of those in which more than the time is new."""
        changed: set[str] = set()
        for worker, before in zip_longest(fleet.workers, self._applied[: len(fleet.workers)]):
            old = self._entries.get(worker.id)
            new = updated_entry(old, worker, fleet.date)
            # A document that says what it said before is the same object, and most of them do, in the same order.
            if old is None or not (worker is before or _only_the_time_is_new(old, new, bool(worker.cloudwatch_instance))):
                changed.add(worker.id)
            self._entries[worker.id] = new
        self._applied = fleet.workers
        return changed

    async def record(self, fleet: Fleet) -> None:
        """Record one complete read of the worker documents (the manager's aggregates); loads the entries first if necessary."""
        if not self._loaded:
            await self.load()
        changed = self._apply(fleet)
        seen = {worker.id: bool(worker.cloudwatch_instance) for worker in fleet.workers}
        upserts = changed | self._unsaved
        self._unsaved |= seen.keys()
        await self._upsert(sorted(upserts))
        async with operation(self._database, INVENTORY, "update"):
            purged: set[str] = set()
            for on_instance in (True, False):
                touched = [worker for worker, has in seen.items() if has is on_instance and worker not in upserts]
                if touched:
                    done = await self._collection.update_many({"_id": {"$in": touched}}, _touch(fleet.date, on_instance))
                    # A listed worker was purged: all of these are written in full the next time.
                    purged |= set(touched) if done.matched_count < len(touched) else set()
        self._unsaved = purged

    async def add(self, entries: Sequence[InventoryEntry]) -> int:
        """Write entries of workers that have none in MongoDB, and leave the others alone; return how many were written."""
        added = 0
        for some in chunks(entries, _ENTRIES_PER_WRITE):
            updates = [
                UpdateOne({"_id": entry.worker_id}, {"$setOnInsert": _without_id(_entry_document(entry))}, upsert=True)
                for entry in some
            ]
            async with operation(self._database, INVENTORY, "update"):
                added += (await self._collection.bulk_write(updates, ordered=False)).upserted_count
        return added

    async def forget(self, worker_id: str) -> bool:
        """Delete a worker's entry permanently; return whether there was one."""
        self._entries.pop(worker_id, None)
        self._unsaved.discard(worker_id)
        self._applied = ()
        async with operation(self._database, INVENTORY, "remove"):
            return (await self._collection.delete_one({"_id": worker_id})).deleted_count > 0

    async def _upsert(self, worker_ids: Sequence[str]) -> None:
        for ids in chunks(worker_ids, _ENTRIES_PER_WRITE):
            documents = [_entry_document(self._entries[worker_id]) for worker_id in ids]
            async with operation(self._database, INVENTORY, "update"):
                await self._collection.bulk_write(
                    [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in documents], ordered=False
                )


def _newer_entries(known: Mapping[str, InventoryEntry], found: Mapping[str, InventoryEntry]) -> dict[str, InventoryEntry]:
    """Return the known entries that MongoDB has lost, or has as they were before: an older backup was restored.

    An entry that is missing there although others exist may have been purged. It counts as lost only if the worker was seen in
    the last day: `purge` refuses such a worker, as its samples may still be on their way.
    """
    recent = max((entry.last_seen for entry in known.values()), default=0) - DAY
    return {
        worker_id: entry
        for worker_id, entry in known.items()
        if (entry.last_seen > found[worker_id].last_seen if worker_id in found else not found or entry.last_seen > recent)
    }


def _only_the_time_is_new(old: InventoryEntry, new: InventoryEntry, on_instance: bool) -> bool:
    """Return whether `_touch` makes the new entry of the old one: it moves last_seen, and the end of the current instance."""
    if _lasting(old) != _lasting(new):
        return False
    if not (on_instance and old.instances):
        return old.instances == new.instances
    return new.instances == (*old.instances[:-1], old.instances[-1].until(new.last_seen))


def _touch(now: int, on_instance: bool) -> list[Document]:
    """Return the same as an update in MongoDB: last_seen, and the end of the current instance interval, never backwards."""
    date = to_datetime(now)
    changes: Document = {"last_seen": {"$max": ["$last_seen", date]}}
    if on_instance:
        current = {"$mergeObjects": [{"$last": "$instances"}, {"to": {"$max": [{"$last": "$instances.to"}, date]}}]}
        earlier = {"$slice": ["$instances", {"$subtract": [{"$size": "$instances"}, 1]}]}
        alone = {"$eq": [{"$size": "$instances"}, 1]}  # $slice refuses a count of zero
        changes["instances"] = {"$cond": [alone, [current], {"$concatArrays": [earlier, [current]]}]}
    return [{"$set": changes}]


def _entry_document(entry: InventoryEntry) -> Document:
    dates = {name: getattr(entry, name) for name in ("created_at", "terminated_at", "first_seen", "last_seen")}
    document: Document = {
        "_id": entry.worker_id,
        "worker_id": entry.worker_id,
        "region": entry.region,
        "name": entry.name,
        "instance_type": entry.instance_type,
        "cml_version": entry.cml_version,
        "account_id": entry.account_id,
        "status": entry.status,
        "instances": [
            {
                "id": interval.instance_id,
                "region": interval.region,
                "from": to_datetime(interval.first),
                "to": to_datetime(interval.last),
            }
            for interval in entry.instances
        ],
        **{name: None if second is None else to_datetime(second) for name, second in dates.items()},
    }
    return {key: value for key, value in document.items() if value is not None}


def _without_id(document: Document) -> Document:
    return {key: value for key, value in document.items() if key != "_id"}


def _entry(document: Mapping[str, Any]) -> InventoryEntry:
    dates = {name: document.get(name) for name in ("created_at", "terminated_at", "first_seen", "last_seen")}
    seconds = {name: None if date is None else to_seconds(date) for name, date in dates.items()}
    return InventoryEntry(
        worker_id=document["_id"],
        region=normal_region(document.get("region", "")),
        name=document.get("name"),
        instance_type=document.get("instance_type"),
        cml_version=document.get("cml_version"),
        created_at=seconds["created_at"],
        terminated_at=seconds["terminated_at"],
        status=document.get("status", "unknown"),
        first_seen=seconds["first_seen"] or 0,
        last_seen=seconds["last_seen"] or 0,
        instances=tuple(
            InstanceInterval(each["id"], normal_region(each["region"]), to_seconds(each["from"]), to_seconds(each["to"]))
            for each in document.get("instances", ())
        ),
        account_id=document.get("account_id"),
    )
