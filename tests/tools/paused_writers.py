"""Pause a writer with SIGSTOP at eleven points of a batch, let another writer store the batch meanwhile, and count.

    python -m tests.tools.paused_writers [--standalone] [--forced]

A pause lasts longer than the lease for inserting, so that the other writer takes it over. With --forced the lease is made to
expire in MongoDB at once: the paused writer still believes in it, and only the fence can stop it. Each point has a database and
a process of its own; all are paused at the same time.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from pymongo import MongoClient
from pymongo.network_layer import PyMongoProtocol

from exporter.core.errors import StoreUnavailableError
from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import to_datetime, to_seconds
from exporter.demo.mongod import Mongod
from exporter.storage import sample_writer
from exporter.storage.insert_fence import InsertFence
from exporter.storage.lease import LEASE_SECONDS, Lease
from exporter.storage.repository import WorkerMetricsRepository
from exporter.storage.sample_writer import SampleWriter
from tests.helpers.mongod import NO_TTL
from tests.helpers.ports import free_port

START, PERIOD = 1_767_225_600, 300
WORKERS, PERIODS = 25, 100
"""Of the batch: three inserts, with and without a fence."""
POINTS: Mapping[str, tuple[object, str, bool, int]] = {
    "before the lease is acquired": (Lease, "acquire_or_renew", True, 1),
    "before the fence is raised": (InsertFence, "raise_number", True, 1),
    "after the fence was raised": (InsertFence, "raise_number", False, 1),
    "before running inserts are looked for": (SampleWriter, "no_insert_running", True, 1),
    "before it reads back": (SampleWriter, "existing_keys", True, 1),
    "after it has read back": (SampleWriter, "existing_keys", False, 1),
    "while it encodes": (sample_writer, "inserts", True, 1),
    "after its last check, before the first insert is sent": (InsertFence, "insert", True, 1),
    "in the driver, after its last check of the time, while it sends the first insert": (PyMongoProtocol, "write", True, 1),
    "after the first insert was acknowledged": (InsertFence, "insert", False, 1),
    "after its last check, before the last insert is sent": (InsertFence, "insert", True, 3),
}
"""Point → the function that stops, before or after, at which call."""


def batch() -> list[WorkerMetricsSample]:
    """Return the samples that both writers store."""
    return [
        WorkerMetricsSample(f"w{w:02}", "eu-west-1", to_datetime(START + p * PERIOD), float(p), float(w), 3, "running")
        for w in range(WORKERS)
        for p in range(PERIODS)
    ]


def stop_at(point: str) -> None:
    """Have this process stop itself at the point, once."""
    owner, name, before, call = POINTS[point]
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counts(arguments: tuple[object, ...]) -> bool:
        """Of the driver's messages only inserts into the history count."""
        sent = arguments[-1]
        return not isinstance(sent, bytes) or b"\x02insert\x00\x1a\x00\x00\x00worker_metrics_timeseries\x00" in sent[:200]

    def stop(now: bool) -> None:
        nonlocal calls
        if now and calls == call:
            calls += 1  # once
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.1)  # the other threads stop a little later

    def plain(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += counts(arguments)
        stop(before)
        return function(*arguments, **named)

    async def awaited(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += counts(arguments)
        stop(before)
        result = await function(*arguments, **named)
        stop(not before)
        return result

    setattr(owner, name, awaited if asyncio.iscoroutinefunction(function) else plain)


async def store(uri: str) -> int:
    """Store the batch as the mirror does, and return how many attempts failed."""
    failures = 0
    sample_writer.DOCUMENTS_PER_INSERT = sample_writer.DOCUMENTS_PER_UNFENCED_INSERT
    async with WorkerMetricsRepository.connect(uri, wall=lambda: float(START)) as repository:
        while True:
            try:
                await repository.writer.insert_missing(batch())
            except StoreUnavailableError as error:
                print(error, file=sys.stderr)
                failures += 1
                await asyncio.sleep(1)
            else:
                return failures


def doubled(uri: str) -> tuple[int, int]:
    """Return how many samples are lost, and how many are stored more than once."""
    with MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        found = client.get_default_database()["worker_metrics_timeseries"].find({}, {"worker_id": 1, "timestamp": 1})
        stored = Counter((each["worker_id"], to_seconds(each["timestamp"])) for each in found)
    wanted = {(sample.worker_id, to_seconds(sample.timestamp)) for sample in batch()}
    return len(wanted - stored.keys()), sum(count > 1 for count in stored.values())


def _is_stopped(process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "the writer ended before it stopped"
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def pause_writers(server: Mongod, *, forced: bool, points: Sequence[str] = tuple(POINTS)) -> dict[str, tuple[int, int]]:
    """Pause a writer at each point and return point → (lost, doubled)."""
    uris = {point: server.uri.replace("/?", f"/paused{number}?") for number, point in enumerate(POINTS) if point in points}
    processes = {
        point: subprocess.Popen([sys.executable, "-m", "tests.tools.paused_writers", "write", uri, point])
        for point, uri in uris.items()
    }
    try:
        for process in processes.values():
            while not _is_stopped(process):
                time.sleep(0.05)
        if not forced:
            time.sleep(LEASE_SECONDS + 1)
        for uri in uris.values():
            if forced:
                with MongoClient[dict[str, Any]](uri) as client:
                    state = client.get_default_database()["cml_exporter_state"]
                    state.update_one({"_id": "lease:insert"}, {"$set": {"expires": to_datetime(0)}})
            asyncio.run(store(uri))
        for process in processes.values():
            process.send_signal(signal.SIGCONT)
        for process in processes.values():
            assert process.wait(120) == 0
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return {point: doubled(uri) for point, uri in uris.items()}


def main() -> None:
    """Pause writers and print the figures; exit with 1 if a sample was lost or doubled."""
    if sys.argv[1:2] == ["write"]:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        stop_at(sys.argv[3])
        asyncio.run(store(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--standalone", action="store_true", help="mongod as a standalone server, which has no fence")
    parser.add_argument("--forced", action="store_true", help="let the lease expire in MongoDB at once")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Mongod(Path(folder) / "mongod", free_port(), replica_set=not given.standalone, parameters=NO_TTL) as server,
    ):
        found = pause_writers(server, forced=given.forced)
    for point, (lost, twice) in found.items():
        print(f"{lost:5} lost {twice:5} doubled  {point}")
    lost, twice = (sum(each[column] for each in found.values()) for column in (0, 1))
    kind = "standalone" if given.standalone else "replica set"
    print(f"{kind}{', forced' if given.forced else ''}: {len(found)} pauses, {lost} lost, {twice} doubled")
    sys.exit(1 if lost or twice else 0)


if __name__ == "__main__":
    main()
