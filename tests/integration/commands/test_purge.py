"""`purge`: what it prints, deletes and refuses."""

import io
import os
import pty
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from pymongo import MongoClient

from exporter.commands import purge
from exporter.core.errors import ConfigError, IncompatibleStoreError
from exporter.core.model import Fleet, Worker, WorkerMetricsSample
from exporter.core.periods import DAY, align, rfc3339, to_datetime
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.storage.inventory import INVENTORY, Inventory
from exporter.storage.lease import BACKFILL, Lease
from exporter.storage.mongo import Database, Document
from exporter.storage.privileges import PURGE_PRIVILEGES, least_role
from exporter.storage.repository import WorkerMetricsRepository
from tests.fixtures.mongo import AuthMongod, connect
from tests.helpers.deadlines import scaled
from tests.helpers.exporter_process import COMMAND

NAME = "worker_metrics_timeseries"
NOW = align(int(time.time()), 300)
UNUSUAL_ID = 'a/b%20 "é"\\π'
LISTED, RECENT = "listed", "recent"


def worker(worker_id: str, name: str | None = None) -> Worker:
    return Worker(worker_id, "eu-west-1", f"i-{worker_id}", "running", name=name)


@dataclass(frozen=True, slots=True)
class Store:
    uri: str
    database: Database

    async def purge(
        self,
        *worker_ids: str,
        yes: bool = True,
        even: bool = False,
        prompt: Callable[[str], str] | None = None,
        wait: float = 5,
    ) -> tuple[int, str]:
        """Run the command and return its exit status and what it printed."""
        out = io.StringIO()
        settings = Settings.model_validate({"mongodb": {"uri": self.uri}})
        status = await purge.run(settings, worker_ids, yes=yes, even_if_listed=even, prompt=prompt, out=out, patience=wait)
        return status, out.getvalue()

    async def stored(self, worker_id: str) -> tuple[int, int]:
        """Return how many samples and inventory entries there are of a worker."""
        samples = await self.database[NAME].count_documents({"worker_id": worker_id})
        return samples, await self.database[INVENTORY].count_documents({"_id": worker_id})


async def fill(database: Database) -> None:
    """Store twelve samples each of two workers that left days ago, one without an entry, one seen an hour ago, one listed."""
    history = WorkerMetricsRepository(database, collection=NAME, period=300, retention=30 * DAY, apply_retention=False)
    await history.ensure_collection()
    for worker_id in ("w1", UNUSUAL_ID, "bare", RECENT, LISTED):
        await history.add_samples(
            [
                WorkerMetricsSample(worker_id, "eu-west-1", to_datetime(NOW - 5 * DAY + 300 * n), cpu_utilization=1.0)
                for n in range(12)
            ]
        )
    inventory = Inventory(database)
    await inventory.record(Fleet(NOW - 4 * DAY, (worker("w1", "lab one"), worker(UNUSUAL_ID), worker("empty"))))
    await inventory.record(Fleet(NOW - 3600, (worker(RECENT), worker(LISTED))))
    await database["workers"].insert_one({"id": LISTED, "aws_region": "eu-west-1", "status": "terminated"})


@pytest.fixture
async def store(mongod: Mongod, database: Database) -> Store:
    await fill(database)
    return Store(mongod.uri.replace("/?", f"/{database.name}?"), database)


# -- what is deleted ---------------------------------------------------------------------------------------------------


async def test_samples_and_inventory_entry_are_deleted_and_those_of_other_workers_stay(store: Store) -> None:
    status, printed = await store.purge("w1")
    first, last = rfc3339(NOW - 5 * DAY), rfc3339(NOW - 5 * DAY + 11 * 300)
    assert printed == (
        f"1 worker document in {store.database.name}.workers, none of them to be deleted.\n"
        f"To be deleted from {store.database.name}.{NAME} and {store.database.name}.{INVENTORY}, permanently:\n"
        f"  w1 (lab one): 12 samples, the first of {first}, the last of {last}, "
        "and its inventory entry (name, status, instances)\n"
        "Deleted 12 samples of w1 and its inventory entry.\n"
    )
    assert status == 0
    assert await store.stored("w1") == (0, 0)
    for other in (UNUSUAL_ID, RECENT, LISTED):
        assert await store.stored(other) == (12, 1)


async def test_several_workers_with_any_id_and_with_only_samples_or_only_an_entry(store: Store) -> None:
    status, printed = await store.purge(UNUSUAL_ID, "bare", "empty", UNUSUAL_ID)
    assert status == 0
    assert printed.splitlines()[-3:] == [
        f"Deleted 12 samples of {UNUSUAL_ID} and its inventory entry.",
        "Deleted 12 samples of bare.",
        "Deleted 0 samples of empty and its inventory entry.",
    ]
    for worker_id in (UNUSUAL_ID, "bare", "empty"):
        assert await store.stored(worker_id) == (0, 0)


async def test_without_yes_or_a_terminal_it_only_prints_what_it_would_delete(store: Store) -> None:
    status, printed = await store.purge("w1", yes=False)
    assert (status, printed.splitlines()[-1]) == (1, "Nothing was deleted. Use --yes to do it.")
    assert await store.stored("w1") == (12, 1)


