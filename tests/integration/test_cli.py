"""The command line as users run it: real processes, their exit status, and their output."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pymongo import MongoClient

from exporter import __version__, cli
from exporter.cli import COMMANDS
from exporter.commands import manual
from exporter.core.periods import DAY
from exporter.core.settings_loader import table
from exporter.demo.mongod import Mongod
from tests.fixtures.process import RunCommand, RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.ports import free_port

NOWHERE = "mongodb://127.0.0.1:1/"
"""Port 1 is privileged and unused: connections to it are refused."""
Minimal = Callable[..., dict[str, object]]


@pytest.fixture
def minimal(mongod: Mongod) -> Minimal:
    """Settings with an empty database and without CloudWatch, and the given sections."""
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


MEMORY = {"cloudwatch.memory.namespace", "cloudwatch.memory.metric", "cloudwatch.memory.dimension"}
CLOUDWATCH = {"cloudwatch.enabled", "cloudwatch.endpoint_url", "cloudwatch.max_usd_per_day"} | MEMORY
TIMING = {"period", "settle_delay", "absence_timeout", "gap_fill_window", "max_age"}
MONGODB = {"mongodb.uri", "mongodb.uri_file"}
WORKERS = {"workers.fields", "workers.extra"}
AWS = {"aws.roles", "aws.linked_accounts", "aws.sts_endpoint_url"}
READ: dict[str, set[str]] = {
    "serve": {setting.key for setting in table()},
    "check": {setting.key for setting in table()},
    "retention": MONGODB | {"mongodb.history", "mongodb.retention", "period", "gap_fill_window", "log.format"},
    "estimate": MONGODB
    | TIMING
    | WORKERS
    | AWS
    | {"mongodb.workers", "log.format"}
    | CLOUDWATCH
    | {"cloudwatch.interval", "cloudwatch.extra", "cloudwatch.reader_budget_share"}
    | {"workers.shard", "workers.regions", "workers.filter.id", "workers.filter.region", "workers.filter.name"},
    "backfill": MONGODB
    | WORKERS
    | {"mongodb.workers", "mongodb.history", "mongodb.retention", "period", "gap_fill_window", "data_dir"}
    | AWS
    | CLOUDWATCH
    | {"log.format"},
    "verify": MONGODB
    | AWS
    | WORKERS
    | {
        "period",
        "absence_timeout",
        "mongodb.workers",
        "mongodb.history",
        "mongodb.retention",
        "data_dir",
        "log.format",
    }
    | CLOUDWATCH
    | {"cloudwatch.interval"},
    "import-events": MONGODB
    | WORKERS
    | {"mongodb.workers", "mongodb.history", "mongodb.retention", "period", "gap_fill_window", "data_dir"}
    | {"events.collection", "events.types", "log.format"},
    "export": MONGODB | {"mongodb.history", "period", "data_dir", "log.format"},
    "purge": MONGODB | WORKERS | {"mongodb.workers", "mongodb.history", "period", "gap_fill_window", "log.format"},
    "migrate": set(),
    "assets": set(),
    "demo": set(),
    "completion": set(),
    "manual": set(),
}
"""The settings of each command's `--help`."""
NO_EFFECT: dict[str, set[str]] = {
    "estimate": {"terminated_grace"},
    "backfill": {"cloudwatch.extra"},
    "verify": {"cloudwatch.extra"},
    "export": {"mongodb.retention"},
    "purge": {"mongodb.retention"},
}
"""Settings that shared constructors read (`Rules`, the repository, the CloudWatch client), but that change nothing here."""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_lists_its_own_flags_and_then_the_settings_it_reads(run_here: RunCommand, command: str) -> None:
    done = run_here(command, "--help", env={"COLUMNS": "200"})
    assert done.returncode == 0
    own, _, settings = done.stdout.partition("\nsettings:\n")
    words = " ".join(settings.split())
    for setting in table():
        value = "[VALUE]" if setting.default is False else "VALUE"  # a switch needs none
        if setting.key in READ[command]:
            assert f"{setting.flag} {value} {setting.description}" in words, f"{setting.key} is not explained"
        assert (f" {setting.flag} {value}" in words) == (setting.key in READ[command]), setting.key
        assert f"{setting.flag} {value}" not in own
    assert ("--config.file FILE" in words) == bool(READ[command])
    assert ("(default: 5m)" in words) == ("period" in READ[command])
    usage = " ".join(own.partition("\n\n")[0].split())
    flags = set(re.findall(r"^  (--[\w-]+)", own, re.MULTILINE))
    assert flags == {*re.findall(r"--[a-z-]+", usage)} - {"--config"}, "the usage line shows other flags"


