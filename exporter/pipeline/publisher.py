"""Worker gauges and the snapshot that /metrics serves."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

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
    Snapshot,
    Worker,
    WorkerGauges,
)
from exporter.core.workers_settings import WorkersSettings
from exporter.metrics import exposition
from exporter.metrics.telemetry import Telemetry
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
        self._points: dict[tuple[str, str], Datapoint] = {}
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
            by_metric.setdefault((query.instance_id, query.metric), []).append(query)
        for key, its_queries in by_metric.items():
            # The queries of one instance are never in different parts of a call.
            newest = self._newest([results.by_query[query] for query in its_queries], results.date_of(its_queries[0]))
            if newest and (key not in self._points or newest.timestamp >= self._points[key].timestamp):
                self._points[key] = newest

    def _newest(self, results: Sequence[MetricResult], date: int) -> Datapoint | None:
        for start in sorted({start for result in results for start in result.values}, reverse=True):
            value = series_value(results, start, date=date, period=self._rules.period)
            if value is not None:
                return Datapoint(start, value)
        return None

    def mark_observed(self) -> None:
        """Note that the observer has just run: the snapshot expires `max_age` after the slower of observer and poller."""
        self._observed_at = self._wall()

    def mark_polled(self) -> None:
        """Note that the poller has just run or received a result."""
        self._polled_at = self._wall()
        self.on_progress()

    async def publish(self) -> None:
        """Render the worker gauges and the exporter metrics off the event loop, and replace the snapshot."""
        fresh_until = min(self._observed_at, self._polled_at) + self._rules.max_age
        self._published_at = self._wall()
        if self.fleet.date:
            points, now = dict(self._points), self._clock.now()
            self.snapshot = await asyncio.to_thread(
                _render,
                self.fleet,
                points,
                self._terminated_seen,
                now,
                self._rules,
                self._settings,
                fresh_until,
                self._cloudwatch,
            )
        await asyncio.to_thread(self._telemetry.refresh)
        listed = {worker.instance_id for worker in self.fleet.workers}
        self._points = {key: point for key, point in self._points.items() if key[0] in listed}

    async def publish_progress(self) -> None:
        """Publish in the middle of a long collection cycle, at most every 10 seconds."""
        if self._wall() - self._published_at > _REPUBLISH_SECONDS:
            await self.publish()


def _render(
    fleet: Fleet,
    points: Mapping[tuple[str, str], Datapoint],
    terminated_seen: Mapping[str, int],
    now: int,
    rules: Rules,
    settings: WorkersSettings,
    fresh_until: float,
    cloudwatch: Sequence[CloudWatchGauge],
) -> Snapshot:
    shown = []
    for worker in fleet.workers:
        if is_shown(worker, terminated_seen.get(worker.id), now, rules):
            newest = {m: points[key] for m in METRICS if worker.instance_id and (key := (worker.instance_id, m)) in points}
            one = gauges(worker, newest, fleet.date, now, rules)
            if cloudwatch:
                one = replace(one, cloudwatch=further_values(worker, points, cloudwatch, now, rules))
            if (price := settings.hourly_price.get(worker.instance_type or "")) is not None:
                one = replace(one, hourly_price=price)
            shown.append(one)
    return exposition.snapshot(shown, settings.extra, fresh_until, cloudwatch)


def further_values(
    worker: Worker,
    points: Mapping[tuple[str, str], Datapoint],
    cloudwatch: Iterable[CloudWatchGauge],
    now: int,
    rules: Rules,
) -> tuple[tuple[str, float], ...]:
    """Return (metric name, value) of the gauges of `cloudwatch.extra` that a worker has.

    Args:
        worker: as read; none if it is stopped or terminated.
        points: CloudWatch's newest datapoint by instance and metric.
        cloudwatch: the gauges.
        now: MongoDB's time in UTC seconds.
        rules: how long a value is shown.
    """
    if worker.status in IDLE_STATUSES or worker.instance_id is None:
        return ()
    found = ((gauge, points.get((worker.instance_id, gauge.name))) for gauge in cloudwatch)
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
    values: dict[MetricName, tuple[float | None, int | None]] = {}
    own: dict[MetricName, float | None] = {"cpu": worker.cpu, "memory": worker.memory}
    for metric in METRICS:
        candidates: list[tuple[float, int]] = []
        if metric in points:
            candidates.append((points[metric].value, points[metric].timestamp + rules.period))
        own_value = own[metric]
        if own_value is not None and worker.collected_at is not None and worker.collected_at <= now + MAX_SKEW_SECONDS:
            candidates.append((own_value, worker.collected_at))
        fresh = [pair for pair in candidates if now - pair[1] <= rules.max_age]
        values[metric] = fresh[0] if fresh else (None, max((time for _, time in candidates), default=None))
    return WorkerGauges(worker, observed_at, show_state, True, *values["cpu"], *values["memory"])


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