@pytest.mark.parametrize("answers", [["W1"], ["y"], [""], ["w1", "no"]])
async def test_unless_every_id_is_typed_nothing_is_deleted(store: Store, answers: Sequence[str]) -> None:
    left = list(answers)
    status, printed = await store.purge("w1", "bare", yes=False, prompt=lambda _: left.pop(0))
    assert (status, printed.splitlines()[-1], left) == (1, "Nothing was deleted.", [])
    assert await store.stored("w1") == (12, 1)
    assert await store.stored("bare") == (12, 0)


def test_at_a_terminal_the_id_must_be_typed(store: Store) -> None:
    master, slave = pty.openpty()
    try:
        os.write(master, f"{UNUSUAL_ID}\n".encode())
        done = subprocess.run(
            [*COMMAND, "purge", "--mongodb.uri", store.uri, "--worker", UNUSUAL_ID],
            stdin=slave,
            capture_output=True,
            timeout=scaled(60),
            check=False,
        )
    finally:
        os.close(master)
        os.close(slave)
    assert (done.returncode, done.stderr) == (0, b"")
    printed = done.stdout.decode()
    assert f"Type {UNUSUAL_ID} to delete it, anything else to delete nothing: Deleted 12 samples of {UNUSUAL_ID}" in printed


# -- what is refused ---------------------------------------------------------------------------------------------------


async def test_an_unknown_worker_is_an_error_and_the_others_stay(store: Store) -> None:
    with pytest.raises(ConfigError, match="have nothing of 'w2', so nothing was deleted"):
        await store.purge("w1", "w2")
    assert await store.stored("w1") == (12, 1)


async def test_a_worker_that_is_listed_is_refused_whatever_its_status(store: Store) -> None:
    with pytest.raises(ConfigError) as caught:
        await store.purge("w1", LISTED)
    assert str(caught.value) == (
        f"--worker: 'listed' still has a worker document in {store.database.name}.workers (terminated), so an exporter would "
        "continue to write it, and fill up to 1d (gap_fill_window) again when it starts; remove the document first, or use "
        "--even-if-listed to delete what is stored now"
    )
    assert await store.stored("w1") == (12, 1)


async def test_a_worker_seen_within_the_gap_fill_window_is_refused_with_the_time_to_purge_it(store: Store) -> None:
    with pytest.raises(ConfigError) as caught:
        await store.purge(RECENT)
    assert f"was last seen at {rfc3339(NOW - 3600)}, less than 1d (gap_fill_window) ago" in str(caught.value)
    assert f"purge it after {rfc3339(NOW - 3600 + DAY)}, or use --even-if-listed" in str(caught.value)
    assert await store.stored(RECENT) == (12, 1)


async def test_even_if_listed_deletes_both_and_a_running_exporter_writes_the_listed_workers_entry_again(
    store: Store,
) -> None:
    running = Inventory(store.database)
    await running.record(Fleet(NOW, (worker(LISTED),)))
    assert (await store.purge(RECENT, LISTED, even=True))[0] == 0
    assert [await store.stored(each) for each in (RECENT, LISTED)] == [(0, 0), (0, 0)]
    for later in (300, 600):
        await running.record(Fleet(NOW + later, (worker(LISTED),)))
    assert [await store.stored(each) for each in (RECENT, LISTED)] == [(0, 0), (0, 1)]


async def test_while_a_backfill_runs_nothing_is_deleted_and_afterwards_the_lease_is_free(store: Store) -> None:
    backfill = Lease(store.database, owner="backfill", name=BACKFILL)
    assert await backfill.acquire_or_renew()
    with pytest.raises(
        IncompatibleStoreError, match="a backfill or another purge is running, so nothing was deleted; try again after it"
    ):
        await store.purge("w1", wait=0)
    assert await store.stored("w1") == (12, 1)
    await backfill.release()
    assert (await store.purge("w1", wait=0))[0] == 0
    assert await backfill.acquire_or_renew()


async def test_a_user_without_remove_is_told_to_grant_it_and_needs_nothing_else(mongo_auth: AuthMongod) -> None:
    name = f"test_purge_{os.getpid()}"
    async with connect(mongo_auth.root_uri) as client:
        await fill(client[name])
        less = Store(mongo_auth.exporter_uri(name), client[name])
        with pytest.raises(IncompatibleStoreError) as caught:
            await less.purge("w1")
        printed = str(caught.value)
        assert printed.startswith("MongoDB does not let this user delete (not authorized on")
        assert f"grant it `remove` on {name}.{NAME} and {name}.{INVENTORY}, which only purge needs" in printed
        assert "see docs/manager.md" in printed
        assert await less.stored("w1") == (12, 1)
        more = [
            {"resource": {"db": name, "collection": collection}, "actions": list(actions)}
            for collection, actions in PURGE_PRIVILEGES.items()
        ]
        enough = Store(mongo_auth.user(name, [*least_role(name), *more], name="purger"), client[name])
        assert (await enough.purge("w1"))[0] == 0
        assert await enough.stored("w1") == (0, 0)
        with MongoClient[Document](mongo_auth.root_uri) as root:
            root[name].command("dropAllUsersFromDatabase")
            root[name].command("dropAllRolesFromDatabase")
        await client.drop_database(name)
