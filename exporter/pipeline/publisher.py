"""Worker gauges and the snapshot that /metrics serves."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from exporter.core.catalog import StatusForm
from exporter.core.clock import MAX_SKEW_SECONDS, ServerClock
from exporter.core.instances import with_accounts
from exporter.core.metric_settings import CloudWatchGauge
from exporter.core.model import (
    IDLE_STATUSES,
    METRICS,
    Datapoint,
    Fleet,
    MetricName,
    MetricQuery,
    MetricResult,
    MetricResults,
    Points,
    Snapshot,
    Worker,
    WorkerGauges,
)
from exporter.core.workers_settings import WorkersSettings
from exporter.metrics.telemetry import Telemetry
from exporter.metrics.worker_block import WorkerBlock
from exporter.pipeline.lifecycle import Rules
from exporter.sources.cloudwatch.memory_series import series_value

_REPUBLISH_SECONDS = 10


class Publisher:
    """The snapshot of the worker gauges, rebuilt from the last fleet and the newest datapoint of each metric.

    Args:
        rules: how long values and terminated workers are shown.
        settings: the further gauges of `workers.extra`, and what an hour of an instance type costs.
        clock: MongoDB's time, for the age of values.
        telemetry: rendered together with the snapshot.
        wall: UTC seconds of this host; dates the snapshot.
        account_of: (region, instance) → the AWS account, empty or None where it is not known.
        cloudwatch: the further gauges configured in `cloudwatch.extra`.
        status: the form of the status on /metrics.
    """

    def __init__(
        self,
        rules: Rules,
        settings: WorkersSettings,
        clock: ServerClock,
        telemetry: Telemetry,
        wall: Callable[[], float],
        account_of: Callable[[str, str], str | None] = lambda region, instance: None,
        *,
        cloudwatch: Sequence[CloudWatchGauge] = (),
        status: StatusForm = "state_set",
    ) -> None:
        self._account_of = account_of
        self._cloudwatch = cloudwatch
        self._rules = rules
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._wall = wall
        self.snapshot: Snapshot | None = None
        self.fleet = Fleet(0, ())
        """The last complete read, with the accounts of the instances."""
        self._terminated_seen: Mapping[str, int] = {}
        self._points: dict[str, dict[str, Datapoint]] = {metric: {} for metric in (*METRICS, *(one.name for one in cloudwatch))}
        """Metric → instance → its newest datapoint."""
        self._block = WorkerBlock(settings.extra, cloudwatch, status)
        self._publishing = asyncio.Lock()
        """Held while a block is rendered, so that a later one has the newer values."""
        self._observed_at = self._polled_at = wall()
        self._published_at = 0.0
        self.on_progress: Callable[[], object] = lambda: None
        """Called whenever the poller has received a result."""

    def update_fleet(self, fleet: Fleet, terminated_seen: Mapping[str, int]) -> None:
        """Use this fleet from the next publication on.

        Args:
            fleet: the last complete read.
            terminated_seen: when each terminated worker was first seen so, by worker id, in UTC seconds.
        """
        self.fleet = replace(fleet, workers=with_accounts(fleet.workers, self._account_of, self.fleet.workers))
        self._terminated_seen = terminated_seen
        listed = {worker.instance_id for worker in self.fleet.workers}
        for metric, points in self._points.items():
            self._points[metric] = {instance: point for instance, point in points.items() if instance in listed}

    def locate(self) -> None:
        """Look up the accounts of the instances again, after a listing."""
        self.fleet = replace(self.fleet, workers=with_accounts(self.fleet.workers, self._account_of, ()))

    def add_results(self, queries: Iterable[MetricQuery], results: MetricResults) -> None:
        """Keep the newest datapoint of each metric of each instance, unless a newer one is known.

        Args:
            queries: of one call, those of the memory series of an instance in their order.
            results: CloudWatch's, with its clock.
        """
        by_metric: dict[tuple[str, str], list[MetricQuery]] = {}
        for query in queries:
            by_metric.setdefault(query[:2], []).append(query)
        for (instance, metric), its_queries in by_metric.items():
            first, points = its_queries[0], self._points[metric]
            if len(its_queries) == 1:  # nearly always, and then every datapoint counts
                values = results.by_query[first].values
                newest = Datapoint(start := max(values), values[start]) if values else None
            else:  # never in different parts of a call
                newest = self._newest([results.by_query[query] for query in its_queries], results.date_of(first))
            if newest and (instance not in points or newest.timestamp >= points[instance].timestamp):
                points[instance] = newest

    def add_points(self, points: Points) -> None:
        """Keep these datapoints, unless newer ones are known; those of other gauges are left out."""
        for metric, known in self._points.items():
            for instance, point in points.get(metric, {}).items():
                if instance not in known or point.timestamp >= known[instance].timestamp:
                    known[instance] = point

    @property
    def points(self) -> Points:
        """The newest datapoints, in copies that do not change."""
        return {metric: dict(points) for metric, points in self._points.items()}

    def _newest(self, results: Sequence[MetricResult], date: int) -> Datapoint | None:
        for start in sorted({start for result in results for start in result.values}, reverse=True):
            value = series_value(results, start, date=date, period=self._rules.period)
            if value is not None:
                return Datapoint(start, value)
        return None

    @property
    def shown(self) -> Sequence[Mapping[str, Datapoint]]:
        """Instance → its newest datapoint in CloudWatch, for each of METRICS."""
        return [self._points[metric] for metric in METRICS]

    def mark_observed(self) -> None:
        """Note that the observer has just run: the snapshot expires `max_age` after the slower of observer and poller."""
        self._observed_at = self._wall()

    def mark_polled(self) -> None:
        """Note that the poller has just run or received a result."""
        self._polled_at = self._wall()
        self.on_progress()

    def mark_cycle_began(self) -> None:
        """Note that a collection cycle begins: most end before their progress is worth a publication of its own."""
        self._published_at = self._wall()

    async def publish(self) -> None:
        """Render the worker gauges and the exporter metrics off the event loop, and replace the snapshot."""
        async with self._publishing:
            self._published_at = self._wall()
            if self.fleet.date:
                fresh_until = min(self._observed_at, self._polled_at) + self._rules.max_age
                inputs = self.fleet, dict(self._points), self._terminated_seen, self._clock.now()
                self.snapshot = await asyncio.to_thread(self._render, *inputs, fresh_until)
            await asyncio.to_thread(self._telemetry.refresh)

    def _render(
        self, fleet: Fleet, points: Points, terminated_seen: Mapping[str, int], now: int, fresh_until: float
    ) -> Snapshot:
        rules, prices, shown = self._rules, self._settings.hourly_price, []
        for worker in fleet.workers:
            if worker.status == "terminated" and not is_shown(worker, terminated_seen.get(worker.id), now, rules):
                continue
            newest = {metric: point for metric in METRICS if (point := points[metric].get(worker.instance_id or ""))}
            one = gauges(worker, newest, fleet.date, now, rules)
            if self._cloudwatch:
                one = one._replace(cloudwatch=further_values(worker, points, self._cloudwatch, now, rules))
            if prices and (price := prices.get(worker.instance_type or "")) is not None:
                one = one._replace(hourly_price=price)
            shown.append(one)
        return self._block.snapshot(shown, fresh_until)

    async def publish_progress(self) -> None:
        """Publish in the middle of a long collection cycle, at most every 10 seconds."""
        if self._wall() - self._published_at > _REPUBLISH_SECONDS:
            await self.publish()


def further_values(
    worker: Worker, points: Points, cloudwatch: Iterable[CloudWatchGauge], now: int, rules: Rules
) -> tuple[tuple[str, float], ...]:
    """Return (metric name, value) of the gauges of `cloudwatch.extra` that a worker has.

    Args:
        worker: as read; none if it is stopped or terminated.
        points: CloudWatch's newest datapoints.
        cloudwatch: the gauges.
        now: MongoDB's time in UTC seconds.
        rules: how long a value is shown.
    """
    if worker.status in IDLE_STATUSES or worker.instance_id is None:
        return ()
    found = ((gauge, points[gauge.name].get(worker.instance_id)) for gauge in cloudwatch)
    return tuple(
        (gauge.name, point.value * gauge.scale)
        for gauge, point in found
        if point is not None and now - (point.timestamp + rules.period) <= rules.max_age
    )


def gauges(worker: Worker, points: Mapping[MetricName, Datapoint], observed_at: int, now: int, rules: Rules) -> WorkerGauges:
    """Return the gauges of a worker: CloudWatch's newest datapoint, else the worker document's own value, unless too old.

    A worker that is stopped or terminated has no load, from the moment its status says so: neither values nor their times.

    Args:
        worker: as read.
        points: CloudWatch's newest datapoint of each metric.
        observed_at: when the worker document was read, in UTC seconds.
        now: MongoDB's time in UTC seconds.
        rules: how long a value is shown.
    """
    show_state = now - observed_at <= rules.max_age
    if worker.status in IDLE_STATUSES:
        return WorkerGauges(worker, observed_at, show_state, show_load=False)
    cpu, cpu_time = _newest(points.get("cpu"), worker.cpu, worker.collected_at, now, rules)
    memory, memory_time = _newest(points.get("memory"), worker.memory, worker.collected_at, now, rules)
    return WorkerGauges(worker, observed_at, show_state, True, cpu, cpu_time, memory, memory_time)


def _newest(
    point: Datapoint | None, own: float | None, collected_at: int | None, now: int, rules: Rules
) -> tuple[float | None, int | None]:
    """Return the value of a metric, None where it is too old, and its time, None where there is none."""
    ended = None
    if point is not None:
        ended = point.timestamp + rules.period
        if now - ended <= rules.max_age:
            return point.value, ended
    if own is None or collected_at is None or collected_at > now + MAX_SKEW_SECONDS:
        return None, ended
    if now - collected_at <= rules.max_age:
        return own, collected_at
    return None, collected_at if ended is None else max(ended, collected_at)


def is_shown(worker: Worker, terminated_seen: int | None, now: int, rules: Rules) -> bool:
    """Return whether a worker has series: a terminated one keeps them for a while, so that Prometheus sees the end.

    Args:
        worker: as read.
        terminated_seen: when it was first seen terminated, in UTC seconds.
        now: MongoDB's time in UTC seconds.
        rules: `terminated_grace` is how long.
    """
    if worker.status != "terminated":
        return True
    times = [time for time in (worker.terminated_at, terminated_seen) if time is not None]  # one may be in the future
    return not times or now - min(times) <= rules.terminated_grace
