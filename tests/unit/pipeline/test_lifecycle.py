"""The rules of the sample lifecycle, one named case each; the simulation shows that together they lose and invent nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

import pytest

from exporter.core.instances import instances_during, updated_entry
from exporter.core.model import (
    Datapoint,
    InstanceInterval,
    InventoryEntry,
    Listing,
    MetricName,
    MetricQuery,
    MetricResult,
    MetricResults,
    Outcome,
    PendingQuery,
    Worker,
)
from exporter.pipeline.lifecycle import (
    ON_TIME_SECONDS,
    Decision,
    FirstSeenValues,
    PendingSample,
    Rules,
    WorkerState,
    close_missing,
    decide_metric,
    finalize,
    finalize_without_cloudwatch,
    initial_state,
    observe,
    unopened_periods,
)
from exporter.pipeline.planning import MetricDataCall, is_due, plan
from exporter.pipeline.publisher import gauges, is_shown
from exporter.sources.cloudwatch.memory_series import LISTING_LAG_SECONDS
from exporter.sources.cloudwatch.queries import MAX_DATAPOINTS, MAX_QUERIES

RULES = Rules()
P = RULES.period
T = 1_767_225_600
"""2026-01-01T00:00:00Z, the start of a period."""
WORKER = Worker("w1", "eu-west-1", "i-1", "running", active_labs=3)
STATE = WorkerState("w1", "eu-west-1", ("i-1",), "running", 0, T - P + 12, T)
ENTRY = InventoryEntry("w1", "eu-west-1", None, None, None, None, None, "running", T - 9 * P, T)


def ran(*intervals: tuple[str, int, int], region: str = "eu-west-1") -> InventoryEntry:
    """The inventory's entry with these instances: (id, first seen, last seen)."""
    return replace(ENTRY, instances=tuple(InstanceInterval(id_, region, first, last) for id_, first, last in intervals))


