"""Insert samples exactly once, find which of them are stored, delete those of a worker."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pymongo.errors import BulkWriteError, OperationFailure

from exporter.core import logs
from exporter.core.errors import IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.model import FinalSample, WorkerMetricsSample
from exporter.core.periods import to_datetime, to_seconds
from exporter.core.process_identity import new_owner
from exporter.storage.collection import HistoryCollection
from exporter.storage.insert_fence import InsertFence, fence_problem
from exporter.storage.lease import LEASE_SECONDS, boottime
from exporter.storage.misplaced import finish_move, set_aside_normal_collection
from exporter.storage.mongo import (
    NOT_AUTHORIZED,
    OPERATION_SECONDS,
    TRANSACTION_TOO_OLD,
    WHOLE_HISTORY_SECONDS,
    Document,
    chunks,
    may_see_all_operations,
)
from exporter.storage.sample_documents import Sample, inserts
from exporter.storage.sample_reader import final_sample, stored_seconds

Key = tuple[str, int]
"""(worker_id, start of the period in UTC seconds): what makes a sample unique."""
DOCUMENTS_PER_INSERT = 10_000
"""Each insert waits for the journal; to encode so many documents holds the GIL for some 6 ms."""
DOCUMENTS_PER_UNFENCED_INSERT = 1000
"""The same on a server without a fence: so many may be stored twice after a pause while the driver sends them."""
MAX_PERIODS_PER_READ = 500_000
"""Sum over the workers of one query of the periods in its range: some 4 MB on the server where all are stored."""
INSERT_LEASE_WAIT_SECONDS = LEASE_SECONDS + 10
"""How long to wait for another process's insert: until the lease of one that died has expired, and some more."""
_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 0.015, 0.045

# Per-document codes that say "never": BadValue, FailedToParse, TypeMismatch, InvalidBSON, the field name rules,
# DocumentValidationFailure, BSONObjectTooLarge, KeyTooLong. Anything else may succeed later, so it is not set aside.
_REJECTED_CODES = frozenset({2, 9, 14, 22, 52, 53, 55, 56, 57, 121, 10334, 17280})

_log = logs.get("lease")


