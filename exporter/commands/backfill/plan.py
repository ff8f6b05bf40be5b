"""`cml-worker-exporter backfill`, the pure part: which periods the history lacks, the cheapest calls that fill them, what the
answers say. No I/O, no clock; `backfill_journal` keeps a plan, `backfill_run` carries it out.

AWS bills each metric a call asks for, whatever the window. So every metric of an instance is asked once, from the worker's
first gap to its last, and workers with like windows share a call. Only CPU and memory can be filled: what the aggregates said
then, status, labs and values of their own, is gone.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from exporter.core.budget import Usage
from exporter.core.errors import ConfigError
from exporter.core.instances import split_by_instance, updated_entry, worker_from_inventory
from exporter.core.model import Fleet, InventoryEntry, Listing, MetricQuery, MetricResult, Worker
from exporter.core.periods import HOUR, MINUTE, align, align_up, format_duration, rfc3339
from exporter.pipeline.lifecycle import PendingSample
from exporter.sources.cloudwatch.memory_series import all_memory_series
from exporter.sources.cloudwatch.queries import MAX_DATAPOINTS, MAX_QUERIES, instance_queries
from exporter.sources.cloudwatch.retention import reach

EXPIRY_MARGIN_SECONDS = 10 * MINUTE
"""CloudWatch's memory ends while we ask: nothing is asked that will be forgotten within this time."""

Range = tuple[int, int]
"""The periods that start in [first, second), in UTC seconds."""
QueriesOf = Callable[[str, str], tuple[MetricQuery, ...]]
"""(region, instance id) → the queries of that instance, cpu first."""


@dataclass(frozen=True, slots=True)
class WorkerLifetime:
    """A worker with the instances it ran on, and whether the aggregates still list it."""

    worker: Worker
    entry: InventoryEntry
    listed: bool


@dataclass(frozen=True, slots=True)
class GapQuery:
    """Periods of one worker that lack a sample and have the same candidates, newest first."""

    worker_id: str
    instances: tuple[str, ...]
    gaps: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One GetMetricData call for the window [start, end), and what it is asked for."""

    region: str
    start: int
    end: int
    queries: tuple[MetricQuery, ...]
    gap_queries: tuple[GapQuery, ...]

    def periods(self, period: int) -> int:
        """How many samples may come of it."""
        return sum((end - start) // period for ask in self.gap_queries for start, end in ask.gaps)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one backfill does; `target` and `wanted` tell whether a stored one is what is asked for again."""

    target: str
    """The collection, and the period its samples have."""
    wanted: str
    """--since and --worker, as they were written."""
    made: int
    since: int
    until: int
    period: int
    calls: tuple[PlannedCall, ...]
    notes: tuple[str, ...]
    """What is not filled, and why, one sentence each."""

    @property
    def periods(self) -> int:
        """How many samples the history lacks."""
        return sum(call.periods(self.period) for call in self.calls)

    @property
    def usage(self) -> Usage:
        """Calls, metrics billed and their price."""
        return Usage.of(len(call.queries) for call in self.calls)


# -- where to look -----------------------------------------------------------------------------------------------------


def window(since: int, now: int, period: int, gap_fill_window: int, retention: int | None) -> tuple[int, int, tuple[str, ...]]:
    """Return the first and the end of the periods to look at, and a sentence for each reason that made them fewer.

    Args:
        since: what was asked for, in UTC seconds.
        now: MongoDB's clock.
        period: of the history.
        gap_fill_window: what is younger is filled by `serve`.
        retention: of the collection; None keeps samples for good.
    """
    # `serve` fills periods that begin within `gap_fill_window`; the one that began just before must not fall between the two.
    start, until, notes = align_up(since, period), align_up(now - gap_fill_window, period), []
    kept = align_up(now - reach(period) + EXPIRY_MARGIN_SECONDS, period)
    if start < kept:
        shown = format_duration(60 if period % 300 else 300 if period % HOUR else HOUR)
        notes.append(
            f"CloudWatch keeps datapoints of {shown} for {format_duration(reach(period))}: "
            f"nothing before {rfc3339(kept)} is filled."
        )
        start = kept
    if retention is not None and start < (kept := align_up(now - retention, period)):
        notes.append(
            f"The history keeps samples for {format_duration(retention)}: nothing before {rfc3339(kept)} is filled, it would "
            "be deleted at once; to keep more, run: cml-worker-exporter retention --set DURATION"
        )
        start = kept
    if start >= until:
        notes.append(f"The last {format_duration(gap_fill_window)} (gap_fill_window) are filled by `serve` itself.")
    return start, max(start, until), tuple(notes)


