"""The worker block of /metrics in text format 0.0.4, rendered and compressed once per cycle.

`render` joins strings directly, because prometheus_client needs a second for 10,000 workers; a test compares its output with
prometheus_client's byte by byte. Names, HELP texts and labels come from the catalog only.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter

from prometheus_client.utils import floatToGoString

from exporter.core import catalog
from exporter.core.catalog import (
    INFO,
    LONGEST_LABEL,
    NODES,
    SAMPLE_TIME,
    STATUS,
    WORKER_DOCUMENT,
    WORKER_LABELS,
    WORKER_METRICS,
    Kind,
    Metric,
)
from exporter.core.metric_settings import CloudWatchGauge
from exporter.core.model import EC2_CHECK_STATES, LICENSE_STATES, SERVICE_STATES, STATUSES, Snapshot, WorkerFacts, WorkerGauges
from exporter.core.workers_settings import ExtraMetric


def snapshot(
    gauges: Sequence[WorkerGauges],
    extra: Sequence[ExtraMetric],
    fresh_until: float,
    cloudwatch: Sequence[CloudWatchGauge] = (),
) -> Snapshot:
    """Return the rendered and compressed worker block of one cycle; run it in a thread.

    Args:
        gauges: one per worker.
        extra: the metrics of `workers.extra`.
        fresh_until: UTC second of the local clock after which the block is left out of /metrics.
        cloudwatch: the gauges of `cloudwatch.extra`.
    """
    body = render(gauges, extra, cloudwatch)
    # Level 1 takes a third of the default's time for a few percent more bytes. The flush lets `gzip_member.continued` append to
    # the member: curl, wget and browsers read only the first of several members.
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    gzipped = packer.compress(body) + packer.flush(zlib.Z_SYNC_FLUSH) + packer.flush()
    return Snapshot(tuple(gauges), body, gzipped, fresh_until)


def render(gauges: Sequence[WorkerGauges], extra: Sequence[ExtraMetric], cloudwatch: Sequence[CloudWatchGauge] = ()) -> bytes:
    """Return the bytes that prometheus_client would render: the catalog's families, `workers.extra`, `cloudwatch.extra`.

    What the worker document says is left out where `show_state` is false, labs and everything else that only a running instance
    has where `show_load` is, and every value that is None.
    """
    ids = [(_escaped(gauge.worker.region), _escaped(gauge.worker.id)) for gauge in gauges]
    lines: list[str] = []
    for metric in WORKER_METRICS:
        lines.append(_header(metric))
        lines += _LINES.get(metric.name, _plain_lines)(metric, gauges, ids)
    for each in extra:
        lines += _extra_lines(each, gauges, ids)
    for one in cloudwatch:
        lines += _cloudwatch_lines(one, gauges, ids)
    return "".join(lines).encode()


def _header(metric: Metric) -> str:
    return f"# HELP {metric.name} {_escaped_help(metric.help)}\n# TYPE {metric.name} {metric.kind}\n"


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


Value = Callable[[WorkerGauges], float | None]


def _fact(of: Callable[[WorkerFacts], float | None]) -> Value:
    return lambda gauge: of(gauge.worker.facts) if gauge.show_state else None


def _load(of: Callable[[WorkerFacts], float | None]) -> Value:
    """Return what only a running instance has."""
    return lambda gauge: of(gauge.worker.facts) if gauge.show_state and gauge.show_load else None


_PLAIN: Mapping[str, Value] = {
    catalog.CPU.name: lambda gauge: _ratio(gauge.cpu),
    catalog.MEMORY.name: lambda gauge: _ratio(gauge.memory),
    catalog.ACTIVE_LABS.name: lambda gauge: gauge.worker.active_labs if gauge.show_state and gauge.show_load else None,
    catalog.LAST_ACTIVITY.name: lambda gauge: gauge.worker.last_activity_at,
    catalog.CREATED.name: lambda gauge: gauge.worker.created_at,
    catalog.READY.name: _load(lambda facts: facts.ready),
    catalog.UPTIME.name: _load(lambda facts: facts.uptime),
    catalog.DISK_USED.name: _load(lambda facts: facts.disk_used),
    catalog.DISK_TOTAL.name: _fact(lambda facts: facts.disk_total),
    catalog.DISK.name: _load(lambda facts: facts.disk_utilization),
    catalog.MEMORY_TOTAL.name: _fact(lambda facts: facts.memory_total),
    catalog.LICENSED.name: _fact(lambda facts: facts.licensed),
    catalog.DETAILED_MONITORING.name: _fact(lambda facts: facts.detailed_monitoring),
    catalog.AUTO_PAUSES.name: _fact(lambda facts: facts.auto_pauses),
    catalog.IDLE_PAUSE.name: _load(lambda facts: facts.idle_pause_at),
    catalog.HOURLY_PRICE.name: lambda gauge: gauge.hourly_price if gauge.show_state else None,
}
"""Families with one series per worker."""

_SERIES: Mapping[str, tuple[str, Mapping[str, Value]]] = {
    NODES.name: (
        "state",
        {"running": _load(lambda facts: facts.nodes_running), "total": _load(lambda facts: facts.nodes_total)},
    ),
    SAMPLE_TIME.name: (
        "metric",
        {
            "cpu": lambda gauge: gauge.cpu_time,
            "memory": lambda gauge: gauge.memory_time,
            "state": lambda gauge: gauge.observed_at,
        },
    ),
}
"""Families with several series per worker: the label that differs, and the value for each value of the label."""


# For speed each line is made by a %-template, whose labels are in order and whose constant labels are filled in.

Ids = Sequence[tuple[str, str]]
"""(region, worker_id) of each gauge, escaped, in the order of the sorted labels."""


def _escaped(text: str | None) -> str:
    return (text or "")[:LONGEST_LABEL].replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _template(metric: Metric, /, **fixed: str) -> str:
    escaped = {name: _escaped(value).replace("%", "%%") for name, value in fixed.items()}
    labels = ",".join(f'{name}="{escaped.get(name, "%s")}"' for name in sorted(metric.labels))
    return f"{metric.name}{{{labels}}} "


def _state_set(metric: Metric, states: Sequence[str], label: str = "state", **fixed: str) -> Mapping[str, str]:
    """Return for each state the lines of a worker in it, one for each possible state."""
    templates = {state: _template(metric, **{label: state}, **fixed) for state in states}
    return {
        state: "".join(f"{template}{'1.0' if each == state else '0.0'}\n" for each, template in templates.items())
        for state in states
    }


_STATE_SETS: Mapping[str, tuple[tuple[Mapping[str, str], Callable[[WorkerGauges], str | None]], ...]] = {
    STATUS.name: ((_state_set(STATUS, STATUSES, "status"), lambda gauge: gauge.worker.status),),
    catalog.LICENSE_STATUS.name: (
        (_state_set(catalog.LICENSE_STATUS, LICENSE_STATES), lambda gauge: gauge.worker.facts.license_status),
    ),
    catalog.SERVICE_STATUS.name: (
        (_state_set(catalog.SERVICE_STATUS, SERVICE_STATES), lambda gauge: gauge.worker.facts.service_status),
    ),
    catalog.EC2_CHECK.name: (
        (
            _state_set(catalog.EC2_CHECK, EC2_CHECK_STATES, check="instance"),
            lambda gauge: gauge.worker.facts.instance_check,
        ),
        (_state_set(catalog.EC2_CHECK, EC2_CHECK_STATES, check="system"), lambda gauge: gauge.worker.facts.system_check),
    ),
}
"""Families that are state sets: the lines for each state, and which state a worker is in."""

_INFO_FIELDS = {"worker_id": "id", "worker": "display_name"}
"""Label of the info series → field of a worker, where they differ."""
_INFO_VALUES = attrgetter(*(_INFO_FIELDS.get(name, name) for name in sorted(INFO.labels)))


def _plain_lines(metric: Metric, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    return _value_lines(_template(metric), _PLAIN[metric.name], gauges, ids)


def _value_lines(template: str, value_of: Value, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    template += "%s\n"
    pairs = zip(map(value_of, gauges), ids, strict=True)
    return [template % (region, worker_id, _text(value)) for value, (region, worker_id) in pairs if value is not None]


def _info_lines(metric: Metric, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    template = _template(metric) + "1.0\n"
    return [template % tuple(map(_escaped, _INFO_VALUES(gauge.worker))) for gauge in gauges]


def _state_set_lines(metric: Metric, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    sets = _STATE_SETS[metric.name]
    for gauge, pair in zip(gauges, ids, strict=True):
        if gauge.show_state:
            for lines_of, state_of in sets:
                state = state_of(gauge)
                if state is not None:
                    yield lines_of[state] % (pair * len(lines_of))


def _series_lines(metric: Metric, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    label, values = _SERIES[metric.name]
    templates = [(_template(metric, **{label: name}) + "%s\n", of) for name, of in values.items()]
    for gauge, (region, worker_id) in zip(gauges, ids, strict=True):
        for template, of in templates:
            value = of(gauge)
            if value is not None:
                yield template % (region, worker_id, _text(value))


_LINES = {
    INFO.name: _info_lines,
    **dict.fromkeys(_STATE_SETS, _state_set_lines),
    **dict.fromkeys(_SERIES, _series_lines),
}


def _extra_lines(extra: ExtraMetric, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    """Yield the family of a field of `workers.extra`."""
    kind: Kind = "counter" if extra.type == "counter" else "gauge"
    labels = (*WORKER_LABELS, "state") if extra.state_names else WORKER_LABELS
    metric = Metric(extra.metric, kind, extra.help, "", labels, WORKER_DOCUMENT)
    yield _header(metric)
    found = [dict(gauge.worker.extra).get(metric.name) if gauge.show_state else None for gauge in gauges]
    if not extra.state_names:
        template = _template(metric) + "%s\n"
        for value, (region, worker_id) in zip(found, ids, strict=True):
            if value is not None:
                yield template % (region, worker_id, _text(float(value)))
        return
    lines_of = _state_set(metric, extra.state_names)
    for state, pair in zip(found, ids, strict=True):
        if isinstance(state, str):
            yield lines_of[state] % (pair * len(lines_of))


def _cloudwatch_lines(each: CloudWatchGauge, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    """Yield the family of a metric of `cloudwatch.extra`."""
    metric = Metric(each.name, "gauge", each.help, "", WORKER_LABELS, "CloudWatch")
    yield _header(metric)
    yield from _value_lines(_template(metric), lambda gauge: dict(gauge.cloudwatch).get(each.name), gauges, ids)


def _text(value: float) -> str:
    # Below a million Go and Python agree; the client's conversion is the slowest part of a line.
    return repr(float(value)) if 0 <= value < 1e6 else _large(value)


@lru_cache(maxsize=32768)
def _large(value: float) -> str:
    """Format a large number, nearly always a time: workers share period ends, and other times rarely change between cycles."""
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def _escaped_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
