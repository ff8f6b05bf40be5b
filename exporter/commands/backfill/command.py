"""`cml-worker-exporter backfill`, the part that acts: plans, asks CloudWatch, writes, and can be interrupted at any moment.

What a call brought and that it is done is one transaction of the journal, so an interrupted run goes on where it was: the same
command drains the outbox, asks the calls that are left, and no other. Samples reach the history by the same mirror as those of
`serve`, which reads back before it inserts; the lease `backfill` keeps the two from writing the same sample at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TextIO

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.backfill.job import BackfillRun, RetryPolicy, counted
from exporter.commands.backfill.journal import Journal
from exporter.commands.backfill.plan import Plan, PlannedCall
from exporter.commands.backfill.planner import Options, Planner
from exporter.commands.backfill.progress import _progress
from exporter.core import logs
from exporter.core.budget import Usage
from exporter.core.errors import ConfigError, IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.periods import DAY, format_duration, rfc3339
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.mirror import Mirror
from exporter.pipeline.outbox import OutboxThread
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.storage.lease import BACKFILL, LEASE_SECONDS, Lease, boottime, keep_renewed
from exporter.storage.mongo import connect
from exporter.storage.repository import repository, require_history

RATE = 5
"""Requests a second and region: a fifth of what `serve` allows itself, and a tenth of the account's quota."""
PLAN_MAX_AGE_SECONDS = DAY
"""An unfinished plan that is older is made anew."""

_log = logs.get("backfill")


async def main(settings: Settings, options: Options, out: TextIO, err: TextIO) -> int:
    """Run one backfill until it is done, interrupted or stuck; as `run`, and 130 after SIGINT or SIGTERM."""
    interruption = GracefulStop()
    with interruption.by_signals():
        try:
            return await run(settings, options, out, err, interruption)
        except asyncio.CancelledError:
            if not interruption.came.is_set():
                raise
            print("Interrupted; run the same command to go on.", file=err)
            return 130


async def run(
    settings: Settings,
    options: Options,
    out: TextIO,
    err: TextIO,
    interruption: GracefulStop,
    patience: RetryPolicy = RetryPolicy(),  # noqa: B008  # it is frozen
) -> int:
    """Print the plan, and unless it is a dry run carry it out, with progress on `err`.

    Returns:
        The exit status: 0 done, 1 something is missing and the last line says what, 130 interrupted.

    Raises:
        ConfigError: there is no history or no CloudWatch, a worker is unknown, or the plan costs too much.
        SourceError: the aggregates or CloudWatch's listing cannot be read; nothing was begun.
        OutboxLocked: another backfill runs on this machine.
        StoreError: MongoDB or the disk does not let us; what was asked is kept.
    """
    name = require_history(settings, "fill")
    if not settings.cloudwatch.enabled:
        raise ConfigError("cloudwatch.enabled is false, but CloudWatch is where missing samples come from; set it to true")
    telemetry = Telemetry(CollectorRegistry())
    cloudwatch = CloudWatch(settings, telemetry, rate=RATE)
    client, database = connect(settings)
    async with client:
        try:
            planner = Planner(settings, options, database, repository(settings, database, name), cloudwatch)
            if options.dry_run:
                show(await planner.plan(), planner.namespace, out)
                return 0
            with _journal(settings.data_dir / "backfill", settings.period) as journal:
                lease = Lease(database, owner=journal.outbox.owner, ttl=LEASE_SECONDS, name=BACKFILL, monotonic=boottime)
                async with _holding(lease, patience.lease, err):
                    mirror = Mirror(journal, planner.history.writer, lease, telemetry)
                    job = BackfillRun(settings.period, journal, cloudwatch, mirror, lease, telemetry, interruption, patience)
                    return await _carry_out(planner, job, out, err)
        finally:
            await cloudwatch.close()


async def _carry_out(planner: "Planner", job: "BackfillRun", out: TextIO, err: TextIO) -> int:
    left = await _left_over(planner, job, out)
    plan = left or await planner.plan()
    if plan.calls or left is None:
        show(plan, planner.namespace, out)
    planner.check_budget(plan)
    if left is None:
        await job.journal(job.store.begin, plan)
        if not plan.calls:
            return 0
    with job.interruption_is_gentle():
        async with _progress(job, plan, err):
            await job.run()
    if job.interruption.came.is_set():
        print(f"Interrupted: {job.left()}; run the same command to go on.", file=err)
        return 130
    if job.failure is not None:
        print(f"Incomplete: {job.left()}; run the same command to go on.", file=err)
        raise job.failure
    if not job.failures:
        await job.journal(job.store.forget_plan)
    print(job.summary(), file=out)
    if job.failures:
        print(f"Incomplete: {job.left()}, because {job.failures[-1]}. Run it again.", file=err)
    return 1 if job.failures or job.store.counts()["rejected"] else 0


