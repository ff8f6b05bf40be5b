"""The MongoDB part of `check`: server, clock, worker documents, history, privileges, lease.

The history is judged by `HistoryCollection.verify`, which is what `serve` calls, so both refuse it with the same words.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from exporter.commands.check.finding import CheckResult, counted, first_few, skipped
from exporter.commands.check.replica_set import majority_problem, missing_primary
from exporter.commands.worker_documents import missing
from exporter.core.clock import skew_problem
from exporter.core.errors import ConfigError, ExporterError, SourceError
from exporter.core.model import Fleet
from exporter.core.periods import format_duration, rfc3339, to_datetime, to_seconds
from exporter.core.settings import Settings
from exporter.sources.aggregates import Aggregates
from exporter.storage.collection import CollectionStatus
from exporter.storage.insert_fence import fence_problem
from exporter.storage.lease import MIRROR, lease_id
from exporter.storage.mongo import STATE, Database, connect, durable, missing_privileges, operation
from exporter.storage.privileges import least_role
from exporter.storage.repository import repository

T = TypeVar("T")

SERVER, CLOCK, WORKERS, HISTORY, PRIVILEGES, LEASE = "MongoDB", "MongoDB clock", "workers", "history", "privileges", "lease"
OPERATION_SECONDS = 10.0
"""The limit for each MongoDB operation: shorter than that of `serve`, since an operator waits for the table."""
_NOT_NEEDED_NOW = frozenset({"listIndexes", "collStats", "collMod", "createCollection"})
"""Actions of the least role that `serve` uses only in some states of the collection, see `_optional_actions`."""


async def check_mongodb(settings: Settings, wall: Callable[[], float]) -> tuple[list[CheckResult], Fleet | None]:
    """Make all MongoDB checks; return the workers too, None when they could not be read.

    Args:
        settings: of the exporter.
        wall: UTC seconds of this machine.
    """
    others = (CLOCK, WORKERS, HISTORY, PRIVILEGES, LEASE)
    try:
        client, database = connect(settings)
    except ConfigError as error:
        return [CheckResult(SERVER, "FAIL", str(error)), *skipped(others, f"{SERVER} failed")], None
    async with client:
        try:
            server, now, ours = await _check_server(settings, database, wall)
        except ExporterError as error:
            problem = await missing_primary(client) or str(error)
            return [CheckResult(SERVER, "FAIL", problem), *skipped(others, f"{SERVER} failed")], None
        clock = _check_clock(now, ours)
        workers, fleet = await _check_workers(settings, database)
        history, status = await _or_failed(HISTORY, _check_history(settings, database))
        privileges, _ = await _or_failed(PRIVILEGES, _check_privileges(settings, database, status, fleet))
        lease, _ = await _or_failed(LEASE, _check_lease(settings, database, now))
        return [server, clock, workers, history, privileges, lease], fleet


async def _or_failed(check: str, result: Awaitable[tuple[CheckResult, T]]) -> tuple[CheckResult, T | None]:
    """Turn an error into a row like any other."""
    try:
        return await result
    except ExporterError as error:
        return CheckResult(check, "FAIL", str(error)), None


async def _check_server(settings: Settings, database: Database, wall: Callable[[], float]) -> tuple[CheckResult, float, float]:
    """Return the kind of server, its clock in UTC seconds, and this machine's at the same moment."""
    async with operation(database, settings.mongodb.worker_collections[0], "hello", OPERATION_SECONDS):
        version = str((await database.client.admin.command("buildInfo"))["version"])
        before = wall()
        hello = await database.client.admin.command("hello")
        ours = (before + wall()) / 2
    if hello.get("msg") == "isdbgrid":
        kind = "sharded cluster"
    elif hello.get("setName"):
        if problem := await majority_problem(database, settings.mongodb.worker_collections[0], hello):
            return CheckResult(SERVER, "FAIL", problem), hello["localTime"].timestamp(), ours
        kind = f"replica set {hello['setName']} of {len(hello.get('hosts', ()))}"
    else:
        kind = "standalone server"
    problem = fence_problem(hello) if settings.mongodb.history is not None else None
    text = f"version {version}, {kind}" + (f": {problem}" if problem else "")
    return CheckResult(SERVER, "warn" if problem else "ok", text), hello["localTime"].timestamp(), ours


