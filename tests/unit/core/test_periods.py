"""Arithmetic on periods: examples and properties."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.periods import (
    DAY,
    HOUR,
    align,
    align_up,
    closed_periods,
    format_duration,
    next_tick,
    parse_duration,
    rfc3339,
    to_datetime,
    to_seconds,
)

TIMES = st.integers(0, 2**33)
STEPS = st.sampled_from([60, 300, 900, HOUR, DAY])


@given(TIMES, STEPS)
def test_a_time_lies_between_its_alignments_and_less_than_a_step_from_each(time: int, step: int) -> None:
    down, up = align(time, step), align_up(time, step)
    assert down % step == up % step == 0
    assert time - step < down <= time <= up < time + step


@given(TIMES, st.integers(0, 50), STEPS)
def test_closed_periods_are_contiguous_and_the_next_one_is_still_open(start: int, count: int, length: int) -> None:
    first = align(start, length)
    now = first + count * length + length // 2
    assert list(closed_periods(first, length, now)) == [first + n * length for n in range(count)]


def test_a_period_is_closed_in_the_second_it_ends_and_not_before() -> None:
    assert list(closed_periods(600, 300, 899)) == []
    assert list(closed_periods(600, 300, 900)) == [600]


def test_a_clock_before_the_start_closes_nothing() -> None:
    assert list(closed_periods(900, 300, 0)) == []


@given(st.floats(0, 2e9), STEPS, st.integers(0, 59))
def test_the_next_tick_is_ahead_by_at_most_one_interval_and_on_the_grid(now: float, interval: int, offset: int) -> None:
    tick = next_tick(now, interval, offset)
    assert now < tick <= now + interval
    assert (tick - offset) % interval == 0


def test_a_tick_that_is_now_is_not_next() -> None:
    assert next_tick(312.0, 300, 12) == 612.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h30m", 5400), ("30d", 2_592_000), ("1w", 604_800), ("1y", 31_536_000), ("2000ms", 2)],
)
def test_durations_are_read_as_prometheus_reads_them(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "5min", "-5m", "1.5h", "30m1h", "1h1h", "0s", "1500ms", "5M", "١m\n"])
def test_what_is_no_duration_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="such as 30s, 5m") as caught:
        parse_duration(text)
    assert str(caught.value).startswith(repr(text))


@given(st.integers(1, 2**33))
def test_a_written_duration_reads_back_the_same(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


def test_no_time_at_all_is_written_0s() -> None:
    assert format_duration(0) == "0s"


@given(TIMES)
def test_seconds_survive_the_way_through_datetime(time: int) -> None:
    assert to_seconds(to_datetime(time)) == time


def test_a_naive_date_is_utc_and_an_offset_counts() -> None:
    noon = datetime(2026, 1, 31, 12)
    assert to_seconds(noon) == to_seconds(noon.replace(tzinfo=UTC)) == 1_769_860_800
    assert to_seconds(noon.replace(tzinfo=timezone(timedelta(hours=2)))) == 1_769_860_800 - 7200


def test_fractions_of_a_second_are_rounded_down_before_1970_too() -> None:
    assert to_seconds(datetime(2026, 1, 31, 12, 0, 0, 999_999)) == 1_769_860_800
    assert to_seconds(datetime(1969, 12, 31, 23, 59, 59, 500_000)) == -1


def test_times_are_written_in_rfc_3339() -> None:
    assert rfc3339(1_769_860_800.9) == "2026-01-31T12:00:00Z"
