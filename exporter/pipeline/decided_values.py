"""Notice values that CloudWatch publishes or revises after they were decided. In memory; no I/O, no clock.

Nothing is corrected: a sample stays in the history as it was written. The changes are only counted.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from exporter.core.model import METRICS, Dimensions, MetricName, MetricQuery, MetricResults
from exporter.core.periods import HOUR
from exporter.pipeline.lifecycle import PendingSample

_ABSENT, _EMPTY = -math.inf, math.inf
"""Stand for a missing value and for none decided; no datapoint has them, because values that are not finite are dropped."""


class ValueChange(NamedTuple):
    """A value of CloudWatch that differs from the one that was decided."""

    kind: Literal["late", "revised"]
    """late: the value had been recorded as absent; revised: another value had been recorded."""
    worker_id: str
    metric: str
    start: int
    """Of the period, in UTC seconds."""


class _Recent:
    """The decided values of one metric of one instance, one for each period up to the newest decided one.

    Single precision: a percentage needs no more, and there are hundreds of values for each worker.
    """

    __slots__ = ("dimensions", "newest", "values")

    def __init__(self, start: int) -> None:
        self.dimensions: Dimensions = ()
        """Of the series that the values are from."""
        self.newest = start
        """Start of the newest decided period, in UTC seconds."""
        self.values = array("f", [_EMPTY])

    def keep(self, start: int, value: float, period: int, slots: int) -> None:
        """Keep the value of the period at `start`, unless it is `slots` periods older than the newest: gaps come late."""
        values, later = self.values, (start - self.newest) // period
        if later <= -slots:
            return
        if later > 0:
            values.extend([_EMPTY] * min(later, slots))
            self.newest, later = start, 0
            del values[:-slots]
        elif -later >= len(values):
            values[:0] = array("f", [_EMPTY]) * (1 - later - len(values))
        values[later - 1] = value


class DecidedValues:
    """What was decided about the last periods, compared with the answers of later collection cycles.

    A restart forgets it. It takes up to 0.3 kB per instance and metric at a period of 5m and 0.9 kB at 1m, in arrays: a dict of
    the same values takes twenty times as much.

    Args:
        period: seconds of a period.
        window: for how many seconds a decision is kept, from the start of its period on.
    """

    def __init__(self, period: int, window: int) -> None:
        self.window = window
        self._period = period
        self._slots = window // period
        self._recent: dict[tuple[str, str, str], _Recent] = {}
        self._forgotten_before = 0

    def record(
        self, before: PendingSample, after: PendingSample, queries: Sequence[MetricQuery], results: MetricResults
    ) -> None:
        """Keep what one call has decided of a sample.

        Args:
            before: the sample before the call.
            after: the sample as finalized with the results of the call.
            queries: those of the sample's worker in the call.
            results: CloudWatch's results.
        """
        for metric in METRICS:
            if getattr(before, metric) is not None:
                continue  # decided by an earlier call
            found = _first_answer(after, metric, queries, results)
            if found is None:
                if after.final and after.instances:
                    self._keep(after, after.instances[0], metric, _ABSENT)
            elif getattr(after, metric) == found[1]:
                query, value = found
                self._keep(after, query.instance_id, metric, value, query.dimensions)

    def _keep(
        self, sample: PendingSample, instance_id: str, metric: MetricName, value: float, dimensions: Dimensions | None = None
    ) -> None:
        key = sample.worker_id, instance_id, metric
        recent = self._recent.get(key)
        if recent is None:
            recent = self._recent[key] = _Recent(sample.start)
        if dimensions is not None and dimensions != recent.dimensions:
            # Values of two series are not comparable; what is absent is absent from both.
            for index, kept in enumerate(recent.values):
                if kept != _ABSENT:
                    recent.values[index] = _EMPTY
            recent.dimensions = dimensions
        recent.keep(sample.start, value, self._period, self._slots)

    def compare(self, worker_id: str, queries: Iterable[MetricQuery], results: MetricResults) -> list[ValueChange]:
        """Return the values that differ from the decided ones, each worker, period and metric once in all.

        Args:
            worker_id: whose queries they are.
            queries: those of the worker in one call.
            results: CloudWatch's results; incomplete ones are ignored.
        """
        changes: list[ValueChange] = []
        period = self._period
        for query in queries:
            recent, result = self._recent.get((worker_id, query.instance_id, query.metric)), results.by_query.get(query)
            if recent is None or result is None or not result.complete:
                continue
            values, newest = recent.values, recent.newest
            oldest = newest - (len(values) - 1) * period
            for start, value in result.values.items():
                if not oldest <= start <= newest:
                    continue
                index = (start - oldest) // period
                kept = values[index]
                if -_TOLERANCE < kept - value < _TOLERANCE or kept == _EMPTY:
                    continue
                late = kept == _ABSENT
                if late or query.dimensions == recent.dimensions:
                    values[index] = _EMPTY  # count it once
                    changes.append(ValueChange("late" if late else "revised", worker_id, query.metric, start))
        return changes

    def forget_before(self, start: int) -> None:
        """Forget instances without a decision about a period from `start` (UTC seconds) on, an hour later at the latest."""
        if not self._forgotten_before <= start < self._forgotten_before + HOUR:
            self._forgotten_before = start
            self._recent = {key: recent for key, recent in self._recent.items() if recent.newest >= start}


_TOLERANCE = 1e-4
"""Two percentages that differ by less are equal in single precision, which is to 4e-6 at 100."""


def _first_answer(
    sample: PendingSample, metric: MetricName, queries: Iterable[MetricQuery], results: MetricResults
) -> tuple[MetricQuery, float] | None:
    """Return the query and value of the newest candidate that has a datapoint in the sample's period."""
    for instance_id in sample.instances:
        for query in queries:
            if query.metric != metric or query.instance_id != instance_id:
                continue
            result = results.by_query.get(query)
            if result is not None and (value := result.values.get(sample.start)) is not None:
                return query, value
    return None