def lifetimes(fleet: Fleet, inventory: Mapping[str, InventoryEntry], only: Collection[str]) -> list[WorkerLifetime]:
    """Return the workers of the aggregates and those the inventory alone remembers, by id; `only` these if it names any.

    Raises:
        ConfigError: one of `only` is nowhere.
    """
    found = {
        worker.id: WorkerLifetime(worker, updated_entry(inventory.get(worker.id), worker, fleet.date), True)
        for worker in fleet.workers
    }
    for worker_id, entry in inventory.items():
        if worker_id not in found:
            found[worker_id] = WorkerLifetime(worker_from_inventory(entry), entry, False)
    for worker_id in only:
        if worker_id not in found:
            raise ConfigError(
                f"--worker: {worker_id!r} is neither among the aggregates nor in the inventory; /api/workers lists all ids"
            )
    return [found[worker_id] for worker_id in sorted(set(only) or found)]


def span(life: WorkerLifetime, since: int, until: int, period: int) -> Range:
    """Return the part of [since, until) in which the worker was there; it may be empty.

    The last period of a terminated worker is the one in which it ended, of one that is gone the one that was open when it was
    last seen.
    """
    entry = life.entry
    start = since if entry.created_at is None else max(since, align(entry.created_at, period))
    ends = [entry.terminated_at if entry.status == "terminated" else None, None if life.listed else entry.last_seen]
    return start, min(until, *(align(end, period) + period for end in ends if end is not None), until)


def missing(start: int, end: int, period: int, have: AbstractSet[int]) -> tuple[Range, ...]:
    """Return the periods of [start, end) that are not in `have`, neighbours as one range."""
    ranges: list[Range] = []
    for at in range(start, end, period):
        if at in have:
            continue
        if ranges and ranges[-1][1] == at:
            ranges[-1] = ranges[-1][0], at + period
        else:
            ranges.append((at, at + period))
    return tuple(ranges)


def gap_queries(
    life: WorkerLifetime, have: AbstractSet[int], since: int, until: int, period: int
) -> list[tuple[str, GapQuery]]:
    """Return (region, ask) for every stretch of [since, until) in which a worker's candidates are the same and samples lack."""
    start, end = span(life, since, until, period)
    if start >= end:
        return []
    found = []
    for first, last, region, instances in split_by_instance(life.entry, life.worker, start, end, period):
        gaps = missing(first, last, period, have)
        if instances and gaps:
            found.append((region, GapQuery(life.worker.id, instances, gaps)))
    return found


# -- whom to ask -------------------------------------------------------------------------------------------------------


def queries(instance: str, instance_type: str | None, listings: Sequence[Listing]) -> tuple[MetricQuery, ...]:
    """CPU and every listed memory series of an instance, the most likely first: which was alive when is not known."""
    return instance_queries(instance, all_memory_series(listings, instance, instance_type))


def calls(wanted: Iterable[tuple[str, GapQuery]], queries_of: QueriesOf, period: int) -> tuple[PlannedCall, ...]:
    """Pack the asks into calls: the fewest metrics, then few calls; none needs a second page, which would be billed again.

    Asks that share an instance stay together, so that no metric is asked twice, and one answer can decide a sample.
    """
    units = [part for region, some in _together(wanted) for part in _parts(region, some, queries_of, period)]
    packed: list[PlannedCall] = []
    for unit in sorted(units, key=lambda one: (one.region, one.start, one.end, one.gap_queries[0].worker_id)):
        if packed and packed[-1].region == unit.region:
            joined = _joined(packed[-1], unit)
            if _fits(joined, period):
                packed[-1] = joined
                continue
        packed.append(unit)
    return tuple(packed)


def _together(wanted: Iterable[tuple[str, GapQuery]]) -> list[tuple[str, list[GapQuery]]]:
    """Group asks that share an instance, even by way of others."""
    groups: dict[int, tuple[str, list[GapQuery]]] = {}
    group_of: dict[tuple[str, str], int] = {}
    for number, (region, ask) in enumerate(wanted):
        groups[number] = region, [ask]
        for instance in ask.instances:
            other = group_of.get((region, instance), number)
            if other != number:
                moved = groups.pop(other)[1]
                groups[number][1][:0] = moved
                group_of |= {(region, name): number for one in moved for name in one.instances}
            group_of[region, instance] = number
    return list(groups.values())


