"""Gauge, history, and `/resources` take memory from the same series: random worlds, cycle by cycle, through restarts."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from exporter.core.clock import ServerClock
from exporter.core.errors import SourceError
from exporter.core.model import (
    Datapoint,
    Dimensions,
    Fleet,
    Listing,
    MetricQuery,
    MetricResult,
    MetricResults,
    PendingQuery,
    Worker,
)
from exporter.core.periods import HOUR, align
from exporter.core.workers_settings import WorkersSettings
from exporter.history.cloudwatch_archive import CloudWatchArchive
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.cycle import Cycle, CycleStats
from exporter.pipeline.lifecycle import FirstSeenValues, PendingSample, Rules, finalize
from exporter.pipeline.listings import refresh_listings
from exporter.pipeline.planning import live_queries
from exporter.pipeline.poller import POLL_OFFSET_SECONDS, Poller
from exporter.pipeline.publisher import Publisher
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex

RULES = Rules()
P = RULES.period
T = 1_767_225_600
"""Start of the first cycle's last period."""
CYCLES = 30
MAX_DELAY = POLL_OFFSET_SECONDS - 60 + P
"""Seconds by which a datapoint is published so late that it is seen one cycle later than the others."""
WORKER = Worker("w1", "eu-west-1", "i-0a", "running", instance_type="m5.large")
SETS: tuple[Dimensions, ...] = tuple(
    (("InstanceId", "i-0a"), *more)
    for more in (
        (),
        (("InstanceType", "m5.large"),),
        (("InstanceType", "t3.large"),),
        (("ImageId", "ami-1"), ("InstanceType", "m5.large")),
        (("ImageId", "ami-2"), ("InstanceType", "m5.large")),
        (("host", "a"),),
        (("host", "b"),),
    )
)


@dataclass(frozen=True)
class World:
    """What CloudWatch has of the instance, and what happens to the exporter. Cycles are numbered."""

    published: dict[Dimensions, frozenset[int]]
    """Periods with a datapoint, numbered; each series has some before the first cycle."""
    delays: dict[int, int]
    """Further seconds until a period is visible, the same in all series: one agent publishes them."""
    restarts: frozenset[int]
    listing_failures: frozenset[int]
    partial: frozenset[int]
    """Cycles in which some results are incomplete."""
    seed: int


@st.composite
def worlds(draw: st.DrawFn) -> World:
    cycles = st.frozensets(st.integers(0, CYCLES - 1), max_size=4)
    published = {}
    for dimensions in draw(st.lists(st.sampled_from(SETS), min_size=1, max_size=4, unique=True)):
        changes = sorted(draw(st.frozensets(st.integers(-6, CYCLES), max_size=5)))
        lost = draw(st.frozensets(st.integers(-6, CYCLES), max_size=4))
        running = [at for at in range(-6, CYCLES) if sum(change <= at for change in changes) % 2 == 0]
        published[dimensions] = frozenset({*range(-12, -6), *running} - lost)
    delays = draw(st.dictionaries(st.integers(-6, CYCLES), st.integers(0, MAX_DELAY), max_size=6))
    return World(published, delays, draw(cycles), draw(cycles), draw(cycles), draw(st.integers(0, 99)))


