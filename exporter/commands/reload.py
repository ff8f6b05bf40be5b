"""Reload of the configuration while the exporter runs: SIGHUP, and `POST /-/reload` where that is enabled.

Everything is read and validated before anything changes, so a wrong file changes nothing. Settings that only shape the log,
limit cost, or name the databases that get copies take effect; the others would change what is stored or connected, and wait
for a restart.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from exporter.core import logs
from exporter.core.errors import ExporterError, StoreUnavailableError
from exporter.core.history_settings import HistorySettings
from exporter.core.settings import Settings
from exporter.core.settings_loader import table
from exporter.core.settings_summary import value_of
from exporter.metrics.telemetry import Telemetry
from exporter.web.live_config import LiveWebConfig

RELOADABLE = (
    "cloudwatch.max_usd_per_day",
    "history.forward",
    "history.forward_max_samples",
    "log.level",
    "log.format",
)
"""Settings that a reload applies, besides the contents of `web.config_file`, `mongodb.uri_file` and `url_file` of a target."""

COLLECTOR_SECONDS = 20.0
"""How long a reload waits for the collector's event loop, which may hang."""

_log = logs.get("exporter")


class Reloadable(Protocol):
    """What a reload changes in a running exporter."""

    @property
    def telemetry(self) -> Telemetry:
        """Shows the result."""

    async def refresh_credentials(self) -> bool:
        """Use the user and password that `mongodb.uri_file` has now; return whether they are new; raises ConfigError."""

    async def forward(self, settings: HistorySettings) -> None:
        """Forward to these targets from now on; raises ConfigError."""

    def limit_cost(self, max_usd_per_day: float | None) -> None:
        """Set the daily budget for CloudWatch."""


class Reloader:
    """Reloads the configuration of one running exporter, one reload at a time.

    Args:
        settings: what it was started with.
        load: reads the settings again; raises ConfigError.
        web: the web configuration file.
        exporter: receives the changes.
        wall: UTC seconds.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        web: LiveWebConfig,
        exporter: Reloadable,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._load, self._web, self._exporter = settings, load, web, exporter
        self._wall = wall
        self._one_at_a_time = asyncio.Lock()
        web.on_reload = self._show
        self._show(True)  # the start read all files, too

    async def reload(self) -> str:
        """Read all files again, apply what may change, and return a sentence that says what did and what waits for a restart.

        Raises:
            ConfigError: a file is missing or invalid; nothing has changed.
            StoreUnavailableError: the collector does not answer; nothing has changed.
        """
        async with self._one_at_a_time:
            try:
                settings = await asyncio.to_thread(self._load)
                self._web.read()
                if settings.mongodb == self._settings.mongodb:
                    await self._refresh_credentials()
                if settings.history != self._settings.history or any(each.url_file for each in settings.history.forward):
                    await self._in_time(self._exporter.forward(settings.history), "the targets of history.forward")
                web = self._web.read()  # again: the file may have been replaced meanwhile, and a request has used the new one
            except ExporterError as error:
                _log.error("configuration not reloaded; nothing has changed", error=str(error))
                self._show(False)
                raise
            self._web.use(web)
            result = self._apply(settings)
            _log.info("configuration reloaded", result=result)
            self._show(True)
            return result

    async def _refresh_credentials(self) -> None:
        await self._in_time(self._exporter.refresh_credentials(), "the credentials of mongodb.uri_file")

    async def _in_time(self, change: Awaitable[object], what: str) -> None:
        try:
            async with asyncio.timeout(COLLECTOR_SECONDS):
                await change
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"the collector did not take {what} within {COLLECTOR_SECONDS:g} s; see /-/healthy, and reload again",
                reason="timeout",
            ) from error

    def _apply(self, new: Settings) -> str:
        changed = [row.key for row in table() if value_of(new, row.key) != value_of(self._settings, row.key)]
        applied = [key for key in changed if key in RELOADABLE]
        logs.configure(new.log.level, new.log.format, sys.stderr)
        self._exporter.limit_cost(new.cloudwatch.max_usd_per_day)
        updates = {
            "log": new.log,
            "history": new.history,
            "cloudwatch": self._settings.cloudwatch.model_copy(update=_limit(new)),
        }
        self._settings = self._settings.model_copy(update=updates)
        waiting = [key for key in changed if key not in RELOADABLE]
        return (
            f"Reloaded; changed settings: {', '.join(applied) or 'none'}"
            + (f"; wait for a restart: {', '.join(waiting)}" if waiting else "")
            + "."
        )

    def _show(self, successful: bool) -> None:
        telemetry = self._exporter.telemetry
        telemetry.config_reload_successful.set(successful)
        if successful:
            telemetry.config_reload_success.set(self._wall())


def _limit(settings: Settings) -> dict[str, float | None]:
    return {"max_usd_per_day": settings.cloudwatch.max_usd_per_day}
