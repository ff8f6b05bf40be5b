"""Find a time-series collection by its name: its UUID, its options, and what else may have the name."""

from dataclasses import dataclass
from uuid import UUID

from exporter.core.errors import IncompatibleStoreError, StoreUnavailableError
from exporter.storage.mongo import OPERATION_SECONDS, Database, Document, operation

_REMEDY = "rename or drop it, or give mongodb.history another name"


@dataclass(frozen=True, slots=True)
class Listing:
    """What MongoDB lists under a name."""

    kind: str
    """`timeseries`, `collection`, or `view`."""
    uuid: str
    """Differs for each collection that is ever created under the name; empty where the server tells none."""
    options: Document


async def list_collection(database: Database, name: str, seconds: float = OPERATION_SECONDS) -> Listing | None:
    """Return what MongoDB lists under `name`, None: nothing.

    Args:
        database: where the collection is.
        name: of the collection.
        seconds: the limit.

    Raises:
        StoreError: or one of its kinds.
    """
    buckets = f"system.buckets.{name}"  # up to MongoDB 8 the time series is a view on these, and they have the UUID
    async with operation(database, name, "listCollections", seconds):
        cursor = await database.list_collections(filter={"name": {"$in": [name, buckets]}})
        found = {each["name"]: each for each in await cursor.to_list(None)}
    if name not in found:
        return None
    infos = [found[each].get("info", {}) for each in (name, buckets) if each in found]
    uuids = [_text(info["uuid"]) for info in infos if "uuid" in info]
    return Listing(found[name].get("type", "collection"), uuids[0] if uuids else "", dict(found[name].get("options", {})))


async def find_history(database: Database, name: str, seconds: float = OPERATION_SECONDS) -> Listing | None:
    """Return the time-series collection `name` of the history, None: there is nothing of that name.

    Raises:
        StoreUnavailableError: `dropped`: it is being dropped now.
        IncompatibleStoreError: `collection`: the name is taken by something that is not a history.
    """
    found = await list_collection(database, name, seconds)
    if found is None:
        return None
    namespace = f"{database.name}.{name}"
    if found.kind != "timeseries":
        kind = "normal collection" if found.kind == "collection" else found.kind
        raise IncompatibleStoreError(f"{namespace} is a {kind}, not a time-series collection; {_REMEDY}", reason="collection")
    if "timeseries" not in found.options:  # MongoDB drops the buckets first, then the view on them
        raise StoreUnavailableError(f"{namespace} is being dropped; it will be tried again", reason="dropped")
    fields = [found.options["timeseries"].get(field) for field in ("timeField", "metaField")]
    if fields != ["timestamp", "worker_id"]:
        raise IncompatibleStoreError(
            f"{namespace} is a time-series collection with timeField {fields[0]} and metaField {fields[1]}, "
            f"but the history needs timestamp and worker_id; {_REMEDY}",
            reason="collection",
        )
    return found


def _text(uuid: UUID | bytes) -> str:
    """Return a UUID in hexadecimal digits, whichever representation the client was made with."""
    return uuid.hex if isinstance(uuid, UUID) else uuid.hex()
