"""`mongodb.read_preference` with three real members: which of them answers is read from their profilers."""

import asyncio
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.read_preferences import SecondaryPreferred

from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, align, to_datetime
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Document, read_preference
from exporter.storage.repository import WorkerMetricsRepository
from tests.fixtures.mongo import need_mongod
from tests.fixtures.process import RunExporter
from tests.helpers import prompb
from tests.helpers.exporter_process import ExporterProcess
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


def kind_of(command: Document) -> str | None:
    """Return which of the routes' queries a profiled command is; None: another one, such as the collector's."""
    stages = str(command.get("pipeline", ""))
    if "'status': {'$push'" in stages and "cpu_utilization_sum" not in stages:
        return "samples"
    if "cpu_utilization_sum" in stages:
        return "statistics"
    return "remote read" if "'values': {'$push': '$cpu_utilization'}" in stages else None


def profiled(members: ReplicaSet, primary: Mongod) -> Counter[tuple[str, bool]]:
    """Count the routes' queries since the profilers are on by their kind, and by whether the primary answered."""
    found: Counter[tuple[str, bool]] = Counter()
    for member in members.members:
        with MongoClient[Document](member.uri) as client:
            for entry in client[DATABASE]["system.profile"].find({"op": {"$in": ["query", "command"]}}):
                if (kind := kind_of(entry["command"])) is not None:
                    found[kind, member is primary] += 1
    return found


def read_all(exporter: ExporterProcess) -> None:
    """Query samples, statistics, and a series of remote read, all of which have the eleven values."""
    path, values = f"/api/workers/w1/metrics/history?start={NOW - HOUR}&end={NOW}", [float(n) for n in range(11, 0, -1)]
    assert [row["cpu_utilization"] for row in exporter.get(path).json()["data"]] == values
    rows = exporter.get(f"{path}&interval=2h&percentiles=true").json()["data"]
    assert sum(row["cpu_utilization"]["samples"] for row in rows) == len(values)
    assert max(row["cpu_utilization"]["p99"] for row in rows) == max(values)
    matchers = [("__name__", "=", "cml_worker_cpu_utilization_ratio"), ("store", "=", "history")]
    body = prompb.request(((NOW - HOUR) * 1000, NOW * 1000, matchers))
    (found,) = prompb.parse_response(exporter.post("/api/v1/read", content=body).content)
    assert [[value for _, value in series] for series in found.values()] == [[value / 100 for value in values]]


@pytest.mark.nightly("test_the_driver_is_told_the_staleness")
async def test_samples_are_read_from_the_member_of_the_setting(tmp_path: Path, run_exporter: RunExporter) -> None:
    need_mongod()
    with ReplicaSet(tmp_path / "set") as members:
        await fill(members.uri)
        for member in members.members:
            with MongoClient[Document](member.uri) as client:
                client[DATABASE].command("profile", 2)
        for mode in ("primary", "secondary", "secondaryPreferred"):
            settings = {
                "mongodb": {"uri": members.uri.replace("/?", f"/{DATABASE}?"), "read_preference": mode},
                "cloudwatch": {"enabled": False},
            }
            exporter = await asyncio.to_thread(partial(run_exporter, settings))
            primary = None
            while members.primary() is not primary:  # again after an election, which a busy machine has now and then
                primary = members.primary()
                before = profiled(members, primary)
                await asyncio.to_thread(read_all, exporter)
                answered = profiled(members, primary) - before
            assert set(answered) == {(kind, mode == "primary") for kind in ("samples", "statistics", "remote read")}, mode
            exporter.kill()


def test_the_driver_is_told_the_staleness() -> None:
    chosen = {"uri": "mongodb://host/", "read_preference": "secondaryPreferred", "max_staleness": "2m"}
    assert read_preference(Settings.model_validate({"mongodb": chosen})) == SecondaryPreferred(max_staleness=120)


def test_a_staleness_that_mongodb_cannot_tell_is_refused() -> None:
    with pytest.raises(ValueError, match="max_staleness 30s must be at least 90s"):
        Settings.model_validate({"mongodb": {"uri": "mongodb://host/", "max_staleness": "30s"}})
