"""Read text and YAML files strictly: no duplicate keys, errors with their place and without their content."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from exporter.core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the plain loader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for at, (key, _) in enumerate(node.value):
            if key.value in keys[:at]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str) -> object:
    """Parse YAML; refuse a key given twice.

    Args:
        text: the YAML.
        name: of the file or variable, for the message.

    Raises:
        ConfigError: it is not valid YAML; the message names line and column but quotes nothing, which may be a secret.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        # Not the error's own text: it quotes the line, which may hold a password.
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{name}{place}: this is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{name}: this is not valid YAML; put quotes around texts with special characters") from None


def read_text(file: Path, name: str) -> str:
    """Read a text file in UTF-8.

    Args:
        file: which.
        name: of the flag or setting that names it, for the message.

    Raises:
        ConfigError: it cannot be read, or is not text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: {file} is not a text file in UTF-8") from error
