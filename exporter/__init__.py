"""CML worker metrics: CloudWatch and the manager's aggregates as gauges and as an exactly-once history.

A program beside the exporter imports WorkerMetricsRepository and the records below from here; docs/library.md shows how.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "MetricsAggregation": "exporter.core.interval_statistics",
    "Statistics": "exporter.core.interval_statistics",
    "WorkerMetricsRepository": "exporter.storage.repository",
    "WorkerMetricsSample": "exporter.core.model",
}
__all__ = ["MetricsAggregation", "Statistics", "WorkerMetricsRepository", "WorkerMetricsSample", "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that `cml-worker-exporter --help` loads no pymongo; see __init__.pyi."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
