"""Read samples, statistics and hourly aggregates from the time-series collection."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from exporter.core.periods import to_datetime
from exporter.storage.mongo import Document

TIME = "time"
"""The key of a streamed sample's time in milliseconds since 1970: integers decode much faster than dates."""
_CHUNK = 1000  # encoding one message holds the GIL, and with it the scrapes
_PAGE = 10_000  # samples streamed at once: some 5 MB
_COLUMN = 100_000  # samples read together: a few MB on the server, and far below the 16 MiB of a result document
_IDS_A_READ = 200  # × 14 d of 1m periods stays far below the 16 MiB of one result document each, and the 100 MB of $group

Pages = AsyncGenerator[tuple[str, list[Document]], None]
"""What `stream` yields: a worker's id and some of its samples, as documents with TIME and the wanted keys they have."""


class Extent(NamedTuple):
    """How many samples a worker has, and the UTC seconds of the first and the last."""

    samples: int
    first: int
    last: int


class FieldColumn(NamedTuple):
    """One field of a worker's samples: milliseconds since 1970 and values, in no particular order, as many of each."""

    worker_id: str
    region: str
    stamps: list[int]
    values: list[Any]


_ALL: Document = {"$push": {"$toLong": "$timestamp"}}  # milliseconds: integers decode much faster than dates
# No expression here: mongod 6.0 answers a $max of one from the bucket's bounds, and so with nothing.
_NEWEST: Document = {"$max": "$timestamp"}


def _whole_seconds(stamps: Sequence[int]) -> set[int]:
    """Milliseconds → seconds, without those in between: they are somebody's samples, but never ours."""
    return {stamp // 1000 for stamp in stamps if stamp % 1000 == 0}


def _from_milliseconds(time: int) -> datetime:
    return to_datetime(0) + timedelta(milliseconds=time)
