"""Settings: file < environment < flags, checked as a whole before anything starts.

The models below are the one table of settings: `table()` walks them for the flags of the command line, for docs/settings.md and
for the test that compares both. Unknown keys are refused, secrets print as stars.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from exporter.errors import ConfigError
from exporter.periods import DAY, HOUR, MINUTE, format_duration, parse_duration

ENV_PREFIX = "CML_EXPORTER_"
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


def _duration(value: object) -> object:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit; write a duration such as 30s, 5m, 1h or 30d")
    raise ValueError("write a duration such as 30s, 5m, 1h or 30d")


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is not host:port; write :9877, 127.0.0.1:9877 or [::1]:9877")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{value!r}: put an IPv6 address in brackets, such as [::1]:9877")
    return value


def _listed(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Duration = Annotated[int, BeforeValidator(_duration)]
"""Whole seconds, written as a Prometheus duration."""
Address = Annotated[str, AfterValidator(_address)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


class MongoSettings(_Section):
    """Where the aggregates are read and the history is written."""

    uri: SecretStr | None = Field(
        None, description="MongoDB connection string; its database (else `cml_cloud_manager`) holds everything"
    )
    uri_file: Path | None = Field(None, description="file that holds the connection string, instead of `uri`")
    workers: str = Field("workers", description="collection of the manager's aggregates; only ever read")
    history: str | None = Field(
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
        if self.retention < DAY:
            raise ValueError("retention must be at least 1d")
        return self


class CloudWatchSettings(_Section):
    """How CloudWatch is asked."""

    enabled: bool = Field(True, description="false: gauges and history are made of the aggregates alone")
    interval: Duration = Field("5m", description="how often CloudWatch is asked; every round is billed")  # type: ignore[assignment]
    endpoint_url: str | None = Field(None, description="another CloudWatch and STS endpoint (a VPC endpoint, moto)")


class Role(_Section):
    """One IAM role to assume."""

    role_arn: str = Field(description="ARN of the role", pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/.+$")
    external_id: SecretStr | None = Field(None, description="external id the role's trust policy asks for")
    regions: list[str] = Field(default=[], description="regions the role is used for; empty: all")


class AwsSettings(_Section):
    """Whose CloudWatch is read; credentials come from boto3's usual chain."""

    roles: list[Role] = Field(default=[], description="IAM role to assume, at most one", max_length=1)


class ExtraGauge(_Section):
    """One further aggregate field exposed as a gauge."""

    metric: str = Field(description="name of the gauge, beginning with cml_worker_", pattern=r"^cml_worker_[a-z0-9_]+$")
    field: str = Field(description="field of the aggregate, at top level or under `state`; dots go deeper", min_length=1)
    help: str = Field(description="help text on /metrics", min_length=1)


class WorkersSettings(_Section):
    """How an aggregate is read."""

    fields: dict[str, Annotated[list[str], BeforeValidator(_listed)]] = Field(
        default={}, description="further names of a field, tried first: {cpu: [cpu_pct]}"
    )
    extra: list[ExtraGauge] = Field(default=[], description="further fields as gauges: [{metric, field, help}]")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for meaning in self.fields:
            if meaning not in ALIASABLE:
                raise ValueError(f"fields: {meaning!r} is not one of {', '.join(ALIASABLE)}")
        names = [gauge.metric for gauge in self.extra]
        if len(set(names)) < len(names):
            raise ValueError("extra: two gauges have the same metric name")
        return self