def _check_clock(theirs: float, ours: float) -> CheckResult:
    if problem := skew_problem("MongoDB", theirs, ours):
        return CheckResult(CLOCK, "FAIL", problem)
    offset = theirs - ours
    return CheckResult(CLOCK, "ok", f"{abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} this machine's")


async def _check_workers(settings: Settings, database: Database) -> tuple[CheckResult, Fleet | None]:
    """Read the worker documents (the manager's aggregates) the way each collection cycle does."""
    try:
        fleet = await Aggregates(database, settings.mongodb.worker_collections, settings.workers, settings.workers.part).read()
    except SourceError as error:
        return CheckResult(WORKERS, "FAIL", str(error)), None
    name = fleet.namespace
    if not fleet.workers and not fleet.skipped and not fleet.elsewhere:
        return CheckResult(WORKERS, "warn", missing(fleet)), fleet
    statuses = Counter(worker.status for worker in fleet.workers)
    if fleet.part.is_whole:
        text = f"{name} holds {counted(len(fleet.workers), 'worker')}"
    else:
        every = len(fleet.workers) + len(fleet.elsewhere)
        text = f"{fleet.part} has {len(fleet.workers)} of the {counted(every, 'worker')} in {name}"
    if statuses:
        text += f" ({', '.join(f'{count} {status}' for status, count in statuses.most_common())})"
    if fleet.skipped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(fleet.skipped.items()))
        text += f"; {counted(sum(fleet.skipped.values()), 'worker document')} left out: {reasons}"
    if fleet.complaints:
        text += "; " + "; ".join(first_few(fleet.complaints))
    return CheckResult(WORKERS, "warn" if fleet.complaints else "ok", text), fleet


async def _check_history(settings: Settings, database: Database) -> tuple[CheckResult, CollectionStatus | None]:
    """Verify the collection as `serve` does before it writes."""
    name = settings.mongodb.history
    if name is None:
        return CheckResult(HISTORY, "skipped", "mongodb.history is null: gauges only, no history"), None
    collection = repository(settings, database, name).collection
    status = await collection.verify(seconds=OPERATION_SECONDS)
    period = format_duration(settings.period)
    if not status.exists:
        kept = format_duration(settings.mongodb.retention)
        text = f"{collection.namespace} will be created (period {period}, retention {kept})"
        return CheckResult(HISTORY, "ok", text), status
    parts = [f"{collection.namespace} is a time-series collection of {period}", *status.notices]
    if status.lengthens or not status.notices:
        parts.insert(1, _retention(status))
    return CheckResult(HISTORY, "warn" if status.notices else "ok", "; ".join(parts)), status


def _retention(status: CollectionStatus) -> str:
    now = "without limit" if status.current is None else f"for {format_duration(status.current)}"
    later = (
        f", which will be lengthened to {format_duration(status.retention)}" if status.lengthens and status.retention else ""
    )
    return f"it keeps samples {now}{later}"


