"""Query parameters: what is accepted, and the error message for what is not."""

from dataclasses import replace
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.errors import RequestError
from exporter.core.periods import DAY, HOUR, WEEK, parse_time, rfc3339
from exporter.history.reader import PageRequest
from exporter.web.history_query import HistoryQuery, resuming
from exporter.web.parameters import ResourcesQuery, encoded

NOW = 1_790_000_000
REACH = 455 * DAY
TIME = "must be a time such as 2026-01-31T12:00:00Z, Unix seconds or milliseconds, now, or a duration before now such as -24h."
AFTER_NOW = "is in the future, as a duration after now; durations are before now, such as -24h."
TOO_OLD = "start is too early (1970-01-01T00:00:00Z); no data is kept that long. The earliest start is -455d."
NO_DURATION = "is no duration of whole numbers and the units ms, s, m, h, d, w, and y; write it such as -24h, -1h30m, or -30d."
DURATION = "start_time must be a duration from 30s to 455d, such as 10m, 1h or 7d."
CURSOR = "cursor must be the value of next on the previous page."


def history(query: str, *, period: int = 300, reach: int | None = REACH) -> HistoryQuery:
    return HistoryQuery.parse(parse_qsl(query, keep_blank_values=True), now=NOW, period=period, reach=reach)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("start=-1h&end=-2h", "start must be before end."),
        ("start=2026-09-21T12:00:00Z&end=2026-09-21T12:00:00Z", "start must be before end."),
        ("start=now", "start is now, after which there are no samples yet; use an earlier one, such as -24h."),
        (f"start={NOW}000", "start is now, after which there are no samples yet; use an earlier one, such as -24h."),
        ("start=2030-01-01T00:00:00Z", "start is in the future (2030-01-01T00:00:00Z); use an earlier one, such as -24h."),
        ("start=1790100000000", "start is in the future (2026-09-22T18:00:00Z); use an earlier one, such as -24h."),
        ("end=2325-01-01T00:00:00Z", "end is in the future (2325-01-01T00:00:00Z); leave it out to use now."),
        *((f"{name}={text}", f"{name} {AFTER_NOW}") for name in ("start", "end") for text in ("+24h", "now%2B1h", "now+1h")),
        (
            "end=1790000000000000",
            "end has 16 digits, so it is in microseconds or nanoseconds; write Unix seconds or milliseconds.",
        ),
        ("start=0", TOO_OLD),
        ("start=1970-01-01T00:00:00Z", TOO_OLD),
        ("end=1970-01-02T00:00:00Z", TOO_OLD),
        ("start=-300y", TOO_OLD),
        ("start=0001-01-01T00:00:00%2B14:00", TOO_OLD),
        ("start=-456d", TOO_OLD.replace("1970-01-01T00:00:00Z", "2025-06-22T14:13:20Z")),
        ("start=20260921", TOO_OLD.replace("1970-01-01T00:00:00Z", "1970-08-23T12:02:01Z")),  # a date without its hyphens
        *((f"start={text}", f"start {NO_DURATION}") for text in ("-1M", "-1mo", "-1.5h", "now-1H", "30days", "-2 weeks")),
        *(
            (f"above={text}&interval=1h", "above must be a number from 0 to 1000000, such as 80 or 99.5.")
            for text in ("-1", "", "nan", "inf", "1000001", "1e7", "1e", "٣")
        ),
        *(
            (f"{name}={text}", f"{name} {TIME}")
            for name in ("start", "end")
            for text in (
                "yesterday",
                "2026-13-01T00:00:00Z",
                "2026-09",
                "-5",
                "-0s",
                "%00",
                "٣",
                "-",
            )
        ),
        ("start=2026-09-21T12:00:60Z", f"start {TIME}"),
        (f"start=-{'9' * 4000}s", TOO_OLD),
        (f"start=-{'9' * 5000}s", "start is longer than 4096 characters."),
        *(
            (f"interval={text}", "interval must be a duration from 5m to 7d, such as 1h or 1d.")
            for text in ("0s", "-1h", "often", "", "8d", "99999999999999999999y", "300", "1h 5m")
        ),
        ("interval=1m", "interval is shorter than the time between two samples; use 5m or longer."),
        ("interval=299s", "interval is shorter than the time between two samples; use 5m or longer."),
        ("interval=7m", "interval must be a multiple of 5m, the time between two samples."),
        *(
            (f"limit={text}", "limit must be a whole number from 1 to 10000.")
            for text in ("0", "-1", "10001", "5000000", "many", "1e3", "", "٣")
        ),
        ("format=xml", "format must be json, columns or csv."),
        *((f"fill={text}", "fill must be null, or left out.") for text in ("", "0", "previous")),
        *(
            (f"compare={text}", "compare must be a duration up to 371d and a multiple of 5m, such as 1w.")
            for text in ("", "-1w", "week", "0s", "1m", "299s", "372d", "99999999999999999999y")
        ),
        ("interval=1h&compare=30m", "compare must be a duration up to 371d and a multiple of 1h, such as 1w."),
        *((f"cursor={text}", CURSOR) for text in ("x", "", "%00%ff", "_w", encoded("1:2"), encoded("0:60:0"))),
        (f"cursor={encoded(f'{NOW - REACH * 2}000:{NOW}:0')}", CURSOR),
        (f"cursor={encoded(f'{NOW}000:{NOW}:0')}", CURSOR),
        (f"cursor={encoded(f'{NOW - 60}000:{NOW}:301')}", CURSOR),
        ("start=-1h&start=-2h", "start is given twice; give it once."),
        (
            "from=-1h",
            "from is not a parameter of this route; "
            "allowed are start, end, interval, tz, percentiles, above, fill, compare, limit, cursor, format.",
        ),
    ],
)
def test_invalid_parameters_are_refused_with_a_message_that_says_what_to_do(query: str, sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        history(query)
    assert str(caught.value) == sentence


def test_millions_of_rows_are_refused() -> None:
    with pytest.raises(RequestError) as caught:
        history("start=0", period=60, reach=None)
    assert str(caught.value) == "The range may have 29833333 rows, more than 1000000; use a longer interval or a later start."
    assert history("start=0&interval=1h", reach=None).span.interval == HOUR
    assert history("start=-455d", period=60).span.start == (NOW - REACH) * 1000


@pytest.mark.parametrize(
    ("query", "start", "end"),
    [
        ("", NOW - DAY, NOW),
        ("start=-1h", NOW - HOUR, NOW),
        ("start=now-1h30m&end=now", NOW - 5400, NOW),
        ("start=2h", NOW - 7200, NOW),  # as on the command line
        (f"start={NOW - 60}.9&end={NOW - 30}", NOW - 60, NOW - 30),
        ("end=-7d", NOW - WEEK - DAY, NOW - WEEK),
        ("start=2026-09-21T00:00:00Z&end=2026-09-21t01:00:00z", 1789948800, 1789952400),
        ("start=2026-09-21T02:00:00%2B02:00&end=2026-09-21T03:00:00+02:00", 1789948800, 1789952400),  # a bare + is a space
        ("start=2026-09-20T23:30:00.999-00:30", 1789948800, NOW),
        (f"start={NOW - 60}000&end={NOW - 30}999", NOW - 60, NOW - 30),  # milliseconds
        (f"end={NOW + 3600}", NOW - DAY, NOW),  # such as the end of today
    ],
)
def test_times_may_be_written_in_several_formats(query: str, start: int, end: int) -> None:
    span = history(query).span
    assert (span.start, span.end) == (start * 1000, end)


@pytest.mark.parametrize(("text", "above"), [("80", 80), ("99.5", 99.5), ("1e-7", 1e-7), ("1E3", 1000), ("5e-324", 5e-324)])
def test_a_threshold_is_a_number_as_json_writes_it(text: str, above: float) -> None:
    wanted = history(f"interval=1h&above={text}").span.wanted
    assert wanted is not None
    assert wanted.above == above


def test_a_cursor_continues_where_the_previous_page_ended() -> None:
    span = history("start=-2d&end=-1d&interval=1h&limit=5").span
    following = (NOW - DAY - HOUR) * 1000 + 499
    again = history(f"limit=7&start=-9d&cursor={resuming(span, following)}").span
    assert again == PageRequest(following, span.end, HOUR, 7)
    with pytest.raises(RequestError, match="interval differs from that of the cursor"):
        history(f"interval=2h&cursor={resuming(span, following)}")


def test_dates_are_those_of_the_time_zone_and_the_cursor_keeps_it() -> None:
    given = f"tz=America/New_York&start={rfc3339(NOW - 9 * DAY)[:10]}&end={rfc3339(NOW - 2 * DAY)[:10]}T12:00&interval=1d"
    span = history(given).span
    assert span.zone == ZoneInfo("America/New_York")
    assert (span.start // 1000 + 4 * HOUR) % HOUR == 0
    assert span.start // 1000 % DAY in (4 * HOUR, 5 * HOUR)
    assert span.end % DAY in (16 * HOUR, 17 * HOUR)
    again = history(f"cursor={resuming(span, span.start)}").span
    assert replace(again, limit=span.limit) == span
    with pytest.raises(RequestError, match="tz differs from that of the cursor"):
        history(f"tz=UTC&cursor={resuming(span, span.start)}")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        *(
            (f"tz={name}", "tz must be the name of a time zone")
            for name in ("", "Mars/Base", "../etc/passwd", "America", "x" * 300)
        ),
        ("tz=Europe/Berlin&interval=2d", "With tz, interval must be 1d, 7d, or shorter than a day"),
    ],
)
def test_a_time_zone_that_is_none_is_refused(query: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        history(query)


@given(st.text())
def test_any_text_is_a_time_or_is_refused(text: str) -> None:
    try:
        time = parse_time(text, NOW)
    except ValueError:
        return
    assert time < 400_000_000_000


@given(st.lists(st.tuples(st.sampled_from(["start", "end", "interval", "limit", "cursor", "format"]), st.text(max_size=30))))
def test_any_query_is_parsed_or_refused(items: list[tuple[str, str]]) -> None:
    try:
        span = HistoryQuery.parse(items, now=NOW, period=300, reach=REACH).span
    except RequestError:
        return
    assert NOW - REACH <= span.start // 1000 < span.end <= NOW


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        *((f"start_time={text}", DURATION) for text in ("0s", "-10m", "300y", "soon", "", "29s", "600")),
        ("end_time=2030-01-01T00:00:00Z", "end_time is in the future (2030-01-01T00:00:00Z); leave it out to use now."),
        ("end_time=1970-01-01T00:00:00Z", "CloudWatch has no data before {}; use a later end_time."),
        ("end_time=-454d&start_time=2d", "CloudWatch has no data before {}; use a later end_time."),
        ("end_time=later", f"end_time {TIME}"),
        ("start=10m", "start is not a parameter of this route; allowed are start_time, end_time."),
    ],
)
def test_invalid_parameters_of_resources_are_refused_too(query: str, sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        ResourcesQuery.parse(parse_qsl(query, keep_blank_values=True), now=NOW)
    assert str(caught.value) == sentence.format(rfc3339(NOW - REACH))
