"""The journal of `verify`: the plan, what its calls have found, and CloudWatch's answers for the next `verify`.

What a call found, its answers, and the mark that it is done are one transaction: an interrupted run continues without paying
for a call twice.
"""

import json
from array import array
from collections.abc import Iterable
from pathlib import Path

from exporter.commands.backfill.journal import PlanJournal
from exporter.commands.backfill.plan import Plan, PlannedCall
from exporter.commands.verify.compare import Tally
from exporter.commands.verify.earlier import Days, merge
from exporter.core.periods import DAY, align

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS tally(body TEXT)",
    # With a rowid: else each row, being longer than a quarter of a page, would take a page of its own.
    "CREATE TABLE IF NOT EXISTS answer(worker TEXT, metric TEXT, day INT, body BLOB, PRIMARY KEY(worker, metric, day))",
)


class VerifyJournal(PlanJournal):
    """The plan of a `verify` and its results so far, as `PlanJournal`; its outbox stays empty."""

    def __init__(self, directory: Path, period: int) -> None:
        """Open or create the journal; the arguments and errors are those of `SampleJournal`."""
        super().__init__(directory, period, "another verify", _SCHEMA)

    def start(self, plan: Plan, excluded: Tally) -> None:
        """Replace the stored plan by this one.

        Args:
            plan: of which no call was made.
            excluded: what the plan leaves out.
        """
        self.forget_plan()  # first: a crash leaves no plan rather than one with the results of another
        with self.outbox.transaction() as database:
            found = database.execute("SELECT value FROM meta WHERE key='target'").fetchone()
            if found != (plan.target,):  # answers of another history
                database.execute("DELETE FROM answer")
            database.execute("INSERT OR REPLACE INTO meta VALUES('target', ?)", (plan.target,))
            database.execute("DELETE FROM tally")
            database.execute("INSERT INTO tally VALUES(?)", (json.dumps(excluded.to_json()),))
        self.begin(plan)

    def put(self, number: int, tally: Tally, rest: PlannedCall | None, answers: Iterable[tuple[str, Days]]) -> None:
        """Store what a call found.

        Args:
            number: of the call.
            tally: the result of the comparison.
            rest: the part of the call that is still to be made; None when the call is done.
            answers: worker id → CloudWatch's values.
        """
        with self.outbox.transaction() as database:
            database.execute("INSERT INTO tally VALUES(?)", (json.dumps(tally.to_json()),))
            for worker_id, days in answers:
                for (metric, day), values in days.items():
                    key = worker_id, metric, day
                    found = database.execute("SELECT body FROM answer WHERE (worker, metric, day)=(?,?,?)", key).fetchone()
                    kept = merge(array("f", found[0]), values) if found else values
                    database.execute("INSERT OR REPLACE INTO answer VALUES(?,?,?,?)", (*key, kept.tobytes()))
            self.keep_rest(database, number, rest)

    def tally(self) -> Tally:
        """Return all that was found so far."""
        with self.outbox.transaction() as database:
            rows = database.execute("SELECT body FROM tally").fetchall()
        total = Tally()
        for (body,) in rows:
            total.add(Tally.from_json(json.loads(body)))
        return total

    def earlier(self, worker_id: str, start: int, end: int) -> Days:
        """Return CloudWatch's earlier answers of one worker about the days of [start, end), UTC seconds."""
        query = "SELECT metric, day, body FROM answer WHERE worker=? AND day BETWEEN ? AND ?"
        with self.outbox.transaction() as database:
            rows = database.execute(query, (worker_id, align(start, DAY), end)).fetchall()
        return {(metric, day): array("f", body) for metric, day, body in rows}

    def finish(self, oldest: int) -> None:
        """Forget the plan, and answers about days before the UTC second `oldest`."""
        self.forget_plan()
        with self.outbox.transaction() as database:
            database.execute("DELETE FROM tally")
            database.execute("DELETE FROM answer WHERE day<?", (align(oldest, DAY),))
