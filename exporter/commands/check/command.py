"""`cml-worker-exporter check`: validates the settings and every connection, changes nothing, and prints what it found.

Each check is a row: what, ok / warn / FAIL / skipped, and what was found or the way out. A failed check never hides the others;
one that cannot run without another says so. What a person should know but `serve` can live with is a warning.

The history is only looked at: what is judged here is what `WorkerMetricsRepository.ensure_collection` would refuse, and a test
holds the two together.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar
from urllib.parse import quote

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter import app
from exporter.core import logs
from exporter.core.budget import DOLLARS_PER_METRIC
from exporter.core.errors import ConfigError, ExporterError, RejectedQuery, SourceError, StoreMisfit
from exporter.core.model import Answer, Fleet, Listing, Worker
from exporter.core.periods import align, format_duration, rfc3339, to_datetime, to_seconds
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.lifecycle import MAX_SKEW
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CloudWatch, instance_queries
from exporter.storage.mongo import STATE, Database, durable, operation
from exporter.storage.repository import least_role
from exporter.web import webconfig

T = TypeVar("T")
Result = Literal["ok", "warn", "FAIL", "skipped"]

SERVER, CLOCK, WORKERS, HISTORY, PRIVILEGES, LEASE = "MongoDB", "MongoDB clock", "workers", "history", "privileges", "lease"
IDENTITY, CPU, MEMORY = "AWS identity", "CloudWatch CPU", "CloudWatch memory"

DEADLINE = 30.0
"""Seconds for each AWS call: whoever waits for a table wants an answer sooner than a round of `serve` does."""
_CHECK_SECONDS = 10.0  # for each MongoDB operation, for the same reason
_LOOK_BACK = 1800  # basic monitoring publishes every 5 minutes, so half an hour of a running instance is never empty
_FIRST_TIMESERIES = 13  # the wire version of MongoDB 5.0
_SHOWN = 3
_COLORS: Mapping[Result, str] = {"ok": "green", "warn": "yellow", "FAIL": "bold red", "skipped": "dim"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table."""

    what: str
    result: Result
    text: str


@dataclass(frozen=True, slots=True)
class _HistoryNeeds:
    """Which of its rarer privileges `serve` would exercise at once."""

    create: bool
    lengthen: bool


async def run(settings: Settings, out: TextIO, *, wall: Callable[[], float] = time.time) -> int:
    """Check everything, print the table, and return the exit status: 0 when `serve` would work, warnings allowed, else 1."""
    console = Console(file=out, highlight=False)
    with console.status("checking MongoDB and AWS …"):
        findings = await examine(settings, wall)
    failed = sum(finding.result == "FAIL" for finding in findings)
    if console.is_terminal:
        _print_table(findings, console)
    else:
        out.writelines(f"{line}\n" for line in _plain(findings))
    print(f"{failed} of {len(findings)} checks failed." if failed else "The exporter would work.", file=out)
    return 1 if failed else 0


async def examine(settings: Settings, wall: Callable[[], float] = time.time) -> list[Finding]:
    """Make all checks, in the order in which a failure explains later ones; never raises an ExporterError."""
    folder, in_use = _data_folder(settings.data_dir, settings.period)
    findings = [_settings(settings), folder, _web(settings, in_use)]
    mongodb, fleet = await _mongodb(settings, wall)
    return findings + mongodb + await _aws(settings, fleet, wall)


# -- this machine ------------------------------------------------------------------------------------------------------


def _settings(settings: Settings) -> Finding:
    """They were validated when they were loaded; here are the ones that decide cost and resolution."""
    show = format_duration
    asked = (
        f"CloudWatch is asked every {show(settings.cloudwatch.interval)}" if settings.cloudwatch.enabled else "no CloudWatch"
    )
    kept = f"history in {settings.mongodb.history}" if settings.mongodb.history else "no history (mongodb.history is null)"
    return Finding("settings", "ok", f"valid; period {show(settings.period)}, {asked}, {kept}")


def _data_folder(directory: Path, period: int) -> tuple[Finding, bool]:
    """Look at the outbox's folder without making it; say too whether a running exporter holds it."""

    def found(result: Result, text: str) -> Finding:
        return Finding("data folder", result, text)

    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        return found("FAIL", f"data_dir: {existing} is not a folder; move it away or set another data_dir"), False
    if not os.access(existing, os.W_OK | os.X_OK):
        way_out = "give this user the folder or set another data_dir"
        return found("FAIL", f"data_dir: {existing} cannot be written by this user; {way_out}"), False
    if existing != directory:
        return found("ok", f"{directory} is not there yet; serve will create it"), False
    holder = _holder(directory / "lock")
    if holder is not None:
        text = f"an exporter is running here (process id {holder}); a second one needs another data_dir"
        return found("warn", text), True
    damage = _outbox_damage(directory / "outbox.db", period)
    return (found("FAIL", damage) if damage else found("ok", f"{directory} can be written, nobody holds it")), False


