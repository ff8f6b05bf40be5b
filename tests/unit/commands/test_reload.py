"""What a reload applies, what waits for a restart, and what a failure leaves as it was."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from exporter.commands import reload as module
from exporter.commands.reload import RELOADABLE, Reloader
from exporter.core import logs
from exporter.core.errors import ConfigError, StoreUnavailableError
from exporter.core.history_settings import HistorySettings
from exporter.core.settings import Settings
from exporter.core.settings_loader import table
from exporter.metrics.telemetry import Telemetry
from exporter.web.live_config import LiveWebConfig


class Running:
    """A running exporter, as far as a reload sees it."""

    def __init__(self) -> None:
        self.telemetry = Telemetry(CollectorRegistry())
        self.limits: list[float | None] = []
        self.refreshed = 0
        self.hangs = self.refuses = False
        self.forwarded: list[HistorySettings] = []

    async def refresh_credentials(self) -> bool:
        self.refreshed += 1
        if self.hangs:
            await asyncio.Event().wait()
        return False

    async def forward(self, settings: HistorySettings) -> None:
        if self.refuses:
            raise ConfigError("the driver is not installed")
        self.forwarded.append(settings)

    def limit_cost(self, max_usd_per_day: float | None) -> None:
        self.limits.append(max_usd_per_day)

    def shown(self, name: str) -> float | None:
        return self.telemetry.registry.get_sample_value(f"cml_exporter_config_last_reload_{name}")


def settings(**sections: Any) -> Settings:  # noqa: ANN401  # the values of a section
    return Settings.model_validate({"mongodb": {"uri": "mongodb://127.0.0.1:1"}, **sections})


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    record: Callable[..., None] = lambda level, format, stream: calls.append((level, format))  # noqa: E731
    monkeypatch.setattr(logs, "configure", record)
    return calls


def test_every_reloadable_setting_exists() -> None:
    assert set(RELOADABLE) <= {row.key for row in table()}


async def test_safe_settings_are_applied_and_the_others_named_until_a_restart(configured: list[tuple[str, str]]) -> None:
    loaded = [settings(log={"level": "debug"}, cloudwatch={"max_usd_per_day": 2}, period="1m", max_age="20m")]
    running, now = Running(), [100.0]
    reloader = Reloader(settings(), lambda: loaded[0], LiveWebConfig(None), running, lambda: now[0])
    assert (running.shown("successful"), running.shown("success_timestamp_seconds")) == (1, 100)
    now[0] = 200
    assert await reloader.reload() == (
        "Reloaded; changed settings: cloudwatch.max_usd_per_day, log.level; wait for a restart: period, max_age."
    )
    assert (configured, running.limits) == ([("debug", "logfmt")], [2])
    assert running.shown("success_timestamp_seconds") == 200
    assert await reloader.reload() == "Reloaded; changed settings: none; wait for a restart: period, max_age."
    loaded[0] = settings()
    assert await reloader.reload() == "Reloaded; changed settings: cloudwatch.max_usd_per_day, log.level."
    assert running.limits[-1] is None


async def test_a_wrong_file_changes_nothing_and_is_shown(configured: list[tuple[str, str]], tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    web.write_text("")
    running, now = Running(), [100.0]
    reloader = Reloader(settings(), lambda: settings(log={"level": "debug"}), LiveWebConfig(web), running, lambda: now[0])
    web.write_text("nonsense: 1")
    now[0] = 200
    with pytest.raises(ConfigError, match="nonsense"):
        await reloader.reload()
    assert (configured, running.limits, running.refreshed) == ([], [], 0), "the valid settings were applied all the same"
    assert (running.shown("successful"), running.shown("success_timestamp_seconds")) == (0, 100)
    web.write_text("{}")
    await reloader.reload()
    assert running.shown("successful") == 1


async def test_targets_of_copies_change_at_once_and_one_that_cannot_be_used_changes_nothing(
    configured: list[tuple[str, str]],
) -> None:
    target = {"type": "influxdb", "url": "http://127.0.0.1:8086/cml"}
    running = Running()
    reloader = Reloader(settings(), lambda: settings(history={"forward": [target]}), LiveWebConfig(None), running)
    running.refuses = True
    with pytest.raises(ConfigError, match="driver"):
        await reloader.reload()
    assert (configured, running.limits) == ([], []), "the valid settings were applied all the same"
    running.refuses = False
    assert await reloader.reload() == "Reloaded; changed settings: history.forward."
    assert [each.forward[0].label for each in running.forwarded] == ["influxdb://127.0.0.1:8086/cml"]
    assert await reloader.reload() == "Reloaded; changed settings: none."
    assert len(running.forwarded) == 1


async def test_a_reload_reads_the_files_of_targets_again(configured: list[tuple[str, str]]) -> None:
    target = {"type": "influxdb", "url_file": "/run/secrets/url", "name": "a"}
    same = settings(history={"forward": [target]})
    running = Running()
    reloader = Reloader(same, lambda: same, LiveWebConfig(None), running)
    await reloader.reload()
    assert running.forwarded == [same.history]


async def test_a_collector_that_hangs_does_not_block_reloads_for_ever(
    configured: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COLLECTOR_SECONDS", 0.05)
    running = Running()
    running.hangs = True
    reloader = Reloader(settings(), lambda: settings(log={"level": "debug"}), LiveWebConfig(None), running)
    with pytest.raises(StoreUnavailableError, match="reload again"):
        await reloader.reload()
    assert configured == []
    running.hangs = False
    assert "log.level" in await reloader.reload()
