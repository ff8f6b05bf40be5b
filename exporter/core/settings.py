"""Models of the settings, validated as a whole before anything starts.

These models are the one table of settings: `settings_loader.table` walks them for the command-line flags and for
docs/settings.md. Unknown keys are refused; secrets print as stars.
"""

import re
import string
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from exporter.core.aws_settings import AwsSettings, Endpoints
from exporter.core.catalog import StatusForm
from exporter.core.errors import ConfigError
from exporter.core.event_settings import EventsSettings
from exporter.core.history_settings import HistorySettings
from exporter.core.metric_settings import CloudWatchGauge, MemoryMetric, check_gauges
from exporter.core.otlp_settings import OtlpSettings
from exporter.core.periods import DAY, MINUTE, format_duration, is_period
from exporter.core.setting_types import (
    Address,
    Collection,
    Dollars,
    Duration,
    Network,
    Origin,
    RoutePrefix,
    Section,
    Share,
    Url,
    listed,
    listed_addresses,
)
from exporter.core.workers_settings import WorkersSettings
from exporter.core.yaml_file import read_text

WORKER_COLLECTIONS = ("workers", "cml_workers")
"""Where `mongodb.workers` is unset: the collections that the manager's generations write, in the order of search."""

_URI_AS_PATH = re.compile(r"\bmongodb(\+srv)?:/|:[^/]*@", re.IGNORECASE)
"""What only a connection string contains, also after `Path` has joined its slashes."""

ReadMode = Literal["primary", "primaryPreferred", "secondary", "secondaryPreferred", "nearest"]
"""Read preferences of MongoDB."""
SHORTEST_STALENESS_SECONDS = 90
"""MongoDB's limit: https://www.mongodb.com/docs/manual/core/read-preference-staleness/"""

MAX_RETENTION = 2**31 - 1  # seconds; MongoDB refuses a longer expireAfterSeconds


def _mongodb_uri(value: str, key: str) -> str:
    """Check the scheme only; the driver checks the rest. The message does not repeat the value, which holds the password."""
    if not value.startswith(("mongodb://", "mongodb+srv://")):
        raise ConfigError(f"{key}: it must begin with mongodb:// or mongodb+srv://")
    return value


