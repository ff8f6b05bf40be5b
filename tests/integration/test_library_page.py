"""The program of docs/library.md against a real MongoDB; `make lowest` runs it with older dependencies, too."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from tests.helpers.deadlines import scaled
from tests.helpers.ports import free_port

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
WITHIN = 60.0
"""Seconds; the program is ready after one, on a machine that does nothing else."""
HEAVY = (
    "anyio",
    "bcrypt",
    "boto3",
    "botocore",
    "cramjam",
    "google.protobuf",
    "orjson",
    "pydantic",
    "re2",
    "starlette",
    "uvicorn",
)
WORKERS: list[dict[str, Any]] = [
    {"_id": "w1", "aws_region": "eu-west-1", "status": "running", "cpu_utilization": 45.2, "active_labs_count": 3},
    {"_id": "w2", "aws_region": "us-east-1", "status": "stopped"},
]


def test_the_program_of_the_page_stores_each_sample_once_and_serves_it(
    mongod: Mongod, database: Database, tmp_path: Path
) -> None:
    print(f"prometheus-client {version('prometheus-client')}, uvicorn {version('uvicorn')}, protobuf {version('protobuf')}")
    (tmp_path / "manager.py").write_text(page_program())
    uri = mongod.uri.replace("/?", f"/{database.name}?")
    began = datetime.now(UTC) - timedelta(minutes=5)
    with MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        store = client[database.name]
        store["workers"].insert_many(WORKERS)
        for _ in range(2):  # the second start is in the same period, or in the next one
            with running(tmp_path, uri) as web:
                wait_until(lambda: len(web.get("/workers/w2/metrics/history", params=window(began)).json()) >= 1)
        (kind,) = store.list_collections(filter={"name": "worker_metrics_timeseries"})
        assert kind["type"] == "timeseries"
        keys = [(each["worker_id"], each["timestamp"]) for each in store["worker_metrics_timeseries"].find()]
        assert len(keys) == len(set(keys))
        assert all(time.minute % 5 == time.second == time.microsecond == 0 for _, time in keys)
        with running(tmp_path, uri) as web:
            samples = web.get("/workers/w1/metrics/history", params=window(began)).json()
            wanted = {"worker_id": "w1", "region": "eu-west-1", "cpu_utilization": 45.2, "memory_utilization": None}
            assert samples[0].items() >= (wanted | {"active_labs_count": 3, "status": "running"}).items()
            rows = web.get("/workers/w1/metrics/history", params={**window(began), "interval": "604800"}).json()
            assert rows[0]["cpu_utilization"].items() >= {"min": 45.2, "max": 45.2}.items()
            refused = web.get("/workers/w1/metrics/history", params={"start": "yesterday"})
            assert (refused.status_code, "ISO 8601" in refused.json()["detail"]) == (400, True)


def test_the_program_of_the_page_ends_although_a_cancellation_is_lost(mongod: Mongod, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under the driver on Python 3.11, where one that comes together with an answer is lost: one try in twelve."""
    monkeypatch.setenv("MONGODB_URI", mongod.uri.replace("/?", "/manager?"))
    program: dict[str, Any] = {}
    exec(compile(page_program(), "manager.py", "exec"), program)
    started = asyncio.Event()

    async def collect_forever(*_: object) -> None:
        with suppress(asyncio.CancelledError):
            started.set()
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def start_and_end() -> None:
        async with program["lifespan"](program["app"]):
            await started.wait()

    program["collect_forever"] = collect_forever
    asyncio.run(asyncio.wait_for(start_and_end(), scaled(WITHIN)))


def page_program() -> str:
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(program)


def window(began: datetime) -> dict[str, str]:
    return {"start": began.isoformat(), "end": (datetime.now(UTC) + timedelta(minutes=1)).isoformat()}


@contextmanager
def running(folder: Path, uri: str) -> Iterator[httpx.Client]:
    """Run the program; yields a client once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "manager:app", "--port", f"{port}"]
    process = subprocess.Popen(command, cwd=folder, env={"MONGODB_URI": uri})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=scaled(30)) as client:

            def answers() -> bool:
                assert process.poll() is None, "the program ended"
                try:
                    return client.get("/").status_code == 404
                except httpx.TransportError:
                    return False

            wait_until(answers)
            yield client
    finally:
        process.terminate()
        try:
            assert process.wait(scaled(WITHIN)) in (0, -signal.SIGTERM)
        finally:
            process.kill()  # one that does not end must not outlive the test


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + scaled(WITHIN)
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "statement", ["from exporter import WorkerMetricsRepository", "from exporter.storage import repository"]
)
def test_the_library_loads_nothing_of_the_exporters_servers(statement: str) -> None:
    code = f"import sys; {statement}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_package_itself_loads_nothing_and_names_an_attribute_it_lacks() -> None:
    code = "import sys, exporter; print('pymongo' in sys.modules); exporter.Repository"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n"
    assert "AttributeError: module 'exporter' has no attribute 'Repository'" in done.stderr
