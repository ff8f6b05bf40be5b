"""The outbox (SQLite, WAL): the state of each worker, and the samples on their way to the history, one row each.

It is the only state of the process that must survive a crash. Losing it costs the status and labs of the periods that were in
it, nothing else. One process (a lock on the folder), one thread at a time, short transactions.

`synchronous` is NORMAL: after a power cut the last transactions may be gone. That is the same as having crashed a little
earlier, because each step of the sample lifecycle is one transaction.
"""

from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet

from exporter.core import logs
from exporter.core.errors import StoreError
from exporter.core.model import FinalSample, PendingQuery, Worker
from exporter.pipeline import dropped_periods, forward_queue
from exporter.pipeline.gaps import Gap, runs
from exporter.pipeline.lifecycle import PendingSample
from exporter.pipeline.outbox_file import OPEN, READY, REJECTED, STATES
from exporter.pipeline.outbox_workers import ROW, OutboxWorkers

_log = logs.get("outbox")

_OLDEST = """
WITH RECURSIVE each(worker) AS (
  SELECT MIN(worker) FROM sample
  UNION ALL SELECT (SELECT MIN(worker) FROM sample WHERE worker > each.worker) FROM each WHERE each.worker IS NOT NULL)
SELECT MIN((SELECT start FROM sample WHERE sample.worker = each.worker AND state < 2 ORDER BY start LIMIT 1)) FROM each
"""
"""The first row of each worker: 30 ms for 10,000 workers, however many rows they have."""
_GAP = """
INSERT OR IGNORE INTO sample(worker, start, region, instances, state)
WITH RECURSIVE period(start) AS (VALUES(?) UNION ALL SELECT start + ? FROM period WHERE start + ? < ?)
SELECT ?, start, ?, ?, 0 FROM period
"""
_DELETE = "DELETE FROM sample WHERE worker=? AND start=? AND state=1"
_DELETE_RANGE = "DELETE FROM sample WHERE state=1 AND start>=? AND (worker, start)<=(?,?)"

SPENT_BY_READERS = "spent_by_readers"
"""Key of the metrics billed on behalf of HTTP readers, for `Outbox.spent` and `keep_spent`; by default all are meant."""

Keys = Collection[tuple[str, int]]
"""Worker id and start of each sample."""


