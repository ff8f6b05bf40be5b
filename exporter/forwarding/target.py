"""The loop of one target: read the queue, write to the store, move the cursor. It outlives every failure.

A sample that the store has acknowledged counts as forwarded when it would survive a crash of the store: until then the cursor
stays before it, and a store that was restarted meanwhile gets it again.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from exporter.core import logs
from exporter.core.condition import Condition
from exporter.core.errors import FORWARD_FAILURES, StoreError, StoreUnavailableError
from exporter.core.model import FinalSample
from exporter.core.periods import rfc3339
from exporter.forwarding.sample_batches import Labels, batches
from exporter.forwarding.store_thread import StoreThread
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline import forward_queue
from exporter.pipeline.forward_queue import Numbered
from exporter.pipeline.loop import wait
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.stores.store import RefusedSamplesError, Store

WRITE_SAMPLES = 5000
"""Samples of one write at most; a store that does not answer in time gets half as many, and twice as many after a success."""
FEWEST_SAMPLES = 100
SAMPLES_PER_SECOND = 20_000
"""As fast as a backlog is sent at most, so that encoding it leaves the processor to the collection cycle."""
WRITE_SECONDS = 45.0
"""How long one write may take."""
SHORT_SECONDS = 20.0
"""How long everything else may take that a store is asked."""
PING_SECONDS = 60.0
"""How often a store is asked whether it answers, while there is nothing to write."""
CLOSE_SECONDS = 2.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0

_log = logs.get("forward")

LabelsOf = Callable[[Collection[str]], Awaitable[Labels]]
"""Returns the further labels of workers; raises StoreError."""


class Target:
    """One database that gets a copy of every sample.

    Args:
        name: the value of the label `target`, without a password.
        open_store: returns the store, not connected.
        outbox: has the queue.
        labels: knows the labels that some stores keep.
        thread: where the store works.
        telemetry: shows progress and failures.
        on_advanced: called when it lacks less than before.
        wall: UTC seconds.
        monotonic: seconds of a clock that is never set.
        jitter: returns a part of a pause, 0 to 1.
    """

    def __init__(
        self,
        name: str,
        open_store: Callable[[], Store],
        outbox: OutboxThread,
        labels: LabelsOf,
        thread: StoreThread,
        telemetry: Telemetry,
        *,
        on_advanced: Callable[[], object] = lambda: None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._open_store, self._outbox, self._labels, self._thread = open_store, outbox, labels, thread
        self._telemetry, self._wall, self._monotonic, self._jitter = telemetry, wall, monotonic, jitter
        self._on_advanced = on_advanced
        self._store: Store | None = None
        self._run_id: str | None = None
        """The run of the store that has acknowledged what was sent."""
        self._sent = 0
        """Number of the last sample that the store has acknowledged; 0: what the cursor says."""
        self._unsettled: tuple[int, float] | None = None
        """Number of a sample that was acknowledged and is not counted yet, and when it was, on the monotonic clock."""
        self._replaced = outbox.outbox.replaced
        self._limit = WRITE_SAMPLES
        self._pause = FIRST_PAUSE_SECONDS
        self._answered_at = 0.0
        """When the store has answered last, on the monotonic clock."""
        self._repeats, self._refusals = logs.Repeats(), logs.Repeats()
        self.wake = asyncio.Event()
        """Set when samples were added to the queue."""
        self.condition = Condition()
        """Whether the last attempt succeeded, and since when."""
        telemetry.forward.know(name)

    async def run_forever(self) -> None:
        """Forward until cancelled; after a failure try again, later each time up to `LONGEST_PAUSE_SECONDS`."""
        try:
            while True:
                self.wake.clear()
                try:
                    pause = await self.step()
                except BaseException as error:
                    if not isinstance(error, Exception | asyncio.CancelledError | BaseExceptionGroup) or _is_cancelled():
                        raise  # a store may raise a CancelledError that is nobody's cancellation of this loop
                    await self._failed(error)
                    await asyncio.sleep(self._pause * (0.5 + self._jitter() / 2))
                    self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
                else:
                    self._succeeded()
                    if pause:
                        await wait(self.wake, pause)
        finally:
            await self._close()

    async def step(self) -> float:
        """Forward one batch; return for how many seconds there is nothing to do unless `wake` is set.

        Raises:
            Exception: the batch is forwarded again.
        """
        if self._replaced != self._outbox.outbox.replaced:  # the numbers begin anew in the file that took its place
            self._replaced, self._sent, self._unsettled = self._outbox.outbox.replaced, 0, None
        store = self._store or await self._open()
        found = await self._outbox(_read, self._outbox.outbox, self.name, self._sent, self._limit)
        if found.samples:
            began = self._monotonic()
            await self._write(store, found.samples)
            self._telemetry.forward.last_success.labels(self.name).set(self._wall())
            await self._acknowledged(store, found)
            self._limit = min(2 * self._limit, WRITE_SAMPLES)
            self._answered_at = self._monotonic()
            await asyncio.sleep(max(0.0, began + len(found.samples) / SAMPLES_PER_SECOND - self._monotonic()))
        elif self._monotonic() >= self._answered_at + PING_SECONDS:
            await self._thread(store.ping, SHORT_SECONDS)
            self._answered_at = self._monotonic()
        due = await self._settle(store)
        return 0.0 if found.samples else due

    async def _open(self) -> Store:
        """Connect, and create what is missing there: it may be another database than the last time."""
        store = self._open_store()
        try:
            await self._thread(store.prepare, SHORT_SECONDS)
            run_id = await self._thread(store.run_id, SHORT_SECONDS)
        except BaseException:
            await self._close(store)
            raise
        if run_id != self._run_id:
            self._sent, self._unsettled = 0, None  # it has restarted, perhaps without what it acknowledged last
        self._store, self._run_id, self._answered_at = store, run_id, self._monotonic()
        return store

    async def _write(self, store: Store, samples: Sequence[FinalSample]) -> None:
        """Write samples; of those that the store refuses for good, find out which they are, and drop them."""
        labels = await self._known_labels(samples) if store.wants_labels else {}

        async def write() -> None:
            await store.write(list(batches(samples, labels)))

        try:
            await self._thread(write, WRITE_SECONDS)
        except RefusedSamplesError as error:
            if error.samples is None and len(samples) > 1:
                half = len(samples) // 2
                await self._write(store, samples[:half])
                await self._write(store, samples[half:])
                return
            refused = min(len(samples), error.samples or 1)
            self._refused(error, samples, refused)
            self._telemetry.forward.samples.labels(self.name).inc(len(samples) - refused)
        else:
            self._telemetry.forward.samples.labels(self.name).inc(len(samples))

    async def _known_labels(self, samples: Sequence[FinalSample]) -> Labels:
        try:
            return await self._labels({each.worker_id for each in samples})
        except StoreError as error:
            raise StoreUnavailableError(
                f"MongoDB does not answer with the names of the workers, which {self.name} stores ({error})", reason="inventory"
            ) from error

    async def _acknowledged(self, store: Store, found: Numbered) -> None:
        self._sent = found.last
        if not store.settle_seconds:
            await self._advance(found.last)
        elif self._unsettled is None:
            self._unsettled = found.last, self._monotonic()

    async def _advance(self, last: int) -> None:
        await self._outbox(_advance, self._outbox.outbox, self.name, last)
        self._on_advanced()

    async def _settle(self, store: Store) -> float:
        """Move the cursor over what would survive a crash by now; return after how many seconds there is more of that."""
        if self._unsettled is None:
            return PING_SECONDS
        last, at = self._unsettled
        if self._monotonic() < at + store.settle_seconds:
            return at + store.settle_seconds - self._monotonic()
        if await self._thread(store.run_id, SHORT_SECONDS) != self._run_id:
            raise StoreUnavailableError(
                f"{store.name} has restarted; it gets again what it may have lost", reason="unavailable"
            )
        await self._advance(last)
        self._unsettled = (self._sent, self._monotonic()) if self._sent > last else None
        return store.settle_seconds if self._unsettled else PING_SECONDS

    def _refused(self, error: RefusedSamplesError, samples: Sequence[FinalSample], refused: int) -> None:
        self._telemetry.forward.dropped.labels(self.name, error.reason).inc(refused)
        if self._refusals.is_due(error.reason):
            starts = [each.start for each in samples]
            _log.error(
                "a target refuses samples for good; they are dropped there",
                target=self.name,
                samples=refused,
                first=rfc3339(min(starts)),
                last=rfc3339(max(starts)),
                error=str(error),
            )

    def _succeeded(self) -> None:
        self._pause = FIRST_PAUSE_SECONDS
        self.condition = self.condition.then(None, self._wall())
        if self._repeats.reset():
            _log.info("forwarding succeeds again", target=self.name)

    async def _failed(self, error: BaseException) -> None:
        if isinstance(error, TimeoutError):
            self._limit = max(FEWEST_SAMPLES, self._limit // 2)
            reason, problem = "timeout", f"{self.name} has not answered in time; is it running, and fast enough?"
        elif isinstance(error, StoreError):
            reason = error.reason if error.reason in FORWARD_FAILURES else "outbox"
            problem = str(error)
        else:
            reason = "bug"
            problem = f"forwarding failed with an unexpected {type(error).__name__}: {error}; please report it"
        self._telemetry.forward.failures.labels(self.name, reason).inc()
        self.condition = self.condition.then(logs.mask(problem), self._wall())
        if self._repeats.is_due(problem):
            _log.error(
                "forwarding failed; retried, no sample is lost",
                target=self.name,
                reason=reason,
                error=problem,
                exc_info=error if reason == "bug" else None,
            )
        await self._close()

    async def _close(self, store: Store | None = None) -> None:
        """Close the connections, so that the next attempt begins with new ones."""
        store, self._store = store or self._store, None
        if store is not None:
            try:
                await self._thread(store.close, CLOSE_SECONDS)
            except Exception as error:  # noqa: BLE001  # the failure before it is the one that counts
                _log.debug("connection not closed", target=self.name, error=str(error))


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _read(outbox: Outbox, target: str, after: int, limit: int) -> Numbered:
    with outbox.transaction() as database:
        return forward_queue.read(database, target, after, limit)


def _advance(outbox: Outbox, target: str, last: int) -> None:
    with outbox.transaction() as database:
        forward_queue.advance(database, target, last)
