"""The worker block of /metrics as prometheus_client's families, to compare with `exposition.render` byte by byte."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily

from exporter.core.catalog import (
    ACTIVE_LABS,
    CPU,
    CREATED,
    INFO,
    LAST_ACTIVITY,
    LONGEST_LABEL,
    MEMORY,
    SAMPLE_TIME,
    STATUS,
    WORKER_LABELS,
    WORKER_METRICS,
    Metric,
)
from exporter.core.model import STATUSES, WorkerGauges
from exporter.core.settings import ExtraGauge


def families(gauges: Sequence[WorkerGauges], extra: Sequence[ExtraGauge]) -> Iterator[GaugeMetricFamily]:
    """Yield the families of the catalog, then those of `workers.extra`, with the samples of every worker."""
    further = (Metric(each.metric, "gauge", each.help, "", WORKER_LABELS, "") for each in extra)
    for metric in (*WORKER_METRICS, *further):
        family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        for gauge in gauges:
            for own_labels, value in _samples(metric, gauge):
                labels = {"worker_id": gauge.worker.id, "region": gauge.worker.region, **own_labels}
                family.add_metric([labels[name][:LONGEST_LABEL] for name in metric.labels], value)
        yield family


def _samples(metric: Metric, gauge: WorkerGauges) -> Iterator[tuple[dict[str, str], float]]:
    """Yield one worker's samples of a family: the labels beside worker_id and region, and the value."""
    worker = gauge.worker
    if metric is INFO:
        yield {name: getattr(worker, name) or "" for name in INFO.labels if name not in WORKER_LABELS}, 1
        return
    if metric is STATUS:
        yield from (({"status": status}, status == worker.status) for status in STATUSES if gauge.show_state)
        return
    if metric is SAMPLE_TIME:
        times = {"cpu": gauge.cpu_time, "memory": gauge.memory_time, "state": gauge.observed_at}
        yield from (({"metric": name}, time) for name, time in times.items() if time is not None)
        return
    state: dict[str, float | None] = {ACTIVE_LABS.name: worker.active_labs, **dict(worker.extra)}
    values: dict[str, float | None] = {
        CPU.name: None if gauge.cpu is None else gauge.cpu / 100,
        MEMORY.name: None if gauge.memory is None else gauge.memory / 100,
        LAST_ACTIVITY.name: worker.last_activity_at,
        CREATED.name: worker.created_at,
        **(state if gauge.show_state else {}),
    }
    value = values.get(metric.name)
    if value is not None:
        yield {}, value
