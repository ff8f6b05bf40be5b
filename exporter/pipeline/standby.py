"""What an exporter keeps in memory while another one leads, so that it can mirror soon after it takes over. Pure."""

from collections.abc import Iterable, Sequence

from exporter.core.model import METRICS, MetricQuery, MetricResults, Points, Worker
from exporter.pipeline.lifecycle import FirstSeenValues, Rules, seen_since
from exporter.sources.cloudwatch.memory_series import series_value


def standby_memory(rules: Rules) -> int:
    """Return for how many seconds an exporter that does not lead notes values: what the leader may not have mirrored yet."""
    return rules.settle_delay + 2 * (rules.interval + rules.period)


def note_values(
    worker_id: str, queries: Sequence[MetricQuery], results: MetricResults, first_seen: FirstSeenValues, rules: Rules
) -> None:
    """Note since when CloudWatch has returned the newest values, for samples that another exporter has open (rule 7).

    An exporter that takes over then need not see each value a second time, `settle_delay` later, before it counts.

    Args:
        worker_id: whose queries they are.
        queries: those of the worker in one call.
        results: CloudWatch's results, with its clock.
        first_seen: updated.
        rules: the settings of the sample lifecycle.
    """
    by_metric: dict[tuple[str, str], list[MetricQuery]] = {}
    for query in queries:
        by_metric.setdefault((query.instance_id, query.metric), []).append(query)
    for (instance, metric), of_metric in by_metric.items():
        found = [result for query in of_metric if (result := results.by_query.get(query)) and result.complete]
        if len(found) < len(of_metric):
            continue
        date = results.date_of(of_metric[0])
        for start in {start for result in found for start in result.values if start > date - standby_memory(rules)}:
            value = series_value(found, start, date=date, period=rules.period)
            if value is not None:
                key = worker_id, start, instance, metric
                first_seen[key] = value, seen_since(key, value, date, first_seen)


def note_points(workers: Iterable[Worker], points: Points, date: int, first_seen: FirstSeenValues, rules: Rules) -> None:
    """Note the same of the leader's snapshot, which has only the newest value of each metric.

    Args:
        workers: the fleet.
        points: CloudWatch's newest datapoints.
        date: when the leader had polled them, in UTC seconds; CloudWatch returned them before, so no value counts too early.
        first_seen: updated.
        rules: the settings of the sample lifecycle.
    """
    for worker in workers:
        if worker.instance_id is None:
            continue
        for metric in METRICS:
            point = points.get(metric, {}).get(worker.instance_id)
            if point is not None and point.timestamp > date - standby_memory(rules):
                key = worker.id, point.timestamp, worker.instance_id, metric
                first_seen[key] = point.value, seen_since(key, point.value, date, first_seen)