def _level(value: object) -> object:
    """Accept the names of other programs, too: WARNING."""
    text = value.lower() if isinstance(value, str) else value
    return "warn" if text == "warning" else text


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

    read_preference: ReadMode = Field(
        "primary",
        description="Member of a replica set that answers queries of samples and statistics by the API, and of samples by "
        "remote read; a secondary may be behind by `max_staleness`. Everything else, hourly aggregates too, is read from "
        "the primary.",
    )
    max_staleness: Duration = Field(
        "90s",  # type: ignore[assignment]
        description="Time that a secondary may be behind to be read; at least 90s.",
    )

    @property
    def worker_collections(self) -> tuple[str, ...]:
        """Return the collections that may hold the worker documents, in the order of search."""
        return WORKER_COLLECTIONS if self.workers is None else (self.workers,)

    @model_validator(mode="after")
    def _one_uri(self) -> Self:
        if self.uri_file and _URI_AS_PATH.search(str(self.uri_file)):
            # Every message about the file names its path, which here holds a password.
            raise ValueError(
                "uri_file holds a connection string instead of the path of a file; "
                "move it to mongodb.uri, or into a file whose path uri_file names"
            )
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
        if self.max_staleness < SHORTEST_STALENESS_SECONDS:
            raise ValueError(
                f"max_staleness {format_duration(self.max_staleness)} must be at least 90s: MongoDB cannot tell a shorter one"
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
    endpoint_url: Endpoints | None = Field(
        None,
        description="URL of another CloudWatch endpoint, such as a VPC endpoint, or a mapping of them by region; unset: "
        "AWS_ENDPOINT_URL_CLOUDWATCH, else the region's. STS: `aws.sts_endpoint_url`.",
    )
    max_usd_per_day: Dollars | None = Field(
        None,
        description="Daily budget for CloudWatch in US dollars. Gap filling pauses when the rest is needed for the running "
        "workers, polling pauses until 00:00 UTC when it is spent; unset: no limit.",
    )
    reader_budget_share: Share = Field(
        "10%",  # type: ignore[assignment]  # validate_default turns it into 0.1
        description="Share of `max_usd_per_day` that HTTP readers may spend a day through `/resources` and history older than "
        "MongoDB's, as a percentage; without a budget, of 10 dollars.",
    )
    standby: Literal["snapshot", "poll"] = Field(
        "snapshot",
        description="What an exporter shows of CloudWatch while another one writes the same history: `snapshot`, what that one "
        "polled last, which AWS bills once; `poll`, what it polls itself, which AWS bills for each exporter.",
    )
    memory: MemoryMetric = Field(default_factory=MemoryMetric)
    extra: list[CloudWatchGauge] = Field(
        default=[],
        description="Further CloudWatch metrics as gauges, each billed per worker and cycle: [{namespace, metric, dimension, "
        "dimensions, statistic, name, help, unit}].",
    )

    @model_validator(mode="after")
    def _billed_once(self) -> Self:
        check_gauges(self.extra, self.memory)
        return self


class WebSettings(Section):
    """The HTTP server."""

    listen_address: Annotated[list[Address], BeforeValidator(listed_addresses)] = Field(
        default=[":9877"], description="Addresses (host:port) to listen on, separated by commas.", min_length=1
    )
    config_file: Path | None = Field(
        None, description="File with TLS and basic authentication, in the format of Prometheus exporters; unset: neither."
    )
    cors_origins: Annotated[list[Origin], BeforeValidator(listed)] = Field(
        default=[], description="Origins whose pages may read the API, separated by commas."
    )
    cors_credentials: bool = Field(
        False, description="Whether these pages may send cookies and passwords; the origins must then be named, not `*`."
    )
    external_url: Url | None = Field(
        None, description="URL under which clients reach the exporter, such as that of a reverse proxy."
    )
    grafana_url: Url | None = Field(None, description="URL of Grafana, for links to its dashboards; unset: no links.")
    route_prefix: RoutePrefix | None = Field(
        None, description="Path before all routes, such as /workers; unset: the path of `external_url`."
    )
    trusted_proxies: Annotated[list[Network], BeforeValidator(listed)] = Field(
        default=[],
        description="Addresses or networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, "
        "separated by commas.",
    )

    probes_need_auth: bool = Field(
        False, description="Whether `/-/healthy` and `/-/ready` require the password of the other routes."
    )
    enable_lifecycle: bool = Field(False, description="Whether `POST /-/reload` reloads the configuration, as SIGHUP does.")

    @model_validator(mode="after")
    def _named_origins(self) -> Self:
        if self.cors_credentials and (not self.cors_origins or "*" in self.cors_origins):
            raise ValueError("cors_credentials: browsers accept it for named origins only; name them in web.cors_origins")
        return self

    @property
    def prefix(self) -> str:
        """The path before all routes, without a slash at its end; empty: none."""
        if self.route_prefix is not None:
            return self.route_prefix
        return urlsplit(self.external_url).path.rstrip("/") if self.external_url else ""


class MetricsSettings(Section):
    """The text of /metrics."""

    status: StatusForm = Field(
        "state_set",
        description="Form of the status on /metrics: `state_set`, nine series of each worker, one of which is 1; `code`, one "
        "series with a number, 0.7 KB less for each worker. The rules and dashboards of this repository read both.",
    )


class LogSettings(Section):
    """The log on standard error."""

    level: Annotated[Literal["debug", "info", "warn", "error"], BeforeValidator(_level)] = Field(
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
    history: HistorySettings = Field(default_factory=HistorySettings)
    otlp: OtlpSettings = Field(default_factory=OtlpSettings)
    web: WebSettings = Field(default_factory=WebSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    data_dir: Path = Field(Path("data"), description="Folder of the outbox; each exporter needs its own.")
    log: LogSettings = Field(default_factory=LogSettings)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        show = format_duration
        problems: list[str] = []
        if not is_period(self.period):
            problems.append(f"period: {show(self.period)} must be whole minutes that divide an hour, such as 1m, 5m or 15m")
        if self.cloudwatch.interval < self.period:
            problems.append(
                f"cloudwatch.interval: {show(self.cloudwatch.interval)} is shorter than period ({show(self.period)}); "
                "polling more often than datapoints appear only costs money"
            )
        if self.cloudwatch.interval % MINUTE:
            problems.append(f"cloudwatch.interval: {show(self.cloudwatch.interval)} must be whole minutes, such as 5m")
        earliest = self.settle_delay + self.period
        if self.absence_timeout < earliest:
            problems.append(
                f"absence_timeout: {show(self.absence_timeout)} must be at least settle_delay + period ({show(earliest)}), "
                "else a value that is only late would be recorded as absent"
            )
        # CloudWatch drops one-minute datapoints after 15 d.
        shortest = self.absence_timeout + self.cloudwatch.interval
        if not shortest <= self.gap_fill_window <= 14 * DAY:
            problems.append(
                f"gap_fill_window: {show(self.gap_fill_window)} must be at least absence_timeout + cloudwatch.interval "
                f"({show(shortest)}) and at most 14d"
            )
        youngest = self.cloudwatch.interval + 5 * MINUTE
        if self.max_age < youngest:
            problems.append(
                f"max_age: {show(self.max_age)} must be at least cloudwatch.interval + 5m ({show(youngest)}), "
                "else gauges vanish between two polls"
            )
        twice = {each.metric for each in self.workers.extra} & {each.name for each in self.cloudwatch.extra}
        if twice:
            problems.append(f"cloudwatch.extra and workers.extra both have {min(twice)}; rename one of them")
        if self.history.forward and self.mongodb.history is None:
            problems.append("history.forward: what is forwarded is the history, and mongodb.history is null; set one of them")
        if problems:
            raise ValueError("\n".join(problems))
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
        uri = read_text(Path(str(path)), "mongodb.uri_file").strip(f"{string.whitespace}\0")
        if not uri:
            raise ConfigError(f"mongodb.uri_file: {path} is empty; it must hold the connection string")
        return _mongodb_uri(uri, f"mongodb.uri_file: {path}")
