"""The text of /metrics as OpenTelemetry's metrics: one resource for each worker, one for the exporter itself. Pure.

A worker is a host: its resource has `host.id` (the EC2 instance), `host.name`, `host.type`, `cloud.provider`, `cloud.region`
and `cloud.account.id` of OpenTelemetry's semantic conventions (https://opentelemetry.io/docs/specs/semconv/resource/), and
`cml.worker.id`. What a resource says is no attribute of its data points again. Names of metrics are those of /metrics.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from exporter import __version__
from exporter.core.catalog import INFO, WORKER_LABELS

SERVICE = "cml-worker-exporter"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_SCOPE = InstrumentationScope(SERVICE, __version__)
_FROM_INFO = {
    "instance_id": "host.id",
    "worker": "host.name",
    "instance_type": "host.type",
    "account_id": "cloud.account.id",
    "cml_version": "cml.version",
}
"""Label of the info series → attribute of the resource."""

Labels = dict[str, str]


@dataclass(slots=True)
class _Family:
    """One metric of one resource."""

    help: str
    is_counter: bool
    points: list[NumberDataPoint] = field(default_factory=list)


@dataclass(slots=True)
class _Owner:
    """A worker, or the exporter: its families, and what the info series says of it."""

    info: Labels = field(default_factory=dict)
    families: dict[str, _Family] = field(default_factory=dict)


def resources(texts: Iterable[bytes], at: int, started: int, instance: str) -> list[ResourceMetrics]:
    """Convert parts of text format 0.0.4 as the exporter renders it.

    Args:
        texts: each begins and ends with whole lines.
        at: time of the values, in nanoseconds since 1970.
        started: when the counters were 0, in nanoseconds since 1970.
        instance: which exporter this is, `service.instance.id`.
    """
    owners: dict[tuple[str, str], _Owner] = defaultdict(_Owner)
    kinds: dict[str, str] = {}
    helps: dict[str, str] = {}
    for text in texts:
        for line in text.decode().splitlines():
            if line.startswith("#"):
                _, what, name, rest = line.split(" ", 3)
                (kinds if what == "TYPE" else helps)[name] = rest
                continue
            series, _, number = line.rpartition(" ")
            name, _, inside = series.partition("{")
            labels = {label: _unescaped(value) for label, value in _LABEL.findall(inside)}
            key = tuple(labels.pop(label, "") for label in WORKER_LABELS) if name.startswith("cml_worker_") else ("", "")
            owner = owners[key[0], key[1]]
            if name == INFO.name:
                owner.info = labels
                continue
            is_counter = kinds.get(name) == "counter"
            family = owner.families.get(name)
            if family is None:
                family = owner.families[name] = _Family(helps.get(name, ""), is_counter)
            family.points.append(NumberDataPoint(labels, started if is_counter else 0, at, float(number)))
    return [_resource(key, owner, instance) for key, owner in owners.items()]


def _resource(key: tuple[str, str], owner: _Owner, instance: str) -> ResourceMetrics:
    of = dict(zip(WORKER_LABELS, key, strict=True))
    attributes: Mapping[str, str] = {
        "service.name": SERVICE,
        "service.version": __version__,
        "service.instance.id": instance,
    }
    if of["worker_id"]:
        known = {attribute: owner.info[label] for label, attribute in _FROM_INFO.items() if owner.info.get(label)}
        place = {"cloud.provider": "aws", "cloud.platform": "aws_ec2", "cloud.region": of["region"]}
        attributes = {**attributes, **{name: value for name, value in place.items() if value}, **known}
        attributes = {**attributes, "cml.worker.id": of["worker_id"]}
    metrics = [_metric(name, family) for name, family in owner.families.items()]
    return ResourceMetrics(Resource(attributes), [ScopeMetrics(_SCOPE, metrics, "")], "")


def _metric(name: str, family: _Family) -> Metric:
    # Without a unit: the name has it, and a collector that writes to Prometheus would append it once more.
    if family.is_counter:
        return Metric(name, family.help, "", Sum(family.points, AggregationTemporality.CUMULATIVE, is_monotonic=True))
    return Metric(name, family.help, "", Gauge(family.points))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: "\n" if found[1] == "n" else found[1], text) if "\\" in text else text
