"""Notice that the history in MongoDB is no longer the one that acknowledged this exporter's samples.

What MongoDB has acknowledged is deleted from the outbox. When the collection is dropped, or MongoDB is replaced by an older
backup, these samples are gone, and no loop would look for them: gaps are searched for once per process and worker (rule 3). So
each batch moves a marker forward, in MongoDB and in the outbox; where MongoDB's is older, the gaps are searched for again.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from exporter.core import logs
from exporter.core.model import HistoryMark
from exporter.core.periods import rfc3339
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread

_log = logs.get("history")


class Marker(Protocol):
    """The marker in MongoDB."""

    @property
    def namespace(self) -> str:
        """The history that it belongs to."""

    async def verify(self, known: HistoryMark | None) -> tuple[HistoryMark, str | None]:
        """Return the marker to go on with, and why the history is not the one that acknowledged `known`; None: it is.

        Raises:
            StoreError: MongoDB does not answer.
        """

    async def advance(self, known: HistoryMark, newest: int) -> HistoryMark:
        """Move the marker forward and return it; `newest` is the start of a period in UTC seconds.

        Raises:
            StoreError: MongoDB does not answer, or no longer has `known`.
        """


class HistoryWatch:
    """Compares the marker in MongoDB with the one in the outbox, before and after each batch.

    Args:
        marker: in MongoDB.
        outbox: keeps the acknowledged marker.
        telemetry: counts replacements.
        on_replaced: called after each replacement; searches for gaps again.
    """

    def __init__(self, marker: Marker, outbox: OutboxThread, telemetry: Telemetry, on_replaced: Callable[[], object]) -> None:
        self._marker, self._outbox, self._telemetry, self._on_replaced = marker, outbox, telemetry, on_replaced
        self._known: HistoryMark | None = None

    async def verify(self) -> None:
        """Compare the markers; log and count a replacement, and have the gaps searched for again.

        Raises:
            StoreError: MongoDB or the outbox does not answer.
        """
        known = self._known or await self._outbox(load_mark, self._outbox.outbox, self._marker.namespace)
        mark, reason = await self._marker.verify(known)
        if reason is not None:
            newest = known.newest if known else 0
            _log.error(
                "history replaced: samples that MongoDB had acknowledged are gone; gaps within gap_fill_window are filled "
                "again, without status and labs; older ones need backfill",
                history=self._marker.namespace,
                reason=reason,
                acknowledged_until=rfc3339(newest) if newest else None,
            )
            self._telemetry.history_replaced.labels(reason).inc()
            self._on_replaced()
        if mark != known:
            await self._keep(mark)
        self._known = mark

    async def acknowledged(self, newest: int) -> None:
        """Move the markers forward; call it before the acknowledged samples leave the outbox.

        Args:
            newest: start of the newest acknowledged period in UTC seconds.

        Raises:
            StoreError: MongoDB or the outbox does not answer, or the history was replaced meanwhile: the samples must stay.
        """
        if self._known is None:
            await self.verify()
        assert self._known is not None  # `verify` sets it
        self._known = await self._marker.advance(self._known, newest)
        await self._keep(self._known)

    async def _keep(self, mark: HistoryMark) -> None:
        await self._outbox(keep_mark, self._outbox.outbox, self._marker.namespace, mark)


def load_mark(outbox: Outbox, namespace: str) -> HistoryMark | None:
    """Return the acknowledged marker that `keep_mark` saved for this history, None: there is none."""
    with outbox.transaction() as database:
        row = database.execute("SELECT value FROM meta WHERE key='history_mark'").fetchone()
    with outbox.decoding():
        kept = json.loads(row[0]) if row else {}
        return HistoryMark(kept["history"], kept["sequence"], kept["newest"]) if kept.get("namespace") == namespace else None


def forget_mark(outbox: Outbox) -> None:
    """Delete the saved marker: what was acknowledged until now does not matter any more. A transaction of its own."""
    with outbox.transaction() as database:
        database.execute("DELETE FROM meta WHERE key='history_mark'")


def keep_mark(outbox: Outbox, namespace: str, mark: HistoryMark) -> None:
    """Save the acknowledged marker of a history; that of another history is replaced. A transaction of its own."""
    with outbox.transaction() as database:
        text = json.dumps({"namespace": namespace, **asdict(mark)})
        database.execute("INSERT OR REPLACE INTO meta(key, value) VALUES('history_mark',?)", (text,))
