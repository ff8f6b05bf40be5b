"""What `verify` compares: the window, the sample of the workers, and the periods of each. Pure: no I/O and no clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil

from exporter.commands.backfill.plan import (
    EXPIRY_MARGIN_SECONDS,
    GapQuery,
    Range,
    WorkerLifetime,
    lifetime_window,
)
from exporter.commands.verify.compare import Tally
from exporter.core.instances import split_by_instance
from exporter.core.model import METRICS
from exporter.core.periods import MINUTE, align, align_up, format_duration, rfc3339
from exporter.sources.cloudwatch.retention import reach

MIRROR_MARGIN_SECONDS = 5 * MINUTE
"""Time that a final sample has to reach the history."""


@dataclass(frozen=True, slots=True)
class Window:
    """The periods that begin in [start, until) are compared; UTC seconds."""

    since: int
    """The first period that was asked for."""
    start: int
    """The first period that is in the history and for which CloudWatch has datapoints of its resolution."""
    coarse_until: int
    """From `since` to here CloudWatch only has coarser datapoints."""
    until: int
    notes: tuple[str, ...]
    """One sentence for each reason why it is shorter than asked for."""


def settled_after(absence_timeout: int, interval: int) -> int:
    """Return how many seconds after its end a period is in the history, if nothing fails.

    A missing value is final after `absence_timeout`. A running worker is polled every `interval`, an idle one with open rows
    every quarter of `absence_timeout` (rule 11 of docs/sample-lifecycle.md), and the poll may just have begun.
    """
    return absence_timeout + max(absence_timeout // 4, interval) + interval + MIRROR_MARGIN_SECONDS


def comparable_window(since: int, now: int, period: int, settled: int, retention: int | None) -> Window:
    """Return the window that can be compared.

    Args:
        since: requested start, in UTC seconds.
        now: MongoDB's clock, in UTC seconds.
        period: resolution of the history in seconds.
        settled: as `settled_after` returns it.
        retention: of the collection in seconds; None: samples are kept permanently.
    """
    until, notes = max(0, align(now - settled, period)), []
    since = align_up(since, period)
    oldest = align_up(now - reach(period) + EXPIRY_MARGIN_SECONDS, period)
    start = coarse_until = min(max(since, oldest), max(since, until))
    if retention is not None and start < (kept := align_up(now - retention + EXPIRY_MARGIN_SECONDS, period)):
        notes.append(f"The history keeps samples for {format_duration(retention)}: nothing before {rfc3339(kept)} is compared.")
        start = kept
    if since >= until:
        notes.append(
            f"The last {format_duration(now - until)} are not compared: their values may not be final yet; "
            "write an earlier --since."
        )
    return Window(since, start, coarse_until, max(start, until), tuple(notes))


def sampled(worker_ids: Sequence[str], percent: float, seed: str) -> list[str]:
    """Return so many percent of the workers, at least one, in their order; the same ones for the same ids and seed."""
    count = ceil(len(worker_ids) * percent / 100)
    drawn = sorted(worker_ids, key=lambda each: blake2b(f"{seed}/{each}".encode(), digest_size=8).digest())[:count]
    return [worker_id for worker_id in worker_ids if worker_id in set(drawn)]


def worker_queries(
    lifetime: WorkerLifetime, stored: Range | None, window: Window, period: int
) -> tuple[list[tuple[str, GapQuery]], Tally]:
    """Return (region, periods to compare) of one worker, and the periods that cannot be compared.

    Args:
        lifetime: the worker.
        stored: from its first to its last sample in the window; None: it has none. Samples from outside its lifetime are
            compared too: CloudWatch has nothing there.
        window: what is compared.
        period: resolution in seconds.
    """
    excluded = Tally()
    first, last = lifetime_window(lifetime, window.since, window.coarse_until, period)
    _exclude(excluded, "coarse", max(0, last - first) // period)
    start, end = lifetime_window(lifetime, window.start, window.until, period)
    if stored is not None:
        start, end = (min(start, stored[0]), max(end, stored[1])) if start < end else stored
    found: list[tuple[str, GapQuery]] = []
    if start < end:
        for first, last, region, instances in split_by_instance(lifetime.entry, lifetime.worker, start, end, period):
            if instances and region:
                found.append((region, GapQuery(lifetime.worker.id, instances, ((first, last),))))
            else:
                _exclude(excluded, "no_instance", (last - first) // period)
    return found, excluded


def _exclude(tally: Tally, reason: str, periods: int) -> None:
    if periods:
        tally.periods += periods
        for metric in METRICS:
            tally.counts[metric][reason] += periods
