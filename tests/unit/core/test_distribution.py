"""Percentiles by nearest rank, and time above a threshold."""

import math

import pytest

from exporter.core.distribution import Distribution, distribution_of, percentile


@pytest.mark.parametrize(
    ("values", "p50", "p95", "p99"),
    [
        ([7.0], 7, 7, 7),
        ([1.0, 2.0], 1, 2, 2),
        ([1.0, 2.0, 3.0], 2, 3, 3),
        ([float(n) for n in range(1, 101)], 50, 95, 99),
        ([float(n) for n in range(1, 22)], 11, 20, 21),
    ],
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], p50: float, p95: float, p99: float
) -> None:
    assert [percentile(values, each) for each in (50, 95, 99)] == [p50, p95, p99]
    for percent in range(1, 101):
        found = percentile(values, percent)
        share = math.ceil(percent * len(values) / 100)
        assert found == min(value for value in values if sum(each <= value for each in values) >= share)


def test_values_that_are_missing_do_not_count() -> None:
    found = distribution_of([90.0, None, 80.0, 81.5], Distribution(True, 80), 300)
    assert found == {"p50": 81.5, "p95": 90, "p99": 90, "above_seconds": 600}, "80 is not above 80"
    nothing = distribution_of([None], Distribution(True, 80), 300)
    assert nothing == {"p50": None, "p95": None, "p99": None, "above_seconds": None}


def test_only_what_is_wanted_is_added() -> None:
    found = distribution_of([1.0], Distribution(above=0), 60)
    assert found == {"above_seconds": 60}
    assert Distribution(True).names == ("p50", "p95", "p99")
    assert Distribution(True, 0).names == ("p50", "p95", "p99", "above_seconds")
    assert Distribution().names == ()
