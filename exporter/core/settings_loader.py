"""Load the settings: file < environment < flags; report all mistakes in one error."""

import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
)
from pydantic_core import ErrorDetails

from exporter.core.aws_settings import Role
from exporter.core.errors import ConfigError
from exporter.core.event_settings import EventFields
from exporter.core.history_settings import ForwardTarget
from exporter.core.metric_settings import CloudWatchGauge
from exporter.core.setting_types import Section, listed
from exporter.core.settings import Settings
from exporter.core.workers_settings import ExtraMetric
from exporter.core.yaml_file import Location, YamlText, parse_yaml, read_text, read_yaml

ENV_PREFIX = "CML_EXPORTER_"

# Kubernetes sets these in every pod of a namespace with a service whose name begins with cml-exporter.
_KUBERNETES = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*|.*_PORT=(tcp|udp|sctp)://.*"
)

_FLAGS = {"web.config_file": "--web.config.file", "workers.shard": "--shard"}
"""Flags with another name: Prometheus exporters spell the first with a dot, kube-state-metrics has the second."""

_BRACKETED_HOST = re.compile(r"\s*\[[\w:.%-]+\]:")
"""The beginning of `[::1]:9877`, which is an address and no list in YAML."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table of settings: dotted key, default, description."""

    key: str
    default: object
    description: str
    is_list: bool
    is_path: bool = False

    @property
    def flag(self) -> str:
        """Name of the command-line flag."""
        return _FLAGS.get(self.key, "--" + self.key.replace("_", "-"))

    @property
    def env(self) -> str:
        """Name of the environment variable."""
        return ENV_PREFIX + self.key.replace(".", "__").upper()


def table(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting with its dotted key, in the order of the models."""
    sections = dict(_sections(model))
    for name, info in model.model_fields.items():
        if name in sections:
            yield from table(sections[name], f"{prefix}{name}.")
        else:
            is_list = "list" in str(info.annotation) or "dict" in str(info.annotation)
            is_path = "Path" in str(info.annotation)
            yield Setting(prefix + name, info.default, info.description or "", is_list, is_path)


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield name, info.annotation


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str | Sequence[str]] | None = None,
) -> Settings:
    """Return the settings merged key by key from file, environment and flags.

    Args:
        file: path of the YAML file; None: no file.
        environment: variables, by default those of the process; only names that begin with CML_EXPORTER_ count.
        flags: dotted key → text of the command-line flag; several texts for a list whose flag was repeated.

    Raises:
        InvalidSettingsError: one line per mistake, of which those in the file begin with file and line.
        ConfigError: the file cannot be read, or is not YAML.
    """
    known = {setting.env: setting for setting in table()}
    text = _read(file) if file else None
    tree = dict(text.content) if text and isinstance(text.content, dict) else {}
    mistakes = [*text.duplicates] if text else []
    if file:
        _resolve_paths(tree, file.parent, known.values())
    elsewhere: set[str] = set()
    """The keys that do not come from the file."""
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if name in known and value:  # compose files pass an empty text for "not set"
            _put(tree, known[name].key, _parse(value, known[name], name))
            elsewhere.add(known[name].key)
        elif name.startswith(ENV_PREFIX) and name not in known and not _KUBERNETES.fullmatch(f"{name}={value}"):
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            mistakes.append(f"environment: {name} is not a setting{OF_BOTO3.get(key) or _closest(name, known)}")
    by_key = {setting.key: setting for setting in known.values()}
    for key, given in (flags or {}).items():
        _put(tree, key, _parse_flag(given, by_key[key]))
        elsewhere.add(key)
    _fill_sections(tree, Settings)
    try:
        settings: Settings | None = Settings.model_validate(tree)
    except ValidationError as error:
        settings = None
        for detail in error.errors(include_url=False, include_input=False):
            for location, sentence in _sentences(detail):
                key = ".".join(location)
                from_file = text is not None and location and not any(f"{key}.".startswith(f"{one}.") for one in elsewhere)
                mistakes.append((text.place(location) if text and from_file else "") + sentence)
    if mistakes or settings is None:
        raise InvalidSettingsError("\n".join(sorted(mistakes, key=_line)), tree.get("log"))
    return settings


def _line(mistake: str) -> float:
    """Return the line of a mistake in the file, after which come those of the environment and of flags, as they were found."""
    place = re.match(r".*?:(\d+): ", mistake)
    return int(place[1]) if place else math.inf


class InvalidSettingsError(ConfigError):
    """The settings are invalid; `log_format` is the one among them, as far as it can be told."""

    def __init__(self, message: str, log: object) -> None:
        super().__init__(message)
        self.log_format = log.get("format") if isinstance(log, dict) else None


def _read(file: Path) -> YamlText:
    text = read_yaml(read_text(file, "--config.file"), str(file))
    if text.content is not None and not isinstance(text.content, dict):
        raise ConfigError(f"{file}:1: it must hold keys and values, such as mongodb: {{uri: mongodb://localhost}}")
    return text


def _resolve_paths(tree: dict[str, Any], folder: Path, settings: Iterable[Setting]) -> None:
    """Make the paths of a file relative to its folder: it means the same from wherever the exporter is started."""
    for setting in settings:
        *path, leaf = setting.key.split(".")
        section: object = tree
        for name in path:
            section = section.get(name) if isinstance(section, dict) else None
        if setting.is_path:
            _resolve_path(section, leaf, folder)
        elif setting.key == "history.forward" and isinstance(section, dict) and isinstance(section.get(leaf), list):
            for target in section[leaf]:
                _resolve_path(target, "url_file", folder)


def _resolve_path(section: object, leaf: str, folder: Path) -> None:
    given = section.get(leaf) if isinstance(section, dict) else None
    # A connection string in the place of a path gets its own message.
    if isinstance(section, dict) and isinstance(given, str) and given and "://" not in given:
        section[leaf] = str(folder / given)


def _parse_flag(given: str | Sequence[str], setting: Setting) -> object:
    """Parse the text of a flag; the items of a repeated one form one list."""
    if isinstance(given, str) or len(given) == 1:
        return _parse(given if isinstance(given, str) else given[0], setting, setting.flag)
    items: list[object] = []
    for text in given:
        value = listed(_parse(text, setting, setting.flag))
        items.extend(value if isinstance(value, list) else [] if value is None else [value])
    return items


def _parse(text: str, setting: Setting, name: str) -> object:
    """Parse the text of a variable or flag: YAML for lists and mappings, else the text itself; empty and null unset."""
    if text in ("", "null"):
        return None
    if setting.is_list and text.lstrip().startswith(("[", "{", "- ")) and not _BRACKETED_HOST.match(text):
        return parse_yaml(text, name)
    return text


def _put(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key. A section that is not a mapping stays unchanged; validation reports it."""
    *path, leaf = key.split(".")
    for name in path:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            return
    tree[leaf] = value


def _fill_sections(tree: dict[str, Any], model: type[BaseModel]) -> None:
    """Replace null sections with empty ones: YAML reads a section whose keys are all commented out as null."""
    for name, section in _sections(model):
        if tree.get(name) is None:
            tree[name] = {}
        if isinstance(tree[name], dict):
            _fill_sections(tree[name], section)


def _closest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]}?" if match else "; docs/settings.md lists them"


