"""The window that `/resources` averages: the newest published periods."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.history.points import Point
from exporter.history.resources import mean, published_window

P = 300
END = 100
"""The period that has not ended yet; periods are numbered."""
OLDEST = END - 4
"""The oldest fresh period: `max_age` is three periods, and its own length."""


def window(cpu: set[int], memory: set[int], length: int = 1) -> range:
    """The averaged periods of a request for the last `length` ones."""
    points = [Point(at * P, at if at in cpu else None, at if at in memory else None) for at in range(END) if at in cpu | memory]
    start, end = published_window(points, (END - length) * P, END * P, OLDEST * P, P)
    return range(start // P, end // P)


def up_to(newest: int) -> set[int]:
    return set(range(newest + 1))


@pytest.mark.parametrize(
    ("cpu", "memory", "length", "expected"),
    [
        pytest.param(up_to(99), up_to(99), 1, range(99, 100), id="all is published"),
        pytest.param(up_to(98), up_to(98), 1, range(98, 99), id="the last period is not"),
        pytest.param(up_to(96), up_to(96), 2, range(95, 97), id="as old as max_age"),
        pytest.param(up_to(95), up_to(95), 2, range(98, 100), id="older"),
        pytest.param(up_to(95), up_to(95), 12, range(88, 100), id="older, a long window"),
        pytest.param(up_to(99), up_to(97), 2, range(96, 98), id="the agent publishes later"),
        pytest.param(up_to(98), set(), 1, range(98, 99), id="no agent"),
        pytest.param(up_to(98), up_to(90), 1, range(98, 99), id="the agent stopped"),
        pytest.param(set(), set(), 2, range(98, 100), id="no data"),
        pytest.param({99}, {97}, 1, range(97, 100), id="extended to the first datapoint of the other metric"),
        pytest.param({10, 99}, {97}, 2, range(96, 100), id="a datapoint before the window does not count"),
    ],
)
def test_the_window_ends_with_the_newest_period_published(
    cpu: set[int], memory: set[int], length: int, expected: range
) -> None:
    assert window(cpu, memory, length) == expected


periods = st.sets(st.integers(END - 12, END - 1))


@given(periods, periods, st.integers(1, 8))
def test_no_metric_with_a_fresh_datapoint_is_null_and_no_window_is_shorter_than_requested(
    cpu: set[int], memory: set[int], length: int
) -> None:
    found = window(cpu, memory, length)
    assert len(found) >= length
    assert found.stop <= END
    for metric in (cpu, memory):
        if any(at >= OLDEST for at in metric):
            assert any(at in metric for at in found)


def test_the_mean_ignores_what_is_missing() -> None:
    assert mean([1.0, None, 3.0]) == 2.0
    assert mean([None]) is None
