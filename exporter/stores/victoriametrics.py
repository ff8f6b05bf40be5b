"""VictoriaMetrics as a store: the series that remote read answers with, so that queries of the history work on it unchanged.

Written by its JSON import (https://docs.victoriametrics.com/victoriametrics/#how-to-import-data-in-json-line-format). It keeps
every copy of a sample unless it runs with `-dedup.minScrapeInterval=1ms`, which `prepare` requires.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import SplitResult

import orjson

from exporter.core.catalog import INFO, LONGEST_LABEL, STATUS
from exporter.core.errors import StoreError
from exporter.core.history_metrics import HISTORY_METRICS, STORE
from exporter.core.model import STATUSES
from exporter.stores.http_api import HttpApi, HttpRefusalError
from exporter.stores.store import Batch, RefusedSamplesError, Values

_SETTLE_SECONDS = 2
"""After how long what was acknowledged can be queried, besides the flush."""
_DURABLE_SECONDS = 15.0
"""After how long what was acknowledged is on its disk: three times `-inmemoryDataFlushInterval`, which is 5s by default."""
_STARTED = re.compile(rb"^vm_app_start_timestamp (\S+)", re.MULTILINE)
_FLAG = re.compile(rb'flag\{name="dedup\.minScrapeInterval", ?value="([^"]+)"')


class VictoriaMetrics:
    """A single-node VictoriaMetrics; see `Store`."""

    settle_seconds = _DURABLE_SECONDS
    wants_labels = True

    def __init__(self, url: SplitResult) -> None:
        self.name = f"VictoriaMetrics at {url.hostname}:{url.port or 8428}"
        self._prefix = url.path.rstrip("/")
        self._api = HttpApi(url, self.name)

    async def prepare(self) -> None:
        """Require that copies of a sample are removed."""
        found = _FLAG.search(await self._api.request("GET", f"{self._prefix}/metrics"))
        if found and found[1] in (b"0s", b"0"):
            raise StoreError(
                f"{self.name} keeps every copy of a sample that is sent twice; start it with -dedup.minScrapeInterval=1ms",
                reason="refused",
            )

    async def ping(self) -> None:
        """Do what `prepare` does, which changes nothing."""
        await self.prepare()

    async def write(self, batches: Sequence[Batch]) -> None:
        """Write samples as series. It acknowledges samples that are older than its retention, and ignores them."""
        body = b"\n".join(orjson.dumps(series) for batch in batches for series in _series(batch))
        try:
            await self._api.request("POST", f"{self._prefix}/api/v1/import", body=body)
        except HttpRefusalError as error:
            if error.status == 413:
                raise RefusedSamplesError(str(error), reason="too_large") from error
            raise

    async def run_id(self) -> str:
        """Return the second at which it was started."""
        found = _STARTED.search(await self._api.request("GET", f"{self._prefix}/metrics"))
        return found[1].decode() if found else ""

    async def count(self, workers: Sequence[str], since: int, until: int) -> int:
        """Count the points of the info series, of which every sample has one."""
        await self._api.request("GET", f"{self._prefix}/internal/force_flush")
        await asyncio.sleep(_SETTLE_SECONDS)
        total = 0
        for worker_id in workers:
            selector = f'{INFO.name}{{store="{STORE}",worker_id={orjson.dumps(worker_id[:LONGEST_LABEL]).decode()}}}'
            query = f"sum(count_over_time({selector}[{until - since}s]))"
            # A range ends with its last millisecond, and begins after its first.
            parameters = {"query": query, "time": f"{until - 0.001:.3f}", "nocache": "1"}
            answer = orjson.loads(await self._api.request("GET", f"{self._prefix}/api/v1/query", parameters))
            total += sum(int(float(each["value"][1])) for each in answer["data"]["result"])
        return total

    async def close(self) -> None:
        """Close the connections."""
        self._api.close()


def _series(batch: Batch) -> Iterator[Mapping[str, object]]:
    """Yield each series of a batch, as a line of the JSON import."""
    own = {"worker_id": batch.worker_id, "region": batch.region, "store": STORE}
    for family in HISTORY_METRICS:
        if family.metric is INFO:
            yield _line(family.name, {**own, **batch.info}, batch.times, [1.0] * len(batch.times))
        elif family.metric is STATUS:
            # Every status, 0 or 1: without the zeros the status before a change would seem to last.
            for status in sorted({*STATUSES, *filter(None, batch.statuses)}):
                values: Values = [None if each is None else float(each == status) for each in batch.statuses]
                yield _line(family.name, own | {"status": status}, batch.times, values)
        elif family.field:
            scaled: Values = [None if each is None else each / family.scale for each in batch.numbers[family.field]]
            yield _line(family.name, own, batch.times, scaled)


def _line(name: str, labels: Mapping[str, str], times: list[int], values: Values) -> Mapping[str, object]:
    there = [(time, value) for time, value in zip(times, values, strict=True) if value is not None]
    metric = {"__name__": name} | {label: value[:LONGEST_LABEL] for label, value in labels.items() if value}
    return {"metric": metric, "timestamps": [time for time, _ in there], "values": [value for _, value in there]}
