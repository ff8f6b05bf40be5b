"""The history as Prometheus series: which there are, under what labels, and their samples, as remote read answers them.

Every series has the label store="history". Values stand at the START of their period; percent becomes a ratio.
"""

import asyncio
import math
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from exporter.core.catalog import INFO, STATUS, WORKER_LABELS
from exporter.core.errors import RequestError
from exporter.core.history_metrics import (
    GONE_AFTER_SECONDS,
    HISTORY_METRICS,
    HOURLY_METRICS,
    INFO_1H,
    STORE,
    HistoryMetric,
    HourlyMetric,
)
from exporter.core.model import InventoryEntry
from exporter.core.periods import DAY, HOUR
from exporter.history import hourly_cache
from exporter.history.hourly_cache import days_of
from exporter.history.remote_read import Selection, Series, SeriesSelector, encode_series, in_order

F = TypeVar("F", "HistoryMetric", "HourlyMetric")
MAX_SAMPLES = 3_000_000
"""Samples in one answer: 54 MB before compression. Prometheus' own limit for a whole query is 50 million."""
MAX_SERIES = 50_000
MAX_DAYS = hourly_cache.MAX_CACHED_WORKER_DAYS
"""Days of single workers in one answer by the hour: a month of 1,250 workers."""
_TOGETHER = 100
"""Workers whose hours are encoded in one go: to change threads for each takes as long as the work."""
_SLACK = DAY
"""Seconds before a worker was first seen, and after it was last, from which there may be samples all the same."""


def facts(entry: InventoryEntry | None) -> dict[str, str]:
    """The labels of the info series; empty, which Prometheus takes for absent, where nothing is known."""
    names = [name for name in INFO.labels if name not in WORKER_LABELS]
    if entry is None:
        return dict.fromkeys(names, "")
    known = {
        "name": entry.name,
        "instance_id": entry.instances[-1].instance_id if entry.instances else None,
        "instance_type": entry.instance_type,
        "cml_version": entry.cml_version,
    }
    return {name: known[name] or "" for name in names}


class ColumnSource(Protocol):
    """What is needed of the history."""

    def columns(
        self, worker_ids: Collection[str], start: int, end: int, field: str | None
    ) -> AsyncIterator[tuple[str, str, Sequence[int], Sequence[Any]]]:
        """Yield (worker id, region, milliseconds, values) of one field in [start, end] milliseconds."""


