"""Percentiles and time above a threshold: the statistics that need every value of an interval. Pure."""

import math
from collections.abc import Iterable
from typing import NamedTuple, TypedDict

PERCENTILES = (50, 95, 99)


class Distribution(NamedTuple):
    """Which of these statistics are wanted."""

    percentiles: bool = False
    """p50, p95, and p99."""
    above: float | None = None
    """A threshold in the metric's unit; None: no time above one."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the keys of `DistributionStatistics` that are wanted."""
        percentiles = tuple(f"p{percent}" for percent in PERCENTILES) if self.percentiles else ()
        return percentiles if self.above is None else (*percentiles, "above_seconds")


class DistributionStatistics(TypedDict, total=False):
    """Further statistics of one metric over an interval, in the metric's unit; None where no sample has a value."""

    p50: float | None
    p95: float | None
    p99: float | None
    above_seconds: float | None
    """Seconds of the samples whose value is greater than the threshold."""


def percentile(ordered: list[float], percent: int) -> float | None:
    """Return the nearest-rank percentile: the smallest value that at least `percent` % of the values do not exceed.

    It is always one of the values: definition 1 (the inverse of the empirical distribution function) of Hyndman and Fan,
    "Sample Quantiles in Statistical Packages", The American Statistician 50 (1996), pages 361-365.

    Args:
        ordered: ascending.
        percent: 1 to 100.

    Returns:
        None without a value.
    """
    return ordered[math.ceil(percent * len(ordered) / 100) - 1] if ordered else None


def distribution_of(values: Iterable[float | None], wanted: Distribution, resolution: int) -> DistributionStatistics:
    """Return the wanted statistics of the values that are not None; each stands for `resolution` seconds."""
    found: DistributionStatistics = {}
    ordered = sorted(value for value in values if value is not None)
    if wanted.percentiles:
        found["p50"], found["p95"], found["p99"] = (percentile(ordered, percent) for percent in PERCENTILES)
    threshold = wanted.above
    if threshold is not None:
        found["above_seconds"] = sum(value > threshold for value in ordered) * resolution if ordered else None
    return found
