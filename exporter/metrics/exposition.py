"""The families of the worker block in text format 0.0.4: what they are made of, and their lines. Pure.

The lines are joined strings, because prometheus_client needs a second for 10,000 workers; a test compares them with
prometheus_client's byte by byte. Names, HELP texts and labels come from the catalog only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, NamedTuple

from prometheus_client.utils import floatToGoString

from exporter.core import catalog
from exporter.core.catalog import (
    INFO,
    LONGEST_LABEL,
    NODES,
    SAMPLE_TIME,
    STATUS,
    STATUS_CODE,
    STATUS_FORMS,
    WORKER_DOCUMENT,
    WORKER_LABELS,
    WORKER_METRICS,
    Kind,
    Metric,
    StatusForm,
)
from exporter.core.metric_settings import CloudWatchGauge
from exporter.core.model import (
    EC2_CHECK_STATES,
    LICENSE_STATES,
    SERVICE_STATES,
    STATUS_CODES,
    STATUSES,
    Worker,
    WorkerFacts,
    WorkerGauges,
)
from exporter.core.workers_settings import ExtraMetric

Ids = Sequence[tuple[str, str]]
"""(region, worker_id) of each worker, escaped, in the order of the sorted labels."""


class Rows(NamedTuple):
    """The workers of a snapshot, as the columns of values are taken from them; one element per worker each."""

    gauges: Sequence[WorkerGauges]
    workers: Sequence[Worker]
    documents: Sequence[Worker | None]
    """None where the document is too old for what it says to be shown."""
    facts: Sequence[WorkerFacts]
    """Without any where the document is too old."""
    load: Sequence[WorkerFacts]
    """Also without any where the instance does not run."""

    @classmethod
    def of(cls, gauges: Sequence[WorkerGauges]) -> "Rows":
        """Return the rows of these gauges."""
        workers = [gauge.worker for gauge in gauges]
        return cls(
            gauges,
            workers,
            [gauge.worker if gauge.show_state else None for gauge in gauges],
            [gauge.worker.facts if gauge.show_state else _NO_FACTS for gauge in gauges],
            [gauge.worker.facts if gauge.show_state and gauge.show_load else _NO_FACTS for gauge in gauges],
        )


class Piece(NamedTuple):
    """Lines that are rendered together: those of a family, or of one value of its label."""

    header: str
    """HELP and TYPE, before the first lines of a family; else empty."""
    values: Callable[[Rows], list[Any]]
    """Return one value per worker; None: no line."""
    lines: Callable[[Sequence[Any], Ids], Iterable[str]]
    """Return the lines for these values."""


_NO_FACTS = WorkerFacts()


def pieces(extra: Sequence[ExtraMetric], cloudwatch: Sequence[CloudWatchGauge], status: StatusForm) -> Iterator[Piece]:
    """Yield the pieces of the catalog's families, of `workers.extra` and of `cloudwatch.extra`, in the order of /metrics."""
    other_forms = [metric for form, metric in STATUS_FORMS.items() if form != status]
    for metric in WORKER_METRICS:
        if metric in other_forms:
            continue
        header = _header(metric)
        for each in _PIECES[metric.name]:
            yield each._replace(header=header)
            header = ""
    yield from map(_extra_piece, extra)
    yield from map(_cloudwatch_piece, cloudwatch)


def _header(metric: Metric) -> str:
    return f"# HELP {metric.name} {_escaped_help(metric.help)}\n# TYPE {metric.name} {metric.kind}\n"


# -- lines: each is made by a %-template, whose labels are in order and whose constant labels are filled in


def escaped(text: str | None) -> str:
    """Return the value of a label as it is written; a longer one than `LONGEST_LABEL` is cut."""
    return (text or "")[:LONGEST_LABEL].replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _template(metric: Metric, /, **fixed: str) -> str:
    constant = {name: escaped(value).replace("%", "%%") for name, value in fixed.items()}
    labels = ",".join(f'{name}="{constant.get(name, "%s")}"' for name in sorted(metric.labels))
    return f"{metric.name}{{{labels}}} "


def _value_lines(template: str, values: Sequence[float | None], ids: Ids) -> Iterable[str]:
    pairs = zip(values, ids, strict=True)
    return [template % (region, worker_id, _text(value)) for value, (region, worker_id) in pairs if value is not None]


def _state_lines(lines_of: Mapping[str, str], values: Sequence[str | None], ids: Ids) -> Iterable[str]:
    pairs = zip(values, ids, strict=True)
    return [lines_of[state] % (pair * len(lines_of)) for state, pair in pairs if state is not None]


def _info_lines(values: Sequence[tuple[str | None, ...]], ids: Ids) -> Iterable[str]:
    template = _template(INFO) + "1.0\n"
    return [template % tuple(map(escaped, labels)) for labels in values]


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


# -- pieces

Column = Callable[[Rows], list[Any]]
"""Return one value per worker."""


def _of_gauges(*names: str) -> Column:
    return lambda rows, of=attrgetter(*names): list(map(of, rows.gauges))  # type: ignore[misc]


def _of_workers(*names: str) -> Column:
    return lambda rows, of=attrgetter(*names): list(map(of, rows.workers))  # type: ignore[misc]


def _facts(name: str) -> Column:
    return lambda rows, of=attrgetter(name): list(map(of, rows.facts))  # type: ignore[misc]


def _load(name: str) -> Column:
    """Return what only a running instance has."""
    return lambda rows, of=attrgetter(name): list(map(of, rows.load))  # type: ignore[misc]


