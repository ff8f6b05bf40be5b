"""Settings: file < environment < flags, checked as a whole before anything starts.

The models below are the one table of settings: `table()` walks them for the flags of the command line, for docs/settings.md and
for the test that compares both. Unknown keys are refused, secrets print as stars.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from exporter.core.catalog import METRICS_BY_NAME
from exporter.core.errors import ConfigError
from exporter.core.periods import DAY, HOUR, MINUTE, format_duration, parse_duration
from exporter.core.yaml_file import read_text

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
)
"""The meanings of DESIGN section 5 that `workers.fields` may give further field names to."""

OWN_COLLECTIONS = ("worker_metrics_inventory", "cml_exporter_state")
"""Collections beside the history that we write; `mongodb.workers` and `mongodb.history` must be others."""

MAX_RETENTION = 2**31 - 1  # seconds; MongoDB refuses a longer expireAfterSeconds


def _duration(value: object) -> object:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit; write a duration such as 30s, 5m, 1h or 30d")
    raise ValueError("it must be a duration such as 30s, 5m, 1h or 30d")


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{value!r} is not host:port; write :9877, 127.0.0.1:9877 or [::1]:9877")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{value!r}: put an IPv6 address in brackets, such as [::1]:9877")
    return value


def _collection(value: str) -> str:
    if not value or value.startswith("system.") or set(value) & set("$\0"):
        raise ValueError(f"{value!r} is not a collection name; write one without $ that does not begin with system.")
    if value in OWN_COLLECTIONS:
        raise ValueError(f"{value!r} is a collection of the exporter's own; choose another name")
    return value


def _field_name(value: str) -> str:
    if not all(part and not part.startswith("$") for part in value.split(".")) or "\0" in value:
        raise ValueError(f"{value!r} is not a field name; write keys joined by dots, none of them empty or beginning with $")
    return value


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://[^/\s@]+", value):
        raise ValueError(f"{value!r} is not an origin; write https://host or https://host:port without a path, or *")
    return value


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]\S*", value):
        raise ValueError("it is not a URL; write http://host:port or https://host")
    return value


def _mongodb_uri(value: str, key: str) -> str:
    """Check the scheme only: the driver knows the rest better. The value is never repeated, it holds the password."""
    if not value.startswith(("mongodb://", "mongodb+srv://")):
        raise ConfigError(f"{key}: it must begin with mongodb:// or mongodb+srv://")
    return value


def _dollars(value: object) -> object:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{value!r} is not an amount of dollars; write a number above 0, such as 1.50")
    return number


def _listed(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Dollars = Annotated[float, BeforeValidator(_dollars)]
Duration = Annotated[int, BeforeValidator(_duration)]
"""Whole seconds, written as a Prometheus duration."""
Address = Annotated[str, AfterValidator(_address)]
Collection = Annotated[str, AfterValidator(_collection)]
FieldName = Annotated[str, AfterValidator(_field_name)]
Origin = Annotated[str, AfterValidator(_origin)]
Url = Annotated[str, AfterValidator(_url)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


class MongoSettings(_Section):
    """Where the aggregates are read and the history is written."""

    uri: SecretStr | None = Field(
        None, description="MongoDB connection string; its database (else `cml_cloud_manager`) holds everything"
    )
    uri_file: Path | None = Field(None, description="file that holds the connection string, instead of `uri`")
    workers: Collection = Field("workers", description="collection of the manager's aggregates; only ever read")
    history: Collection | None = Field(
        "worker_metrics_timeseries",
        description="time-series collection the samples go to; null: no history, gauges only",
    )
    retention: Duration = Field(
        "30d",  # type: ignore[assignment]  # validate_default turns it into seconds
        description="how long samples are kept; unset changes nothing on an existing collection, "
        "a shorter one is never applied by this setting",
    )

    @model_validator(mode="after")
    def _one_uri(self) -> Self:
        if self.uri and self.uri_file:
            raise ValueError("uri and uri_file are both set; keep one of them")
        if not self.uri and not self.uri_file:
            raise ValueError(
                "uri is missing; set mongodb.uri in the file, CML_EXPORTER_MONGODB__URI in the environment, "
                "or --mongodb.uri-file"
            )
        if self.history == self.workers:
            raise ValueError(
                f"workers and history are both {self.workers!r}; the aggregates are only ever read, name another history"
            )
        if not DAY <= self.retention <= MAX_RETENTION:
            raise ValueError(
                f"retention {format_duration(self.retention)} must be at least 1d and at most {MAX_RETENTION // DAY}d"
            )
        return self


class CloudWatchSettings(_Section):
    """How CloudWatch is asked."""

    enabled: bool = Field(True, description="false: gauges and history are made of the aggregates alone")
    interval: Duration = Field("5m", description="how often CloudWatch is asked; every round is billed")  # type: ignore[assignment]
    endpoint_url: Url | None = Field(None, description="another CloudWatch and STS endpoint (a VPC endpoint, moto)")
    max_usd_per_day: Dollars | None = Field(
        None,
        description="dollars CloudWatch may cost a day (UTC): when the rest is needed for the running workers, healing stops; "
        "when it is spent, nothing is asked until midnight; unset: no limit",
    )


class Role(_Section):
    """One IAM role to assume."""

    role_arn: str = Field(description="ARN of the role, such as arn:aws:iam::123456789012:role/name")
    external_id: SecretStr | None = Field(None, description="external id the role's trust policy asks for")
    regions: list[str] = Field(default=[], description="regions the role is used for; empty: all")

    @model_validator(mode="after")
    def _arn(self) -> Self:
        if not re.fullmatch(r"arn:aws[a-z-]*:iam::\d{12}:role/\S+", self.role_arn):
            raise ValueError(f"role_arn {self.role_arn!r} is not the ARN of a role; write arn:aws:iam::123456789012:role/name")
        return self


class AwsSettings(_Section):
    """Whose CloudWatch is read; credentials come from boto3's usual chain."""

    roles: list[Role] = Field(default=[], description="IAM role to assume, at most one", max_length=1)