@pytest.mark.parametrize("command", [command for command in COMMANDS if READ[command] < READ["serve"]])
def test_a_setting_that_a_command_does_not_read_is_an_unknown_flag(run_here: RunCommand, command: str) -> None:
    since = dict.fromkeys(("backfill", "verify", "import-events", "export"), ("--since", "1d"))
    required = since | {"purge": ("--worker", "w"), "migrate": ("yace.yml",)}
    done = run_here(command, *required.get(command, ()), "--web.listen-address", ":1", "--no-such-flag")
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: cml-worker-exporter {command}")
    assert done.stderr.endswith(
        "error: this command does not read --web.listen-address; a setting may stay in the file or in the environment\n"
    )


RECORDER = """
import json, sys
from pathlib import Path
from exporter import cli
from exporter.core import settings as models, settings_loader

load, plain, reads = settings_loader.load, models.Section.__getattribute__, set()
prefixes = {models.Settings: ""}
for model in (sections := [models.Settings]):
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, models.Section):
            prefixes[field.annotation] = prefixes[model] + name + "."
            sections.append(field.annotation)


def recorded(self, name):
    if type(self) in prefixes and name in type(self).model_fields:
        reads.add(prefixes[type(self)] + name)
    return plain(self, name)


def load_and_record(*args, **kwargs):
    models.Section.__getattribute__ = plain
    settings = load(*args, **kwargs)  # its validators read every setting
    models.Section.__getattribute__ = recorded
    return settings


settings_loader.load = load_and_record
found = []
for words in json.loads(sys.argv[2]):
    reads.clear()
    status = 0
    try:
        cli.main(words)
    except SystemExit as ended:
        status = ended.code or 0
    found.append([status, sorted(reads)])
Path(sys.argv[1]).write_text(json.dumps(found))
"""
"""Runs commands one after the other and writes for each its exit status and the keys of the settings that it read."""


