"""A fleet of workers in MongoDB and in the fake CloudWatch, for tests of commands that plan and make CloudWatch calls."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exporter.core.periods import DAY, HOUR, align
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.exporter_process import COMMAND
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id

PERIOD = 300
REGIONS = ("eu-west-1", "us-east-1", "ap-south-1", "sa-east-1")


@dataclass
class FleetEnv:
    """One fleet with its history and its CloudWatch."""

    settings: dict[str, Any]
    database: Database
    fake: FakeCloudWatch
    folder: Path

    async def fleet(self, count: int, *, regions: Sequence[str] = REGIONS[:1], age: int = 40 * DAY) -> list[Member]:
        """Workers that have always run, in turn in each region; every fourth without an agent."""
        created = align(int(time.time()), PERIOD) - age
        members = [Member(f"w{k:03d}", instance_id(k), regions[k % len(regions)], created) for k in range(count)]
        for k, member in enumerate(members):
            self.fake.add(member.instance_id, member.region, agent=k % 4 != 3)
        await self.database["workers"].insert_many([member.aggregate() for member in members])
        return members

    @property
    def parsed(self) -> Settings:
        return Settings.model_validate(self.settings)

    async def documents(self) -> list[dict[str, Any]]:
        return await self.database["worker_metrics_timeseries"].find({}, {"_id": 0}).to_list(None)

    def command(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command with its flags, as a process."""
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(self.settings))
        return subprocess.Popen(
            [*COMMAND, arguments[0], "--config.file", str(file), *arguments[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )


def fast_settings(mongod: Mongod, database: Database, fake: FakeCloudWatch, folder: Path) -> dict[str, Any]:
    """Settings with short delays, so that nearly all periods are old enough for a command."""
    return {
        "mongodb": {"uri": mongod.uri.replace("/?", f"/{database.name}?")},
        "cloudwatch": {"endpoint_url": fake.url},
        "absence_timeout": "10m",
        "gap_fill_window": "15m",
        "data_dir": str(folder / "data"),
    }


def seconds_of(text: str) -> int:
    return int(text[:-1]) * {"d": DAY, "h": HOUR}[text[-1]]


def wait_for(condition: Callable[[], object], within: float = 60) -> None:
    deadline = time.monotonic() + scaled(within)
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=scaled(60))
    print(out, err, file=sys.stderr)
    return process.returncode, out, err
