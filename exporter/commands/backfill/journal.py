"""The backfill's own outbox, and beside it the plan that is being carried out: what an interrupted run is resumed from."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporter.commands.backfill.plan import GapQuery, Plan, PlannedCall
from exporter.core.errors import OutboxLockedError
from exporter.core.model import MetricQuery
from exporter.pipeline.lifecycle import PendingSample
from exporter.pipeline.outbox import Outbox

_SCHEMA = """
CREATE TABLE IF NOT EXISTS plan(target TEXT, wanted TEXT, made INT, since INT, until INT, period INT, notes TEXT);
CREATE TABLE IF NOT EXISTS call(number INTEGER PRIMARY KEY, body TEXT, done INT NOT NULL DEFAULT 0);
DELETE FROM meta WHERE key='period';
"""
# The last line, because the plan says which period the rows have: without rows the next plan may have another one.


class Journal(Outbox):
    """The outbox in `directory` with the plan; locked for this process until `close`.

    Every method raises StoreError as those of the outbox do.
    """

    def __init__(self, directory: Path, period: int) -> None:
        """Open or create it.

        Raises:
            OutboxLockedError: another backfill is running on this machine.
            StoreMisfit: it is damaged.
            StoreError: the folder cannot be written.
        """
        try:
            super().__init__(directory, period)
        except OutboxLockedError as error:
            raise OutboxLockedError(
                f"another backfill is running here; wait for it, or stop it ({error})", reason="locked"
            ) from error
        try:
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self.close()
            raise self._translate(error) from error

    def plan(self) -> Plan | None:
        """The plan that was not finished, with the calls that are left; None when there is none."""
        rows = self._select("SELECT target, wanted, made, since, until, period, notes FROM plan")
        if not rows:
            return None
        target, wanted, made, since, until, period, notes = rows[0]
        calls = tuple(call for _, call in self.pending())
        return Plan(target, wanted, made, since, until, period, calls, tuple(json.loads(notes)))

    def pending(self) -> list[tuple[int, PlannedCall]]:
        """The numbers and the calls that are left, in their order."""
        rows = self._select("SELECT number, body FROM call WHERE done=0 ORDER BY number")
        return [(number, _call(json.loads(body))) for number, body in rows]

    def begin(self, plan: Plan) -> None:
        """Keep a plan in place of another one. A transaction of its own."""
        with self.transaction():
            self._clear()
            header = (plan.target, plan.wanted, plan.made, plan.since, plan.until, plan.period, json.dumps(plan.notes))
            self._many("INSERT INTO plan VALUES(?,?,?,?,?,?,?)", [header])
            self._many("INSERT INTO call(number, body) VALUES(?,?)", enumerate(json.dumps(asdict(call)) for call in plan.calls))

    def put(self, number: int, rows: Iterable[PendingSample], rest: PlannedCall | None) -> None:
        """Take in what a call brought and what it left to be asked, None when it is done. A transaction of its own."""
        with self.transaction():
            self.open(rows)
            if rest is None:
                self._many("UPDATE call SET done=1, body='' WHERE number=?", [(number,)])
            else:
                self._many("UPDATE call SET body=? WHERE number=?", [(json.dumps(asdict(rest)), number)])

    def forget_plan(self) -> None:
        """All is done, or another plan comes. A transaction of its own."""
        with self.transaction():
            self._clear()

    def _clear(self) -> None:
        self._db.execute("DELETE FROM plan")
        self._db.execute("DELETE FROM call")


def _call(body: dict[str, Any]) -> PlannedCall:
    queries = [MetricQuery(name, metric, _pairs(dimensions)) for name, metric, dimensions in body["queries"]]
    gaps = [GapQuery(ask["worker_id"], tuple(ask["instances"]), _pairs(ask["gaps"])) for ask in body["gap_queries"]]
    return PlannedCall(body["region"], body["start"], body["end"], tuple(queries), tuple(gaps))


def _pairs(lists: Sequence[Sequence[Any]]) -> tuple[tuple[Any, Any], ...]:
    return tuple((first, second) for first, second in lists)
