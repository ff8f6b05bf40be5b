"""Cancelled at random moments, all loops of an exporter end at once and in order, although the driver loses cancellations."""

import asyncio
import os
import time
from pathlib import Path
from random import Random

import anyio
import pytest

from exporter import app
from exporter.core.periods import HOUR
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from tests.fixtures.mongo import connect
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id

REGION = "eu-west-1"
STOPS = int(os.environ.get("RANDOM_STOPS", "5"))
"""How often it is cancelled."""


@pytest.mark.timeout(1800)
async def test_every_loop_ends_whatever_it_is_doing(fake_cloudwatch: FakeCloudWatch, mongo_rs: Mongod, tmp_path: Path) -> None:
    name, random = "random_stops", Random(5)
    uri = mongo_rs.uri.replace("/?", f"/{name}?")
    hung: list[set[str]] = []
    longest = 0.0
    async with connect(uri) as client:
        await client.drop_database(name)
        for number in range(30):
            instance = instance_id(number)
            fake_cloudwatch.add(instance)
            member = Member(f"worker-{number}", instance, REGION, int(fake_cloudwatch.now()) - 3 * HOUR)
            await client[name]["workers"].insert_one(member.aggregate())
        settings = Settings.model_validate(
            {
                "mongodb": {"uri": uri},
                "cloudwatch": {"endpoint_url": fake_cloudwatch.url},
                "data_dir": str(tmp_path / "data"),
                "gap_fill_window": "4h",
            }
        )
        for _ in range(STOPS):
            exporter = app.build(settings)
            scope = anyio.CancelScope()
            running = asyncio.create_task(_run(exporter, scope))
            await asyncio.sleep(random.choice([random.uniform(0, 0.5), random.uniform(0, 4)]))
            began = time.monotonic()
            scope.cancel()
            await asyncio.wait([running], timeout=scaled(5))
            longest = max(longest, time.monotonic() - began)
            if not running.done():
                pending = {task.get_name() for task in asyncio.all_tasks() if not task.done()}
                hung.append({each for each in pending if not each.startswith("Task-") and "pymongo" not in each})
                print("hung:", hung[-1], flush=True)
                while not running.done():
                    for task in asyncio.all_tasks() - {asyncio.current_task()}:
                        if task.get_name() in hung[-1]:
                            task.cancel()
                    await asyncio.wait([running], timeout=0.5)
            await exporter.backend.close()
        await client.drop_database(name)
    print(f"{STOPS} stops: at most {longest:.1f} s, {len(hung)} hung: {hung}")
    assert not hung


async def _run(exporter: app.Exporter, scope: anyio.CancelScope) -> None:
    """Run it as `serve` does: the portal of anyio repeats the cancellation of `run`, but knows nothing of its loops."""
    with scope:
        await exporter.run()
