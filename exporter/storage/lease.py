"""Leases in MongoDB: of several exporters, the one that holds the lease writes the history.

MongoDB's clock decides when a lease has expired; the holder's own monotonic clock decides whether it may still rely on it. The
latter counts from the moment a renewal was sent, so a process that was paused, or whose renewal is still in flight, knows that
it lost the lease before another process can take it. After a failover the new primary's clock decides: the clocks of one
replica set must not differ by more than the safety margin.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from bson import Int64
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

from exporter.core import logs
from exporter.core.errors import StoreError
from exporter.core.periods import to_datetime
from exporter.storage.mongo import STATE, Database, Document, durable, operation

LEASE_SECONDS = 30
"""How long a lease lasts after each renewal."""
MIRROR = "mirror"
"""The name of the lease for writing the samples of a part of the fleet."""
BACKFILL = "backfill"
"""The name of the lease for writing samples older than `gap_fill_window`."""
INSERT = "insert"
"""The name of the lease for the moment between reading back and the end of the insert, see `SampleWriter.insert_lease`."""
SAFETY_FRACTION = 1 / 6
"""The last part of a lease's duration, in which its holder no longer relies on it."""
_MAX_SKEW_SECONDS = 600
"""How far the local clock may differ from MongoDB's in `change_marker`."""

_log = logs.get("lease")


def lease_id(name: str, part: str = "") -> str:
    """Return the `_id` of the document of a lease; `part` is `Part.own_name`."""
    return ":".join(text for text in ("lease", name, part) if text)


