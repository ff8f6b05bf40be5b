"""The outbox's half of each round: read rows, let the pure rules decide, write, in one transaction each.

These are synchronous and run in the outbox's one thread; the simulation drives them without a network.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from exporter.core.instances import updated_entry
from exporter.core.model import METRICS, Fleet, InventoryEntry, Listing, MetricResults, Worker
from exporter.core.periods import DAY
from exporter.pipeline import lifecycle
from exporter.pipeline.lifecycle import FirstSeenValues, PendingSample, Rules, WorkerState
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.planning import MetricDataCall


def open_periods(
    outbox: Outbox, fleet: Fleet, inventory: Mapping[str, InventoryEntry] | None, rules: Rules
) -> tuple[int, dict[str, WorkerState]]:
    """Open the closed periods of every worker; return how many, and what is known of each listed worker.

    Without the inventory, workers the outbox does not know wait: their past instances cannot be told.
    """
    now, before = fleet.date, outbox.known()
    rows: list[PendingSample] = []
    known: dict[str, WorkerState] = {}
    for worker in fleet.workers:
        memory = before.pop(worker.id, None)
        entry = inventory.get(worker.id) if inventory is not None else None
        if memory is None:
            if inventory is None:
                continue
            memory = lifecycle.initial_state(worker, entry, now, rules)
        current = None if inventory is None else updated_entry(entry, worker, now)
        opened, known[worker.id] = lifecycle.observe(worker, memory, now, rules, current)
        rows += opened
    gone: list[WorkerState] = []
    for memory in before.values():
        opened, memory = lifecycle.close_missing(memory, now, rules)
        rows += opened
        gone.append(memory)
    with outbox.transaction():
        count = outbox.open(rows)
        outbox.update_own(fleet.workers, rules.period)
        outbox.remember([*known.values(), *gone])
        outbox.forget(memory.worker_id for memory in gone if memory.seen < now - rules.gap_fill_window)
    return count, known


def open_gaps(
    outbox: Outbox,
    workers: Iterable[Worker],
    known: Mapping[str, WorkerState],
    inventory: Mapping[str, InventoryEntry],
    have: Mapping[str, AbstractSet[int]],
    now: int,
    rules: Rules,
) -> int:
    """Open the periods the history lacks; return how many."""
    rows = [
        row
        for worker in workers
        for row in lifecycle.missing_samples(
            worker, known[worker.id], inventory.get(worker.id), have.get(worker.id, set()), now, rules
        )
    ]
    with outbox.transaction():
        return outbox.open(rows)


def apply_results(
    outbox: Outbox,
    batch: MetricDataCall,
    answers: MetricResults,
    listings: Sequence[Listing],
    sightings: FirstSeenValues,
    rules: Rules,
) -> tuple[int, int]:
    """Settle what the answers of one call decide; return (settled with something in them, dropped as empty)."""
    changed: list[PendingSample] = []
    with outbox.transaction():
        for worker_id, queries in batch.queries_by_worker.items():
            for row in outbox.open_rows(worker_id, batch.start, batch.end):
                if row.region != batch.region:
                    continue
                after = lifecycle.finalize(row, queries, answers, listings, sightings, rules)
                if after != row:
                    changed.append(after)
                if after.final:
                    for instance in after.instances:
                        for metric in METRICS:
                            sightings.pop((row.worker_id, row.start, instance, metric), None)
        dropped = outbox.update(changed)
    return sum(row.final for row in changed) - dropped, dropped


def record_absent(outbox: Outbox, worker_ids: Collection[str], now: int, rules: Rules) -> tuple[list[PendingSample], int]:
    """Finalize what is undecided after `gap_fill_window` and was polled in this cycle; return the rows and how many dropped."""
    with outbox.transaction():
        rows = outbox.expired(worker_ids, now - rules.gap_fill_window - rules.period)
        dropped = outbox.update([row.finish() for row in rows])
    return rows, dropped


def record_absent_unpolled(outbox: Outbox, now: int, rules: Rules) -> tuple[list[PendingSample], int]:
    """Finalize what the budget left unpolled for a day beyond `gap_fill_window`, so that status and labs are not held back."""
    with outbox.transaction():
        rows = outbox.older(now - rules.gap_fill_window - DAY)
        dropped = outbox.update([row.finish() for row in rows])
    return rows, dropped


def finalize_without_cloudwatch(outbox: Outbox, now: int, rules: Rules, limit: int = 50_000) -> tuple[int, int]:
    """Without CloudWatch: settle by the aggregates alone; return (settled with something in them, dropped as empty)."""
    with outbox.transaction():
        before = outbox.all_open_rows(limit)
        after = [row for row in (lifecycle.finalize_without_cloudwatch(row, now, rules) for row in before) if row.final]
        dropped = outbox.update(after)
    return len(after) - dropped, dropped
