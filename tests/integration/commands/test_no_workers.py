"""A wrong database or collection: no command takes it for success, and none creates anything there."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pymongo import MongoClient

from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database, Document
from tests.fixtures.process import RunCommand, RunExporter
from tests.helpers.cases import by_day
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.fleet_env import FleetEnv, fast_settings


@pytest.fixture
def fleet_env(mongod: Mongod, database: Database, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> FleetEnv:
    return FleetEnv(fast_settings(mongod, database, fake_cloudwatch, tmp_path), database, fake_cloudwatch, tmp_path)


def config(env: FleetEnv, **mongodb: Any) -> Path:  # noqa: ANN401  # settings of any type
    file = env.folder / "config.yaml"
    file.write_text(yaml.safe_dump({**env.settings, "mongodb": {**env.settings["mongodb"], **mongodb}}))
    return file


COMMANDS = {"estimate": (), "backfill": ("--since", "2d"), "verify": ("--since", "2d")}


AT_NIGHT = pytest.mark.nightly("test_each_command_says_how_many_worker_documents_it_found_and_where")


def all_but_one_at_night(kept: str, *further: str) -> list[object]:
    """Return the commands, of which `make test` runs one in each test: all count the worker documents by the same functions."""
    return by_day([kept], [*COMMANDS, *further], AT_NIGHT)


@pytest.mark.parametrize("command", all_but_one_at_night("backfill"))
async def test_a_database_without_workers_is_no_success_and_nothing_is_created(
    fleet_env: FleetEnv, run_command: RunCommand, command: str
) -> None:
    done = run_command(command, *COMMANDS[command], "--config.file", config(fleet_env))
    assert done.returncode == 2
    name = fleet_env.database.name
    assert f"{name}.workers or {name}.cml_workers holds no worker document; check the database in mongodb.uri" in done.stderr
    assert await fleet_env.database.list_collection_names() == []


@pytest.mark.parametrize("command", all_but_one_at_night("estimate"))
async def test_a_mistyped_collection_is_answered_with_the_right_one(
    fleet_env: FleetEnv, run_command: RunCommand, command: str
) -> None:
    await fleet_env.fleet(1)
    done = run_command(command, *COMMANDS[command], "--config.file", config(fleet_env, workers="wrokers"))
    assert done.returncode == 2
    assert done.stderr.endswith("workers does; set mongodb.workers to workers\n")
    assert await fleet_env.database.list_collection_names() == ["workers"]


@pytest.mark.parametrize(
    "command",
    [
        "backfill",
        pytest.param("verify", marks=pytest.mark.nightly("test_a_mistyped_collection_is_told_also_where_workers_were_seen")),
    ],
)
async def test_a_mistyped_collection_is_told_also_where_workers_were_seen(
    fleet_env: FleetEnv, run_command: RunCommand, command: str
) -> None:
    await fleet_env.fleet(1)
    run_command("backfill", "--since", "1h", "--config.file", config(fleet_env))  # creates the history
    await fleet_env.database["worker_metrics_inventory"].insert_one({"_id": "w000", "last_seen": datetime.now(UTC)})
    done = run_command(command, *COMMANDS[command], "--config.file", config(fleet_env, workers="wrokers"))
    assert done.returncode == 2
    assert done.stderr.endswith("workers does; set mongodb.workers to workers\n")


async def test_an_import_into_a_database_without_events_creates_nothing(fleet_env: FleetEnv, run_command: RunCommand) -> None:
    done = run_command("import-events", "--since", "2d", "--config.file", config(fleet_env))
    assert done.returncode == 1
    assert "check the database in mongodb.uri" in done.stderr
    assert await fleet_env.database.list_collection_names() == []


@pytest.mark.parametrize("command", all_but_one_at_night("verify", "check"))
async def test_each_command_says_how_many_worker_documents_it_found_and_where(
    fleet_env: FleetEnv, run_command: RunCommand, command: str
) -> None:
    await fleet_env.fleet(3)
    await fleet_env.database["worker_metrics_timeseries"].drop()
    run_command("backfill", "--since", "1h", "--config.file", config(fleet_env))  # verify needs a history
    done = run_command(command, *COMMANDS.get(command, ()), "--config.file", config(fleet_env))
    found = rf"(3 worker documents in|workers +) *{fleet_env.database.name}\.workers"
    assert re.search(found, " ".join(done.stdout.split())), done.stdout + done.stderr


async def test_serve_creates_nothing_before_the_first_worker_and_then_leads_and_writes(
    fleet_env: FleetEnv, run_exporter: RunExporter
) -> None:
    settings = {**fleet_env.settings, "cloudwatch": {"enabled": False}, "period": "1m", "absence_timeout": "10m"}
    exporter = run_exporter({key: value for key, value in settings.items() if key != "data_dir"})
    assert exporter.metrics()["cml_exporter_leader"] == 0
    exporter.wait_for(lambda: "worker documents read" in exporter.logged(), 30, "an observation")
    assert await fleet_env.database.list_collection_names() == []
    assert "nothing is created in MongoDB before the first one" in exporter.logged()

    await fleet_env.database["workers"].insert_one({"_id": "w1", "status": "terminated"})
    exporter.wait_for(lambda: exporter.metrics()["cml_exporter_leader"] == 1, 30, "the leader")

    def has_history() -> bool:
        with MongoClient[Document](settings["mongodb"]["uri"]) as client:
            return "worker_metrics_timeseries" in client[fleet_env.database.name].list_collection_names()

    exporter.wait_for(has_history, 30, "the history")


async def test_a_history_that_is_there_is_led_without_any_worker(fleet_env: FleetEnv, run_exporter: RunExporter) -> None:
    """An upgrade never stops, also where all workers are gone for now."""
    await fleet_env.database["cml_exporter_state"].insert_one({"_id": "lease:backfill"})
    exporter = run_exporter({**fleet_env.settings, "cloudwatch": {"enabled": False}, "data_dir": str(fleet_env.folder / "d")})
    exporter.wait_for(lambda: exporter.metrics()["cml_exporter_leader"] == 1, 20, "the leader")
