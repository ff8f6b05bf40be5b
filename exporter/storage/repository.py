"""The history in MongoDB: one document per worker and period in a time-series collection.

With `inventory` and `lease` this is the only code that knows the collections we write.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from pymongo import ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    BulkWriteError,
    OperationFailure,
)
from pymongo.read_concern import ReadConcern

from exporter.core import logs
from exporter.core.errors import ConfigError, IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.core.model import MetricsAggregation, Statistics, WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, _utc, align_interval, format_duration, to_datetime, to_seconds
from exporter.core.settings import Settings
from exporter.storage import hourly, rows
from exporter.storage.collection import (
    _INDEX_EXISTS,
    _MIN_WIRE_VERSION,
    _NAMESPACE_EXISTS,
    _SCHEMA,
    _TIMESERIES,
    _check_granularity,
)
from exporter.storage.mongo import (
    _WHOLE_HISTORY_SECONDS,
    NOT_AUTHORIZED,
    OPERATION_SECONDS,
    STATE,
    Database,
    Document,
    chunks,
    durable,
    operation,
)
from exporter.storage.rows import HistoryRow
from exporter.storage.sample_reader import (
    _ALL,
    _CHUNK,
    _COLUMN,
    _IDS_A_READ,
    _NEWEST,
    _PAGE,
    TIME,
    Extent,
    FieldColumn,
    Pages,
    _from_milliseconds,
    _whole_seconds,
)
from exporter.storage.sample_writer import _REJECTS, Key, _document, _spans, _unfit
from exporter.storage.statistics import statistics, statistics_pipeline

_log = logs.get("history")
T = TypeVar("T")


class WorkerMetricsRepository:
    """The samples of all workers in one time-series collection.

    Args:
        database: of an AsyncMongoClient; its options don't matter.
        collection: name of the time-series collection.
        period: resolution of the history, in seconds.
        retention: expireAfterSeconds of a collection that is created, in seconds.
        apply_retention: whether somebody set `retention` explicitly; then a longer one is applied to an existing collection.
        wall: the clock that tells which samples are past retention.

    Every method raises StoreUnavailableError, IncompatibleStoreError or StoreError.
    """

    def __init__(
        self,
        database: Database,
        *,
        collection: str,
        period: int,
        retention: int,
        apply_retention: bool,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._database = durable(database)
        self._samples = self._database[collection]
        self._majority = self._samples.with_options(read_concern=ReadConcern("majority"))
        self._collection = collection
        self._period = period
        self._wanted_retention = retention
        self._apply_retention = apply_retention
        self._wall = wall
        self._sees_everyone = True
        self.retention: int | None = None
        """Seconds the collection keeps its samples; None: for good, or `ensure_collection` has not run yet."""
        self.notices: tuple[str, ...] = ()
        """What `ensure_collection` found that an operator should know, one sentence each; for the log and `check`."""

    @property
    def namespace(self) -> str:
        """database.collection, for messages."""
        return f"{self._database.name}.{self._collection}"

    async def ensure_collection(self) -> None:
        """Create the collection if it is absent, verify it, index it, apply a longer retention, note the period.

        Several exporters may do this at once. A shorter retention is never applied: a setting must not delete a history; see
        `notices`.

        Raises:
            IncompatibleStoreError: MongoDB is older than 5.0, the name is taken by something else, the history has another
                period, or a privilege is missing.
        """
        await self._check_version()
        options = await self._options()
        if options is None:
            await self._create()
            options = await self._options()
        if options is None:
            raise StoreUnavailableError(f"{self.namespace} was dropped while it was being created; it will be tried again")
        notices = [_check_granularity(self.namespace, options)]
        await self._check_period()
        await self._create_index()
        notices.append(await self._settle_retention(options.get("expireAfterSeconds")))
        self.notices = tuple(notice for notice in notices if notice)
        for notice in self.notices:
            _log.warning("the history is not as the settings say", notice=notice)

    async def current_retention(self) -> int | None:
        """Return how long the collection keeps samples, in seconds; None means for good.

        Raises:
            IncompatibleStoreError: there is no such collection, or it is not a history.
        """
        options = await self._options()
        if options is None:
            raise IncompatibleStoreError(f"{self.namespace} does not exist yet; `serve` creates it", reason="collection")
        seconds: int | None = options.get("expireAfterSeconds")
        return seconds

    async def future_retention(self) -> int | None:
        """Return what `retention` will be after `ensure_collection`, in seconds; None means for good. Changes nothing.

        Raises:
            IncompatibleStoreError: `ensure_collection` would refuse.
        """
        await self._check_version()
        options = await self._options()
        async with operation(self._database, STATE, "find"):
            noted = await self._database[STATE].find_one({"_id": f"history:{self._collection}"})
        if noted is not None:
            self._check_noted(noted)
        if options is None:
            return self._wanted_retention
        seconds: int | None = options.get("expireAfterSeconds")
        lengthened = self._apply_retention and seconds is not None and self._wanted_retention > seconds
        return self._wanted_retention if lengthened else seconds

    async def count_before(self, time: int) -> int:
        """Return how many samples have a timestamp before the UTC second `time`."""
        async with self._operation("find"):
            return await self._samples.count_documents({"timestamp": {"$lt": to_datetime(time)}})

    async def set_retention(self, seconds: int) -> None:
        """Keep samples for so long from now on; with less than before MongoDB begins to delete."""
        async with self._operation("collMod"):
            await self._database.command("collMod", self._collection, expireAfterSeconds=seconds)
        self.retention = seconds

    async def add_sample(self, sample: WorkerMetricsSample) -> None:
        """Insert one sample, whether or not it is there already.

        Raises:
            StoreError: MongoDB rejects it.
        """
        await self.add_samples([sample])

    async def add_samples(self, samples: Sequence[WorkerMetricsSample]) -> int:
        """Insert samples, whether or not they are there already; return how many.

        Raises:
            StoreError: MongoDB rejects some of them; the others are stored.
        """
        rejected = await self.insert(samples)
        if rejected:
            raise StoreError(
                f"{self.namespace} rejects {len(rejected)} of {len(samples)} samples (the others are stored), "
                f"the first for good reason: {rejected[0][1]}",
                reason="rejected",
            )
        return len(samples)

    async def get_samples(self, worker_id: str, start_time: datetime, end_time: datetime) -> list[WorkerMetricsSample]:
        """Return the samples of a worker in [start_time, end_time), oldest first, without those past retention."""
        async with self._operation("find"):
            cursor = self._samples.find(self._window(worker_id, start_time, end_time), {"_id": 0}).sort("timestamp", 1)
            return [_sample(document) async for document in cursor]

    async def get_aggregated_stats(
        self, worker_id: str, start_time: datetime, end_time: datetime, interval: timedelta
    ) -> list[MetricsAggregation]:
        """Return avg, min, max and count per metric for each interval that has samples, oldest first.

        Only samples in [start_time, end_time) count. Intervals are aligned to UTC: to the epoch, and whole weeks to Monday.

        Raises:
            ValueError: the interval is not a positive whole number of seconds.
        """
        seconds = interval // timedelta(seconds=1)
        if seconds <= 0 or timedelta(seconds=seconds) != interval:
            raise ValueError(f"interval {interval} must be a positive whole number of seconds")
        found = await self._statistics(self._window(worker_id, start_time, end_time), seconds)
        return [_aggregation(row) for row in found]

    async def read_samples(self, worker_id: str, start: int, end: int, *, limit: int) -> tuple[list[HistoryRow], int | None]:
        """Return the samples of a worker in [start, end) as rows, oldest first, and the time the rest begins with.

        Times are in milliseconds since 1970, since other writers' samples may lie between two seconds.

        Args:
            worker_id: whose.
            start: inclusive.
            end: exclusive.
            limit: rows, at least 1; more only where more samples have the very same time, so that a time says where to go on.
        """
        found = await self._rows(worker_id, start, end, limit + 1)
        if len(found) <= limit:
            return found, None
        following = found.pop()["timestamp"]
        while found and found[-1]["timestamp"] == following:
            found.pop()
        at = rows.milliseconds(following)
        return (found, at) if found else (await self._rows(worker_id, at, at + 1, 0), at + 1)

    async def _rows(self, worker_id: str, start: int, end: int, limit: int) -> list[HistoryRow]:
        """Read at most `limit` samples, 0: all."""
        window = self._window(worker_id, _from_milliseconds(start), _from_milliseconds(end))
        async with self._operation("find"):
            # By time alone: so mongod reads one bucket after the other, and no more of them than it takes.
            cursor = self._samples.find_raw_batches(
                window, rows.PROJECTION, sort=[("timestamp", 1)], limit=limit, batch_size=limit
            )
            batches: list[Any] = [batch async for batch in cursor]
            # In a thread: decoding a month takes some 10 ms, in which no scrape would be answered.
            return await asyncio.to_thread(lambda: rows.samples(rows.documents(batches)))

    async def read_statistics(
        self, worker_id: str, start: int, end: int, interval: int, *, limit: int
    ) -> tuple[list[HistoryRow], int | None]:
        """Return the statistics of a worker's samples in [start, end) as rows, and the interval the rest begins with.

        Args:
            worker_id: whose.
            start: UTC second.
            end: UTC second.
            interval: seconds; aligned as in `get_aggregated_stats`.
            limit: rows, at least 1. Only what can be in so many intervals is read, then the next sample is looked for.
        """
        until = min(end, align_interval(start, interval) + limit * interval)
        found = await self._statistics(self._window(worker_id, to_datetime(start), to_datetime(until)), interval)
        if until >= end:
            return found, None
        async with self._operation("find"):
            later = self._window(worker_id, to_datetime(until), to_datetime(end))
            first = await self._samples.find_one(later, {"_id": 0, "timestamp": 1}, sort=[("timestamp", 1)])
        if first is None:
            return found, None
        following = align_interval(to_seconds(first["timestamp"]), interval)
        if found:
            return found, following
        return await self.read_statistics(worker_id, following, end, interval, limit=limit)

    async def _statistics(self, match: Document, interval: int) -> list[HistoryRow]:
        return await self._aggregate(partial(statistics_pipeline, match, interval), statistics)

    async def latest_timestamps(self, worker_ids: Collection[str]) -> dict[str, int]:
        """Return the UTC second of the newest sample of each worker that has any."""
        found: dict[str, int] = {}
        now = int(self._wall())
        # A live fleet is answered from its newest buckets alone; only who is silent for long costs a look at all of them.
        for since in (now - HOUR, now - DAY, None):
            missing = sorted(set(worker_ids) - found.keys())
            for ids in chunks(missing, _IDS_A_READ):
                for worker_id, newest in (await self._group(self._samples, ids, _NEWEST, since)).items():
                    found[worker_id] = to_seconds(newest)
        return found

    async def timestamps(self, worker_ids: Collection[str], since: int) -> dict[str, set[int]]:
        """Return the UTC seconds of all samples from `since` on, for every worker asked about.

        One array per worker is four times cheaper to send and decode than one document per sample. Read from a majority: what
        a failover may still take back is a gap.
        """
        found: dict[str, set[int]] = {worker_id: set() for worker_id in worker_ids}
        for ids in chunks(sorted(found), _IDS_A_READ):
            for worker_id, stamps in (await self._group(self._majority, ids, _ALL, since)).items():
                found[worker_id] = _whole_seconds(stamps)
        return found

    async def workers(self, start: int, end: int) -> list[str]:
        """Return, sorted, the ids of the workers that may have samples in [start, end) UTC seconds; it is cheap and rough."""
        # In this form mongod answers from the buckets' bounds; the lower one is rounded down to an hour.
        bounds = {"$group": {"_id": "$worker_id", "first": {"$min": "$timestamp"}, "last": {"$max": "$timestamp"}}}
        async with self._operation("find", _WHOLE_HISTORY_SECONDS):
            cursor = await self._samples.aggregate([bounds], allowDiskUse=True)
            rows = await cursor.to_list(None)
        low, high = to_datetime(start), to_datetime(end)
        return sorted(row["_id"] for row in rows if isinstance(row["_id"], str) and row["last"] >= low and row["first"] < high)

    async def extent(self, worker_id: str) -> Extent | None:
        """Return what is stored of a worker, with what is past retention but not deleted yet; None when there is nothing."""
        found: Document = {"samples": {"$sum": 1}, "first": {"$min": "$timestamp"}, "last": {"$max": "$timestamp"}}
        async with self._operation("find"):
            cursor = await self._samples.aggregate([{"$match": {"worker_id": worker_id}}, {"$group": {"_id": None, **found}}])
            rows = await cursor.to_list(None)
        return Extent(rows[0]["samples"], to_seconds(rows[0]["first"]), to_seconds(rows[0]["last"])) if rows else None

    async def stream(self, worker_ids: Sequence[str], start: int, end: int, keys: Sequence[str]) -> Pages:
        """Yield the samples in [start, end) UTC seconds, worker after worker, oldest first, without those past retention.

        For millions of samples: one page is in your hands and another waits while mongod prepares a third, and that is all.
        Use it under contextlib.aclosing.

        Args:
            worker_ids: in the order wanted; one without samples yields nothing.
            start: inclusive.
            end: exclusive.
            keys: of the documents; TIME comes with them.
        """
        pages: asyncio.Queue[tuple[str, list[Document]] | None] = asyncio.Queue(maxsize=1)
        reader = asyncio.create_task(self._read_pages(pages, worker_ids, start, end, keys))
        try:
            while (page := await pages.get()) is not None:
                yield page
            await reader
        finally:
            # More than once: asyncio.wait_for, under the driver, loses a cancellation that comes with the answer (Python 3.11).
            while not reader.done():
                reader.cancel()
                await asyncio.wait([reader], timeout=0.1)
            if not reader.cancelled():
                reader.exception()  # whoever left early need not hear of it

    async def _read_pages(
        self,
        pages: "asyncio.Queue[tuple[str, list[Document]] | None]",
        worker_ids: Sequence[str],
        start: int,
        end: int,
        keys: Sequence[str],
    ) -> None:
        """Put the pages into the queue, and None after the last one or an error."""
        projection: Document = {"_id": 0, TIME: {"$toLong": "$timestamp"}, **dict.fromkeys(keys, 1)}
        try:
            for worker_id in worker_ids:
                window = self._window(worker_id, to_datetime(start), to_datetime(end))
                # One cursor a worker: its sort is small. One over all workers would be sorted on mongod's disk.
                async with self._samples.find(window, projection, batch_size=_PAGE).sort("timestamp", 1) as cursor:
                    while True:
                        async with self._operation("find"):
                            page = await cursor.to_list(_PAGE)
                        if not page:
                            break
                        await pages.put((worker_id, page))
        except Exception:  # not a cancellation: then nobody takes anything from the queue any more
            await pages.put(None)
            raise
        await pages.put(None)

    async def purge(self, worker_id: str, *, within: float = _WHOLE_HISTORY_SECONDS) -> int:
        """Delete all samples of a worker for good and return how many; `within` is in seconds.

        Raises:
            StoreUnavailableError: some of them may be deleted; do it again.
        """
        async with self._operation("remove", within):
            # By its id alone: that is the only deletion a time-series collection allows everywhere.
            return (await self._samples.delete_many({"worker_id": worker_id})).deleted_count

    async def columns(
        self, worker_ids: Collection[str], start: int, end: int, field: str | None
    ) -> AsyncGenerator[FieldColumn, None]:
        """Yield one field of the samples in [start, end], for each worker and region: all times, all values.

        Arrays decode several times faster than documents. What is held at once, here and on the server, stays within some
        megabytes: workers are read together only as far as their samples fit, and a long range of one worker in parts.

        Args:
            worker_ids: whose.
            start: milliseconds since 1970.
            end: milliseconds since 1970, included.
            field: of a sample, None for the times alone; samples without it are left out.
        """
        low = start if self.retention is None else max(start, round((self._wall() - self.retention) * 1000))
        periods = max(0, end - low) // (self._period * 1000) + 1
        together = max(1, min(_IDS_A_READ, _COLUMN // periods))
        step = _COLUMN * self._period * 1000
        for ids in chunks(sorted(worker_ids), together):
            found: dict[tuple[str, str], FieldColumn] = {}
            for at in range(low, end + 1, step):
                for column in await self._columns(ids, at, min(end, at + step - 1), field):
                    earlier = found.setdefault((column.worker_id, column.region), column)
                    if earlier is not column:
                        earlier.stamps.extend(column.stamps)
                        earlier.values.extend(column.values)
            for column in found.values():
                yield column

    async def _columns(self, ids: Sequence[str], start: int, end: int, field: str | None) -> list[FieldColumn]:
        match: Document = {
            "worker_id": {"$in": list(ids)},
            "timestamp": {"$gte": _from_milliseconds(start), "$lte": _from_milliseconds(end)},
        }
        group: Document = {"_id": {"w": "$worker_id", "r": "$region"}, "stamps": _ALL}
        if field is not None:
            match[field] = {"$type": "string" if field == "status" else ["double", "int", "long"]}
            group["values"] = {"$push": f"${field}"}
        async with self._operation("find"):
            cursor = await self._samples.aggregate([{"$match": match}, {"$group": group}], allowDiskUse=True)
            return [
                FieldColumn(
                    row["_id"]["w"],
                    str(row["_id"].get("r") or ""),
                    row["stamps"],
                    row.get("values") or [1] * len(row["stamps"]),
                )
                async for row in cursor
            ]

    async def hours(self, worker_ids: Collection[str], day: int) -> list[hourly.WorkerDay]:
        """Return the samples of the UTC day that begins at second `day` by the hour, for each worker and region with any."""
        between = {"$gte": to_datetime(day), "$lt": to_datetime(day + DAY)}
        found: list[hourly.WorkerDay] = []
        for ids in chunks(sorted(worker_ids), _CHUNK):
            found += await self._aggregate(
                partial(hourly.pipeline, {"worker_id": {"$in": list(ids)}, "timestamp": between}),
                partial(hourly.parts, period=self._period),
            )
        return found

    async def _aggregate(
        self, pipeline: Callable[..., list[Document]], read: Callable[[list[bytes], bool], list[T] | None]
    ) -> list[T]:
        """Aggregate; once more with care where there is a value that is no number."""
        for careful in (False, True):
            async with self._operation("find"):
                cursor = await self._samples.aggregate_raw_batches(
                    pipeline(careful=careful), allowDiskUse=True, batchSize=_PAGE
                )
                batches: list[Any] = [batch async for batch in cursor]
                found = await asyncio.to_thread(read, batches, careful)
            if found is not None:
                return found
        raise AssertionError("what was looked at with care is never odd")

    async def no_insert_running(self) -> bool:
        """Return whether no insert into the collection is running on the server.

        mongod finishes an insert whose client has died; until then a read-back proves nothing. Whoever has the cluster action
        `inprog` sees the inserts of every user; the least role sees those of its own, which are all that the exporter makes
        unless its user was just replaced (then an old insert dies within OPERATION_SECONDS).
        """
        async with self._operation("find"):
            try:
                return not await self._running_inserts(self._sees_everyone)
            except OperationFailure as error:
                if error.code != NOT_AUTHORIZED or not self._sees_everyone:
                    raise
                self._sees_everyone = False
                return not await self._running_inserts(False)

    async def existing_keys(self, keys: Collection[Key]) -> set[Key]:
        """Return which of the samples are in the collection for good.

        Raises:
            StoreUnavailableError: `unsettled`: the primary shows something that a majority does not hold yet, or the reverse.
        """
        spans: dict[tuple[int, int], list[str]] = defaultdict(list)
        for worker_id, (low, high) in _spans(keys).items():
            spans[low, high].append(worker_id)
        wanted, found = set(keys), set[Key]()
        for (low, high), worker_ids in spans.items():
            for ids in chunks(sorted(worker_ids), _IDS_A_READ):
                local, settled = [
                    {
                        (worker_id, second)
                        for worker_id, stamps in (await self._group(collection, ids, _ALL, low, high)).items()
                        for second in _whole_seconds(stamps)
                    }
                    & wanted
                    for collection in (self._samples, self._majority)
                ]
                if local != settled:
                    raise StoreUnavailableError(
                        f"a majority does not hold {len(local ^ settled)} samples of {self.namespace} yet; try again",
                        reason="unsettled",
                    )
                found |= local
        return found

    async def insert(
        self, samples: Sequence[WorkerMetricsSample], *, within: float | None = None
    ) -> list[tuple[WorkerMetricsSample, str]]:
        """Insert samples worker by worker in time order, and return those MongoDB rejects for good, with the reason.

        Args:
            samples: None and non-finite values are left out of the documents (a null would close the bucket).
            within: seconds for the whole call, such as what remains of a lease; by default OPERATION_SECONDS for each chunk.

        Raises:
            StoreUnavailableError: how much was inserted is unknown; quiesce, ask `present`, and insert what is missing.
        """
        ordered = sorted(samples, key=lambda sample: (sample.worker_id, _utc(sample.timestamp)))
        rejected: list[tuple[WorkerMetricsSample, str]] = []
        accepted: list[tuple[WorkerMetricsSample, Document]] = []
        for sample in ordered:
            document = _document(sample)
            complaint = _unfit(document)
            if complaint:
                rejected.append((sample, complaint))
            else:
                accepted.append((sample, document))
        parts = chunks(accepted, _CHUNK)
        async with self._operation("insert", OPERATION_SECONDS * max(1, len(parts)) if within is None else within):
            for chunk in parts:
                rejected += await self._insert_chunk(chunk)
        return rejected

    async def _insert_chunk(
        self, chunk: Sequence[tuple[WorkerMetricsSample, Document]]
    ) -> list[tuple[WorkerMetricsSample, str]]:
        try:
            await self._samples.insert_many([document for _, document in chunk], ordered=False)
        except BulkWriteError as error:
            failed = error.details["writeErrors"]
            if error.details["writeConcernErrors"] or not failed or any(one["code"] not in _REJECTS for one in failed):
                raise
            return [(chunk[one["index"]][0], f"code {one['code']}: {one['errmsg']}") for one in failed]
        return []

    def _operation(self, action: str, seconds: float = OPERATION_SECONDS) -> AbstractAsyncContextManager[None]:
        return operation(self._database, self._collection, action, seconds)

    async def _running_inserts(self, all_users: bool) -> list[Document]:
        mine = {"active": True, "command.insert": self._collection, "command.$db": self._database.name}
        cursor = await self._database.client.admin.aggregate(
            [{"$currentOp": {"allUsers": all_users}}, {"$match": mine}, {"$project": {"opid": 1}}]
        )
        return await cursor.to_list(None)

    async def _group(
        self,
        collection: AsyncCollection[Document],
        ids: Sequence[str],
        stamps: Document,
        since: int | None,
        until: int | None = None,
    ) -> dict[str, Any]:
        """Return worker_id → _ALL or _NEWEST of its timestamps in [since, until]."""
        match: Document = {"worker_id": {"$in": list(ids)}}
        if since is not None:
            match["timestamp"] = {"$gte": to_datetime(since)}
        if until is not None:
            match["timestamp"]["$lte"] = to_datetime(until)
        pipeline = [{"$match": match}, {"$group": {"_id": "$worker_id", "stamps": stamps}}]
        async with self._operation("find"):
            cursor = await collection.aggregate(pipeline, allowDiskUse=True)
            return {row["_id"]: row["stamps"] async for row in cursor}

    def _window(self, worker_id: str, start: datetime, end: datetime) -> Document:
        """Match [start, end) without what is past retention: MongoDB expires whole buckets, and late."""
        low = _utc(start)
        if self.retention is not None:
            low = max(low, to_datetime(self._wall() - self.retention))
        return {"worker_id": worker_id, "timestamp": {"$gte": low, "$lt": _utc(end)}}

    async def _check_version(self) -> None:
        async with self._operation("hello"):
            hello = await self._database.client.admin.command("hello")
        if hello.get("maxWireVersion", 0) < _MIN_WIRE_VERSION:
            raise IncompatibleStoreError(
                f"{self.namespace}: a time-series collection needs MongoDB 5.0 or newer; update the server, "
                "or set mongodb.history to null to expose gauges only",
                reason="version",
            )

    async def _options(self) -> Document | None:
        """Return the collection's options, None when there is none of that name."""
        async with self._operation("listCollections"):
            cursor = await self._database.list_collections(filter={"name": self._collection})
            found = await cursor.to_list(None)
        if not found:
            return None
        kind, options = found[0].get("type"), found[0].get("options", {})
        way_out = "rename or drop it, or give mongodb.history another name"
        if kind != "timeseries":
            kind = "normal collection" if kind == "collection" else kind
            raise IncompatibleStoreError(
                f"{self.namespace} is a {kind}, not a time-series collection; {way_out}", reason="collection"
            )
        fields = [options["timeseries"].get(name) for name in ("timeField", "metaField")]
        if fields != ["timestamp", "worker_id"]:
            raise IncompatibleStoreError(
                f"{self.namespace} is a time-series collection with timeField {fields[0]} and metaField {fields[1]}, "
                f"but the history needs timestamp and worker_id; {way_out}",
                reason="collection",
            )
        return dict(options)

    async def _create(self) -> None:
        async with self._operation("createCollection"):
            try:
                await self._database.create_collection(
                    self._collection, check_exists=False, timeseries=_TIMESERIES, expireAfterSeconds=self._wanted_retention
                )
            except OperationFailure as error:
                if error.code != _NAMESPACE_EXISTS:  # another exporter was faster; the options are verified next
                    raise

    async def _create_index(self) -> None:
        async with self._operation("createIndex"):
            try:
                await self._samples.create_index([("worker_id", 1), ("timestamp", 1)])
            except OperationFailure as error:
                if error.code != _INDEX_EXISTS:  # the same keys under another name serve as well
                    raise

    async def _check_period(self) -> None:
        state = self._database[STATE]
        key = {"_id": f"history:{self._collection}"}
        async with operation(self._database, STATE, "update"):
            fresh = {"$setOnInsert": {"schema": _SCHEMA, "period": self._period}}
            noted = await state.find_one_and_update(key, fresh, upsert=True, return_document=ReturnDocument.AFTER)
        assert noted is not None  # an upsert always has a document to return
        self._check_noted(noted)

    async def save_gap_window(self, seconds: int) -> None:
        """Note how far back the live exporter fills gaps, for the backfill that must not touch the same samples."""
        async with operation(self._database, STATE, "update"):
            await self._database[STATE].update_one(
                {"_id": f"history:{self._collection}"}, {"$set": {"gap_fill_window": seconds}}
            )

    async def load_gap_window(self) -> int:
        """Return what `save_gap_window` noted last, in seconds; 0 if nothing was."""
        async with operation(self._database, STATE, "find"):
            noted = await self._database[STATE].find_one({"_id": f"history:{self._collection}"})
        return int((noted or {}).get("gap_fill_window", 0))

    def _check_noted(self, noted: Mapping[str, Any]) -> None:
        if noted["schema"] != _SCHEMA:
            raise IncompatibleStoreError(
                f"{self.namespace} was written by another version of the exporter (schema {noted['schema']}, not {_SCHEMA}); "
                "use that version or give mongodb.history another name",
                reason="schema",
            )
        if noted["period"] != self._period:
            theirs, ours = format_duration(noted["period"]), format_duration(self._period)
            raise IncompatibleStoreError(
                f"{self.namespace} holds samples of {theirs}, but period is {ours}; set period to {theirs}, "
                f"or give mongodb.history another name for a history of {ours}",
                reason="period",
            )

    async def _settle_retention(self, seconds: int | None) -> str | None:
        """Take the collection's retention, lengthen it if that was asked for; return a notice if it stays shorter or longer."""
        self.retention = seconds
        wanted = self._wanted_retention
        if not self._apply_retention or seconds == wanted:
            return None
        if seconds is None or wanted < seconds:
            kept = "for good" if seconds is None else f"for {format_duration(seconds)}"
            return (
                f"{self.namespace} keeps samples {kept}; mongodb.retention of {format_duration(wanted)} would delete some, "
                f"so it is left alone; to shorten it, run: cml-worker-exporter retention --set {format_duration(wanted)} --yes"
            )
        await self.set_retention(wanted)
        return f"{self.namespace} now keeps samples for {format_duration(wanted)} instead of {format_duration(seconds)}"


