"""The price of CloudWatch metrics and the budget of a day."""

import threading

import pytest

from exporter.core.budget import Budget, ReaderBudget, Usage, dollars
from exporter.core.periods import DAY

MIDNIGHT = 1_767_225_600


class Wall:
    def __init__(self, now: float = MIDNIGHT) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_thousand_metrics_cost_a_cent() -> None:
    assert dollars(1000) == pytest.approx(0.01)
    assert Usage.of([500, 500, 20]) == Usage(3, 1020)
    assert Usage(3, 1020).times(288).dollars == pytest.approx(288 * 0.0102)


def test_without_a_limit_everything_is_allowed_and_the_day_is_counted() -> None:
    budget = Budget(wall=Wall())
    assert budget.take(10**9)
    assert budget.left == float("inf")
    assert budget.spent() == (MIDNIGHT, 10**9)
    assert budget.assess(10**9, 300) == "ok"


def test_the_limit_is_never_exceeded_and_midnight_starts_a_new_day() -> None:
    wall = Wall(MIDNIGHT + 80_000)
    budget = Budget(0.01, wall=wall)
    assert budget.take(999)
    assert not budget.take(2)
    assert budget.take(1)
    assert budget.left == 0
    wall.now = MIDNIGHT + DAY
    assert budget.left == 1000
    assert budget.spent() == (MIDNIGHT + DAY, 0)


def test_a_failed_request_is_given_back() -> None:
    budget = Budget(0.01, wall=Wall())
    assert budget.take(1000)
    budget.give_back(400)
    assert budget.left == 400


def test_a_restart_continues_the_count_of_the_same_day_only() -> None:
    assert Budget(0.01, wall=Wall(MIDNIGHT + 9), day=MIDNIGHT, spent=900).left == 100
    assert Budget(0.01, wall=Wall(MIDNIGHT + DAY), day=MIDNIGHT, spent=900).left == 1000


def test_a_clock_that_is_set_back_grants_no_second_budget() -> None:
    wall = Wall(MIDNIGHT + 10)
    budget = Budget(0.01, wall=wall)
    assert budget.take(1000)
    wall.now = MIDNIGHT - 10
    assert budget.left == 0


def test_gap_filling_pauses_when_the_rest_is_needed_for_the_live_cycles_until_midnight() -> None:
    wall = Wall(MIDNIGHT + DAY - 3000)  # this cycle and ten more of 300 s
    for limit, state in (
        (11 * 20 + 1, "ok"),
        (11 * 20, "gap_filling_paused"),
        (20, "gap_filling_paused"),
        (19, "polling_paused"),
    ):
        assert Budget(limit / 1e5, wall=wall).assess(20, 300) == state


def test_without_running_workers_gap_filling_may_use_the_whole_budget() -> None:
    budget = Budget(0.001, wall=Wall())
    assert budget.assess(0, 300) == "ok"
    assert budget.take(100)
    assert budget.assess(0, 300) == "polling_paused"


def test_threads_together_never_take_more_than_there_is() -> None:
    budget = Budget(0.01, wall=Wall())
    taken: list[int] = []

    def work() -> None:
        taken.extend(3 for _ in range(200) if budget.take(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 999
    assert budget.left == 1


def test_a_clock_that_was_years_ahead_does_not_block_the_budget_until_then() -> None:
    wall = Wall(MIDNIGHT + 400 * DAY)
    budget = Budget(0.01, wall=wall)
    assert budget.take(1000)
    wall.now = MIDNIGHT + 5
    assert budget.left == 1000


def test_queries_that_can_wait_get_only_what_the_live_cycles_do_not_need() -> None:
    budget = Budget(0.01, wall=Wall(MIDNIGHT + DAY - 3000))
    assert budget.spare == 1000
    budget.assess(20, 300)
    assert budget.spare == 1000 - 11 * 20
    assert Budget(wall=Wall()).spare == float("inf")


def test_a_request_that_costs_nothing_is_never_refused() -> None:
    budget = Budget(0.00001, wall=Wall(), day=MIDNIGHT, spent=50)
    assert budget.take(0)
    assert not budget.take(1)


def test_readers_get_their_share_of_the_budget_and_what_they_spend_counts_as_spent() -> None:
    budget = Budget(0.01, wall=Wall())  # 1,000 metrics
    readers = ReaderBudget(budget, 0.1)
    assert readers.max_usd == pytest.approx(0.001)
    assert readers.take(98)
    assert not readers.take(3)
    assert readers.take(2)
    assert not readers.take(1)
    assert readers.take(0), "what costs nothing is never refused"
    assert budget.left == 900
    readers.give_back(40)
    assert (readers.spent(), budget.left) == ((MIDNIGHT, 60), 940)


def test_the_share_of_readers_follows_a_budget_that_is_changed() -> None:
    budget = Budget(None)
    readers = ReaderBudget(budget, 0.1)
    assert readers.max_usd == 1
    budget.limit(0.5)
    assert readers.max_usd == pytest.approx(0.05)
    assert not readers.take(5001)
    assert readers.take(5000)


def test_readers_never_get_what_the_live_cycles_need() -> None:
    budget = Budget(0.01, wall=Wall(MIDNIGHT + DAY - 3000))
    budget.assess(90, 300)  # eleven cycles until midnight: ten metrics are left for all that can wait
    readers = ReaderBudget(budget, 0.1)
    assert readers.take(10)
    assert not readers.take(1)
    assert budget.take(990), "polling is not limited by it"


def test_without_a_budget_readers_can_spend_a_dollar_a_day_by_default() -> None:
    wall = Wall()
    readers = ReaderBudget(Budget(wall=wall), 0.1)
    assert readers.max_usd == 1
    assert readers.take(100_000)
    assert not readers.take(1)
    wall.now = MIDNIGHT + DAY
    assert readers.take(100_000)
    assert not ReaderBudget(Budget(wall=wall), 0).take(1)


def test_a_restart_continues_what_readers_spent_on_the_same_day_only() -> None:
    for wall, left in ((Wall(MIDNIGHT + 9), 10), (Wall(MIDNIGHT + DAY), 100)):
        readers = ReaderBudget(Budget(0.01, wall=wall), 0.1, day=MIDNIGHT, spent=90)
        assert not readers.take(left + 1)
        assert readers.take(left)
