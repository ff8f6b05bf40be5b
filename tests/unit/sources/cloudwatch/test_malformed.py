"""The search for the malformed instance ids of a call that CloudWatch rejects."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from exporter.core.errors import RejectedQueryError, SourceError
from exporter.core.model import MetricQuery, MetricResult, MetricResults
from exporter.sources.cloudwatch.malformed import INSTANCE_ID, MalformedInstances

START, END, NOW = 0, 300, 600
GOOD = [f"i-{k:017x}" for k in range(8)]


def cpu(instance: str) -> MetricQuery:
    return MetricQuery(instance, "cpu", (("InstanceId", instance),))


def memory(instance: str) -> MetricQuery:
    return MetricQuery(instance, "memory", (("InstanceId", instance), ("host", "h")))


def queries(*instances: str) -> list[MetricQuery]:
    return [query for instance in instances for query in (cpu(instance), memory(instance))]


class FakeCall:
    """One GetMetricData call; rejects a call that holds a refused id, and fails after `answers` answered calls."""

    def __init__(self, refused: set[str], *, answers: int | None = None) -> None:
        self.refused = refused
        self.answers = answers
        self.calls: list[list[str]] = []

    async def __call__(self, queries: Sequence[MetricQuery]) -> MetricResults:
        ids = sorted({query.instance_id for query in queries})
        self.calls.append(ids)
        if self.refused & set(ids):
            raise RejectedQueryError("cloudwatch", "ValidationError", "AWS refuses the content")
        if self.answers is not None:
            if self.answers == 0:
                raise SourceError("cloudwatch", "Throttling", "AWS throttled")
            self.answers -= 1
        return MetricResults(500, {query: MetricResult("ok", START, END, {0: 1.0}) for query in queries})


async def outcomes(instances: MalformedInstances, call: FakeCall, *ids: str) -> dict[str, set[str]]:
    results = await instances.query(call, queries(*ids), START, END, NOW)
    assert results.by_query.keys() == set(queries(*ids)), "every query has a result"
    found: dict[str, set[str]] = {}
    for query, result in results.by_query.items():
        found.setdefault(query.instance_id, set()).add(result.outcome)
    return found


async def test_a_call_that_is_answered_is_made_once() -> None:
    instances, call = MalformedInstances(), FakeCall(set())
    assert await outcomes(instances, call, *GOOD) == {each: {"ok"} for each in GOOD}
    assert call.calls == [GOOD]
    assert instances.known == frozenset()


@pytest.mark.parametrize("malformed", [["vm-7"], ["vm-7", "i-xyz"], ["vm-7", "i-xyz", "i-0A", "worker 3"]], ids=len)
async def test_malformed_ids_among_good_ones_are_found_and_the_good_ones_answered(malformed: list[str]) -> None:
    instances, call = MalformedInstances(), FakeCall(set(malformed))

    found = await outcomes(instances, call, GOOD[0], *malformed, *GOOD[1:])

    assert found == {each: {"ok"} for each in GOOD} | {each: {"empty"} for each in malformed}
    assert instances.known == set(malformed)
    assert call.calls[1] == GOOD, "all well-formed ids travel in one call"


async def test_one_malformed_id_takes_three_calls_and_later_none() -> None:
    instances, call = MalformedInstances(), FakeCall({"vm-7"})
    await outcomes(instances, call, "vm-7", *GOOD)
    assert call.calls == [[*GOOD, "vm-7"], GOOD, ["vm-7"]]

    assert await outcomes(instances, call, "vm-7", GOOD[0]) == {"vm-7": {"empty"}, GOOD[0]: {"ok"}}
    assert call.calls[3:] == [[GOOD[0]]]


async def test_each_part_of_a_repeated_call_keeps_the_date_of_its_own_answer() -> None:
    """A value is judged final, or late, at the time CloudWatch answered it, not when the search for the malformed id ended."""
    instances, call = MalformedInstances(), FakeCall({"vm-7"})

    async def dated(queries: Sequence[MetricQuery]) -> MetricResults:
        return replace(await call(queries), date=500 + 100 * len(call.calls))

    results = await instances.query(dated, queries(GOOD[0], "vm-6", "vm-7", GOOD[1]), START, END, NOW)

    assert call.calls == [[*GOOD[:2], "vm-6", "vm-7"], GOOD[:2], ["vm-6", "vm-7"], ["vm-6"], ["vm-7"]]
    dates = {query.instance_id: results.date_of(query) for query in results.by_query}
    assert dates == {GOOD[0]: 700, GOOD[1]: 700, "vm-6": 900, "vm-7": NOW}


async def test_known_ids_alone_need_no_call_and_bear_this_hosts_time() -> None:
    instances, call = MalformedInstances(), FakeCall({"vm-7"})
    await outcomes(instances, call, "vm-7", GOOD[0])
    call.calls.clear()

    results = await instances.query(call, queries("vm-7"), START, END, NOW)

    assert (results.date, {result.outcome for result in results.by_query.values()}) == (NOW, {"empty"})
    assert call.calls == []


async def test_an_unusual_id_that_cloudwatch_accepts_is_not_marked() -> None:
    instances, call = MalformedInstances(), FakeCall({"vm-7"})

    found = await outcomes(instances, call, "vm-6", "vm-7", "vm-8", GOOD[0])

    assert found == {"vm-6": {"ok"}, "vm-7": {"empty"}, "vm-8": {"ok"}, GOOD[0]: {"ok"}}
    assert instances.known == {"vm-7"}


async def test_a_rejection_without_a_suspect_is_raised() -> None:
    instances, call = MalformedInstances(), FakeCall({GOOD[0]})

    with pytest.raises(RejectedQueryError, match="refuses the content"):
        await instances.query(call, queries(*GOOD), START, END, NOW)

    assert call.calls == [GOOD], "splitting the call cannot help"
    assert instances.known == frozenset()


async def test_a_well_formed_id_is_never_marked_even_beside_a_suspect() -> None:
    instances, call = MalformedInstances(), FakeCall({GOOD[0]})

    with pytest.raises(RejectedQueryError):
        await instances.query(call, queries(GOOD[0], "vm-7"), START, END, NOW)

    assert instances.known == frozenset()


async def test_a_half_that_fails_has_failed_results_and_marks_no_further_id() -> None:
    instances, call = MalformedInstances(), FakeCall({"vm-7", "vm-8"}, answers=2)

    found = await outcomes(instances, call, *GOOD, "vm-6", "vm-7", "vm-8", "vm-9")

    # The well-formed ids are answered, then vm-6; the call for vm-9 alone meets the fault.
    expected = {"vm-6": {"ok"}, "vm-7": {"empty"}, "vm-8": {"empty"}, "vm-9": {"failed"}}
    assert found == {each: {"ok"} for each in GOOD} | expected
    assert instances.known == {"vm-7", "vm-8"}, "vm-9 was never rejected alone"


async def test_a_fault_right_after_the_rejection_is_raised_and_marks_no_id() -> None:
    instances, call = MalformedInstances(), FakeCall({"vm-7"}, answers=0)

    with pytest.raises(SourceError, match="throttled"):
        await instances.query(call, queries("vm-7", *GOOD), START, END, NOW)

    assert instances.known == frozenset()


async def test_a_well_formed_id_that_is_rejected_beside_a_suspect_marks_neither() -> None:
    instances, call = MalformedInstances(), FakeCall({"vm-7"})
    await outcomes(instances, call, "vm-6", "vm-7", GOOD[0])

    call.refused = {"vm-6", GOOD[0]}
    with pytest.raises(RejectedQueryError):
        await instances.query(call, queries("vm-6", GOOD[0]), START, END, NOW)

    assert instances.known == {"vm-7"}


async def test_a_suspect_whose_own_call_fails_is_not_marked() -> None:
    instances, call = MalformedInstances(), FakeCall({"vm-7"}, answers=1)
    call_alone = call.__call__

    async def reject_once(queries: Sequence[MetricQuery]) -> MetricResults:
        if len(call.calls) == 2:
            call.refused = set()  # so that the third call meets the fault instead of the rejection
        return await call_alone(queries)

    results = await instances.query(reject_once, queries(GOOD[0], "vm-7"), START, END, NOW)

    assert {(query.instance_id, result.outcome) for query, result in results.by_query.items()} == {
        (GOOD[0], "ok"),
        ("vm-7", "failed"),
    }
    assert instances.known == frozenset()


@pytest.mark.parametrize(
    ("instance", "is_well_formed"),
    [
        ("i-0123abcd", True),
        ("i-0123456789abcdef0", True),
        ("i-0123456789abcdef", False),
        ("i-0123ABCD", False),
        ("i-", False),
        ("i-0123abcd\n", False),
    ],
)
def test_the_form_of_an_instance_id(instance: str, is_well_formed: bool) -> None:
    assert bool(INSTANCE_ID.fullmatch(instance)) is is_well_formed