def _float(value: object) -> float | None:
    known = rows.number(value)
    return None if known is None else float(known)


def _sample(document: Mapping[str, Any]) -> WorkerMetricsSample:
    labs, status = rows.number(document.get("active_labs_count")), document.get("status")
    return WorkerMetricsSample(
        worker_id=document["worker_id"],
        region=str(document.get("region", "")),
        timestamp=document["timestamp"],
        cpu_utilization=_float(document.get("cpu_utilization")),
        memory_utilization=_float(document.get("memory_utilization")),
        active_labs_count=None if labs is None else int(labs),
        status=None if status is None else str(status),
    )


def _aggregation(row: HistoryRow) -> MetricsAggregation:
    return MetricsAggregation(
        timestamp=_utc(row["timestamp"]),
        cpu_utilization=Statistics(**row["cpu_utilization"]),
        memory_utilization=Statistics(**row["memory_utilization"]),
        active_labs_count=Statistics(**row["active_labs_count"]),
        status_share=row["status_share"],
    )


def repository(
    settings: Settings,
    database: AsyncDatabase[dict[str, Any]],
    collection: str,
    *,
    wall: Callable[[], float] = time.time,
) -> WorkerMetricsRepository:
    """The history as the settings want it; only a retention somebody wrote down is applied to an existing collection."""
    return WorkerMetricsRepository(
        database,
        collection=collection,
        period=settings.period,
        retention=settings.mongodb.retention,
        apply_retention="retention" in settings.mongodb.model_fields_set,
        wall=wall,
    )


def require_history(settings: Settings, to_do: str) -> str:
    """Return the collection of the history, for a command that has something `to_do` with it.

    Raises:
        ConfigError: the settings name none.
    """
    if settings.mongodb.history is None:
        raise ConfigError(f"mongodb.history is null, so there is no history to {to_do}; name the collection")
    return settings.mongodb.history
