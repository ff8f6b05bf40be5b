"""A target that is away, hangs, or refuses costs MongoDB and the other targets nothing, and what is dropped is counted."""

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import psycopg
import pytest

from exporter.core.periods import rfc3339
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from tests.fixtures.process import RunCommand, RunExporter
from tests.helpers.deadlines import scaled
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


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Accepts connections, and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield listener


@pytest.mark.nightly("test_targets_are_independent")
async def test_a_target_that_never_answers_holds_up_neither_mongodb_nor_the_other_target(
    mongod: Mongod,
    database: Database,
    fake_cloudwatch: FakeCloudWatch,
    run_exporter: RunExporter,
    postgresql: PostgreSQLServer,
    silent: socket.socket,
) -> None:
    hanging = {"type": "influxdb", "url": f"http://me:hidden@127.0.0.1:{silent.getsockname()[1]}/cml", "name": "hanging"}
    good = target_of(postgresql)
    stand = Stand(mongod, database, fake_cloudwatch, run_exporter, [hanging, good])
    await stand.add_workers(10)
    await stand.start()
    await stand.mirrored()
    await stand.forwarded(good)
    assert rows(postgresql) == await stand.ledger()
    assert stand.lacks(hanging) >= 10 * 60
    deadline = time.monotonic() + scaled(90)
    while (error := await stand.ready(hanging)) is None:
        assert time.monotonic() < deadline, stand.exporter.tail()
        await asyncio.sleep(0.5)
    assert "hanging has not answered in time" in error or "does not answer" in error
    assert await stand.ready(good) is None
    assert "hidden" not in stand.exporter.log.read_text() + stand.exporter.get("/metrics").text
    await stand.stop()  # and it does not hold up the end, either


@pytest.mark.nightly("test_beyond_the_limit_the_oldest_are_dropped_counted_and_named_in_the_log")
async def test_beyond_the_limit_the_oldest_are_dropped_and_an_export_brings_them(
    mongod: Mongod,
    database: Database,
    fake_cloudwatch: FakeCloudWatch,
    run_exporter: RunExporter,
    run_command: RunCommand,
    postgresql: PostgreSQLServer,
) -> None:
    away = target_of(postgresql)
    postgresql.kill()
    stand = Stand(mongod, database, fake_cloudwatch, run_exporter, [away], forward_max_samples=1000)
    await stand.add_workers(20)
    await stand.start()
    await stand.mirrored()
    ledger = await stand.ledger()
    lost = len(ledger) - 1000
    await asyncio.to_thread(stand.exporter.wait_for, lambda: stand.pending(away) == len(ledger), 60, "beyond its limit")
    await stand.stop()
    stand.make_older(700)
    await stand.start()
    await asyncio.to_thread(
        stand.exporter.wait_for, lambda: stand.metric("samples_dropped_total", away, reason="limit") == lost, 60, "at its limit"
    )
    assert "export --to" in stand.exporter.logged()
    postgresql.start()
    await stand.forwarded(away)
    assert len(rows(postgresql)) == 1000
    command = ("export", "--config.file", stand.exporter.config, "--since", "1d", "--to", postgresql.address)
    done: subprocess.CompletedProcess[str] = await asyncio.to_thread(
        run_command, *command, "--data-dir", stand.exporter.directory / "export"
    )
    assert done.returncode == 0, done.stderr
    assert rows(postgresql) == ledger


@pytest.mark.nightly("test_samples_that_a_store_refuses_are_found_dropped_and_counted_and_the_others_are_there")
async def test_what_a_target_refuses_for_good_is_dropped_there_and_the_rest_arrives(
    mongod: Mongod,
    database: Database,
    fake_cloudwatch: FakeCloudWatch,
    run_exporter: RunExporter,
    postgresql: PostgreSQLServer,
    influxdb: InfluxDBServer,
) -> None:
    # InfluxDB keeps three hours of six; PostgreSQL has a rule that one worker breaks, and another user's privileges.
    query = {"q": "CREATE DATABASE cml WITH DURATION 3h SHARD DURATION 1h"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{influxdb.port}", trust_env=False, timeout=scaled(30)) as http:
        (await http.post("/query", params=query)).raise_for_status()
    short, strict = target_of(influxdb), target_of(postgresql)
    stand = Stand(mongod, database, fake_cloudwatch, run_exporter, [short, strict])
    await stand.add_workers(10)
    with psycopg.connect(postgresql.address, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE cml_worker_metrics (worker_id text CHECK (worker_id <> 'worker 003'), \"timestamp\" timestamptz, "
            "region text, cpu_utilization float8, memory_utilization float8, active_labs_count float8, status text, "
            'PRIMARY KEY (worker_id, "timestamp"))'
        )
        connection.execute("CREATE ROLE exporter LOGIN")
    strict["url"] = strict["url"].replace("user=postgres", "user=exporter")
    stand.settings["history"]["forward"][1] = strict
    stand.write_settings()
    await stand.start()
    await stand.mirrored()
    await asyncio.to_thread(
        stand.exporter.wait_for, lambda: stand.metric("failures_total", strict, reason="refused") > 0, 60, "refused"
    )
    assert "permission denied" in str(await stand.ready(strict))
    assert stand.lacks(strict) >= 10 * 60, "samples were dropped for want of privileges"
    with psycopg.connect(postgresql.address, autocommit=True) as connection:
        connection.execute("GRANT SELECT, INSERT, UPDATE ON cml_worker_metrics TO exporter")
        connection.execute("GRANT ALL ON SCHEMA public TO exporter")
    await stand.forwarded(short, strict)
    ledger = await stand.ledger()
    kept = [row for row in ledger if row[0] != "worker 003"]
    assert rows(postgresql) == kept
    await asyncio.to_thread(
        stand.exporter.wait_for,
        lambda: stand.metric("samples_dropped_total", strict, reason="invalid") == len(ledger) - len(kept),
        60,
        "seen to have dropped them",
    )
    found = rows(influxdb)
    gone = int(stand.metric("samples_dropped_total", short, reason="retention"))
    assert 0 < gone == len(ledger) - len(found)
    assert found == [row for row in ledger if row[1] >= min(each[1] for each in found)]
    assert "refuses samples for good" in stand.exporter.logged()
    assert await stand.ready(short) is None
    assert await stand.ready(strict) is None


@pytest.mark.nightly("test_a_reload_adds_a_target_from_then_on_and_forgets_a_removed_one")
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
