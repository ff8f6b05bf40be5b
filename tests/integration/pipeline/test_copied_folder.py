"""A copied data folder is another exporter; a folder whose exporter was killed is taken over at once."""

import shutil
import time
from datetime import UTC, datetime

import pytest
from pymongo import MongoClient

from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Document
from tests.fixtures.process import RunExporter
from tests.helpers.exporter_process import ExporterProcess

TAKEN_OVER_WITHIN = 10
"""Seconds after the start; a lease that was left by another process ends after 30 s."""


def leads(exporter: ExporterProcess) -> bool:
    return exporter.metrics()["cml_exporter_leader"] == 1


@pytest.mark.waits(20)
def test_an_exporter_on_a_copy_stands_by_and_one_on_the_folder_of_a_killed_one_takes_over_at_once(
    mongo_rs: Mongod, run_exporter: RunExporter
) -> None:
    name = "copied_folder"
    settings = {
        "mongodb": {"uri": mongo_rs.uri.replace("/?", f"/{name}?")},
        "cloudwatch": {"enabled": False},
    }
    with MongoClient[Document](mongo_rs.uri) as client:
        client[name]["workers"].insert_one({"_id": "w1", "status": "running"})  # without workers nobody leads
    first = run_exporter(settings)
    copied = first.data_dir.parent / "copy"
    first.wait_for(lambda: leads(first), 30, "the leader")
    shutil.copytree(first.data_dir, copied)
    second = run_exporter({**settings, "data_dir": str(copied)})
    assert (leads(first), leads(second)) == (True, False)
    time.sleep(12)  # longer than the pause between two renewals
    assert (leads(first), leads(second)) == (True, False)

    second.kill()
    first.kill()
    first.start()
    first.wait_for(lambda: leads(first), TAKEN_OVER_WITHIN, "the leader")
    first.kill()
    with MongoClient[Document](mongo_rs.uri, tz_aware=True) as client:
        lease = client[name]["cml_exporter_state"].find_one({"_id": "lease:mirror"}) or {}
        assert lease["fence"] == 2
        second.start()
        # On a copy the lease of the other must end first, which it has when the start takes long.
        assert not leads(second) or datetime.now(UTC) >= lease["expires"]
        client.drop_database(name)
