"""The snapshot of the exporter that leads, as one document in cml_exporter_state, replaced in place.

Columns in BSON, compressed: 10,000 workers are a few hundred KB, so that far more than any fleet fit into the 16 MB of a
document. It needs no privilege that the lease does not need.
"""

import asyncio
import struct
import zlib
from collections.abc import Mapping

import bson
from bson.errors import BSONError
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

from exporter.core.cloudwatch_snapshot import CloudWatchSnapshot
from exporter.core.errors import StoreError
from exporter.core.model import Datapoint
from exporter.core.periods import to_datetime, to_seconds
from exporter.storage.mongo import STATE, Database, Document, durable, operation

FORMAT = 1
"""Of the document; an exporter of another format is one of another version, and its snapshot is not read."""
_COMPRESSION = 1
"""The level of zlib: higher ones take three times as long for a tenth less."""
_NO_TIME = -1


class SnapshotStore:
    """The last snapshot of the exporter that holds a lease.

    Args:
        database: of an AsyncMongoClient; its options don't matter.
        lease_id: the `_id` of the lease's document.
    """

    def __init__(self, database: Database, lease_id: str) -> None:
        self._database = durable(database)
        # Losing one in a failover costs nothing: the next collection cycle writes another.
        self._state = self._database[STATE].with_options(write_concern=WriteConcern(1))
        self.id = lease_id.replace("lease:", "snapshot:", 1)
        """The `_id` of its document."""

    async def write(self, snapshot: CloudWatchSnapshot) -> None:
        """Replace the stored snapshot, unless that is a newer one.

        Raises:
            StoreError: it is not known to be stored.
        """
        columns = await asyncio.to_thread(encode, snapshot)
        at = to_datetime(snapshot.at)
        async with operation(self._database, STATE, "update"):
            try:
                await self._state.replace_one(
                    {"_id": self.id, "at": {"$lte": at}}, {"at": at, "format": FORMAT, "columns": columns}, upsert=True
                )
            except DuplicateKeyError:  # of a process that was paused meanwhile: there is a newer one
                return

    async def read(self, newer_than: int) -> CloudWatchSnapshot | None:
        """Return the stored snapshot; None where there is none `newer_than` these UTC seconds.

        Raises:
            StoreError: it cannot be read.
        """
        newer: Document = {"_id": self.id, "format": FORMAT, "at": {"$gt": to_datetime(newer_than)}}
        async with operation(self._database, STATE, "find"):
            found = await self._state.find_one(newer)
        if found is None:
            return None
        try:
            return await asyncio.to_thread(decode, to_seconds(found["at"]), found["columns"])
        except (zlib.error, struct.error, BSONError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._database.name}.{STATE} has a damaged document {self.id} ({type(error).__name__}: {error}); "
                "the exporter that leads replaces it with its next collection cycle",
                reason="invalid_document",
            ) from error


def encode(snapshot: CloudWatchSnapshot) -> bytes:
    """Return the compressed columns of a snapshot: one row for each instance, sorted, and two columns for each metric."""
    instances = sorted({*snapshot.accounts, *(name for points in snapshot.points.values() for name in points)})
    return zlib.compress(
        bson.encode(
            {
                "instances": "\n".join(instances),
                "accounts": "\n".join(snapshot.accounts.get(name, "") for name in instances) if snapshot.accounts else "",
                "metrics": {metric: _columns(instances, points) for metric, points in snapshot.points.items()},
            }
        ),
        _COMPRESSION,
    )


def _columns(instances: list[str], points: Mapping[str, Datapoint]) -> Document:
    missing = Datapoint(_NO_TIME, 0.0)
    rows = [points.get(name, missing) for name in instances]
    return {
        "times": struct.pack(f"<{len(rows)}q", *(row.timestamp for row in rows)),
        "values": struct.pack(f"<{len(rows)}d", *(row.value for row in rows)),
    }


def decode(at: int, columns: bytes) -> CloudWatchSnapshot:
    """Return the snapshot of `at` (UTC seconds) that `encode` has made.

    Raises:
        zlib.error, struct.error, BSONError, ValueError, KeyError, TypeError: it has not.
    """
    found = bson.decode(zlib.decompress(columns))
    instances, accounts = found["instances"].splitlines(), found["accounts"].split("\n")
    points, count = {}, len(instances)
    for metric, column in found["metrics"].items():
        times, values = struct.unpack(f"<{count}q", column["times"]), struct.unpack(f"<{count}d", column["values"])
        rows = zip(instances, times, values, strict=True)
        points[metric] = {name: Datapoint(time, value) for name, time, value in rows if time != _NO_TIME}
    known = zip(instances, accounts, strict=True) if found["accounts"] else ()
    return CloudWatchSnapshot(at, points, {name: account for name, account in known if account})
