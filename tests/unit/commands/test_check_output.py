"""The findings of `check` on terminals of any width, in pipes, and as JSON."""

import io
import json
import re

import pytest

from exporter.commands.check import command
from exporter.commands.check.finding import CheckResult
from exporter.core.settings import Settings

SETTINGS = Settings.model_validate({"mongodb": {"uri": "mongodb://-"}})
FOUND = [CheckResult("MongoDB", "ok", "version 6"), CheckResult("lease", "FAIL", "no \x1b[31mway " + "x" * 90)]


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def examine(*_: object) -> list[CheckResult]:
        return FOUND

    monkeypatch.setattr(command, "examine", examine)
    monkeypatch.setenv("TERM", "xterm")


async def output(out: io.StringIO, *, as_json: bool = False) -> str:
    assert await command.run(SETTINGS, out, as_json=as_json) == 1
    return out.getvalue()


async def test_in_a_pipe_each_check_is_one_whole_line() -> None:
    lines = (await output(io.StringIO())).splitlines()
    assert lines[0] == "ok       MongoDB  version 6"
    assert lines[1].endswith("x" * 90)
    assert lines[2] == "1 of 2 checks failed."


async def test_a_terminal_gets_a_table_as_wide_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for columns in (100, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", await output(Screen())).splitlines()
        assert "│" in lines[-3]
        assert max(map(len, lines)) <= columns


@pytest.mark.parametrize(("columns", "terminal"), [("40", "xterm"), ("100", "dumb")])
async def test_a_narrow_or_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, columns: str, terminal: str) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", await output(Screen()))
    assert "ok  MongoDB\n  version 6\nFAIL  lease\n" in text
    assert "│" not in text


async def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mok" in await output(Screen())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in await output(Screen())


async def test_json_has_every_check() -> None:
    found = json.loads(await output(io.StringIO(), as_json=True))
    assert (found["works"], found["checks"][0]) == (False, {"check": "MongoDB", "status": "ok", "text": "version 6"})