def _holder(lock: Path) -> str | None:
    """Return the process id in the lock file when somebody holds it."""
    try:
        file = lock.open()
    except OSError:
        return None  # nobody ever ran here, or the file is another user's, which the folder's own check tells
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read().strip() or "unknown"
    return None


def _outbox_damage(path: Path, period: int) -> str | None:
    """Return why `serve` would refuse the outbox.

    It is opened as immutable, since merely reading a WAL database makes files beside it. What a killed exporter left in the WAL
    is then not seen, so only a whole database without one can be called damaged.
    """
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?immutable=1", uri=True)) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
                return None
            row = database.execute("SELECT value FROM meta WHERE key='period'").fetchone()
    except sqlite3.Error as error:
        if path.with_name(path.name + "-wal").exists():
            return None
        return f"{path} cannot be read ({error}); move it away: what it held is read from CloudWatch anew"
    if row and int(row[0]) != period:
        return (
            f"{path} holds samples of {format_duration(int(row[0]))} but period is {format_duration(period)}; "
            "set period back, or give this exporter another data_dir"
        )
    return None


def _web(settings: Settings, in_use: bool) -> Finding:
    """Listen for a moment where `serve` would, and read the TLS and authentication file."""
    addresses = ", ".join(settings.web.listen_address)
    try:
        if settings.web.config_file:
            webconfig.load(settings.web.config_file)
        for listener in app.bind(settings.web.listen_address):
            listener.close()
    except ConfigError as error:
        if in_use and str(error).startswith("web.listen_address"):
            return Finding("web server", "warn", f"{addresses} is taken, most likely by the exporter that is running here")
        return Finding("web server", "FAIL", str(error))
    return Finding("web server", "ok", f"{addresses} is free")


# -- MongoDB -----------------------------------------------------------------------------------------------------------


async def _mongodb(settings: Settings, wall: Callable[[], float]) -> tuple[list[Finding], Fleet | None]:
    """Check everything about MongoDB; return the fleet too, None when it could not be read."""
    others = (CLOCK, WORKERS, HISTORY, PRIVILEGES, LEASE)
    try:
        client, database = app.connect(settings)
    except ConfigError as error:
        return [Finding(SERVER, "FAIL", str(error)), *_skipped(others, f"{SERVER} failed")], None
    try:
        try:
            server, now, ours = await _server(settings, database, wall)
        except ExporterError as error:
            return [Finding(SERVER, "FAIL", str(error)), *_skipped(others, f"{SERVER} failed")], None
        clock = _clock(now, ours)
        workers, fleet = await _workers(settings, database)
        history, needs = await _guarded(HISTORY, _history(settings, database), _HistoryNeeds(create=True, lengthen=False))
        privileges, _ = await _guarded(PRIVILEGES, _privileges(settings, database, needs, readable=fleet is not None), None)
        lease, _ = await _guarded(LEASE, _lease(settings, database, now), None)
        return [server, clock, workers, history, privileges, lease], fleet
    finally:
        await client.close()


async def _guarded(what: str, check: Awaitable[tuple[Finding, T]], otherwise: T) -> tuple[Finding, T]:
    """Make a failed check a row like any other."""
    try:
        return await check
    except ExporterError as error:
        return Finding(what, "FAIL", str(error)), otherwise


async def _server(settings: Settings, database: Database, wall: Callable[[], float]) -> tuple[Finding, float, float]:
    """Return what kind of server answers, its clock in UTC seconds, and ours at the same moment."""
    async with operation(database, settings.mongodb.workers, "hello", _CHECK_SECONDS):
        version = str((await database.client.admin.command("buildInfo"))["version"])
        before = wall()
        hello = await database.client.admin.command("hello")
        ours = (before + wall()) / 2
    if hello.get("maxWireVersion", 0) < _FIRST_TIMESERIES:
        raise StoreMisfit(f"MongoDB {version} is too old; time-series collections need 5.0 or newer, update the server")
    if hello.get("msg") == "isdbgrid":
        kind = "sharded cluster"
    elif hello.get("setName"):
        kind = f"replica set {hello['setName']} of {len(hello.get('hosts', ()))}"
    else:
        kind = "standalone server: fine, but only a replica set survives the loss of a machine"
    return Finding(SERVER, "ok", f"version {version}, {kind}"), hello["localTime"].timestamp(), ours


