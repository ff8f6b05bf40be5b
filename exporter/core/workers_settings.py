"""The settings of worker documents: further names of fields, and further fields as metrics."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from exporter.core.catalog import METRICS_BY_NAME
from exporter.core.model import normal_state
from exporter.core.patterns import compile_pattern
from exporter.core.regions import Region
from exporter.core.setting_types import Dollars, FieldName, FieldNames, InstanceType, Section, listed
from exporter.core.shards import Part, parse_shard

ALIASABLE = (
    "id",
    "name",
    "region",
    "instance",
    "address",
    "status",
    "cpu",
    "memory",
    "collected_at",
    "active_labs",
    "last_activity",
    "instance_type",
    "cml_version",
    "created_at",
    "terminated_at",
    "ready",
    "uptime",
    "nodes_running",
    "nodes_total",
    "disk_used",
    "disk_total",
    "memory_total",
    "licensed",
    "license_status",
    "service_status",
    "instance_check",
    "system_check",
    "detailed_monitoring",
    "auto_pauses",
    "idle_pause_at",
)
"""Fields of a worker that `workers.fields` may give further names to."""

_EXTRA_SUFFIXES = {"counter": "_total", "timestamp": "_timestamp_seconds"}
"""Types of `workers.extra` whose metrics must end so, and others must not."""


class ExtraMetric(Section):
    """One more field of the worker documents, exposed as a metric."""

    metric: str = Field(description="Name of the metric; it begins with cml_worker_.")
    field: FieldName = Field(
        description="Field of the worker document, at top level or under `state`; dots lead to nested keys."
    )
    help: str = Field(description="HELP text on /metrics.")
    type: Literal["gauge", "counter", "timestamp"] = Field(
        "gauge",
        description="`counter` for a number that only grows (its name ends in _total), `timestamp` for a date (its name ends "
        "in _timestamp_seconds).",
    )
    states: Annotated[list[str], BeforeValidator(listed)] = Field(
        default=[],
        description="The texts that the field may hold: one series for each with the label `state`, of which one is 1. Another "
        "text reads `unknown`.",
    )

    @model_validator(mode="after")
    def _fits_the_catalog(self) -> Self:
        if not re.fullmatch("cml_worker_[a-z0-9_]+", self.metric):
            raise ValueError(f"metric {self.metric!r} must be cml_worker_ and lowercase letters, digits or underscores")
        if self.metric.endswith(("_count", "_sum", "_bucket", "_info")):
            raise ValueError(f"metric {self.metric!r} must not end in this suffix, which Prometheus reserves for other types")
        for type_, suffix in _EXTRA_SUFFIXES.items():
            if (self.type == type_) != self.metric.endswith(suffix):
                raise ValueError(
                    f"metric {self.metric!r} has the type {self.type}; exactly those of type {type_} end in {suffix}, "
                    "so change its type or its name"
                )
        if self.metric in METRICS_BY_NAME:
            raise ValueError(
                f"metric {self.metric!r} is already a metric of the exporter; choose another name, or remove it here and name "
                "its field in workers.fields"
            )
        if not self.help.strip():
            raise ValueError(f"help of {self.metric} is empty; write a sentence that says what the metric means")
        self._check_states()
        return self

    def _check_states(self) -> None:
        if self.states and self.type != "gauge":
            raise ValueError(f"{self.metric} has states and the type {self.type}; texts have no type, so remove one of both")
        normal = [normal_state(state) for state in self.states]
        for state in normal:
            if not state:
                raise ValueError(f"states of {self.metric}: a state is empty; write the texts that the field holds")
            if normal.count(state) > 1:
                raise ValueError(f"states of {self.metric}: {state} stands there twice; remove one of them")

    @property
    def state_names(self) -> tuple[str, ...]:
        """The values of the label `state`; empty where the field holds no text."""
        names = tuple(map(normal_state, self.states))
        return names if not names or "unknown" in names else (*names, "unknown")


def _pattern(value: str) -> str:
    compile_pattern(value)
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]
"""An RE2 expression that has to match a whole text."""


class WorkerFilter(Section):
    """Expressions that a worker has to match to be one of this exporter's."""

    id: Pattern | None = Field(
        None, description="RE2 expression that matches the whole id of each worker that the exporter has; unset: any."
    )
    region: Pattern | None = Field(None, description="The same for the region, which is empty where a worker has none.")
    name: Pattern | None = Field(None, description="The same for the name.")


class WorkersSettings(Section):
    """Which workers the exporter has, and how worker documents are parsed."""

    shard: Annotated[str, AfterValidator(lambda text: str(parse_shard(text)))] = Field(
        "0/1",
        description="Shard of the fleet that this exporter has: `0/4` … `3/4` divide it among four by a hash of the worker id. "
        "The name of a pod that ends in its number, such as `exporter-0/4`, is the same. See docs/scale.md.",
    )
    regions: Annotated[list[Region], BeforeValidator(listed)] = Field(
        default=[], description="Regions whose workers the exporter has, separated by commas; empty: all."
    )
    filter: WorkerFilter = Field(default_factory=WorkerFilter)

    fields: dict[str, FieldNames] = Field(
        default={}, description="Additional names of a field, tried before the built-in ones, such as {cpu: [cpu_pct]}."
    )
    extra: list[ExtraMetric] = Field(
        default=[], description="Additional fields exposed as metrics: [{metric, field, help, type, states}]."
    )
    hourly_price: dict[InstanceType, Dollars] = Field(
        default={},
        description="US dollars per hour by EC2 instance type, such as {m5zn.metal: 3.96}; other types have no cost.",
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        for meaning in self.fields:
            if meaning not in ALIASABLE:
                raise ValueError(f"fields: {meaning!r} is not one of {', '.join(ALIASABLE)}")
        names = [each.metric for each in self.extra]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"extra: two metrics are called {name}; rename one of them")
        return self

    @property
    def part(self) -> Part:
        """The workers of this exporter; the commands that read the whole history take all workers."""
        chosen = self.filter
        return Part(parse_shard(self.shard), frozenset(self.regions), chosen.id, chosen.region, chosen.name)
