"""The time-series collection of the history: create and verify it, its retention, and the period and schema noted beside it."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from pymongo import ReturnDocument
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from exporter.core import logs
from exporter.core.errors import IncompatibleStoreError, StoreUnavailableError
from exporter.core.periods import DAY, MINUTE, format_duration, is_period, to_datetime
from exporter.storage.mongo import OPERATION_SECONDS, STATE, Database, Document, durable, operation
from exporter.storage.time_series import find_history

TIMESERIES_OPTIONS = {"timeField": "timestamp", "metaField": "worker_id", "granularity": "minutes"}
MIN_WIRE_VERSION = 13  # MongoDB 5.0, the first with time-series collections
SCHEMA_VERSION = 1
# The defaults of the settings mongodb.history, period and mongodb.retention.
DEFAULT_COLLECTION, DEFAULT_PERIOD, DEFAULT_RETENTION = "worker_metrics_timeseries", 5 * MINUTE, 30 * DAY
_NAMESPACE_EXISTS, _INDEX_EXISTS = 48, 85  # MongoDB's error codes

_log = logs.get("history")


@dataclass(frozen=True, slots=True)
class CollectionStatus:
    """What `HistoryCollection.verify` found, and what `ensure` would make of it."""

    exists: bool
    current: int | None
    """Seconds the collection keeps its samples now; None: without limit, or there is no collection."""
    retention: int | None
    """Seconds it keeps them after `ensure`; None: without limit."""
    notices: tuple[str, ...]
    """What an operator should know although `serve` works, one sentence each."""

    @property
    def lengthens(self) -> bool:
        """Whether `ensure` would apply a longer retention to the collection."""
        return self.exists and self.current != self.retention


class HistoryOptions(TypedDict, total=False):
    """The keyword arguments of a HistoryCollection, all optional; the defaults are those of the settings."""

    collection: str
    """Name of the time-series collection; worker_metrics_timeseries."""
    period: int
    """Resolution of the history, in seconds; 300."""
    retention: int
    """expireAfterSeconds of a collection that is created, in seconds; 30 days."""
    apply_retention: bool
    """Whether a longer `retention` is applied to an existing collection too; False."""
    wall: Callable[[], float]
    """The clock that tells which samples are past retention, in UTC seconds; time.time."""


class HistoryCollection:
    """The time-series collection of all workers, and the document about it in cml_exporter_state.

    Args:
        database: of an AsyncMongoClient; its options don't matter.
        options: see HistoryOptions.

    Every method raises StoreUnavailableError, IncompatibleStoreError or StoreError.

    Raises:
        ValueError: the period is none that the settings accept.
    """

    def __init__(self, database: Database, **options: Unpack[HistoryOptions]) -> None:
        self.database = durable(database)
        self.name = options.get("collection", DEFAULT_COLLECTION)
        self.period = options.get("period", DEFAULT_PERIOD)
        if not is_period(self.period):
            raise ValueError(
                f"period {self.period} must be whole minutes that divide an hour, in seconds, such as 60, 300 or 900"
            )
        self.samples = self.database[self.name]
        """The collection as the primary shows it."""
        self.majority = self.samples.with_options(read_concern=ReadConcern("majority"))
        """The same collection, without what a failover may still roll back."""
        self._wanted_retention = options.get("retention", DEFAULT_RETENTION)
        self._apply_retention = options.get("apply_retention", False)
        self._wall = options.get("wall", time.time)
        self._state_key = {"_id": f"history:{self.name}"}
        self.retention: int | None = None
        """Seconds the collection keeps its samples; None: without limit, or `ensure` has not run yet."""
        self.identity: str | None = None
        """UUID of the time series that was seen last; None: none was. After it was dropped and created, it is another one."""
        self._ensured: str | None = None
        self.gap_fill_window: int | None = None
        """How far back the live exporter fills gaps, in seconds. `ensure` notes it for the backfill, which must not touch the
        same samples; None: this process does not fill any."""
        self.misplaced: str | None = None
        """Name under which a normal collection was set aside whose samples are not all moved yet, see `storage.misplaced`."""
        self.notices: tuple[str, ...] = ()
        """What `ensure` found that an operator should know, one sentence each; also logged."""

    @property
    def namespace(self) -> str:
        """Return database.collection, for messages."""
        return f"{self.database.name}.{self.name}"

    @property
    def oldest(self) -> float | None:
        """Return the UTC second before which samples are past retention; None: there is no limit, or it is not known."""
        return None if self.retention is None else self._wall() - self.retention

    def now(self) -> float:
        """Return the UTC seconds of the clock given as `wall`."""
        return self._wall()

    def operation(
        self, action: str, seconds: float | Callable[[], float] = OPERATION_SECONDS
    ) -> AbstractAsyncContextManager[None]:
        """Bound work on the collection to `seconds` and translate its errors, see `mongo.operation`."""
        return operation(self.database, self.name, action, seconds)

    # -- create and verify

    async def ensure(self) -> None:
        """Verify the collection, create it if it is absent, index it, note the period, and apply a longer retention.

        Several exporters may do this at once. A shorter retention is never applied: a setting must not delete a history; see
        `notices`.

        Raises:
            IncompatibleStoreError: as `verify`, or a privilege for writing is missing.
        """
        status = await self.verify()
        if not status.exists:
            await self._create()
            status = await self.verify()
        if not status.exists:
            raise StoreUnavailableError(
                f"{self.namespace} was dropped while it was being created; it will be tried again", reason="dropped"
            )
        await self._note_period()
        await self._create_index()
        if await self._find() is None:
            raise StoreUnavailableError(
                f"{self.namespace} was dropped while it was being created; it will be tried again", reason="dropped"
            )
        self._ensured = self.identity
        self.retention = status.current
        notices = status.notices
        if status.lengthens and status.current is not None and status.retention is not None:
            await self.set_retention(status.retention)
            before, after = format_duration(status.current), format_duration(status.retention)
            notices += (f"{self.namespace} now keeps samples for {after} instead of {before}",)
        self.notices = notices
        for notice in notices:
            _log.warning("history differs from the settings", notice=notice)

    async def ensure_again(self) -> None:
        """Run `ensure` unless it has run for the collection that is there now: one may be dropped or replaced at any time.

        Raises:
            IncompatibleStoreError: as `ensure`.
        """
        if await self._find() is None or self.identity != self._ensured:
            await self.ensure()

    async def require(self) -> None:
        """Verify right before and after an insert that it goes into the time series.

        MongoDB creates a missing collection at an insert, as a normal one.

        Raises:
            StoreUnavailableError: `dropped`: the collection is missing.
            IncompatibleStoreError: the name is taken by something that is not a history.
        """
        if await self._find() is None:
            raise StoreUnavailableError(
                f"{self.namespace} was dropped; it is created again before the next insert", reason="dropped"
            )

    async def verify(self, *, seconds: float = OPERATION_SECONDS) -> CollectionStatus:
        """Compare the collection and the noted period and schema with the settings; change nothing.

        Args:
            seconds: the limit for each operation in MongoDB.

        Raises:
            IncompatibleStoreError: MongoDB is older than 5.0, the name is taken by something else, the history has another
                period or schema, or a privilege for reading is missing.
        """
        await self._check_version(seconds)
        options = await self._find(seconds)
        async with operation(self.database, STATE, "find", seconds):
            noted = await self.database[STATE].find_one(self._state_key)
        if noted is not None:
            _check_noted(noted, self.namespace, self.period)
        if options is None:
            return CollectionStatus(False, None, self._wanted_retention, ())
        current: int | None = options.get("expireAfterSeconds")
        retention, shorter = self._compare_retention(current)
        notices = (_compare_granularity(self.namespace, options), shorter)
        return CollectionStatus(True, current, retention, tuple(notice for notice in notices if notice))

    # -- retention

    async def current_retention(self) -> int | None:
        """Return how long the collection keeps samples, in seconds; None means without limit.

        Raises:
            IncompatibleStoreError: there is no such collection, or it is not a history.
        """
        options = await self._find()
        if options is None:
            raise IncompatibleStoreError(
                f"{self.namespace} does not exist yet; `serve` creates it. If it should be there, check the database in "
                "mongodb.uri, and mongodb.history",
                reason="collection",
            )
        seconds: int | None = options.get("expireAfterSeconds")
        return seconds

    async def count_before(self, time: int) -> int:
        """Return how many samples have a timestamp before the UTC second `time`."""
        async with self.operation("find"):
            return await self.samples.count_documents({"timestamp": {"$lt": to_datetime(time)}})

    async def set_retention(self, seconds: int) -> None:
        """Keep samples for `seconds` from now on; with less than before, MongoDB begins to delete."""
        async with self.operation("collMod"):
            await self.database.command("collMod", self.name, expireAfterSeconds=seconds)
        self.retention = seconds

    # -- what the live exporter notes for a backfill

    async def load_gap_window(self) -> int:
        """Return what `ensure` noted last of `gap_fill_window`, in seconds; 0 if nothing was."""
        async with operation(self.database, STATE, "find"):
            noted = await self.database[STATE].find_one(self._state_key)
        return int((noted or {}).get("gap_fill_window", 0))

    # -- steps

    async def _check_version(self, seconds: float) -> None:
        async with self.operation("hello", seconds):
            hello = await self.database.client.admin.command("hello")
        if hello.get("maxWireVersion", 0) < MIN_WIRE_VERSION:
            raise IncompatibleStoreError(
                f"{self.namespace}: a time-series collection needs MongoDB 5.0 or newer; update the server, "
                "or set mongodb.history to null to expose gauges only",
                reason="version",
            )

    async def _find(self, seconds: float = OPERATION_SECONDS) -> Document | None:
        """Return the collection's options, None when there is none of that name; note its identity."""
        found = await find_history(self.database, self.name, seconds)
        if found is None:
            return None
        self.identity = found.uuid
        return found.options

    async def _create(self) -> None:
        async with self.operation("createCollection"):
            try:
                await self.database.create_collection(
                    self.name, check_exists=False, timeseries=TIMESERIES_OPTIONS, expireAfterSeconds=self._wanted_retention
                )
            except OperationFailure as error:
                if error.code != _NAMESPACE_EXISTS:  # another exporter was faster; the options are verified next
                    raise

    async def _create_index(self) -> None:
        async with self.operation("createIndex"):
            try:
                await self.samples.create_index([("worker_id", 1), ("timestamp", 1)])
            except OperationFailure as error:
                if error.code != _INDEX_EXISTS:  # the same keys under another name serve as well
                    raise

    async def _note_period(self) -> None:
        """Note period and schema where nothing is noted yet, and compare with what another exporter has noted meanwhile."""
        changes: Document = {"$setOnInsert": {"schema": SCHEMA_VERSION, "period": self.period}}
        if self.gap_fill_window is not None:
            changes["$set"] = {"gap_fill_window": self.gap_fill_window}
        async with operation(self.database, STATE, "update"):
            noted = await self.database[STATE].find_one_and_update(
                self._state_key,
                changes,
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        assert noted is not None  # an upsert always has a document to return
        _check_noted(noted, self.namespace, self.period)

    def _compare_retention(self, current: int | None) -> tuple[int | None, str | None]:
        """Return the retention after `ensure`, and a notice where it stays longer than the setting."""
        wanted = self._wanted_retention
        if not self._apply_retention or current == wanted:
            return current, None
        if current is not None and wanted > current:
            return wanted, None
        kept = "without limit" if current is None else f"for {format_duration(current)}"
        return current, (
            f"{self.namespace} keeps samples {kept}; mongodb.retention of {format_duration(wanted)} would delete some, "
            f"so it is left alone; to shorten it, run: cml-worker-exporter retention --set {format_duration(wanted)} --yes"
        )


def _compare_granularity(namespace: str, options: Document) -> str | None:
    """Return a notice for another granularity: it costs space, but the samples are the same."""
    found = options["timeseries"].get("granularity")
    if found == TIMESERIES_OPTIONS["granularity"]:
        return None
    return f"{namespace} has granularity {found}; samples pack best with {TIMESERIES_OPTIONS['granularity']}"


def _check_noted(noted: Mapping[str, Any], namespace: str, period: int) -> None:
    """Raise IncompatibleStoreError where the noted schema or period is another."""
    schema = noted.get("schema")
    if schema != SCHEMA_VERSION:
        raise IncompatibleStoreError(
            f"{namespace} was written by another version of the exporter (schema {schema}, "
            f"not {SCHEMA_VERSION}); use that version or give mongodb.history another name",
            reason="schema",
        )
    if noted["period"] != period:
        theirs, ours = format_duration(noted["period"]), format_duration(period)
        raise IncompatibleStoreError(
            f"{namespace} holds samples of {theirs}, but period is {ours}; set period to {theirs}, "
            f"or give mongodb.history another name for a history of {ours}",
            reason="period",
        )
