"""A fence on the server against late inserts: what was sent before it is refused by MongoDB whenever it arrives after it.

A lease cannot stop an insert that is under way: its process may have been paused between the last check and the send, or the
kernel may deliver it after a network outage. A time-series collection has neither unique indexes nor conditional inserts. But a
replica set refuses a *retryable write* whose txnNumber is lower than one that its session has seen (TransactionTooOld, 225).

So all writers of a history insert on one server session. Its id stands in the lease for inserting, and its txnNumbers begin
with the number of that lease, which grows with each acquisition. Each attempt acquires the lease and raises the txnNumber by a
write that a majority acknowledges; only then does it wait until no insert runs, read back, and insert. The table of sessions
is replicated, so the fence outlasts a failover.

Where it does not reach: a standalone server has no retryable writes, each shard of a sharded collection has a table of its own,
and sessions of two MongoDB users are two sessions, even with one id. An entry expires after 30 minutes without use, so the
holder of a long lease uses the session in between (`InsertFence.keep`).
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from bson import Binary, Int64
from bson.binary import UUID_SUBTYPE
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import BulkWriteError, OperationFailure

from exporter.core import logs
from exporter.core.errors import FencedError, StoreUnavailableError
from exporter.storage.lease import INSERT, LEASE_SECONDS, Lease, boottime
from exporter.storage.mongo import STATE, TRANSACTION_TOO_OLD, Database, Document, operation

KEEP_SECONDS = 300
"""How long the session may stay unused; MongoDB forgets one after 30 minutes."""
_COUNTER_BITS = 24
"""Of a txnNumber, for the writes under one acquisition of the lease; 39 bits are left for its number."""
_LAST_NUMBER = 2**62
"""Ends the use of a session: no number above it is ever used."""
_NO_TXN_NUMBERS = 20
"""MongoDB's code (IllegalOperation) for a txnNumber on a standalone server."""
_DURABLE = {"w": "majority", "j": True}

_log = logs.get("fence")


