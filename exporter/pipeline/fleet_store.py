"""The last complete read of the worker documents, kept in the outbox for a start while MongoDB is unavailable."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from exporter.core.model import Worker, WorkerFacts
from exporter.pipeline.outbox import Outbox

_OBSERVED = "fleet_observed"


class FleetStore:
    """Saves each complete read, and returns the last one after a restart.

    Only the workers that changed are written: most documents of a large fleet stay the same from one read to the next.

    Args:
        outbox: its tables `fleet` and `meta` hold the read. One thread at a time may call both.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._saved: dict[str, tuple[Worker, int | None]] | None = None
        """What the outbox holds, by worker id; None while that is not known."""
        self._replaced = outbox.replaced

    def keep(self, workers: Iterable[Worker], observed: int, terminated_seen: Mapping[str, int]) -> None:
        """Save a complete read in a transaction of its own.

        Args:
            workers: as read.
            observed: MongoDB's UTC second of the read.
            terminated_seen: when each terminated worker was first seen so, by worker id.

        Raises:
            StoreError: it was not saved; the earlier read is still there.
        """
        fleet = {worker.id: (worker, terminated_seen.get(worker.id)) for worker in workers}
        saved, self._saved = self._saved, None
        if self._replaced != self._outbox.replaced:  # the file was damaged, and another one has taken its place
            saved, self._replaced = None, self._outbox.replaced
        with self._outbox.transaction() as database:
            if saved is None:
                saved = {}
                database.execute("DELETE FROM fleet")
            database.executemany("DELETE FROM fleet WHERE id=?", [(id_,) for id_ in saved.keys() - fleet.keys()])
            database.executemany(
                "INSERT OR REPLACE INTO fleet(id, worker, observed, terminated_seen) VALUES(?,?,?,?)",
                [(id_, _to_json(new[0]), observed, new[1]) for id_, new in fleet.items() if saved.get(id_) != new],
            )
            database.execute("INSERT OR REPLACE INTO meta(key, value) VALUES(?,?)", (_OBSERVED, str(observed)))
        self._saved = fleet

    def last(self) -> tuple[int, tuple[Worker, ...], dict[str, int]]:
        """Return the read that was saved last: its UTC second (0 if there is none), workers, terminated_seen.

        Raises:
            StoreError: the outbox cannot be read.
        """
        with self._outbox.transaction() as database:
            rows = database.execute("SELECT worker, observed, terminated_seen FROM fleet").fetchall()
            dates = database.execute("SELECT value FROM meta WHERE key=?", (_OBSERVED,)).fetchall()
        with self._outbox.decoding():
            workers = tuple(_from_json(text) for text, _, _ in rows)
            seen = {worker.id: row[2] for worker, row in zip(workers, rows, strict=True) if row[2] is not None}
            # An earlier release notes the time of the read in each row only, and writes all rows each time.
            observed = max([row[1] for row in rows] + [int(value) for (value,) in dates if rows], default=0)
        return observed, workers, seen


def _to_json(worker: Worker) -> str:
    fields = {name: getattr(worker, name) for name in Worker.__dataclass_fields__}
    fields["facts"] = {
        name: value for name in WorkerFacts.__dataclass_fields__ if (value := getattr(worker.facts, name)) is not None
    }
    return json.dumps(fields)


def _from_json(text: str) -> Worker:
    fields = json.loads(text)
    fields["extra"] = tuple((name, value) for name, value in fields.get("extra", ()))
    fields["facts"] = WorkerFacts(**_known(WorkerFacts, fields.get("facts", {})))
    return Worker(**_known(Worker, fields))


def _known(record: type[Worker] | type[WorkerFacts], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that this release knows: an earlier or later one may have written the outbox."""
    names = record.__dataclass_fields__
    return {name: value for name, value in fields.items() if name in names}
