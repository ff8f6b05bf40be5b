"""The history as Prometheus series for remote read: selects workers and metrics, reads their values, and encodes them.

Every series has the label store="history". A sample is at the START of its period, an hourly aggregate at the end of its hour;
percent becomes a ratio.
"""

import asyncio
import math
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from operator import itemgetter
from statistics import fmean
from typing import Any, NamedTuple, Protocol, TypeVar

from exporter.core.catalog import INFO, STATUS, WORKER_LABELS
from exporter.core.errors import RequestError
from exporter.core.history_metrics import (
    GONE_AFTER_SECONDS,
    HISTORY_METRICS,
    HOURLY_METRICS,
    INFO_1H,
    HistoryMetric,
    HourlyMetric,
)
from exporter.core.model import InventoryEntry
from exporter.core.periods import DAY, HOUR
from exporter.history import hourly_cache
from exporter.history.hourly_cache import HourBlock, days_of
from exporter.history.matching import Matcher, Selection
from exporter.history.remote_read import Series, SeriesSelector, encode_series, encode_table, in_order

T = TypeVar("T")
M = TypeVar("M", "HistoryMetric", "HourlyMetric")
MAX_SAMPLES = 3_000_000
"""Samples in one response: 54 MB before compression. Prometheus's own limit for a whole query is 50 million."""
MAX_SERIES = 50_000
"""Series in one response."""
MAX_WORKER_DAYS = hourly_cache.MAX_CACHED_WORKER_DAYS
"""Days times workers in one response of hourly aggregates: a month of 1,250 workers."""
_SAMPLES_PER_CALL = 100_000
"""Hourly aggregates that are encoded in one call: a change of threads takes as long as the work for some workers."""
_OVER_TIME: "Mapping[str, Callable[[array[float]], float]]" = {
    "avg_over_time": fmean,
    "last_over_time": itemgetter(-1),
    "max_over_time": max,
    "min_over_time": min,
    "sum_over_time": math.fsum,
}
"""Functions of PromQL that make the same of a window's samples and of one sample with their result."""
_MATCHING_THREADS = ThreadPoolExecutor(2, "matching")
_SLACK_SECONDS = DAY
"""Samples may exist so long before a worker was first seen and after it was last seen."""


def info_labels(worker_id: str, entry: InventoryEntry | None) -> dict[str, str]:
    """Return the additional labels of the info series; empty, which Prometheus treats as absent, where nothing is known.

    The label `worker` is never empty: it is the name, else the id.
    """
    names = [name for name in INFO.labels if name not in WORKER_LABELS]
    if entry is None:
        return dict.fromkeys(names, "") | {"worker": worker_id}
    known = {
        "worker": entry.display_name,
        "name": entry.name,
        "instance_id": entry.instances[-1].instance_id if entry.instances else None,
        "instance_type": entry.instance_type,
        "cml_version": entry.cml_version,
        "account_id": entry.account_id,
    }
    return {name: known[name] or "" for name in names}


class ColumnSource(Protocol):
    """Columns of samples; part of the repository."""

    def columns(
        self, worker_ids: Collection[str], start: int, end: int, field: str | None
    ) -> AsyncIterator[tuple[str, str, Sequence[int], Sequence[Any]]]:
        """Yield (worker id, region, milliseconds, values) of one field in [start, end] milliseconds."""


class BlockSource(Protocol):
    """Blocks of hourly aggregates; see `HourlyCache`."""

    async def blocks(self, worker_ids: Collection[str], start: int, end: int, field: str, scale: float = 1) -> list[HourBlock]:
        """Return the values of one field, divided by `scale`, in [start, end] milliseconds; raises StoreError."""


async def read(
    query: SeriesSelector,
    entries: Sequence[InventoryEntry],
    history: ColumnSource,
    hourly: BlockSource,
    *,
    period: int,
    oldest: int = 0,
    most: int = MAX_SAMPLES,
) -> list[Series]:
    """Return the encoded series of one query of a remote read request.

    Args:
        query: the selector and its range.
        entries: the inventory; a worker that is not in it has no series.
        history: the samples.
        hourly: the hourly aggregates, at the end of each hour.
        period: seconds of a sample.
        oldest: UTC second; samples before it are past retention.
        most: limit of samples.

    Raises:
        RequestError: a matcher is not a valid RE2 expression or takes too long, or the response would be too large.
        StoreError: MongoDB does not answer.
    """
    query = replace(query, start=max(query.start, oldest * 1000))
    if query.start > query.end:
        return []
    selection, of_samples, of_hours = await _matching(_select, query.matchers)
    found: list[Series] = []
    samples = 0
    for source in (
        _read_samples(query, selection, of_samples, entries, history, period),
        _read_hourly(query, selection, of_hours, entries, hourly, oldest),
    ):
        async for series in source:
            found.extend(series)
            samples += sum(each.samples for each in series)
            if samples > most or len(found) > MAX_SERIES:
                raise RequestError(
                    f"the response would have more than {most} samples or {MAX_SERIES} series; "
                    "name fewer workers or metrics, or a shorter range"
                )
    return found


