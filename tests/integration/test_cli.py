"""The command line as users run it: real processes, their exit status, and what they say."""

import os
import re
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from exporter import __version__
from exporter.core.settings_loader import table
from exporter.demo.mongod import Mongod
from tests.fixtures.process import RunCommand, RunExporter

NOWHERE = "mongodb://127.0.0.1:1/"
"""Port 1 is privileged and unused: nobody answers."""
Minimal = Callable[..., dict[str, object]]


@pytest.fixture
def minimal(mongod: Mongod) -> Minimal:
    """Settings with an empty database and without CloudWatch, and whatever else is given."""
    uri = mongod.uri.replace("/?", f"/test_{uuid.uuid4().hex}?")

    def settings(**sections: object) -> dict[str, object]:
        return {"mongodb": {"uri": uri}, "cloudwatch": {"enabled": False}, **sections}

    return settings


# -- help and mistakes -------------------------------------------------------------------------------------------------


def test_the_first_help_names_every_command_and_where_to_begin(run_command: RunCommand) -> None:
    done = run_command("--help")
    assert done.returncode == 0
    for command in ("serve", "check", "demo"):
        assert re.search(rf"^ +{command} +\w+", done.stdout, re.MULTILINE), f"{command} has no line of its own"
    assert "demo` needs no settings and no AWS account" in done.stdout


@pytest.mark.parametrize("command", ["serve", "check"])
def test_the_help_of_a_command_lists_the_flag_of_every_setting_with_its_default(run_command: RunCommand, command: str) -> None:
    done = run_command(command, "--help", env={"COLUMNS": "200"})
    assert done.returncode == 0
    words = " ".join(done.stdout.split())
    for setting in table():
        assert f"{setting.flag} VALUE {setting.description}" in words, f"{setting.key} is not explained"
    assert "--config.file FILE" in done.stdout
    assert "(default: 5m)" in done.stdout


def test_the_help_of_the_demo_says_what_it_starts(run_command: RunCommand) -> None:
    done = run_command("demo", "--help")
    assert done.returncode == 0
    assert "12 workers in two regions" in " ".join(done.stdout.split())
    assert "--fresh" in done.stdout


