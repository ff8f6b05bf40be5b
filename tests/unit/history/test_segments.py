"""split_range: which source and which resolution each part of a range has."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.local_time import interval_start_from
from exporter.core.periods import DAY, HOUR, WEEK, align_interval
from exporter.history.segments import split_range
from exporter.sources.cloudwatch.retention import EXPIRY_MARGIN_SECONDS, OLDEST, TIERS, resolution_at

NOW = 1_790_000_123
PERIODS = [60 * minutes for minutes in range(1, 61) if 60 % minutes == 0]


def cut(
    days: float, *, period: int = 300, interval: int | None = None, kept: int | None = 30
) -> list[tuple[str, int, int | None]]:
    boundary = None if kept is None else NOW - kept * DAY
    found = split_range(NOW - int(days * DAY), NOW, NOW, period=period, interval=interval, boundary=boundary)
    return [(segment.source, segment.resolution, segment.interval) for segment in found]


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        (cut(1), [("mongodb", 300, None)]),
        (cut(400, kept=None), [("mongodb", 300, None)]),
        (cut(40), [("cloudwatch", 300, None), ("mongodb", 300, None)]),
        (cut(100), [("cloudwatch", 3600, None), ("cloudwatch", 300, None), ("mongodb", 300, None)]),
        (cut(100, kept=90), [("cloudwatch", 3600, None), ("mongodb", 300, None)]),
        (cut(10, period=60, kept=1), [("cloudwatch", 60, None), ("mongodb", 60, None)]),
        (cut(20, period=60, kept=1), [("cloudwatch", 300, None), ("cloudwatch", 60, None), ("mongodb", 60, None)]),
        (cut(100, period=3600), [("cloudwatch", 3600, None), ("mongodb", 3600, None)]),
        (cut(20, period=360, kept=1), [("cloudwatch", 600, None), ("cloudwatch", 360, None), ("mongodb", 360, None)]),
        (cut(100, interval=DAY), [("cloudwatch", 3600, DAY), ("cloudwatch", 300, DAY), ("mongodb", 300, DAY)]),
        (cut(100, interval=300), [("cloudwatch", 3600, 3600), ("cloudwatch", 300, 300), ("mongodb", 300, 300)]),
        (cut(6, interval=WEEK, kept=1), [("cloudwatch", 300, WEEK), ("mongodb", 300, WEEK)]),
    ],
)
def test_the_segments_of_a_range(segments: list[object], expected: list[object]) -> None:
    assert segments == expected


@given(
    st.integers(0, OLDEST),
    st.integers(0, OLDEST),
    st.sampled_from(PERIODS),
    st.none() | st.integers(1, 2016),
    st.none() | st.integers(DAY, 500 * DAY),
)
def test_segments_cover_the_range_without_overlap_and_no_row_spans_two(
    begin: int, length: int, period: int, periods: int | None, kept: int | None
) -> None:
    interval = None if periods is None else min(WEEK, periods * period)
    if interval is not None and interval % period:
        interval -= interval % period
    start = NOW - begin
    end = min(NOW, start + length)
    boundary = None if kept is None else NOW - kept
    segments = split_range(start, end, NOW, period=period, interval=interval, boundary=boundary)
    assert bool(segments) == (start < end)
    if segments:
        assert [*(segment.start for segment in segments), end] == [start, *(segment.end for segment in segments)]
    for segment, following in pairwise(segments):
        assert align_interval(segment.end, segment.step) == segment.end
        assert following.step <= segment.step
        assert segment.source == "cloudwatch"
    for segment in segments:
        assert segment.resolution >= period
        assert segment.step % segment.resolution == 0
        if segment.source == "cloudwatch":
            age = NOW - segment.start
            assert segment.resolution >= next(finest for limit, finest in TIERS if age <= limit)
        else:
            assert boundary is None or segment.start >= boundary


@pytest.mark.parametrize(
    ("age", "period", "resolution"),
    [
        (0, 60, 60),
        (15 * DAY - EXPIRY_MARGIN_SECONDS, 60, 60),
        (15 * DAY, 60, 300),
        (63 * DAY, 60, 3600),
        (63 * DAY, 300, 3600),
        (0, 900, 900),
        (20 * DAY, 360, 600),
        (455 * DAY, 3600, 3600),
    ],
)
def test_the_resolution_is_one_that_cloudwatch_retains_at_the_age(age: int, period: int, resolution: int) -> None:
    assert resolution_at(age, period) == resolution


def test_intervals_begin_at_multiples_since_1970_and_weeks_on_monday() -> None:
    thursday = 1_767_225_600  # 2026-01-01
    assert align_interval(thursday, WEEK) == thursday - 3 * DAY
    assert interval_start_from(thursday, WEEK, None) == thursday + 4 * DAY
    assert align_interval(thursday + 7 * HOUR + 1, HOUR) == thursday + 7 * HOUR
    assert interval_start_from(thursday, DAY, None) == thursday
