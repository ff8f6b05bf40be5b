"""The loop of a target outlives every failure, counts it, and forwards every sample nevertheless."""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from exporter.core import logs
from exporter.core.errors import StoreError, StoreUnavailableError
from exporter.core.model import FinalSample
from exporter.forwarding import target as module
from exporter.forwarding.sample_batches import Labels
from exporter.forwarding.store_thread import StoreThread
from exporter.forwarding.target import Target
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline import forward_queue
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.stores.store import Batch, RefusedSamplesError
from tests.helpers.deadlines import scaled

P, T = 300, 1_767_225_600
Key = tuple[str, int]


def sample(number: int, worker: str = "w1") -> FinalSample:
    return FinalSample(worker, T + number * P, "eu-west-1", float(number), None, number, "running")


class FakeStore:
    """A store in memory; `failures` are raised by the next calls, one each."""

    name = "the store"
    wants_labels = False

    def __init__(self) -> None:
        self.settle_seconds = 0.0
        self.rows: dict[Key, float | None] = {}
        self.unsaved: dict[Key, float | None] = {}
        self.failures: list[BaseException] = []
        self.refused: dict[str, RefusedSamplesError] = {}
        """Worker id → what a write of one of its samples raises."""
        self.hangs = False
        self.run = "1"
        self.calls: list[str] = []
        self.sizes: list[int] = []

    def crash(self) -> None:
        """Lose what was acknowledged last, and start again."""
        self.unsaved.clear()
        self.run += "1"

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.failures:
            raise self.failures.pop(0)
        if self.hangs and name == "write":
            await asyncio.Event().wait()

    async def prepare(self) -> None:
        await self._call("prepare")

    async def ping(self) -> None:
        await self._call("ping")

    async def run_id(self) -> str:
        return self.run

    async def write(self, batches: Sequence[Batch]) -> None:
        keys = {
            (each.worker_id, at): cpu
            for each in batches
            for at, cpu in zip(each.times, each.numbers["cpu_utilization"], strict=True)
        }
        self.sizes.append(len(keys))
        await self._call("write")
        refused = [error for worker_id, error in self.refused.items() if any(key[0] == worker_id for key in keys)]
        if refused and refused[0].samples is not None:
            keys = {key: value for key, value in keys.items() if key[0] not in self.refused}
        if not refused or refused[0].samples is not None:
            (self.unsaved if self.settle_seconds else self.rows).update(keys)
        if refused:
            raise refused[0]

    async def count(self, workers: Sequence[str], since: int, until: int) -> int:
        return len(self.rows)

    async def close(self) -> None:
        self.calls.append("close")


class Env:
    """A target with everything around it."""

    def __init__(self, folder: Path) -> None:
        self.outbox = Outbox(folder, P, synchronous="OFF")
        self.outbox.forward_to = ("t",)
        self.thread = OutboxThread(self.outbox)
        self.store_thread = StoreThread()
        self.registry = CollectorRegistry()
        self.telemetry = Telemetry(self.registry)
        self.store = FakeStore()
        self.now = 1000.0
        self.labels_fail = False
        self.target = self.new_target()

    def new_target(self) -> Target:
        return Target(
            "t",
            lambda: self.store,
            self.thread,
            self.labels,
            self.store_thread,
            self.telemetry,
            wall=lambda: self.now,
            monotonic=lambda: self.now,
            jitter=lambda: 0.0,
        )

    async def labels(self, worker_ids: Collection[str]) -> Labels:
        if self.labels_fail:
            raise StoreUnavailableError("MongoDB is away", reason="unavailable")
        return {worker_id: {"name": worker_id} for worker_id in worker_ids}

    def add(self, *samples: FinalSample) -> None:
        self.outbox.delete([], forward=samples)

    async def until(self, condition: Callable[[], object], target: Target | None = None) -> None:
        """Run the loop until the condition holds."""
        task = asyncio.create_task((target or self.target).run_forever())
        try:
            async with asyncio.timeout(scaled(20)):
                while not condition():
                    assert not task.done(), "the loop has ended"
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()
            await asyncio.wait([task])
            await self.thread(lambda: None)  # a read that was cancelled has ended: the test uses the same connection
        assert task.cancelled()

    def lacks(self) -> int:
        """How many samples the target lacks, as far as the queue knows."""
        with closing(sqlite3.connect(self.outbox.path)) as database:  # the outbox's own connection is another thread's
            return forward_queue.waiting(database)["t"].samples

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"cml_exporter_forward_{name}", {"target": "t", **labels})


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Env]:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 0.01)
    made = Env(tmp_path)
    yield made
    made.store_thread.close()
    made.thread.close()


def keys(*samples: FinalSample) -> set[Key]:
    return {(each.worker_id, each.start * 1000) for each in samples}


class GroupedError(BaseExceptionGroup[BaseException]):
    """An exception that is no Exception."""


FAILURES: list[tuple[BaseException, str]] = [
    (StoreUnavailableError("away", reason="unavailable"), "unavailable"),
    (StoreError("another password", reason="refused"), "refused"),
    (TimeoutError(), "timeout"),
    (ValueError("a bug"), "bug"),
    (KeyError("a bug"), "bug"),
    (RecursionError("a bug"), "bug"),
    (MemoryError(), "bug"),
    (asyncio.CancelledError(), "bug"),
    (GroupedError("of a library", [KeyboardInterrupt()]), "bug"),
]