async def read(
    query: SeriesSelector,
    entries: Sequence[InventoryEntry],
    history: ColumnSource,
    by_hour: ColumnSource,
    *,
    period: int,
    oldest: int = 0,
    most: int = MAX_SAMPLES,
) -> list[Series]:
    """Answer one query of a remote read.

    Args:
        query: what is asked for.
        entries: the inventory; a worker it does not know has no series.
        history: where the samples are.
        by_hour: the same by the hour, at the hours' ends.
        period: of the history, in seconds.
        oldest: UTC second; samples before it are past retention.
        most: samples there may be.

    Raises:
        RequestError: a matcher is no RE2 expression, or the answer would have too many samples.
        StoreError: MongoDB does not answer.
    """
    start, end = max(query.start, oldest * 1000), query.end
    if start > end:
        return []
    selection = Selection(query.matchers)
    newest = max((entry.last_seen for entry in entries), default=0)
    found: list[Series] = []
    total = 0

    def take(series: Sequence[Series]) -> None:
        nonlocal total
        found.extend(series)
        total += sum(each.samples for each in series)
        if total > most or len(found) > MAX_SERIES:
            raise _too_much(f"{most} samples or {MAX_SERIES} series")

    for family in _asked(HISTORY_METRICS, selection):
        unknown = _READ.get(family.metric.name, ("region",))
        chosen = {entry.worker_id: entry for entry in entries if selection.accepts(_fixed(family, entry), unknown)}
        if not chosen:
            continue
        async for worker_id, region, stamps, values in history.columns(chosen.keys(), start, end, family.field):
            entry = chosen[worker_id]
            until = end if _is_gone(entry, newest) else None
            # In a thread: a month of a worker is milliseconds of Python in which no scrape would be answered.
            take(
                await asyncio.to_thread(
                    _series, family, entry, region, stamps, values, selection, period, until, query.labels_only
                )
            )
    by_name = any(matcher.name == "__name__" for matcher in query.matchers)
    start = max(start, (oldest + HOUR) * 1000)  # of an hour all samples count
    there = [entry for entry in entries if _was_there(entry, start // 1000, end // 1000)]
    days = len(days_of(start // 1000, end // 1000))
    for rollup in _asked(HOURLY_METRICS if by_name else (), selection):
        chosen = {entry.worker_id: entry for entry in there if selection.accepts(_fixed(rollup, entry), ("region",))}
        if len(chosen) * days > MAX_DAYS:  # then a worker is only looked for where it is known to have been
            chosen = {key: entry for key, entry in chosen.items() if _may_be_in_a_region(selection, entry)}
        if len(chosen) * days > MAX_DAYS:
            raise RequestError(
                f"{len(chosen)} workers on {days} days are more than the {MAX_DAYS} days of single workers that are read "
                "together; name fewer workers, a region, or a shorter range"
            )
        parts: list[tuple[InventoryEntry, str, Sequence[int], Sequence[float]]] = []
        async for worker_id, region, stamps, values in by_hour.columns(chosen.keys(), start, end, rollup.field):
            parts.append((chosen[worker_id], region, stamps, values))
            if len(parts) == _TOGETHER:
                take(await asyncio.to_thread(_hours, rollup, parts, selection, query.labels_only))
                parts = []
        take(await asyncio.to_thread(_hours, rollup, parts, selection, query.labels_only))
    return found


def only_hours(queries: Iterable[SeriesSelector]) -> bool:
    """Whether every query names a series that is by the hour."""
    names = {rollup.name for rollup in HOURLY_METRICS}
    return all(
        any(each.name == "__name__" and each.operator == "=" and each.value in names for each in query.matchers)
        for query in queries
    )


def _asked(families: Sequence[F], selection: Selection) -> list[F]:
    """Those whose name is one that is asked for: so most workers' labels need not be looked at."""
    return [family for family in families if selection.accepts({"__name__": family.name, "store": STORE}, _OF_A_WORKER)]


def _was_there(entry: InventoryEntry, start: int, end: int) -> bool:
    """Whether a worker may have samples in [start, end] UTC seconds: most of those that are remembered may be long gone."""
    begin = min((time for time in (entry.created_at, entry.first_seen) if time is not None), default=0)
    return begin - _SLACK <= end and start <= entry.last_seen + _SLACK


def _may_be_in_a_region(selection: Selection, entry: InventoryEntry) -> bool:
    """Whether one of the regions a worker was seen in, or none, is asked for."""
    regions = {entry.region, "", *(sighting.region for sighting in entry.instances)}
    return any(selection.accepts({"region": region}, _ALL_BUT_REGION) for region in regions)


def _too_much(what: str) -> RequestError:
    return RequestError(f"the answer would have more than {what}; name fewer workers or metrics, or a shorter range")


_OF_A_WORKER = frozenset((*STATUS.labels, *INFO.labels))
_ALL_BUT_REGION = _OF_A_WORKER - {"region"} | {"__name__", "store"}
_READ = {STATUS.name: ("region", "status")}
"""The labels that only the samples tell; of all series the region, since a worker may have moved."""


def _fixed(family: HistoryMetric | HourlyMetric, entry: InventoryEntry) -> dict[str, str]:
    """The labels known before a sample is read."""
    labels = {"__name__": family.name, "worker_id": entry.worker_id, "store": STORE}
    described = family is INFO_1H or (isinstance(family, HistoryMetric) and family.metric is INFO)
    return labels | facts(entry) if described else labels


def _is_gone(entry: InventoryEntry, newest: int) -> bool:
    return entry.status == "terminated" or entry.last_seen < newest - GONE_AFTER_SECONDS


def _series(
    family: HistoryMetric,
    entry: InventoryEntry,
    region: str,
    stamps: Sequence[int],
    values: Sequence[Any],
    selection: Selection,
    period: int,
    gone_until: int | None,
    labels_only: bool,
) -> list[Series]:
    """Encode the series of one worker, region and metric; one for each status it had, else one."""
    labels = _fixed(family, entry) | {"region": region}
    variants: list[tuple[dict[str, str], Callable[[Any], float]]]
    if family.metric is STATUS:
        variants = [(labels | {"status": each}, each.__eq__) for each in sorted(set(values))]
    else:
        variants = [(labels, lambda value: value / family.scale)]
    accepted = [variant for variant in variants if selection.accepts(variant[0])]
    if not accepted or labels_only:
        return [encode_series(each, (), ()) for each, _ in accepted]
    pairs = [(time, v) for time, v in in_order(stamps, values) if isinstance(v, str) or math.isfinite(v)]
    if not pairs:
        return []
    times = [time for time, _ in pairs]
    after = times[-1] + period * 1000
    stale_at = after if gone_until is not None and after <= gone_until else None
    return [encode_series(each, times, [value(v) for _, v in pairs], stale_at=stale_at) for each, value in accepted]


def _hours(
    rollup: HourlyMetric,
    parts: Sequence[tuple[InventoryEntry, str, Sequence[int], Sequence[float]]],
    selection: Selection,
    labels_only: bool,
) -> list[Series]:
    """Encode the series of each worker and region."""
    found = []
    for entry, region, stamps, values in parts:
        labels = _fixed(rollup, entry) | {"region": region}
        if not selection.accepts(labels):
            continue
        if labels_only or rollup is INFO_1H:
            values = array("d", [1]) * len(stamps)
        elif any(value != value for value in values):  # NaN: an hour with samples, but none of this metric
            stamps = [stamp for stamp, value in zip(stamps, values, strict=True) if value == value]
            values = [value for value in values if value == value]
        if stamps:
            scaled = values if rollup.scale == 1 else [value / rollup.scale for value in values]
            found.append(encode_series(labels, () if labels_only else stamps, () if labels_only else scaled))
    return found
