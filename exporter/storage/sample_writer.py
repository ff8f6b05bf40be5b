"""Insert samples exactly once, read back what is there, purge a worker."""

import math
from collections.abc import Collection

import bson
from bson.errors import BSONError

from exporter.core.model import (
    WorkerMetricsSample,
)
from exporter.core.periods import _utc
from exporter.storage.mongo import Document

Key = tuple[str, int]
"""(worker_id, start of the period in UTC seconds): what makes a sample unique."""

MAX_DOCUMENT_BYTES = 1024 * 1024
"""A sample has some 200 bytes; one above 16 MiB / 3 makes mongod 6.0 fail its whole insert into a time-series collection."""

# Per-document codes that say "never": BadValue, FailedToParse, TypeMismatch, InvalidBSON, the field name rules,
# DocumentValidationFailure, BSONObjectTooLarge, KeyTooLong. Anything else may succeed later, so it is not set aside.
_REJECTS = frozenset({2, 9, 14, 22, 52, 53, 55, 56, 57, 121, 10334, 17280})


def _spans(keys: Collection[Key]) -> dict[str, tuple[int, int]]:
    """Return the first and the last second of each worker."""
    spans: dict[str, tuple[int, int]] = {}
    for worker_id, second in keys:
        low, high = spans.get(worker_id, (second, second))
        spans[worker_id] = min(low, second), max(high, second)
    return spans


def _document(sample: WorkerMetricsSample) -> Document:
    """The customer's document; a key without a value is left out."""
    document = {
        "worker_id": sample.worker_id,
        "timestamp": _utc(sample.timestamp),
        "region": sample.region,
        "cpu_utilization": sample.cpu_utilization,
        "memory_utilization": sample.memory_utilization,
        "active_labs_count": sample.active_labs_count,
        "status": sample.status,
    }
    return {key: value for key, value in document.items() if value is not None and not _not_finite(value)}


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _unfit(document: Document) -> str | None:
    """Say why a document can never be written; found here, it cannot take the others of its command with it."""
    try:
        size = len(bson.encode(document))
    except (BSONError, OverflowError, UnicodeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"its {size} bytes exceed {MAX_DOCUMENT_BYTES}" if size > MAX_DOCUMENT_BYTES else None
