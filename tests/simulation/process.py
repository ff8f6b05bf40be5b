"""The real exporter in the simulated world: its loops, an outbox on a real SQLite file, failing clients, crashes anywhere."""

import asyncio
import random
import shutil
import sqlite3
import traceback
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar, cast

import structlog
from prometheus_client import CollectorRegistry

from exporter.core.errors import RejectedQueryError, SourceError, StoreError, StoreUnavailableError
from exporter.core.instances import updated_entry
from exporter.core.model import (
    IDLE_STATUSES,
    FinalSample,
    Fleet,
    InventoryEntry,
    Listing,
    MetricName,
    MetricQuery,
    MetricResult,
    MetricResults,
)
from exporter.core.periods import DAY, HOUR, align
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.collector import Collector
from exporter.pipeline.decided_values import ValueChange
from exporter.pipeline.gaps import Gap
from exporter.pipeline.lifecycle import PendingSample, WorkerState
from exporter.pipeline.mirror import Mirror
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.pipeline.planning import DUE_TOLERANCE_SECONDS
from exporter.pipeline.transactions import apply_results
from exporter.sources.cloudwatch.malformed import MalformedInstances
from exporter.sources.cloudwatch.queries import check_limits
from tests.simulation.world import EPOCH, Key, World

SETTINGS = Settings.model_validate({"mongodb": {"uri": "mongodb://simulated"}})
MAX_SKEW = 300
LEASE, LEASE_MARGIN = 30, 5

P = ParamSpec("P")
T = TypeVar("T")


class Crash(BaseException):
    """The process is dead; none of its tasks continues."""


