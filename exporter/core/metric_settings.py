"""The settings of CloudWatch metrics: which one holds the memory, and further ones as gauges."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from exporter.core.catalog import CPU, MEMORY, METRICS_BY_NAME
from exporter.core.setting_types import Section

UNITS: Mapping[str, tuple[str, float]] = {
    "percent": ("_ratio", 0.01),
    "bytes": ("_bytes", 1),
    "seconds": ("_seconds", 1),
    "milliseconds": ("_seconds", 0.001),
    "microseconds": ("_seconds", 0.000001),
    "bytes/second": ("_bytes_per_second", 1),
    "count/second": ("_per_second", 1),
    "count": ("", 1),
    "none": ("", 1),
}
"""Unit of `cloudwatch.extra` → the end of the name of its gauge, and the factor to Prometheus's base unit."""

_SUFFIXES = tuple(sorted({suffix for suffix, _ in UNITS.values() if suffix}, key=len, reverse=True))
_NUMBER = r"(?:100|[0-9]{1,2}(?:\.[0-9]{1,10})?)"
_BOUND = r"(?:[0-9]+(?:\.[0-9]+)?%?)?"
_STATISTIC = re.compile(
    rf"Average|Minimum|Maximum|Sum|SampleCount|IQM|p{_NUMBER}|(?:tm|wm|tc|ts){_NUMBER}|(?:TM|WM|TC|TS|PR)\({_BOUND}:{_BOUND}\)"
)
_COUNTING = re.compile(r"SampleCount|tc.*|TC.*")
"""Statistics that count datapoints, whatever the unit of the metric."""


def _statistic(value: str) -> str:
    if not _STATISTIC.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a statistic of CloudWatch; write Average, Minimum, Maximum, Sum, SampleCount, p95, tm90, IQM, "
            "TM(10%:90%) or one of their kind"
        )
    return value


def _unit(value: str) -> str:
    if value.lower() not in UNITS:
        raise ValueError(f"{value!r} is not a unit that the exporter converts; write one of {', '.join(UNITS)}")
    return value.lower()


def _namespace(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9./_#-][A-Za-z0-9./_#: -]{0,254}", value):
        raise ValueError(f"{value!r} is not a namespace of CloudWatch; write one such as CWAgent or AWS/EC2")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"(?! )[ -~]{1,255}(?<! )", value) or value.startswith(":"):
        raise ValueError(f"{value!r} is not a name in CloudWatch; write 1 to 255 ASCII characters that do not begin with :")
    return value


def _text(value: object) -> object:
    """Return a number as a text: a YAML file may hold `{device: 0}`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Namespace = Annotated[str, AfterValidator(_namespace)]
Name = Annotated[str, AfterValidator(_name)]
DimensionValue = Annotated[str, BeforeValidator(_text), AfterValidator(_name)]


class MemoryMetric(Section):
    """The CloudWatch metric that holds the memory utilization in percent."""

    namespace: Namespace = Field("CWAgent", description="Namespace of the CloudWatch metric that holds the memory utilization.")
    metric: Name = Field("mem_used_percent", description="Name of that metric; its values must be percentages in use.")
    dimension: Name = Field("InstanceId", description="Dimension of that metric whose value is the EC2 instance id.")

    @property
    def words(self) -> str:
        """What messages call the metric."""
        return f"{self.namespace} {self.metric}"


class CloudWatchGauge(Section):
    """One more CloudWatch metric, exposed as a gauge."""

    namespace: Namespace = Field(description="Namespace in CloudWatch, such as CWAgent.")
    metric: Name = Field(description="Name in CloudWatch, such as disk_used_percent.")
    dimension: Name = Field("InstanceId", description="Dimension whose value is the EC2 instance id. Default: InstanceId.")
    dimensions: dict[Name, DimensionValue] = Field(
        default={}, description="Further dimensions with the values that the series must have, such as {path: /}."
    )
    statistic: Annotated[str, AfterValidator(_statistic)] = Field(
        "Average", description="Average, Minimum, Maximum, Sum, SampleCount, p95, tm90 …. Default: Average."
    )
    name: str = Field(description="Name of the gauge; it begins with cml_worker_ and ends as its unit demands.")
    help: str = Field(description="HELP text on /metrics.")
    unit: Annotated[str, AfterValidator(_unit)] = Field(
        "none", description="Unit in CloudWatch, which is converted to Prometheus's base unit. Default: none."
    )

    @property
    def scale(self) -> float:
        """The factor from CloudWatch's unit to that of the gauge."""
        return UNITS[self.unit][1]

    @property
    def listed(self) -> bool:
        """Whether ListMetrics must tell the dimension sets; AWS/EC2 publishes every metric by the instance alone."""
        return self.namespace != "AWS/EC2" or bool(self.dimensions)

    @property
    def source(self) -> tuple[object, ...]:
        """What is queried; equal for two gauges that AWS would bill twice for the same."""
        return self.namespace, self.metric, self.dimension, tuple(sorted(self.dimensions.items())), self.statistic

    @model_validator(mode="after")
    def _fits_the_catalog(self) -> Self:
        if not re.fullmatch("cml_worker_[a-z0-9_]+", self.name):
            raise ValueError(f"name {self.name!r} must be cml_worker_ and lowercase letters, digits or underscores")
        if self.name.endswith(("_count", "_sum", "_bucket", "_info", "_total")):
            raise ValueError(f"name {self.name!r} must not end in this suffix, which Prometheus reserves for other types")
        if self.name in METRICS_BY_NAME:
            raise ValueError(f"name {self.name!r} is already a metric of the exporter; choose another one")
        self._check_unit()
        if not self.help.strip():
            raise ValueError(f"help of {self.name} is empty; write a sentence that says what the metric means")
        if self.dimension in self.dimensions:
            raise ValueError(f"dimensions of {self.name} repeat {self.dimension}, which has the instance id; remove it there")
        return self

    def _check_unit(self) -> None:
        suffix, _ = UNITS[self.unit]
        found = next((each for each in _SUFFIXES if self.name.endswith(each)), "")
        if found != suffix:
            stem = self.name.removesuffix(found).removesuffix("_percent")
            raise ValueError(
                f"name {self.name!r} does not fit the unit {self.unit}; write {stem}{suffix}"
                + (f", or a unit whose names end in {found}" if found else "")
            )
        if _COUNTING.fullmatch(self.statistic) and self.unit not in ("count", "none"):
            raise ValueError(f"{self.name}: {self.statistic} counts datapoints, so its unit is not {self.unit}; write count")


def check_gauges(gauges: list[CloudWatchGauge], memory: MemoryMetric) -> None:
    """Refuse gauges that share a name, or that AWS would bill twice.

    Raises:
        ValueError: the message says which, and what to do.
    """
    known: dict[Any, str] = {
        ("AWS/EC2", "CPUUtilization", "InstanceId", (), "Average"): CPU.name,
        (memory.namespace, memory.metric, memory.dimension, (), "Average"): MEMORY.name,
    }
    names: set[str] = set()
    for gauge in gauges:
        if gauge.name in names:
            raise ValueError(f"extra: two metrics are called {gauge.name}; rename one of them")
        names.add(gauge.name)
        if gauge.source in known:
            raise ValueError(
                f"extra: {gauge.name} is the same as {known[gauge.source]}, and AWS would bill both; remove one of them"
            )
        known[gauge.source] = gauge.name
