from exporter.core.interval_statistics import MetricsAggregation, Statistics
from exporter.core.model import WorkerMetricsSample
from exporter.storage.repository import WorkerMetricsRepository

__version__: str
__all__ = ["MetricsAggregation", "Statistics", "WorkerMetricsRepository", "WorkerMetricsSample", "__version__"]
