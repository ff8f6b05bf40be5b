"""The thread in which the outbox is used, and whether its writes succeed."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from exporter.core.condition import Condition
from exporter.core.errors import OUTBOX_FAILURE_REASONS, StoreError
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_file import DAMAGED

P = ParamSpec("P")
T = TypeVar("T")

FAILURE_TTL_SECONDS = 900
"""How long a failed step counts as the outbox's problem unless the same step succeeds: three cycles, as not every step
is repeated. A small transaction may fit on a disk on which a large one does not, so another step's success proves nothing."""
REPLACE_PAUSE_SECONDS = 60
"""Shortest time between two replacements of a damaged outbox: a failing disk must not fill up with files set aside."""


class OutboxThread:
    """The one thread in which functions run on the outbox, so that a large transaction never blocks the event loop.

    Args:
        outbox: used by this thread alone from now on.
        telemetry: counts failures and damaged files; None for a command without exporter metrics.
        monotonic: seconds of a clock that is never set.
        wall: UTC seconds of this host.
    """

    def __init__(
        self,
        outbox: Outbox,
        telemetry: Telemetry | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.outbox = outbox
        self.on_replaced: Callable[[], object] = lambda: None
        """Called on the event loop after a damaged outbox was replaced: what was derived from its content is outdated."""
        self._telemetry = telemetry
        self._monotonic, self._wall = monotonic, wall
        self._condition = Condition(None, int(wall()))
        """As of the last change."""
        self._failed_at = 0
        """UTC second of the last failure."""
        self._pool = ThreadPoolExecutor(1, "outbox")
        self._failures: dict[str, tuple[float, StoreError]] = {}
        self._replaced_at = float("-inf")
        self._next_oldest = float("-inf")
        """From then on the oldest sample is searched for again."""
        if telemetry is not None:
            telemetry.outbox_replaced.inc(outbox.replaced)

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in that thread and return its result; raises what it raises.

        A damaged outbox is set aside and replaced by an empty one; the call that found it fails nevertheless.
        """
        step = getattr(function, "__name__", "")
        try:
            result = await self._run(partial(function, *args, **kwargs))
        except StoreError as error:
            self._failed(step, error)
            if error.reason == DAMAGED:
                await self._replace(error)
            raise
        except Exception as bug:
            problem = f"{self.outbox.path}: {step} failed with an unexpected {type(bug).__name__}: {bug}; please report it"
            self._failed(step, StoreError(problem, reason="bug"))
            raise
        if step in self._failures:
            before = self.condition
            del self._failures[step]
            self._changed(before)
        return result

    @property
    def problem(self) -> StoreError | None:
        """Return the newest error that no success of the same step has followed, None if there is none."""
        since = self._monotonic() - FAILURE_TTL_SECONDS
        recent = [failure for failure in list(self._failures.values()) if failure[0] > since]
        return max(recent, key=lambda failure: failure[0])[1] if recent else None

    @property
    def condition(self) -> Condition:
        """Return the problem, and since when there is one or none."""
        problem, last = self.problem, self._condition
        if problem is None and last.error is not None:  # no step has succeeded, its failure no longer counts
            return Condition(None, self._failed_at + FAILURE_TTL_SECONDS)
        return Condition(str(problem) if problem else None, last.since)

    async def export_gauges(self, telemetry: Telemetry) -> None:
        """Update the metrics of the samples in the outbox; the oldest one is searched for in 5 % of the time at most."""
        began = self._monotonic()
        if began >= self._next_oldest:
            telemetry.outbox_oldest.value = await self(self.outbox.oldest)
            ended = self._monotonic()
            self._next_oldest = ended + 19 * (ended - began)
        for state, count in self.outbox.counts().items():
            telemetry.outbox_samples.labels(state).set(count)

    def close(self) -> None:
        """Wait for the running function, then close the outbox."""
        self._pool.shutdown()
        self.outbox.close()

    def _failed(self, step: str, error: StoreError) -> None:
        before = self.condition
        self._failures[step] = self._monotonic(), error
        self._failed_at = int(self._wall())
        self._changed(before)
        if self._telemetry is not None:
            reason = error.reason if error.reason in OUTBOX_FAILURE_REASONS else "other"
            self._telemetry.outbox_write_failures.labels(reason).inc()

    def _changed(self, before: Condition) -> None:
        problem = self.problem
        self._condition = before.then(str(problem) if problem else None, self._wall())

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def _replace(self, error: StoreError) -> None:
        if self._monotonic() < self._replaced_at + REPLACE_PAUSE_SECONDS:
            return
        before = self.outbox.replaced
        self._replaced_at = self._monotonic()
        try:
            await self._run(partial(self.outbox.replace, error))
        finally:
            if self._telemetry is not None:
                self._telemetry.outbox_replaced.inc(self.outbox.replaced - before)
        known = self.condition
        self._failures.clear()
        self._changed(known)
        self.on_replaced()
