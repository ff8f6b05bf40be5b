"""The MongoDB part of `check`: server, clock, worker documents, history, privileges, lease."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from exporter.commands.check.result import CheckResult, Result, counted, first_few, skipped
from exporter.core.clock import skew_problem
from exporter.core.errors import ConfigError, ExporterError, IncompatibleStoreError, SourceError
from exporter.core.model import Fleet
from exporter.core.periods import format_duration, rfc3339, to_datetime, to_seconds
from exporter.core.settings import Settings
from exporter.sources.aggregates import Aggregates
from exporter.storage.collection import MIN_WIRE_VERSION
from exporter.storage.mongo import STATE, Database, connect, durable, operation
from exporter.storage.privileges import least_role
from exporter.storage.repository import repository

T = TypeVar("T")

SERVER, CLOCK, WORKERS, HISTORY, PRIVILEGES, LEASE = "MongoDB", "MongoDB clock", "workers", "history", "privileges", "lease"
_OPERATION_SECONDS = 10.0
"""Limit of each MongoDB operation: the operator waits for the answer."""


@dataclass(frozen=True, slots=True)
class _HistoryNeeds:
    """Which of its seldom needed privileges `serve` would use at its start."""

    create: bool
    lengthen: bool


async def check_mongodb(settings: Settings, wall: Callable[[], float]) -> tuple[list[CheckResult], Fleet | None]:
    """Check everything about MongoDB; return the fleet too, None when it could not be read."""
    others = (CLOCK, WORKERS, HISTORY, PRIVILEGES, LEASE)
    try:
        client, database = connect(settings)
    except ConfigError as error:
        return [CheckResult(SERVER, "FAIL", str(error)), *skipped(others, f"{SERVER} failed")], None
    try:
        try:
            server, now, ours = await _server(settings, database, wall)
        except ExporterError as error:
            return [CheckResult(SERVER, "FAIL", str(error)), *skipped(others, f"{SERVER} failed")], None
        clock = _clock(now, ours)
        workers, fleet = await _workers(settings, database)
        history, needs = await _guarded(HISTORY, _history(settings, database), _HistoryNeeds(create=True, lengthen=False))
        privileges, _ = await _guarded(PRIVILEGES, _privileges(settings, database, needs, readable=fleet is not None), None)
        lease, _ = await _guarded(LEASE, _lease(settings, database, now), None)
        return [server, clock, workers, history, privileges, lease], fleet
    finally:
        await client.close()


async def _guarded(what: str, check: Awaitable[tuple[CheckResult, T]], otherwise: T) -> tuple[CheckResult, T]:
    """Turn the error of a check into a FAIL row."""
    try:
        return await check
    except ExporterError as error:
        return CheckResult(what, "FAIL", str(error)), otherwise


async def _server(settings: Settings, database: Database, wall: Callable[[], float]) -> tuple[CheckResult, float, float]:
    """Return what kind of server answers, its clock in UTC seconds, and ours at the same moment."""
    async with operation(database, settings.mongodb.workers, "hello", _OPERATION_SECONDS):
        version = str((await database.client.admin.command("buildInfo"))["version"])
        before = wall()
        hello = await database.client.admin.command("hello")
        ours = (before + wall()) / 2
    if hello.get("maxWireVersion", 0) < MIN_WIRE_VERSION:
        raise IncompatibleStoreError(
            f"MongoDB {version} is too old; time-series collections need 5.0 or newer, update the server"
        )
    if hello.get("msg") == "isdbgrid":
        kind = "sharded cluster"
    elif hello.get("setName"):
        kind = f"replica set {hello['setName']} of {len(hello.get('hosts', ()))}"
    else:
        kind = "standalone server: fine, but only a replica set survives the loss of a machine"
    return CheckResult(SERVER, "ok", f"version {version}, {kind}"), hello["localTime"].timestamp(), ours


def _clock(theirs: float, ours: float) -> CheckResult:
    offset = theirs - ours
    if problem := skew_problem("MongoDB", theirs, ours):
        return CheckResult(CLOCK, "FAIL", problem)
    return CheckResult(CLOCK, "ok", f"{abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} this machine's")


async def _workers(settings: Settings, database: Database) -> tuple[CheckResult, Fleet | None]:
    """Read the worker documents (the manager's aggregates) as `serve` does after every period."""
    try:
        fleet = await Aggregates(database, settings.mongodb.workers, settings.workers).read()
    except SourceError as error:
        return CheckResult(WORKERS, "FAIL", str(error)), None
    name = f"{database.name}.{settings.mongodb.workers}"
    if not fleet.workers and not fleet.skipped:
        text = f"{name} holds no worker document; correct mongodb.uri or mongodb.workers, or wait for the manager"
        return CheckResult(WORKERS, "warn", text), fleet
    statuses = Counter(worker.status for worker in fleet.workers)
    text = f"{name} holds {counted(len(fleet.workers), 'worker')}"
    if statuses:
        text += f" ({', '.join(f'{count} {status}' for status, count in statuses.most_common())})"
    if fleet.skipped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(fleet.skipped.items()))
        text += f"; {counted(sum(fleet.skipped.values()), 'worker document')} left out: {reasons}"
    if fleet.complaints:
        text += "; " + "; ".join(first_few(fleet.complaints))
    return CheckResult(WORKERS, "warn" if fleet.complaints else "ok", text), fleet


