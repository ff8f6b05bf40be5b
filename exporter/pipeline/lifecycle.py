"""The sample lifecycle: which periods are opened, and when a value is final. Pure: no I/O, no clock.

A sample is one worker in one period. It is *observed* (its row is opened, with the status and labs of that time), *final*
(CloudWatch's values can no longer change, or their absence is certain), then mirrored into the history and deleted from the
outbox. `now` is never the local clock: it is MongoDB's where worker documents (the manager's aggregates) are observed, and
CloudWatch's `Date` where its results are decided.

The rule numbers are those of docs/sample-lifecycle.md; `tests/simulation` runs the rules against crashes, lost outboxes, late
values and clock jumps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from exporter.core.instances import instances_during, unique
from exporter.core.model import (
    IDLE_STATUSES,
    METRICS,
    InventoryEntry,
    Listing,
    MetricName,
    MetricQuery,
    MetricResult,
    MetricResults,
    Worker,
)
from exporter.core.periods import align, align_up, closed_periods
from exporter.core.settings import Settings
from exporter.sources.cloudwatch.memory_series import LISTING_LAG_SECONDS, series_value

ON_TIME_SECONDS = 60
"""A value first seen within `settle_delay` plus this was published on time: collection cycles are not exact to the second."""


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


class WorkerState(NamedTuple):
    """What the outbox keeps of a worker between two observations. Times are UTC seconds."""

    worker_id: str
    region: str
    instances: tuple[str, ...]
    """Seen from the last observation before `next` on, newest first."""
    status: str
    idle_since: int
    """First of the unbroken observations of stopped or terminated up to the last one; 0 if the last one was neither."""
    seen: int
    """The last observation."""
    next: int
    """Start of the first period that was never opened."""


class PendingSample(NamedTuple):
    """A sample on its way to the history: `own_*` from the worker document, `cpu` and `memory` only once decided.

    Utilizations are percent, `start` is UTC seconds. A tuple, because thousands are made in every cycle.
    """

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
        """Whether it has no value at all, so that there is nothing to write."""
        return self.status is None and self.active_labs is None and self.cpu is None and self.memory is None

    @property
    def gap_filled(self) -> bool:
        """Whether the period was not observed in time."""
        return self.status is None

    def finish(self, cpu: float | None = None, memory: float | None = None) -> "PendingSample":
        """Return it as final with the values there are: CloudWatch's first, else the worker document's own (rule 9).

        Args:
            cpu, memory: what CloudWatch's last answer has decided, in percent.
        """
        decided_cpu = self.cpu if cpu is None else cpu
        decided_memory = self.memory if memory is None else memory
        return self._replace(
            final=True,
            cpu=self.own_cpu if decided_cpu is None else decided_cpu,
            memory=self.own_memory if decided_memory is None else decided_memory,
        )


# -- observing -------------------------------------------------------------------------------------------------------


def initial_state(worker: Worker, entry: InventoryEntry | None, now: int, rules: Rules) -> WorkerState:
    """Return the initial state of a worker that the outbox has not seen.

    The observation that follows opens only the period that has just closed. Older ones are gaps (`find_gaps`), because the
    history may have them and the inventory knows the instances they ran on.

    Args:
        worker: as read.
        entry: the inventory's, from before this observation; None for a worker that is new to it.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.
    """
    start = align(now, rules.period) - rules.period
    if worker.created_at is not None:
        start = max(start, min(align(worker.created_at, rules.period), align(now, rules.period)))
    region = worker.region or (entry.region if entry else "")
    instances: tuple[str, ...] = ()
    if entry and entry.instances and entry.instances[-1].region == region:
        instances = (entry.instances[-1].instance_id,)
    status = entry.status if entry else worker.status
    return WorkerState(worker.id, region, instances, status, 0, entry.last_seen if entry else now, start)


def observe(
    worker: Worker, state: WorkerState, now: int, rules: Rules, entry: InventoryEntry | None = None
) -> tuple[list[PendingSample], WorkerState]:
    """Return the samples that an observation opens (rules 1, 2, 4, 5, 8), and the new state. Each period is opened once.

    A worker without a region keeps the last known one, with the instances seen there.

    Args:
        worker: as read.
        state: what the outbox has kept of it.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.
        entry: the inventory's, updated with this observation. It knows more than an outbox that was restored from a copy, or
            whose exporter did not lead for a while.
    """
    period = rules.period
    region = worker.region or state.region
    earlier = state.instances if state.region == region else ()
    # Two periods: one late observation does not hide that the worker was idle all the time. Another instance shows it was not.
    same = worker.cloudwatch_instance in (None, *earlier[:1])
    seen_instances = earlier if same else unique(worker.cloudwatch_instance, *earlier)
    unbroken = worker.status in IDLE_STATUSES and state.idle_since > 0 and now - state.seen <= 2 * period and same
    samples = []
    following = max(state.next, align_up(now - rules.gap_fill_window, period))
    for start in closed_periods(following, period, now):
        following = start + period
        if _is_finished(worker, state, start, following):
            continue
        sample_region, instances = _candidates(worker, region, seen_instances, entry, start, following)
        if following > now - period:
            sample = _observed(worker, start, following, sample_region, instances)
            if not instances or (unbroken and state.idle_since <= start):
                sample = sample.finish()
            samples.append(sample)
        elif instances:
            samples.append(PendingSample(worker.id, start, sample_region, instances))
    if following > state.next:  # the first period not yet opened began between the last observation and this one
        seen_instances = seen_instances[:1] if same else seen_instances[:2]
    idle_since = 0 if worker.status not in IDLE_STATUSES else state.idle_since if unbroken else now
    return samples, WorkerState(worker.id, region, seen_instances, worker.status, idle_since, now, following)


def _is_finished(worker: Worker, state: WorkerState, start: int, end: int) -> bool:
    """Return whether a worker has no sample of [start, end) because it was terminated before (rule 5).

    The last sample is opened by the first observation of that status. Two observations of it open a period only where the
    worker document says that the worker ended in it: it was first read terminated, or ended after the boundary.
    """
    if worker.status != "terminated" or state.status != "terminated":
        return False
    return worker.terminated_at is None or not start <= worker.terminated_at < end


def _candidates(
    worker: Worker, region: str, seen: tuple[str, ...], entry: InventoryEntry | None, start: int, end: int
) -> tuple[str, tuple[str, ...]]:
    """Return region and instances to query for [start, end): those `seen` in `region`, and the inventory's (rule 4)."""
    if entry is None:
        return region, seen
    known_region, instances = instances_during(entry, worker, start, end)
    if known_region != region or instances == seen:
        return known_region, instances
    return region, unique(*instances, *seen)


