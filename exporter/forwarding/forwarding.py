"""The targets of `history.forward`: which there are, what they lack, and what is dropped when too much waits for them."""

import asyncio
import time
from collections.abc import Callable, Mapping

from exporter.core import logs
from exporter.core.condition import Condition
from exporter.core.errors import ConfigError, StoreError
from exporter.core.history_settings import ForwardTarget, HistorySettings
from exporter.core.periods import rfc3339
from exporter.forwarding.store_thread import StoreThread
from exporter.forwarding.target import LabelsOf, Target
from exporter.metrics.forward_metrics import LIMIT
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline import forward_queue
from exporter.pipeline.forward_queue import Dropped, Waiting
from exporter.pipeline.loop import wait
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.stores.opening import open_store
from exporter.stores.store import Store

LOOK_SECONDS = 30.0
"""How often it is looked what targets lack, while nothing is mirrored."""
KEPT_SECONDS = 600
"""How long each sample is kept, whatever the limit: a target that works takes it in this time, even of a large batch."""
_RETRY_SECONDS = 5.0

_log = logs.get("forward")


class Forwarding:
    """Keeps one loop for each target, and the queue within its limit. Belongs to the collector's event loop.

    Args:
        outbox: has the queue.
        labels: knows the labels that some stores keep.
        telemetry: shows what targets lack.
        wall: UTC seconds.
    """

    def __init__(
        self, outbox: OutboxThread, labels: LabelsOf, telemetry: Telemetry, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._outbox, self._labels, self._telemetry, self._wall = outbox, labels, telemetry, wall
        self._settings = HistorySettings()
        self._thread: StoreThread | None = None
        self._targets: dict[str, tuple[str, Target]] = {}
        """Name → address and target."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: list[asyncio.Task[None]] = []
        self._waiting: Mapping[str, Waiting] = {}
        self._forgotten = False
        """Whether nothing is left of targets that an earlier run had."""
        self._repeats = logs.Repeats()
        self._look = asyncio.Event()

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """Return "forward NAME" → whether the last attempt succeeded, and since when."""
        return {f"forward {name}": target.condition for name, (_, target) in dict(self._targets).items()}

    def use(self, settings: HistorySettings) -> None:
        """Forward to these targets from now on; what waits for others is forgotten.

        A target that keeps its name keeps its cursor, also at another address.

        Raises:
            ConfigError: an address is none, or its driver is not installed, or its file is unusable; nothing has changed.
        """
        wanted = {target.label: target.address() for target in settings.forward}
        for address in wanted.values():
            open_store(address)
        self._settings = settings
        for name in list(self._targets):
            if wanted.get(name) != self._targets[name][0]:
                self._stop(name, forget=name not in wanted)
        for setting in settings.forward:
            if setting.label not in self._targets:
                self._targets[setting.label] = wanted[setting.label], self._target(setting)
        self._outbox.outbox.forward_to = tuple(wanted)
        self._forgotten = False
        self._look.set()

    def mirrored(self) -> None:
        """Samples were added to the queue."""
        self._look.set()

    async def run_forever(self) -> None:
        """Run the loops of the targets until cancelled."""
        try:
            while True:
                self._look.clear()
                try:
                    self._start()
                    more = await self.look()
                except StoreError as error:
                    if self._repeats.is_due(str(error)):
                        _log.error("cannot look after the samples that wait to be forwarded; retried", error=str(error))
                    await wait(self._look, _RETRY_SECONDS)
                except Exception as bug:  # noqa: BLE001  # a bug must not end the loop; the log has its traceback
                    if self._repeats.is_due(repr(bug)):
                        _log.exception("forwarding failed with an unexpected error; please report it")
                    await asyncio.sleep(_RETRY_SECONDS)
                else:
                    self._repeats.reset()
                    if not more:
                        await wait(self._look, LOOK_SECONDS)
        finally:
            for name in list(self._targets):
                self._stop(name, forget=False)
            if self._ended:
                await asyncio.wait(self._ended)
            if self._thread is not None:
                self._thread.close()

    async def look(self) -> bool:
        """Keep the queue within its limit, show what targets lack, and wake them; return whether there is more to delete."""
        outbox, names = self._outbox.outbox, tuple(self._targets)
        if not names and self._forgotten:
            return False
        dropped, more = await self._outbox(
            _trim, outbox, names, self._settings.forward_max_samples, self._wall() - KEPT_SECONDS
        )
        for name, what in dropped.items():
            self._telemetry.forward.dropped.labels(name, LIMIT).inc(what.samples)
            self._report(name, what)
        self._forgotten = not more
        self._waiting = await self._outbox(_waiting, outbox)
        for name, (_, target) in self._targets.items():
            self._telemetry.forward.pending.labels(name).set(self._waiting.get(name, Waiting(0, None)).samples)
            target.wake.set()
        return more

    def _report(self, name: str, what: Dropped) -> None:
        if self._repeats.is_due(f"dropped {name}"):
            _log.error(
                "too many samples wait for a target, the oldest are dropped; once it is back, copy them with "
                "`cml-worker-exporter export --to`",
                target=name,
                since=rfc3339(what.first),
                until=rfc3339(what.last + 1),
                limit=self._settings.forward_max_samples,
            )

    def _target(self, setting: ForwardTarget) -> Target:
        name = setting.label
        if self._thread is None:
            self._thread = StoreThread()
        telemetry = self._telemetry
        telemetry.forward.pending.labels(name)
        telemetry.forward.lag.labels(name).set_function(lambda: self._lag(name))
        return Target(
            name,
            lambda: _open(setting),
            self._outbox,
            self._labels,
            self._thread,
            telemetry,
            on_advanced=self._look.set,
            wall=self._wall,
        )

    def _lag(self, name: str) -> float:
        """Return for how long the target has lacked its oldest sample, as of now, whatever hangs."""
        since = self._waiting.get(name, Waiting(0, None)).since
        return 0.0 if since is None else max(0.0, self._wall() - since)

    def _start(self) -> None:
        for name, (_, target) in self._targets.items():
            task = self._tasks.get(name)
            if task is not None and task.done() and not task.cancelled():
                _log.error(
                    "the loop of a target has ended; started again; please report it", target=name, exc_info=task.exception()
                )
            if task is None or task.done():
                self._tasks[name] = asyncio.create_task(target.run_forever(), name=f"forward {name}")
        self._ended = [task for task in self._ended if not task.done()]

    def _stop(self, name: str, *, forget: bool) -> None:
        del self._targets[name]
        if task := self._tasks.pop(name, None):
            task.cancel()
            self._ended.append(task)
        if forget:
            self._telemetry.forward.forget(name)


def _open(setting: ForwardTarget) -> Store:
    """Return the store of a target, at the address that its file has by now: the password may be a new one."""
    try:
        return open_store(setting.address())
    except ConfigError as error:
        raise StoreError(str(error), reason="refused") from error


def _trim(outbox: Outbox, targets: tuple[str, ...], limit: int, before: float) -> tuple[dict[str, Dropped], bool]:
    with outbox.transaction() as database:
        return forward_queue.trim(database, targets, limit, before)


def _waiting(outbox: Outbox) -> dict[str, Waiting]:
    with outbox.transaction() as database:
        return forward_queue.waiting(database)
