"""Worker gauges and the snapshot that /metrics serves."""

from collections.abc import Mapping, Sequence
from typing import Any

from exporter.core.clock import MAX_SKEW_SECONDS
from exporter.core.model import (
    METRICS,
    Datapoint,
    Fleet,
    MetricName,
    Snapshot,
    Worker,
    WorkerGauges,
)
from exporter.metrics import exposition
from exporter.pipeline.lifecycle import Rules


def _render(
    fleet: Fleet,
    points: Mapping[tuple[str, MetricName], Datapoint],
    terminated_seen: Mapping[str, int],
    now: int,
    rules: Rules,
    extra: Sequence[Any],
    fresh_until: float,
) -> Snapshot:
    shown = []
    for worker in fleet.workers:
        if is_shown(worker, terminated_seen.get(worker.id), now, rules):
            mine = {m: points[key] for m in METRICS if worker.instance_id and (key := (worker.instance_id, m)) in points}
            shown.append(gauges(worker, mine, fleet.date, now, rules))
    return exposition.snapshot(shown, extra, fresh_until)


# -- gauges ----------------------------------------------------------------------------------------------------------


def gauges(worker: Worker, points: Mapping[MetricName, Datapoint], observed_at: int, now: int, rules: Rules) -> WorkerGauges:
    """What /metrics says of a worker: CloudWatch's newest datapoint, else the aggregate's own value, unless too old.

    Args:
        points: CloudWatch's newest datapoint of each metric.
        observed_at: when the aggregate was read.
    """
    values: dict[MetricName, tuple[float | None, int | None]] = {}
    own: dict[MetricName, float | None] = {"cpu": worker.cpu, "memory": worker.memory}
    for metric in METRICS:
        known: list[tuple[float, int]] = []
        if metric in points:
            known.append((points[metric].value, points[metric].timestamp + rules.period))
        own_value = own[metric]
        if own_value is not None and worker.collected_at is not None and worker.collected_at <= now + MAX_SKEW_SECONDS:
            known.append((own_value, worker.collected_at))
        fresh = [pair for pair in known if now - pair[1] <= rules.max_age]
        values[metric] = fresh[0] if fresh else (None, max((time for _, time in known), default=None))
    return WorkerGauges(worker, observed_at, now - observed_at <= rules.max_age, *values["cpu"], *values["memory"])


def is_shown(worker: Worker, terminated_seen: int | None, now: int, rules: Rules) -> bool:
    """Whether a worker still has series: a terminated one keeps them for a while, so that Prometheus sees the end."""
    if worker.status != "terminated":
        return True
    times = [time for time in (worker.terminated_at, terminated_seen) if time is not None]  # one may be in the future
    return not times or now - min(times) <= rules.terminated_grace
