"""The rows of a worker's history as they are answered, from MongoDB's documents and from CloudWatch's datapoints. Pure.

No record is made of each sample on the way: a month of them is 8,640, and what is made must be thrown away again. A row of
samples has `timestamp`, the three metrics and `status`; one of statistics has `timestamp` (the interval's start), for each
metric avg, min, max and count, and `status_share`. Timestamps are naive datetimes in UTC, which is what BSON decodes to fastest
and orjson writes as 2026-01-31T12:00:00Z. Missing is None.
"""

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import bson
from bson.codec_options import CodecOptions

from exporter.core.history_metrics import METRIC_FIELDS

HistoryRow = dict[str, Any]
Document = dict[str, Any]
PROJECTION: Document = {"_id": 0, "timestamp": 1, **dict.fromkeys(METRIC_FIELDS, 1), "status": 1}
"""Of a sample's document, what a row needs."""
EPOCH = datetime(1970, 1, 1)

_NAIVE: CodecOptions[Document] = CodecOptions(tz_aware=False)


def documents(batches: Iterable[bytes]) -> list[Document]:
    """Decode raw batches of a cursor; raises bson's errors."""
    return [document for batch in batches for document in bson.decode_all(batch, _NAIVE)]


def number(value: object) -> float | None:
    """Return what counts as a value in a sample's document; None for what others may have written there, a text or NaN."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def milliseconds(time: datetime) -> int:
    """Naive UTC datetime → milliseconds since 1970."""
    return (time - EPOCH) // timedelta(milliseconds=1)


# -- samples -----------------------------------------------------------------------------------------------------------


def samples(found: Iterable[Document]) -> list[HistoryRow]:
    """Rows of samples from documents with the keys of PROJECTION."""
    return [
        {
            "timestamp": document["timestamp"],
            "cpu_utilization": number(document.get("cpu_utilization")),
            "memory_utilization": number(document.get("memory_utilization")),
            "active_labs_count": number(document.get("active_labs_count")),
            "status": _text(document.get("status")),
        }
        for document in found
    ]


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)
