"""The marker of the history: a document in cml_exporter_state that says what was acknowledged last, in which collection.

An exporter keeps the same on its own disk. Where MongoDB's marker is older, or the collection is another one, what MongoDB once
acknowledged is gone: an older backup was restored, the collection or the database was dropped, or the server is a new one.
"""

import re

from pymongo import ReturnDocument

from exporter.core.errors import StoreUnavailableError
from exporter.core.model import HistoryMark
from exporter.core.periods import to_datetime, to_seconds
from exporter.storage.collection import HistoryCollection
from exporter.storage.mongo import STATE, Document, operation

ANOTHER_COLLECTION, OLDER_MARKER, NO_MARKER = "collection", "backup", "marker"
"""Why a history is not the one that acknowledged: another UUID, an older marker, none. The values of the label `reason` of
cml_exporter_history_replaced_total."""


class HistoryMarker:
    """The marker of one collection; each writer of the history moves it forward.

    Exporters with different parts of a fleet have markers of their own: a marker that another exporter has moved forward would
    hide that the samples of this one are gone.

    Args:
        collection: the history.
        part: `Part.own_name` of the writer.

    Every method raises StoreUnavailableError, IncompatibleStoreError or StoreError.
    """

    def __init__(self, collection: HistoryCollection, part: str = "") -> None:
        self._collection = collection
        self._database = collection.database
        self._part = part
        self._key: Document = {"_id": f"marker:{collection.name}" + (f":{part}" if part else "")}

    @property
    def namespace(self) -> str:
        """Return database.collection, and which part of the fleet the marker is of."""
        return self._collection.namespace + (f" ({self._part})" if self._part else "")

    async def verify(self, known: HistoryMark | None) -> tuple[HistoryMark, str | None]:
        """Compare the marker in MongoDB with the one that was acknowledged last; the collection must have been verified.

        Args:
            known: the acknowledged marker; None: this exporter knows none yet.

        Returns:
            The marker to go on with; and why the history is not the one that acknowledged `known`, None: it is.
        """
        history = self._collection.identity or ""
        async with operation(self._database, STATE, "find"):
            found = await self._database[STATE].find_one(self._key)
        if known is None:
            return await self._begin(history, int((found or {}).get("sequence", 0)), 0, replaced=False), None
        if history != known.history:
            reason = ANOTHER_COLLECTION
        elif found is None:
            reason = NO_MARKER
        elif found.get("history") != history or found.get("sequence", 0) < known.sequence:
            reason = OLDER_MARKER
        else:  # of another exporter that wrote meanwhile, where it is newer
            return _mark(found), None
        await self._collection.ensure()  # what is noted beside it, and its retention, are of another time as well
        # Beyond both: another exporter that knows a number in between notices the replacement, too.
        sequence = max(known.sequence, int((found or {}).get("sequence", 0))) + 1
        return await self._begin(history, sequence, known.newest, replaced=True), reason

    async def advance(self, known: HistoryMark, newest: int) -> HistoryMark:
        """Move the marker forward after samples were acknowledged, and return it.

        Args:
            known: what `verify` or the last `advance` returned.
            newest: start of the newest acknowledged period in UTC seconds.

        Raises:
            StoreUnavailableError: `replaced`: MongoDB no longer has the marker that was acknowledged; nothing was changed.
        """
        async with operation(self._database, STATE, "update"):
            found = await self._database[STATE].find_one_and_update(
                {**self._key, "history": known.history, "sequence": {"$gte": known.sequence}},
                {"$inc": {"sequence": 1}, "$max": {"newest": to_datetime(newest)}},
                return_document=ReturnDocument.AFTER,
            )
        if found is None:
            raise StoreUnavailableError(
                f"{self.namespace} was replaced while samples were inserted; they will be inserted again", reason="replaced"
            )
        return _mark(found)

    async def generation(self) -> str:
        """Return a text that differs after each replacement of the history that an exporter of any part noticed."""
        every = {"_id": {"$regex": f"^marker:{re.escape(self._collection.name)}(:|$)"}}
        async with operation(self._database, STATE, "find"):
            found = await self._database[STATE].find(every).sort("_id").to_list(None)
        return " ".join(f"{each.get('history')} {each.get('generation')}" for each in found)

    async def _begin(self, history: str, sequence: int, newest: int, *, replaced: bool) -> HistoryMark:
        """Write a marker that no other process has moved beyond `sequence` meanwhile, and return what MongoDB has then."""
        changes: Document = {
            "history": history,
            "sequence": {"$max": ["$sequence", sequence]},
            "newest": {"$max": ["$newest", to_datetime(newest)]},
            "generation": {"$max": ["$sequence", sequence]} if replaced else {"$ifNull": ["$generation", 0]},
        }
        async with operation(self._database, STATE, "update"):
            found = await self._database[STATE].find_one_and_update(
                self._key, [{"$set": changes}], upsert=True, return_document=ReturnDocument.AFTER
            )
        assert found is not None  # an upsert always has a document to return
        return _mark(found)


def _mark(document: Document) -> HistoryMark:
    return HistoryMark(str(document["history"]), int(document["sequence"]), to_seconds(document["newest"]))
