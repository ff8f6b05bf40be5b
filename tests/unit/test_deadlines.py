"""Deadlines follow what the machine has to do, also what it has begun to do just now."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import deadlines


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, int], None]:
    """Let a machine of two CPUs have an average of runnable tasks, and a number of them at this moment."""

    def have(average: float, now: int) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        monkeypatch.setattr(os, "getloadavg", lambda: (average, 0.0, 0.0))
        monkeypatch.setattr(Path, "read_text", lambda _: f"{average:.2f} 0.00 0.00 {now}/437 4711\n")

    return have


@pytest.mark.parametrize(
    ("average", "now", "seconds"),
    [(0.5, 1, 30), (4.0, 4, 30), (8.0, 2, 60), (0.5, 12, 90), (40.0, 12, 300)],
    ids=["idle", "all CPUs busy", "load of the last minute", "load that has just begun", "load beyond the tests' own"],
)
def test_a_deadline_grows_with_the_tasks_that_want_a_cpu(
    load: Callable[[float, int], None], average: float, now: int, seconds: float
) -> None:
    load(average, now)
    assert deadlines.scaled(30) == seconds


def test_without_proc_the_average_counts(load: Callable[[float, int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Path) -> str:
        raise FileNotFoundError

    load(8.0, 12)
    monkeypatch.setattr(Path, "read_text", missing)
    assert deadlines.scaled(30) == 60


def test_a_long_wait_looks_less_and_less_often() -> None:
    assert [deadlines.pause(waited) for waited in (0, 4, 10, 600)] == [0.05, 0.2, 0.5, 0.5]
