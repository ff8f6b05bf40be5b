"""The comparison of a sample with CloudWatch: every kind, and a property for all of them."""

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.commands.backfill.plan import Answer, GapQuery
from exporter.commands.verify.compare import (
    DIFFERENCES,
    KINDS,
    MAX_EXAMPLES,
    NO_DATAPOINT,
    UNKNOWN,
    Example,
    Kind,
    Stored,
    Tally,
    classify,
    compare,
)
from exporter.core.model import METRICS, MetricName

PERIOD, START = 300, 1_800_000_000


@pytest.mark.parametrize(
    ("history", "cloudwatch", "observed", "listed", "earlier", "kind"),
    [
        (None, None, False, True, UNKNOWN, "neither"),
        (None, None, True, True, 5.0, "neither"),
        (5.0, 5.0, True, True, UNKNOWN, "equal"),
        (0.0, 0.0, True, True, UNKNOWN, "equal"),
        (100.0, 100.0 + 1e-8, True, True, UNKNOWN, "equal"),
        (5.0, 5.00001, True, True, UNKNOWN, "different"),
        (0.0, 1e-12, True, True, UNKNOWN, "different"),
        (5.0, 6.0, False, True, UNKNOWN, "different"),
        (None, 5.0, True, True, UNKNOWN, "missing"),
        (None, 5.0, False, True, UNKNOWN, "missing"),
        (5.0, None, False, True, UNKNOWN, "extra"),
        (5.0, None, True, True, UNKNOWN, "document"),
        (5.0, None, False, False, UNKNOWN, "unlisted"),
        (5.0, None, True, False, UNKNOWN, "unlisted"),
        # CloudWatch agreed with the history at an earlier verify, and no longer does
        (5.0, 6.0, True, True, 5.0, "revised"),
        (1 / 3, 0.5, True, True, 0.3333333432674408, "revised"),  # kept with 24 bits
        (None, 5.0, True, True, NO_DATAPOINT, "revised"),
        (5.0, None, False, True, 5.0, "revised"),
        (5.0, 6.0, True, True, NO_DATAPOINT, "revised"),  # the worker document's own until CloudWatch had one
        # CloudWatch differed before, too: then the history is what is wrong
        (5.0, 6.0, True, True, 6.0, "different"),
        (5.0, 6.0, True, True, 7.0, "different"),
        (5.0, 6.0, False, True, NO_DATAPOINT, "different"),
        (None, 5.0, False, True, 5.0, "missing"),
        (None, 5.0, False, True, 4.0, "missing"),
        (5.0, None, False, True, NO_DATAPOINT, "extra"),
    ],
)
def test_each_pair_of_values_is_of_one_kind(
    history: float | None, cloudwatch: float | None, observed: bool, listed: bool, earlier: float, kind: Kind
) -> None:
    assert classify(history, cloudwatch, observed=observed, listed=listed, earlier=earlier) == kind


def answer_of(cpu: dict[int, float], memory: dict[int, float], periods: int) -> Answer:
    return Answer(GapQuery("w", ("i-0a",), ((START, START + periods * PERIOD),)), cpu, memory)


def unknown(metric: MetricName, start: int) -> float:
    return UNKNOWN


def found(answer: Answer, samples: Sequence[Stored], listed_from: int = 0) -> Tally:
    return compare(answer, samples, unknown, listed_from, PERIOD)


def stored(period: int, cpu: float | None = 1.0, memory: float | None = 2.0, *, observed: bool = True) -> Stored:
    return Stored((START + period * PERIOD) * 1000, cpu, memory, observed)


def test_a_difference_is_named_with_worker_time_and_both_values() -> None:
    values = {START + n * PERIOD: 1.0 for n in range(4)}
    tally = found(answer_of(values, {}, 4), [stored(0), stored(1, 9.0, None), stored(3, None, None)])
    assert tally.counts["cpu"] == {"equal": 1, "different": 1, "missing": 2}
    assert tally.counts["memory"] == {"document": 1, "neither": 3}
    assert [example for example in tally.examples if example.metric == "cpu"] == [
        Example("different", "cpu", "w", START + PERIOD, 9.0, 1.0, 1),
        Example("missing", "cpu", "w", START + 2 * PERIOD, None, 1.0, 0),
        Example("missing", "cpu", "w", START + 3 * PERIOD, None, 1.0, 1),
    ]
    assert tally.differs


