"""The history as Prometheus series: which there are, under what labels, and their samples, as remote read answers them.

Every series has the label store="history". Values stand at the START of their period; percent becomes a ratio.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from exporter.catalog import ACTIVE_LABS, CPU, INFO, MEMORY, STATUS, WORKER_LABELS, Metric
from exporter.model import InventoryEntry
from exporter.remote_read import BadRequest, Query, Selection, Series, encode_series, in_order

STORE = "history"
"""The value of the label `store`; Prometheus' required_matchers name it."""
MAX_SAMPLES = 3_000_000
"""Samples in one answer: 54 MB before compression. Prometheus' own limit for a whole query is 50 million."""
MAX_SERIES = 50_000
GONE = 900
"""Seconds. A worker last seen so long before the newest observation has left: its series end."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric of the catalog that the history has too, and where its values come from."""

    metric: Metric
    field: str | None
    """Of a sample; one without it is not in the family. None: every sample is."""
    scale: float = 1
    """What a value is divided by."""


FAMILIES: tuple[Family, ...] = (
    Family(INFO, None),
    Family(STATUS, "status"),
    Family(CPU, "cpu_utilization", 100),
    Family(MEMORY, "memory_utilization", 100),
    Family(ACTIVE_LABS, "active_labs_count"),
)
"""In the order of an export; the info series has a point for every sample."""


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


class Columns(Protocol):
    """What is needed of the history."""

    def columns(
        self, worker_ids: Collection[str], start: int, end: int, field: str | None
    ) -> AsyncIterator[tuple[str, str, list[int], list[Any]]]:
        """Yield (worker id, region, milliseconds, values) of one field in [start, end] milliseconds."""


async def read(
    query: Query, entries: Sequence[InventoryEntry], history: Columns, *, period: int, most: int = MAX_SAMPLES
) -> list[Series]:
    """Answer one query of a remote read.

    Args:
        query: what is asked for.
        entries: the inventory; a worker it does not know has no series.
        history: where the samples are.
        period: of the history, in seconds.
        most: samples there may be.

    Raises:
        BadRequest: a matcher is no RE2 expression, or the answer would have too many samples.
        StoreError: MongoDB does not answer.
    """
    selection = Selection(query.matchers)
    newest = max((entry.last_seen for entry in entries), default=0)
    found: list[Series] = []
    total = 0
    for family in FAMILIES:
        unknown = _READ.get(family.metric.name, ("region",))
        chosen = {entry.worker_id: entry for entry in entries if selection.accepts(_fixed(family, entry), unknown)}
        if not chosen or query.start > query.end:
            continue
        async for worker_id, region, stamps, values in history.columns(chosen.keys(), query.start, query.end, family.field):
            entry = chosen[worker_id]
            end = None if not _is_gone(entry, newest) else query.end
            # In a thread: a month of a worker is milliseconds of Python in which no scrape would be answered.
            series = await asyncio.to_thread(
                _series, family, entry, region, stamps, values, selection, period, end, query.labels_only
            )
            found += series
            total += sum(each.samples for each in series)
            if total > most or len(found) > MAX_SERIES:
                raise BadRequest(
                    f"the answer would have more than {most} samples or {MAX_SERIES} series; "
                    "name fewer workers or metrics, or a shorter range"
                )
    return found


_READ = {STATUS.name: ("region", "status")}
"""The labels that only the samples tell; of all series the region, since a worker may have moved."""


def _fixed(family: Family, entry: InventoryEntry) -> dict[str, str]:
    """The labels known before a sample is read."""
    labels = {"__name__": family.metric.name, "worker_id": entry.worker_id, "store": STORE}
    return labels | facts(entry) if family.metric is INFO else labels


def _is_gone(entry: InventoryEntry, newest: int) -> bool:
    return entry.status == "terminated" or entry.last_seen < newest - GONE


def _series(
    family: Family,
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
