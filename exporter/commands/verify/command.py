"""`cml-worker-exporter verify`: plan, query CloudWatch, compare with the history; changes nothing in MongoDB.

What each call found and the mark that it is done are one transaction of the journal in `data_dir/verify`, so an interrupted run
continues where it stopped and pays for no call twice. As nothing is written to the history, no lease is needed: an exporter may
run at the same time, and a `verify` on another machine.
"""

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TextIO

from prometheus_client import CollectorRegistry

from exporter.commands.backfill.fetcher import REQUESTS_PER_SECOND, Fetcher, RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop, until_signalled
from exporter.commands.backfill.journal import PLAN_MAX_AGE_SECONDS, opened
from exporter.commands.backfill.plan import Plan, counted
from exporter.commands.backfill.plan_table import show_calls
from exporter.commands.backfill.progress import show_progress
from exporter.commands.backfill.report import RunState
from exporter.commands.backfill.targets import check_price
from exporter.commands.terminal import say
from exporter.commands.verify.compare import Tally
from exporter.commands.verify.duplicates import with_duplicates
from exporter.commands.verify.earlier import KEPT_SECONDS
from exporter.commands.verify.journal import VerifyJournal
from exporter.commands.verify.planner import Options, Planner
from exporter.commands.verify.report import Result, VerifyProgress, print_text, to_json
from exporter.commands.verify.sink import ComparingSink
from exporter.core.errors import ConfigError, StoreError
from exporter.core.periods import rfc3339
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.retention import reach
from exporter.storage.mongo import connect
from exporter.storage.repository import repository, require_history
from exporter.storage.rewrite import Scope, unfinished_rewrite

DIFFERENT, INCOMPLETE = 1, 3
"""Exit statuses: a difference was found; no difference was found, but not all could be compared."""


async def main(settings: Settings, options: Options, out: TextIO, err: TextIO) -> int:
    """Run one comparison until it is done, interrupted, or failed; as `run`, and 130 after SIGINT or SIGTERM."""
    return await until_signalled(lambda stop: run(settings, options, out, err, stop), err)


async def run(
    settings: Settings,
    options: Options,
    out: TextIO,
    err: TextIO,
    stop: GracefulStop,
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008  # it is frozen
) -> int:
    """Print the plan, and unless it is a dry run carry it out, with progress on `err`; print the result.

    Returns:
        The exit status: 0 all equal, 1 a difference was found, 3 not all could be compared, 130 interrupted.

    Raises:
        ConfigError: there is no history or no CloudWatch, a worker is unknown, or the plan costs too much.
        SourceError: the worker documents or the metrics of CloudWatch cannot be listed; nothing was compared.
        OutboxLockedError: another `verify` runs on this machine.
        StoreError: MongoDB or the disk failed; what was compared is kept.
    """
    name = require_history(settings, "verify")
    if not settings.cloudwatch.enabled:
        raise ConfigError("cloudwatch.enabled is false, but CloudWatch is what the history is compared with; set it to true")
    telemetry = Telemetry(CollectorRegistry())
    cloudwatch = CloudWatch(settings, telemetry, rate=REQUESTS_PER_SECOND)
    client, database = connect(settings)
    async with client:
        try:
            planner = Planner(settings, options, database, repository(settings, database, name), cloudwatch)
            if options.dry_run:
                _show((await planner.plan())[0], planner.namespace, out)
                return 0
            with opened(VerifyJournal(settings.data_dir / "verify", settings.period)) as (journal, thread):
                return await _Verify(
                    settings, options, planner, journal, thread, cloudwatch, telemetry, stop, retry, out, err
                ).carry_out()
        finally:
            await cloudwatch.close()


