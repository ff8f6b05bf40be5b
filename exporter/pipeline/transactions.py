"""The outbox's half of each round: read rows, let the pure rules decide, write, in one transaction each.

These are synchronous and run in the outbox's one thread; the simulation drives them without a network.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from exporter.core.instances import next_entry
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
            memory = lifecycle.meet(worker, entry, now, rules)
        current = None if inventory is None else next_entry(entry, worker, now)
        opened, known[worker.id] = lifecycle.observe(worker, memory, now, rules, current)
        rows += opened
    gone: list[WorkerState] = []
    for memory in before.values():
        opened, memory = lifecycle.vanish(memory, now, rules)
        rows += opened
        gone.append(memory)
    with outbox.transaction():
        count = outbox.open(rows)
        outbox.update_own(fleet.workers, rules.period)
        outbox.remember([*known.values(), *gone])
        outbox.forget(memory.worker_id for memory in gone if memory.seen < now - rules.heal)
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
        for row in lifecycle.gaps(worker, known[worker.id], inventory.get(worker.id), have.get(worker.id, set()), now, rules)
    ]
    with outbox.transaction():
        return outbox.open(rows)


def apply_answers(
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
        for worker_id, queries in batch.asks.items():
            for row in outbox.open_rows(worker_id, batch.start, batch.end):
                if row.region != batch.region:
                    continue
                after = lifecycle.settle(row, queries, answers, listings, sightings, rules)
                if after != row:
                    changed.append(after)
                if after.settled:
                    for instance in after.instances:
                        for metric in METRICS:
                            sightings.pop((row.worker_id, row.start, instance, metric), None)
        dropped = outbox.update(changed)
    return sum(row.settled for row in changed) - dropped, dropped


def give_up(outbox: Outbox, worker_ids: Collection[str], now: int, rules: Rules) -> tuple[list[PendingSample], int]:
    """Settle what stayed undecided for `heal` though it was asked in this round; return those rows and the number dropped."""
    with outbox.transaction():
        rows = outbox.expired(worker_ids, now - rules.heal - rules.period)
        dropped = outbox.update([row.finish() for row in rows])
    return rows, dropped


def give_up_unasked(outbox: Outbox, now: int, rules: Rules) -> tuple[list[PendingSample], int]:
    """Settle what the budget left unasked for a day beyond `heal`, so that status and labs are not kept back for ever."""
    with outbox.transaction():
        rows = outbox.older(now - rules.heal - DAY)
        dropped = outbox.update([row.finish() for row in rows])
    return rows, dropped


def settle_alone(outbox: Outbox, now: int, rules: Rules, limit: int = 50_000) -> tuple[int, int]:
    """Without CloudWatch: settle by the aggregates alone; return (settled with something in them, dropped as empty)."""
    with outbox.transaction():
        before = outbox.all_open_rows(limit)
        after = [row for row in (lifecycle.settle_alone(row, now, rules) for row in before) if row.settled]
        dropped = outbox.update(after)
    return len(after) - dropped, dropped
