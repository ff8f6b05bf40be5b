"""Load the settings: file < environment < flags; report all mistakes in one error."""

import difflib
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
from exporter.core.yaml_file import parse_yaml, read_text

ENV_PREFIX = "CML_EXPORTER_"

# Kubernetes sets these in every pod of a namespace with a service whose name begins with cml-exporter.
_KUBERNETES = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*|.*_PORT=(tcp|udp|sctp)://.*"
)

_BRACKETED_HOST = re.compile(r"\s*\[[\w:.%-]+\]:")
"""The beginning of `[::1]:9877`, which is an address and no list in YAML."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table of settings: dotted key, default, description."""

    key: str
    default: object
    description: str
    is_list: bool

    @property
    def flag(self) -> str:
        """Name of the command-line flag."""
        # Prometheus exporters spell this flag with a dot.
        return "--web.config.file" if self.key == "web.config_file" else "--" + self.key.replace("_", "-")

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
            yield Setting(prefix + name, info.default, info.description or "", is_list)


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
        ConfigError: one line per mistake.
    """
    tree = _read(file) if file else {}
    known = {setting.env: setting for setting in table()}
    mistakes: list[str] = []
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name in known and text:  # compose files pass an empty text for "not set"
            _put(tree, known[name].key, _parse(text, known[name], name))
        elif name.startswith(ENV_PREFIX) and name not in known and not _KUBERNETES.fullmatch(f"{name}={text}"):
            mistakes.append(f"environment: {name} is not a setting{_closest(name, known)}")
    by_key = {setting.key: setting for setting in known.values()}
    for key, given in (flags or {}).items():
        _put(tree, key, _parse_flag(given, by_key[key]))
    _fill_sections(tree, Settings)
    try:
        settings: Settings | None = Settings.model_validate(tree)
    except ValidationError as error:
        settings = None
        mistakes += [_sentence(detail) for detail in error.errors(include_url=False, include_input=False)]
    if mistakes or settings is None:
        raise ConfigError("\n".join(mistakes))
    return settings


def _read(file: Path) -> dict[str, Any]:
    tree = parse_yaml(read_text(file, "--config.file"), str(file))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold keys and values, such as mongodb: {{uri: mongodb://localhost}}")
    return tree


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


def _sentence(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return f"{key} is not a setting{_closest(key, _keys_beside(detail['loc']))}"
    template = _MESSAGES.get(detail["type"])
    message = template.format_map(detail.get("ctx", {})) if template else detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


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
