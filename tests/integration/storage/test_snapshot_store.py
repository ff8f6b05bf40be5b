"""The leader's snapshot in a real MongoDB."""

from exporter.core.cloudwatch_snapshot import CloudWatchSnapshot
from exporter.core.model import Datapoint
from exporter.storage.mongo import STATE, Database
from exporter.storage.snapshot_store import FORMAT, SnapshotStore

NOW = 1_790_000_000


def snapshot(at: int) -> CloudWatchSnapshot:
    return CloudWatchSnapshot(at, {"cpu": {"i-1": Datapoint(at - 300, 12.5)}, "memory": {}}, {"i-1": "123456789012"})


async def test_the_last_snapshot_is_read_once(database: Database) -> None:
    store = SnapshotStore(database, "lease:mirror")
    assert await store.read(0) is None
    await store.write(snapshot(NOW))
    assert await store.read(0) == snapshot(NOW)
    assert await store.read(NOW) is None
    await store.write(snapshot(NOW + 300))
    assert await store.read(NOW) == snapshot(NOW + 300)
    assert await database[STATE].count_documents({}) == 1


async def test_an_older_snapshot_does_not_replace_a_newer_one(database: Database) -> None:
    """That of a process which was paused while another one took over."""
    store = SnapshotStore(database, "lease:mirror")
    await store.write(snapshot(NOW))
    await store.write(snapshot(NOW - 300))
    assert await store.read(0) == snapshot(NOW)


async def test_each_lease_has_a_snapshot_of_its_own_and_that_of_another_format_is_left(database: Database) -> None:
    await SnapshotStore(database, "lease:mirror").write(snapshot(NOW))
    assert await SnapshotStore(database, "lease:other").read(0) is None
    await database[STATE].update_one({"_id": "snapshot:mirror"}, {"$set": {"format": FORMAT + 1}})
    assert await SnapshotStore(database, "lease:mirror").read(0) is None