def starts(rows: Iterable[PendingSample]) -> list[int]:
    """Which periods they are, counted from T."""
    return [(row.start - T) // P for row in rows]


# -- observing ---------------------------------------------------------------------------------------------------------


def test_every_closed_period_is_opened_once() -> None:
    rows, state = observe(WORKER, STATE, T + P + 12, RULES)
    assert rows == [PendingSample("w1", T, "eu-west-1", ("i-1",), "running", 3)]
    assert state == WorkerState("w1", "eu-west-1", ("i-1",), "running", 0, T + P + 12, T + P)
    again, unchanged = observe(WORKER, state, T + P + 40, RULES)
    assert again == []
    assert unchanged == state._replace(seen=T + P + 40)


def test_a_period_is_closed_exactly_at_its_end() -> None:
    assert observe(WORKER, STATE, T + P - 1, RULES)[0] == []
    assert starts(observe(WORKER, STATE, T + P, RULES)[0]) == [0]


def test_an_observation_counts_for_one_period_only() -> None:
    rows, _ = observe(WORKER, STATE, T + 3 * P + 12, RULES)
    assert [(row.status, row.active_labs) for row in rows] == [(None, None), (None, None), ("running", 3)]
    assert [row.gap_filled for row in rows] == [True, True, False]


def test_an_observation_a_whole_period_late_counts_for_none() -> None:
    rows, _ = observe(WORKER, STATE, T + 2 * P, RULES)
    assert [row.status for row in rows] == [None, "running"]


def test_nothing_older_than_gap_fill_window_is_opened() -> None:
    now = T + RULES.gap_fill_window + 5 * P + 7
    rows, state = observe(WORKER, STATE, now, RULES)
    assert starts(rows)[0] == 6
    assert state.next == T + RULES.gap_fill_window + 5 * P


def test_the_worker_documents_own_values_go_to_the_period_of_their_collection() -> None:
    worker = replace(WORKER, cpu=40.0, memory=50.0, collected_at=T + P - 1)
    (row,) = observe(worker, STATE, T + P + 12, RULES)[0]
    assert (row.own_cpu, row.own_memory) == (40.0, 50.0)
    (row,) = observe(replace(worker, collected_at=T + P), STATE, T + P + 12, RULES)[0]
    assert (row.own_cpu, row.own_memory) == (None, None)


def test_candidates_are_the_instances_from_before_the_period_to_after_it_newest_first() -> None:
    (row,), state = observe(replace(WORKER, instance_id="i-2"), STATE, T + P + 12, RULES)
    assert row.instances == ("i-2", "i-1")
    assert state.instances == ("i-2", "i-1")
    (row,), state = observe(replace(WORKER, instance_id="i-2"), state, T + 2 * P + 12, RULES)
    assert row.instances == ("i-2", "i-1"), "i-1 may have run until i-2 was first seen, in this very period"
    (row,), state = observe(replace(WORKER, instance_id="i-2"), state, T + 3 * P + 12, RULES)
    assert row.instances == ("i-2",)


def test_an_instance_seen_between_two_ticks_is_a_candidate_too() -> None:
    _, state = observe(replace(WORKER, instance_id="i-2"), STATE, T + 100, RULES)
    (row,), _ = observe(replace(WORKER, instance_id="i-3"), state, T + P + 12, RULES)
    assert row.instances == ("i-3", "i-2", "i-1")


def test_the_inventory_knows_instances_that_an_old_outbox_does_not() -> None:
    entry = ran(("i-1", T - P, T), ("i-2", T + 10, T + P), ("i-3", T + 2 * P + 5, T + 3 * P))
    rows, _ = observe(replace(WORKER, instance_id="i-3"), STATE, T + 3 * P, RULES, entry)
    assert rows[0].instances[:2] == ("i-2", "i-1")
    assert rows[2].instances[:2] == ("i-3", "i-2")


def test_another_regions_instances_are_no_candidates() -> None:
    rows, state = observe(replace(WORKER, region="us-east-1", instance_id="i-2"), STATE, T + P + 12, RULES)
    assert [(row.region, row.instances) for row in rows] == [("us-east-1", ("i-2",))]
    assert state.region == "us-east-1"


def test_a_worker_without_an_instance_is_finalized_by_the_observation() -> None:
    worker, state = replace(WORKER, instance_id=None, status="pending"), STATE._replace(instances=())
    rows, _ = observe(worker, state, T + 2 * P, RULES)
    assert rows == [PendingSample("w1", T + P, "eu-west-1", (), "pending", 3, final=True)], (
        "and a period without an observation has no sample"
    )


@pytest.mark.parametrize("status", ["stopped", "terminated"])
def test_an_idle_worker_is_finalized_without_cloudwatch(status: str) -> None:
    state = STATE._replace(status="stopped", idle_since=T - P)
    (row,), _ = observe(replace(WORKER, status=status), state, T + P + 12, RULES)
    assert (row.final, row.status) == (True, status)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (STATE._replace(status="running"), "it was running before"),
        (STATE._replace(status="stopped", idle_since=T + 1), "it was seen idle only within the period"),
        (STATE._replace(status="stopped", idle_since=T - P, seen=T - P), "it was not observed for too long"),
        (STATE._replace(status="stopped", idle_since=T - P, instances=("i-0",)), "it ran meanwhile: it has another instance"),
    ],
)
def test_an_idle_worker_is_queried_unless_it_was_idle_all_the_time(state: WorkerState, why: str) -> None:
    (*_, row), _ = observe(replace(WORKER, status="stopped"), state, T + P + 12, RULES)
    assert not row.final, why


def test_idleness_counts_from_its_first_observation() -> None:
    stopped = replace(WORKER, status="stopped")
    _, state = observe(stopped, STATE, T + 50, RULES)
    assert state.idle_since == T + 50
    _, state = observe(stopped, state, T + 90, RULES)
    assert state.idle_since == T + 50
    assert observe(WORKER, state, T + 99, RULES)[1].idle_since == 0


def test_the_last_sample_of_a_terminated_worker_is_the_period_in_which_that_was_first_seen() -> None:
    dead = replace(WORKER, status="terminated")
    rows, state = observe(dead, STATE, T + P + 12, RULES)
    assert [(row.status, row.final) for row in rows] == [("terminated", False)]
    rows, state = observe(dead, state, T + 3 * P + 12, RULES)
    assert rows == []
    assert state.next == T + 3 * P, "if it runs again, the time between is no gap"