def _observed(worker: Worker, start: int, end: int, region: str, instances: tuple[str, ...]) -> PendingSample:
    """Return the sample of [start, end) with the observed status and labs, and the own values that were collected in it."""
    cpu, memory = None, None
    if worker.collected_at is not None and start <= worker.collected_at < end:
        cpu, memory = worker.cpu, worker.memory
    return PendingSample(worker.id, start, region, instances, worker.status, worker.active_labs, cpu, memory)


def close_missing(state: WorkerState, now: int, rules: Rules) -> tuple[list[PendingSample], WorkerState]:
    """Return the last sample of a worker that a complete read no longer has, and its new state.

    The last sample is the period that was open when the worker was last seen (rule 5).
    """
    samples = []
    if state.status not in IDLE_STATUSES and state.instances:
        last = align(state.seen, rules.period) + rules.period
        samples = [
            PendingSample(state.worker_id, start, state.region, state.instances)
            for start in closed_periods(state.next, rules.period, min(now, last))
        ]
    return samples, state._replace(next=samples[-1].start + rules.period) if samples else state


def unopened_periods(worker: Worker, state: WorkerState, entry: InventoryEntry | None, now: int, rules: Rules) -> int:
    """Return how many periods an observation leaves out because they are older than `gap_fill_window` (rule 1).

    Periods before `entry.last_seen` do not count: another exporter observed the worker then, and opened them.

    Args:
        worker: as read.
        state: what the outbox has kept of it, before the observation.
        entry: the inventory's, from before the observation.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.
    """
    period = rules.period
    last = align_up(now - rules.gap_fill_window, period)
    if state.next >= last:  # nearly always
        return 0
    first = max(state.next, align(entry.last_seen, period) if entry else 0)
    return sum(not _is_finished(worker, state, start, start + period) for start in range(first, last, period))


# -- deciding --------------------------------------------------------------------------------------------------------


FirstSeenValues = dict[tuple[str, int, str, str], tuple[float, int]]
"""(worker, period, instance, metric) → the value CloudWatch returned last, and since when it has returned it."""


class Decision(NamedTuple):
    """Whether a metric of a sample is decided, and its value in percent; decided without a value means absent."""

    decided: bool
    value: float | None = None