class Process:
    """One exporter process on a host, with everything that is lost when it dies."""

    def __init__(self, world: World, host: str, directory: Path) -> None:
        self.world, self.host = world, host
        self.dead = False
        self.fuse: int | None = None
        """Calls of `point` until it crashes."""
        self.fleet = Fleet(0, ())
        self.noted = True
        """Whether the world knows of `fleet`: it was read under the lease, or committed."""
        self.committed = True
        """Whether `fleet` was committed to the outbox, or need not be."""
        self.disturbed = 0
        """The world's count of disturbances at the read of `fleet`."""
        self.idle_since: dict[str, int] = {}
        self.gaps_read: tuple[str, ...] = ()
        self.rejected_at = float("-inf")
        self.attempts: dict[str, float] = {}
        """Instance → when CloudWatch was last queried for it."""
        self.cycle_began = float("-inf")
        """When the previous cycle recorded absent samples."""
        self.polled: dict[tuple[str, str], tuple[float, bool, int]] = {}
        """(worker, region) → when all queries last had results, whether it was idle, the world's count of disturbances then."""
        self.outbox = FragileOutbox(self, directory)
        thread = WatchedThread(self)
        self.lease = LeaseClient(self)
        telemetry = Telemetry(CollectorRegistry())
        history = HistoryClient(self)
        self.mirror = Mirror(thread, history, self.lease, telemetry, wall=self.wall, batch=200)
        self.collector = Collector(
            SETTINGS,
            world.rules,
            telemetry,
            thread,
            FleetClient(self),
            MetricClient(self),
            history=history,
            inventory=InventoryClient(self),
            lease=self.lease,
            on_ready=self.mirror.wake.set,
            wall=self.wall,
            monotonic=asyncio.get_running_loop().time,
        )

    def wall(self) -> float:
        """The clock of its host."""
        return self.world.time + self.world.skew[self.host]

    def point(self) -> None:
        """Crash here if the fuse has burned down."""
        if self.fuse is not None:
            self.fuse -= 1
            self.dead = self.dead or self.fuse <= 0
        if self.dead:
            raise Crash

    async def travel(self) -> None:
        """Send or receive a message."""
        self.point()
        await asyncio.sleep(self.world.rng.uniform(0.005, 0.5))
        paused = self.world.paused_until[self.host] - self.world.time
        if paused > 0:
            await asyncio.sleep(paused + self.world.rng.uniform(0, 0.5))
        self.point()

    async def live(self) -> None:
        """Run its loops until it crashes or is cancelled."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self.collector.restore()
            with suppress(StoreError):
                await self.lease.acquire_or_renew()
            loops = (
                self.collector.observe_forever(),
                self.collector.poll_forever(),
                self.collector.open_gaps_forever(),
                self.mirror.run_forever(),
                self._keep_lease(),
            )
            tasks = [asyncio.create_task(each) for each in loops]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except Crash:
            return
        finally:
            self.dead = True
            for task in tasks:
                task.cancel()
            for end in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(end, Exception):
                    self.world.violated("a loop has ended", repr(end))
            self.outbox.close()

    async def _keep_lease(self) -> None:
        held = self.lease.held
        while True:
            await asyncio.sleep(LEASE / 3)
            with suppress(StoreError):
                await self.lease.acquire_or_renew()
            if self.lease.held and not held:
                self.collector.lead()
            held = self.lease.held

    def check_gauges(self) -> None:
        """Check that every gauge is a value of a source, for a period that is not too old."""
        snapshot, world = self.collector.snapshot, self.world
        if snapshot is None or snapshot.fresh_until <= self.wall():
            return
        for shown in snapshot.workers:
            load = (shown.active_labs, shown.cpu, shown.cpu_time, shown.memory, shown.memory_time)
            if shown.worker.status in IDLE_STATUSES and load != (None,) * len(load):
                world.violated("a worker that does not run has a load", f"{shown}")
            own = world.machines[shown.worker.id].own
            for at, (metric, value, end) in enumerate(
                (("cpu", shown.cpu, shown.cpu_time), ("memory", shown.memory, shown.memory_time)), 1
            ):
                if value is None or end is None:
                    continue
                served = {(name, metric, end - world.rules.period, value) for name in (shown.worker.instance_id or "",)}
                if not served & world.cloudwatch.served and (end, value) not in {(o[0], o[at]) for o in own}:
                    world.violated("a gauge without a source", f"{shown}")


# -- its outbox --------------------------------------------------------------------------------------------------------


class FragileConnection:
    """An SQLite connection on which every statement may be the last."""

    def __init__(self, connection: sqlite3.Connection, outbox: "FragileOutbox", process: Process) -> None:
        self._connection, self._outbox, self._process = connection, outbox, process

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        if sql.lstrip().startswith("SELECT") or sql == "ROLLBACK":  # nothing to leave half done
            return self._connection.execute(sql, parameters)
        self._process.point()
        cursor = self._connection.execute(sql, parameters)
        if sql == "COMMIT":
            self._outbox.committed()
        self._process.point()
        return cursor

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        self._process.point()
        if self._process.world.time < self._process.world.disk_full_until:
            raise sqlite3.OperationalError("database or disk is full")
        cursor = self._connection.executemany(sql, parameters)
        self._process.point()
        return cursor

    def close(self) -> None:
        self._connection.close()


class FragileOutbox(Outbox):
    """The outbox, which reports to the world what was committed."""

    def __init__(self, process: Process, directory: Path) -> None:
        super().__init__(directory, process.world.rules.period, synchronous="OFF")
        self._process = process
        self._saved: set[str] | None = None
        self._opened = False
        self._db = FragileConnection(self._db, self, process)  # type: ignore[assignment]

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        self._saved, self._opened = None, False
        with super().transaction() as connection:
            yield connection

    def save_states(self, states: Iterable[WorkerState], known: Mapping[str, WorkerState] = MappingProxyType({})) -> None:
        states = list(states)
        self._saved = {state.worker_id for state in states}
        super().save_states(states, known)

    def open(self, rows: Iterable[PendingSample]) -> int:
        self._opened = True
        rows, process, world = list(rows), self._process, self._process.world
        if world.mongodb.leads_elsewhere(process.host):
            placeless = {worker.id for worker in process.fleet.workers if not worker.region}
            world.opened_placeless |= {(row.worker_id, row.start) for row in rows if row.worker_id in placeless}
        return super().open(rows)

    def open_gaps(self, gaps: Iterable[Gap]) -> int:
        self._opened = True
        return super().open_gaps(gaps)

    def expired(self, worker_ids: Iterable[str], before: int) -> list[PendingSample]:
        rows = super().expired(worker_ids, before)
        process, world = self._process, self._process.world
        for row in rows:
            world.absent.add((row.worker_id, row.start))
            if world.now < row.start + world.rules.gap_fill_window + world.rules.period - 60:
                world.violated("recorded absent too early", f"{row} at {world.now}")
            real = [instance for instance in row.instances if instance in world.cloudwatch.instances]
            if real and all(process.attempts.get(instance, float("-inf")) < process.cycle_began for instance in real):
                world.violated("recorded absent without having been queried", f"{row}")
        process.cycle_began = world.time
        return rows

    def committed(self) -> None:
        """Report a committed transaction to the world."""
        process, world = self._process, self._process.world
        if self._saved is not None:  # an observation, perhaps of no worker at all
            process.committed = True
            if not process.noted:
                world.note_read(process.fleet)
                process.noted = True
            if not world.mongodb.leads_elsewhere(process.host):
                world.opened_at[process.host] = world.now
                for worker in process.fleet.workers:
                    if worker.id in self._saved:
                        world.observed[worker.id].append((process.fleet.date, worker))
        elif self._opened:
            for worker_id in process.gaps_read:
                world.gaps_opened[worker_id].append(process.fleet.date)


class WatchedThread(OutboxThread):
    """The outbox's thread, which reports to the world which values came or changed after they were decided."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.outbox)
        self._process = process
        self._counted: set[ValueChange] = set()

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        result = await super().__call__(function, *args, **kwargs)
        if function is apply_results:
            for change in cast(tuple[int, int, list[ValueChange]], result)[2]:
                self._check(change)
        return result

    def _check(self, change: ValueChange) -> None:
        """Report a value that CloudWatch did not publish late, and one that was counted before."""
        world, end = self._process.world, change.start + self._process.world.rules.period
        world.figures[change.kind] += 1
        metric: MetricName = "memory" if change.metric == "memory" else "cpu"
        published = world.final_values(change.worker_id, metric, change.start).values()
        if change.kind == "revised" or all(at <= end + world.rules.absence_timeout for at in published):
            world.violated(f"counted as {change.kind}", f"{change}, published {list(published)}")
        if change in self._counted:
            world.violated("counted twice", f"{change}")
        self._counted.add(change)


