"""Mutants that break one rule each. The simulation must notice every one; else it proves nothing about that rule."""

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from exporter.core import instances
from exporter.core.clock import ServerClock
from exporter.core.model import (
    IDLE_STATUSES,
    Fleet,
    InventoryEntry,
    Listing,
    MetricName,
    MetricQuery,
    MetricResult,
    MetricResults,
    Worker,
)
from exporter.core.periods import align
from exporter.pipeline import calls, gaps, lifecycle, observer, poller, transactions
from exporter.pipeline.decided_values import DecidedValues, ValueChange
from exporter.pipeline.gaps import Gap
from exporter.pipeline.lifecycle import Decision, FirstSeenValues, PendingSample, Rules, WorkerState
from exporter.pipeline.mirror import Mirror
from exporter.pipeline.outbox import _DELETE_RANGE, Outbox
from exporter.pipeline.planning import MetricDataCall
from exporter.pipeline.poller import Poller
from exporter.pipeline.transactions import Opened
from tests.simulation.process import HistoryClient, LeaseClient, MetricClient
from tests.simulation.world import Key

Observed = tuple[list[PendingSample], WorkerState]
Entry = InventoryEntry | None
Queries = Sequence[MetricQuery]
Listings = Sequence[Listing]
Patch = pytest.MonkeyPatch

_observe, _find_gaps, _decide_metric = lifecycle.observe, gaps.find_gaps, lifecycle.decide_metric
_step, _poll = Mirror.step, Poller.poll


# -- observing


def _no_next(patch: Patch) -> None:
    def observe(worker: Worker, state: WorkerState, now: int, rules: Rules, entry: Entry = None) -> Observed:
        return _observe(worker, state._replace(next=align(now, rules.period) - 2 * rules.period), now, rules, entry)

    patch.setattr(lifecycle, "observe", observe)


def _samples_changed_by(change: Callable[[PendingSample, Worker], PendingSample]) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        def observe(worker: Worker, state: WorkerState, now: int, rules: Rules, entry: Entry = None) -> Observed:
            samples, after = _observe(worker, state, now, rules, entry)
            return [change(sample, worker) for sample in samples], after

        patch.setattr(lifecycle, "observe", observe)

    return mutate


def _status_for_all(sample: PendingSample, worker: Worker) -> PendingSample:
    return sample._replace(status=worker.status, active_labs=worker.active_labs)


def _one_instance(sample: PendingSample, worker: Worker) -> PendingSample:
    return sample._replace(instances=(worker.instance_id,) if worker.instance_id else ())


def _idle_at_the_tick(sample: PendingSample, worker: Worker) -> PendingSample:
    return sample.finish() if worker.status in IDLE_STATUSES and sample.status else sample


def _newest_only(patch: Patch) -> None:
    def find_gaps(
        worker: Worker, following: int, entry: Entry, existing: set[int], dropped: list[Gap], now: int, rules: Rules
    ) -> list[Gap]:
        found = _find_gaps(worker, following, entry, existing, dropped, now, rules)
        return [gap for gap in found if gap.start > max(existing, default=0)]

    patch.setattr(gaps, "find_gaps", find_gaps)


def _no_gaps(patch: Patch) -> None:
    patch.setattr(gaps, "find_gaps", lambda *_: [])


def _no_inventory_when_observing(patch: Patch) -> None:
    patch.setattr(lifecycle, "observe", lambda worker, state, now, rules, entry=None: _observe(worker, state, now, rules))


def _no_inventory(patch: Patch) -> None:
    def instances_during(entry: Entry, worker: Worker, start: int, end: int) -> tuple[str, tuple[str, ...]]:
        return worker.region, (worker.instance_id,) if worker.instance_id else ()

    patch.setattr(lifecycle, "instances_during", instances_during)
    patch.setattr(instances, "instances_during", instances_during)


def _vanished_are_forgotten(patch: Patch) -> None:
    patch.setattr(lifecycle, "close_missing", lambda state, now, rules: ([], state))


def _no_period_of_the_end(patch: Patch) -> None:
    def is_finished(worker: Worker, state: WorkerState, start: int, end: int) -> bool:
        return worker.status == "terminated" and state.status == "terminated"

    patch.setattr(lifecycle, "_is_finished", is_finished)


def _polled_without_a_region(patch: Patch) -> None:
    patch.setattr(Worker, "cloudwatch_instance", property(lambda self: self.instance_id))


