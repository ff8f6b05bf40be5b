"""Kill the exporters that divide a fleet again and again, divide it anew in between; then compare the history with the ledger.

    python -m tests.tools.shard_crash_tests --seed 7 --rounds 6 --workers 200 [--shards 4 --then 5] [--hours 6]

Everything is real except CloudWatch, which is a process of its own: each shard is a `cml-worker-exporter serve`, and all of
them receive SIGKILL at the moment when one has an insert in flight. Half of the rounds have `--shards`, the others `--then`. At
last all run until they are quiet. The clock is the real one: workers are as old as `--hours`, so that all samples of this time
are due at once. CloudWatch publishes every value a minute after its period, first a wrong one, and some values minutes later.

With 20,000 workers, 4 rounds and 1 hour, plan for half an hour and 2 GB of memory.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymongo import InsertOne, MongoClient

from exporter.core.periods import align, to_datetime
from exporter.core.shards import shard_of
from exporter.demo.mongod import Mongod
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Comparison, Member, expected_values
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import instance_id
from tests.helpers.fake_cloudwatch.process import FakeCloudWatchProcess
from tests.helpers.mongod import NO_TTL
from tests.helpers.ports import free_port
from tests.tools.crash_tests import COLLECTION, CREDENTIALS, DATABASE, DECIDED, HOUR, MOMENTS, PERIOD, REGIONS, InsertProxy

PATIENCE_SECONDS = 90.0
"""How long to wait for an insert before all are killed anyway, also on a busy machine: workers that a large fleet's first poll
sees without their gaps have none for minutes. After another division the leases of killed exporters expire first, in 30 s."""
QUIET_SECONDS = 720.0
"""How long the end may take beside reading CloudWatch and writing the history. The first poll of a large fleet does not wait
for its gaps, and no worker is polled twice within an interval of 300 s: what it did not see waits for the second tick."""
SAMPLES_PER_SECOND = 500
"""The least that all shards together read from CloudWatch and write to MongoDB, on a machine of two cores."""
PROGRESS_SECONDS = 15.0
"""Between two lines of progress."""
LATENCY_SECONDS = 0.02
REVISED_SECONDS = 150
"""Until so long after its period CloudWatch shows a value that is not final."""
LATE_SECONDS = (60, 240)
"""How much later than the others a late value appears. The exporter believes after ten minutes that there is none."""
AT_ONCE = 1000
"""Workers whose samples are compared at once."""


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
    """Samples that the ledger says must exist; each does, once and with its values."""
    rows: int = 0
    """Documents in MongoDB; those that are more than `samples` are of periods that are not final yet."""
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
            f"{self.samples} samples of the ledger and {self.rows} documents compared: none lost, none doubled, none foreign"
        )


class ShardCrashTest:
    """One run: mongod, the fake, and the exporters, each behind its own proxy."""

    def __init__(
        self,
        options: Options,
        folder: Path,
        mongod: Mongod,
        proxies: list[InsertProxy],
        fake: FakeCloudWatchProcess,
        say: Callable[[str], None],
    ) -> None:
        self.options, self.mongod, self.proxies, self.fake, self.say = options, mongod, proxies, fake, say
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
        first, last = (self.options.workers * n // self.options.rounds for n in (number, number + 1))
        await asyncio.to_thread(self.add_workers, last - first)
        victim, moment = self.random.randrange(count), self.random.choice(MOMENTS)
        proxy = self.proxies[victim]
        trap = proxy.arm(moment, self.kill, delay=self.random.uniform(0, 0.02))
        self.start(count, wait=False)
        done, _ = await asyncio.wait({trap.sprung}, timeout=PATIENCE_SECONDS)
        proxy.disarm()
        await asyncio.to_thread(self.kill)
        self.figures.kills += count
        sprung = trap.sprung.result() if done else "no insert"
        self.figures.moments[sprung] += 1
        return f"round {number}: {count} shards killed, shard {victim} at an insert: {sprung}"

    async def finish(self) -> None:
        """Run without kills until everything that is final is in the history, and compare."""
        await asyncio.to_thread(self.fake.control, {"reset": True, "brief": True})
        final_before = align(int(time.time()) - DECIDED, PERIOD)
        due = await asyncio.to_thread(self.count_due, final_before)
        await asyncio.to_thread(self.start, self.options.then)
        await self.wait_until_complete(final_before, due)
        self.figures.billed = sum(self.fake.control({"brief": True})["metrics_billed"].values())
        self.figures.metrics = sum(2 - (index % 7 == 6) for index in range(len(self.members)))
        self.check_union()
        for one in self.exporters[: self.options.then]:
            assert await asyncio.to_thread(one.stop, scaled(60)) == 0
        await asyncio.to_thread(self.compare, final_before)

    async def wait_until_complete(self, final_before: int, due: int) -> None:
        """Wait until each exporter has ended a cycle, and the history has as many final samples as are due.

        Raises:
            AssertionError: it takes too long, or an exporter has ended.
        """
        running = self.exporters[: self.options.then]
        allowed = scaled(QUIET_SECONDS + due / SAMPLES_PER_SECOND)
        began = told = time.monotonic()
        while True:
            found = await asyncio.to_thread(self.count_samples, final_before)
            cycles = [one for one in running if 'msg="collection cycle finished"' in one.logged()]
            if found >= due and len(cycles) == len(running):
                return
            ended = [one for one in running if not one.running]
            assert not ended, f"an exporter ended:\n{ended[0].tail()}"
            seconds = time.monotonic() - began
            assert seconds < allowed, f"{found} of {due} samples after {seconds:.0f} s:\n{running[0].tail()}"
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                self.say(f"{found} of {due} samples after {seconds:.0f} s; load {os.getloadavg()[0]:.1f}")
            await asyncio.sleep(1)

    def check_union(self) -> None:
        """Fail unless each worker is on /metrics of the shard that its hash says, and of no other."""
        running, places = self.exporters[: self.options.then], Counter[str]()
        for index, one in enumerate(running):
            ids = list(worker_ids(one.get("/metrics").text))
            strangers = [each for each in ids if shard_of(each, len(running)) != index]
            assert not strangers, f"shard {index} has {len(strangers)} workers of other shards, such as {strangers[0]}"
            places.update(ids)
            self.figures.by_shard.append(len(ids))
        twice = [each for each, count in places.items() if count > 1]
        assert not twice, f"{len(twice)} workers are shown twice, such as {twice[0]}"
        absent = [each.worker_id for each in self.members if each.worker_id not in places]
        assert not absent, f"{len(absent)} workers are on no shard, such as {absent[0]}"
        assert len(places) == len(self.members), f"{len(places)} workers are shown, the fleet has {len(self.members)}"

    def compare(self, final_before: int) -> None:
        """Compare the whole history with the ledger, some workers at a time."""
        end = align(int(time.time()), PERIOD)
        comparison = Comparison(self.fake.instances, final_before, end)
        with MongoClient[dict[str, Any]](self.mongod.uri, tz_aware=True) as client:
            history, state = client[DATABASE][COLLECTION], client[DATABASE]["cml_exporter_state"]
            waiting = list(state.find({"_id": {"$regex": "^handover:"}, "workers.0": {"$exists": True}}, {"_id": 1}))
            assert not waiting, f"{len(waiting)} pieces were handed over and not taken"
            for first in range(0, len(self.members), AT_ONCE):
                members = self.members[first : first + AT_ONCE]
                documents: dict[str, list[Mapping[str, Any]]] = {member.worker_id: [] for member in members}
                for document in history.find({"worker_id": {"$in": list(documents)}}, {"_id": 0}):
                    documents[document["worker_id"]].append(document)
                for member in members:
                    comparison.add(member, documents[member.worker_id])
            comparison.check()
            (whole,) = history.aggregate([{"$count": "samples"}])
        assert whole["samples"] == comparison.rows, f"{whole['samples'] - comparison.rows} samples of unknown workers"
        self.figures.samples, self.figures.rows = comparison.due, comparison.rows

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
        now, fresh, described = align(int(time.time()), PERIOD), [], []
        for serial in range(len(self.members), len(self.members) + count):
            longest = self.options.hours * HOUR
            created = now - self.random.randrange(longest // 2, longest, PERIOD)
            # Before the periods that are observed: a sample of one has its status, whatever CloudWatch has.
            hole = created + HOUR // 4
            region = REGIONS[serial % len(REGIONS)]
            member = Member(f"worker-{serial:05d}", instance_id(serial), region, created)
            runs = [(created, hole), (hole + HOUR // 2, None)] if longest >= 4 * HOUR else [(created, None)]
            described.append(
                {
                    **{"id": member.instance_id, "region": region, "runs": runs, "agent": serial % 7 != 6},
                    **{"revise": REVISED_SECONDS, "late": self.late_values(now) if serial % 5 == 0 else []},
                }
            )
            fresh.append(member)
        self.fake.add(described)
        with MongoClient[dict[str, Any]](self.mongod.uri) as client:
            client[DATABASE]["workers"].bulk_write([InsertOne(member.aggregate()) for member in fresh], ordered=False)
        self.members += fresh

    def late_values(self, now: int) -> list[tuple[str, int, int]]:
        """Return values of the coming minutes and the last ones that appear late: metric, start of the period, seconds."""
        starts = self.random.sample(range(now - 4 * PERIOD, now + 4 * PERIOD, PERIOD), 2)
        return [
            (metric, start, self.random.randint(*LATE_SECONDS)) for metric, start in zip(("cpu", "memory"), starts, strict=True)
        ]

    def count_due(self, final_before: int) -> int:
        """Return how many samples the history must have."""
        return sum(len(expected_values(self.fake.instances, member, final_before)) for member in self.members)

    def count_samples(self, final_before: int) -> int:
        """Return how many samples the history has that are due."""
        with MongoClient[dict[str, Any]](self.mongod.uri) as client:
            due: list[dict[str, Any]] = [{"$match": {"timestamp": {"$lt": to_datetime(final_before)}}}, {"$count": "samples"}]
            return next((each["samples"] for each in client[DATABASE][COLLECTION].aggregate(due)), 0)


def worker_ids(metrics: str) -> Iterator[str]:
    """Yield the workers on /metrics, as often as they are there."""
    for line in metrics.splitlines():
        if line.startswith("cml_worker_info{"):
            yield line.partition('worker_id="')[2].partition('"')[0]


async def run(options: Options, folder: Path, say: Callable[[str], None] = print) -> Figures:
    """Run one crash test in `folder` and return its figures.

    Raises:
        AssertionError: the history differs from the ledger, or a process did not work.
    """
    began = time.monotonic()
    mongod = Mongod(folder / "mongod", free_port(), replica_set=True, parameters=NO_TTL)
    with mongod, FakeCloudWatchProcess(folder, 0, LATENCY_SECONDS, seed=options.seed) as fake:
        async with AsyncExitStack() as stack:
            count = max(options.shards, options.then)
            proxies = [await stack.enter_async_context(InsertProxy(mongod.port)) for _ in range(count)]
            test = ShardCrashTest(options, folder, mongod, proxies, fake, say)
            try:
                for number in range(options.rounds):
                    line = await test.round(number)
                    say(f"{time.monotonic() - began:.0f} s: {line}; {len(test.members)} workers; load {os.getloadavg()[0]:.1f}")
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
