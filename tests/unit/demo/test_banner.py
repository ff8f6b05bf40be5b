"""What the demo says on a terminal of 80 columns, and in a file."""

import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from exporter import cli
from exporter.demo import status_line
from exporter.demo.command import COLUMNS, banner, show_state
from exporter.demo.folder import CONFIG
from exporter.demo.past import HISTORY

ENDPOINTS = {"exporter": "http://127.0.0.1:65432", "mongodb": "mongodb://127.0.0.1:65432/cml_demo?directConnection=true"}
ENDPOINTS |= {"aws": "http://127.0.0.1:65432"}


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `make demo` runs it: by the environment in the checkout, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))


def shown(**more: str) -> list[str]:
    return banner(Path.cwd() / ".demo", ENDPOINTS | more).splitlines()


def test_the_page_comes_first_and_every_line_fits_80_columns() -> None:
    lines = shown()
    assert next(line for line in lines if line) == "The demo runs. Open http://127.0.0.1:65432/"
    assert [line for line in lines if len(line) > COLUMNS] == []


def test_the_queries_for_prometheus_fit_too() -> None:
    assert [line for line in shown(prometheus="http://127.0.0.1:65432") if len(line) > COLUMNS] == []


def test_its_three_commands_can_be_copied() -> None:
    text = "\n".join(shown()).replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^  (curl .*|\.venv.*)$", text, re.MULTILINE)]
    assert len(commands) == 3
    _, *arguments = commands[-1]
    assert arguments[-1] == f".demo/{CONFIG}"
    options = cli._parse(cli._join_times(arguments))
    assert (options.since, options.format) == ("-1h", "csv")


def test_the_commands_of_a_package_installed_elsewhere_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/home/somebody/environments/cml/bin/python")
    assert [line for line in shown() if len(line) > COLUMNS] == []


def test_a_password_of_mongodb_is_not_shown() -> None:
    text = "\n".join(shown(mongodb="mongodb://me:secret@db/cml_demo"))
    assert "secret" not in text
    assert "MONGODB_URI" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_of_state_and_a_file_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    for stream, wanted in (
        (Terminal(), "\r\x1b[2Kstarting\r\x1b[2K" + "x" * 19 + "\r\x1b[2Kbye\n"),
        (io.StringIO(), "starting\nbye\n"),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        status_line.show_step("starting")
        status_line.show_status("x" * 100)
        status_line.end_status("bye")
        assert stream.getvalue() == wanted


async def test_the_line_of_state_fits_80_columns_and_has_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    class History:
        async def estimated_document_count(self) -> int:
            return 1_234_567

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    await show_state({HISTORY: History()}, ENDPOINTS["exporter"])  # type: ignore[arg-type]
    assert out.getvalue().endswith("  http://127.0.0.1:65432/  1,234,567 samples; Ctrl-C ends it")
