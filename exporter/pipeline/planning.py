"""Decide which workers to query, and pack their queries into the fewest GetMetricData calls. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from exporter.core.model import (
    IDLE_STATUSES,
    MetricQuery,
    PendingQuery,
    Worker,
)
from exporter.core.periods import align
from exporter.pipeline.lifecycle import Rules
from exporter.sources.cloudwatch.queries import MAX_DATAPOINTS, MAX_QUERIES

DUE_TOLERANCE_SECONDS = 30
"""A worker is due this much before its interval is over: collection cycles are not exact to the second."""


@dataclass(frozen=True, slots=True)
class MetricDataCall:
    """One GetMetricData call for the window [start, end): the queries of each worker, whole."""

    region: str
    start: int
    end: int
    queries_by_worker: Mapping[str, tuple[MetricQuery, ...]]

    @property
    def queries(self) -> tuple[MetricQuery, ...]:
        """Every query once, even if two workers share an instance."""
        return tuple(dict.fromkeys(query for queries in self.queries_by_worker.values() for query in queries))


def live_queries(workers: Iterable[Worker], now: int, rules: Rules) -> list[PendingQuery]:
    """Return the queries for fresh gauges: of every worker that may be running, far enough back for `max_age`.

    Args:
        workers: the fleet.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.
    """
    fresh = align(now - rules.max_age, rules.period) - rules.period
    return [
        PendingQuery(worker.id, worker.region, (instance,), fresh)
        for worker in workers
        if (instance := worker.cloudwatch_instance) and worker.status not in IDLE_STATUSES
    ]


QueriesOf = Callable[[str, str, str], tuple[MetricQuery, ...]]
"""(worker id, region, instance id) → the queries of that instance, CPU first."""


def is_due(running: bool, polled: int | None, now: int, rules: Rules) -> bool:
    """Return whether a worker is to be polled (rule 11).

    Args:
        running: whether it may be running; else it is polled less often.
        polled: when it was last polled successfully, in UTC seconds; None if never.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.
    """
    every = max(rules.interval, rules.period, 0 if running else rules.absence_timeout // 4)
    return polled is None or now - polled >= every - DUE_TOLERANCE_SECONDS


def plan(pending: Iterable[PendingQuery], queries_of: QueriesOf, now: int, rules: Rules) -> list[MetricDataCall]:
    """Pack pending queries into the fewest calls, newest windows first, each worker whole (rules 7 and 11).

    Args:
        pending: what to query.
        queries_of: returns the queries of an instance.
        now: MongoDB's time in UTC seconds; windows end with the last closed period.
        rules: the settings of the sample lifecycle.
    """
    until = align(now, rules.period)
    calls: list[MetricDataCall] = []
    queries_by_worker: dict[str, tuple[MetricQuery, ...]] = {}
    region, start, size = "", 0, 0

    def close() -> None:
        if queries_by_worker:
            calls.append(MetricDataCall(region, start, until, dict(queries_by_worker)))
            queries_by_worker.clear()

    for one in sorted(pending, key=lambda one: (one.region, -one.oldest, one.worker_id)):
        oldest = align(one.oldest, rules.period)
        queries = tuple(q for name in one.instances for q in queries_of(one.worker_id, one.region, name))[:MAX_QUERIES]
        if not queries or oldest >= until:
            continue
        for first, last in _windows(oldest, until, len(queries), rules.period):
            if last < until:  # too long for one call: the older parts become calls of their own
                calls.append(MetricDataCall(one.region, first, last, {one.worker_id: queries}))
                continue
            earliest, total = min(start, first) if queries_by_worker else first, size + len(queries)
            points = total * (until - earliest) // rules.period
            if queries_by_worker and (one.region != region or total > MAX_QUERIES or points > MAX_DATAPOINTS):
                close()
            if not queries_by_worker:
                region, start, size = one.region, first, 0
            queries_by_worker[one.worker_id] = queries
            start, size = min(start, first), size + len(queries)
    close()
    return sorted(calls, key=lambda call: -call.start)


def _windows(start: int, end: int, queries: int, period: int) -> Iterator[tuple[int, int]]:
    """Cut [start, end) into windows whose datapoints fit into one call."""
    step = max(1, MAX_DATAPOINTS // queries) * period
    while end - start > step:
        yield start, start + step
        start += step
    yield start, end
