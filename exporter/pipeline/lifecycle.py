"""The life of a sample: which periods are opened, when CloudWatch is asked, when a value counts. Pure: no I/O, no clock.

A sample is one worker in one period. It is *observed* (its row is opened, with the status and labs of the moment), *settled*
(CloudWatch's values have become final, or their absence has), then mirrored into the history and deleted from the outbox.
`now` is never the local clock: MongoDB's where the aggregates are observed, CloudWatch's `Date` where its answers are judged.

The rules carry the numbers of docs/sample-lifecycle.md; `tests/simulation.py` runs them against crashes, lost outboxes, late
values and clock jumps.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from exporter.core.instances import _unique, instances_during
from exporter.core.model import (
    IDLE_STATUSES,
    METRICS,
    InventoryEntry,
    Listing,
    MetricName,
    MetricQuery,
    MetricResults,
    Worker,
)
from exporter.core.periods import align, align_up, closed_periods
from exporter.core.settings import Settings

LISTING_LAG_SECONDS = 1200
"""ListMetrics shows a new metric up to 15 minutes late; 5 more for our own clock."""
ON_TIME_SECONDS = 60
"""A value first seen within `settle_delay` plus this was published on time: rounds are not exact to the second."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that the sample lifecycle depends on, in seconds; `Settings` describes each."""

    period: int = 300
    interval: int = 300
    settle_delay: int = 300
    absence_timeout: int = 3600
    gap_fill_window: int = 86400
    max_age: int = 900
    terminated_grace: int = 3600

    @classmethod
    def from_settings(cls, settings: Settings) -> "Rules":
        """Return the part of the settings that the sample lifecycle depends on."""
        return cls(
            period=settings.period,
            interval=settings.cloudwatch.interval,
            settle_delay=settings.settle_delay,
            absence_timeout=settings.absence_timeout,
            gap_fill_window=settings.gap_fill_window,
            max_age=settings.max_age,
            terminated_grace=settings.terminated_grace,
        )


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What the outbox remembers of a worker between two observations."""

    worker_id: str
    region: str
    instances: tuple[str, ...]
    """Seen from the last observation before `next` on, newest first."""
    status: str
    idle_since: int
    """First of the unbroken observations of stopped or terminated up to the last one; 0: it was neither."""
    seen: int
    """Its last observation."""
    next: int
    """Start of the first period that was never opened."""


@dataclass(frozen=True, slots=True)
class PendingSample:
    """One sample on its way. `own_*` are the aggregate's values; `cpu` and `memory` hold only what has settled."""

    worker_id: str
    start: int
    region: str
    instances: tuple[str, ...]
    """The candidates: every instance that may have been the worker in this period, newest first."""
    status: str | None = None
    active_labs: int | None = None
    own_cpu: float | None = None
    own_memory: float | None = None
    cpu: float | None = None
    memory: float | None = None
    final: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing is known, so that there is nothing to write."""
        return self.status is None and self.active_labs is None and self.cpu is None and self.memory is None

    @property
    def healed(self) -> bool:
        """Whether nobody observed the period in time."""
        return self.status is None

    def finish(self) -> "PendingSample":
        """Settle with what there is: CloudWatch's value wins, else the aggregate's own (rule 9)."""
        return replace(
            self,
            final=True,
            cpu=self.own_cpu if self.cpu is None else self.cpu,
            memory=self.own_memory if self.memory is None else self.memory,
        )


# -- observing -------------------------------------------------------------------------------------------------------


def initial_state(worker: Worker, entry: InventoryEntry | None, now: int, rules: Rules) -> WorkerState:
    """Begin with a worker the outbox does not know, with the help of the inventory.

    Only the period that has just closed is opened by the observation that follows; older ones are `missing_samples`, because
    the history may have them and the inventory knows the instances they ran on.
    """
    start = align(now, rules.period) - rules.period
    if worker.created_at is not None:
        start = max(start, min(align(worker.created_at, rules.period), align(now, rules.period)))
    instances: tuple[str, ...] = ()
    if entry and entry.instances and entry.instances[-1].region == worker.region:
        instances = (entry.instances[-1].instance_id,)
    status = entry.status if entry else worker.status
    return WorkerState(worker.id, worker.region, instances, status, 0, entry.last_seen if entry else now, start)


def observe(
    worker: Worker, known: WorkerState, now: int, rules: Rules, entry: InventoryEntry | None = None
) -> tuple[list[PendingSample], WorkerState]:
    """One observation: the rows it opens (rules 1, 2, 4, 5, 8) and what to remember. Every closed period is opened once.

    Args:
        entry: the inventory's, with this observation. An outbox that was restored from a copy, or that belongs to an exporter
            which did not lead for a while, knows less than it does.
    """
    period = rules.period
    earlier = known.instances if known.region == worker.region else ()
    candidates = _unique(worker.instance_id, *earlier)
    finished = worker.status == "terminated" and known.status == "terminated"
    # Two periods: one observation may be late without hiding that the worker was idle all the time.
    unbroken = worker.status in IDLE_STATUSES and known.idle_since > 0 and now - known.seen <= 2 * period
    rows = []
    start = following = max(known.next, align_up(now - rules.gap_fill_window, period))
    for start in closed_periods(following, period, now):
        following = start + period
        if finished:
            continue
        region, instances = _candidates(worker, candidates, entry, start, following)
        row = PendingSample(worker.id, start, region, instances)
        if following > now - period:
            row = replace(row, status=worker.status, active_labs=worker.active_labs)
            if worker.collected_at is not None and start <= worker.collected_at < following:
                row = replace(row, own_cpu=worker.cpu, own_memory=worker.memory)
            if not instances or (unbroken and known.idle_since <= start):
                row = row.finish()
        if instances or not row.empty:
            rows.append(row)
    if following > known.next:  # the first period not yet opened began between the last observation and this one
        candidates = _unique(worker.instance_id, *earlier[:1])
    idle_since = 0 if worker.status not in IDLE_STATUSES else known.idle_since if unbroken else now
    return rows, WorkerState(worker.id, worker.region, candidates, worker.status, idle_since, now, following)


def _candidates(
    worker: Worker, known: tuple[str, ...], entry: InventoryEntry | None, start: int, end: int
) -> tuple[str, tuple[str, ...]]:
    """The region and the instances to ask about [start, end): what the outbox knows, and the inventory (rule 4)."""
    if entry is None:
        return worker.region, known
    region, instances = instances_during(entry, worker, start, end)
    return region, _unique(*instances, *known) if region == worker.region else instances


def close_missing(known: WorkerState, now: int, rules: Rules) -> tuple[list[PendingSample], WorkerState]:
    """A worker a complete reading no longer has: the period that was open when it was last seen is its last (rule 5)."""
    rows = []
    if known.status not in IDLE_STATUSES and known.instances:
        last = align(known.seen, rules.period) + rules.period
        rows = [
            PendingSample(known.worker_id, start, known.region, known.instances)
            for start in closed_periods(known.next, rules.period, min(now, last))
        ]
    return rows, replace(known, next=rows[-1].start + rules.period) if rows else known


def missing_samples(
    worker: Worker, known: WorkerState, entry: InventoryEntry | None, have: AbstractSet[int], now: int, rules: Rules
) -> list[PendingSample]:
    """The periods before `known.next` and within `gap_fill_window` that the history lacks (rule 3), without status and labs.

    Args:
        entry: which instances the worker ran on, and when.
        have: starts of the periods the history has.
    """
    start, until = align_up(now - rules.gap_fill_window, rules.period), known.next
    if worker.created_at is not None:
        start = max(start, align(worker.created_at, rules.period))
    if worker.status == "terminated" and worker.terminated_at is not None:
        until = min(until, align(worker.terminated_at, rules.period) + rules.period)
    rows = []
    for period in range(start, until, rules.period):
        if period not in have:
            region, instances = instances_during(entry, worker, period, period + rules.period)
            if instances:
                rows.append(PendingSample(worker.id, period, region, instances))
    return rows


# -- settling --------------------------------------------------------------------------------------------------------


FirstSeenValues = dict[tuple[str, int, str, MetricName], tuple[float, int]]
"""(worker, period, instance, metric) → the value CloudWatch gave last, and since when it has given it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a metric of a row is decided, and its value; decided without a value means absent."""

    decided: bool
    value: float | None = None


def decide_metric(
    row: PendingSample,
    metric: MetricName,
    queries: Sequence[MetricQuery],
    answers: MetricResults,
    listings: Sequence[Listing],
    sightings: FirstSeenValues,
    rules: Rules,
) -> Decision:
    """Decide one metric of one row by the answers of one call (rules 7 and 8).

    Args:
        queries: what was asked for the row's worker in that call.
        answers: CloudWatch's, with its clock.
        listings: the ListMetrics answers the queries were made from.
        sightings: is brought up to date.
    """
    end = row.start + rules.period
    age = answers.date - end
    for instance in row.instances:
        asked = [q for q in queries if q.instance_id == instance and q.metric == metric]
        if not asked:
            # What ListMetrics does not list has no memory; but of an instance nobody asked about nothing at all is known.
            known = any(query.instance_id == instance for query in queries)
            if known and any(listing.since <= row.start and listing.date >= end + LISTING_LAG_SECONDS for listing in listings):
                continue
            return Decision(False)
        given = [answers.by_query.get(query) for query in asked]
        value = None
        for answer in given:
            if answer is None or not answer.complete or row.start < answer.start or end > answer.end:
                return Decision(False)
            if value is None:
                value = answer.values.get(row.start)
        if value is None:
            if age < rules.absence_timeout:
                return Decision(False)
            continue
        key = (row.worker_id, row.start, instance, metric)
        last, since = sightings.get(key, (None, answers.date))
        if last != value:
            since = answers.date
            sightings[key] = (value, since)
        on_time = since <= end + rules.settle_delay + ON_TIME_SECONDS
        confirmed = answers.date - since >= rules.settle_delay or age >= rules.absence_timeout
        return Decision(True, value) if age >= rules.settle_delay and (on_time or confirmed) else Decision(False)
    return Decision(True)


def finalize(
    row: PendingSample,
    queries: Sequence[MetricQuery],
    answers: MetricResults,
    listings: Sequence[Listing],
    sightings: FirstSeenValues,
    rules: Rules,
) -> PendingSample:
    """Bring a row up to date with one call's answers; it is settled once both metrics are decided."""
    cpu, memory = (
        Decision(True, value)
        if (value := getattr(row, metric)) is not None
        else decide_metric(row, metric, queries, answers, listings, sightings, rules)
        for metric in METRICS
    )
    row = replace(row, cpu=cpu.value, memory=memory.value)
    return row.finish() if cpu.decided and memory.decided else row


def finalize_without_cloudwatch(row: PendingSample, now: int, rules: Rules) -> PendingSample:
    """Without CloudWatch the history is made of aggregates alone (rule 9), once late ones have had their chance."""
    return row.finish() if now - row.start - rules.period >= rules.settle_delay else row
