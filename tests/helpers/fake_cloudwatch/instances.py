"""The instances that the fake CloudWatch knows, and their datapoints, which are a pure function: nothing is stored.

A value follows from (seed, instance, metric, start of its native period), and when it becomes visible from the instance's
settings, so `ledger` and `final` return the final values of any window, and a process that never answered a request knows what
another one with the same seed and instances answers. Times are UTC seconds; values are percent.
"""

import functools
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exporter.core.model import Dimensions, MetricName

Run = tuple[int | None, int | None]
ALWAYS: tuple[Run, ...] = ((None, None),)
Points = tuple[Sequence[int], Sequence[float]]
"""Starts of periods, ascending, and the value of each."""
NOTHING: Points = ((), ())
DAY = 86400
HOME = "123456789012"
NAMES: Mapping[tuple[str, str], MetricName] = {("AWS/EC2", "CPUUtilization"): "cpu", ("CWAgent", "mem_used_percent"): "memory"}
_TABLE = 1 << 16
_STEP = 40503
"""How far the values of two periods in a row are apart in the table; odd, so that a series has each value once in a while."""


def instance_id(k: int) -> str:
    """The k-th instance of a fleet."""
    return f"i-{k:017x}"


@functools.cache
def _table() -> list[float]:
    """Return the values in the order in which every series passes through them, twice, so that a slice needs no end."""
    values = [round(0.5 + 99 * j / _TABLE, 4) for j in range(_TABLE)]
    random.Random(0).shuffle(values)
    return [values[j * _STEP % _TABLE] for j in range(_TABLE)] * 2


@dataclass(frozen=True, slots=True)
class Series:
    """One memory series of an instance: its dimension set, and when the agent published under it."""

    dimensions: Dimensions
    runs: tuple[Run, ...] = ALWAYS
    plus: float = 0
    """Added to every value, so that a test can tell the series of one instance apart; `ledger` knows nothing of it."""


@dataclass(frozen=True, slots=True)
class OtherSeries:
    """One series of an instance beside CPU and memory; `ledger` knows nothing of it."""

    namespace: str
    name: str
    dimensions: Dimensions
    value: float
    """The Average of every period; every other statistic is `STATISTICS` more."""
    runs: tuple[Run, ...] = ALWAYS


STATISTICS: Mapping[str, float] = {"Average": 0, "Minimum": -1, "Maximum": 1, "p95": 0.5, "Sum": 100}


@dataclass(frozen=True, slots=True)
class Instance:
    """What CloudWatch has of one instance. Times are UTC seconds; None is open-ended."""

    id: str
    region: str
    runs: tuple[Run, ...]
    """A native period that starts in [from, to) has a datapoint."""
    memory: tuple[Series, ...]
    """Empty: no agent."""
    lag: int
    """A datapoint is visible this many seconds after its period's end."""
    revise: int
    """Until this many seconds after its period's end, half of the final value is shown."""
    late: Mapping[tuple[MetricName, int], int]
    """(metric, period start) → further seconds until it is visible."""
    lost: frozenset[tuple[MetricName, int]]
    """Datapoints that never appear."""
    revised: Mapping[tuple[MetricName, int], int]
    """(metric, period start) → what counts there instead of `revise`."""
    account: str = ""
    """The account that it is in; empty: `home`."""
    others: tuple[OtherSeries, ...] = ()


