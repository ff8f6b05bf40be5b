"""Rows `history`, `remote_read`, `statistics`, and `mirror`: one collection of a given number of samples, and all that uses it.

The collection is filled once per size and shared by these rows, whose measurements alternate with the bare queries. A bare
query is what one would write by hand with pymongo.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pymongo import MongoClient
from pymongo.collection import Collection

from bench import history, remote_read
from bench.context import Context
from bench.figures import BARE_INSERT, BARE_QUERY, EXPORTER, Figure, Skipped
from bench.history import DAYS, HISTORY, INVENTORY, PERIOD, PLAIN, Document, fill, inventory, worker_id
from bench.processes import environment
from bench.subjects import HERE, Build, exporter_process
from exporter.core.periods import DAY, HOUR, align, to_datetime
from exporter.demo import prometheus as prometheus_module
from exporter.demo.ports import free_port
from exporter.demo.prometheus import INSTALL, SOURCE
from tests.helpers.prometheus import Prometheus

SAMPLES_PER_WORKER = DAYS * DAY // PERIOD
MIRRORED_WORKERS = 10_000
STATISTICS_WORKERS = 100
START_SECONDS = 60
CHILDREN = Path(__file__).parent / "children"
Names = Mapping[str, tuple[str, str]]
HISTORY_NAMES: Names = {
    "bare find, projected": ("one worker, 30 days", BARE_QUERY),
    "API raw, limit=10000": ("one worker, 30 days", EXPORTER),
    "API raw, CSV": ("one worker, 30 days, as CSV", EXPORTER),
    "bare hourly pipeline": ("one worker, 30 days by hour", BARE_QUERY),
    "API hourly": ("one worker, 30 days by hour", EXPORTER),
    "API daily": ("one worker, 30 days by day", EXPORTER),
}
REMOTE_READ_NAMES: Names = {
    "all, 24 h: pymongo": ("all workers, 24 hours", BARE_QUERY),
    "all, 24 h: remote read": ("all workers, 24 hours", EXPORTER),
    "all, 24 h: Prometheus": ("all workers, 24 hours", "PromQL"),
    "one, 30 d: pymongo": ("one worker, 30 days", BARE_QUERY),
    "one, 30 d: remote read": ("one worker, 30 days", EXPORTER),
    "one, 30 d: Prometheus": ("one worker, 30 days", "PromQL"),
    "all, 30 d hourly: Prometheus": ("all workers, 30 days by hour, cached", "PromQL"),
}
"""Name in the measuring module → name of the figure, and subject."""


@dataclass(frozen=True)
class Stand:
    """A filled history."""

    uri: str
    collection: "Collection[Document]"
    workers: int
    end: int
    """UTC second of the end of its newest samples."""
    case: str


@contextmanager
def filled(samples: int) -> Iterator[Stand]:
    """Fill a history of about so many samples: 30 days of 5 minutes, as many workers as that takes."""
    workers = max(1, round(samples / SAMPLES_PER_WORKER))
    end = align(int(time.time()), HOUR)
    with history.database(replica_set=True) as (_, uri, _), MongoClient[Document](uri, tz_aware=True) as client:
        collection = client.bench[HISTORY]
        fill(collection, workers, end)
        client.bench[INVENTORY].insert_many(inventory(workers, end))
        yield Stand(uri, collection, workers, end, f"{samples / 1e6:g} million samples")


def stand(context: Context, samples: int) -> Stand:
    """Return the filled history of a size, filled when it is first needed in this run."""
    found = context.shared.get(f"history {samples}")
    if not isinstance(found, Stand):
        context.progress(f"filling a history of {samples:,} samples")
        found = context.stack.enter_context(filled(samples))
        context.shared[f"history {samples}"] = found
    return found


@contextmanager
def serving(build: Build, uri: str, folder: Path, **settings: str) -> Iterator[tuple[httpx.Client, str]]:
    """Run an exporter without CloudWatch; yields a client of it and its address."""
    address = f"127.0.0.1:{free_port()}"
    settings = {"MONGODB__URI": uri, "CLOUDWATCH__ENABLED": "false", "DATA_DIR": str(folder / "data"), **settings}
    with (
        exporter_process(build, ["serve", "--web.listen-address", address], folder, settings) as process,
        httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=120, headers=PLAIN) as http,
    ):
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if http.get("/-/ready").status_code == httpx.codes.OK:
                    break
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline or not process.pid:
                raise RuntimeError(f"the exporter was not ready within {START_SECONDS} s; see {process.log}")
            time.sleep(0.05)
        yield http, address


def read_history(context: Context) -> Iterator[Figure]:
    """Row `history`: the history API of one worker against the bare query."""
    for here, build, folder in stands(context):
        chosen = worker_id(here.workers // 2)
        window = {"$gte": to_datetime(here.end - DAYS * DAY), "$lt": to_datetime(here.end)}
        match = {"worker_id": chosen, "timestamp": window}
        with serving(build, here.uri, folder) as (http, _):
            took = history.timings(http, here.collection, match, chosen, here.end, context.repeat, context.progress)
        yield from named("history", here.case, build, HISTORY_NAMES, took)


def read_remotely(context: Context) -> Iterator[Figure | Skipped]:
    """Row `remote_read`: Prometheus's remote read, and PromQL over it, against the same documents by pymongo."""
    program = shutil.which("prometheus")
    if program is None:
        yield Skipped("remote_read", "PromQL", f"prometheus is not on PATH; {INSTALL}")
    for here, build, folder in stands(context):
        if here.workers > remote_read.MAX_HOURLY_WORKERS and not build.label:
            reason = (
                f"the exporter refuses hourly aggregates of more than {remote_read.MAX_HOURLY_WORKERS:,} workers and 31 days"
            )
            yield Skipped("remote_read", f"{here.case}, all workers, 30 days by hour", f"{reason}; here are {here.workers:,}")
        with serving(build, here.uri, folder) as (http, address), ExitStack() as stack:
            prometheus = None
            if program:
                prometheus = Prometheus(program, folder / "prometheus", prometheus_module.configuration(SOURCE, address))
                stack.callback(prometheus.stop)
            took = remote_read.timings(
                http, prometheus, here.collection, here.workers, here.end, context.repeat, context.progress
            )
        yield from named("remote_read", here.case, build, REMOTE_READ_NAMES, took)