def test_version_prints_name_and_number(run_command: RunCommand) -> None:
    done = run_command("--version")
    assert (done.returncode, done.stdout) == (0, f"cml-worker-exporter {__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("serve", "--no-such-flag", "1")])
def test_a_wrong_command_line_exits_with_2_and_shows_the_usage(run_command: RunCommand, arguments: tuple[str, ...]) -> None:
    done = run_command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: cml-worker-exporter")


def test_an_unknown_key_in_the_file_exits_with_1_and_one_sentence(run_command: RunCommand, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"mongodb: {{uri: '{NOWHERE}'}}\nperid: 5m\n")
    done = run_command("serve", "--config.file", file)
    assert done.returncode == 1
    assert done.stderr == "cml-worker-exporter: perid is not a setting; did you mean period?\n"
    assert done.stdout == ""


def test_without_a_mongodb_uri_it_exits_with_1_and_says_how_to_set_one(run_command: RunCommand) -> None:
    done = run_command("serve")
    assert done.returncode == 1
    assert "set mongodb.uri in the file, CML_EXPORTER_MONGODB__URI in the environment, or --mongodb.uri-file" in done.stderr
    assert "Traceback" not in done.stderr


def test_flags_win_over_the_environment_and_that_over_the_file(run_command: RunCommand, tmp_path: Path) -> None:
    """A mistake in the winner is the one that is reported."""
    file = tmp_path / "config.yaml"
    file.write_text(f"mongodb: {{uri: '{NOWHERE}'}}\nperiod: 7m\n")
    done = run_command("check", "--config.file", file, "--period", "9m", env={"CML_EXPORTER_PERIOD": "8m"})
    assert done.returncode == 1
    assert done.stderr.startswith("cml-worker-exporter: period: 9m must be whole minutes that divide an hour")


# -- serve -------------------------------------------------------------------------------------------------------------


def test_a_taken_port_exits_with_1_naming_the_address(run_exporter: RunExporter, minimal: Minimal) -> None:
    first = run_exporter(minimal())
    second = run_exporter(minimal(web={"listen_address": [f"127.0.0.1:{first.port}"]}), start=False)
    second.start(wait=False)
    assert second.wait() == 1
    said = second.logged()
    assert said.startswith(
        f"cml-worker-exporter: web.listen_address: cannot listen on 127.0.0.1:{first.port} (Address already in use"
    )
    assert said.endswith("stop what uses it, or choose another with --web.listen-address\n")
    assert said.count("\n") == 1
    assert first.running


def test_a_data_folder_of_another_exporter_exits_with_1_naming_its_process(run_exporter: RunExporter, minimal: Minimal) -> None:
    first = run_exporter(minimal())
    second = run_exporter(minimal(data_dir=str(first.data_dir)), start=False)
    second.start(wait=False)
    assert second.wait() == 1
    assert second.logged() == (
        f"cml-worker-exporter: data_dir: {first.data_dir} is in use by the exporter with process id {first.pid}; "
        "stop that one, or give this one another data_dir\n"
    )
    assert first.get("/-/healthy").status_code == 200


def test_a_folder_that_cannot_be_made_exits_with_1(run_exporter: RunExporter, minimal: Minimal, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    exporter = run_exporter(minimal(data_dir=str(tmp_path / "file" / "data")), start=False)
    exporter.start(wait=False)
    assert exporter.wait() == 1
    assert exporter.logged().startswith(f"cml-worker-exporter: data_dir: cannot write to {tmp_path / 'file' / 'data'} (")


def test_with_mongodb_down_at_the_start_metrics_are_served_and_sigterm_ends_it_with_0(run_exporter: RunExporter) -> None:
    exporter = run_exporter({"mongodb": {"uri": NOWHERE}, "cloudwatch": {"enabled": False}})
    metrics = exporter.metrics()
    assert metrics['cml_exporter_source_up{region="",source="mongodb"}'] == 0
    assert "process_resident_memory_bytes" in metrics
    assert not [series for series in metrics if series.startswith("cml_worker_")]
    assert "127.0.0.1:1" in exporter.get("/-/ready").text
    assert exporter.stop() == 0
    assert "Traceback" not in exporter.logged()
    with pytest.raises(httpx.ConnectError):
        exporter.get("/metrics")


def test_it_starts_again_on_the_same_folder_and_port_after_kill_9(run_exporter: RunExporter, minimal: Minimal) -> None:
    exporter = run_exporter(minimal())
    port, pid = exporter.port, exporter.pid
    exporter.kill()
    exporter.start()
    assert exporter.port == port
    assert exporter.pid != pid
    assert (exporter.data_dir / "lock").read_text() == str(exporter.pid)


# -- check -------------------------------------------------------------------------------------------------------------


def test_check_with_mongodb_down_skips_what_needs_it_and_leaves_nothing_behind(run_command: RunCommand, tmp_path: Path) -> None:
    """Its other faults are in test_check; in this process pymongo leaks a socket when it is closed while it connects."""
    env = {"CML_EXPORTER_MONGODB__URI": NOWHERE}
    done = run_command("check", "--web.listen-address", "127.0.0.1:0", env=env)
    assert done.returncode == 1
    assert done.stderr == ""
    assert re.search(
        r"^FAIL +MongoDB +no MongoDB for .*127\.0\.0\.1:1.*; check mongodb\.uri and the server$", done.stdout, re.M
    )
    assert len(re.findall("^skipped +[\\w ]+ because MongoDB failed$", done.stdout, re.M)) == 5
    assert len(re.findall("^skipped .* because the workers, and so their regions, could not be read$", done.stdout, re.M)) == 3
    assert done.stdout.endswith("\n1 of 12 checks failed.\n")
    assert list(tmp_path.iterdir()) == []


def test_output_into_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    """`check | head -1` is what people type."""
    command = f"{sys.executable} -m exporter.cli --help | head -1"
    assert os.system(f"cd {tmp_path} && {command} >out 2>err") == 0
    assert "Traceback" not in (tmp_path / "err").read_text()
