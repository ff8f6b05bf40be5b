"""The metrics that the history serves as PromQL series: samples and hourly aggregates."""

from dataclasses import dataclass
from typing import NamedTuple

from exporter.core.catalog import ACTIVE_LABS, CPU, INFO, MEMORY, STATUS, Metric
from exporter.core.distribution import PERCENTILES
from exporter.core.periods import HOUR

METRIC_FIELDS = ("cpu_utilization", "memory_utilization", "active_labs_count")
"""Measured fields of a sample document."""
RUNNING, NEWEST = "running_avg", "newest"
FIELDS = (*(f"{field}_{statistic}" for field in METRIC_FIELDS for statistic in ("avg", "min", "max")), RUNNING, NEWEST)
"""Values of an hourly aggregate: of each measured field the average, the lowest, and the highest sample; the share of samples
with the status "running", or with CPU and no status, among those with a status or CPU; and the end of the newest sample's
period in UTC seconds."""

THRESHOLDS = {"cpu_utilization": 90.0, "memory_utilization": 90.0, "active_labs_count": 0.0}
"""Measured field → the threshold of its hourly time above one, in percent or labs; those of the shipped alerts, and any lab."""


def distribution_fields(field: str) -> tuple[str, ...]:
    """Return the values of an hourly aggregate that need every sample of a measured field: its percentiles, and its seconds
    above its threshold."""
    return (*(f"{field}_p{percent}" for percent in PERCENTILES), f"{field}_above_seconds")


MEASURED_BY = {name: field for field in METRIC_FIELDS for name in distribution_fields(field)}
"""Each of the `distribution_fields` → its measured field."""

UNUSED_CPU, RUNNING_CPU, RUNNING_MEMORY, RUNNING_LABS = "unused_cpu", "running_cpu", "running_memory", "running_labs"
"""Values that are computed from those of FIELDS: of an hour in which the worker ran throughout without a lab its average CPU,
infinite in other hours; the averages of an hour in which the worker ran: of CPU and memory none in other hours, and 0 labs."""

LOOKBACK_SECONDS = HOUR
"""Shortest range of a selector that always contains a worker's newest sample: without an agent it is up to 48 minutes old."""

STORE = "history"
"""Value of the label `store`, which Prometheus's `required_matchers` demand."""