class ExtraGauge(_Section):
    """One further aggregate field exposed as a gauge."""

    metric: str = Field(description="name of the gauge, beginning with cml_worker_")
    field: FieldName = Field(description="field of the aggregate, at top level or under `state`; dots go deeper")
    help: str = Field(description="help text on /metrics")

    @model_validator(mode="after")
    def _fits_the_catalog(self) -> Self:
        if not re.fullmatch("cml_worker_[a-z0-9_]+", self.metric):
            raise ValueError(f"metric {self.metric!r} must be cml_worker_ and more small letters, digits and underscores")
        if self.metric.endswith(("_total", "_count", "_sum", "_bucket", "_info")):
            raise ValueError(f"metric {self.metric!r} must not end like that: Prometheus expects no gauge under such a name")
        if self.metric in METRICS_BY_NAME:
            raise ValueError(f"metric {self.metric!r} is already one of the exporter's own; choose another name")
        if not self.help.strip():
            raise ValueError(f"help of {self.metric} is empty; say in a sentence what the gauge means")
        return self


class WorkersSettings(_Section):
    """How an aggregate is read."""

    fields: dict[str, Annotated[list[FieldName], BeforeValidator(_listed)]] = Field(
        default={}, description="further names of a field, tried first: {cpu: [cpu_pct]}"
    )
    extra: list[ExtraGauge] = Field(default=[], description="further fields as gauges: [{metric, field, help}]")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for meaning in self.fields:
            if meaning not in ALIASABLE:
                raise ValueError(f"fields: {meaning!r} is not one of {', '.join(ALIASABLE)}")
        names = [gauge.metric for gauge in self.extra]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"extra: two gauges are called {name}; rename one of them")
        return self


class WebSettings(_Section):
    """The HTTP server."""

    listen_address: Annotated[list[Address], BeforeValidator(_listed)] = Field(
        default=[":9877"], description="host:port to listen on; comma-separated for several", min_length=1
    )
    config_file: Path | None = Field(None, description="TLS and basic authentication, in the format of Prometheus' exporters")
    cors_origins: Annotated[list[Origin], BeforeValidator(_listed)] = Field(
        default=[], description="origins whose pages may read the API; comma-separated"
    )


