"""The write path up to the outbox, wired together: observer, poller and publisher.

Neither the observer nor the poller waits for the other, and neither overlaps itself. What a collection cycle does to the outbox
is in `transactions`, why is in `lifecycle`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from exporter.core import logs
from exporter.core.budget import Budget, ReaderBudget
from exporter.core.clock import ServerClock
from exporter.core.condition import Condition
from exporter.core.errors import ExporterError
from exporter.core.liveness import MIN_INTERVAL_SECONDS, Liveness
from exporter.core.model import Fleet, Snapshot
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.availability import PING_SECONDS, OutboxDisk, watch_mongodb
from exporter.pipeline.calls import CallRunner
from exporter.pipeline.gap_filling import GapFilling, Leadership, SampleTimes
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.loop import doubling, guard, run_on_schedule, wait
from exporter.pipeline.observer import OBSERVE_OFFSET_SECONDS, HistoryAccess, InventoryStore, Observer
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.pipeline.poller import POLL_OFFSET_SECONDS, Poller
from exporter.pipeline.publisher import Publisher
from exporter.pipeline.shared_snapshot import SharedSnapshot, SnapshotStore
from exporter.pipeline.source_health import SourceHealth, unexpected
from exporter.pipeline.spending import Spending
from exporter.sources.cloudwatch.extra_series import ExtraSeries
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.sources.protocols import FleetSource, MetricSource

_log = logs.get("collector")
FIRST_GAPS_SECONDS = 2
"""How long the first poll after a start waits for gaps."""
FIRST_GAPS_WORKERS = 1000
"""The largest fleet whose gaps are waited for; those of larger ones take longer, and few of them would be open in time."""
FIRST_RETRY_SECONDS = 5
"""Time between two reads while there is no worker, and before the second poll of a region that has not answered yet."""


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
        extra_series: the series of `cloudwatch.extra`; None without any.
        snapshots: where the exporter that leads leaves what it polled for those that stand by; None: each polls itself.
        readers: the part of it that HTTP readers spend; by default the share in the settings.
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
        extra_series: ExtraSeries | None = None,
        readers: ReaderBudget | None = None,
        snapshots: SnapshotStore | None = None,
        on_ready: Callable[[], object] = lambda: None,
        liveness: Liveness | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules, self._wall, self._telemetry, self._outbox = rules, wall, telemetry, outbox
        self._part, self._liveness = settings.workers.part, liveness or Liveness(monotonic)
        self._clock, self._health = clock, health = ServerClock(wall, monotonic), SourceHealth(telemetry, wall)
        series = series or (MemorySeriesIndex(metric_source, monotonic=monotonic) if metric_source is not None else None)
        account_of = series.account_of if series is not None else lambda region, instance: None
        further = extra_series.gauges if extra_series else ()
        publisher = self._publisher = Publisher(
            rules, settings.workers, clock, telemetry, wall, account_of, cloudwatch=further, status=settings.metrics.status
        )
        self._gaps = access = None
        if history is not None and inventory is not None and lease is not None:
            self._gaps = GapFilling(history, lease, rules, outbox, self._leave_the_first_poll_alone)
            access = HistoryAccess(inventory, lease, self._gaps)
        self.observed = asyncio.Event()
        """Set once the first read of the worker documents has ended, successful or not, and its gauges are published."""
        self._observer = Observer(
            fleet_source, clock, rules, outbox, publisher, health, telemetry, access, self.observed.set, on_ready, wall
        )
        budget = Budget(wall=wall) if budget is None else budget
        readers = ReaderBudget(budget, settings.cloudwatch.reader_budget_share) if readers is None else readers
        self._spending = Spending(budget, readers, outbox, telemetry, health, max(rules.interval, rules.period))
        self._first_poll_began, self.poll_now = False, asyncio.Event()
        calls = self.shared = None
        if metric_source is not None and series is not None:
            calls = CallRunner(metric_source, series, clock, rules, outbox, publisher, lease, wall, extra_series)
            if snapshots is not None and lease is not None:
                self.shared = SharedSnapshot(snapshots, lease, calls, publisher, clock, rules, health, telemetry, self.poll_now)
        self._poller = Poller(
            calls, series, clock, rules, outbox, publisher, health, self._spending, telemetry, on_ready, wall, extra_series
        )
        self._first_gaps = asyncio.Event()
        """Set once the gaps found by the first observation are opened, or there are none to open now."""
        self.polled = asyncio.Event()
        """Set by the first collection cycle, successful or not."""
        self.reobserve = asyncio.Event()
        """Set to observe now instead of at the next tick."""
        outbox.on_replaced = self._start_over
        self._disk = OutboxDisk(outbox.outbox.path.parent, telemetry, wall)

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
            report=self._health.loop_failed,
            beat=beat,
            soon=lambda: None if self.fleet.workers or self.fleet.elsewhere else FIRST_RETRY_SECONDS,
        )

    async def poll_forever(self) -> None:
        """Poll CloudWatch after the first observation, then at every interval.

        The first poll waits `FIRST_GAPS_SECONDS` at most for gaps: those that are open by then are filled by the same queries.
        That of a large fleet does not wait, so that its gauges come first.
        """
        await self.observed.wait()
        if len(self.fleet.workers) <= FIRST_GAPS_WORKERS:
            await wait(self._first_gaps, FIRST_GAPS_SECONDS)
        self._first_poll_began = True
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
            wake=self.poll_now,
            report=self._health.loop_failed,
            beat=beat,
            # Only the workers of a region that has not answered are due again so early.
            soon=doubling(FIRST_RETRY_SECONDS, lambda: self._health.awaited("cloudwatch")),
        )

    async def open_gaps_forever(self) -> None:
        """Open gaps whenever there are some."""
        if self._gaps is None:
            return
        beat = self._gaps.on_progress = self._liveness.expect("gap filling", MIN_INTERVAL_SECONDS)
        while True:
            await wait(self._gaps.due, MIN_INTERVAL_SECONDS)
            beat()
            if not self._gaps.due.is_set():
                continue
            self._health.loop_failed("gap filling", await guard("gap filling", self.open_gaps))
            self._first_gaps.set()

    async def _leave_the_first_poll_alone(self) -> None:
        while self._first_poll_began and not self.polled.is_set():  # gauges come first
            await wait(self.polled, MIN_INTERVAL_SECONDS)
            if self._gaps is not None:
                self._gaps.on_progress()  # waiting is no hang; that of the poll shows as the poll's

    async def watch_forever(self, ping: Callable[[], Awaitable[None]]) -> None:
        """Notice between two observations that MongoDB does not answer, or answers again; see `watch_mongodb`."""
        beat = self._liveness.expect("watching MongoDB", 3 * PING_SECONDS)  # a ping that fails takes longer than one interval

        async def pinging() -> None:
            beat()
            await ping()

        def read_failed() -> bool:
            return self._observer.read_failed

        await watch_mongodb(pinging, self._health, self.reobserve.set, self._wall, read_failed=read_failed)

    def lead(self) -> None:
        """Read history and inventory again, and observe: another process wrote until now, or the history was replaced."""
        self._start_over()

    def _start_over(self) -> None:
        self._observer.reload()
        self.reobserve.set()

    # -- single steps

    async def restore(self) -> None:
        """Start with the fleet of the last run, in case MongoDB is unavailable.

        Raises:
            StoreError: the outbox cannot be read.
        """
        await self._observer.restore(self._part)

    async def observe(self) -> None:
        """Make one observation; see `Observer.observe`. Measure the disk of the outbox too."""
        began, known = self._wall(), bool(self.fleet.workers)
        try:
            await self._observer.observe()
        except ExporterError:
            raise
        except Exception as bug:  # what was read was not used, so the source has failed; `guard` logs the traceback
            self._health.failed(unexpected("mongodb", bug), began)
            raise
        finally:
            if self.fleet.workers and not known:  # else the poll would be at its next tick
                self.poll_now.set()
            await self._disk.measure(len(self.fleet.workers), self._rules.period)
        if self._gaps is None or not self._gaps.pending:
            self._first_gaps.set()

    async def open_gaps(self) -> None:
        """Open the gaps of the workers that are left; see `GapFilling.open`."""
        if self._gaps is not None:
            await self._gaps.open()

    async def poll(self) -> None:
        """Run one collection cycle, see `Poller.poll`; or none while another exporter leads and its snapshot is fresh."""
        if self.shared is None:
            await self._poller.poll()
        elif await self.shared.replaces_polling():
            await self._outbox.export_gauges(self._telemetry)
        else:
            await self._poller.poll()
            self.shared.note_polled()

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

    @property
    def healthy(self) -> Mapping[str, str | None]:
        """Return part → its last error, None after a success: each source, the outbox, and a loop that has failed."""
        return {part: condition.error for part, condition in self.conditions.items()}

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """Return part → its last error, and since when it has one or none."""
        writes, disk = self._outbox.condition, self._disk.condition
        if writes.error is None and (disk.error is not None or (disk.since or 0) > (writes.since or 0)):
            writes = disk
        shared: Mapping[str, Condition] = {} if self.shared is None else self.shared.conditions
        return {**self._health.conditions, "outbox": writes, **shared}

    def now(self) -> int:
        """Return MongoDB's time in UTC seconds."""
        return self._clock.now()
