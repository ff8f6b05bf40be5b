"""The CloudWatch spending of a day: what a collection cycle may query, and the count that survives a restart."""

from collections.abc import Mapping

from exporter.core import logs
from exporter.core.budget import Budget, BudgetState, ReaderBudget
from exporter.core.errors import StoreError
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.outbox import SPENT_BY_READERS
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.pipeline.source_health import SourceHealth

_PROBLEMS: Mapping[BudgetState, str] = {
    "gap_filling_paused": "the rest of cloudwatch.max_usd_per_day ({} dollars) is reserved for the running workers; "
    "gap filling resumes after 00:00 UTC, or raise the limit",
    "polling_paused": "cloudwatch.max_usd_per_day ({} dollars) is spent; CloudWatch is polled again after 00:00 UTC, "
    "or raise the limit",
}

_log = logs.get("collector")


class Spending:
    """The budget of a day, kept in the outbox and shown on /metrics and /-/ready.

    Args:
        budget: counts the metrics billed today.
        readers: counts those of them on behalf of HTTP readers.
        outbox: keeps the count over a restart.
        telemetry: shows cost and state.
        health: shows the problem while the budget limits the poller.
        interval: seconds between two collection cycles.
    """

    def __init__(
        self,
        budget: Budget,
        readers: ReaderBudget,
        outbox: OutboxThread,
        telemetry: Telemetry,
        health: SourceHealth,
        interval: int,
    ) -> None:
        self._budget = budget
        self._readers = readers
        self._outbox = outbox
        self._telemetry = telemetry
        self._health = health
        self._interval = interval

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._budget.max_usd is not None

    def assess(self, live: int) -> BudgetState:
        """Return what a cycle may query whose live part bills `live` metrics."""
        return self._budget.assess(live, self._interval)

    async def keep(self, planned: int = 0) -> None:
        """Save the metrics billed today and `planned` more in the outbox; a failure is logged, the count goes on in memory."""
        day, spent = self._budget.spent()
        try:
            await self._outbox(self._outbox.outbox.keep_spent, day, spent + planned)
            await self._outbox(self._outbox.outbox.keep_spent, *self._readers.spent(), SPENT_BY_READERS)
        except StoreError as error:
            _log.error("cannot save the day's CloudWatch cost; a restart would lose it", error=str(error))

    def export(self, state: BudgetState) -> None:
        """Show the cost of today and the state; log a state that newly limits the poller."""
        self._telemetry.show_budget(self._budget, state)
        self._telemetry.show_readers(self._readers)
        if not self.limited:
            self._health.hide("budget")  # a reload may have removed the limit
            return
        problem = None if state == "ok" else _PROBLEMS[state].format(self._budget.max_usd)
        if problem and problem != self._health.errors.get("budget"):
            _log.warning("the budget limits polling", state=state, problem=problem)
        self._health.show("budget", problem)
