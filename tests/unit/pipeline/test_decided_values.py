"""Which later answers of CloudWatch count as late or revised."""

import pytest

from exporter.core.model import MetricQuery, MetricResult, MetricResults, Outcome, PendingQuery
from exporter.core.periods import HOUR
from exporter.pipeline.decided_values import DecidedValues, ValueChange
from exporter.pipeline.lifecycle import PendingSample, Rules
from exporter.pipeline.planning import REVISIT_SECONDS, plan, revisit, revisit_window
from exporter.sources.cloudwatch.queries import MAX_DATAPOINTS, MAX_QUERIES, instance_queries

PERIOD, WINDOW = 300, 4 * HOUR
START = 1_767_225_600
SERIES = (("InstanceId", "i-1"),), (("InstanceId", "i-1"), ("device", "x"))
CPU, *MEMORY = instance_queries("i-1", SERIES)
QUERIES = (CPU, *MEMORY)
OPEN = PendingSample("w", START, "r", ("i-1",))
Values = dict[MetricQuery, dict[int, float]]


def results(values: Values, outcome: Outcome = "ok") -> MetricResults:
    return MetricResults(
        START + HOUR, {query: MetricResult(outcome, START - WINDOW, START + WINDOW, found) for query, found in values.items()}
    )


def decided(values: Values, cpu: float | None = None, memory: float | None = None) -> DecidedValues:
    """What is kept after one call with these values has made the sample final."""
    kept = DecidedValues(PERIOD, WINDOW)
    kept.record(OPEN, OPEN._replace(cpu=cpu, memory=memory, final=True), QUERIES, results(values))
    return kept


def compare(kept: DecidedValues, values: Values, outcome: Outcome = "ok") -> list[ValueChange]:
    return kept.compare("w", QUERIES, results(values, outcome))


def test_another_value_is_revised_once() -> None:
    kept = decided({CPU: {START: 5.0}}, cpu=5.0)
    assert compare(kept, {CPU: {START: 5.0, START + PERIOD: 7.0}}) == []
    assert compare(kept, {CPU: {START: 6.0}}) == [ValueChange("revised", "w", "cpu", START)]
    assert compare(kept, {CPU: {START: 7.0}}) == []


def test_a_value_of_what_was_absent_is_late_once_whatever_the_worker_document_said() -> None:
    kept = decided({}, cpu=50.0)  # the document's own
    assert compare(kept, {CPU: {START: 6.0}}) == [ValueChange("late", "w", "cpu", START)]
    assert compare(kept, {CPU: {START: 6.0}}) == []
    # memory had no series at all; two of them are one value
    assert compare(kept, {MEMORY[0]: {START: 1.0}, MEMORY[1]: {START: 2.0}}) == [ValueChange("late", "w", "memory", START)]


def test_values_of_another_series_are_not_compared() -> None:
    kept = decided({MEMORY[1]: {START: 5.0}}, memory=5.0)
    assert compare(kept, {MEMORY[0]: {START: 9.0}}) == []
    assert compare(kept, {MEMORY[1]: {START: 9.0}}) == [ValueChange("revised", "w", "memory", START)]

    kept = decided({MEMORY[1]: {START: 5.0}}, memory=5.0)
    following = OPEN._replace(start=START + PERIOD)
    of_first = results({MEMORY[0]: {START + PERIOD: 8.0}})
    kept.record(following, following._replace(memory=8.0, final=True), QUERIES, of_first)
    assert compare(kept, {MEMORY[0]: {START: 9.0, START + PERIOD: 8.0}}) == []


def test_an_incomplete_answer_and_the_last_bit_of_a_number_change_nothing() -> None:
    kept = decided({CPU: {START: 5.0}}, cpu=5.0)
    assert compare(kept, {CPU: {START: 6.0}}, "partial") == []
    assert compare(kept, {CPU: {START: 5.000000000000001}}) == []
    assert kept.compare("another", QUERIES, results({CPU: {START: 6.0}})) == []


def test_what_is_not_decided_is_not_kept_and_a_metric_is_kept_when_it_is_decided() -> None:
    kept = DecidedValues(PERIOD, WINDOW)
    kept.record(OPEN, OPEN, QUERIES, results({CPU: {START: 4.0}}))  # provisional
    assert compare(kept, {CPU: {START: 5.0}}) == []
    first = OPEN._replace(cpu=5.0)
    kept.record(OPEN, first, QUERIES, results({CPU: {START: 5.0}}))
    assert compare(kept, {CPU: {START: 5.0}, MEMORY[0]: {START: 1.0}}) == [], "memory is open"
    changed = {CPU: {START: 6.0}}
    kept.record(first, first._replace(final=True), QUERIES, results(changed))
    assert compare(kept, changed) == [ValueChange("revised", "w", "cpu", START)]