def _clock(theirs: float, ours: float) -> Finding:
    offset = theirs - ours
    if abs(offset) > MAX_SKEW:
        text = (
            f"MongoDB says it is {rfc3339(theirs)}, this machine says {rfc3339(ours)}; set both clocks (NTP), "
            f"they may differ by {format_duration(MAX_SKEW)}"
        )
        return Finding(CLOCK, "FAIL", text)
    return Finding(CLOCK, "ok", f"{abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} this machine's")


async def _workers(settings: Settings, database: Database) -> tuple[Finding, Fleet | None]:
    """Read the aggregates the way every observation does."""
    try:
        fleet = await Aggregates(database, settings.mongodb.workers, settings.workers).read()
    except SourceError as error:
        return Finding(WORKERS, "FAIL", str(error)), None
    name = f"{database.name}.{settings.mongodb.workers}"
    if not fleet.workers and not fleet.skipped:
        text = f"{name} holds no aggregate; check the database in mongodb.uri and mongodb.workers, or wait for the manager"
        return Finding(WORKERS, "warn", text), fleet
    statuses = Counter(worker.status for worker in fleet.workers)
    text = f"{name} holds {_count(len(fleet.workers), 'worker')}"
    if statuses:
        text += f" ({', '.join(f'{count} {status}' for status, count in statuses.most_common())})"
    if fleet.skipped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(fleet.skipped.items()))
        text += f"; {_count(sum(fleet.skipped.values()), 'aggregate')} left out: {reasons}"
    if fleet.complaints:
        text += "; " + "; ".join(_first(fleet.complaints))
    return Finding(WORKERS, "warn" if fleet.complaints else "ok", text), fleet


async def _history(settings: Settings, database: Database) -> tuple[Finding, _HistoryNeeds]:
    """Look at what `ensure_collection` would find."""
    name = settings.mongodb.history
    if name is None:
        text = "mongodb.history is null: gauges only, no history"
        return Finding(HISTORY, "skipped", text), _HistoryNeeds(create=False, lengthen=False)
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
        return Finding(HISTORY, "ok", text), _HistoryNeeds(create=True, lengthen=False)
    result, fate = _fate(
        found[0]["options"].get("expireAfterSeconds"), wanted, "retention" in settings.mongodb.model_fields_set
    )
    text = f"{namespace} is a time-series collection of {format_duration(settings.period)}; {fate}"
    return Finding(HISTORY, result, text), _HistoryNeeds(create=False, lengthen="will be lengthened" in fate)


def _check_kind(namespace: str, found: Mapping[str, Any] | None) -> None:
    """Refuse a name that is taken by something else."""
    if found is None:
        return
    way_out = "rename or drop it, or give mongodb.history another name"
    if found.get("type") != "timeseries":
        kind = "normal collection" if found.get("type") == "collection" else found.get("type")
        raise StoreMisfit(f"{namespace} is a {kind}, not a time-series collection; {way_out}")
    fields = [found["options"]["timeseries"].get(field) for field in ("timeField", "metaField")]
    if fields != ["timestamp", "worker_id"]:
        raise StoreMisfit(
            f"{namespace} is a time-series collection with timeField {fields[0]} and metaField {fields[1]}, "
            f"but the history needs timestamp and worker_id; {way_out}"
        )


