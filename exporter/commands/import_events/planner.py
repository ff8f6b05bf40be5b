"""Make the plan of an import: read the events into the journal, and compare with the history."""

import json
from dataclasses import dataclass
from typing import TextIO

from exporter.commands import terminal, worker_documents
from exporter.commands.backfill.fetcher import RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.backfill.progress import show_progress
from exporter.commands.backfill.targets import WORKERS_PER_READ, describe_target, longest_gap_window, read_fleet
from exporter.commands.import_events import plan as plan_module
from exporter.commands.import_events.events import VALUES, EventParser
from exporter.commands.import_events.journal import EventJournal
from exporter.commands.import_events.plan import Plan
from exporter.commands.import_events.scanner import Scanner
from exporter.commands.terminal import say
from exporter.core.settings import Settings
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.sources.aggregates import Aggregates
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import Database, chunks
from exporter.storage.repository import WorkerMetricsRepository


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of an import."""

    since: int
    """UTC second."""
    since_text: str
    """`since` as it was written: a command with the same text continues an interrupted import."""
    until: int
    until_text: str = "now"
    workers: tuple[str, ...] = ()
    """Worker ids; empty: all workers."""
    dry_run: bool = False
    quiet: bool = False
    """Whether no progress is shown."""


class Planner:
    """Makes the plan of one command line in the journal; writes nothing to MongoDB.

    Attributes:
        history: the repository that is filled.
        namespace: its database and collection.
        target, wanted: what the plan of this command line is recognized by, as in `Plan`.
    """

    def __init__(
        self,
        settings: Settings,
        options: Options,
        database: Database,
        history: WorkerMetricsRepository,
        journal: EventJournal,
        thread: OutboxThread,
    ) -> None:
        self._settings, self._options, self._journal, self._thread = settings, options, journal, thread
        self._documents = Aggregates(database, settings.mongodb.worker_collections, settings.workers)
        self._inventory = Inventory(database)
        self._scanner = Scanner(
            database, settings.events.collection, EventParser(settings.events.fields), options.workers, journal, thread
        )
        self._found = ""
        """How many worker documents there are, and where."""
        self.history = history
        self.namespace = history.namespace
        self.target = describe_target(history.namespace, settings)
        flags = ["--since", options.since_text, "--until", options.until_text, *sorted(set(options.workers))]
        self.wanted = " ".join([*flags, json.dumps(settings.events.model_dump(), sort_keys=True)])

    async def new(self) -> Plan:
        """Return a plan that no event was read for.

        Raises:
            ConfigError: there is no collection of events, or it has none of a known type.
            SourceError: the worker documents cannot be read.
            StoreError: the history or the events cannot be read.
        """
        await self._scanner.check()
        fleet = await read_fleet(self._documents)
        self._found = worker_documents.describe(fleet)
        retention = (await self.history.collection.verify()).retention
        gap_fill_window = await longest_gap_window(self._settings, self.history.collection)
        window = plan_module.window(
            self._options.since, self._options.until, fleet.date, self._settings.period, gap_fill_window, retention
        )
        return Plan(self.target, self.wanted, window)

    async def complete(self, plan: Plan, stop: GracefulStop, retry: RetryPolicy, err: TextIO | None) -> Plan | None:
        """Read the events and compare with the history, from where an interrupted run stopped; return the complete plan.

        Returns:
            None after a stop request.

        Raises:
            SourceError, StoreError: as `new`.
        """
        if err is None:
            read = await self._scanner.run(plan.window, stop, retry)
        else:
            async with show_progress(self._scanner, err):
                read = await self._scanner.run(plan.window, stop, retry)
        if not read:
            return None
        fleet = await self._documents.read()
        self._found = worker_documents.describe(fleet)
        await self._inventory.load()
        regions = {entry.worker_id: entry.region for entry in self._inventory.entries.values()}
        regions |= {worker.id: worker.region for worker in fleet.workers}
        for ids in chunks(await self._thread(self._journal.workers), WORKERS_PER_READ):
            if stop.requested.is_set():
                return None
            await self._thread(self._journal.discard, await self.history.reader.timestamps(ids, plan.window.start))
        await self._thread(self._journal.complete, regions)
        return await self._thread(self._journal.plan)

    async def show(self, plan: Plan, out: TextIO) -> None:
        """Print the events by type, the periods that the history lacks, and why events make no sample."""
        _, tally = await self._thread(self._journal.progress)
        missing = await self._thread(self._journal.missing)
        if tally.events:
            events = [(name, f"{count:,}") for name, count in sorted(tally.types.items())]
            terminal.print_table(("event", "found"), events, out)
        if missing.periods:
            say(plan_module.heading(plan, self.namespace), out)
            headings = ("workers", "periods missing", *(f"with {name}" for name in VALUES))
            figures = (missing.workers, missing.periods, missing.cpu, missing.memory, missing.labs, missing.status)
            terminal.print_table(headings, [[f"{figure:,}" for figure in figures]], out)
        else:
            say(f"Nothing to do: {self.namespace} lacks no period that the events know.", out)
        if self._found:
            say(f"{self._found}.", out)
        new = len(await self._thread(self._journal.unknown_workers))
        for note in plan_module.notes(plan, tally, new, await self._thread(self._journal.without_region)):
            say(note, out)