@pytest.mark.parametrize(
    ("error", "reason"), FAILURES, ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else ""
)
@pytest.mark.parametrize("call", ["prepare", "write"])
async def test_the_loop_outlives_every_failure_counts_it_and_continues(
    env: Env, error: BaseException, reason: str, call: str
) -> None:
    if call == "write":
        await env.until(lambda: env.store.calls)  # connected
        env.target = env.new_target()
    samples = [sample(number) for number in range(3)]
    env.add(*samples)
    env.store.failures = [error] * 3 if call == "prepare" else []
    if call == "write":
        original, failures = env.store.write, [error] * 3

        async def write(batches: Sequence[Batch]) -> None:
            if failures:
                raise failures.pop()
            await original(batches)

        env.store.write = write  # type: ignore[method-assign]
    await env.until(lambda: not env.lacks() and env.target.condition.error is None)
    assert set(env.store.rows) == keys(*samples)
    assert env.value("failures_total", reason=reason) == 3
    assert env.value("samples_total") == 3
    assert env.target.condition.since == 1000
    assert env.store.calls.count("close") >= 3, "the next attempt begins with a new connection"


async def test_a_bug_is_logged_with_its_traceback_and_shown(env: Env, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "logfmt")
    env.store.failures = [ValueError("of http://me:hidden@host")] * 1000
    await env.until(lambda: env.target.condition.error)
    assert env.target.condition.error == (
        "forwarding failed with an unexpected ValueError: of http://***@host; please report it"
    )
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "hidden" not in said


async def test_nothing_is_read_again_once_it_is_acknowledged(env: Env) -> None:
    env.add(*(sample(number) for number in range(4)))
    await env.until(lambda: not env.lacks())
    env.add(sample(5))
    await env.until(lambda: len(env.store.rows) == 5, env.new_target())
    assert env.store.sizes == [4, 1]
    assert env.value("last_success_timestamp_seconds") == 1000


async def test_samples_are_written_in_batches_of_a_size_that_the_store_can_take(
    env: Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_SAMPLES", 8)
    monkeypatch.setattr(module, "FEWEST_SAMPLES", 2)
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.05)
    env.target = env.new_target()
    env.add(*(sample(number) for number in range(8)))
    env.store.hangs = True
    await env.until(lambda: env.value("failures_total", reason="timeout") == 4)
    env.store.hangs = False
    await env.until(lambda: len(env.store.rows) == 8)
    assert env.store.sizes[:7] == [8, 4, 2, 2, 2, 4, 2], "half as many after each timeout, twice as many after each success"


async def test_what_a_store_may_lose_in_a_crash_is_counted_later_and_sent_again_after_one(env: Env) -> None:
    env.store.settle_seconds = 15.0
    samples = [sample(number) for number in range(3)]
    env.add(*samples)
    await env.until(lambda: len(env.store.unsaved) == 3)
    env.store.crash()
    assert not env.store.unsaved
    env.now += 16
    env.target = env.new_target()
    await env.until(lambda: len(env.store.unsaved) == 3)
    sent = len(env.store.sizes)
    env.add(sample(3))
    await env.until(lambda: len(env.store.unsaved) == 4, env.target)
    assert env.lacks() == 4

    def later() -> bool:
        env.now += 16
        env.target.wake.set()
        return not env.lacks()

    await env.until(later, env.target)
    assert len(env.store.sizes) == sent + 1


async def test_a_crash_between_two_writes_is_noticed_when_the_first_would_count(env: Env) -> None:
    env.store.settle_seconds = 15.0
    env.add(sample(1))
    crashed = False

    def sent_again() -> bool:
        nonlocal crashed
        if env.store.unsaved and not crashed:
            env.store.crash()
            crashed = True
        env.now += 16
        env.target.wake.set()
        return crashed and bool(env.store.unsaved)

    await env.until(sent_again)
    assert env.value("failures_total", reason="unavailable") == 1


async def test_samples_that_a_store_refuses_are_found_dropped_and_counted_and_the_others_are_there(env: Env) -> None:
    good = [sample(number, worker) for number in range(4) for worker in ("w1", "w3")]
    bad = [sample(number, "w2") for number in range(2)]
    env.store.refused = {"w2": RefusedSamplesError("a rule of the table", reason="invalid")}
    env.add(*good, *bad)
    await env.until(lambda: not env.lacks())
    assert set(env.store.rows) == keys(*good)
    assert env.value("samples_dropped_total", reason="invalid") == 2
    assert env.value("samples_total") == 8
    assert env.target.condition.error is None


async def test_of_a_write_that_was_accepted_in_part_only_the_refused_are_counted_as_dropped(env: Env) -> None:
    env.store.refused = {"w2": RefusedSamplesError("beyond retention", reason="retention", samples=2)}
    env.add(sample(1), sample(2), sample(1, "w2"), sample(2, "w2"))
    await env.until(lambda: not env.lacks())
    assert len(env.store.rows) == 2
    assert env.value("samples_dropped_total", reason="retention") == 2
    assert env.value("samples_total") == 2
    assert env.store.sizes == [4]


async def test_a_store_that_keeps_names_waits_for_them(env: Env) -> None:
    env.store.wants_labels = True
    env.labels_fail = True
    env.add(sample(1))
    await env.until(lambda: env.value("failures_total", reason="inventory"))
    assert "names of the workers" in str(env.target.condition.error)
    env.labels_fail = False
    await env.until(lambda: env.store.rows)


async def test_an_idle_target_that_is_away_shows_it(env: Env) -> None:
    await env.until(lambda: env.target.condition.since)
    env.now += module.PING_SECONDS
    env.store.failures = [StoreUnavailableError("away", reason="unavailable")] * 1000
    await env.until(lambda: env.target.condition.error == "away")


async def test_a_replaced_outbox_is_read_from_its_beginning(env: Env) -> None:
    env.add(*(sample(number) for number in range(5)))
    await env.until(lambda: not env.lacks())
    env.outbox.replace(StoreError("damaged", reason="damaged"))
    env.add(sample(9))
    await env.until(lambda: len(env.store.rows) == 6)
