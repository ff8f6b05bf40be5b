"""Read text and YAML files strictly: no duplicate keys; errors name the position and never quote the content."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from exporter.core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys, of which the plain loader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for at, (key, _) in enumerate(node.value):
            if key.value in keys[:at]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str) -> object:
    """Return the content of a YAML text; refuse duplicate keys.

    Args:
        text: the YAML.
        name: name of the file or variable, for the message.

    Raises:
        ConfigError: it is not valid YAML; the message names line and column but does not quote the text, which may be a secret.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        # The error's own text quotes the line, which may hold a password.
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{name}{place}: this is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{name}: this is not valid YAML; put quotes around texts with special characters") from None


def read_text(file: Path, name: str) -> str:
    """Return the content of a UTF-8 text file, without the byte order mark that editors of Windows write; lines end in \\n.

    Args:
        file: path of the file.
        name: name of the flag or setting that holds the path, for the message.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: {file} is not a text file in UTF-8") from error
