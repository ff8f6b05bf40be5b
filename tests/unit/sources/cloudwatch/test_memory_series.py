"""Which memory series of an instance is queried, and how long a listing is used."""

import pytest

from exporter.core.errors import SourceError
from exporter.core.model import Dimensions, Listing
from exporter.sources.cloudwatch.memory_series import (
    LISTING_TTL_SECONDS,
    MemorySeriesIndex,
    all_memory_series,
    memory_series,
)


def dims(**names: str) -> Dimensions:
    return tuple(sorted({"InstanceId": "i-0a", **names}.items()))


PLAIN = dims()
USUAL = dims(ImageId="ami-1", InstanceType="m5.large")
STALE_TYPE = dims(InstanceType="t3.large")
OTHER_IMAGE = dims(ImageId="ami-2", InstanceType="m5.large")
PER_HOST = dims(host="worker-1")


@pytest.mark.parametrize(
    ("listed", "instance_type", "silent", "expected"),
    [
        pytest.param([], "m5.large", [], (), id="no agent"),
        pytest.param([USUAL, PLAIN], "m5.large", [], (PLAIN,), id="fewest dimensions"),
        pytest.param([PER_HOST, USUAL], "m5.large", [], (USUAL,), id="unknown dimension names last"),
        pytest.param([STALE_TYPE, USUAL], "m5.large", [], (USUAL,), id="another instance type last"),
        pytest.param([STALE_TYPE, PER_HOST], "m5.large", [], (PER_HOST,), id="a mismatch weighs more than unknown names"),
        pytest.param([STALE_TYPE, USUAL], None, [], (STALE_TYPE,), id="unknown instance type mismatches nothing"),
        pytest.param([OTHER_IMAGE, USUAL], "m5.large", [], (USUAL, OTHER_IMAGE), id="a tie is all of them, lexical"),
        pytest.param([PLAIN, USUAL], "m5.large", [PLAIN], (USUAL,), id="a silent one is passed over"),
        pytest.param([PLAIN], "m5.large", [PLAIN], (PLAIN,), id="unless there is no other"),
        pytest.param([STALE_TYPE], "m5.large", [], (STALE_TYPE,), id="a mismatch is better than nothing"),
    ],
)
def test_the_memory_series_most_likely_active_is_chosen(
    listed: list[Dimensions], instance_type: str | None, silent: list[Dimensions], expected: tuple[Dimensions, ...]
) -> None:
    listing = Listing(1, 0, {"i-0a": tuple(listed), "i-0b": ((("InstanceId", "i-0b"),),)})

    assert memory_series(listing, "i-0a", instance_type, frozenset(silent)) == expected


def test_every_listed_series_is_returned_once_and_the_likely_ones_first() -> None:
    recent = Listing(1, 0, {"i-0a": (USUAL,)})
    older = Listing(1, 0, {"i-0a": (STALE_TYPE, USUAL, PER_HOST)})

    assert all_memory_series([recent, older], "i-0a", "m5.large") == (USUAL, STALE_TYPE, PER_HOST)
    assert all_memory_series([recent, older], "i-0b", "m5.large") == ()


class FakeSource:
    """Lists the series that a test sets, and records the calls."""

    def __init__(self) -> None:
        self.series: dict[bool, tuple[Dimensions, ...]] = {True: (USUAL,), False: (USUAL, PER_HOST)}
        self.calls: list[tuple[str, bool]] = []
        self.down = False

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        self.calls.append((region, recent))
        if self.down:
            raise SourceError("cloudwatch", "Throttling", "AWS throttled")
        return Listing(len(self.calls), 0, {"i-0a": self.series[recent]} if self.series[recent] else {})


