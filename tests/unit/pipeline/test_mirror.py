"""Samples move from the outbox to the history exactly once, whatever way the history fails."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest
from prometheus_client import CollectorRegistry

from exporter.core.condition import Condition
from exporter.core.errors import IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.model import FinalSample
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline import forward_queue
from exporter.pipeline import mirror as module
from exporter.pipeline.lifecycle import PendingSample
from exporter.pipeline.mirror import INSERT_MARGIN_SECONDS, MIN_LEASE_SECONDS, BackfillRange, Mirror
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from tests.helpers.deadlines import scaled

T, P = 1_767_225_600, 300
Key = tuple[str, int]


def row(number: int, worker: str = "w1", status: str | None = "running") -> PendingSample:
    return PendingSample(worker, T + number * P, "eu-west-1", ("i-1",), status, 3, cpu=float(number), final=True)


def sample_of(row: PendingSample) -> FinalSample:
    return FinalSample(row.worker_id, row.start, row.region, row.cpu, row.memory, row.active_labs, row.status)


class History:
    """A history in memory. `outcome` is what happens to the next insert; the ones after it succeed."""

    def __init__(self) -> None:
        self.samples: list[FinalSample] = []
        self.running: list[FinalSample] = []
        self.uncommitted: set[Key] = set()
        self.outcome: Literal["fine", "nothing", "everything", "half", "later"] = "fine"
        self.rejected: set[str] = set()
        self.ensured = 0
        self.calls: list[str] = []
        self.incompatible = False
        self.within: float | None = None
        self.leased = False
        self.insert_seconds = 30.0
        self.encode: Callable[[], object] = lambda: None

    @property
    def keys(self) -> list[Key]:
        return sorted(key(each) for each in self.samples)

    async def ensure_collection(self) -> None:
        if self.incompatible:
            raise IncompatibleStoreError("the collection has another schema", reason="misfit")
        self.ensured += 1

    @asynccontextmanager
    async def insert_lease(self) -> AsyncIterator[Callable[[], float]]:
        def seconds_left() -> float:
            if self.insert_seconds <= 0:
                raise StoreUnavailableError("the lease for inserting expired", reason="lease")
            return self.insert_seconds

        self.leased = True
        yield seconds_left
        self.leased = False

    async def no_insert_running(self) -> bool:
        assert self.leased
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

    async def stored_samples(self, keys: Collection[Key]) -> list[FinalSample]:
        return [each for each in self.samples if key(each) in keys]

    async def insert(self, samples: Sequence[FinalSample], *, within: Callable[[], float]) -> list[tuple[FinalSample, str]]:
        self.encode()
        assert self.leased
        self.within = within()
        self.calls.append("insert")
        assert list(samples) == sorted(samples, key=key)
        outcome, self.outcome = self.outcome, "fine"
        healthy = [each for each in samples if each.worker_id not in self.rejected]
        if outcome == "later":
            self.running = healthy
        else:
            self.samples += {"fine": healthy, "everything": healthy, "half": healthy[::2], "nothing": []}[outcome]
        if outcome != "fine":
            raise StoreUnavailableError("the connection broke", reason="unavailable")
        return [(each, "invalid") for each in samples if each.worker_id in self.rejected]


def key(each: FinalSample) -> Key:
    return each.worker_id, each.start


class Lease:
    """A lease whose remaining time the test sets."""

    def __init__(self) -> None:
        self.remaining = 30.0
        self.fence = 1
        self.problem: str | None = None

    @property
    def held(self) -> bool:
        return self.remaining > 0


class Shared(Lease):
    """The lease for old samples; `taken` by a backfill or free."""

    def __init__(self) -> None:
        super().__init__()
        self.remaining, self.taken, self.released = 0.0, False, 0

    async def acquire_or_renew(self) -> bool:
        self.remaining = 0.0 if self.taken else 30.0
        return self.held

    async def release(self) -> None:
        self.remaining = 0.0
        self.released += 1


class MirrorEnv:
    """A mirror with everything around it."""

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
    async with asyncio.timeout(scaled(10)):
        while not true():  # noqa: ASYNC110  # the mirror signals no change of its problem
            await asyncio.sleep(0.005)


@pytest.fixture
def mirror_env(tmp_path: Path) -> Iterator[MirrorEnv]:
    made = MirrorEnv(tmp_path)
    yield made
    made.thread.close()


async def test_final_rows_are_inserted_and_leave_the_outbox(mirror_env: MirrorEnv) -> None:
    mirror_env.put(row(1), row(0), row(2)._replace(final=False))
    assert await mirror_env.mirror.step() is False
    assert mirror_env.history.keys == [("w1", T), ("w1", T + P)]
    assert mirror_env.outbox.counts() == {"observed": 1, "final": 0, "rejected": 0}
    assert mirror_env.count("mirror_samples_total", result="inserted") == 2
    assert mirror_env.count("mirror_last_success_timestamp_seconds") == T + 99


async def test_every_batch_waits_for_running_inserts_and_is_read_back_before_it_is_inserted(mirror_env: MirrorEnv) -> None:
    mirror_env.put(*(row(n) for n in range(15)))
    assert await mirror_env.mirror.step() is True, "there may be more than a batch"
    assert await mirror_env.mirror.step() is False
    assert mirror_env.history.calls == ["no_insert_running", "existing_keys", "insert"] * 2
    assert len(mirror_env.history.samples) == 15


@pytest.mark.parametrize("age", [0, 50 * P])
async def test_the_time_of_the_last_success_does_not_move_while_a_full_batch_may_be_left(
    mirror_env: MirrorEnv, age: int
) -> None:
    """A mirror that cannot keep up must look late, both with new samples and with those a backfill may be writing."""
    mirror_env.put(*(row(n) for n in range(25)))
    mirror_env.now += age
    for _ in range(2):
        assert await mirror_env.mirror.step() is True
        assert mirror_env.count("mirror_last_success_timestamp_seconds") is None
    assert await mirror_env.mirror.step() is False
    assert mirror_env.count("mirror_last_success_timestamp_seconds") == mirror_env.now


async def test_what_the_history_has_is_queued_for_other_databases_with_the_values_that_it_has(mirror_env: MirrorEnv) -> None:
    mirror_env.outbox.forward_to = ("archive",)
    mirror_env.history.rejected = {"bad"}
    another = sample_of(row(1))._replace(cpu_utilization=99.0)  # a job of the manager was faster
    mirror_env.history.samples = [another]
    mirror_env.put(row(0), row(1), row(2, "bad"))
    await mirror_env.drain()

    def queued() -> list[FinalSample]:
        with mirror_env.outbox.transaction() as database:
            return forward_queue.read(database, "archive", 0, 10).samples

    assert sorted(await mirror_env.thread(queued)) == [sample_of(row(0)), another]


@pytest.mark.parametrize("outcome", ["nothing", "half", "everything", "later"])
async def test_a_sample_is_queued_when_it_has_left_the_outbox_and_not_before(
    mirror_env: MirrorEnv, outcome: Literal["nothing", "half", "everything", "later"]
) -> None:
    mirror_env.outbox.forward_to = ("archive",)
    mirror_env.put(*(row(n) for n in range(4)))
    mirror_env.history.outcome = outcome
    with pytest.raises(StoreUnavailableError):
        await mirror_env.mirror.step()

    def queued() -> list[FinalSample]:
        with mirror_env.outbox.transaction() as database:
            return forward_queue.read(database, "archive", 0, 10).samples

    assert await mirror_env.thread(queued) == []
    await mirror_env.drain()
    assert sorted(await mirror_env.thread(queued)) == [sample_of(row(n)) for n in range(4)]


async def test_an_empty_outbox_sends_no_query_to_the_history(mirror_env: MirrorEnv) -> None:
    assert await mirror_env.mirror.step() is False
    assert mirror_env.history.calls == []
    assert mirror_env.history.ensured == 1


async def test_a_row_whose_sample_exists_is_only_deleted(mirror_env: MirrorEnv) -> None:
    mirror_env.history.samples = [sample_of(row(n)) for n in (0, 1)]
    mirror_env.put(*(row(n) for n in range(3)))
    await mirror_env.drain()
    assert mirror_env.history.keys == [("w1", T + n * P) for n in range(3)]
    assert mirror_env.count("mirror_samples_total", result="already_present") == 2
    assert mirror_env.count("mirror_samples_total", result="inserted") == 1


@pytest.mark.parametrize("outcome", ["nothing", "everything", "half", "later"])
async def test_an_insert_that_may_have_happened_is_neither_lost_nor_doubled(
    mirror_env: MirrorEnv, outcome: Literal["nothing", "everything", "half", "later"]
) -> None:
    mirror_env.put(*(row(n, worker) for worker in ("w1", "w2") for n in range(3)))
    mirror_env.history.outcome = outcome
    with pytest.raises(StoreUnavailableError):
        await mirror_env.mirror.step()
    assert mirror_env.outbox.counts()["final"] == 6, "every row is kept"
    await mirror_env.drain()
    assert mirror_env.history.keys == [(worker, T + n * P) for worker in ("w1", "w2") for n in range(3)]
    assert mirror_env.outbox.counts()["final"] == 0


async def test_a_row_is_not_deleted_before_a_majority_holds_it(mirror_env: MirrorEnv) -> None:
    mirror_env.history.samples = [sample_of(row(0))]
    mirror_env.history.uncommitted = {("w1", T)}
    mirror_env.put(row(0))
    with pytest.raises(StoreUnavailableError):
        await mirror_env.mirror.step()
    assert mirror_env.outbox.counts()["final"] == 1
    mirror_env.history.samples, mirror_env.history.uncommitted = [], set()  # the insert was rolled back
    await mirror_env.drain()
    assert mirror_env.history.keys == [("w1", T)]


async def test_a_foreign_insert_that_does_not_end_makes_the_batch_start_over(
    mirror_env: MirrorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: History) -> bool:
        return False

    monkeypatch.setattr(History, "no_insert_running", never)
    monkeypatch.setattr(module, "INSERT_WAIT_SECONDS", 0.1)
    mirror_env.put(row(0))
    with pytest.raises(StoreUnavailableError, match="another insert into the history is still running") as busy:
        await mirror_env.mirror.step()
    assert busy.value.reason == "busy"
    assert mirror_env.history.calls == []


async def test_a_sample_rejected_permanently_is_set_aside_and_the_others_are_inserted(mirror_env: MirrorEnv) -> None:
    mirror_env.put(row(0, "w1"), row(0, "w2"), row(0, "w3"))
    mirror_env.history.rejected = {"w2"}
    await mirror_env.drain()
    assert mirror_env.history.keys == [("w1", T), ("w3", T)]
    assert mirror_env.outbox.counts() == {"observed": 0, "final": 0, "rejected": 1}
    assert mirror_env.count("mirror_samples_total", result="rejected") == 1
    assert mirror_env.count("mirror_samples_total", result="inserted") == 2
    assert mirror_env.history.calls.count("insert") == 1, "it is not retried"


async def test_without_the_lease_nothing_is_read_or_written(mirror_env: MirrorEnv) -> None:
    mirror_env.put(row(0))
    mirror_env.lease.remaining = 0
    assert await mirror_env.mirror.step() is False
    assert (mirror_env.history.calls, mirror_env.history.ensured) == ([], 0)
    assert mirror_env.outbox.counts()["final"] == 1


async def test_nothing_is_inserted_shortly_before_the_lease_ends(mirror_env: MirrorEnv) -> None:
    mirror_env.put(row(0))
    mirror_env.lease.remaining = MIN_LEASE_SECONDS - 1
    with pytest.raises(StoreUnavailableError) as refused:
        await mirror_env.mirror.step()
    assert refused.value.reason == "lease"
    assert "insert" not in mirror_env.history.calls
    mirror_env.lease.remaining = MIN_LEASE_SECONDS + 1
    await mirror_env.drain()
    assert mirror_env.history.keys == [("w1", T)]
    assert mirror_env.history.within == MIN_LEASE_SECONDS + 1 - INSERT_MARGIN_SECONDS, "the insert must end before the lease"


async def test_nothing_is_inserted_if_the_lease_ended_while_the_batch_was_encoded(mirror_env: MirrorEnv) -> None:
    mirror_env.put(row(0))
    mirror_env.history.encode = lambda: setattr(mirror_env.lease, "remaining", 0.0)
    with pytest.raises(StoreUnavailableError) as refused:
        await mirror_env.mirror.step()
    assert refused.value.reason == "lease"
    assert "insert" not in mirror_env.history.calls


async def test_nothing_is_inserted_if_the_lease_for_inserting_ended_since_the_read_back(mirror_env: MirrorEnv) -> None:
    mirror_env.put(row(0))
    mirror_env.history.insert_seconds = 7.0
    mirror_env.history.encode = lambda: setattr(mirror_env.history, "insert_seconds", 0.0)
    with pytest.raises(StoreUnavailableError, match="the lease for inserting expired"):
        await mirror_env.mirror.step()
    assert "insert" not in mirror_env.history.calls
    mirror_env.history.encode, mirror_env.history.insert_seconds = lambda: None, 7.0
    await mirror_env.drain()
    assert mirror_env.history.within == 7.0


async def test_nothing_is_inserted_if_another_exporter_held_the_lease_since_the_read_back(
    mirror_env: MirrorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    existing_keys = mirror_env.history.existing_keys

    async def paused(keys: Collection[Key]) -> set[Key]:
        found = await existing_keys(keys)
        mirror_env.history.samples.append(sample_of(row(0)))  # written by the other exporter, whose lease has ended again
        mirror_env.lease.fence += 2
        return found

    mirror_env.put(row(0))
    with monkeypatch.context() as patch:
        patch.setattr(mirror_env.history, "existing_keys", paused)
        with pytest.raises(StoreUnavailableError, match="another exporter held the lease"):
            await mirror_env.mirror.step()
    await mirror_env.drain()
    assert mirror_env.history.keys == [("w1", T)]


async def test_samples_of_periods_without_an_observation_are_counted_as_gap_filled(mirror_env: MirrorEnv) -> None:
    mirror_env.put(row(0), row(1, status=None))
    await mirror_env.drain()
    assert mirror_env.count("samples_gap_filled_total") == 1


async def test_the_loop_starts_over_after_a_failure_and_exposes_the_problem(
    mirror_env: MirrorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    mirror_env.history.outcome = "half"
    loop = asyncio.create_task(mirror_env.mirror.run_forever())
    mirror_env.put(row(0), row(1))
    mirror_env.mirror.wake.set()
    await until(lambda: mirror_env.mirror.problem is not None)
    assert mirror_env.mirror.problem == "the connection broke"
    await until(lambda: mirror_env.mirror.problem is None)
    assert mirror_env.outbox.counts()["final"] == 0
    assert mirror_env.history.keys == [("w1", T), ("w1", T + P)]
    assert mirror_env.count("mirror_failures_total", reason="unavailable") == 1
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_without_final_samples_the_history_is_verified_rarely(
    mirror_env: MirrorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)
    waits = 0

    def beat() -> None:
        nonlocal waits
        waits += 1

    mirror_env.mirror.beat = beat
    loop = asyncio.create_task(mirror_env.mirror.run_forever())
    await until(lambda: waits > 20)
    assert mirror_env.history.ensured == 1
    mirror_env.put(row(0))
    await until(lambda: mirror_env.history.keys == [("w1", T)])
    monkeypatch.setattr(module, "VERIFY_SECONDS", 0)
    mirror_env.put(row(1))
    await until(lambda: mirror_env.history.ensured > 5)
    assert mirror_env.history.keys == [("w1", T), ("w1", T + P)]
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_a_problem_of_the_outbox_shows_although_nothing_is_final(
    mirror_env: MirrorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)
    loop = asyncio.create_task(mirror_env.mirror.run_forever())
    await until(lambda: mirror_env.history.ensured == 1)

    def failing() -> None:
        raise StoreError("the disk is full", reason="disk_full")

    with pytest.raises(StoreError):
        await mirror_env.thread(failing)
    await until(lambda: mirror_env.mirror.problem == "the disk is full")
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_an_incompatible_history_is_verified_again_each_time(mirror_env: MirrorEnv) -> None:
    mirror_env.history.incompatible = True
    mirror_env.put(row(0))
    with pytest.raises(IncompatibleStoreError):
        await mirror_env.mirror.step()
    mirror_env.history.incompatible = False
    await mirror_env.drain()
    assert mirror_env.history.keys == [("w1", T)]


async def test_a_full_disk_while_deleting_doubles_nothing(mirror_env: MirrorEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    def delete(rows: object, *, all_read: bool, forward: object) -> None:
        raise StoreError("the disk is full", reason="disk_full")

    mirror_env.put(row(0))
    with monkeypatch.context() as patch:
        patch.setattr(mirror_env.outbox, "delete", delete)
        with pytest.raises(StoreError):
            await mirror_env.mirror.step()
    await mirror_env.drain()
    assert mirror_env.history.keys == [("w1", T)]


async def test_an_outbox_that_cannot_be_written_is_a_failure_of_the_mirror_even_without_samples(
    mirror_env: MirrorEnv,
) -> None:
    def open_periods() -> None:
        raise StoreError("the disk is full", reason="disk_full")

    with pytest.raises(StoreError):
        await mirror_env.thread(open_periods)
    mirror_env.put(row(0))
    with pytest.raises(StoreError, match="the disk is full") as failed:
        await mirror_env.mirror.step()
    assert failed.value.reason == "disk_full"
    assert mirror_env.history.keys == [("w1", T)], "what is final is written nevertheless"


async def test_without_the_lease_the_mirror_is_well_only_while_another_process_holds_it(mirror_env: MirrorEnv) -> None:
    mirror_env.lease.remaining = 0.0
    await mirror_env.mirror.step()
    assert mirror_env.mirror.problem is None
    mirror_env.lease.problem = "no exporter is known to hold the lease: MongoDB does not answer"
    mirror_env.now += 60
    await mirror_env.mirror.step()
    assert mirror_env.mirror.problem == mirror_env.lease.problem
    mirror_env.now += 60
    await mirror_env.mirror.step()
    assert mirror_env.mirror.condition == Condition(mirror_env.lease.problem, T + 99 + 60), "it says since when"
    mirror_env.lease.problem = None
    mirror_env.now += 60
    await mirror_env.mirror.step()
    assert mirror_env.mirror.condition == Condition(None, T + 99 + 180)


async def test_samples_that_a_backfill_may_be_writing_wait_for_its_lease_and_newer_ones_do_not(mirror_env: MirrorEnv) -> None:
    mirror_env.put(*(row(number) for number in range(30)))
    mirror_env.now = T + 25 * P  # the first 15 are older than 10 periods
    mirror_env.backfill.taken = True
    await mirror_env.drain()
    assert [start for _, start in mirror_env.history.keys] == [T + number * P for number in range(15, 30)]
    assert mirror_env.outbox.counts()["final"] == 15
    mirror_env.backfill.taken = False
    await mirror_env.drain()
    assert [start for _, start in mirror_env.history.keys] == [T + number * P for number in range(30)]
    assert mirror_env.backfill.released == 2  # batches of 10; the lease is free between them


async def test_an_old_sample_is_not_written_when_the_backfills_lease_ends_too_soon(mirror_env: MirrorEnv) -> None:
    async def almost_over() -> bool:
        mirror_env.backfill.remaining = MIN_LEASE_SECONDS - 1
        return True

    mirror_env.backfill.acquire_or_renew = almost_over  # type: ignore[method-assign]  # the lease as the server gave it
    mirror_env.put(row(0))
    mirror_env.now = T + 25 * P
    with pytest.raises(StoreUnavailableError, match="ends too soon"):
        await mirror_env.drain()
    assert mirror_env.history.keys == []
    assert mirror_env.backfill.released == 1


async def test_the_lease_is_free_again_after_a_batch_that_failed(mirror_env: MirrorEnv) -> None:
    mirror_env.put(row(0))
    mirror_env.now = T + 25 * P
    mirror_env.history.outcome = "nothing"
    with pytest.raises(StoreUnavailableError):
        await mirror_env.drain()
    assert mirror_env.backfill.released == 1
    await mirror_env.drain()
    assert mirror_env.history.keys == [("w1", T)]
