"""The workers in the outbox: the state of each, and all that there is of one that moves to another exporter."""

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from exporter.pipeline.lifecycle import PendingSample, WorkerState
from exporter.pipeline.outbox_file import OPEN, READY, OutboxFile

ROW = "worker, start, region, instances, status, labs, own_cpu, own_memory, cpu, memory, state"
"""The columns of a sample, in the order of `PendingSample` and its state."""
_WORKERS = """
WITH RECURSIVE each(worker) AS (
  SELECT MIN(worker) FROM sample
  UNION ALL SELECT (SELECT MIN(worker) FROM sample WHERE worker > each.worker) FROM each WHERE each.worker IS NOT NULL)
SELECT worker FROM each
WHERE worker IS NOT NULL AND EXISTS (SELECT 1 FROM sample WHERE sample.worker = each.worker AND state < 2)
"""


class OutboxWorkers(OutboxFile):
    """The part of the outbox that is about whole workers; see `Outbox`."""

    # -- worker states

    def states(self) -> dict[str, WorkerState]:
        """Return the state of every worker, by id."""
        rows = self._select("SELECT id, region, instances, status, idle_since, seen, next FROM worker")
        with self.decoding():
            return {r[0]: WorkerState(r[0], r[1], tuple(r[2].split()), *r[3:]) for r in rows}

    def save_states(self, states: Iterable[WorkerState], known: Mapping[str, WorkerState] = MappingProxyType({})) -> None:
        """Save the states of these workers; call it in the transaction that opens their rows.

        Nearly all workers of a read have the same new times and no other change: one statement saves those.

        Args:
            states: new.
            known: worker id → the state that `states` returned.
        """
        times: dict[tuple[int, int], list[WorkerState]] = {}
        others: list[WorkerState] = []
        for state in states:
            before = known.get(state.worker_id)
            if before is None or before[:-2] != state[:-2]:
                others.append(state)
            elif before != state:
                times.setdefault((state.seen, state.next), []).append(state)
        for (seen, following), some in times.items():
            updated = self._db.execute(
                "UPDATE worker SET seen=?, next=? WHERE id IN (SELECT value FROM json_each(?))",
                (seen, following, json.dumps([state.worker_id for state in some])),
            ).rowcount
            if updated != len(some):  # an id that SQLite reads otherwise in JSON
                others += some
        self._many(
            "INSERT OR REPLACE INTO worker(id, region, instances, status, idle_since, seen, next) VALUES(?,?,?,?,?,?,?)",
            ((s.worker_id, s.region, " ".join(s.instances), s.status, s.idle_since, s.seen, s.next) for s in others),
        )

    def delete_states(self, worker_ids: Iterable[str]) -> None:
        """Delete the states of workers that left long ago; their rows stay."""
        self._many("DELETE FROM worker WHERE id=?", ((worker_id,) for worker_id in worker_ids))

    # -- workers that move to another exporter

    def workers(self) -> set[str]:
        """Return the ids of the workers that have rows, except those that are set aside."""
        return {worker_id for (worker_id,) in self._select(_WORKERS)}

    def rows(self, worker_id: str) -> list[PendingSample]:
        """Return the rows of a worker, oldest first, except those that are set aside."""
        return self._rows("worker=? AND state<2 ORDER BY start", (worker_id,))

    def remove_workers(self, worker_ids: Iterable[str]) -> int:
        """Delete the states of workers, and their rows except those that are set aside; return the number of rows."""
        ids, removed = list(worker_ids), 0
        for state in (OPEN, READY):
            count = self._many("DELETE FROM sample WHERE worker=? AND state=?", ((id_, state) for id_ in ids))
            self._counts[state] -= count
            removed += count
        self.delete_states(ids)
        self._range_read = None
        return removed

    def complete(self, rows: Iterable[PendingSample]) -> None:
        """Write observed values into the rows of these periods that have none, because the periods were opened as gaps."""
        self._many(
            "UPDATE sample SET status=?, labs=?, own_cpu=?, own_memory=? "
            "WHERE worker=? AND start=? AND status IS NULL AND state<2",
            (
                (row.status, row.active_labs, row.own_cpu, row.own_memory, row.worker_id, row.start)
                for row in rows
                if row.status is not None
            ),
        )

    def _rows(self, where: str, parameters: Sequence[object]) -> list[PendingSample]:
        rows = self._select(f"SELECT {ROW} FROM sample WHERE {where}", parameters)
        with self.decoding():
            return [_from_row(row) for row in rows]


def _from_row(row: Sequence[Any]) -> PendingSample:
    worker, start, region, instances, status, labs, own_cpu, own_memory, cpu, memory, state = row
    return PendingSample(
        worker, start, region, tuple(instances.split()), status, labs, own_cpu, own_memory, cpu, memory, state == READY
    )