def boottime() -> float:
    """Return seconds that go on while the machine is suspended, unlike time.monotonic: a lease expires meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


async def keep_renewed(
    lease: "Lease",
    on_change: Callable[[bool], object] = lambda held: None,
    *,
    keep_fence: Callable[[], Awaitable[object]] | None = None,
    beat: Callable[[], object] = lambda: None,
) -> None:
    """Renew a lease three times in its duration, until cancelled; a failed attempt is logged and repeated.

    Args:
        lease: taken whenever it is free.
        on_change: called with whether the lease is held, when that changed or another owner held it in between.
        keep_fence: called after each renewal while the lease is held, see `SampleWriter.keep_fence`.
        beat: called before each attempt, as the sign of life of this loop.
    """
    held, fence = lease.held, lease.fence
    repeats = logs.Repeats()
    while True:
        await asyncio.sleep(lease.ttl / 3)
        beat()
        try:
            if await lease.acquire_or_renew() and keep_fence is not None:
                await keep_fence()
            repeats.reset()
        except StoreError as error:
            if repeats.is_due(str(error)):
                _log.warning("lease not renewed", error=str(error), **repeats.count)
        if (lease.held, lease.fence) != (held, fence):  # the fence shows another owner in between
            held, fence = lease.held, lease.fence
            on_change(held)


class Lease:
    """One process's view of the lease `name` in cml_exporter_state.

    Args:
        database: of an AsyncMongoClient; its options don't matter.
        owner: unique for each process that ever runs, see `core.process_identity.new_owner`.
        folder: identity of the data folder that this process has locked, see `core.process_identity.locked_folder`. A lease of
            another owner with the same one is taken over at once: its process has ended.
        ttl: seconds a lease lasts after each renewal; renew at least three times in it.
        name: of the lease.
        part: of the fleet, where each part has a lease of its own, see `lease_id`.
        allowed: asked before each attempt; while it returns False, this process releases the lease and does not take it.
        initial: fields that the document of the lease gets where it lacks them; whoever comes first decides.
        announces: note in the document that this process stands by, while another one holds the lease; see `awaited`.
        monotonic: seconds of a clock that is never set, and goes on while the machine is suspended.
    """

    def __init__(
        self,
        database: Database,
        *,
        owner: str,
        folder: str | None = None,
        ttl: float = 30,
        name: str = MIRROR,
        part: str = "",
        allowed: Callable[[], Awaitable[bool]] | None = None,
        initial: Mapping[str, object] | None = None,
        announces: bool = False,
        monotonic: Callable[[], float] = boottime,
    ) -> None:
        self._database = durable(database)
        self._state = self._database[STATE]
        self._allowed = allowed
        self.id = lease_id(name, part)
        """The `_id` of its document."""
        self._owner, self._folder = owner, folder
        self._initial = dict(initial or {})
        self._announces = announces
        self.document: Document = {}
        """The document of the lease when this process last acquired it. Its `number` grows with every acquisition and
        renewal, by whichever process, so that no two have the same; the fields of `initial` are in it."""
        self.ttl = ttl
        """Seconds a lease lasts after each renewal."""
        self._monotonic = monotonic
        self._until = self._elsewhere_until = self._yields_until = monotonic()
        self.fence = 0
        """The number of the last lease this process held, 0 before the first; it grows with every change of owner."""
        self.problem: str | None = None
        """Why it is unknown which process holds the lease, None when this or another one does."""

    @property
    def remaining(self) -> float:
        """Return the seconds for which this process may rely on the lease; 0 when it does not hold it."""
        return max(0.0, self._until - self._monotonic())

    @property
    def held(self) -> bool:
        """Return whether this process may write now."""
        return self.remaining > 0

    @property
    def held_elsewhere(self) -> bool:
        """Return whether another process held the lease when MongoDB answered last, and it may not have expired since."""
        return self._monotonic() < self._elsewhere_until

    @property
    def awaited(self) -> bool:
        """Return whether this process leads, and at its last renewal another one that `announces` stood by."""
        standby = self.document.get("standby")
        return self.held and standby is not None and standby > self.document["expires"] - timedelta(seconds=self.ttl)

    async def acquire_or_renew(self) -> bool:
        """Take the lease if it is free or expired, extend it if this process holds it; return whether it holds it now.

        Raises:
            StoreError: the state of the lease is unknown; one held before counts as held until `remaining` is 0.
        """
        sent = self._monotonic()
        # In an outage the lease of a process that is well expires. Its outbox has the status and labs that are not mirrored
        # yet, so after a failed attempt of one's own it goes first: it tries again within ttl / 3.
        yields = sent < self._yields_until
        try:
            if self._allowed is not None and not await self._allowed():
                return await self._step_back()
            lease = await self._take(yields=yields)
        except StoreError as error:
            self._yields_until = self._monotonic() + self.ttl / 2
            self.problem = f"no exporter is known to hold the lease: {error}"
            raise
        self.problem = None
        if lease["owner"] != self._owner:
            self._until = sent
            if not yields:  # else it may have expired
                self._elsewhere_until = self._monotonic() + self.ttl
            return False
        self._elsewhere_until = sent
        self.fence, self.document = lease["fence"], lease
        self._until = sent + self.ttl * (1 - SAFETY_FRACTION)
        return self.held

    async def _step_back(self) -> bool:
        if self.held:
            await self.release()
        self.problem = None
        self._elsewhere_until = self._monotonic() + self.ttl
        return False

    async def release(self, *, durable: bool = True) -> None:
        """Release the lease so that another process can take it at once; does nothing when this process does not hold it.

        Args:
            durable: wait for the journal of a majority; else a failover may undo the release, and the lease expires by itself.

        Raises:
            StoreError: it was not released, and expires by itself.
        """
        self._until = self._monotonic()
        state = self._state if durable else self._state.with_options(write_concern=WriteConcern(1))
        async with operation(self._database, STATE, "update"):
            await state.update_one(
                {"_id": self.id, "owner": self._owner},
                {"$set": {"owner": None, "folder": None, "expires": to_datetime(0)}},
            )

    async def change_marker(self) -> str | None:
        """Return a text that differs after each time the lease was held; None while a process may hold it.

        Raises:
            StoreError: the state of the lease is unknown.
        """
        async with operation(self._database, STATE, "find"):
            lease = await self._state.find_one({"_id": self.id}) or {}
        held = lease.get("expires", to_datetime(0)) > to_datetime(time.time() - _MAX_SKEW_SECONDS)
        return None if held else f"{lease.get('fence', 0)} {lease.get('owner')} {lease.get('expires')}"

    async def _take(self, *, yields: bool) -> Document:
        ours: Document = {"$eq": ["$owner", {"$literal": self._owner}]}
        expired: Document = {"$lte": [{"$ifNull": ["$expires", to_datetime(0)]}, "$$NOW"]}
        # Of a process that has ended: it had locked the very folder that this process has locked now.
        ended: Document = {"$and": [self._folder is not None, {"$eq": ["$folder", {"$literal": self._folder}]}]}
        vacant: Document = {"$eq": [{"$ifNull": ["$owner", None]}, None]}
        free = {"$or": [ours, vacant if yields else expired, ended]}
        until = {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": round(self.ttl * 1000)}}
        fence = {"$ifNull": ["$fence", 0]}
        changes = {
            "owner": {"$cond": [free, {"$literal": self._owner}, "$owner"]},
            "folder": {"$cond": [free, {"$literal": self._folder}, "$folder"]},
            "expires": {"$cond": [free, until, "$expires"]},
            "fence": {"$cond": [{"$and": [free, {"$not": ours}]}, {"$add": [fence, 1]}, fence]},
            "number": {"$cond": [free, {"$add": [{"$ifNull": ["$number", Int64(0)]}, 1]}, "$number"]},
        }
        if self._announces:  # in the same write, so that standing by costs MongoDB nothing more
            changes["standby"] = {"$cond": [free, {"$ifNull": ["$standby", None]}, until]}
        changes |= {name: {"$ifNull": [f"${name}", {"$literal": value}]} for name, value in self._initial.items()}
        # The condition stands in the update, not in the filter: an upsert whose filter fails would try to insert a second one.
        async with operation(self._database, STATE, "update", self.ttl / 2):
            try:
                lease = await self._update([{"$set": changes}])
            except DuplicateKeyError:  # two first contenders inserted the document at once; now there is one
                lease = await self._update([{"$set": changes}])
        return lease

    async def _update(self, pipeline: list[Document]) -> Document:
        lease = await self._state.find_one_and_update(
            {"_id": self.id}, pipeline, upsert=True, return_document=ReturnDocument.AFTER
        )
        assert lease is not None  # an upsert always has a document to return
        return lease
