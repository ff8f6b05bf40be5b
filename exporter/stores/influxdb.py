"""InfluxDB as a store, by the API of version 1, which 2 and 3 answer too: `/write` and `/query`.

A point that is written again replaces itself: its key is the measurement, the tags and the time.
"""

import re
from collections.abc import Sequence
from urllib.parse import SplitResult

import orjson

from exporter.core.errors import ConfigError, StoreError
from exporter.core.periods import rfc3339
from exporter.stores.http_api import HttpApi, HttpRefusalError
from exporter.stores.line_protocol import MEASUREMENT, lines, tag
from exporter.stores.store import Batch, RefusedSamplesError

_DROPPED = re.compile(r"partial write: (.*) dropped=(\d+)")
_INVALID = ("partial write", "unable to parse", "field type conflict", "max-values-per-tag", "max-series-per-database")
"""What its refusals of a point contain, which the same point would meet again."""


class InfluxDB:
    """A database of InfluxDB 1, or a bucket of 2 and 3 that is mapped to one; see `Store`."""

    settle_seconds = 0.0
    wants_labels = False

    def __init__(self, url: SplitResult) -> None:
        self._database = url.path.strip("/")
        if not self._database or "/" in self._database:
            raise ConfigError(
                "the address of InfluxDB ends with the database: influxdb+http://user:password@host:8086/database"
            )
        self.name = f"InfluxDB at {url.hostname}:{url.port or 8086}"
        self._api = HttpApi(url, self.name)

    async def prepare(self) -> None:
        """Create the database; version 2 and 3 know no such statement, and need the bucket to be there."""
        quoted = self._database.replace("\\", "\\\\").replace('"', '\\"')
        try:
            await self._query(f'CREATE DATABASE "{quoted}"')
        except StoreError as error:
            if error.reason != "refused":
                raise
            await self._query("SHOW MEASUREMENTS LIMIT 1")  # a user without that privilege, or another version

    async def ping(self) -> None:
        """List the databases."""
        await self._query("SHOW DATABASES")

    async def write(self, batches: Sequence[Batch]) -> None:
        """Write samples as points."""
        body = "\n".join(line for batch in batches for line in lines(batch)).encode()
        try:
            await self._api.request("POST", "/write", {"db": self._database, "precision": "ms"}, body)
        except HttpRefusalError as error:
            raise _refusal(error) or error from error

    async def run_id(self) -> str:
        """Return nothing: a write is acknowledged when it is on the disk."""
        return ""

    async def count(self, workers: Sequence[str], since: int, until: int) -> int:
        """Count the points."""
        total = 0
        for worker_id in workers:
            value = tag(worker_id).replace("'", "\\'")
            found = await self._query(
                f"SELECT count(sample) FROM {MEASUREMENT} WHERE worker_id = '{value}' "
                f"AND time >= '{rfc3339(since)}' AND time < '{rfc3339(until)}'"
            )
            total += sum(row[1] for series in found for row in series["values"])
        return total

    async def close(self) -> None:
        """Close the connections."""
        self._api.close()

    async def _query(self, text: str) -> list[dict[str, list[list[int]]]]:
        answer = orjson.loads(await self._api.request("POST", "/query", {"db": self._database, "q": text}))
        (result,) = answer["results"]
        if "error" in result:
            raise StoreError(f"{self.name} refuses {text.split(' ')[0]} ({result['error']})", reason="refused")
        found: list[dict[str, list[list[int]]]] = result.get("series", [])
        return found


def _refusal(error: HttpRefusalError) -> RefusedSamplesError | None:
    """Return what the answer to a write says of its points; None: it is about something else."""
    if error.status == 413:
        return RefusedSamplesError(str(error), reason="too_large")
    if error.status not in (400, 422) or not any(words in error.text for words in _INVALID):
        return None
    reason = "retention" if "retention policy" in error.text else "invalid"
    found = _DROPPED.search(error.text)
    return RefusedSamplesError(str(error), reason=reason, samples=(int(found[2]) if found else 0) or None)
