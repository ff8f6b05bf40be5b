"""Decide which workers to query, and pack their queries into the fewest GetMetricData calls. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

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
"""A worker asked this much less than its interval ago is due all the same, for the same reason."""


@dataclass(frozen=True, slots=True)
class MetricDataCall:
    """One GetMetricData call for the window [start, end): the queries of each worker, whole."""

    region: str
    start: int
    end: int
    queries_by_worker: Mapping[str, tuple[MetricQuery, ...]]

    @property
    def queries(self) -> tuple[MetricQuery, ...]:
        """Every query once, though two workers may share an instance."""
        return tuple(dict.fromkeys(query for queries in self.queries_by_worker.values() for query in queries))

    def halves(self) -> tuple["MetricDataCall", "MetricDataCall"]:
        """Split between workers, to find the one that CloudWatch rejects (rule 13)."""
        workers = list(self.queries_by_worker)
        middle = len(workers) // 2
        first, second = ({w: self.queries_by_worker[w] for w in part} for part in (workers[:middle], workers[middle:]))
        return replace(self, queries_by_worker=first), replace(self, queries_by_worker=second)


def live_queries(workers: Iterable[Worker], now: int, rules: Rules) -> list[PendingQuery]:
    """A fresh gauge for every worker that may be running: its instance, far enough back for `max_age`."""
    fresh = align(now - rules.max_age, rules.period) - rules.period
    return [
        PendingQuery(worker.id, worker.region, (worker.instance_id,), fresh)
        for worker in workers
        if worker.instance_id and worker.status not in IDLE_STATUSES
    ]


QueriesOf = Callable[[str, str, str], tuple[MetricQuery, ...]]
"""(worker id, region, instance id) → the queries of that instance, cpu first."""


def is_due(running: bool, asked: int | None, now: int, rules: Rules) -> bool:
    """Whether a worker may be asked again (rule 11); `asked` is when it last was, successfully."""
    every = max(rules.interval, rules.period, 0 if running else rules.absence_timeout // 4)
    return asked is None or now - asked >= every - DUE_TOLERANCE_SECONDS


def plan(needs: Iterable[PendingQuery], queries_of: QueriesOf, now: int, rules: Rules) -> list[MetricDataCall]:
    """Pack the needs into the fewest calls, newest windows first, each worker whole (rules 7 and 11)."""
    until = align(now, rules.period)
    batches: list[MetricDataCall] = []
    queries_by_worker: dict[str, tuple[MetricQuery, ...]] = {}
    region, start, size = "", 0, 0

    def close() -> None:
        if queries_by_worker:
            batches.append(MetricDataCall(region, start, until, dict(queries_by_worker)))
            queries_by_worker.clear()

    for need in sorted(needs, key=lambda need: (need.region, -need.oldest, need.worker_id)):
        oldest = align(need.oldest, rules.period)
        queries = tuple(q for name in need.instances for q in queries_of(need.worker_id, need.region, name))[:MAX_QUERIES]
        if not queries or oldest >= until:
            continue
        for first, last in _windows(oldest, until, len(queries), rules.period):
            if last < until:  # more than one call may answer: ask for the older parts by themselves
                batches.append(MetricDataCall(need.region, first, last, {need.worker_id: queries}))
                continue
            earliest, total = min(start, first) if queries_by_worker else first, size + len(queries)
            points = total * (until - earliest) // rules.period
            if queries_by_worker and (need.region != region or total > MAX_QUERIES or points > MAX_DATAPOINTS):
                close()
            if not queries_by_worker:
                region, start, size = need.region, first, 0
            queries_by_worker[need.worker_id] = queries
            start, size = min(start, first), size + len(queries)
    close()
    return sorted(batches, key=lambda batch: -batch.start)


def _windows(start: int, end: int, queries: int, period: int) -> Iterator[tuple[int, int]]:
    """Cut [start, end) so that each part's datapoints fit into one answer."""
    step = max(1, MAX_DATAPOINTS // queries) * period
    while end - start > step:
        yield start, start + step
        start += step
    yield start, end