@pytest.mark.parametrize(
    ("terminated_at", "last"),
    [(T + 2, []), (T + P + 5, [1]), (T + P + 100, [1]), (T + 9 * P, []), (None, [])],
    ids=["in the closed period", "in the next", "at the read", "in the future", "unknown"],
)
def test_a_worker_seen_terminated_before_its_last_period_closed_has_that_period_too(
    terminated_at: int | None, last: list[int]
) -> None:
    dead = replace(WORKER, status="terminated", terminated_at=terminated_at)
    rows, state = observe(dead, STATE, T + P + 100, RULES)
    assert starts(rows) == [0]
    rows, state = observe(dead, state, T + 2 * P + 12, RULES)
    assert starts(rows) == last
    assert observe(dead, state, T + 5 * P + 12, RULES)[0] == [], "once only, also after a while without a read"


def test_a_terminated_worker_that_runs_again_has_samples_again() -> None:
    state = STATE._replace(status="terminated", idle_since=T - P)
    (row,), _ = observe(replace(WORKER, instance_id="i-2", status="pending"), state, T + P + 12, RULES)
    assert (row.status, row.final) == ("pending", False)


def test_a_clock_that_goes_back_opens_nothing_again() -> None:
    _, state = observe(WORKER, STATE, T + 5 * P, RULES)
    rows, back = observe(WORKER, state, T + 2 * P, RULES)
    assert (rows, back.next) == ([], T + 5 * P)


# -- first observation, last observation, gaps -------------------------------------------------------------------------


def test_the_first_observation_opens_the_period_that_has_just_closed() -> None:
    rows, _ = observe(WORKER, initial_state(WORKER, None, T + 12, RULES), T + 12, RULES)
    assert starts(rows) == [-1]
    assert rows[0].status == "running"


def test_the_first_observation_opens_nothing_before_the_creation() -> None:
    worker = replace(WORKER, created_at=T + 5)
    rows, state = observe(worker, initial_state(worker, None, T + 12, RULES), T + 12, RULES)
    assert (rows, state.next) == ([], T)


def test_a_creation_in_the_future_opens_nothing_and_skips_nothing() -> None:
    worker = replace(WORKER, created_at=T + 99 * P)
    assert initial_state(worker, None, T + 12, RULES).next == T


def test_the_first_observation_of_an_outbox_uses_the_inventorys_last_instance() -> None:
    state = initial_state(replace(WORKER, instance_id="i-2"), ran(("i-1", T - 2 * P, T - 50)), T + 12, RULES)
    rows, _ = observe(replace(WORKER, instance_id="i-2"), state, T + 12, RULES)
    assert rows[0].instances == ("i-2", "i-1")


def test_a_worker_already_terminated_at_the_first_observation_has_no_new_sample() -> None:
    dead = replace(WORKER, status="terminated")
    rows, _ = observe(dead, initial_state(dead, None, T + 12, RULES), T + 12, RULES)
    assert rows == []


def test_a_worker_that_terminated_while_the_outbox_was_lost_has_its_last_sample() -> None:
    dead = replace(WORKER, status="terminated")
    rows, _ = observe(dead, initial_state(dead, ran(("i-1", T - P, T - 50)), T + 12, RULES), T + 12, RULES)
    assert [row.status for row in rows] == ["terminated"]


def test_the_last_sample_of_a_vanished_worker_is_the_period_open_when_it_was_last_seen() -> None:
    state = STATE._replace(seen=T + P + 12, next=T + P)
    assert close_missing(state, T + 2 * P - 1, RULES) == ([], state), "it is not over yet"
    rows, after = close_missing(state, T + 9 * P, RULES)
    assert rows == [PendingSample("w1", T + P, "eu-west-1", ("i-1",))]
    assert after.next == T + 2 * P
    assert close_missing(after, T + 10 * P, RULES) == ([], after)


@pytest.mark.parametrize("state", [STATE._replace(status="stopped"), STATE._replace(instances=())])
def test_a_vanished_worker_that_ran_nowhere_leaves_nothing(state: WorkerState) -> None:
    assert close_missing(state, T + 9 * P, RULES) == ([], state)


