"""Carrying out a backfill's plan: CloudWatch is asked and MongoDB written at once, until all is done or somebody interrupts."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import Counter

from exporter.commands.backfill import plan
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.backfill.journal import Journal
from exporter.commands.backfill.plan import PlannedCall
from exporter.core import logs
from exporter.core.errors import IncompatibleStoreError, RejectedQueryError, SourceError, StoreError, StoreUnavailableError
from exporter.core.model import MetricQuery, MetricResult
from exporter.core.periods import align_up
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.mirror import RETRY_SECONDS, Mirror
from exporter.pipeline.outbox import OutboxThread
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.retention import reach
from exporter.storage.lease import Lease

CALLS_AT_ONCE = 3
MOST_WAITING = 150_000
"""Rows in the outbox from which on nothing is asked until MongoDB has caught up: some 20 MB."""
FAILURES_IN_A_ROW = 3
"""Calls without any answer after which no other is tried: the credentials or the network are gone."""

_log = logs.get("backfill")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long what does not work is tried again, in seconds."""

    mongodb: float = 300
    """A MongoDB that is away; then it is left to the next run."""
    lease: float = 40
    """The lease: longer than a killed process keeps it, and than `serve` needs it for its older samples."""
    calls: tuple[float, ...] = (1, 4, 10)
    """The pauses before a call that failed is tried again, after the four attempts the AWS client makes by itself."""


