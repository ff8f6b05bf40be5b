"""The cache of hourly aggregates: which days it keeps and how long, with a history that counts its reads and a manual clock."""

import asyncio
import math
from array import array
from collections.abc import Callable, Collection

import pytest

from exporter.core.errors import StoreUnavailableError
from exporter.core.history_metrics import FIELDS, NEWEST, distribution_fields
from exporter.core.periods import DAY, HOUR
from exporter.history import hourly_cache as hourly
from exporter.history.hourly_cache import HourlyCache
from exporter.storage.hourly import WorkerDay, column

TODAY = 1_767_225_600
NOW = TODAY + 12 * HOUR + 1800
OLD = TODAY - 10 * DAY
CPU = "cpu_utilization_avg"
Columns = dict[tuple[str, str], list[tuple[int, float]]]


class History:
    """A source in which every worker has all hours; each value is the number of earlier reads."""

    def __init__(self) -> None:
        self.reads: list[tuple[range, tuple[str, ...]]] = []
        self.distributions: list[str | None] = []
        self.broken: set[str] = set()
        self.gap_fill_window = 0
        self.gate: asyncio.Event | None = None
        self.of_day: Callable[[str, int], WorkerDay] | None = None

    async def hours(self, worker_ids: Collection[str], days: range, distribution: str | None = None) -> list[WorkerDay]:
        value = float(len(self.reads))
        self.reads.append((days, tuple(sorted(worker_ids))))
        self.distributions.append(distribution)
        if self.gate is not None:
            await self.gate.wait()
        if self.broken & set(worker_ids):
            raise StoreUnavailableError("gone", reason="unreachable")
        if self.of_day is not None:
            return [self.of_day(worker_id, day) for worker_id in worker_ids for day in days]
        values = array("d", [value] * 24 * len(distribution_fields(distribution) if distribution else FIELDS))
        return [
            WorkerDay(worker_id, "eu-west-1", day, bytes(range(24)), values)
            for worker_id in worker_ids
            if worker_id != "none"
            for day in days
        ]

    async def load_gap_window(self) -> int:
        return self.gap_fill_window