async def _read_samples(
    query: SeriesSelector,
    selection: Selection,
    metrics: Sequence[HistoryMetric],
    entries: Sequence[InventoryEntry],
    history: ColumnSource,
    period: int,
) -> AsyncIterator[list[Series]]:
    """Yield the series of samples, worker by worker."""
    if not metrics:
        return
    newest = max((entry.last_seen for entry in entries), default=0)
    for metric in metrics:
        unknown = _LABELS_OF_SAMPLES.get(metric.name, ("region",))
        selected = await _matching(_accepted, metric, selection, entries, unknown)
        if not selected:
            continue
        async for worker_id, region, stamps, values in history.columns(selected.keys(), query.start, query.end, metric.field):
            column = _Column(selected[worker_id], region, stamps, values)
            gone_until = query.end if _is_gone(column.entry, newest) else None
            # In a thread: a month of a worker takes milliseconds of Python, in which the event loop would serve no scrape.
            yield await asyncio.to_thread(
                _encode_samples, metric, column, selection, period, gone_until, labels_only=query.labels_only
            )


async def _read_hourly(
    query: SeriesSelector,
    selection: Selection,
    metrics: Iterable[HourlyMetric],
    entries: Sequence[InventoryEntry],
    hourly: BlockSource,
    oldest: int,
) -> AsyncIterator[list[Series]]:
    """Yield the series of hourly aggregates, many workers at a time.

    Where a function has one window, each series is one sample with its result, of which the function makes the same: Prometheus
    need not decode a month of hours for one number. No other source has these series, as all have store="history".

    Raises:
        RequestError: the query needs more than MAX_WORKER_DAYS.
    """
    start = max(query.start, (oldest + HOUR) * 1000)  # all samples of an hour are within the retention
    end = query.end
    days = len(days_of(start // 1000, end // 1000))
    over_time = _OVER_TIME.get(query.sole_window)
    for metric in metrics:
        selected = await _matching(_select_workers, metric, selection, entries, start // 1000, end // 1000, days)
        for block in await hourly.blocks(selected.keys(), start, end, metric.field, metric.scale):
            if metric is INFO_1H:
                block = block._replace(values=array("d", [1]) * len(block.values))
            if over_time is not None:
                block = await asyncio.to_thread(block.reduced, over_time)
            size = max(1, _SAMPLES_PER_CALL // len(block.stamps))
            for first in range(0, len(block.rows), size):
                part = block.part(first, first + size)
                yield await asyncio.to_thread(_encode_hourly, metric, part, selected, selection, labels_only=query.labels_only)


def only_hourly_metrics(queries: Iterable[SeriesSelector]) -> bool:
    """Whether every query names an hourly metric."""
    names = {metric.name for metric in HOURLY_METRICS}
    return all(
        any(matcher.name == "__name__" and matcher.operator == "=" and matcher.value in names for matcher in query.matchers)
        for query in queries
    )


# -- which metrics and workers


async def _matching(function: Callable[..., T], *arguments: object) -> T:
    """Run a function that matches patterns in one of few threads: RE2 may take seconds for all workers."""
    return await asyncio.get_running_loop().run_in_executor(_MATCHING_THREADS, function, *arguments)


_ALL_WORKER_LABELS = frozenset((*STATUS.labels, *INFO.labels))
_LABELS_OF_SAMPLES = {STATUS.name: ("region", "status")}
"""Metric name → labels that are known only from its samples; for every other metric the region, since a worker may move."""


def _select(matchers: Sequence[Matcher]) -> tuple[Selection, list[HistoryMetric], list[HourlyMetric]]:
    """Compile the matchers, and return the metrics whose name is selected; hourly ones only by a matcher of `__name__`.

    The labels of all workers are compared for these metrics only.
    """
    selection = Selection(matchers)

    def selected(metrics: Iterable[M]) -> list[M]:
        return [metric for metric in metrics if selection.accepts(metric.labels, _ALL_WORKER_LABELS)]

    by_name = any(matcher.name == "__name__" for matcher in matchers)
    return selection, selected(HISTORY_METRICS), selected(HOURLY_METRICS) if by_name else []


def _accepted(
    metric: HistoryMetric | HourlyMetric, selection: Selection, entries: Iterable[InventoryEntry], unknown: Collection[str]
) -> dict[str, InventoryEntry]:
    """Return worker id → entry of each worker whose labels are accepted, without those that are `unknown` before a read."""
    if _is_info(metric):
        return {entry.worker_id: entry for entry in entries if selection.accepts(_known_labels(metric, entry), unknown)}
    if not selection.accepts(metric.labels, (*unknown, "worker_id")):
        return {}
    accepts = selection.test_of("worker_id")
    return {entry.worker_id: entry for entry in entries if accepts(entry.worker_id)}


def _select_workers(
    metric: HourlyMetric, selection: Selection, entries: Iterable[InventoryEntry], start: int, end: int, days: int
) -> dict[str, InventoryEntry]:
    """Return worker id → entry of each selected worker that may have samples in [start, end] UTC seconds.

    Raises:
        RequestError: they are too many for `days`.
    """
    selected = _accepted(metric, selection, (entry for entry in entries if _may_have_samples(entry, start, end)), ("region",))
    if len(selected) * days > MAX_WORKER_DAYS:  # only then are workers left out by the regions of the inventory
        selected = {worker_id: entry for worker_id, entry in selected.items() if _may_be_in_region(selection, entry)}
    if len(selected) * days > MAX_WORKER_DAYS:
        raise RequestError(
            f"hourly aggregates of {len(selected)} workers on {days} days exceed the limit of {MAX_WORKER_DAYS} worker days "
            "per query; name fewer workers, a region, or a shorter range"
        )
    return selected


def _may_have_samples(entry: InventoryEntry, start: int, end: int) -> bool:
    """Whether a worker may have samples in [start, end] UTC seconds; many in the inventory are long gone."""
    if entry.last_seen + _SLACK_SECONDS < start:
        return False
    begin = entry.first_seen if entry.created_at is None else min(entry.created_at, entry.first_seen)
    return begin - _SLACK_SECONDS <= end


def _may_be_in_region(selection: Selection, entry: InventoryEntry) -> bool:
    """Whether a region that the worker was seen in, or the absence of one, is selected."""
    regions = {entry.region, "", *(interval.region for interval in entry.instances)}
    return any(map(selection.test_of("region"), regions))


def _known_labels(metric: HistoryMetric | HourlyMetric, entry: InventoryEntry) -> dict[str, str]:
    """Return the labels that are known before a sample is read."""
    labels = metric.labels | {"worker_id": entry.worker_id}
    return labels | info_labels(entry.worker_id, entry) if _is_info(metric) else labels


def _is_info(metric: HistoryMetric | HourlyMetric) -> bool:
    """Whether the series has more labels of the worker than its id and region."""
    return metric is INFO_1H or (isinstance(metric, HistoryMetric) and metric.metric is INFO)


def _is_gone(entry: InventoryEntry, newest: int) -> bool:
    """Whether a worker's series end; `newest` is the UTC second at which a worker was seen last."""
    return entry.status == "terminated" or entry.last_seen < newest - GONE_AFTER_SECONDS


# -- encoding


class _Column(NamedTuple):
    """Values of one field of one worker in one region; times in milliseconds."""

    entry: InventoryEntry
    region: str
    stamps: Sequence[int]
    values: Sequence[Any]


def _encode_samples(
    metric: HistoryMetric, column: _Column, selection: Selection, period: int, gone_until: int | None, *, labels_only: bool
) -> list[Series]:
    """Encode the series of one worker, region and metric: one for each status that it had, otherwise one.

    Args:
        metric: the metric.
        column: its values.
        selection: which of the series.
        period: seconds of a sample.
        gone_until: end of the range in milliseconds for a worker that is gone, so that a stale marker follows; None otherwise.
        labels_only: without samples.
    """
    labels = _known_labels(metric, column.entry) | {"region": column.region}
    variants: list[tuple[dict[str, str], Callable[[Any], float]]]
    if metric.metric is STATUS:
        variants = [(labels | {"status": status}, status.__eq__) for status in sorted(set(column.values))]
    else:
        variants = [(labels, lambda value: value / metric.scale)]
    accepted = [variant for variant in variants if selection.accepts(variant[0])]
    if not accepted or labels_only:
        return [encode_series(labels, (), ()) for labels, _ in accepted]
    pairs = [(time, v) for time, v in in_order(column.stamps, column.values) if isinstance(v, str) or math.isfinite(v)]
    if not pairs:
        return []
    times = [time for time, _ in pairs]
    after = times[-1] + period * 1000
    stale_at = after if gone_until is not None and after <= gone_until else None
    return [encode_series(labels, times, [value(v) for _, v in pairs], stale_at=stale_at) for labels, value in accepted]


def _encode_hourly(
    metric: HourlyMetric,
    block: HourBlock,
    entries: Mapping[str, InventoryEntry],
    selection: Selection,
    *,
    labels_only: bool,
) -> list[Series]:
    """Encode one series per worker and region."""
    accepts = selection.test_of("region")
    regions = {region: accepts(region) for region in {region for _, region in block.rows}}
    labels = [
        _known_labels(metric, entries[worker_id]) | {"region": region} if regions[region] else None
        for worker_id, region in block.rows
    ]
    if labels_only:
        return [encode_series(each, (), ()) for each in labels if each is not None]
    return encode_table(labels, block.stamps, block.values)
