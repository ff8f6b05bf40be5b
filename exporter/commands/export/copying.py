"""`export --to ADDRESS`: the history copied into another time-series database, and counted there.

Writes may be repeated, so an interrupted export continues with the worker that it was at. How far it is stands in a file of
`data_dir`, which is removed at the end: the next export with the same flags begins anew.
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO, TypeVar

from exporter.commands.export.batches import batches
from exporter.commands.export.request import ExportRequest
from exporter.commands.terminal import say
from exporter.core.errors import ExporterError, StoreError, StoreUnavailableError
from exporter.core.model import InventoryEntry
from exporter.core.periods import rfc3339
from exporter.history.series import info_labels
from exporter.storage.sample_stream import TIME, Pages
from exporter.stores.opening import open_store
from exporter.stores.store import Batch, Store

T = TypeVar("T")
WRITE_SAMPLES = 10_000
"""Samples of one write at most; no more than a second's, so that a low rate is even."""
PAUSES_SECONDS = (1, 2, 4, 8, 16)
"""Pauses before a write is repeated; then the command ends."""


@dataclass(slots=True)
class Journal:
    """How far an export into a store is; `path` is its file."""

    path: Path
    since: int
    until: int
    done: str = ""
    """Id of the last worker that was written completely; workers are written in the order of their ids."""
    samples: int = 0
    """Samples of the workers that are done."""

    @classmethod
    def of(cls, folder: Path, request: ExportRequest) -> Self:
        """Return the journal of an interrupted run of the same request, with its window: `30d` would be another one now."""
        what = json.dumps([request.to, request.window, sorted(set(request.workers))])
        path = folder / f"export-{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
        with contextlib.suppress(OSError, ValueError, KeyError):  # no file, or a damaged one: it begins anew, which is safe
            found = json.loads(path.read_text())
            return cls(path, int(found["since"]), int(found["until"]), str(found["done"]), int(found["samples"]))
        return cls(path, request.since, request.until)

    def keep(self) -> None:
        """Write the file, which replaces the former one at once.

        Raises:
            ExporterError: it cannot be written.
        """
        text = json.dumps({"since": self.since, "until": self.until, "done": self.done, "samples": self.samples})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            part.write_text(text)
            part.replace(self.path)
        except OSError as error:
            raise ExporterError(
                f"data_dir: cannot write {self.path} ({error.strerror}); make room or choose another folder"
            ) from error


async def copy_to_store(
    journal: Journal,
    request: ExportRequest,
    workers: Sequence[str],
    entries: Mapping[str, InventoryEntry],
    pages: Callable[[Sequence[str]], Pages],
    err: TextIO,
) -> int:
    """Copy samples into the store of the request, count them there, and print both figures on `err`.

    Args:
        journal: how far an earlier run came.
        request: what and where to, with the window of the journal.
        workers: ids of all workers of the request, ascending.
        entries: the inventory.
        pages: reads the samples of workers, in their order.
        err: receives the figures.

    Returns:
        The exit status: 0, or 1 if the store has fewer samples than were sent.

    Raises:
        ConfigError: the address is no store's.
        ExporterError: the store does not answer or refuses; the same command continues.
    """
    store, began = open_store(request.to or ""), time.monotonic()
    left = [worker_id for worker_id in workers if worker_id > journal.done]
    if len(left) < len(workers):
        say(f"Continues after {len(workers) - len(left):,} workers of an interrupted export.", err)
    try:
        await _repeating(store.prepare)
        await _copy(store, journal, left, entries, pages, request.rate)
        there = await _repeating(lambda: store.count(workers, request.since, request.until))
    except StoreError as error:
        raise ExporterError(f"{error}; {journal.samples:,} samples are copied, the same command continues") from error
    finally:
        await store.close()
    missing = max(0, journal.samples - there)
    journal.path.unlink(missing_ok=True)
    if request.json:
        body = {
            **request.figures,
            "to": store.name,
            "workers": len(workers),
            "samples": journal.samples,
            "samples_there": there,
            "samples_missing": missing,
            "seconds": round(time.monotonic() - began, 1),
        }
        print(json.dumps(body), file=err)
        return 1 if missing else 0
    say(
        f"Copied {journal.samples:,} samples of {len(workers):,} workers, {rfc3339(request.since)} to "
        f"{rfc3339(request.until)}, to {store.name} in {time.monotonic() - began:.1f} s; it has {there:,} of this time.",
        err,
    )
    if missing:
        say(f"{missing:,} samples are missing there; run the same command again.", err)
    return 1 if missing else 0


async def _copy(
    store: Store,
    journal: Journal,
    workers: Sequence[str],
    entries: Mapping[str, InventoryEntry],
    pages: Callable[[Sequence[str]], Pages],
    rate: int,
) -> None:
    began, sent, unsent = time.monotonic(), 0, 0
    waiting: list[Batch] = []
    last: tuple[str, int] | None = None
    counted: dict[str, int] = {}
    """Samples of the workers whose samples are waiting, or partly written."""

    async def write(done: Sequence[str]) -> None:
        nonlocal sent, unsent
        if waiting:
            await _repeating(lambda: store.write(waiting))
        sent, unsent = sent + unsent, 0
        waiting.clear()
        if done:
            journal.done, journal.samples = done[-1], journal.samples + sum(counted.pop(each) for each in done)
            await asyncio.to_thread(journal.keep)
        await asyncio.sleep(max(0, began + sent / rate - time.monotonic()))

    async for worker_id, page in pages(workers):
        if unsent + len(page) > min(WRITE_SAMPLES, rate):
            await write([each for each in counted if each != worker_id])
        waiting += batches(worker_id, page, info_labels(worker_id, entries.get(worker_id)))
        unsent += len(page)
        # Two samples at the same time are one there.
        times = {document[TIME] for document in page} - ({last[1]} if last and last[0] == worker_id else set())
        counted[worker_id] = counted.get(worker_id, 0) + len(times)
        last = worker_id, page[-1][TIME]
    await write(list(counted))


async def _repeating(step: Callable[[], Awaitable[T]]) -> T:
    """Run a step that may be repeated, again after a pause where the store does not answer."""
    for pause in PAUSES_SECONDS:
        try:
            return await step()
        except StoreUnavailableError:
            await asyncio.sleep(pause)
    return await step()
