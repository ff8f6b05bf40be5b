"""Hand over to other exporters what the outbox has of their workers, and take in what they have handed over.

After a change of the division of a fleet the outbox holds samples of workers that another exporter polls now. If both polled,
AWS would bill twice, so the samples follow their worker: through MongoDB, at least once. That a sample then is in the history
exactly once is the mirror's work (rule 12), as always.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Protocol

from exporter.core import logs
from exporter.core.model import Fleet, HandedWorker
from exporter.core.shards import Part, WorkerKey
from exporter.pipeline.gap_filling import Leadership
from exporter.pipeline.lifecycle import PendingSample, WorkerState
from exporter.pipeline.loop import guard
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread

EXCHANGE_SECONDS = 15
"""Time between two exchanges."""
PIECE_WORKERS = 500
"""Workers that are handed over in one transaction."""

_log = logs.get("collector")


class HandoverStore(Protocol):
    """Where the workers are on their way; every method raises StoreError."""

    async def give(self, workers: Sequence[HandedWorker]) -> None:
        """Store workers permanently."""

    async def pieces(self) -> list[str]:
        """Return the ids of the pieces that have workers."""

    async def read(self, piece: str) -> list[HandedWorker]:
        """Return the workers of a piece."""

    async def remove(self, piece: str, worker_ids: Collection[str]) -> None:
        """Remove workers that were taken."""


class Observations(Protocol):
    """The reads of the worker documents."""

    @property
    def observed(self) -> asyncio.Event:
        """Set once the first one has ended."""

    @property
    def fleet(self) -> Fleet:
        """The last complete one."""


class Handover:
    """Exchanges workers with the other exporters of the fleet.

    Args:
        store: in MongoDB.
        lease: of the process that writes the history: only it takes workers in.
        outbox: what it holds of workers of other exporters leaves it.
        on_ready: called when samples may be ready for the mirror.
    """

    def __init__(self, store: HandoverStore, lease: Leadership, outbox: OutboxThread, on_ready: Callable[[], object]) -> None:
        self._store, self._lease, self._outbox, self._on_ready = store, lease, outbox, on_ready
        self._given: Fleet | None = None
        """The read of the worker documents whose other workers have been handed over."""

    async def run_forever(self, observations: Observations, beat: Callable[[], object]) -> None:
        """Exchange workers as the worker documents show them, until cancelled; a failed attempt is logged and repeated.

        Args:
            observations: the reads of the worker documents.
            beat: called before each attempt, as the sign of life of this loop.
        """
        await observations.observed.wait()
        while True:
            beat()
            if observations.fleet.date:
                await guard("handing over workers", partial(self.exchange, observations.fleet))
            await asyncio.sleep(EXCHANGE_SECONDS)

    async def exchange(self, fleet: Fleet) -> None:
        """Hand over the workers that this read shows elsewhere, and take in those that are here now.

        Raises:
            StoreError: MongoDB or the outbox does not answer; nothing is lost, the next call continues.
        """
        if fleet is not self._given and not fleet.part.is_whole:
            while workers := await self._outbox(leaving, self._outbox.outbox, fleet):
                await self._store.give(workers)
                ids = [worker.key.id for worker in workers]
                samples = await self._outbox(remove, self._outbox.outbox, ids)
                _log.info("workers handed over", workers=len(workers), samples=samples)
        self._given = fleet
        if self._lease.held:
            await self._take(fleet.part)

    async def _take(self, part: Part) -> None:
        for piece in await self._store.pieces():
            ours = [worker for worker in await self._store.read(piece) if part.has(worker.key)]
            if ours and self._lease.held:
                samples = await self._outbox(take_in, self._outbox.outbox, ours)
                await self._store.remove(piece, [worker.key.id for worker in ours])
                _log.info("workers taken over", workers=len(ours), samples=samples)
                self._on_ready()


def leaving(outbox: Outbox, fleet: Fleet, limit: int = PIECE_WORKERS) -> list[HandedWorker]:
    """Return what the outbox has of up to `limit` workers that another exporter has now."""
    states = outbox.states()
    moved = sorted(worker_id for worker_id in outbox.workers() | states.keys() if fleet.has_moved(worker_id))[:limit]
    workers: list[HandedWorker] = []
    for worker_id in moved:
        samples, state = outbox.rows(worker_id), states.get(worker_id)
        region = state.region if state is not None else samples[0].region if samples else ""
        key = fleet.elsewhere.get(worker_id) or WorkerKey(worker_id, region, "")  # it is no longer in the collection
        workers.append(HandedWorker(key, _to_json(state, samples)))
    return workers


def remove(outbox: Outbox, worker_ids: Iterable[str]) -> int:
    """Delete what the outbox has of these workers, in one transaction; return the number of samples."""
    with outbox.transaction():
        return outbox.remove_workers(worker_ids)


def take_in(outbox: Outbox, workers: Iterable[HandedWorker]) -> int:
    """Add handed-over workers, in one transaction; return the number of samples that are new here.

    A period that is open here already gets the status and labs that the other exporter observed, unless it has its own.
    """
    known = outbox.states()
    added = 0
    with outbox.transaction():
        for worker in workers:
            with outbox.decoding():
                state, samples = _from_json(worker.content)
            before = known.get(worker.key.id)
            if state is not None and (before is None or before.seen < state.seen):
                outbox.save_states([state])
            added += outbox.open(samples)
            outbox.complete(samples)
    return added


def _to_json(state: WorkerState | None, samples: Sequence[PendingSample]) -> str:
    return json.dumps({"state": state, "samples": samples}, separators=(",", ":"))


def _from_json(text: str) -> tuple[WorkerState | None, list[PendingSample]]:
    content = json.loads(text)
    state = None if content["state"] is None else WorkerState(*content["state"])
    samples = [PendingSample(*each) for each in content["samples"]]
    return (
        None if state is None else state._replace(instances=tuple(state.instances)),
        [each._replace(instances=tuple(each.instances)) for each in samples],
    )
