"""Let the primary of three nodes step down, die, and hang, or take away their majority; then compare history and ledger.

    python -m tests.tools.step_downs --seconds 240
    python -m tests.tools.step_downs --majority-lost 360

All is real but CloudWatch: three mongods as one replica set on free ports of 127.0.0.1 and `cml-worker-exporter serve` are
processes. A period is a minute, so that a run of minutes has several of each worker.

Without --majority-lost the primary steps down (replSetStepDown), is killed (SIGKILL) and started again, or is paused (SIGSTOP)
at random times for --seconds, if possible while samples wait for their insert. Every few seconds workers are added that
have run for hours: all their samples are due at once, so that inserts hardly pause.

With --majority-lost two of the three nodes are killed for so many seconds. In the first half the third stays primary (its
election timeout is longer than the outage): the worker documents change status and labs in every period, and no write is
acknowledged by a majority. In the second half it steps down: MongoDB can only be read. Afterwards each worker and period must
have the status and labs of its time.

The figures: samples that are lost, stored twice, or unlike CloudWatch's; samples without the status and labs of
their time; the longest time without an answer on /metrics; the seconds from the end of the last fault until /-/ready is `ok`,
the exporter holds the lease, and no final sample waits for MongoDB. Ends by itself, some minutes after the last fault, when
everything is final.
"""

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pymongo import MongoClient, ReplaceOne, UpdateOne
from pymongo.errors import PyMongoError

from exporter.core.periods import HOUR, align
from exporter.demo.mongod import Mongod
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member, expected_history, points_of
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.replica_set import ReplicaSet
from tests.helpers.scraper import Scraper
from tests.tools.crash_tests import COLLECTION, CREDENTIALS, DATABASE

PERIOD = 60
REGION = "eu-west-1"
FAULTS = ("step-down", "kill", "pause")
STEP_DOWN_SECONDS = 10
"""How long a primary that steps down refuses to be elected again."""
ADD_SECONDS = 5
"""Time between two additions of workers."""
PATIENCE_SECONDS = 20
"""How long to wait for samples that wait for their insert, before a fault happens without any."""
MIRRORED_WITHIN_SECONDS = 420
"""How long after the last fault everything may take to become final and be mirrored; an idle machine needs half of it."""
WARM_UP_SECONDS = 75
"""Time before the majority is lost: each worker was observed, and the exporter holds the lease."""
STATUS_SETTLES_SECONDS = 15
"""Time until the status of every worker has changed once."""
STATUSES = ("running", "pending")
"""What the status changes between; CloudWatch has data in both."""


@dataclass(frozen=True, slots=True)
class State:
    """Status and labs of a worker document in [since, the next one's until], UTC seconds."""

    since: float
    """Before it was written."""
    until: float
    """After it was written: then the earlier state was gone."""
    status: str
    labs: int


@dataclass
class Outcome:
    """What became of the samples."""

    faults: Counter[str] = field(default_factory=Counter)
    at_inserts: int = 0
    """Faults while samples waited for their insert."""
    samples: int = 0
    """Compared with CloudWatch's."""
    lost: int = 0
    doubled: int = 0
    """Pairs of worker and period that are stored more than once."""
    wrong: int = 0
    """Stored samples that CloudWatch never had."""
    observed: int = 0
    """Samples whose status and labs were compared."""
    without_state: int = 0
    """Samples that lack the status and labs of their time."""
    states: int = 0
    """Different pairs of status and labs among the compared."""
    silence: float = 0.0
    """Seconds without an answer on /metrics, at most."""
    recovery: float = 0.0
    """Seconds from the end of the last fault until all was well."""

    @property
    def whole(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.without_state)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} × {kind}" for kind, count in sorted(self.faults.items()))
        return (
            f"{faults}; {self.at_inserts} while samples waited for their insert; {self.samples} samples compared: "
            f"{self.lost} lost, {self.doubled} doubled, {self.wrong} wrong; {self.observed} observed, with {self.states} "
            f"pairs of status and labs: {self.without_state} without those of their time; longest silence of /metrics "
            f"{self.silence:.1f} s, recovery {self.recovery:.1f} s"
        )