def test_the_window_moves_and_old_samples_do_not_displace_new_ones() -> None:
    kept = DecidedValues(PERIOD, WINDOW)
    for start in (START, START - WINDOW):  # in the same slot; gap filling comes second
        sample = OPEN._replace(start=start)
        kept.record(sample, sample._replace(cpu=5.0, final=True), QUERIES, results({CPU: {start: 5.0}}))
    assert compare(kept, {CPU: {START: 6.0, START - WINDOW: 6.0}}) == [ValueChange("revised", "w", "cpu", START)]
    kept = decided({CPU: {START: 5.0}}, cpu=5.0)
    kept.forget_before(START)
    assert compare(kept, {CPU: {START: 5.5}}) != []
    kept = decided({CPU: {START: 5.0}}, cpu=5.0)
    kept.forget_before(START + 1)
    assert compare(kept, {CPU: {START: 5.5}}) == []


# -- how far back queries reach


def revisited_by_turn(pending: list[PendingQuery], rules: Rules) -> list[set[str]]:
    """The workers whose window each cycle of an hour makes longer."""
    turns: list[set[str]] = []
    for at in range(START + 180, START + 180 + REVISIT_SECONDS, rules.interval):
        revisited = [one for one in revisit(pending, at, rules) if one.oldest < START - 1200]
        assert {one.oldest for one in revisited} <= {at - at % rules.period - revisit_window(rules)}
        turns.append({one.worker_id for one in revisited})
    return turns


@pytest.mark.parametrize("workers", [1, 250, 1000, 4200])
def test_each_worker_is_revisited_once_an_hour(workers: int) -> None:
    for rules in (Rules(), Rules(period=60, interval=60)):
        pending = [PendingQuery(f"w{k}", f"r{k % 2}", (f"i-{k}",), START - 1200) for k in range(workers)]
        turns = revisited_by_turn(pending, rules)
        assert set.union(*turns) == {one.worker_id for one in pending}
        assert sum(map(len, turns)) == len(pending)


def test_workers_are_revisited_in_groups_that_fill_a_call() -> None:
    # A call has one window: with few of its workers revisited in each cycle, it would be long in every cycle.
    for workers, most in ((100, 1), (499, 1), (1000, 4), (2000, 8)):
        pending = [PendingQuery(f"w{k}", "r", (f"i-{k}",), START - 1200) for k in range(workers)]
        turns = [turn for turn in revisited_by_turn(pending, Rules()) if turn]
        assert 1 <= len(turns) <= most
    # A large fleet has a part of the work in every cycle; no region begins with the same turn.
    pending = [PendingQuery(f"w{k}", "r", (f"i-{k}",), START - 1200) for k in range(8000)]
    assert all(turn and len(turn) < 1000 for turn in revisited_by_turn(pending, Rules()))
    small = [PendingQuery(f"w{k}", f"eu-west-{k}", (f"i-{k}",), START - 1200) for k in range(9)]
    assert max(map(len, revisited_by_turn(small, Rules()))) < len(small)


def test_a_window_is_not_shortened_and_the_longest_one_is_one_call() -> None:
    for rules in (Rules(), Rules(period=60, interval=60), Rules(absence_timeout=24 * HOUR), Rules(interval=2 * HOUR)):
        every = max(rules.interval, rules.period)
        windows = set()
        for until in range(START - START % rules.period, START + max(REVISIT_SECONDS, every), every):
            pending = [PendingQuery(f"w{k}", "r", (f"i-{k}",), until - 600) for k in range(MAX_QUERIES)]
            for call in plan(revisit(pending, until, rules), lambda _w, _r, name: instance_queries(name), until, rules):
                assert (until - call.start) // rules.period * len(call.queries) <= MAX_DATAPOINTS
                windows.add(until - call.start)
            older = [PendingQuery("w", "r", ("i",), until - 48 * HOUR)]
            assert revisit(older, until, rules)[0].oldest == until - 48 * HOUR
        assert max(windows) == revisit_window(rules)


def test_a_newer_period_takes_the_slot_of_one_that_left_the_window() -> None:
    kept = decided({CPU: {START: 5.0}}, cpu=5.0)
    later = START + 5 * PERIOD  # the periods between were not decided
    kept.record(
        OPEN._replace(start=later), OPEN._replace(start=later, cpu=6.0, final=True), [CPU], results({CPU: {later: 6.0}})
    )
    assert compare(kept, {CPU: {START + PERIOD: 9.0, later + PERIOD: 9.0, START - PERIOD: 9.0}}) == []
    far = START + WINDOW + 2 * PERIOD
    kept.record(OPEN._replace(start=far), OPEN._replace(start=far, cpu=7.0, final=True), [CPU], results({CPU: {far: 7.0}}))
    assert compare(kept, {CPU: {START: 9.0, START + WINDOW: 9.0}}) == []  # the two share a slot
    kept.record(OPEN, OPEN._replace(cpu=8.0, final=True), [CPU], results({CPU: {START: 8.0}}))  # by gap filling, too late
    assert compare(kept, {CPU: {START: 9.0}}) == []
    assert [one.start for one in compare(kept, {CPU: {later: 9.0, far: 9.0}})] == [later, far]
