"""Row `backfill`: the command as a whole process, against inserting the same documents with insert_many."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pymongo import WriteConcern
from pymongo.collection import Collection

from bench.context import Context
from bench.fake_aws import FakeAws
from bench.figures import BARE_INSERT, EXPORTER, Figure
from bench.history import Document
from bench.processes import environment
from bench.reads import Stand, stand
from bench.rounds import aggregates
from bench.subjects import Build

MAX_WORKERS, DAYS = 100, 8
BATCH = 5000
ERROR_CHARACTERS = 1500


def backfill(context: Context) -> Iterator[Figure]:
    """Row `backfill`: fill eight days of 100 further workers in a history of each size; the newest day is left to `serve`."""
    workers = min(MAX_WORKERS, context.sizes[-1])
    fleet = [{**each, "_id": each["_id"].replace("worker", "further")} for each in aggregates(workers)]
    ids = [each["_id"] for each in fleet]
    for samples in context.samples:
        here = stand(context, samples)
        took: dict[str, list[tuple[float, float]]] = {}
        with ExitStack() as stack:
            folder = context.new_folder(stack)
            aws = stack.enter_context(FakeAws(folder, workers, period=300))
            here.collection.database.workers.insert_many(fleet)
            stack.callback(here.collection.database.workers.delete_many, {"_id": {"$in": ids}})
            for number in range(context.repeat):
                for build in context.builds:
                    documents, both = run(build, here, aws, ids, folder / f"{number}_{context.builds.index(build)}")
                    took.setdefault(build.named(EXPORTER), []).append(both)
                    if not build.label:
                        took.setdefault(BARE_INSERT, []).append(insert(here.collection, ids, documents))
                    seconds = ", ".join(f"{key} {value[-1][0]:.2f} s CPU" for key, value in took.items())
                    context.progress(f"{len(documents):,} samples: {seconds}")
        case = f"{here.case}, {workers} workers, {DAYS} days"
        for subject, taken in took.items():
            yield Figure("backfill", case, "CPU", subject, "s", tuple(cpu for cpu, _ in taken))
            yield Figure("backfill", case, "wall", subject, "s", tuple(wall for _, wall in taken))


def run(build: Build, here: Stand, aws: FakeAws, ids: list[str], folder: Path) -> tuple[list[Document], tuple[float, float]]:
    """Run the command for these workers and delete what it wrote; return that, and its CPU and wall seconds."""
    folder.mkdir()
    settings = {
        "CML_EXPORTER_MONGODB__URI": here.uri,
        "CML_EXPORTER_CLOUDWATCH__ENDPOINT_URL": aws.url,
        "CML_EXPORTER_DATA_DIR": str(folder / "data"),
    }
    command = [build.python, "-m", "exporter.cli", "backfill", "--since", f"{DAYS + 1}d"]
    command += [word for each in ids for word in ("--worker", each)]
    log, wall = folder / "backfill.log", time.perf_counter()
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
    mine = {"worker_id": {"$in": ids}}
    documents = list(here.collection.find(mine, {"_id": 0}).sort([("worker_id", 1), ("timestamp", 1)]))
    if process.returncode or not documents:
        text = log.read_text()[-ERROR_CHARACTERS:]
        raise RuntimeError(f"backfill ended with {process.returncode} and wrote {len(documents)} samples:\n{text}")
    here.collection.delete_many(mine)
    return documents, (usage.ru_utime + usage.ru_stime, seconds)


def insert(collection: "Collection[Document]", ids: list[str], documents: list[dict[str, Any]]) -> tuple[float, float]:
    """Return own CPU and wall seconds of inserting documents in batches with the exporter's write concern; delete them."""
    target = collection.with_options(write_concern=WriteConcern("majority", j=True))
    wall, cpu = time.perf_counter(), time.thread_time()
    for first in range(0, len(documents), BATCH):
        target.insert_many(documents[first : first + BATCH], ordered=False)
    took = time.thread_time() - cpu, time.perf_counter() - wall
    collection.delete_many({"worker_id": {"$in": ids}})
    return took
