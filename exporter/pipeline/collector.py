"""The write path up to the outbox, wired together: observer, poller and publisher.

Neither the observer nor the poller waits for the other, and neither overlaps itself. What a collection cycle does to the outbox
is in `transactions`, why is in `lifecycle`.
"""

import asyncio
import time
from collections.abc import Callable

from exporter.core.budget import Budget
from exporter.core.clock import ServerClock
from exporter.core.liveness import MIN_INTERVAL_SECONDS, Liveness
from exporter.core.model import Fleet, Snapshot
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.calls import CallRunner
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.loop import run_on_schedule
from exporter.pipeline.observer import (
    OBSERVE_OFFSET_SECONDS,
    HistoryAccess,
    InventoryStore,
    Leadership,
    Observer,
    SampleTimes,
)
from exporter.pipeline.outbox import OutboxThread
from exporter.pipeline.poller import POLL_OFFSET_SECONDS, Poller
from exporter.pipeline.publisher import Publisher
from exporter.pipeline.source_health import SourceHealth
from exporter.pipeline.spending import Spending
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.sources.protocols import FleetSource, MetricSource


class Collector:
    """Observes the fleet, polls CloudWatch, and keeps the snapshot, each on its schedule.

    Args:
        settings: what is shown besides the catalog's gauges.
        rules: the settings of the sample lifecycle.
        telemetry: the exporter metrics.
        outbox: samples on their way to the history.
        fleet_source: the worker documents.
        metric_source: CloudWatch; None where `cloudwatch.enabled` is false.
        history, inventory, lease: None without a history; then only gauges are kept up to date.
        series: the listings of memory series; by default a new index over `metric_source`.
        budget: the one `metric_source` takes from; by default without a limit.
        on_ready: called when samples may be ready for the mirror.
        liveness: receives the signs of life of both loops.
        wall: UTC seconds of this host; wakes the loops and dates the snapshot, and never decides the age of a sample.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(
        self,
        settings: Settings,
        rules: Rules,
        telemetry: Telemetry,
        outbox: OutboxThread,
        fleet_source: FleetSource,
        metric_source: MetricSource | None,
        *,
        history: SampleTimes | None = None,
        inventory: InventoryStore | None = None,
        lease: Leadership | None = None,
        series: MemorySeriesIndex | None = None,
        budget: Budget | None = None,
        on_ready: Callable[[], object] = lambda: None,
        liveness: Liveness | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules, self._wall = rules, wall
        self._liveness = liveness or Liveness(monotonic)
        clock = self._clock = ServerClock(wall, monotonic)
        health = SourceHealth(telemetry, wall)
        publisher = self._publisher = Publisher(rules, settings.workers.extra, clock, telemetry, wall)
        access = None
        if history is not None and inventory is not None and lease is not None:
            access = HistoryAccess(history, inventory, lease)
        self._observer = Observer(fleet_source, clock, rules, outbox, publisher, health, telemetry, access, on_ready, wall)
        budget = Budget(wall=wall) if budget is None else budget
        self._spending = Spending(budget, outbox, telemetry, health, max(rules.interval, rules.period))
        calls = None
        if metric_source is not None:
            series = MemorySeriesIndex(metric_source, monotonic=monotonic) if series is None else series
            calls = CallRunner(metric_source, series, clock, rules, outbox, publisher, on_ready, wall)
        self._poller = Poller(calls, series, clock, rules, outbox, publisher, health, self._spending, telemetry, on_ready, wall)
        self.observed = asyncio.Event()
        """Set by the first observation, successful or not."""
        self.polled = asyncio.Event()
        """Set by the first collection cycle, successful or not."""
        self.reobserve = asyncio.Event()
        """Set to observe now instead of at the next tick."""
        self.healthy = health.errors
        """The last error of each source by name, None after a success; for /-/ready."""

    # -- the loops

    async def observe_forever(self) -> None:
        """Observe at once, after every period's end, and whenever `reobserve` is set."""
        beat = self._liveness.expect("observing", max(self._rules.period, MIN_INTERVAL_SECONDS))
        await run_on_schedule(
            "observing",
            self.observe,
            every=self._rules.period,
            offset=OBSERVE_OFFSET_SECONDS,
            wall=self._wall,
            finished=self.observed,
            wake=self.reobserve,
            beat=beat,
        )

    async def poll_forever(self) -> None:
        """Poll CloudWatch after the first observation, then at every interval."""
        await self.observed.wait()
        # A long cycle is alive while its calls end; each ends in time or fails.
        beat = self._liveness.expect("polling", max(self._rules.interval, MIN_INTERVAL_SECONDS))
        self._publisher.on_progress = beat
        await run_on_schedule(
            "polling",
            self.poll,
            every=self._rules.interval,
            offset=POLL_OFFSET_SECONDS,
            wall=self._wall,
            finished=self.polled,
            beat=beat,
        )

    def lead(self) -> None:
        """Begin to lead: another process may have written until now, so read history and inventory again, and observe."""
        self._observer.reload()
        self.reobserve.set()

    # -- single steps

    async def restore(self) -> None:
        """Start with the fleet of the last run, in case MongoDB is unavailable.

        Raises:
            StoreError: the outbox cannot be read.
        """
        await self._observer.restore()

    async def observe(self) -> None:
        """Make one observation; see `Observer.observe`."""
        await self._observer.observe()

    async def poll(self) -> None:
        """Run one collection cycle; see `Poller.poll`."""
        await self._poller.poll()

    async def keep_spent(self) -> None:
        """Save in the outbox what CloudWatch has cost today."""
        await self._spending.keep()

    # -- results

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest worker block of /metrics; None before the first observation."""
        return self._publisher.snapshot

    @property
    def fleet(self) -> Fleet:
        """The last complete read of the worker documents."""
        return self._publisher.fleet

    def now(self) -> int:
        """Return MongoDB's time in UTC seconds."""
        return self._clock.now()
