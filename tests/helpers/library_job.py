"""A job beside the exporter: writes a sample for each of some workers and periods by WorkerMetricsRepository.

python -m tests.helpers.library_job URI FIRST_SECOND WORKERS PERIODS PERIOD_SECONDS   # prints how many were inserted
"""

import asyncio
import sys
from collections.abc import Iterator

from exporter import WorkerMetricsRepository, WorkerMetricsSample
from exporter.core.periods import to_datetime


def keys(start: int, workers: int, periods: int, period: int) -> Iterator[tuple[str, int]]:
    """(worker id, start of the period), worker by worker in time order, as the mirror inserts."""
    return ((f"worker-{w}", start + n * period) for w in range(workers) for n in range(periods))


async def write_all(uri: str, start: int, workers: int, periods: int, period: int) -> int:
    """Write all samples, at times in the middle of their periods; return how many were inserted."""
    async with WorkerMetricsRepository.connect(uri, period=period) as repository:
        return sum(
            [
                await repository.add_sample(
                    WorkerMetricsSample(worker, "eu-west-1", to_datetime(at + period / 2), cpu_utilization=77.0)
                )
                for worker, at in keys(start, workers, periods, period)
            ]
        )


if __name__ == "__main__":
    print(asyncio.run(write_all(sys.argv[1], *map(int, sys.argv[2:]))))
