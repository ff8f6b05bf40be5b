"""Read text and YAML files strictly: no duplicate keys; errors name the position and never quote the content."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exporter.core.errors import ConfigError

Location = tuple[str, ...]
"""The keys that lead to a value; the items of a list are "0", "1" and so on."""


@dataclass(frozen=True, slots=True)
class YamlText:
    """What a YAML text says, and where."""

    name: str
    content: object
    lines: Mapping[Location, int]
    """The line of each key and item, from 1."""
    duplicates: tuple[str, ...]
    """A sentence for each key that is given twice, of which `content` has the last."""

    def place(self, location: Location) -> str:
        """Return "file:line: " of a value, or of the innermost that holds it where it is missing."""
        for length in range(len(location), 0, -1):
            if line := self.lines.get(location[:length]):
                return f"{self.name}:{line}: "
        return f"{self.name}: "


def read_yaml(text: str, name: str) -> YamlText:
    """Parse a YAML text.

    Args:
        text: the YAML.
        name: of the file or variable, for messages.

    Raises:
        ConfigError: it is not valid YAML; the message names line and column but does not quote the text, which may be a secret.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        marks = [] if root is None else list(_marks(root, (), set()))
        content: Any = None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        # The error's own text quotes the line, which may hold a password.
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{name}{place}: this is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{name}: this is not valid YAML; put quotes around texts with special characters") from None
    lines: dict[Location, int] = {}
    duplicates = []
    for location, line in marks:
        if location in lines:
            duplicates.append(f"{name}:{line}: {'.'.join(location)} is given twice; the first is in line {lines[location]}")
        lines[location] = line
    return YamlText(name, content, lines, tuple(duplicates))


def parse_yaml(text: str, name: str) -> object:
    """Return the content of a YAML text; refuse duplicate keys, of which YAML silently keeps the last.

    Raises:
        ConfigError: as `read_yaml`, or a key is given twice.
    """
    found = read_yaml(text, name)
    if found.duplicates:
        raise ConfigError("\n".join(found.duplicates))
    return found.content


def _marks(node: yaml.Node, location: Location, seen: set[int]) -> Iterator[tuple[Location, int]]:
    """Yield location and line of everything below a node, in the order of the text; of what an alias repeats once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(at), item, item) for at, item in enumerate(node.value)]
    else:
        return
    for name, marked, child in children:
        yield (*location, name), marked.start_mark.line + 1
        yield from _marks(child, (*location, name), seen)


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
