"""Settings: file < environment < flags, checked as a whole before anything starts.

The models below are the one table of settings: `table()` walks them for the flags of the command line, for docs/settings.md and
for the test that compares both. Unknown keys are refused, secrets print as stars.
"""

import difflib
import math
import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
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

from exporter.core.catalog import METRICS_BY_NAME
from exporter.core.errors import ConfigError
from exporter.core.periods import DAY, HOUR, MINUTE, format_duration, parse_duration

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

OWN_COLLECTIONS = ("worker_metrics_inventory", "cml_exporter_state")
"""Collections beside the history that we write; `mongodb.workers` and `mongodb.history` must be others."""

MAX_RETENTION = 2**31 - 1  # seconds; MongoDB refuses a longer expireAfterSeconds

# Kubernetes gives these to every pod beside a service that is called cml-exporter or begins so.
_KUBERNETES = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*|.*_PORT=(tcp|udp|sctp)://.*"
)


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
        earliest = self.settle + self.period
        if self.give_up < earliest:
            raise ValueError(
                f"give_up: {show(self.give_up)} must be at least settle + period ({show(earliest)}), "
                "else a value that is only late would be taken for missing"
            )
        # 14 d keeps one-minute datapoints, which CloudWatch drops after 15 d, within reach.
        shortest = self.give_up + self.cloudwatch.interval
        if not shortest <= self.heal <= 14 * DAY:
            raise ValueError(
                f"heal: {show(self.heal)} must be at least give_up + cloudwatch.interval ({show(shortest)}) and at most 14d"
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
        uri = _text_of(Path(str(path)), "mongodb.uri_file").strip()
        if not uri:
            raise ConfigError(f"mongodb.uri_file: {path} is empty; it must hold the connection string")
        return _mongodb_uri(uri, f"mongodb.uri_file: {path}")


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
        # Prometheus' exporters spell this one with a dot.
        return "--web.config.file" if self.key == "web.config_file" else "--" + self.key.replace("_", "-")

    @property
    def env(self) -> str:
        """The environment's name of it."""
        return ENV_PREFIX + self.key.replace(".", "__").upper()


def table(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting with its dotted key, in the order of the file."""
    sections = dict(_sections(model))
    for name, info in model.model_fields.items():
        if name in sections:
            yield from table(sections[name], f"{prefix}{name}.")
        else:
            is_list = "list" in str(info.annotation) or "dict" in str(info.annotation)
            yield Setting(prefix + name, info.default, info.description or "", is_list)


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, _Section):
            yield name, info.annotation


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
        if name in known and text:  # compose files hand over an empty text for "not set"
            _put(tree, known[name].key, _parse(text, known[name], name))
        elif name.startswith(ENV_PREFIX) and name not in known and not _KUBERNETES.fullmatch(f"{name}={text}"):
            mistakes.append(f"environment: {name} is not a setting{_closest(name, known)}")
    by_key = {setting.key: setting for setting in known.values()}
    for key, text in (flags or {}).items():
        _put(tree, key, _parse(text, by_key[key], by_key[key].flag))
    _fill_sections(tree, Settings)
    try:
        settings: Settings | None = Settings.model_validate(tree)
    except ValidationError as error:
        settings = None
        mistakes += [_sentence(detail) for detail in error.errors(include_url=False, include_input=False)]
    if mistakes or settings is None:
        raise ConfigError("\n".join(mistakes))
    return settings


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the plain loader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for at, (key, _) in enumerate(node.value):
            if key.value in keys[:at]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _yaml(text: str, name: str) -> object:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        # Not the error's own text: it quotes the line, which may hold a password.
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{name}{place}: this is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{name}: this is not valid YAML; put quotes around texts with special characters") from None


def _text_of(file: Path, name: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: {file} is not a text file in UTF-8") from error


def _read(file: Path) -> dict[str, Any]:
    tree = _yaml(_text_of(file, "--config.file"), str(file))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold keys and values, such as mongodb: {{uri: mongodb://localhost}}")
    return tree


def _parse(text: str, setting: Setting, name: str) -> object:
    """Environment and flags carry text; lists and mappings are written as YAML, or comma-separated."""
    if text in ("", "null"):
        return None
    if setting.is_list and text.lstrip().startswith(("[", "{", "- ")):
        return _yaml(text, name)
    return text


def _put(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key. A section that is no mapping stays as it is, to be complained about."""
    *path, leaf = key.split(".")
    for name in path:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            return
    tree[leaf] = value


def _fill_sections(tree: dict[str, Any], model: type[BaseModel]) -> None:
    """Take a section whose keys are all commented out, which YAML reads as null, for an empty one."""
    for name, section in _sections(model):
        if tree.get(name) is None:
            tree[name] = {}
        if isinstance(tree[name], dict):
            _fill_sections(tree[name], section)


def _closest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]}?" if match else "; docs/settings.md lists them"


_MESSAGES: Mapping[str, str] = {
    "missing": "it is missing; write it",
    "string_type": "it must be a text; put quotes around a number",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
    "list_type": "it must be a list, such as [a, b]",
    "dict_type": "it must hold keys and values, such as {{key: value}}",
    "model_type": "it must hold keys and values, such as {{key: value}}",
    "path_type": "it must be a path; put quotes around a number",
    "literal_error": "it must be {expected}",
    "too_short": "it must not be empty",
    "too_long": "it must hold at most {max_length}",
}
"""In place of pydantic's own messages, which speak of Python's types."""


def _sentence(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return f"{key} is not a setting{_closest(key, _keys_beside(detail['loc']))}"
    ours = _MESSAGES.get(detail["type"])
    message = ours.format_map(detail.get("ctx", {})) if ours else detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that may stand where the unknown one stands: beside it in an item of a list, else anywhere."""
    *where, _ = map(str, loc)
    items: Mapping[str, type[BaseModel]] = {"aws.roles": Role, "workers.extra": ExtraGauge}
    item = items.get(".".join(where[:-1]))
    return [".".join((*where, name)) for name in item.model_fields] if item else [setting.key for setting in table()]
