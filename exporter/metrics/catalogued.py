"""Make an exporter metric as the catalog describes it."""

from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge

from exporter.core.catalog import METRICS_BY_NAME

Kind = TypeVar("Kind", Gauge, Counter)


def catalogued(kind: type[Kind], registry: CollectorRegistry, name: str) -> Kind:
    """Return the metric of that name, without its prefix `cml_exporter_`, on a registry."""
    metric = METRICS_BY_NAME[f"cml_exporter_{name}"]
    return kind(metric.name, metric.help, metric.labels, registry=registry)
