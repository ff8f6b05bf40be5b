"""Seconds and CPU from the start of the exporter to its first gauges, with an empty history and an empty outbox.

    python -m bench.first_gauge [--workers 10000] [--before DIRECTORY]

`--before` is another checkout of this repository, measured first in the same run with the same servers and an empty database.
MongoDB and the fake CloudWatch are processes of their own.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from bench.fake_aws import REGIONS
from bench.rounds import aggregates
from exporter.demo.mongod import Mongod
from exporter.demo.ports import free_port

GIVE_UP_SECONDS = 1800
_POLL_SECONDS = 0.2


def fetch(port: int, path: str) -> tuple[int, bytes]:
    """Return status and body; 0 while the exporter does not listen."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def cpu_seconds(pid: int) -> float:
    """Return the CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    tree: Path,
    uri: str,
    aws: str,
    workers: int,
    folder: Path,
    *,
    python: str = sys.executable,
    say: Callable[[str], None] = print,
) -> dict[str, tuple[float, float]]:
    """Start the exporter of `tree`, and return when it showed what: seconds, and CPU seconds of the exporter until then."""
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CML_EXPORTER_"))},
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_EC2_METADATA_DISABLED": "true",
        "CML_EXPORTER_MONGODB__URI": uri,
        "CML_EXPORTER_CLOUDWATCH__ENDPOINT_URL": aws,
        "CML_EXPORTER_DATA_DIR": str(folder),
        "PYTHONPATH": str(tree),
    }
    command = [python, "-m", "exporter.cli", "serve", "--web.listen-address", f"127.0.0.1:{port}"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[float, float]] = {}
    began = time.monotonic()
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=tree, stdout=log, stderr=log)
    try:
        steps: dict[str, Callable[[], bool]] = {
            "ready": lambda: fetch(port, "/-/ready")[0] == 200,
            "every status": lambda: fetch(port, "/metrics")[1].count(b'status="running",worker_id=') == workers,
            "every CPU value": lambda: fetch(port, "/metrics")[1].count(b"\ncml_worker_cpu_utilization_ratio{") == workers,
        }
        for name, reached in steps.items():
            while not reached():
                assert process.poll() is None, f"the exporter ended; see {log.name}"
                assert time.monotonic() < began + GIVE_UP_SECONDS, f"not reached: {name}"
                time.sleep(_POLL_SECONDS)
            found[name] = time.monotonic() - began, cpu_seconds(process.pid)
            say(f"{tree}: {name} after {found[name][0]:.1f} s, {found[name][1]:.1f} s CPU")
    finally:
        process.terminate()
        process.wait()
    return found


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child processes are terminated too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--before", type=Path, help="another checkout")
    options = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    trees = [tree.resolve() for tree in (options.before, here) if tree]
    with tempfile.TemporaryDirectory() as folder:
        mongod = Mongod(Path(folder, "mongo"), free_port())
        mongod.start()
        aws_port = free_port()
        fake = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.helpers.fake_cloudwatch", "--port", str(aws_port)),
                *("--workers", str(options.workers), "--latency", "0.1", "--regions", ",".join(REGIONS)),
            ]
        )
        try:
            for number, tree in enumerate(trees):
                name = f"bench_{number}"
                with MongoClient[dict[str, Any]](mongod.uri) as client:
                    client[name].workers.insert_many(aggregates(options.workers))
                uri = mongod.uri.replace("/?", f"/{name}?")
                measure(tree, uri, f"http://127.0.0.1:{aws_port}", options.workers, Path(folder, name))
        finally:
            fake.terminate()
            fake.wait()
            mongod.stop()


if __name__ == "__main__":
    main()
