"""Into how many shards the fleet is divided now: a document in cml_exporter_state on which all exporters agree.

An exporter of another division than the one in force does not collect. It puts its own in force once no exporter of the other
one holds its lease any more, so that two divisions never collect for longer than it takes to notice.
"""

from collections.abc import Callable

from pymongo.errors import DuplicateKeyError

from exporter.core import logs
from exporter.core.shards import Part
from exporter.storage.lease import MIRROR, lease_id
from exporter.storage.mongo import STATE, Database, durable, operation

_log = logs.get("lease")


class Layout:
    """One exporter's view of the division that is in force for its group, see `Part.group`.

    Args:
        database: of an AsyncMongoClient; its options don't matter.
        part: of this exporter.
        folder: identity of the data folder that this process has locked; a lease with it is of a process that has ended.
        on_change: called with whether this exporter collects, when that changed.
    """

    def __init__(self, database: Database, part: Part, *, folder: str | None, on_change: Callable[[bool], object]) -> None:
        self._database = durable(database)
        self._state = self._database[STATE]
        self._part, self._folder, self._on_change = part, folder, on_change
        self._id = ":".join(text for text in ("layout", part.group) if text)
        self.in_force = True
        """Whether the division of this exporter was in force when MongoDB answered last; so it is until the first answer."""

    async def check(self) -> bool:
        """Return whether the division of this exporter is in force; put it in force if no exporter of another one is left.

        Raises:
            StoreError: MongoDB does not answer.
        """
        wanted = self._part.shard.count
        async with operation(self._database, STATE, "update"):
            found = await self._state.find_one({"_id": self._id})
            count = 1 if found is None else int(found["shards"])
            in_force = count == wanted or (not await self._is_held(count) and await self._replace(count, wanted))
        if in_force != self.in_force:
            if in_force:
                _log.info("the division of the fleet is in force; collecting", shard=str(self._part.shard))
            else:
                _log.warning(
                    "another division of the fleet is in force; this exporter waits until all of its shards have stopped",
                    shard=str(self._part.shard),
                    shards_in_force=count,
                )
            self.in_force = in_force
            self._on_change(in_force)
        return in_force

    async def _is_held(self, count: int) -> bool:
        """Return whether an exporter holds the lease of a shard of this division."""
        names = self._part.divided(count).names()
        query = {
            "_id": {"$in": [lease_id(MIRROR, name) for name in names]},
            "owner": {"$ne": None},
            "$expr": {"$gt": ["$expires", "$$NOW"]},
        }
        if self._folder is not None:
            query["folder"] = {"$ne": self._folder}
        return await self._state.find_one(query, {"_id": 1}) is not None

    async def _replace(self, count: int, wanted: int) -> bool:
        """Put the division in force; return False where another exporter has put one in force meanwhile."""
        try:
            done = await self._state.update_one(
                {"_id": self._id, "shards": count}, {"$set": {"shards": wanted}}, upsert=count == 1
            )
        except DuplicateKeyError:
            return False
        return bool(done.matched_count) or done.upserted_id is not None
