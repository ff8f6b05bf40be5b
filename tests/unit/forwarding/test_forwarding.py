"""Targets come and go with the settings, and the queue stays within its limit."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from exporter.core.errors import ConfigError, StoreError
from exporter.core.history_settings import HistorySettings
from exporter.core.model import FinalSample, InventoryEntry
from exporter.forwarding import forwarding as module
from exporter.forwarding.forwarding import Forwarding
from exporter.forwarding.sample_batches import Labels, batches
from exporter.forwarding.worker_labels import MAX_AGE_SECONDS, UNKNOWN_SECONDS, WorkerLabels
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.stores.store import Store
from tests.helpers.deadlines import scaled
from tests.unit.forwarding.test_target import FakeStore

P, T = 300, 1_767_225_600


def sample(number: int, worker: str = "w1", region: str = "eu-west-1") -> FinalSample:
    return FinalSample(worker, T + number * P, region, float(number), None, number, "running")


def key(number: int) -> tuple[str, int]:
    """Return the key of a sample in a store."""
    return "w1", (T + number * P) * 1000


def settings(*names: str, limit: int = 1000) -> HistorySettings:
    targets = [{"type": "influxdb", "url": f"http://127.0.0.1/{name}", "name": name} for name in names]
    return HistorySettings.model_validate({"forward": targets, "forward_max_samples": limit})


class Env:
    """Forwarding with stores in memory, one for each address."""

    def __init__(self, folder: Path) -> None:
        self.outbox = Outbox(folder, P, synchronous="OFF")
        self.thread = OutboxThread(self.outbox)
        self.registry = CollectorRegistry()
        self.stores: dict[str, FakeStore] = {}
        self.later = 0.0
        """Seconds by which the clock is ahead."""
        self.forwarding = Forwarding(self.thread, self.labels, Telemetry(self.registry), wall=lambda: time.time() + self.later)

    async def labels(self, worker_ids: Collection[str]) -> Labels:
        return {}

    def open(self, address: str) -> Store:
        if "unknown" in address:
            raise ConfigError("no store is known there")
        return self.stores.setdefault(address.rpartition("/")[2], FakeStore())

    async def add(self, *samples: FinalSample) -> None:
        await self.thread(lambda: self.outbox.delete([], forward=samples))
        self.forwarding.mirrored()

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + scaled(20)
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    def value(self, name: str, target: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"cml_exporter_forward_{name}", {"target": target, **labels})


@pytest.fixture
async def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Env]:
    made = Env(tmp_path)
    monkeypatch.setattr(module, "open_store", made.open)
    task: list[asyncio.Task[None]] = []
    task.append(asyncio.create_task(made.forwarding.run_forever()))
    yield made
    task[0].cancel()
    await asyncio.wait(task)
    made.thread.close()


async def test_targets_are_independent(env: Env) -> None:
    env.forwarding.use(settings("a", "b"))
    env.stores["b"].hangs = True
    await env.add(*(sample(number) for number in range(5)))
    await env.until(lambda: env.value("pending_samples", "a") == 0 and len(env.stores["a"].rows) == 5)
    await env.until(lambda: env.value("pending_samples", "b") == 5)
    env.later = 700
    assert env.value("lag_seconds", "b") >= 700  # type: ignore[operator]
    assert env.value("lag_seconds", "a") == 0
    assert set(env.forwarding.conditions) == {"forward a", "forward b"}


async def test_a_reload_adds_a_target_from_then_on_and_forgets_a_removed_one(env: Env) -> None:
    env.forwarding.use(settings("a"))
    await env.add(sample(1))
    await env.until(lambda: len(env.stores["a"].rows) == 1)
    env.forwarding.use(settings("a", "b"))
    await env.add(sample(2))
    await env.until(lambda: len(env.stores["b"].rows) == 1 and len(env.stores["a"].rows) == 2)
    env.stores["a"].failures = [StoreError("no", reason="refused")] * 1000
    await env.add(sample(3))
    await env.until(lambda: env.value("failures_total", "a", reason="refused"))
    env.forwarding.use(settings("b"))
    await env.until(lambda: "a" not in env.forwarding._waiting)
    assert env.value("pending_samples", "a") is env.value("failures_total", "a", reason="refused") is None
    assert set(env.forwarding.conditions) == {"forward b"}
    env.stores["a"].failures = []
    env.forwarding.use(settings("a", "b"))
    await env.add(sample(4))
    await env.until(lambda: len(env.stores["a"].rows) == 3 and len(env.stores["b"].rows) == 3)


async def test_a_target_that_cannot_be_used_changes_nothing(env: Env) -> None:
    env.forwarding.use(settings("a"))
    with pytest.raises(ConfigError):
        env.forwarding.use(settings("b", "unknown"))
    assert set(env.forwarding.conditions) == {"forward a"}
    assert env.outbox.forward_to == ("a",)


async def test_beyond_the_limit_the_oldest_are_dropped_counted_and_named_in_the_log(
    env: Env, capsys: pytest.CaptureFixture[str]
) -> None:
    env.forwarding.use(settings("a", "b"))
    env.stores["a"].failures = [StoreError("no", reason="refused")] * 1000
    await env.add(*(sample(number) for number in range(1200)))
    env.later = 700
    await env.until(lambda: env.value("samples_dropped_total", "a", reason="limit") == 200)
    await env.until(lambda: env.value("pending_samples", "a") == 1000)
    assert "export --to" in capsys.readouterr().out
    env.stores["a"].failures = []
    await env.until(lambda: len(env.stores["a"].rows) == 1000)
    assert min(env.stores["a"].rows) == ("w1", (T + 200 * P) * 1000)


async def test_a_target_that_answers_loses_nothing_to_a_limit_below_one_batch_of_the_mirror(env: Env) -> None:
    env.forwarding.use(settings("a", limit=1000))
    await env.add(*(sample(number) for number in range(10_000)))
    await env.until(lambda: len(env.stores["a"].rows) == 10_000)
    await env.until(lambda: env.value("pending_samples", "a") == 0)
    assert env.value("samples_dropped_total", "a", reason="limit") in (None, 0)


async def test_the_file_of_a_url_is_read_again_at_each_connection_and_by_a_reload(env: Env, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("http://me:old@127.0.0.1/old\n")
    target = {"type": "influxdb", "url_file": str(file), "name": "a"}
    wanted = HistorySettings.model_validate({"forward": [target]})
    env.forwarding.use(wanted)
    await env.add(sample(1))
    await env.until(lambda: len(env.stores["old"].rows) == 1)
    file.unlink()
    with pytest.raises(ConfigError, match=r"history\.forward a: url_file: cannot read"):
        env.forwarding.use(wanted)
    env.stores["old"].failures = [StoreError("the password has changed", reason="refused")]
    await env.add(sample(2))
    await env.until(lambda: "cannot read" in str(env.forwarding.conditions["forward a"].error))
    file.write_text("http://me:new@127.0.0.1/new")
    await env.until(lambda: "new" in env.stores and key(2) in env.stores["new"].rows)  # without a reload
    file.write_text("http://me:new@127.0.0.1/newest")
    env.forwarding.use(wanted)
    await env.add(sample(3))
    await env.until(lambda: "newest" in env.stores and key(3) in env.stores["newest"].rows)  # and what was not confirmed before


async def test_the_queue_of_targets_of_an_earlier_run_is_removed(env: Env) -> None:
    env.outbox.forward_to = ("earlier",)
    await env.add(sample(1))
    env.forwarding.use(settings())
    await env.until(lambda: env.forwarding._forgotten)

    def left() -> int:
        with env.outbox.transaction() as database:
            count: int = database.execute("SELECT COUNT(*) FROM forward").fetchone()[0]
        return count

    assert await env.thread(left) == 0


async def test_the_loop_outlives_an_outbox_that_fails_and_bugs(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    errors: list[Exception] = [StoreError("disk full", reason="disk_full"), ValueError("a bug")]
    trim = module._trim

    def fail(*arguments: object) -> object:
        if errors:
            raise errors.pop()
        return trim(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_trim", fail)
    env.forwarding.use(settings("a"))
    await env.add(sample(1))
    await env.until(lambda: len(env.stores["a"].rows) == 1 and not errors)


def test_batches_are_by_worker_and_region_in_order_of_time_and_the_last_of_a_key_counts() -> None:
    odd = FinalSample("w2", T, "", float("inf"), float("nan"), None, None)
    twice = sample(2)._replace(status="stopped")
    found = list(batches([sample(2), sample(1), odd, twice, sample(3, region="us")], {"w1": {"name": "one"}}))
    assert [(each.worker_id, each.region, each.times, each.statuses) for each in found] == [
        ("w1", "eu-west-1", [(T + P) * 1000, (T + 2 * P) * 1000], ["running", "stopped"]),
        ("w1", "us", [(T + 3 * P) * 1000], ["running"]),
        ("w2", "", [T * 1000], [None]),
    ]
    assert found[0].info == {"name": "one"}
    assert found[2].numbers == {"cpu_utilization": [None], "memory_utilization": [None], "active_labs_count": [None]}


class FakeInventory:
    """An inventory that can fail."""

    def __init__(self) -> None:
        self.stored: dict[str, InventoryEntry] = {}
        self.entries: dict[str, InventoryEntry] = {}
        self.loads = 0
        self.fails = False

    def add(self, worker_id: str, name: str) -> None:
        self.stored[worker_id] = InventoryEntry(worker_id, "eu-west-1", name, None, None, None, None, "running", T, T)

    async def load(self) -> None:
        self.loads += 1
        if self.fails:
            raise StoreError("away", reason="unavailable")
        self.entries = dict(self.stored)


async def test_labels_are_read_again_when_old_or_unknown_and_the_last_are_used_while_mongodb_is_away() -> None:
    inventory, now = FakeInventory(), 0.0
    inventory.add("w1", "one")
    labels = WorkerLabels(inventory, lambda: now)
    inventory.fails = True
    with pytest.raises(StoreError):
        await labels(["w1"])
    inventory.fails = False
    assert (await labels(["w1"]))["w1"]["name"] == "one"
    inventory.add("w2", "two")
    assert (await labels(["w2"]))["w2"]["name"] == "", "read again for each sample of a worker that is unknown"
    now = UNKNOWN_SECONDS + 1.0
    assert (await labels(["w2"]))["w2"]["name"] == "two"
    loads = inventory.loads
    await labels(["w1", "w2"])
    assert inventory.loads == loads
    now += MAX_AGE_SECONDS + 1
    inventory.fails = True
    assert (await labels(["w1"]))["w1"]["name"] == "one"
    assert inventory.loads == loads + 1