class InsertFence:
    """The lease for inserting and the session that belongs to it, as one writer uses them.

    Args:
        database: as `mongo.durable` returns it.
        owner: of the lease, see `core.process_identity.new_owner`.
        ttl: seconds the lease lasts after each renewal.
    """

    def __init__(self, database: Database, *, owner: str, ttl: float = LEASE_SECONDS) -> None:
        self._database = database
        self.lease = Lease(
            database,
            owner=owner,
            ttl=ttl,
            name=INSERT,
            initial={"lsid": Binary(uuid.uuid4().bytes, UUID_SUBTYPE)},
            monotonic=boottime,
        )
        """The lease for inserting; its document holds the id of the session."""
        self._session: AsyncClientSession | None = None
        self._last = 0
        self._used_at = float("-inf")
        self._fenced: bool | None = None
        """Whether the server has retryable writes; None before the first attempt."""

    @property
    def is_up(self) -> bool:
        """Whether MongoDB refuses late inserts: false before the first attempt, and on a standalone server."""
        return bool(self._fenced)

    async def raise_number(self) -> None:
        """Make MongoDB refuse every insert that was sent before this call, by whichever writer; the lease must be held.

        Waits for an insert that is running on the session. Does nothing on a standalone server.

        Raises:
            FencedError: another process has acquired the lease meanwhile.
            StoreUnavailableError: whether the number was raised is unknown; the next attempt uses a higher one.
        """
        async with operation(self._database, STATE, "update", self._seconds_left):
            try:
                await self._raise()
            except OperationFailure as error:
                if error.code == _NO_TXN_NUMBERS:
                    self._fenced = False
                    return
                if error.code != TRANSACTION_TOO_OLD or not await self._still_held():
                    raise
                await self._replace_session()
                await self._raise()
        self._fenced = True

    async def insert(self, collection: str, documents: Sequence[Mapping[str, Any]]) -> None:
        """Insert documents under the number raised last, unordered, acknowledged by a majority; run it within `operation`.

        Args:
            collection: name of the history.
            documents: of at most 16 MB in all.

        Raises:
            BulkWriteError: some were not inserted.
            OperationFailure: none was; with code TRANSACTION_TOO_OLD none ever will be.
        """
        command: Document = {"insert": collection, "documents": documents, "ordered": False}
        reply = await (self._write(command) if self._fenced else self._write_unfenced(command))
        failed, concern = reply.get("writeErrors", []), reply.get("writeConcernError")
        if failed or concern:
            raise BulkWriteError({"writeErrors": failed, "writeConcernErrors": [concern] if concern else []})

    async def keep(self) -> None:
        """Use the session if it was not used for KEEP_SECONDS, so that MongoDB does not forget its number.

        Raises:
            StoreError: MongoDB does not answer; try again within minutes.
        """
        if boottime() - self._used_at < KEEP_SECONDS:
            return
        async with operation(self._database, STATE, "find"):
            lease = await self._database[STATE].find_one({"_id": self.lease.id}) or {}
            if "lsid" in lease:  # nothing was ever inserted otherwise
                await self._database[STATE].find_one({"_id": self.lease.id}, session=self._session_of(lease["lsid"]))
        self._used_at = boottime()

    async def _raise(self) -> None:
        """Raise the number by a write that changes the lease: without a change it is in no oplog, and a failover forgets it."""
        number = self._next_number()
        change = {"q": self._held(), "u": {"$set": {"raised": Int64(number)}}}
        reply = await self._write({"update": STATE, "updates": [change]}, number)
        if reply.get("writeErrors") or reply.get("writeConcernError"):
            raise StoreUnavailableError(f"the fence against late inserts was not raised: {reply}", reason="write_concern")
        if not reply["n"]:
            raise FencedError("another process has acquired the lease for inserting; nothing was inserted", reason="fenced")

    async def _replace_session(self) -> None:
        """Go on with a new session: the numbers of this one are ahead of the lease, which was restored from a backup, say."""
        _log.warning("the session for inserting has seen higher numbers than its lease; a new session replaces it")
        last = {"q": self._held(), "u": {"$set": {"raised": Int64(_LAST_NUMBER)}}}
        await self._write({"update": STATE, "updates": [last]}, _LAST_NUMBER)
        lsid = Binary(uuid.uuid4().bytes, UUID_SUBTYPE)
        await self._database[STATE].update_one(self._held(), {"$set": {"lsid": lsid}})
        self.lease.document["lsid"] = lsid

    async def _still_held(self) -> bool:
        found = await self._database[STATE].find_one(self._held())
        return found is not None and found["lsid"] == self.lease.document["lsid"]

    def _held(self) -> Document:
        """Return the filter of the lease as this process acquired it last."""
        return {name: self.lease.document[name] for name in ("_id", "owner", "number")}

    def _next_number(self) -> int:
        """Return a txnNumber that no process has used: MongoDB takes a second write with one for a repetition of the first."""
        self._last = max(self._last, self.lease.document["number"] << _COUNTER_BITS) + 1
        return self._last

    async def _write(self, command: Document, number: int | None = None) -> Document:
        """Send a retryable write on the session. The driver does not repeat it, and a repetition would change nothing."""
        command |= {"txnNumber": Int64(number or self._next_number()), "writeConcern": _DURABLE}
        self._used_at = boottime()
        return await self._database.command(command, session=self._session_of(self.lease.document["lsid"]))

    async def _write_unfenced(self, command: Document) -> Document:
        return await self._database.command(command | {"writeConcern": _DURABLE})

    def _session_of(self, lsid: Binary) -> AsyncClientSession:
        """Return the driver's session with this id.

        The driver chooses session ids itself and has no option for one. But `AsyncClientSession.session_id` is the very mapping
        that it sends, and a session that is never ended never returns to its pool, whatever happens to a connection. A test
        runs this with the oldest driver that is supported.
        """
        session = self._session
        if session is None or session.session_id["id"] != lsid:
            session = self._database.client.start_session(causal_consistency=False)
            sent: Any = session.session_id
            sent["id"] = lsid
            if session.session_id["id"] != lsid:
                raise StoreUnavailableError("this version of pymongo hides the ids of its sessions", reason="fence")
            self._session = session
        return session

    def _seconds_left(self) -> float:
        if not self.lease.held:
            raise StoreUnavailableError("the lease for inserting expired before the fence was raised", reason="lease")
        return self.lease.remaining


def fence_problem(hello: Mapping[str, Any]) -> str | None:
    """Return what an operator should know about a server that cannot refuse late inserts; None for a replica set.

    Args:
        hello: answer of the server to the command of that name.
    """
    paused = "an exporter or a job that is paused in the middle of an insert may store samples twice"
    if hello.get("msg") == "isdbgrid":
        return f"a sharded cluster refuses late inserts only while the history is not sharded; else {paused}"
    if not hello.get("setName"):
        return f"a standalone server cannot refuse late inserts, so {paused}; a replica set of one node can: docs/deploy.md"
    return None
