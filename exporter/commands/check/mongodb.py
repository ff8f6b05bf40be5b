"""The MongoDB part of `check`: server, clock, worker documents, history, privileges, lease."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from exporter.commands.check.finding import CheckResult, Result, _count, _first, _skipped
from exporter.core.clock import skew_problem
from exporter.core.errors import ConfigError, ExporterError, IncompatibleStoreError, SourceError
from exporter.core.model import Fleet
from exporter.core.periods import format_duration, rfc3339, to_datetime, to_seconds
from exporter.core.settings import Settings
from exporter.sources.aggregates import Aggregates
from exporter.storage.mongo import STATE, Database, connect, durable, operation
from exporter.storage.privileges import least_role

T = TypeVar("T")

SERVER, CLOCK, WORKERS, HISTORY, PRIVILEGES, LEASE = "MongoDB", "MongoDB clock", "workers", "history", "privileges", "lease"
_CHECK_SECONDS = 10.0  # for each MongoDB operation, for the same reason
_FIRST_TIMESERIES = 13  # the wire version of MongoDB 5.0


@dataclass(frozen=True, slots=True)
class _HistoryNeeds:
    """Which of its rarer privileges `serve` would exercise at once."""

    create: bool
    lengthen: bool


# -- MongoDB -----------------------------------------------------------------------------------------------------------


async def _mongodb(settings: Settings, wall: Callable[[], float]) -> tuple[list[CheckResult], Fleet | None]:
    """Check everything about MongoDB; return the fleet too, None when it could not be read."""
    others = (CLOCK, WORKERS, HISTORY, PRIVILEGES, LEASE)
    try:
        client, database = connect(settings)
    except ConfigError as error:
        return [CheckResult(SERVER, "FAIL", str(error)), *_skipped(others, f"{SERVER} failed")], None
    try:
        try:
            server, now, ours = await _server(settings, database, wall)
        except ExporterError as error:
            return [CheckResult(SERVER, "FAIL", str(error)), *_skipped(others, f"{SERVER} failed")], None
        clock = _clock(now, ours)
        workers, fleet = await _workers(settings, database)
        history, needs = await _guarded(HISTORY, _history(settings, database), _HistoryNeeds(create=True, lengthen=False))
        privileges, _ = await _guarded(PRIVILEGES, _privileges(settings, database, needs, readable=fleet is not None), None)
        lease, _ = await _guarded(LEASE, _lease(settings, database, now), None)
        return [server, clock, workers, history, privileges, lease], fleet
    finally:
        await client.close()


async def _guarded(what: str, check: Awaitable[tuple[CheckResult, T]], otherwise: T) -> tuple[CheckResult, T]:
    """Make a failed check a row like any other."""
    try:
        return await check
    except ExporterError as error:
        return CheckResult(what, "FAIL", str(error)), otherwise


async def _server(settings: Settings, database: Database, wall: Callable[[], float]) -> tuple[CheckResult, float, float]:
    """Return what kind of server answers, its clock in UTC seconds, and ours at the same moment."""
    async with operation(database, settings.mongodb.workers, "hello", _CHECK_SECONDS):
        version = str((await database.client.admin.command("buildInfo"))["version"])
        before = wall()
        hello = await database.client.admin.command("hello")
        ours = (before + wall()) / 2
    if hello.get("maxWireVersion", 0) < _FIRST_TIMESERIES:
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
    """Read the aggregates the way every observation does."""
    try:
        fleet = await Aggregates(database, settings.mongodb.workers, settings.workers).read()
    except SourceError as error:
        return CheckResult(WORKERS, "FAIL", str(error)), None
    name = f"{database.name}.{settings.mongodb.workers}"
    if not fleet.workers and not fleet.skipped:
        text = f"{name} holds no aggregate; check the database in mongodb.uri and mongodb.workers, or wait for the manager"
        return CheckResult(WORKERS, "warn", text), fleet
    statuses = Counter(worker.status for worker in fleet.workers)
    text = f"{name} holds {_count(len(fleet.workers), 'worker')}"
    if statuses:
        text += f" ({', '.join(f'{count} {status}' for status, count in statuses.most_common())})"
    if fleet.skipped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(fleet.skipped.items()))
        text += f"; {_count(sum(fleet.skipped.values()), 'aggregate')} left out: {reasons}"
    if fleet.complaints:
        text += "; " + "; ".join(_first(fleet.complaints))
    return CheckResult(WORKERS, "warn" if fleet.complaints else "ok", text), fleet


async def _history(settings: Settings, database: Database) -> tuple[CheckResult, _HistoryNeeds]:
    """Look at what `ensure_collection` would find."""
    name = settings.mongodb.history
    if name is None:
        text = "mongodb.history is null: gauges only, no history"
        return CheckResult(HISTORY, "skipped", text), _HistoryNeeds(create=False, lengthen=False)
    namespace = f"{database.name}.{name}"
    async with operation(database, name, "listCollections", _CHECK_SECONDS):
        cursor = await database.list_collections(filter={"name": name})
        found = await cursor.to_list(None)
    async with operation(database, STATE, "find", _CHECK_SECONDS):
        noted = await durable(database)[STATE].find_one({"_id": f"history:{name}"})
    _check_kind(namespace, found[0] if found else None)
    _check_period(namespace, noted, settings.period)
    wanted = settings.mongodb.retention
    if not found:
        text = f"{namespace} will be created (period {format_duration(settings.period)}, retention {format_duration(wanted)})"
        return CheckResult(HISTORY, "ok", text), _HistoryNeeds(create=True, lengthen=False)
    result, fate = _fate(
        found[0]["options"].get("expireAfterSeconds"), wanted, "retention" in settings.mongodb.model_fields_set
    )
    text = f"{namespace} is a time-series collection of {format_duration(settings.period)}; {fate}"
    return CheckResult(HISTORY, result, text), _HistoryNeeds(create=False, lengthen="will be lengthened" in fate)


def _check_kind(namespace: str, found: Mapping[str, Any] | None) -> None:
    """Refuse a name that is taken by something else."""
    if found is None:
        return
    way_out = "rename or drop it, or give mongodb.history another name"
    if found.get("type") != "timeseries":
        kind = "normal collection" if found.get("type") == "collection" else found.get("type")
        raise IncompatibleStoreError(f"{namespace} is a {kind}, not a time-series collection; {way_out}")
    fields = [found["options"]["timeseries"].get(field) for field in ("timeField", "metaField")]
    if fields != ["timestamp", "worker_id"]:
        raise IncompatibleStoreError(
            f"{namespace} is a time-series collection with timeField {fields[0]} and metaField {fields[1]}, "
            f"but the history needs timestamp and worker_id; {way_out}"
        )


def _check_period(namespace: str, noted: Mapping[str, Any] | None, period: int) -> None:
    if noted and noted.get("period") != period:
        theirs, ours = format_duration(noted.get("period", 0)), format_duration(period)
        raise IncompatibleStoreError(
            f"{namespace} holds samples of {theirs}, but period is {ours}; set period to {theirs}, "
            f"or give mongodb.history another name for a history of {ours}"
        )


def _fate(kept: int | None, wanted: int, explicit: bool) -> tuple[Result, str]:
    """Say what becomes of the retention of an existing collection."""
    now = "it keeps samples for good" if kept is None else f"it keeps samples for {format_duration(kept)}"
    if not explicit or kept == wanted:
        return "ok", now
    if kept is not None and wanted > kept:
        return "ok", f"{now}, which will be lengthened to {format_duration(wanted)}"
    way_out = f"to shorten it, run: cml-worker-exporter retention --set {format_duration(wanted)} --yes"
    return (
        "warn",
        f"{now}, and mongodb.retention of {format_duration(wanted)} changes nothing, since it would delete some; {way_out}",
    )


async def _privileges(
    settings: Settings, database: Database, needs: _HistoryNeeds, *, readable: bool
) -> tuple[CheckResult, None]:
    """Compare the user's privileges with the least role; nothing is tried out."""
    async with operation(database, settings.mongodb.workers, "connectionStatus", _CHECK_SECONDS):
        status = await database.client.admin.command("connectionStatus", showPrivileges=True)
    users = status["authInfo"]["authenticatedUsers"]
    if not users:
        if readable:
            return CheckResult(PRIVILEGES, "ok", "authentication is off: everybody may do everything on this MongoDB"), None
        text = "mongodb.uri names no user, but MongoDB asks for one; put user, password and authSource into it"
        return CheckResult(PRIVILEGES, "FAIL", text), None
    who = ", ".join(f"{user['user']}@{user['db']}" for user in users)
    granted = status["authInfo"].get("authenticatedUserPrivileges", ())
    missing = list(_missing(settings, database.name, granted))
    urgent = [where for where, action in missing if action not in _seldom(needs)]
    if not missing:
        return CheckResult(PRIVILEGES, "ok", f"{who} has all it needs"), None
    listed = ", ".join(f"{action} on {where}" for where, action in missing)
    if urgent:
        return CheckResult(PRIVILEGES, "FAIL", f"{who} lacks {listed}; grant it the least role that README.md shows"), None
    text = f"{who} lacks {listed}: serve works without, other commands may not; README.md shows the least role"
    return CheckResult(PRIVILEGES, "warn", text), None


def _seldom(needs: _HistoryNeeds) -> set[str]:
    """The actions of the least role that `serve` would not exercise as things are."""
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
    """Say who writes the history now."""
    if settings.mongodb.history is None:
        return CheckResult(LEASE, "skipped", "mongodb.history is null: nothing is written"), None
    async with operation(database, STATE, "find", _CHECK_SECONDS):
        lease = await durable(database)[STATE].find_one({"_id": "lease:mirror"}) or {}
    owner, expires = lease.get("owner"), to_seconds(lease.get("expires") or to_datetime(0))
    if not owner or expires <= now:
        return CheckResult(LEASE, "ok", "free: the next exporter to start writes the history"), None
    text = f"{owner} writes the history (its lease ends {rfc3339(expires)}); another exporter stands by and exposes gauges"
    return CheckResult(LEASE, "ok", text), None
