"""The file of the outbox: lock, schema, verification, and what its errors mean. A damaged file is set aside, never deleted.

Nothing in the outbox is irreplaceable: after a loss the exporter looks for gaps in the history and queries CloudWatch again.
Only the status and labs of periods that were not mirrored yet are lost. So a damaged file must not stop the exporter.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from exporter.core import logs
from exporter.core.errors import IncompatibleStoreError, OutboxLockedError, StoreError
from exporter.core.periods import format_duration
from exporter.core.process_identity import locked_folder, new_owner
from exporter.pipeline import dropped_periods, forward_queue

_log = logs.get("outbox")

OPEN, READY, REJECTED = 0, 1, 2
STATES = {OPEN: "observed", READY: "final", REJECTED: "rejected"}
"""The values of the `state` label of cml_exporter_outbox_samples."""

SCHEMA_NUMBER = 1
"""SQLite's `user_version` of a file that this release makes; 0 was written before there was a number, with the same tables.

A later release may add tables and columns that may be null: this one then uses the file as it is, so that a rollback loses
nothing. Whatever else it changes needs other names.
"""
DAMAGED = "damaged"
"""`reason` of the error for a file that is no outbox, or no longer."""
ASIDE = ".damaged-"
"""Between the name of the outbox and the time at which it was set aside."""

_SCHEMA = (
    """
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
DROP INDEX IF EXISTS sample_start; -- of earlier releases: scattered by time, it took half of what opening a day of gaps costs
"""
    + dropped_periods.SCHEMA
    + forward_queue.SCHEMA
)


class OutboxFile:
    """The outbox in `directory`, locked for this process until `close`: connection, transactions, replacement when damaged.

    Raises, from every method:
        StoreError: SQLite failed (`reason` "disk_full" if the disk is full); the transaction was rolled back.
    """

    def __init__(self, directory: Path, period: int, *, synchronous: str = "NORMAL") -> None:
        """Open or create the outbox; a damaged one is set aside, and an empty one takes its place.

        Args:
            directory: the folder; created if it does not exist.
            period: seconds of a period.
            synchronous: SQLite's setting.

        Raises:
            OutboxLockedError: another process has locked the folder.
            IncompatibleStoreError: the outbox belongs to another period, or to a later release with other tables.
            StoreError: the folder cannot be written.
        """
        self._lock = lock(directory)
        self.path = directory / "outbox.db"
        self._synchronous = synchronous
        self._period = period
        self.replaced = 0
        """How many damaged files were set aside since the start."""
        self.forward_to: Sequence[str] = ()
        """The databases that get a copy of each sample, see `forward_queue`."""
        self._range_read: tuple[int, str, int] | None = None
        """Of the final rows read last: from which start on, and the last one; None once other rows may have become final."""
        try:
            self._load()
            # New for each process: exporters with a copy of the same folder must not be taken for one writer.
            self.owner, self.folder = new_owner(), locked_folder(self._lock)
            found = int(self._meta("period", str(period)))
        except sqlite3.Error as error:
            self._lock.close()
            raise self._translate(error) from error
        except BaseException:
            self._lock.close()
            raise
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

    def _load(self) -> None:
        """Open the file; set a damaged one aside and begin with an empty one."""
        try:
            self._read()
        except IncompatibleStoreError as error:
            if error.reason != DAMAGED:
                raise
            self._set_aside(error)
            self._read()

    def _read(self) -> None:
        """Open the file, and count its rows.

        Raises:
            StoreError: as `open_database`.
        """
        self._db = open_database(self.path, self._synchronous)
        try:
            with self.decoding():
                counts = self._select("SELECT state, COUNT(*) FROM sample GROUP BY state")
                self._counts = dict.fromkeys(STATES, 0) | {int(state): count for state, count in counts}
                self._range_read = None
                for (period,) in self._select("SELECT value FROM meta WHERE key='period'"):
                    int(period)
        except BaseException:
            self._db.close()
            raise

    def _set_aside(self, error: StoreError) -> None:
        kept = set_aside(self.path)
        self.replaced += 1
        _log.error("damaged outbox set aside; continued with an empty one", kept=str(kept), error=str(error))

    def replace(self, error: StoreError) -> None:
        """Set the file aside, because it turned out to be damaged, and continue with an empty one.

        Args:
            error: what showed the damage.

        Raises:
            StoreError: there is no outbox now; every method raises the same as for a damaged one, until this succeeds.
        """
        self._db.close()
        if self.path.exists():  # else an earlier attempt has renamed it and could not make a new one
            self._set_aside(error)
        self._read()
        try:
            self._meta("period", str(self._period))
        except sqlite3.Error as failed:
            raise self._translate(failed) from failed

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
            with suppress(sqlite3.Error):  # closed, or rolled back by SQLite; the first error is the one to report
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._translate(error) from error
            raise

    # -- SQLite

    def _meta(self, key: str, default: str) -> str:
        self._db.execute("INSERT OR IGNORE INTO meta(key, value) VALUES(?,?)", (key, default))
        value: str = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()[0]
        return value

    def _select(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _many(self, sql: str, parameters: Iterable[Sequence[object]]) -> int:
        return max(0, self._db.executemany(sql, parameters).rowcount)

    def _translate(self, error: sqlite3.Error) -> StoreError:
        if isinstance(error, sqlite3.ProgrammingError):  # closed: `replace` did not succeed
            return damaged(self.path, "it was set aside and no new one could be made yet")
        return translate(self.path, error)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Translate what a row of the wrong types raises: SQLite accepts any type in any column, so only reading shows it."""
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise damaged(self.path, f"a row cannot be read: {error!r}") from error


