"""Backfill an empty history beside a live exporter, kill it with SIGKILL on the way, and compare everything with the ledger.

    python -m tests.tools.backfill_crash_tests --workers 50 --days 14

All is real but CloudWatch: mongod, `serve` and `backfill` are processes. Each of the two commands has a fake CloudWatch of its
own with the same values, so that the calls of the backfill can be counted.

A call whose answer has not reached the journal when the process is killed must be asked again: the calls made are exactly the
plan's plus those, at most `CALLS_AT_ONCE` a kill. The first kill waits for calls under way; the second for a call that is done,
which is amid the mirroring. With --quiet both wait until nothing is under way, and the calls made are the plan's.
"""

import argparse
import asyncio
import contextlib
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pymongo import MongoClient

from exporter.core.periods import DAY, HOUR, align
from exporter.demo.mongod import Mongod
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member, assert_true, expected_history
from tests.helpers.exporter_process import COMMAND, ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.mongod import NO_TTL
from tests.helpers.ports import free_port
from tests.tools.crash_tests import COLLECTION, CREDENTIALS, DATABASE, DECIDED, PERIOD

_ROW = re.compile(r"^(?:all|eu-west-1) +\d+ +([\d,]+) +([\d,]+) +([\d,]+) +([\d.]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Options:
    """What to do."""

    workers: int = 50
    days: int = 14
    regions: int = 1
    latency: float = 1.0
    """Seconds of each answer to the backfill."""
    quiet: bool = False


@dataclass
class Figures:
    """What was done."""

    planned_periods: int = 0
    planned_calls: int = 0
    planned_metrics: int = 0
    dollars: float = 0.0
    kills: int = 0
    calls: int = 0
    metrics: int = 0
    under_way: int = 0
    """Calls that were asked before a kill and whose answers were not yet in the journal."""
    samples: int = 0
    """Equal to the ledger, each once; the live exporter's are among them."""
    ledger: int = 0
    seconds: float = 0.0
    """Of all runs of the backfill together."""

    def __str__(self) -> str:
        return (
            f"plan: {self.planned_periods:,} periods, {self.planned_calls} calls, {self.planned_metrics} metrics, "
            f"{self.dollars} dollars; {self.kills} kills with {self.under_way} calls under way; made: {self.calls} calls, "
            f"{self.metrics} metrics billed; history: {self.samples:,} samples, ledger: {self.ledger:,}, equal as a set, none "
            f"twice; backfill took {self.seconds:.1f} s in all"
        )


class Story:
    """One run: the parts, and what happens to them."""

    def __init__(self, options: Options, folder: Path, mongod: Mongod, live: FakeCloudWatch, old: FakeCloudWatch) -> None:
        self.options, self.folder, self.mongod, self.live, self.old = options, folder, mongod, live, old
        self.figures = Figures()
        settings = {
            "mongodb": {"uri": f"mongodb://127.0.0.1:{mongod.port}/{DATABASE}?directConnection=true"},
            "absence_timeout": "10m",
        }
        self.exporter = ExporterProcess(
            folder / "exporter", {**settings, "cloudwatch": {"endpoint_url": live.url}}, CREDENTIALS
        )
        self.journal = self.exporter.data_dir / "backfill" / "outbox.db"
        self.config = folder / "backfill.yaml"
        mine = {**settings, "cloudwatch": {"endpoint_url": old.url}, "data_dir": str(self.exporter.data_dir)}
        self.config.write_text(yaml.safe_dump(mine))
        self.members = self._fleet()
        self._done_before = 0

    def _fleet(self) -> list[Member]:
        """Workers created within the days asked for, some hours apart, every seventh without an agent."""
        now = align(int(time.time()), PERIOD)
        regions = ("eu-west-1", "us-east-1", "ap-south-1", "sa-east-1")[: self.options.regions]
        members = []
        for k in range(self.options.workers):
            created = now - self.options.days * DAY + (1 + k % 5) * HOUR
            members.append(Member(f"worker-{k:03d}", instance_id(k), regions[k % len(regions)], created))
            hole = created + (k % 20) * HOUR
            for fake in (self.live, self.old):
                fake.add(instance_id(k), members[-1].region, runs=[(created, hole), (hole + HOUR, None)], agent=k % 7 != 6)
        with MongoClient[dict[str, Any]](self.mongod.uri) as client:
            client[DATABASE]["workers"].insert_many([member.aggregate() for member in members])
        return members

    def plan(self) -> str:
        """Let a dry run tell the plan, when the live exporter has healed what is its own."""
        self.exporter.wait_for(lambda: self._is_quiet(align(int(time.time()) - DECIDED, PERIOD)), 120, "done with healing")
        process = self._start("--dry-run")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        periods, calls, metrics, dollars = _ROW.findall(out)[-1]
        self.figures.planned_periods = int(periods.replace(",", ""))
        self.figures.planned_calls = int(calls.replace(",", ""))
        self.figures.planned_metrics = int(metrics.replace(",", ""))
        self.figures.dollars = float(dollars)
        return out

    def run_until_killed(self) -> str:
        """Start the backfill, kill it at the moment of this kill, and count what was under way."""
        moment = self._nothing_under_way if self.options.quiet else (self._asked, self._some_done)[self.figures.kills]
        began, process = time.monotonic(), self._start()
        try:
            _wait(lambda: moment() or process.poll() is not None, 120)
        finally:
            process.kill()
        out, err = process.communicate()
        assert process.returncode == -9, f"it ended before it was killed:\n{out}{err}"
        self.figures.seconds += time.monotonic() - began
        self.figures.kills += 1
        time.sleep(0.2)  # what was sent before the kill arrives
        done, made = self._done(), self.old.calls["GetMetricData"]
        under_way = made - self.figures.under_way - done
        self.figures.under_way += under_way
        self._done_before = done
        return (
            f"killed after {made} calls: {done} done, {under_way} under way, {self._count('sample')} samples in the outbox, "
            f"{self._written()} in the history"
        )

    def run_to_the_end(self) -> str:
        began, process = time.monotonic(), self._start()
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        self.figures.seconds += time.monotonic() - began
        return out + err

    def compare(self) -> None:
        """Wait until the live exporter has decided what is due, and compare."""
        final_before = align(int(time.time()) - DECIDED, PERIOD)
        self.exporter.wait_for(lambda: self._is_quiet(final_before), 60, "done with mirroring")
        assert self.exporter.stop() == 0
        with MongoClient[dict[str, Any]](self.mongod.uri, tz_aware=True) as client:
            documents = list(client[DATABASE][COLLECTION].find({}, {"_id": 0}))
        points = expected_history(self.old, self.members, align(int(time.time()), PERIOD))
        self.figures.ledger = assert_true(documents, points, final_before)
        self.figures.samples = len({point for point in points if point[1] < final_before})
        self.figures.calls, self.figures.metrics = self.old.calls["GetMetricData"], self.old.metrics_billed

    def _start(self, *more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*COMMAND, "backfill", "--config.file", str(self.config), "--since", f"{self.options.days}d", *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin", **CREDENTIALS},
            cwd=self.folder,
        )

    def _asked(self) -> bool:
        """Answers are on their way to it."""
        return self.old.calls["GetMetricData"] >= 1

    def _some_done(self) -> bool:
        """A call is done since the last kill, so that its samples are being mirrored."""
        return self._done() > self._done_before

    def _nothing_under_way(self) -> bool:
        """All that was asked is in the journal, and of the samples a third is written; the second time two thirds."""
        rest = self.figures.planned_periods * (2 - self.figures.kills) / 3
        return 0 < self._done() == self.old.calls["GetMetricData"] and 0 < self._count("sample") < rest

    def _written(self) -> int:
        with MongoClient[dict[str, Any]](self.mongod.uri) as client:
            return client[DATABASE][COLLECTION].count_documents({})

    def _done(self) -> int:
        return self._count("call WHERE done=1") if self.journal.exists() else 0

    def _is_quiet(self, final_before: int) -> bool:
        if 'msg="collection cycle finished"' not in self.exporter.logged():
            return False
        outbox = self.exporter.data_dir / "outbox.db"
        return not self._count(f"sample WHERE state=1 OR (state=0 AND start<{final_before})", outbox)

    def _count(self, of: str, file: Path | None = None) -> int:
        with contextlib.closing(sqlite3.connect(f"file:{file or self.journal}?mode=ro", uri=True)) as journal:
            try:
                number: int = journal.execute(f"SELECT COUNT(*) FROM {of}").fetchone()[0]
            except sqlite3.OperationalError:  # it is just being made
                return 0
        return number


def _wait(condition: Callable[[], object], within: float) -> None:
    deadline = time.monotonic() + scaled(within)
    while not condition():
        assert time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.01)