class Instances:
    """All instances of all regions and accounts, and their datapoints.

    Attributes that may change at any time: offset (seconds added to the clock), memory_metric and memory_dimension (what the
    agents publish memory as; before `add`), home (the account of an instance that names none).

    Args:
        now: the clock.
        seed: of the values.
        period: the native one of every instance: 300 as in basic monitoring, 60 as in detailed.
    """

    def __init__(self, now: Callable[[], float], seed: int, period: int) -> None:
        self.seed = seed
        self.period = period
        self.offset = 0.0
        self.memory_metric, self.memory_dimension = ("CWAgent", "mem_used_percent"), "InstanceId"
        self.home = HOME
        self.instances: dict[tuple[str, str], Instance] = {}
        self._now = now
        self._places: dict[tuple[str, str], int] = {}
        """(instance, metric) → where the table has the value of the period that began in 1970."""

    def now(self) -> float:
        return self._now() + self.offset

    def add(
        self,
        id: str,
        region: str = "eu-west-1",
        *,
        runs: Iterable[Run] = ALWAYS,
        agent: bool = True,
        memory: Sequence[Series] | None = None,
        instance_type: str = "m5.2xlarge",
        lag: int = 60,
        revise: int = 0,
        late: Mapping[tuple[MetricName, int], int] | None = None,
        lost: Iterable[tuple[MetricName, int]] = (),
        revised: Mapping[tuple[MetricName, int], int] | None = None,
        account: str = "",
        others: Sequence[OtherSeries] = (),
    ) -> Instance:
        """Add an instance or replace one; `memory` overrides the one series that `agent` gives it."""
        if memory is None:
            usual = (("ImageId", "ami-0c"), (self.memory_dimension, id), ("InstanceType", instance_type))
            memory = [Series(usual)] if agent else []
        exceptions = dict(late or {}), frozenset(lost), dict(revised or {})
        instance = Instance(id, region, tuple(runs), tuple(memory), lag, revise, *exceptions, account, tuple(others))
        self.instances[region, id] = instance
        return instance

    def add_described(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Add instances, each as the arguments of `add` in JSON: runs are lists, and `late` is a list of its entries."""
        for one in described:
            late = {(metric, start): seconds for metric, start, seconds in one.get("late", ())}
            self.add(**{**one, "runs": [tuple(run) for run in one.get("runs", ALWAYS)], "late": late})

    def change(self, id: str, region: str = "eu-west-1", **changes: Any) -> Instance:  # noqa: ANN401  # fields of Instance
        """Replace fields of an instance, such as runs=((start, end),)."""
        instance = replace(self.instances[region, id], **changes)
        self.instances[region, id] = instance
        return instance

    def values(self, id: str, metric: MetricName, first: int, count: int) -> list[float]:
        """The final percents of `count` native periods from `first` on, whether the instance ran or not."""
        place = self._places.get((id, metric))
        if place is None:
            base = zlib.crc32(f"{self.seed}/{id}/{metric}".encode())
            place = self._places[id, metric] = base * pow(_STEP, -1, _TABLE) % _TABLE
        at, table = (place + first // self.period) % _TABLE, _table()
        if count <= _TABLE:
            return table[at : at + count]
        return [table[(at + k) % _TABLE] for k in range(count)]

    def value(self, id: str, metric: MetricName, start: int) -> float:
        """The final percent of the native period that starts at `start`, whether the instance ran or not."""
        return self.values(id, metric, start, 1)[0]

    def final(
        self, instance: Instance, metric: MetricName, start: int, end: int, period: int | None = None
    ) -> dict[int, float]:
        """The final values of an instance in [start, end): period start → percent, averaged over `period` seconds.

        Late datapoints are in it, lost ones are not.
        """
        starts: set[int] = set()
        for runs in [ALWAYS] if metric == "cpu" else [series.runs for series in instance.memory]:
            for low, high in overlaps(instance.runs, runs, start, end):
                starts.update(range(up(low, self.period), high, self.period))
        kept = sorted(at for at in starts if (metric, at) not in instance.lost)
        values = [self.value(instance.id, metric, at) for at in kept]
        return dict(zip(*self._average((kept, values), period or self.period), strict=True))

    def ledger(self, start: int, end: int, period: int | None = None) -> dict[tuple[str, MetricName, int], float]:
        """The final values of [start, end) of all instances: (instance, metric, period start) → percent, see `final`."""
        metrics: tuple[MetricName, MetricName] = ("cpu", "memory")
        return {
            (instance.id, metric, at): value
            for instance in list(self.instances.values())
            for metric in metrics
            for at, value in self.final(instance, metric, start, end, period).items()
        }

    def points(self, region: str, account: str, stat: Mapping[str, Any], start: int, end: int, now: int) -> Points:
        """What a MetricStat of GetMetricData has in [start, end) as it is seen at `now`."""
        metric = stat["Metric"]
        dimensions = {each["Name"]: each["Value"] for each in metric["Dimensions"]}
        if (metric["Namespace"], metric["MetricName"]) == self.memory_metric:
            name: MetricName = "memory"
        elif NAMES.get((metric["Namespace"], metric["MetricName"])) == "cpu" and stat["Stat"] == "Average":
            name = "cpu"
        else:
            return self._other_points(region, account, stat, dimensions, start, end, now)
        instance = self.instances.get((region, dimensions.get("InstanceId" if name == "cpu" else self.memory_dimension, "")))
        if instance is None or (instance.account or self.home) != account:
            return NOTHING
        if name == "cpu":
            series = Series((), ALWAYS if len(dimensions) == 1 else ())
        else:
            series = next((each for each in instance.memory if dict(each.dimensions) == dimensions), Series((), ()))
        age = now - start
        finest = 60 if age < 15 * DAY else 300 if age < 63 * DAY else 3600
        step = max(stat["Period"], self.period, finest)
        start -= start % finest
        starts, values = self._average(self._visible(instance, name, series.runs, up(start, step), end, now), step)
        return starts, [value + series.plus for value in values] if series.plus else values

    def _other_points(
        self,
        region: str,
        account: str,
        stat: Mapping[str, Any],
        dimensions: Mapping[str, str],
        start: int,
        end: int,
        now: int,
    ) -> Points:
        metric, step = stat["Metric"], max(stat["Period"], self.period)
        here = [one for one in list(self.instances.values()) if (one.account or self.home) == account]
        for instance in here:
            for other in instance.others:
                found = (other.namespace, other.name, dict(other.dimensions))
                if instance.region == region and found == (metric["Namespace"], metric["MetricName"], dimensions):
                    until = min(end, now - instance.lag - step + 1)
                    runs = overlaps(instance.runs, other.runs, start, until)
                    starts = [at for low, high in runs for at in range(up(low, step), high, step)]
                    return starts, [other.value + STATISTICS[stat["Stat"]]] * len(starts)
        return NOTHING

    def _visible(self, instance: Instance, metric: MetricName, runs: tuple[Run, ...], start: int, end: int, now: int) -> Points:
        """Native datapoints of [start, end) as they are seen at `now`."""
        length = self.period
        until = min(end, now - instance.lag - length + 1)
        starts: Sequence[int] = ()
        values: Sequence[float] = ()
        for low, high in overlaps(instance.runs, runs, start, until):
            more = range(up(low, length), high, length)
            found = self.values(instance.id, metric, more.start, len(more))
            starts, values = ([*starts, *more], [*values, *found]) if starts else (more, found)
        if starts and (instance.late or instance.lost):
            starts, values = self._published(instance, metric, starts, values, now)
        newest, revise, revised = now - length, instance.revise, instance.revised
        if starts and (revised or newest - starts[-1] < revise):
            halved = [newest - at < revised.get((metric, at), revise) for at in starts]
            values = [value / 2 if half else value for value, half in zip(values, halved, strict=True)]
        return starts, values

    def _published(
        self, instance: Instance, metric: MetricName, starts: Sequence[int], values: Sequence[float], now: int
    ) -> Points:
        """Return the points without those that are late, or lost."""
        newest, late, lost = now - self.period - instance.lag, instance.late, instance.lost
        kept = [
            (at, value)
            for at, value in zip(starts, values, strict=True)
            if (metric, at) not in lost and newest >= at + late.get((metric, at), 0)
        ]
        return [at for at, _ in kept], [value for _, value in kept]

    def _average(self, points: Points, step: int) -> Points:
        if step == self.period:
            return points
        buckets: dict[int, list[float]] = {}
        for at, value in zip(*points, strict=True):
            buckets.setdefault(at - at % step, []).append(value)
        return list(buckets), [sum(values) / len(values) for values in buckets.values()]


def fleet(instances: Instances, count: int, regions: Sequence[str]) -> None:
    """Add instances 0 to count − 1, which always ran: the k-th in regions[k % len(regions)], an agent in all but k % 50 == 49.

    Every tenth agent publishes by InstanceId alone, the others with ImageId and InstanceType.
    """
    for k in range(count):
        memory = [Series((("InstanceId", instance_id(k)),))] if k % 10 == 0 else None
        instances.add(instance_id(k), regions[k % len(regions)], agent=k % 50 != 49, memory=memory)


def up(time: int, step: int) -> int:
    return time + -time % step


def overlaps(one: tuple[Run, ...], other: tuple[Run, ...], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where runs of both overlap within [start, end)."""
    for a, b in one:
        for c, d in other:
            low = max(start, a or start, c or start)
            high = min(end, end if b is None else b, end if d is None else d)
            if low < high:
                yield low, high