async def _check_privileges(
    settings: Settings, database: Database, status: CollectionStatus | None, fleet: Fleet | None
) -> tuple[CheckResult, None]:
    """Compare the user's privileges with the least role; no action is tried.

    Args:
        settings: of the exporter.
        database: of the exporter.
        status: of the collection, None where it is unknown.
        fleet: the worker documents, None where they could not be read.
    """
    async with operation(database, settings.mongodb.worker_collections[0], "connectionStatus", OPERATION_SECONDS):
        found = await database.client.admin.command("connectionStatus", showPrivileges=True)
    users = found["authInfo"]["authenticatedUsers"]
    if not users:
        if fleet is not None:
            return CheckResult(PRIVILEGES, "ok", "authentication is off: every client may do everything on this MongoDB"), None
        text = "mongodb.uri names no user, but MongoDB requires one; put user, password and authSource into it"
        return CheckResult(PRIVILEGES, "FAIL", text), None
    user = ", ".join(f"{each['user']}@{each['db']}" for each in users)
    granted = found["authInfo"].get("authenticatedUserPrivileges", ())
    missing = list(_missing(settings, database.name, _used_collections(settings, fleet), granted))
    if not missing:
        return CheckResult(PRIVILEGES, "ok", f"{user} has every privilege of the least role"), None
    optional = _optional_actions(status)
    if any(action not in optional for action, _ in missing):
        return CheckResult(PRIVILEGES, "FAIL", f"{missing_privileges(missing)} (the user is {user})"), None
    listed = ", ".join(f"`{action}` on {where}" for action, where in missing)
    text = f"{user} lacks {listed}: serve works without, other commands may not; docs/manager.md shows the least role"
    return CheckResult(PRIVILEGES, "warn", text), None


def _optional_actions(status: CollectionStatus | None) -> frozenset[str]:
    """Return the actions of the least role that `serve` would not use on a collection in this state."""
    needed = set()
    if status is None or not status.exists:
        needed.add("createCollection")
    elif status.lengthens:
        needed.add("collMod")
    return _NOT_NEEDED_NOW - needed


def _used_collections(settings: Settings, fleet: Fleet | None) -> tuple[str, ...]:
    """Return the collection that holds the worker documents; all that may hold them where none does."""
    if fleet is None or not (fleet.workers or fleet.skipped):
        return settings.mongodb.worker_collections
    return (fleet.namespace.partition(".")[2],)


def _missing(
    settings: Settings, database: str, workers: Sequence[str], granted: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield (action, namespace) for everything of the least role that is not granted."""
    history = settings.mongodb.history
    role = least_role(database, workers=workers, history=history or "")
    if history is None:
        role = [entry for entry in role if entry["resource"]["collection"] in workers]
    for entry in role:
        collection = entry["resource"]["collection"]
        allowed = _allowed(granted, database, collection)
        where = f"{database}.{collection}" if collection else f"the database {database}"
        for action in entry["actions"]:
            if action not in allowed:
                yield action, where


def _allowed(granted: Sequence[Mapping[str, Any]], database: str, collection: str) -> set[str]:
    """Return the actions granted on a collection, or on the database itself when it is "".

    An empty name in a resource stands for every one (https://www.mongodb.com/docs/manual/reference/resource-document/).
    """
    actions: set[str] = set()
    for privilege in granted:
        resource = privilege["resource"]
        applies = resource.get("db") in ("", database) and resource.get("collection") in ("", collection)
        if applies or resource.get("anyResource"):
            actions.update(privilege["actions"])
    return actions | ({"listCollections", "find", "insert", "update"} if "anyAction" in actions else set())


async def _check_lease(settings: Settings, database: Database, now: float) -> tuple[CheckResult, None]:
    """Return which exporter writes the history at `now`, MongoDB's UTC second."""
    if settings.mongodb.history is None:
        return CheckResult(LEASE, "skipped", "mongodb.history is null: nothing is written"), None
    async with operation(database, STATE, "find", OPERATION_SECONDS):
        lease = await durable(database)[STATE].find_one({"_id": lease_id(MIRROR, settings.workers.part.own_name)}) or {}
    owner, expires = lease.get("owner"), to_seconds(lease.get("expires") or to_datetime(0))
    if not owner or expires <= now:
        return CheckResult(LEASE, "ok", "free: the next exporter to start writes the history"), None
    text = f"{owner} leads: it writes the history (its lease ends {rfc3339(expires)}); this one will stand by and expose gauges"
    return CheckResult(LEASE, "ok", text), None
