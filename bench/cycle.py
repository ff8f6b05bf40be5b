"""Row `cycle`: what one collection cycle costs, side by side with the peers and the bare client.

Whole processes poll a fake CloudWatch over HTTP once a minute, each its own one, all in the same minutes, so that whatever else
the machine does slows all of them. Their CPU is read from outside between two cycles: it is that of a whole minute, idle
seconds included. The first cycles, in which programs start and the exporter fills gaps, do not count.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pymongo import MongoClient

from bench.context import Context
from bench.fake_aws import REGIONS, Counted, FakeAws
from bench.figures import BARE_CLIENT, CLOUDWATCH_EXPORTER, EXPORTER, WITHOUT_HISTORY, YACE, Figure, Skipped
from bench.peers import CLOUDWATCH_EXPORTER_VERSION, YACE_VERSION, UnavailablePeerError, cloudwatch_exporter, yace
from bench.processes import cpu_seconds, rss_mib
from bench.rounds import aggregates
from bench.subjects import BareClient, Build, CloudWatchExporter, Exporter, Subject, Yace, wrong_values
from exporter.demo.mongod import Mongod
from exporter.demo.ports import free_port

TICK_SECOND, IDLE_SECOND, READ_SECOND = 16, 36, 52
"""Seconds of the minute between which no subject is in a cycle: the exporter polls at 0 and reads the worker documents at 12,
those that poll while they are scraped do at `TICK_SECOND`, the others have their `phase`."""
SMALL_WORKERS = 1000
"""Fleets of up to so many workers share their minutes."""
MINUTE_SETTINGS: Mapping[str, str] = {
    "PERIOD": "1m",
    "CLOUDWATCH__INTERVAL": "1m",
    "ABSENCE_TIMEOUT": "10m",
    "GAP_FILL_WINDOW": "15m",
    "LOG__LEVEL": "warn",
}
"""Cycles of a minute; gaps of 15 minutes instead of a day, so that filling them ends within the warm-up."""


class Load(NamedTuple):
    """The size of a fleet and the latency of its CloudWatch in seconds."""

    workers: int
    latency: float

    @property
    def case(self) -> str:
        return f"{self.workers:,} workers, {self.latency * 1000:g} ms"


class Reading(NamedTuple):
    """One look at a subject from outside."""

    at: float
    """Monotonic seconds."""
    idle: float | None
    """CPU at `IDLE_SECOND`; None: a poll had not ended by then."""
    cpu: float
    rss: float
    counted: Counted
    cycles: int
    """Cycles since the reading before this one."""


@dataclass(frozen=True)
class Stand:
    """Processes that are through their first cycles."""

    subjects: Sequence[tuple[Load, Subject]]
    skipped: Sequence[Skipped]
    mongod: Mongod

    @property
    def largest(self) -> Load:
        return max(load for load, _ in self.subjects)


def run(context: Context, here: Stand) -> Iterator[Figure | Skipped]:
    """Row `cycle`: measure all subjects for the same minutes."""
    yield from here.skipped
    readings = read_cycles(here.subjects, context)
    now = time.time()
    for load, subject in here.subjects:
        yield from figures(load, subject, readings[id(subject)], now)


def shared_loads(context: Context) -> Iterator[list[Load]]:
    """Yield the loads that run in the same minutes: small fleets together, each large one alone."""
    for latency in context.latencies:
        if small := [Load(workers, latency) for workers in context.sizes if workers <= SMALL_WORKERS]:
            yield small
        yield from ([Load(workers, latency)] for workers in context.sizes if workers > SMALL_WORKERS)


@contextmanager
def stand(context: Context, loads: Sequence[Load]) -> Iterator[Stand]:
    """Run all subjects of some loads; yields them after their first cycles."""
    with ExitStack() as stack:
        folder = context.new_folder(stack)
        mongod = stack.enter_context(Mongod(folder / "mongo", free_port(), replica_set=True))
        subjects: list[tuple[Load, Subject]] = []
        skipped: list[Skipped] = []
        for load in loads:
            made, skipped = make(context, load, mongod, folder / load.case.replace(" ", "_"), stack)
            subjects += [(load, subject) for subject in made]
        start(subjects, stack, context.progress)
        for number in range(context.warm_up):
            context.progress(f"warm-up, cycle {number + 1} of {context.warm_up}")
            sleep_until(TICK_SECOND)
            tick(subjects)  # the first may take longer than a minute
            sleep_until(READ_SECOND)
        yield Stand(subjects, skipped, mongod)


def make(context: Context, load: Load, mongod: Mongod, folder: Path, stack: ExitStack) -> tuple[list[Subject], list[Skipped]]:
    """Prepare the subjects of one load: the exporters of every build, the peers that can be had, the bare client."""
    numbers = itertools.count(1)
    folder.mkdir(parents=True)

    def aws(regions: Sequence[str] = REGIONS) -> FakeAws:
        return stack.enter_context(FakeAws(folder, load.workers, load.latency, regions=regions))

    def exporter(build: Build, name: str, settings: Mapping[str, str]) -> Exporter:
        database = f"{folder.name.replace(',', '')}_{next(numbers)}"
        with MongoClient[dict[str, Any]](mongod.uri) as client:
            client[database].workers.insert_many(aggregates(load.workers))
        uri = mongod.uri.replace("/?", f"/{database}?")
        return Exporter(
            build.named(name), aws(), folder / database, build, {"MONGODB__URI": uri, **MINUTE_SETTINGS, **settings}
        )

    subjects: list[Subject] = []
    skipped = []
    for build in context.builds:
        if context.measures(EXPORTER):
            subjects.append(exporter(build, EXPORTER, {}))
        if context.measures(WITHOUT_HISTORY):
            subjects.append(exporter(build, WITHOUT_HISTORY, {"MONGODB__HISTORY": "null"}))
    if context.measures(BARE_CLIENT):
        subjects.append(BareClient(BARE_CLIENT, aws(), folder / "bare"))
    if context.peers and context.measures(YACE):
        try:
            yace()
            subjects.append(Yace(YACE, aws(), folder / "yace"))
        except UnavailablePeerError as error:
            skipped.append(Skipped("cycle", f"YACE {YACE_VERSION}", str(error)))
    if context.peers and context.measures(CLOUDWATCH_EXPORTER):
        try:
            cloudwatch_exporter()
            subjects.append(CloudWatchExporter(CLOUDWATCH_EXPORTER, aws(REGIONS[:1]), folder / "cloudwatch_exporter"))
        except UnavailablePeerError as error:
            skipped.append(Skipped("cycle", f"cloudwatch_exporter {CLOUDWATCH_EXPORTER_VERSION}", str(error)))
    return subjects, skipped


def start(subjects: Sequence[tuple[Load, Subject]], stack: ExitStack, progress: Callable[[str], None]) -> None:
    """Start all, each in its second of the minute."""
    progress(f"starting {len(subjects)} processes: " + ", ".join(sorted({subject.name for _, subject in subjects})))
    for _, subject in sorted(subjects, key=lambda each: -1 if each[1].phase is None else each[1].phase):
        if subject.phase is not None:
            sleep_until(subject.phase)
        stack.enter_context(subject)
        if isinstance(subject, Exporter):
            subject.wait_until_ready("/-/ready")


def sleep_until(second: int) -> None:
    """Wait for a second of the minute, unless it is that one now."""
    if int(time.time()) % 60 != second:
        time.sleep((second - time.time()) % 60)


def read_cycles(subjects: Sequence[tuple[Load, Subject]], context: Context) -> dict[int, list[Reading]]:
    """Read every subject once a minute; the first reading of each is the end of the warm-up.

    A subject that polls while it is scraped may take longer than that: it is read at the end of the minute in which its poll
    has ended, and polls again in the next one.
    """
    readings: dict[int, list[Reading]] = {id(subject): [] for _, subject in subjects}
    ticking = {id(subject): TickThread(subject) for _, subject in subjects if subject.ticks}
    for number in range(context.cycles + 1):
        sleep_until(TICK_SECOND)
        for thread in ticking.values():
            thread.wake()
        sleep_until(IDLE_SECOND)
        busy = {key for key, thread in ticking.items() if thread.is_busy}
        idle = {id(subject): cpu_seconds(subject.pid) for _, subject in subjects if id(subject) not in busy}
        sleep_until(READ_SECOND)
        for _, subject in subjects:
            found = readings[id(subject)]
            if id(subject) in ticking and ticking[id(subject)].is_busy:
                context.progress(f"{subject.name} still polls; it is read at the end of the next minute")
                continue
            now = time.monotonic()
            # On a machine that is too busy a reading comes late, and the next one a minute later: two cycles are between them.
            minutes = max(1, round((now - found[-1].at) / 60)) if found else 1
            cycles = ticking[id(subject)].take() if id(subject) in ticking else minutes
            cpu, rss = cpu_seconds(subject.pid), rss_mib(subject.pid)
            found.append(Reading(now, idle.get(id(subject)), cpu, rss, subject.aws.count(), cycles))
        if number == 0:
            context.progress(f"{context.cycles} cycles of a minute")
        else:
            texts = [
                f"{subject.name} {load.workers:,}: {after.cpu - before.cpu:.3f}"
                for load, subject in subjects
                for before, after in [readings[id(subject)][-2:]]
                if len(readings[id(subject)]) > 1
            ]
            context.progress(f"cycle {number} of {context.cycles}, CPU s: {'; '.join(texts)}")
    return readings


def tick(subjects: Sequence[tuple[Load, Subject]]) -> None:
    """Make those poll that have no cycle of their own, all at once."""
    with ThreadPoolExecutor(len(subjects)) as threads:
        list(threads.map(lambda each: each[1].tick(), subjects))


class TickThread:
    """Makes a subject poll in the background, so that a slow one does not delay the readings of the others."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._thread: threading.Thread | None = None
        self._polls = 0

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wake(self) -> None:
        """Poll once, unless the poll before has not ended."""
        if not self.is_busy:
            self._polls += 1
            self._thread = threading.Thread(target=self._subject.tick, daemon=True)
            self._thread.start()

    def take(self) -> int:
        """Return how many polls there were since the last time."""
        polls, self._polls = self._polls, 0
        return polls


