"""Models of the settings, validated as a whole before anything starts.

These models are the one table of settings: `settings_loader.table` walks them for the command-line flags and for
docs/settings.md. Unknown keys are refused; secrets print as stars.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    model_validator,
)

from exporter.core.catalog import METRICS_BY_NAME
from exporter.core.errors import ConfigError
from exporter.core.event_settings import EventsSettings
from exporter.core.periods import DAY, HOUR, MINUTE, format_duration, parse_duration
from exporter.core.setting_types import Collection, FieldName, FieldNames, Section, listed
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
"""Fields of a worker that `workers.fields` may give further names to."""

WORKER_COLLECTIONS = ("workers", "cml_workers")
"""Where `mongodb.workers` is unset: the collections that the manager's generations write, in the order of search."""

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


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://[^/\s@]+", value):
        raise ValueError(f"{value!r} is not an origin; write https://host or https://host:port without a path, or *")
    return value


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]\S*", value):
        raise ValueError("it is not a URL; write http://host:port or https://host")
    return value


def _mongodb_uri(value: str, key: str) -> str:
    """Check the scheme only; the driver checks the rest. The message does not repeat the value, which holds the password."""
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


Dollars = Annotated[float, BeforeValidator(_dollars)]
Duration = Annotated[int, BeforeValidator(_duration)]
"""Whole seconds, written as a Prometheus duration."""
Address = Annotated[str, AfterValidator(_address)]
Origin = Annotated[str, AfterValidator(_origin)]
Url = Annotated[str, AfterValidator(_url)]


class MongoSettings(Section):
    """MongoDB: the worker documents (the manager's aggregates) and the history."""

    uri: SecretStr | None = Field(
        None,
        description="MongoDB connection string with the database of all collections; without a database, `cml_cloud_manager`.",
    )
    uri_file: Path | None = Field(None, description="File that holds the connection string, in place of `uri`.")
    workers: Collection | None = Field(
        None,
        description="Collection of worker documents (the manager's aggregates); the exporter only reads it. Unset: the first "
        "of `workers`, `cml_workers` that holds documents.",
    )
    history: Collection | None = Field(
        "worker_metrics_timeseries",
        description="Time-series collection of the samples; null: no history, gauges only.",
    )
    retention: Duration = Field(
        "30d",  # type: ignore[assignment]  # validate_default turns it into seconds
        description="Time that samples are kept. On an existing collection an unset value changes nothing and a shorter one is "
        "not applied; use the `retention` command.",
    )

    @property
    def worker_collections(self) -> tuple[str, ...]:
        """Return the collections that may hold the worker documents, in the order of search."""
        return WORKER_COLLECTIONS if self.workers is None else (self.workers,)

    @model_validator(mode="after")
    def _one_uri(self) -> Self:
        if self.uri and self.uri_file:
            raise ValueError("uri and uri_file are both set; keep one of them")
        if not self.uri and not self.uri_file:
            raise ValueError(
                "uri is missing; set mongodb.uri in the file, CML_EXPORTER_MONGODB__URI in the environment, "
                "or --mongodb.uri-file"
            )
        if self.history in self.worker_collections:
            raise ValueError(
                f"workers and history are both {self.history!r}; the exporter only reads the workers, name another history"
            )
        if not DAY <= self.retention <= MAX_RETENTION:
            raise ValueError(
                f"retention {format_duration(self.retention)} must be at least 1d and at most {MAX_RETENTION // DAY}d"
            )
        return self


class CloudWatchSettings(Section):
    """How CloudWatch is polled."""

    enabled: bool = Field(
        True, description="Whether CloudWatch is polled; false: gauges and history come from the worker documents alone."
    )
    interval: Duration = Field("5m", description="Time between two polls of CloudWatch; AWS bills each.")  # type: ignore[assignment]
    endpoint_url: Url | None = Field(
        None, description="URL of another CloudWatch and STS endpoint, such as a VPC endpoint; unset: the region's."
    )
    max_usd_per_day: Dollars | None = Field(
        None,
        description="Daily budget for CloudWatch in US dollars. Gap filling pauses when the rest is needed for the running "
        "workers, polling pauses until 00:00 UTC when it is spent; unset: no limit.",
    )


class Role(Section):
    """One IAM role to assume."""

    role_arn: str = Field(description="ARN of the role, such as arn:aws:iam::123456789012:role/name.")
    external_id: SecretStr | None = Field(None, description="External id that the role's trust policy requires.")
    regions: list[str] = Field(default=[], description="Regions in which the role is used; empty: all.")

    @model_validator(mode="after")
    def _arn(self) -> Self:
        if not re.fullmatch(r"arn:aws[a-z-]*:iam::\d{12}:role/\S+", self.role_arn):
            raise ValueError(f"role_arn {self.role_arn!r} is not the ARN of a role; write arn:aws:iam::123456789012:role/name")
        return self


class AwsSettings(Section):
    """The AWS account; credentials come from boto3's default chain."""

    roles: list[Role] = Field(default=[], description="IAM role to assume, at most one.", max_length=1)


