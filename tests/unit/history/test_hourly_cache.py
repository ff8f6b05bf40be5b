"""What is kept of the history by the hour, and for how long; with a history that counts its reads, and a clock that stands."""

import asyncio
from array import array
from collections.abc import Collection

import pytest

from exporter.core.errors import StoreUnavailableError
from exporter.core.history_metrics import FIELDS, NEWEST
from exporter.core.periods import DAY, HOUR
from exporter.history import hourly_cache as hourly
from exporter.history.hourly_cache import HourlyCache
from exporter.storage.hourly import WorkerDay

TODAY = 1_767_225_600
NOW = TODAY + 12 * HOUR + 1800
OLD = TODAY - 10 * DAY
CPU = "cpu_utilization_avg"
Answer = dict[tuple[str, str], list[tuple[int, float]]]


class History:
    """Every worker has all hours; the value of cpu is the number of reads that there were before."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, tuple[str, ...]]] = []
        self.broken: set[str] = set()
        self.gap_fill_window = 0
        self.gate: asyncio.Event | None = None

    async def hours(self, worker_ids: Collection[str], day: int) -> list[WorkerDay]:
        value = float(len(self.reads))
        self.reads.append((day, tuple(sorted(worker_ids))))
        if self.gate is not None:
            await self.gate.wait()
        if self.broken & set(worker_ids):
            raise StoreUnavailableError("gone", reason="unreachable")
        values = array("d", [value] * 24 * len(FIELDS))
        return [WorkerDay(worker_id, "eu-west-1", bytes(range(24)), values) for worker_id in worker_ids if worker_id != "none"]

    async def load_gap_window(self) -> int:
        return self.gap_fill_window


class World:
    def __init__(self) -> None:
        self.history = History()
        self.now = 0.0
        self.mark: str | None = "1"
        self.hourly = HourlyCache(
            self.history, self.backfill_mark, gap_fill_window=DAY, wall=lambda: NOW + self.now, monotonic=lambda: self.now
        )

    async def backfill_mark(self) -> str | None:
        return self.mark

    async def ask(self, *worker_ids: str, start: int = OLD + HOUR, end: int = OLD + DAY, name: str = CPU) -> Answer:
        found = self.hourly.columns(worker_ids, start * 1000, end * 1000, name)
        return {(w, r): list(zip([s // 1000 for s in stamps], values, strict=True)) async for w, r, stamps, values in found}


@pytest.fixture
def world() -> World:
    return World()


async def test_a_value_stands_at_its_hours_end_and_both_ends_of_the_range_count(world: World) -> None:
    found = await world.ask("a", start=OLD + 3 * HOUR, end=OLD + 5 * HOUR)
    assert found == {("a", "eu-west-1"): [(OLD + n * HOUR, 0.0) for n in (3, 4, 5)]}
    found = await world.ask("a", start=OLD + 3 * HOUR + 1, end=OLD + 5 * HOUR - 1)
    assert found == {("a", "eu-west-1"): [(OLD + 4 * HOUR, 0.0)]}
    assert world.history.reads == [(OLD, ("a",))]


async def test_the_hour_before_midnight_ends_on_the_next_day(world: World) -> None:
    found = await world.ask("a", start=OLD, end=OLD + 1)
    assert [time for time, _ in found["a", "eu-west-1"]] == [OLD]
    assert [day for day, _ in world.history.reads if day < OLD] == [OLD - DAY]


async def test_the_hour_under_way_is_not_there_whoever_asks_for_the_future(world: World) -> None:
    found = await world.ask("a", start=TODAY + 10 * HOUR, end=TODAY + 5 * DAY)
    assert [time for time, _ in found["a", "eu-west-1"]] == [TODAY + n * HOUR for n in (10, 11, 12)]
    assert await world.ask("a", start=TODAY + DAY, end=TODAY + 2 * DAY) == {}
    assert await world.ask("a", start=TODAY, end=TODAY - DAY) == {}
    assert await world.ask() == {}


async def test_each_day_of_a_worker_is_read_once_and_only_whom_nobody_asked_for(world: World) -> None:
    for _ in range(3):
        assert set(await world.ask("a", "b")) == {("a", "eu-west-1"), ("b", "eu-west-1")}
    await world.ask("a", name=NEWEST)
    assert set(await world.ask("c", "a")) == {("c", "eu-west-1"), ("a", "eu-west-1")}
    assert world.history.reads == [(OLD, ("a", "b")), (OLD, ("c",))]


async def test_that_a_worker_has_nothing_is_remembered_too(world: World) -> None:
    assert await world.ask("none") == await world.ask("none") == {}
    assert len(world.history.reads) == 1


async def test_a_day_whose_samples_still_come_counts_for_a_minute_an_older_one_for_an_hour(world: World) -> None:
    for start, fresh in (
        (TODAY, hourly.RECENT_TTL_SECONDS),
        (TODAY - DAY, hourly.RECENT_TTL_SECONDS),
        (OLD, hourly.FINAL_TTL_SECONDS),
    ):
        begun = len(world.history.reads)
        for later, reads in ((0, 1), (fresh - 1, 1), (1, 2)):
            world.now += later
            await world.ask("a", start=start + HOUR, end=start + 2 * HOUR)
            assert len(world.history.reads) - begun == reads, f"{start} after {later}"


async def test_when_a_backfill_has_written_older_days_are_read_again_after_a_minute(world: World) -> None:
    await world.ask("a")
    world.now += hourly.RECENT_TTL_SECONDS
    await world.ask("a")
    assert len(world.history.reads) == 1
    world.mark = "2"
    for _ in range(2):
        found = await world.ask("a")
        assert {value for _, value in found["a", "eu-west-1"]} == {1.0}
    assert len(world.history.reads) == 2
    world.mark = "3"  # one that writes every few seconds must not make everything be read all the time
    await world.ask("a")
    assert len(world.history.reads) == 2


async def test_while_a_backfill_may_write_nothing_is_kept_for_longer_than_a_minute(world: World) -> None:
    world.mark = None
    for reads in (1, 2):
        await world.ask("a")
        await world.ask("a")
        assert len(world.history.reads) == reads
        world.now += hourly.RECENT_TTL_SECONDS
    world.mark = "2"  # it has ended
    await world.ask("a")
    world.now += hourly.RECENT_TTL_SECONDS
    await world.ask("a")
    assert len(world.history.reads) == 3


async def test_days_that_another_exporter_still_heals_count_for_a_minute(world: World) -> None:
    world.history.gap_fill_window = 14 * DAY
    for _ in range(2):
        await world.ask("a")
        world.now += hourly.RECENT_TTL_SECONDS
    assert len(world.history.reads) == 2


async def test_many_who_ask_at_once_wait_for_one_read(world: World) -> None:
    world.history.gate = asyncio.Event()
    asking = [asyncio.create_task(world.ask("a", "b")) for _ in range(5)]
    await asyncio.sleep(0)
    world.history.gate.set()
    answers = await asyncio.gather(*asking)
    assert all(answer == answers[0] for answer in answers)
    assert len(world.history.reads) == 1


async def test_who_gives_up_leaves_the_read_to_the_next(world: World) -> None:
    world.history.gate = asyncio.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await world.ask("a")
    world.history.gate.set()
    assert await world.ask("a")
    assert len(world.history.reads) == 1


async def test_a_failure_is_said_to_all_who_wait_and_not_remembered(world: World) -> None:
    world.history.broken = {"a"}
    said = await asyncio.gather(*(world.ask("a") for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in said] == [StoreUnavailableError] * 3
    world.history.broken = set()
    assert await world.ask("a")


async def test_another_ones_failure_is_not_ours(world: World) -> None:
    world.history.broken, world.history.gate = {"bad"}, asyncio.Event()
    bad, good = asyncio.create_task(world.ask("bad")), asyncio.create_task(world.ask("good"))
    await asyncio.sleep(0.01)
    world.history.gate.set()
    assert await good
    with pytest.raises(StoreUnavailableError):
        await bad


async def test_after_a_failure_nothing_more_is_begun(world: World) -> None:
    world.history.broken = {"a"}
    with pytest.raises(StoreUnavailableError):
        await world.ask("a", start=OLD - 30 * DAY)
    await asyncio.sleep(0.01)
    assert len(world.history.reads) <= 2 * hourly.READS
    assert len(asyncio.all_tasks()) == 1


async def test_the_days_nobody_asked_for_longest_are_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hourly, "MAX_CACHED_WORKER_DAYS", 4)
    for day in (0, 1, 0, 2, 0, 1):
        await world.ask("a", "b", start=OLD + day * DAY + HOUR, end=OLD + day * DAY + 2 * HOUR)
    assert [(read - OLD) // DAY for read, _ in world.history.reads] == [0, 1, 2, 1]


async def test_of_too_many_days_asked_for_together_the_newest_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hourly, "MAX_CACHED_WORKER_DAYS", 4)
    found = await world.ask("a", "b", end=OLD + 3 * DAY)
    assert {worker: len(values) for (worker, _), values in found.items()} == {"a": 72, "b": 72}
    world.history.reads.clear()
    await world.ask("a", "b", start=OLD + DAY + HOUR, end=OLD + 3 * DAY)
    assert world.history.reads == []
