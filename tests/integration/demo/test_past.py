"""The demo's past in a real MongoDB: complete, each sample once, after any interruption."""

import time

import pytest

from exporter.core.periods import DAY, align, align_up, to_seconds
from exporter.demo.fleet import PERIOD, DemoWorker, World, datapoints, fleet, samples
from exporter.demo.past import DAYS, HISTORY, STATE, remember
from exporter.storage.mongo import Database

WORLD = World(seed=7, start=int(time.time()))
END = align(WORLD.start, PERIOD)


async def held(database: Database) -> list[tuple[str, int]]:
    return [(each["worker_id"], to_seconds(each["timestamp"])) async for each in database[HISTORY].find({})]


@pytest.mark.nightly("test_the_demo_runs_restarts_with_the_same_values_and_leaves_nothing_behind")
async def test_every_worker_has_its_two_weeks_a_restart_adds_nothing_and_an_interrupted_past_is_completed(
    database: Database,
) -> None:
    written = await remember(database, WORLD)
    expected = {
        (worker.id, to_seconds(sample.timestamp))
        for worker in fleet(WORLD)
        for sample in samples(WORLD, worker, END - DAYS * DAY, END)
    }
    found = await held(database)
    assert len(found) == written == len(expected) > 40_000
    assert set(found) == expected
    assert await remember(database, WORLD) == 0

    await database[STATE].delete_many({})
    for worker in fleet(WORLD)[3:6]:
        await database[HISTORY].delete_many({"worker_id": worker.id})
    lost = len(found) - len(await held(database))
    assert await remember(database, WORLD) == lost > 0
    assert sorted(await held(database)) == sorted(found)


@pytest.mark.parametrize("worker", fleet(WORLD), ids=lambda worker: worker.name)
def test_the_past_agrees_with_cloudwatch(worker: DemoWorker) -> None:
    """A period that both hold has the same value in both."""
    begin = WORLD.begin
    past = {to_seconds(each.timestamp): each for each in samples(WORLD, worker, begin, begin + DAY)}
    for point in datapoints(WORLD, worker, max(begin, align_up(worker.created_at, PERIOD)), begin + DAY):
        sample = past[point.period]
        assert {"cpu": sample.cpu_utilization, "memory": sample.memory_utilization}[point.metric] == point.value
    assert all(period % PERIOD == 0 for period in past)
    for sample in past.values():
        assert sample.status
        assert sample.active_labs_count == 0 or sample.status == "running"
