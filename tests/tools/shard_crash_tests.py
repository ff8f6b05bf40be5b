"""Kill the exporters that divide a fleet again and again, divide it anew in between; then compare the history with the ledger.

    python -m tests.tools.shard_crash_tests --seed 7 --rounds 6 --workers 200 [--shards 4 --then 5] [--hours 6]

Everything is real except CloudWatch: each shard is a `cml-worker-exporter serve`, and all of them receive SIGKILL at the moment
when one has an insert in flight. Half of the rounds have `--shards`, the others `--then`. At last all run until they are quiet.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymongo import InsertOne, MongoClient

from exporter.core.periods import align
from exporter.core.shards import shard_of
from exporter.demo.mongod import Mongod
from exporter.demo.ports import free_port
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member, assert_true, expected_history
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.mongod import NO_TTL
from tests.tools.crash_tests import COLLECTION, CREDENTIALS, DATABASE, DECIDED, HOUR, MOMENTS, PERIOD, REGIONS, InsertProxy

PATIENCE_SECONDS = 60.0
"""How long to wait for an insert: after another division the leases of killed exporters expire first, which takes 30 s."""
QUIET_SECONDS = 300.0
"""How long the end may take: reading CloudWatch and writing the history, with no kill."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one run."""

    seed: int
    rounds: int = 6
    workers: int = 200
    """The whole fleet; a part of it is new in each round, with hours of samples."""
    shards: int = 4
    then: int = 5
    """Shards in the second half of the rounds."""
    hours: int = 6
    """Of the past of each worker, at most; at least a half of them."""


@dataclass
class Figures:
    """The figures of one run."""

    seed: int
    kills: int = 0
    """Exporters killed."""
    moments: Counter[str] = field(default_factory=Counter)
    """What the insert of one of them had reached, kill by kill."""
    samples: int = 0
    by_shard: list[int] = field(default_factory=list)
    """Workers on /metrics of each shard at the end."""
    billed: int = 0
    """Metrics billed since the last start."""
    metrics: int = 0
    """Metrics that the fleet has."""
    seconds: float = 0.0

    def __str__(self) -> str:
        moments = ", ".join(f"{count} × {moment}" for moment, count in sorted(self.moments.items()))
        return (
            f"seed {self.seed}: {self.kills} exporters killed in {self.seconds:.0f} s, at an insert: {moments}; workers by "
            f"shard {self.by_shard}, {sum(self.by_shard)} together; the fleet has {self.metrics} metrics, and {self.billed} "
            f"were billed since the last start; "
            f"{self.samples} samples compared with the ledger, equal as a set, no duplicates"
        )