class IndexEnv:
    """An index over a fake source, with a clock that a test sets."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.source = FakeSource()
        self.index = MemorySeriesIndex(self.source, monotonic=lambda: self.time)

    async def refresh(self) -> None:
        for recent in (True, False):
            await self.index.listing("eu-west-1", recent=recent)

    def memory(self, *, thorough: bool = False) -> tuple[Dimensions, ...]:
        cpu, *others = self.index.queries("eu-west-1", "i-0a", "m5.large", thorough=thorough)
        assert (cpu.metric, cpu.dimensions) == ("cpu", (("InstanceId", "i-0a"),))
        assert {query.metric for query in others} <= {"memory"}
        return tuple(query.dimensions for query in others)


@pytest.fixture
def index_env() -> IndexEnv:
    return IndexEnv()


async def test_a_listing_is_used_until_its_ttl_and_then_read_again(index_env: IndexEnv) -> None:
    first = await index_env.index.listing("eu-west-1", recent=True)
    index_env.time += LISTING_TTL_SECONDS - 1
    assert await index_env.index.listing("eu-west-1", recent=True) is first
    index_env.time += 1
    assert (await index_env.index.listing("eu-west-1", recent=True)).date == 2
    assert index_env.source.calls == [("eu-west-1", True)] * 2


async def test_regions_and_both_kinds_of_listing_are_cached_apart(index_env: IndexEnv) -> None:
    for _ in range(2):
        for region in ("eu-west-1", "us-east-1"):
            for recent in (True, False):
                await index_env.index.listing(region, recent=recent)
    assert len(index_env.source.calls) == len(set(index_env.source.calls)) == 4


async def test_the_old_listing_keeps_serving_queries_while_cloudwatch_does_not_answer(index_env: IndexEnv) -> None:
    await index_env.refresh()
    index_env.time += LISTING_TTL_SECONDS
    index_env.source.down = True

    with pytest.raises(SourceError):
        await index_env.index.listing("eu-west-1", recent=True)

    assert index_env.memory() == (USUAL,)
    assert [listing.date for listing in index_env.index.listings("eu-west-1")] == [1, 2]


async def test_a_failed_listing_is_tried_again_at_the_next_call(index_env: IndexEnv) -> None:
    index_env.source.down = True
    with pytest.raises(SourceError):
        await index_env.index.listing("eu-west-1", recent=True)
    index_env.source.down = False
    assert (await index_env.index.listing("eu-west-1", recent=True)).series == {"i-0a": (USUAL,)}


def test_before_the_first_listing_an_instance_has_only_its_cpu(index_env: IndexEnv) -> None:
    assert index_env.memory() == index_env.memory(thorough=True) == ()
    assert [listing.date for listing in index_env.index.listings("eu-west-1")] == [-1, -1]


async def test_a_series_that_is_no_longer_recent_is_found_in_the_listing_of_two_weeks(index_env: IndexEnv) -> None:
    index_env.source.series[True] = ()
    await index_env.refresh()
    assert index_env.memory() == (USUAL,)


async def test_a_silent_series_gives_way_to_another_until_the_next_recent_listing(index_env: IndexEnv) -> None:
    index_env.source.series[True] = (USUAL, PER_HOST)
    await index_env.refresh()
    index_env.index.mark_silent("eu-west-1", USUAL)
    assert index_env.memory() == (PER_HOST,)

    index_env.time += LISTING_TTL_SECONDS
    await index_env.index.listing("eu-west-1", recent=False)
    assert index_env.memory() == (PER_HOST,), "the listing of two weeks says nothing new about it"
    await index_env.index.listing("eu-west-1", recent=True)
    assert index_env.memory() == (USUAL,)


async def test_a_series_is_silent_in_its_own_region_only(index_env: IndexEnv) -> None:
    index_env.source.series[True] = (USUAL, PER_HOST)
    await index_env.refresh()
    index_env.index.mark_silent("us-east-1", USUAL)
    assert index_env.memory() == (USUAL,)


async def test_thorough_is_every_listed_series_the_silent_ones_too(index_env: IndexEnv) -> None:
    await index_env.refresh()
    assert index_env.memory(thorough=True) == (USUAL, PER_HOST)
    index_env.index.mark_silent("eu-west-1", USUAL)
    assert set(index_env.memory(thorough=True)) == {USUAL, PER_HOST}
