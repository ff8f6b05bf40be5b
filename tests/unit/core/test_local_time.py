"""Days and weeks of a time zone, also those in which the clocks change."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.local_time import (
    interval_start,
    interval_start_from,
    later_start,
    local_to_utc,
    time_zone,
    utc_offsets,
)
from exporter.core.periods import DAY, HOUR, WEEK, align_interval

NEW_YORK, BERLIN = ZoneInfo("America/New_York"), ZoneInfo("Europe/Berlin")
ZONES = [
    NEW_YORK,
    BERLIN,
    *map(ZoneInfo, ("Asia/Kolkata", "Australia/Lord_Howe", "America/Sao_Paulo", "Pacific/Apia", "Asia/Beirut", "UTC")),
]


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("zone", "time", "start", "hours"),
    [
        (NEW_YORK, "2026-03-08T20:00", "2026-03-08T05:00", 23),
        (NEW_YORK, "2026-11-01T04:00", "2026-11-01T04:00", 25),
        (NEW_YORK, "2026-11-02T04:59", "2026-11-01T04:00", 25),
        (NEW_YORK, "2026-11-02T05:00", "2026-11-02T05:00", 24),
        (BERLIN, "2026-03-29T12:00", "2026-03-28T23:00", 23),
        (BERLIN, "2026-10-25T12:00", "2026-10-24T22:00", 25),
        (None, "2026-03-29T12:00", "2026-03-29T00:00", 24),
    ],
)
def test_a_local_day_has_23_to_25_hours(zone: ZoneInfo | None, time: str, start: str, hours: int) -> None:
    assert interval_start(utc(time), DAY, zone) == utc(start)
    assert later_start(utc(time), DAY, zone) - utc(start) == hours * HOUR


def test_a_local_week_begins_on_monday() -> None:
    assert interval_start(utc("2026-03-10T12:00"), WEEK, NEW_YORK) == utc("2026-03-09T04:00")
    assert interval_start(utc("2026-03-09T03:59"), WEEK, NEW_YORK) == utc("2026-03-02T05:00")
    assert later_start(utc("2026-03-03T12:00"), WEEK, NEW_YORK, 2) == utc("2026-03-16T04:00")


@pytest.mark.parametrize("interval", [300, HOUR, 6 * HOUR, 2 * DAY])
def test_other_intervals_are_those_of_utc(interval: int) -> None:
    time = utc("2026-03-08T20:10")
    assert interval_start(time, interval, NEW_YORK) == align_interval(time, interval)
    assert later_start(time, interval, NEW_YORK, 3) == align_interval(time, interval) + 3 * interval


TIMES = st.integers(utc("2000-01-01T00:00"), utc("2040-01-01T00:00"))


@given(TIMES, st.sampled_from([DAY, WEEK]), st.sampled_from(ZONES), st.integers(1, 40))
def test_intervals_follow_each_other_without_gaps(time: int, interval: int, zone: ZoneInfo, count: int) -> None:
    start, following = interval_start(time, interval, zone), later_start(time, interval, zone)
    assert start <= time < following
    assert interval_start(following, interval, zone) == following
    assert interval_start(following - 1, interval, zone) == start
    assert interval_start_from(time, interval, zone) == (start if start == time else following)
    at = start
    for _ in range(count):
        at = later_start(at, interval, zone)
    assert later_start(time, interval, zone, count) == at


@given(TIMES, st.integers(1, 500), st.sampled_from(ZONES))
def test_the_offsets_of_a_range_are_those_of_each_moment(start: int, days: int, zone: ZoneInfo) -> None:
    end = start + days * DAY
    found = list(utc_offsets(zone, start, end))
    assert found[0][0] == start
    for at in range(start, end, DAY // 3 + 7):
        offset = [offset for since, offset in found if since <= at][-1]
        assert datetime.fromtimestamp(at, zone).utcoffset() == timedelta(seconds=offset)


def test_the_clocks_of_a_zone() -> None:
    assert local_to_utc(datetime(2026, 7, 1), NEW_YORK) == datetime(2026, 7, 1, 4)


@pytest.mark.parametrize("name", ["", "Mars/Base", "../../etc/passwd", "/etc/passwd", "America", "a\0b", "x" * 5000])
def test_a_name_that_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone; write a name such as America/New_York"):
        time_zone(name)
