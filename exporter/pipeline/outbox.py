"""The outbox (SQLite, WAL): the state of each worker, and the samples on their way to the history, one row each.

It is the only state of the process that must survive a crash. Losing it costs the status and labs of the periods that were in
it, nothing else. One process (a lock on the folder), one thread at a time, short transactions.

`synchronous` is NORMAL: after a power cut the last transactions may be gone. That is the same as having crashed a little
earlier, because each step of the sample lifecycle is one transaction.
"""

import asyncio
import fcntl
import json
import os
import socket
import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TextIO, TypeVar

from exporter.core.errors import IncompatibleStoreError, OutboxLockedError, StoreError
from exporter.core.model import PendingQuery, Worker, WorkerFacts
from exporter.core.periods import format_duration
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.lifecycle import PendingSample, WorkerState

_OPEN, _READY, _REJECTED = 0, 1, 2
STATES = {_OPEN: "observed", _READY: "final", _REJECTED: "rejected"}
"""The values of the `state` label of cml_exporter_outbox_samples."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fleet(id TEXT PRIMARY KEY, worker TEXT, observed INT, terminated_seen INT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS worker(
  id TEXT PRIMARY KEY, region TEXT, instances TEXT, status TEXT, idle_since INT, seen INT, next INT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sample(
  worker TEXT, start INT, region TEXT, instances TEXT, status TEXT, labs INT,
  own_cpu REAL, own_memory REAL, cpu REAL, memory REAL, state INT,
  PRIMARY KEY(worker, start)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sample_open ON sample(worker, region, instances, start) WHERE state = 0;
CREATE INDEX IF NOT EXISTS sample_ready ON sample(worker, start) WHERE state = 1;
CREATE INDEX IF NOT EXISTS sample_start ON sample(start);
"""
_ROW = "worker, start, region, instances, status, labs, own_cpu, own_memory, cpu, memory, state"


SPENT_BY_READERS = "spent_by_readers"
"""Key of the metrics billed on behalf of HTTP readers, for `Outbox.spent` and `keep_spent`; by default all are meant."""