def test_of_copies_of_one_sample_the_most_serious_counts_whatever_their_order() -> None:
    answer = answer_of({START: 1.0}, {START: 2.0}, 1)
    for samples in ([stored(0), stored(0, 7.0)], [stored(0, 7.0), stored(0)]):
        tally = found(answer, samples)
        assert (tally.duplicates, tally.counts["cpu"], tally.counts["memory"]) == (1, {"different": 1}, {"equal": 1})
        assert tally.examples == [
            Example("duplicate", "", "w", START, None, None, 2),
            Example("different", "cpu", "w", START, 7.0, 1.0, 2),
        ]
    same = found(answer, [stored(0)] * 3)
    assert (same.duplicates, same.total(*DIFFERENCES), same.differs) == (2, 0, True)


def test_a_sample_between_two_periods_is_counted_and_not_compared() -> None:
    tally = found(
        answer_of({}, {}, 2), [Stored(START * 1000 + 1, 1.0, 1.0, False), Stored((START + 60) * 1000, 1.0, 1.0, False)]
    )
    assert (tally.unaligned, tally.counts["cpu"], tally.differs) == (2, {"neither": 2}, False)


def test_memory_from_before_the_listing_is_not_compared_where_cloudwatch_has_none() -> None:
    answer = answer_of({}, {START: 3.0}, 3)
    samples = [stored(n, None, observed=False) for n in range(3)]
    assert found(answer, samples, START + 2 * PERIOD).counts["memory"] == {"different": 1, "unlisted": 1, "extra": 1}
    cpu_only = found(answer_of({}, {}, 1), [stored(0, 5.0, None, observed=False)], START + PERIOD)
    assert cpu_only.counts["cpu"] == {"extra": 1}


VALUE = st.none() | st.sampled_from([0.0, 1.0, 50.0, 99.5]) | st.floats(0, 100)
SAMPLES = st.lists(st.builds(stored, st.integers(0, 5), VALUE, VALUE, observed=st.booleans()), max_size=12)
DATAPOINTS = st.dictionaries(st.integers(0, 5).map(lambda n: START + n * PERIOD), st.floats(0, 100), max_size=6)


@given(SAMPLES, DATAPOINTS, DATAPOINTS)
def test_every_period_is_counted_once_and_nothing_differs_unless_a_value_does(
    samples: list[Stored], cpu: dict[int, float], memory: dict[int, float]
) -> None:
    tally = found(answer_of(cpu, memory, 6), samples)
    assert tally.periods == 6
    assert all(sum(tally.counts[metric].values()) == 6 for metric in METRICS)
    assert tally.duplicates == len(samples) - len({sample.time for sample in samples})
    by_start: dict[int, list[Stored]] = {}
    for sample in samples:
        by_start.setdefault(sample.time // 1000, []).append(sample)
    wrong = {
        (metric, start)
        for metric, values in (("cpu", cpu), ("memory", memory))
        for start in range(START, START + 6 * PERIOD, PERIOD)
        for copies in [by_start.get(start, [])]
        if (
            start in values
            and not all(close(getattr(copy, metric), values[start]) for copy in copies or [stored(0, None, None)])
        )
        or (start not in values and any(getattr(copy, metric) is not None and not copy.observed for copy in copies))
    }
    assert {(each.metric, each.start) for each in tally.examples if each.kind in DIFFERENCES} == wrong
    assert tally.differs == bool(wrong or tally.duplicates)


def close(one: float | None, other: float) -> bool:
    return one is not None and math.isclose(one, other, rel_tol=1e-9)


@given(SAMPLES, DATAPOINTS, st.integers(1, 5))
def test_parts_compared_apart_and_added_are_the_whole(samples: list[Stored], cpu: dict[int, float], cut: int) -> None:
    whole, edge = found(answer_of(cpu, {}, 6), samples), START + cut * PERIOD
    parts = Tally()
    for low, high in ((START, edge), (edge, START + 6 * PERIOD)):
        part = Answer(GapQuery("w", ("i-0a",), ((low, high),)), cpu, {})
        parts.add(found(part, [sample for sample in samples if low * 1000 <= sample.time < high * 1000]))
    assert parts == whole
    assert Tally.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_only_the_first_examples_of_each_kind_are_kept() -> None:
    values = {START + n * PERIOD: 1.0 for n in range(30)}
    tally = found(answer_of(values, values, 30), [])
    assert tally.counts["cpu"]["missing"] == 30
    assert len(tally.examples) == 2 * MAX_EXAMPLES
    assert {example.start for example in tally.examples} == {START + n * PERIOD for n in range(MAX_EXAMPLES)}


def test_the_kinds_are_ordered_by_how_serious_they_are() -> None:
    assert set(KINDS[-4:]) == set(DIFFERENCES)
