"""Exporters on copies of one data_dir on one host: each finds the other's backlog in its own outbox, and both may lead."""

import shutil
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from pymongo import MongoClient

from exporter.core.periods import to_datetime
from exporter.demo.mongod import Mongod
from tests.fixtures.process import RunExporter
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.reliability import record
from tests.integration.faults.stand import WORKERS, Stand, add_fleet, fast_settings

pytestmark = pytest.mark.timeout(600)

AGE_SECONDS = 12 * 3600
"""How long the fleet has run when the first exporter starts: the samples of its backlog."""
ALL_CALLS = 10**6


@pytest.mark.nightly("test_an_exporter_on_a_copy_stands_by_and_one_on_the_folder_of_a_killed_one_takes_over_at_once")
@pytest.mark.waits(150)
@pytest.mark.parametrize("kind", ["replica set", "standalone"])
def test_exporters_on_copies_of_one_folder_lose_and_double_nothing(
    kind: str, request: pytest.FixtureRequest, fast_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    """Both get the same backlog; the one that leads is killed while it mirrors, so that the other mirrors the same periods."""
    server: Mongod = request.getfixturevalue("mongo_rs" if kind == "replica set" else "mongod")
    name = f"copied_{time.monotonic_ns()}"
    uri = server.uri.replace("/?", f"/{name}?")
    with MongoClient[dict[str, Any]](server.uri, tz_aware=True) as client:
        add_fleet(client, name, fast_cloudwatch, age=AGE_SECONDS)
        history = client[name]["worker_metrics_timeseries"]
        settings = fast_settings(uri, fast_cloudwatch)
        fast_cloudwatch.fault("*", "hang", ALL_CALLS)  # the backlog stays in the outbox
        original = run_exporter(settings)
        original.wait_for(lambda: 'msg="gaps opened"' in original.logged(), 60, "a backlog")
        original.kill()
        folder = original.data_dir.parent / "copy"
        shutil.copytree(original.data_dir, folder)
        copy = run_exporter({**settings, "data_dir": str(folder)}, start=False)
        fast_cloudwatch.clear()
        since = int(time.time())
        for exporter in (original, copy):
            exporter.start()
        pair = (original, copy)
        original.wait_for(lambda: any(each.metrics().get("cml_exporter_leader") == 1 for each in pair), 60, "a leader")
        leader = next(each for each in pair if each.metrics().get("cml_exporter_leader") == 1)
        leader.wait_for(lambda: history.estimated_document_count() > 0, 60, "the first samples")
        leader.kill()
        other = copy if leader is original else original
        other.wait_for(lambda: other.metrics().get("cml_exporter_leader") == 1, 90, "the other one takes over")
        leader.start()
        wanted = WORKERS * (AGE_SECONDS // 60 - 5)
        stand = Stand(other, server, fast_cloudwatch, server.uri, name)
        began = to_datetime(since - AGE_SECONDS) + timedelta(minutes=2)

        def written() -> int:
            found = history.find(
                {"timestamp": {"$gte": began, "$lt": to_datetime(since)}, "cpu_utilization": {"$exists": True}}
            )
            return len({(each["worker_id"], each["timestamp"]) for each in found})

        other.wait_for(lambda: written() >= wanted, 120, f"{wanted} samples of the backlog")
        lost, _ = stand.figures(since + 60, since + 120)
        keys = Counter((each["worker_id"], each["timestamp"]) for each in history.find({}))
        client.drop_database(name)
    doubled = sum(keys.values()) - len(keys)
    assert (lost, doubled) == (0, 0)
    if kind == "replica set":
        record("data-dir-copied", lost=lost, doubled=doubled, note=f"of {sum(keys.values()):,}")
    else:
        record("data-dir-copied-standalone", lost=lost, doubled=doubled, note=f"of {sum(keys.values()):,}")
