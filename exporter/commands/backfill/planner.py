"""Read the history, the inventory and ListMetrics, and make the plan of a backfill."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from exporter.commands.backfill import plan as plan_module
from exporter.commands.backfill.job import counted
from exporter.commands.backfill.plan import GapQuery, Plan, gap_queries, window
from exporter.core.clock import check_skew
from exporter.core.errors import ConfigError
from exporter.core.model import MetricQuery
from exporter.core.periods import format_duration
from exporter.core.settings import Settings
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.memory_series import LISTED_FOR_SECONDS, MemorySeriesIndex
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import Database, chunks
from exporter.storage.repository import WorkerMetricsRepository

READ_AT_ONCE = 50
"""Workers whose samples are looked at together: two months of them are some 50 MB in memory."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. `max_usd` None means the setting cloudwatch.max_usd_per_day, if there is one."""

    since: int
    """UTC second."""
    since_text: str
    """As it was written: the same text goes on with an interrupted plan."""
    workers: tuple[str, ...] = ()
    dry_run: bool = False
    max_usd: float | None = None


# -- planning ----------------------------------------------------------------------------------------------------------


class Planner:
    """Reads what a plan is made of; changes nothing."""

    def __init__(
        self, settings: Settings, options: Options, database: Database, history: WorkerMetricsRepository, cloudwatch: CloudWatch
    ) -> None:
        self._settings, self._options, self._cloudwatch = settings, options, cloudwatch
        self._aggregates = Aggregates(database, settings.mongodb.workers, settings.workers)
        self._inventory = Inventory(database)
        self.history = history
        self.namespace = history.namespace
        self.target = f"{history.namespace} with periods of {format_duration(settings.period)}"
        self.wanted = " ".join([options.since_text, *(f"--worker {worker_id}" for worker_id in sorted(set(options.workers)))])

    async def plan(self) -> Plan:
        """Compare the history with what it could have.

        Raises:
            ConfigError, SourceError, StoreError: as `run`.
        """
        period = self._settings.period
        began = time.time()
        fleet = await self._aggregates.read()
        check_skew("mongodb", fleet.date, (began + time.time()) / 2)
        await self._inventory.load()
        lives = plan_module.lifetimes(fleet, self._inventory.entries, self._options.workers)
        retention = await self.history.collection.future_retention()
        # What the exporter says it heals counts, not only this command's own setting: the two must never fill the same periods.
        gap_fill_window = max(self._settings.gap_fill_window, await self.history.collection.load_gap_window())
        since, until, notes = window(self._options.since, fleet.date, period, gap_fill_window, retention)
        wanted: list[tuple[str, GapQuery]] = []
        if since < until:
            for some in chunks(lives, READ_AT_ONCE):
                have = await self.history.reader.timestamps([life.worker.id for life in some], since)
                for life in some:
                    wanted += gap_queries(life, have[life.worker.id], since, until, period)
        regions = sorted({region for region, _ in wanted})
        index = MemorySeriesIndex(self._cloudwatch)
        await asyncio.gather(*(index.listing(region, recent=recent) for region in regions for recent in (True, False)))
        types = {worker.instance_id: worker.instance_type for worker in fleet.workers if worker.instance_id}

        @cache
        def queries_of(region: str, instance: str) -> tuple[MetricQuery, ...]:
            return index.queries(region, instance, types.get(instance), thorough=True)

        notes += _unlisted(wanted, index, fleet.date)
        if fleet.skipped:
            notes += (
                f"{counted(sum(fleet.skipped.values()), 'aggregate')} cannot be read and are left out; `check` says why.",
            )
        calls = plan_module.calls(wanted, queries_of, period)
        return Plan(self.target, self.wanted, fleet.date, since, until, period, calls, notes)

    def check_budget(self, plan: Plan) -> None:
        """Compare the price with what may be paid.

        Raises:
            ConfigError: it costs more.
        """
        limit = self._options.max_usd
        named = f"--max-usd {limit}"
        if limit is None:
            limit = self._settings.cloudwatch.max_usd_per_day
            named = f"cloudwatch.max_usd_per_day ({limit})"
        if limit is not None and plan.usage.dollars > limit:
            raise ConfigError(
                f"the plan costs {plan.usage.dollars:.4f} dollars, more than {named} allows; agree with a higher --max-usd, "
                "or fill less with --since or --worker"
            )


def _unlisted(wanted: Sequence[tuple[str, GapQuery]], index: MemorySeriesIndex, now: int) -> tuple[str, ...]:
    """Tell of instances whose memory cannot be asked for, since ListMetrics forgets a series after two weeks."""
    newest: dict[tuple[str, str], int] = {}
    for region, ask in wanted:
        for instance in ask.instances:
            newest[region, instance] = max(newest.get((region, instance), 0), ask.gaps[-1][1])
    count = sum(
        end < now - LISTED_FOR_SECONDS and all(instance not in listing.series for listing in index.listings(region))
        for (region, instance), end in newest.items()
    )
    if not count:
        return ()
    return (
        f"CloudWatch no longer lists the memory of {counted(count, 'instance')} that ended over "
        f"{format_duration(LISTED_FOR_SECONDS)} "
        "ago: only CPU is filled there.",
    )
