"""The hourly search for samples that are stored twice."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from exporter.core.errors import StoreUnavailableError
from exporter.core.periods import DAY, HOUR
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.duplicate_search import SEARCH_INTERVAL_SECONDS, search_forever
from tests.simulation.virtual_time import VirtualLoop

NOW = 1_767_225_600
GAUGE = "cml_exporter_history_duplicates"


@dataclass
class History:
    """Answers searches; a lease that is held or not."""

    held: bool = True
    answers: list[dict[str, int]] = field(default_factory=list)
    """One for each search; without one MongoDB does not answer."""
    oldest_inserted: int | None = None
    searched: list[tuple[float, int, int]] = field(default_factory=list)
    """(time of the loop, start, end)."""

    async def count(self, start: int, end: int) -> dict[str, int]:
        self.searched.append((asyncio.get_running_loop().time(), start, end))
        if not self.answers:
            raise StoreUnavailableError("MongoDB is down")
        return self.answers.pop(0)


@dataclass
class Search:
    history: History
    telemetry: Telemetry

    @property
    def shown(self) -> float | None:
        return self.telemetry.registry.get_sample_value(GAUGE)

    async def run_for(self, seconds: float) -> None:
        with suppress(TimeoutError):
            history = self.history
            await asyncio.wait_for(search_forever(history.count, history, history, self.telemetry, lambda: NOW), seconds)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run it in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(coroutine)


@pytest.fixture
def search() -> Search:
    return Search(History(), Telemetry(CollectorRegistry()))


def test_what_was_inserted_since_the_last_search_is_searched_too_and_until_that_has_succeeded(search: Search) -> None:
    search.history.oldest_inserted = NOW - 3 * DAY
    run(search.run_for(30))
    assert {start for _, start, _ in search.history.searched} == {NOW - 3 * DAY}, "MongoDB did not answer"
    assert search.history.oldest_inserted == NOW - 3 * DAY
    search.history.answers = [{"w1": 1}]
    run(search.run_for(30))
    assert search.history.searched[-1][1] == NOW - 3 * DAY
    assert search.history.oldest_inserted is None
    assert search.shown == 1


def test_once_an_hour_the_last_day_is_searched_and_the_last_number_is_shown(search: Search) -> None:
    search.history.answers = [{"w1": 2, "w2": 1}, {}]
    assert search.shown is None
    run(search.run_for(HOUR / 2))
    assert search.shown == 3
    assert [(start, end) for _, start, end in search.history.searched] == [(NOW - DAY, NOW + HOUR)]
    search.history.searched.clear()
    search.history.answers = [{"w1": 1}, {}]
    run(search.run_for(1.5 * SEARCH_INTERVAL_SECONDS))
    (first, *_), (second, *_) = search.history.searched
    assert second - first == pytest.approx(SEARCH_INTERVAL_SECONDS, abs=60)
    assert search.shown == 0


def test_only_the_exporter_that_writes_searches_and_shows_it(search: Search) -> None:
    search.history.held = False
    run(search.run_for(3 * HOUR))
    assert (search.history.searched, search.shown) == ([], None)
    search.telemetry.history_duplicates.value = 3
    run(search.run_for(HOUR))
    assert search.shown is None


def test_a_failed_search_is_repeated_soon_and_changes_no_number(search: Search) -> None:
    search.telemetry.history_duplicates.value = 5
    run(search.run_for(50))
    assert len(search.history.searched) == 3
    assert search.shown == 5