@dataclass
class Source:
    """CloudWatch with this world; the order of what it returns is random."""

    world: World
    now: int = 0
    failing: bool = False
    partial: bool = False
    random: Random = field(default_factory=Random)

    def __call__(self) -> float:
        return self.now

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        if self.failing:
            raise SourceError("cloudwatch", "Throttling", "AWS throttled")
        sets = list(self.world.published)
        self.random.shuffle(sets)
        return Listing(self.now, self.now - 3 * HOUR if recent else 0, {"i-0a": tuple(sets)})

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        results = [(query, self._result(query, start, end)) for query in queries]
        self.random.shuffle(results)
        return MetricResults(self.now, dict(results))

    def _result(self, query: MetricQuery, start: int, end: int) -> MetricResult:
        numbers = range(-12, CYCLES) if query.metric == "cpu" else self.world.published[query.dimensions]
        visible = {
            at: value(query.dimensions, at)
            for at in (T + number * P for number in numbers)
            if start <= at < end and at + P + 60 + self.world.delays.get((at - T) // P, 0) <= self.now
        }
        if self.partial and self.random.random() < 0.5:
            kept = {at: value for at, value in visible.items() if self.random.random() < 0.5}
            return MetricResult("partial", start, end, kept)
        return MetricResult("ok" if visible else "empty", start, end, visible)


def value(dimensions: Dimensions, at: int) -> float:
    """A value that tells its series and its period."""
    return (SETS.index(dimensions) if dimensions in SETS else 99) + (at - T) / P / 1000


class Process:
    """What one exporter process keeps of CloudWatch: the poller's half, and the archive of `/resources`."""

    def __init__(self, source: Source) -> None:
        telemetry = Telemetry(CollectorRegistry())
        clock = ServerClock(source, source)
        self.source = source
        self.index = MemorySeriesIndex(source, monotonic=source)
        self.publisher = Publisher(RULES, WorkersSettings(), clock, telemetry, source)
        self.publisher.update_fleet(Fleet(T, (WORKER,)), {})
        unused: Any = None
        self.poller = Poller(
            unused, self.index, clock, RULES, unused, self.publisher, unused, unused, telemetry, lambda: None, source
        )
        self.archive = CloudWatchArchive(source.get_metric_data, self.index, wall=source, monotonic=source)
        self.first_seen: FirstSeenValues = {}

    async def poll(self, open_samples: dict[int, PendingSample]) -> None:
        """Run a collection cycle, as `Poller` and `CallRunner` do with an outbox."""
        now = self.source.now
        (live,) = live_queries([WORKER], now, RULES)
        pending = live._replace(oldest=min([live.oldest, *open_samples]))
        cycle = Cycle(now, now, {"i-0a": WORKER.instance_type}, CycleStats())
        await refresh_listings(self.poller._series, None, cycle, [pending], ["eu-west-1"])
        calls = self.poller._plan([pending], cycle)
        self.index.forget_activity()
        self.source.random.shuffle(calls)
        for call in calls:
            results = await self.source.get_metric_data(call.region, call.queries, call.start, call.end, P)
            self.publisher.add_results(call.queries, results)
            self.index.note_activity(call.region, results, P)
            for start, sample in open_samples.items():
                listings = self.index.listings(call.region)
                open_samples[start] = finalize(sample, call.queries, results, listings, self.first_seen, RULES)

    @property
    def gauge(self) -> Datapoint | None:
        return self.publisher._points["memory"].get("i-0a")

    async def resources(self, now: int) -> dict[int, float]:
        """Return what `/resources` averages: period → memory of the last half hour."""
        source, source.partial = self.source, False
        end = align(now, P)
        points = await self.archive.window(WORKER, None, end - 6 * P, end, P)
        return {point.start: point.memory for point in points if point.memory is not None}


async def run(world: World) -> None:
    source = Source(world, random=Random(world.seed))
    history: dict[int, float | None] = {}
    seen: dict[int, float] = {}
    open_samples: dict[int, PendingSample] = {}
    process = Process(source)
    for cycle in range(CYCLES):
        if cycle in world.restarts:
            process = Process(source)
        source.now = T + (cycle + 1) * P + POLL_OFFSET_SECONDS
        source.failing, source.partial = cycle in world.listing_failures, cycle in world.partial
        start = T + cycle * P
        open_samples[start] = PendingSample("w1", start, "eu-west-1", ("i-0a",), "running", 1)
        await process.poll(open_samples)
        decided = {at: sample.memory for at, sample in open_samples.items() if sample.final}
        history |= decided
        for at in decided:
            del open_samples[at]

        gauge, incomplete = process.gauge, source.partial
        if source.failing and not process.index.listings("eu-west-1")[0].series:
            assert gauge is None, "no series is known yet"
            continue
        resources = await process.resources(source.now)
        if gauge and gauge.timestamp in resources:
            assert gauge.value == resources[gauge.timestamp], "gauge and /resources differ"
        if not incomplete:
            newest = max((at for at in resources if source.now - at - P <= RULES.max_age), default=None)
            assert newest is None or (gauge and gauge.timestamp == newest), "/resources is ahead of the gauge, or behind it"
        if gauge:
            assert seen.setdefault(gauge.timestamp, gauge.value) == gauge.value
        for at, found in [*resources.items(), *((at, found) for at, found in history.items() if found is not None)]:
            assert seen.setdefault(at, found) == found, f"period {(at - T) // P} has two values"
    assert len(history) >= CYCLES // 2 or world.partial or world.listing_failures or world.delays, "else nothing was decided"


THREE = {dimensions: frozenset(range(-12, CYCLES)) for dimensions in SETS[:3]}
QUIET = World(THREE, {}, frozenset(), frozenset(), frozenset(), 0)


@given(worlds())
@example(QUIET)
@example(replace(QUIET, published={**THREE, SETS[0]: frozenset(range(-12, 5)) | frozenset(range(20, CYCLES))}))
@example(replace(QUIET, published={**dict.fromkeys(SETS[:2], frozenset(range(-12, 0))), SETS[2]: THREE[SETS[2]]}))
@example(replace(QUIET, restarts=frozenset({7}), published={**THREE, SETS[0]: frozenset(range(-12, 5))}))
def test_gauge_history_and_resources_have_the_same_value_of_every_period(world: World) -> None:
    asyncio.run(run(world))


def test_an_instance_with_three_active_series_is_billed_for_one_of_them() -> None:
    async def billed() -> list[int]:
        source = Source(QUIET)
        process, counts = Process(source), []
        for cycle in range(4):
            source.now = T + (cycle + 1) * P + POLL_OFFSET_SECONDS
            (live,) = live_queries([WORKER], source.now, RULES)
            await process.poll({})
            cycle_ = Cycle(source.now, source.now, {"i-0a": "m5.large"}, CycleStats())
            counts += [len(call.queries) for call in process.poller._plan([live], cycle_)]
        return counts

    assert asyncio.run(billed()) == [2, 2, 2, 2], "CPU, and one memory series as soon as it is known to be active"


def test_every_series_is_asked_for_in_the_first_cycle_after_a_start() -> None:
    source = Source(QUIET, now=T + P + POLL_OFFSET_SECONDS)
    process = Process(source)
    asyncio.run(process.index.listing("eu-west-1", recent=True))
    pending = PendingQuery("w1", "eu-west-1", ("i-0a",), T)
    (call,) = process.poller._plan([pending], Cycle(source.now, source.now, {"i-0a": "m5.large"}, CycleStats()))
    assert len(call.queries) == 4


def in_two_parts(first: int, second: int) -> tuple[list[MetricQuery], MetricResults]:
    """Queries of two memory series of one instance, and their results: the call was repeated in parts, theirs was the second.

    Only the second series has a datapoint, at T. It counts once the period is old: by the clock at the second part.
    """
    queries = [MetricQuery("i-0a", "memory", dimensions) for dimensions in SETS[:2]]
    by_query = {query: MetricResult("ok", T, T + P, values) for query, values in zip(queries, ({}, {T: 5.0}), strict=True)}
    return queries, MetricResults(first, by_query, dict.fromkeys(queries, second))


def test_a_gauge_is_judged_by_the_clock_of_the_part_of_a_call_that_answered_it() -> None:
    for first, second, expected in ((T + P, T + 8 * P, Datapoint(T, 5.0)), (T + 8 * P, T + P, None)):
        process = Process(Source(QUIET, now=T + 8 * P))
        process.publisher.add_results(*in_two_parts(first, second))
        assert process.gauge == expected


def test_resources_are_judged_by_the_clock_of_the_part_of_a_call_that_answered_them() -> None:
    class Split(Source):
        clocks = (0, 0)

        async def get_metric_data(
            self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
        ) -> MetricResults:
            memory, results = in_two_parts(*self.clocks)
            cpu = next(query for query in queries if query.metric == "cpu")
            by_query = {cpu: MetricResult("empty", start, end, {}), **results.by_query}
            return MetricResults(results.date, by_query, dict.fromkeys([cpu, *memory], self.clocks[1]))

    for clocks, expected in (((T + P, T + 8 * P), [5.0]), ((T + 8 * P, T + P), [])):
        source = Split(replace(QUIET, published={each: THREE[each] for each in SETS[:2]}), now=T + 8 * P)
        source.clocks = clocks
        process = Process(source)
        points = asyncio.run(process.archive.window(WORKER, None, T, T + P, P))
        assert [point.memory for point in points] == expected
