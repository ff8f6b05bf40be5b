"""Failures of the outbox are counted by reason, kept until the same step succeeds, and a damaged outbox is replaced."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from exporter.core.condition import Condition
from exporter.core.errors import IncompatibleStoreError, StoreError
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_file import aside_files
from exporter.pipeline.outbox_thread import FAILURE_TTL_SECONDS, REPLACE_PAUSE_SECONDS, OutboxThread


class Env:
    """An outbox in its thread, on a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.replaced = folder, 1000.0, 0
        self.registry = CollectorRegistry()
        self.thread = OutboxThread(
            Outbox(folder, 300), Telemetry(self.registry), monotonic=lambda: self.now, wall=lambda: self.now
        )
        self.thread.on_replaced = self._replaced

    def _replaced(self) -> None:
        self.replaced += 1

    def failures(self, reason: str) -> float | None:
        return self.registry.get_sample_value("cml_exporter_outbox_write_failures_total", {"reason": reason})


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Env]:
    made = Env(tmp_path)
    yield made
    made.thread.close()


def full() -> None:
    raise StoreError("the disk is full", reason="disk_full")


def broken() -> None:
    raise IncompatibleStoreError("malformed", reason="damaged")


def buggy() -> None:
    raise TypeError("float expected")


def works() -> None: ...


async def test_failures_are_counted_from_zero_by_reason(env: Env) -> None:
    assert {env.failures(reason) for reason in ("disk_full", "read_only", "io", "damaged", "other")} == {0}
    for step, error in ((full, StoreError), (full, StoreError), (buggy, TypeError)):
        with pytest.raises(error):
            await env.thread(step)
    assert (env.failures("disk_full"), env.failures("other")) == (2, 1)


async def test_a_problem_stays_until_the_same_step_succeeds(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.thread.problem is None
    with pytest.raises(StoreError):
        await env.thread(full)
    await env.thread(works)
    assert str(env.thread.problem) == "the disk is full"

    def now_works() -> None: ...

    now_works.__name__ = "full"
    await env.thread(now_works)
    assert env.thread.problem is None


async def test_a_step_that_is_never_repeated_is_forgotten(env: Env) -> None:
    with pytest.raises(StoreError):
        await env.thread(full)
    env.now += FAILURE_TTL_SECONDS - 1
    assert env.thread.problem is not None
    env.now += 2
    assert env.thread.problem is None


async def test_a_bug_in_a_step_is_a_problem(env: Env) -> None:
    with pytest.raises(TypeError):
        await env.thread(buggy)
    assert "buggy failed with an unexpected TypeError: float expected" in str(env.thread.problem)


async def test_a_damaged_outbox_is_replaced_at_once_and_not_again_within_a_minute(env: Env) -> None:
    for _ in range(2):
        with pytest.raises(IncompatibleStoreError):
            await env.thread(broken)
    assert (env.replaced, len(aside_files(env.folder))) == (1, 1)
    env.now += REPLACE_PAUSE_SECONDS + 1
    with pytest.raises(IncompatibleStoreError):
        await env.thread(broken)
    assert (env.replaced, len(aside_files(env.folder))) == (2, 2)
    assert env.registry.get_sample_value("cml_exporter_outbox_replaced_total") == 2
    assert env.thread.problem is None
    await env.thread(env.thread.outbox.keep_spent, 0, 1)


async def test_one_that_was_damaged_at_the_start_is_counted(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_text("hello")
    env = Env(tmp_path)
    assert env.registry.get_sample_value("cml_exporter_outbox_replaced_total") == 1
    env.thread.close()


async def test_it_says_since_when_writes_fail_or_succeed(env: Env) -> None:
    assert env.thread.condition == Condition(None, 1000)
    for env.now in (2000, 2100, 2200):
        with pytest.raises(StoreError):
            await env.thread(full)
        assert env.thread.condition == Condition("the disk is full", 2000)
    await env.thread(works)
    assert env.thread.condition == Condition("the disk is full", 2000), "another step's success proves nothing"

    def now_works() -> None: ...

    now_works.__name__ = "full"
    env.now = 2300
    await env.thread(now_works)
    assert env.thread.condition == Condition(None, 2300)


async def test_a_failure_that_no_longer_counts_ended_when_its_time_was_up(env: Env) -> None:
    with pytest.raises(StoreError):
        await env.thread(full)
    env.now = 1000 + FAILURE_TTL_SECONDS + 5000
    assert env.thread.condition == Condition(None, 1000 + FAILURE_TTL_SECONDS)
    with pytest.raises(StoreError):
        await env.thread(full)
    assert env.thread.condition == Condition("the disk is full", env.now)
