"""Which instances a worker ran on, and what the inventory records of a worker. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise

from exporter.core.model import (
    InstanceInterval,
    InventoryEntry,
    Worker,
)
from exporter.core.periods import align


def instances_during(entry: InventoryEntry | None, worker: Worker, start: int, end: int) -> tuple[str, tuple[str, ...]]:
    """Return the region and the instances, newest first, that may have been the worker in [start, end).

    An instance may have run from the last observation of its predecessor to the first of its successor, since the worker was
    not observed in between. Where a worker changed its region within the window, the newer region counts: one call queries
    one region.

    Args:
        entry: the inventory's; None if it has none.
        worker: as read; its instance counts where the inventory has none.
        start, end: UTC seconds.
    """
    intervals = entry.instances if entry else ()
    if not intervals:
        return worker.region or (entry.region if entry else ""), unique(worker.cloudwatch_instance)
    if len(intervals) == 1:
        return intervals[0].region, (intervals[0].instance_id,)
    possible: list[InstanceInterval] = []
    for index, interval in enumerate(intervals):
        begun = index == 0 or intervals[index - 1].last < end
        ended = index + 1 < len(intervals) and intervals[index + 1].first < start  # seconds are rounded down
        if begun and not ended:
            possible.append(interval)
    region = possible[-1].region
    return region, unique(*(interval.instance_id for interval in reversed(possible) if interval.region == region))


def split_by_instance(
    entry: InventoryEntry | None, worker: Worker, start: int, end: int, period: int
) -> list[tuple[int, int, str, tuple[str, ...]]]:
    """Cut [start, end) where the possible instances change; return (first, last, region, instances) of each part.

    All times are UTC seconds, `period` is in seconds.
    """
    intervals = entry.instances if entry else ()
    marks = {align(one.last, period) for one in intervals[:-1]} | {align(one.first, period) + period for one in intervals[1:]}
    edges = [start, *sorted(mark for mark in marks if start < mark < end), end]
    return [(first, last, *instances_during(entry, worker, first, first + period)) for first, last in pairwise(edges)]


def worker_from_inventory(entry: InventoryEntry) -> Worker:
    """Return a worker whose document is gone as the inventory knows it, without an instance: `entry.instances` has those."""
    return Worker(
        id=entry.worker_id,
        region=entry.region,
        instance_id=None,
        status=entry.status,
        instance_type=entry.instance_type,
        created_at=entry.created_at,
        terminated_at=entry.terminated_at,
        account_id=entry.account_id,
    )


def with_accounts(
    workers: Iterable[Worker], account_of: Callable[[str, str], str | None], before: Iterable[Worker]
) -> tuple[Worker, ...]:
    """Return the workers with the accounts of their instances, as far as they are known.

    Args:
        workers: as read.
        account_of: (region, instance) → account id; empty or None where it is not known now.
        before: the workers until now; an instance that is not known any more stays in its account.
    """
    known = {worker.instance_id: worker.account_id for worker in before if worker.account_id}

    def located(worker: Worker) -> Worker:
        if not worker.cloudwatch_instance:
            return worker
        account = account_of(worker.region, worker.cloudwatch_instance) or known.get(worker.cloudwatch_instance)
        return replace(worker, account_id=account) if account and account != worker.account_id else worker

    return tuple(map(located, workers))


def entry_with_instance(entry: InventoryEntry | None, worker: Worker, now: int) -> InventoryEntry:
    """Return an entry that `instances_during` reads like the one after an observation at `now`: the same, unless it lacks one.

    When the newest instance was seen last makes no difference to it.
    """
    newest = entry.instances[-1][:2] if entry and entry.instances else None
    if entry is not None and newest == (worker.cloudwatch_instance, worker.region):
        return entry
    return updated_entry(entry, worker, now)


def updated_entry(entry: InventoryEntry | None, worker: Worker, now: int) -> InventoryEntry:
    """Return the inventory entry of a worker after it was observed at `now` (UTC seconds); `entry` is the one before.

    A worker document that lacks a descriptive field, or for a while its instance or region, removes nothing. An instance that
    comes back after another one starts a new interval. A worker that is not terminated has no time of termination, even if it
    once had.
    """
    instance, region = worker.cloudwatch_instance, worker.region
    if entry is None:
        return InventoryEntry(
            worker_id=worker.id,
            region=worker.region,
            name=worker.name,
            instance_type=worker.instance_type,
            cml_version=worker.cml_version,
            created_at=worker.created_at,
            terminated_at=worker.terminated_at,
            status=worker.status,
            first_seen=now,
            last_seen=now,
            instances=(InstanceInterval(instance, region, now, now),) if instance else (),
            account_id=worker.account_id,
        )
    instances = entry.instances
    if instance and instances and instances[-1][:2] == (instance, region):
        instances = (*instances[:-1], instances[-1].until(now))
    elif instance:
        instances = (*instances, InstanceInterval(instance, region, now, now))
    kept_end = entry.terminated_at if worker.status == "terminated" else None
    return InventoryEntry(
        worker_id=worker.id,
        region=worker.region or entry.region,
        name=worker.name or entry.name,
        instance_type=worker.instance_type or entry.instance_type,
        cml_version=worker.cml_version or entry.cml_version,
        created_at=entry.created_at if worker.created_at is None else worker.created_at,
        terminated_at=kept_end if worker.terminated_at is None else worker.terminated_at,
        status=worker.status,
        first_seen=entry.first_seen,
        last_seen=max(entry.last_seen, now),
        instances=instances,
        account_id=worker.account_id or entry.account_id,
    )


def unique(*names: str | None) -> tuple[str, ...]:
    """Return each name once, in order, without None and empty ones."""
    return tuple(dict.fromkeys(filter(None, names)))
