"""The journal of an import: what the events told so far, period by period, and an outbox for the samples.

All are tables of one SQLite file. A page of events, the position behind it, and the tally are one transaction; so are samples
that move to the outbox and the rows they came from. An interrupted import therefore continues where it stopped.

Memory stays bounded however many events there are: each is merged into the row of its period at once. Of several values in one
period the newest wins, of several at the same millisecond the greatest, so that neither the order of the events nor their
repetition changes the result.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from exporter.commands.backfill.journal import SampleJournal
from exporter.commands.import_events.events import VALUES, Observation
from exporter.commands.import_events.plan import Missing, Plan, Tally, Window
from exporter.core.model import FinalSample, InventoryEntry

_FACTS = ("region", "name", "status")


def _columns(names: Iterable[str]) -> str:
    """Return two columns for each value: the value, and the millisecond it is from, -1 without one."""
    return ", ".join(f"{name}, {name}_at INT NOT NULL" for name in names)


def _newest(table: str, names: Iterable[str]) -> str:
    """Return the assignments that keep the newest of the stored and the new value, on a tie the greater."""
    return ", ".join(
        f"{name} = CASE WHEN excluded.{name}_at > {table}.{name}_at OR "
        f"(excluded.{name}_at = {table}.{name}_at AND excluded.{name} > {table}.{name}) "
        f"THEN excluded.{name} ELSE {table}.{name} END, "
        f"{name}_at = MAX(excluded.{name}_at, {table}.{name}_at)"
        for name in names
    )


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS import_plan("
    "target TEXT, wanted TEXT, since INT, start INT, until INT, now INT, period INT, complete INT, present INT, "
    "position BLOB, tally TEXT)",
    f"CREATE TABLE IF NOT EXISTS event_period(worker TEXT, start INT, {_columns(VALUES)}, PRIMARY KEY(worker, start)) "
    "WITHOUT ROWID",
    f"CREATE TABLE IF NOT EXISTS event_worker(worker TEXT PRIMARY KEY, known INT, first INT, last INT, {_columns(_FACTS)}) "
    "WITHOUT ROWID",
    # The plan holds the period of the samples: without samples the next plan may have another one.
    "DELETE FROM meta WHERE key='period'",
)
_PUT_PERIOD = (
    f"INSERT INTO event_period VALUES(?,?,{','.join('?' * 2 * len(VALUES))}) "
    f"ON CONFLICT(worker, start) DO UPDATE SET {_newest('event_period', VALUES)}"
)
_PUT_WORKER = (
    f"INSERT INTO event_worker VALUES(?,0,?,?,{','.join('?' * 2 * len(_FACTS))}) "
    "ON CONFLICT(worker) DO UPDATE SET first = MIN(first, excluded.first), last = MAX(last, excluded.last), "
    f"{_newest('event_worker', _FACTS)}"
)


class EventJournal(SampleJournal):
    """The plan of an import, the values of its events, and the outbox of its samples; as `SampleJournal`."""

    def __init__(self, directory: Path, period: int) -> None:
        """Open or create the journal; the arguments and errors are those of `SampleJournal`."""
        super().__init__(directory, period, "another import of events", _SCHEMA)

    # -- plan

    def begin(self, plan: Plan) -> None:
        """Replace the stored plan, and delete what the events told; samples in the outbox stay."""
        span = plan.window
        row = (plan.target, plan.wanted, span.since, span.start, span.until, span.now, span.period, plan.complete, plan.present)
        with self.outbox.transaction() as database:
            for table in ("import_plan", "event_period", "event_worker"):
                database.execute(f"DELETE FROM {table}")
            database.execute("INSERT INTO import_plan VALUES(?,?,?,?,?,?,?,?,?,NULL,?)", (*row, json.dumps(vars(Tally()))))

    def plan(self) -> Plan | None:
        """Return the stored plan; None when there is none."""
        with self.outbox.transaction() as database:
            rows = database.execute(
                "SELECT target, wanted, complete, present, since, start, until, now, period FROM import_plan"
            ).fetchall()
        if not rows:
            return None
        target, wanted, complete, present, *window = rows[0]
        return Plan(target, wanted, Window(*window), bool(complete), present)

    def finish(self) -> None:
        """Delete the plan and what is left of the events' values; samples in the outbox stay."""
        with self.outbox.transaction() as database:
            for table in ("import_plan", "event_period", "event_worker"):
                database.execute(f"DELETE FROM {table}")

    # -- reading the events

    def progress(self) -> tuple[bytes | None, Tally]:
        """Return the position behind the last page that was stored, None before the first, and the tally so far."""
        with self.outbox.transaction() as database:
            position, text = database.execute("SELECT position, tally FROM import_plan").fetchone()
        tally = json.loads(text)
        types, skipped, invalid = (Counter(tally[name]) for name in ("types", "skipped", "invalid"))
        return position, Tally(types, skipped, invalid, tally["examples"])

    def put(self, observations: Iterable[tuple[int | None, Observation]], position: bytes | None, tally: Tally) -> None:
        """Merge a page of observations, each with the start of its period, None outside the window; note how far it is."""
        periods, workers = [], []
        for start, one in observations:
            workers.append((one.worker_id, one.at, one.at, *_dated(one, _FACTS)))
            if start is not None:
                periods.append((one.worker_id, start, *_dated(one, VALUES)))
        with self.outbox.transaction() as database:
            database.executemany(_PUT_WORKER, workers)
            database.executemany(_PUT_PERIOD, periods)
            database.execute("UPDATE import_plan SET position=?, tally=?", (position, json.dumps(vars(tally))))

    # -- comparing with the history

    def workers(self) -> list[str]:
        """Return the sorted ids of the workers with periods to write."""
        with self.outbox.transaction() as database:
            return [row[0] for row in database.execute("SELECT DISTINCT worker FROM event_period ORDER BY worker")]

    def discard(self, present: Mapping[str, Iterable[int]]) -> None:
        """Delete the periods that the history has, and count them in the plan."""
        keys = ((worker, start) for worker, starts in present.items() for start in starts)
        with self.outbox.transaction() as database:
            count = database.executemany("DELETE FROM event_period WHERE worker=? AND start=?", keys).rowcount
            database.execute("UPDATE import_plan SET present = present + ?", (max(0, count),))

    def complete(self, regions: Mapping[str, str]) -> None:
        """Note that all is compared, and the region of each worker that a worker document or the inventory knows."""
        with self.outbox.transaction() as database:
            database.executemany(
                "UPDATE event_worker SET known=1, region=COALESCE(NULLIF(?, ''), region) WHERE worker=?",
                ((region, worker) for worker, region in regions.items()),
            )
            database.execute("UPDATE import_plan SET complete=1")

    def missing(self) -> Missing:
        """Return how much is left to write."""
        with self.outbox.transaction() as database:
            figures = database.execute(
                f"SELECT COUNT(DISTINCT worker), COUNT(*), {', '.join(f'COUNT({name})' for name in VALUES)} FROM event_period"
            ).fetchone()
        return Missing(*figures)

    def unknown_workers(self) -> list[InventoryEntry]:
        """Return entries for the workers with periods to write that only the events know."""
        with self.outbox.transaction() as database:
            rows = database.execute(
                "SELECT worker, region, name, status, status_at, first, last FROM event_worker "
                "WHERE known=0 AND worker IN (SELECT worker FROM event_period) ORDER BY worker"
            ).fetchall()
        return [_entry(*row) for row in rows]

    def without_region(self) -> int:
        """Return the number of workers with periods to write whose region is not known."""
        with self.outbox.transaction() as database:
            count: int = database.execute(
                "SELECT COUNT(*) FROM event_worker WHERE region IS NULL AND worker IN (SELECT worker FROM event_period)"
            ).fetchone()[0]
        return count

    # -- writing

    def move(self, limit: int, oldest: int) -> tuple[int, int]:
        """Move up to `limit` periods to the outbox as final samples.

        Args:
            limit: periods.
            oldest: UTC second; periods that begin before it are past retention and are deleted.

        Returns:
            The number of periods taken, and of those that were deleted.
        """
        with self.outbox.transaction() as database:
            rows = database.execute(
                "SELECT p.worker, p.start, COALESCE(w.region, ''), p.cpu, p.memory, p.labs, p.status "
                "FROM event_period p LEFT JOIN event_worker w ON w.worker = p.worker ORDER BY p.worker, p.start LIMIT ?",
                (limit,),
            ).fetchall()
            samples = [sample for sample in map(FinalSample._make, rows) if sample.start >= oldest]
            self.outbox.add_final(samples)
            database.executemany("DELETE FROM event_period WHERE worker=? AND start=?", ((row[0], row[1]) for row in rows))
        return len(rows), len(rows) - len(samples)


def _dated(observation: Observation, names: Sequence[str]) -> list[object]:
    values: list[object] = []
    for name in names:
        value = getattr(observation, name)
        values += [value, -1 if value is None else observation.at]
    return values


def _entry(
    worker: str, region: str | None, name: str | None, status: str | None, status_at: int, first: int, last: int
) -> InventoryEntry:
    return InventoryEntry(
        worker_id=worker,
        region=region or "",
        name=name,
        instance_type=None,
        cml_version=None,
        created_at=None,
        terminated_at=status_at // 1000 if status == "terminated" else None,
        status=status or "unknown",
        first_seen=first // 1000,
        last_seen=last // 1000,
    )
