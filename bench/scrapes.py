"""Rows `scrape` and `freshness`: what a scrape costs while cycles run, and how soon a value that CloudWatch has is shown.

The same processes as in row `cycle`, in cycles of a minute. For the latencies a process scrapes each subject from before its
poll until after it, gzip in one minute, identity in another. For the CPU of a scrape each is scraped in seconds in which it
does nothing else.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pymongo import MongoClient
from pymongo.collection import Collection

from bench.context import Context
from bench.cycle import READ_SECOND, Load, Stand, sleep_until, tick
from bench.figures import WITHOUT_HISTORY, Figure, Skipped
from bench.history import HISTORY
from bench.processes import cpu_seconds, environment
from bench.subjects import HERE, Exporter, Subject

ENCODINGS = ("gzip", "identity")
SCRAPED_SECOND, PEERS_SECOND, QUIET_SECOND = 54, 20, 36
"""From when to when each subject is scraped: the exporters poll and read the worker documents before `PEERS_SECOND`, what has
its `phase` after it."""
MIN_SCRAPES = 100
"""Scrapes during a cycle below which there is no 99th percentile."""
CPU_SCRAPES = 10
"""Scrapes of one sample of their CPU."""
UTILIZATION = (b"cpu_utilization_ratio", b"memory_utilization_ratio", b"_cpuutilization_average", b"_mem_used_percent_average")
"""How the names of CPU and memory end, of the exporter and of its peers."""
WATCH_SECONDS = 0.1
"""Time between two looks at /metrics and at the history."""


def run(context: Context, here: Stand) -> Iterator[Figure | Skipped]:
    """Row `scrape`: the largest fleet of the stand; what an exporter shows without history is the same, so it is left out."""
    load = here.largest
    tick(here.subjects)
    shown = [
        subject
        for its, subject in here.subjects
        if its == load and not subject.name.startswith(WITHOUT_HISTORY) and subject.values() is not None
    ]
    scraped = [subject for subject in shown if not subject.ticks]
    for encoding in ENCODINGS:
        context.progress(f"{load.case}: {encoding} during a cycle, then alone; a minute for each exporter")
        yield from latencies(load, scraped, encoding)
        yield from costs(context, load, scraped, encoding)
        for subject in shown:
            size = len(subject.body(encoding)) / 1024
            yield Figure("scrape", load.case, f"{encoding}, size", subject.name, "KiB", (size,))
    for subject in shown:
        size = len(b"\n".join(utilization(subject))) / 1024
        yield Figure("scrape", load.case, "identity, size of CPU and memory", subject.name, "KiB", (size,))


def latencies(load: Load, subjects: Sequence[Subject], encoding: str) -> Iterator[Figure | Skipped]:
    """Yield the latencies of scraping each subject continuously during its cycle: one subject at a time, one after another."""
    for subject in sorted(subjects, key=lambda each: each.phase is not None):
        if subject.phase is None:
            sleep_until(SCRAPED_SECOND)
            took = scraped_until(subject, encoding, PEERS_SECOND)
        else:
            sleep_until(PEERS_SECOND)
            took = scraped_until(subject, encoding, QUIET_SECOND)
        if len(took) < MIN_SCRAPES:
            reason = f"{len(took)} scrapes in a cycle are too few for a 99th percentile"
            yield Skipped("scrape", f"{subject.name}, {load.case}, {encoding}", reason)
            continue
        for name, value in (("p50", statistics.median(took)), ("p99", statistics.quantiles(took, n=100)[98])):
            yield Figure("scrape", load.case, f"{encoding}, {name}", subject.name, "ms", (value,))


def scraped_until(subject: Subject, encoding: str, second: int) -> list[float]:
    """Scrape a subject from now until that second of the minute by a process of its own; return the milliseconds."""
    command = [sys.executable, "-m", "bench.rounds", "--child", "scrape", str(subject.port), encoding]
    process = subprocess.Popen(command, cwd=HERE, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    sleep_until(second)
    return [seconds * 1000 for _, seconds in json.loads(process.communicate("")[0] or '{"latencies": []}')["latencies"]]


def costs(context: Context, load: Load, subjects: Sequence[Subject], encoding: str) -> Iterator[Figure]:
    """Yield the CPU of a scrape: that of some, less that of as much time without."""
    if not QUIET_SECOND <= time.time() % 60 < READ_SECOND:
        sleep_until(QUIET_SECOND)
    for subject in subjects:
        began, used = time.monotonic(), cpu_seconds(subject.pid)
        time.sleep(1)
        idle = (cpu_seconds(subject.pid) - used) / (time.monotonic() - began)
        samples = []
        for _ in range(context.repeat):
            began, used = time.monotonic(), cpu_seconds(subject.pid)
            for _ in range(CPU_SCRAPES):
                subject.body(encoding)
            busy = cpu_seconds(subject.pid) - used - idle * (time.monotonic() - began)
            samples.append(max(0.0, busy / CPU_SCRAPES * 1000))
        yield Figure("scrape", load.case, f"{encoding}, CPU of a scrape", subject.name, "ms", tuple(samples))


def freshness(context: Context, here: Stand) -> Iterator[Figure]:
    """Row `freshness`: seconds from the first request of a cycle until its values are on /metrics, and in the history."""
    watched = [(load, subject) for load, subject in here.subjects if subject.values() is not None and not subject.ticks]
    found: dict[tuple[str, str, str], list[float]] = {}
    with MongoClient[dict[str, Any]](here.mongod.uri) as client:
        for number in range(context.cycles):
            context.progress(f"cycle {number + 1} of {context.cycles}")
            sleep_until(SCRAPED_SECOND)
            for key, seconds in watch_cycle(watched, client):
                found.setdefault(key, []).append(seconds)
    for (case, name, subject_name), values in found.items():
        yield Figure("freshness", case, name, subject_name, "s", tuple(values))


def watch_cycle(
    subjects: Sequence[tuple[Load, Subject]], client: "MongoClient[dict[str, Any]]"
) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Watch one cycle of all subjects; yields case, name, and subject, and seconds from first request to last change."""
    until = time.monotonic() + (QUIET_SECOND - SCRAPED_SECOND) % 60
    watches: list[tuple[Load, Subject, dict[str, Watch]]] = []
    for load, subject in subjects:
        subject.aws.count()
        looks = {"on /metrics": Watch(partial(utilization, subject), until)}
        if isinstance(subject, Exporter) and subject.has_history:
            last = f"worker-{load.workers - 1:05d}"
            looks["in the history"] = Watch(partial(newest, client[subject.database][HISTORY], last), until)
        watches.append((load, subject, looks))
    for load, subject, looks in watches:
        for look in looks.values():
            look.join()
        began = subject.aws.count().began
        for name, look in looks.items():
            if began is not None and look.changed is not None:
                yield (load.case, name, subject.name), look.changed - began


class Watch(threading.Thread):
    """Looks again and again until monotonic time `until`; `changed` is when a look last differed from the one before."""

    def __init__(self, look: Callable[[], object], until: float) -> None:
        super().__init__()
        self._look, self._until = look, until
        self.changed: float | None = None
        self.start()

    def run(self) -> None:
        before = self._look()
        while time.monotonic() < self._until:
            time.sleep(WATCH_SECONDS)
            now = self._look()
            if now != before:
                before, self.changed = now, time.monotonic()


def utilization(subject: Subject) -> list[bytes]:
    """Return the lines of /metrics with CPU and memory, the content that all subjects have in common."""
    return [line for line in subject.body().split(b"\n") if line.partition(b"{")[0].endswith(UTILIZATION)]


def newest(collection: "Collection[dict[str, Any]]", worker: str) -> object:
    """Return the time of the newest sample of a worker."""
    found = collection.find_one({"worker_id": worker}, {"timestamp": 1}, sort=[("timestamp", -1)])
    return found and found["timestamp"]
