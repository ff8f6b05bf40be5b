"""Rows `start` and `cli`: from the start of the exporter to its first gauges, and a command that only prints its version."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from pymongo import MongoClient

from bench import first_gauge
from bench.context import Context
from bench.fake_aws import FakeAws
from bench.figures import EXPORTER, IMPORT, VERSION, Figure
from bench.processes import environment
from bench.rounds import aggregates
from exporter.demo.mongod import Mongod
from exporter.demo.ports import free_port

LATENCY_SECONDS = 0.1
COMMANDS = {
    VERSION: ["-m", "exporter.cli", "--version"],
    IMPORT: ["-c", "import exporter.core.settings"],
    "an empty Python program": ["-c", ""],
}


def start(context: Context) -> Iterator[Figure]:
    """Row `start`: the largest fleet, an empty history, a CloudWatch that takes 100 ms to answer."""
    for workers in context.sizes if context.full else context.sizes[-1:]:
        case = f"{workers:,} workers, {LATENCY_SECONDS * 1000:g} ms"
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        with ExitStack() as stack:
            folder = context.new_folder(stack)
            mongod = stack.enter_context(Mongod(folder / "mongo", free_port(), replica_set=True))
            aws = stack.enter_context(FakeAws(folder, workers, LATENCY_SECONDS, period=300))
            for number in range(context.repeat):
                for build in context.builds:
                    name = f"bench_{number}_{len(found)}"
                    with MongoClient[dict[str, Any]](mongod.uri) as client:
                        client[name].workers.insert_many(aggregates(workers))
                    uri = mongod.uri.replace("/?", f"/{name}?")
                    steps = first_gauge.measure(
                        build.tree, uri, aws.url, workers, folder / name, python=build.python, say=context.progress
                    )
                    for step, took in steps.items():
                        found.setdefault((step, build.named(EXPORTER)), []).append(took)
                    with MongoClient[dict[str, Any]](mongod.uri) as client:
                        client.drop_database(name)
        for (step, subject), taken in found.items():
            yield Figure("start", case, step, subject, "s", tuple(wall for wall, _ in taken))
            yield Figure("start", case, f"{step}, CPU", subject, "s", tuple(cpu for _, cpu in taken))


def cli(context: Context) -> Iterator[Figure]:
    """Row `cli`: `--version`, the import of the settings, and an empty program, in turns."""
    took: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(2 * context.repeat + 1):
        for build in context.builds:
            for name, words in COMMANDS.items():
                wall = time.perf_counter()
                process = subprocess.Popen(
                    [build.python, *words], env=environment(PYTHONPATH=str(build.tree)), stdout=subprocess.DEVNULL
                )
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                if process.returncode:
                    raise RuntimeError(f"{name} ended with {process.returncode}")
                if number:  # the first one compiles
                    seconds = time.perf_counter() - wall, usage.ru_utime + usage.ru_stime
                    took.setdefault((name, build.label), []).append(seconds)
    labels = {build.label: build for build in context.builds}
    for (name, label), taken in took.items():
        subject = labels[label].named(name)
        yield Figure("cli", "a process", "wall", subject, "s", tuple(wall for wall, _ in taken))
        yield Figure("cli", "a process", "CPU", subject, "s", tuple(cpu for _, cpu in taken))