async def _history(settings: Settings, database: Database) -> tuple[CheckResult, _HistoryNeeds]:
    """Verify the collection with the code that `serve` runs before it writes."""
    name = settings.mongodb.history
    if name is None:
        text = "mongodb.history is null: gauges only, no history"
        return CheckResult(HISTORY, "skipped", text), _HistoryNeeds(create=False, lengthen=False)
    collection = repository(settings, database, name).collection
    status = await collection.verify(seconds=_OPERATION_SECONDS)
    period = format_duration(settings.period)
    if not status.exists:
        retention = format_duration(settings.mongodb.retention)
        text = f"{collection.namespace} will be created (period {period}, retention {retention})"
        return CheckResult(HISTORY, "ok", text), _HistoryNeeds(create=True, lengthen=False)
    text = f"{collection.namespace} is a time-series collection of {period}; it keeps samples "
    text += "without limit" if status.current is None else f"for {format_duration(status.current)}"
    if status.lengthens and status.retention is not None:
        text += f", which will be lengthened to {format_duration(status.retention)}"
    result: Result = "warn" if status.notices else "ok"
    return (
        CheckResult(HISTORY, result, "; ".join((text, *status.notices))),
        _HistoryNeeds(create=False, lengthen=status.lengthens),
    )


async def _privileges(
    settings: Settings, database: Database, needs: _HistoryNeeds, *, readable: bool
) -> tuple[CheckResult, None]:
    """Compare the user's privileges with the least role; no privilege is exercised."""
    async with operation(database, settings.mongodb.workers, "connectionStatus", _OPERATION_SECONDS):
        status = await database.client.admin.command("connectionStatus", showPrivileges=True)
    users = status["authInfo"]["authenticatedUsers"]
    if not users:
        if readable:
            return CheckResult(PRIVILEGES, "ok", "authentication is off: every client has every privilege"), None
        text = "mongodb.uri names no user, but MongoDB requires one; put user, password and authSource into it"
        return CheckResult(PRIVILEGES, "FAIL", text), None
    who = ", ".join(f"{user['user']}@{user['db']}" for user in users)
    granted = status["authInfo"].get("authenticatedUserPrivileges", ())
    missing = list(_missing(settings, database.name, granted))
    required = [where for where, action in missing if action not in _not_needed_now(needs)]
    if not missing:
        return CheckResult(PRIVILEGES, "ok", f"{who} has all privileges of the least role"), None
    listed = ", ".join(f"{action} on {where}" for where, action in missing)
    if required:
        return CheckResult(PRIVILEGES, "FAIL", f"{who} lacks {listed}; grant it the least role that README.md shows"), None
    text = f"{who} lacks {listed}: serve works without them, other commands may not; README.md shows the least role"
    return CheckResult(PRIVILEGES, "warn", text), None


def _not_needed_now(needs: _HistoryNeeds) -> set[str]:
    """Return the actions of the least role that `serve` would not use with the collection as it is."""
    rare = {"listIndexes", "collStats", "collMod", "createCollection"}
    return rare - ({"createCollection"} if needs.create else set()) - ({"collMod"} if needs.lengthen else set())


def _missing(settings: Settings, database: str, granted: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield (where, action) for everything of the least role that is not granted."""
    history = settings.mongodb.history
    role = least_role(database, workers=settings.mongodb.workers, history=history or "")
    if history is None:
        role = [entry for entry in role if entry["resource"]["collection"] == settings.mongodb.workers]
    for entry in role:
        collection = entry["resource"]["collection"]
        allowed = _allowed(granted, database, collection)
        where = f"{database}.{collection}" if collection else f"the database {database}"
        for action in entry["actions"]:
            if action not in allowed:
                yield where, action


def _allowed(granted: Sequence[Mapping[str, Any]], database: str, collection: str) -> set[str]:
    """Return the actions granted on a collection, or on the database itself when it is "".

    An empty name in a resource stands for every one (https://www.mongodb.com/docs/manual/reference/resource-document/).
    """
    actions: set[str] = set()
    for privilege in granted:
        resource = privilege["resource"]
        here = resource.get("db") in ("", database) and resource.get("collection") in ("", collection)
        if here or resource.get("anyResource"):
            actions.update(privilege["actions"])
    return actions | ({"listCollections", "find", "insert", "update"} if "anyAction" in actions else set())


async def _lease(settings: Settings, database: Database, now: float) -> tuple[CheckResult, None]:
    """Report which exporter holds the lease to write the history."""
    if settings.mongodb.history is None:
        return CheckResult(LEASE, "skipped", "mongodb.history is null: no history is written"), None
    async with operation(database, STATE, "find", _OPERATION_SECONDS):
        lease = await durable(database)[STATE].find_one({"_id": "lease:mirror"}) or {}
    owner, expires = lease.get("owner"), to_seconds(lease.get("expires") or to_datetime(0))
    if not owner or expires <= now:
        return CheckResult(LEASE, "ok", "free: the next exporter to start writes the history"), None
    text = f"{owner} writes the history (its lease ends {rfc3339(expires)}); further exporters expose gauges and stand by"
    return CheckResult(LEASE, "ok", text), None
