"""How many calls of a cycle are under way at once."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from exporter.core.clock import ServerClock
from exporter.core.errors import SourceError
from exporter.core.model import MetricQuery, MetricResults
from exporter.pipeline.calls import MAX_CONCURRENT_CALLS, MAX_CONCURRENT_LONG_CALLS, CallRunner
from exporter.pipeline.cycle import Cycle, CycleStats
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.planning import MetricDataCall
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex
from exporter.sources.cloudwatch.queries import MAX_QUERIES

PERIOD = 300


class Source:
    """CloudWatch, which answers nothing until all calls that may be under way have arrived."""

    def __init__(self) -> None:
        self.running = self.most = self.made = 0

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        self.running, self.made = self.running + 1, self.made + 1
        self.most = max(self.most, self.running)
        for _ in range(20):
            await asyncio.sleep(0)
        self.running -= 1
        raise SourceError("cloudwatch", "Throttling", "AWS throttled")


class Publisher:
    def mark_polled(self) -> None: ...

    async def publish_progress(self) -> None: ...


@pytest.mark.parametrize(("periods", "most"), [(4, MAX_CONCURRENT_CALLS), (200, MAX_CONCURRENT_LONG_CALLS)])
async def test_calls_for_many_datapoints_are_made_two_at_a_time(periods: int, most: int) -> None:
    source = Source()
    everything: Any = source
    runner = CallRunner(
        everything,
        MemorySeriesIndex(everything),
        ServerClock(lambda: 0.0, lambda: 0.0),
        Rules(period=PERIOD),
        cast(Any, SimpleNamespace()),
        cast(Any, Publisher()),
        None,
        lambda: 0.0,
    )
    queries = tuple(MetricQuery(f"i-{number}", "cpu", ()) for number in range(MAX_QUERIES))
    calls = [MetricDataCall("eu-west-1", 0, periods * PERIOD, {"w": queries}) for _ in range(20)]
    cycle = Cycle(0, 0.0, {}, CycleStats())
    await runner.run(calls, cycle)
    assert (source.made, source.most) == (20, most)
    assert cycle.stats.failed == 20