# -- its clients -------------------------------------------------------------------------------------------------------


class FleetClient:
    """A client that reads the worker documents."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def read(self) -> Fleet:
        process, world = self._process, self._process.world
        began = process.wall()
        await process.travel()
        if world.time < world.mongodb.down_until:
            raise SourceError("mongodb", "AutoReconnect", "MongoDB is down")
        fleet = Fleet(world.now, world.fleet())
        await process.travel()
        if not began - MAX_SKEW <= fleet.date <= process.wall() + MAX_SKEW:
            return fleet  # the exporter will reject it
        self._check_committed()
        process.fleet = fleet
        idle = {worker.id for worker in fleet.workers if worker.status in IDLE_STATUSES}
        process.idle_since = {id_: process.idle_since.get(id_, fleet.date) for id_ in idle}
        process.noted = process.lease.held
        process.committed = world.mongodb.leads_elsewhere(process.host, since=LEASE)
        process.disturbed = world.disturbances
        if process.noted:
            world.note_read(fleet)
        return fleet

    def _check_committed(self) -> None:
        """Check that the periods of the last read were opened, also where MongoDB could not be written (rule 14)."""
        process, world = self._process, self._process.world
        exempt = process.committed or world.mongodb.leads_elsewhere(process.host, since=LEASE)
        if not exempt and process.disturbed == world.disturbances and world.disk_full_until < process.fleet.date:
            world.violated("a read opened no period", f"{process.host} {process.fleet.date}, {world.mongodb.readonly_until}")


class MongoClient:
    """The common part of all MongoDB clients."""

    def __init__(self, process: Process) -> None:
        self._process, self._world = process, process.world
        self._server = process.world.mongodb

    async def _send(self, *, write: bool = False) -> None:
        await self._process.travel()
        if self._world.time < self._server.down_until:
            raise StoreUnavailableError("MongoDB is down", reason="unavailable")
        if write and self._world.time < self._server.readonly_until:
            raise StoreUnavailableError("MongoDB has no majority", reason="not_primary")


class HistoryClient(MongoClient):
    """A client that reads and writes the history."""

    _ensured = False

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self._number = 0

    async def ensure_collection(self) -> None:
        if not self._ensured:  # the later verifications fail as the message that follows each of them does
            await self._send()
        self._ensured = True

    async def timestamps(self, worker_ids: Collection[str], since: int) -> dict[str, set[int]]:
        await self._send()
        found: dict[str, set[int]] = {id_: set() for id_ in worker_ids}
        for (id_, start), documents in self._server.documents.items():
            if id_ in found and start >= since and any(document.committed for document in documents):
                found[id_].add(start)
        await self._process.travel()
        self._process.gaps_read = tuple(worker_ids)
        return found

    @asynccontextmanager
    async def insert_lease(self) -> AsyncIterator[Callable[[], float]]:
        await self.raise_fence()
        yield lambda: float(LEASE)  # only one process of the simulation writes at a time

    async def raise_fence(self) -> None:
        """Have the server refuse whatever was sent before."""
        await self._send()
        self._server.raised += 1
        self._number = self._server.raised
        await self._process.travel()

    async def no_insert_running(self) -> bool:
        await self._send()
        return not self._server.running_inserts

    async def existing_keys(self, keys: Collection[Key]) -> set[Key]:
        await self._send()
        local = self.local(keys)
        if local != self.majority(keys):
            raise StoreUnavailableError("a majority does not have all of it yet", reason="unsettled")
        await self._process.travel()
        return local

    async def stored_samples(self, keys: Collection[Key]) -> list[FinalSample]:
        raise AssertionError("nothing is forwarded in the simulation")

    def local(self, keys: Collection[Key]) -> set[Key]:
        return {key for key in keys if key in self._server.documents}

    def majority(self, keys: Collection[Key]) -> set[Key]:
        return {key for key in self.local(keys) if all(d.committed for d in self._server.documents[key])}

    async def insert(self, samples: Sequence[FinalSample], *, within: Callable[[], float]) -> list[tuple[FinalSample, str]]:
        if list(samples) != sorted(samples, key=lambda sample: (sample.worker_id, sample.timestamp)):
            self._world.violated("inserted out of order")
        await self._encode()
        limit = self._world.time + within()
        await self._send(write=True)
        if self._world.time > limit:
            raise StoreUnavailableError("the time limit passed before anything was sent", reason="unavailable")
        if "late_inserts" in self._world.faults and self._world.network.random() < 0.1:
            await self._lose_in_the_network(samples)
        if "ambiguous" in self._world.faults and self._world.rng.random() < 0.15:
            self._server.put_somehow(samples)
            raise StoreUnavailableError("the connection broke", reason="unavailable")
        try:
            await self._process.travel()
        except BaseException:  # the process died while the server was working
            self._server.put_somehow(samples)
            raise
        self._server.put(samples)
        self._process.point()
        return []

    async def _lose_in_the_network(self, samples: Sequence[FinalSample]) -> None:
        """Let an insert arrive later; the process notices at once, or is paused for longer than its lease lasts."""
        network = self._world.network
        self._server.deliver_later(samples, self._number, network.uniform(0, 200))
        if network.random() < 0.5:
            self._world.paused_until[self._process.host] = self._world.time + network.uniform(LEASE, 4 * LEASE)
            self._world.disturbances += 1
        await self._process.travel()
        raise StoreUnavailableError("the connection broke", reason="connection")

    async def _encode(self) -> None:
        """Encode the samples and look for the server; the process may be paused in this before it sends anything."""
        if "takeover" in self._world.faults and self._world.rng.random() < 0.02:
            self._world.paused_until[self._process.host] = self._world.time + 60
            self._world.disturbances += 1
        await self._process.travel()


class InventoryClient(MongoClient):
    """The inventory: a copy in memory, the original in MongoDB."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self._entries: dict[str, InventoryEntry] = {}

    @property
    def entries(self) -> Mapping[str, InventoryEntry]:
        return self._entries

    async def load(self) -> None:
        await self._send()
        stored = self._server.inventory
        later = {id_: e for id_, e in self._entries.items() if id_ not in stored or e.last_seen > stored[id_].last_seen}
        self._entries = stored | later

    def note(self, fleet: Fleet) -> None:
        for worker in fleet.workers:
            self._entries[worker.id] = updated_entry(self._entries.get(worker.id), worker, fleet.date)

    async def record(self, fleet: Fleet) -> None:
        self.note(fleet)
        await self._send(write=True)
        self._server.inventory |= self._entries
        await self._process.travel()


