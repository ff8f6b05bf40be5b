"""What shows between two cycles: an outage of MongoDB, and a disk that is too small."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from exporter.core.errors import SourceError
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.availability import MIN_FREE_BYTES, day_bytes, free_bytes, space_problem, watch_mongodb
from exporter.pipeline.source_health import SourceHealth
from tests.simulation.virtual_time import VirtualLoop

PING_FAILS_SECONDS = 5


class Watched:
    """A MongoDB that is down between two seconds, and what the watch made of it."""

    def __init__(self, down: range, error: Exception | None = None) -> None:
        self.registry = CollectorRegistry()
        self.recoveries: list[float] = []
        self._down = down
        self._error = error or SourceError("mongodb", "AutoReconnect", "MongoDB does not answer")
        self._health = SourceHealth(Telemetry(self.registry), self._now)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def ping(self) -> None:
        if int(self._now()) in self._down:
            await asyncio.sleep(PING_FAILS_SECONDS)
            raise self._error

    def up(self) -> float | None:
        return self.registry.get_sample_value("cml_exporter_source_up", {"source": "mongodb", "region": ""})

    def run(self, seconds: int, read_failed: Callable[[], bool] = lambda: False) -> list[float | None]:
        """Watch for so long; return source_up of each second."""

        async def watch() -> list[float | None]:
            shown = []
            self._health.succeeded("mongodb", "", 0)
            task = asyncio.ensure_future(
                watch_mongodb(
                    self.ping,
                    self._health,
                    lambda: self.recoveries.append(self._now()),
                    self._now,
                    read_failed=read_failed,
                )
            )
            for _ in range(seconds):
                await asyncio.sleep(1)
                shown.append(self.up())
            task.cancel()
            return shown

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(watch())

    @property
    def error(self) -> str | None:
        return self._health.errors["mongodb"]


@pytest.mark.parametrize("begin", range(20, 32))
def test_an_outage_shows_within_thirty_seconds_whenever_it_begins(begin: int) -> None:
    watched = Watched(range(begin, 300))
    shown = watched.run(120)
    assert set(shown[: begin - 1]) == {1}
    assert shown[begin + 29] == 0
    assert watched.error == "MongoDB does not answer"


def test_one_lost_connection_is_no_outage() -> None:
    watched = Watched(range(20, 22))
    assert set(watched.run(120)) == {1}
    assert watched.recoveries == []


def test_after_an_outage_the_worker_documents_are_read_at_once_and_only_once() -> None:
    watched = Watched(range(20, 100))
    watched.run(200)
    assert len(watched.recoveries) == 1
    assert 100 <= watched.recoveries[0] <= 100 + 10 + PING_FAILS_SECONDS


def test_documents_that_could_not_be_read_are_read_again_after_longer_and_longer_pauses() -> None:
    watched = Watched(range(0))
    watched.run(100, lambda: len(watched.recoveries) < 4)
    first = watched.recoveries[0]
    assert watched.recoveries == [first, first + 10, first + 30, first + 70]


def test_a_bug_in_the_ping_is_an_outage_and_does_not_end_the_watch() -> None:
    watched = Watched(range(20, 60), KeyError("maxWireVersion"))
    shown = watched.run(120)
    assert shown[49] == 0
    assert "unexpected KeyError" in str(watched.error)
    assert len(watched.recoveries) == 1


def test_the_space_of_a_day_is_that_of_all_workers_and_periods() -> None:
    assert day_bytes(0, 300) == MIN_FREE_BYTES
    assert day_bytes(10_000, 300) - MIN_FREE_BYTES == 10_000 * 288 * 200
    assert day_bytes(10_000, 60) - MIN_FREE_BYTES == 5 * (day_bytes(10_000, 300) - MIN_FREE_BYTES)


def test_a_disk_without_that_space_is_named(tmp_path: Path) -> None:
    assert space_problem(tmp_path, 100, 100) is None
    assert space_problem(tmp_path, 10 * 2**20, 576 * 2**20) == (
        f"data_dir: the disk of {tmp_path} has 10 MiB left, and a day of samples without MongoDB needs 576 MiB; make room"
    )
    assert free_bytes(tmp_path) > 0
