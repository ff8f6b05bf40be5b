"""The comparison of a history with CloudWatch's ledger finds what is wrong with a history."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from exporter.core.periods import to_datetime
from tests.helpers.expected_history import Comparison, Member, expected_values
from tests.helpers.fake_cloudwatch import Instances, instance_id

CREATED = 1_767_225_600
END = CREATED + 3600
FINAL_BEFORE = END - 900
WORKER = Member("worker-1", instance_id(1), "eu-west-1", CREATED)
Documents = list[dict[str, Any]]


@pytest.fixture
def cloudwatch() -> Instances:
    instances = Instances(time.time, seed=1, period=300)
    instances.add(WORKER.instance_id, late={("cpu", CREATED): 600}, lost=[("memory", CREATED + 300)], revise=300)
    return instances


def history(cloudwatch: Instances, before: int) -> Documents:
    """What the exporter would have written."""
    names = ("cpu_utilization", "memory_utilization")
    return [
        {
            **{"worker_id": WORKER.worker_id, "timestamp": to_datetime(start), "status": "running"},
            **{name: value for name, value in zip(names, values, strict=True) if value is not None},
        }
        for start, values in expected_values(cloudwatch, WORKER, before).items()
    ]


@pytest.mark.parametrize("before", [FINAL_BEFORE, FINAL_BEFORE + 300, END])
def test_a_right_history_may_have_samples_that_are_not_due(cloudwatch: Instances, before: int) -> None:
    comparison = Comparison(cloudwatch, FINAL_BEFORE, END)
    comparison.add(WORKER, history(cloudwatch, before))
    comparison.check()
    assert (comparison.due, comparison.equal, comparison.rows) == (9, 9, (before - CREATED) // 300)


def lose(documents: Documents) -> None:
    del documents[2]


def double(documents: Documents) -> None:
    documents.append(documents[2])


def invent(documents: Documents) -> None:
    documents.append({**documents[0], "timestamp": to_datetime(END)})


def halve(documents: Documents) -> None:
    documents[-1]["cpu_utilization"] /= 2


def write_null(documents: Documents) -> None:
    documents[1]["memory_utilization"] = None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lose, "1 lost"), (double, "1 doubled"), (invent, "1 foreign"), (halve, "1 foreign"), (write_null, "1 with null")],
)
def test_a_wrong_history_fails_with_what_is_wrong(
    cloudwatch: Instances, spoil: Callable[[Documents], None], message: str
) -> None:
    documents = history(cloudwatch, END)
    spoil(documents)
    comparison = Comparison(cloudwatch, FINAL_BEFORE, END)
    comparison.add(WORKER, documents)
    with pytest.raises(AssertionError, match=f"of 9 samples that must exist.*: {message}, such as worker-1"):
        comparison.check()


def test_a_worker_without_an_instance_has_no_samples() -> None:
    assert expected_values(Instances(time.time, seed=1, period=300), WORKER, END) == {}