def _two_transactions(patch: Patch) -> None:
    def open_periods(
        outbox: Outbox, fleet: Fleet, inventory: Mapping[str, InventoryEntry] | None, rules: Rules
    ) -> Iterator[Opened]:
        before, samples, states = outbox.states(), list[PendingSample](), list[WorkerState]()
        for worker in fleet.workers:
            state = before.get(worker.id)
            if state is None and inventory is None:
                continue
            entry = (inventory or {}).get(worker.id)
            state = state or lifecycle.initial_state(worker, entry, fleet.date, rules)
            opened, state = lifecycle.observe(worker, state, fleet.date, rules, entry)
            samples += opened
            states.append(state)
        with outbox.transaction():
            outbox.save_states(states)
        with outbox.transaction():
            yield Opened(outbox.open(samples), 0)

    patch.setattr(observer, "open_periods", open_periods)


# -- deciding


def _deciding_with(**rules_changed: int) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        def decide_metric(
            sample: PendingSample,
            metric: MetricName,
            queries: Queries,
            results: MetricResults,
            listings: Listings,
            first_seen: FirstSeenValues,
            rules: Rules,
        ) -> Decision:
            return _decide_metric(sample, metric, queries, results, listings, first_seen, replace(rules, **rules_changed))

        patch.setattr(lifecycle, "decide_metric", decide_metric)

    return mutate


def _no_confirmation(patch: Patch) -> None:
    patch.setattr(lifecycle, "ON_TIME_SECONDS", 1_000_000)


def _no_settle_delay(patch: Patch) -> None:
    _deciding_with(settle_delay=0)(patch)
    _no_confirmation(patch)


def _unlisted_at_once(patch: Patch) -> None:
    patch.setattr(lifecycle, "LISTING_LAG_SECONDS", 0)


def _outside_the_window(patch: Patch) -> None:
    def decide_metric(
        sample: PendingSample,
        metric: MetricName,
        queries: Queries,
        results: MetricResults,
        listings: Listings,
        first_seen: FirstSeenValues,
        rules: Rules,
    ) -> Decision:
        wide = {query: result._replace(start=0, end=1 << 40) for query, result in results.by_query.items()}
        return _decide_metric(sample, metric, queries, replace(results, by_query=wide), listings, first_seen, rules)

    def apply_results(
        outbox: Outbox,
        call: MetricDataCall,
        results: MetricResults,
        listings: Listings,
        first_seen: FirstSeenValues,
        decided: DecidedValues,
        rules: Rules,
        running: AbstractSet[str],
    ) -> tuple[int, int, list[ValueChange]]:
        wide = replace(call, start=0, end=1 << 40)
        return transactions.apply_results(outbox, wide, results, listings, first_seen, decided, rules, running)

    patch.setattr(lifecycle, "decide_metric", decide_metric)
    patch.setattr(calls, "apply_results", apply_results)


def _partial_is_complete(patch: Patch) -> None:
    patch.setattr(MetricResult, "complete", property(lambda self: True))


