"""Poll CloudWatch on a schedule and decide the values of open samples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from exporter.core import logs
from exporter.core.budget import BudgetState
from exporter.core.clock import ServerClock
from exporter.core.errors import ExporterError, StoreError
from exporter.core.instances import unique
from exporter.core.model import METRICS, MetricQuery, PendingQuery
from exporter.core.periods import rfc3339
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.calls import CallRunner
from exporter.pipeline.cycle import Cycle, CycleStats
from exporter.pipeline.decided_values import ValueChange
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.listings import refresh_listings
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.pipeline.planning import MetricDataCall, is_due, live_queries, plan, plan_extra, revisit
from exporter.pipeline.publisher import Publisher
from exporter.pipeline.source_health import SourceHealth, unexpected
from exporter.pipeline.spending import Spending
from exporter.pipeline.transactions import (
    finalize_without_cloudwatch,
    record_absent,
    record_absent_unpolled,
)
from exporter.sources.cloudwatch.extra_series import ExtraSeries
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex

POLL_OFFSET_SECONDS = 180
"""Basic monitoring publishes 1 to 3 minutes after the period's end."""

_log = logs.get("collector")


class Poller:
    """The collection cycles: they query CloudWatch for the due workers within the budget, and finalize samples.

    Args:
        calls, series: make the calls, and list what to query; None where `cloudwatch.enabled` is false.
        clock: MongoDB's time.
        rules: the settings of the sample lifecycle.
        outbox: holds the open samples.
        publisher: shows the newest datapoints, and has the fleet to poll.
        health: records the result of each region.
        spending: limits what is queried.
        telemetry: shows counters and the outbox.
        on_ready: called when samples may be ready for the mirror.
        wall: UTC seconds of this host.
        extra: the series of `cloudwatch.extra`; None without any.
    """

    def __init__(
        self,
        calls: CallRunner | None,
        series: MemorySeriesIndex | None,
        clock: ServerClock,
        rules: Rules,
        outbox: OutboxThread,
        publisher: Publisher,
        health: SourceHealth,
        spending: Spending,
        telemetry: Telemetry,
        on_ready: Callable[[], object],
        wall: Callable[[], float],
        extra: ExtraSeries | None = None,
    ) -> None:
        self._extra = extra
        self._calls = calls
        self._index = series
        self._clock = clock
        self._rules = rules
        self._outbox = outbox
        self._publisher = publisher
        self._health = health
        self._spending = spending
        self._telemetry = telemetry
        self._on_ready = on_ready
        self._wall = wall
        self._mirrored_before = 0

    async def poll(self) -> None:
        """Run one collection cycle: query CloudWatch for the due workers, finalize samples, publish, and log the figures.

        Raises:
            StoreError: the outbox cannot be read or written. Failed calls are recorded, not raised.
        """
        began, stats = self._wall(), CycleStats()
        self._publisher.mark_cycle_began()
        try:
            if self._calls is None:
                stats.finalized, stats.dropped = await self._outbox(
                    finalize_without_cloudwatch, self._outbox.outbox, self._clock.now(), self._rules
                )
            else:
                await self._poll_cloudwatch(self._calls, stats)
        except ExporterError:
            raise
        except Exception as bug:
            if self._calls is not None:
                for region in {worker.region for worker in self._publisher.fleet.workers if worker.region}:
                    self._health.failed(unexpected("cloudwatch", bug, region), began)
            raise
        finally:
            self._telemetry.samples_dropped.inc(stats.dropped)
            self._count_changes(stats.changes)
            self._publisher.mark_polled()
            self._on_ready()
            await self._publisher.publish()
        await self._outbox.export_gauges(self._telemetry)
        self._log_cycle(stats, self._wall() - began)

    def _count_changes(self, changes: Sequence[ValueChange]) -> None:
        """Count the values that CloudWatch published or revised after they were decided, and log how many, with one of them."""
        counters = {"late": self._telemetry.samples_late, "revised": self._telemetry.samples_revised}
        for each in changes:
            counters[each.kind].labels(each.metric).inc()
        if changes:
            late, example = sum(each.kind == "late" for each in changes), changes[-1]
            _log.warning(
                "late or revised values; the history keeps what it has",
                late=late,
                revised=len(changes) - late,
                worker_id=example.worker_id,
                metric=example.metric,
                period=rfc3339(example.start),
            )

    def _log_cycle(self, stats: CycleStats, seconds: float) -> None:
        _log.info(
            "collection cycle finished",
            workers=stats.workers,
            calls=stats.calls,
            failed=stats.failed,
            datapoints=stats.datapoints,
            finalized=stats.finalized,
            dropped=stats.dropped,
            absent=stats.absent,
            mirrored=self._telemetry.mirrored - self._mirrored_before,
            waiting=self._outbox.outbox.counts()["observed"],
            took=f"{seconds:.1f}s",
            cost_usd=f"{self._telemetry.dollars:.4f}",
            budget=stats.budget,
        )
        self._mirrored_before = self._telemetry.mirrored

    async def _poll_cloudwatch(self, runner: CallRunner, stats: CycleStats) -> None:
        """Run the CloudWatch part of a cycle: due workers, listings, budget, plan, calls, absent samples."""
        now = self._clock.now()
        types = {worker.instance_id: worker.instance_type for worker in self._publisher.fleet.workers if worker.instance_id}
        due, live = await self._due(now, runner.last_polled(now))
        if self._assess_budget(live, types) == "polling_paused":
            due = []
        regions = sorted({pending.region for pending in due})
        cycle = Cycle(now, self._wall(), types, stats, {one.worker_id for one in live})
        await refresh_listings(self._series, self._extra, cycle, due, regions)
        self._publisher.locate()
        stats.budget = self._assess_budget(live, types)  # again: the listings tell which instances have a second metric
        affordable = self._affordable(due, live, cycle)
        stats.workers = len(affordable)
        calls = self._plan(affordable, cycle)
        further: list[MetricDataCall] = []
        if self._extra is not None:
            every = live_queries(self._publisher.fleet.workers, now, self._rules)
            further = plan_extra(every, affordable, partial(self._extra_queries, types), now, self._rules)
        self._series.forget_activity()
        if self._extra is not None:
            self._extra.forget_activity()
        # Saved before the calls are made: a process that is killed on the way does not spend it again after its restart.
        await self._spending.keep(sum(len(call.queries) for call in (*calls, *further)))
        await runner.run((*calls, *further), cycle)
        await self._spending.keep()
        self._spending.export(stats.budget)
        self._report_regions(cycle, regions)
        await self._record_absent(calls, affordable, cycle)
        runner.forget_before(now - self._rules.gap_fill_window - self._rules.period)

    # -- what to query

    @property
    def _series(self) -> MemorySeriesIndex:
        assert self._index is not None
        return self._index

    async def _due(self, now: int, polled: Mapping[str, int]) -> tuple[list[PendingQuery], list[PendingQuery]]:
        """Return what is due and its live part.

        The first: open samples, and a fresh gauge for every running worker, of the workers not polled within their interval.
        The second: the fresh gauges alone, of every running worker whether due or not.
        """
        pending: dict[tuple[str, str], PendingQuery] = {}
        try:
            fleet, queries = self._publisher.fleet, await self._outbox(self._outbox.outbox.pending_queries)
            # Samples of workers that another exporter polls leave the outbox soon.
            pending = {(one.worker_id, one.region): one for one in queries if not fleet.has_moved(one.worker_id)}
        except StoreError as error:  # the gauges go on
            _log.error("cannot read the outbox; only the gauges of running workers are polled", error=str(error))
        live = live_queries(self._publisher.fleet.workers, now, self._rules, self._publisher.shown)
        for fresh in live:
            key = fresh.worker_id, fresh.region
            older = pending.setdefault(key, fresh)
            if fresh.oldest < older.oldest or fresh.instances != older.instances:
                instances = unique(*older.instances, *fresh.instances)
                pending[key] = PendingQuery(*key, instances, min(older.oldest, fresh.oldest))
        running = {one.worker_id for one in live}
        due = [one for one in pending.values() if is_due(one.worker_id in running, polled.get(one.worker_id), now, self._rules)]
        return due, live

    def _assess_budget(self, live: Iterable[PendingQuery], types: Mapping[str, str | None]) -> BudgetState:
        """Return what the day's budget allows, given the price of one cycle for the running workers alone."""
        if not self._spending.limited:
            return "ok"
        return self._spending.assess(
            sum(
                len(self._series.queries(one.region, name, types.get(name)))
                + len(self._extra_queries(types, one.worker_id, one.region, name))
                for one in live
                for name in one.instances
            )
        )

    def _extra_queries(
        self, types: Mapping[str, str | None], worker_id: str, region: str, instance: str
    ) -> tuple[MetricQuery, ...]:
        """Return the queries of an instance for the gauges of `cloudwatch.extra`."""
        return () if self._extra is None else self._extra.queries(region, instance, types.get(instance))

    def _affordable(self, due: list[PendingQuery], live: Iterable[PendingQuery], cycle: Cycle) -> list[PendingQuery]:
        """Return the part of `due` that the budget allows."""
        if cycle.stats.budget == "ok":
            return due
        if cycle.stats.budget == "polling_paused":
            return []
        return _without_gap_filling(due, live, cycle.now - self._rules.absence_timeout)

    def _plan(self, affordable: Iterable[PendingQuery], cycle: Cycle) -> list[MetricDataCall]:
        """Return the calls of the cycle, newest windows first."""
        affordable, since = list(affordable), cycle.now - self._rules.absence_timeout
        # One result decides what is older than `absence_timeout`, so it must cover every series that may have had the value.
        oldest: dict[tuple[str, str], int] = {}
        for one in affordable:
            if one.oldest < since:
                for name in one.instances:
                    oldest[one.region, name] = min(one.oldest, oldest.get((one.region, name), one.oldest))

        def queries_of(worker_id: str, region: str, instance: str) -> tuple[MetricQuery, ...]:
            type_ = cycle.instance_types.get(instance)
            return self._series.queries(region, instance, type_, since=oldest.get((region, instance)))

        return plan(revisit(affordable, cycle.now, self._rules), queries_of, cycle.now, self._rules)

    # -- what it led to

    def _report_regions(self, cycle: Cycle, regions: Sequence[str]) -> None:
        for region in regions:
            if region in cycle.failures:
                self._health.failed(cycle.failures[region], cycle.began, cycle.ended.get(region))
            else:
                self._health.succeeded("cloudwatch", region, cycle.began, cycle.ended.get(region))
        self._health.forget_regions({worker.region for worker in self._publisher.fleet.workers}.union(regions))

    async def _record_absent(self, calls: Iterable[MetricDataCall], due: Iterable[PendingQuery], cycle: Cycle) -> None:
        """Finalize samples that CloudWatch has not decided within `gap_fill_window`, with the values that are known.

        Until MongoDB's clock was read, only the local one tells how old a sample is, which is not enough (rule 6). A sample
        that was not polled because of the budget gets one more day.
        """
        if not self._clock.synchronized:
            return
        now = min(cycle.now, self._clock.now())  # the cycle may have begun before MongoDB's clock was read
        if cycle.stats.budget == "ok":
            oldest = now - self._rules.gap_fill_window - self._rules.period
            overdue = {one.worker_id for one in due if one.oldest < oldest}
            polled = {worker_id for call in calls for worker_id in call.queries_by_worker if worker_id in overdue}
            if not polled:  # nearly always; the search would go through every open sample
                return
            samples, dropped = await self._outbox(record_absent, self._outbox.outbox, polled, now, self._rules)
        else:
            samples, dropped = await self._outbox(record_absent_unpolled, self._outbox.outbox, now, self._rules)
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
        one._replace(oldest=max(since, min(one.oldest, oldest[key])))
        for one in live
        if (key := (one.worker_id, one.region)) in oldest
    ]
