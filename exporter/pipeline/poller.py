"""Poll CloudWatch on a schedule and decide the values of open samples."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from exporter.core import logs
from exporter.core.budget import BudgetState
from exporter.core.clock import ServerClock
from exporter.core.errors import SourceError, StoreError
from exporter.core.model import METRICS, Fleet, MetricQuery, MetricResults, PendingQuery
from exporter.core.periods import align
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.lifecycle import FirstSeenValues, Rules
from exporter.pipeline.outbox import OutboxThread
from exporter.pipeline.planning import MetricDataCall, is_due, live_queries, plan
from exporter.pipeline.publisher import Publisher
from exporter.pipeline.source_health import SourceHealth
from exporter.pipeline.spending import Spending
from exporter.pipeline.transactions import (
    apply_results,
    finalize_without_cloudwatch,
    record_absent,
    record_absent_unpolled,
)
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.sources.protocols import MetricSource

POLL_OFFSET_SECONDS = 180
"""Basic monitoring publishes 1 to 3 minutes after the period's end."""
MAX_CONCURRENT_CALLS = 6
"""Calls under way at once. Their latency hardly counts, since 40 calls query 10,000 workers; but results that arrive together
are parsed together, and each thread that does so delays scrapes."""

_log = logs.get("collector")


class CurrentFleet(Protocol):
    """The fleet as last observed."""

    @property
    def fleet(self) -> Fleet:
        """The last complete read."""


@dataclass(slots=True)
class CycleStats:
    """The figures of one collection cycle, for its log line."""

    workers: int = 0
    calls: int = 0
    datapoints: int = 0
    finalized: int = 0
    dropped: int = 0
    absent: int = 0
    failed: int = 0
    budget: BudgetState = "ok"


@dataclass(slots=True)
class _Cycle:
    """One collection cycle under way: what it began with, and the result of each region."""

    now: int
    """MongoDB's time in UTC seconds."""
    began: float
    """UTC seconds of this host."""
    instance_types: Mapping[str, str | None]
    stats: CycleStats
    failures: dict[str, SourceError] = field(default_factory=dict)
    """The last error by region."""
    ended: dict[str, float] = field(default_factory=dict)
    """When the last call of a region ended, in UTC seconds of this host."""