def statistics(context: Context) -> Iterator[Figure]:
    """Row `statistics`: a day by hour of 100 workers in the library, against one aggregate."""
    for here, build, _ in stands(context):
        workers = min(STATISTICS_WORKERS, here.workers)
        found = child(build, "statistics.py", here.uri, HISTORY, workers, here.end, context.repeat)
        context.progress(f"{here.case}: {found}")
        for subject, values in found.items():
            if build.label and subject != "library":
                continue
            name = build.named(EXPORTER) if subject == "library" else BARE_QUERY
            yield Figure("statistics", here.case, f"{workers} workers, a day by hour", name, "s", tuple(values["wall"]))
            yield Figure("statistics", here.case, f"{workers} workers, a day by hour, own CPU", name, "s", tuple(values["cpu"]))


def mirror(context: Context) -> Iterator[Figure]:
    """Row `mirror`: a period of 10,000 workers and a day of 40 from the outbox into the history, against insert_many."""
    for here, build, folder in stands(context):
        mirrored = min(MIRRORED_WORKERS, here.workers * SAMPLES_PER_WORKER // 100)
        for workers, periods in ((mirrored, 1), (max(1, mirrored // 250), 250)):
            found = child(build, "mirror.py", here.uri, HISTORY, workers, periods, context.repeat, folder / f"outbox_{periods}")
            context.progress(f"{here.case}, {workers:,} workers × {periods}: {found}")
            case = f"{here.case}, {workers:,} workers × {periods} {'period' if periods == 1 else 'periods'}"
            for subject, values in found.items():
                if build.label and subject != "mirror":
                    continue
                name = build.named(EXPORTER) if subject == "mirror" else BARE_INSERT
                yield Figure("mirror", case, "own CPU", name, "s", tuple(values["cpu"]))
                yield Figure("mirror", case, "wall", name, "s", tuple(values["wall"]))


def stands(context: Context) -> Iterator[tuple[Stand, Build, Path]]:
    """Yield every size with every build, and a folder for it."""
    for samples in context.samples:
        here = stand(context, samples)
        for build in context.builds:
            with ExitStack() as stack:
                yield here, build, context.new_folder(stack)


def named(row: str, case: str, build: Build, names: Names, took: Mapping[str, Sequence[float]]) -> Iterator[Figure]:
    """Yield the figures of a measuring module under the names of the report."""
    for name, (figure, subject) in names.items():
        if name in took and not (build.label and subject == BARE_QUERY):  # of every build the same
            subject = subject if subject == BARE_QUERY else build.named(subject)
            yield Figure(row, case, figure, subject, "s", tuple(took[name]))


def child(build: Build, script: str, *arguments: object) -> dict[str, Any]:
    """Run a script of `bench/children` with the code of a build, and return the JSON that it prints."""
    command = [build.python, str(CHILDREN / script), *map(str, arguments)]
    done = subprocess.run(
        command, env=environment(PYTHONPATH=str(build.tree)), cwd=HERE, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
