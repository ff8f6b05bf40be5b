"""The gaps of a worker: which periods the history lacks, as runs with the same candidates (rule 3). Pure."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import NamedTuple

from exporter.core.instances import split_by_instance
from exporter.core.model import InventoryEntry, Worker
from exporter.core.periods import align, align_up
from exporter.pipeline.lifecycle import PendingSample, Rules


class Gap(NamedTuple):
    """Consecutive periods of one worker that the history lacks, with the same candidates; `start` and `end` are UTC seconds."""

    worker_id: str
    region: str
    instances: tuple[str, ...]
    """As `PendingSample.instances`."""
    start: int
    end: int
    """End of the last period."""


def find_gaps(
    worker: Worker,
    following: int,
    entry: InventoryEntry | None,
    existing: AbstractSet[int],
    dropped: Iterable[Gap],
    now: int,
    rules: Rules,
) -> list[Gap]:
    """Return the periods that the history lacks (rule 3) and that were not dropped as empty with the same candidates.

    Only periods within `gap_fill_window` and before `following` count. Whole runs of periods are returned: a day of one worker
    is usually one.

    Args:
        worker: as read.
        following: `WorkerState.next`.
        entry: which instances the worker ran on, and when.
        existing: starts of the periods the history has, in UTC seconds.
        dropped: what was dropped: periods in which none of these instances had a value.
        now: MongoDB's time in UTC seconds.
        rules: the settings of the sample lifecycle.
    """
    period = rules.period
    start, until = align_up(now - rules.gap_fill_window, period), following
    if worker.created_at is not None:
        start = max(start, align(worker.created_at, period))
    if worker.status == "terminated" and worker.terminated_at is not None:
        until = min(until, align(worker.terminated_at, period) + period)
    gaps: list[Gap] = []
    if start >= until:
        return gaps
    for first, last, region, instances in split_by_instance(entry, worker, start, until, period):
        if instances:
            known = {s for s in existing if first <= s < last}
            for one in dropped:
                if one.region == region and set(instances) <= set(one.instances):
                    known.update(range(max(first, one.start), min(last, one.end), period))
            edges = [first - period, *sorted(known), last]
            runs = ((before + period, after) for before, after in pairwise(edges) if before + period < after)
            gaps += [Gap(worker.id, region, instances, begin, end) for begin, end in runs]
    return gaps


def runs(samples: Iterable[PendingSample], period: int) -> list[Gap]:
    """Return samples as runs of consecutive periods of one worker with the same candidates; `period` is in seconds."""
    found: list[Gap] = []
    for sample in sorted(samples, key=lambda one: (one.worker_id, one.start)):
        key = sample.worker_id, sample.region, sample.instances
        if found and found[-1][:3] == key and found[-1].end == sample.start:
            found[-1] = found[-1]._replace(end=sample.start + period)
        else:
            found.append(Gap(*key, sample.start, sample.start + period))
    return found