def open_database(path: Path, synchronous: str) -> sqlite3.Connection:
    """Open the outbox's database, or create it, with all its tables.

    Args:
        path: the file.
        synchronous: SQLite's setting.

    Raises:
        IncompatibleStoreError: it is damaged (`reason` DAMAGED), or a later release wrote it with other tables.
        StoreError: SQLite cannot open or write it.
    """
    try:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            verify(path, database)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(f"PRAGMA synchronous={synchronous}")
            database.executescript(_SCHEMA)
            if _schema_number(database) < SCHEMA_NUMBER:
                database.execute(f"PRAGMA user_version={SCHEMA_NUMBER}")
        except BaseException:
            database.close()
            raise
    except sqlite3.Error as error:
        raise translate(path, error) from error
    return database


def verify(path: Path, database: sqlite3.Connection) -> None:
    """Check that the file is a whole outbox, or empty; nothing is written.

    Args:
        path: the file, for messages.
        database: a connection to it.

    Raises:
        IncompatibleStoreError: as `open_database`.
        sqlite3.Error: SQLite cannot read it.
    """
    problems = [str(row[0]) for row in database.execute("PRAGMA quick_check(1)")]
    if problems != ["ok"]:
        raise damaged(path, problems[0] if problems else "no result of quick_check")
    found = _tables(database)
    if not found:
        return  # empty, or a process that was killed before it made the first table
    wanted = _expected_tables()
    found.setdefault("meta", set())  # the first table that is made, so without it the file is another program's
    bad = next((name for name, columns in wanted.items() if not columns <= found.get(name, columns)), None)
    if bad is None:
        return
    number = _schema_number(database)
    if number > SCHEMA_NUMBER:
        raise IncompatibleStoreError(
            f"{path} was written by a later release (schema {number}, this one knows {SCHEMA_NUMBER}); its table {bad} "
            "differs; start that release again until the outbox is empty, or move the file away: CPU and memory of its samples "
            "are then queried from CloudWatch again, status and labs are lost",
            reason="schema",
        )
    raise damaged(path, f"its table {bad} is not an outbox's")


def damaged(path: Path, why: str) -> IncompatibleStoreError:
    """Return the error for a file that is no outbox, or no longer."""
    return IncompatibleStoreError(
        f"{path} is damaged ({why}); the exporter sets it aside and continues with an empty one: CPU and memory of its samples "
        "are queried from CloudWatch again, status and labs that were not mirrored yet are lost",
        reason=DAMAGED,
    )


def set_aside(path: Path) -> Path:
    """Rename the file, and SQLite's files beside it, so that the name is free; return the new path.

    Raises:
        StoreError: the folder cannot be written.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    kept = path.with_name(f"{path.name}{ASIDE}{stamp}")
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}{ASIDE}{stamp}.{number}")
    try:
        for suffix in ("-wal", "-shm", "-journal"):  # with the same beginning SQLite finds them again
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
        path.rename(kept)
    except OSError as error:
        raise StoreError(
            f"{path} is damaged and cannot be set aside ({error.strerror}); move it away, or set another data_dir",
            reason="outbox",
        ) from error
    return kept


def aside_files(directory: Path) -> list[Path]:
    """Return the outboxes that were set aside in a data folder, the oldest first."""
    names = (path for path in directory.glob(f"outbox.db{ASIDE}*") if not path.name.endswith(("-wal", "-shm", "-journal")))
    return sorted(names)


def translate(path: Path, error: sqlite3.Error) -> StoreError:
    """Return an SQLite error as a StoreError; `reason` is one of OUTBOX_FAILURE_REASONS, "outbox" where none fits."""
    code = getattr(error, "sqlite_errorname", "")
    if code == "SQLITE_FULL" or "disk is full" in str(error):
        return StoreError(f"{path} cannot grow: the disk is full; make room, no final sample is lost", reason="disk_full")
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return damaged(path, str(error))
    if code.startswith("SQLITE_READONLY"):
        return StoreError(
            f"{path} cannot be written ({error}); mount its disk writable, or correct the permissions of data_dir",
            reason="read_only",
        )
    if code.startswith("SQLITE_IOERR"):
        return StoreError(
            f"{path} cannot be read or written ({error}, {code}); check the disk, and quotas and limits of the file size",
            reason="io",
        )
    return StoreError(f"{path}: {error}; check the disk and the permissions of data_dir", reason="outbox")


def lock(directory: Path) -> TextIO:
    """Lock the data folder for this process until the returned file is closed; create the folder if there is none.

    Raises:
        OutboxLockedError: another process has locked it.
        StoreError: the folder cannot be written.
    """
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
    # The process id is only for messages: on a full disk the lock holds without it.
    with suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), str(os.getpid()).encode())
    return file


def _schema_number(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _tables(database: sqlite3.Connection) -> dict[str, set[tuple[str, int]]]:
    """Return table → its columns, each with its place in the primary key, 0 for none."""
    names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    return {
        name: {(row[0], row[1]) for row in database.execute("SELECT name, pk FROM pragma_table_info(?)", (name,))}
        for name in names
    }


@cache
def _expected_tables() -> dict[str, set[tuple[str, int]]]:
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(_SCHEMA)
        return _tables(database)