OF_BOTO3: Mapping[str, str] = {
    "aws.region": ": each worker document names its region; for credentials set AWS_REGION in the environment",
    "aws.profile": ": set AWS_PROFILE in the environment, which boto3's credential chain reads",
    "aws.access_key_id": ": set AWS_ACCESS_KEY_ID in the environment, or let boto3's credential chain find a role",
    "aws.secret_access_key": ": set AWS_SECRET_ACCESS_KEY in the environment, or let boto3's credential chain find a role",
    "aws.endpoint_url": "; did you mean cloudwatch.endpoint_url or aws.sts_endpoint_url?",
}
"""What people look for under `aws` and boto3 reads elsewhere."""

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
    "int_type": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "greater_than_equal": "it must be at least {ge}",
    "too_short": "it must not be empty",
    "too_long": "it must hold at most {max_length}",
}
"""Messages that replace those of pydantic, which name Python types."""


def _sentences(detail: ErrorDetails) -> Iterator[tuple[Location, str]]:
    """Yield where a mistake is, and its sentence; a check of several settings may find several mistakes, one a line."""
    location = tuple(str(part) for part in detail["loc"] if part != "[key]")
    key = ".".join(location)
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        yield location, f"{key} is not a setting{OF_BOTO3.get(key) or _closest(key, _keys_beside(detail['loc']))}"
        return
    template = _MESSAGES.get(detail["type"])
    message = template.format_map(detail.get("ctx", {})) if template else detail["msg"].removeprefix("Value error, ")
    for line in message.splitlines():
        # A check of several settings begins its sentence with the one to change.
        named = re.match(r"[\w.]*", line) if detail["type"] == "value_error" else None
        inner = tuple(named[0].split(".")) if named else ()
        yield (*location, *inner), f"{key}: {line}" if key else line


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are valid in place of an unknown one: those of the item that holds it, else all keys."""
    *parents, _ = map(str, loc)
    items: Mapping[str, type[BaseModel]] = {
        "aws.roles": Role,
        "cloudwatch.extra": CloudWatchGauge,
        "workers.extra": ExtraMetric,
        "history.forward": ForwardTarget,
        "events.types": EventFields,
    }
    item = items.get(".".join(parents[:-1]))
    return [".".join((*parents, name)) for name in item.model_fields] if item else [setting.key for setting in table()]
