"""The metrics that the history serves as PromQL series: samples and hourly aggregates."""

from dataclasses import dataclass
from typing import NamedTuple

from exporter.core.catalog import ACTIVE_LABS, CPU, INFO, MEMORY, STATUS, Metric

METRIC_FIELDS = ("cpu_utilization", "memory_utilization", "active_labs_count")
"""Measured fields of a sample document."""
RUNNING, NEWEST = "running_avg", "newest"
FIELDS = (*(f"{field}_{how}" for field in METRIC_FIELDS for how in ("avg", "min", "max")), RUNNING, NEWEST)
"""What there is of an hour: of each metric's samples the average, the lowest and the highest; the share of those with a status
that say running; and the end of its newest period in UTC seconds."""

STORE = "history"
"""The value of the label `store`; Prometheus' required_matchers name it."""


@dataclass(frozen=True, slots=True)
class HistoryMetric:
    """A metric of the catalog that the history has too, and where its values come from."""

    metric: Metric
    field: str | None
    """Of a sample; one without it is not in the family. None: every sample is."""
    scale: float = 1
    """What a value is divided by."""

    @property
    def name(self) -> str:
        """Of the series."""
        return self.metric.name


@dataclass(frozen=True, slots=True)
class HourlyMetric:
    """One value for all samples of an hour, at the hour's end."""

    name: str
    """As Prometheus' own rules name what they record: level:metric:operation."""
    field: str
    """One of rollup.FIELDS."""
    help: str
    scale: float = 1
    """What a value is divided by."""


class ByHour(NamedTuple):
    """A metric's average, lowest and highest value."""

    avg: HourlyMetric
    min: HourlyMetric
    max: HourlyMetric


def _by_hour(metric: Metric, what: str, field: str, scale: float = 1) -> ByHour:

    def one(how: str, word: str) -> HourlyMetric:
        name = f"{metric.name.replace('cml_worker_', 'cml_worker:')}:{how}1h"
        return HourlyMetric(name, f"{field}_{how}", f"{word} {what} of the samples of an hour.", scale)

    return ByHour(one("avg", "Average"), one("min", "Lowest"), one("max", "Highest"))


HISTORY_METRICS: tuple[HistoryMetric, ...] = (
    HistoryMetric(INFO, None),
    HistoryMetric(STATUS, "status"),
    HistoryMetric(CPU, "cpu_utilization", 100),
    HistoryMetric(MEMORY, "memory_utilization", 100),
    HistoryMetric(ACTIVE_LABS, "active_labs_count"),
)
"""In the order of an export; the info series has a point for every sample."""

INFO_1H = HourlyMetric("cml_worker:info:max1h", NEWEST, "1 for every hour with a sample, with the labels of cml_worker_info.")
NEWEST_1H = HourlyMetric(
    "cml_worker:sample_timestamp_seconds:max1h", NEWEST, "End of the newest period of an hour that has a sample, UTC seconds."
)
RUNNING_1H = HourlyMetric(
    "cml_worker:running:avg1h", RUNNING, "Share of the samples of an hour with a status that say running."
)
CPU_1H = _by_hour(CPU, "CPU utilization (0 to 1)", "cpu_utilization", 100)
MEMORY_1H = _by_hour(MEMORY, "memory utilization (0 to 1)", "memory_utilization", 100)
ACTIVE_LABS_1H = _by_hour(ACTIVE_LABS, "number of active labs", "active_labs_count")
HOURLY_METRICS: tuple[HourlyMetric, ...] = (INFO_1H, NEWEST_1H, RUNNING_1H, *CPU_1H, *MEMORY_1H, *ACTIVE_LABS_1H)
"""What long looks at many workers are made of; remote read has them for who asks by name."""


GONE_AFTER_SECONDS = 900
"""Seconds. A worker last seen so long before the newest observation has left: its series end."""