@dataclass(frozen=True, slots=True)
class HistoryMetric:
    """A metric of the catalog that the history has, too, and the field that its values come from."""

    metric: Metric
    field: str | None
    """Field of a sample document; a sample without it has no value of this metric. None: every sample has the value 1."""
    scale: float = 1
    """Divisor of the stored value."""

    @property
    def name(self) -> str:
        """Name of the series."""
        return self.metric.name

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels of the series beside those of the worker."""
        return {"__name__": self.name, "store": STORE}


@dataclass(frozen=True, slots=True)
class HourlyMetric:
    """An hourly aggregate: one value for all samples of an hour, at the end of the hour."""

    name: str
    """Name of the series in Prometheus's convention for recording rules, level:metric:operation."""
    field: str
    """One of FIELDS, of the values computed from these, or of the `distribution_fields`."""
    help: str
    scale: float = 1
    """Divisor of the stored value."""
    label: tuple[str, str] | None = None
    """A label, and its value, by which series of one name differ."""

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels of the series beside those of the worker."""
        return {"__name__": self.name, "store": STORE} | (dict([self.label]) if self.label else {})


class ByHour(NamedTuple):
    """The hourly average, lowest, and highest value of one metric, and the average of hours in which the worker ran."""

    avg: HourlyMetric
    min: HourlyMetric
    max: HourlyMetric
    running: HourlyMetric


def _hourly_metrics(metric: Metric, what: str, field: str, running: str, otherwise: str, scale: float = 1) -> ByHour:
    name = metric.name.replace("cml_worker_", "cml_worker:")

    def hourly(statistic: str, adjective: str) -> HourlyMetric:
        return HourlyMetric(
            f"{name}:{statistic}1h", f"{field}_{statistic}", f"{adjective} {what} of the samples of an hour.", scale
        )

    of_running = f"Average {what} of an hour in which the worker ran; {otherwise} in other hours."
    return ByHour(
        hourly("avg", "Average"),
        hourly("min", "Lowest"),
        hourly("max", "Highest"),
        HourlyMetric(f"{name}_running:avg1h", running, of_running, scale),
    )


def _distribution_metrics(metric: Metric, what: str, field: str, scale: float = 1) -> tuple[HourlyMetric, ...]:
    *percentiles, above = distribution_fields(field)
    name = metric.name.replace("cml_worker_", "cml_worker:")
    threshold = f"{THRESHOLDS[field] / scale:g}"
    return (
        *(
            HourlyMetric(
                f"{name}:quantile1h",
                percentile,
                f"{percent}th percentile of the {what} of the samples of an hour (nearest rank: one of the samples).",
                scale,
                ("quantile", f"{percent / 100:g}"),
            )
            for percent, percentile in zip(PERCENTILES, percentiles, strict=True)
        ),
        HourlyMetric(
            f"{name}:above_seconds1h",
            above,
            f"Seconds of an hour in which the {what} was above {threshold}.",
            label=("threshold", threshold),
        ),
    )


HISTORY_METRICS: tuple[HistoryMetric, ...] = (
    HistoryMetric(INFO, None),
    HistoryMetric(STATUS, "status"),
    HistoryMetric(CPU, "cpu_utilization", 100),
    HistoryMetric(MEMORY, "memory_utilization", 100),
    HistoryMetric(ACTIVE_LABS, "active_labs_count"),
)
"""Metrics with one value per sample, in the order of an export; the info metric has a value for every sample."""

INFO_1H = HourlyMetric("cml_worker:info:max1h", NEWEST, "1 for every hour with a sample, with the labels of cml_worker_info.")
NEWEST_1H = HourlyMetric(
    "cml_worker:sample_timestamp_seconds:max1h", NEWEST, "End of the newest period of an hour that has a sample, UTC seconds."
)
RUNNING_1H = HourlyMetric(
    "cml_worker:running:avg1h",
    RUNNING,
    "Share of the samples of an hour that say running, or have a CPU value and no status, among those with either.",
)
CPU_1H = _hourly_metrics(CPU, "CPU utilization (0 to 1)", "cpu_utilization", RUNNING_CPU, "absent", 100)
MEMORY_1H = _hourly_metrics(MEMORY, "memory utilization (0 to 1)", "memory_utilization", RUNNING_MEMORY, "absent", 100)
ACTIVE_LABS_1H = _hourly_metrics(ACTIVE_LABS, "number of active labs", "active_labs_count", RUNNING_LABS, "0")
CPU_DISTRIBUTION_1H = _distribution_metrics(CPU, "CPU utilization (0 to 1)", "cpu_utilization", 100)
MEMORY_DISTRIBUTION_1H = _distribution_metrics(MEMORY, "memory utilization (0 to 1)", "memory_utilization", 100)
ACTIVE_LABS_DISTRIBUTION_1H = _distribution_metrics(ACTIVE_LABS, "number of active labs", "active_labs_count")
UNUSED_CPU_1H = HourlyMetric(
    "cml_worker:unused_cpu_utilization_ratio:avg1h",
    UNUSED_CPU,
    "Average CPU utilization (0 to 1) of an hour in which the worker ran throughout without a lab; +Inf in other hours.",
    100,
)
HOURLY_METRICS: tuple[HourlyMetric, ...] = (
    INFO_1H,
    NEWEST_1H,
    RUNNING_1H,
    *CPU_1H,
    *MEMORY_1H,
    *ACTIVE_LABS_1H,
    *CPU_DISTRIBUTION_1H,
    *MEMORY_DISTRIBUTION_1H,
    *ACTIVE_LABS_DISTRIBUTION_1H,
    UNUSED_CPU_1H,
)
"""Metrics with one value per hour, for long ranges of many workers; remote read returns them only to queries by name."""

GONE_AFTER_SECONDS = 900
"""A worker last seen so many seconds before the newest observation is gone: its series end."""
