"""An outbox whose disk is full, whose file may not grow, or whose file is damaged: what shows, is lost, and SIGTERM."""

import os
import re
import resource
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from exporter.demo.mongod import Mongod
from exporter.pipeline.outbox_file import aside_files
from exporter.storage.mongo import Database
from tests.conftest import missing
from tests.fixtures.process import RunCommand, RunExporter
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.in_process_exporter import Clock
from tests.helpers.reliability import record
from tests.helpers.scraper import Scraper
from tests.integration.faults.conftest import DATABASE
from tests.integration.faults.stand import TWO_CYCLES_SECONDS, WORKERS, Stand, add_fleet, fast_settings
from tests.integration.pipeline.test_faults import HOUR, MakeExporter, add_instances, insert_workers, make_exporter

__all__ = ["make_exporter"]  # the fixture

pytestmark = pytest.mark.timeout(1200)  # outages of half a minute, then minutes until a sample is final

MEBIBYTE = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        missing("a mount of a tmpfs", "run the tests as root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        missing("a mount of a tmpfs", f"allow it: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def start(mongod: Mongod, fake: FakeCloudWatch, run_exporter: RunExporter, data_dir: Path) -> Stand:
    """Start an exporter with this data folder, and wait until everything is well."""
    with MongoClient[dict[str, Any]](mongod.uri) as client:
        add_fleet(client, DATABASE, fake)
    settings = fast_settings(mongod.uri.replace("/?", f"/{DATABASE}?"), fake) | {"data_dir": str(data_dir)}
    stand = Stand(run_exporter(settings), mongod, fake, mongod.uri, DATABASE)
    stand.wait_until_well()
    return stand


def fill(folder: Path, leave: int) -> Path:
    """Fill the disk of a folder with a file, but so many bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        while (size := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - leave) > 0:
            with suppress(OSError):  # the exporter has taken some of it meanwhile
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
    return ballast


def outbox_fails(
    stand: Stand, key: str, reason: str, words: str, begin: Callable[[], object], end: Callable[[], object]
) -> None:
    """Let writes to the outbox fail for a while, twice: the second time the exporter is ended."""
    with Scraper(stand.exporter.url) as scraper:
        since = time.time()
        begin()
        stand.wait_for_error("outbox", words, TWO_CYCLES_SECONDS)
        stand.wait_for_error("history", words, 15)
        counted = f'cml_exporter_outbox_write_failures_total{{reason="{reason}"}}'
        stand.wait_for(lambda: (stand.metric(counted) or 0) > 0, 15, "a counted failure of a write")  # a read may fail first
        mirror = f'cml_exporter_mirror_failures_total{{reason="{reason}"}}'
        stand.wait_for(lambda: (stand.metric(mirror) or 0) > 0, 15, "a failure of the mirror")
        assert stand.shown("cml_worker_cpu_utilization_ratio") == WORKERS
        end()
        recovery = stand.wait_until_well(within=TWO_CYCLES_SECONDS)
        until = time.time()
    stand.check_log()
    lost, doubled = stand.figures(since, until)
    assert doubled == 0
    begin()
    stand.wait_for_error("outbox", words, TWO_CYCLES_SECONDS)
    stopped = stand.stop_in_time()
    record(key, lost=lost, doubled=doubled, silence=scraper.longest, recovery=recovery, note=f"SIGTERM: {stopped:.1f} s")


@pytest.mark.nightly("test_when_the_disk_is_full_gauges_continue_and_after_making_room_nothing_is_missing")
@pytest.mark.waits(170)
def test_the_disk_is_full(
    small_disk: Path, own_replica_set: Mongod, fast_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    stand = start(own_replica_set, fast_cloudwatch, run_exporter, small_disk / "data")
    outbox_fails(
        stand,
        "disk-full",
        "disk_full",
        "the disk is full",
        lambda: fill(small_disk, 0),
        (small_disk / "ballast").unlink,
    )


@pytest.mark.nightly("test_a_disk_without_that_space_is_named")
@pytest.mark.waits(100)
def test_a_disk_that_is_nearly_full_shows_before_anything_is_lost(
    small_disk: Path, own_replica_set: Mongod, fast_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    stand = start(own_replica_set, fast_cloudwatch, run_exporter, small_disk / "data")
    ballast = fill(small_disk, 10 * MEBIBYTE)
    stand.wait_for_error("outbox", "10 MiB left, and a day of samples without MongoDB needs 17 MiB", TWO_CYCLES_SECONDS)
    free, day = "cml_exporter_outbox_free_bytes", "cml_exporter_outbox_day_bytes"
    stand.wait_for(lambda: (stand.metric(free) or 0) < (stand.metric(day) or 0), 10, "low in the metrics")
    assert stand.sources()["history"] is None
    ballast.unlink()
    stand.wait_until_well(within=TWO_CYCLES_SECONDS)
    stand.check_log()


@pytest.mark.nightly("test_each_error_of_sqlite_has_the_reason_of_the_metric")
@pytest.mark.waits(180)
def test_a_limit_of_the_file_size(stand: Stand) -> None:
    everything = resource.prlimit(stand.exporter.pid, resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.prlimit(stand.exporter.pid, resource.RLIMIT_FSIZE, (4096, everything[1]))

    def lift() -> None:
        resource.prlimit(stand.exporter.pid, resource.RLIMIT_FSIZE, everything)

    outbox_fails(stand, "file-size-limit", "io", "cannot be read or written", limit, lift)


@pytest.mark.nightly("test_when_the_disk_is_full_gauges_continue_and_after_making_room_nothing_is_missing")
def test_a_start_on_a_full_disk_shows_it_or_ends_with_a_sentence(
    small_disk: Path, own_replica_set: Mongod, fast_cloudwatch: FakeCloudWatch, run_exporter: RunExporter
) -> None:
    stand = start(own_replica_set, fast_cloudwatch, run_exporter, small_disk / "data")
    stand.exporter.kill()  # SQLite's files stay, and have room for small transactions
    ballast = fill(small_disk, 0)
    stand.exporter.start()
    stand.wait_for_error("outbox", "the disk is full", TWO_CYCLES_SECONDS)
    ballast.unlink()
    stand.exporter.stop()
    ballast = fill(small_disk, 0)
    stand.exporter.start(wait=False)
    assert stand.exporter.wait() == 1
    assert "Traceback" not in stand.exporter.logged()
    assert re.search(r"outbox\.db.*(disk|data_dir)", stand.exporter.logged()), stand.exporter.logged()
    ballast.unlink()
    stand.exporter.start()
    stand.wait_until_well()


@pytest.mark.nightly("test_a_damaged_outbox_in_use")
@pytest.mark.waits(60)
def test_a_damaged_outbox_at_the_start(stand: Stand, run_command: RunCommand) -> None:
    since = time.time()
    stand.wait_for(lambda: (stand.metric('cml_exporter_outbox_samples{state="observed"}') or 0) > 0, 90, "with open samples")
    stand.exporter.stop()
    folder = stand.exporter.data_dir
    whole = (folder / "outbox.db").read_bytes()
    (folder / "outbox.db").write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    checked = run_command("check", "--config.file", stand.exporter.config)
    assert "is damaged" in checked.stdout, checked.stdout
    assert checked.returncode == 0, "serve goes on with an empty one"
    began = time.monotonic()
    stand.exporter.start()
    stand.wait_until_well()
    recovery = time.monotonic() - began
    (kept,) = aside_files(folder)
    assert (folder / kept).stat().st_size == len(whole)
    assert stand.metric("cml_exporter_outbox_replaced_total") == 1
    assert f"kept={kept}" in stand.exporter.logged()
    checked = run_command("check", "--config.file", stand.exporter.config)
    assert checked.returncode == 0
    _, doubled = stand.figures(since, since)
    stand.wait_for(lambda: not values_missing(stand, since, time.time() - 300), 400, "complete in CPU")
    assert doubled == 0
    stopped = stand.stop_in_time()
    record(
        "outbox-damaged-at-start", lost=0, doubled=doubled, recovery=recovery, note=f"CPU and memory; SIGTERM: {stopped:.1f} s"
    )


def values_missing(stand: Stand, since: float, until: float) -> int:
    """Return how many periods of workers between two UTC seconds have no CPU value in the history."""
    with MongoClient[dict[str, Any]](stand.admin_uri, tz_aware=True) as client:
        documents = client[stand.database]["worker_metrics_timeseries"].find({"cpu_utilization": {"$exists": True}})
        known = {int(document["timestamp"].timestamp()) for document in documents}
    return len(set(range(int(since) // 60 * 60, int(until) // 60 * 60, 60)) - known)


async def test_a_damaged_outbox_in_use(
    make_exporter: MakeExporter, database: Database, fake: FakeCloudWatch, clock: Clock, tmp_path: Path
) -> None:
    members = add_instances(fake, int(clock()) - HOUR)
    await insert_workers(database, members)
    exporter = make_exporter()
    await exporter.round(2)
    exporter.outbox.outbox._db.execute("UPDATE sample SET instances=NULL")
    exporter.outbox.outbox._db.execute("UPDATE worker SET instances=NULL")
    await exporter.round()
    assert exporter.value("cml_exporter_outbox_replaced_total") == 1
    assert (exporter.value("cml_exporter_outbox_write_failures_total", reason="damaged") or 0) > 0
    (kept,) = aside_files(tmp_path / "data")
    with closing(sqlite3.connect(kept)) as database_aside:
        assert database_aside.execute("SELECT COUNT(*) FROM sample WHERE instances IS NULL").fetchone()[0] > 0
    await exporter.round(8)
    assert set(exporter.backend.health().values()) == {None}
    assert await exporter.assert_history_is_true(fake, members) > 4 * 12
    keys = [(one["worker_id"], one["timestamp"]) for one in await exporter.documents()]
    record("outbox-damaged-in-use", lost=0, doubled=len(keys) - len(set(keys)), note="CPU and memory")
