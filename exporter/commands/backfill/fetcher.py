"""Makes the calls of a plan: several at a time, with retries, until all are made or the run ends."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from exporter.commands.backfill import plan
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.backfill.journal import PlanJournal
from exporter.commands.backfill.plan import PlannedCall
from exporter.commands.backfill.report import RunState
from exporter.core.errors import RejectedQueryError, SourceError, StoreError
from exporter.core.model import MetricQuery, MetricResult
from exporter.core.periods import align_up
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.sources.cloudwatch.client import CloudWatch

REQUESTS_PER_SECOND = 5
"""Per region: a fifth of the limit of `serve`, and a tenth of the account's quota."""
CONCURRENT_CALLS = 2
"""Each full answer takes some 20 MiB of memory until its samples are in the outbox."""
MAX_WAITING_SAMPLES = 20_000
"""Samples in an outbox above which no more are added until MongoDB has caught up: two batches of the mirror. More would only
bring more answers of CloudWatch into memory at once, tens of megabytes each; where CloudWatch is slower, none do."""
MAX_CONSECUTIVE_FAILURES = 3
"""Calls without any result after which no other is made: the credentials or the network have failed."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a backfill retries, in seconds."""

    mongodb: float = 300
    """How long an unavailable MongoDB is retried; the rest is left to the next run."""
    lease: float = 40
    """How long to wait for the lease: longer than a killed process keeps it, and than `serve` holds it for older samples."""
    calls: tuple[float, ...] = (1, 4, 10)
    """The pauses before each retry of a failed call, after the four attempts of the AWS client."""


class AnswerSink(Protocol):
    """What becomes of the answers."""

    @property
    def full(self) -> bool:
        """Whether no call must be made for now."""

    async def take(
        self, number: int, call: PlannedCall | None, results: Mapping[MetricQuery, MetricResult]
    ) -> PlannedCall | None:
        """Use the complete results of a call and mark in the journal what is left of it, None: nothing; return the same.

        `call` is None when CloudWatch no longer keeps any of its periods, so that nothing was queried. Raises StoreError.
        """


class Fetcher:
    """Makes the pending calls of the journal, several at a time, and hands their results to a sink."""

    def __init__(
        self,
        period: int,
        kept: int,
        journal: PlanJournal,
        thread: OutboxThread,
        cloudwatch: CloudWatch,
        stop: GracefulStop,
        retry: RetryPolicy,
        state: RunState,
        sink: AnswerSink,
    ) -> None:
        """Make no call yet.

        Args:
            period: resolution in seconds.
            kept: age in seconds from which periods are no longer queried.
            journal: the plan.
            thread: the thread that every call to the journal runs in.
            cloudwatch: the client.
            stop: when it is requested, no further call begins.
            retry: the pauses between the attempts of a call.
            state: updated after each call; its `failure` ends the run.
            sink: takes the results.
        """
        self._period, self._kept, self._journal, self._thread, self._cloudwatch = period, kept, journal, thread, cloudwatch
        self._stop, self._retry, self._state, self._sink = stop, retry, state, sink
        self._queue: deque[tuple[int, PlannedCall]] = deque()
        self._consecutive_failures = 0

    async def load(self) -> None:
        """Read the pending calls from the journal.

        Raises:
            StoreError: the journal cannot be read.
        """
        self._queue.extend(await self._thread(self._journal.pending))
        self._state.calls_left = len(self._queue)
        self._state.total = sum(call.periods(self._period) for _, call in self._queue)

    async def run(self) -> None:
        """Make the loaded calls; `state.call_failures`, `state.failure` or the stop request explain what is left."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT_CALLS):
                group.create_task(self._make_calls(), name="fetch")

    @property
    def _ended(self) -> bool:
        return self._stop.requested.is_set() or self._state.failure is not None

    async def _make_calls(self) -> None:
        while self._queue and not self._ended:
            if self._sink.full:
                await self._stop.pause(0.1)
                continue
            number, call = self._queue.popleft()
            if self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
                continue
            try:
                await self._make_call(number, call)
            except StoreError as error:
                self._state.failure = error

    async def _make_call(self, number: int, call: PlannedCall) -> None:
        """Make one call and hand over its results; the periods that are no longer kept are cut off."""
        oldest = align_up(int(time.time()) - self._kept + plan.EXPIRY_MARGIN_SECONDS // 2, self._period)
        kept, before = plan.clip(call, oldest, call.end), call.periods(self._period)
        self._state.expired += before - (kept.periods(self._period) if kept else 0)
        results: dict[MetricQuery, MetricResult] = {}
        if kept:
            await self._query(kept, results)
        rest = await self._sink.take(number, kept, results)
        self._state.answered += before - (rest.periods(self._period) if rest else 0)
        if rest is None:
            self._state.calls_left -= 1

    async def _query(self, call: PlannedCall, results: dict[MetricQuery, MetricResult]) -> None:
        """Add complete results of all queries of a call; retry those that lack one."""
        error: SourceError | None = None
        for delay in (*self._retry.calls, None):
            error = await self._query_once(call, [query for query in call.queries if query not in results], results)
            if error is None:
                self._consecutive_failures = 0
                return
            if delay is None or isinstance(error, RejectedQueryError) or self._ended:
                break
            await self._stop.pause(delay)
        self._consecutive_failures = 0 if results else self._consecutive_failures + 1
        if not self._stop.requested.is_set():
            self._state.call_failures.append(str(error).rstrip("."))

    async def _query_once(
        self, call: PlannedCall, queries: Sequence[MetricQuery], results: dict[MetricQuery, MetricResult]
    ) -> SourceError | None:
        """Add the complete results of one attempt; return the error when some are missing."""
        try:
            response = await self._cloudwatch.get_metric_data(call.region, queries, call.start, call.end, self._period)
        except SourceError as error:
            return error
        results |= {query: result for query, result in response.by_query.items() if result.complete}
        missing = sum(not result.complete for result in response.by_query.values())
        if missing:
            text = f"CloudWatch in {call.region}: {missing} of {len(queries)} metrics were answered in part or not at all"
            return SourceError("cloudwatch", "PartialData", text, region=call.region)
        return None
