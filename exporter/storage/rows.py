"""Rows of a worker's history as the HTTP API returns them. Pure.

Rows are typed dictionaries, not objects: a month is 8,640 of them, each made only to be written and thrown away. Timestamps
are naive datetimes in UTC, which is what BSON decodes to fastest and orjson writes as 2026-01-31T12:00:00Z. A missing value
is None.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, TypedDict

import bson
from bson.codec_options import CodecOptions
from bson.int64 import Int64

from exporter.core.distribution import DistributionStatistics
from exporter.core.history_metrics import METRIC_FIELDS

Document = dict[str, Any]
COLUMNS: Document = {
    "_id": None,
    "timestamp": {"$push": "$timestamp"},
    **{field: {"$push": {"$ifNull": [f"${field}", None]}} for field in (*METRIC_FIELDS, "status")},
}
"""A $group that makes columns of samples: MongoDB returns them, and bson decodes them, in half of the time of documents."""
EPOCH = datetime(1970, 1, 1)

_NUMBER_TYPES = {float, int, Int64, type(None)}
_NAIVE: CodecOptions[Document] = CodecOptions(tz_aware=False)


class SampleRow(TypedDict):
    """One sample; utilizations are in percent."""

    timestamp: datetime
    cpu_utilization: float | None
    memory_utilization: float | None
    active_labs_count: float | None
    status: str | None


class FieldStatistics(DistributionStatistics):
    """One metric over an interval, in the metric's unit; None where no sample has a value."""

    avg: float | None
    min: float | None
    max: float | None
    samples: int
    """Samples with a value."""


class StatisticsRow(TypedDict):
    """The samples of one interval; utilizations are in percent."""

    timestamp: datetime
    """The interval's start."""
    cpu_utilization: FieldStatistics
    memory_utilization: FieldStatistics
    active_labs_count: FieldStatistics
    status_share: dict[str, float]
    """Status → its share (0 to 1) of the samples with a status; empty where no sample has one."""
    known_samples: int
    """Samples of which is known whether the worker was running: they have a status, or a CPU value. Not part of the API."""
    running_samples: int
    """Those of them that were running: with the status "running", or without a status, because AWS has CPU values of running
    instances only. Not part of the API."""


HistoryRow = SampleRow | StatisticsRow


def documents(batches: Iterable[bytes]) -> list[Document]:
    """Decode raw batches of a cursor; raises bson's errors."""
    return [document for batch in batches for document in bson.decode_all(batch, _NAIVE)]


def number(value: object) -> float | None:
    """Return a sample's value if it is a finite number; None for a text, a NaN or another type from another program."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text(value: object) -> str | None:
    """Return a sample's status as text; None stays None."""
    return value if value is None or isinstance(value, str) else str(value)


def milliseconds(time: datetime) -> int:
    """Convert a naive UTC datetime to milliseconds since 1970."""
    return (time - EPOCH) // timedelta(milliseconds=1)


def sample_rows(batches: Iterable[bytes]) -> list[SampleRow]:
    """Make rows of what COLUMNS grouped, in the order of the samples; empty without samples."""
    return [
        {
            "timestamp": time,
            "cpu_utilization": of_cpu,
            "memory_utilization": of_memory,
            "active_labs_count": of_labs,
            "status": status,
        }
        for found in documents(batches)
        for time, of_cpu, of_memory, of_labs, status in zip(
            found["timestamp"],
            *(_numbers(found[field]) for field in METRIC_FIELDS),
            map(text, found["status"]),
            strict=True,
        )
    ]


def are_numeric(columns: Sequence[Iterable[Any]]) -> bool:
    """Return whether every value of columns is a finite number or None, without a call for each of them."""
    # The sum is finite only if all values are; None counts as 0.
    values = chain.from_iterable
    return set(map(type, values(columns))) <= _NUMBER_TYPES and math.isfinite(sum(filter(None, values(columns))))


def _numbers(column: list[Any]) -> list[float | None]:
    return column if are_numeric([column]) else list(map(number, column))