class Run:
    """The processes of one run, the fleet, and what the history must have of it."""

    def __init__(self, folder: Path, nodes: ReplicaSet, fake: FakeCloudWatch, seed: int, say: Callable[[str], None]) -> None:
        self.nodes, self.fake, self.say = nodes, fake, say
        self.random = random.Random(seed)
        self.instances: list[Member] = []
        """All that run; `members` of them are workers already."""
        self.members: list[Member] = []
        self.states: dict[str, list[State]] = {}
        self.outcome = Outcome()
        self.ended = 0.0
        """UTC seconds of the end of the last fault."""
        settings = {
            "mongodb": {"uri": nodes.uri.replace("/?", f"/{DATABASE}?")},
            "cloudwatch": {"endpoint_url": fake.url, "interval": "1m"},
            "period": "1m",
            "settle_delay": "1m",
            "absence_timeout": "2m",
        }
        self.exporter = ExporterProcess(folder / "exporter", settings, CREDENTIALS)

    # The fleet

    def run_instances(self, count: int, hours: tuple[int, int]) -> None:
        """Add instances to CloudWatch that have run for some hours; their workers are added later.

        They are there before the exporter starts: a series of hours that ListMetrics did not list an hour ago is unlike AWS.
        """
        now = align(int(time.time()), PERIOD)
        for number in range(len(self.instances), len(self.instances) + count):
            created = now - self.random.randrange(hours[0] * HOUR, hours[1] * HOUR, PERIOD)
            self.instances.append(Member(f"worker-{number:04d}", instance_id(number), REGION, created))
            self.fake.add(instance_id(number), REGION, runs=[(created, None)])

    def add_workers(self, client: "MongoClient[dict[str, Any]]", count: int) -> None:
        """Add workers of the next instances; return when a majority has their documents."""
        fresh = self.instances[len(self.members) : len(self.members) + count]
        if not fresh:
            return
        replacements = [ReplaceOne({"_id": member.worker_id}, member.aggregate(), upsert=True) for member in fresh]
        since = time.time()
        while True:
            try:
                client[DATABASE]["workers"].bulk_write(replacements)
                break
            except PyMongoError as error:  # a step-down on the way: what was written may be rolled back, so write it again
                if time.time() > since + scaled(120):
                    raise AssertionError(f"workers cannot be added: {error}") from error
                time.sleep(0.2)
        self.members += fresh
        self.states |= {member.worker_id: [State(since, time.time(), "running", 2)] for member in fresh}

    def change_workers(self, client: "MongoClient[dict[str, Any]]") -> None:
        """Give every worker another status and number of labs, acknowledged as `client` wants it."""
        number = len(next(iter(self.states.values())))
        changes = {each.worker_id: (self.random.choice(STATUSES), 100 * number + k) for k, each in enumerate(self.members)}
        since = time.time()
        client[DATABASE]["workers"].bulk_write(
            [
                UpdateOne({"_id": worker_id}, {"$set": {"status": status, "active_labs_count": labs}})
                for worker_id, (status, labs) in changes.items()
            ]
        )
        for worker_id, (status, labs) in changes.items():
            self.states[worker_id].append(State(since, time.time(), status, labs))

    @contextlib.contextmanager
    def adding(self, workers: int) -> Iterator[None]:
        """Add workers every few seconds, in a thread, until the block is left."""
        ended, problems = threading.Event(), []

        def add() -> None:
            try:
                with majority(self.nodes) as client:
                    while not ended.wait(ADD_SECONDS):
                        self.add_workers(client, workers)
            except BaseException as error:  # noqa: BLE001  # raised below, in the main thread
                problems.append(error)

        thread = threading.Thread(target=add, name="adding")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        if problems:
            raise problems[0]

    # Faults

    def step_down(self) -> None:
        """Let the primary step down, kill it, or pause it at a random time; return when there is a primary again."""
        time.sleep(self.random.uniform(0, 6))
        kind = self.random.choice(FAULTS)
        seconds = STEP_DOWN_SECONDS if kind == "step-down" else self.random.uniform(2, 12)
        primary = self.nodes.primary()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (waiting := self.waiting()) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(self.random.uniform(0, 0.3))
        self.say(f"{kind} of the primary for {seconds:.0f} s, {waiting} samples wait for their insert")
        if kind == "step-down":
            self.nodes.step_down(STEP_DOWN_SECONDS)
        elif kind == "kill":
            primary.kill()
            time.sleep(seconds)
            primary.start()
        else:
            pause(primary, seconds)
        self.outcome.faults[kind] += 1
        self.outcome.at_inserts += bool(waiting)
        self.ended = time.time()
        self.nodes.primary()

    def lose_majority(self, seconds: float) -> None:
        """Take away two of three nodes for `seconds`."""
        survivor = self.nodes.primary()
        with MongoClient[dict[str, Any]](survivor.uri, w=1) as client:
            self.set_election_timeout(client, 2 * seconds)
            lost = [member for member in self.nodes.members if member is not survivor]
            for member in lost:
                member.kill()
            began = time.time()
            self.say("two of three nodes are gone; the third stays primary, and the worker documents change")
            while time.time() < began + seconds / 2:
                time.sleep(align(int(time.time()), PERIOD) + 1.5 * PERIOD - time.time())  # between two observations
                self.change_workers(client)
            self.set_election_timeout(client, 2, force=True)
            with contextlib.suppress(PyMongoError):  # the answer may be that it is no primary any more
                client.admin.command("replSetStepDown", 5, secondaryCatchUpPeriodSecs=0, force=True)
            self.nodes.wait_for_no_primary()
            self.say(f"no primary, after {time.time() - began:.0f} s")
            time.sleep(max(0.0, began + seconds - time.time()))
        self.ended = time.time()
        for member in lost:
            member.start()
        self.nodes.primary()
        self.outcome.faults[f"majority lost for {self.ended - began:.0f} s"] += 1

    def set_election_timeout(self, client: "MongoClient[dict[str, Any]]", seconds: float, *, force: bool = False) -> None:
        """Set how long a primary stays without hearing of a majority; `force` does it without one."""
        config = client.admin.command("replSetGetConfig")["config"]
        config["version"] += 1
        config["settings"]["electionTimeoutMillis"] = round(seconds * 1000)
        client.admin.command("replSetReconfig", config, force=force)

    # What the exporter does

    def start(self) -> None:
        """Start the exporter and wait until it has mirrored samples."""
        self.exporter.start(wait=False)
        self.exporter.wait_until_ready(scaled(60))

    def waiting(self) -> int:
        """Return how many final samples are not in MongoDB yet."""
        return self.outbox("SELECT COUNT(*) FROM sample WHERE state=1")

    def outbox(self, sql: str) -> int:
        """Return a number from the exporter's outbox, while it runs."""
        with contextlib.closing(sqlite3.connect(f"file:{self.exporter.data_dir / 'outbox.db'}?mode=ro", uri=True)) as outbox:
            number: int = outbox.execute(sql).fetchone()[0]
            return number

    def is_well(self) -> bool:
        """Return whether every part is well, the exporter holds the lease, and no final sample waits."""
        try:
            ready = self.exporter.get("/-/ready").json()["status"] == "ok"
            return ready and self.exporter.metrics().get("cml_exporter_leader") == 1 and not self.waiting()
        except httpx.TransportError:
            return False

    def finish(self, ended: float) -> None:
        """Wait until all periods that began before `ended` are mirrored, end the exporter, and compare the history."""
        self.exporter.wait_for(self.is_well, scaled(MIRRORED_WITHIN_SECONDS), "well")
        self.outcome.recovery = time.time() - ended
        self.say(f"well {self.outcome.recovery:.1f} s after the last fault")
        final_before = align(int(ended), PERIOD) + PERIOD
        due = f"SELECT COUNT(*) FROM sample WHERE state=1 OR (state=0 AND start<{final_before})"
        time.sleep(max(0.0, final_before + PERIOD + 20 - time.time()))  # by then the last of these periods was observed
        self.exporter.wait_for(lambda: not self.outbox(due), scaled(MIRRORED_WITHIN_SECONDS), "done with mirroring")

    def count(self, final_before: int, restored: float | None = None) -> None:
        """Compare the history with CloudWatch and the worker documents, for periods that begin before `final_before`.

        Of what was observed from `restored` on, UTC seconds, any status and labs do: a rollback may have changed the documents.
        """
        with majority(self.nodes) as client:
            documents = list(client[DATABASE][COLLECTION].find({}, {"_id": 0}))
        points = expected_history(self.fake, self.members, align(int(time.time()), PERIOD), PERIOD)
        found = points_of(documents)
        keys = Counter((worker_id, start) for worker_id, start, _, _ in found)
        due = {point for point in points if point[1] < final_before}
        outcome = self.outcome
        outcome.samples = len(due)
        outcome.lost = len({point[:2] for point in due} - keys.keys())
        outcome.doubled = sum(count > 1 for count in keys.values())
        outcome.wrong = len(set(found) - points)
        pairs = set[tuple[object, object]]()
        for (worker_id, start, _, _), document in zip(found, documents, strict=True):
            if not align(int(self.states[worker_id][0].until), PERIOD) + PERIOD <= start < final_before:
                continue
            pair = (document.get("status"), document.get("active_labs_count"))
            known = (
                None not in pair
                if restored and start + 2 * PERIOD > restored
                else pair in self.possible(worker_id, start + PERIOD)
            )
            if not known:
                self.say(f"{worker_id} at {start} has {pair}")
            outcome.observed += 1
            outcome.without_state += not known
            pairs.add(pair)
        outcome.states = len(pairs)

    def possible(self, worker_id: str, end: int) -> set[tuple[str, int]]:
        """Return what an observation within a period after `end` may have seen."""
        states = self.states[worker_id]
        gone = [*(state.until for state in states[1:]), float("inf")]
        return {
            (state.status, state.labs)
            for state, until in zip(states, gone, strict=True)
            if state.since < end + PERIOD and until > end
        }


