"""`--help` at the width of a terminal."""

import pytest

from exporter.cli import COMMANDS, parser_of


@pytest.mark.parametrize("command", [None, *COMMANDS])
@pytest.mark.parametrize("columns", [60, 80])
def test_every_help_fits_the_terminal_but_for_its_examples(
    command: str | None, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    parser, commands = parser_of(command)
    text = (commands[command] if command else parser).format_help()
    body, _, examples = text.partition("\nexample")
    assert [line for line in body.splitlines() if len(line) > columns] == []
    assert [line for line in examples.splitlines() if len(line) > columns and not line.startswith("  ")] == []
    assert command is None or "Exit status: 0 " in text


def test_a_flag_of_the_usage_stays_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    usage = parser_of("export")[1]["export"].format_usage()
    assert usage.startswith("usage: cml-worker-exporter export --since TIME")
    assert usage.count("\n       cml-worker-exporter export ") == 1
    for flag in ("--since TIME", "[--until TIME]", "[--worker ID ...]", "--to ADDRESS", "[--SETTING VALUE ...]"):
        assert flag in usage