def test_periods_older_than_gap_fill_window_that_no_exporter_observed_are_lost() -> None:
    late = T + 300 * P + 12  # 300 periods are closed since the last observation, and 287 of them can still be opened
    assert unopened_periods(WORKER, STATE, None, T + 288 * P, RULES) == 0
    assert unopened_periods(WORKER, STATE, None, late, RULES) == 13
    assert starts(observe(WORKER, STATE, late, RULES)[0])[0] == 13, "the others are opened"
    elsewhere = replace(ran(("i-1", T - P, T + 4 * P)), last_seen=T + 4 * P + 12)
    assert unopened_periods(WORKER, STATE, elsewhere, late, RULES) == 9, "another exporter observed until then"
    dead = replace(WORKER, status="terminated")
    assert unopened_periods(dead, STATE._replace(status="terminated"), None, late, RULES) == 0, "it has no more samples"


def test_a_gap_is_queried_for_the_instances_that_ran_then() -> None:
    entry = ran(("i-1", T - 9 * P, T - 6 * P), ("i-2", T - 4 * P, T - 2 * P), ("i-3", T - 2 * P + 1, T))
    found = {at: instances_during(entry, WORKER, T + at * P, T + (at + 1) * P)[1] for at in (-8, -6, -5, -4, -3, -2, -1)}
    assert found == {
        -8: ("i-1",),
        -6: ("i-2", "i-1"),  # not observed between T − 6 P and T − 4 P
        -5: ("i-2", "i-1"),
        -4: ("i-2", "i-1"),  # the first observation of i-2 may have been within the second T − 4 P
        -3: ("i-2",),
        -2: ("i-3", "i-2"),
        -1: ("i-3",),
    }


def test_before_the_first_observation_it_was_the_first_instance() -> None:
    assert instances_during(ran(("i-1", T, T + P)), WORKER, T - 9 * P, T - 8 * P) == ("eu-west-1", ("i-1",))
    assert instances_during(None, WORKER, T - P, T) == ("eu-west-1", ("i-1",))


def test_where_the_region_changed_within_a_period_the_newer_one_counts() -> None:
    entry = replace(
        ENTRY,
        instances=(
            InstanceInterval("i-1", "eu-west-1", T - 9 * P, T + 10),
            InstanceInterval("i-2", "us-east-1", T + 99, T + P),
        ),
    )
    assert instances_during(entry, WORKER, T, T + P) == ("us-east-1", ("i-2",))
    assert instances_during(entry, WORKER, T - P, T) == ("eu-west-1", ("i-1",))


# -- polling -----------------------------------------------------------------------------------------------------------


def queries_of(worker_id: str, region: str, instance: str) -> tuple[MetricQuery, ...]:
    dimensions = (("InstanceId", instance),)
    return MetricQuery(instance, "cpu", dimensions), MetricQuery(instance, "memory", dimensions)


def pending(number: int, oldest: int, region: str = "eu-west-1", instances: int = 1) -> PendingQuery:
    return PendingQuery(f"w{number:04}", region, tuple(f"i-{number}-{n}" for n in range(instances)), oldest)


def datapoints(call: MetricDataCall) -> int:
    return len(call.queries) * (call.end - call.start) // P


@pytest.mark.parametrize(
    ("running", "polled", "due"),
    [(True, None, True), (True, 271, True), (True, 269, False), (False, 871, True), (False, 869, False), (False, None, True)],
)
def test_a_running_worker_is_polled_every_interval_an_idle_one_every_quarter_of_absence_timeout(
    running: bool, polled: int | None, due: bool
) -> None:
    assert is_due(running, None if polled is None else T - polled, T, RULES) is due


def test_an_idle_worker_is_never_polled_more_often_than_a_running_one() -> None:
    rare = Rules(interval=1200, absence_timeout=1800)
    assert not is_due(False, T - 600, T, rare)
    assert is_due(False, T - 1200, T, rare)


def test_a_call_queries_whole_workers_from_the_oldest_period_to_now() -> None:
    (call,) = plan([pending(1, T - P), pending(2, T - 3 * P + 7)], queries_of, T + 200, RULES)
    assert (call.region, call.start, call.end) == ("eu-west-1", T - 3 * P, T)
    assert [len(queries) for queries in call.queries_by_worker.values()] == [2, 2]