def majority(nodes: ReplicaSet) -> "MongoClient[dict[str, Any]]":
    """Return a client of the set whose writes a majority acknowledges."""
    return MongoClient(nodes.uri, w="majority", tz_aware=True, serverSelectionTimeoutMS=20_000, socketTimeoutMS=20_000)


def pause(member: Mongod, seconds: float) -> None:
    """Pause a mongod with SIGSTOP, and resume it."""
    os.kill(member.pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(member.pid, signal.SIGCONT)


@contextlib.contextmanager
def running(folder: Path, seed: int, workers: int, say: Callable[[str], None], later: int = 0) -> Iterator[Run]:
    """Start three nodes, CloudWatch, and the exporter with a first fleet; end them all. `later` workers can be added."""
    with ReplicaSet(folder) as nodes, FakeCloudWatch(seed=seed, period=PERIOD, latency=0.02) as fake:
        run = Run(folder, nodes, fake, seed, say)
        with majority(nodes) as client:
            run.run_instances(workers, (1, 2))
            run.run_instances(later, (16, 23))
            run.add_workers(client, workers)
        try:
            run.start()
            yield run
        finally:
            run.exporter.kill()


def step_downs(
    folder: Path, seconds: float, *, workers: int = 10, seed: int = 0, say: Callable[[str], None] = print
) -> Outcome:
    """Let primaries step down, die, and hang for `seconds`; return what became of the samples."""
    with running(folder, seed, workers, say, later=workers * round(seconds / ADD_SECONDS)) as run:
        with Scraper(run.exporter.url) as scraper:
            began = time.monotonic()
            changed = time.time() + STATUS_SETTLES_SECONDS
            with run.adding(workers):
                # Until a period has begun after the first change: only from then on are status and labs compared.
                while time.monotonic() < began + seconds or time.time() < align(int(changed), PERIOD) + PERIOD:
                    run.step_down()
            run.finish(run.ended)
        run.outcome.silence = scraper.longest
        assert run.exporter.stop() == 0
        run.count(align(int(run.ended), PERIOD) + PERIOD)
        say(str(run.outcome))
        return run.outcome


def majority_lost(
    folder: Path, seconds: float, *, workers: int = 10, seed: int = 0, say: Callable[[str], None] = print
) -> Outcome:
    """Take away the majority for `seconds`; return what became of the samples, and of status and labs."""
    with running(folder, seed, workers, say) as run:
        with Scraper(run.exporter.url) as scraper:
            time.sleep(WARM_UP_SECONDS)
            run.lose_majority(seconds)
            run.finish(run.ended)
        run.outcome.silence = scraper.longest
        assert run.exporter.stop() == 0
        run.count(align(int(run.ended), PERIOD) + PERIOD, restored=run.ended)
        say(str(run.outcome))
        return run.outcome


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it and print the figures; exit with 1 if a sample, its status, or its labs were lost, or a sample was doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="how long primaries step down, die, and hang")
    parser.add_argument(
        "--majority-lost",
        type=float,
        nargs="?",
        const=360,
        metavar="SECONDS",
        help="instead, how long two of three nodes are gone; 360 without a number",
    )
    parser.add_argument("--workers", type=int, default=10, help="workers at the start, and added every 5 s")
    parser.add_argument("--seed", type=int, default=None, help="default: random")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the processes too
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {line}", flush=True)

    say(f"seed {seed}")
    with tempfile.TemporaryDirectory() as name:
        try:
            if given.majority_lost is None:
                outcome = step_downs(Path(name), given.seconds, workers=given.workers, seed=seed, say=say)
            else:
                outcome = majority_lost(Path(name), given.majority_lost, workers=given.workers, seed=seed, say=say)
        except AssertionError as error:
            sys.exit(f"seed {seed}: {error}")
    sys.exit(0 if outcome.whole else 1)


if __name__ == "__main__":
    main()
