"""`--help` at the width of a terminal."""

import re
import shlex

import pytest

from exporter.cli import COMMANDS, parser_of
from exporter.commands.help_text import continued


@pytest.mark.parametrize("command", [None, *COMMANDS])
@pytest.mark.parametrize("columns", [60, 80])
def test_every_help_fits_the_terminal(command: str | None, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    parser, commands = parser_of(command)
    text = (commands[command] if command else parser).format_help()
    body, _, examples = text.partition("\nexample")
    assert [line for line in body.splitlines() if len(line) > columns] == []
    # Of an example only what is one word, or has none before which it can go on.
    assert [line for line in examples.splitlines() if len(line) > columns and re.search(r" (--|[|>] )", line.lstrip())] == []
    assert command is None or "Exit status: 0 " in text


def test_a_long_example_goes_on_where_a_shell_takes_it() -> None:
    example = "  cml-worker-exporter check --config.file exporter.yml --json | jq '.checks[] | select(.status == \"FAIL\")'"
    lines = continued(example, 60)
    assert len(lines) == 2
    assert max(map(len, lines)) <= 60
    assert shlex.split(" ".join(line.removesuffix("\\") for line in lines)) == shlex.split(example)
    assert continued(example, 200) == [example]


def test_a_flag_of_the_usage_stays_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    usage = parser_of("export")[1]["export"].format_usage()
    assert usage.startswith("usage: cml-worker-exporter export --since TIME")
    assert usage.count("\n       cml-worker-exporter export ") == 1
    for flag in ("--since TIME", "[--until TIME]", "[--worker ID ...]", "--to ADDRESS", "[--SETTING VALUE ...]"):
        assert flag in usage
