"""Stores the answers of CloudWatch as samples in the journal of a backfill."""

from collections.abc import Callable, Mapping

from exporter.commands.backfill import plan
from exporter.commands.backfill.fetcher import MAX_WAITING_SAMPLES
from exporter.commands.backfill.journal import Journal
from exporter.commands.backfill.plan import PlannedCall
from exporter.commands.backfill.report import BackfillState
from exporter.core.model import MetricQuery, MetricResult
from exporter.pipeline.outbox_thread import OutboxThread


class SampleSink:
    """Finalizes the samples of each call and stores them in the journal, no faster than MongoDB takes them.

    Args:
        period: resolution in seconds.
        journal: with the outbox for the samples.
        thread: the thread that every call to the journal runs in.
        state: its `empty` is updated.
        on_samples: called when samples were stored.
    """

    def __init__(
        self, period: int, journal: Journal, thread: OutboxThread, state: BackfillState, on_samples: Callable[[], None]
    ) -> None:
        self._period, self._journal, self._thread, self._state = period, journal, thread, state
        self._on_samples = on_samples

    @property
    def full(self) -> bool:
        """Whether so many samples wait for MongoDB that no call must be made for now."""
        return self._journal.waiting > MAX_WAITING_SAMPLES

    async def take(
        self, number: int, call: PlannedCall | None, results: Mapping[MetricQuery, MetricResult]
    ) -> PlannedCall | None:
        """Store the samples of a call; return the part of it that is left. Raises StoreError."""
        count, empty, rest = await self._thread(self._store, number, call, results)
        self._state.empty += empty
        if count:
            self._on_samples()
        return rest

    def _store(
        self, number: int, call: PlannedCall | None, results: Mapping[MetricQuery, MetricResult]
    ) -> tuple[int, int, PlannedCall | None]:
        samples, empty, rest = plan.finalize(call, results, self._period) if call else ([], 0, None)
        self._journal.put(number, samples, rest)
        return len(samples), empty, rest
