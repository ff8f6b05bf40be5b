"""Documents that a later release wrote, with keys that this one does not know: a rollback works, nothing is lost or refused."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exporter.storage.inventory import Inventory
from exporter.storage.mongo import STATE, Database
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.in_process_exporter import Clock, InProcessExporter
from tests.integration.pipeline.test_faults import HOUR, add_instances, insert_workers

LATER = {"later": {"version": 9, "list": [1, None]}}


@pytest.fixture
async def exporter(tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> AsyncIterator[InProcessExporter]:
    members = add_instances(fake, int(clock()) - HOUR)
    await insert_workers(database, members)
    made = InProcessExporter(tmp_path / "data", database, fake, clock)
    yield made
    await made.close()


async def test_unknown_keys_in_every_stored_document_are_ignored(
    exporter: InProcessExporter, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    await exporter.round(3)
    for name in (STATE, "worker_metrics_inventory"):
        assert (await database[name].update_many({}, {"$set": LATER})).modified_count > 0
    await database["worker_metrics_inventory"].update_many({}, {"$set": {"instances.$[].later": 1}})
    await database["worker_metrics_timeseries"].insert_one(
        {"worker_id": "worker-0", "timestamp": (await exporter.documents())[0]["timestamp"].replace(year=2020), **LATER}
    )
    exporter.collector.lead()  # as after a start: read everything again
    await exporter.history.ensure_collection()
    await exporter.round(8)
    assert exporter.errors == []
    assert exporter.lease.held
    documents = await exporter.documents(timestamp={"$gte": (await exporter.documents())[-1]["timestamp"].replace(year=2025)})
    keys = [(document["worker_id"], document["timestamp"]) for document in documents]
    assert len(keys) == len(set(keys)) > 4 * 12
    inventory = Inventory(database)
    await inventory.load()
    assert len(inventory.entries) == 4
    lease = await database[STATE].find_one({"_id": "lease:mirror"})
    assert lease is not None
    assert lease["later"] == LATER["later"], "the later release finds its own keys again"
