"""The documents of samples, as one insert sends them, and the samples that MongoDB can never store. Pure."""

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from math import isfinite
from operator import attrgetter
from typing import Any, TypeVar

import bson
from bson import ObjectId
from bson.errors import BSONError

from exporter.core.model import FinalSample, WorkerMetricsSample, naive_datetime
from exporter.storage.mongo import Document, chunks

Sample = TypeVar("Sample", WorkerMetricsSample, FinalSample)
Insert = tuple[Sequence[Sample], list[Document]]
"""Samples and their documents."""
Rejected = tuple[Sample, str]
"""A sample that can never be written, and why."""

MAX_DOCUMENT_BYTES = 1024 * 1024
"""A sample has some 200 bytes; one above 16 MiB / 3 makes mongod 6.0 fail its whole insert into a time-series collection."""
BYTES_PER_INSERT = 12 * 1024 * 1024
"""The driver refuses a command above 16 MiB."""
_BYTES_WITHOUT_TEXTS = 300
"""More than a document takes without its three texts."""
_MAX_BYTES_PER_CHARACTER = 4
_INT64 = 2**63

_NO_BSON = (BSONError, OverflowError, TypeError, UnicodeError)
"""What encoding a document raises whose values are none of BSON."""

_Row = tuple[str, datetime, str | None, float | None, float | None, int | None, str | None]
"""Worker id, timestamp, region, CPU, memory, labs, status: the fields of a sample in their order."""
_Columns = Sequence[Sequence[Any]]
"""The same of several samples, one sequence for each field."""
_OPTIONAL = ("region", "cpu_utilization", "memory_utilization", "active_labs_count", "status")
_row = attrgetter("worker_id", "timestamp", "region", "cpu_utilization", "memory_utilization", "active_labs_count", "status")


def inserts(samples: Sequence[Sample], limit: int) -> tuple[list[Insert[Sample]], list[Rejected[Sample]]]:
    """Return the samples as inserts of at most `limit`, and those that can never be written.

    None and non-finite values are left out of the documents. Where a value is not of the usual kind or size, the samples of its
    insert are encoded one by one to find those that MongoDB cannot store; else the driver alone encodes them.
    """
    made: list[Insert[Sample]] = []
    rejected: list[Rejected[Sample]] = []
    for part in chunks(samples, limit):
        columns = _columns(part)
        rows: Iterable[_Row] = zip(*columns, strict=True)
        if _are_usual(columns):
            made.append((part, list(_documents(rows))))
        else:
            made += _one_by_one(part, rows, rejected)
    return made, rejected


def _columns(samples: Sequence[WorkerMetricsSample] | Sequence[FinalSample]) -> _Columns:
    """Return the fields of samples, of at least one, in the order of `_Row`."""
    if not isinstance(samples[0], FinalSample):
        return list(zip(*map(_row, samples), strict=True))
    workers, starts, *others = zip(*samples, strict=True)
    return [workers, list(map(naive_datetime, starts)), *others]


def _are_usual(columns: _Columns) -> bool:
    """Return whether all texts and numbers are of the usual types and sizes, so that BSON has them and no document is large."""
    workers, times, regions, cpus, memories, labs, statuses = columns
    if {*map(type, workers)} != {str} or {*map(type, times)} != {datetime}:
        return False
    if not {*map(type, chain(regions, statuses))} <= {str, type(None)}:
        return False
    if not ({*map(type, chain(cpus, memories))} <= {float, type(None)} and {*map(type, labs)} <= {int, type(None)}):
        return False
    counts = [*filter(None, labs)]
    if (
        not isfinite(sum(filter(None, chain(cpus, memories))))
        or min(counts, default=0) < -_INT64
        or max(counts, default=0) >= _INT64
    ):
        return False
    texts = {*workers, *regions, *statuses} - {None}
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    largest = _BYTES_WITHOUT_TEXTS + 3 * _MAX_BYTES_PER_CHARACTER * max(map(len, texts))
    return largest <= min(MAX_DOCUMENT_BYTES, BYTES_PER_INSERT // len(workers))


def _one_by_one(samples: Sequence[Sample], rows: Iterable[_Row], rejected: list[Rejected[Sample]]) -> list[Insert[Sample]]:
    """Return inserts of at most BYTES_PER_INSERT; add to `rejected` what can never be written."""
    made: list[tuple[list[Sample], list[Document]]] = []
    left = 0
    for sample, row in zip(samples, rows, strict=True):
        try:
            (document,) = _documents([_finite(row)])
            size = len(bson.encode(document))
        except _NO_BSON as error:
            rejected.append((sample, f"{type(error).__name__}: {error}"))
            continue
        if size > MAX_DOCUMENT_BYTES:
            rejected.append((sample, f"its {size} bytes exceed {MAX_DOCUMENT_BYTES}"))
            continue
        if size > left:
            made.append(([], []))
            left = BYTES_PER_INSERT
        left -= size
        made[-1][0].append(sample)
        made[-1][1].append(document)
    return list(made)


def _finite(row: _Row) -> _Row:
    """Return the row without numbers that are not finite; raises TypeError or OverflowError for what is no number."""
    worker_id, timestamp, region, cpu, memory, labs, status = row
    cpu = None if cpu is None or not isfinite(cpu) else cpu
    memory = None if memory is None or not isfinite(memory) else memory
    labs = None if labs is None or not isfinite(labs) else labs
    return worker_id, timestamp, region, cpu, memory, labs, status


def _documents(rows: Iterable[_Row]) -> Iterator[Document]:
    """Yield the customer's documents; a key without a value is left out: a null would close the bucket."""
    for row, object_id in zip(rows, _object_ids(), strict=False):
        worker_id, timestamp, region, cpu, memory, labs, status = row
        document = {
            "_id": object_id,
            "worker_id": worker_id,
            "timestamp": timestamp,
            "region": region,
            "cpu_utilization": cpu,
            "memory_utilization": memory,
            "active_labs_count": labs,
            "status": status,
        }
        if None in row:
            for name in _OPTIONAL:
                if document[name] is None:
                    del document[name]
        yield document


def _object_ids() -> Iterator[ObjectId]:
    """Yield ids like those of `ObjectId()`, time, random part, number, at a third of the cost: each call is a random part."""
    prefix = ObjectId().binary[:4] + os.urandom(5)
    return (ObjectId(prefix + number.to_bytes(3, "big")) for number in range(2**24))
