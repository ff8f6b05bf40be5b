"""Read the manager's events from MongoDB into the journal, page by page in the order of `_id`.

Not one cursor over all: a page is one operation that can be repeated after a failure, and ends at a position from which a later
run continues. Every collection has an index on `_id`; the order of the events does not matter, because the journal keeps the
newest value of each period.
"""

import reprlib
import time
from collections.abc import Sequence

import bson

from exporter.commands.backfill.fetcher import RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.import_events.events import TYPE_KEYS, EventParser, Observation, ParsedEvent, SkippedEvent
from exporter.commands.import_events.journal import EventJournal
from exporter.commands.import_events.plan import Tally, Window
from exporter.core.errors import ConfigError, IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.pipeline.mirror import RETRY_SECONDS
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.sources.aggregates import LENIENT
from exporter.storage.mongo import WHOLE_HISTORY_SECONDS, Database, Document, operation

PAGE_EVENTS = 5000
"""Events read at once: some MB in memory, some 100 ms of parsing and merging."""

_CODEC = LENIENT.with_options(tz_aware=True)


async def require_events(database: Database, collection: str) -> None:
    """Refuse a database without the collection of events: it may be the wrong one, in which nothing is to be created.

    Raises:
        ConfigError: there is no such collection.
        StoreError: MongoDB does not answer.
    """
    async with operation(database, collection, "listCollections"):
        names = await database.list_collection_names()
    if collection in names:
        return
    similar = ", ".join(sorted(name for name in names if "event" in name.lower()))
    hint = f"collections with such a name: {similar}" if similar else "it has none with such a name"
    raise ConfigError(
        f"events.collection: {database.name}.{collection} does not exist, so there are no events to import; check the "
        f"database in mongodb.uri, or set it to the collection of the manager's events in {database.name} ({hint})"
    )


class Scanner:
    """Reads all events of the configured types into the journal.

    Attributes:
        tally: what was read so far, by this run and by those it continues.
    """

    command, unit = "import-events", "events read"

    def __init__(
        self,
        database: Database,
        collection: str,
        parser: EventParser,
        workers: Sequence[str],
        journal: EventJournal,
        thread: OutboxThread,
    ) -> None:
        """Read nothing yet.

        Args:
            database: of the events.
            collection: its name.
            parser: of the events.
            workers: ids of the workers that count; empty: all.
            journal: where the values go.
            thread: the thread that every call to the journal runs in.
        """
        self._database, self._name = database, collection
        self._collection = database.get_collection(collection, codec_options=_CODEC)
        self._parser, self._workers = parser, frozenset(workers)
        self._journal, self._thread = journal, thread
        self.tally = Tally()

    @property
    def finished(self) -> int:
        """The number of events read so far."""
        return self.tally.events

    @property
    def total(self) -> int | None:
        """None: how many there are would take as long to count as to read."""
        return None

    @property
    def detail(self) -> str:
        """The number of skipped ones."""
        return f"{self.tally.skipped.total():,} skipped"

    async def check(self) -> None:
        """Verify that the collection is there and may be read.

        Raises:
            ConfigError: there is no such collection, or none of its events has a configured type.
            StoreError: MongoDB does not answer, or the user may not read it.
        """
        await require_events(self._database, self._name)
        namespace = f"{self._database.name}.{self._name}"
        if await self._read(None, 1):
            return
        async with operation(self._database, self._name, "find"):
            other = await self._collection.find_one()
        if other is not None:
            types = [f"{key} {reprlib.repr(other[key])}" for key in TYPE_KEYS if key in other]
            raise ConfigError(
                f"events.types: no event of {namespace} has one of the known types; the first document has "
                f"{types[0] if types else 'the keys ' + ', '.join(list(other)[:12])}; "
                "add the types of your events to events.types, see docs/import-events.md"
            )

    async def run(self, window: Window, stop: GracefulStop, retry: RetryPolicy) -> bool:
        """Read all events, from where an interrupted run stopped; return whether all were read.

        Raises:
            StoreError: MongoDB did not answer for too long, or the journal cannot be written.
        """
        position, self.tally = await self._thread(self._journal.progress)
        while not stop.requested.is_set():
            page = await self._read_patiently(position, stop, retry)
            if page is None:
                return False
            if not page:
                return True
            position = bson.encode({"_id": page[-1]["_id"]})
            await self._thread(self._store, page, position, window)
        return False

    async def _read_patiently(self, position: bytes | None, stop: GracefulStop, retry: RetryPolicy) -> list[Document] | None:
        """Read a page, and again while MongoDB is unavailable; return None after a stop request."""
        failing_since: float | None = None
        while not stop.requested.is_set():
            try:
                return await self._read(position, PAGE_EVENTS)
            except StoreUnavailableError:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > retry.mongodb:
                    raise
                await stop.pause(min(RETRY_SECONDS, retry.mongodb))
        return None

    async def _read(self, position: bytes | None, limit: int) -> list[Document]:
        """Read up to `limit` events behind the position."""
        cursor = self._collection.find(self._parser.query(), self._parser.projection()).hint([("_id", 1)])
        if position is not None:
            # `min` compares across BSON types, unlike $gt; it includes the position, which may be of another type.
            cursor = cursor.min([("_id", bson.decode(position, _CODEC)["_id"])])
        try:
            async with operation(self._database, self._name, "find", WHOLE_HISTORY_SECONDS):
                page = await cursor.limit(limit + 1).to_list(None)
        except StoreError as error:
            if error.reason == "not_authorized":
                raise IncompatibleStoreError(
                    "MongoDB does not allow this user to read the events; grant it "
                    f"`find` on {self._database.name}.{self._name}, which only import-events needs, see docs/manager.md",
                    reason=error.reason,
                ) from error
            raise
        if page and position is not None and bson.encode({"_id": page[0]["_id"]}) == position:
            del page[0]
        return page[:limit]

    def _store(self, page: Sequence[Document], position: bytes, window: Window) -> None:
        parsed = [event for event in map(self._parser.parse, page) if event is not None]
        tally, found = self.tally, list[tuple[int | None, Observation]]()
        for event in parsed:
            tally.types[event.type] += 1
            observation = self._count(event, tally)
            if observation is None:
                continue
            start = window.period_of(observation.at)
            reason = "no_value" if observation.empty else start if isinstance(start, str) else None
            if reason is not None:
                tally.skipped[reason] += 1
            if reason != "future":
                found.append((start if reason is None and isinstance(start, int) else None, observation))
        self._journal.put(found, position, tally)

    def _count(self, event: ParsedEvent, tally: Tally) -> Observation | None:
        """Add what is malformed to the tally; return the observation unless it is skipped."""
        result = event.result
        if isinstance(result, SkippedEvent):
            tally.skipped[result.reason] += 1
            tally.examples.setdefault(result.reason, result.example)
            return None
        for name, example in event.invalid:
            tally.invalid[name] += 1
            tally.examples.setdefault(name, example)
        if self._workers and result.worker_id not in self._workers:
            tally.skipped["other_worker"] += 1
            return None
        return result