class Outbox(OutboxWorkers):
    """The samples, worker states and figures in the outbox. Times are UTC seconds.

    Raises, from every method:
        StoreError: SQLite failed (`reason` "disk_full" if the disk is full); the transaction was rolled back.
    """

    # -- observed

    def open(self, rows: Iterable[PendingSample]) -> int:
        """Add the rows that do not exist yet; return how many were added."""
        by_state: dict[int, list[PendingSample]] = {OPEN: [], READY: []}
        for row in rows:
            by_state[READY if row.final else OPEN].append(row)
        added = 0
        for state, some in by_state.items():
            count = self._many(
                f"INSERT OR IGNORE INTO sample({ROW}) VALUES(?,?,?,?,?,?,?,?,?,?,?)", (_to_row(row, state) for row in some)
            )
            self._count(state, count)
            added += count
        return added

    def add_final(self, samples: Iterable[FinalSample]) -> int:
        """Add final rows that do not exist yet; return how many were added."""
        added = self._many(
            "INSERT OR IGNORE INTO sample(worker, start, region, cpu, memory, labs, status, instances, state) "
            "VALUES(?,?,?,?,?,?,?,'',1)",
            samples,
        )
        self._count(READY, added)
        return added

    def open_gaps(self, gaps: Iterable[Gap]) -> int:
        """Add the open rows of these periods that do not exist yet; return how many were added.

        SQLite makes the rows: a day of a worker is one statement, and a fifth of the CPU of as many `PendingSample`.
        """
        added = self._many(
            _GAP,
            ((g.start, self._period, self._period, g.end, g.worker_id, g.region, " ".join(g.instances)) for g in gaps),
        )
        self._counts[OPEN] += added
        return added

    def next_period(self, worker_id: str) -> int | None:
        """Return the start of a worker's first period that was never opened; None for a worker without a state."""
        rows = self._select("SELECT next FROM worker WHERE id=?", (worker_id,))
        return rows[0][0] if rows else None

    def update_own(self, workers: Iterable[Worker], period: int, opened: AbstractSet[tuple[str, int]] = frozenset()) -> None:
        """Write the worker documents' own values into the open rows whose period contains the collection time.

        Args:
            workers: as read.
            period: seconds.
            opened: (worker id, start) of the rows that were opened with the values of this read.
        """
        collected = ((w, w.collected_at - w.collected_at % period) for w in workers if w.collected_at is not None)
        self._many(
            "UPDATE sample SET own_cpu=?, own_memory=? WHERE worker=? AND start=? AND state=0",
            ((w.cpu, w.memory, w.id, start) for w, start in collected if (w.id, start) not in opened),
        )

    # -- final

    def pending_queries(self) -> list[PendingQuery]:
        """Return one query per worker and region with open rows: all their candidates, from the oldest row on."""
        rows = self._select(
            "SELECT worker, region, instances, MIN(start) FROM sample WHERE state=0 GROUP BY worker, region, instances"
        )
        found: dict[tuple[str, str], PendingQuery] = {}
        with self.decoding():
            for worker, region, names, oldest in rows:
                one = PendingQuery(worker, region, tuple(sorted(names.split())), oldest)
                other = found.setdefault((worker, region), one)
                if other is not one:
                    instances = tuple(sorted({*other.instances, *one.instances}))
                    found[worker, region] = PendingQuery(worker, region, instances, min(other.oldest, oldest))
        return list(found.values())

    def open_rows(self, worker_id: str, start: int, end: int) -> list[PendingSample]:
        """Return the open rows of a worker whose period begins in [start, end), oldest first."""
        return self._rows("state=0 AND worker=? AND start>=? AND start<? ORDER BY start", (worker_id, start, end))

    def all_open_rows(self, limit: int) -> list[PendingSample]:
        """Return up to `limit` open rows, in no particular order."""
        return self._rows("state=0 LIMIT ?", (limit,))

    def older(self, before: int, limit: int = 50_000) -> list[PendingSample]:
        """Return up to `limit` open rows of any worker whose period began before `before`."""
        return self._rows("state=0 AND start<? LIMIT ?", (before, limit))

    def open_rows_of(self, worker_ids: Collection[str], region: str, start: int, end: int) -> list[PendingSample]:
        """Return the open rows of some workers in one region, with a start in [start, end), ordered by worker and start."""
        return self._rows(
            f"state=0 AND worker IN ({','.join('?' * len(worker_ids))}) AND start>=? AND start<? AND region=? "
            "ORDER BY worker, start",
            (*worker_ids, start, end, region),
        )

    def expired(self, worker_ids: Iterable[str], before: int) -> list[PendingSample]:
        """Return the open rows of these workers whose period began before `before`: usually none, which the index tells."""
        having = self._select("SELECT DISTINCT worker FROM sample WHERE state=0 AND start<?", (before,))
        found = {worker_id for (worker_id,) in having}.intersection(worker_ids)
        return [row for worker_id in sorted(found) for row in self.open_rows(worker_id, 0, before)]

    def update(self, rows: Sequence[PendingSample]) -> int:
        """Write rows that were open, and delete those that are final and empty; return how many were deleted.

        What was deleted is remembered in `dropped_periods`.
        """
        dropped = self._many(
            "DELETE FROM sample WHERE worker=? AND start=? AND state=0",
            ((r.worker_id, r.start) for r in rows if r.final and r.empty),
        )
        dropped_periods.remember(self._db, runs((r for r in rows if r.final and r.empty), self._period))
        kept = [r for r in rows if not (r.final and r.empty)]
        finalized = self._many(
            "UPDATE sample SET cpu=?, memory=?, state=1 WHERE worker=? AND start=? AND state=0",
            ((r.cpu, r.memory, r.worker_id, r.start) for r in kept if r.final),
        )
        self._many(
            "UPDATE sample SET cpu=?, memory=? WHERE worker=? AND start=? AND state=0",
            ((r.cpu, r.memory, r.worker_id, r.start) for r in kept if not r.final),
        )
        self._counts[OPEN] -= dropped + finalized
        self._count(READY, finalized)
        return dropped

    # -- mirrored

    def ready(self, limit: int, since: int = 0) -> list[FinalSample]:
        """Return up to `limit` final rows from `since` on, worker by worker in time order, as a time series stores best."""
        found = self._select(
            "SELECT worker, start, region, cpu, memory, labs, status FROM sample WHERE state=1 AND start>=? "
            "ORDER BY worker, start LIMIT ?",
            (since, limit),
        )
        rows = list(map(FinalSample._make, found))
        self._range_read = (since, *rows[-1][:2]) if rows else None
        return rows

    def delete(self, keys: Keys, *, all_read: bool = False, forward: Collection[FinalSample] = ()) -> None:
        """Delete final rows that the history has acknowledged, and queue their samples. A transaction of its own.

        Args:
            keys: worker id and start of each.
            all_read: they are all that `ready` returned last: one statement deletes them, unless another became final since.
            forward: what the history has for these keys; queued for the targets of `forward_to`.
        """
        with self.transaction():
            forward_queue.append(self._db, self.forward_to, forward)
            in_range = self._range_read if all_read else None
            self._counts[READY] -= self._delete_range(in_range, len(keys)) if in_range else self._many(_DELETE, keys)
        self._range_read = None

    def _delete_range(self, in_range: tuple[int, str, int], expected: int) -> int:
        deleted = self._db.execute(_DELETE_RANGE, in_range).rowcount
        if deleted != expected:
            raise StoreError(
                f"{self.path}: {expected} mirrored rows were to be deleted, {deleted} were found; another program has changed "
                "the file, which none may do; the batch starts over"
            )
        return deleted

    def set_aside(self, keys: Keys) -> None:
        """Set aside rows that MongoDB rejects permanently, for the operator to inspect. A transaction of its own."""
        with self.transaction():
            moved = self._many("UPDATE sample SET state=2 WHERE worker=? AND start=? AND state=1", keys)
            self._counts[READY] -= moved
            self._counts[REJECTED] += moved

    # -- CloudWatch spending

    def spent(self, key: str = "spent") -> tuple[int, int]:
        """Return the start of the day last saved by `keep_spent` and the metrics billed on it; (0, 0) if none can be read."""
        rows = self._select("SELECT value FROM meta WHERE key=?", (key,))
        try:
            day, metrics = map(int, rows[0][0].split()) if rows else (0, 0)
        except (AttributeError, ValueError):
            _log.warning("what was spent today cannot be read; counted from 0", outbox=str(self.path), value=str(rows[0][0]))
            return 0, 0
        return day, metrics

    def keep_spent(self, day: int, metrics: int, key: str = "spent") -> None:
        """Save the metrics billed on the day that starts at `day`. A transaction of its own."""
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO meta(key, value) VALUES(?,?)", (key, f"{day} {metrics}"))

    # -- figures

    def counts(self) -> dict[str, int]:
        """Return the number of rows by state; a running count, since COUNT(*) of a day's backlog takes most of a second."""
        return {name: self._counts[state] for state, name in STATES.items()}

    def oldest(self) -> int | None:
        """Return the start of the oldest row that is not set aside; None if there is none."""
        return self._select(_OLDEST)[0][0] if self._counts[OPEN] or self._counts[READY] else None

    def _count(self, state: int, added: int) -> None:
        self._counts[state] += added
        if state == READY and added:
            self._range_read = None


def _to_row(sample: PendingSample, state: int) -> tuple[object, ...]:
    return (
        sample.worker_id, sample.start, sample.region, " ".join(sample.instances), sample.status, sample.active_labs,
        sample.own_cpu, sample.own_memory, sample.cpu, sample.memory, state,
    )  # fmt: skip
