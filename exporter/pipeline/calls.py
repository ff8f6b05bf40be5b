"""Make the GetMetricData calls of a collection cycle: keep the newest datapoints and finalize samples."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext

from exporter.core import logs
from exporter.core.clock import ServerClock
from exporter.core.cloudwatch_snapshot import CloudWatchSnapshot
from exporter.core.errors import SourceError, StoreError
from exporter.core.model import MetricResults
from exporter.pipeline.cycle import Cycle
from exporter.pipeline.decided_values import DecidedValues
from exporter.pipeline.gap_filling import Leadership
from exporter.pipeline.lifecycle import FirstSeenValues, Rules
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.pipeline.planning import MetricDataCall, revisit_window
from exporter.pipeline.publisher import Publisher
from exporter.pipeline.source_health import unexpected
from exporter.pipeline.standby import note_points, note_values, standby_memory
from exporter.pipeline.transactions import apply_results
from exporter.sources.cloudwatch.extra_series import ExtraSeries
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.sources.protocols import MetricSource

MAX_CONCURRENT_CALLS = 6
"""Calls under way at once. Their latency hardly counts, since 40 calls query 10,000 workers; but results that arrive together
are parsed together, and each thread that does so delays scrapes."""
LONG_CALL_DATAPOINTS, MAX_CONCURRENT_LONG_CALLS = 25_000, 2
"""Fewer calls for so many datapoints are under way at once: each takes up to 15 MB while it is parsed."""

_log = logs.get("collector")


class CallRunner:
    """Makes the calls of a cycle and applies the results to the outbox and the publisher.

    Args:
        source: CloudWatch.
        series: the listings the queries were made from.
        clock: MongoDB's time.
        rules: the settings of the sample lifecycle.
        outbox: holds the open samples.
        publisher: shows the newest datapoints.
        lease: tells whether another process leads, so that its open samples may become this one's; None without a history.
        wall: UTC seconds of this host.
        extra: the series of `cloudwatch.extra`; None without any.
    """

    def __init__(
        self,
        source: MetricSource,
        series: MemorySeriesIndex,
        clock: ServerClock,
        rules: Rules,
        outbox: OutboxThread,
        publisher: Publisher,
        lease: Leadership | None,
        wall: Callable[[], float],
        extra: ExtraSeries | None = None,
    ) -> None:
        self._extra = extra
        self._source = source
        self._series = series
        self._clock = clock
        self._rules = rules
        self._outbox = outbox
        self._publisher = publisher
        self._lease = lease
        self._wall = wall
        self._polled: dict[str, int] = {}
        self._first_seen: FirstSeenValues = {}
        self._decided = DecidedValues(rules.period, revisit_window(rules))

    @property
    def _stands_by(self) -> bool:
        return self._lease is not None and self._lease.held_elsewhere

    def last_polled(self, now: int) -> Mapping[str, int]:
        """Return when all queries of a worker last had complete results, by worker id, in MongoDB's time.

        Times after `now` are dropped: if the clock went back, those workers are polled again.
        """
        self._polled = {worker_id: at for worker_id, at in self._polled.items() if at <= now}
        return self._polled

    def forget_before(self, start: int) -> None:
        """Forget the values of periods up to `start` (UTC seconds), which are no longer open."""
        oldest = self._clock.now() - standby_memory(self._rules) if self._stands_by else start
        for key in [key for key in self._first_seen if key[1] <= oldest]:
            del self._first_seen[key]
        self._decided.forget_before(start)

    def adopt(self, snapshot: CloudWatchSnapshot) -> None:
        """Show what the leader has polled as if this process had, and note it for samples that may become this one's."""
        for instance, account in snapshot.accounts.items():
            self._series.suggest_account(instance, account)
        self._publisher.locate()
        self._publisher.add_points(snapshot.points)
        note_points(self._publisher.fleet.workers, snapshot.points, snapshot.at, self._first_seen, self._rules)
        self.forget_before(snapshot.at - self._rules.gap_fill_window - self._rules.period)

    async def run(self, calls: Iterable[MetricDataCall], cycle: Cycle) -> None:
        """Make all calls, some at once; record the error and the end of each in the cycle."""
        slots, long_slots = asyncio.Semaphore(MAX_CONCURRENT_CALLS), asyncio.Semaphore(MAX_CONCURRENT_LONG_CALLS)

        async def run_one(call: MetricDataCall) -> None:
            is_long = len(call.queries) * (call.end - call.start) > LONG_CALL_DATAPOINTS * self._rules.period
            async with long_slots if is_long else nullcontext(), slots:
                try:
                    error = await self._run_call(call, cycle)
                except Exception as bug:  # noqa: BLE001  # a bug in one call must not end the others; the log has its traceback
                    _log.exception("CloudWatch call failed with an unexpected error; please report it", region=call.region)
                    error = unexpected("cloudwatch", bug, call.region)
            cycle.ended[call.region] = self._wall()
            if error:
                cycle.failures[call.region] = error
                cycle.stats.failed += 1
            self._publisher.mark_polled()
            await self._publisher.publish_progress()

        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(run_one(call))

    async def _run_call(self, call: MetricDataCall, cycle: Cycle) -> SourceError | None:
        """Make one call, keep its newest datapoints and finalize samples; return the error of a failed or partial one."""
        now, queried, stats = self._clock.now(), call.queries, cycle.stats
        try:
            results = await self._source.get_metric_data(call.region, queried, call.start, call.end, self._rules.period)
        except SourceError as error:
            return error
        stats.calls += 1
        stats.datapoints += sum(len(result.values) for result in results.by_query.values())
        self._publisher.add_results(queried, results)
        if call.is_extra:
            if self._extra is not None:
                self._extra.note_activity(call.region, results, self._rules.period)
            return _incomplete(call, results)
        self._series.note_activity(call.region, results, self._rules.period)
        try:
            await self._apply(call, results, cycle)
        except StoreError as error:  # the samples stay open and the workers due; the gauges go on
            _log.error("cannot save CloudWatch results; they are queried again", error=str(error))
            stats.failed += 1
            return None
        if self._stands_by:
            for worker_id, queries in call.queries_by_worker.items():
                note_values(worker_id, queries, results, self._first_seen, self._rules)
        missing = {query for query, result in results.by_query.items() if not result.complete}
        for worker_id, queries in call.queries_by_worker.items():
            if not missing or missing.isdisjoint(queries):
                self._polled[worker_id] = now
        return _incomplete(call, results)

    async def _apply(self, call: MetricDataCall, results: MetricResults, cycle: Cycle) -> None:
        listings = self._series.listings(call.region)
        finalized, dropped, changes = await self._outbox(
            apply_results,
            *(self._outbox.outbox, call, results, listings, self._first_seen, self._decided, self._rules, cycle.running),
        )
        cycle.stats.finalized += finalized
        cycle.stats.dropped += dropped
        cycle.stats.changes += changes


def _incomplete(call: MetricDataCall, results: MetricResults) -> SourceError | None:
    """Return the error of a call of which some results are not complete: that of an account, or of CloudWatch.

    An instance whose account is not known was not queried: the error is that of ListMetrics, which is recorded already.
    """
    if results.failures:
        return results.failures[0]
    incomplete = sum(not result.complete and query.account is not None for query, result in results.by_query.items())
    if not incomplete:
        return None
    return SourceError(
        "cloudwatch",
        "PartialData",
        f"CloudWatch returned incomplete results for {incomplete} of {len(call.queries)} queries; "
        "they are repeated in the next collection cycle",
        region=call.region,
    )