class ShardCrashTest:
    """One run: mongod, the fake, and the exporters, each behind its own proxy."""

    def __init__(
        self, options: Options, folder: Path, mongod: Mongod, proxies: list[InsertProxy], fake: FakeCloudWatch
    ) -> None:
        self.options, self.mongod, self.proxies, self.fake = options, mongod, proxies, fake
        self.random = random.Random(options.seed)
        self.members: list[Member] = []
        self.figures = Figures(options.seed)
        self.exporters = [
            ExporterProcess(
                folder / f"exporter-{index}",
                {
                    "mongodb": {"uri": proxy.uri},
                    "cloudwatch": {"endpoint_url": fake.url},
                    "settle_delay": "5m",
                    "absence_timeout": "10m",
                },
                CREDENTIALS,
            )
            for index, proxy in enumerate(proxies)
        ]

    async def round(self, number: int) -> str:
        """Add workers, start all shards, and kill all while one of them inserts; return a line for the log."""
        count = self.options.shards if number < self.options.rounds / 2 else self.options.then
        self.add_workers(self.options.workers // self.options.rounds)
        victim, moment = self.random.randrange(count), self.random.choice(MOMENTS)
        proxy = self.proxies[victim]
        trap = proxy.arm(moment, self.kill, delay=self.random.uniform(0, 0.02))
        self.start(count, wait=False)
        done, _ = await asyncio.wait({trap.sprung}, timeout=scaled(PATIENCE_SECONDS))
        proxy.disarm()
        await asyncio.to_thread(self.kill)
        self.figures.kills += count
        sprung = trap.sprung.result() if done else "no insert"
        self.figures.moments[sprung] += 1
        return f"round {number}: {count} shards killed, shard {victim} at an insert: {sprung}"

    async def finish(self) -> None:
        """Run without kills until everything that is final is in the history, and compare."""
        final_before = align(int(time.time()) - DECIDED, PERIOD)
        self.fake.reset()
        await asyncio.to_thread(self.start, self.options.then)
        running = self.exporters[: self.options.then]
        due = sum(point[1] < final_before for point in expected_history(self.fake, self.members, final_before))
        await asyncio.to_thread(running[0].wait_for, lambda: self.is_complete(due), QUIET_SECONDS, "done with mirroring")
        self.figures.billed = self.fake.metrics_billed
        self.figures.metrics = sum(2 - (index % 7 == 6) for index in range(len(self.members)))
        shown = [set(self.worker_ids(one)) for one in running]
        self.figures.by_shard = [len(ids) for ids in shown]
        expected = [
            {member.worker_id for member in self.members if shard_of(member.worker_id, len(running)) == index}
            for index in range(len(running))
        ]
        assert shown == expected, "the shards have other workers than the hash says"
        for one in running:
            assert await asyncio.to_thread(one.stop) == 0
        with MongoClient[dict[str, Any]](self.mongod.uri, tz_aware=True) as client:
            documents = list(client[DATABASE][COLLECTION].find({}, {"_id": 0}))
            state = client[DATABASE]["cml_exporter_state"]
            waiting = list(state.find({"_id": {"$regex": "^handover:"}, "workers.0": {"$exists": True}}))
        assert not waiting, f"{len(waiting)} pieces were handed over and not taken"
        points = expected_history(self.fake, self.members, align(int(time.time()), PERIOD))
        self.figures.samples = assert_true(documents, points, final_before)

    def start(self, count: int, *, wait: bool = True) -> None:
        """Start the first `count` exporters, each as that shard of `count`."""
        for index, one in enumerate(self.exporters[:count]):
            one.start("--shard", f"{index}/{count}", wait=False)
        if wait:
            for one in self.exporters[:count]:
                one.wait_until_ready(scaled(60))

    def kill(self) -> None:
        """End all exporters with SIGKILL."""
        for one in self.exporters:
            one.kill()

    def add_workers(self, count: int) -> None:
        """Add workers that were created hours ago: their samples are all due at once. Half an hour of a long past is a hole."""
        now, fresh = align(int(time.time()), PERIOD), []
        for serial in range(len(self.members), len(self.members) + count):
            longest = self.options.hours * HOUR
            created = now - self.random.randrange(longest // 2, longest, PERIOD)
            # Before the periods that are observed: a sample of one has its status, whatever CloudWatch has.
            hole = created + HOUR // 4
            region = REGIONS[serial % len(REGIONS)]
            member = Member(f"worker-{serial:05d}", instance_id(serial), region, created)
            runs = [(created, hole), (hole + HOUR // 2, None)] if longest >= 4 * HOUR else [(created, None)]
            self.fake.add(member.instance_id, region, runs=runs, agent=serial % 7 != 6)
            fresh.append(member)
        with MongoClient[dict[str, Any]](self.mongod.uri) as client:
            client[DATABASE]["workers"].bulk_write([InsertOne(member.aggregate()) for member in fresh], ordered=False)
        self.members += fresh

    def worker_ids(self, one: ExporterProcess) -> list[str]:
        """Return the workers on an exporter's /metrics."""
        info = [series for series in one.metrics() if series.startswith("cml_worker_info{")]
        return [series.partition('worker_id="')[2].partition('"')[0] for series in info]

    def is_complete(self, due: int) -> bool:
        """Return whether each exporter has ended a cycle, and the history has so many samples."""
        if any('msg="collection cycle finished"' not in one.logged() for one in self.exporters[: self.options.then]):
            return False
        with MongoClient[dict[str, Any]](self.mongod.uri) as client:
            counts = list(client[DATABASE][COLLECTION].aggregate([{"$count": "samples"}]))
        return bool(counts) and counts[0]["samples"] >= due


async def run(options: Options, folder: Path, say: Callable[[str], None] = print) -> Figures:
    """Run one crash test in `folder` and return its figures.

    Raises:
        AssertionError: the history differs from the ledger, or a process did not work.
    """
    began = time.monotonic()
    mongod = Mongod(folder / "mongod", free_port(), replica_set=True, parameters=NO_TTL)
    with mongod, FakeCloudWatch(seed=options.seed, latency=0.02) as fake:
        async with AsyncExitStack() as stack:
            count = max(options.shards, options.then)
            proxies = [await stack.enter_async_context(InsertProxy(mongod.port)) for _ in range(count)]
            test = ShardCrashTest(options, folder, mongod, proxies, fake)
            try:
                for number in range(options.rounds):
                    say(await test.round(number))
                await test.finish()
            finally:
                test.kill()
    test.figures.seconds = time.monotonic() - began
    say(str(test.figures))
    return test.figures


def main() -> None:
    """Run one crash test and print its figures; exit with 1 if the history differs from the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="default: random")
    for name in ("rounds", "workers", "shards", "then", "hours"):
        parser.add_argument(f"--{name}", type=int, default=Options.__dataclass_fields__[name].default)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    options = Options(seed, given.rounds, given.workers, given.shards, given.then, given.hours)
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(run(options, Path(folder), lambda line: print(line, flush=True)))
        except AssertionError as error:
            sys.exit(f"seed {seed}: {error}")


if __name__ == "__main__":
    main()
