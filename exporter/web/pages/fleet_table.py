"""The workers that the fleet page shows: what of them, which of them, in which order. Pure functions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from exporter.core.model import STATUSES, Worker, WorkerGauges
from exporter.web.fleet_query import FleetQuery, Sort

PAGE_ROWS = 50
"""Workers on a page."""
_RANKS = {status: rank for rank, status in enumerate(STATUSES)}


class ShownWorker(NamedTuple):
    """What the page shows of a worker; None where it is not known, or too old for /metrics."""

    worker: Worker
    status: str | None
    cpu: float | None
    """Percent; None also for a worker that is not running, as in the following."""
    memory: float | None
    labs: int | None
    active_at: int | None
    """UTC second of the last activity."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures of all workers, whatever is filtered; None where no status is known."""

    workers: int
    running: int | None
    idle: int | None
    """Running without a lab."""
    labs: int | None
    cpu: float | None
    """Mean of the running workers that have a value, percent."""
    memory: float | None


@dataclass(frozen=True, slots=True)
class Selection:
    """A page of the table.

    Attributes:
        rows: the workers of the page.
        matches: how many workers the filter leaves.
        page: the page shown, from 1.
        pages: how many there are, at least 1.
        statuses: status → workers with it, in the order of a worker's life.
        regions: region → workers in it, sorted.
        totals: of all workers.
    """

    rows: Sequence[ShownWorker]
    matches: int
    page: int
    pages: int
    statuses: Mapping[str, int]
    regions: Mapping[str, int]
    totals: Totals


def shown(gauge: WorkerGauges, fresh: bool) -> ShownWorker:
    """Return what is shown of a worker.

    Args:
        gauge: of the newest collection cycle.
        fresh: whether that cycle is recent enough for /metrics to show its values.
    """
    worker = gauge.worker
    state = fresh and gauge.show_state
    load = fresh and gauge.show_load and worker.status == "running"
    return ShownWorker(
        worker,
        worker.status if state else None,
        gauge.cpu if load else None,
        gauge.memory if load else None,
        gauge.active_labs if state else None,
        worker.last_activity_at if load and state else None,
    )


def select(gauges: Sequence[WorkerGauges], query: FleetQuery, fresh: bool) -> Selection:
    """Return the page of the table that a query asks for; `fresh` as in `shown`."""
    fleet = [shown(gauge, fresh) for gauge in gauges]
    matching = [each for each in fleet if _matches(each, query)] if query.filters else fleet
    pages = max(1, -(-len(matching) // PAGE_ROWS))
    page = min(query.page, pages)
    first = (page - 1) * PAGE_ROWS
    statuses = Counter(each.status for each in fleet if each.status is not None)
    regions = Counter(each.worker.region for each in fleet if each.worker.region)
    return Selection(
        _sorted(matching, query)[first : first + PAGE_ROWS],
        len(matching),
        page,
        pages,
        {status: statuses[status] for status in STATUSES if statuses[status] or status in query.statuses},
        {region: regions[region] for region in sorted(regions.keys() | query.regions)},
        _totals(fleet),
    )


def _matches(found: ShownWorker, query: FleetQuery) -> bool:
    worker = found.worker
    if query.statuses and found.status not in query.statuses:
        return False
    if query.regions and worker.region not in query.regions:
        return False
    texts = (worker.name, worker.id, worker.instance_id, worker.instance_type, worker.region, found.status)
    wanted = query.search.casefold()
    return not wanted or any(wanted in text.casefold() for text in texts if text)


_VALUES: Mapping[Sort, Callable[[ShownWorker], str | float | None]] = {
    "name": lambda found: found.worker.display_name.casefold(),
    "region": lambda found: found.worker.region or None,
    "status": lambda found: None if found.status is None else _RANKS.get(found.status, len(_RANKS)),
    "cpu": lambda found: found.cpu,
    "memory": lambda found: found.memory,
    "labs": lambda found: found.labs,
    "idle": lambda found: None if found.active_at is None else -found.active_at,
}


def _sorted(found: Sequence[ShownWorker], query: FleetQuery) -> list[ShownWorker]:
    """Return the workers by the value of a column, those without one last, equal ones by id."""
    value = _VALUES[query.sort]
    keyed = [(value(each), each) for each in sorted(found, key=lambda each: each.worker.id)]
    known = [pair for pair in keyed if pair[0] is not None]
    known.sort(key=lambda pair: pair[0], reverse=query.order == "desc")  # type: ignore[arg-type,return-value]  # of one type
    return [each for _, each in known] + [each for key, each in keyed if key is None]


def _totals(fleet: Sequence[ShownWorker]) -> Totals:
    cpu = [each.cpu for each in fleet if each.cpu is not None]
    memory = [each.memory for each in fleet if each.memory is not None]
    mean_cpu, mean_memory = (fmean(values) if values else None for values in (cpu, memory))
    if fleet and all(each.status is None for each in fleet):
        return Totals(len(fleet), None, None, None, mean_cpu, mean_memory)
    running = [each for each in fleet if each.status == "running"]
    return Totals(
        len(fleet),
        len(running),
        sum(each.labs == 0 for each in running),
        sum(each.labs or 0 for each in fleet),
        mean_cpu,
        mean_memory,
    )
