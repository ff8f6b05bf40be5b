"""The rows of the benchmark: the one table of what `make bench` can measure."""

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import httpx
from pymongo.errors import PyMongoError

from bench import commands, cycle, profile, reads, scrapes, starts, storage, views
from bench.context import Context
from bench.cycle import Load, Stand, shared_loads, stand
from bench.figures import Figure, Skipped
from exporter.core.errors import ExporterError

FAILED = "failed"
ERRORS = (
    AssertionError,
    RuntimeError,
    OSError,
    ValueError,
    httpx.HTTPError,
    PyMongoError,
    subprocess.SubprocessError,
    ExporterError,
)
"""What a row fails with when a process ends, does not answer, or answers something else."""


class Row(NamedTuple):
    """A row: the question that it answers, and the function that measures it."""

    question: str
    run: Callable[[Context], Iterator[Figure | Skipped]]


class MinuteRow(NamedTuple):
    """A row that is measured on processes whose cycles take a minute; such rows share them."""

    question: str
    run: Callable[[Context, Stand], Iterator[Figure | Skipped]]


MINUTE_ROWS: Mapping[str, MinuteRow] = {
    "cycle": MinuteRow("CPU, wall time, and memory of a cycle, beside YACE, cloudwatch_exporter, and bare calls", cycle.run),
    "scrape": MinuteRow("latency during a cycle, size, and CPU of a scrape, gzip and identity, beside the peers", scrapes.run),
    "freshness": MinuteRow("seconds from the first request of a cycle to /metrics and to the history", scrapes.freshness),
    "profile": MinuteRow("where the CPU of the exporter goes, by module: py-spy for a minute", profile.run),
}
OTHER_ROWS: Mapping[str, Row] = {
    "start": Row("seconds and CPU from the start to ready, every status, and every CPU value", starts.start),
    "cli": Row("`--version`, against importing the settings", starts.cli),
    "history": Row("the history API of one worker, against the bare query", reads.read_history),
    "remote_read": Row("remote read and PromQL over the history, against the bare query", reads.read_remotely),
    "statistics": Row("a day by hour of 100 workers in the library, against one aggregate", reads.statistics),
    "mirror": Row("samples from the outbox into the history, against a bare insert_many", reads.mirror),
    "backfill": Row("eight days of 100 workers into the history, against a bare insert_many", commands.backfill),
    "storage": Row("the disk that a sample takes in MongoDB", storage.storage),
    "pages": Row("pages, charts, and scrapes beside readers", views.load_pages),
    "gaps": Row("opening a day of gaps in the outbox", views.open_gaps),
    "panels": Row("opening every dashboard: Prometheus with the history behind it", views.open_panels),
}
ROWS: Mapping[str, Row | MinuteRow] = {**MINUTE_ROWS, **OTHER_ROWS}


def run(context: Context, names: Sequence[str]) -> Iterator[Figure | Skipped]:
    """Measure the rows of these names; a row that fails yields its error as `Skipped` with `FAILED`, and the next one runs."""
    minutes = [name for name in names if name in MINUTE_ROWS]
    for loads in shared_loads(context) if minutes else ():
        context.row = minutes[0]
        yield from attempt(context, partial(in_minutes, context, loads, minutes))
    for name in names:
        if name in OTHER_ROWS:
            context.row = name
            yield from attempt(context, partial(OTHER_ROWS[name].run, context))


def in_minutes(context: Context, loads: Sequence[Load], names: Sequence[str]) -> Iterator[Figure | Skipped]:
    """Measure rows on the same processes."""
    with stand(context, loads) as here:
        for name in names:
            context.row = name
            yield from attempt(context, partial(MINUTE_ROWS[name].run, context, here))


def attempt(context: Context, measure: Callable[[], Iterator[Figure | Skipped]]) -> Iterator[Figure | Skipped]:
    """Yield what is measured until it fails: the results of an hour must not be lost with those of one row."""
    try:
        yield from measure()
    except ERRORS as error:
        yield Skipped(context.row, FAILED, f"{type(error).__name__}: {error}")
