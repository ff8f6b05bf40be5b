"""Make the plan of a backfill from the history, the inventory, the worker documents, and ListMetrics."""

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.commands.backfill import plan as plan_module
from exporter.commands.backfill.plan import GapQuery, Plan, WorkerLifetime, counted, fillable_window, gap_queries
from exporter.commands.backfill.targets import (
    WORKERS_PER_READ,
    check_price,
    describe_target,
    listed_queries,
    longest_gap_window,
    read_targets,
)
from exporter.core.periods import format_duration
from exporter.core.settings import Settings
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.memory_series import LISTED_FOR_SECONDS, MemorySeriesIndex
from exporter.storage.mongo import Database, chunks
from exporter.storage.repository import WorkerMetricsRepository


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of a backfill."""

    since: int
    """UTC second."""
    since_text: str
    """`since` as it was written: a command with the same text continues an interrupted plan."""
    workers: tuple[str, ...] = ()
    """Worker ids; empty: all workers."""
    dry_run: bool = False
    max_usd: float | None = None
    """Highest price in dollars; None: the setting cloudwatch.max_usd_per_day, if it is set."""


class Planner:
    """Makes the plan of one command line; changes nothing.

    Attributes:
        history: the repository that is filled.
        namespace: its database and collection.
        target, wanted: what the plan of this command line is recognized by, as in `Plan`.
        unanswered: a sentence for each AWS account that the new plan leaves out because it did not answer.
    """

    def __init__(
        self, settings: Settings, options: Options, database: Database, history: WorkerMetricsRepository, cloudwatch: CloudWatch
    ) -> None:
        self._settings, self._options, self._database, self._cloudwatch = settings, options, database, cloudwatch
        self.history = history
        self.unanswered: tuple[str, ...] = ()
        self.namespace = history.namespace
        self.target = describe_target(history.namespace, settings)
        self.wanted = " ".join([options.since_text, *(f"--worker {worker_id}" for worker_id in sorted(set(options.workers)))])

    async def plan(self) -> Plan:
        """Find the gaps of the history that CloudWatch can fill, and pack them into calls.

        Raises:
            ConfigError: a worker of --worker is unknown.
            SourceError: the worker documents or ListMetrics cannot be read.
            StoreError: the history or the inventory cannot be read.
        """
        period = self._settings.period
        targets = await read_targets(self._settings, self._database, self._options.workers)
        fleet, lifetimes = targets.fleet, targets.lifetimes
        retention = (await self.history.collection.verify()).retention
        gap_fill_window = await longest_gap_window(self._settings, self.history.collection)
        since, until, notes = fillable_window(self._options.since, fleet.date, period, gap_fill_window, retention)
        found: list[tuple[str, GapQuery]] = []
        if since < until:
            for chunk in chunks(lifetimes, WORKERS_PER_READ):
                present = await self.history.reader.timestamps([lifetime.worker.id for lifetime in chunk], since)
                for lifetime in chunk:
                    found += gap_queries(lifetime, present[lifetime.worker.id], since, until, period)
        listed = await listed_queries(self._cloudwatch, targets, {region for region, _ in found})
        self.unanswered = listed.notes
        found = listed.answerable(found)
        notes += (
            listed.notes + _note_unlisted(found, listed.index, fleet.date) + _note_without_region(lifetimes) + targets.notes
        )
        calls = plan_module.plan_calls(found, listed.queries_of, period)
        return Plan(self.target, self.wanted, fleet.date, since, until, period, calls, notes)

    def check_budget(self, plan: Plan) -> None:
        """Compare the price of a plan with the limit.

        Raises:
            ConfigError: the plan costs more.
        """
        check_price(plan.usage, self._settings, self._options.max_usd, "fill less with --since or --worker")


def _note_unlisted(found: Sequence[tuple[str, GapQuery]], index: MemorySeriesIndex, now: int) -> tuple[str, ...]:
    """Return a sentence about the instances whose memory cannot be queried: ListMetrics drops a series after two weeks."""
    newest: dict[tuple[str, str], int] = {}
    for region, gap_query in found:
        for instance in gap_query.instances:
            newest[region, instance] = max(newest.get((region, instance), 0), gap_query.gaps[-1][1])
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


def _note_without_region(lifetimes: Sequence[WorkerLifetime]) -> tuple[str, ...]:
    """Return a sentence about the workers that CloudWatch cannot be queried for, because no region of them is known."""
    count = sum(
        lifetime.worker.instance_id is not None and not lifetime.worker.region and not lifetime.entry.instances
        for lifetime in lifetimes
    )
    return (f"{counted(count, 'worker')} without a region cannot be filled; the manager must write it.",) if count else ()
