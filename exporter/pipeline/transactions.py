"""The outbox's half of each step: read rows, apply the pure rules, write; in one transaction each.

These functions are synchronous and run in the outbox's one thread; the simulation drives them without a network.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from exporter.core.instances import entry_with_instance
from exporter.core.model import METRICS, Fleet, InventoryEntry, Listing, MetricResults, Worker
from exporter.core.periods import DAY
from exporter.pipeline import dropped_periods, gaps, lifecycle
from exporter.pipeline.decided_values import DecidedValues, ValueChange
from exporter.pipeline.lifecycle import FirstSeenValues, PendingSample, Rules, WorkerState
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.planning import MetricDataCall, compared_before

PIECE_SAMPLES = 20_000
"""Samples that are opened in one transaction: some tens of megabytes."""


class Opened(NamedTuple):
    """What one transaction of an observation has opened."""

    samples: int
    lost: int
    """Periods that were left out because they are older than `gap_fill_window`."""


def open_periods(
    outbox: Outbox, fleet: Fleet, inventory: Mapping[str, InventoryEntry] | None, rules: Rules
) -> Iterator[Opened]:
    """Open the closed periods of every worker, and yield after each transaction what it has opened.

    Without the inventory, workers the outbox has not seen are left for later: their past instances are unknown. After a long
    stop there are many periods: each `PIECE_SAMPLES` are a transaction of their own, so that neither memory nor a kill decides
    how far it gets, and a poll waits for one of them at most.
    """
    now, known = fleet.date, outbox.states()
    left = {worker_id: state for worker_id, state in known.items() if not fleet.has_moved(worker_id)}
    samples: list[PendingSample] = []
    states: list[WorkerState] = []
    lost = 0
    for worker in fleet.workers:
        state = left.pop(worker.id, None)
        entry = inventory.get(worker.id) if inventory is not None else None
        if state is None:
            if inventory is None:
                continue
            state = lifecycle.initial_state(worker, entry, now, rules)
        lost += lifecycle.unopened_periods(worker, state, entry, now, rules)
        current = None if inventory is None else entry_with_instance(entry, worker, now)
        opened, state = lifecycle.observe(worker, state, now, rules, current)
        samples += opened
        states.append(state)
        if len(samples) >= PIECE_SAMPLES:
            with outbox.transaction():
                count = outbox.open(samples)
                outbox.save_states(states, known)
            yield Opened(count, lost)
            samples, states, lost = [], [], 0
    gone: list[WorkerState] = []
    for state in left.values():
        opened, state = lifecycle.close_missing(state, now, rules)
        samples += opened
        gone.append(state)
    oldest = now - rules.gap_fill_window
    with outbox.transaction() as database:
        count = outbox.open(samples)
        outbox.update_own(fleet.workers, rules.period, {(one.worker_id, one.start) for one in samples})
        outbox.save_states([*states, *gone], known)
        outbox.delete_states(state.worker_id for state in gone if state.seen < oldest)
        dropped_periods.forget(database, oldest)
    yield Opened(count, lost)


def open_piece(pieces: Iterator[Opened]) -> Opened | None:
    """Make the next transaction of `open_periods`; None after the last."""
    return next(pieces, None)


def open_gaps(
    outbox: Outbox,
    workers: Iterable[Worker],
    inventory: Mapping[str, InventoryEntry],
    existing: Mapping[str, AbstractSet[int]],
    now: int,
    rules: Rules,
) -> tuple[int, list[Worker]]:
    """Open the periods that the history lacks.

    Args:
        outbox: where they are opened.
        workers: as read.
        inventory: by worker id.
        existing: starts of the periods the history has, by worker id.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.

    Returns:
        How many, and the workers that were searched: those the outbox has a state of.
    """
    found: list[gaps.Gap] = []
    searched: list[Worker] = []
    with outbox.transaction() as database:
        for worker in workers:
            following = outbox.next_period(worker.id)
            if following is not None:
                searched.append(worker)
                entry, known = inventory.get(worker.id), existing.get(worker.id, set())
                with outbox.decoding():
                    dropped = dropped_periods.of_worker(database, worker.id)
                found += gaps.find_gaps(worker, following, entry, known, dropped, now, rules)
        return outbox.open_gaps(found), searched


def apply_results(
    outbox: Outbox,
    call: MetricDataCall,
    results: MetricResults,
    listings: Sequence[Listing],
    first_seen: FirstSeenValues,
    decided: DecidedValues,
    rules: Rules,
    running: AbstractSet[str] = frozenset(),
) -> tuple[int, int, list[ValueChange]]:
    """Finalize what the results of one call decide, and compare them with what earlier calls decided.

    Args:
        outbox: holds the open samples.
        call: the call, with its window and the queries of each worker.
        results: CloudWatch's results, with its clock.
        listings: the ListMetrics results the queries were made from.
        first_seen: updated; entries of final samples are removed.
        decided: updated.
        rules: the settings of the sample lifecycle.
        running: the ids of the workers that are polled in every cycle: their youngest samples are left out.

    Returns:
        How many became final, how many were dropped as empty, and which values CloudWatch has changed since they were decided.
    """
    changed: list[PendingSample] = []
    decisions: list[tuple[PendingSample, PendingSample]] = []
    often = call.queries_by_worker.keys() & running
    until = min(call.end, compared_before(max((results.date, *results.dates.values())), rules))
    with outbox.transaction():
        rows = outbox.open_rows_of(often, call.region, call.start, until)
        rows += outbox.open_rows_of(call.queries_by_worker.keys() - running, call.region, call.start, call.end)
        for before in rows:
            queries = call.queries_by_worker[before.worker_id]
            after = lifecycle.finalize(before, queries, results, listings, first_seen, rules)
            if after is before:
                continue
            changed.append(after)
            if before.start >= call.end - decided.window:
                decisions.append((before, after))
            if after.final and first_seen:
                for instance in after.instances:
                    for metric in METRICS:
                        first_seen.pop((after.worker_id, after.start, instance, metric), None)
        dropped = outbox.update(changed)
    changes: list[ValueChange] = []
    for worker_id, queries in call.queries_by_worker.items():
        changes += decided.compare(worker_id, queries, results)
    for before, after in decisions:
        decided.record(before, after, call.queries_by_worker[after.worker_id], results)
    return sum(sample.final for sample in changed) - dropped, dropped, changes


def record_absent(outbox: Outbox, worker_ids: Collection[str], now: int, rules: Rules) -> tuple[list[PendingSample], int]:
    """Finalize what is undecided after `gap_fill_window` and was polled in this cycle.

    Args:
        outbox: holds the open samples.
        worker_ids: the workers polled in this cycle.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.

    Returns:
        The samples as they were while open, and how many were dropped as empty.
    """
    with outbox.transaction():
        samples = outbox.expired(worker_ids, now - rules.gap_fill_window - rules.period)
        dropped = outbox.update([sample.finish() for sample in samples])
    return samples, dropped


def record_absent_unpolled(outbox: Outbox, now: int, rules: Rules) -> tuple[list[PendingSample], int]:
    """Finalize what the budget left unpolled for a day beyond `gap_fill_window`, so that status and labs are not held back.

    Arguments and result are those of `record_absent`.
    """
    with outbox.transaction():
        samples = outbox.older(now - rules.gap_fill_window - DAY)
        dropped = outbox.update([sample.finish() for sample in samples])
    return samples, dropped


def finalize_without_cloudwatch(outbox: Outbox, now: int, rules: Rules, limit: int = 50_000) -> tuple[int, int]:
    """Finalize samples by the worker documents alone, where CloudWatch is disabled.

    Args:
        outbox: holds the open samples.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.
        limit: the most samples to read.

    Returns:
        How many became final, and how many were dropped as empty.
    """
    with outbox.transaction():
        before = outbox.all_open_rows(limit)
        after = [
            sample for sample in (lifecycle.finalize_without_cloudwatch(one, now, rules) for one in before) if sample.final
        ]
        dropped = outbox.update(after)
    return len(after) - dropped, dropped
