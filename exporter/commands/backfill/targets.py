"""What a plan is made for: the workers, and the metrics of their instances that CloudWatch lists; and what it may cost."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from exporter.commands.backfill.plan import QueriesOf, WorkerLifetime, counted, lifetimes
from exporter.core.budget import Usage
from exporter.core.clock import check_skew
from exporter.core.errors import ConfigError
from exporter.core.model import Fleet, MetricQuery
from exporter.core.periods import format_duration
from exporter.core.settings import Settings
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.storage.collection import HistoryCollection
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import Database

WORKERS_PER_READ = 50
"""Workers whose sample times are read together: two months of them are some 50 MB in memory."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The worker documents as read, and the workers of a command line, also those that only the inventory has."""

    fleet: Fleet
    lifetimes: list[WorkerLifetime]

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence about the worker documents that cannot be read, if there are any."""
        if not self.fleet.skipped:
            return ()
        count = counted(sum(self.fleet.skipped.values()), "worker document")
        return (f"{count} cannot be read and are left out; run `check` to see why.",)


def describe_target(namespace: str, settings: Settings) -> str:
    """Return what a plan is recognized by: the collection of the history and its period."""
    return f"{namespace} with periods of {format_duration(settings.period)}"


async def longest_gap_window(settings: Settings, collection: HistoryCollection) -> int:
    """Return the seconds that `serve` fills gaps for, whichever is longer: by these settings or by the running exporter's.

    A command that fills gaps must never fill the same periods. Raises StoreError.
    """
    return max(settings.gap_fill_window, await collection.load_gap_window())


async def read_fleet(documents: Aggregates) -> Fleet:
    """Read the worker documents; raises SourceError, also where MongoDB's clock is skewed."""
    began = time.time()
    fleet = await documents.read()
    check_skew("mongodb", fleet.date, (began + time.time()) / 2)
    return fleet


async def read_targets(settings: Settings, database: Database, only: Collection[str]) -> Targets:
    """Read the worker documents and the inventory.

    Args:
        settings: of the exporter.
        database: where both are.
        only: worker ids; empty: all.

    Raises:
        ConfigError: a worker of `only` is unknown.
        SourceError: the worker documents cannot be read, or MongoDB's clock is skewed.
        StoreError: the inventory cannot be read.
    """
    fleet = await read_fleet(Aggregates(database, settings.mongodb.worker_collections, settings.workers))
    inventory = Inventory(database)
    await inventory.load()
    return Targets(fleet, lifetimes(fleet, inventory.entries, only))


async def listed_queries(cloudwatch: CloudWatch, fleet: Fleet, regions: Collection[str]) -> tuple[MemorySeriesIndex, QueriesOf]:
    """List the memory series of these regions; return the listings, and the queries of each instance that follow from them.

    Raises:
        SourceError: CloudWatch does not answer ListMetrics.
    """
    index = MemorySeriesIndex(cloudwatch)
    await asyncio.gather(*(index.listing(region, recent=recent) for region in sorted(regions) for recent in (True, False)))
    types = {worker.instance_id: worker.instance_type for worker in fleet.workers if worker.instance_id}

    @cache
    def queries_of(region: str, instance: str) -> tuple[MetricQuery, ...]:
        return index.queries(region, instance, types.get(instance), since=0)

    return index, queries_of


def check_price(usage: Usage, settings: Settings, max_usd: float | None, remedy: str) -> None:
    """Compare the price of a plan with its limit.

    Args:
        usage: of the plan.
        settings: with the limit of a day.
        max_usd: the limit of the command line in dollars; None: that of the settings counts, if there is one.
        remedy: what makes the plan cheaper, for the message.

    Raises:
        ConfigError: the plan costs more.
    """
    limit, name = max_usd, f"--max-usd {max_usd}"
    if limit is None:
        limit = settings.cloudwatch.max_usd_per_day
        name = f"cloudwatch.max_usd_per_day ({limit})"
    if limit is not None and usage.dollars > limit:
        raise ConfigError(
            f"the plan costs {usage.dollars:.4f} dollars, more than {name} allows; agree with a higher --max-usd, or {remedy}"
        )