class ExtraGauge(Section):
    """One more field of the worker documents, exposed as a gauge."""

    metric: str = Field(description="Name of the gauge; it begins with cml_worker_.")
    field: FieldName = Field(
        description="Field of the worker document, at top level or under `state`; dots lead to nested keys."
    )
    help: str = Field(description="HELP text on /metrics.")

    @model_validator(mode="after")
    def _fits_the_catalog(self) -> Self:
        if not re.fullmatch("cml_worker_[a-z0-9_]+", self.metric):
            raise ValueError(f"metric {self.metric!r} must be cml_worker_ and lowercase letters, digits or underscores")
        if self.metric.endswith(("_total", "_count", "_sum", "_bucket", "_info")):
            raise ValueError(f"metric {self.metric!r} must not end in this suffix, which Prometheus reserves for other types")
        if self.metric in METRICS_BY_NAME:
            raise ValueError(f"metric {self.metric!r} is already a metric of the exporter; choose another name")
        if not self.help.strip():
            raise ValueError(f"help of {self.metric} is empty; write a sentence that says what the gauge means")
        return self


class WorkersSettings(Section):
    """How worker documents are parsed."""

    fields: dict[str, FieldNames] = Field(
        default={}, description="Additional names of a field, tried before the built-in ones, such as {cpu: [cpu_pct]}."
    )
    extra: list[ExtraGauge] = Field(default=[], description="Additional fields exposed as gauges: [{metric, field, help}].")

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


class WebSettings(Section):
    """The HTTP server."""

    listen_address: Annotated[list[Address], BeforeValidator(listed)] = Field(
        default=[":9877"], description="Addresses (host:port) to listen on, separated by commas.", min_length=1
    )
    config_file: Path | None = Field(
        None, description="File with TLS and basic authentication, in the format of Prometheus exporters; unset: neither."
    )
    cors_origins: Annotated[list[Origin], BeforeValidator(listed)] = Field(
        default=[], description="Origins whose pages may read the API, separated by commas."
    )


class LogSettings(Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warn", "error"] = Field(
        "info", description="Lowest level that is logged: debug, info, warn or error."
    )
    format: Literal["logfmt", "json"] = Field("logfmt", description="Format of a log line: logfmt or json.")


class Settings(Section):
    """All settings; durations are in seconds."""

    mongodb: MongoSettings = Field(default_factory=MongoSettings)
    period: Duration = Field("5m", description="Length of a sample's period; 1m needs detailed monitoring of EC2.")  # type: ignore[assignment]
    settle_delay: Duration = Field(
        "5m",  # type: ignore[assignment]
        description="Time after the end of a period during which CloudWatch may revise its value; later the value is final.",
    )
    absence_timeout: Duration = Field("1h", description="Age at which a missing datapoint is recorded as absent.")  # type: ignore[assignment]
    gap_fill_window: Duration = Field(
        "24h",  # type: ignore[assignment]
        description="Age up to which missing samples are filled automatically; at most 14d.",
    )
    max_age: Duration = Field("15m", description="Age up to which a value is exposed as a gauge.")  # type: ignore[assignment]
    terminated_grace: Duration = Field(
        "1h",  # type: ignore[assignment]
        description="Time that a terminated worker keeps its status series.",
    )
    cloudwatch: CloudWatchSettings = Field(default_factory=CloudWatchSettings)
    aws: AwsSettings = Field(default_factory=AwsSettings)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    events: EventsSettings = Field(default_factory=EventsSettings)
    web: WebSettings = Field(default_factory=WebSettings)
    data_dir: Path = Field(Path("data"), description="Folder of the outbox; each exporter needs its own.")
    log: LogSettings = Field(default_factory=LogSettings)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        show = format_duration
        # 60 s is the finest resolution of EC2 metrics; a divisor of an hour makes every longer interval whole periods.
        if self.period % MINUTE or HOUR % self.period:
            raise ValueError(f"period: {show(self.period)} must be whole minutes that divide an hour, such as 1m, 5m or 15m")
        if self.cloudwatch.interval < self.period:
            raise ValueError(
                f"cloudwatch.interval: {show(self.cloudwatch.interval)} is shorter than period ({show(self.period)}); "
                "polling more often than datapoints appear only costs money"
            )
        if self.cloudwatch.interval % MINUTE:
            raise ValueError(f"cloudwatch.interval: {show(self.cloudwatch.interval)} must be whole minutes, such as 5m")
        earliest = self.settle_delay + self.period
        if self.absence_timeout < earliest:
            raise ValueError(
                f"absence_timeout: {show(self.absence_timeout)} must be at least settle_delay + period ({show(earliest)}), "
                "else a value that is only late would be recorded as absent"
            )
        # CloudWatch drops one-minute datapoints after 15 d.
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
                "else gauges vanish between two polls"
            )
        return self

    @property
    def mongodb_uri(self) -> str:
        """The connection string, from `uri` or from the file `uri_file`.

        Raises:
            ConfigError: the file cannot be read or is empty, or the text is not a MongoDB connection string.
        """
        if self.mongodb.uri:
            return _mongodb_uri(self.mongodb.uri.get_secret_value().strip(), "mongodb.uri")
        path = self.mongodb.uri_file
        uri = read_text(Path(str(path)), "mongodb.uri_file").strip()
        if not uri:
            raise ConfigError(f"mongodb.uri_file: {path} is empty; it must hold the connection string")
        return _mongodb_uri(uri, f"mongodb.uri_file: {path}")
