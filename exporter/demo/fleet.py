"""The demo's fleet as pure functions of (world, worker, time), without state: any moment can be computed again.

Twelve workers in two regions behave like a real fleet: labs start and stop, one worker idles, one is stopped, one is stopped
and restarted all day, one was terminated and replaced, one has no CloudWatch agent. Times are whole UTC seconds, every status
changes on a whole minute, utilizations are percent.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b

from exporter.core.model import Dimensions, MetricName, WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, MINUTE, align, align_up, to_datetime

PERIOD = 5 * MINUTE
"""Seconds between two datapoints; five minutes, as in basic monitoring."""
HISTORY = 26 * HOUR
"""Seconds of datapoints before the first start: the demo's `gap_fill_window` of 25 h, rounded up."""
RUNNING = frozenset({"running", "stopping", "shutting-down"})
"""Statuses in which the instance is up, so that CloudWatch has datapoints."""
_CYCLE, PAUSE = 3 * HOUR, 30 * MINUTE
"""Cycle of the restarting worker, and the pause in it during which the worker is stopped, in seconds."""


@dataclass(frozen=True, slots=True)
class World:
    """Parameters of a fleet: a seed, and the UTC second of the demo's first start, which the workers' lifetimes refer to."""

    seed: int
    start: int

    @property
    def begin(self) -> int:
        """Start of the first period with datapoints in CloudWatch."""
        return align(self.start, PERIOD) - HISTORY


@dataclass(frozen=True, slots=True)
class DemoWorker:
    """One worker and its lifetime. `labs` is the largest number of concurrent labs."""

    id: str
    name: str
    region: str
    instance_id: str
    instance_type: str
    image_id: str
    cml_version: str
    created_at: int
    labs: int
    agent: bool = True
    """Whether the CloudWatch agent runs on it; without it there is no memory."""
    instance_memory: bool = False
    """Whether the agent also publishes memory by InstanceId alone (its `aggregation_dimensions`)."""
    nested: bool = False
    """Whether its worker document is of the newer generation: fields under `state`, other names, ISO strings."""
    restarts: bool = False
    stopped_at: int | None = None
    terminated_at: int | None = None


@dataclass(frozen=True, slots=True)
class DemoDatapoint:
    """One Average in CloudWatch, of the period that begins at `period`."""

    worker: DemoWorker
    metric: MetricName
    period: int
    value: float


@lru_cache(maxsize=8)
def fleet(world: World) -> tuple[DemoWorker, ...]:
    """Return the twelve workers of a world; eight of them run all day."""
    start = align(world.start, MINUTE)

    def worker(name: str, region: str, labs: int, age: int) -> DemoWorker:
        number = int(name[-2:])
        return DemoWorker(
            id=_hex(world, name, "worker", length=32),
            name=name,
            region=region,
            instance_id="i-0" + _hex(world, name, "instance", length=16),
            instance_type="m5zn.metal" if labs > 4 else "c5.metal",
            image_id="ami-0" + _hex(world, region, "image", length=16),
            # Addresses reserved for documentation (RFC 5737), so that a scrape of the targets reaches no real machine.
            cml_version="2.8.1" if number % 2 else "2.7.2",
            created_at=start - age,
            labs=labs,
        )

    return (
        worker("cml-iad-01", "us-east-1", 6, 41 * DAY),
        replace(worker("cml-iad-02", "us-east-1", 5, 38 * DAY), nested=True),
        replace(worker("cml-iad-03", "us-east-1", 4, 33 * DAY), instance_memory=True),
        worker("cml-iad-04", "us-east-1", 0, 29 * DAY),  # idle
        replace(worker("cml-iad-05", "us-east-1", 3, 27 * DAY), agent=False, nested=True),
        replace(worker("cml-iad-06", "us-east-1", 4, 22 * DAY), stopped_at=start - 3 * DAY),
        replace(worker("cml-iad-07", "us-east-1", 4, 20 * DAY), restarts=True),
        replace(worker("cml-dub-01", "eu-west-1", 6, 40 * DAY), nested=True),
        worker("cml-dub-02", "eu-west-1", 3, 31 * DAY),
        worker("cml-dub-03", "eu-west-1", 5, 24 * DAY),
        replace(worker("cml-dub-04", "eu-west-1", 4, 19 * DAY), terminated_at=start - 7 * HOUR),
        replace(worker("cml-dub-05", "eu-west-1", 4, 5 * HOUR), nested=True),  # replaces dub-04
    )


def status(worker: DemoWorker, time: int) -> str | None:
    """Return the status at a time, None before the worker was created."""
    if time < worker.created_at:
        return None
    if worker.terminated_at is not None and time >= worker.terminated_at - MINUTE:
        return "terminated" if time >= worker.terminated_at else "shutting-down"
    if worker.stopped_at is not None and time >= worker.stopped_at - MINUTE:
        return "stopped" if time >= worker.stopped_at else "stopping"
    if time < worker.created_at + 2 * MINUTE:
        return "pending" if time < worker.created_at + MINUTE else "starting"
    phase = time % _CYCLE
    if not worker.restarts or phase >= PAUSE + 3 * MINUTE:
        return "running"
    if phase < MINUTE:
        return "stopping"
    if phase < MINUTE + PAUSE:
        return "stopped"
    return "pending" if phase < 2 * MINUTE + PAUSE else "starting"


