"""`cml-worker-exporter backfill`: plan, query CloudWatch, write to MongoDB; may be interrupted at any moment.

The samples of a call and the mark that it is done are one transaction of the journal, so an interrupted run continues where it
stopped: the same command drains the outbox and makes only the calls that are left. Samples reach the history through the same
mirror as those of `serve`, which reads back before it inserts; the lease `backfill` keeps the two from writing the same sample
at the same time.
"""

import time
from dataclasses import dataclass
from typing import TextIO

from prometheus_client import CollectorRegistry

from exporter.commands.backfill.fetcher import REQUESTS_PER_SECOND, Fetcher, RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop, until_signalled
from exporter.commands.backfill.job import BackfillRun, hold, watched
from exporter.commands.backfill.journal import PLAN_MAX_AGE_SECONDS, Journal, opened
from exporter.commands.backfill.plan import Plan, counted
from exporter.commands.backfill.plan_table import show_calls
from exporter.commands.backfill.planner import Options, Planner
from exporter.commands.backfill.progress import show_progress
from exporter.commands.backfill.report import BackfillState, RunReport
from exporter.commands.backfill.sink import SampleSink
from exporter.commands.backfill.targets import require_workers
from exporter.commands.terminal import say
from exporter.core.allocator import return_memory_early
from exporter.core.errors import ConfigError, IncompatibleStoreError
from exporter.core.heap import freeze
from exporter.core.periods import rfc3339
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.history_watch import forget_mark
from exporter.pipeline.mirror import Mirror
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.retention import reach
from exporter.storage.lease import BACKFILL, LEASE_SECONDS, Lease
from exporter.storage.mongo import connect
from exporter.storage.repository import repository, require_history


async def main(settings: Settings, options: Options, out: TextIO, err: TextIO) -> int:
    """Run one backfill until it is done, interrupted, or failed; as `run`, and 130 after SIGINT or SIGTERM."""
    return_memory_early()
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
    """Print the plan, and unless it is a dry run carry it out, with progress on `err`.

    Returns:
        The exit status: 0 done, 1 samples are still missing and the last line says why, 130 interrupted.

    Raises:
        NoWorkersError: there is no worker; nothing was created.
        ConfigError: there is no history or no CloudWatch, a worker is unknown, or the plan costs too much.
        SourceError: the worker documents or the metrics of CloudWatch cannot be listed; no call was made.
        OutboxLockedError: another backfill runs on this machine.
        StoreError: MongoDB or the disk failed; the results of completed calls are kept.
    """
    name = require_history(settings, "fill")
    if not settings.cloudwatch.enabled:
        raise ConfigError("cloudwatch.enabled is false, but CloudWatch is where missing samples come from; set it to true")
    telemetry = Telemetry(CollectorRegistry())
    cloudwatch = CloudWatch(settings, telemetry, rate=REQUESTS_PER_SECOND)
    client, database = connect(settings)
    async with client:
        try:
            planner = Planner(settings, options, database, repository(settings, database, name), cloudwatch)
            if options.dry_run:
                show(await planner.plan(), planner.namespace, out)
                return 0
            await require_workers(settings, database)
            with opened(Journal(settings.data_dir / "backfill", settings.period)) as (journal, thread):
                lease = Lease(
                    database, owner=journal.outbox.owner, folder=journal.outbox.folder, ttl=LEASE_SECONDS, name=BACKFILL
                )
                state = BackfillState()
                watching = watched(planner.history, thread, telemetry, state, journal.forget_plan)
                async with hold(lease, planner.history.writer, retry.lease, err), watching as watch:
                    mirror = Mirror(thread, planner.history.writer, lease, telemetry, watch=watch)
                    sink = SampleSink(settings.period, journal, thread, state, on_samples=mirror.wake.set)
                    kept = reach(settings.period)
                    fetcher = Fetcher(settings.period, kept, journal, thread, cloudwatch, stop, retry, state, sink)
                    filling = BackfillRun(journal, fetcher, mirror, lease, stop, retry, state)
                    report = RunReport(state, journal, cloudwatch, telemetry)
                    return await _Backfill(planner, journal, thread, filling, report, stop, out, err).carry_out()
        finally:
            await cloudwatch.close()


