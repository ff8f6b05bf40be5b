from exporter.core.model import MetricsAggregation, Statistics, WorkerMetricsSample
from exporter.storage.repository import WorkerMetricsRepository

__version__: str
__all__ = ["MetricsAggregation", "Statistics", "WorkerMetricsRepository", "WorkerMetricsSample", "__version__"]