class Poller:
    """The loop body that queries CloudWatch: due workers, newest windows first; it finalizes what the results decide.

    Args:
        source, series: CloudWatch and its listings; None where `cloudwatch.enabled` is false.
        current: the fleet to poll.
        clock: MongoDB's time.
        rules: the settings of the sample lifecycle.
        outbox: holds the open samples.
        publisher: shows the newest datapoints.
        health: records the result of each region.
        spending: limits what is queried.
        telemetry: shows counters and the outbox.
        on_ready: called when samples may be ready for the mirror.
        wall: UTC seconds of this host.
    """

    def __init__(
        self,
        source: MetricSource | None,
        series: MemorySeriesIndex | None,
        current: CurrentFleet,
        clock: ServerClock,
        rules: Rules,
        outbox: OutboxThread,
        publisher: Publisher,
        health: SourceHealth,
        spending: Spending,
        telemetry: Telemetry,
        *,
        on_ready: Callable[[], object],
        wall: Callable[[], float],
    ) -> None:
        self._source = source
        self._index = series
        self._current = current
        self._clock = clock
        self._rules = rules
        self._outbox = outbox
        self._publisher = publisher
        self._health = health
        self._spending = spending
        self._telemetry = telemetry
        self._on_ready = on_ready
        self._wall = wall
        self._polled: dict[str, int] = {}
        """When all queries of a worker last had complete results, by worker id, in MongoDB's time."""
        self._first_seen: FirstSeenValues = {}
        self._mirrored_before = 0

    async def poll(self) -> None:
        """Run one collection cycle: query CloudWatch for the due workers, finalize samples, publish, and log the figures.

        Raises:
            StoreError: the outbox cannot be read or written. Failed calls are recorded, not raised.
        """
        began, stats = self._wall(), CycleStats()
        try:
            if self._source is None:
                stats.finalized, stats.dropped = await self._outbox(
                    finalize_without_cloudwatch, self._outbox.outbox, self._clock.now(), self._rules
                )
            else:
                await self._poll_cloudwatch(self._source, stats)
        finally:
            self._telemetry.samples_dropped.inc(stats.dropped)
            self._publisher.mark_polled()
            self._on_ready()
            await self._publisher.publish()
        await self._outbox.export_gauges(self._telemetry)
        mirrored, waiting = self._telemetry.mirrored, self._outbox.outbox.counts()["observed"]
        _log_cycle(stats, self._wall() - began, mirrored - self._mirrored_before, waiting, self._telemetry.dollars)
        self._mirrored_before = mirrored

    async def _poll_cloudwatch(self, source: MetricSource, stats: CycleStats) -> None:
        """Run the CloudWatch part of a cycle: due workers, listings, budget, plan, calls, absent samples."""
        now = self._clock.now()
        types = {worker.instance_id: worker.instance_type for worker in self._current.fleet.workers if worker.instance_id}
        due, live = await self._due(now)
        if self._assess_budget(live, types) == "polling_paused":
            due = []
        regions = sorted({pending.region for pending in due})
        cycle = _Cycle(now, self._wall(), types, stats)
        await _refresh_listings(self._series, due, regions, cycle)
        stats.budget = self._assess_budget(live, types)  # again: the listings tell which instances have a second metric
        affordable = self._affordable(due, live, cycle)
        stats.workers = len(affordable)
        calls = self._plan(affordable, cycle)
        # Saved before the calls are made: a process that is killed on the way does not spend it again after its restart.
        await self._spending.keep(sum(len(call.queries) for call in calls))
        await self._run_calls(source, calls, cycle)
        await self._spending.keep()
        self._spending.export(stats.budget)
        _report_regions(self._health, self._current.fleet, regions, cycle)
        await self._record_absent(calls, cycle)
        horizon = now - self._rules.gap_fill_window - self._rules.period
        self._first_seen = {key: seen for key, seen in self._first_seen.items() if key[1] > horizon}

    # -- what to query

    @property
    def _series(self) -> MemorySeriesIndex:
        assert self._index is not None
        return self._index

    async def _due(self, now: int) -> tuple[list[PendingQuery], list[PendingQuery]]:
        """Return what is due and its live part.

        The first: open samples, and a fresh gauge for every running worker, of the workers not polled within their interval.
        The second: the fresh gauges alone, of every running worker whether due or not.
        """
        pending = {(one.worker_id, one.region): one for one in await self._outbox(self._outbox.outbox.pending_queries)}
        live = live_queries(self._current.fleet.workers, now, self._rules)
        for fresh in live:
            key = fresh.worker_id, fresh.region
            older = pending.get(key, fresh)
            instances = tuple(dict.fromkeys((*older.instances, *fresh.instances)))
            pending[key] = replace(older, instances=instances, oldest=min(older.oldest, fresh.oldest))
        self._polled = {id_: at for id_, at in self._polled.items() if at <= now}  # after a clock went back, poll again
        running = {one.worker_id for one in live}
        due = [
            one
            for one in pending.values()
            if is_due(one.worker_id in running, self._polled.get(one.worker_id), now, self._rules)
        ]
        return due, live

    def _assess_budget(self, live: Iterable[PendingQuery], types: Mapping[str, str | None]) -> BudgetState:
        """Return what the day's budget allows, given the price of one cycle for the running workers alone."""
        if not self._spending.limited:
            return "ok"
        return self._spending.assess(
            sum(len(self._series.queries(one.region, name, types.get(name))) for one in live for name in one.instances)
        )

    def _affordable(self, due: list[PendingQuery], live: Iterable[PendingQuery], cycle: _Cycle) -> list[PendingQuery]:
        """Return the part of `due` that the budget allows."""
        if cycle.stats.budget == "ok":
            return due
        if cycle.stats.budget == "polling_paused":
            return []
        return _without_gap_filling(due, live, cycle.now - self._rules.absence_timeout)

    def _plan(self, affordable: Iterable[PendingQuery], cycle: _Cycle) -> list[MetricDataCall]:
        """Return the calls of the cycle, newest windows first."""
        affordable, since = list(affordable), cycle.now - self._rules.absence_timeout
        # One result decides what is older than `absence_timeout`, so it must cover every series that may have had the value.
        thorough = {one.worker_id for one in affordable if one.oldest < since}

        def queries_of(worker_id: str, region: str, instance: str) -> tuple[MetricQuery, ...]:
            return self._series.queries(region, instance, cycle.instance_types.get(instance), thorough=worker_id in thorough)

        return plan(affordable, queries_of, cycle.now, self._rules)

    # -- querying

    async def _run_calls(self, source: MetricSource, calls: Iterable[MetricDataCall], cycle: _Cycle) -> None:
        """Make all calls, some at once; record the error and the end of each in the cycle."""
        slots = asyncio.Semaphore(MAX_CONCURRENT_CALLS)

        async def run(call: MetricDataCall) -> None:
            async with slots:
                try:
                    error = await self._run_call(source, call, cycle.stats)
                except Exception as bug:  # noqa: BLE001  # a bug in one call must not end the others; the log has its traceback
                    _log.exception("CloudWatch call failed with an unexpected error; please report it", region=call.region)
                    error = SourceError("cloudwatch", type(bug).__name__, f"an unexpected error: {bug!r}", region=call.region)
            cycle.ended[call.region] = self._wall()
            if error:
                cycle.failures[call.region] = error
                cycle.stats.failed += 1
            self._publisher.mark_polled()
            await self._publisher.publish_progress()

        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(run(call))

    async def _run_call(self, source: MetricSource, call: MetricDataCall, stats: CycleStats) -> SourceError | None:
        """Make one call, keep its newest datapoints and finalize samples; return the error of a failed or partial one."""
        now = self._clock.now()
        try:
            results = await source.get_metric_data(call.region, call.queries, call.start, call.end, self._rules.period)
        except SourceError as error:
            return error
        stats.calls += 1
        for query, result in results.by_query.items():
            self._publisher.add_result(query, result)
            stats.datapoints += len(result.values)
        _mark_silent(self._series, call.region, results, self._rules.period)
        try:
            await self._apply(call, results, stats)
        except StoreError as error:  # the samples stay open and the workers due; the gauges go on
            _log.error("cannot save CloudWatch results; they are queried again", error=str(error))
            stats.failed += 1
            return None
        complete = {query for query, result in results.by_query.items() if result.complete}
        for worker_id, queries in call.queries_by_worker.items():
            if complete.issuperset(queries):
                self._polled[worker_id] = now
        queried = call.queries
        incomplete = sum(query not in complete for query in queried)
        if incomplete:
            return SourceError(
                "cloudwatch",
                "PartialData",
                f"CloudWatch returned incomplete results for {incomplete} of {len(queried)} queries; "
                "they are repeated in the next collection cycle",
                region=call.region,
            )
        return None

    async def _apply(self, call: MetricDataCall, results: MetricResults, stats: CycleStats) -> None:
        listings = self._series.listings(call.region)
        finalized, dropped = await self._outbox(
            apply_results, self._outbox.outbox, call, results, listings, self._first_seen, self._rules
        )
        stats.finalized += finalized
        stats.dropped += dropped
        if finalized:
            self._on_ready()

    # -- what it led to

    async def _record_absent(self, calls: Iterable[MetricDataCall], cycle: _Cycle) -> None:
        """Finalize samples that CloudWatch has not decided within `gap_fill_window`, with the values that are known.

        Until MongoDB's clock was read, only the local one tells how old a sample is, which is not enough (rule 6). A sample
        that was not polled because of the budget gets one more day.
        """
        if not self._clock.synchronized:
            return
        polled = {worker_id for call in calls for worker_id in call.queries_by_worker} if cycle.stats.budget == "ok" else set()
        samples, dropped = await self._outbox(record_absent, self._outbox.outbox, polled, cycle.now, self._rules)
        if cycle.stats.budget != "ok":
            unpolled, empty = await self._outbox(record_absent_unpolled, self._outbox.outbox, cycle.now, self._rules)
            samples, dropped = samples + unpolled, dropped + empty
        cycle.stats.absent = len(samples)
        cycle.stats.dropped += dropped
        for sample in samples:
            for metric in METRICS:
                if getattr(sample, metric) is None:
                    self._telemetry.samples_unavailable.labels(metric).inc()


