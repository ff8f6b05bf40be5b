"""Kill the exporter and mongod again and again, often with an insert in flight; then compare the history with the ledger.

    python -m tests.tools.crash_tests --seed 7 --rounds 20 [--lose-outbox-at 10] [--replica-set]

Everything is real except CloudWatch: `cml-worker-exporter serve` and mongod are processes that receive SIGKILL. The exporter
reaches mongod through a proxy that can kill at the moment when an insert was passed on and its reply has not arrived.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from exporter.core.periods import align, to_datetime
from exporter.demo.mongod import Mongod
from tests.helpers.expected_history import Member, assert_true, expected_history
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.mongo_proxy import Cut, MongoProxy, pass_until, read_message
from tests.helpers.mongod import NO_TTL
from tests.helpers.ports import free_port

MOMENTS: tuple[Cut, ...] = ("before", "torn", "mid", "mid", "mid", "mid", "after", "after")
IN_FLIGHT: tuple[Cut, ...] = ("torn", "mid", "after")
VICTIMS: tuple[tuple[str, ...], ...] = (("exporter",), ("exporter",), ("mongod",), ("exporter", "mongod"))
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIAKILLS", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
DATABASE, COLLECTION = "kills", "worker_metrics_timeseries"
REGIONS = ("eu-west-1", "us-east-1")
PERIOD, HOUR = 300, 3600
DECIDED = 1500
"""Seconds after its start a period is final: an empty result counts after 10m, an unlisted agent 20m after the end."""
PATIENCE = 15.0
"""Seconds to wait for an insert; without one (everything is mirrored) the kill happens at a random moment."""


@dataclass
class Trap:
    """A trap for the next insert, and its outcome."""

    moment: Cut
    strike: Callable[[], None]
    """Called at that moment."""
    skip: int
    """Inserts that pass before the trap springs."""
    delay: float
    """Seconds from the last byte of the insert to the kill, unless the reply is faster."""
    caught: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the proxy has the insert and has passed nothing on."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to let the insert continue."""
    sprung: "asyncio.Future[Cut]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """The moment at which the trap sprang."""


class InsertProxy(MongoProxy):
    """Springs a trap at an insert into the history.

    Or at the read-back before an insert (`arm_readback`): the last moment at which a writer cannot notice another one.
    """

    def __init__(self, target: int) -> None:
        super().__init__(target, DATABASE)
        self._trap: Trap | None = None
        self._at_readback: Callable[[], None] | None = None

    def arm(self, moment: Cut, strike: Callable[[], None], *, skip: int = 0, delay: float = 0.0, hold: bool = False) -> Trap:
        """Call `strike` at that moment of a coming insert; with `hold` not before the trap's `go` is set."""
        self._trap = trap = Trap(moment, strike, skip, delay)
        if not hold:
            trap.go.set()
        return trap

    def arm_readback(self, strike: Callable[[], None]) -> None:
        """Call `strike` when the reply to the next read-back has arrived; the reply is passed on afterwards."""
        self._at_readback = strike

    def disarm(self) -> None:
        self._trap = None

    async def _interfere(self, request: bytes, up_reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> bool:
        trap = self._trapped(request)
        if trap:
            await self._spring(trap, request, up_reader, up_writer)
        return trap is not None

    def _replied(self, request: bytes) -> None:
        if self._at_readback and self._is_readback(request):
            self._at_readback()
            self._at_readback = None

    def _trapped(self, request: bytes) -> Trap | None:
        if not self._is_command(request, b"insert"):
            return None
        self.inserts += 1
        trap = self._trap
        if trap is None:
            return None
        trap.skip -= 1
        if trap.skip >= 0:
            return None
        self._trap = None
        return trap

    def _is_readback(self, request: bytes) -> bool:
        """Return whether it is the majority read of a read-back; the search for gaps has no upper bound."""
        return self._is_command(request, b"aggregate") and b"majority\x00" in request and b"$lte\x00" in request

    async def _spring(
        self, trap: Trap, request: bytes, up_reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter
    ) -> None:
        trap.caught.set()
        await trap.go.wait()
        moment = trap.moment
        await pass_until(moment, request, up_writer)
        if moment in ("mid", "after"):
            reply = asyncio.ensure_future(read_message(up_reader))
            await asyncio.wait({reply}, timeout=PATIENCE if moment == "after" else trap.delay)
            moment = "after" if reply.done() else "mid"
            reply.cancel()
            with contextlib.suppress(asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
                await reply
        trap.strike()
        trap.sprung.set_result(moment)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one run."""

    seed: int
    rounds: int = 20
    workers: int = 40
    """New workers before each round; each brings hours of samples."""
    lose_outbox_at: int | None = None
    """Before this round the data folder is deleted."""
    replica_set: bool = False


@dataclass
class Figures:
    """The figures of one run: kills, and samples compared at the end."""

    seed: int
    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    outboxes_lost: int = 0
    inserts: int = 0
    samples: int = 0
    seconds: float = 0.0

    @property
    def in_flight(self) -> int:
        """Kills while mongod had the insert, or a part of it, and the exporter had no reply."""
        return sum(self.moments[moment] for moment in IN_FLIGHT)

    def __str__(self) -> str:
        kills = ", ".join(f"{count} × {victims}" for victims, count in sorted(self.kills.items()))
        moments = ", ".join(f"{count} × {moment}" for moment, count in sorted(self.moments.items()))
        return (
            f"seed {self.seed}: {self.rounds} rounds in {self.seconds:.0f} s; killed {kills}; at an insert: {moments}; "
            f"{self.in_flight} provably in flight; outbox lost {self.outboxes_lost} ×; {self.inserts} inserts; "
            f"{self.samples} samples compared with the ledger, equal as a set, no duplicates"
        )


class CrashTest:
    """One run: the processes, and what happens to them. Each round kills once."""

    def __init__(self, options: Options, folder: Path, mongod: Mongod, proxy: InsertProxy, fake: FakeCloudWatch) -> None:
        self.options, self.mongod, self.proxy, self.fake = options, mongod, proxy, fake
        self.random = random.Random(options.seed)
        self.members: list[Member] = []
        self.figures = Figures(options.seed)
        settings = {
            "mongodb": {"uri": proxy.uri},
            "cloudwatch": {"endpoint_url": fake.url},
            "settle_delay": "5m",
            "absence_timeout": "10m",
        }
        self.exporter = ExporterProcess(folder / "exporter", settings, CREDENTIALS)

    async def round(self, number: int) -> str:
        """Start what is dead, add workers, kill; return a line for the log."""
        lost = number == self.options.lose_outbox_at
        await asyncio.to_thread(self._revive_mongod)
        if lost:
            self._lose_outbox()
        self._add_workers(number)
        victims = self.random.choice(VICTIMS)
        at_insert = number % 4 != 3
        if not self.exporter.running:
            self.exporter.kill()  # closes what the dead process left open
            self.exporter.start(wait=False)
        elif not self._outbox("SELECT COUNT(*) FROM sample WHERE state=1"):
            at_insert = False  # a survivor reads new workers only in the next period, and the old ones are all mirrored
        moment = await self._kill_at_insert(victims) if at_insert else None
        if moment is None:
            await asyncio.sleep(self.random.uniform(0, 3))
            self._kill(victims)
        else:
            self.figures.moments[moment] += 1
        await asyncio.to_thread(self._reap, victims)
        self.figures.rounds += 1
        self.figures.kills["+".join(victims)] += 1
        return f"round {number}: killed {'+'.join(victims)} {moment or 'at a random moment'}{', outbox lost' if lost else ''}"

    async def finish(self) -> None:
        """Run without kills until everything that is final is in the history, and compare."""
        await asyncio.to_thread(self._revive_mongod)
        if self.exporter.running:  # it would not read the newest workers before the next period
            await asyncio.to_thread(self.exporter.stop)
        final_before = align(int(time.time()) - DECIDED, PERIOD)
        await asyncio.to_thread(self.exporter.start)
        await asyncio.to_thread(self.exporter.wait_for, lambda: self._is_quiet(final_before), 60, "done with mirroring")
        assert await asyncio.to_thread(self.exporter.stop) == 0
        with MongoClient[dict[str, Any]](self.mongod.uri, tz_aware=True) as client:
            documents = list(client[DATABASE][COLLECTION].find({}, {"_id": 0}))
        points = expected_history(self.fake, self.members, align(int(time.time()), PERIOD))
        self.figures.samples = assert_true(documents, points, final_before)
        self.figures.inserts = self.proxy.inserts

    def end(self) -> None:
        self.exporter.kill()

    def _add_workers(self, number: int) -> None:
        """Add workers that were created hours ago: their samples are all due at once."""
        now = align(int(time.time()), PERIOD)
        fresh = []
        for index in range(self.options.workers):
            serial = number * self.options.workers + index
            created = now - self.random.randrange(6 * HOUR, 22 * HOUR, PERIOD)
            hole = self.random.randrange(created, now - HOUR, PERIOD)
            region = REGIONS[serial % len(REGIONS)]
            member = Member(f"worker-{serial:04d}", instance_id(serial), region, created)
            runs = [(created, hole), (hole + HOUR // 2, None)]  # CloudWatch has nothing of half an hour in between
            self.fake.add(member.instance_id, region, runs=runs, agent=serial % 7 != 6)
            fresh.append(member)
        with MongoClient[dict[str, Any]](self.mongod.uri) as client:
            client[DATABASE]["workers"].insert_many([member.aggregate() for member in fresh])
        self.members += fresh

    async def _kill_at_insert(self, victims: Sequence[str]) -> Cut | None:
        moment = self.random.choice(MOMENTS)
        skip, delay = self.random.choice((0, 0, 0, 1)), self.random.uniform(0, 0.02)
        trap = self.proxy.arm(moment, lambda: self._kill(victims), skip=skip, delay=delay)
        done, _ = await asyncio.wait({trap.sprung}, timeout=PATIENCE)
        self.proxy.disarm()
        return trap.sprung.result() if done else None

    def _kill(self, victims: Sequence[str]) -> None:
        """Send only the signals: this runs while the proxy holds the insert."""
        for victim in victims:
            os.kill(self.mongod.pid if victim == "mongod" else self.exporter.pid, signal.SIGKILL)

    def _reap(self, victims: Sequence[str]) -> None:
        for victim in victims:
            (self.mongod if victim == "mongod" else self.exporter).kill()

    def _revive_mongod(self) -> None:
        self.mongod.start()

    def _lose_outbox(self) -> None:
        """Delete the outbox, and expire the lease: without the outbox the next process is another owner, which would wait."""
        self.exporter.kill()
        for file in self.exporter.data_dir.glob("*"):
            file.unlink()
        with MongoClient[dict[str, Any]](self.mongod.uri) as client:
            client[DATABASE]["cml_exporter_state"].update_one({"_id": "lease:mirror"}, {"$set": {"expires": to_datetime(0)}})
        self.figures.outboxes_lost += 1

    def _is_quiet(self, final_before: int) -> bool:
        """Return whether a collection cycle has finished and nothing that is due remains in the outbox."""
        if 'msg="collection cycle finished"' not in self.exporter.logged():
            return False
        return not self._outbox(f"SELECT COUNT(*) FROM sample WHERE state=1 OR (state=0 AND start<{final_before})")

    def _outbox(self, sql: str) -> int:
        """Read a number from the exporter's outbox, while it runs; 0 before a slow start has created it."""
        if not (self.exporter.data_dir / "outbox.db").exists():
            return 0
        with contextlib.closing(sqlite3.connect(f"file:{self.exporter.data_dir / 'outbox.db'}?mode=ro", uri=True)) as outbox:
            number: int = outbox.execute(sql).fetchone()[0]
            return number


async def run(options: Options, folder: Path, say: Callable[[str], None] = print) -> Figures:
    """Run one crash test in `folder` and return its figures.

    Raises:
        AssertionError: the history differs from the ledger, or a process did not work.
    """
    began = time.monotonic()
    say(f"seed {options.seed}, {options.rounds} rounds")
    mongod = Mongod(folder / "mongod", free_port(), replica_set=options.replica_set, parameters=NO_TTL)
    with mongod, FakeCloudWatch(seed=options.seed, latency=0.02) as fake:
        async with InsertProxy(mongod.port) as proxy:
            test = CrashTest(options, folder, mongod, proxy, fake)
            try:
                for number in range(options.rounds):
                    say(await test.round(number))
                await test.finish()
            finally:
                test.end()
    test.figures.seconds = time.monotonic() - began
    say(str(test.figures))
    return test.figures


def main() -> None:
    """Run one crash test and print its figures; exit with 1 if the history differs from the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="default: random")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=40, help="new workers before each round")
    parser.add_argument("--lose-outbox-at", type=int, default=None, metavar="K", help="delete the outbox before round K")
    parser.add_argument("--replica-set", action="store_true", help="mongod as a replica set of one node")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    options = Options(seed, given.rounds, given.workers, given.lose_outbox_at, given.replica_set)
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(run(options, Path(folder), lambda line: print(line, flush=True)))
        except AssertionError as error:
            sys.exit(f"seed {seed}: {error}")


if __name__ == "__main__":
    main()
