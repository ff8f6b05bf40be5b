"""The plan of a backfill: the gaps of the history, the cheapest calls that fill them, and the samples of the results.

Pure: no I/O and no clock. `journal` stores a plan, `fetcher` makes its calls.

AWS bills each metric of a call, whatever the window. So every metric of an instance is queried once, from the worker's first
gap to its last, and workers with similar windows share a call. Only CPU and memory can be filled: past values of the worker
documents (the manager's aggregates), such as status and labs, are not kept anywhere.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from exporter.core.budget import Usage
from exporter.core.errors import ConfigError
from exporter.core.instances import split_by_instance, updated_entry, worker_from_inventory
from exporter.core.model import FinalSample, Fleet, InventoryEntry, MetricQuery, MetricResult, Worker
from exporter.core.periods import HOUR, MINUTE, align, align_up, format_duration, rfc3339
from exporter.sources.cloudwatch.queries import MAX_DATAPOINTS, MAX_QUERIES
from exporter.sources.cloudwatch.retention import reach

EXPIRY_MARGIN_SECONDS = 10 * MINUTE
"""Datapoints that CloudWatch deletes within this time are not queried: they may be gone when the call is made."""

Range = tuple[int, int]
"""The periods that start in [first, second), in UTC seconds."""
QueriesOf = Callable[[str, str], tuple[MetricQuery, ...]]
"""(region, instance id) → the queries of that instance, cpu first."""


@dataclass(frozen=True, slots=True)
class WorkerLifetime:
    """A worker, the instances it ran on, and whether a worker document still lists it."""

    worker: Worker
    entry: InventoryEntry
    listed: bool


@dataclass(frozen=True, slots=True)
class GapQuery:
    """Periods of one worker that have no sample, and the instances it may have run on in them, newest first."""

    worker_id: str
    instances: tuple[str, ...]
    gaps: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One GetMetricData call for the window [start, end), and the gaps that it fills."""

    region: str
    start: int
    end: int
    queries: tuple[MetricQuery, ...]
    gap_queries: tuple[GapQuery, ...]

    def periods(self, period: int) -> int:
        """Return the number of missing samples that the call can fill."""
        return sum((end - start) // period for gap_query in self.gap_queries for start, end in gap_query.gaps)


@dataclass(frozen=True, slots=True)
class Plan:
    """All calls of one backfill; `target` and `wanted` tell whether a stored plan belongs to the same command line."""

    target: str
    """The collection and the period of its samples, in words."""
    wanted: str
    """--since and --worker, as they were written."""
    made: int
    """UTC second, by MongoDB's clock."""
    since: int
    until: int
    period: int
    calls: tuple[PlannedCall, ...]
    notes: tuple[str, ...]
    """One sentence for each reason why periods are not filled."""

    @property
    def periods(self) -> int:
        """The number of samples that are missing in the history."""
        return sum(call.periods(self.period) for call in self.calls)

    @property
    def usage(self) -> Usage:
        """Calls, metrics billed, and their price."""
        return Usage.of(len(call.queries) for call in self.calls)


# -- gaps --------------------------------------------------------------------------------------------------------------


def counted(count: int, noun: str) -> str:
    """Return the number with its noun: 1 call, 2 calls."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def fillable_window(
    since: int, now: int, period: int, gap_fill_window: int, retention: int | None
) -> tuple[int, int, tuple[str, ...]]:
    """Return the window [start, end) whose gaps can be filled, and a sentence for each reason why it is shorter than requested.

    Args:
        since: requested start, in UTC seconds.
        now: MongoDB's clock, in UTC seconds.
        period: resolution of the history in seconds.
        gap_fill_window: age in seconds up to which `serve` fills gaps.
        retention: of the collection in seconds; None: samples are kept permanently.
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
    """Return the workers of the worker documents and those that only the inventory has, sorted by id.

    Args:
        fleet: the worker documents.
        inventory: worker id → entry.
        only: worker ids to return; empty: all.

    Raises:
        ConfigError: one of `only` is unknown.
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
                f"--worker: {worker_id!r} is neither among the worker documents nor in the inventory; "
                "/api/workers lists all ids"
            )
    return [found[worker_id] for worker_id in sorted(set(only) or found)]


def lifetime_window(lifetime: WorkerLifetime, since: int, until: int, period: int) -> Range:
    """Return the part of [since, until) in which the worker existed; it may be empty.

    The last period of a terminated worker is the one in which it ended; of a worker that is no longer listed, the one that was
    open when it was last seen.
    """
    entry = lifetime.entry
    start = since if entry.created_at is None else max(since, align(entry.created_at, period))
    ends = [entry.terminated_at if entry.status == "terminated" else None, None if lifetime.listed else entry.last_seen]
    return start, min(until, *(align(end, period) + period for end in ends if end is not None), until)


def missing_ranges(start: int, end: int, period: int, present: AbstractSet[int]) -> tuple[Range, ...]:
    """Return the periods of [start, end) that are not in `present`, adjacent ones as one range."""
    if start < end and not present:
        return ((start, start + -(-(end - start) // period) * period),)
    ranges: list[Range] = []
    for at in range(start, end, period):
        if at in present:
            continue
        if ranges and ranges[-1][1] == at:
            ranges[-1] = ranges[-1][0], at + period
        else:
            ranges.append((at, at + period))
    return tuple(ranges)


def gap_queries(
    lifetime: WorkerLifetime, present: AbstractSet[int], since: int, until: int, period: int
) -> list[tuple[str, GapQuery]]:
    """Return (region, gap query) for every part of [since, until) with missing samples and the same candidate instances."""
    start, end = lifetime_window(lifetime, since, until, period)
    if start >= end:
        return []
    found = []
    for first, last, region, instances in split_by_instance(lifetime.entry, lifetime.worker, start, end, period):
        gaps = missing_ranges(first, last, period, present)
        if instances and gaps:
            found.append((region, GapQuery(lifetime.worker.id, instances, gaps)))
    return found


# -- calls -------------------------------------------------------------------------------------------------------------


def plan_calls(found: Iterable[tuple[str, GapQuery]], queries_of: QueriesOf, period: int) -> tuple[PlannedCall, ...]:
    """Pack gap queries into calls: the fewest metrics, then few calls; none needs a second page, which would be billed again.

    Gap queries that share an instance stay together, so that no metric is queried twice, and one result can decide a sample.

    Args:
        found: (region, gap query).
        queries_of: (region, instance id) → the metrics of the instance.
        period: resolution in seconds.
    """
    units = [part for region, group in _group_by_instance(found) for part in _split(region, group, queries_of, period)]
    packed: list[PlannedCall] = []
    for unit in sorted(units, key=lambda one: (one.region, one.start, one.end, one.gap_queries[0].worker_id)):
        if packed and packed[-1].region == unit.region:
            joined = _joined(packed[-1], unit)
            if _fits(joined, period):
                packed[-1] = joined
                continue
        packed.append(unit)
    return tuple(packed)


def _group_by_instance(found: Iterable[tuple[str, GapQuery]]) -> list[tuple[str, list[GapQuery]]]:
    """Group gap queries that share an instance, directly or through other gap queries."""
    groups: dict[int, tuple[str, list[GapQuery]]] = {}
    group_of: dict[tuple[str, str], int] = {}
    for number, (region, gap_query) in enumerate(found):
        groups[number] = region, [gap_query]
        for instance in gap_query.instances:
            other = group_of.get((region, instance), number)
            if other != number:
                moved = groups.pop(other)[1]
                groups[number][1][:0] = moved
                group_of |= {(region, name): number for one in moved for name in one.instances}
            group_of[region, instance] = number
    return list(groups.values())


def _split(region: str, group: Sequence[GapQuery], queries_of: QueriesOf, period: int) -> Iterator[PlannedCall]:
    """Yield one call for a group, or several consecutive windows where one call cannot return all datapoints."""
    instances = dict.fromkeys(instance for gap_query in group for instance in gap_query.instances)
    queries = tuple(query for instance in instances for query in queries_of(region, instance))
    start = min(gap_query.gaps[0][0] for gap_query in group)
    end = max(gap_query.gaps[-1][1] for gap_query in group)
    call = PlannedCall(region, start, end, queries, tuple(group))
    length = (end - start) // period
    if _fits(call, period):
        yield call
    elif length == 1:  # hundreds of memory series under one instance
        yield replace(call, queries=queries[:MAX_QUERIES])
    else:
        count = min(length, max(2, -(-len(queries) * length // MAX_DATAPOINTS)))
        step = -(-length // count) * period
        for first in range(start, end, step):
            part = clip(call, first, first + step)
            if part is not None:
                yield from _split(region, part.gap_queries, queries_of, period)


def _fits(call: PlannedCall, period: int) -> bool:
    return len(call.queries) <= MAX_QUERIES and len(call.queries) * (call.end - call.start) // period <= MAX_DATAPOINTS


def _joined(one: PlannedCall, other: PlannedCall) -> PlannedCall:
    """Return both as one call; two parts of the same group have queries in common."""
    queries = tuple(dict.fromkeys(one.queries + other.queries))
    return PlannedCall(
        one.region, min(one.start, other.start), max(one.end, other.end), queries, one.gap_queries + other.gap_queries
    )


def clip(call: PlannedCall, start: int, end: int) -> PlannedCall | None:
    """Return the part of a call within [start, end); None if it has no gap there."""
    left = []
    for gap_query in call.gap_queries:
        gaps = tuple((max(a, start), min(b, end)) for a, b in gap_query.gaps if max(a, start) < min(b, end))
        if gaps:
            left.append(replace(gap_query, gaps=gaps))
    return _only(call, left, max(start, call.start), min(end, call.end))


def _only(call: PlannedCall, left: Sequence[GapQuery], start: int, end: int) -> PlannedCall | None:
    """Return the call reduced to some of its gap queries; None if there are none."""
    if not left:
        return None
    instances = {instance for gap_query in left for instance in gap_query.instances}
    queries = tuple(query for query in call.queries if query.instance_id in instances)
    return PlannedCall(call.region, start, end, queries, tuple(left))


# -- results -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What CloudWatch has for the periods of one gap query: period start → percent."""

    gap_query: GapQuery
    cpu: Mapping[int, float]
    memory: Mapping[int, float]

    def starts(self, period: int) -> Iterator[int]:
        """Yield the starts of all periods of the gap query, in UTC seconds."""
        return (at for gap in self.gap_query.gaps for at in range(*gap, period))


def answers(call: PlannedCall, results: Mapping[MetricQuery, MetricResult]) -> tuple[list[Answer], PlannedCall | None]:
    """Return the answers of the gap queries that CloudWatch answered completely, and the part of the call to be repeated.

    Complete means: every metric of all candidate instances. The newest candidate's value wins, as in `lifecycle.finalize`; of
    several memory series the first in their order. At this age one complete result is enough, whether it has a value or none.
    """
    found: list[Answer] = []
    incomplete = []
    by_instance: dict[str, list[MetricQuery]] = {}
    for query in call.queries:
        by_instance.setdefault(query.instance_id, []).append(query)
    for gap_query in call.gap_queries:
        queries = [query for instance in gap_query.instances for query in by_instance.get(instance, ())]
        if all(query in results and results[query].complete for query in queries):
            found.append(Answer(gap_query, _values(queries, "cpu", results), _values(queries, "memory", results)))
        else:
            incomplete.append(gap_query)
    return found, _only(call, incomplete, call.start, call.end)


def finalize(
    call: PlannedCall, results: Mapping[MetricQuery, MetricResult], period: int
) -> tuple[list[FinalSample], int, PlannedCall | None]:
    """Return the final samples, the number of empty periods, and the part of the call that must be repeated, see `answers`."""
    found, rest = answers(call, results)
    samples = [
        FinalSample(answer.gap_query.worker_id, start, call.region, answer.cpu.get(start), answer.memory.get(start))
        for answer in found
        for start in answer.starts(period)
        if start in answer.cpu or start in answer.memory
    ]
    periods = sum((end - start) // period for answer in found for start, end in answer.gap_query.gaps)
    return samples, periods - len(samples), rest


def _values(queries: Sequence[MetricQuery], metric: str, results: Mapping[MetricQuery, MetricResult]) -> Mapping[int, float]:
    """Return period start → percent; where several queries have a value, that of the first."""
    asked = [query for query in queries if query.metric == metric]
    if len(asked) == 1:
        return results[asked[0]].values
    values: dict[int, float] = {}
    for query in reversed(asked):
        values.update(results[query].values)
    return values
