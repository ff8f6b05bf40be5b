"""`history.forward` with the real databases: what they have is what MongoDB has, whatever was killed on the way."""

import asyncio
import os
import random
import time
from collections.abc import Iterator

import pytest

from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from tests.fixtures.process import RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.stores import SERVERS, StoreServer
from tests.integration.forwarding.stand import Stand, rows, target_of

ROUNDS = int(os.environ.get("FORWARD_ROUNDS", "1"))
SEED = int(os.environ.get("KILL_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    made = SERVERS[request.param]()
    yield made
    made.remove()


def at_night_but(name: str) -> pytest.MarkDecorator:
    """Run a test with one of the servers in `make test`: how they differ, tests of the same writers in `export --to` show."""
    at_night = pytest.mark.nightly("test_a_store_has_what_mongodb_has_and_has_it_once_after_a_second_export")
    return pytest.mark.parametrize(
        "server", [pytest.param(each, marks=() if each == name else at_night) for each in SERVERS], indirect=True
    )


@pytest.fixture
def stand(
    mongod: Mongod, database: Database, fake_cloudwatch: FakeCloudWatch, run_exporter: RunExporter, server: StoreServer
) -> Stand:
    return Stand(mongod, database, fake_cloudwatch, run_exporter, [target_of(server)])


@at_night_but("postgresql")
async def test_a_target_has_what_mongodb_has_after_the_exporter_was_killed_at_random(stand: Stand, server: StoreServer) -> None:
    chance = random.Random(SEED)
    for _ in range(ROUNDS):
        await stand.add_workers(12)
        await asyncio.to_thread(lambda: stand.exporter.start(wait=False))
        began, wanted = time.monotonic(), await stand.database["worker_metrics_timeseries"].count_documents({}) + 1
        while await stand.database["worker_metrics_timeseries"].count_documents({}) < wanted:  # something is mirrored
            assert time.monotonic() < began + scaled(60), stand.exporter.tail(100)
            await asyncio.sleep(0.01)
        await asyncio.sleep(chance.uniform(0, 0.6))
        stand.exporter.kill()
    await stand.add_workers(2)
    await stand.start()
    await stand.mirrored()
    await stand.forwarded(target_of(server))
    ledger = await stand.ledger()
    assert len(ledger) > stand.workers * 60
    assert rows(server) == ledger, f"KILL_SEED={SEED}"


@pytest.mark.nightly("test_a_target_has_what_mongodb_has_after_the_exporter_was_killed_at_random")
@at_night_but("victoriametrics")
async def test_a_target_that_is_killed_and_comes_back_gets_all(stand: Stand, server: StoreServer) -> None:
    target = target_of(server)
    await stand.add_workers(12)
    await stand.start()
    await stand.mirrored()
    # It has acknowledged some; VictoriaMetrics has them in memory only.
    await asyncio.to_thread(stand.exporter.wait_for, lambda: stand.metric("samples_total", target), 60, "forwarding")
    server.kill()
    await stand.stop()
    await stand.add_workers(12)
    await stand.start()  # and now it is away from the start
    await stand.mirrored()
    deadline = time.monotonic() + scaled(60)
    while (error := await stand.ready(target)) is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert "does not answer" in error
    await asyncio.to_thread(stand.exporter.wait_for, lambda: stand.pending(target) >= 12 * 60, 60, "full of samples")
    assert stand.metric("lag_seconds", target) > 0
    server.start()
    await stand.forwarded(target)
    assert await stand.ready(target) is None
    await asyncio.to_thread(stand.exporter.wait_for, lambda: stand.metric("lag_seconds", target) == 0, 60, "seen to have all")
    assert rows(server) == await stand.ledger()