def test_a_call_queries_one_region() -> None:
    calls = plan([pending(1, T - P), pending(2, T - P, "us-east-1")], queries_of, T, RULES)
    assert [call.region for call in calls] == ["eu-west-1", "us-east-1"]


def test_calls_are_full_and_never_beyond_500_queries() -> None:
    calls = plan([pending(n, T - 3 * P) for n in range(600)], queries_of, T, RULES)
    assert [len(call.queries) for call in calls] == [MAX_QUERIES, MAX_QUERIES, 200]


def test_a_worker_is_never_split_between_two_calls() -> None:
    calls = plan([pending(n, T - P, instances=3) for n in range(200)], queries_of, T, RULES)
    assert [len(call.queries) for call in calls] == [498, 498, 204]
    assert sorted(worker for call in calls for worker in call.queries_by_worker) == sorted(
        {n.worker_id for n in map(pending, range(200), [T] * 200)}
    )


def test_calls_never_query_more_datapoints_than_a_result_holds() -> None:
    calls = plan([pending(n, T - 288 * P) for n in range(500)], queries_of, T, RULES)
    assert all(datapoints(call) <= MAX_DATAPOINTS for call in calls)
    assert len(calls) == 3, "1,000 queries × 288 periods"


def test_fresh_workers_do_not_pay_for_the_window_of_an_old_one() -> None:
    fresh = [pending(n, T - 3 * P) for n in range(250)]
    calls = plan([*fresh, pending(999, T - 4000 * P)], queries_of, T, RULES)
    assert [(len(call.queries), (call.end - call.start) // P) for call in calls] == [(500, 3), (2, 4000)]


def test_newest_windows_are_queried_first() -> None:
    calls = plan([pending(1, T - 4000 * P, instances=10), pending(2, T - P, "us-east-1")], queries_of, T, RULES)
    assert [call.start for call in calls] == sorted((call.start for call in calls), reverse=True)


def test_a_window_too_long_for_one_call_is_cut_and_covers_everything() -> None:
    short = replace(RULES, period=60)
    calls = plan([pending(1, T - 14 * 86400, instances=10)], queries_of, T, short)
    assert all(len(call.queries) * (call.end - call.start) // 60 <= MAX_DATAPOINTS for call in calls)
    windows = sorted((call.start, call.end) for call in calls)
    assert (windows[0][0], windows[-1][1]) == (T - 14 * 86400, T)
    assert all(earlier[1] == later[0] for earlier, later in pairwise(windows))


def test_a_period_that_is_not_over_is_not_queried() -> None:
    assert plan([pending(1, T)], queries_of, T + 200, RULES) == []


def test_a_worker_without_queries_is_not_polled() -> None:
    assert plan([PendingQuery("w1", "eu-west-1", (), T - P)], queries_of, T, RULES) == []


def test_an_instance_shared_by_two_workers_is_queried_once() -> None:
    shared = [PendingQuery(name, "eu-west-1", ("i-1",), T - P) for name in ("w1", "w2")]
    (call,) = plan(shared, queries_of, T, RULES)
    assert (len(call.queries_by_worker), len(call.queries)) == (2, 2)


# -- deciding ----------------------------------------------------------------------------------------------------------

ROW = PendingSample("w1", T, "eu-west-1", ("i-1",), "running", 3, own_cpu=11.0, own_memory=22.0)
CPU, MEMORY = queries_of("w1", "eu-west-1", "i-1")
END = T + P


def results(
    age: int,
    *,
    cpu: float | None = None,
    memory: float | None = None,
    outcome: Outcome = "ok",
    window: tuple[int, int] = (T, END),
) -> MetricResults:
    """CloudWatch's results `age` seconds after the row's end."""
    given: Mapping[MetricQuery, float | None] = {CPU: cpu, MEMORY: memory}
    return MetricResults(
        END + age,
        {q: MetricResult(outcome, *window, {} if value is None else {T: value}) for q, value in given.items()},
    )


def decide(
    given: MetricResults, first_seen: FirstSeenValues | None = None, row: PendingSample = ROW, listings: Iterable[Listing] = ()
) -> Decision:
    queries = [query for query in (CPU, MEMORY) if query in given.by_query]
    return decide_metric(row, "cpu", queries, given, tuple(listings), {} if first_seen is None else first_seen, RULES)


@pytest.mark.parametrize(
    ("age", "value", "decision", "why"),
    [
        (0, 5.0, Decision(False), "CloudWatch may revise it until settle_delay"),
        (299, 5.0, Decision(False), "one second before settle_delay"),
        (300, 5.0, Decision(True, 5.0), "settle_delay is over, and it was seen on time"),
        (300 + ON_TIME_SECONDS, 5.0, Decision(True, 5.0), "collection cycles are not exact to the second"),
        (301 + ON_TIME_SECONDS, 5.0, Decision(False), "late: it must stay the same for another settle_delay"),
        (3599, 5.0, Decision(False), "late, and before absence_timeout"),
        (3600, 5.0, Decision(True, 5.0), "after absence_timeout nothing is revised any more"),
        (300, None, Decision(False), "a missing value is not absent so early"),
        (3599, None, Decision(False), "a missing value is not absent before absence_timeout"),
        (3600, None, Decision(True), "a missing value is recorded as absent"),
        (300, 0.0, Decision(True, 0.0), "zero is a value"),
    ],
)
def test_when_a_first_result_counts(age: int, value: float | None, decision: Decision, why: str) -> None:
    assert decide(results(age, cpu=value)) == decision, why


@pytest.mark.parametrize("outcome", ["partial", "failed"])
@pytest.mark.parametrize("age", [300, 90_000])
def test_a_partial_or_failed_result_decides_nothing_at_any_age(outcome: Outcome, age: int) -> None:
    assert decide(results(age, cpu=5.0, outcome=outcome)) == Decision(False)


def test_a_query_without_a_result_decides_nothing() -> None:
    assert decide_metric(ROW, "cpu", [CPU], MetricResults(END + 9999, {}), (), {}, RULES) == Decision(False)


@pytest.mark.parametrize("window", [(T + P, T + 2 * P), (T - P, T), (T + 1, END), (T, END - 1)])
def test_a_result_that_does_not_cover_the_whole_period_decides_nothing(window: tuple[int, int]) -> None:
    assert decide(results(9999, window=window)) == Decision(False)


def test_a_late_value_is_confirmed_by_staying_the_same() -> None:
    first_seen: FirstSeenValues = {}
    assert decide(results(700, cpu=5.0), first_seen) == Decision(False)
    assert decide(results(999, cpu=5.0), first_seen) == Decision(False)
    assert decide(results(1000, cpu=5.0), first_seen) == Decision(True, 5.0)


def test_a_late_value_that_is_revised_must_be_confirmed_again() -> None:
    first_seen: FirstSeenValues = {}
    decide(results(700, cpu=5.0), first_seen)
    assert decide(results(1000, cpu=6.0), first_seen) == Decision(False)
    assert decide(results(1300, cpu=6.0), first_seen) == Decision(True, 6.0)


def test_a_value_seen_before_settle_delay_counts_afterwards_even_without_a_poll_in_between() -> None:
    first_seen: FirstSeenValues = {}
    decide(results(120, cpu=5.0), first_seen)
    assert decide(results(900, cpu=5.0), first_seen) == Decision(True, 5.0)
    assert decide(results(900, cpu=6.0), first_seen) == Decision(False), "revised after it was seen: confirmed like a late one"


def test_the_newest_candidate_that_has_a_value_wins() -> None:
    row = ROW._replace(instances=("i-2", "i-1"))
    both = [*queries_of("w1", "eu-west-1", "i-2"), CPU, MEMORY]
    empty = MetricResult("empty", T, END, {})

    def given(age: int, newer: MetricResult) -> Decision:
        by_query = {query: newer if query.instance_id == "i-2" else MetricResult("ok", T, END, {T: 5.0}) for query in both}
        return decide_metric(row, "cpu", both, MetricResults(END + age, by_query), (), {}, RULES)

    assert given(300, MetricResult("ok", T, END, {T: 9.0})) == Decision(True, 9.0)
    assert given(300, empty) == Decision(False), "the newer one may still publish"
    assert given(3600, empty) == Decision(True, 5.0)
    assert given(3600, MetricResult("partial", T, END, {})) == Decision(False)


def test_of_several_series_of_one_instance_the_first_counts_unless_it_is_silent_and_all_must_be_complete() -> None:
    other = MetricQuery("i-1", "memory", (("InstanceId", "i-1"), ("ImageId", "ami-1")))

    def given(first: MetricResult, second: MetricResult) -> Decision:
        by_query = {other: second, MEMORY: first}  # in another order than the queries
        return decide_metric(ROW, "memory", [MEMORY, other], MetricResults(END + 300, by_query), (), {}, RULES)

    has, failed = MetricResult("ok", T - 3 * P, END, {T: 7.0}), MetricResult("failed", T - 3 * P, END, {})
    silent, late = (MetricResult("ok", T - 3 * P, END, values) for values in ({}, {T - P: 5.0}))
    assert given(has._replace(values={T: 3.0}), has) == Decision(True, 3.0)
    assert given(silent, has) == Decision(True, 7.0)
    assert given(silent._replace(start=T), has) == Decision(False), "a short window shows no silence"
    assert given(late, has) == Decision(False), "the gauge does not show the second either"
    assert given(silent, failed) == given(failed, has) == Decision(False)


@pytest.mark.parametrize(
    ("listing", "decided", "why"),
    [
        (Listing(), False, "there is no listing"),
        (Listing(END + LISTING_LAG_SECONDS - 1, T - P), False, "a new series may not be listed yet"),
        (Listing(END + LISTING_LAG_SECONDS, T - P), True, "it would be listed"),
        (Listing(END + LISTING_LAG_SECONDS, T), True, "the listing has every series with datapoints since the period's start"),
        (Listing(END + LISTING_LAG_SECONDS, T + 1), False, "the listing does not reach back to the period"),
    ],
)
def test_memory_that_no_listing_has_is_absent(listing: Listing, decided: bool, why: str) -> None:
    decision = decide_metric(ROW, "memory", [CPU], results(300, cpu=5.0), (Listing(), listing), {}, RULES)
    assert decision == Decision(decided), why


def test_a_row_is_final_once_both_metrics_are_decided() -> None:
    both = (CPU, MEMORY)
    row = finalize(ROW, both, results(300, cpu=5.0), (), {}, RULES)
    assert (row.cpu, row.memory, row.final) == (5.0, None, False)
    row = finalize(row, both, results(600, cpu=99.0, memory=6.0), (), {}, RULES)
    assert (row.cpu, row.final) == (5.0, False), "a decided value does not change"
    row = finalize(row, both, results(3600, cpu=99.0, memory=6.0), (), {}, RULES)
    assert (row.cpu, row.memory, row.final) == (5.0, 6.0, True)


def test_cloudwatchs_value_wins_else_the_worker_documents_own() -> None:
    row = finalize(ROW, (CPU, MEMORY), results(3600, cpu=0.0), (), {}, RULES)
    assert (row.cpu, row.memory, row.final) == (0.0, 22.0, True)


def test_missing_stays_missing() -> None:
    row = finalize(ROW._replace(own_cpu=None, own_memory=None), (CPU, MEMORY), results(3600), (), {}, RULES)
    assert (row.cpu, row.memory, row.final, row.empty) == (None, None, True, False)
    assert row._replace(status=None, active_labs=None).empty


def test_without_cloudwatch_the_worker_documents_values_are_final_after_settle_delay() -> None:
    assert not finalize_without_cloudwatch(ROW, END + 299, RULES).final
    row = finalize_without_cloudwatch(ROW, END + 300, RULES)
    assert (row.cpu, row.memory, row.final) == (11.0, 22.0, True)


# -- gauges ------------------------------------------------------------------------------------------------------------

OWN = replace(WORKER, cpu=40.0, memory=50.0, collected_at=T + 100)


def test_cloudwatchs_newest_datapoint_is_the_gauge_dated_by_its_periods_end() -> None:
    shown = gauges(OWN, {"cpu": Datapoint(T - P, 5.0)}, T, T + 120, RULES)
    assert (shown.cpu, shown.cpu_time) == (5.0, T)
    assert (shown.memory, shown.memory_time) == (50.0, T + 100)


def test_the_worker_documents_own_value_is_shown_when_cloudwatchs_is_too_old() -> None:
    points: dict[MetricName, Datapoint] = {"cpu": Datapoint(T - P, 5.0)}
    assert gauges(OWN, points, T, T + RULES.max_age, RULES).cpu == 5.0
    shown = gauges(OWN, points, T, T + RULES.max_age + 1, RULES)
    assert (shown.cpu, shown.cpu_time) == (40.0, T + 100)


def test_a_value_too_old_is_absent_but_its_time_stays() -> None:
    shown = gauges(OWN, {"cpu": Datapoint(T - P, 5.0)}, T, T + 9999, RULES)
    assert (shown.cpu, shown.cpu_time) == (None, T + 100)


def test_a_metric_without_any_value_has_no_time_either() -> None:
    shown = gauges(WORKER, {}, T, T, RULES)
    assert (shown.cpu, shown.cpu_time, shown.memory, shown.memory_time) == (None, None, None, None)


def test_status_and_labs_disappear_after_max_age() -> None:
    assert gauges(WORKER, {}, T, T + RULES.max_age, RULES).show_state
    assert not gauges(WORKER, {}, T, T + RULES.max_age + 1, RULES).show_state


@pytest.mark.parametrize(
    ("worker", "seen", "now", "shown"),
    [
        (WORKER, None, T + 99999, True),
        (replace(WORKER, status="terminated", terminated_at=T), T + 500, T + 3600, True),
        (replace(WORKER, status="terminated", terminated_at=T), T + 500, T + 3601, False),
        (replace(WORKER, status="terminated"), T + 500, T + 4100, True),
        (replace(WORKER, status="terminated"), T + 500, T + 4101, False),
        (replace(WORKER, status="terminated"), None, T + 99999, True),
    ],
)
def test_a_terminated_worker_is_shown_for_a_while(worker: Worker, seen: int | None, now: int, shown: bool) -> None:
    assert is_shown(worker, seen, now, RULES) is shown


def test_after_a_replacement_the_new_instance_is_the_first_candidate_also_with_an_inventory() -> None:
    entry = ran(("i-old", T - 9 * P, T - P + 12))
    worker = replace(WORKER, instance_id="i-new")
    state = STATE._replace(instances=("i-old",), next=T - P, seen=T - P + 12)
    rows, _ = observe(worker, state, T + 12, RULES, updated_entry(entry, worker, T + 12))
    assert [row.instances for row in rows] == [("i-new", "i-old")]


def test_idle_observations_with_a_long_gap_between_them_are_not_unbroken() -> None:
    worker = replace(WORKER, status="stopped")
    state = STATE._replace(status="stopped", idle_since=T - 120 * P, seen=T - 120 * P, next=T - P)
    rows, after = observe(worker, state, T + 12, RULES)
    assert after.idle_since == T + 12
    rows, _ = observe(worker, after, T + P + 12, RULES)
    assert [row.final for row in rows] == [False]  # it may have run in the first half of the period


def test_a_value_from_the_future_is_not_shown() -> None:
    worker = replace(WORKER, cpu=50.0, collected_at=T + 7200)
    assert gauges(worker, {}, T, T, RULES).cpu is None


def test_a_termination_in_the_future_does_not_keep_the_series() -> None:
    worker = replace(WORKER, status="terminated", terminated_at=T + 10**9)
    assert not is_shown(worker, T - 7200, T, RULES)


def test_an_instance_without_a_query_is_never_recorded_as_absent() -> None:
    """The budget may have kept it out of the call; that ListMetrics does not list it says nothing about its CPU."""
    rules = Rules()
    start = 1_767_225_600
    row = PendingSample("w1", start, "eu-west-1", ("i-new", "i-old"))
    query = MetricQuery("i-new", "cpu", (("InstanceId", "i-new"),))
    now = start + 4 * 3600
    results = MetricResults(now, {query: MetricResult("empty", start, start + 3600, {})})
    listing = Listing(now, now - 14 * 86400, {})
    assert not finalize(row, [query], results, [listing], {}, rules).final
    both = [query, MetricQuery("i-old", "cpu", (("InstanceId", "i-old"),))]
    results = MetricResults(now, {query: MetricResult("empty", start, start + 3600, {}) for query in both})
    assert finalize(row, both, results, [listing], {}, rules).final
