"""The stand of the fault tests: a MongoDB of its own that a test may kill, a CloudWatch, and an exporter on them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from exporter.demo.mongod import Mongod
from tests.fixtures.mongo import need_mongod
from tests.fixtures.process import RunExporter
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.mongod import NO_TTL
from tests.helpers.ports import free_port
from tests.integration.faults.stand import Stand, add_fleet, fast_settings

DATABASE = "faults"


@pytest.fixture
def own_replica_set(tmp_path: Path) -> Iterator[Mongod]:
    """A replica set of one node, of this test alone."""
    need_mongod()
    with Mongod(tmp_path / "mongod", free_port(), replica_set=True, parameters=NO_TTL) as server:
        yield server
        server.kill()  # it may be stopped by SIGSTOP, or without a primary


@pytest.fixture
def fast_cloudwatch(aws_credentials: None) -> Iterator[FakeCloudWatch]:
    """A CloudWatch with detailed monitoring."""
    with FakeCloudWatch(period=60) as fake:
        yield fake


@pytest.fixture
def stand(own_replica_set: Mongod, fast_cloudwatch: FakeCloudWatch, run_exporter: RunExporter) -> Stand:
    """An exporter that has written history, with everything well."""
    with MongoClient[dict[str, Any]](own_replica_set.uri) as client:
        add_fleet(client, DATABASE, fast_cloudwatch)
    uri = own_replica_set.uri.replace("/?", f"/{DATABASE}?")
    exporter = run_exporter(fast_settings(uri, fast_cloudwatch))
    found = Stand(exporter, own_replica_set, fast_cloudwatch, own_replica_set.uri, DATABASE)
    found.wait_until_well()
    return found
