"""Fleets for tests of the pages: workers with every kind of value, and the hours of their history."""

import math
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from exporter.core.history_metrics import FIELDS
from exporter.core.model import Worker, WorkerGauges
from exporter.core.periods import DAY, HOUR, align
from exporter.history.hourly_cache import HourBlock
from exporter.storage.hourly import WorkerDay

MARKUP = "</a><script>document.title='owned'</script><img src=http://example.org/x.png onerror=alert(1)>&amp;\"'"
"""A name that would do something if it were more than text."""
_STATUSES = ("running", "running", "running", "stopped", "running", "pending", "terminated", "failed")
_REGIONS = ("eu-west-1", "us-east-1", "ap-southeast-2")


_EVEN: Mapping[str | None, Callable[[int], float]] = {
    "running_avg": lambda number: float(number % 4 != 3),
    "active_labs_count_avg": lambda number: float(number % 3),
    "active_labs_count_max": lambda number: float(number % 3),
}
"""Fields of an hourly aggregate that are the same in every hour → their value, by the number of the worker."""


def fleet(size: int, now: int) -> tuple[WorkerGauges, ...]:
    """Return `size` workers as of the UTC second `now`."""
    return tuple(_gauges(number, now) for number in range(size))


def _gauges(number: int, now: int) -> WorkerGauges:
    status = _STATUSES[number % len(_STATUSES)]
    worker = Worker(
        f"00000000-0000-4000-8000-{number:012}",
        _REGIONS[number % len(_REGIONS)],
        f"i-{number:017x}",
        status,
        name=f"cml-worker-{number:05}",
        instance_type="c5.4xlarge",
        active_labs=number % 5,
        last_activity_at=now - number * 977 % 400_000,
    )
    load = status not in ("stopped", "terminated")
    return WorkerGauges(
        worker,
        now - 40,
        True,
        load,
        cpu=(number * 37) % 1000 / 10 if load else None,
        cpu_time=now - 200,
        memory=20 + (number * 53) % 700 / 10 if load else None,
        memory_time=now - 200,
    )


class Hours:
    """The hourly aggregates of every worker, with a gap of three hours; counts its queries."""

    def __init__(self) -> None:
        self.queries: list[frozenset[str]] = []
        self.failure: Exception | None = None
        self.change: str | None = "1"

    async def marker(self) -> str | None:
        """Nothing writes old samples."""
        return self.change

    async def blocks(self, worker_ids: Collection[str], start: int, end: int, field: str, scale: float = 1) -> list[HourBlock]:
        """Return a wave for each worker; raises `failure`."""
        self.queries.append(frozenset(worker_ids))
        if self.failure:
            raise self.failure
        first = align(start // 1000 - 1, HOUR) + HOUR
        stamps = array("q", [at * 1000 for at in range(first, end // 1000 + 1, HOUR) if at // HOUR % 24 not in (3, 4, 5)])
        values, offset = array("d"), 0 if field == "cpu_utilization_avg" else 2
        for number in range(len(worker_ids)):
            if field in _EVEN:
                values.extend([_EVEN[field](number) / scale] * len(stamps))
                continue
            values.extend([(50 + 45 * math.sin(stamp / 7_200_000 + number + offset)) / scale for stamp in stamps])
        return [HourBlock([(worker_id, "eu-west-1") for worker_id in sorted(worker_ids)], stamps, values)] if stamps else []

    async def worker_days(self, worker_ids: Collection[str], start: int, end: int) -> list[WorkerDay]:
        """Return the same waves as whole days; raises `failure`."""
        found: list[WorkerDay] = []
        for day in range(align(start, DAY), end, DAY):
            columns: dict[tuple[str, str], dict[str, Sequence[Any]]] = {}
            hours = bytes(hour for hour in range(24) if hour + 1 not in (3, 4, 5))
            for name in FIELDS:
                for block in await self.blocks(worker_ids, (day + 1) * 1000, (day + DAY) * 1000, name):
                    for worker_id, region, values in block.by_row():
                        columns.setdefault((worker_id, region), {})[name] = values
            for (worker_id, region), of_worker in columns.items():
                found.append(
                    WorkerDay(worker_id, region, day, hours, array("d", [v for name in FIELDS for v in of_worker[name]]))
                )
        return found
