"""Which memory series of an instance counts, which are queried, and how long a listing is used."""

from itertools import permutations

import pytest

from exporter.core.errors import SourceError
from exporter.core.model import Dimensions, Listing, MetricQuery, MetricResult, MetricResults, Outcome
from exporter.sources.cloudwatch.memory_series import (
    LISTING_TTL_SECONDS,
    MemorySeriesIndex,
    ranked,
    series_to_query,
    series_values,
)


def dims(**names: str) -> Dimensions:
    return tuple(sorted({"InstanceId": "i-0a", **names}.items()))


PLAIN = dims()
USUAL = dims(ImageId="ami-1", InstanceType="m5.large")
STALE_TYPE = dims(InstanceType="t3.large")
OTHER_IMAGE = dims(ImageId="ami-2", InstanceType="m5.large")
PER_HOST = dims(host="worker-1")
NAMES = {"usual": USUAL, "per_host": PER_HOST}


@pytest.mark.parametrize(
    ("listed", "instance_type", "expected"),
    [
        pytest.param([], "m5.large", (), id="no agent"),
        pytest.param([USUAL, PLAIN], "m5.large", (PLAIN, USUAL), id="fewest dimensions"),
        pytest.param([PER_HOST, USUAL], "m5.large", (USUAL, PER_HOST), id="unknown dimension names last"),
        pytest.param([STALE_TYPE, USUAL], "m5.large", (USUAL, STALE_TYPE), id="another instance type last"),
        pytest.param(
            [STALE_TYPE, PER_HOST], "m5.large", (PER_HOST, STALE_TYPE), id="a mismatch weighs more than unknown names"
        ),
        pytest.param([STALE_TYPE, USUAL], None, (STALE_TYPE, USUAL), id="unknown instance type mismatches nothing"),
        pytest.param([OTHER_IMAGE, USUAL], "m5.large", (USUAL, OTHER_IMAGE), id="lexical"),
        pytest.param([USUAL, USUAL[::-1], PLAIN], None, (PLAIN, USUAL), id="the order of dimensions makes no other set"),
    ],
)
def test_the_series_most_likely_active_comes_first(
    listed: list[Dimensions], instance_type: str | None, expected: tuple[Dimensions, ...]
) -> None:
    for permutation in permutations(listed):
        found = ranked(permutation, instance_type)
        assert tuple(tuple(sorted(dimensions)) for dimensions in found) == expected


def test_queried_are_the_first_active_series_and_those_that_may_displace_it() -> None:
    sets = (PLAIN, USUAL, PER_HOST)
    assert series_to_query(sets, {PLAIN, PER_HOST}) == (PLAIN,)
    assert series_to_query(sets, {PER_HOST, USUAL}) == (PLAIN, USUAL)
    assert series_to_query(sets, set()) == sets
    assert series_to_query((), {PLAIN}) == ()


# -- which value counts: periods are numbered, the answer is from the middle of period NEWEST + 1 -----------------------------

P = 300
NEWEST = 20


def result(*periods: int, outcome: Outcome = "ok", since: int = 0) -> MetricResult:
    """A result with a datapoint in each of these periods; its value is the period's number."""
    return MetricResult(outcome, since * P, (NEWEST + 1) * P, {period * P: float(period) for period in periods})


