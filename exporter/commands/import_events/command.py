"""`cml-worker-exporter import-events`: write what the manager's events tell into periods that the history lacks.

The events are read into a journal on disk, which also holds the plan and the samples on their way to the history. Samples reach
it through the same mirror as those of `serve` and `backfill`, which reads back before it inserts; the lease `backfill` lets one
process at a time write periods older than `gap_fill_window`. The command may be interrupted at any moment.
"""

import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from prometheus_client import CollectorRegistry

from exporter.commands.backfill.fetcher import MAX_WAITING_SAMPLES, RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop, until_signalled
from exporter.commands.backfill.job import BackfillRun, hold, watched
from exporter.commands.backfill.journal import PLAN_MAX_AGE_SECONDS, opened
from exporter.commands.backfill.plan import counted
from exporter.commands.backfill.progress import show_progress
from exporter.commands.backfill.report import counter_sum
from exporter.commands.import_events.journal import EventJournal
from exporter.commands.import_events.plan import Plan
from exporter.commands.import_events.planner import Options, Planner
from exporter.commands.import_events.scanner import require_events
from exporter.commands.terminal import say
from exporter.core.errors import IncompatibleStoreError, StoreError
from exporter.core.heap import freeze
from exporter.core.periods import rfc3339
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.history_watch import forget_mark
from exporter.pipeline.mirror import BATCH_SAMPLES, Mirror
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.storage.inventory import Inventory
from exporter.storage.lease import BACKFILL, LEASE_SECONDS, Lease
from exporter.storage.mongo import Database, connect
from exporter.storage.repository import repository, require_history


async def main(settings: Settings, options: Options, out: TextIO, err: TextIO) -> int:
    """Run one import until it is done, interrupted, or failed; as `run`, and 130 after SIGINT or SIGTERM."""
    freeze()
    return await until_signalled(lambda stop: run(settings, options, out, err, stop), err)


async def run(
    settings: Settings,
    options: Options,
    out: TextIO,
    err: TextIO,
    stop: GracefulStop,
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008  # it is frozen
) -> int:
    """Read the events, print the plan, and unless it is a dry run write the samples, with progress on `err`.

    Returns:
        The exit status: 0 done, 1 MongoDB rejects some samples, 130 interrupted.

    Raises:
        ConfigError: there is no history, or no event of a known type.
        SourceError: the worker documents cannot be read.
        OutboxLockedError: another import runs on this machine.
        StoreError: MongoDB or the disk failed; what was read and what was written stays.
    """
    name = require_history(settings, "import into")
    client, database = connect(settings)
    async with client:
        history = repository(settings, database, name)
        await require_events(database, settings.events.collection)  # before anything is created
        if options.dry_run:
            with (
                tempfile.TemporaryDirectory() as folder,
                opened(EventJournal(Path(folder), settings.period)) as (journal, thread),
            ):
                planner = Planner(settings, options, database, history, journal, thread)
                return await _dry_run(planner, journal, thread, stop, retry, out, None if options.quiet else err)
        with opened(EventJournal(settings.data_dir / "import-events", settings.period)) as (journal, thread):
            lease = Lease(database, owner=journal.outbox.owner, folder=journal.outbox.folder, ttl=LEASE_SECONDS, name=BACKFILL)
            telemetry, state = Telemetry(CollectorRegistry()), ImportState()
            watching = watched(history, thread, telemetry, state, journal.finish)
            async with hold(lease, history.writer, retry.lease, err), watching as watch:
                planner = Planner(settings, options, database, history, journal, thread)
                mirror = Mirror(thread, history.writer, lease, telemetry, watch=watch)
                source = JournalSource(journal, thread, mirror, stop, state)
                writing = BackfillRun(journal, source, mirror, lease, stop, retry, state)
                report = ImportReport(state, journal, telemetry)
                return await _Import(
                    planner, database, journal, thread, source, writing, report, stop, retry, out, err, options.quiet
                ).carry_out()


async def _dry_run(
    planner: Planner,
    journal: EventJournal,
    thread: OutboxThread,
    stop: GracefulStop,
    retry: RetryPolicy,
    out: TextIO,
    err: TextIO | None,
) -> int:
    plan = await planner.new()
    await thread(journal.begin, plan)
    complete = await planner.complete(plan, stop, retry, err)
    if complete is None:
        return 130
    await planner.show(complete, out)
    return 0


@dataclass
class ImportState:
    """The figures of one run, in periods."""

    total: int = 0
    """Samples that this run writes, those of an interrupted run included."""
    expired: int = 0
    """Periods that the retention overtook between plan and insert."""
    failure: StoreError | None = None
    """The failure of the journal or of MongoDB that ended the run."""


