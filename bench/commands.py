"""Row `backfill`: the command as a whole process, against inserting the same documents with insert_many."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from pymongo import MongoClient, WriteConcern

from bench.context import Context
from bench.fake_aws import FakeAws
from bench.figures import BARE_INSERT, EXPORTER, Figure
from bench.history import HISTORY, Document
from bench.processes import environment
from bench.rounds import aggregates
from exporter.demo.mongod import Mongod
from tests.helpers.ports import free_port

MAX_WORKERS, DAYS = 100, 8
BATCH = 5000
ERROR_CHARACTERS = 1500


def backfill(context: Context) -> Iterator[Figure]:
    """Fill eight days of 100 workers in an empty history; the newest day is left to `serve`."""
    took: dict[str, list[tuple[float, float]]] = {}
    count, workers = 0, min(MAX_WORKERS, context.sizes[-1])
    with ExitStack() as stack:
        folder = context.new_folder(stack)
        mongod = stack.enter_context(Mongod(folder / "mongo", free_port(), replica_set=True))
        aws = stack.enter_context(FakeAws(folder, workers, period=300))
        client = stack.enter_context(MongoClient[Document](mongod.uri, tz_aware=True))
        for number in range(context.repeat):
            for build in context.builds:
                name = f"backfill_{number}_{context.builds.index(build)}"
                database = client[name]
                database.workers.insert_many(aggregates(workers))
                settings = {
                    "CML_EXPORTER_MONGODB__URI": mongod.uri.replace("/?", f"/{name}?"),
                    "CML_EXPORTER_CLOUDWATCH__ENDPOINT_URL": aws.url,
                    "CML_EXPORTER_DATA_DIR": str(folder / name),
                }
                command = [build.python, "-m", "exporter.cli", "backfill", "--since", f"{DAYS + 1}d"]
                wall = time.perf_counter()
                log = folder / f"{name}.log"
                with log.open("wb") as stream:
                    process = subprocess.Popen(
                        command,
                        env=environment(PYTHONPATH=str(build.tree), **settings),
                        cwd=folder,
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                    )
                    _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                seconds = time.perf_counter() - wall
                documents = list(database[HISTORY].find({}, {"_id": 0}).sort([("worker_id", 1), ("timestamp", 1)]))
                count = len(documents)
                if process.returncode or not documents:
                    text = log.read_text()[-ERROR_CHARACTERS:]
                    raise RuntimeError(f"backfill ended with {process.returncode} and wrote {count} samples:\n{text}")
                took.setdefault(build.named(EXPORTER), []).append((usage.ru_utime + usage.ru_stime, seconds))
                if not build.label:
                    took.setdefault(BARE_INSERT, []).append(insert(client, f"{name}_bare", documents))
                context.progress(
                    f"{count:,} samples: {', '.join(f'{key} {value[-1][0]:.2f} s CPU' for key, value in took.items())}"
                )
                client.drop_database(name)
    for subject, taken in took.items():
        case = f"{workers} workers, {DAYS} days, {count:,} samples"
        yield Figure("backfill", case, "CPU", subject, "s", tuple(cpu for cpu, _ in taken))
        yield Figure("backfill", case, "wall", subject, "s", tuple(wall for _, wall in taken))


def insert(client: "MongoClient[Document]", name: str, documents: list[dict[str, Any]]) -> tuple[float, float]:
    """Return own CPU and wall seconds of inserting documents in batches with the exporter's write concern."""
    database = client[name]
    database.create_collection(
        HISTORY, timeseries={"timeField": "timestamp", "metaField": "worker_id", "granularity": "minutes"}
    )
    database[HISTORY].create_index([("worker_id", 1), ("timestamp", 1)])
    target = database.get_collection(HISTORY, write_concern=WriteConcern("majority", j=True))
    wall, cpu = time.perf_counter(), time.thread_time()
    for first in range(0, len(documents), BATCH):
        target.insert_many(documents[first : first + BATCH], ordered=False)
    took = time.thread_time() - cpu, time.perf_counter() - wall
    client.drop_database(name)
    return took
