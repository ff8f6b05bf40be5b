"""The page of the fleet's trends over HTTP: which workers and days, how long it waits, and what it says without figures."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from zoneinfo import ZoneInfo

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from exporter.core.errors import StoreError
from exporter.core.local_time import later_start
from exporter.core.periods import DAY
from exporter.history.hourly_cache import MAX_CACHED_WORKER_DAYS
from exporter.history.trends import Trends
from exporter.web.backend import Backend
from exporter.web.lookup import backend_of
from exporter.web.openapi import Parameter
from exporter.web.page_handlers import PAGE_HEADERS
from exporter.web.pages import trends_page as page_of_trends
from exporter.web.pages.trends_page import TrendsView, TrendWorker
from exporter.web.parameters import TZ
from exporter.web.query_values import given_values, single, whole_number, zone_named

TRENDS_SECONDS = 20
"""Seconds that the page waits for the history; what has been read by then is kept for the next try."""
DEFAULT_DAYS, MAX_DAYS = 30, 40
DAYS = Parameter(
    "days",
    f"Days, the last one is today. Fewer are shown where workers × days exceed {MAX_CACHED_WORKER_DAYS:,}. Default: "
    f"{DEFAULT_DAYS}.",
    {"type": "integer", "minimum": 1, "maximum": MAX_DAYS, "default": DEFAULT_DAYS},
)
TRENDS_TZ = replace(
    TZ,
    description="Time zone of the days and weeks, such as America/New_York. Where its midnight is not at a whole hour of UTC, "
    "the hour around it counts to the day in which it begins. Default: UTC.",
)
TRENDS = tuple(replace(each, empty=True) for each in (DAYS, TRENDS_TZ))


async def trends_page(request: Request) -> Response:
    """Respond with the page of the fleet by day and week, its busiest and idlest workers, and the cost of idle hours."""
    backend = backend_of(request)
    given = given_values([pair for pair in request.query_params.multi_items() if pair[1]], TRENDS)
    wanted, zone, now = whole_number(given, DAYS), zone_named(single(given, "tz")), int(backend.now())
    end = later_start(now, DAY, zone)
    workers: Mapping[str, TrendWorker] = {}
    found: Trends | None = None
    notice, days = _unavailable(backend), wanted
    if notice is None:
        try:
            workers = await _workers(backend, later_start(now, DAY, zone, 1 - wanted))
            days = max(1, min(wanted, MAX_CACHED_WORKER_DAYS // max(1, len(workers))))
            found = await _read(backend, workers, later_start(now, DAY, zone, 1 - days), end, zone)
        except StoreError as error:
            notice = f"No figures: {error} The page works again by itself once the history can be read."
        else:
            notice = _missing(found, workers, days)
    view = TrendsView(found, workers, days, wanted, end, now, notice, zone)
    return HTMLResponse(await asyncio.to_thread(page_of_trends.render, view, "./"), headers=PAGE_HEADERS)


def _unavailable(backend: Backend) -> str | None:
    """Return why there is no history to read, as a sentence; None: there is."""
    if backend.trends is None:
        return "No history is kept, because mongodb.history is null. Name a collection there to keep one."
    mongodb = backend.conditions().get("mongodb")
    if mongodb is not None and mongodb.error is not None:
        return "No figures: MongoDB cannot be read. Check that it runs and can be reached; the exporter needs no restart."
    return None


def _missing(found: Trends | None, workers: Mapping[str, TrendWorker], days: int) -> str | None:
    """Return why figures are missing and what to do, as a sentence; None: none are."""
    if found is None:
        return (
            f"The hours of {len(workers):,} workers over {days} days are still being read. Load this page again in half a "
            "minute: what has been read is kept."
        )
    if found.days:
        return None
    if not workers:
        return (
            "No workers are known in this range. The page / says whether the worker documents are read; they are the source of "
            "the fleet."
        )
    return (
        "No hour has a sample yet. The first one appears when the exporter has run for a full hour; if there is still "
        "none after two, run cml-worker-exporter check with the same configuration."
    )


async def _workers(backend: Backend, oldest: int) -> Mapping[str, TrendWorker]:
    """Return worker id → worker, of the fleet and of those that have left it since `oldest`, UTC second; raises StoreError."""
    entries = await backend.inventory()
    found = {
        entry.worker_id: TrendWorker(entry.display_name, entry.region, entry.instance_type, None)
        for entry in entries
        if entry.last_seen >= oldest
    }
    snapshot = backend.snapshot
    for gauge in snapshot.workers if snapshot else ():
        worker = gauge.worker
        found[worker.id] = TrendWorker(worker.display_name, worker.region, worker.instance_type, None)
    prices = backend.hourly_price
    return {key: each._replace(price=prices.get(each.instance_type or "")) for key, each in found.items()}


async def _read(
    backend: Backend, workers: Mapping[str, TrendWorker], start: int, end: int, zone: ZoneInfo | None
) -> Trends | None:
    """Return the figures, None while they are still being read; raises StoreError."""
    assert backend.trends is not None
    prices = {worker_id: worker.price for worker_id, worker in workers.items()}
    return await backend.trends.read(prices, start, end, TRENDS_SECONDS, zone)