def figures(load: Load, subject: Subject, readings: Sequence[Reading], now: float) -> Iterator[Figure | Skipped]:
    """Yield what the readings of one subject say."""
    if len(readings) < 2:
        yield Skipped("cycle", f"{subject.name}, {load.case}", "fewer than two polls ended in the time that was measured")
        return

    def figure(name: str, unit: str, values: Sequence[float]) -> Figure:
        return Figure("cycle", load.case, name, subject.name, unit, tuple(values))

    measured = readings[1:]
    yield figure("CPU", "s", [(after.cpu - before.cpu) / after.cycles for before, after in itertools.pairwise(readings)])
    scale = 60 / (READ_SECOND - IDLE_SECOND)
    idle = [(each.cpu - each.idle) * scale for each in measured if each.idle is not None]
    if idle:
        yield figure("idle CPU a minute", "s", idle)
    spans = [each.counted.span for each in measured if each.cycles == 1]
    if spans:
        yield figure("polling, first request to last answer", "s", spans)
    yield figure("RSS", "MiB", [each.rss for each in measured])
    yield figure("calls", "", [each.counted.calls / each.cycles for each in measured])
    yield figure("metrics billed", "", [each.counted.billed / each.cycles for each in measured])
    shown = subject.values()
    if shown is not None:
        yield figure("wrong or missing values", "", [wrong_values(shown, subject.aws, now)])