@dataclass(frozen=True, slots=True)
class _Backfill:
    """The parts of one backfill, while the journal is open and the lease is held."""

    planner: Planner
    journal: Journal
    thread: OutboxThread
    run: BackfillRun
    report: RunReport
    stop: GracefulStop
    out: TextIO
    err: TextIO

    async def carry_out(self) -> int:
        """Continue the interrupted plan or make a new one, carry it out, and return the exit status as `run`."""
        unfinished = await self._resume()
        plan = unfinished or await self.planner.plan()
        if plan.calls or unfinished is None:
            show(plan, self.planner.namespace, self.out)
        self.planner.check_budget(plan)
        if not plan.calls and unfinished is None:
            await self.thread(self.journal.forget_plan)
            return 1 if self.planner.unanswered else 0
        if unfinished is None:
            await self.thread(self.journal.begin, plan)
            await self.thread(forget_mark, self.journal.outbox)
        with self.stop.graceful():
            async with show_progress(self.report, self.err):
                await self.run.run()
        return await self._conclude()

    async def _conclude(self) -> int:
        """Print what was done and what is left; return the exit status."""
        state = self.report.state
        if self.stop.requested.is_set():
            say(f"Interrupted: {self.report.left}; run the same command to go on.", self.err)
            return 130
        if state.failure is not None:
            say(f"Incomplete: {self.report.left}; run the same command to go on.", self.err)
            raise state.failure
        if not state.call_failures:
            await self.thread(self.journal.forget_plan)
        say(self.report.summary, self.out)
        if state.call_failures:
            say(f"Incomplete: {self.report.left}, because {state.call_failures[-1]}. Run it again.", self.err)
        return 1 if state.call_failures or self.journal.rejected or self.planner.unanswered else 0

    async def _resume(self) -> Plan | None:
        """Write the samples of an interrupted run to the history; return its plan if the command line is the same."""
        plan = await self.thread(self.journal.plan)
        waiting = self.journal.waiting
        if plan is None and not waiting:
            return None
        if plan is not None and plan.target != self.planner.target and waiting:
            raise IncompatibleStoreError(
                f"{self.journal.path} holds {waiting:,} samples on their way to {plan.target}; run the interrupted backfill "
                "with those settings again, or move the file away and pay for them anew",
                reason="backfill",
            )
        if waiting:
            say(f"{waiting:,} samples of an interrupted run go into the history first.", self.out)
            await self.run.drain()
            if self.report.state.failure is not None:
                raise self.report.state.failure
        if plan is None or not (plan.calls or waiting):  # it is finished, or there was nothing to do
            return None
        same = (plan.target, plan.wanted) == (self.planner.target, self.planner.wanted)
        if same and time.time() - plan.made < PLAN_MAX_AGE_SECONDS:
            left = counted(len(plan.calls), "call")
            say(f"Going on with the plan of {rfc3339(plan.made)}: {left} left.", self.out)
            return plan
        why = "is older than a day" if same else f"was for --since {plan.wanted} into {plan.target}"
        say(f"The interrupted plan of {rfc3339(plan.made)} {why}; it is replaced by a new one.", self.out)
        return None


def show(plan: Plan, namespace: str, out: TextIO) -> None:
    """Print a plan: a row for each region, and a sentence for each reason why periods are left out."""
    if plan.calls:
        show_calls(plan, namespace, "periods missing", out)
    else:
        say(f"Nothing to do: {namespace} has no gap that can be filled before {rfc3339(plan.until)}.", out)
    for note in plan.notes:
        say(note, out)
