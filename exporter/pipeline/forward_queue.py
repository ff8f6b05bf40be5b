"""The samples in the history that other databases still have to get: a queue in the outbox, with a cursor for each of them.

A sample enters the queue in the transaction in which it leaves the outbox's own table, so a kill at any moment loses none. It
is one row, however many targets there are, and is deleted when all have passed it. Its numbers have no holes: they are assigned
in order, a transaction that fails gives its numbers back, and rows are deleted from the oldest on. So how many samples a target
lacks is a difference.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from exporter.core.model import FinalSample

SCHEMA = """
CREATE TABLE IF NOT EXISTS forward(
  id INTEGER PRIMARY KEY AUTOINCREMENT, mirrored INT, worker TEXT, start INT, region TEXT, cpu REAL, memory REAL, labs INT,
  status TEXT);
CREATE TABLE IF NOT EXISTS forward_target(name TEXT PRIMARY KEY, passed INT) WITHOUT ROWID;
"""

DELETED_AT_ONCE = 50_000
"""Rows that one transaction deletes at most: a fraction of a second, for which the cycle may have to wait."""
_LAST = "IFNULL((SELECT seq FROM sqlite_sequence WHERE name='forward'), 0)"


class Numbered(NamedTuple):
    """Samples of the queue in their order."""

    samples: list[FinalSample]
    last: int
    """Number of the last of them."""


class Waiting(NamedTuple):
    """What a target lacks."""

    samples: int
    since: int | None
    """UTC second at which the oldest of them was mirrored; None: there is none."""


class Dropped(NamedTuple):
    """What a target will not get, because the queue was full."""

    samples: int
    first: int
    last: int
    """Starts of the oldest and the newest period, UTC seconds."""


def append(
    database: sqlite3.Connection,
    targets: Collection[str],
    samples: Collection[FinalSample],
    wall: Callable[[], float] = time.time,
) -> None:
    """Add samples for these targets, within the transaction of the caller.

    A target that the queue does not know gets what is added from now on.
    """
    if not targets:
        return
    database.executemany(
        f"INSERT OR IGNORE INTO forward_target(name, passed) VALUES(?, {_LAST})", [(name,) for name in targets]
    )
    now = int(wall())
    database.executemany(
        "INSERT INTO forward(mirrored, worker, start, region, cpu, memory, labs, status) VALUES(?,?,?,?,?,?,?,?)",
        [(now, *sample) for sample in samples],
    )


def read(database: sqlite3.Connection, target: str, after: int, limit: int) -> Numbered:
    """Return up to `limit` samples that a target lacks and whose number is above `after`, the oldest first."""
    found = database.execute(
        "SELECT id, worker, start, region, cpu, memory, labs, status FROM forward "
        "WHERE id > MAX(?, IFNULL((SELECT passed FROM forward_target WHERE name=?), ?)) ORDER BY id LIMIT ?",
        (after, target, 2**62, limit),
    ).fetchall()
    return Numbered([FinalSample(*row[1:]) for row in found], found[-1][0] if found else after)


def advance(database: sqlite3.Connection, target: str, last: int) -> None:
    """Note that a target has all samples up to a number, and delete those that all targets have."""
    database.execute("UPDATE forward_target SET passed=MAX(passed, ?) WHERE name=?", (last, target))
    _delete_passed(database)


def waiting(database: sqlite3.Connection) -> dict[str, Waiting]:
    """Return target → what it lacks."""
    rows: Sequence[tuple[str, int, int | None]] = database.execute(
        f"SELECT name, {_LAST} - passed, (SELECT mirrored FROM forward WHERE id > passed ORDER BY id LIMIT 1) "
        "FROM forward_target"
    ).fetchall()
    return {name: Waiting(samples, since) for name, samples, since in rows}


def trim(database: sqlite3.Connection, targets: Collection[str], limit: int, before: float) -> tuple[dict[str, Dropped], bool]:
    """Forget targets that are no longer wanted, delete what all others have, and then the oldest samples above `limit`.

    Args:
        database: in a transaction of the caller.
        targets: those that are wanted.
        limit: samples that are kept.
        before: UTC seconds; what was mirrored since then is kept beyond the limit.

    Returns:
        Target → what it will not get, and whether there is more to delete.
    """
    database.execute(
        "DELETE FROM forward_target WHERE name NOT IN (SELECT value FROM json_each(?))", (json.dumps(list(targets)),)
    )
    if _delete_passed(database) == DELETED_AT_ONCE:
        return {}, True
    first, last = database.execute("SELECT MIN(id), MAX(id) FROM forward").fetchone()
    excess = 0 if first is None else last - first + 1 - limit
    if excess <= 0:
        return {}, False
    (cut,) = database.execute(
        "SELECT MAX(id) FROM (SELECT id, mirrored FROM forward ORDER BY id LIMIT ?) WHERE mirrored < ?",
        (min(excess, DELETED_AT_ONCE), before),
    ).fetchone()
    if cut is None:
        return {}, False
    dropped = {
        name: Dropped(
            cut - max(passed, first - 1),
            *database.execute("SELECT MIN(start), MAX(start) FROM forward WHERE id > ? AND id <= ?", (passed, cut)).fetchone(),
        )
        for name, passed in database.execute("SELECT name, passed FROM forward_target WHERE passed < ?", (cut,)).fetchall()
    }
    database.execute("UPDATE forward_target SET passed=MAX(passed, ?)", (cut,))
    database.execute("DELETE FROM forward WHERE id <= ?", (cut,))
    return dropped, cut == first + DELETED_AT_ONCE - 1


def _delete_passed(database: sqlite3.Connection) -> int:
    """Delete samples that all targets have, or all where there is none; return how many."""
    return database.execute(
        "DELETE FROM forward WHERE id < ? + (SELECT MIN(id) FROM forward) "
        "AND id <= IFNULL((SELECT MIN(passed) FROM forward_target), ?)",
        (DELETED_AT_ONCE, 2**62),
    ).rowcount
