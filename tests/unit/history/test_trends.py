"""Figures of the fleet: how hours of workers are summed, by the days of a zone, kept, and read on after a caller has gone."""

import asyncio
import math
from array import array
from collections.abc import Collection
from zoneinfo import ZoneInfo

import pytest

from exporter.core.errors import StoreUnavailableError
from exporter.core.history_metrics import FIELDS as HOURLY_FIELDS
from exporter.core.periods import DAY, HOUR
from exporter.history.trends import FIELDS, DayPart, Totals, TrendReader, Trends, add_hours, day_parts, sum_hours
from exporter.storage.hourly import WorkerDay

MONDAY = 1_789_948_800
NONE = math.nan
Hour = tuple[int, tuple[float, ...]]


def hour(number: int, running: float, cpu: float = NONE, memory: float = NONE, labs: float = NONE, most: float = NONE) -> Hour:
    """Return the aggregate of the hour that begins `number` hours after Monday, 00:00 UTC: the values of FIELDS."""
    return number, (running, cpu, memory, labs, most)


def worker_days(hours: Collection[Hour], worker_id: str = "w") -> list[WorkerDay]:
    found = []
    for day in sorted({number // 24 for number, _ in hours}):
        of_day = {number % 24: dict(zip(FIELDS, values, strict=True)) for number, values in hours if number // 24 == day}
        values = array("d", [of_day[each].get(name, NONE) for name in HOURLY_FIELDS for each in of_day])
        found.append(WorkerDay(worker_id, "eu-west-1", MONDAY + day * DAY, bytes(of_day), values))
    return found


def summed(hours: Collection[Hour], price: float | None = None, days: int = 7, zone: ZoneInfo | None = None) -> Trends:
    return sum_hours(worker_days(hours), {"w": price}, day_parts(MONDAY, MONDAY + days * DAY, zone))


def test_values_count_by_the_share_of_the_hour_in_which_the_worker_ran() -> None:
    days, workers = summed([hour(0, 1, 10, 50, 2, 3), hour(1, 0.5, 40, NONE, 1, 1), hour(2, 0, NONE, NONE, 4, 4)])
    whole = workers["w"]
    assert (whole.running, whole.idle, whole.counted) == (1.5, 0, 1.5)
    assert whole.mean_cpu == pytest.approx((10 + 20) / 1.5)
    assert whole.mean_memory == 50
    assert whole.labs == 2 + 0.5
    assert days[MONDAY].totals == whole
    assert days[MONDAY].observed == {MONDAY, MONDAY + HOUR, MONDAY + 2 * HOUR}
    assert days[MONDAY].mean_running == 0.5


def test_an_hour_is_idle_without_a_lab_in_all_of_it_and_costs_where_the_price_is_known() -> None:
    hours = [
        hour(0, 1, 5, 5, 0, 0),
        hour(1, 0.5, 5, 5, 0.2, 1),
        hour(2, 1),
        hour(3, NONE, NONE, NONE, 0, 0),
        hour(4, 0.25, 1, 1, 0, 0),
    ]
    known = summed(hours, 4).workers["w"]
    assert (known.running, known.idle, known.counted, known.priced, known.cost) == (2.75, 1.25, 1.75, 1.25, 5)
    unknown = summed(hours).workers["w"]
    assert (unknown.idle, unknown.priced, unknown.cost) == (1.25, 0, 0)


def test_hours_without_a_number_of_labs_do_not_lower_the_mean() -> None:
    # Two workers; CloudWatch knows no labs of the second hour.
    found = [part for each in "ab" for part in worker_days([hour(0, 1, 5, 5, 3, 3), hour(1, 1, 5, 5)], each)]
    days, workers = sum_hours(found, {"a": None, "b": None}, day_parts(MONDAY, MONDAY + DAY, None))
    assert days[MONDAY].mean_running == 2
    assert days[MONDAY].mean_labs == 6
    assert sorted(workers) == ["a", "b"]


def test_days_on_which_a_worker_ran_throughout_are_summed_as_others() -> None:
    """The shorter way of a whole day gives the sums of the longer one."""
    whole = [(hour(number, 1, number, 2 * number, number % 3, number % 4)) for number in range(24)]
    (part,) = worker_days(whole)
    at_once, one_by_one = Totals(), Totals()
    add_hours(part, 0, 24, 2, at_once)
    for number in range(24):
        add_hours(part, number, number + 1, 2, one_by_one)
    assert at_once == one_by_one
    assert (at_once.cpu, at_once.idle, at_once.cost, at_once.cpu_hours) == (276, 6, 12, 24)
    without = [*whole[:5], hour(5, 1, NONE, 3, 0, 0), *whole[6:]]
    (part,) = worker_days(without)
    sums = Totals()
    add_hours(part, 0, 24, None, sums)
    assert (sums.running, sums.cpu_hours, sums.memory_hours, sums.cpu) == (24, 23, 24, 271)


def test_a_day_ends_at_midnight_of_the_zone() -> None:
    hours = [hour(number, 1, 10) for number in range(72)]
    assert {day: span.totals.running for day, span in summed(hours).days.items()} == {MONDAY + n * DAY: 24 for n in range(3)}
    berlin = summed(hours, zone=ZoneInfo("Europe/Berlin")).days  # two hours before UTC
    assert {day: len(span.observed) for day, span in berlin.items()} == {
        MONDAY - 2 * HOUR: 22,
        MONDAY + 22 * HOUR: 24,
        MONDAY + 46 * HOUR: 24,
        MONDAY + 70 * HOUR: 2,
    }
    assert all(span.totals.running == len(span.observed) for span in berlin.values())


def test_days_of_a_zone_have_23_to_25_hours_and_hours_around_midnight_belong_to_the_day_they_begin_in() -> None:
    sunday = 1_792_882_800 - HOUR  # 2026-10-25, 00:00 in Berlin, on which the clocks go back
    parts = day_parts(sunday, sunday + 49 * HOUR, ZoneInfo("Europe/Berlin"))
    lengths: dict[int, int] = {}
    for each in (part for of_day in parts.values() for part in of_day):
        lengths[each.day] = lengths.get(each.day, 0) + each.last - each.first
    assert lengths == {sunday: 25, sunday + 25 * HOUR: 24}
    midnight = MONDAY - 11 * HOUR // 2  # of India: 18:30 UTC
    india = day_parts(midnight, midnight + DAY, ZoneInfo("Asia/Kolkata"))
    assert india == {MONDAY - DAY: [DayPart(midnight, 19, 24)], MONDAY: [DayPart(midnight, 0, 18)]}
    after = day_parts(midnight, midnight + 2 * DAY, ZoneInfo("Asia/Kolkata"))
    assert after[MONDAY] == [DayPart(midnight, 0, 19), DayPart(midnight + DAY, 19, 24)]


def test_only_whole_hours_of_the_range_count() -> None:
    parts = day_parts(MONDAY + 1800, MONDAY + 5 * HOUR + 1800, None)
    assert parts == {MONDAY: [DayPart(MONDAY, 1, 5)]}
    found = sum_hours(worker_days([hour(number, 1, 10) for number in range(24)]), {"w": None}, parts)
    assert found.workers["w"].running == len(found.days[MONDAY].observed) == 4
    assert sum_hours(worker_days([hour(7, 1)]), {"w": None}, parts) == Trends({}, {})


class Slow:
    """Hourly aggregates that can be held back, and fail."""

    def __init__(self) -> None:
        self.open, self.queries, self.failure = asyncio.Event(), 0, False
        self.open.set()

    async def worker_days(self, worker_ids: Collection[str], start: int, end: int) -> list[WorkerDay]:
        self.queries += 1
        await self.open.wait()
        if self.failure:
            raise StoreUnavailableError("MongoDB does not answer", reason="unavailable")
        hours = [hour(number, 1, 1, 1, 1, 1) for number in range(3)]
        return [part for each in sorted(worker_ids) for part in worker_days(hours, each)]


async def test_figures_are_kept_for_five_minutes_and_read_once_for_all() -> None:
    now = 1000.0
    source = Slow()
    reader = TrendReader(source, lambda: MONDAY + 2 * HOUR + 1, lambda: now)
    prices = dict.fromkeys(map(str, range(300)))
    both = await asyncio.gather(*(reader.read(prices, MONDAY, MONDAY + DAY, 10) for _ in range(2)))
    assert both[0] is both[1]
    assert both[0] is not None
    assert both[0].days[MONDAY].totals.running == 600, "the third hour has not ended"
    assert len(both[0].workers) == 300
    assert source.queries == 1
    now += 299
    await reader.read(prices, MONDAY, MONDAY + DAY, 10)
    assert source.queries == 1
    now += 2
    await reader.read(prices, MONDAY, MONDAY + DAY, 10)
    assert source.queries == 2
    there = await reader.read(prices, MONDAY, MONDAY + DAY, 10, ZoneInfo("Asia/Tokyo"))
    assert source.queries == 3, "another zone has other days"
    assert there is not None
    assert list(there.days) == [MONDAY - 9 * HOUR]


async def test_what_takes_too_long_is_read_on_for_the_next_caller() -> None:
    source = Slow()
    source.open.clear()
    reader = TrendReader(source)
    assert await reader.read({"w": None}, MONDAY, MONDAY + DAY, 0.01) is None
    source.open.set()
    found = await reader.read({"w": None}, MONDAY, MONDAY + DAY, 10)
    assert found is not None
    assert source.queries == 1


async def test_an_error_is_raised_and_not_kept() -> None:
    source = Slow()
    source.failure = True
    reader = TrendReader(source)
    with pytest.raises(StoreUnavailableError):
        await reader.read({"w": None}, MONDAY, MONDAY + DAY, 10)
    source.failure = False
    assert await reader.read({"w": None}, MONDAY, MONDAY + DAY, 10) is not None