class SampleWriter:
    """Writes samples into the history, and deletes them.

    A time-series collection has no unique index. To store a sample once: take the `insert_lease`, which raises the fence
    against earlier inserts that have not arrived yet, wait until `no_insert_running`, find what is missing with
    `existing_keys`, insert that; repeat all four after a StoreUnavailableError.
    `insert_missing` does this for one caller; the mirror does it with its own leases besides.

    Every method raises StoreUnavailableError, IncompatibleStoreError or StoreError.
    """

    def __init__(self, collection: HistoryCollection) -> None:
        self._collection = collection
        self._samples = collection.samples
        self._sees_all_users: bool | None = None  # not asked yet
        self._fence = InsertFence(collection.database, owner=new_owner())
        self._lease = self._fence.lease
        self._one_at_a_time = asyncio.Lock()
        self._unacknowledged = False
        """Whether an insert was sent under the lease without an answer so far: it may be running on the server."""
        self._yield_until = 0.0
        """Until then (time of the event loop) others get the lease: for as long as this one held it, at most one try each."""

    async def ensure_collection(self) -> None:
        """Create or verify the collection that is written to, see `HistoryCollection.ensure`; cheap where nothing changed."""
        try:
            await self._collection.ensure_again()
        except IncompatibleStoreError as error:
            if error.reason != "collection" or not await set_aside_normal_collection(self._collection):
                raise
        await finish_move(self._collection, self.insert_missing)  # also one that an error has interrupted

    async def no_insert_running(self) -> bool:
        """Return whether no insert into the collection is running on the server.

        mongod finishes an insert whose client has died; until then `existing_keys` proves nothing. The least role sees only the
        user's own inserts, which are all, unless the user was just replaced; then an old one ends within OPERATION_SECONDS.
        """
        async with self._collection.operation("find"):
            if self._sees_all_users is None:  # asked first: MongoDB logs what it refuses
                self._sees_all_users = await may_see_all_operations(self._collection.database)
            try:
                return not await self._running_inserts(self._sees_all_users)
            except OperationFailure as error:
                if error.code != NOT_AUTHORIZED or not self._sees_all_users:
                    raise  # else the user has another role now
                self._sees_all_users = False
                return not await self._running_inserts(False)

    async def existing_keys(self, keys: Collection[Key]) -> set[Key]:
        """Return which of the samples are stored permanently: a majority holds them.

        Raises:
            StoreUnavailableError: `unsettled`: the primary shows something that a majority does not hold yet, or the reverse.
        """
        wanted, found = set(keys), set[Key]()
        for ids, low, high in _reads(keys, self._collection.period):
            on_primary, on_majority = [
                {
                    (worker_id, second)
                    for worker_id, seconds in (await stored_seconds(self._collection, source, ids, low, high)).items()
                    for second in seconds
                }
                & wanted
                for source in (self._collection.samples, self._collection.majority)
            ]
            if on_primary != on_majority:
                raise StoreUnavailableError(
                    f"a majority does not hold {len(on_primary ^ on_majority)} samples of "
                    f"{self._collection.namespace} yet; try again",
                    reason="unsettled",
                )
            found |= on_primary
        return found

    async def stored_samples(self, keys: Collection[Key]) -> list[FinalSample]:
        """Return the samples of these keys as they are stored; of a key that is stored twice, one of them."""
        wanted, found = set(keys), dict[Key, FinalSample]()
        for ids, low, high in _reads(keys, self._collection.period):
            match = {"worker_id": {"$in": ids}, "timestamp": {"$gte": to_datetime(low), "$lte": to_datetime(high)}}
            async with self._collection.operation("find"):
                samples = [final_sample(each) async for each in self._samples.find(match) if not each["timestamp"].microsecond]
            found |= {each[:2]: each for each in samples if each[:2] in wanted}
        return list(found.values())

    @asynccontextmanager
    async def insert_lease(self) -> AsyncIterator[Callable[[], float]]:
        """Hold the lease for inserting, so that no other process inserts between a read-back and its insert.

        Before it yields, it has MongoDB refuse every insert that was sent earlier, by whichever process, and has not arrived
        yet (`storage.insert_fence`; not on a standalone server). What is running there already must be waited for after that.

        Every writer of the history takes it for the fraction of a second that these two need: the mirror, a backfill, and each
        WorkerMetricsRepository. It is released at the end, except after an insert that was not acknowledged: that one may be
        running, so the lease is kept until it expires, later than the time limit of the insert.

        Yields:
            What `insert` needs as `within`: returns the seconds that are left, or raises StoreUnavailableError.

        Raises:
            StoreUnavailableError: `busy`: another process held the lease for INSERT_LEASE_WAIT_SECONDS; or the fence is not up.
        """

        def seconds_left() -> float:
            if not self._lease.held:
                raise StoreUnavailableError("the lease for inserting expired before the insert; try again", reason="lease")
            return self._lease.remaining

        clock = asyncio.get_running_loop().time
        async with self._one_at_a_time:
            await asyncio.sleep(max(0.0, self._yield_until - clock()))
            await self._until(self._lease.acquire_or_renew)
            self._unacknowledged, began = False, clock()
            try:
                await self._fence.raise_number()
                yield seconds_left
            finally:
                if not self._unacknowledged:
                    await self._release()
                self._yield_until = clock() + min(clock() - began, _MAX_POLL_SECONDS)

    async def fence_problem(self) -> str | None:
        """Return why MongoDB cannot refuse late inserts, and what to do, for the operator; None if it can."""
        async with self._collection.operation("hello"):
            return fence_problem(await self._collection.database.client.admin.command("hello"))

    async def keep_fence(self) -> None:
        """Keep the fence up while nothing is inserted: MongoDB forgets it after 30 minutes; call it every few minutes.

        Raises:
            StoreError: MongoDB does not answer.
        """
        await self._fence.keep()

    async def insert_missing(self, samples: Sequence[WorkerMetricsSample]) -> tuple[int, list[tuple[WorkerMetricsSample, str]]]:
        """Insert the samples that are not stored; return how many those were, and those MongoDB will never accept.

        Of several with one key the first is inserted. The collection is created if it is absent: an insert would create a
        normal one.

        Args:
            samples: with timestamps that are starts of periods.

        Raises:
            StoreUnavailableError: some may be inserted; the same call again inserts the others.
        """
        by_key: dict[Key, WorkerMetricsSample] = {}
        for sample in samples:
            by_key.setdefault((sample.worker_id, to_seconds(sample.timestamp)), sample)
        await self.ensure_collection()
        async with self.insert_lease() as seconds_left:
            await self._until(self.no_insert_running)
            stored = await self.existing_keys(by_key)
            missing = [by_key[key] for key in sorted(by_key.keys() - stored)]
            rejected = await self.insert(missing, within=seconds_left) if missing else []
        return len(missing) - len(rejected), rejected

    async def insert(self, samples: Sequence[Sample], *, within: Callable[[], float] | None = None) -> list[tuple[Sample, str]]:
        """Insert samples; return those MongoDB will never accept, with the reason.

        Args:
            samples: worker by worker in time order, as a time series stores best. None and non-finite values are left out of
                the documents (a null would close the bucket).
            within: returns the seconds for the whole call, such as what remains of a lease, and may raise; it is asked right
                before the first batch is sent. By default OPERATION_SECONDS for each batch.

        Raises:
            StoreUnavailableError: how much was inserted is unknown; see the class for how to continue.
        """
        limit = DOCUMENTS_PER_INSERT if self._fence.is_up else DOCUMENTS_PER_UNFENCED_INSERT
        parts, rejected = inserts(samples, limit)
        deadline: float | None = None

        def seconds_left() -> float:
            # The deadline is absolute, on a clock that goes on while the machine sleeps: a pause between two batches counts.
            nonlocal deadline
            if deadline is None:
                deadline = boottime() + (within() if within else OPERATION_SECONDS * max(1, len(parts)))
            left = deadline - boottime()
            if left <= 0:
                raise StoreUnavailableError(
                    "the time for this insert was over before all of it was sent; it starts over", reason="lease"
                )
            return left

        for part, documents in parts:
            async with self._collection.operation("insert", seconds_left):
                await self._collection.require()
                rejected += await self._insert_batch(part, documents)
        async with self._collection.operation("insert", seconds_left):
            await self._collection.require()  # else they are in a normal collection, and will be inserted again
        return rejected

    async def purge(self, worker_id: str, *, within: float = WHOLE_HISTORY_SECONDS) -> int:
        """Delete all samples of a worker permanently and return how many; `within` is in seconds.

        Raises:
            StoreUnavailableError: some of them may be deleted; do it again.
        """
        async with self._collection.operation("remove", within):
            # By worker_id alone: that is the only deletion a time-series collection allows in every version.
            return (await self._samples.delete_many({"worker_id": worker_id})).deleted_count

    async def _insert_batch(
        self, samples: Sequence[Sample], documents: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Sample, str]]:
        self._unacknowledged = True
        rejected: list[tuple[Sample, str]] = []
        try:
            await self._fence.insert(self._collection.name, documents)
        except BulkWriteError as error:
            failed = error.details["writeErrors"]
            if error.details["writeConcernErrors"] or not failed or any(each["code"] not in _REJECTED_CODES for each in failed):
                raise
            rejected = [(samples[each["index"]], f"code {each['code']}: {each['errmsg']}") for each in failed]
        except OperationFailure as error:
            self._unacknowledged = error.code != TRANSACTION_TOO_OLD  # that one is refused whenever it arrives
            raise
        self._unacknowledged = False
        return rejected

    async def _until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait until the condition holds; raise StoreUnavailableError (`busy`) after INSERT_LEASE_WAIT_SECONDS."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + INSERT_LEASE_WAIT_SECONDS
        while not await condition():
            if clock() >= deadline:
                raise StoreUnavailableError(
                    f"another process has been inserting into {self._collection.namespace} for {INSERT_LEASE_WAIT_SECONDS} s; "
                    "try again",
                    reason="busy",
                )
            await asyncio.sleep(random.uniform(_MIN_POLL_SECONDS, _MAX_POLL_SECONDS))  # not all waiting processes in step

    async def _release(self) -> None:
        try:
            await self._lease.release(durable=False)  # the next acquisition waits for the journal of both
        except StoreError as error:
            _log.warning("lease for inserting not released; it expires by itself", error=str(error))

    async def _running_inserts(self, all_users: bool) -> list[Document]:
        collection = self._collection
        mine = {"active": True, "command.insert": collection.name, "command.$db": collection.database.name}
        cursor = await collection.database.client.admin.aggregate(
            [{"$currentOp": {"allUsers": all_users}}, {"$match": mine}, {"$project": {"opid": 1}}]
        )
        return await cursor.to_list(None)


def _reads(keys: Iterable[Key], period: int) -> Iterator[tuple[list[str], int, int]]:
    """Yield the workers, the first and the last second of each query that reads back samples.

    Most workers of a batch have samples in the same range, so few queries find them all. Those with other ranges are read
    together as long as at most twice as many periods are read as lie in their own ranges.
    """
    ordered = sorted(keys)
    first_of = dict(reversed(ordered))
    workers: dict[tuple[int, int], list[str]] = {}
    for worker_id, high in dict(ordered).items():  # of several seconds of a worker, a dict keeps the last one
        workers.setdefault((first_of[worker_id], high), []).append(worker_id)
    ids: list[str] = []
    first = last = own = 0
    for low, high in sorted(workers):
        length = (high - low) // period + 1
        for more in chunks(workers[low, high], max(1, MAX_PERIODS_PER_READ // length)):
            together = ((max(last, high) - first) // period + 1) * (len(ids) + len(more))
            if ids and together > min(2 * (own + length * len(more)), MAX_PERIODS_PER_READ):
                yield ids, first, last
                ids = []
            if not ids:
                first, last, own = low, high, 0
            ids += more
            last, own = max(last, high), own + length * len(more)
    if ids:
        yield ids, first, last
