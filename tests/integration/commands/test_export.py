"""`export` as users run it: into Prometheus, to files, pipes and full disks, from a MongoDB that fails; all of them real."""

import asyncio
import csv
import io
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from exporter.commands.export.command import run
from exporter.commands.export.request import ExportRequest
from exporter.core.errors import ExporterError
from exporter.core.model import Fleet, Worker, WorkerMetricsSample
from exporter.core.periods import DAY, align, rfc3339, to_datetime, to_seconds
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.storage import sample_stream
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import Database, Document
from exporter.storage.repository import WorkerMetricsRepository
from tests.conftest import program
from tests.helpers.deadlines import scaled
from tests.helpers.exporter_process import COMMAND
from tests.helpers.mongo_proxy import Cut, CuttingProxy
from tests.helpers.prometheus import Prometheus
from tests.helpers.stores import PostgreSQLServer

NAME = "worker_metrics_timeseries"
PERIOD = 300
NOW = align(int(time.time()), PERIOD)
ODD = 'lab "7"\\a/b%20,é\nπ\x00\r'
INSTALL = "apt-get install prometheus"


def sample(worker_id: str, period: int, **values: object) -> WorkerMetricsSample:
    """The sample of a worker so many periods ago."""
    return WorkerMetricsSample(worker_id, "eu-west-1", to_datetime(NOW - period * PERIOD), **values)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Store:
    """A database with a history."""

    uri: str
    history: WorkerMetricsRepository
    database: Database

    def command(self, *arguments: str | Path) -> list[str]:
        return [*COMMAND, "export", "--mongodb.uri", self.uri, *map(str, arguments)]

    def export(self, *arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[bytes]":
        given = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 60, "check": False, **options}
        return subprocess.run(self.command(*arguments), **given)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
