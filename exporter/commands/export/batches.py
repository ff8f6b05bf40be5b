"""Documents of the history as the batches that stores and the line protocol take. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from exporter.core.history_metrics import METRIC_FIELDS
from exporter.storage.rows import number, text
from exporter.storage.sample_stream import TIME
from exporter.stores.store import Batch


def batches(worker_id: str, documents: Iterable[Mapping[str, Any]], info: Mapping[str, str]) -> Iterator[Batch]:
    """Make batches of documents of one worker with TIME, oldest first: a worker may have changed its region."""
    for region, part in groupby(documents, key=lambda each: str(each.get("region") or "")):
        found = list(part)
        yield Batch(
            worker_id,
            region,
            info,
            [each[TIME] for each in found],
            {field: [number(each.get(field)) for each in found] for field in METRIC_FIELDS},
            [text(each.get("status")) for each in found],
        )
