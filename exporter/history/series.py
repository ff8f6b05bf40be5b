"""The history as Prometheus series for remote read: selects workers and metrics, reads their values, and encodes them.

Every series has the label store="history". A sample is at the START of its period, an hourly aggregate at the end of its hour;
percent becomes a ratio.
"""

import asyncio
import math
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from exporter.history.hourly_cache import days_of
from exporter.history.matching import Selection
from exporter.history.remote_read import Series, SeriesSelector, encode_series, in_order

T = TypeVar("T")
M = TypeVar("M", "HistoryMetric", "HourlyMetric")
MAX_SAMPLES = 3_000_000
"""Samples in one response: 54 MB before compression. Prometheus's own limit for a whole query is 50 million."""
MAX_SERIES = 50_000
"""Series in one response."""
MAX_WORKER_DAYS = hourly_cache.MAX_CACHED_WORKER_DAYS
"""Days times workers in one response of hourly aggregates: a month of 1,250 workers."""
_WORKERS_PER_BATCH = 100
"""Workers whose hourly aggregates are encoded in one call: a change of threads takes as long as the work for one worker."""
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
    """Columns of samples or of hourly aggregates: the repository, and the hourly cache."""

    def columns(
        self, worker_ids: Collection[str], start: int, end: int, field: str | None
    ) -> AsyncIterator[tuple[str, str, Sequence[int], Sequence[Any]]]:
        """Yield (worker id, region, milliseconds, values) of one field in [start, end] milliseconds."""


async def read(
    query: SeriesSelector,
    entries: Sequence[InventoryEntry],
    history: ColumnSource,
    hourly: ColumnSource,
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
    selection = await _matching(Selection, query.matchers)
    found: list[Series] = []
    samples = 0
    for source in (
        _read_samples(query, selection, entries, history, period),
        _read_hourly(query, selection, entries, hourly, oldest),
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
    query: SeriesSelector, selection: Selection, entries: Sequence[InventoryEntry], history: ColumnSource, period: int
) -> AsyncIterator[list[Series]]:
    """Yield the series of samples, worker by worker."""
    newest = max((entry.last_seen for entry in entries), default=0)
    for metric in await _matching(_selected_metrics, HISTORY_METRICS, selection):
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
    query: SeriesSelector, selection: Selection, entries: Sequence[InventoryEntry], hourly: ColumnSource, oldest: int
) -> AsyncIterator[list[Series]]:
    """Yield the series of hourly aggregates, many workers at a time; only for a query with a matcher of `__name__`.

    Raises:
        RequestError: the query needs more than MAX_WORKER_DAYS.
    """
    if not any(matcher.name == "__name__" for matcher in query.matchers):
        return
    start = max(query.start, (oldest + HOUR) * 1000)  # all samples of an hour are within the retention
    end = query.end
    candidates = [entry for entry in entries if _may_have_samples(entry, start // 1000, end // 1000)]
    days = len(days_of(start // 1000, end // 1000))
    for metric in await _matching(_selected_metrics, HOURLY_METRICS, selection):
        selected = await _matching(_select_workers, metric, selection, candidates, days)
        columns: list[_Column] = []
        async for worker_id, region, stamps, values in hourly.columns(selected.keys(), start, end, metric.field):
            columns.append(_Column(selected[worker_id], region, stamps, values))
            if len(columns) == _WORKERS_PER_BATCH:
                yield await asyncio.to_thread(_encode_hourly, metric, columns, selection, labels_only=query.labels_only)
                columns = []
        yield await asyncio.to_thread(_encode_hourly, metric, columns, selection, labels_only=query.labels_only)


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
_ALL_BUT_REGION = _ALL_WORKER_LABELS - {"region"} | {"__name__", "store"}
_LABELS_OF_SAMPLES = {STATUS.name: ("region", "status")}
"""Metric name → labels that are known only from its samples; for every other metric the region, since a worker may move."""


def _selected_metrics(metrics: Sequence[M], selection: Selection) -> list[M]:
    """Return the metrics whose name is selected, so that the labels of all workers are compared for these only."""
    return [metric for metric in metrics if selection.accepts(metric.labels, _ALL_WORKER_LABELS)]


def _accepted(
    metric: HistoryMetric | HourlyMetric, selection: Selection, entries: Iterable[InventoryEntry], unknown: Collection[str]
) -> dict[str, InventoryEntry]:
    """Return worker id → entry of each worker whose labels are accepted, without those that are `unknown` before a read."""
    return {entry.worker_id: entry for entry in entries if selection.accepts(_known_labels(metric, entry), unknown)}


def _select_workers(
    metric: HourlyMetric, selection: Selection, candidates: Iterable[InventoryEntry], days: int
) -> dict[str, InventoryEntry]:
    """Return worker id → entry of each selected worker; raises RequestError when these are too many for `days`."""
    selected = _accepted(metric, selection, candidates, ("region",))
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
    begin = min((time for time in (entry.created_at, entry.first_seen) if time is not None), default=0)
    return begin - _SLACK_SECONDS <= end and start <= entry.last_seen + _SLACK_SECONDS


def _may_be_in_region(selection: Selection, entry: InventoryEntry) -> bool:
    """Whether a region that the worker was seen in, or the absence of one, is selected."""
    regions = {entry.region, "", *(interval.region for interval in entry.instances)}
    return any(selection.accepts({"region": region}, _ALL_BUT_REGION) for region in regions)


def _known_labels(metric: HistoryMetric | HourlyMetric, entry: InventoryEntry) -> dict[str, str]:
    """Return the labels that are known before a sample is read."""
    labels = metric.labels | {"worker_id": entry.worker_id}
    is_info = metric is INFO_1H or (isinstance(metric, HistoryMetric) and metric.metric is INFO)
    return labels | info_labels(entry.worker_id, entry) if is_info else labels


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
    metric: HourlyMetric, columns: Iterable[_Column], selection: Selection, *, labels_only: bool
) -> list[Series]:
    """Encode one series per worker and region."""
    found = []
    for entry, region, stamps, values in columns:
        labels = _known_labels(metric, entry) | {"region": region}
        if not selection.accepts(labels):
            continue
        if labels_only or metric is INFO_1H:
            values = array("d", [1]) * len(stamps)
        elif math.isnan(sum(values)):  # NaN: an hour with samples, but none with this field
            stamps = [stamp for stamp, value in zip(stamps, values, strict=True) if value == value]
            values = [value for value in values if value == value]
        if stamps:
            scaled = values if metric.scale == 1 else [value / metric.scale for value in values]
            found.append(encode_series(labels, () if labels_only else stamps, () if labels_only else scaled))
    return found