async def run(options: Options, folder: Path, say: Callable[[str], None] = print) -> Figures:
    """Run one story in `folder` and return its figures.

    Raises:
        AssertionError: the history is not the ledger, or a part did not work.
    """
    return await asyncio.to_thread(_run, options, folder, say)


def _run(options: Options, folder: Path, say: Callable[[str], None]) -> Figures:
    mongod = Mongod(folder / "mongod", free_port(), parameters=NO_TTL)
    with mongod, FakeCloudWatch() as live, FakeCloudWatch(latency=options.latency) as old:
        story = Story(options, folder, mongod, live, old)
        try:
            story.exporter.start()
            say(story.plan())
            for _ in range(2):
                say(story.run_until_killed())
            say(story.run_to_the_end())
            story.compare()
        finally:
            story.exporter.kill()
    say(str(story.figures))
    return story.figures


def main() -> None:
    """Run one story and print its figures; exit 1 when the history is not the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--regions", type=int, default=1, help="1 to 4")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds of CloudWatch's answers to the backfill")
    parser.add_argument("--quiet", action="store_true", help="kill only when no call is under way")
    given = parser.parse_args()
    options = Options(given.workers, given.days, given.regions, given.latency, given.quiet)
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(run(options, Path(folder), lambda line: print(line, flush=True)))
        except AssertionError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