@dataclass(frozen=True, slots=True)
class _Verify:
    """The parts of one comparison, while the journal is open."""

    settings: Settings
    options: Options
    planner: Planner
    journal: VerifyJournal
    thread: OutboxThread
    cloudwatch: CloudWatch
    telemetry: Telemetry
    stop: GracefulStop
    retry: RetryPolicy
    out: TextIO
    err: TextIO

    async def carry_out(self) -> int:
        """Continue the interrupted plan or make a new one, carry it out, and return the exit status as `run`."""
        plan = await self._resume()
        is_new = plan is None
        excluded = Tally()
        if plan is None:
            plan, excluded = await self.planner.plan()
        if plan.calls or is_new:
            _show(plan, self.planner.namespace, self._words)
        check_price(plan.usage, self.settings, self.options.max_usd, "compare less with --sample 5% or --worker")
        if is_new:
            await self.thread(self.journal.start, plan, excluded)
        state = RunState()
        with self.stop.graceful():
            await self._fetch(plan, state)
        if self.stop.requested.is_set() and state.calls_left:
            say(f"Interrupted: {state.left} are left; run the same command to go on.", self.err)
            return 130
        return await self._conclude(plan, state)

    @property
    def _words(self) -> TextIO:
        """Where all but the result is printed."""
        return self.err if self.options.json else self.out

    async def _fetch(self, plan: Plan, state: RunState) -> None:
        period, history = plan.period, self.planner.history.collection
        retention = await self.planner.history.collection.current_retention()
        kept = reach(period) if retention is None else min(reach(period), retention)
        sink = ComparingSink(period, plan.made, self.journal, self.thread, history, self.stop, self.retry)
        fetcher = Fetcher(period, kept, self.journal, self.thread, self.cloudwatch, self.stop, self.retry, state, sink)
        await fetcher.load()
        async with AsyncExitStack() as stack:
            if not self.options.quiet:
                await stack.enter_async_context(show_progress(VerifyProgress(state, self.telemetry), self.err))
            await fetcher.run()

    async def _conclude(self, plan: Plan, state: RunState) -> int:
        """Print what was found and what is left; return the exit status."""
        tally = await self.thread(self.journal.tally)
        unfinished: Scope | None = None
        try:
            collection = self.planner.history.collection
            unfinished = await unfinished_rewrite(collection)
            tally = await with_duplicates(tally, collection, plan.since, self.options.workers)
        except StoreError as error:  # what was compared is printed all the same
            state.failure = state.failure or error
        result = Result(plan, self.planner.namespace, tally, state, self.telemetry, self.cloudwatch.malformed)
        if self.options.json:
            print(to_json(result), file=self.out, flush=True)
        elif tally.periods or state.total or tally.duplicates:
            print_text(result, self.out)
        self.out.flush()  # a reader that has gone must not cost the result
        if result.incomplete:
            say(result.incomplete, self.err)
        if unfinished is not None:
            say(f"The repair of {unfinished.worker_id} was interrupted; run verify --repair to finish it.", self.err)
        if state.failure is not None:
            raise state.failure
        if result.complete:
            await self.thread(self.journal.finish, plan.made - KEPT_SECONDS)
        if tally.differs:
            return DIFFERENT
        return 0 if result.equal and not self.planner.unanswered else INCOMPLETE

    async def _resume(self) -> Plan | None:
        """Return the plan of an interrupted run if the command line is the same."""
        plan = await self.thread(self.journal.plan)
        if plan is None:
            return None
        made = rfc3339(plan.made)
        same = (plan.target, plan.wanted) == (self.planner.target, self.planner.wanted)
        if same and time.time() - plan.made < PLAN_MAX_AGE_SECONDS:
            say(f"Going on with the plan of {made}: {counted(len(plan.calls), 'call')} left.", self._words)
            return plan
        why = "is older than a day" if same else f"was for --since {plan.wanted} of {plan.target}"
        say(f"The interrupted plan of {made} {why}; it is replaced by a new one.", self._words)
        return None


def _show(plan: Plan, namespace: str, out: TextIO) -> None:
    """Print a plan, and a sentence for each reason why periods are left out."""
    if plan.calls:
        show_calls(plan, namespace, "periods", out)
    else:
        say(f"Nothing to compare: CloudWatch cannot be asked for any period of {namespace} in this window.", out)
    for note in plan.notes:
        say(note, out)
    out.flush()  # before anything is spent