def shifted(found: MetricResult, by: float) -> MetricResult:
    return found._replace(values={at: value + by for at, value in found.values.items()})


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        pytest.param(result(*range(21)), dict.fromkeys(range(21), 0), id="it publishes"),
        pytest.param(result(), dict.fromkeys(range(21), 100), id="it never did"),
        pytest.param(
            result(*range(15)),
            {**dict.fromkeys(range(15), 0), **dict.fromkeys(range(15, 17), 100), 18: 100, 19: 100, 20: 100},
            id="silent since period 15",
        ),
        pytest.param(result(*range(18)), dict.fromkeys(range(18), 0), id="it may only be late"),
        pytest.param(result(*range(10), *range(11, 21)), {**dict.fromkeys(range(21), 0), 10: 100}, id="an old gap"),
        pytest.param(result(*range(18), 19, 20), dict.fromkeys([*range(18), 19, 20], 0), id="a recent gap may still be filled"),
        pytest.param(result(20), {**dict.fromkeys(range(20), 100), 20: 0}, id="it has just come back"),
        pytest.param(result(5, outcome="partial"), {5: 0}, id="an incomplete result proves no absence"),
        pytest.param(result(outcome="failed"), {}, id="a failed one neither"),
        pytest.param(result(since=18), dict.fromkeys(range(17), 100), id="a short window shows no silence"),
    ],
)
def test_a_series_counts_where_those_before_it_certainly_have_no_datapoint(
    first: MetricResult, expected: dict[int, int]
) -> None:
    second = shifted(result(*range(21)), 100)
    date = (NEWEST + 1) * P + 180
    found = series_values([first, second], date=date, period=P)
    assert {at // P: round(value) - at // P for at, value in found.items()} == expected
    assert series_values([first, second, shifted(second, 100)], date=date, period=P) == found


class FakeSource:
    """Lists the series that a test sets, and records the calls."""

    def __init__(self) -> None:
        self.series: dict[bool, tuple[Dimensions, ...]] = {True: (USUAL,), False: (USUAL, PER_HOST)}
        self.calls: list[tuple[str, bool]] = []
        self.down = False
        self.since = 0

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        self.calls.append((region, recent))
        if self.down:
            raise SourceError("cloudwatch", "Throttling", "AWS throttled")
        return Listing(len(self.calls), self.since, {"i-0a": self.series[recent]} if self.series[recent] else {})


class IndexEnv:
    """An index over a fake source, with a clock that a test sets."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.source = FakeSource()
        self.index = MemorySeriesIndex(self.source, monotonic=lambda: self.time)

    async def refresh(self) -> None:
        for recent in (True, False):
            await self.index.listing("eu-west-1", recent=recent)

    def note(self, region: str = "eu-west-1", **newest: int) -> None:
        """Let the index see the results of a cycle in which these series have their newest datapoint so many periods ago."""
        self.index.forget_activity()
        by_query = {}
        for name, age in newest.items():
            values = {at * P: 1.0 for at in range(NEWEST + 1 - age)}
            by_query[MetricQuery("i-0a", "memory", NAMES[name])] = MetricResult("ok", 0, (NEWEST + 1) * P, values)
        self.index.note_activity(region, MetricResults((NEWEST + 1) * P + 180, by_query), P)

    def memory(self, *, since: int | None = None) -> tuple[Dimensions, ...]:
        cpu, *others = self.index.queries("eu-west-1", "i-0a", "m5.large", since=since)
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
    assert index_env.memory() == index_env.memory(since=0) == ()
    assert [listing.date for listing in index_env.index.listings("eu-west-1")] == [-1, -1]


async def test_a_series_that_is_no_longer_recent_is_found_in_the_listing_of_two_weeks(index_env: IndexEnv) -> None:
    index_env.source.series[True] = ()
    await index_env.refresh()
    assert index_env.memory() == (USUAL,)


async def test_only_the_first_active_series_is_billed_and_the_others_again_once_it_lags(index_env: IndexEnv) -> None:
    index_env.source.series[True] = (USUAL, PER_HOST)
    await index_env.refresh()
    assert index_env.memory() == (USUAL, PER_HOST), "after a start nothing is known of them"
    index_env.note(usual=0, per_host=0)
    assert index_env.memory() == (USUAL,)
    index_env.note(usual=1)
    assert index_env.memory() == (USUAL,), "its last datapoint may not be published yet"
    index_env.note(usual=2)
    assert index_env.memory() == (USUAL, PER_HOST)
    index_env.note(usual=9, per_host=0)
    assert index_env.memory() == (USUAL, PER_HOST), "it may come back as long as it is listed"

    index_env.source.series[True] = (PER_HOST,)
    index_env.time += LISTING_TTL_SECONDS
    await index_env.index.listing("eu-west-1", recent=True)
    assert index_env.memory() == (PER_HOST,)


async def test_queries_that_nothing_but_a_listing_can_change_are_made_once_for_each(index_env: IndexEnv) -> None:
    index_env.source.series = {True: (USUAL,), False: (PER_HOST,)}
    before = index_env.index.queries("eu-west-1", "i-0a", "m5.large")
    assert [query.metric for query in before] == ["cpu"]
    await index_env.refresh()
    assert index_env.memory() == (USUAL,)
    first = index_env.index.queries("eu-west-1", "i-0a", "m5.large")
    index_env.note(usual=9)
    assert index_env.index.queries("eu-west-1", "i-0a", "m5.large") is first
    assert index_env.memory(since=-1) == (USUAL, PER_HOST), "the listing of recent series does not reach back so far"
    assert index_env.memory(since=0) == (USUAL,)
    assert index_env.memory(since=-2) == (USUAL, PER_HOST)
    older = index_env.index.queries("eu-west-1", "i-0a", "m5.large", since=-2)
    assert index_env.index.queries("eu-west-1", "i-0a", "m5.large", since=-1) is older
    assert index_env.index.queries("eu-west-1", "i-0a", None) == first

    index_env.index.suggest_account("i-0a", "123456789012")
    assert {query.account for query in index_env.index.queries("eu-west-1", "i-0a", "m5.large")} == {"123456789012"}

    index_env.source.series[True] = (PER_HOST, USUAL)
    index_env.time += LISTING_TTL_SECONDS
    await index_env.index.listing("eu-west-1", recent=True)
    assert index_env.memory() == (USUAL, PER_HOST)


@pytest.mark.parametrize(
    "unknown",
    [
        MetricResult("partial", 0, (NEWEST + 1) * P, {NEWEST * P: 1.0}),
        MetricResult("ok", 0, NEWEST * P, {(NEWEST - 1) * P: 1.0}),
    ],
)
async def test_an_incomplete_or_older_result_does_not_show_that_a_series_is_active(
    index_env: IndexEnv, unknown: MetricResult
) -> None:
    index_env.source.series[True] = (USUAL, PER_HOST)
    await index_env.refresh()
    results = MetricResults((NEWEST + 1) * P + 180, {MetricQuery("i-0a", "memory", USUAL): unknown})
    index_env.index.note_activity("eu-west-1", results, P)
    assert index_env.memory() == (USUAL, PER_HOST)


async def test_activity_is_known_of_its_own_region_only(index_env: IndexEnv) -> None:
    index_env.source.series[True] = (USUAL, PER_HOST)
    await index_env.refresh()
    index_env.note("us-east-1", usual=0)
    assert index_env.memory() == (USUAL, PER_HOST)


async def test_older_periods_need_every_series_that_was_listed_since(index_env: IndexEnv) -> None:
    index_env.source.since = 50
    await index_env.refresh()
    index_env.note(usual=0)
    assert index_env.memory(since=50) == (USUAL,), "the series listed for two weeks has no datapoint since then"
    assert index_env.memory(since=49) == (USUAL, PER_HOST)


async def test_activity_is_judged_by_the_clock_of_the_part_of_a_call_that_answered(index_env: IndexEnv) -> None:
    index_env.source.series[True] = (USUAL, PER_HOST)
    await index_env.refresh()
    query = MetricQuery("i-0a", "memory", USUAL)
    for first, second, expected in ((10, 12, (USUAL, PER_HOST)), (12, 10, (USUAL,))):
        index_env.index.forget_activity()
        result = MetricResult("ok", 0, 12 * P, {9 * P: 1.0})
        results = MetricResults(first * P + 1, {query: result}, {query: second * P + 1})
        index_env.index.note_activity("eu-west-1", results, P)
        assert index_env.memory() == expected