def _ratio(name: str) -> Column:
    percents = _of_gauges(name)
    return lambda rows: [None if percent is None else percent / 100 for percent in percents(rows)]


def _status(rows: Rows) -> list[Any]:
    return [worker.status if worker else None for worker in rows.documents]


def _status_code(rows: Rows) -> list[Any]:
    return [STATUS_CODES[worker.status] if worker else None for worker in rows.documents]


def _hourly_price(rows: Rows) -> list[Any]:
    return [gauge.hourly_price if gauge.show_state else None for gauge in rows.gauges]


def _values(metric: Metric, column: Column, /, **fixed: str) -> Piece:
    """Return the piece of one series per worker."""
    return Piece("", column, partial(_value_lines, _template(metric, **fixed) + "%s\n"))


def _states(metric: Metric, states: Sequence[str], column: Column, label: str = "state", **fixed: str) -> Piece:
    """Return the piece of a state set: one series per worker and state, of which one is 1; `column` is the worker's state."""
    templates = {state: _template(metric, **{label: state}, **fixed) for state in states}
    lines_of = {
        state: "".join(f"{template}{'1.0' if each == state else '0.0'}\n" for each, template in templates.items())
        for state in states
    }
    return Piece("", column, partial(_state_lines, lines_of))


_INFO_FIELDS = {"worker_id": "id", "worker": "display_name"}
"""Label of the info series → field of a worker, where they differ."""
_INFO_COLUMN = _of_workers(*(_INFO_FIELDS.get(name, name) for name in sorted(INFO.labels)))

_PLAIN: Mapping[str, Column] = {
    catalog.CPU.name: _ratio("cpu"),
    catalog.MEMORY.name: _ratio("memory"),
    catalog.ACTIVE_LABS.name: _of_gauges("active_labs"),
    catalog.LAST_ACTIVITY.name: _of_workers("last_activity_at"),
    catalog.CREATED.name: _of_workers("created_at"),
    catalog.READY.name: _load("ready"),
    catalog.UPTIME.name: _load("uptime"),
    catalog.DISK_USED.name: _load("disk_used"),
    catalog.DISK_TOTAL.name: _facts("disk_total"),
    catalog.DISK.name: _load("disk_utilization"),
    catalog.MEMORY_TOTAL.name: _facts("memory_total"),
    catalog.LICENSED.name: _facts("licensed"),
    catalog.DETAILED_MONITORING.name: _facts("detailed_monitoring"),
    catalog.AUTO_PAUSES.name: _facts("auto_pauses"),
    catalog.IDLE_PAUSE.name: _load("idle_pause_at"),
    catalog.HOURLY_PRICE.name: _hourly_price,
}
"""Families with one series per worker."""

_PIECES: Mapping[str, tuple[Piece, ...]] = {
    INFO.name: (Piece("", _INFO_COLUMN, _info_lines),),
    STATUS.name: (_states(STATUS, STATUSES, _status, "status"),),
    STATUS_CODE.name: (_values(STATUS_CODE, _status_code),),
    NODES.name: (
        _values(NODES, _load("nodes_running"), state="running"),
        _values(NODES, _load("nodes_total"), state="total"),
    ),
    catalog.LICENSE_STATUS.name: (_states(catalog.LICENSE_STATUS, LICENSE_STATES, _facts("license_status")),),
    catalog.SERVICE_STATUS.name: (_states(catalog.SERVICE_STATUS, SERVICE_STATES, _facts("service_status")),),
    catalog.EC2_CHECK.name: (
        _states(catalog.EC2_CHECK, EC2_CHECK_STATES, _facts("instance_check"), check="instance"),
        _states(catalog.EC2_CHECK, EC2_CHECK_STATES, _facts("system_check"), check="system"),
    ),
    SAMPLE_TIME.name: (
        _values(SAMPLE_TIME, _of_gauges("cpu_time"), metric="cpu"),
        _values(SAMPLE_TIME, _of_gauges("memory_time"), metric="memory"),
        _values(SAMPLE_TIME, _of_gauges("observed_at"), metric="state"),
    ),
    **{metric.name: (_values(metric, _PLAIN[metric.name]),) for metric in WORKER_METRICS if metric.name in _PLAIN},
}
"""The pieces of each family of the catalog, without its header."""


def _extra_piece(extra: ExtraMetric) -> Piece:
    """Return the family of a field of `workers.extra`."""
    kind: Kind = "counter" if extra.type == "counter" else "gauge"
    labels = (*WORKER_LABELS, "state") if extra.state_names else WORKER_LABELS
    metric = Metric(extra.metric, kind, extra.help, "", labels, WORKER_DOCUMENT)

    def column(rows: Rows) -> list[Any]:
        found = [dict(worker.extra).get(metric.name) if worker else None for worker in rows.documents]
        if extra.state_names:
            return [state if isinstance(state, str) else None for state in found]
        return [None if value is None else float(value) for value in found]

    piece = _states(metric, extra.state_names, column) if extra.state_names else _values(metric, column)
    return piece._replace(header=_header(metric))


def _cloudwatch_piece(each: CloudWatchGauge) -> Piece:
    """Return the family of a metric of `cloudwatch.extra`."""
    metric = Metric(each.name, "gauge", each.help, "", WORKER_LABELS, "CloudWatch")

    def column(rows: Rows) -> list[Any]:
        return [dict(gauge.cloudwatch).get(each.name) for gauge in rows.gauges]

    return _values(metric, column)._replace(header=_header(metric))
