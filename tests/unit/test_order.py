"""Which tests run and in which order: nightly ones when they are wanted, those that wait first, divided among the processes."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import conftest
from tests.helpers import deadlines
from tests.helpers.cases import for_all


def item(name: str, waits: float | None = None, nightly: str = "") -> Any:  # noqa: ANN401  # stands for a pytest.Item
    marks = {"waits": waits, "nightly": nightly}
    return SimpleNamespace(
        name=name, get_closest_marker=lambda wanted: SimpleNamespace(args=(marks[wanted],)) if marks[wanted] else None
    )


def runs(monkeypatch: pytest.MonkeyPatch, items: list[Any], workers: int) -> list[list[str]]:
    """Return the names that each process begins with, as pytest-xdist divides them."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", str(workers))
    conftest.begin_with_waiting(cast(list[pytest.Item], items))
    left, names, found = len(items), [each.name for each in items], []
    for number in range(workers):
        size = left // (workers - number)
        found.append(names[:size])
        del names[:size]
        left -= size
    return found


def test_the_longest_waits_come_first_in_all_processes_but_five(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item(f"short-{number}") for number in range(40)]
    for position, (name, seconds) in enumerate({"a": 60, "b": 340, "c": 200, "d": 120, "e": 30}.items()):
        items.insert(7 * position, item(name, seconds))
    found = runs(monkeypatch, items, 8)
    assert [[name for name in run if len(name) == 1] for run in found] == [["b"], ["c"], ["d", "a", "e"], [], [], [], [], []]
    assert all(run[0] in "bcd" for run in found[:3])
    assert sorted(name for run in found for name in run) == sorted([*"abcde", *(f"short-{number}" for number in range(40))])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_few_tests_and_few_processes_lose_none(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    items = [item("a", 60), item("b"), item("c", 90), item("d", 30)]
    found = runs(monkeypatch, items, workers)
    assert sorted(name for run in found for name in run) == ["a", "b", "c", "d"]
    assert [name for run in found for name in run] == (["a", "b", "c", "d"] if workers == 1 else ["c", "a", "d", "b"])


def chosen(*, nightly: bool = False, arguments: Sequence[str] = ()) -> tuple[list[str], int]:
    """Return the names of the tests that run, of one nightly and one other, and how many were left out."""
    items = [item("minutes", nightly="short"), item("short")]
    ignore: Any = lambda **_: None  # noqa: E731
    stash: dict[object, int] = {}
    config = SimpleNamespace(
        getoption=lambda _: nightly, args=arguments, hook=SimpleNamespace(pytest_deselected=ignore), stash=stash
    )
    conftest.leave_out_nightly(cast(pytest.Config, config), items)
    return [each.name for each in items], stash.get(conftest.LEFT_OUT, 0)


def test_nightly_tests_run_only_where_they_are_wanted_or_named() -> None:
    assert chosen() == (["short"], 1)
    assert chosen(arguments=["tests/unit"]) == (["short"], 1)
    assert chosen(nightly=True) == (["minutes", "short"], 0)
    assert chosen(arguments=["tests/unit/test_order.py::minutes"]) == (["minutes", "short"], 0)


@pytest.mark.parametrize(("own", "seconds"), [(None, 300), (900, 900)])
def test_a_test_may_take_longer_while_the_machine_is_busy(
    monkeypatch: pytest.MonkeyPatch, own: float | None, seconds: int
) -> None:
    monkeypatch.setattr(deadlines, "runnable", lambda: 40.0)
    marks: list[Any] = []
    tested = SimpleNamespace(
        get_closest_marker=lambda _: SimpleNamespace(args=(own,)) if own else None,
        config=SimpleNamespace(getini=lambda _: "300"),
        add_marker=lambda mark, append: marks.append((mark.name, mark.args, append)),
    )
    next(conftest.pytest_runtest_protocol(cast(pytest.Item, tested)))
    assert marks == [("timeout", (seconds * 10,), False)]


def test_a_loop_over_cases_reports_every_wrong_one() -> None:
    @for_all([pytest.param(number, id=f"case {number}") for number in range(4)])
    def test_even(number: int) -> None:
        assert number % 2 == 0, "odd"

    with pytest.raises(ExceptionGroup) as caught:
        test_even()
    assert [error.__notes__ for error in caught.value.exceptions] == [["case: case 1"], ["case: case 3"]]
    assert test_even.__name__ == "test_even"