class LeaseClient(MongoClient):
    """The lease: MongoDB's clock decides for other processes, the monotonic one for its holder."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self._until = self._elsewhere_until = 0.0
        self.fence = 0
        self.problem: str | None = None

    @property
    def remaining(self) -> float:
        return max(0.0, self._until - asyncio.get_running_loop().time())

    @property
    def held(self) -> bool:
        return self.remaining > 0

    @property
    def held_elsewhere(self) -> bool:
        return asyncio.get_running_loop().time() < self._elsewhere_until

    @property
    def awaited(self) -> bool:
        return False

    async def acquire_or_renew(self) -> bool:
        sent = asyncio.get_running_loop().time()
        await self._send(write=True)
        server, host = self._server, self._process.host
        if server.leader != host and self._world.time < server.lease_expires:
            self._until = sent
            self._elsewhere_until = asyncio.get_running_loop().time() + LEASE
            return False
        if server.leader != host:
            server.fence += 1
        others = [at for name, at in self._world.opened_at.items() if name != host]
        if server.leader not in (host, None) or any(at > server.held_at[host] for at in others):
            self._world.losses.append(self._world.now)  # this process cannot mirror what is in the outbox of the other one
            self._world.figures["takeovers"] += 1
        server.leader, server.lease_expires = host, self._world.time + LEASE
        server.held_at[host] = self._world.time
        fence = server.fence
        await self._process.travel()
        self._elsewhere_until = 0.0
        self.fence, self._until = fence, sent + LEASE - LEASE_MARGIN
        return self.held


class MetricClient:
    """A client that queries CloudWatch."""

    def __init__(self, process: Process) -> None:
        self._process, self._world = process, process.world
        self._server = process.world.cloudwatch
        self._malformed = MalformedInstances()

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        call = partial(self.send, region, start=start, end=end, period=period)
        return await self._malformed.query(call, queries, start, end, int(self._process.wall()))

    async def send(self, region: str, queries: Sequence[MetricQuery], *, start: int, end: int, period: int) -> MetricResults:
        """Make one request."""
        check_limits(queries, start, end, period)
        sent = self._world.time
        self._process.attempts |= {query.instance_id: sent for query in queries}
        self._world.figures["calls"] += 1
        await self._arrive(region)
        world = self._world
        world.figures["queries"] += len(queries)
        if any(query.instance_id not in self._server.instances for query in queries):
            world.disturbances += 1  # the call is repeated in parts, which do not count for rule 11
            self._process.rejected_at = sent
            raise RejectedQueryError("cloudwatch", "ValidationError", "an instance id is malformed", region=region)
        self._note_queried(region, queries, end, sent)
        date = world.now
        results = {query: self._result(region, query, start, end, date) for query in queries}
        newest = self._queries_newest(end)
        await self._slow()
        await self._process.travel()
        self._check_clock(region, date)
        searching = sent < self._process.rejected_at + 900
        if (
            not searching
            and newest
            and all(result.complete for result in results.values())
            and self._world.time >= self._world.disk_full_until
        ):
            for worker_id, idle in self._workers_of(queries).items():
                self._process.polled[worker_id, region] = sent, idle, world.disturbances
        return MetricResults(date, results)

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        await self._arrive(region)
        date = self._world.now
        since = date - (3 * HOUR if recent else 14 * DAY)
        listing = Listing(date, since, self._server.series(region, date, since))
        await self._process.travel()
        self._check_clock(region, date)
        return listing

    async def _arrive(self, region: str) -> None:
        if not region:
            self._world.violated("CloudWatch is queried without a region")
        await self._slow()
        await self._process.travel()
        flaky = "flaky" in self._world.faults and self._world.rng.random() < 0.08
        if flaky or self._world.time < self._server.down_until:
            raise SourceError("cloudwatch", "InternalFailure", "CloudWatch does not answer", region=region)

    async def _slow(self) -> None:
        if "slow" in self._world.faults and self._world.rng.random() < 0.02:
            await asyncio.sleep(self._world.rng.uniform(10, 600))

    def _check_clock(self, region: str, date: int) -> None:
        if abs(date - self._process.wall()) > MAX_SKEW:
            raise SourceError("cloudwatch", "ClockSkew", "the clocks differ", region=region)

    def _result(self, region: str, query: MetricQuery, start: int, end: int, now: int) -> MetricResult:
        rng = self._world.rng
        instance = self._server.instances[query.instance_id]
        wanted = instance.memory if query.metric == "memory" else (("InstanceId", instance.id),)
        metric: MetricName = "memory" if query.metric == "memory" else "cpu"
        values = {}
        if instance.region == region and wanted == query.dimensions:
            for period in range(start, end, self._world.rules.period):
                publication = self._server.publication(instance, metric, period)
                value = publication.at(now) if publication else None
                if value is not None:
                    values[period] = value
        if "flaky" in self._world.faults and rng.random() < 0.05:
            some = {at: value for at, value in values.items() if rng.random() < 0.5}
            self._note_served(query, some)
            return rng.choice([MetricResult("partial", start, end, some), MetricResult("failed", start, end, {})])
        self._note_served(query, values)
        return MetricResult("ok" if values else "empty", start, end, values)

    def _note_served(self, query: MetricQuery, values: Mapping[int, float]) -> None:
        metric: MetricName = "memory" if query.metric == "memory" else "cpu"
        self._server.served |= {(query.instance_id, metric, at, value) for at, value in values.items()}

    # -- rule 11

    def _queries_newest(self, end: int) -> bool:
        """Return whether a call ends with the newest period: older parts of a long window are calls of their own."""
        return end == align(int(self._process.wall()), self._world.rules.period)

    def _workers_of(self, queries: Iterable[MetricQuery]) -> dict[str, bool]:
        """Return the queried workers → whether they have been idle for so long that every loop knows it."""
        instances = {query.instance_id for query in queries}
        known_since = self._world.now - HOUR
        return {
            worker.id: self._process.idle_since.get(worker.id, self._world.now) < known_since
            for worker in self._process.fleet.workers
            if worker.instance_id in instances
        }

    def _note_queried(self, region: str, queries: Sequence[MetricQuery], end: int, sent: float) -> None:
        process, rules = self._process, self._world.rules
        if not self._queries_newest(end):
            return
        for worker_id, idle in self._workers_of(queries).items():
            at, was_idle, disturbances = process.polled.get((worker_id, region), (float("-inf"), False, 0))
            every = max(rules.interval, rules.period, rules.absence_timeout // 4 if idle and was_idle else 0)
            # A clock that jumped wakes it early, a full disk keeps it from recording a result.
            if disturbances == self._world.disturbances and sent - at < every - DUE_TOLERANCE_SECONDS - 5:
                self._world.violated("queried too often", f"{worker_id} after {sent - at:.0f} s, idle {idle}")


# -- the host ----------------------------------------------------------------------------------------------------------


class Host:
    """A host that restarts the exporter after each crash, with or without its outbox."""

    def __init__(self, world: World, name: str, directory: Path) -> None:
        self._world, self._name = world, name
        self.directory = directory / name
        self._copy = directory / f"{name}.copy"
        self._rng = random.Random(f"{world.scenario.seed} {name}")
        self.calm = asyncio.Event()
        """Set when crashes have ended."""
        self.process: Process | None = None

    async def run(self) -> None:
        """Run exporters until cancelled."""
        while True:
            self.process = Process(self._world, self._name, self.directory)
            chaos = asyncio.create_task(self._threaten(self.process))
            try:
                await self.process.live()
            finally:
                chaos.cancel()
            self.process = None
            self._world.figures["crashes"] += 1
            self._tamper()
            rng, hour = self._rng, 3600
            down = rng.choice([rng.uniform(0, 120), rng.uniform(0, 1800), rng.uniform(0, 3 * hour)])
            with suppress(TimeoutError):
                await asyncio.wait_for(self.calm.wait(), down)

    async def _threaten(self, process: Process) -> None:
        rng, world = self._rng, self._world
        while True:
            await asyncio.sleep(60)
            process.check_gauges()
            if "crash" in world.faults and rng.random() < 1 / 90:
                process.fuse = rng.randint(1, 60)
            if "stale_outbox" in world.faults and rng.random() < 1 / 100:
                self._take_copy(process)
            if self.calm.is_set():
                process.fuse = None

    def _take_copy(self, process: Process) -> None:
        source = sqlite3.connect(process.outbox.path)
        target = sqlite3.connect(self._copy)
        source.backup(target)
        source.close()
        target.close()

    def _tamper(self) -> None:
        chance = self._rng.random()
        if "lost_outbox" in self._world.faults and chance < 0.2:
            shutil.rmtree(self.directory)
        elif "stale_outbox" in self._world.faults and chance < 0.5 and self._copy.exists():
            shutil.rmtree(self.directory)
            self.directory.mkdir()
            shutil.copy(self._copy, self.directory / "outbox.db")
        else:
            return
        self._world.losses.append(self._world.now)


@contextmanager
def silence(world: World) -> Iterator[None]:
    """Drop the log, but report the bugs that a loop survives to the world."""

    def listen(_: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        if event.get("exc_info"):
            world.violated("a bug", traceback.format_exc())
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[listen])
    try:
        yield
    finally:
        structlog.configure(**before)


__all__ = ["EPOCH", "Host", "Process", "silence"]