def _local_age(patch: Patch) -> None:
    query = MetricClient.get_metric_data

    async def get_metric_data(
        self: MetricClient, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        return replace(await query(self, region, queries, start, end, period), date=int(self._process.wall()))

    patch.setattr(MetricClient, "get_metric_data", get_metric_data)
    patch.setattr(MetricClient, "_check_clock", lambda *_: None)


def _local_now(patch: Patch) -> None:
    walls: dict[ServerClock, Callable[[], float]] = {}
    init = ServerClock.__init__

    def keep_wall(self: ServerClock, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        walls[self] = wall
        init(self, wall, monotonic)

    patch.setattr(ServerClock, "__init__", keep_wall)
    patch.setattr(ServerClock, "now", lambda self: int(walls[self]()))


def _empty_is_written(patch: Patch) -> None:
    patch.setattr(PendingSample, "empty", property(lambda self: False))


def _own_is_ignored(patch: Patch) -> None:
    patch.setattr(PendingSample, "finish", lambda self: self._replace(final=True))


# -- polling


def _always_due(patch: Patch) -> None:
    patch.setattr(poller, "is_due", lambda *_: True)


def _absent_unpolled(patch: Patch) -> None:
    async def poll(self: Poller) -> None:
        outbox, now = self._outbox.outbox, self._clock.now()
        every_worker = {row.worker_id for row in outbox.all_open_rows(100_000)}
        await self._outbox(transactions.record_absent, outbox, every_worker, now, self._rules)
        await _poll(self)

    patch.setattr(Poller, "poll", poll)


# -- mirroring


def _blind(patch: Patch) -> None:
    """Read back only after a failure."""

    async def existing_keys(self: HistoryClient, keys: Collection[Key]) -> set[Key]:
        return await _existing_keys(self, keys) if self._process.mirror.problem is not None else set()

    _existing_keys = HistoryClient.existing_keys
    patch.setattr(HistoryClient, "existing_keys", existing_keys)


def _no_wait_for_inserts(patch: Patch) -> None:
    async def no_insert_running(self: HistoryClient) -> bool:
        return True

    patch.setattr(HistoryClient, "no_insert_running", no_insert_running)


def _no_fence(patch: Patch) -> None:
    async def raise_fence(self: HistoryClient) -> None:
        self._number = self._server.raised

    patch.setattr(HistoryClient, "raise_fence", raise_fence)


def _fence_after_the_insert(patch: Patch) -> None:
    @asynccontextmanager
    async def insert_lease(self: HistoryClient) -> AsyncIterator[Callable[[], float]]:
        yield lambda: 30.0
        await self.raise_fence()

    patch.setattr(HistoryClient, "insert_lease", insert_lease)


def _reads_back(how: str) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        async def existing_keys(self: HistoryClient, keys: Collection[Key]) -> set[Key]:
            await self._send()
            found: set[Key] = getattr(self, how)(keys)
            return found

        patch.setattr(HistoryClient, "existing_keys", existing_keys)

    return mutate


def _no_lease(patch: Patch) -> None:
    patch.setattr(LeaseClient, "remaining", property(lambda self: 30.0))


def _opens_under_the_lease_only(patch: Patch) -> None:
    patch.setattr(LeaseClient, "held_elsewhere", property(lambda self: not self.held))


def _deletes_first(patch: Patch) -> None:
    async def step(self: Mirror) -> bool:
        outbox = self._outbox.outbox
        rows = outbox.ready(200)
        kept, outbox_ready = rows, outbox.ready
        outbox.ready = lambda limit, since=0: kept  # type: ignore[method-assign]
        try:
            if self._lease.held and rows:
                outbox.delete([row[:2] for row in rows])
            return await _step(self)
        finally:
            outbox.ready = outbox_ready  # type: ignore[method-assign]

    patch.setattr(Mirror, "step", step)


def _deletes_what_became_final_meanwhile(patch: Patch) -> None:
    def count(self: Outbox, state: int, added: int) -> None:
        self._counts[state] += added

    def delete_range(self: Outbox, in_range: tuple[int, str, int], _expected: int) -> int:
        return self._db.execute(_DELETE_RANGE, in_range).rowcount

    patch.setattr(Outbox, "_count", count)
    patch.setattr(Outbox, "_delete_range", delete_range)


MUTANTS: Mapping[str, Callable[[Patch], None]] = {
    "1: `next` is not kept": _no_next,
    "1: samples and `next` in two transactions": _two_transactions,
    "2: status for every period since the last observation": _samples_changed_by(_status_for_all),
    "3: gaps are never opened": _no_gaps,
    "3: gaps only after the newest sample": _newest_only,
    "4: only the instance of the tick": _samples_changed_by(_one_instance),
    "4: the inventory is not used for gaps": _no_inventory,
    "4: the inventory is not used when observing": _no_inventory_when_observing,
    "5: vanished workers are forgotten": _vanished_are_forgotten,
    "5: nothing after the status was first seen": _no_period_of_the_end,
    "4: an instance without its region is a candidate": _polled_without_a_region,
    "6: age by the local clock": _local_age,
    "6: MongoDB's time continued by the local clock": _local_now,
    "7: no settle_delay": _no_settle_delay,
    "7: late values are not confirmed": _no_confirmation,
    "7: a missing datapoint is absent at once": _deciding_with(absence_timeout=300),
    "7: results decide outside their window": _outside_the_window,
    "7: partial results decide": _partial_is_complete,
    "8: idle at the tick is enough": _samples_changed_by(_idle_at_the_tick),
    "8: unlisted memory is absent at once": _unlisted_at_once,
    "9: the document's own values are ignored": _own_is_ignored,
    "10: recorded absent before it was queried": _absent_unpolled,
    "10: empty samples are written": _empty_is_written,
    "11: every worker is always due": _always_due,
    "12: deleted before it was inserted": _deletes_first,
    "12: rows that became final meanwhile are deleted with the batch": _deletes_what_became_final_meanwhile,
    "12: read back only after a failure": _blind,
    "12: does not wait for running inserts": _no_wait_for_inserts,
    "12: late inserts are not refused": _no_fence,
    "12: the fence is raised after the insert instead of before it": _fence_after_the_insert,
    "12: read back local data": _reads_back("local"),
    "12: read back majority-committed data": _reads_back("majority"),
    "14: two writers": _no_lease,
    "14: periods are opened only under the lease": _opens_under_the_lease_only,
}
"""The number of the rule and what the mutant does → the function that applies it within a MonkeyPatch context."""
