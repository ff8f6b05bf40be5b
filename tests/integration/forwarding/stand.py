"""Exporter with targets of `history.forward`, workers whose samples of hours are due at once, and what a target must hold."""

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import yaml

from exporter.core.history_settings import ForwardTarget
from exporter.core.periods import HOUR, align, to_seconds
from exporter.demo.mongod import Mongod
from exporter.pipeline import forward_queue
from exporter.storage.mongo import Database
from tests.fixtures.process import RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.stores import Row, StoreServer

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
PERIOD = 300
NAME = "worker_metrics_timeseries"


def target_of(server: StoreServer) -> dict[str, str]:
    """The setting for a server."""
    kind, _, rest = server.address.partition("://")
    kind = kind.partition("+")[0]
    return {"type": kind, "url": f"{'postgresql' if kind == 'postgresql' else 'http'}://{rest}"}


class Stand:
    """One exporter, its workers, and the comparison of MongoDB with the targets."""

    def __init__(
        self,
        mongod: Mongod,
        database: Database,
        fake: FakeCloudWatch,
        run_exporter: RunExporter,
        targets: Sequence[Mapping[str, str]],
        **history: object,
    ) -> None:
        self.database, self.fake = database, fake
        self.workers = 0
        self.settings: dict[str, Any] = {
            "mongodb": {"uri": mongod.uri.replace("/?", f"/{database.name}?")},
            "cloudwatch": {"endpoint_url": fake.url},
            "aws": {"sts_endpoint_url": fake.url},
            "settle_delay": "5m",
            "absence_timeout": "10m",
            "history": {"forward": [dict(each) for each in targets], **history},
        }
        self.exporter: ExporterProcess = run_exporter(self.settings, env=KEYS, start=False)

    async def add_workers(self, count: int, hours: int = 6) -> None:
        """Add workers that were created hours ago; an exporter that is started then mirrors their samples."""
        now = align(int(time.time()), PERIOD)
        members = [
            Member(f"worker {number:03d}", instance_id(number), "eu-west-1", now - hours * HOUR)
            for number in range(self.workers, self.workers + count)
        ]
        self.workers += count
        for member in members:
            self.fake.add(member.instance_id, runs=[(member.created, None)])
        await self.database["workers"].insert_many([member.aggregate() for member in members])

    async def start(self) -> None:
        await asyncio.to_thread(self.exporter.start)

    async def stop(self) -> None:
        assert await asyncio.to_thread(self.exporter.stop) == 0

    async def mirrored(self, hours: int = 6) -> None:
        """Wait until the samples of all workers are in MongoDB."""
        due = self.workers * (hours * HOUR // PERIOD - 8)
        deadline = time.monotonic() + scaled(60)
        while (
            'msg="collection cycle finished"' not in self.exporter.logged()
            or self.rows("sample WHERE state=1")
            or self.rows("sample WHERE state=0") > 8 * self.workers
            or await self.database[NAME].count_documents({}) < due
        ):
            assert time.monotonic() < deadline, self.exporter.tail(100)
            assert self.exporter.running, self.exporter.tail(100)
            await asyncio.sleep(0.2)

    async def forwarded(self, *targets: Mapping[str, str]) -> None:
        """Wait until the targets have all."""
        deadline = time.monotonic() + scaled(120)
        while any(self.lacks(target) for target in targets):
            assert time.monotonic() < deadline, self.exporter.tail(100)
            assert self.exporter.running, self.exporter.tail(100)
            await asyncio.sleep(0.2)

    def lacks(self, target: Mapping[str, str]) -> int:
        """How many samples of the queue a target lacks; the metric of it is some seconds old."""
        with closing(sqlite3.connect(f"file:{self.exporter.data_dir / 'outbox.db'}?mode=ro", uri=True)) as database:
            found = forward_queue.waiting(database).get(label_of(target))
            return found.samples if found else 0

    def make_older(self, seconds: int) -> None:
        """Make the samples of the queue of a stopped exporter as old as if they had waited for longer."""
        with closing(sqlite3.connect(self.exporter.data_dir / "outbox.db")) as database, database:
            database.execute("UPDATE forward SET mirrored = mirrored - ?", (seconds,))

    def rows(self, what: str) -> int:
        """Count rows of the outbox; its metrics are some seconds old."""
        with closing(sqlite3.connect(f"file:{self.exporter.data_dir / 'outbox.db'}?mode=ro", uri=True)) as database:
            count: int = database.execute(f"SELECT COUNT(*) FROM {what}").fetchone()[0]
            return count

    def pending(self, target: Mapping[str, str]) -> float:
        return self.metric("pending_samples", target)

    def metric(self, name: str, target: Mapping[str, str], **labels: str) -> float:
        reason = f'reason="{labels["reason"]}",' if labels else ""
        return self.exporter.metrics()[f'cml_exporter_forward_{name}{{{reason}target="{label_of(target)}"}}']

    async def ready(self, target: Mapping[str, str]) -> str | None:
        """The error of the target on /-/ready; None: it works."""
        answer = (await asyncio.to_thread(self.exporter.get, "/-/ready")).json()
        error: str | None = answer["sources"][f"forward {label_of(target)}"]["error"]
        return error

    async def ledger(self) -> list[Row]:
        """What MongoDB has, in the form of `StoreServer.rows`."""
        documents = await self.database[NAME].find().to_list(None)
        fields = ("cpu_utilization", "memory_utilization", "active_labs_count")
        return sorted(
            (
                (
                    each["worker_id"],
                    to_seconds(each["timestamp"]) * 1000,
                    {field: round(float(each[field]), 6) for field in fields if field in each},
                    each.get("status"),
                )
                for each in documents
            ),
            key=lambda row: row[:2],
        )

    def write_settings(self) -> None:
        """Write the settings again, for a start or a reload."""
        self.exporter.config.write_text(yaml.safe_dump({"data_dir": str(self.exporter.data_dir), **self.settings}))

    def reload(self) -> None:
        """Write the settings again and send SIGHUP."""
        self.write_settings()
        os.kill(self.exporter.pid, signal.SIGHUP)


def label_of(target: Mapping[str, str]) -> str:
    return ForwardTarget.model_validate(target).label


def rows(server: StoreServer) -> list[Row]:
    """What a server has, without the last digits, of which one keeps 12."""
    return [
        (worker_id, at, {name: round(value, 6) for name, value in fields.items()}, status)
        for worker_id, at, fields, status in server.rows()
    ]
