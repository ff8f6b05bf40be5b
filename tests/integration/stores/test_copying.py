"""`export --to` with the real databases: what they have is what MongoDB has, whatever was killed on the way."""

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import DAY, align, to_datetime, to_seconds
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from exporter.storage.repository import WorkerMetricsRepository
from tests.helpers.cases import by_day
from tests.helpers.deadlines import scaled
from tests.helpers.exporter_process import COMMAND
from tests.helpers.stores import SERVERS, Row, StoreServer, VictoriaMetricsServer

NAME = "worker_metrics_timeseries"
PERIOD = 300
NOW = align(int(time.time()), PERIOD)
ODD = 'lab "7", a=b c\\'
"""A worker id with all that the line protocol escapes or cannot hold."""
WORKERS = ("w1", "w2", "w3", ODD)
SAMPLES = 500

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    made = SERVERS[request.param]()
    yield made
    made.remove()


def at_night_but(name: str) -> pytest.MarkDecorator:
    """Run a test with one of the servers in `make test`, with the others at night: by day each has a test."""
    at_night = pytest.mark.nightly("test_a_store_has_what_mongodb_has_and_has_it_once_after_a_second_export")
    return pytest.mark.parametrize("server", by_day([name], SERVERS, at_night), indirect=True)


@pytest.fixture
async def history(database: Database) -> WorkerMetricsRepository:
    """Four workers with two days of samples, in which everything that may be missing is."""
    repository = WorkerMetricsRepository(database, collection=NAME, period=PERIOD, retention=30 * DAY, apply_retention=False)
    await repository.ensure_collection()
    for worker_id in WORKERS:
        samples = [
            WorkerMetricsSample(
                worker_id,
                "eu-west-1",
                to_datetime(NOW - n * PERIOD),
                cpu_utilization=n / 8,
                memory_utilization=n / 16 if n % 7 else None,
                active_labs_count=n % 4 if n % 3 else None,
                status=("running", "stopped", None)[n % 3],
            )
            for n in range(1, SAMPLES + 1)
        ]
        await repository.writer.insert(samples)
    return repository


@pytest.fixture
def command(history: WorkerMetricsRepository, mongod: Mongod, database: Database, tmp_path: Path) -> list[str]:
    uri = mongod.uri.replace("/?", f"/{database.name}?")
    return [*COMMAND, "export", "--mongodb.uri", uri, "--data-dir", str(tmp_path / "data"), "--since", "7d"]


async def ledger(database: Database) -> list[Row]:
    """What MongoDB has, in the form of `StoreServer.rows`."""
    documents = await database[NAME].find().to_list(None)
    fields = ("cpu_utilization", "memory_utilization", "active_labs_count")
    return sorted(
        (
            (
                each["worker_id"].replace("\\", "�"),
                to_seconds(each["timestamp"]) * 1000,
                {field: float(each[field]) for field in fields if field in each},
                each.get("status"),
            )
            for each in documents
        ),
        key=lambda row: row[:2],
    )


def as_stored(rows: list[Row]) -> list[Row]:
    """Rows with the differences of the stores removed: the backslash of a tag, and the last digits, of which one keeps 12."""
    return [
        (worker_id.replace("\\", "�"), at, {name: round(value, 6) for name, value in fields.items()}, status)
        for worker_id, at, fields, status in rows
    ]


def started(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> str:
    """Wait for the end of a process and return what it said."""
    return process.communicate(timeout=scaled(120))[1]


async def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=scaled(120), check=False, stdin=subprocess.DEVNULL
    )


@at_night_but("victoriametrics")
async def test_a_store_has_what_mongodb_has_and_has_it_once_after_a_second_export(
    command: list[str], server: StoreServer, database: Database, tmp_path: Path
) -> None:
    for _ in range(2):
        done = await run(*command, "--to", server.address)
        assert done.returncode == 0, done.stderr
        total = len(WORKERS) * SAMPLES
        assert f"Copied {total:,} samples of {len(WORKERS)} workers" in done.stderr
        assert f"it has {total:,} of this time" in done.stderr
        assert as_stored(server.rows()) == as_stored(await ledger(database))
    assert not list((tmp_path / "data").glob("export-*")), "a finished export is forgotten"