def _check_period(namespace: str, noted: Mapping[str, Any] | None, period: int) -> None:
    if noted and noted.get("period") != period:
        theirs, ours = format_duration(noted.get("period", 0)), format_duration(period)
        raise StoreMisfit(
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


async def _privileges(settings: Settings, database: Database, needs: _HistoryNeeds, *, readable: bool) -> tuple[Finding, None]:
    """Compare the user's privileges with the least role; nothing is tried out."""
    async with operation(database, settings.mongodb.workers, "connectionStatus", _CHECK_SECONDS):
        status = await database.client.admin.command("connectionStatus", showPrivileges=True)
    users = status["authInfo"]["authenticatedUsers"]
    if not users:
        if readable:
            return Finding(PRIVILEGES, "ok", "authentication is off: everybody may do everything on this MongoDB"), None
        text = "mongodb.uri names no user, but MongoDB asks for one; put user, password and authSource into it"
        return Finding(PRIVILEGES, "FAIL", text), None
    who = ", ".join(f"{user['user']}@{user['db']}" for user in users)
    granted = status["authInfo"].get("authenticatedUserPrivileges", ())
    missing = list(_missing(settings, database.name, granted))
    urgent = [where for where, action in missing if action not in _seldom(needs)]
    if not missing:
        return Finding(PRIVILEGES, "ok", f"{who} has all it needs"), None
    listed = ", ".join(f"{action} on {where}" for where, action in missing)
    if urgent:
        return Finding(PRIVILEGES, "FAIL", f"{who} lacks {listed}; grant it the least role that README.md shows"), None
    text = f"{who} lacks {listed}: serve works without, other commands may not; README.md shows the least role"
    return Finding(PRIVILEGES, "warn", text), None


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


async def _lease(settings: Settings, database: Database, now: float) -> tuple[Finding, None]:
    """Say who writes the history now."""
    if settings.mongodb.history is None:
        return Finding(LEASE, "skipped", "mongodb.history is null: nothing is written"), None
    async with operation(database, STATE, "find", _CHECK_SECONDS):
        lease = await durable(database)[STATE].find_one({"_id": "lease:mirror"}) or {}
    owner, expires = lease.get("owner"), to_seconds(lease.get("expires") or to_datetime(0))
    if not owner or expires <= now:
        return Finding(LEASE, "ok", "free: the next exporter to start writes the history"), None
    text = f"{owner} writes the history (its lease ends {rfc3339(expires)}); another exporter stands by and exposes gauges"
    return Finding(LEASE, "ok", text), None


# -- AWS ---------------------------------------------------------------------------------------------------------------


async def _aws(settings: Settings, fleet: Fleet | None, wall: Callable[[], float]) -> list[Finding]:
    """Check identity, GetMetricData and ListMetrics in every region of the workers, all regions at once."""
    rows = (IDENTITY, CPU, MEMORY)
    if not settings.cloudwatch.enabled:
        return [Finding(row, "skipped", "cloudwatch.enabled is false: the aggregates' own values are used") for row in rows]
    if fleet is None:
        return _skipped(rows, "the workers, and so their regions, could not be read")
    regions = sorted({worker.region for worker in fleet.workers})
    if not regions:
        return [Finding(row, "warn", "not asked: without workers there is no region to ask") for row in rows]
    cloudwatch = CloudWatch(settings, Telemetry(CollectorRegistry()), wall=wall, deadline=DEADLINE)
    try:
        checks = (_region(cloudwatch, region, fleet.workers, settings.period, wall) for region in regions)
        reports = await asyncio.gather(*checks)
    finally:
        await cloudwatch.close()
    return [*_identities(reports), *(finding for report in reports for finding in (report.cpu, report.memory))]


@dataclass(frozen=True, slots=True)
class _Report:
    """What was found in one region."""

    region: str
    identity: str | SourceError
    cpu: Finding
    memory: Finding


async def _region(
    cloudwatch: CloudWatch, region: str, fleet: Iterable[Worker], period: int, wall: Callable[[], float]
) -> _Report:
    workers = [worker for worker in fleet if worker.region == region]
    identity = await _attempt(cloudwatch.identity(region))
    cpu = await _cpu(cloudwatch, region, workers, period, wall)
    memory = _memory(region, workers, await _attempt(cloudwatch.list_memory(region, recent=True)))
    if isinstance(identity, SourceError):
        cpu, memory = [_unless_told(finding, str(identity)) for finding in (cpu, memory)]
    return _Report(region, identity, cpu, memory)


async def _attempt(call: Awaitable[T]) -> T | SourceError:
    try:
        return await call
    except SourceError as error:
        return error


def _unless_told(finding: Finding, told: str) -> Finding:
    """Credentials that are refused are refused everywhere: one sentence of it is enough."""
    return Finding(finding.what, "skipped", f"because {IDENTITY} failed") if finding.text == told else finding


def _identities(reports: Sequence[_Report]) -> Iterator[Finding]:
    """Yield one row for each identity with its regions, and one for each region where it is unknown."""
    known: dict[str, list[str]] = {}
    for report in reports:
        if isinstance(report.identity, str):
            known.setdefault(report.identity, []).append(report.region)
        elif report.cpu.result in ("ok", "warn") and report.memory.result in ("ok", "warn"):
            text = f"{report.identity}; CloudWatch itself answers, so the exporter works without STS"
            yield Finding(f"{IDENTITY}, {report.region}", "warn", text)
        else:
            yield Finding(f"{IDENTITY}, {report.region}", "FAIL", str(report.identity))
    for arn, regions in known.items():
        yield Finding(IDENTITY, "ok", f"{arn} in {', '.join(regions)}")


async def _cpu(
    cloudwatch: CloudWatch, region: str, workers: Collection[Worker], period: int, wall: Callable[[], float]
) -> Finding:
    """Ask for one metric of one worker, a running one if there is any."""
    what = f"{CPU}, {region}"
    worker = min((w for w in workers if w.instance_id), key=lambda w: w.status != "running", default=None)
    if worker is None or worker.instance_id is None:
        return Finding(what, "skipped", "not asked: no worker of this region names its instance")
    end = align(int(wall()), period)
    start = end - max(6 * period, align(_LOOK_BACK, period))
    (query,) = instance_queries(worker.instance_id)
    answers = await _attempt(cloudwatch.get_metric_data(region, [query], start, end, period))
    if isinstance(answers, RejectedQuery):
        return Finding(what, "warn", f"{answers}; the other workers are not affected")
    if isinstance(answers, SourceError):
        return Finding(what, "FAIL", str(answers))
    return _judged(what, worker, answers.by_query[query], period)


def _judged(what: str, worker: Worker, answer: Answer, period: int) -> Finding:
    """Say what the answer to the one query means; the price is told because it is the only check that costs anything."""
    price = f"this check asked for 1 metric: {DOLLARS_PER_METRIC:.5f} dollars"
    name = f"{_short(worker.name or worker.id)} ({worker.instance_id})"
    if not answer.complete:
        return Finding(what, "warn", f"GetMetricData answered only in part; run check again, serve asks again anyway ({price})")
    if answer.values:
        newest = max(answer.values)
        value = f"{answer.values[newest]:.1f} % in the period ending {rfc3339(newest + period)}"
        return Finding(what, "ok", f"GetMetricData works: {name} had {value} ({price})")
    if worker.status != "running":
        return Finding(what, "ok", f"GetMetricData works: {name} is {worker.status}, so it has no datapoint ({price})")
    window = format_duration(answer.end - answer.start)
    text = (
        f"GetMetricData works, but {name} is running and has no datapoint in the last {window}; "
        f"check that instance, region and AWS account belong together ({price})"
    )
    return Finding(what, "warn", text)


def _memory(region: str, workers: Collection[Worker], listing: Listing | SourceError) -> Finding:
    """Compare the running workers with the memory series of the last three hours."""
    what = f"{MEMORY}, {region}"
    if isinstance(listing, SourceError):
        return Finding(what, "FAIL", str(listing))
    running = [worker for worker in workers if worker.status == "running" and worker.instance_id]
    without = [worker for worker in running if worker.instance_id not in listing.series]
    text = (
        f"ListMetrics works: {_count(len(listing.series), 'instance')} with mem_used_percent in the last 3 h, "
        f"{len(running) - len(without)} of {_count(len(running), 'running worker')} among them"
    )
    if without:
        names = _first([f"{_short(worker.name or worker.id)} ({worker.instance_id})" for worker in without])
        text += f"; no memory for {', '.join(names)}: install or start the CloudWatch agent there"
    return Finding(what, "warn" if without else "ok", text)


# -- words and paper ---------------------------------------------------------------------------------------------------


def _skipped(rows: Iterable[str], because: str) -> list[Finding]:
    return [Finding(row, "skipped", f"because {because}") for row in rows]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _first(texts: Sequence[str]) -> list[str]:
    more = len(texts) - _SHOWN
    return [*texts[:_SHOWN], f"and {more} more"] if more > 0 else list(texts)


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"


def _clean(text: str) -> str:
    """One line without secrets, and without what a foreign name could do to a terminal."""
    text = logs.mask(" ".join(text.split()))
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _plain(findings: Sequence[Finding]) -> Iterator[str]:
    """One line a check, never wrapped or cut: for a file, a pipe, grep."""
    width = max(len(_clean(finding.what)) for finding in findings)
    for finding in findings:
        yield f"{finding.result:<7}  {_clean(finding.what):<{width}}  {_clean(finding.text)}"


def _print_table(findings: Sequence[Finding], console: Console) -> None:
    """The same as a table that wraps where the terminal ends."""
    table = Table("check", "result", "found")
    for column in table.columns:
        column.overflow = "fold"  # breaks a long word instead of cutting it
    for finding in findings:
        result = Text(finding.result, style=_COLORS[finding.result])
        table.add_row(Text(_clean(finding.what)), result, Text(_clean(finding.text)))
    console.print(table)