async def store(mongod: Mongod, database: Database) -> Store:
    """Three workers: w1 with a day, an odd one with all that may be missing, and one that nobody lists any more."""
    history = WorkerMetricsRepository(database, collection=NAME, period=PERIOD, retention=30 * DAY, apply_retention=False)
    await history.ensure_collection()
    day = [
        sample(
            "w1",
            n,
            cpu_utilization=100 * n / 289,
            memory_utilization=n / 3 if n % 7 else None,
            active_labs_count=n % 4,
            status="running" if n % 50 else "stopped",
        )
        for n in range(1, 289)
    ]
    odd = [sample(ODD, 5, cpu_utilization=1e-7), sample(ODD, 9, status="failed"), sample(ODD, 12, active_labs_count=0)]
    await history.add_samples([*day, *odd, sample("gone", 20 * DAY // PERIOD, cpu_utilization=33.333333333333336)])
    workers = (
        Worker("w1", "eu-west-1", "i-1", "running", name="lab, one", instance_type="c5.metal", cml_version="2.8"),
        Worker(ODD, "eu-west-1", None, "failed", name=ODD),
    )
    await Inventory(database).record(Fleet(NOW, workers))
    return Store(mongod.uri.replace("/?", f"/{database.name}?"), history, database)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- into Prometheus ---------------------------------------------------------------------------------------------------


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, timeout=scaled(60), check=False)
    assert done.returncode == 0, done.stderr


def queried(prometheus: Prometheus, name: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(worker id, status) → (time, value) of every sample that Prometheus has of a metric."""
    return {
        (series["metric"]["worker_id"], series["metric"].get("status", "")): [(t, float(v)) for t, v in series["values"]]
        for series in prometheus.ask(f'{name}{{store="history"}}[60d]', NOW)["data"]["result"]
    }


async def test_what_promtool_makes_of_the_file_answers_in_prometheus_exactly_as_mongodb_does(
    store: Store, tmp_path: Path
) -> None:
    program("promtool", INSTALL)
    executable = program("prometheus", INSTALL)
    file, blocks = tmp_path / "history.om", tmp_path / "data"
    done = store.export("--since", "29d", "--output", file)
    assert done.returncode == 0, done.stderr
    promtool("tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=744h", file, blocks)
    documents = [document async for document in store.database[NAME].find().sort("timestamp", 1)]

    def expected(key: str, scale: float = 1) -> dict[tuple[str, str], list[tuple[float, float]]]:
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for each in documents:
            if key in each:
                pair = (to_seconds(each["timestamp"]), each[key] / scale)
                found.setdefault((each["worker_id"], ""), []).append(pair)
        return found

    prometheus = Prometheus(executable, blocks.parent, {"global": {}}, "--storage.tsdb.retention.time=90d")
    try:
        assert queried(prometheus, "cml_worker_cpu_utilization_ratio") == expected("cpu_utilization", 100)
        assert queried(prometheus, "cml_worker_memory_utilization_ratio") == expected("memory_utilization", 100)
        assert queried(prometheus, "cml_worker_active_labs") == expected("active_labs_count")
        having = [each for each in documents if "status" in each]
        kinds = {(each["worker_id"], each["status"]) for each in having}
        assert queried(prometheus, "cml_worker_status") == {
            (worker, kind): [
                (to_seconds(each["timestamp"]), float(each["status"] == kind)) for each in having if each["worker_id"] == worker
            ]
            for worker, kind in kinds
        }
        info = queried(prometheus, "cml_worker_info")
        assert sum(map(len, info.values())) == len(documents)
        joined = 'cml_worker_cpu_utilization_ratio * on (worker_id) group_left (name) cml_worker_info{name="lab, one"}'
        (series,) = prometheus.ask(f"count_over_time(({joined})[1d:5m])", NOW)["data"]["result"]
        assert series["metric"]["name"] == "lab, one"
    finally:
        prometheus.stop()


# -- what is chosen ----------------------------------------------------------------------------------------------------


async def test_csv_has_every_sample_and_a_line_says_how_many(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "history.csv"
    done = store.export("--since", "29d", "--until", rfc3339(NOW + PERIOD), "--format", "csv", "--output", file)
    assert done.stdout == b""
    said = done.stderr.decode()
    assert said.startswith("Exported 292 samples of 3 workers, ")
    assert said.count("\n") == 1
    with file.open(newline="") as text:
        rows = list(csv.DictReader(text))
    stored = [each async for each in store.database[NAME].find().sort([("worker_id", 1), ("timestamp", 1)])]
    for row, each in zip(rows, stored, strict=True):
        assert row["worker_id"] == each["worker_id"]
        assert row["name"] == {"w1": "lab, one", ODD: ODD}.get(each["worker_id"], "")
        assert row["timestamp"] == rfc3339(to_seconds(each["timestamp"]))
        for key in ("cpu_utilization", "memory_utilization", "active_labs_count", "status"):
            assert row[key] == str(each.get(key, ""))


FORMULAS = ("=1+1", "+1", "-lab", "@SUM(A1)", "=cmd|' /C calc'!A0")


@pytest.fixture
async def formulas(store: Store, tmp_path: Path) -> Path:
    """CSV of workers whose ids and names a spreadsheet would run."""
    workers = tuple(Worker(name, "eu-west-1", None, "running", name=name) for name in FORMULAS)
    await store.history.add_samples([sample(name, 5, cpu_utilization=12.5, status="running") for name in FORMULAS])
    await Inventory(store.database).record(Fleet(NOW, workers))
    file = tmp_path / "formulas.csv"
    done = store.export("--since", "1d", "--format", "csv", "--output", file, *(f"--worker={name}" for name in FORMULAS))
    assert done.returncode == 0, done.stderr
    return file


def test_csv_has_texts_as_they_are_stored(formulas: Path) -> None:
    """Other than the CSV of the API: an export is for programs, which must get the ids of the history."""
    with formulas.open(newline="") as text:
        rows = [(row["worker_id"], row["name"]) for row in csv.DictReader(text)]
    assert sorted(rows) == sorted((name, name) for name in FORMULAS)


def test_postgresql_copies_what_was_exported_as_csv(formulas: Path) -> None:
    import psycopg

    server = PostgreSQLServer()
    try:
        with psycopg.connect(server.address) as connection:
            columns = "worker_id text, name text, region text, at timestamptz, cpu float8, memory float8, labs int, status text"
            connection.execute(f"CREATE TABLE history ({columns})")
            with connection.cursor().copy("COPY history FROM STDIN WITH (FORMAT csv, HEADER)") as copy:
                copy.write(formulas.read_bytes())
            found = connection.execute("SELECT worker_id, name, at, cpu, status FROM history WHERE memory IS NULL").fetchall()
    finally:
        server.remove()
    at = to_datetime(NOW - 5 * PERIOD)
    assert sorted(found) == sorted((name, name, at, 12.5, "running") for name in FORMULAS)


def test_since_is_inclusive_until_exclusive_and_only_the_workers_named_are_written(store: Store) -> None:
    since, until = rfc3339(NOW - 9 * PERIOD), rfc3339(NOW - 5 * PERIOD)
    done = store.export("--since", since, "--until", until, "--format", "csv", "--worker", "w1")
    times = [line.split(",")[4] for line in done.stdout.decode().splitlines()[1:]]
    assert times == [rfc3339(NOW - n * PERIOD) for n in (9, 8, 7, 6)]
    everyone = store.export("--since", since, "--until", until, "--format", "csv").stdout.decode()
    assert everyone.count("eu-west-1") == 5
    assert b"Exported 0 samples of 0 workers" in store.export("--since", since, "--until", until, "--worker", "gone").stderr


def test_a_time_zone_is_that_of_dates_and_of_the_times_in_csv(store: Store) -> None:
    zone = ZoneInfo("America/New_York")
    since, until = (datetime.fromtimestamp(NOW - n * PERIOD, zone) for n in (9, 5))
    window = ("--since", f"{since:%Y-%m-%dT%H:%M:%S}", "--until", f"{until:%Y-%m-%dT%H:%M:%S}")
    done = store.export(*window, "--tz", "America/New_York", "--format", "csv", "--worker", "w1")
    times = [line.split(",")[4] for line in done.stdout.decode().splitlines()[1:]]
    assert times == [datetime.fromtimestamp(NOW - n * PERIOD, zone).isoformat() for n in (9, 8, 7, 6)]
    assert b"argument --tz: 'Mars/Base' is not a time zone" in store.export("--since", "1d", "--tz", "Mars/Base").stderr


async def test_what_is_past_retention_is_left_out_and_that_is_said(store: Store) -> None:
    await store.history.collection.set_retention(10 * DAY)
    done = store.export("--since", "29d", "--format", "csv")
    assert b"gone" not in done.stdout
    assert b"keeps samples for 10d; older samples are not in the export.\n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--since", "soon"],
            "--since: 'soon' is not a time; write a duration before now such as 30d, RFC 3339 such as 2026-01-31T12:00:00Z, "
            "unix seconds or milliseconds, or now",
        ),
        (
            ["--since", "1d", "--worker", "w1", "--worker", "nobody"],
            "has no sample of 'nobody'; GET /api/workers lists the ids",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_sentence(
    store: Store, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = store.export(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert sentence in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("wanted", "settings", "sentence"),
    [
        ({"since": NOW, "until": NOW - 1}, {}, "is not before --until"),
        ({"output": Path()}, {}, "is a folder; name a file in it"),
        ({"output": Path("/no/such/folder/f")}, {}, "(No such file or directory); choose another place"),
        ({}, {"history": "elsewhere"}, "elsewhere does not exist yet; `serve` creates it"),
        ({}, {"history": None}, "mongodb.history is null, so there is no history to export"),
    ],
)
async def test_so_is_what_only_a_look_around_tells(
    store: Store, wanted: dict[str, Any], settings: dict[str, Any], sentence: str
) -> None:
    everything = Settings.model_validate({"mongodb": {"uri": store.uri, **settings}})
    request = ExportRequest(NOW - DAY, NOW, (), "csv", None)
    with pytest.raises(ExporterError) as caught:
        await run(everything, replace(request, **wanted), io.StringIO())
    assert sentence in str(caught.value)


# -- where it goes -----------------------------------------------------------------------------------------------------


def test_a_file_replaces_the_old_one_where_its_link_points_and_nothing_else_is_left(store: Store, tmp_path: Path) -> None:
    (tmp_path / "old.om").write_text("old")
    (tmp_path / "link.om").symlink_to("old.om")
    assert store.export("--since", "29d", "--output", tmp_path / "link.om").returncode == 0
    assert (tmp_path / "link.om").is_symlink()
    assert (tmp_path / "old.om").read_text().endswith("# EOF\n")
    assert (tmp_path / "old.om").stat().st_mode & 0o444 == 0o444 & ~_umask()
    assert left(tmp_path) == ["link.om", "old.om"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    "style",
    [
        "openmetrics",
        pytest.param(
            "csv", marks=pytest.mark.nightly("test_a_disk_that_fills_ends_it_with_one_sentence_and_the_old_file_as_it_was")
        ),
    ],
)
def test_a_disk_that_fills_ends_it_with_one_sentence_and_the_old_file_as_it_was(
    store: Store, tmp_path: Path, style: str
) -> None:
    file = tmp_path / "history"
    file.write_text("old")

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    done = store.export("--since", "29d", "--format", style, "--output", file, preexec_fn=small_disk)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"cml-worker-exporter: cannot write {file} (File too large); the partial file was removed, make room or choose "
        "another place with --output\n"
    )
    assert file.read_text() == "old"
    assert left(tmp_path) == ["history"]


def test_a_full_standard_output_is_one_sentence(store: Store) -> None:
    with Path("/dev/full").open("wb") as full:
        done = store.export("--since", "29d", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "cml-worker-exporter: cannot write standard output (No space left on device); what is there is not complete, "
        "make room or choose another place with --output\n"
    )


def test_a_device_is_written_and_not_replaced(store: Store, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (tmp_path / "read").open("wb") as read, subprocess.Popen(["cat", pipe], stdout=read) as reader:
        assert store.export("--since", "29d", "--output", pipe).returncode == 0
        assert reader.wait(scaled(10)) == 0
    assert (tmp_path / "read").read_text().endswith("# EOF\n")
    assert pipe.is_fifo()


def test_a_reader_that_leaves_ends_it_quietly(store: Store) -> None:
    command = " ".join(f"'{word}'" for word in store.command("--since", "29d"))
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=scaled(60), check=False
    )
    assert (done.returncode, done.stderr) == (141, b"")
    assert done.stdout == b"# TYPE cml_worker_info gauge\n"


def test_on_a_terminal_there_is_a_bar_and_in_the_end_the_line(store: Store, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    try:
        done = store.export("--since", "29d", "--output", tmp_path / "f", capture_output=False, stderr=slave)
        said = os.read(master, 100_000).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 0
    assert "exporting" in said
    assert "Exported 292 samples of 3 workers as 1," in said


def test_there_is_no_bar_where_the_rows_may_be_on_the_same_terminal(store: Store) -> None:
    """They come out of `head` there."""
    command = " ".join(f"'{word}'" for word in store.command("--since", "29d", "--format", "csv"))
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            ["bash", "-c", f"{command} | cat"], stdout=subprocess.PIPE, stderr=slave, timeout=scaled(60), check=False
        )
        said = os.read(master, 100_000).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert done.stdout.count(b"\r\n") == 293
    assert said.startswith("Exported 292 samples of 3 workers, ")


# -- what fails on the way ---------------------------------------------------------------------------------------------


class CutReads(CuttingProxy):
    """Cuts the connection when the second page of a worker is asked for."""

    def _next_cut(self, request: bytes) -> Cut | None:
        return "mid" if b"\x12getMore\x00" in request[:40] else None


@pytest.mark.parametrize(("style", "to_file"), [("openmetrics", False), ("csv", True)])
async def test_a_mongodb_that_fails_on_the_way_leaves_nothing_that_looks_whole(
    store: Store, tmp_path: Path, mongod: Mongod, style: str, to_file: bool
) -> None:
    start = NOW - 20 * DAY
    await store.history.writer.insert(  # more than one page, in a few days
        [WorkerMetricsSample("w2", "eu-west-1", to_datetime(start + 60 * n), cpu_utilization=1.0) for n in range(10_001)]
    )
    async with CutReads(mongod.port) as proxy:
        cut = replace(store, uri=proxy.uri.replace("/?", f"/{store.database.name}?"))
        output = ["--output", str(tmp_path / "f")] if to_file else []
        done = await asyncio.to_thread(cut.export, "--since", "29d", "--format", style, *output)
    said = done.stderr.decode()
    assert done.returncode == 1
    assert said.startswith(f"cml-worker-exporter: {store.database.name}.{NAME} could not be read to the end (AutoReconnect: ")
    assert said.endswith("so what was written is not complete; export again when MongoDB answers\n")
    assert said.count("\n") == 1
    assert left(tmp_path) == []
    assert b"# EOF" not in done.stdout


@pytest.mark.parametrize(
    "end",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly("test_whoever_ends_it_finds_no_partial_file"))],
)
async def test_whoever_ends_it_finds_no_partial_file(store: Store, tmp_path: Path, end: signal.Signals) -> None:
    await store.history.add_samples([sample(f"x{w}", n, cpu_utilization=1.0) for w in range(20) for n in range(2000)])
    status, said = await asyncio.to_thread(ended, store.command("--since", "29d", "--output", tmp_path / "f"), tmp_path, end)
    assert (status, said) == ({signal.SIGTERM: 143, signal.SIGINT: 130}[end], b"")
    assert left(tmp_path) == []


def ended(command: list[str], folder: Path, end: signal.Signals) -> tuple[int, bytes]:
    """End it as soon as it writes."""

    def heed() -> None:
        """Whoever runs the tests in the background has made them, and all they start, deaf to SIGINT."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed) as process:
        try:
            while process.poll() is None and not left(folder):
                time.sleep(0.001)
            process.send_signal(end)
            return process.wait(scaled(20)), process.stderr.read() if process.stderr else b""
        finally:
            process.kill()


# -- memory ------------------------------------------------------------------------------------------------------------


class Reads(CommandListener):
    """Counts the pages asked for."""

    def __init__(self) -> None:
        self.pages = 0

    def started(self, event: CommandStartedEvent) -> None:
        self.pages += event.command_name in ("find", "getMore")

    def succeeded(self, event: object) -> None:
        """Of no interest."""

    def failed(self, event: object) -> None:
        """Of no interest."""


async def test_however_slowly_it_is_written_only_three_pages_are_read_ahead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_stream, "PAGE_SAMPLES", 10)
    counting = Reads()
    async with AsyncMongoClient[Document](store.uri, tz_aware=True, event_listeners=[counting]) as client:
        database = client[store.database.name]
        history = WorkerMetricsRepository(database, collection=NAME, period=PERIOD, retention=DAY, apply_retention=False)
        taken = 0
        async with aclosing(sample_stream.stream(history.collection, ["w1"], NOW - DAY, NOW, ["cpu_utilization"])) as pages:
            async for _, page in pages:
                await asyncio.sleep(0.01)
                taken += 1
                assert len(page) <= 10
                assert counting.pages <= taken + 3
        assert taken == 29


def test_memory_does_not_grow_with_the_history() -> None:
    """What is gathered beyond 256 KiB, here instead of 32 MiB, waits on the disk."""
    script = """
import sys
from datetime import datetime
from pathlib import Path
from exporter.commands.export import spool as module
from exporter.commands.export.spool import open_spool as columns
from exporter.commands.export.openmetrics import text
module._IN_MEMORY = 2**18
page = [{"time": n * 300000, "region": "r", "cpu_utilization": 1.0} for n in range(5000)]
with columns() as gathered:
    for worker in range(int(sys.argv[1])):
        gathered.add(f"w{worker}", page)
    gathered.finish()
    for lines in text(gathered, {}, lambda points: None):
        pass
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""

    def peak(workers: int) -> int:
        done = subprocess.run([sys.executable, "-c", script, str(workers)], capture_output=True, check=True)
        return int(done.stdout) // 1024

    few, many = peak(3), peak(80)  # 0.6 and 16 MB of columns, 3 and 80 MB of text
    assert many - few < 8
