"""The worker block of /metrics, and the same as prometheus_client's families, to compare them byte by byte."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from exporter.core import catalog
from exporter.core.catalog import (
    INFO,
    LONGEST_LABEL,
    SAMPLE_TIME,
    STATUS,
    STATUS_FORMS,
    WORKER_LABELS,
    WORKER_METRICS,
    Metric,
    StatusForm,
)
from exporter.core.metric_settings import CloudWatchGauge
from exporter.core.model import EC2_CHECK_STATES, LICENSE_STATES, SERVICE_STATES, STATUS_CODES, STATUSES, WorkerGauges
from exporter.core.workers_settings import ExtraMetric
from exporter.metrics.worker_block import WorkerBlock

Family = GaugeMetricFamily | CounterMetricFamily
_ORDERED_BY = {catalog.NODES.name: "state", catalog.EC2_CHECK.name: "check", SAMPLE_TIME.name: "metric"}
"""Families whose series are in the order of this label, then of the workers; the others': of the workers."""
Samples = Iterator[tuple[dict[str, str], float]]
"""One worker's samples of a family: the labels beside worker_id and region, and the value."""


def render(
    gauges: Sequence[WorkerGauges],
    extra: Sequence[ExtraMetric] = (),
    cloudwatch: Sequence[CloudWatchGauge] = (),
    status: StatusForm = "state_set",
) -> bytes:
    """Return the text of a block that is rendered for the first time."""
    return WorkerBlock(extra, cloudwatch, status).snapshot(gauges, 0).body


def families(
    gauges: Sequence[WorkerGauges], extra: Sequence[ExtraMetric], status: StatusForm = "state_set"
) -> Iterator[Family]:
    """Yield the families of the catalog, then those of `workers.extra`, with the samples of every worker."""
    for metric in WORKER_METRICS:
        if metric in STATUS_FORMS.values() and metric is not STATUS_FORMS[status]:
            continue
        yield _family(metric, ((gauge, _samples(metric, gauge)) for gauge in gauges))
    for each in extra:
        labels = (*WORKER_LABELS, "state") if each.states else WORKER_LABELS
        metric = Metric(each.metric, "counter" if each.type == "counter" else "gauge", each.help, "", labels, "")
        yield _family(metric, ((gauge, _extra_samples(each, gauge)) for gauge in gauges))


def _family(metric: Metric, samples: Iterator[tuple[WorkerGauges, Samples]]) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    of_all = [
        ({"worker_id": gauge.worker.id, "region": gauge.worker.region, **own_labels}, value)
        for gauge, of_worker in samples
        for own_labels, value in of_worker
    ]
    if first := _ORDERED_BY.get(metric.name):
        of_all.sort(key=lambda sample: sample[0][first])
    for labels, value in of_all:
        family.add_metric([labels[name][:LONGEST_LABEL] for name in metric.labels], value)
    return family


def _samples(metric: Metric, gauge: WorkerGauges) -> Samples:
    worker, facts = gauge.worker, gauge.worker.facts
    if metric is INFO:
        names = [name for name in INFO.labels if name not in {*WORKER_LABELS, "worker"}]
        yield {name: getattr(worker, name) or "" for name in names} | {"worker": worker.name or worker.id}, 1
    elif metric is SAMPLE_TIME:
        times = {"cpu": gauge.cpu_time, "memory": gauge.memory_time, "state": gauge.observed_at}
        yield from (({"metric": name}, time) for name, time in times.items() if time is not None)
    elif metric is STATUS:
        yield from _states(gauge, worker.status, STATUSES, "status")
    elif metric is catalog.STATUS_CODE:
        if gauge.show_state:
            yield {}, STATUS_CODES[worker.status]
    elif metric is catalog.LICENSE_STATUS:
        yield from _states(gauge, facts.license_status, LICENSE_STATES)
    elif metric is catalog.SERVICE_STATUS:
        yield from _states(gauge, facts.service_status, SERVICE_STATES)
    elif metric is catalog.EC2_CHECK:
        yield from _states(gauge, facts.instance_check, EC2_CHECK_STATES, check="instance")
        yield from _states(gauge, facts.system_check, EC2_CHECK_STATES, check="system")
    elif metric is catalog.NODES:
        if gauge.show_state and gauge.show_load:
            nodes = {"running": facts.nodes_running, "total": facts.nodes_total}
            yield from (({"state": state}, count) for state, count in nodes.items() if count is not None)
    else:
        value = _plain(gauge).get(metric.name)
        if value is not None:
            yield {}, value


def _plain(gauge: WorkerGauges) -> dict[str, float | None]:
    worker, facts = gauge.worker, gauge.worker.facts
    always: dict[str, float | None] = {
        catalog.CPU.name: None if gauge.cpu is None else gauge.cpu / 100,
        catalog.MEMORY.name: None if gauge.memory is None else gauge.memory / 100,
        catalog.LAST_ACTIVITY.name: worker.last_activity_at,
        catalog.CREATED.name: worker.created_at,
    }
    state: dict[str, float | None] = {
        catalog.DISK_TOTAL.name: facts.disk_total,
        catalog.MEMORY_TOTAL.name: facts.memory_total,
        catalog.LICENSED.name: facts.licensed,
        catalog.DETAILED_MONITORING.name: facts.detailed_monitoring,
        catalog.AUTO_PAUSES.name: facts.auto_pauses,
        catalog.HOURLY_PRICE.name: gauge.hourly_price,
    }
    known_disk = facts.disk_used is not None and facts.disk_total is not None and facts.disk_total > 0
    load: dict[str, float | None] = {
        catalog.ACTIVE_LABS.name: worker.active_labs,
        catalog.READY.name: facts.ready,
        catalog.UPTIME.name: facts.uptime,
        catalog.DISK_USED.name: facts.disk_used,
        catalog.DISK.name: (facts.disk_used or 0) / (facts.disk_total or 1) if known_disk else None,
        catalog.IDLE_PAUSE.name: facts.idle_pause_at,
    }
    shown = always | (state if gauge.show_state else {})
    return shown | (load if gauge.show_state and gauge.show_load else {})


def _states(gauge: WorkerGauges, state: str | None, states: Sequence[str], label: str = "state", **fixed: str) -> Samples:
    if gauge.show_state and state is not None:
        yield from (({label: each, **fixed}, each == state) for each in states)


def _extra_samples(extra: ExtraMetric, gauge: WorkerGauges) -> Samples:
    value = dict(gauge.worker.extra).get(extra.metric)
    if isinstance(value, str):
        yield from _states(gauge, value, extra.state_names)
    elif value is not None and gauge.show_state:
        yield {}, value
