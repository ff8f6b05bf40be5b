"""The order in which tests begin: those that wait first, divided among the processes, and none left out."""

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import conftest


def item(name: str, waits: float | None = None) -> Any:  # noqa: ANN401  # stands for a pytest.Item
    mark = SimpleNamespace(args=(waits,)) if waits else None
    return SimpleNamespace(name=name, get_closest_marker=lambda wanted: mark if wanted == "waits" else None)


def runs(monkeypatch: pytest.MonkeyPatch, items: list[Any], workers: int) -> list[list[str]]:
    """Return the names that each process begins with, as pytest-xdist divides them."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", str(workers))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    conftest.pytest_collection_modifyitems(cast(list[pytest.Item], items))
    left, names, found = len(items), [each.name for each in items], []
    for number in range(workers):
        size = left // (workers - number)
        found.append(names[:size])
        del names[:size]
        left -= size
    return found


def test_the_longest_waits_come_first_in_all_processes_but_one_for_each_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item(f"short-{number}") for number in range(40)]
    for position, (name, seconds) in enumerate({"a": 60, "b": 340, "c": 200, "d": 120, "e": 30}.items()):
        items.insert(7 * position, item(name, seconds))
    found = runs(monkeypatch, items, 5)
    assert [[name for name in run if len(name) == 1] for run in found] == [["b"], ["c"], ["d", "a", "e"], [], []]
    assert all(run[0] in "bcd" for run in found[:3])
    assert sorted(name for run in found for name in run) == sorted([*"abcde", *(f"short-{number}" for number in range(40))])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_few_tests_and_few_processes_lose_none(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    items = [item("a", 60), item("b"), item("c", 90), item("d", 30)]
    found = runs(monkeypatch, items, workers)
    assert sorted(name for run in found for name in run) == ["a", "b", "c", "d"]
    assert [name for run in found for name in run] == (["a", "b", "c", "d"] if workers == 1 else ["c", "a", "d", "b"])
