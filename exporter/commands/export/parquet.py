"""The history as Parquet: the columns of the CSV with types, for data frames and data warehouses."""

from collections.abc import Callable, Mapping, Sequence
from io import RawIOBase
from typing import Any

from exporter.core.errors import ConfigError
from exporter.core.history_metrics import METRIC_FIELDS
from exporter.storage.rows import number, text
from exporter.storage.sample_stream import TIME

try:
    import pyarrow
    from pyarrow import parquet
except ImportError as missing:  # the extra `parquet`
    raise ConfigError("--format parquet needs the package pyarrow: pip install 'cml-worker-exporter[parquet]'") from missing

SCHEMA = pyarrow.schema(
    [
        ("worker_id", pyarrow.string()),
        ("name", pyarrow.string()),
        ("region", pyarrow.string()),
        ("timestamp", pyarrow.timestamp("ms", tz="UTC")),
        ("cpu_utilization", pyarrow.float64()),
        ("memory_utilization", pyarrow.float64()),
        ("active_labs_count", pyarrow.int64()),
        ("status", pyarrow.string()),
    ]
)
"""Utilizations in percent; what is missing is null."""
_GROUP_ROWS = 100_000
"""Rows that are compressed together; a reader skips such groups by their times."""


class _Output(RawIOBase):
    """A file of which only the writing counts."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401  # any object with a buffer
        part = bytes(data)
        self._write(part)
        return len(part)


class ParquetWriter:
    """Writes documents page by page.

    Args:
        write: receives parts of the file in order.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._writer = parquet.ParquetWriter(_Output(write), SCHEMA, compression="zstd")
        self._columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    def add(self, worker_id: str, name: str | None, documents: Sequence[Mapping[str, Any]]) -> None:
        """Take samples of a worker with their TIME in milliseconds."""
        columns, count = self._columns, len(documents)
        columns["worker_id"] += [worker_id] * count
        columns["name"] += [name] * count
        columns["region"] += [text(each.get("region")) for each in documents]
        columns["timestamp"] += [each[TIME] for each in documents]
        for field in METRIC_FIELDS:
            values = [number(each.get(field)) for each in documents]
            whole = SCHEMA.field(field).type == pyarrow.int64()
            columns[field] += [None if each is None else int(each) for each in values] if whole else values
        columns["status"] += [text(each.get("status")) for each in documents]
        if len(columns["timestamp"]) >= _GROUP_ROWS:
            self._put()

    def finish(self) -> None:
        """Write what is left, and the end of the file."""
        self._put()
        self._writer.close()

    def _put(self) -> None:
        self._writer.write_table(pyarrow.table(self._columns, schema=SCHEMA))
        for values in self._columns.values():
            values.clear()
