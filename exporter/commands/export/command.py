"""`cml-worker-exporter export`: the history as a file, as OpenMetrics, CSV, line protocol or Parquet, or copied elsewhere.

Memory does not grow with the history: it is read page by page, and what must be written in another order waits in `open_spool`.
A file appears under its name only when it is complete.
"""

import asyncio
import json
import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any, TextIO
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from exporter.commands.exit_status import CLOSED_PIPE
from exporter.commands.export.batches import batches
from exporter.commands.export.copying import Journal, copy_to_store
from exporter.commands.export.openmetrics import text
from exporter.commands.export.request import ExportRequest
from exporter.commands.export.sink import STDOUT, Sink, destination
from exporter.commands.export.spool import KEYS, open_spool
from exporter.commands.terminal import say
from exporter.core.errors import ConfigError, StoreUnavailableError
from exporter.core.history_metrics import HISTORY_METRICS
from exporter.core.model import InventoryEntry
from exporter.core.periods import format_duration, rfc3339, to_datetime
from exporter.core.settings import Settings
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import connect
from exporter.storage.repository import WorkerMetricsRepository, repository, require_history
from exporter.storage.rows import number
from exporter.storage.sample_stream import TIME, Pages, stream
from exporter.stores.line_protocol import lines

CSV_COLUMNS = (
    "worker_id",
    "name",
    "region",
    "timestamp",
    "cpu_utilization",
    "memory_utilization",
    "active_labs_count",
    "status",
)
_TO_QUOTE = re.compile(r'[",\r\n]')

Entries = Mapping[str, InventoryEntry]
Write = Callable[[str], None]
Step = Callable[[], None]
"""Called when a worker has been read, or written."""


@dataclass(slots=True)
class Counts:
    """The figures of an export."""

    workers: int = 0
    samples: int = 0
    points: int = 0
    """Lines with a value: an OpenMetrics file has several for each sample."""


async def run(settings: Settings, request: ExportRequest, err: TextIO) -> int:
    """Export the history; show the progress on `err` if that is a terminal, and at the end the figures.

    Returns:
        The exit status: 0 done, CLOSED_PIPE when the reader of standard output has ended.

    Raises:
        ConfigError: the request cannot be exported; the message says why.
        StoreError: MongoDB does not answer, or not to the end.
        ExporterError: the output cannot be written. After any of these there is no file.
    """
    name = require_history(settings, "export")
    if request.to is not None:
        journal = Journal.of(settings.data_dir, request)
        request = replace(request, since=journal.since, until=journal.until)
    if request.since >= request.until:
        raise ConfigError(
            f"--since: {rfc3339(request.since)} is not before --until, {rfc3339(request.until)}; swap or mend them"
        )
    started = time.monotonic()
    client, database = connect(settings)
    async with client:
        history, inventory = repository(settings, database, name), Inventory(database)
        history.collection.retention = await history.collection.current_retention()
        await inventory.load()
        workers = await _workers(history, request)
        if request.to is not None:
            with _progress(err, len(workers)) if err.isatty() else nullcontext(_silent) as step:
                pages = partial(_pages, history, request=request, keys=KEYS, step=step)
                return await copy_to_store(journal, request, workers, inventory.entries, pages, err)
        try:
            with destination(request.output) as sink:
                counts = await _write(history, inventory.entries, workers, request, sink, err)
        except BrokenPipeError:
            return CLOSED_PIPE
        except StoreUnavailableError as error:
            raise _broken_off(error, history.namespace) from error
    _summarize(request, history, counts, time.monotonic() - started, err)
    return 0


async def _workers(history: WorkerMetricsRepository, request: ExportRequest) -> list[str]:
    if not request.workers:
        return await history.reader.workers(request.since, request.until)
    chosen = sorted(set(request.workers))
    unknown = [worker_id for worker_id in chosen if await history.reader.extent(worker_id) is None]
    if unknown:
        raise ConfigError(
            f"--worker: {history.namespace} has no sample of {', '.join(map(repr, unknown))}; GET /api/workers lists the ids"
        )
    return chosen


async def _write(
    history: WorkerMetricsRepository,
    entries: Entries,
    workers: Sequence[str],
    request: ExportRequest,
    sink: Sink,
    err: TextIO,
) -> Counts:
    # Not where the export itself may appear on the same terminal, as that of `export | head` does.
    seen = err.isatty() and (request.output is not None or stat.S_ISREG(os.fstat(STDOUT).st_mode))
    steps = len(workers) * (1 + len(HISTORY_METRICS) if request.format == "openmetrics" else 1)
    with _progress(err, steps) if seen else nullcontext(_silent) as step:
        if request.format == "openmetrics":
            return await _write_openmetrics(history, entries, workers, request, sink.write, step)
        return await _write_pages(history, entries, workers, request, sink, step)


async def _write_openmetrics(
    history: WorkerMetricsRepository, entries: Entries, workers: Sequence[str], request: ExportRequest, write: Write, step: Step
) -> Counts:
    """Read all samples once, then write them family by family, as the format wants it."""
    counts = Counts()

    def written(points: int) -> None:
        counts.points += points
        step()

    with open_spool() as gathered:
        async for worker_id, page in _pages(history, workers, request, KEYS, step):
            gathered.add(worker_id, page)
        gathered.finish()
        counts.workers = len({block.worker_id for block in gathered.blocks})
        counts.samples = sum(block.samples for block in gathered.blocks)
        for lines in text(gathered, entries, written):
            write(lines)
            await asyncio.sleep(0)  # where Ctrl-C ends it
    return counts