def ran(worker: DemoWorker, period: int) -> bool:
    """Return whether the instance was up at any time in the period that begins at `period`."""
    return any(status(worker, minute) in RUNNING for minute in range(period, period + PERIOD, MINUTE))


def active_labs(world: World, worker: DemoWorker, time: int) -> int:
    """Return how many labs run at a time; none unless the worker is running."""
    if status(worker, time) != "running":
        return 0
    return sum(begin <= time < end for begin, end in _labs_near(world, worker, time, time + 1))


def value(world: World, worker: DemoWorker, metric: MetricName, period: int) -> float:
    """Return the Average of a period, whether or not the instance ran then.

    CPU follows the labs, plus a daily rhythm and noise: at most 5 + 4 + 6 × 14 = 93 %, below 5 % without labs. Memory follows
    the labs: at most 22 + 6 × 12 = 94 %.
    """
    busy = _mean_labs(world, worker, period)
    noise = share(world, worker.id, metric, period)
    weight = share(world, worker.id, metric)
    if metric == "cpu":
        load = busy * (9 + 5 * weight) + min(busy, 1) * 4 * noise
        return round(1 + 2 * _daylight(period) + 1.9 * noise + load, 6)
    return round(18 + 3 * noise + busy * (7 + 5 * weight), 6)


def published_at(world: World, worker: DemoWorker, period: int) -> int:
    """Return the second at which CloudWatch has the period's datapoints: one to two minutes after its end."""
    return period + PERIOD + MINUTE + int(MINUTE * share(world, worker.id, "delay", period))


def datapoints(world: World, worker: DemoWorker, start: int, end: int) -> Iterator[DemoDatapoint]:
    """Yield every datapoint of the periods that begin in [start, end), in time order: none unless the instance ran."""
    metrics: tuple[MetricName, ...] = ("cpu", "memory") if worker.agent else ("cpu",)
    for period in range(align_up(max(start, world.begin), PERIOD), end, PERIOD):
        if ran(worker, period):
            for metric in metrics:
                yield DemoDatapoint(worker, metric, period, value(world, worker, metric, period))


def published(world: World, start: int, end: int, now: int) -> dict[tuple[str, MetricName, int], float]:
    """Return what CloudWatch holds at `now` of the periods that begin in [start, end): (instance, metric, period) → percent."""
    return {
        (worker.instance_id, point.metric, point.period): point.value
        for worker in fleet(world)
        for point in datapoints(world, worker, start, end)
        if published_at(world, worker, point.period) <= now
    }


def samples(world: World, worker: DemoWorker, start: int, end: int) -> Iterator[WorkerMetricsSample]:
    """Yield the expected samples of the periods that begin in [start, end), oldest first, also before the world's begin.

    Status and labs are those right after the period's end, as an exporter reads them. The last sample of a terminated worker is
    the first that has this status.
    """
    for period in range(align_up(max(start, worker.created_at), PERIOD), end, PERIOD):
        if status(worker, period) == "terminated":
            return
        up, seen = ran(worker, period), period + PERIOD
        yield WorkerMetricsSample(
            worker_id=worker.id,
            region=worker.region,
            timestamp=to_datetime(period),
            cpu_utilization=value(world, worker, "cpu", period) if up else None,
            memory_utilization=value(world, worker, "memory", period) if up and worker.agent else None,
            active_labs_count=active_labs(world, worker, seen),
            status=status(worker, seen),
        )


def dimension_sets(worker: DemoWorker, metric: MetricName) -> tuple[Dimensions, ...]:
    """Return the dimension sets under which a metric of the worker is published."""
    instance = ("InstanceId", worker.instance_id)
    if metric == "cpu":
        return ((instance,),)
    full = (instance, ("ImageId", worker.image_id), ("InstanceType", worker.instance_type))
    return (full, (instance,)) if worker.instance_memory else (full,)


def _labs_near(world: World, worker: DemoWorker, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield [begin, end) of the labs that may run in [start, end): time is divided into slots of one lab or none."""
    for seat in range(worker.labs):
        turn = 25 * MINUTE + 9 * MINUTE * seat + int(10 * MINUTE * share(world, worker.id, "turn", seat))
        for number in range(start // turn, (end - 1) // turn + 1):
            begin = number * turn
            if share(world, worker.id, "lab", seat, number) < 0.3 + 0.5 * _daylight(begin):
                early = int(turn / 4 * share(world, worker.id, "early", seat, number))
                late = int(turn / 4 * share(world, worker.id, "late", seat, number))
                yield begin + late, begin + turn - early


def _mean_labs(world: World, worker: DemoWorker, period: int) -> float:
    stop = period + PERIOD
    spans = _labs_near(world, worker, period, stop)
    return sum(max(0, min(end, stop) - max(begin, period)) for begin, end in spans) / PERIOD


def _daylight(time: int) -> float:
    """Return the daily rhythm: 0 at 03:00 UTC, 1 at 15:00 UTC, when it is day in both regions."""
    return 0.5 - 0.5 * math.cos(2 * math.pi * (time - 3 * HOUR) / DAY)


@lru_cache(maxsize=1 << 16)
def share(world: World, *key: object) -> float:
    """Return a pseudorandom number in [0, 1) that depends only on the world and the key."""
    return int.from_bytes(_digest(world, *key)[:6], "big") / (1 << 48)


def _hex(world: World, *key: object, length: int) -> str:
    return _digest(world, *key).hex()[:length]


def _digest(world: World, *key: object) -> bytes:
    return blake2b(repr((world.seed, *key)).encode(), digest_size=16).digest()
