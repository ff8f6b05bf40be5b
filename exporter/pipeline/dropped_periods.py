"""The periods that were dropped as empty, in a table of the outbox: a restart must not take them for gaps again.

A worker that was stopped before the exporter observed it has nothing in such a period, and neither has the history.
"""

import sqlite3
from collections.abc import Iterable

from exporter.pipeline.gaps import Gap

SCHEMA = """
CREATE TABLE IF NOT EXISTS dropped(
  worker TEXT, start INT, until INT, region TEXT, instances TEXT,
  PRIMARY KEY(worker, start, region, instances)) WITHOUT ROWID;
"""


def remember(database: sqlite3.Connection, dropped: Iterable[Gap]) -> None:
    """Save runs of dropped periods, within the transaction that drops them."""
    database.executemany(
        "INSERT OR REPLACE INTO dropped(worker, start, until, region, instances) VALUES(?,?,?,?,?)",
        [(run.worker_id, run.start, run.end, run.region, " ".join(run.instances)) for run in dropped],
    )


def of_worker(database: sqlite3.Connection, worker_id: str) -> list[Gap]:
    """Return the dropped periods of a worker, with the candidates they were decided by."""
    rows = database.execute("SELECT worker, region, instances, start, until FROM dropped WHERE worker=?", (worker_id,))
    return [
        Gap(worker, region, tuple(instances.split()), int(start), int(until))
        for worker, region, instances, start, until in rows
    ]


def forget(database: sqlite3.Connection, before: int) -> None:
    """Forget the runs that ended before the UTC second `before`: no gap is searched for there."""
    database.execute("DELETE FROM dropped WHERE until<?", (before,))
