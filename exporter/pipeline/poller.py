"""Poll CloudWatch on a schedule and decide the values of open samples."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from exporter.core.budget import BudgetState
from exporter.core.model import PendingQuery

POLL_OFFSET_SECONDS = 180
"""Basic monitoring publishes 1 to 3 minutes after the period's end."""
MAX_CONCURRENT_CALLS = 6
"""Calls under way at once. Their latency hardly counts, since 40 calls ask about 10,000 workers; but answers that come together
are parsed together, and each thread that does so keeps scrapes waiting."""

_BUDGET_PROBLEMS: Mapping[BudgetState, str] = {
    "gap_filling_paused": "what is left of cloudwatch.max_usd_per_day ({} dollars) is kept for the running workers; "
    "gaps are filled after 00:00 UTC, or raise it",
    "polling_paused": "cloudwatch.max_usd_per_day ({} dollars) is spent; CloudWatch is asked again after 00:00 UTC, "
    "or raise it",
}


@dataclass(slots=True)
class CycleStats:
    """What one asking round did, for its log line."""

    workers: int = 0
    calls: int = 0
    datapoints: int = 0
    finalized: int = 0
    dropped: int = 0
    given_up: int = 0
    failed: int = 0
    budget: BudgetState = "ok"


def _without_healing(needs: Iterable[PendingQuery], live: Iterable[PendingQuery], since: int) -> list[PendingQuery]:
    """Of the running workers that are due the current instances alone. A longer window costs nothing, but before `since` more
    series would have to be asked, and those cost.
    """
    oldest = {(need.worker_id, need.region): need.oldest for need in needs}
    return [
        replace(need, oldest=max(since, min(need.oldest, oldest[key])))
        for need in live
        if (key := (need.worker_id, need.region)) in oldest
    ]
