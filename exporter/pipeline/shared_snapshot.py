"""Share what one exporter polls of CloudWatch with those that stand by, so that AWS bills it once.

The exporter that holds the lease leaves a snapshot in MongoDB after each collection cycle, as long as another one announces
itself. An exporter that stands by shows it in place of polling. Where the snapshot is not renewed in time it polls for itself.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from exporter.core import logs
from exporter.core.clock import MAX_SKEW_SECONDS, ServerClock
from exporter.core.cloudwatch_snapshot import CloudWatchSnapshot
from exporter.core.condition import Condition
from exporter.core.errors import StoreError
from exporter.core.periods import format_duration
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.calls import CallRunner
from exporter.pipeline.gap_filling import Leadership
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.loop import guard, wait
from exporter.pipeline.planning import DUE_TOLERANCE_SECONDS
from exporter.pipeline.publisher import Publisher
from exporter.pipeline.source_health import SourceHealth

EXCHANGE_SECONDS = 5
"""How often a standby looks for a newer snapshot, and a leader for a standby: one small read, or none."""
FIRST_SNAPSHOT_SECONDS = 60
"""How long the first poll of a standby waits for a snapshot. A leader notices a standby within 10 s, when it renews the lease;
one that was started at the same moment has to poll first."""

_log = logs.get("collector")


class SnapshotStore(Protocol):
    """The place where the exporter that leads leaves its last snapshot."""

    async def write(self, snapshot: CloudWatchSnapshot) -> None:
        """Replace the stored snapshot, unless that is a newer one.

        Raises:
            StoreError: it is not known to be stored.
        """

    async def read(self, newer_than: int) -> CloudWatchSnapshot | None:
        """Return the stored snapshot; None where there is none `newer_than` these UTC seconds.

        Raises:
            StoreError: it cannot be read.
        """


class SharedSnapshot:
    """The snapshot of CloudWatch that the exporters of one history share.

    Args:
        store: where it is.
        lease: tells which exporter leads.
        calls: adopts what the leader has polled.
        publisher: shows the datapoints.
        clock: MongoDB's time.
        rules: the settings of the sample lifecycle.
        health: stops showing the regions that are not polled.
        telemetry: shows the time of the snapshot.
        poll_now: set when the next poll must not wait for its tick.
    """

    def __init__(
        self,
        store: SnapshotStore,
        lease: Leadership,
        calls: CallRunner,
        publisher: Publisher,
        clock: ServerClock,
        rules: Rules,
        health: SourceHealth,
        telemetry: Telemetry,
        poll_now: asyncio.Event,
    ) -> None:
        self._store = store
        self._lease = lease
        self._calls = calls
        self._publisher = publisher
        self._clock = clock
        self._rules = rules
        self._health = health
        self._telemetry = telemetry
        self._poll_now = poll_now
        self._polled_at = self._stored_at = 0
        """When this process last polled; and when what MongoDB has was polled, as last read or written."""
        self._serves = False
        """Whether the gauges show the leader's snapshot."""
        self._may_wait = True
        self._settled = asyncio.Event()
        """Set once there is a snapshot to show, or this process leads."""
        self._due = asyncio.Event()
        """Set when the snapshot is to be exchanged now."""
        self._repeats, self._polls = logs.Repeats(), logs.Repeats()

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """Return the part "cloudwatch" while the gauges show the leader's snapshot."""
        if not self._serves:
            return {}
        age = format_duration(max(0, self._clock.now() - self._stored_at))
        return {"cloudwatch": Condition(None, self._stored_at, f"stands by: serves the leader's snapshot of {age} ago")}

    async def run_forever(self, beat: Callable[[], object]) -> None:
        """Exchange the snapshot every few seconds, and after each poll; `beat` is called as the sign of life."""
        while True:
            beat()
            self._health.loop_failed("sharing", await guard("sharing", self.exchange))
            await wait(self._due, EXCHANGE_SECONDS)

    async def replaces_polling(self) -> bool:
        """Return whether this process stands by and shows a fresh snapshot, so that it need not poll.

        The first time it waits for one, if another process leads. Otherwise it waits for nothing: `exchange` reads.
        """
        self._judge()
        if self._may_wait and self._lease.held_elsewhere and not self._serves:
            await wait(self._settled, FIRST_SNAPSHOT_SECONDS)
        self._may_wait = False
        if self._serves:
            self._polls.reset()
        elif self._lease.held_elsewhere and self._polls.is_due("polls"):
            _log.warning("polling CloudWatch although another exporter leads: it has left no fresh snapshot in MongoDB")
        return self._serves

    def note_polled(self) -> None:
        """Note that this process has just polled, for the next snapshot."""
        self._polled_at = self._clock.now()
        self._due.set()

    async def exchange(self) -> None:
        """Write the snapshot while this process leads and another one waits for it; else read a newer one."""
        self._due.clear()
        try:
            if self._lease.held:
                if self._lease.awaited and self._stored_at < self._polled_at:
                    await self._write()
            elif (found := await self._store.read(self._stored_at)) is not None:
                self._stored_at = found.at
                if self._is_fresh(found.at):
                    await self._show(found)
            self._repeats.reset()
        except StoreError as error:  # gauges and samples do not depend on it
            if self._repeats.is_due(str(error)):
                _log.warning("snapshot of CloudWatch not shared", error=str(error))
        self._judge()

    async def _write(self) -> None:
        workers = self._publisher.fleet.workers
        accounts = {worker.instance_id: worker.account_id for worker in workers if worker.instance_id and worker.account_id}
        snapshot = CloudWatchSnapshot(self._polled_at, self._publisher.points, accounts)
        await self._store.write(snapshot)
        self._stored_at = snapshot.at

    async def _show(self, snapshot: CloudWatchSnapshot) -> None:
        self._calls.adopt(snapshot)
        if not self._serves:
            _log.info("stands by: serves the snapshot of the exporter that leads")
            self._health.forget_regions(())  # they are not polled, which is neither up nor down
        self._serves = True
        self._telemetry.leader_snapshot.value = float(snapshot.at)
        self._publisher.mark_polled()
        await self._publisher.publish()

    def _is_fresh(self, at: int) -> bool:
        return -MAX_SKEW_SECONDS <= self._clock.now() - at <= self._rules.interval * 3 / 2

    def _judge(self) -> None:
        """Stop showing a snapshot that was not renewed in time, or once this process leads."""
        leads = self._lease.held
        if self._serves and (leads or not self._is_fresh(self._stored_at)):
            self._serves = False
            self._telemetry.leader_snapshot.value = None
            # An exporter that takes over polls at its next tick, unless the leader had missed one.
            if not leads or self._clock.now() - self._stored_at > self._rules.interval - DUE_TOLERANCE_SECONDS:
                self._poll_now.set()
        if self._serves or leads:
            self._settled.set()
