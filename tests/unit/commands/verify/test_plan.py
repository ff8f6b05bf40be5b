"""The window, the sample of workers, and the kept answers of `verify`."""

from array import array

import pytest

from exporter.commands.backfill.plan import Answer, GapQuery, WorkerLifetime
from exporter.commands.verify.compare import UNKNOWN
from exporter.commands.verify.earlier import days_of, merge, value_in
from exporter.commands.verify.plan import comparable_window, sampled, settled_after, worker_queries
from exporter.core.instances import updated_entry
from exporter.core.model import Worker
from exporter.core.periods import DAY, HOUR, MINUTE, align

NOW = 1_800_000_123
PERIOD = 300
SETTLED = settled_after(3600, 300)


def test_with_the_default_settings_a_sample_is_expected_after_an_hour_and_a_half() -> None:
    """65 to 75 minutes of docs/sample-lifecycle.md, and an idle worker's quarter of an hour."""
    assert settled_after(3600, 300) == 85 * MINUTE


def test_the_window_ends_where_every_value_is_final() -> None:
    window = comparable_window(NOW - DAY, NOW, PERIOD, SETTLED, 30 * DAY)
    assert (window.start, window.until, window.notes) == (align(NOW - DAY, PERIOD) + PERIOD, align(NOW - SETTLED, PERIOD), ())
    assert window.since == window.coarse_until == window.start


@pytest.mark.parametrize(("period", "kept"), [(60, 15 * DAY), (300, 63 * DAY), (3600, 455 * DAY)])
def test_periods_that_cloudwatch_has_only_coarser_are_left_out_and_counted(period: int, kept: int) -> None:
    window = comparable_window(NOW - 500 * DAY, NOW, period, SETTLED, None)
    assert 0 <= window.start - (NOW - kept) - 10 * MINUTE < period
    lifetime = lifetime_of(created_at=NOW - kept - 7 * DAY)
    _, excluded = worker_queries(lifetime, None, window, period)
    assert excluded.counts["cpu"]["coarse"] == excluded.periods == pytest.approx(7 * DAY / period, abs=900 / period + 1)


def test_nothing_past_retention_is_compared() -> None:
    window = comparable_window(NOW - 7 * DAY, NOW, PERIOD, SETTLED, DAY)
    assert window.start - (NOW - DAY) == pytest.approx(10 * MINUTE, abs=PERIOD)
    assert window.coarse_until == window.since
    assert window.notes[0].startswith("The history keeps samples for 1d: nothing before ")


def test_a_window_that_is_not_final_is_empty_and_says_so() -> None:
    window = comparable_window(NOW - HOUR, NOW, PERIOD, SETTLED, None)
    assert window.start == window.until
    assert window.notes[0].startswith("The last 1h2")


def lifetime_of(**more: int | str | None) -> WorkerLifetime:
    fields = {"id": "w", "region": "eu-west-1", "instance_id": "i-0a", "status": "running"} | more
    worker = Worker(**fields)  # type: ignore[arg-type]
    return WorkerLifetime(worker, updated_entry(None, worker, NOW), True)


def test_samples_outside_the_lifetime_of_a_worker_are_compared_too() -> None:
    window = comparable_window(NOW - DAY, NOW, PERIOD, SETTLED, None)
    lifetime = lifetime_of(created_at=window.until - HOUR)
    ((_, alone),), _ = worker_queries(lifetime, None, window, PERIOD)
    assert alone.gaps == ((align(window.until - HOUR, PERIOD), window.until),)
    ((_, wider),), _ = worker_queries(lifetime, (window.start, window.start + PERIOD), window, PERIOD)
    assert wider.gaps == ((window.start, window.until),)
    gone = lifetime_of(status="terminated", terminated_at=NOW - 9 * DAY)
    assert worker_queries(gone, None, window, PERIOD)[0] == []
    ((_, left),), _ = worker_queries(gone, (window.start, window.start + PERIOD), window, PERIOD)
    assert left.gaps == ((window.start, window.start + PERIOD),)


def test_a_worker_without_an_instance_is_not_comparable() -> None:
    window = comparable_window(NOW - DAY, NOW, PERIOD, SETTLED, None)
    found, excluded = worker_queries(lifetime_of(instance_id=None), None, window, PERIOD)
    assert found == []
    assert excluded.counts["memory"]["no_instance"] == excluded.periods == (window.until - window.start) // PERIOD


def test_a_sample_is_exactly_proportional_the_same_for_a_seed_and_another_for_the_next() -> None:
    ids = [f"w{n}" for n in range(200)]
    drawn = sampled(ids, 5, "2026-11-28")
    assert len(drawn) == 10
    assert drawn == sampled(ids, 5, "2026-11-28") == sorted(drawn, key=ids.index)
    assert drawn != sampled(ids, 5, "2026-11-29")
    assert set(drawn) <= set(sampled(ids, 20, "2026-11-28"))
    assert len(sampled(ids[:3], 1, "")) == 1
    assert sampled(ids, 100, "") == ids
    days = {worker for day in range(90) for worker in sampled(ids, 5, str(day))}
    assert len(days) > 190  # in three months nearly every worker


def test_first_answers_are_kept_by_day_and_later_ones_only_fill_in() -> None:
    day = align(NOW, DAY)
    span = (day - 2 * PERIOD, day + 2 * PERIOD)
    answer = Answer(GapQuery("w", ("i-0a",), (span,)), {day - PERIOD: 1.5, day: 2.5}, {})
    days = days_of(answer, PERIOD)
    assert set(days) == {(metric, at) for metric in ("cpu", "memory") for at in (day - DAY, day)}
    assert value_in(days, "cpu", day - PERIOD, PERIOD) == 1.5
    assert value_in(days, "cpu", day + PERIOD, PERIOD) != value_in(days, "cpu", day + PERIOD, PERIOD)  # NaN: no datapoint
    assert value_in(days, "cpu", day + 2 * PERIOD, PERIOD) == value_in({}, "cpu", day, PERIOD) == UNKNOWN
    newer = array("f", [UNKNOWN]) * (DAY // PERIOD)
    newer[1:3] = array("f", [8.0, 9.0])
    first = array("f", [2.5, UNKNOWN]) + newer[3:]
    assert [*merge(first + newer[:1], newer)][:3] == [2.5, 8.0, 9.0]
