"""The journal of a backfill: the plan, and an outbox for the samples; an interrupted run continues from it.

Both are tables of one SQLite file, so that the samples of a call and the mark that the call is done are one transaction.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from exporter.commands.backfill.plan import GapQuery, Plan, PlannedCall
from exporter.core.errors import OutboxLockedError, StoreError
from exporter.core.model import FinalSample, MetricQuery
from exporter.core.periods import DAY
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS plan(target TEXT, wanted TEXT, made INT, since INT, until INT, period INT, notes TEXT)",
    "CREATE TABLE IF NOT EXISTS call(number INTEGER PRIMARY KEY, body TEXT, done INT NOT NULL DEFAULT 0)",
    # The plan holds the period of the samples: without samples the next plan may have another one.
    "DELETE FROM meta WHERE key='period'",
)
PLAN_MAX_AGE_SECONDS = DAY
"""Age above which an unfinished plan is replaced by a new one."""


class SampleJournal:
    """An outbox in `directory` with further tables, locked for this process until `close`; what the journals of commands share.

    Attributes:
        outbox: the samples on their way to the history. One thread at a time may call it and the journal.

    Raises, from every method:
        StoreError: SQLite failed; the transaction was rolled back.
    """

    def __init__(self, directory: Path, period: int, what: str, schema: Iterable[str]) -> None:
        """Open or create the journal.

        Args:
            directory: its folder.
            period: resolution of the samples in seconds.
            what: the command with its article, for the message: "another backfill".
            schema: statements that create the further tables where they do not exist.

        Raises:
            OutboxLockedError: the same command is running on this machine.
            IncompatibleStoreError: the file is damaged.
            StoreError: the folder cannot be written.
        """
        try:
            self.outbox = Outbox(directory, period)
        except OutboxLockedError as error:
            raise OutboxLockedError(f"{what} is running here; wait for it, or stop it ({error})", reason="locked") from error
        try:
            with self.outbox.transaction() as database:
                for statement in schema:
                    database.execute(statement)
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        """Release the file and the lock."""
        self.outbox.close()

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return self.outbox.path

    @property
    def waiting(self) -> int:
        """The number of samples that are not yet in the history."""
        return self.outbox.counts()["final"]

    @property
    def rejected(self) -> int:
        """The number of samples that MongoDB rejected and that are kept here."""
        return self.outbox.counts()["rejected"]


J = TypeVar("J", bound=SampleJournal)


@contextmanager
def opened(journal: J) -> Iterator[tuple[J, OutboxThread]]:
    """Yield a journal and the thread that every call to it runs in; close both at the end of the block."""
    thread = OutboxThread(journal.outbox)
    try:
        yield journal, thread
    finally:
        thread.close()


class PlanJournal(SampleJournal):
    """The plan of a command and which of its calls are left, as `SampleJournal`."""

    def __init__(self, directory: Path, period: int, what: str, schema: Iterable[str] = ()) -> None:
        """Open or create the journal; the arguments and errors are those of `SampleJournal`."""
        super().__init__(directory, period, what, (*_SCHEMA, *schema))

    def plan(self) -> Plan | None:
        """Return the unfinished plan with the calls that are left; None when there is none."""
        with self.outbox.transaction() as database:
            rows = database.execute("SELECT target, wanted, made, since, until, period, notes FROM plan").fetchall()
        if not rows:
            return None
        target, wanted, made, since, until, period, notes = rows[0]
        calls = tuple(call for _, call in self.pending())
        return Plan(target, wanted, made, since, until, period, calls, tuple(json.loads(notes)))

    def pending(self) -> list[tuple[int, PlannedCall]]:
        """Return the calls that are left, each with its number, in the order of the plan."""
        with self.outbox.transaction() as database:
            rows = database.execute("SELECT number, body FROM call WHERE done=0 ORDER BY number").fetchall()
        return [(number, _call(json.loads(body))) for number, body in rows]

    def begin(self, plan: Plan) -> None:
        """Replace the stored plan by this one."""
        header = (plan.target, plan.wanted, plan.made, plan.since, plan.until, plan.period, json.dumps(plan.notes))
        bodies = [(number, json.dumps(asdict(call))) for number, call in enumerate(plan.calls)]
        with self.outbox.transaction() as database:
            database.execute("DELETE FROM plan")
            database.execute("DELETE FROM call")
            database.execute("INSERT INTO plan VALUES(?,?,?,?,?,?,?)", header)
            database.executemany("INSERT INTO call(number, body) VALUES(?,?)", bodies)

    def forget_plan(self) -> None:
        """Delete the stored plan; the samples stay."""
        with self.outbox.transaction() as database:
            database.execute("DELETE FROM plan")
            database.execute("DELETE FROM call")

    @staticmethod
    def keep_rest(database: sqlite3.Connection, number: int, rest: PlannedCall | None) -> None:
        """Store the part of a call that is still to be made, within a transaction; None when the call is done."""
        if rest is None:
            database.execute("UPDATE call SET done=1, body='' WHERE number=?", (number,))
        else:
            database.execute("UPDATE call SET body=? WHERE number=?", (json.dumps(asdict(rest)), number))


class Journal(PlanJournal):
    """The plan of a backfill and the outbox of its samples, as `PlanJournal`."""

    def __init__(self, directory: Path, period: int) -> None:
        """Open or create the journal; the arguments and errors are those of `SampleJournal`."""
        super().__init__(directory, period, "another backfill")

    def put(self, number: int, samples: Iterable[FinalSample], rest: PlannedCall | None) -> None:
        """Store the samples of a call, and the part of the call that is still to be made; None when the call is done."""
        with self.outbox.transaction() as database:
            self.outbox.add_final(samples)
            self.keep_rest(database, number, rest)


def _call(body: dict[str, Any]) -> PlannedCall:
    # A plan of an earlier version has no accounts.
    queries = [MetricQuery(name, metric, _pairs(pairs), *account) for name, metric, pairs, *account in body["queries"]]
    gap_queries = [
        GapQuery(query["worker_id"], tuple(query["instances"]), _pairs(query["gaps"])) for query in body["gap_queries"]
    ]
    return PlannedCall(body["region"], body["start"], body["end"], tuple(queries), tuple(gap_queries))


def _pairs(lists: Sequence[Sequence[Any]]) -> tuple[tuple[Any, Any], ...]:
    return tuple((first, second) for first, second in lists)