class JournalSource:
    """Moves the periods of the journal to its outbox, no faster than MongoDB takes them."""

    def __init__(
        self, journal: EventJournal, thread: OutboxThread, mirror: Mirror, stop: GracefulStop, state: ImportState
    ) -> None:
        self._journal, self._thread, self._mirror, self._stop, self._state = journal, thread, mirror, stop, state
        self.oldest = 0
        """UTC second before which periods are past retention."""

    async def load(self) -> None:
        """Count the periods that are left."""
        self._state.total += (await self._thread(self._journal.missing)).periods + self._journal.waiting

    async def run(self) -> None:
        """Move all periods, until `state.failure` or the stop request explain what is left."""
        while not self._stop.requested.is_set() and self._state.failure is None:
            if self._journal.waiting > MAX_WAITING_SAMPLES:
                await self._stop.pause(0.1)
                continue
            try:
                taken, expired = await self._thread(self._journal.move, BATCH_SAMPLES, self.oldest)
            except StoreError as error:
                self._state.failure = error
                return
            self._state.expired += expired
            self._mirror.wake.set()
            if not taken:
                return


class ImportReport:
    """Words and figures about a run, for the progress bar and the last lines."""

    command, unit = "import-events", "samples"

    def __init__(self, state: ImportState, journal: EventJournal, telemetry: Telemetry) -> None:
        self.state, self._journal, self._telemetry = state, journal, telemetry

    @property
    def _present(self) -> int:
        return counter_sum(self._telemetry.mirror_samples, result="already_present")

    @property
    def finished(self) -> int:
        """The number of samples that are in the history, or past retention."""
        return self._telemetry.mirrored + self._present + self.state.expired

    @property
    def total(self) -> int | None:
        """The number of samples of this run."""
        return self.state.total

    @property
    def detail(self) -> str:
        """The samples between journal and history."""
        return f"{self._journal.waiting:,} wait for MongoDB"

    @property
    def summary(self) -> str:
        """The work that was done, in one line."""
        text = f"{self._telemetry.mirrored:,} samples written, {self._present:,} were there already."
        if self.state.expired:
            text += f" {counted(self.state.expired, 'period')} went past the retention meanwhile."
        if self._journal.rejected:
            text += f" MongoDB rejects {counted(self._journal.rejected, 'sample')}; they are kept in {self._journal.path}."
        return text


@dataclass(frozen=True, slots=True)
class _Import:
    """The parts of one import, while the journal is open and the lease is held."""

    planner: Planner
    database: Database
    journal: EventJournal
    thread: OutboxThread
    source: JournalSource
    writing: BackfillRun
    report: ImportReport
    stop: GracefulStop
    retry: RetryPolicy
    out: TextIO
    err: TextIO
    quiet: bool

    async def carry_out(self) -> int:
        """Continue the interrupted import or begin a new one, carry it out, and return the exit status as `run`."""
        with self.stop.graceful():
            plan = await self._resume()
            if plan is None:
                plan = await self.planner.new()
                await self.thread(self.journal.begin, plan)
                await self.thread(forget_mark, self.journal.outbox)
            if not plan.complete:
                complete = await self.planner.complete(plan, self.stop, self.retry, None if self.quiet else self.err)
                if complete is None:
                    return self._interrupted("the events are not all read")
                plan = complete
            await self.planner.show(plan, self.out)
            await self._write()
        return await self._conclude()

    async def _write(self) -> None:
        """Write the entries of new workers, then all samples."""
        entries = await self.thread(self.journal.unknown_workers)
        if entries:
            await Inventory(self.database).add(entries)
        retention = (await self.planner.history.collection.verify()).retention
        self.source.oldest = 0 if retention is None else int(time.time()) - retention
        async with AsyncExitStack() as stack:
            if not self.quiet:
                await stack.enter_async_context(show_progress(self.report, self.err))
            await self.writing.run()

    async def _conclude(self) -> int:
        """Print what was done and what is left; return the exit status."""
        left = self.report.state.total - self.report.finished
        if self.stop.requested.is_set() and left:
            return self._interrupted(f"{counted(left, 'sample')} left")
        if self.report.state.failure is not None:
            say(f"Incomplete: {counted(left, 'sample')} left; run the same command to go on.", self.err)
            raise self.report.state.failure
        await self.thread(self.journal.finish)
        if self.report.state.total:
            say(self.report.summary, self.out)
        return 1 if self.journal.rejected else 0

    def _interrupted(self, why: str) -> int:
        say(f"Interrupted: {why}; run the same command to go on.", self.err)
        return 130

    async def _resume(self) -> Plan | None:
        """Write the samples of an interrupted run to the history; return its plan if the command line is the same."""
        plan, waiting = await self.thread(self.journal.plan), self.journal.waiting
        if plan is not None and plan.target != self.planner.target and waiting:
            raise IncompatibleStoreError(
                f"{self.journal.path} holds {waiting:,} samples on their way to {plan.target}; run the interrupted import "
                "with those settings again, or move the file away: the events still have its samples",
                reason="import",
            )
        if waiting:
            say(f"{waiting:,} samples of an interrupted import go into the history first.", self.out)
            self.report.state.total += waiting
            await self.writing.drain()
            if self.report.state.failure is not None:
                raise self.report.state.failure
        if plan is None:
            return None
        made = rfc3339(plan.window.now)
        same = (plan.target, plan.wanted) == (self.planner.target, self.planner.wanted)
        if same and time.time() - plan.window.now < PLAN_MAX_AGE_SECONDS:
            say(f"Going on with the import of {made}.", self.out)
            return plan
        why = "is older than a day" if same else "had other flags or settings"
        say(f"The interrupted import of {made} {why}; a new one begins.", self.out)
        return None