@at_night_but("postgresql")
async def test_a_killed_export_continues_and_nothing_is_lost_or_doubled(
    command: list[str], server: StoreServer, database: Database, tmp_path: Path
) -> None:
    slow = [*command, "--to", server.address, "--rate", "600"]
    process = started(slow)
    deadline = time.monotonic() + scaled(60)
    while not _done(tmp_path / "data"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        await asyncio.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    ended(process)
    done = await run(*command, "--to", server.address)
    assert done.returncode == 0, done.stderr
    assert "of an interrupted export" in done.stderr
    assert f"Copied {len(WORKERS) * SAMPLES:,} samples" in done.stderr
    assert as_stored(server.rows()) == as_stored(await ledger(database))


def on_a_terminal(command: list[str]) -> str:
    """Run a command that succeeds with a terminal as standard error; return what it showed there."""
    terminal, shown = pty.openpty()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=shown)
    os.close(shown)
    pieces = []
    with contextlib.suppress(OSError):  # which is how Linux says that the command has ended
        while piece := os.read(terminal, 4096):
            pieces.append(piece)
    os.close(terminal)
    assert process.wait(scaled(20)) == 0, b"".join(pieces)
    return b"".join(pieces).decode()


async def test_a_copy_keeps_its_rate_and_shows_a_bar_on_a_terminal(command: list[str]) -> None:
    server = SERVERS["victoriametrics"]()
    try:
        said = await asyncio.to_thread(on_a_terminal, [*command, "--to", server.address, "--rate", "600"])
    finally:
        server.remove()
    assert "exporting" in said
    (seconds,) = re.findall(r"in ([\d.]+) s; it has", said)
    assert float(seconds) >= len(WORKERS) * SAMPLES / 600 - 0.1


def _done(folder: Path) -> str:
    for file in folder.glob("export-*.json"):
        return str(json.loads(file.read_text())["done"])
    return ""


@at_night_but("victoriametrics")
async def test_a_store_that_is_killed_and_comes_back_gets_all(
    command: list[str], server: StoreServer, database: Database, tmp_path: Path
) -> None:
    process = started([*command, "--to", server.address, "--rate", "600"])
    deadline = time.monotonic() + scaled(60)
    while not _done(tmp_path / "data"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    server.kill()
    server.start()
    said = await asyncio.to_thread(ended, process)
    if process.returncode == 1:  # VictoriaMetrics had acknowledged samples that were not on the disk yet
        assert "are missing there; run the same command again" in said
        done = await run(*command, "--to", server.address)
        assert done.returncode == 0, done.stderr
    assert as_stored(server.rows()) == as_stored(await ledger(database))


@pytest.mark.waits(35)
@at_night_but("influxdb")
async def test_a_store_that_is_away_ends_the_export_with_what_to_do_and_without_the_password(
    command: list[str], server: StoreServer
) -> None:
    server.kill()
    done = await run(*command, "--to", re.sub("://(.*@)?", "://me:hidden@", server.address))
    assert done.returncode == 1
    assert "refuses connections; is it running?" in done.stderr
    assert "the same command continues" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr
    server.start()


async def test_a_victoriametrics_that_keeps_copies_is_refused(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VictoriaMetricsServer, "deduplicates", False)
    server = VictoriaMetricsServer()
    try:
        done = await run(*command, "--to", server.address)
    finally:
        server.remove()
    assert done.returncode == 1
    assert "start it with -dedup.minScrapeInterval=1ms" in done.stderr


async def test_an_address_that_is_none_ends_the_export_with_how_to_write_one(command: list[str]) -> None:
    done = await run(*command, "--to", "graphite://127.0.0.1")
    assert done.returncode == 1
    assert "no store is known at graphite" in done.stderr


async def test_lines_of_a_file_are_what_influxdb_reads(command: list[str], database: Database, tmp_path: Path) -> None:
    server = SERVERS["influxdb"]()
    try:
        file = tmp_path / "history.lp"
        done = await run(*command, "--format", "influx", "--output", str(file))
        assert done.returncode == 0, done.stderr
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=scaled(30)) as http:
            (await http.post("/query", params={"q": "CREATE DATABASE cml"})).raise_for_status()
            (await http.post("/write", params={"db": "cml"}, content=file.read_bytes())).raise_for_status()
        assert as_stored(server.rows()) == as_stored(await ledger(database))
    finally:
        server.remove()


async def test_a_parquet_file_has_the_history_with_types(command: list[str], database: Database, tmp_path: Path) -> None:
    from pyarrow import parquet

    file = tmp_path / "history.parquet"
    done = await run(*command, "--format", "parquet", "--output", str(file))
    assert done.returncode == 0, done.stderr
    rows = parquet.read_table(file).to_pylist()
    fields = ("cpu_utilization", "memory_utilization", "active_labs_count")
    found: list[Row] = [
        (
            row["worker_id"].replace("\\", "�"),
            to_seconds(row["timestamp"]) * 1000,
            {field: float(row[field]) for field in fields if row[field] is not None},
            row["status"],
        )
        for row in rows
    ]
    assert sorted(found, key=lambda row: row[:2]) == await ledger(database)


def test_no_server_is_left(tmp_path: Path) -> None:
    """`remove` ends the process and its folder."""
    server = SERVERS["victoriametrics"]()
    folder, pid = server.folder, server._process.pid  # type: ignore[union-attr]
    server.remove()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
