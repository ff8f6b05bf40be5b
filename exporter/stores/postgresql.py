"""PostgreSQL as a store, and TimescaleDB where its extension is there: the same SQL on a hypertable.

A sample that is written again replaces itself: the primary key is the worker and the time.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import SplitResult

from exporter.core import unreachable
from exporter.core.errors import ConfigError, StoreError, StoreUnavailableError
from exporter.core.history_metrics import METRIC_FIELDS
from exporter.core.periods import to_datetime
from exporter.stores.store import Batch, RefusedSamplesError

try:
    import psycopg
except ImportError as missing:  # the extra `postgresql`
    raise ConfigError("PostgreSQL needs the package psycopg: pip install 'cml-worker-exporter[postgresql]'") from missing

TABLE = "cml_worker_metrics"
_COLUMNS = ("worker_id", "timestamp", "region", *METRIC_FIELDS, "status")
_CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    worker_id text NOT NULL,
    "timestamp" timestamptz NOT NULL,
    region text NOT NULL,
    {", ".join(f"{field} double precision" for field in METRIC_FIELDS)},
    status text,
    PRIMARY KEY (worker_id, "timestamp")
)"""
_DATA_CLASSES = ("22", "23", "P0")
"""Classes of SQLSTATE that say that a row is refused for its values: data exception, integrity constraint, a trigger."""
_NAMES = ", ".join(f'"{name}"' for name in _COLUMNS)
_TAKE = f"""
INSERT INTO {TABLE} ({_NAMES}) SELECT DISTINCT ON (worker_id, "timestamp") {_NAMES} FROM incoming
ON CONFLICT (worker_id, "timestamp") DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[2:])}"""


class PostgreSQL:
    """A database of PostgreSQL; see `Store`."""

    settle_seconds = 0.0
    wants_labels = False

    def __init__(self, url: SplitResult) -> None:
        self.name = f"PostgreSQL at {url.hostname or 'the local socket'}:{url.port or 5432}"
        self._uri = url.geturl()
        self._connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None

    async def prepare(self) -> None:
        """Create the table, as a hypertable where TimescaleDB is installed."""
        async with self._connected() as connection:
            known = await connection.execute("SELECT to_regclass(%s)", (TABLE,))
            if await known.fetchone() != (None,):
                return  # to create what exists needs the privilege to create, too
            await connection.execute(_CREATE)
            found = await connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")
            if await found.fetchone():
                await connection.execute(f"SELECT create_hypertable('{TABLE}', 'timestamp', if_not_exists => TRUE)")

    async def ping(self) -> None:
        """Begin and end a transaction."""
        async with self._connected() as connection:
            await connection.execute("SELECT 1")

    async def write(self, batches: Sequence[Batch]) -> None:
        """Write samples in one transaction: COPY into a temporary table, then take what is new or different."""
        async with self._connected() as connection:
            await connection.execute(f"CREATE TEMPORARY TABLE incoming (LIKE {TABLE} INCLUDING DEFAULTS) ON COMMIT DROP")
            cursor = connection.cursor()
            async with cursor.copy(f"COPY incoming ({_NAMES}) FROM STDIN") as copy:
                for batch in batches:
                    for row in _rows(batch):
                        await copy.write_row(row)
            await cursor.execute(_TAKE)

    async def run_id(self) -> str:
        """Return nothing: a transaction is acknowledged when it is on the disk."""
        return ""

    async def count(self, workers: Sequence[str], since: int, until: int) -> int:
        """Count the rows."""
        async with self._connected() as connection:
            found = await connection.execute(
                f'SELECT count(*) FROM {TABLE} WHERE worker_id = ANY(%s) AND "timestamp" >= %s AND "timestamp" < %s',
                ([_text(each) for each in workers], to_datetime(since), to_datetime(until)),
            )
            row = await found.fetchone()
            return int(str(row[0])) if row else 0

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    @asynccontextmanager
    async def _connected(self) -> "AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]":
        """Yield a connection in a transaction; translate the driver's errors."""
        try:
            if self._connection is None or self._connection.closed or self._connection.broken:
                self._connection = await psycopg.AsyncConnection.connect(self._uri, connect_timeout=10)
            async with self._connection.transaction():
                yield self._connection
        except psycopg.OperationalError as error:
            raise StoreUnavailableError(
                f"{self.name} {unreachable.described(_first_line(error))}; is it running?",
                reason="unavailable",
            ) from error
        except psycopg.Error as error:
            if (error.sqlstate or "")[:2] in _DATA_CLASSES:
                raise RefusedSamplesError(f"{self.name} refuses samples ({_first_line(error)})", reason="invalid") from error
            raise StoreError(f"{self.name} refuses ({_first_line(error)})", reason="refused") from error


def _rows(batch: Batch) -> Iterator[tuple[object, ...]]:
    columns = [batch.numbers[field] for field in METRIC_FIELDS]
    for time, status, *values in zip(batch.times, batch.statuses, *columns, strict=True):
        yield _text(batch.worker_id), to_datetime(time / 1000), _text(batch.region), *values, status and _text(status)


def _text(text: str) -> str:
    """Return a text without NUL, which PostgreSQL cannot store."""
    return text.replace("\0", "�")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