def _parts(region: str, some: Sequence[GapQuery], queries_of: QueriesOf, period: int) -> Iterator[PlannedCall]:
    """One call, or several one after the other in time where one cannot answer it all."""
    instances = dict.fromkeys(instance for ask in some for instance in ask.instances)
    wanted = tuple(query for instance in instances for query in queries_of(region, instance))
    start = min(ask.gaps[0][0] for ask in some)
    end = max(ask.gaps[-1][1] for ask in some)
    call = PlannedCall(region, start, end, wanted, tuple(some))
    length = (end - start) // period
    if _fits(call, period):
        yield call
    elif length == 1:  # hundreds of memory series under one instance
        yield replace(call, queries=wanted[:MAX_QUERIES])
    else:
        count = min(length, max(2, -(-len(wanted) * length // MAX_DATAPOINTS)))
        step = -(-length // count) * period
        for first in range(start, end, step):
            part = clip(call, first, first + step)
            if part is not None:
                yield from _parts(region, part.gap_queries, queries_of, period)


def _fits(call: PlannedCall, period: int) -> bool:
    return len(call.queries) <= MAX_QUERIES and len(call.queries) * (call.end - call.start) // period <= MAX_DATAPOINTS


def _joined(one: PlannedCall, other: PlannedCall) -> PlannedCall:
    """Both in one call; two parts of the same asks have queries in common."""
    queries = tuple(dict.fromkeys(one.queries + other.queries))
    return PlannedCall(
        one.region, min(one.start, other.start), max(one.end, other.end), queries, one.gap_queries + other.gap_queries
    )


def clip(call: PlannedCall, start: int, end: int) -> PlannedCall | None:
    """Return what is left of a call within [start, end); None if nothing is."""
    left = []
    for ask in call.gap_queries:
        gaps = tuple((max(a, start), min(b, end)) for a, b in ask.gaps if max(a, start) < min(b, end))
        if gaps:
            left.append(replace(ask, gaps=gaps))
    return _only(call, left, max(start, call.start), min(end, call.end))


def _only(call: PlannedCall, left: Sequence[GapQuery], start: int, end: int) -> PlannedCall | None:
    """The call for these of its asks alone."""
    if not left:
        return None
    instances = {instance for ask in left for instance in ask.instances}
    wanted = tuple(query for query in call.queries if query.instance_id in instances)
    return PlannedCall(call.region, start, end, wanted, tuple(left))


# -- what came of it ---------------------------------------------------------------------------------------------------


def finalize(
    call: PlannedCall, answers: Mapping[MetricQuery, MetricResult], period: int
) -> tuple[list[PendingSample], int, PlannedCall | None]:
    """Return the samples that the answers decide, how many periods turned out empty, and what has to be asked again.

    A period is decided once every metric of all its candidates was answered completely. As in `lifecycle.judge` the newest
    candidate's value wins; at this age one complete answer is enough, be it a value or none.
    """
    rows: list[PendingSample] = []
    undecided, empty = [], 0
    by_instance: dict[str, list[MetricQuery]] = {}
    for query in call.queries:
        by_instance.setdefault(query.instance_id, []).append(query)
    for ask in call.gap_queries:
        mine = [query for instance in ask.instances for query in by_instance.get(instance, ())]
        if not all(query in answers and answers[query].complete for query in mine):
            undecided.append(ask)
            continue
        cpu, memory = (_values(mine, metric, answers) for metric in ("cpu", "memory"))
        for start in (at for gap in ask.gaps for at in range(*gap, period)):
            if start in cpu or start in memory:
                values = cpu.get(start), memory.get(start)
                rows.append(
                    PendingSample(ask.worker_id, start, call.region, ask.instances, cpu=values[0], memory=values[1], final=True)
                )
            else:
                empty += 1
    return rows, empty, _only(call, undecided, call.start, call.end)


def _values(mine: Sequence[MetricQuery], metric: str, answers: Mapping[MetricQuery, MetricResult]) -> dict[int, float]:
    """Period start → percent; of several the first query's that has one."""
    values: dict[int, float] = {}
    for query in reversed(mine):
        if query.metric == metric:
            values.update(answers[query].values)
    return values
