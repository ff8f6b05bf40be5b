"""The CloudWatch archive: what it caches and how long, and that concurrent callers share one call."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from exporter.core.errors import RejectedQueryError, SourceError
from exporter.core.model import InstanceInterval, InventoryEntry, Listing, MetricQuery, MetricResult, MetricResults, Worker
from exporter.core.periods import DAY
from exporter.history.cloudwatch_archive import CHUNK, RECENT_TTL_SECONDS, CloudWatchArchive
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from tests.helpers.in_process_exporter import Clock

NOW = 1_790_000_100
STEP = 300
WORKER = Worker("w", "eu-west-1", "i-0000000a", "running")


@dataclass
class Source:
    """A CloudWatch in which every value tells its instance."""

    calls: list[tuple[str, int, int]] = field(default_factory=list)
    listed: int = 0
    failure: Exception | None = None
    outcome: str = "ok"
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    series: dict[str, tuple[tuple[tuple[str, str], ...], ...]] = field(default_factory=dict)

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        self.calls.append((f"{region}/{queries[0].instance_id}", start, end))
        await self.gate.wait()
        if self.failure:
            raise self.failure
        values = {at: float(int(queries[0].instance_id[-1:], 36)) for at in range(start, end, period) if at < NOW}
        outcome = "empty" if self.outcome == "ok" and not values else self.outcome
        return MetricResults(NOW, {query: MetricResult(outcome, start, end, values) for query in queries})  # type: ignore[arg-type]

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        self.listed += 1
        return Listing(NOW, 0, self.series)


@pytest.fixture
def source() -> Source:
    source = Source()
    source.gate.set()
    return source


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


def archive_of(source: Source, clock: Clock, memory_dimension: str = "InstanceId", **options: int) -> CloudWatchArchive:
    series = MemorySeriesIndex(source, monotonic=clock)
    return CloudWatchArchive(
        lambda *call: source.get_metric_data(*call),
        series,
        wall=lambda: NOW + clock.now,
        monotonic=clock,
        memory_dimension=memory_dimension,
        **options,
    )


@pytest.fixture
def archive(source: Source, clock: Clock) -> CloudWatchArchive:
    return archive_of(source, clock)


OLD = NOW - 100 * DAY, NOW - 99 * DAY


async def test_a_final_window_is_queried_once_a_recent_one_once_a_minute(
    source: Source, archive: CloudWatchArchive, clock: Clock
) -> None:
    for _ in range(3):
        await archive.window(WORKER, None, *OLD, STEP)
        await archive.window(WORKER, None, NOW - 600, NOW, STEP)
    assert len(source.calls) == 2
    clock.now += RECENT_TTL_SECONDS
    await archive.window(WORKER, None, *OLD, STEP)
    await archive.window(WORKER, None, NOW - 600, NOW, STEP)
    assert len(source.calls) == 3
    assert source.listed == 2  # one listing is of the recent series, one of all


async def test_concurrent_callers_share_one_call_and_a_cancelled_caller_does_not_end_it(
    source: Source, archive: CloudWatchArchive
) -> None:
    source.gate.clear()
    first, second, third = (asyncio.create_task(archive.window(WORKER, None, *OLD, STEP)) for _ in range(3))
    await asyncio.sleep(0.01)
    first.cancel()
    source.gate.set()
    assert len(await second) == len(await third) == 288
    assert len(source.calls) == 1


@pytest.mark.parametrize("outcome", ["partial", "failed"])
async def test_a_failed_or_partial_result_is_an_error_and_not_cached(
    source: Source, archive: CloudWatchArchive, outcome: str
) -> None:
    source.outcome = outcome
    with pytest.raises(SourceError, match="returned only a part of the data of i-0000000a"):
        await archive.window(WORKER, None, *OLD, STEP)
    source.outcome = "ok"
    assert len(await archive.window(WORKER, None, *OLD, STEP)) == 288


async def test_the_least_recently_used_window_is_evicted(source: Source, clock: Clock) -> None:
    archive = archive_of(source, clock, max_datapoints=3 * 2 * 288 + 10)
    windows = [(NOW - n * DAY, NOW - (n - 1) * DAY) for n in (100, 101, 102)]
    for window in windows:
        await archive.window(WORKER, None, *window, STEP)
    await archive.window(WORKER, None, *windows[0], STEP)
    await archive.window(WORKER, None, NOW - 103 * DAY, NOW - 102 * DAY, STEP)
    assert len(source.calls) == 4
    await archive.window(WORKER, None, *windows[0], STEP)
    assert len(source.calls) == 4
    await archive.window(WORKER, None, *windows[1], STEP)
    assert len(source.calls) == 5


async def test_points_are_the_first_of_the_range_and_no_later_chunk_is_read(source: Source, archive: CloudWatchArchive) -> None:
    start = NOW - 50 * DAY
    points = await archive.points(WORKER, None, start + 1, NOW, STEP, 3)
    assert [point.start for point in points] == [start + STEP, start + 2 * STEP, start + 3 * STEP]
    assert len(source.calls) == 1
    ((_, first, last),) = source.calls
    assert last - first == CHUNK * STEP


async def test_a_long_range_takes_one_call_per_chunk_and_none_before_the_worker_existed(
    source: Source, archive: CloudWatchArchive
) -> None:
    young = Worker("w", "eu-west-1", "i-0000000a", "running", created_at=NOW - DAY)
    points = await archive.points(young, None, NOW - 400 * DAY, NOW, STEP, 10_000)
    assert points[0].start == NOW - DAY
    assert len(source.calls) <= 2
    assert all(end <= NOW for _, _, end in source.calls)


async def test_a_rejected_query_is_an_error(source: Source, archive: CloudWatchArchive) -> None:
    source.failure = RejectedQueryError("cloudwatch", "ValidationError", "refused")
    with pytest.raises(RejectedQueryError):
        await archive.window(WORKER, None, *OLD, STEP)


async def test_the_newer_of_two_instances_wins_where_both_may_have_been_the_worker(
    source: Source, archive: CloudWatchArchive
) -> None:
    first, second = OLD[0] + 10 * STEP, OLD[0] + 20 * STEP
    entry = InventoryEntry(
        worker_id="w",
        region="eu-west-1",
        name=None,
        instance_type=None,
        cml_version=None,
        created_at=None,
        terminated_at=None,
        status="running",
        first_seen=0,
        last_seen=NOW,
        instances=(
            InstanceInterval("i-0000000a", "eu-west-1", 0, first),
            InstanceInterval("i-0000000b", "eu-west-1", second, NOW),
        ),
    )
    points = await archive.window(WORKER, entry, *OLD, STEP)
    older, newer = 10.0, 11.0
    assert [point.cpu for point in points] == [older] * 10 + [newer] * 278  # between the two intervals it may have been either
    assert {name for name, _, _ in source.calls} == {"eu-west-1/i-0000000a", "eu-west-1/i-0000000b"}


async def test_memory_is_queried_under_every_listed_series_or_else_under_the_one_with_one_dimension(
    source: Source, archive: CloudWatchArchive
) -> None:
    queried: list[tuple[MetricQuery, ...]] = []
    original = source.get_metric_data

    async def recording(region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int) -> MetricResults:
        queried.append(tuple(queries))
        return await original(region, queries, start, end, period)

    source.get_metric_data = recording  # type: ignore[method-assign]  # to see the queries
    plain = (("InstanceId", "i-0000000b"),)
    usual = (("ImageId", "ami"), ("InstanceId", "i-0000000a"), ("InstanceType", "m5"))
    disk = (("InstanceId", "i-0000000a"), ("disk", "sda"))
    source.series = {"i-0000000a": (disk, usual)}
    await archive.window(WORKER, None, *OLD, STEP)
    await archive.window(Worker("x", "eu-west-1", "i-0000000b", "running"), None, *OLD, STEP)
    assert [query.dimensions for query in queried[0][1:]] == [usual, disk]
    assert [query.dimensions for query in queried[1][1:]] == [plain]


async def test_no_query_begins_before_the_oldest_datapoint_of_its_resolution(
    source: Source, archive: CloudWatchArchive
) -> None:
    await archive.points(WORKER, None, NOW - 63 * DAY + 3600, NOW - 60 * DAY, STEP, 10)
    assert min(first for _, first, _ in source.calls) >= NOW - 63 * DAY
