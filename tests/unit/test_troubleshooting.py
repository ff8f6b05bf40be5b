"""What docs/troubleshooting.md quotes as seen at a start is what the exporter writes."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## It does not start")[2].partition("\n## ")[0]
QUOTED = re.findall(r"^\| `([^`]+)` \|", SECTION, re.MULTILINE)


@cache
def constants() -> set[str]:
    """Return the texts of the exporter's code, also those around what is filled in."""
    trees = (ast.parse(file.read_text()) for file in (ROOT / "exporter").rglob("*.py"))
    found = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {node.value for node in found if isinstance(node.value, str)}


def test_most_rows_quote_a_message() -> None:
    assert len(QUOTED) >= 4


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_one_of_the_code(message: str) -> None:
    """An ellipsis stands for what is filled in; a section of the settings before a colon is added where a file is read."""
    texts = constants()
    for part in message.removeprefix("mongodb: ").split("…"):
        assert any(part.strip() in text for text in texts), part
