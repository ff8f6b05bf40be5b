"""When the worker block is rendered: once after each observation and each poll, and in between only in a long cycle."""

import asyncio
import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from exporter.core.clock import ServerClock
from exporter.core.model import Fleet, MetricQuery, MetricResult, MetricResults, Snapshot, Worker, WorkerGauges
from exporter.core.workers_settings import WorkersSettings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.publisher import Publisher

T, P = 1_769_860_800, 300
RULES = Rules(period=P)
WORKER = Worker(id="w1", region="eu-west-1", instance_id="i-1", status="running")
CPU = MetricQuery("i-1", "cpu", ())


class Cycle:
    """A publisher with one worker, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = float(T)
        clock = ServerClock(self.wall, self.wall)
        self.publisher = Publisher(RULES, WorkersSettings(), clock, Telemetry(CollectorRegistry()), self.wall)
        self.publisher.update_fleet(Fleet(T, (WORKER,)), {})

    def wall(self) -> float:
        return self.now

    def receive(self, percent: float) -> None:
        result = MetricResult("ok", T - P, T, {T - P: percent})
        self.publisher.add_results([CPU], MetricResults(T, {CPU: result}))

    @property
    def cpu(self) -> float | None:
        assert self.publisher.snapshot
        (shown,) = self.publisher.snapshot.workers
        return shown.cpu


async def test_a_short_cycle_is_published_once_at_its_end() -> None:
    cycle = Cycle()
    await cycle.publisher.publish()
    cycle.now += 168  # from the observation to the poll
    cycle.publisher.mark_cycle_began()
    cycle.receive(12.0)
    await cycle.publisher.publish_progress()
    assert cycle.cpu is None
    await cycle.publisher.publish()
    assert cycle.cpu == 12.0


async def test_a_long_cycle_shows_its_progress_every_ten_seconds() -> None:
    cycle = Cycle()
    await cycle.publisher.publish()
    cycle.publisher.mark_cycle_began()
    shown = []
    for percent in range(1, 6):
        cycle.now += 6
        cycle.receive(percent)
        await cycle.publisher.publish_progress()
        shown.append(cycle.cpu)
    assert shown == [None, 2, 2, 4, 4]


async def test_two_publications_at_once_are_rendered_one_after_the_other() -> None:
    """The observer and the poller publish from two tasks; the block that is shown last must not be the older one."""
    cycle, running, most = Cycle(), 0, 0
    render = cycle.publisher._block.snapshot

    def slowly(gauges: Sequence[WorkerGauges], fresh_until: float) -> Snapshot:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return render(gauges, fresh_until)

    cycle.publisher._block.snapshot = slowly  # type: ignore[method-assign]
    await asyncio.gather(cycle.publisher.publish(), cycle.publisher.publish())
    assert most == 1


async def test_an_instance_that_left_the_fleet_takes_its_datapoints_along() -> None:
    cycle = Cycle()
    cycle.receive(1.0)
    cycle.publisher.update_fleet(Fleet(T + P, ()), {})
    cycle.publisher.update_fleet(Fleet(T + 2 * P, (WORKER,)), {})
    await cycle.publisher.publish()
    assert cycle.cpu is None


async def test_a_cycle_that_takes_no_new_value_publishes_a_fresh_block() -> None:
    cycle = Cycle()
    await cycle.publisher.publish()
    before = cycle.publisher.snapshot
    cycle.now += 600
    cycle.publisher.mark_observed()
    cycle.publisher.mark_polled()
    await cycle.publisher.publish()
    assert before
    assert cycle.publisher.snapshot
    assert cycle.publisher.snapshot.fresh_until == before.fresh_until + 600