async def _left_over(planner: "Planner", job: "BackfillRun", out: TextIO) -> Plan | None:
    """Bring what an interrupted run has asked into the history; return its plan if it is the one that is asked for."""
    store = job.store
    plan = await job.journal(store.plan)
    waiting = store.counts()["final"]
    if plan is None and not waiting:
        return None
    if plan is not None and plan.target != planner.target and waiting:
        raise IncompatibleStoreError(
            f"{store.path} holds {waiting:,} samples on their way to {plan.target}; run the interrupted backfill with those "
            "settings again, or move the file away and pay for them anew",
            reason="backfill",
        )
    if waiting:
        print(f"{waiting:,} samples of an interrupted run go into the history first.", file=out)
        await job.drain()
        if job.failure is not None:
            raise job.failure
    if plan is None:
        return None
    same = (plan.target, plan.wanted) == (planner.target, planner.wanted)
    if same and time.time() - plan.made < PLAN_MAX_AGE_SECONDS:
        print(f"Going on with the plan of {rfc3339(plan.made)}: {counted(len(plan.calls), 'call')} left.", file=out)
        return plan
    why = "is older than a day" if same else f"was for --since {plan.wanted} into {plan.target}"
    print(f"The interrupted plan of {rfc3339(plan.made)} {why}; it is replaced by a new one.", file=out)
    return None


@contextmanager
def _journal(directory: Path, period: int) -> Iterator[OutboxThread]:
    thread = OutboxThread(Journal(directory, period))
    try:
        yield thread
    finally:
        thread.close()


@asynccontextmanager
async def _holding(lease: Lease, patience: float, err: TextIO) -> AsyncIterator[None]:
    """Hold the lease until the block is left; `serve` takes it for moments, another backfill or a purge for long."""
    deadline, told = time.monotonic() + patience, False
    while not await lease.acquire_or_renew():
        if time.monotonic() > deadline:
            raise StoreUnavailableError(
                "another backfill or a purge is writing old samples, maybe from another machine; wait until it has ended",
                reason="lease",
            )
        if not told:
            print(f"Another process holds the lease {BACKFILL!r}; waiting up to {patience:.0f} s.", file=err)
            told = True
        await asyncio.sleep(min(1.0, patience / 2))
    keeping = asyncio.create_task(keep_renewed(lease), name="lease")
    try:
        yield
    finally:
        keeping.cancel()
        try:
            await lease.release()
        except StoreError as error:
            _log.warning("the lease could not be released; it ends by itself", error=str(error))


def show(plan: Plan, namespace: str, out: TextIO) -> None:
    """Print what a plan does: a row for each region, and a sentence for everything it leaves out."""
    shown = f"{namespace}, periods of {format_duration(plan.period)} from {rfc3339(plan.since)} until {rfc3339(plan.until)}"
    if not plan.calls:
        print(f"Nothing to do: {namespace} lacks nothing that could be filled before {rfc3339(plan.until)}.", file=out)
    else:
        print(f"Plan for {shown}:", file=out)
        table = Table(box=None, pad_edge=False)
        table.add_column("region")
        for heading in ("workers", "periods missing", "calls", "metrics billed", "dollars"):
            table.add_column(heading, justify="right")
        regions = sorted({call.region for call in plan.calls})
        for region in regions:
            table.add_row(*_figures(region, [call for call in plan.calls if call.region == region], plan.period))
        if len(regions) > 1:
            table.add_row(*_figures("all", plan.calls, plan.period))
        Console(file=out, highlight=False, width=max(80, Console(file=out).width)).print(table)
    for note in plan.notes:
        print(note, file=out)


def _figures(name: str, calls: Sequence[PlannedCall], period: int) -> tuple[str, ...]:
    usage = Usage.of(len(call.queries) for call in calls)
    workers = len({ask.worker_id for call in calls for ask in call.gap_queries})
    periods = sum(call.periods(period) for call in calls)
    return name, f"{workers:,}", f"{periods:,}", f"{usage.calls:,}", f"{usage.metrics:,}", f"{usage.dollars:.5f}"
