"""Make the plan of a `verify` from the worker documents, the inventory, the history, and ListMetrics."""

from collections.abc import Collection
from dataclasses import dataclass

from exporter.commands.backfill.plan import GapQuery, Plan, Range, counted, plan_calls
from exporter.commands.backfill.targets import WORKERS_PER_READ, describe_target, listed_queries, read_targets
from exporter.commands.verify.compare import Tally
from exporter.commands.verify.plan import Window, comparable_window, sampled, settled_after, worker_queries
from exporter.core.periods import align, rfc3339
from exporter.core.settings import Settings
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.storage.mongo import Database, chunks
from exporter.storage.repository import WorkerMetricsRepository


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of a `verify`."""

    since: int
    """UTC second."""
    since_text: str
    """`since` as it was written: a command with the same text continues an interrupted run."""
    workers: tuple[str, ...] = ()
    """Worker ids; empty: all workers."""
    percent: float | None = None
    """How many percent of the workers are compared; None: all."""
    dry_run: bool = False
    max_usd: float | None = None
    """Highest price in dollars; None: the setting cloudwatch.max_usd_per_day, if it is set."""
    quiet: bool = False
    """Whether no progress is shown."""
    json: bool = False
    """Whether the result is printed as JSON, and all else on standard error."""


class Planner:
    """Makes the plan of one command line; changes nothing.

    Attributes:
        history: the repository that is compared.
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
        flags = [f"--worker {worker_id}" for worker_id in sorted(set(options.workers))]
        if options.percent is not None:
            flags.append(f"--sample {options.percent:g}%")
        self.wanted = " ".join([options.since_text, *flags])

    async def plan(self) -> tuple[Plan, Tally]:
        """Pack the metrics of all workers to compare into calls; return the plan, and the periods that it leaves out.

        Raises:
            ConfigError: a worker of --worker is unknown.
            SourceError: the worker documents or ListMetrics cannot be read.
            StoreError: the history or the inventory cannot be read, or there is no history.
        """
        settings, period = self._settings, self._settings.period
        targets = await read_targets(settings, self._database, self._options.workers)
        await self.history.collection.verify()
        retention = await self.history.collection.current_retention()
        settled = settled_after(settings.absence_timeout, settings.cloudwatch.interval)
        window = comparable_window(self._options.since, targets.fleet.date, period, settled, retention)
        lifetimes = {lifetime.worker.id: lifetime for lifetime in targets.lifetimes}
        notes = window.notes + targets.notes
        if not self._options.workers:
            notes += await self._note_unknown(window, lifetimes)
        if self._options.percent is not None:
            chosen = sampled(list(lifetimes), self._options.percent, seed=rfc3339(window.until)[:10])
            notes += (f"A sample of {counted(len(chosen), 'worker')} of {len(lifetimes):,}; another day draws other workers.",)
            lifetimes = {worker_id: lifetimes[worker_id] for worker_id in chosen}
        found: list[tuple[str, GapQuery]] = []
        excluded = Tally()
        for chunk in chunks(list(lifetimes.values()), WORKERS_PER_READ):
            stored = await self._stored([lifetime.worker.id for lifetime in chunk], window)
            for lifetime in chunk:
                queries, left_out = worker_queries(lifetime, stored.get(lifetime.worker.id), window, period)
                found += queries
                excluded.add(left_out)
        listed = await listed_queries(self._cloudwatch, targets, {region for region, _ in found})
        self.unanswered = listed.notes
        notes += listed.notes
        calls = plan_calls(listed.answerable(found), listed.queries_of, period)
        return Plan(self.target, self.wanted, targets.fleet.date, window.start, window.until, period, calls, notes), excluded

    async def _stored(self, worker_ids: Collection[str], window: Window) -> dict[str, Range]:
        """Return the periods from the first to the last sample of each worker that has any in the window."""
        period, found = self._settings.period, {}
        for worker_id, stamps in (await self.history.reader.timestamps(worker_ids, window.start)).items():
            inside = [at for at in stamps if at < window.until]
            if inside:
                found[worker_id] = max(window.start, align(min(inside), period)), align(max(inside), period) + period
        return found

    async def _note_unknown(self, window: Window, known: Collection[str]) -> tuple[str, ...]:
        """Return a sentence about workers that only the history has, whose instances are therefore not known."""
        if window.start >= window.until:
            return ()
        unknown = [one for one in await self.history.reader.workers(window.start, window.until) if one not in known]
        if not unknown:
            return ()
        names = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
        return (
            f"{counted(len(unknown), 'worker')} of the history ({names}) neither in the worker documents nor in the inventory: "
            "not compared.",
        )
