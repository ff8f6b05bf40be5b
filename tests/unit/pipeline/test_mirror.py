"""Outbox → history, exactly once, with a history that may fail in every way there is."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from prometheus_client import CollectorRegistry

from exporter.core.errors import IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import to_datetime, to_seconds
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline import mirror as module
from exporter.pipeline.lifecycle import PendingSample
from exporter.pipeline.mirror import INSERT_MARGIN_SECONDS, MIN_LEASE_SECONDS, BackfillRange, Mirror, to_record
from exporter.pipeline.outbox import Outbox, OutboxThread

T, P = 1_767_225_600, 300
Key = tuple[str, int]


def row(number: int, worker: str = "w1", status: str | None = "running") -> PendingSample:
    return PendingSample(worker, T + number * P, "eu-west-1", ("i-1",), status, 3, cpu=float(number), final=True)


class History:
    """A history in memory. `fate` is what becomes of the next insert; then all is well again."""

    def __init__(self) -> None:
        self.samples: list[WorkerMetricsSample] = []
        self.running: list[WorkerMetricsSample] = []
        self.uncommitted: set[Key] = set()
        self.fate: Literal["fine", "nothing", "everything", "half", "later"] = "fine"
        self.poison: set[str] = set()
        self.ensured = 0
        self.calls: list[str] = []
        self.misfit = False
        self.within: float | None = None

    @property
    def keys(self) -> list[Key]:
        return sorted(key(each) for each in self.samples)

    async def ensure_collection(self) -> None:
        if self.misfit:
            raise IncompatibleStoreError("the collection is not ours", reason="misfit")
        self.ensured += 1

    async def no_insert_running(self) -> bool:
        self.calls.append("no_insert_running")
        if self.running and self.calls.count("no_insert_running") > 3:
            self.samples += self.running
            self.running = []
        return not self.running

    async def existing_keys(self, keys: Collection[Key]) -> set[Key]:
        self.calls.append("existing_keys")
        if self.uncommitted & set(keys):
            raise StoreUnavailableError("a majority does not hold all of it", reason="unsettled")
        return set(self.keys) & set(keys)

    async def insert(
        self, samples: Sequence[WorkerMetricsSample], *, within: float | None
    ) -> list[tuple[WorkerMetricsSample, str]]:
        self.within = within
        self.calls.append("insert")
        assert list(samples) == sorted(samples, key=key)
        fate, self.fate = self.fate, "fine"
        healthy = [each for each in samples if each.worker_id not in self.poison]
        if fate == "later":
            self.running = healthy
        else:
            self.samples += {"fine": healthy, "everything": healthy, "half": healthy[::2], "nothing": []}[fate]
        if fate != "fine":
            raise StoreUnavailableError("the connection broke", reason="unavailable")
        return [(each, "too strange") for each in samples if each.worker_id in self.poison]


def key(each: WorkerMetricsSample) -> Key:
    return each.worker_id, to_seconds(each.timestamp)


class Lease:
    """A lease whose remaining time the test sets."""

    def __init__(self) -> None:
        self.remaining = 30.0
        self.fence = 1

    @property
    def held(self) -> bool:
        return self.remaining > 0


class Shared(Lease):
    """The lease of who writes what is old; `taken` by a backfill or free."""

    def __init__(self) -> None:
        super().__init__()
        self.remaining, self.taken, self.released = 0.0, False, 0

    async def acquire_or_renew(self) -> bool:
        self.remaining = 0.0 if self.taken else 30.0
        return self.held

    async def release(self) -> None:
        self.remaining = 0.0
        self.released += 1


class Desk:
    """A mirror with all it needs."""

    def __init__(self, folder: Path) -> None:
        self.outbox = Outbox(folder, P, synchronous="OFF")
        self.thread = OutboxThread(self.outbox)
        self.history, self.lease = History(), Lease()
        self.registry = CollectorRegistry()
        self.telemetry = Telemetry(self.registry)
        self.now = T + 99
        self.backfill = Shared()
        self.mirror = Mirror(
            self.thread,
            self.history,
            self.lease,
            self.telemetry,
            old=BackfillRange(self.backfill, 10 * P, lambda: self.now),
            wall=lambda: self.now,
            batch=10,
        )

    def put(self, *rows: PendingSample) -> None:
        with self.outbox.transaction():
            self.outbox.open(rows)

    def count(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"cml_exporter_{name}", labels)

    async def drain(self) -> None:
        while await self.mirror.step():
            pass


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110  # the mirror tells nobody when it changes its mind
            await asyncio.sleep(0.005)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.thread.close()


async def test_settled_rows_are_inserted_and_leave_the_outbox(desk: Desk) -> None:
    desk.put(row(1), row(0), replace(row(2), final=False))
    assert await desk.mirror.step() is False
    assert desk.history.keys == [("w1", T), ("w1", T + P)]
    assert desk.outbox.counts() == {"observed": 1, "final": 0, "rejected": 0}
    assert desk.count("mirror_samples_total", result="inserted") == 2
    assert desk.count("mirror_last_success_timestamp_seconds") == T + 99


async def test_the_last_success_does_not_move_while_a_full_batch_may_be_left(desk: Desk) -> None:
    desk.put(*(row(n) for n in range(20)))
    assert await desk.mirror.step()
    assert desk.count("mirror_last_success_timestamp_seconds") in (None, 0)
    assert await desk.mirror.step(), "ten of ten: there may be more"
    assert desk.count("mirror_last_success_timestamp_seconds") in (None, 0)
    assert not await desk.mirror.step()
    assert desk.count("mirror_last_success_timestamp_seconds") == desk.now


async def test_every_batch_is_quiesced_and_read_back_before_it_is_inserted(desk: Desk) -> None:
    desk.put(*(row(n) for n in range(15)))
    assert await desk.mirror.step() is True, "there may be more than a batch"
    assert await desk.mirror.step() is False
    assert desk.history.calls == ["no_insert_running", "existing_keys", "insert"] * 2
    assert len(desk.history.samples) == 15


async def test_an_empty_outbox_asks_the_history_nothing(desk: Desk) -> None:
    assert await desk.mirror.step() is False
    assert desk.history.calls == []
    assert desk.history.ensured == 1


async def test_what_is_there_already_is_only_deleted(desk: Desk) -> None:
    desk.history.samples = [to_record(row(n)) for n in (0, 1)]
    desk.put(*(row(n) for n in range(3)))
    await desk.drain()
    assert desk.history.keys == [("w1", T + n * P) for n in range(3)]
    assert desk.count("mirror_samples_total", result="already_present") == 2
    assert desk.count("mirror_samples_total", result="inserted") == 1


@pytest.mark.parametrize("fate", ["nothing", "everything", "half", "later"])
async def test_an_insert_that_may_have_happened_is_neither_lost_nor_doubled(
    desk: Desk, fate: Literal["nothing", "everything", "half", "later"]
) -> None:
    desk.put(*(row(n, worker) for worker in ("w1", "w2") for n in range(3)))
    desk.history.fate = fate
    with pytest.raises(StoreUnavailableError):
        await desk.mirror.step()
    assert desk.outbox.counts()["final"] == 6, "nothing is believed"
    await desk.drain()
    assert desk.history.keys == [(worker, T + n * P) for worker in ("w1", "w2") for n in range(3)]
    assert desk.outbox.counts()["final"] == 0


async def test_a_row_is_not_deleted_before_a_majority_holds_it(desk: Desk) -> None:
    desk.history.samples = [to_record(row(0))]
    desk.history.uncommitted = {("w1", T)}
    desk.put(row(0))
    with pytest.raises(StoreUnavailableError):
        await desk.mirror.step()
    assert desk.outbox.counts()["final"] == 1
    desk.history.samples, desk.history.uncommitted = [], set()  # it was rolled back
    await desk.drain()
    assert desk.history.keys == [("w1", T)]


async def test_an_insert_of_somebody_else_that_does_not_end_makes_it_start_over(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: History) -> bool:
        return False

    monkeypatch.setattr(History, "no_insert_running", never)
    monkeypatch.setattr(module, "INSERT_WAIT_SECONDS", 0.1)
    desk.put(row(0))
    with pytest.raises(StoreUnavailableError, match="another insert into the history is still running") as busy:
        await desk.mirror.step()
    assert busy.value.reason == "busy"
    assert desk.history.calls == []


async def test_a_sample_rejected_for_good_is_set_aside_and_hides_no_other(desk: Desk) -> None:
    desk.put(row(0, "w1"), row(0, "w2"), row(0, "w3"))
    desk.history.poison = {"w2"}
    await desk.drain()
    assert desk.history.keys == [("w1", T), ("w3", T)]
    assert desk.outbox.counts() == {"observed": 0, "final": 0, "rejected": 1}
    assert desk.count("mirror_samples_total", result="rejected") == 1
    assert desk.count("mirror_samples_total", result="inserted") == 2
    assert desk.history.calls.count("insert") == 1, "it is not tried again"


async def test_who_does_not_hold_the_lease_touches_nothing(desk: Desk) -> None:
    desk.put(row(0))
    desk.lease.remaining = 0
    assert await desk.mirror.step() is False
    assert (desk.history.calls, desk.history.ensured) == ([], 0)
    assert desk.outbox.counts()["final"] == 1


async def test_nothing_is_inserted_shortly_before_the_lease_ends(desk: Desk) -> None:
    desk.put(row(0))
    desk.lease.remaining = MIN_LEASE_SECONDS - 1
    with pytest.raises(StoreUnavailableError) as refused:
        await desk.mirror.step()
    assert refused.value.reason == "lease"
    assert "insert" not in desk.history.calls
    desk.lease.remaining = MIN_LEASE_SECONDS + 1
    await desk.drain()
    assert desk.history.keys == [("w1", T)]
    assert desk.history.within == MIN_LEASE_SECONDS + 1 - INSERT_MARGIN_SECONDS, "and it must be over before the lease is"


async def test_nothing_is_inserted_when_somebody_else_held_the_lease_since_it_was_read_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    existing_keys = desk.history.existing_keys

    async def paused(keys: Collection[Key]) -> set[Key]:
        found = await existing_keys(keys)
        desk.history.samples.append(to_record(row(0)))  # by the other one, whose lease has ended again
        desk.lease.fence += 2
        return found

    desk.put(row(0))
    with monkeypatch.context() as patch:
        patch.setattr(desk.history, "existing_keys", paused)
        with pytest.raises(StoreUnavailableError, match="another exporter held the lease"):
            await desk.mirror.step()
    await desk.drain()
    assert desk.history.keys == [("w1", T)]


async def test_samples_of_periods_nobody_observed_are_counted_as_healed(desk: Desk) -> None:
    desk.put(row(0), row(1, status=None))
    await desk.drain()
    assert desk.count("samples_gap_filled_total") == 1


async def test_the_loop_starts_over_after_a_failure_and_says_what_the_problem_was(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    desk.history.fate = "half"
    loop = asyncio.create_task(desk.mirror.run_forever())
    desk.put(row(0), row(1))
    desk.mirror.wake.set()
    await until(lambda: desk.mirror.problem is not None)
    assert desk.mirror.problem == "the connection broke"
    await until(lambda: desk.mirror.problem is None)
    assert desk.outbox.counts()["final"] == 0
    assert desk.history.keys == [("w1", T), ("w1", T + P)]
    assert desk.count("mirror_failures_total", reason="unavailable") == 1
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_a_history_that_is_not_ours_is_verified_again_each_time(desk: Desk) -> None:
    desk.history.misfit = True
    desk.put(row(0))
    with pytest.raises(IncompatibleStoreError):
        await desk.mirror.step()
    desk.history.misfit = False
    await desk.drain()
    assert desk.history.keys == [("w1", T)]


async def test_a_full_disk_while_deleting_doubles_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(rows: object) -> None:
        raise StoreError("the disk is full", reason="disk_full")

    desk.put(row(0))
    with monkeypatch.context() as patch:
        patch.setattr(desk.outbox, "delete", full)
        with pytest.raises(StoreError):
            await desk.mirror.step()
    await desk.drain()
    assert desk.history.keys == [("w1", T)]


def test_a_row_is_written_in_the_customers_shape() -> None:
    full = PendingSample("w1", T, "eu-west-1", ("i-1",), "running", 0, own_cpu=1.0, cpu=2.5, memory=None, final=True)
    assert to_record(full) == WorkerMetricsSample("w1", "eu-west-1", to_datetime(T), 2.5, None, 0, "running")


async def test_what_a_backfill_may_be_writing_waits_for_its_lease_and_the_newer_samples_do_not(desk: Desk) -> None:
    desk.put(*(row(number) for number in range(30)))
    desk.now = T + 25 * P  # the first 15 are older than 10 periods
    desk.backfill.taken = True
    await desk.drain()
    assert [start for _, start in desk.history.keys] == [T + number * P for number in range(15, 30)]
    assert desk.outbox.counts()["final"] == 15
    desk.backfill.taken = False
    await desk.drain()
    assert [start for _, start in desk.history.keys] == [T + number * P for number in range(30)]
    assert desk.backfill.released == 2  # batches of 10; nothing is kept from a backfill between them


async def test_an_old_sample_is_not_written_when_the_backfills_lease_ends_too_soon(desk: Desk) -> None:
    async def almost_over() -> bool:
        desk.backfill.remaining = MIN_LEASE_SECONDS - 1
        return True

    desk.backfill.acquire_or_renew = almost_over  # type: ignore[method-assign]  # the lease as the server gave it
    desk.put(row(0))
    desk.now = T + 25 * P
    with pytest.raises(StoreUnavailableError, match="ends too soon"):
        await desk.drain()
    assert desk.history.keys == []
    assert desk.backfill.released == 1


async def test_the_lease_is_free_again_after_a_batch_that_failed(desk: Desk) -> None:
    desk.put(row(0))
    desk.now = T + 25 * P
    desk.history.fate = "nothing"
    with pytest.raises(StoreUnavailableError):
        await desk.drain()
    assert desk.backfill.released == 1
    await desk.drain()
    assert desk.history.keys == [("w1", T)]
