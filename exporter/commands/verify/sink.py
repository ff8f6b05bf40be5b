"""Compares the answers of CloudWatch with the history and stores the result in the journal."""

import time
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial

from exporter.commands.backfill.fetcher import RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.backfill.plan import Answer, GapQuery, PlannedCall, answers
from exporter.commands.verify.compare import Stored, Tally, compare
from exporter.commands.verify.earlier import Days, days_of, value_in
from exporter.commands.verify.journal import VerifyJournal
from exporter.core.errors import StoreUnavailableError
from exporter.core.model import MetricQuery, MetricResult
from exporter.pipeline.mirror import RETRY_SECONDS
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.sources.cloudwatch.memory_series import LISTED_FOR_SECONDS
from exporter.storage.collection import HistoryCollection
from exporter.storage.rows import number
from exporter.storage.sample_stream import TIME, stream

_KEYS = ("cpu_utilization", "memory_utilization", "status")


class ComparingSink:
    """Reads the samples of each answered call, one worker at a time, and compares them.

    Args:
        period: resolution in seconds.
        made: when the plan was made, in UTC seconds: the time of the listings.
        journal: keeps what was found.
        thread: the thread that every call to the journal runs in.
        history: the samples.
        stop: ends the retries.
        retry: how long an unavailable MongoDB is retried.
    """

    full = False

    def __init__(
        self,
        period: int,
        made: int,
        journal: VerifyJournal,
        thread: OutboxThread,
        history: HistoryCollection,
        stop: GracefulStop,
        retry: RetryPolicy,
    ) -> None:
        self._period, self._journal, self._thread, self._history = period, journal, thread, history
        self._listed_from = made - LISTED_FOR_SECONDS
        self._stop, self._retry = stop, retry

    async def take(
        self, number: int, call: PlannedCall | None, results: Mapping[MetricQuery, MetricResult]
    ) -> PlannedCall | None:
        """Compare a call's answers and store the result; return the part of the call that is left.

        Raises:
            StoreError: the history or the journal failed; the call is not marked as done.
        """
        found, rest = answers(call, results) if call else ([], None)
        tally = Tally()
        kept: list[tuple[str, Days]] = []
        for answer in found:
            samples = await self._read(answer.gap_query)
            part, days = await self._thread(self._compare, answer, samples)
            tally.add(part)
            kept.append((answer.gap_query.worker_id, days))
        await self._thread(self._journal.put, number, tally, rest, kept)
        return rest

    def _compare(self, answer: Answer, samples: list[Stored]) -> tuple[Tally, Days]:
        gap_query = answer.gap_query
        days = self._journal.earlier(gap_query.worker_id, gap_query.gaps[0][0], gap_query.gaps[-1][1])
        earlier = partial(value_in, days, period=self._period)
        return compare(answer, samples, earlier, self._listed_from, self._period), days_of(answer, self._period)

    async def _read(self, gap_query: GapQuery) -> list[Stored]:
        """Read the samples of one worker; retry while MongoDB is unavailable, because the answer is paid for."""
        began = time.monotonic()
        while True:
            try:
                return await self._read_once(gap_query)
            except StoreUnavailableError:
                if self._stop.requested.is_set() or time.monotonic() - began > self._retry.mongodb:
                    raise
            await self._stop.pause(min(RETRY_SECONDS, self._retry.mongodb))

    async def _read_once(self, gap_query: GapQuery) -> list[Stored]:
        samples: list[Stored] = []
        pages = stream(self._history, [gap_query.worker_id], gap_query.gaps[0][0], gap_query.gaps[-1][1], _KEYS)
        async with aclosing(pages):
            async for _, page in pages:
                samples += (
                    Stored(
                        document[TIME],
                        number(document.get("cpu_utilization")),
                        number(document.get("memory_utilization")),
                        document.get("status") is not None,
                    )
                    for document in page
                )
        return samples
