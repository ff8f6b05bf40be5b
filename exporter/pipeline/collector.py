"""The observing and the asking loop: sources → lifecycle → outbox, and the Snapshot that /metrics serves.

Neither loop waits for the other, none overlaps itself. What a round does to the outbox is in `rounds`, why is in `lifecycle`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial

from exporter.core import logs
from exporter.core.budget import Budget, BudgetState
from exporter.core.clock import ServerClock, check_skew
from exporter.core.errors import ExporterError, SourceError, StoreError
from exporter.core.model import (
    METRICS,
    Datapoint,
    Fleet,
    InventoryEntry,
    MetricName,
    MetricQuery,
    MetricResult,
    MetricResults,
    PendingQuery,
    Snapshot,
)
from exporter.core.periods import align, next_tick
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.lifecycle import FirstSeenValues, Rules, WorkerState
from exporter.pipeline.observer import GAP_CHUNK_WORKERS, OBSERVE_OFFSET_SECONDS, InventoryStore, Leadership, SampleTimes
from exporter.pipeline.outbox import OutboxThread
from exporter.pipeline.planning import MetricDataCall, is_due, live_needs, plan
from exporter.pipeline.poller import _BUDGET_PROBLEMS, MAX_CONCURRENT_CALLS, POLL_OFFSET_SECONDS, CycleStats, _without_healing
from exporter.pipeline.publisher import _render
from exporter.pipeline.source_health import _name
from exporter.pipeline.transactions import (
    apply_results,
    finalize_without_cloudwatch,
    open_gaps,
    open_periods,
    record_absent,
    record_absent_unpolled,
)
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.sources.protocols import FleetSource, MetricSource

RECENT = 3 * 3600
"""What ListMetrics with RecentlyActive covers."""

_log = logs.get("collector")


class Collector:
    """Observes the fleet, asks CloudWatch, and keeps the Snapshot.

    Args:
        cloudwatch: None where `cloudwatch.enabled` is false.
        history, inventory, lease: None where there is no history; gauges are then all there is.
        budget: the one `metric_source` takes from; by default without a limit.
        on_ready: called when rows may be ready for the mirror.
        wall: the local clock; it wakes the loops and dates the snapshot, and is never used to judge a sample.
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
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._extra = settings.workers.extra
        self._rules = rules
        self._telemetry = telemetry
        self._outbox = outbox
        self._fleet_source = fleet_source
        self._metric_source = metric_source
        self._history, self._inventory, self._lease = history, inventory, lease
        self._on_ready = on_ready
        self._budget = Budget(wall=wall) if budget is None else budget
        self._wall, self._monotonic = wall, monotonic

        self.snapshot: Snapshot | None = None
        self.fleet = Fleet(0, ())
        self.observed = asyncio.Event()
        """Set by the first attempt to observe, whatever came of it."""
        self.asked = asyncio.Event()
        """Set by the first attempt to ask."""
        self.reobserve = asyncio.Event()
        """Set to observe now, not at the next tick."""
        self.healthy: dict[str, str | None] = {}
        """The last error of each source by name, None when it answered; for /-/ready."""

        self._clock = ServerClock(wall, monotonic)
        self._terminated_seen: dict[str, int] = {}
        self._points: dict[tuple[str, MetricName], Datapoint] = {}
        self._index = series or (None if metric_source is None else MemorySeriesIndex(metric_source, monotonic=monotonic))
        self._polled_regions: set[str] = set()
        self._asked: dict[str, int] = {}
        self._sightings: FirstSeenValues = {}
        self._gaps_opened: set[str] = set()
        self._inventory_loaded = False
        self._observed_at = self._asked_at = wall()
        self._published_at = 0.0
        self._complaints: set[str] = set()
        self._mirrored_before = 0

    # -- the loops

    async def restore(self) -> None:
        """Begin with the fleet of the last run, in case MongoDB is away."""
        date, workers, self._terminated_seen = await self._outbox(self._outbox.outbox.last_fleet)
        self.fleet = Fleet(date, workers)

    async def observe_forever(self) -> None:
        """Observe at once, after every period's end, and whenever `reobserve` is set."""
        while True:
            self.reobserve.clear()
            await self._guard("observing", self.observe)
            self.observed.set()
            tick = next_tick(self._wall(), self._rules.period, OBSERVE_OFFSET_SECONDS)
            await self._sleep_until(tick, self.reobserve)

    async def ask_forever(self) -> None:
        """Ask once the fleet is known, then at every interval."""
        await self.observed.wait()
        while True:
            await self._guard("asking", self.ask)
            self.asked.set()
            await self._sleep_until(next_tick(self._wall(), self._rules.interval, POLL_OFFSET_SECONDS))

    def lead(self) -> None:
        """Another process may have written until now: read the history and the inventory again, and observe."""
        self._gaps_opened.clear()
        self._inventory_loaded = False
        self.reobserve.set()

    async def _guard(self, what: str, round_: Callable[[], Awaitable[None]]) -> None:
        """One failed round must not end its loop; the errors we know are logged where they are understood."""
        try:
            await round_()
        except ExporterError as error:
            _log.error(f"{what} failed", error=str(error))
        except Exception:  # noqa: BLE001  # a bug in one round must not end collection; it is reported in full
            _log.exception(f"{what} failed for a reason nobody expected; please report it")

    async def _sleep_until(self, when: float, wake: asyncio.Event | None = None) -> None:
        seconds = max(0.05, when - self._wall())
        if wake is None:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await wake.wait()
        except TimeoutError:
            return

    def now(self) -> int:
        """MongoDB's UTC second."""
        return self._clock.now()

    # -- observing

    async def observe(self) -> None:
        """One observation: read the fleet completely, open what has closed, look for gaps, publish."""
        began = self._wall()
        try:
            fleet = await self._fleet_source.read()
            check_skew("mongodb", fleet.date, (began + self._wall()) / 2)
        except SourceError as error:
            self._failed(error, began)
        else:
            self._succeeded("mongodb", "", began)
            await self._accept(fleet)
        finally:
            self._observed_at = self._wall()
            await self._publish()

    async def _accept(self, fleet: Fleet) -> None:
        self._clock.synchronize(fleet.date)
        terminated = {worker.id for worker in fleet.workers if worker.status == "terminated"}
        self._terminated_seen = {id_: self._terminated_seen.get(id_, fleet.date) for id_ in terminated}
        self.fleet = fleet
        self._telemetry.workers_skipped.clear()
        for reason, count in fleet.skipped.items():
            self._telemetry.workers_skipped.labels(reason).set(count)
        for complaint in sorted(set(fleet.complaints) - self._complaints):
            _log.warning("an aggregate is malformed", problem=complaint)
        self._complaints = set(fleet.complaints)
        await self._open(fleet)
        await self._outbox(self._outbox.outbox.keep_fleet, fleet.workers, fleet.date, self._terminated_seen)

    async def _open(self, fleet: Fleet) -> None:
        """The part of an observation only the writer may do."""
        if self._history is None or self._inventory is None or self._lease is None or not self._lease.held:
            return
        entries = await self._load_inventory(self._inventory)
        opened, known = await self._outbox(open_periods, self._outbox.outbox, fleet, entries, self._rules)
        try:
            await self._inventory.record(fleet)  # after `meet` has seen what was known before
        except StoreError as error:
            _log.error("the inventory cannot be written; it is tried again", error=str(error))
        if entries is not None:
            opened += await self._open_gaps(fleet, known, entries)
        self._on_ready()
        await self._outbox.export_gauges(self._telemetry)
        _log.info("observed", workers=len(fleet.workers), opened=opened, **fleet.skipped)

    async def _load_inventory(self, inventory: InventoryStore) -> Mapping[str, InventoryEntry] | None:
        """What was recorded until now; None while it cannot be read."""
        if not self._inventory_loaded:
            try:
                await inventory.load()
            except StoreError as error:
                _log.error("the inventory cannot be read; workers never seen before wait", error=str(error))
                return None
            self._inventory_loaded = True
        return inventory.entries

    async def _open_gaps(self, fleet: Fleet, known: Mapping[str, WorkerState], entries: Mapping[str, InventoryEntry]) -> int:
        """Once per process and worker, as soon as the history can be read (rule 3)."""
        assert self._history is not None
        self._gaps_opened &= {worker.id for worker in fleet.workers}  # one that left may have been forgotten when it returns
        workers = [worker for worker in fleet.workers if worker.id not in self._gaps_opened]
        since = fleet.date - self._rules.gap_fill_window - self._rules.period
        opened = 0
        for first in range(0, len(workers), GAP_CHUNK_WORKERS):
            chunk = workers[first : first + GAP_CHUNK_WORKERS]
            try:
                have = await self._history.timestamps([worker.id for worker in chunk], since)
            except StoreError as error:
                _log.error("the history cannot be read, its gaps wait", error=str(error))
                break
            opened += await self._outbox(open_gaps, self._outbox.outbox, chunk, known, entries, have, fleet.date, self._rules)
            self._gaps_opened |= {worker.id for worker in chunk}
        return opened

    # -- asking

    @property
    def _series(self) -> MemorySeriesIndex:
        assert self._index is not None
        return self._index

    async def ask(self) -> None:
        """One asking round: whoever is due, newest windows first; settle what the answers decide; publish."""
        began, tally = self._wall(), CycleStats()
        try:
            if self._metric_source is None:
                tally.finalized, tally.dropped = await self._outbox(
                    finalize_without_cloudwatch, self._outbox.outbox, self.now(), self._rules
                )
            else:
                await self._ask_cloudwatch(self._metric_source, tally)
        finally:
            self._telemetry.samples_dropped.inc(tally.dropped)
            self._asked_at = self._wall()
            self._on_ready()
            await self._publish()
        await self._outbox.export_gauges(self._telemetry)
        _log.info(
            "round",
            workers=tally.workers,
            calls=tally.calls,
            failed=tally.failed,
            datapoints=tally.datapoints,
            finalized=tally.finalized,
            dropped=tally.dropped,
            given_up=tally.given_up,
            mirrored=self._telemetry.mirrored - self._mirrored_before,
            waiting=self._outbox.outbox.counts()["observed"],
            took=f"{self._wall() - began:.1f}s",
            cost_usd=f"{self._telemetry.dollars:.4f}",
            budget=tally.budget,
        )
        self._mirrored_before = self._telemetry.mirrored

    async def _ask_cloudwatch(self, source: MetricSource, tally: CycleStats) -> None:
        now = self.now()
        types = {worker.instance_id: worker.instance_type for worker in self.fleet.workers if worker.instance_id}
        needs, live = await self._needs(now)
        if self._judge(live, types) == "polling_paused":
            needs = []
        regions = sorted({need.region for need in needs})
        self._polled_regions |= {*regions}
        began = self._wall()
        failures: dict[str, SourceError] = {}
        ended: dict[str, float] = {}
        for region, error in zip(regions, await asyncio.gather(*(self._list(r, needs) for r in regions)), strict=True):
            if error:
                failures[region] = error
        tally.budget = self._judge(live, types)  # again: now it is known who has an agent, and two metrics to ask for
        if tally.budget != "ok":
            needs = (
                _without_healing(needs, live, now - self._rules.absence_timeout) if tally.budget == "gap_filling_paused" else []
            )
        tally.workers = len(needs)
        # One answer decides what is older than `absence_timeout`, so every series that may have had the value must be in it.
        thorough = {need.worker_id for need in needs if need.oldest < now - self._rules.absence_timeout}

        def queries_of(worker_id: str, region: str, instance: str) -> tuple[MetricQuery, ...]:
            return self._series.queries(region, instance, types.get(instance), thorough=worker_id in thorough)

        batches = plan(needs, queries_of, now, self._rules)
        # Counted before it is asked: whatever kills us on the way, a restart does not spend it a second time.
        await self.keep_spent(sum(len(batch.queries) for batch in batches))
        slots = asyncio.Semaphore(MAX_CONCURRENT_CALLS)

        async def run(batch: MetricDataCall) -> None:
            async with slots:
                try:
                    error = await self._run(source, batch, tally)
                except Exception as bug:  # noqa: BLE001  # a bug in one call must not end the others; it is reported in full
                    _log.exception("a call failed for a reason nobody expected; please report it", region=batch.region)
                    error = SourceError("cloudwatch", type(bug).__name__, f"an unexpected error: {bug!r}", region=batch.region)
            ended[batch.region] = self._wall()
            if error:
                failures[batch.region] = error
                tally.failed += 1
            self._asked_at = self._wall()
            if self._asked_at - self._published_at > 10:
                await self._publish()

        async with asyncio.TaskGroup() as group:
            for batch in batches:
                group.create_task(run(batch))
        await self.keep_spent()
        self._show_budget(tally.budget)
        for region in regions:
            if region in failures:
                self._failed(failures[region], began, ended.get(region))
            else:
                self._succeeded("cloudwatch", region, began, ended.get(region))
        self._forget_regions({worker.region for worker in self.fleet.workers} | set(regions))
        # Until MongoDB has told the time, only the local clock says how old a row is: not enough to give it up (rule 6). Nor is
        # a row given up that was not asked about because of the price.
        decided = self._clock.synchronized and tally.budget == "ok"
        attempted = {worker_id for batch in batches for worker_id in batch.queries_by_worker} if decided else set()
        rows, dropped = await self._outbox(record_absent, self._outbox.outbox, attempted, now, self._rules)
        if self._clock.synchronized and tally.budget != "ok":
            unasked, empty = await self._outbox(record_absent_unpolled, self._outbox.outbox, now, self._rules)
            rows, dropped = rows + unasked, dropped + empty
        tally.given_up, tally.dropped = len(rows), tally.dropped + dropped
        for row in rows:
            for metric in METRICS:
                if getattr(row, metric) is None:
                    self._telemetry.samples_unavailable.labels(metric).inc()
        horizon = now - self._rules.gap_fill_window - self._rules.period
        self._sightings = {key: seen for key, seen in self._sightings.items() if key[1] > horizon}

    def _judge(self, live: Iterable[PendingQuery], types: Mapping[str, str | None]) -> BudgetState:
        """What the day's budget allows, by the price of asking for the running workers alone."""
        if self._budget.max_usd is None:
            return "ok"
        price = sum(len(self._series.queries(need.region, name, types.get(name))) for need in live for name in need.instances)
        return self._budget.judge(price, max(self._rules.interval, self._rules.period))

    async def keep_spent(self, planned: int = 0) -> None:
        """Keep what today has cost, and what is about to be asked, over a restart."""
        day, spent = self._budget.spent()
        try:
            await self._outbox(self._outbox.outbox.keep_spent, day, spent + planned)
        except StoreError as error:  # the count goes on in memory
            _log.error("what CloudWatch cost today cannot be kept over a restart", error=str(error))

    def _show_budget(self, state: BudgetState) -> None:
        self._telemetry.show_budget(self._budget, state)
        problem = None if state == "ok" else _BUDGET_PROBLEMS[state].format(self._budget.max_usd)
        if problem and problem != self.healthy.get("budget"):
            _log.warning("the budget limits what is asked", state=state, problem=problem)
        if self._budget.max_usd is not None:
            self.healthy["budget"] = problem

    async def _needs(self, now: int) -> tuple[list[PendingQuery], list[PendingQuery]]:
        """Who is due: open rows, and a fresh gauge for every running worker; and of all running ones the latter alone."""
        needs = {(n.worker_id, n.region): n for n in await self._outbox(self._outbox.outbox.needs)}
        live = live_needs(self.fleet.workers, now, self._rules)
        for fresh in live:
            key = fresh.worker_id, fresh.region
            need = needs.get(key, fresh)
            instances = tuple(dict.fromkeys((*need.instances, *fresh.instances)))
            needs[key] = replace(need, instances=instances, oldest=min(need.oldest, fresh.oldest))
        self._asked = {id_: at for id_, at in self._asked.items() if at <= now}  # a clock that went back asks again
        running = {need.worker_id for need in live}
        due = [
            need
            for need in needs.values()
            if is_due(need.worker_id in running, self._asked.get(need.worker_id), now, self._rules)
        ]
        return due, live

    async def _list(self, region: str, needs: Iterable[PendingQuery]) -> SourceError | None:
        """Bring the region's listings up to date; an old one keeps serving, with its own date."""
        try:
            recent = await self._series.listing(region, recent=True)
            if any(
                need.oldest < recent.since and not set(need.instances) <= set(recent.series)
                for need in needs
                if need.region == region
            ):
                await self._series.listing(region, recent=False)
        except SourceError as error:
            return error
        return None

    async def _run(self, source: MetricSource, batch: MetricDataCall, tally: CycleStats) -> SourceError | None:
        """Make one call: keep the newest datapoints and finalize samples."""
        now = self.now()
        try:
            answers = await source.get_metric_data(batch.region, batch.queries, batch.start, batch.end, self._rules.period)
        except SourceError as error:
            return error
        tally.calls += 1
        for query, answer in answers.by_query.items():
            self._note_point(query, answer, batch, answers.date)
            tally.datapoints += len(answer.values)
        try:
            await self._apply(batch, answers, tally)
        except StoreError as error:  # the rows stay open and the workers due; the gauges go on
            _log.error("the answers cannot be kept", error=str(error))
            tally.failed += 1
            return None
        complete = {query for query, answer in answers.by_query.items() if answer.complete}
        for worker_id, queries in batch.queries_by_worker.items():
            if complete.issuperset(queries):
                self._asked[worker_id] = now
        unanswered = [query for query in batch.queries if query not in complete]
        if unanswered:
            return SourceError(
                "cloudwatch",
                "PartialData",
                f"CloudWatch answered {len(unanswered)} of {len(batch.queries)} queries in part or not at all; "
                "they are asked again by the next round",
                region=batch.region,
            )
        return None

    def _note_point(self, query: MetricQuery, answer: MetricResult, batch: MetricDataCall, date: int) -> None:
        key = (query.instance_id, query.metric)
        if answer.values:
            start = max(answer.values)
            if key not in self._points or start >= self._points[key].timestamp:
                self._points[key] = Datapoint(start, answer.values[start])
        recent = align(date, self._rules.period) - 4 * self._rules.period  # 3 periods, and one that may not be out yet
        if query.metric == "memory" and answer.complete and answer.start <= recent and max(answer.values, default=0) < recent:
            self._series.mark_silent(batch.region, query.dimensions)

    async def _apply(self, batch: MetricDataCall, answers: MetricResults, tally: CycleStats) -> None:
        listings = self._series.listings(batch.region)
        settled, dropped = await self._outbox(
            apply_results, self._outbox.outbox, batch, answers, listings, self._sightings, self._rules
        )
        tally.finalized += settled
        tally.dropped += dropped
        if settled:
            self._on_ready()

    # -- what came of it

    async def _publish(self) -> None:
        """Render the worker block off the event loop and swap it in; what the exporter says of itself comes along with it."""
        rules, now = self._rules, self.now()
        fresh_until = min(self._observed_at, self._asked_at) + rules.max_age
        self._published_at = self._wall()
        if self.fleet.date:
            render = partial(
                _render, self.fleet, dict(self._points), self._terminated_seen, now, rules, self._extra, fresh_until
            )
            self.snapshot = await asyncio.to_thread(render)
        await asyncio.to_thread(self._telemetry.refresh)
        listed = {worker.instance_id for worker in self.fleet.workers}
        self._points = {key: point for key, point in self._points.items() if key[0] in listed}

    def _forget_regions(self, alive: AbstractSet[str]) -> None:
        """A region no worker is in any more must not look down, or up, for ever."""
        for region in self._polled_regions - alive:
            self._polled_regions.discard(region)
            self.healthy.pop(_name("cloudwatch", region), None)
            self._telemetry.source_gone("cloudwatch", region)

    def _succeeded(self, source: str, region: str, began: float, ended: float | None = None) -> None:
        ended = self._wall() if ended is None else ended
        self._telemetry.source_succeeded(source, region, ended, ended - began)
        self.healthy[_name(source, region)] = None

    def _failed(self, error: SourceError, began: float, ended: float | None = None) -> None:
        self._telemetry.source_failed(error.source, error.region, (self._wall() if ended is None else ended) - began)
        self.healthy[_name(error.source, error.region)] = str(error)
        _log.error("a source failed", source=error.source, region=error.region, code=error.code, error=str(error))