class Outbox:
    """The outbox in `directory`, locked for this process until `close`. Times are UTC seconds.

    Raises, from every method:
        StoreError: SQLite failed (`reason` "disk_full" if the disk is full); the transaction was rolled back.
    """

    def __init__(self, directory: Path, period: int, *, synchronous: str = "NORMAL") -> None:
        """Open or create the outbox.

        Args:
            directory: the folder; created if it does not exist.
            period: seconds of a period.
            synchronous: SQLite's setting.

        Raises:
            OutboxLockedError: another process has locked the folder.
            IncompatibleStoreError: the outbox belongs to another period, or is damaged.
            StoreError: the folder cannot be written.
        """
        self._lock = _lock(directory)
        self.path = directory / "outbox.db"
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={synchronous}")
            self._db.executescript(_SCHEMA)
            # With the host's name: exporters with a copy of the same folder must not be taken for one writer.
            self.owner = f"{self._meta('owner', uuid.uuid4().hex)}@{socket.gethostname()}"
            self._counts = dict.fromkeys(STATES, 0)
            self._counts |= dict(self._db.execute("SELECT state, COUNT(*) FROM sample GROUP BY state"))
            found = int(self._meta("period", str(period)))
        except sqlite3.Error as error:
            self._lock.close()
            raise self._translate(error) from error
        if found != period:
            self.close()
            raise IncompatibleStoreError(
                f"{self.path} holds samples of {format_duration(found)} but period is {format_duration(period)}; "
                "set period back, or give this exporter another data_dir",
                reason="period",
            )

    def close(self) -> None:
        """Release the file and the lock."""
        self._db.close()
        self._lock.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit everything within, or nothing; yield the connection for tables of the caller. Must not be nested."""
        before = dict(self._counts)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except BaseException as error:
            self._counts = before
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._translate(error) from error
            raise

    # -- worker states

    def states(self) -> dict[str, WorkerState]:
        """Return the state of every worker, by id."""
        rows = self._select("SELECT id, region, instances, status, idle_since, seen, next FROM worker")
        return {r[0]: WorkerState(r[0], r[1], tuple(r[2].split()), *r[3:]) for r in rows}

    def save_states(self, states: Iterable[WorkerState]) -> None:
        """Save the states of these workers; call it in the transaction that opens their rows."""
        self._many(
            "INSERT OR REPLACE INTO worker VALUES(?,?,?,?,?,?,?)",
            ((s.worker_id, s.region, " ".join(s.instances), s.status, s.idle_since, s.seen, s.next) for s in states),
        )

    def delete_states(self, worker_ids: Iterable[str]) -> None:
        """Delete the states of workers that left long ago; their rows stay."""
        self._many("DELETE FROM worker WHERE id=?", ((worker_id,) for worker_id in worker_ids))

    def keep_fleet(self, workers: Iterable[Worker], observed: int, terminated_seen: dict[str, int]) -> None:
        """Save the last complete read, for a start while MongoDB is unavailable. A transaction of its own.

        Args:
            workers: as read.
            observed: MongoDB's time of the read.
            terminated_seen: when each terminated worker was first seen so, by worker id.
        """
        with self.transaction():
            self._db.execute("DELETE FROM fleet")
            self._many(
                "INSERT INTO fleet VALUES(?,?,?,?)",
                ((w.id, json.dumps(asdict(w)), observed, terminated_seen.get(w.id)) for w in workers),
            )

    def last_fleet(self) -> tuple[int, tuple[Worker, ...], dict[str, int]]:
        """Return the last complete read as saved by `keep_fleet`: its time (0 if there is none), workers, terminated_seen."""
        rows = self._select("SELECT worker, observed, terminated_seen FROM fleet")
        workers = []
        for text, _, _ in rows:
            fields = json.loads(text)
            fields["extra"] = tuple((name, value) for name, value in fields.get("extra", ()))
            fields["facts"] = WorkerFacts(**_known(WorkerFacts, fields.get("facts", {})))
            workers.append(Worker(**_known(Worker, fields)))
        seen = {worker.id: row[2] for worker, row in zip(workers, rows, strict=True) if row[2] is not None}
        return (rows[0][1] if rows else 0), tuple(workers), seen

    # -- observed

    def open(self, rows: Iterable[PendingSample]) -> int:
        """Add the rows that do not exist yet; return how many were added."""
        by_state: dict[int, list[PendingSample]] = {_OPEN: [], _READY: []}
        for row in rows:
            by_state[_READY if row.final else _OPEN].append(row)
        added = 0
        for state, some in by_state.items():
            count = self._many(
                f"INSERT OR IGNORE INTO sample({_ROW}) VALUES(?,?,?,?,?,?,?,?,?,?,?)", (_to_row(row, state) for row in some)
            )
            self._counts[state] += count
            added += count
        return added

    def update_own(self, workers: Iterable[Worker], period: int) -> None:
        """Write the worker documents' own values into the open rows whose period contains the collection time."""
        self._many(
            "UPDATE sample SET own_cpu=?, own_memory=? WHERE worker=? AND start=? AND state=0",
            ((w.cpu, w.memory, w.id, w.collected_at - w.collected_at % period) for w in workers if w.collected_at is not None),
        )

    # -- final

    def pending_queries(self) -> list[PendingQuery]:
        """Return one query per worker and region with open rows: all their candidates, from the oldest row on."""
        rows = self._select(
            "SELECT worker, region, group_concat(DISTINCT instances), MIN(start) FROM sample WHERE state=0 "
            "GROUP BY worker, region"
        )
        return [
            PendingQuery(worker, region, tuple(sorted(set(names.replace(",", " ").split()))), oldest)
            for worker, region, names, oldest in rows
        ]

    def open_rows(self, worker_id: str, start: int, end: int) -> list[PendingSample]:
        """Return the open rows of a worker whose period begins in [start, end), oldest first."""
        return self._rows("state=0 AND worker=? AND start>=? AND start<? ORDER BY start", (worker_id, start, end))

    def all_open_rows(self, limit: int) -> list[PendingSample]:
        """Return up to `limit` open rows, in no particular order."""
        return self._rows("state=0 LIMIT ?", (limit,))

    def older(self, before: int, limit: int = 50_000) -> list[PendingSample]:
        """Return up to `limit` open rows of any worker whose period began before `before`."""
        return self._rows("state=0 AND start<? LIMIT ?", (before, limit))

    def expired(self, worker_ids: Iterable[str], before: int) -> list[PendingSample]:
        """Return the open rows of these workers whose period began before `before`."""
        return [row for worker_id in worker_ids for row in self.open_rows(worker_id, 0, before)]

    def update(self, rows: Sequence[PendingSample]) -> int:
        """Write rows that were open, and delete those that are final and empty; return how many were deleted."""
        dropped = self._many(
            "DELETE FROM sample WHERE worker=? AND start=? AND state=0",
            ((r.worker_id, r.start) for r in rows if r.final and r.empty),
        )
        kept = [r for r in rows if not (r.final and r.empty)]
        finalized = self._many(
            "UPDATE sample SET cpu=?, memory=?, state=1 WHERE worker=? AND start=? AND state=0",
            ((r.cpu, r.memory, r.worker_id, r.start) for r in kept if r.final),
        )
        self._many(
            "UPDATE sample SET cpu=?, memory=? WHERE worker=? AND start=? AND state=0",
            ((r.cpu, r.memory, r.worker_id, r.start) for r in kept if not r.final),
        )
        self._counts[_OPEN] -= dropped + finalized
        self._counts[_READY] += finalized
        return dropped

    # -- mirrored

    def ready(self, limit: int, since: int = 0) -> list[PendingSample]:
        """Return up to `limit` final rows from `since` on, worker by worker in time order, as a time series stores best."""
        return self._rows("state=1 AND start>=? ORDER BY worker, start LIMIT ?", (since, limit))

    def delete(self, rows: Iterable[PendingSample]) -> None:
        """Delete rows that the history has acknowledged. A transaction of its own."""
        with self.transaction():
            self._counts[_READY] -= self._many(
                "DELETE FROM sample WHERE worker=? AND start=? AND state=1", ((r.worker_id, r.start) for r in rows)
            )

    def set_aside(self, keys: Collection[tuple[str, int]]) -> None:
        """Set aside rows that MongoDB rejects permanently, for the operator to inspect. A transaction of its own."""
        with self.transaction():
            moved = self._many("UPDATE sample SET state=2 WHERE worker=? AND start=? AND state=1", keys)
            self._counts[_READY] -= moved
            self._counts[_REJECTED] += moved

    # -- CloudWatch spending

    def spent(self, key: str = "spent") -> tuple[int, int]:
        """Return the start of the day last saved by `keep_spent` and the metrics billed on it; (0, 0) if there is none."""
        rows = self._select("SELECT value FROM meta WHERE key=?", (key,))
        day, metrics = rows[0][0].split() if rows else (0, 0)
        return int(day), int(metrics)

    def keep_spent(self, day: int, metrics: int, key: str = "spent") -> None:
        """Save the metrics billed on the day that starts at `day`. A transaction of its own."""
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES(?,?)", (key, f"{day} {metrics}"))

    # -- figures

    def counts(self) -> dict[str, int]:
        """Return the number of rows by state; a running count, since COUNT(*) of a day's backlog takes most of a second."""
        return {name: self._counts[state] for state, name in STATES.items()}

    def oldest(self) -> int | None:
        """Return the start of the oldest row that is not set aside; None if there is none."""
        return self._select("SELECT MIN(start) FROM sample WHERE state<2")[0][0] if self._has_pending() else None

    def _has_pending(self) -> bool:
        return bool(self._counts[_OPEN] or self._counts[_READY])

    # -- SQLite

    def _meta(self, key: str, default: str) -> str:
        self._db.execute("INSERT OR IGNORE INTO meta VALUES(?,?)", (key, default))
        value: str = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()[0]
        return value

    def _select(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _rows(self, where: str, parameters: Sequence[object]) -> list[PendingSample]:
        return [_from_row(row) for row in self._select(f"SELECT {_ROW} FROM sample WHERE {where}", parameters)]

    def _many(self, sql: str, parameters: Iterable[Sequence[object]]) -> int:
        return max(0, self._db.executemany(sql, parameters).rowcount)

    def _translate(self, error: sqlite3.Error) -> StoreError:
        return _translate(self.path, error)


def _known(record: type[Worker] | type[WorkerFacts], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that this release knows: an earlier or later one may have written the outbox."""
    names = record.__dataclass_fields__
    return {name: value for name, value in fields.items() if name in names}


def _to_row(sample: PendingSample, state: int) -> tuple[object, ...]:
    return (
        sample.worker_id, sample.start, sample.region, " ".join(sample.instances), sample.status, sample.active_labs,
        sample.own_cpu, sample.own_memory, sample.cpu, sample.memory, state,
    )  # fmt: skip


def _from_row(row: Sequence[Any]) -> PendingSample:
    worker, start, region, instances, status, labs, own_cpu, own_memory, cpu, memory, state = row
    return PendingSample(
        worker, start, region, tuple(instances.split()), status, labs, own_cpu, own_memory, cpu, memory, state == _READY
    )


def _translate(path: Path, error: sqlite3.Error) -> StoreError:
    """Return an SQLite error as a StoreError."""
    code = getattr(error, "sqlite_errorname", "")
    if code == "SQLITE_FULL" or "disk is full" in str(error):
        return StoreError(f"{path} cannot grow: the disk is full; make room, no final sample is lost", reason="disk_full")
    if code in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
        return IncompatibleStoreError(
            f"{path} is damaged ({error}); move it away and start again: its samples are queried from CloudWatch again",
            reason="damaged",
        )
    return StoreError(f"{path}: {error}; check the disk and the permissions of data_dir", reason="outbox")


def _lock(directory: Path) -> TextIO:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("a+")
    except OSError as error:
        raise StoreError(
            f"data_dir: cannot write to {directory} ({error.strerror}); let this user write to it, or set another folder",
            reason="outbox",
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise OutboxLockedError(
            f"data_dir: {directory} is in use by the exporter with process id {holder}; stop that one, "
            "or give this one another data_dir",
            reason="locked",
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


P = ParamSpec("P")
T = TypeVar("T")


class OutboxThread:
    """The one thread in which functions run on the outbox, so that a large transaction never blocks the event loop."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self._pool = ThreadPoolExecutor(1, "outbox")

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in that thread and return its result; raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))

    async def export_gauges(self, telemetry: Telemetry) -> None:
        """Update the metrics of the samples in the outbox."""
        telemetry.outbox_oldest.value = await self(self.outbox.oldest)
        for state, count in self.outbox.counts().items():
            telemetry.outbox_samples.labels(state).set(count)

    def close(self) -> None:
        """Wait for the running function, then close the outbox."""
        self._pool.shutdown()
        self.outbox.close()
