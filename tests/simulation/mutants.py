"""Rules taken away one at a time. The simulation must notice each; else it proves nothing about that rule."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import pytest

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
from exporter.pipeline import lifecycle, observer, poller, transactions
from exporter.pipeline.lifecycle import Decision, FirstSeenValues, PendingSample, Rules, WorkerState
from exporter.pipeline.mirror import Mirror
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.planning import MetricDataCall
from exporter.pipeline.poller import Poller
from tests.simulation.process import HistoryClient, LeaseClient, MetricClient
from tests.simulation.world import Key

Opened = tuple[list[PendingSample], WorkerState]
Entry = InventoryEntry | None
Asked = Sequence[MetricQuery]
Listings = Sequence[Listing]
Patch = pytest.MonkeyPatch

_observe, _gaps, _judge = lifecycle.observe, lifecycle.missing_samples, lifecycle.decide_metric
_step, _poll = Mirror.step, Poller.poll


# -- observing


def _no_next(patch: Patch) -> None:
    def observe(worker: Worker, known: WorkerState, now: int, rules: Rules, entry: Entry = None) -> Opened:
        return _observe(worker, replace(known, next=align(now, rules.period) - 2 * rules.period), now, rules, entry)

    patch.setattr(lifecycle, "observe", observe)


def _rows_changed_by(change: Callable[[PendingSample, Worker], PendingSample]) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        def observe(worker: Worker, known: WorkerState, now: int, rules: Rules, entry: Entry = None) -> Opened:
            rows, known = _observe(worker, known, now, rules, entry)
            return [change(row, worker) for row in rows], known

        patch.setattr(lifecycle, "observe", observe)

    return mutate


def _status_for_all(row: PendingSample, worker: Worker) -> PendingSample:
    return replace(row, status=worker.status, active_labs=worker.active_labs)


def _one_instance(row: PendingSample, worker: Worker) -> PendingSample:
    return replace(row, instances=(worker.instance_id,) if worker.instance_id else ())


def _idle_at_the_tick(row: PendingSample, worker: Worker) -> PendingSample:
    return row.finish() if worker.status in IDLE_STATUSES and row.status else row


def _newest_only(patch: Patch) -> None:
    def gaps(worker: Worker, known: WorkerState, entry: Entry, have: set[int], now: int, rules: Rules) -> list[PendingSample]:
        return [row for row in _gaps(worker, known, entry, have, now, rules) if row.start > max(have, default=0)]

    patch.setattr(lifecycle, "missing_samples", gaps)


def _no_gaps(patch: Patch) -> None:
    patch.setattr(lifecycle, "missing_samples", lambda *_: [])


def _no_inventory_when_observing(patch: Patch) -> None:
    patch.setattr(lifecycle, "observe", lambda worker, known, now, rules, entry=None: _observe(worker, known, now, rules))


def _no_inventory(patch: Patch) -> None:
    def ran_on(entry: Entry, worker: Worker, start: int, end: int) -> tuple[str, tuple[str, ...]]:
        return worker.region, (worker.instance_id,) if worker.instance_id else ()

    patch.setattr(lifecycle, "instances_during", ran_on)


def _vanished_are_forgotten(patch: Patch) -> None:
    patch.setattr(lifecycle, "close_missing", lambda known, now, rules: ([], known))


def _two_transactions(patch: Patch) -> None:
    def open_periods(
        outbox: Outbox, fleet: Fleet, inventory: Mapping[str, InventoryEntry] | None, rules: Rules
    ) -> tuple[int, dict[str, WorkerState]]:
        before, rows, known = outbox.states(), list[PendingSample](), dict[str, WorkerState]()
        for worker in fleet.workers:
            memory = before.get(worker.id)
            if memory is None and inventory is None:
                continue
            entry = (inventory or {}).get(worker.id)
            memory = memory or lifecycle.initial_state(worker, entry, fleet.date, rules)
            opened, known[worker.id] = lifecycle.observe(worker, memory, fleet.date, rules, entry)
            rows += opened
        with outbox.transaction():
            outbox.save_states(known.values())
        with outbox.transaction():
            return outbox.open(rows), known

    patch.setattr(observer, "open_periods", open_periods)


# -- settling


def _judging_with(**rules_changed: int) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        def judge(
            row: PendingSample,
            metric: MetricName,
            queries: Asked,
            answers: MetricResults,
            listings: Listings,
            seen: FirstSeenValues,
            rules: Rules,
        ) -> Decision:
            return _judge(row, metric, queries, answers, listings, seen, replace(rules, **rules_changed))

        patch.setattr(lifecycle, "decide_metric", judge)

    return mutate


def _no_confirmation(patch: Patch) -> None:
    patch.setattr(lifecycle, "ON_TIME_SECONDS", 1_000_000)


def _no_settle(patch: Patch) -> None:
    _judging_with(settle_delay=0)(patch)
    _no_confirmation(patch)


def _unlisted_at_once(patch: Patch) -> None:
    patch.setattr(lifecycle, "LISTING_LAG_SECONDS", 0)


def _outside_the_window(patch: Patch) -> None:
    def judge(
        row: PendingSample,
        metric: MetricName,
        queries: Asked,
        answers: MetricResults,
        listings: Listings,
        seen: FirstSeenValues,
        rules: Rules,
    ) -> Decision:
        wide = {query: replace(answer, start=0, end=1 << 40) for query, answer in answers.by_query.items()}
        return _judge(row, metric, queries, replace(answers, by_query=wide), listings, seen, rules)

    def apply_answers(
        outbox: Outbox, batch: MetricDataCall, answers: MetricResults, listings: Listings, seen: FirstSeenValues, rules: Rules
    ) -> tuple[int, int]:
        return transactions.apply_results(outbox, replace(batch, start=0, end=1 << 40), answers, listings, seen, rules)

    patch.setattr(lifecycle, "decide_metric", judge)
    patch.setattr(poller, "apply_results", apply_answers)


def _partial_is_complete(patch: Patch) -> None:
    patch.setattr(MetricResult, "complete", property(lambda self: True))


def _local_age(patch: Patch) -> None:
    ask = MetricClient.get_metric_data

    async def get_metric_data(
        self: MetricClient, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        return replace(await ask(self, region, queries, start, end, period), date=int(self._process.wall()))

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
    patch.setattr(PendingSample, "finish", lambda self: replace(self, final=True))


# -- asking


def _always_due(patch: Patch) -> None:
    patch.setattr(poller, "is_due", lambda *_: True)


def _given_up_unasked(patch: Patch) -> None:
    async def poll(self: Poller) -> None:
        outbox, now = self._outbox.outbox, self._clock.now()
        everyone = {row.worker_id for row in outbox.all_open_rows(100_000)}
        await self._outbox(transactions.record_absent, outbox, everyone, now, self._rules)
        await _poll(self)

    patch.setattr(Poller, "poll", poll)


# -- mirroring


def _blind(patch: Patch) -> None:
    """Reads back only after a failure."""

    async def existing_keys(self: HistoryClient, keys: Collection[Key]) -> set[Key]:
        return await _existing_keys(self, keys) if self._process.mirror.problem is not None else set()

    _existing_keys = HistoryClient.existing_keys
    patch.setattr(HistoryClient, "existing_keys", existing_keys)


def _no_wait_for_inserts(patch: Patch) -> None:
    async def no_insert_running(self: HistoryClient) -> bool:
        return True

    patch.setattr(HistoryClient, "no_insert_running", no_insert_running)


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


def _deletes_first(patch: Patch) -> None:
    async def step(self: Mirror) -> bool:
        outbox = self._outbox.outbox
        rows = outbox.ready(200)
        kept, outbox_ready = rows, outbox.ready
        outbox.ready = lambda limit, since=0: kept  # type: ignore[method-assign]
        try:
            if self._lease.held and rows:
                outbox.delete(rows)
            return await _step(self)
        finally:
            outbox.ready = outbox_ready  # type: ignore[method-assign]

    patch.setattr(Mirror, "step", step)


MUTANTS: Mapping[str, Callable[[Patch], None]] = {
    "1: no persistent `next`": _no_next,
    "1: rows and `next` in two transactions": _two_transactions,
    "2: status for every period since the last observation": _rows_changed_by(_status_for_all),
    "3: gaps are never opened": _no_gaps,
    "3: gaps only after the newest sample": _newest_only,
    "4: only the instance of the tick": _rows_changed_by(_one_instance),
    "4: the inventory is not used": _no_inventory,
    "4: an outbox is assumed to know every instance": _no_inventory_when_observing,
    "5: missing workers are forgotten": _vanished_are_forgotten,
    "6: age by the local clock": _local_age,
    "6: time carried on by the local clock": _local_now,
    "7: no settle delay": _no_settle,
    "7: late values are not confirmed": _no_confirmation,
    "7: an empty result is absent at once": _judging_with(absence_timeout=300),
    "7: results decide outside their window": _outside_the_window,
    "7: partial results decide": _partial_is_complete,
    "8: idle at the tick is enough": _rows_changed_by(_idle_at_the_tick),
    "8: unlisted memory is absent at once": _unlisted_at_once,
    "9: the worker document's values are ignored": _own_is_ignored,
    "10: recorded absent before it was polled": _given_up_unasked,
    "10: empty samples are written": _empty_is_written,
    "11: everyone is always due": _always_due,
    "12: deleted before it was inserted": _deletes_first,
    "12: read back only after a failure": _blind,
    "12: running inserts are not awaited": _no_wait_for_inserts,
    "12: read back what is local": _reads_back("local"),
    "12: read back what a majority has": _reads_back("majority"),
    "14: two writers": _no_lease,
}
"""The rule's number and what is done to it → how. Each is applied within a MonkeyPatch context."""
