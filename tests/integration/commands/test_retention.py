"""`retention`: shown, lengthened, and shortened only with --yes."""

import io
import time

import pytest

from exporter.commands import retention
from exporter.core.errors import ConfigError, IncompatibleStoreError
from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, to_datetime
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Database
from exporter.storage.repository import WorkerMetricsRepository

NAME = "worker_metrics_timeseries"


def settings_of(mongod: Mongod, database: Database, **mongodb: object) -> Settings:
    uri = mongod.uri.replace("/?", f"/{database.name}?")
    return Settings.model_validate({"mongodb": {"uri": uri, **mongodb}})


async def history_of_20_days(database: Database) -> WorkerMetricsRepository:
    history = WorkerMetricsRepository(database, collection=NAME, period=300, retention=30 * DAY, apply_retention=False)
    await history.ensure_collection()
    hour_ago = int(time.time()) - 3600
    days = [WorkerMetricsSample("w1", "eu-west-1", to_datetime(hour_ago - day * DAY), cpu_utilization=1.0) for day in range(20)]
    await history.add_samples(days)
    return history


async def test_without_set_it_only_prints_the_retention(mongod: Mongod, database: Database) -> None:
    await history_of_20_days(database)
    out = io.StringIO()
    assert await retention.run(settings_of(mongod, database), None, False, out) == 0
    assert out.getvalue() == f"{database.name}.{NAME} keeps samples for 30d.\n"


async def test_a_shorter_one_prints_what_it_deletes_and_needs_yes(mongod: Mongod, database: Database) -> None:
    history = await history_of_20_days(database)
    out = io.StringIO()
    assert await retention.run(settings_of(mongod, database), 14 * DAY, False, out) == 1
    assert "6 samples now" in out.getvalue()
    assert "--yes" in out.getvalue()
    assert await history.collection.current_retention() == 30 * DAY
    assert await retention.run(settings_of(mongod, database), 14 * DAY, True, out) == 0
    assert await history.collection.current_retention() == 14 * DAY


async def test_a_longer_one_deletes_nothing_and_needs_no_yes(mongod: Mongod, database: Database) -> None:
    history = await history_of_20_days(database)
    assert await retention.run(settings_of(mongod, database), 90 * DAY, False, io.StringIO()) == 0
    assert await history.collection.current_retention() == 90 * DAY


async def test_a_setting_that_would_lengthen_it_again_is_pointed_out(mongod: Mongod, database: Database) -> None:
    await history_of_20_days(database)
    with pytest.raises(IncompatibleStoreError, match="is set to 30d"):
        await retention.run(settings_of(mongod, database, retention="30d"), 14 * DAY, True, io.StringIO())


async def test_it_must_be_longer_than_the_gap_fill_window(mongod: Mongod, database: Database) -> None:
    with pytest.raises(ConfigError, match="longer than gap_fill_window"):
        await retention.run(settings_of(mongod, database), DAY, True, io.StringIO())


async def test_it_must_be_within_the_limits_of_mongodb(mongod: Mongod, database: Database) -> None:
    short_gap_fill_window = Settings.model_validate({"mongodb": {"uri": mongod.uri}, "gap_fill_window": "2h"})
    for wanted in (12 * HOUR, 300 * 365 * DAY):
        with pytest.raises(ConfigError, match="must be at least 1d, since MongoDB deletes by the day, and at most 24855d"):
            await retention.run(short_gap_fill_window, wanted, True, io.StringIO())


async def test_without_a_history_it_is_an_error(mongod: Mongod, database: Database) -> None:
    with pytest.raises(IncompatibleStoreError, match="does not exist yet"):
        await retention.run(settings_of(mongod, database), None, False, io.StringIO())
