"""Decide which workers to query, and pack their queries into the fewest GetMetricData calls. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from zlib import crc32

from exporter.core.model import (
    IDLE_STATUSES,
    METRICS,
    Datapoint,
    MetricQuery,
    PendingQuery,
    Worker,
)
from exporter.core.periods import HOUR, align
from exporter.pipeline.lifecycle import ON_TIME_SECONDS, Rules
from exporter.sources.cloudwatch.memory_series import SILENT_PERIODS
from exporter.sources.cloudwatch.queries import MAX_DATAPOINTS, MAX_QUERIES

DUE_TOLERANCE_SECONDS = 30
"""A worker is due this much before its interval is over: collection cycles are not exact to the second."""
REVISIT_SECONDS = HOUR
"""How often the query of a worker reaches back over the whole `revisit_window`."""
REVISIT_AFTER_ABSENCE_SECONDS = 3 * HOUR
"""How long after `absence_timeout` a late value is still looked for."""


@dataclass(frozen=True)
class MetricDataCall:
    """One GetMetricData call for the window [start, end): the queries of each worker, whole."""

    region: str
    start: int
    end: int
    queries_by_worker: Mapping[str, tuple[MetricQuery, ...]]
    is_extra: bool = False
    """Whether it queries the gauges of `cloudwatch.extra`, which decide no sample."""

    @cached_property
    def queries(self) -> tuple[MetricQuery, ...]:
        """Every query once, even if two workers share an instance."""
        return tuple(dict.fromkeys(chain.from_iterable(self.queries_by_worker.values())))


def live_queries(
    workers: Iterable[Worker], now: int, rules: Rules, shown: Sequence[Mapping[str, Datapoint]] = ()
) -> list[PendingQuery]:
    """Return the queries for fresh gauges: of every worker that may be running, far enough back for `max_age`.

    Where datapoints are shown already, only newer ones count: from a few periods before the oldest of these on, since a metric
    that is published late stays late.

    Args:
        workers: the fleet.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.
        shown: for each metric, instance → its newest datapoint.
    """
    fresh = align(now - rules.max_age, rules.period) - rules.period
    latest = align(now, rules.period) - (SILENT_PERIODS + 1) * rules.period

    def oldest(instance: str) -> int:
        found = [point.timestamp for points in shown if (point := points.get(instance))]
        return max(fresh, min(latest, min(found) - SILENT_PERIODS * rules.period)) if found else fresh

    return [
        PendingQuery(worker.id, worker.region, (instance,), oldest(instance) if fresh < latest else fresh)
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


def compared_before(date: int, rules: Rules) -> int:
    """Return the UTC second from which on a running worker's periods need not be compared with an answer yet.

    Their samples are too young to be final, and the next cycle comes early enough to see their values on time (rule 7).

    Args:
        date: CloudWatch's clock at the answer, in UTC seconds.
        rules: the settings of the sample lifecycle.
    """
    next_cycle = date + max(rules.interval, rules.period) + DUE_TOLERANCE_SECONDS
    return next_cycle - ON_TIME_SECONDS - rules.settle_delay - rules.period


def revisit_window(rules: Rules) -> int:
    """Return how many seconds back late and revised values are looked for; 500 such queries fit into one call."""
    wanted = rules.absence_timeout + REVISIT_AFTER_ABSENCE_SECONDS
    return min(align(wanted, rules.period), MAX_DATAPOINTS // MAX_QUERIES * rules.period)


def revisit(pending: Iterable[PendingQuery], now: int, rules: Rules) -> list[PendingQuery]:
    """Return the queries, those of the workers whose turn it is over at least `revisit_window`.

    CloudWatch bills series, not datapoints, so a longer window costs nothing. It takes CPU to parse, and all queries of a call
    have the window of the longest: so workers take turns in groups that fill a call, and most cycles have short windows alone.

    Args:
        pending: what to query.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.
    """
    pending = tuple(pending)
    every = max(rules.interval, rules.period)
    turns = max(1, REVISIT_SECONDS // every)
    turn, oldest = now // every % turns, align(now, rules.period) - revisit_window(rules)
    workers = Counter(one.region for one in pending)
    groups = {region: _groups(len(METRICS) * count, turns) for region, count in workers.items()}
    return [
        one._replace(oldest=min(one.oldest, oldest)) if _turn(one, groups[one.region], turns) == turn else one
        for one in pending
    ]


def _groups(queries: int, turns: int) -> int:
    """Return into how many groups the workers of a region are divided; powers of two, so that it seldom changes."""
    return int(min(turns, 2 ** max(0, (queries // MAX_QUERIES).bit_length() - 1)))


def _turn(one: PendingQuery, groups: int, turns: int) -> int:
    """Return the turn of a worker; other regions begin at other turns."""
    return (crc32(one.worker_id.encode()) % groups * turns // groups + crc32(one.region.encode())) % turns


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
        found = [queries_of(one.worker_id, one.region, name) for name in one.instances]
        queries = (found[0] if len(found) == 1 else tuple(chain.from_iterable(found)))[:MAX_QUERIES]
        if not queries or oldest >= until:
            continue
        if len(queries) > len(METRICS) * len(one.instances):  # the results must show which memory series are silent
            oldest -= SILENT_PERIODS * rules.period
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


def plan_extra(
    live: Iterable[PendingQuery], polled: Iterable[PendingQuery], queries_of: QueriesOf, now: int, rules: Rules
) -> list[MetricDataCall]:
    """Return the calls for the gauges of `cloudwatch.extra`, of the running workers that the cycle polls.

    They are calls of their own, so that no failure or lie about such a gauge delays a sample; AWS bills metrics, not calls.

    Args:
        live: the queries for fresh gauges of every running worker.
        polled: what the cycle queries.
        queries_of: returns the queries of an instance for these gauges.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.
    """
    due = {(one.worker_id, one.region) for one in polled}
    # The results must show which series are silent.
    pending = [
        one._replace(oldest=one.oldest - SILENT_PERIODS * rules.period) for one in live if (one.worker_id, one.region) in due
    ]
    return [replace(call, is_extra=True) for call in plan(pending, queries_of, now, rules)]


def _windows(start: int, end: int, queries: int, period: int) -> Iterator[tuple[int, int]]:
    """Cut [start, end) into windows whose datapoints fit into one call."""
    step = max(1, MAX_DATAPOINTS // queries) * period
    while end - start > step:
        yield start, start + step
        start += step
    yield start, end
