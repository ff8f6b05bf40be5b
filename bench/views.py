"""Rows `pages`, `panels`, and `gaps`: the modules `bench.pages`, `bench.panels`, and `bench.gaps` as rows."""

import argparse
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from io import StringIO

import httpx
from pymongo import MongoClient

from bench import gaps, pages, panels
from bench.context import Context
from bench.figures import EXPORTER, Figure, Skipped
from bench.history import Document, database, worker_id
from bench.reads import serving
from exporter.core.periods import HOUR, align
from exporter.demo.prometheus import INSTALL

MAX_WORKERS, READERS, SCRAPES = 1000, 2, 300
PANEL_DAYS, PANEL_SCRAPE_SECONDS = 14, 120


def load_pages(context: Context) -> Iterator[Figure]:
    """Row `pages`: the time of each page and chart alone, and of scrapes beside readers of the fleet page."""
    worker, workers = worker_id(1), min(MAX_WORKERS, context.sizes[-1])
    paths = {
        "fleet page": "/",
        "worker page": f"/workers/{worker}",
        "chart": f"/workers/{worker}/chart.svg",
        "trends page": "/trends",
        "compare page": f"/compare?worker={worker}&worker={worker_id(2)}",
    }
    for build in context.builds:
        with ExitStack() as stack:
            _, uri, _ = stack.enter_context(database())
            with MongoClient[Document](uri, tz_aware=True) as client:
                pages.fill(client, workers, align(int(time.time()), HOUR))
            http, address = stack.enter_context(serving(build, uri, context.new_folder(stack)))
            url = f"http://{address}"
            alone, beside, loads = pages.timings(url, workers, READERS, SCRAPES, "/")
            case, subject = f"{workers:,} workers", build.named(EXPORTER)
            for name, took in (("scrape alone", alone), ("scrape beside readers", beside), ("fleet page, two readers", loads)):
                yield Figure("pages", case, f"{name}, p50", subject, "ms", (statistics.median(took) * 1000,))
                yield Figure("pages", case, f"{name}, p99", subject, "ms", (statistics.quantiles(took, n=100)[98] * 1000,))
            for name, path in paths.items():
                yield Figure("pages", case, name, subject, "ms", tuple(page_times(http, path, context.repeat)))
                context.progress(name)


def page_times(http: httpx.Client, path: str, repeat: int) -> list[float]:
    """Return the milliseconds of some loads of a page after the first."""
    took = []
    for number in range(repeat + 1):
        began = time.perf_counter()
        http.get(path).raise_for_status()
        if number:
            took.append((time.perf_counter() - began) * 1000)
    return took


def open_panels(context: Context) -> Iterator[Figure | Skipped]:
    """Row `panels`: opening each dashboard, cold and again."""
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        yield Skipped("panels", "dashboards", f"prometheus and promtool are not on PATH; {INSTALL}")
        return
    workers = min(MAX_WORKERS, context.sizes[-1]) // (1 if context.full else 10)
    options = argparse.Namespace(
        workers=workers, days=PANEL_DAYS, scrape=PANEL_SCRAPE_SECONDS, repeat=3, worst=0, before=None, json=None
    )
    context.progress(f"{workers:,} workers, {PANEL_DAYS} days; some minutes")
    with redirect_stdout(StringIO()):
        found = panels.run(options)["after"]
    case = f"{workers:,} workers, {PANEL_DAYS} days"
    for uid, (cold, warm) in found["opened"].items():
        yield Figure("panels", case, f"{uid}, cold", "Grafana's queries", "s", (cold.seconds,))
        yield Figure("panels", case, f"{uid}, again", "Grafana's queries", "s", (warm.seconds,))
    yield Figure("panels", case, "a panel", "Grafana's queries", "s", tuple(each["seconds"] for each in found["panels"]))


def open_gaps(context: Context) -> Iterator[Figure]:
    """Row `gaps`: the CPU of opening a day of gaps."""
    workers = min(MAX_WORKERS, context.sizes[-1])
    fleet = gaps.fleet_of(workers)
    took: dict[str, list[float]] = {"rows one by one": [], EXPORTER: []}
    for _ in range(context.repeat):
        for name, way in (("rows one by one", gaps.row_by_row), (EXPORTER, gaps.as_runs)):
            took[name].append(gaps.measure(way, fleet)[0] * 1000 / workers)
    for name, values in took.items():
        yield Figure("gaps", f"{workers:,} workers, a day", "own CPU a worker", name, "ms", tuple(values))