class LogSettings(_Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warn", "error"] = Field("info", description="debug, info, warn or error")
    format: Literal["logfmt", "json"] = Field("logfmt", description="logfmt or json")


class Settings(_Section):
    """All settings; every time is in seconds."""

    mongodb: MongoSettings = Field(default_factory=MongoSettings)
    period: Duration = Field("5m", description="resolution of the history; 1m wants detailed monitoring")  # type: ignore[assignment]
    settle_delay: Duration = Field("5m", description="until then CloudWatch may still revise a value")  # type: ignore[assignment]
    absence_timeout: Duration = Field("1h", description="from then on an empty answer is believed")  # type: ignore[assignment]
    gap_fill_window: Duration = Field("24h", description="how far back missing samples are filled by themselves")  # type: ignore[assignment]
    max_age: Duration = Field("15m", description="an older value is not exposed as a gauge")  # type: ignore[assignment]
    terminated_grace: Duration = Field(
        "1h",  # type: ignore[assignment]
        description="how long a terminated worker keeps its status series",
    )
    cloudwatch: CloudWatchSettings = Field(default_factory=CloudWatchSettings)
    aws: AwsSettings = Field(default_factory=AwsSettings)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    web: WebSettings = Field(default_factory=WebSettings)
    data_dir: Path = Field(Path("data"), description="folder of the outbox; one exporter each")
    log: LogSettings = Field(default_factory=LogSettings)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        show = format_duration
        # 60 s is the finest CloudWatch publishes of EC2; a divisor of an hour makes every longer interval whole periods.
        if self.period % MINUTE or HOUR % self.period:
            raise ValueError(f"period: {show(self.period)} must be whole minutes that divide an hour, such as 1m, 5m or 15m")
        if self.cloudwatch.interval < self.period:
            raise ValueError(
                f"cloudwatch.interval: {show(self.cloudwatch.interval)} is shorter than period ({show(self.period)}); "
                "asking more often than there are datapoints only costs money"
            )
        if self.cloudwatch.interval % MINUTE:
            raise ValueError(f"cloudwatch.interval: {show(self.cloudwatch.interval)} must be whole minutes, such as 5m")
        earliest = self.settle_delay + self.period
        if self.absence_timeout < earliest:
            raise ValueError(
                f"absence_timeout: {show(self.absence_timeout)} must be at least settle_delay + period ({show(earliest)}), "
                "else a value that is only late would be taken for missing"
            )
        # 14 d keeps one-minute datapoints, which CloudWatch drops after 15 d, within reach.
        shortest = self.absence_timeout + self.cloudwatch.interval
        if not shortest <= self.gap_fill_window <= 14 * DAY:
            raise ValueError(
                f"gap_fill_window: {show(self.gap_fill_window)} must be at least absence_timeout + cloudwatch.interval "
                f"({show(shortest)}) and at most 14d"
            )
        youngest = self.cloudwatch.interval + 5 * MINUTE
        if self.max_age < youngest:
            raise ValueError(
                f"max_age: {show(self.max_age)} must be at least cloudwatch.interval + 5m ({show(youngest)}), "
                "else gauges vanish between two rounds"
            )
        return self

    @property
    def mongodb_uri(self) -> str:
        """The connection string, from `uri` or read from `uri_file`.

        Raises:
            ConfigError: the file cannot be read or is empty, or this is no connection string of MongoDB.
        """
        if self.mongodb.uri:
            return _mongodb_uri(self.mongodb.uri.get_secret_value().strip(), "mongodb.uri")
        path = self.mongodb.uri_file
        uri = read_text(Path(str(path)), "mongodb.uri_file").strip()
        if not uri:
            raise ConfigError(f"mongodb.uri_file: {path} is empty; it must hold the connection string")
        return _mongodb_uri(uri, f"mongodb.uri_file: {path}")
