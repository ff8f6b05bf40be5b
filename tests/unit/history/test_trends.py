"""Figures of the fleet: how hours of workers are summed, kept, and read on after a caller has gone."""

import asyncio
import math
from array import array
from collections.abc import AsyncIterator, Collection

import pytest

from exporter.core.errors import StoreUnavailableError
from exporter.core.periods import DAY, HOUR
from exporter.history.trends import FIELDS, Hour, Span, TrendReader, add_worker

MONDAY = 1_789_948_800
NONE = math.nan


def hour(number: int, running: float, cpu: float = NONE, memory: float = NONE, labs: float = NONE, most: float = NONE) -> Hour:
    """Return the aggregate of the hour that begins `number` hours after Monday, 00:00 UTC."""
    return ((MONDAY + (number + 1) * HOUR) * 1000, running, cpu, memory, labs, most)


def test_values_count_by_the_share_of_the_hour_in_which_the_worker_ran() -> None:
    days: dict[int, Span] = {}
    whole = add_worker([hour(0, 1, 10, 50, 2, 3), hour(1, 0.5, 40, NONE, 1, 1), hour(2, 0, NONE, NONE, 4, 4)], None, days)
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
    known = add_worker(hours, 4, {})
    assert (known.running, known.idle, known.counted, known.priced, known.cost) == (2.75, 1.25, 1.75, 1.25, 5)
    unknown = add_worker(hours, None, {})
    assert (unknown.idle, unknown.priced, unknown.cost) == (1.25, 0, 0)


def test_hours_without_a_number_of_labs_do_not_lower_the_mean() -> None:
    days: dict[int, Span] = {}
    for _ in range(2):  # two workers; CloudWatch knows no labs of the second hour
        add_worker([hour(0, 1, 5, 5, 3, 3), hour(1, 1, 5, 5)], None, days)
    assert days[MONDAY].mean_running == 2
    assert days[MONDAY].mean_labs == 6
    assert Span().mean_labs is None


def test_the_last_hour_of_a_day_ends_on_the_next_one() -> None:
    days: dict[int, Span] = {}
    whole = add_worker([hour(23, 1, 10), hour(24, 1, 30)], None, days)
    assert {day: span.totals.cpu for day, span in days.items()} == {MONDAY: 10, MONDAY + DAY: 30}
    assert whole.cpu == 40


class Slow:
    """Hourly aggregates that can be held back, and fail."""

    def __init__(self) -> None:
        self.open, self.queries, self.failure = asyncio.Event(), 0, False
        self.late = False
        self.open.set()

    async def columns(
        self, worker_ids: Collection[str], start: int, end: int, field: str | None
    ) -> AsyncIterator[tuple[str, str, "array[int]", "array[float]"]]:
        self.queries += 1
        await self.open.wait()
        if self.failure:
            raise StoreUnavailableError("MongoDB does not answer", reason="unavailable")
        count = 3 if self.late and field != FIELDS[0] else 2
        stamps = array("q", [(MONDAY + number * HOUR) * 1000 for number in range(count, 0, -1)][::-1])
        for worker_id in worker_ids:
            yield worker_id, "eu-west-1", stamps, array("d", [1.0] * count)


async def test_figures_are_kept_for_five_minutes_and_read_once_for_all() -> None:
    now = 1000.0
    source = Slow()
    reader = TrendReader(source, lambda: now)
    prices = dict.fromkeys(map(str, range(300)))
    both = await asyncio.gather(*(reader.read(prices, MONDAY, MONDAY + DAY, 10) for _ in range(2)))
    assert both[0] is both[1]
    assert both[0] is not None
    assert both[0].days[MONDAY].totals.running == 600
    assert len(both[0].workers) == 300
    assert source.queries == 2 * len(FIELDS), "300 workers are two batches"
    now += 299
    await reader.read(prices, MONDAY, MONDAY + DAY, 10)
    assert source.queries == 2 * len(FIELDS)
    now += 2
    await reader.read(prices, MONDAY, MONDAY + DAY, 10)
    assert source.queries == 4 * len(FIELDS)


async def test_what_takes_too_long_is_read_on_for_the_next_caller() -> None:
    source = Slow()
    source.open.clear()
    reader = TrendReader(source)
    assert await reader.read({"w": None}, MONDAY, MONDAY + DAY, 0.01) is None
    source.open.set()
    found = await reader.read({"w": None}, MONDAY, MONDAY + DAY, 10)
    assert found is not None
    assert source.queries == len(FIELDS)


async def test_an_error_is_raised_and_not_kept() -> None:
    source = Slow()
    source.failure = True
    reader = TrendReader(source)
    with pytest.raises(StoreUnavailableError):
        await reader.read({"w": None}, MONDAY, MONDAY + DAY, 10)
    source.failure = False
    assert await reader.read({"w": None}, MONDAY, MONDAY + DAY, 10) is not None


async def test_an_hour_that_came_while_the_fields_were_read_is_left_out() -> None:
    source = Slow()
    source.late = True
    found = await TrendReader(source).read({"w": None}, MONDAY, MONDAY + DAY, 10)
    assert found is not None
    assert (found.workers["w"].running, found.workers["w"].cpu) == (2, 2)