def _without_gap_filling(due: Iterable[PendingQuery], live: Iterable[PendingQuery], since: int) -> list[PendingQuery]:
    """Return the current instances of the running workers among `due`, from `since` (UTC seconds) on at the earliest.

    A longer window of the same series costs nothing, but before `since` more series would have to be queried, and those cost.
    """
    oldest = {(one.worker_id, one.region): one.oldest for one in due}
    return [
        replace(one, oldest=max(since, min(one.oldest, oldest[key])))
        for one in live
        if (key := (one.worker_id, one.region)) in oldest
    ]


async def _refresh_listings(
    series: MemorySeriesIndex, due: Sequence[PendingQuery], regions: Iterable[str], cycle: _Cycle
) -> None:
    """List the memory series of every region; where that fails the old listing stays in use and the error is recorded."""

    async def refresh(region: str) -> None:
        try:
            recent = await series.listing(region, recent=True)
            if any(
                one.oldest < recent.since and not set(one.instances) <= set(recent.series)
                for one in due
                if one.region == region
            ):
                await series.listing(region, recent=False)
        except SourceError as error:
            cycle.failures[region] = error

    await asyncio.gather(*map(refresh, regions))


def _mark_silent(series: MemorySeriesIndex, region: str, results: MetricResults, period: int) -> None:
    """Prefer other memory series over those that had no datapoint in the last 3 periods."""
    recent = align(results.date, period) - 4 * period  # and one that may not be published yet
    for query, result in results.by_query.items():
        covers_recent = query.metric == "memory" and result.complete and result.start <= recent
        if covers_recent and max(result.values, default=0) < recent:
            series.mark_silent(region, query.dimensions)


def _report_regions(health: SourceHealth, fleet: Fleet, regions: Sequence[str], cycle: _Cycle) -> None:
    """Record the result of each polled region, and forget regions without workers."""
    for region in regions:
        if region in cycle.failures:
            health.failed(cycle.failures[region], cycle.began, cycle.ended.get(region))
        else:
            health.succeeded("cloudwatch", region, cycle.began, cycle.ended.get(region))
    health.forget_regions({worker.region for worker in fleet.workers}.union(regions))


def _log_cycle(stats: CycleStats, seconds: float, mirrored: int, waiting: int, dollars: float) -> None:
    _log.info(
        "collection cycle finished",
        workers=stats.workers,
        calls=stats.calls,
        failed=stats.failed,
        datapoints=stats.datapoints,
        finalized=stats.finalized,
        dropped=stats.dropped,
        absent=stats.absent,
        mirrored=mirrored,
        waiting=waiting,
        took=f"{seconds:.1f}s",
        cost_usd=f"{dollars:.4f}",
        budget=stats.budget,
    )