@dataclass
class BackfillRun:
    """Asks the calls of the journal's plan and mirrors what they bring, both at once."""

    period: int
    journal: OutboxThread
    cloudwatch: CloudWatch
    mirror: Mirror
    lease: Lease
    telemetry: Telemetry
    interruption: GracefulStop
    patience: RetryPolicy

    total: int = 0
    """Periods of this run's calls."""
    judged: int = 0
    """Periods that CloudWatch answered."""
    empty: int = 0
    forgotten: int = 0
    """Periods CloudWatch dropped between plan and call."""
    failures: list[str] = field(default_factory=list)
    """Why calls were left undone."""
    failure: StoreError | None = None
    """What ended the run."""
    _pending: deque[tuple[int, PlannedCall]] = field(default_factory=deque)
    _undone: int = 0
    _asked: bool = False
    _mute: int = 0

    @property
    def store(self) -> Journal:
        """The journal itself."""
        assert isinstance(self.journal.outbox, Journal)  # that is what `run` put into the thread
        return self.journal.outbox

    @contextmanager
    def interruption_is_gentle(self) -> Iterator[None]:
        """Let a signal that comes within wait for what is under way."""
        self.interruption.gentle = True
        try:
            yield
        finally:
            self.interruption.gentle = False

    async def run(self) -> None:
        """Ask and mirror until all is done, or `failures`, `failure` or the interruption says why not."""
        self._pending.extend(await self.journal(self.store.pending))
        self.total = sum(call.periods(self.period) for _, call in self._pending)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._mirror_all(), name="mirror")
            async with asyncio.TaskGroup() as askers:
                for _ in range(CALLS_AT_ONCE):
                    askers.create_task(self._ask_calls(), name="ask")
            self._asked = True
            self.mirror.wake.set()

    async def drain(self) -> None:
        """Mirror what waits in the outbox; `failure` says why not."""
        self._asked = True
        await self._mirror_all()
        self._asked = False

    @property
    def waiting(self) -> int:
        """Rows in the outbox."""
        return self.store.counts()["final"]

    @property
    def _ended(self) -> bool:
        return self.interruption.came.is_set() or self.failure is not None

    # -- asking

    async def _ask_calls(self) -> None:
        while self._pending and not self._ended:
            if self.waiting > MOST_WAITING:
                await self.interruption.pause(0.1)
                continue
            number, call = self._pending.popleft()
            if self._mute >= FAILURES_IN_A_ROW:
                self._undone += 1
                continue
            try:
                await self._fill(number, call)
            except StoreError as error:
                self.failure = error

    async def _fill(self, number: int, call: PlannedCall) -> None:
        """Ask one call, and keep what it brought."""
        oldest = align_up(int(time.time()) - reach(self.period) + plan.EXPIRY_MARGIN_SECONDS // 2, self.period)
        wanted, before = plan.clip(call, oldest, call.end), call.periods(self.period)
        self.forgotten += before - (wanted.periods(self.period) if wanted else 0)
        answers: dict[MetricQuery, MetricResult] = {}
        if wanted:
            await self._answer(wanted, answers)
        kept, empty, rest = await self.journal(_keep_answers, self.store, number, wanted, answers, self.period)
        self.judged += before - (rest.periods(self.period) if rest else 0)
        self.empty += empty
        if rest:
            self._undone += 1
        if kept:
            self.mirror.wake.set()

    async def _answer(self, call: PlannedCall, answers: dict[MetricQuery, MetricResult]) -> None:
        """Gather complete answers to all queries of a call, if need be by several attempts for those that lack one."""
        error: SourceError | None = None
        for delay in (*self.patience.calls, None):
            error = await self._ask(call, [query for query in call.queries if query not in answers], answers)
            if error is None:
                self._mute = 0
                return
            if delay is None or isinstance(error, RejectedQueryError) or self._ended:
                break
            await self.interruption.pause(delay)
        self._mute = 0 if answers else self._mute + 1
        if not self.interruption.came.is_set():
            self.failures.append(str(error).rstrip("."))

    async def _ask(
        self, call: PlannedCall, queries: Sequence[MetricQuery], answers: dict[MetricQuery, MetricResult]
    ) -> SourceError | None:
        """Ask once; add what was answered completely, and return why something was not."""
        try:
            given = await self.cloudwatch.get_metric_data(call.region, queries, call.start, call.end, self.period)
        except SourceError as error:
            return error
        answers |= {query: answer for query, answer in given.by_query.items() if answer.complete}
        missing = sum(not answer.complete for answer in given.by_query.values())
        if missing:
            text = f"CloudWatch in {call.region}: {missing} of {len(queries)} metrics were answered in part or not at all"
            return SourceError("cloudwatch", "PartialData", text, region=call.region)
        return None

    # -- mirroring

    async def _mirror_all(self) -> None:
        """Mirror until nothing waits and nothing more comes; wait for a MongoDB that is away."""
        since: float | None = None
        while not self._ended:
            self.mirror.wake.clear()
            if not self.waiting:
                if self._asked:
                    return
                await self._woken()
                continue
            problem = await self._mirror_batch()
            if problem is None:
                since = None
                continue
            since = since or time.monotonic()
            if isinstance(problem, IncompatibleStoreError) or time.monotonic() - since > self.patience.mongodb:
                self.failure = problem
                return
            await self.interruption.pause(min(RETRY_SECONDS, self.patience.mongodb))

    async def _mirror_batch(self) -> StoreError | None:
        """Mirror once; return why it did not work."""
        try:
            if not self.lease.held and not await self.lease.acquire_or_renew():
                return StoreUnavailableError(
                    "another backfill or a purge has taken the lease to write old samples; run this again when it has ended",
                    reason="lease",
                )
            await self.mirror.step()
        except StoreError as error:
            return error
        return None

    async def _woken(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self.mirror.wake.wait()

    # -- words

    @property
    def finished(self) -> int:
        """Periods that need nothing more."""
        return max(0, self.judged - self.waiting)

    def requests(self) -> int:
        """GetMetricData requests sent, with every retry."""
        return _sum(self.telemetry.requests, operation="GetMetricData")

    def left(self) -> str:
        """What is not done, in words."""
        calls = len(self._pending) + self._undone
        periods = counted(self.total - self.judged, "period")
        return f"{counted(calls, 'call')} and {periods} are left, {self.waiting:,} samples wait"

    def summary(self) -> str:
        """What was done, in one line."""
        present = _sum(self.telemetry.mirror_samples, result="already_present")
        text = (
            f"{self.telemetry.mirrored:,} samples written, {present:,} were there already, {self.empty:,} periods empty; "
            f"{counted(self.requests(), 'call')}, {self.telemetry.dollars:.5f} dollars."
        )
        if self.forgotten:
            text += f" CloudWatch has forgotten {counted(self.forgotten, 'period')} meanwhile."
        if self.cloudwatch.malformed:
            text += f" Skipped as no instance ids: {', '.join(sorted(self.cloudwatch.malformed))}."
        rejected = self.store.counts()["rejected"]
        if rejected:
            text += f" MongoDB rejects {counted(rejected, 'sample')}; they are kept in {self.store.path}."
        return text


def _keep_answers(
    journal: Journal, number: int, call: PlannedCall | None, answers: dict[MetricQuery, MetricResult], period: int
) -> tuple[int, int, PlannedCall | None]:
    """Settle a call and take it in; return the samples, the empty periods, and what is left. `call` None: nothing was asked."""
    rows, empty, rest = plan.finalize(call, answers, period) if call else ([], 0, None)
    journal.put(number, rows, rest)
    return len(rows), empty, rest


def _sum(counter: Counter, **labels: str) -> int:
    samples = [sample for family in counter.collect() for sample in family.samples]
    return int(sum(sample.value for sample in samples if labels.items() <= sample.labels.items()))


def counted(count: int, noun: str) -> str:
    """The number with its noun: 1 call, 2 calls."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
