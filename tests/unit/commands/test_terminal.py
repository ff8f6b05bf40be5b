"""How commands write: tables in pipes and on terminals, and a reader that leaves."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.commands import terminal

HEADINGS, ROWS = ("region", "calls", "dollars"), [("eu-west-1", "2", "0.00020"), ("us-east-1", "13", "0.00130")]


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


def test_a_table_is_plain_text_with_figures_right() -> None:
    out = io.StringIO()
    terminal.print_table(HEADINGS, ROWS, out)
    assert out.getvalue() == (
        "region     calls  dollars\n"
        "eu-west-1      2  0.00020\n"
        "us-east-1     13  0.00130\n"
    )  # fmt: skip


def test_in_a_pipe_no_row_is_ever_wrapped_or_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = io.StringIO()
    terminal.print_table(("name", "calls"), [("x" * 300, "1")], out)
    assert out.getvalue().splitlines()[1] == "x" * 300 + "      1"


def test_a_narrow_terminal_gets_one_line_for_each_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = Screen()
    terminal.print_table(HEADINGS, ROWS, out)
    assert out.getvalue() == (
        "eu-west-1\n  calls: 2\n  dollars: 0.00020\n"
        "us-east-1\n  calls: 13\n  dollars: 0.00130\n"
    )  # fmt: skip
    monkeypatch.setenv("COLUMNS", "25")
    out = Screen()
    terminal.print_table(HEADINGS, ROWS[:1], out)
    assert out.getvalue().startswith("region     calls  dollars\n")


def test_sentences_are_broken_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = "  one two three four five\nhttp://127.0.0.1/a-long-address six"
    out = Screen()
    terminal.say(text, out)
    assert out.getvalue() == "  one two three four\n  five\nhttp://127.0.0.1/a-long-address\nsix\n"
    pipe = io.StringIO()
    terminal.say(text, pipe)
    assert pipe.getvalue() == f"{text}\n"


@pytest.mark.parametrize("shell", ["{} --version >&-", "{} retention >&- 2>&-", "{} chek >&- 2>&-"])
def test_closed_streams_are_no_traceback(tmp_path: Path, shell: str) -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", f"exec 3>&2; {shell.format(f'{sys.executable} -m exporter.cli')}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "shell", ["{} serve --help | head -1", "{} serve --help 2>&1 | true", "{} estimate --no-such 2>&1 | true"]
)
def test_a_reader_that_leaves_ends_a_command_quietly(tmp_path: Path, shell: str) -> None:
    command = shell.format(f"{sys.executable} -m exporter.cli")
    done = subprocess.run(
        ["/bin/bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 2, 141), done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["demo"], ["--version"]])
def test_a_full_disk_under_the_output_is_one_sentence(arguments: list[str]) -> None:
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full")
    code = "from exporter import cli; from exporter.commands import run; run.check = lambda o: print('x') or 0; "
    code += f"cli.COMMANDS['demo'] = cli.COMMANDS['demo']._replace(run=run.check); cli.main({arguments})"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == "cml-worker-exporter: cannot write the output (No space left on device); make room and run the command again\n"
    )