_UNDECIDED, _ABSENT = Decision(False), Decision(True)


def decide_metric(
    sample: PendingSample,
    metric: MetricName,
    queries: Sequence[MetricQuery],
    results: MetricResults,
    listings: Sequence[Listing],
    first_seen: FirstSeenValues,
    rules: Rules,
) -> Decision:
    """Decide one metric of one sample by the results of one call (rules 7 and 8).

    The newest candidate with a value wins; an older one counts only once the newer ones are certain to have none.

    Args:
        sample: not yet final.
        metric: which of its metrics.
        queries: the queries of the sample's worker in that call.
        results: CloudWatch's results, with its clock.
        listings: the ListMetrics results the queries were made from.
        first_seen: updated with the values of this call.
        rules: the settings of the sample lifecycle.
    """
    for instance in sample.instances:
        of_metric = [query for query in queries if query.metric == metric and query.instance_id == instance]
        if of_metric:
            decision = _decide_instance(sample, instance, of_metric, results, first_seen, rules)
        else:
            # A metric that no listing has is absent. An instance without any query (the budget) may have it all the same.
            queried = any(query.instance_id == instance for query in queries)
            unlisted = queried and _would_be_listed(sample.start, instance, listings, rules)
            decision = _ABSENT if unlisted else _UNDECIDED
        if decision != _ABSENT:
            return decision
    return _ABSENT


def _would_be_listed(start: int, instance: str, listings: Iterable[Listing], rules: Rules) -> bool:
    """Return whether a series of an instance with a datapoint in the period at `start` is certain to be in a listing."""
    listed_from = start + rules.period + LISTING_LAG_SECONDS
    windows = (listing.window_of(instance) for listing in listings)
    return any(since <= start and date >= listed_from for since, date in windows)


def _decide_instance(
    sample: PendingSample,
    instance: str,
    queries: Sequence[MetricQuery],
    results: MetricResults,
    first_seen: FirstSeenValues,
    rules: Rules,
) -> Decision:
    """Decide by the queries of one candidate and one metric: one, or those of its memory series in their order."""
    start, end = sample.start, sample.start + rules.period
    found: list[MetricResult] = []
    for query in queries:
        result = results.by_query.get(query)
        if result is None or not result.complete or start < result.start or end > result.end:
            return _UNDECIDED
        found.append(result)
    date = results.date_of(queries[0])  # the queries of one instance are never in different parts of a call
    age = date - end
    value = series_value(found, start, date=date, period=rules.period)
    if value is None:
        return _ABSENT if age >= rules.absence_timeout else _UNDECIDED
    key = sample.worker_id, start, instance, queries[0].metric
    since = seen_since(key, value, date, first_seen)
    on_time = since <= end + rules.settle_delay + ON_TIME_SECONDS
    confirmed = date - since >= rules.settle_delay or age >= rules.absence_timeout
    if age >= rules.settle_delay and (on_time or confirmed):
        return Decision(True, value)
    first_seen[key] = value, since
    return _UNDECIDED


def seen_since(key: tuple[str, int, str, str], value: float, now: int, first_seen: FirstSeenValues) -> int:
    """Return since when (UTC seconds) CloudWatch has returned this value; `now` if it is new or was revised."""
    last, since = first_seen.get(key, (None, now))
    return since if last == value else now


def finalize(
    sample: PendingSample,
    queries: Sequence[MetricQuery],
    results: MetricResults,
    listings: Sequence[Listing],
    first_seen: FirstSeenValues,
    rules: Rules,
) -> PendingSample:
    """Return a sample updated with the results of one call; it is final once both metrics are decided.

    What the call does not change is returned as it is, the same object. The arguments are those of `decide_metric`.
    """
    cpu, memory = (
        Decision(True, value)
        if (value := getattr(sample, metric)) is not None
        else decide_metric(sample, metric, queries, results, listings, first_seen, rules)
        for metric in METRICS
    )
    if cpu.decided and memory.decided:
        return sample.finish(cpu.value, memory.value)
    if cpu.value is not sample.cpu or memory.value is not sample.memory:
        return sample._replace(cpu=cpu.value, memory=memory.value)
    return sample


def finalize_without_cloudwatch(sample: PendingSample, now: int, rules: Rules) -> PendingSample:
    """Return a sample as final if it is old enough: without CloudWatch only the worker documents' values count (rule 9).

    Until `settle_delay` after its end a late worker document may still bring a value.
    """
    return sample.finish() if now - sample.start - rules.period >= rules.settle_delay else sample
