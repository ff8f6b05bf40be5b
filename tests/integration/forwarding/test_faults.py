"""Targets that a reload adds and removes, with the real databases."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from exporter.core.periods import rfc3339
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from tests.fixtures.process import RunExporter
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.stores import InfluxDBServer, PostgreSQLServer
from tests.integration.forwarding.stand import Stand, label_of, rows, target_of


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def postgresql(servers: ExitStack) -> PostgreSQLServer:
    server = PostgreSQLServer()
    servers.callback(server.remove)
    return server


@pytest.fixture
def influxdb(servers: ExitStack) -> InfluxDBServer:
    server = InfluxDBServer()
    servers.callback(server.remove)
    return server


async def test_a_reload_adds_a_target_for_what_comes_and_removes_one_with_its_backlog(
    mongod: Mongod,
    database: Database,
    fake_cloudwatch: FakeCloudWatch,
    run_exporter: RunExporter,
    postgresql: PostgreSQLServer,
    influxdb: InfluxDBServer,
) -> None:
    first, second = target_of(postgresql), target_of(influxdb)
    postgresql.kill()
    stand = Stand(mongod, database, fake_cloudwatch, run_exporter, [first])
    await stand.add_workers(6)
    await stand.start()
    await stand.mirrored()
    await asyncio.to_thread(stand.exporter.wait_for, lambda: stand.pending(first) >= 6 * 60, 60, "full of samples")
    stand.settings["history"]["forward"] = [second]
    stand.reload()
    series = f'cml_exporter_forward_pending_samples{{target="{label_of(second)}"}}'
    await asyncio.to_thread(stand.exporter.wait_for, lambda: series in stand.exporter.metrics(), 60, "reloaded")
    assert label_of(first) not in stand.exporter.get("/metrics").text
    assert "changed settings: history.forward" in stand.exporter.logged()
    before = await stand.ledger()
    await stand.stop()
    await stand.add_workers(6)
    await stand.start()
    await stand.mirrored()
    await stand.forwarded(second)
    known = {row[:2] for row in before}
    assert rows(influxdb) == [row for row in await stand.ledger() if row[:2] not in known]
    stand.settings["history"]["forward"] = [{"type": "influxdb", "url": "http://me:hidden@127.0.0.1"}]
    stand.reload()
    await asyncio.to_thread(
        stand.exporter.wait_for, lambda: "not reloaded" in stand.exporter.logged(), 60, "told of the mistake"
    )
    assert "history.forward.0: url must end with the database" in stand.exporter.logged()
    assert "hidden" not in stand.exporter.logged()
    assert await stand.ready(second) is None, rfc3339(int(time.time()))
