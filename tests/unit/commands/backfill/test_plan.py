"""Backfill's planning as laws: every gap once, every metric once, no call too large; and its journal."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.commands.backfill import plan
from exporter.commands.backfill.journal import Journal
from exporter.commands.backfill.plan import GapQuery, Plan, PlannedCall, WorkerLifetime
from exporter.core.errors import ConfigError, OutboxLockedError
from exporter.core.instances import instances_during
from exporter.core.model import (
    FinalSample,
    Fleet,
    InstanceInterval,
    InventoryEntry,
    Listing,
    MetricQuery,
    MetricResult,
    MetricResults,
    Worker,
)
from exporter.core.periods import DAY, HOUR, align
from exporter.pipeline import lifecycle
from exporter.pipeline.gaps import find_gaps
from exporter.pipeline.lifecycle import PendingSample, Rules, WorkerState
from exporter.sources.cloudwatch.retention import reach

P = 300
NOW = 1_770_000_000 // P * P
RULES = Rules()


def queries_of(_region: str, instance: str) -> tuple[MetricQuery, ...]:
    """Two metrics, and a second memory series for every third instance."""
    sets = 1 + (sum(map(ord, instance)) % 3 == 0)
    memory = (MetricQuery(instance, "memory", (("InstanceId", instance), ("n", str(n)))) for n in range(sets))
    return MetricQuery(instance, "cpu", (("InstanceId", instance),)), *memory


def two_metrics(_region: str, instance: str) -> tuple[MetricQuery, ...]:
    dimensions = (("InstanceId", instance),)
    return MetricQuery(instance, "cpu", dimensions), MetricQuery(instance, "memory", dimensions)


def whole(count: int, length: int, period: int = P) -> list[tuple[str, GapQuery]]:
    end = align(NOW, period)
    return [("eu", GapQuery(f"w{k}", (f"i-{k}",), ((end - length, end),))) for k in range(count)]


def life(
    *sightings: InstanceInterval, created: int | None = None, ended: int | None = None, last_seen: int | None = None
) -> WorkerLifetime:
    """A worker that was terminated at `ended` if given, and is gone from the aggregates since `last_seen` if given."""
    status = "running" if ended is None else "terminated"
    seen = NOW if last_seen is None else last_seen
    entry = InventoryEntry("w", "eu", None, None, None, created, ended, status, 0, seen, sightings)
    return WorkerLifetime(Worker("w", "eu", None, status), entry, listed=last_seen is None)


def gaps_of(asks: list[tuple[str, GapQuery]] | tuple[PlannedCall, ...]) -> Counter[tuple[str, int]]:
    """How often each (worker, period) is wanted."""
    inside = [ask for call in asks for ask in call.gap_queries] if isinstance(asks, tuple) else [ask for _, ask in asks]
    return Counter((ask.worker_id, at) for ask in inside for gap in ask.gaps for at in range(*gap, P))


# -- where to look -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("period", "days"), [(60, 15), (120, 15), (300, 63), (360, 15), (900, 63), (3600, 455)])
def test_cloudwatch_keeps_datapoints_by_their_period(period: int, days: int) -> None:
    assert reach(period) == days * DAY


@pytest.mark.parametrize("second", [0, 1, 7, P - 1])
def test_a_window_ends_exactly_where_serve_begins_to_heal_and_needs_no_words_if_it_is_not_clipped(second: int) -> None:
    now = NOW + second
    start, until, notes = plan.fillable_window(NOW - 14 * DAY, now, P, DAY, 30 * DAY)
    worker, known = Worker("w", "eu", "i-1", "running"), WorkerState("w", "eu", ("i-1",), "running", 0, now, NOW)
    healed = find_gaps(worker, known.next, None, set(), (), now, RULES)
    assert (start, until, notes) == (NOW - 14 * DAY, healed[0].start, ())


def test_what_cloudwatch_has_forgotten_is_clipped_with_a_sentence() -> None:
    start, _, notes = plan.fillable_window(0, NOW, 60, DAY, None)
    assert start == NOW - 15 * DAY + plan.EXPIRY_MARGIN_SECONDS
    assert notes == ("CloudWatch keeps datapoints of 1m for 15d: nothing before 2026-01-18T02:50:00Z is filled.",)


def test_what_the_history_would_delete_at_once_is_clipped_with_a_sentence() -> None:
    start, _, notes = plan.fillable_window(NOW - 40 * DAY, NOW, P, DAY, 30 * DAY)
    assert start == NOW - 30 * DAY
    assert "keeps samples for 30d" in notes[0]
    assert "retention --set" in notes[0]


def test_a_window_within_heal_is_empty_and_says_who_fills_it() -> None:
    start, until, notes = plan.fillable_window(NOW - HOUR, NOW, P, DAY, None)
    assert start == until
    assert notes == ("The last 1d (gap_fill_window) are filled by `serve` itself.",)


def test_a_life_is_bounded_by_creation_termination_and_the_last_sight_of_one_that_is_gone() -> None:
    since, until = NOW - DAY, NOW
    seen = InstanceInterval("i-1", "eu", 0, NOW)
    assert plan.lifetime_window(life(seen), since, until, P) == (since, until)
    assert plan.lifetime_window(life(seen, created=since + P + 7), since, until, P) == (since + P, until)
    assert plan.lifetime_window(life(seen, ended=until - HOUR + 7), since, until, P) == (since, until - HOUR + P)
    assert plan.lifetime_window(life(seen, last_seen=until - HOUR + 7), since, until, P) == (since, until - HOUR + P)


def test_an_unknown_worker_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'nobody' is neither among the worker documents nor in the inventory"):
        plan.lifetimes(Fleet(NOW, ()), {}, ["nobody"])


def test_a_worker_the_inventory_does_not_know_ran_on_its_instance_since_it_was_created() -> None:
    worker = Worker("w", "eu", "i-1", "running", created_at=NOW - HOUR)
    (found,) = plan.lifetimes(Fleet(NOW, (worker,)), {}, [])
    assert plan.gap_queries(found, set(), NOW - DAY, NOW, P) == [("eu", GapQuery("w", ("i-1",), ((NOW - HOUR, NOW),)))]


times = st.integers(0, 12 * HOUR).map(lambda seconds: NOW - seconds)


@given(
    st.lists(st.tuples(times, times, st.sampled_from(["eu", "us"])), min_size=1, max_size=4),
    st.sets(times.map(lambda t: t // P * P)),
)
def test_the_asks_are_the_candidates_of_every_missing_period(spans: list[tuple[int, int, str]], have: set[int]) -> None:
    edges = sorted(edge for first, last, _ in spans for edge in (first, last))
    sightings = [
        InstanceInterval(f"i-{n}", region, *edges[2 * n : 2 * n + 2]) for n, (_, _, region) in enumerate(spans)
    ]  # one after the other, as the inventory has them
    known = life(*sightings)
    since, until = NOW - 12 * HOUR, NOW
    found = plan.gap_queries(known, have, since, until, P)
    said = {at: (region, ask.instances) for region, ask in found for gap in ask.gaps for at in range(*gap, P)}
    wanted = {at: instances_during(known.entry, known.worker, at, at + P) for at in range(since, until, P) if at not in have}
    assert said == wanted
    assert max(gaps_of(found).values(), default=1) == 1


# -- whom to ask -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "length", "period", "expected"),
    # ceil(window / period) = P, Q = min(500, floor(100800 / P)), ceil(metrics / Q)
    [(1000, DAY, 60, 29), (1000, DAY, 300, 6), (1000, 13 * DAY, 300, 77), (50, 13 * DAY, 300, 4), (1, 13 * DAY, 300, 1)],
)
def test_whole_histories_cost_the_fewest_calls_there_are(workers: int, length: int, period: int, expected: int) -> None:
    calls = plan.plan_calls(whole(workers, length, period), two_metrics, period)
    assert len(calls) == expected
    assert sum(len(call.queries) for call in calls) == 2 * workers


def test_single_gaps_all_over_two_weeks_share_calls_by_their_time() -> None:
    wanted = [("eu", GapQuery(f"w{k}", (f"i-{k}",), ((at := NOW - (k * 7919 % 4000) * P, at + P),))) for k in range(1000)]
    calls = plan.plan_calls(wanted, two_metrics, P)
    assert sum(len(call.queries) for call in calls) == 2000
    assert len(calls) <= 45


gap = st.tuples(st.integers(0, 4000), st.integers(1, 4000)).map(lambda g: (NOW - (g[0] + g[1]) * P, NOW - g[0] * P))


@st.composite
def some_asks(draw: st.DrawFn) -> list[tuple[str, GapQuery]]:
    wanted = []
    for number in range(draw(st.integers(1, 30))):
        names = draw(st.lists(st.integers(0, 20).map(lambda n: f"i-{n}"), min_size=1, max_size=3, unique=True))
        wanted.append((draw(st.sampled_from(["eu", "us"])), GapQuery(f"w{number}", tuple(names), (draw(gap),))))
    return wanted


@given(some_asks())
def test_every_gap_is_in_one_call_every_call_within_limits_and_no_metric_asked_twice(
    wanted: list[tuple[str, GapQuery]],
) -> None:
    calls = plan.plan_calls(wanted, queries_of, P)
    assert gaps_of(calls) == gaps_of(wanted)
    asked: Counter[tuple[str, MetricQuery]] = Counter()
    for call in calls:
        length = (call.end - call.start) // P
        assert 0 < len(call.queries) <= 500
        assert len(call.queries) * length <= 100_800
        assert len(set(call.queries)) == len(call.queries)
        instances = {name for ask in call.gap_queries for name in ask.instances}
        assert {query.instance_id for query in call.queries} == instances
        for ask in call.gap_queries:
            assert all(call.start <= a < b <= call.end for a, b in ask.gaps)
        asked.update((call.region, query) for query in call.queries)
    in_parts = {key for key, count in asked.items() if count > 1}
    # A metric is asked again only where workers share instances so that one call cannot answer them all.
    for region, query in in_parts:
        linked = {query.instance_id}
        for _ in wanted:
            for where, ask in wanted:
                if where == region and linked & {*ask.instances}:
                    linked |= {*ask.instances}
        mine = [ask for where, ask in wanted if where == region and linked & {*ask.instances}]
        length = (max(ask.gaps[-1][1] for ask in mine) - min(ask.gaps[0][0] for ask in mine)) // P
        assert length * sum(len(queries_of(region, name)) for name in linked) > 100_800


def test_parts_that_fit_together_after_all_ask_for_each_metric_once() -> None:
    first = NOW - 3000 * P
    many = tuple(f"i-{n}" for n in range(80))
    wanted = [
        ("eu", GapQuery("a", ("i-0",), ((first, first + P),))),
        ("eu", GapQuery("b", ("i-0",), ((first + 700 * P, first + 701 * P),))),
        ("eu", GapQuery("c", many, ((NOW - 10 * P, NOW),))),
    ]
    calls = plan.plan_calls(wanted, queries_of, P)
    assert gaps_of(calls) == gaps_of(wanted)
    assert [len(set(call.queries)) for call in calls] == [len(call.queries) for call in calls]


def test_more_than_one_answer_can_hold_is_asked_in_parts_of_time() -> None:
    def many(_region: str, instance: str) -> tuple[MetricQuery, ...]:
        return tuple(MetricQuery(instance, "memory", (("n", str(n)),)) for n in range(30))

    calls = plan.plan_calls(whole(1, 14 * DAY), many, P)
    assert [len(call.queries) for call in calls] == [30, 30]
    assert gaps_of(calls) == gaps_of(whole(1, 14 * DAY))


def test_a_call_never_has_more_than_500_queries_even_for_one_instance() -> None:
    def absurd(_region: str, instance: str) -> tuple[MetricQuery, ...]:
        return tuple(MetricQuery(instance, "memory", (("n", str(n)),)) for n in range(600))

    assert [len(call.queries) for call in plan.plan_calls(whole(1, P), absurd, P)] == [500]


# -- what came of it ---------------------------------------------------------------------------------------------------


def call_of(*instances: str) -> PlannedCall:
    gaps = ((NOW - DAY, NOW - DAY + 2 * P),)
    asked = tuple(query for name in instances for query in queries_of("eu", name))
    return PlannedCall("eu", NOW - DAY, NOW - DAY + 4 * P, asked, (GapQuery("w", instances, gaps),))


outcomes = st.sampled_from(["ok", "ok", "ok", "empty", "partial", "failed"])
answers_of_one = st.tuples(outcomes, st.dictionaries(st.integers(0, 3).map(lambda n: NOW - DAY + n * P), st.floats(0, 100)))


@given(st.lists(answers_of_one, min_size=6, max_size=6), st.sampled_from([("i-0",), ("i-0", "i-1")]))
def test_a_sample_is_what_the_rules_of_life_would_settle(
    given_: list[tuple[str, dict[int, float]]], names: tuple[str, ...]
) -> None:
    call = call_of(*names)
    answers = {
        query: MetricResult(outcome, call.start, call.end, {} if outcome == "empty" else values)  # type: ignore[arg-type]
        for query, (outcome, values) in zip(call.queries, given_, strict=False)
    }
    everything = [Listing(NOW, 0)]  # what is not asked is not there
    expected = [
        lifecycle.finalize(
            PendingSample("w", at, "eu", names), call.queries, MetricResults(NOW, answers), everything, {}, RULES
        )
        for at in range(*call.gap_queries[0].gaps[0], P)
    ]
    rows, empty, rest = plan.finalize(call, answers, P)
    if rest is None:
        assert rows == [
            FinalSample(row.worker_id, row.start, row.region, row.cpu, row.memory)
            for row in expected
            if row.final and not row.empty
        ]
        assert empty == sum(row.empty for row in expected)
        assert all(row.final for row in expected)
    else:
        assert (rows, empty, rest) == ([], 0, call)
        assert not all(answer.complete for answer in answers.values())


def test_a_call_answered_in_part_leaves_the_undecided_workers_and_their_metrics_alone() -> None:
    one, two = call_of("i-0"), call_of("i-1")
    both = PlannedCall(
        "eu",
        one.start,
        one.end,
        one.queries + two.queries,
        (*one.gap_queries, GapQuery("v", ("i-1",), two.gap_queries[0].gaps)),
    )
    answers = {query: MetricResult("ok", one.start, one.end, {one.start: 1.0}) for query in one.queries}
    rows, empty, rest = plan.finalize(both, answers, P)
    assert [(row.worker_id, row.start, row.cpu_utilization, row.status) for row in rows] == [("w", one.start, 1.0, None)]
    assert empty == 1
    assert rest is not None
    assert (rest.queries, [ask.worker_id for ask in rest.gap_queries]) == (two.queries, ["v"])


# -- the journal -------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "backfill", P)
    yield journal
    journal.close()


PLAN = Plan("db.h 5m", "14d", NOW, NOW - 14 * DAY, NOW - DAY, P, (call_of("i-0"), call_of("i-1", "i-2")), ("a note",))
ROW = FinalSample("w", NOW - DAY, "eu", 1.0)


def test_a_plan_comes_back_as_it_was_kept(journal: Journal) -> None:
    assert journal.plan() is None
    journal.begin(PLAN)
    assert journal.plan() == PLAN
    assert journal.pending() == list(enumerate(PLAN.calls))


def test_a_call_is_done_and_its_rows_are_there_or_neither(journal: Journal) -> None:
    journal.begin(PLAN)

    def broken() -> Iterator[FinalSample]:
        yield ROW
        raise RuntimeError

    with pytest.raises(RuntimeError):
        journal.put(0, broken(), None)
    assert (len(journal.pending()), journal.waiting) == (2, 0)
    journal.put(0, [ROW], None)
    assert ([number for number, _ in journal.pending()], journal.waiting) == ([1], 1)


def test_what_a_call_left_takes_its_place(journal: Journal) -> None:
    journal.begin(PLAN)
    journal.put(1, [ROW], call_of("i-2"))
    assert journal.pending() == [(0, call_of("i-0")), (1, call_of("i-2"))]


def test_an_empty_journal_serves_another_period(tmp_path: Path) -> None:
    for period in (P, 60):
        journal = Journal(tmp_path, period)
        journal.forget_plan()
        journal.close()


def test_a_second_backfill_on_the_machine_is_told_who_is_there(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(OutboxLockedError, match=r"another backfill is running here; .*process id \d+"):
        Journal(tmp_path / "backfill", P)