class WebSettings(_Section):
    """The HTTP server."""

    listen_address: Annotated[list[Address], BeforeValidator(_listed)] = Field(
        default=[":9877"], description="host:port to listen on; comma-separated for several", min_length=1
    )
    config_file: Path | None = Field(None, description="TLS and basic authentication, in the format of Prometheus' exporters")
    cors_origins: Annotated[list[str], BeforeValidator(_listed)] = Field(
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
    settle: Duration = Field("5m", description="until then CloudWatch may still revise a value")  # type: ignore[assignment]
    give_up: Duration = Field("1h", description="from then on an empty answer is believed")  # type: ignore[assignment]
    heal: Duration = Field("24h", description="how far back missing samples are filled by themselves")  # type: ignore[assignment]
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
        # 60 s is the finest CloudWatch publishes of EC2; a divisor of a day keeps periods aligned to UTC midnight.
        if self.period % MINUTE or DAY % self.period or self.period > HOUR:
            raise ValueError(f"period: {show(self.period)} must be whole minutes that divide an hour, such as 1m, 5m or 15m")
        if self.cloudwatch.interval < self.period:
            raise ValueError(
                f"cloudwatch.interval: {show(self.cloudwatch.interval)} is shorter than period ({show(self.period)}); "
                "asking more often than there are datapoints only costs money"
            )
        if self.cloudwatch.interval % MINUTE:
            raise ValueError("cloudwatch.interval: must be whole minutes")
        if self.give_up < self.settle + self.period:
            raise ValueError(f"give_up: must be at least settle + period ({show(self.settle + self.period)})")
        # 14 d keeps one-minute datapoints, which CloudWatch drops after 15 d, within reach.
        if not self.give_up + self.cloudwatch.interval <= self.heal <= 14 * DAY:
            raise ValueError("heal: must be at least give_up + cloudwatch.interval and at most 14d")
        if self.max_age < self.cloudwatch.interval + 5 * MINUTE:
            raise ValueError(
                f"max_age: must be at least cloudwatch.interval + 5m ({show(self.cloudwatch.interval + 5 * MINUTE)}), "
                "else gauges vanish between two rounds"
            )
        return self

    @property
    def mongodb_uri(self) -> str:
        """The connection string, from `uri` or read from `uri_file`.

        Raises:
            ConfigError: the file cannot be read or is empty.
        """
        if self.mongodb.uri:
            return self.mongodb.uri.get_secret_value()
        path = self.mongodb.uri_file
        try:
            uri = Path(str(path)).read_text().strip()
        except OSError as error:
            raise ConfigError(f"mongodb.uri_file: cannot read {path}: {error.strerror}") from error
        if not uri:
            raise ConfigError(f"mongodb.uri_file: {path} is empty; it must hold the connection string")
        return uri


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table of settings."""

    key: str
    default: object
    description: str
    is_list: bool

    @property
    def flag(self) -> str:
        """The command line's name of it."""
        return "--" + self.key.replace("_", "-")

    @property
    def env(self) -> str:
        """The environment's name of it."""
        return ENV_PREFIX + self.key.replace(".", "__").upper()


def table(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting with its dotted key, in the order of the file."""
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, _Section):
            yield from table(annotation, f"{prefix}{name}.")
        else:
            is_list = "list" in str(annotation) or "dict" in str(annotation)
            yield Setting(prefix + name, info.default, info.description or "", is_list)


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Settings:
    """Merge the three sources, key by key, and check the result.

    Args:
        file: YAML file; None reads none.
        environment: variables, by default the process's own; only those that begin with CML_EXPORTER_ count.
        flags: dotted key → text, as given on the command line.

    Raises:
        ConfigError: with one line for every mistake.
    """
    tree = _read(file) if file else {}
    known = {setting.env: setting for setting in table()}
    mistakes: list[str] = []
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name in known:
            _put(tree, known[name].key, _parse(text, known[name]))
        elif name.startswith(ENV_PREFIX):
            mistakes.append(f"environment: {name} is not a setting{_closest(name, known)}")
    by_key = {setting.key: setting for setting in known.values()}
    for key, text in (flags or {}).items():
        _put(tree, key, _parse(text, by_key[key]))
    tree.setdefault("mongodb", {})
    try:
        settings: Settings | None = Settings.model_validate(tree)
    except ValidationError as error:
        settings = None
        mistakes += [_sentence(detail) for detail in error.errors(include_url=False)]
    if mistakes or settings is None:
        raise ConfigError("\n".join(mistakes))
    return settings


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"--config.file: cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold keys and values, such as `mongodb: {{uri: …}}`")
    return tree


def _parse(text: str, setting: Setting) -> object:
    """Environment and flags carry text; lists and mappings are written as YAML, or comma-separated."""
    if text in ("", "null"):
        return None
    if setting.is_list and text.lstrip().startswith(("[", "{", "- ")):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{setting.key}: {text!r} is not valid YAML") from error
    return text


def _put(tree: dict[str, Any], key: str, value: object) -> None:
    *path, leaf = key.split(".")
    for name in path:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[leaf] = value


def _closest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]}?" if match else "; docs/settings.md lists them"


def _sentence(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{key} is not a setting{_closest(key, {setting.key for setting in table()})}"
    message = re.sub(r"^Value error, ", "", detail["msg"])
    return f"{key}: {message}" if key else message
