"""What a plan is made for: the workers, and the metrics of their instances that CloudWatch lists; and what it may cost."""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from exporter.commands import worker_documents
from exporter.commands.backfill.plan import GapQuery, QueriesOf, WorkerLifetime, counted, lifetimes
from exporter.core.budget import Usage
from exporter.core.clock import check_skew
from exporter.core.errors import ConfigError
from exporter.core.metric_settings import MemoryMetric
from exporter.core.model import Fleet, MetricQuery
from exporter.core.periods import format_duration
from exporter.core.settings import Settings
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.errors import PartialListingError
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
        """How many worker documents there are and where; and how many of them cannot be read, if there are any."""
        found = (f"{worker_documents.describe(self.fleet)}.",)
        if not self.fleet.skipped:
            return found
        count = counted(sum(self.fleet.skipped.values()), "worker document")
        return (
            *found,
            f"{count} cannot be read and are left out; run `check` to see why.",
        )


async def longest_gap_window(settings: Settings, collection: HistoryCollection) -> int:
    """Return the seconds that `serve` fills gaps for, whichever is longer: by these settings or by the running exporter's.

    A command that fills gaps must never fill the same periods. Raises StoreError.
    """
    return max(settings.gap_fill_window, await collection.load_gap_window())


async def read_fleet(documents: Aggregates) -> Fleet:
    """Read the worker documents; raises SourceError, also where MongoDB's clock is skewed."""
    began = time.time()
    fleet = await documents.read()
    check_skew("mongodb", fleet.date, began, time.time())
    return fleet


async def read_targets(settings: Settings, database: Database, only: Collection[str]) -> Targets:
    """Read the worker documents and the inventory.

    Args:
        settings: of the exporter.
        database: where both are.
        only: worker ids; empty: all.

    Raises:
        ConfigError: a worker of `only` is unknown.
        NoWorkersError: there is no worker, neither in the documents nor in the inventory, or they are in another collection.
        SourceError: the worker documents cannot be read, or MongoDB's clock is skewed.
        StoreError: the inventory cannot be read.
    """
    fleet = await read_fleet(Aggregates(database, settings.mongodb.worker_collections, settings.workers))
    inventory = Inventory(database)
    await inventory.load()
    if not inventory.entries or fleet.complaints:  # else workers were seen here, and none is in another collection
        worker_documents.require(fleet)
    return Targets(fleet, lifetimes(fleet, inventory.entries, only))


async def require_workers(settings: Settings, database: Database) -> None:
    """Refuse a database without workers, before anything is created in it; raises NoWorkersError, SourceError, StoreError."""
    if not await Aggregates(database, settings.mongodb.worker_collections, settings.workers).any_document():
        await read_targets(settings, database, ())  # they may all be gone, and in the inventory


def describe_target(namespace: str, settings: Settings) -> str:
    """Return what a plan is recognized by: the collection, the period, and the memory metric unless it is the default one.

    A stored plan has the dimension sets of that metric, so it does not belong to another one.
    """
    memory, target = settings.cloudwatch.memory, f"{namespace} with periods of {format_duration(settings.period)}"
    return target if memory == MemoryMetric() else f"{target} and memory from {memory.words} by {memory.dimension}"


@dataclass(frozen=True, slots=True)
class Listed:
    """What ListMetrics says of the instances of a plan."""

    index: MemorySeriesIndex
    queries_of: QueriesOf
    """(region, instance id) → the queries of the instance."""
    failed: Mapping[str, frozenset[str]]
    """Region → ids of the AWS accounts that did not answer."""
    notes: tuple[str, ...]
    """A sentence for each of them."""

    def answerable(self, found: Iterable[tuple[str, GapQuery]]) -> list[tuple[str, GapQuery]]:
        """Return the gap queries without those of an account that did not answer: their memory series are not known.

        A sample is written once, so one with its CPU alone would lose its memory for good.
        """

        def is_known(region: str, instance: str) -> bool:
            return self.index.account_of(region, instance) not in (None, *self.failed[region])

        return [
            (region, one)
            for region, one in found
            if region not in self.failed or all(is_known(region, instance) for instance in one.instances)
        ]


async def listed_queries(cloudwatch: CloudWatch, targets: Targets, regions: Collection[str]) -> Listed:
    """List the memory series of these regions.

    Raises:
        SourceError: CloudWatch does not answer ListMetrics.
    """
    index = MemorySeriesIndex(cloudwatch)
    notes: dict[str, None] = {}
    failed: dict[str, frozenset[str]] = {}

    async def list_(region: str, *, recent: bool) -> None:
        try:
            await index.listing(region, recent=recent)
        except PartialListingError as error:
            failed[region] = failed.get(region, frozenset()) | error.accounts
            notes.update(dict.fromkeys(f"{one}; its workers must wait for another run." for one in error.errors))

    await asyncio.gather(*(list_(region, recent=recent) for region in sorted(regions) for recent in (True, False)))
    for lifetime in targets.lifetimes:
        if lifetime.entry.account_id:
            for interval in lifetime.entry.instances:
                index.suggest_account(interval.instance_id, lifetime.entry.account_id)
    types = {worker.instance_id: worker.instance_type for worker in targets.fleet.workers if worker.instance_id}

    @cache
    def queries_of(region: str, instance: str) -> tuple[MetricQuery, ...]:
        return index.queries(region, instance, types.get(instance), since=0)

    return Listed(index, queries_of, failed, tuple(notes))


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
