"""The worker block of /metrics in text format 0.0.4, rendered and compressed once per cycle.

`render` joins strings directly, because prometheus_client needs a second for 10,000 workers; a test compares its output with
prometheus_client's byte by byte. Names, HELP texts and labels come from the catalog only.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter

from prometheus_client.utils import floatToGoString

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
    WORKER_DOCUMENT,
    WORKER_LABELS,
    WORKER_METRICS,
    Metric,
)
from exporter.core.model import STATUSES, Snapshot, WorkerGauges
from exporter.core.settings import ExtraGauge


def snapshot(gauges: Sequence[WorkerGauges], extra: Sequence[ExtraGauge], fresh_until: float) -> Snapshot:
    """Return the rendered and compressed worker block of one cycle; run it in a thread.

    Args:
        gauges: one per worker.
        extra: the gauges of `workers.extra`.
        fresh_until: UTC second of the local clock after which the block is left out of /metrics.
    """
    body = render(gauges, extra)
    # Level 1 takes a third of the default's time for a few percent more bytes. The flush lets `gzip_member.continued` append to
    # the member: curl, wget and browsers read only the first of several members.
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    gzipped = packer.compress(body) + packer.flush(zlib.Z_SYNC_FLUSH) + packer.flush()
    return Snapshot(tuple(gauges), body, gzipped, fresh_until)


def render(gauges: Sequence[WorkerGauges], extra: Sequence[ExtraGauge]) -> bytes:
    """Return the bytes that prometheus_client would render: the catalog's families, then those of `workers.extra`.

    Status, labs and extra gauges of a worker whose `show_state` is false are left out, labs also where `show_load` is false; so
    is every value that is None.
    """
    ids = [(_escaped(gauge.worker.region), _escaped(gauge.worker.id)) for gauge in gauges]
    lines: list[str] = []
    for metric in (*WORKER_METRICS, *map(_extra_metric, extra)):
        lines.append(f"# HELP {metric.name} {_escaped_help(metric.help)}\n# TYPE {metric.name} {metric.kind}\n")
        lines += _LINES.get(metric.name, _plain_lines)(metric, gauges, ids)
    return "".join(lines).encode()


def _extra_metric(gauge: ExtraGauge) -> Metric:
    return Metric(gauge.metric, "gauge", gauge.help, "", WORKER_LABELS, WORKER_DOCUMENT)


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


_PLAIN: Mapping[str, Callable[[WorkerGauges], float | None]] = {
    CPU.name: lambda gauge: _ratio(gauge.cpu),
    MEMORY.name: lambda gauge: _ratio(gauge.memory),
    ACTIVE_LABS.name: lambda gauge: gauge.active_labs,
    LAST_ACTIVITY.name: lambda gauge: gauge.worker.last_activity_at,
    CREATED.name: lambda gauge: gauge.worker.created_at,
}
"""Families with one series per worker; `_value` adds those of `workers.extra`."""

_TIMES: Mapping[str, Callable[[WorkerGauges], int | None]] = {
    "cpu": lambda gauge: gauge.cpu_time,
    "memory": lambda gauge: gauge.memory_time,
    "state": lambda gauge: gauge.observed_at,
}
"""Label `metric` of the sample times, and the time."""


def _value(name: str) -> Callable[[WorkerGauges], float | None]:
    return _PLAIN.get(name) or (lambda gauge: dict(gauge.worker.extra).get(name) if gauge.show_state else None)


# For speed each line is made by a %-template, whose labels are in order and whose constant labels are filled in.

Ids = Sequence[tuple[str, str]]
"""(region, worker_id) of each gauge, escaped, in the order of the sorted labels."""


def _template(metric: Metric, /, **fixed: str) -> str:
    labels = ",".join(f'{name}="{fixed.get(name, "%s")}"' for name in sorted(metric.labels))
    return f"{metric.name}{{{labels}}} "


_STATUS_LINES = {
    status: "".join(f"{_template(STATUS, status=each)}{'1.0' if each == status else '0.0'}\n" for each in STATUSES)
    for status in STATUSES
}
"""The lines of a worker in this status, one per possible status."""

_INFO_VALUES = attrgetter(*({"worker_id": "id"}.get(name, name) for name in sorted(INFO.labels)))


def _plain_lines(metric: Metric, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    template, values = _template(metric) + "%s\n", map(_value(metric.name), gauges)
    pairs = zip(values, ids, strict=True)
    return [template % (region, worker_id, _text(value)) for value, (region, worker_id) in pairs if value is not None]


def _info_lines(metric: Metric, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    template = _template(metric) + "1.0\n"
    return [template % tuple(map(_escaped, _INFO_VALUES(gauge.worker))) for gauge in gauges]


def _status_lines(metric: Metric, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    pairs = zip(gauges, ids, strict=True)
    return [_STATUS_LINES[gauge.worker.status] % (pair * len(STATUSES)) for gauge, pair in pairs if gauge.show_state]


def _time_lines(metric: Metric, gauges: Sequence[WorkerGauges], ids: Ids) -> Iterable[str]:
    templates = [(_template(metric, metric=name) + "%s\n", of) for name, of in _TIMES.items()]
    for gauge, (region, worker_id) in zip(gauges, ids, strict=True):
        for template, of in templates:
            time = of(gauge)
            if time is not None:
                yield template % (region, worker_id, _text(time))


_LINES = {INFO.name: _info_lines, STATUS.name: _status_lines, SAMPLE_TIME.name: _time_lines}


def _text(value: float) -> str:
    # Below a million Go and Python agree; the client's conversion is the slowest part of a line.
    return repr(float(value)) if 0 <= value < 1e6 else _large(value)


@lru_cache(maxsize=32768)
def _large(value: float) -> str:
    """Format a large number, nearly always a time: workers share period ends, and other times rarely change between cycles."""
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def _escaped(text: str | None) -> str:
    return (text or "")[:LONGEST_LABEL].replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escaped_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