class CacheEnv:
    def __init__(self) -> None:
        self.history = History()
        self.now = 0.0
        self.marker: str | None = "1"
        self.cache = HourlyCache(
            self.history, self.change_marker, gap_fill_window=DAY, wall=lambda: NOW + self.now, monotonic=lambda: self.now
        )

    async def change_marker(self) -> str | None:
        return self.marker

    async def read(self, *worker_ids: str, start: int = OLD + HOUR, end: int = OLD + DAY, name: str = CPU) -> Columns:
        return {
            (worker_id, region): list(zip([stamp // 1000 for stamp in block.stamps], values, strict=True))
            for block in await self.cache.blocks(worker_ids, start * 1000, end * 1000, name)
            for worker_id, region, values in block.by_row()
        }


def days(first: int, last: int) -> range:
    """Return the days from `first` until before `last`, counted from OLD."""
    return range(OLD + first * DAY, OLD + last * DAY, DAY)


@pytest.fixture
def cache_env() -> CacheEnv:
    return CacheEnv()


async def test_a_value_is_at_the_end_of_its_hour_and_the_range_includes_both_ends(cache_env: CacheEnv) -> None:
    found = await cache_env.read("a", start=OLD + 3 * HOUR, end=OLD + 5 * HOUR)
    assert found == {("a", "eu-west-1"): [(OLD + n * HOUR, 0.0) for n in (3, 4, 5)]}
    found = await cache_env.read("a", start=OLD + 3 * HOUR + 1, end=OLD + 5 * HOUR - 1)
    assert found == {("a", "eu-west-1"): [(OLD + 4 * HOUR, 0.0)]}
    assert cache_env.history.reads == [(days(0, 1), ("a",))]


async def test_the_hour_before_midnight_ends_on_the_next_day(cache_env: CacheEnv) -> None:
    found = await cache_env.read("a", start=OLD, end=OLD + 1)
    assert [time for time, _ in found["a", "eu-west-1"]] == [OLD]
    assert cache_env.history.reads == [(days(-1, 1), ("a",))]


async def test_a_range_in_the_future_ends_before_the_current_hour(cache_env: CacheEnv) -> None:
    found = await cache_env.read("a", start=TODAY + 10 * HOUR, end=TODAY + 5 * DAY)
    assert [time for time, _ in found["a", "eu-west-1"]] == [TODAY + n * HOUR for n in (10, 11, 12)]
    assert await cache_env.read("a", start=TODAY + DAY, end=TODAY + 2 * DAY) == {}
    assert await cache_env.read("a", start=TODAY, end=TODAY - DAY) == {}
    assert await cache_env.read() == {}


async def test_workers_with_values_in_the_same_hours_are_one_block_of_these_hours_only(
    cache_env: CacheEnv,
) -> None:
    days: dict[str, Collection[int]] = {"b": [5], "c": [0, 23], "d": [0, 23], "all": range(24)}

    def hours(worker_id: str, day: int) -> WorkerDay:
        missing = days.get(worker_id, ())
        of_field = [math.nan if hour in missing else float(hour + 1) for hour in range(24)]
        return WorkerDay(worker_id, "eu-west-1", day, bytes(range(24)), array("d", of_field * len(FIELDS)))

    cache_env.history.of_day = hours
    blocks = await cache_env.cache.blocks(["a", "all", "b", "c", "d", "e"], (OLD + HOUR) * 1000, (OLD + DAY) * 1000, CPU, 10)
    assert [[worker_id for worker_id, _ in block.rows] for block in blocks] == [["a", "e"], ["b"], ["c", "d"]]
    for block in blocks:
        for worker_id, region, row in block.by_row():
            wanted = [hour + 1 for hour in range(24) if hour not in days.get(worker_id, ())]
            assert (region, [stamp // 1000 for stamp in block.stamps]) == ("eu-west-1", [OLD + hour * HOUR for hour in wanted])
            assert list(row) == [hour / 10 for hour in wanted]


async def test_each_day_of_a_worker_is_read_once_and_only_for_missing_workers(cache_env: CacheEnv) -> None:
    for _ in range(3):
        assert set(await cache_env.read("a", "b")) == {("a", "eu-west-1"), ("b", "eu-west-1")}
    await cache_env.read("a", name=NEWEST)
    assert set(await cache_env.read("c", "a")) == {("c", "eu-west-1"), ("a", "eu-west-1")}
    assert cache_env.history.reads == [(days(0, 1), ("a", "b")), (days(0, 1), ("c",))]


async def test_percentiles_are_read_only_when_they_are_asked_for_and_all_of_a_metric_at_once(cache_env: CacheEnv) -> None:
    await cache_env.read("a")
    for field in distribution_fields("cpu_utilization"):
        (values,) = (await cache_env.read("a", name=field)).values()
        assert {value for _, value in values} == {1.0}
    await cache_env.read("a", name="memory_utilization_above_seconds")
    await cache_env.read("a")
    assert cache_env.history.distributions == [None, "cpu_utilization", "memory_utilization"]


async def test_one_query_reads_the_adjacent_days_that_the_same_workers_miss(cache_env: CacheEnv) -> None:
    await cache_env.read("a", start=OLD + DAY + HOUR, end=OLD + 2 * DAY)
    await cache_env.read("a", "b", "c", end=OLD + 4 * DAY)
    assert cache_env.history.reads[1:] == [(days(0, 1), ("a",)), (days(2, 4), ("a",)), (days(0, 4), ("b", "c"))]


async def test_a_large_query_is_read_in_parts_of_few_workers(cache_env: CacheEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hourly, "WORKER_DAYS_PER_READ", 8)
    found = await cache_env.read("a", "b", "c", "d", "e", end=OLD + 4 * DAY)
    assert {worker: len(values) for (worker, _), values in found.items()} == dict.fromkeys("abcde", 96)
    assert cache_env.history.reads == [(days(0, 4), each) for each in (("a", "b"), ("c", "d"), ("e",))]
    cache_env.history.reads.clear()
    await cache_env.read("a", end=OLD + 9 * DAY)
    assert cache_env.history.reads == [(days(4, 9), ("a",))]


async def test_whole_days_are_read_for_the_figures_of_the_fleet(cache_env: CacheEnv) -> None:
    found = await cache_env.cache.worker_days({"b", "a", "none"}, OLD + 5 * HOUR, TODAY + 2 * DAY)
    assert [(part.worker_id, part.day) for part in found] == [(each, day) for each in "ab" for day in days(0, 11)]
    assert await cache_env.cache.worker_days({"a"}, TODAY + DAY, TODAY + 2 * DAY) == []
    assert await cache_env.cache.worker_days((), OLD, TODAY) == []


async def test_that_a_worker_has_no_samples_is_cached_too(cache_env: CacheEnv) -> None:
    assert await cache_env.read("none") == await cache_env.read("none") == {}
    assert len(cache_env.history.reads) == 1


async def test_a_day_whose_samples_may_still_arrive_is_cached_for_a_minute_an_older_one_for_hours(cache_env: CacheEnv) -> None:
    for start, fresh in (
        (TODAY, hourly.RECENT_TTL_SECONDS),
        (TODAY - DAY, hourly.RECENT_TTL_SECONDS),
        (OLD, hourly.FINAL_TTL_SECONDS),
    ):
        begun = len(cache_env.history.reads)
        for later, reads in ((0, 1), (fresh - 1, 1), (1, 2)):
            cache_env.now += later
            await cache_env.read("a", start=start + HOUR, end=start + 2 * HOUR)
            assert len(cache_env.history.reads) - begun == reads, f"{start} after {later}"


async def test_after_a_backfill_older_days_are_read_again_when_cached_for_a_minute(cache_env: CacheEnv) -> None:
    await cache_env.read("a")
    cache_env.now += hourly.RECENT_TTL_SECONDS
    await cache_env.read("a")
    assert len(cache_env.history.reads) == 1
    cache_env.marker = "2"
    for _ in range(2):
        found = await cache_env.read("a")
        assert {value for _, value in found["a", "eu-west-1"]} == {1.0}
    assert len(cache_env.history.reads) == 2
    cache_env.marker = "3"  # frequent backfills must not defeat the cache
    await cache_env.read("a")
    assert len(cache_env.history.reads) == 2


async def test_while_a_backfill_may_write_every_day_is_cached_for_a_minute(cache_env: CacheEnv) -> None:
    cache_env.marker = None
    for reads in (1, 2):
        await cache_env.read("a")
        await cache_env.read("a")
        assert len(cache_env.history.reads) == reads
        cache_env.now += hourly.RECENT_TTL_SECONDS
    cache_env.marker = "2"  # the backfill has ended
    await cache_env.read("a")
    cache_env.now += hourly.RECENT_TTL_SECONDS
    await cache_env.read("a")
    assert len(cache_env.history.reads) == 3


async def test_days_in_another_exporters_gap_fill_window_are_cached_for_a_minute(cache_env: CacheEnv) -> None:
    cache_env.history.gap_fill_window = 14 * DAY
    for _ in range(2):
        await cache_env.read("a")
        cache_env.now += hourly.RECENT_TTL_SECONDS
    assert len(cache_env.history.reads) == 2


async def test_concurrent_callers_share_one_read(cache_env: CacheEnv) -> None:
    cache_env.history.gate = asyncio.Event()
    readers = [asyncio.create_task(cache_env.read("a", "b")) for _ in range(5)]
    await asyncio.sleep(0)
    cache_env.history.gate.set()
    results = await asyncio.gather(*readers)
    assert all(result == results[0] for result in results)
    assert len(cache_env.history.reads) == 1


async def test_a_cancelled_caller_leaves_its_read_to_the_next_caller(cache_env: CacheEnv) -> None:
    cache_env.history.gate = asyncio.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await cache_env.read("a")
    cache_env.history.gate.set()
    assert await cache_env.read("a")
    assert len(cache_env.history.reads) == 1


async def test_a_failure_reaches_every_caller_and_is_not_cached(cache_env: CacheEnv) -> None:
    cache_env.history.broken = {"a"}
    errors = await asyncio.gather(*(cache_env.read("a") for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in errors] == [StoreUnavailableError] * 3
    cache_env.history.broken = set()
    assert await cache_env.read("a")


async def test_a_failure_for_other_workers_does_not_matter(cache_env: CacheEnv) -> None:
    cache_env.history.broken, cache_env.history.gate = {"bad"}, asyncio.Event()
    bad, good = asyncio.create_task(cache_env.read("bad")), asyncio.create_task(cache_env.read("good"))
    await asyncio.sleep(0.01)
    cache_env.history.gate.set()
    assert await good
    with pytest.raises(StoreUnavailableError):
        await bad


async def test_after_a_failure_no_further_read_starts(cache_env: CacheEnv) -> None:
    cache_env.history.broken = {"a"}
    with pytest.raises(StoreUnavailableError):
        await cache_env.read("a", start=OLD - 30 * DAY)
    await asyncio.sleep(0.01)
    assert len(cache_env.history.reads) <= 2 * hourly.READS
    assert len(asyncio.all_tasks()) == 1


async def test_the_least_recently_used_days_are_evicted(cache_env: CacheEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hourly, "MAX_CACHED_WORKER_DAYS", 4)
    for day in (0, 1, 0, 2, 0, 1):
        cache_env.now += hourly.JOINED_TTL_SECONDS
        await cache_env.read("a", "b", start=OLD + day * DAY + HOUR, end=OLD + day * DAY + 2 * HOUR)
    assert [(read.start - OLD) // DAY for read, _ in cache_env.history.reads] == [0, 1, 2, 1]


async def test_of_too_many_days_in_one_query_the_newest_are_kept(cache_env: CacheEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hourly, "MAX_CACHED_WORKER_DAYS", 4)
    found = await cache_env.read("a", "b", end=OLD + 3 * DAY)
    assert {worker: len(values) for (worker, _), values in found.items()} == {"a": 72, "b": 72}
    cache_env.history.reads.clear()
    await cache_env.read("a", "b", start=OLD + DAY + HOUR, end=OLD + 3 * DAY)
    assert cache_env.history.reads == []


async def test_a_field_is_joined_once_for_the_same_workers_and_days(
    cache_env: CacheEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[str] = []

    def count(part: WorkerDay, field: str) -> "array[float]":
        joined.append(part.worker_id)
        return column(part, field)

    monkeypatch.setattr(hourly, "column", count)
    first = await cache_env.read("a", "b")
    assert await cache_env.read("b", "a", end=OLD + 5 * HOUR) == {key: values[:5] for key, values in first.items()}
    assert joined == ["a", "b"]
    month = await cache_env.read("a", "b", end=OLD + 9 * DAY)
    assert joined == ["a", "b"] + ["a"] * 9 + ["b"] * 9
    for start, end in ((OLD + 8 * DAY, OLD + 9 * DAY), (OLD + 2 * DAY, OLD + 3 * DAY)):
        part = await cache_env.read("a", "b", start=start, end=end)
        assert part == {key: [each for each in values if start <= each[0] <= end] for key, values in month.items()}
    assert len(joined) == 20, "of the days of a longer range"
    joined[2:] = []
    assert await cache_env.read("a") == {key: values for key, values in first.items() if key[0] == "a"}
    assert joined == ["a", "b", "a"], "other workers"
    cache_env.now += hourly.JOINED_TTL_SECONDS
    await cache_env.read("a")
    assert joined == ["a", "b", "a", "a"], "later"
    cache_env.marker = "2"
    await cache_env.read("a")
    assert joined == ["a", "b", "a", "a", "a"], "after a backfill"
