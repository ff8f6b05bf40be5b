"""`mongodb.read_preference` with three real members: which of them answers is read from their profilers."""

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient

from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, align, to_datetime
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Document
from exporter.storage.repository import WorkerMetricsRepository
from tests.fixtures.mongo import need_mongod
from tests.fixtures.process import RunExporter
from tests.helpers.replica_set import ReplicaSet

NAME, DATABASE, PERIOD = "worker_metrics_timeseries", "reads", 300
NOW = align(int(time.time()), PERIOD)


async def fill(uri: str) -> None:
    """A worker with an hour of samples."""
    async with AsyncMongoClient[Document](uri, tz_aware=True) as client:
        database = client[DATABASE]
        history = WorkerMetricsRepository(database, collection=NAME, period=PERIOD, retention=30 * DAY)
        await history.ensure_collection()
        samples = [
            WorkerMetricsSample("w1", "eu-west-1", to_datetime(NOW - n * PERIOD), cpu_utilization=float(n), status="running")
            for n in range(1, 12)
        ]
        await history.add_samples(samples)
        document = {"_id": "w1", "name": "one", "aws_region": "eu-west-1", "status": "running", "created_at": to_datetime(NOW)}
        await database["workers"].insert_one(document)


def profiled(members: ReplicaSet, primary: Mongod) -> dict[bool, int]:
    """Whether a member is the primary → how many reads of the history it has answered since its profiler was on."""
    found = {True: 0, False: 0}
    for member in members.members:
        with MongoClient[dict[str, Any]](member.uri) as client:
            reads = {"command.find": NAME, "command.filter.worker_id": "w1"}
            found[member is primary] += client[DATABASE]["system.profile"].count_documents(reads)
    return found


@pytest.mark.parametrize("mode", ["primary", "secondary", "secondaryPreferred"])
async def test_samples_are_read_from_the_member_of_the_setting(tmp_path: Path, run_exporter: RunExporter, mode: str) -> None:
    need_mongod()
    with ReplicaSet(tmp_path / "set") as members:
        await fill(members.uri)
        for member in members.members:
            with MongoClient[dict[str, Any]](member.uri) as client:
                client[DATABASE].command("profile", 2)
        settings = {
            "mongodb": {"uri": members.uri.replace("/?", f"/{DATABASE}?"), "read_preference": mode},
            "cloudwatch": {"enabled": False},
        }
        exporter = await asyncio.to_thread(partial(run_exporter, settings))
        path, primary = f"/api/workers/w1/metrics/history?start={NOW - HOUR}&end={NOW}", None
        while members.primary() is not primary:  # again after an election, which a busy machine has now and then
            primary = members.primary()
            before = profiled(members, primary)
            answer = await asyncio.to_thread(exporter.get, path)
            assert [row["cpu_utilization"] for row in answer.json()["data"]] == [float(n) for n in range(11, 0, -1)]
            after = profiled(members, primary)
    by_secondaries, by_primary = after[False] - before[False], after[True] - before[True]
    assert (by_secondaries > 0, by_primary > 0) == (mode != "primary", mode == "primary")


def test_a_staleness_that_mongodb_cannot_tell_is_refused() -> None:
    with pytest.raises(ValueError, match="max_staleness 30s must be at least 90s"):
        Settings.model_validate({"mongodb": {"uri": "mongodb://host/", "max_staleness": "30s"}})
