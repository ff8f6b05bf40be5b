"""Ports of the demo: a taken one is said before anything is installed, and a folder keeps those that clients remember."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.demo import ports
from exporter.demo.ports import PORTS, free_port, kept_port, port_near

ROOT = Path(__file__).parents[3]


def ask(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """As `make demo` does before the first install: by a Python without any package."""
    command = [sys.executable, "-S", "-m", "exporter.demo.ports", *arguments]  # -S: without the packages of the environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_taken_port_is_named_with_what_to_do_before_anything_is_installed() -> None:
    with socket.create_server((ports.HOST, 0)) as taken:
        port = str(taken.getsockname()[1])
        asked = ask(port)
        assert asked.returncode == 1
        assert asked.stderr.startswith(f"the demo cannot listen on 127.0.0.1:{port}")
        assert "make demo PORT=" in asked.stderr
    assert ask(port).returncode == 0


@pytest.mark.parametrize(("arguments", "status"), [((), 0), (("0",), 0), (("65536",), 1), (("http",), 1)])
def test_no_port_is_no_question_and_what_is_no_port_is_refused(arguments: tuple[str, ...], status: int) -> None:
    assert ports.main(list(arguments)) == status


def test_what_is_no_port_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("http", "65536", "-1"):
        assert ports.main([text]) == 1
        assert capsys.readouterr().err.startswith("the demo's port must be a number from 1 to 65535")


def test_another_port_is_chosen_for_a_taken_one() -> None:
    with socket.create_server((ports.HOST, 0)) as taken:
        wanted = taken.getsockname()[1]
        assert port_near(wanted) != wanted
    assert port_near(wanted) == wanted


def test_a_folder_keeps_the_port_of_each_part_while_it_is_free(tmp_path: Path) -> None:
    first = {name: kept_port(tmp_path, name) for name in ("mongodb", "aws")}
    assert {name: kept_port(tmp_path, name) for name in first} == first
    with socket.create_server((ports.HOST, first["aws"])):
        other = kept_port(tmp_path, "aws")
        assert other != first["aws"]
    assert json.loads((tmp_path / PORTS).read_text()) == {"mongodb": first["mongodb"], "aws": other}


def test_a_port_that_is_documented_comes_first_and_one_in_its_place_is_kept(tmp_path: Path) -> None:
    with socket.create_server((ports.HOST, 0)) as taken:
        wanted = taken.getsockname()[1]
        other = kept_port(tmp_path, "exporter", wanted)
        assert other != wanted
        assert kept_port(tmp_path, "exporter", wanted) == other
    assert kept_port(tmp_path, "exporter", wanted) == wanted


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"aws": "many"}', "{"])
def test_a_damaged_file_of_ports_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / PORTS).write_text(content)
    port = kept_port(tmp_path, "aws")
    assert kept_port(tmp_path, "aws") == port


def test_a_free_port_is_free() -> None:
    assert ports.is_free(free_port())