async def _write_pages(
    history: WorkerMetricsRepository, entries: Entries, workers: Sequence[str], request: ExportRequest, sink: Sink, step: Step
) -> Counts:
    """Write a format that takes the samples in the order in which they are read."""
    counts, seen = Counts(), set[str]()
    add, finish = _page_writer(request, entries, sink)
    async for worker_id, page in _pages(history, workers, request, KEYS, step):
        add(worker_id, page)
        seen.add(worker_id)
        counts.samples += len(page)
        await asyncio.sleep(0)  # where Ctrl-C ends it
    finish()
    counts.workers = len(seen)
    return counts


def _page_writer(request: ExportRequest, entries: Entries, sink: Sink) -> tuple[Callable[[str, list[Any]], None], Step]:
    """Return what writes a page of a worker's documents, and what ends the output."""

    def name_of(worker_id: str) -> str | None:
        entry = entries.get(worker_id)
        return entry.name if entry else None

    if request.format == "parquet":
        from exporter.commands.export.parquet import ParquetWriter  # an extra

        writer = ParquetWriter(sink.write_bytes)
        return lambda worker_id, page: writer.add(worker_id, name_of(worker_id), page), writer.finish
    if request.format == "influx":
        return lambda worker_id, page: sink.write("".join(influx_lines(worker_id, page))), _silent
    sink.write(",".join(CSV_COLUMNS) + "\r\n")
    return lambda worker_id, page: sink.write(csv_rows(worker_id, name_of(worker_id) or "", page, request.zone)), _silent


def influx_lines(worker_id: str, documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield InfluxDB's line of each document with TIME; the time in nanoseconds, which its programs expect of a file."""
    for batch in batches(worker_id, documents, {}):
        yield from (f"{line}000000\n" for line in lines(batch))


async def _pages(
    history: WorkerMetricsRepository, workers: Sequence[str], request: ExportRequest, keys: Sequence[str], step: Step
) -> Pages:
    last = None
    async with aclosing(stream(history.collection, workers, request.since, request.until, keys)) as pages:
        async for worker_id, page in pages:
            yield worker_id, page
            if worker_id != last:
                step()
            last = worker_id


def csv_rows(worker_id: str, name: str, documents: Sequence[Mapping[str, Any]], zone: ZoneInfo | None = None) -> str:
    """Return the rows of CSV_COLUMNS (RFC 4180) of some documents with TIME, in a zone's time; what is missing is empty."""
    who = f"{_quoted(worker_id)},{_quoted(name)},"
    regions = [_text(document.get("region")) for document in documents]
    times = [_instant(document[TIME], zone) for document in documents]
    cpu = _numbers([document.get("cpu_utilization") for document in documents])
    memory = _numbers([document.get("memory_utilization") for document in documents])
    labs = [_count(document.get("active_labs_count")) for document in documents]
    statuses = [_text(document.get("status")) for document in documents]
    rows = zip(regions, times, cpu, memory, labs, statuses, strict=True)
    return "".join([f"{who}{','.join(row)}\r\n" for row in rows])


def _numbers(values: list[Any]) -> list[str]:
    """The shortest text of each value; a whole page of ordinary ones is not looked at one by one."""
    if set(map(type, values)) == {float} and all(map(math.isfinite, values)):
        return list(map(repr, values))
    return ["" if number(value) is None else repr(value) for value in values]


@lru_cache(maxsize=1024, typed=True)
def _count(value: object) -> str:
    count = number(value)
    return "" if count is None else str(int(count))


@lru_cache(maxsize=1024)
def _text(value: object) -> str:
    return "" if value is None else _quoted(str(value))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _TO_QUOTE.search(text) else text


@lru_cache(maxsize=65_536)  # all workers have their samples at the same times
def _instant(milliseconds: int, zone: ZoneInfo | None) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    if zone is not None:
        return to_datetime(milliseconds / 1000).astimezone(zone).isoformat(timespec="milliseconds" if rest else "seconds")
    return f"{rfc3339(seconds)[:-1]}.{rest:03}Z" if rest else rfc3339(seconds)


# -- messages ----------------------------------------------------------------------------------------------------------


def _broken_off(error: StoreUnavailableError, namespace: str) -> StoreUnavailableError:
    """Reword an error for the operator: `export` does not try again by itself."""
    cause = error.__cause__
    why = str(cause).partition(", full error:")[0].partition(", Timeout:")[0]
    return StoreUnavailableError(
        f"{namespace} could not be read to the end ({type(cause).__name__}: {why}), so what was written is not complete; "
        "export again when MongoDB answers",
        reason=error.reason,
    )


def _silent() -> None:
    """Show no progress: `err` is not a terminal."""


@contextmanager
def _progress(err: TextIO, total: int) -> Iterator[Step]:
    """Show a progress bar until the block is left."""
    columns = (TextColumn("exporting"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=err), transient=True) as bar:
        task = bar.add_task("export", total=total)
        yield lambda: bar.advance(task)


def _summarize(request: ExportRequest, history: WorkerMetricsRepository, counts: Counts, seconds: float, err: TextIO) -> None:
    if request.json:
        print(
            json.dumps(request.figures | asdict(counts) | {"history": history.namespace, "seconds": round(seconds, 1)}),
            file=err,
        )
        return
    points = f" as {counts.points:,} points" if request.format == "openmetrics" else ""
    where = "standard output" if request.output is None else str(request.output)
    if history.collection.retention is not None and request.since < time.time() - history.collection.retention:
        kept = format_duration(history.collection.retention)
        say(f"{history.namespace} keeps samples for {kept}; older samples are not in the export.", err)
    say(
        f"Exported {counts.samples:,} samples of {counts.workers:,} workers{points}, {rfc3339(request.since)} to "
        f"{rfc3339(request.until)}, to {where} in {seconds:.1f} s.",
        err,
    )