def test_each_command_reads_the_settings_it_lists_and_no_other(
    mongod: Mongod, fake_cloudwatch: FakeCloudWatch, tmp_path: Path
) -> None:
    """`serve` and `check` list every setting."""
    name = f"test_{uuid.uuid4().hex}"
    member = Member("w", instance_id(0), "eu-west-1", int(time.time()) - 10 * DAY)
    fake_cloudwatch.add(member.instance_id)
    with MongoClient[dict[str, Any]](mongod.uri) as client:
        client[name]["workers"].insert_one(member.aggregate())
        client[name].create_collection("domain_events")
    (tmp_path / "uri").write_text(mongod.uri.replace("/?", f"/{name}?"))
    settings = {
        "mongodb": {"uri_file": str(tmp_path / "uri")},
        "cloudwatch": {"endpoint_url": fake_cloudwatch.url},
        "data_dir": str(tmp_path / "data"),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    runs: list[tuple[int, str, tuple[str, ...]]] = [  # exit status, command, its flags
        (0, "estimate", ()),
        (0, "backfill", ("--since", "2d")),
        (1, "verify", ("--since", "2d")),
        (0, "import-events", ("--since", "2d")),
        (0, "export", ("--since", "2d", "--output", str(tmp_path / "out"))),
        (1, "export", ("--since", "2d", "--to", "graphite://127.0.0.1")),
        (0, "retention", ()),
        (0, "retention", ("--set", "60d", "--yes")),
        (1, "purge", ("--worker", "w")),
        (0, "purge", ("--worker", "w", "--yes", "--even-if-listed")),
    ]
    keys, config = tmp_path / "keys.json", str(tmp_path / "config.yaml")
    lines = json.dumps([[command, "--config.file", config, *flags] for _, command, flags in runs])
    words = [sys.executable, "-c", RECORDER, str(keys), lines]
    done = subprocess.run(words, capture_output=True, text=True, timeout=scaled(120), check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(keys.read_text())
    assert [status for status, _ in found] == [status for status, _, _ in runs], done.stderr
    sections = {setting.key.rpartition(".")[0] for setting in table()}
    reads: dict[str, set[str]] = {}
    for (_, command, _), (_, read) in zip(runs, found, strict=True):
        reads[command] = reads.get(command, set()) | set(read) - sections - NO_EFFECT.get(command, set())
    assert reads == {command: READ[command] for command in reads}
    with MongoClient[dict[str, Any]](mongod.uri) as client:
        client.drop_database(name)


@pytest.mark.parametrize(
    ("lines", "heavy"),
    [
        (["--version"], {"exporter.core.settings", "pydantic", "asyncio", "rich", "yaml"}),
        (["--help"], {"exporter.core.settings", "pydantic", "asyncio", "rich", "yaml"}),
        ([f"{command} --help" for command in COMMANDS], {"asyncio", "rich"}),
    ],
    ids=["version", "help", "commands"],
)
def test_version_and_help_import_no_driver_and_no_web_server(lines: list[str], heavy: set[str]) -> None:
    script = """
import contextlib, sys
from exporter.cli import main
for line in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        main(line.split())
    print(line, "has loaded", *sorted(sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *lines], capture_output=True, text=True, timeout=scaled(60), check=False
    )
    assert done.returncode == 0
    told = [line.partition(" has loaded ") for line in done.stderr.splitlines()]
    assert [line for line, _, _ in told] == lines
    for line, _, modules in told:
        loaded = set(modules.split())
        assert "exporter.cli" in loaded
        found = loaded & (heavy | {"boto3", "botocore", "uvicorn", "starlette", "pymongo", "bson", "moto", "uvloop"})
        assert found == set(), line


@pytest.mark.parametrize("given", ["2h", "-2h", "now-2h", "2026-01-31T12:00:00Z", "1769860800"])
@pytest.mark.parametrize("command", ["backfill", "verify", "import-events", "export"])
def test_a_time_has_one_grammar_in_every_command(capsys: pytest.CaptureFixture[str], command: str, given: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--since", given])  # in this process: twenty others would take half a second each
    assert ended.value.code == COMMANDS[command].failure
    said = capsys.readouterr().err
    assert said.startswith("cml-worker-exporter: mongodb: uri is missing; "), said


def test_the_help_of_the_demo_says_what_it_starts(run_here: RunCommand) -> None:
    done = run_here("demo", "--help")
    assert done.returncode == 0
    assert "12 workers in two regions" in " ".join(done.stdout.split())
    assert "--fresh" in done.stdout


def test_version_tells_revision_and_python(run_command: RunCommand) -> None:
    done = run_command("--version", env={"REVISION": "abc1234"})
    assert done.stdout == f"cml-worker-exporter {__version__} (revision abc1234, Python {platform.python_version()})\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("sevre",), "'sevre' is not a command; did you mean serve?"),
        (("backfill", "--snice", "3d"), "unrecognized arguments: --snice; did you mean --since?"),
        (("estimate", "--cloudwatch.intervall=15m"), "--cloudwatch.intervall; did you mean --cloudwatch.interval?"),
        (("check", "--aws.region", "eu-west-1"), "set AWS_REGION in the environment"),
        (("--config.file", "x.yml", "check"), "a command comes first, then its flags: cml-worker-exporter check"),
        (("help",), "'help' is not a command; did you mean --help?"),
        (("check", "--zzz"), "unrecognized arguments: --zzz"),
    ],
)
def test_an_unknown_command_or_flag_names_the_nearest(run_here: RunCommand, arguments: tuple[str, ...], told: str) -> None:
    done = run_here(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_examples_and_exit_statuses(command: str) -> None:
    text = cli.parser_of(command)[1][command].format_help()
    assert re.search(rf"^example:\n  (\w+=\S+ )?cml-worker-exporter {command}", text, re.MULTILINE)
    assert "Exit status: 0 " in text
    assert "141 the reader of the output has gone" in " ".join(text.split())


def test_completion_knows_every_command_and_flag(run_command: RunCommand) -> None:
    for shell in ("bash", "zsh"):
        done = run_command("completion", shell)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(text in done.stdout for text in (*COMMANDS, "--mongodb.uri-file", "--max-usd")), shell
    done = run_command("completion", "bash")
    asked = 'COMP_WORDS=(cml-worker-exporter backfill --si); COMP_CWORD=2; _shtab_cml_worker_exporter; echo "${COMPREPLY[@]}"'
    shown = subprocess.run(["/bin/bash", "-c", f"{done.stdout}\n{asked}"], capture_output=True, text=True, check=False)
    assert shown.stdout == "--since\n", shown.stderr


def test_completion_of_a_flag_with_a_file_or_folder_names_those_that_are_there(run_here: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "exporter.yml").touch()
    (tmp_path / "examples").mkdir()
    script = run_here("completion", "bash").stdout
    for flag, wanted in (
        ("serve --config.file", {"exporter.yml", "examples"}),
        ("serve --mongodb.uri-file", {"exporter.yml", "examples"}),
        ("serve --data-dir", {"examples"}),
    ):
        words = f"cml-worker-exporter {flag} ex"
        asked = f'COMP_WORDS=({words}); COMP_CWORD=3; _shtab_cml_worker_exporter; echo "${{COMPREPLY[@]}}"'
        shown = subprocess.run(
            ["/bin/bash", "-c", f"{script}\n{asked}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert {name.rstrip("/") for name in shown.stdout.split()} == wanted, flag


def test_an_option_that_the_driver_does_not_know_is_one_sentence_without_its_source(run_command: RunCommand) -> None:
    done = run_command("retention", "--mongodb.uri", "mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=1&nosuch=1")
    assert done.stderr.startswith("cml-worker-exporter: Unknown option: nosuch")
    assert "pymongo" not in done.stderr


@pytest.mark.skipif(not shutil.which("tcsh"), reason="apt-get install tcsh")
def test_tcsh_completes_every_command_and_flag(run_here: RunCommand, tmp_path: Path) -> None:
    done = run_here("completion", "tcsh")
    assert (done.returncode, done.stderr) == (0, "")
    script = tmp_path / "completion.tcsh"
    script.write_text(done.stdout)
    asked = f"source {script}; complete cml-worker-exporter"
    shown = subprocess.run(["tcsh", "-f", "-c", asked], capture_output=True, text=True, check=True)
    assert f"p/1/({' '.join(COMMANDS)})/" in shown.stdout, shown.stderr
    flags = re.search(r"c/--/\(([^)]*)\)/", shown.stdout)
    assert flags
    assert {"mongodb.uri-file", "max-usd", "since"} <= set(flags[1].split())


def test_the_manual_page_has_every_flag_of_every_command(run_command: RunCommand) -> None:
    done = run_command("manual")
    assert (done.returncode, done.stderr) == (0, "")
    plain = done.stdout.replace(r"\-", "-").replace(r"\fB", "").replace(r"\fR", "")
    _, commands = cli.parser_of("*")
    for name, parser in commands.items():
        section = plain.partition(f'.SS "{name}"\n')[2].partition('\n.SS "')[0]
        missing = [flag for action in parser._actions for flag in action.option_strings if flag not in ("-h", "--help")]
        assert all(f"\n{flag}" in section for flag in missing), name
    # man indents by seven columns; a line that is not filled must fit beside that, but for one that has no place to go on.
    plain_lines = re.findall(r"^\.nf\n(.*?)\n\.fi$", plain, re.MULTILINE | re.DOTALL)
    long = [line for block in plain_lines for line in block.splitlines() if len(line.replace(r"\e", "-")) > manual.COLUMNS]
    assert [line for line in long if not line.startswith("  CML_EXPORTER_")] == []
    if groff := shutil.which("groff"):
        checked = subprocess.run(
            [groff, "-man", "-ww", "-Tutf8", "-K", "utf8"], input=done.stdout, capture_output=True, text=True, check=False
        )
        assert checked.stderr == ""


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
    assert done.stderr == f"cml-worker-exporter: {file}:2: perid is not a setting; did you mean period?\n"
    assert done.stdout == ""


def test_without_a_mongodb_uri_it_exits_with_1_and_says_how_to_set_one(run_here: RunCommand) -> None:
    done = run_here("serve")
    assert done.returncode == 1
    assert "set mongodb.uri in the file, CML_EXPORTER_MONGODB__URI in the environment, or --mongodb.uri-file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_switch_needs_no_value_as_in_prometheus(run_exporter: RunExporter, minimal: Minimal) -> None:
    exporter = run_exporter(minimal(), start=False)
    exporter.start("--web.enable-lifecycle")
    assert exporter.post("/-/reload").status_code == 200


def test_flags_win_over_the_environment_and_that_over_the_file(run_here: RunCommand, tmp_path: Path) -> None:
    """A mistake in the winner is the one that is reported."""
    file = tmp_path / "config.yaml"
    file.write_text(f"mongodb: {{uri: '{NOWHERE}'}}\nperiod: 7m\n")
    done = run_here("check", "--config.file", file, "--period", "9m", env={"CML_EXPORTER_PERIOD": "8m"})
    assert done.returncode == 1
    assert done.stderr.startswith("cml-worker-exporter: period: 9m must be whole minutes that divide an hour")


# -- serve -------------------------------------------------------------------------------------------------------------


def test_the_first_line_has_version_and_settings_and_the_last_one_tells_of_the_end(
    run_exporter: RunExporter, minimal: Minimal
) -> None:
    exporter = run_exporter(minimal(log={"format": "json"}, settle_delay="6m"))
    exporter.stop()
    first, *_, last = (json.loads(line) for line in exporter.logged().splitlines())
    assert (first["msg"], first["version"], first["settle_delay"], first["mongodb.uri"]) == (
        "starting",
        __version__,
        360,
        "***",
    )
    assert first["python"] == platform.python_version()
    assert "period" not in first
    assert last["msg"].startswith("stopped")
    assert last["seconds"] > 0


@pytest.mark.parametrize("wrong", [{"period": 5}, {"web": {"listen_address": "192.0.2.1:1"}}])
def test_an_error_at_the_start_is_json_where_the_log_is(run_command: RunCommand, tmp_path: Path, wrong: dict[str, Any]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"mongodb": {"uri": NOWHERE}, "log": {"format": "json"}, **wrong}))
    done = run_command("serve", "--config.file", file)
    assert done.returncode == 1
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["level"], next(iter(wrong)) in last["error"]) == ("error", True)


@pytest.mark.waits(20)
def test_what_http_clients_read_of_an_outage_names_no_host(run_exporter: RunExporter) -> None:
    exporter = run_exporter({"mongodb": {"uri": NOWHERE}, "cloudwatch": {"enabled": False}})
    exporter.wait_for(lambda: "refuses connections" in exporter.get("/-/ready").text, 30, "the outage")
    texts = [exporter.get(path).text for path in ("/-/ready", "/api/workers", "/api/workers/w1/metrics/history", "/")]
    assert not [text for text in texts if "127.0.0.1:1 " in text or "127.0.0.1:1;" in text or "Errno" in text]
    assert "127.0.0.1:1 refuses connections" in exporter.logged()


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


@pytest.mark.waits(15)
def test_with_mongodb_down_at_the_start_metrics_are_served_and_sigterm_ends_it_with_0(run_exporter: RunExporter) -> None:
    exporter = run_exporter({"mongodb": {"uri": NOWHERE}, "cloudwatch": {"enabled": False}})
    metrics = exporter.metrics()
    assert metrics['cml_exporter_source_up{region="",source="mongodb"}'] == 0
    assert "process_resident_memory_bytes" in metrics
    assert not [series for series in metrics if series.startswith("cml_worker_")]
    exporter.wait_for(lambda: "refuses connections" in exporter.get("/-/ready").text, 30, "the reason")
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
    assert re.search(
        r"^FAIL +AWS identity, us-east-1 +CloudWatch in us-east-1: no AWS credentials were found", done.stdout, re.M
    ), done.stdout
    assert re.search(r"^skipped +CloudWatch CPU +because the workers could not be read$", done.stdout, re.M)
    assert "neither aws.roles, AWS_REGION nor the profile names a region" in done.stdout
    assert done.stdout.endswith("\n2 of 12 checks failed.\n")
    assert list(tmp_path.iterdir()) == []


def test_output_into_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    """`check | head -1` is what people type."""
    command = f"{sys.executable} -m exporter.cli --help | head -1"
    assert os.system(f"cd {tmp_path} && {command} >out 2>err") == 0
    assert "Traceback" not in (tmp_path / "err").read_text()


@pytest.mark.parametrize(
    ("trusted", "scheme"),
    [
        (["127.0.0.0/8"], "https"),
        (["10.0.0.7"], "http"),
        pytest.param([], "http", marks=pytest.mark.nightly("test_a_forwarded_scheme_is_believed_from_trusted_proxies_only")),
    ],
)
def test_a_forwarded_scheme_is_believed_from_trusted_proxies_only(
    minimal: Minimal, run_exporter: RunExporter, trusted: list[str], scheme: str
) -> None:
    port = free_port()
    web = {"trusted_proxies": trusted, "route_prefix": "/m", "listen_address": f"127.0.0.1:{port}"}
    run_exporter(minimal(web=web), wait=False)
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9", "Host": "cml.example.org"}
    deadline = time.monotonic() + scaled(60)
    while True:
        try:
            document = httpx.get(f"http://127.0.0.1:{port}/m/openapi.json", headers=headers, trust_env=False).json()
            break
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert document["servers"] == [{"url": f"{scheme}://cml.example.org/m"}]
