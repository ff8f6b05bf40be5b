"""`--json` of the commands whose result programs read: one object on the right stream, numbers as numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from tests.fixtures.process import RunCommand
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.fleet_env import FleetEnv, fast_settings
from tests.helpers.ports import free_port


@pytest.fixture
async def config(mongod: Mongod, database: Database, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> Path:
    """Settings of three workers whose history was filled for an hour."""
    settings = fast_settings(mongod, database, fake_cloudwatch, tmp_path)
    settings |= {"web": {"listen_address": "127.0.0.1:0"}, "aws": {"sts_endpoint_url": fake_cloudwatch.url}}
    await FleetEnv(settings, database, fake_cloudwatch, tmp_path).fleet(3)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def parsed(text: str) -> Any:  # noqa: ANN401  # any JSON
    return json.loads(text)


def test_check(run_command: RunCommand, config: Path) -> None:
    done = run_command("check", "--json", "--config.file", config)
    found = parsed(done.stdout)
    assert (done.returncode, found["works"]) == (0, True), done.stdout
    assert {row["status"] for row in found["checks"]} <= {"ok", "warn", "skipped"}
    assert "workers" in [row["check"] for row in found["checks"]]


def test_estimate(run_command: RunCommand, config: Path) -> None:
    done = run_command("estimate", "--json", "--config.file", config)
    found = parsed(done.stdout)
    assert (done.returncode, found["running"], found["with_agent"]) == (0, 3, 3)
    assert found["day"] == {"calls": 288, "metrics": 288 * 6, "dollars": pytest.approx(288 * 6 * 0.00001)}
    assert found["regions"]["eu-west-1"] == found["cycle"]
    assert found["worker_documents"].startswith("3 worker documents in test_")


def test_an_estimate_without_access_to_cloudwatch_counts_one_page_of_each_region_at_least(
    run_command: RunCommand, config: Path
) -> None:
    notes = parsed(run_command("estimate", "--json", "--config.file", config).stdout)["notes"]
    assert any(" about 144 times a day" in note for note in notes), notes
    closed = f"--cloudwatch.endpoint-url=http://127.0.0.1:{free_port()}"
    notes = parsed(run_command("estimate", "--json", "--config.file", config, closed).stdout)["notes"]
    assert any(" at least 144 times a day" in note for note in notes), notes


def test_retention_and_export(run_command: RunCommand, config: Path, tmp_path: Path) -> None:
    assert run_command("backfill", "--since", "1h", "--config.file", config).returncode == 0
    found = parsed(run_command("retention", "--json", "--config.file", config).stdout)
    assert (found["retention_seconds"], found["changed"]) == (30 * 86400, False)
    done = run_command("retention", "--set", "10d", "--json", "--config.file", config)
    assert (done.returncode, parsed(done.stdout)["deletes_samples"], parsed(done.stdout)["changed"]) == (1, 0, False)
    found = parsed(run_command("retention", "--set", "10d", "--yes", "--json", "--config.file", config).stdout)
    assert (found["retention_seconds"], found["changed"]) == (10 * 86400, True)

    done = run_command("export", "--since", "1d", "--format", "csv", "--json", "--config.file", config)
    found = parsed(done.stderr)
    assert (done.returncode, found["workers"], found["samples"]) == (0, 3, done.stdout.count("\n") - 1)
    assert found["samples"] > 9
