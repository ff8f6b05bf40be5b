"""`import-events` against a real mongod: the history gets what the events tell, each period once, whatever happens."""

import asyncio
import io
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from bson import ObjectId

from exporter.commands.backfill.fetcher import RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.import_events import command as command_module
from exporter.commands.import_events.planner import Options
from exporter.core.errors import ConfigError, IncompatibleStoreError, StoreUnavailableError
from exporter.core.periods import DAY, HOUR, align, rfc3339, to_datetime
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.storage.inventory import INVENTORY
from exporter.storage.lease import BACKFILL, Lease
from exporter.storage.mongo import Database
from exporter.storage.privileges import IMPORT_PRIVILEGES, least_role
from exporter.storage.repository import WorkerMetricsRepository
from tests.fixtures.mongo import AuthMongod, connect
from tests.fixtures.process import RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.exporter_process import COMMAND

PERIOD = 300
EVENTS, HISTORY = "domain_events", "worker_metrics_timeseries"
QUICK = RetryPolicy(mongodb=1, lease=scaled(20))
TELEMETRY, CLOUDWATCH = "CMLWorkerTelemetryUpdatedDomainEvent", "cml_worker.cloudwatch_metrics.updated.v1"
Key = tuple[str, datetime]


def telemetry(worker_id: str, at: float, cpu: float, **more: object) -> dict[str, Any]:
    """An event of the document's kind, flat."""
    fields = {"aggregate_id": worker_id, "cpu_utilization": cpu, "memory_utilization": 50.0, "active_labs_count": 2}
    return {"__type__": TELEMETRY, **fields, "updated_at": to_datetime(at), **more}


@dataclass
class ImportEnv:
    """A manager's database, its events, and the history."""

    settings: dict[str, Any]
    database: Database
    folder: Path

    @property
    def now(self) -> int:
        """The start of the present period."""
        return align(int(time.time()), PERIOD)

    async def events(self, workers: int, start: int, end: int) -> dict[Key, float]:
        """One telemetry event for each worker and period of [start, end), two minutes into it; what the history must hold."""
        events, expected = [], {}
        for k in range(workers):
            for at in range(start, end, PERIOD):
                cpu = float((at // PERIOD + k) % 100)
                events.append(telemetry(f"w{k:03d}", at + 120, cpu))
                expected[f"w{k:03d}", to_datetime(at)] = cpu
        await self.database[EVENTS].insert_many(events)
        return expected

    async def worker(self, worker_id: str, **more: object) -> None:
        await self.database["cml_workers"].insert_one(
            {"_id": worker_id, "aws_region": "eu-west-1", "status": "running", **more}
        )

    async def run(self, since: str = "10d", **options: Any) -> tuple[int, str, str]:  # noqa: ANN401  # Options' fields
        """Run one import in this process: exit status, output, errors."""
        out, err, now = io.StringIO(), io.StringIO(), int(time.time())
        begin = now - int(since[:-1]) * {"d": DAY, "h": HOUR}[since[-1]]
        wanted = Options(begin, since, options.pop("until", now), **options)
        settings = Settings.model_validate(self.settings)
        status = await command_module.run(settings, wanted, out, err, GracefulStop(), QUICK)
        return status, out.getvalue(), err.getvalue()

    def command(self, *arguments: str) -> "subprocess.Popen[str]":
        """The command as a process."""
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(self.settings))
        return subprocess.Popen(
            [*COMMAND, "import-events", "--config.file", str(file), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )

    async def documents(self) -> list[dict[str, Any]]:
        return await self.database[HISTORY].find({}, {"_id": 0}).to_list(None)

    async def cpus(self) -> dict[Key, float]:
        """The history's CPU by key; fails where a sample exists twice."""
        found = await self.documents()
        twice = [key for key, count in Counter(map(key_of, found)).items() if count > 1]
        assert twice == []
        return {key_of(one): one["cpu_utilization"] for one in found}


def key_of(document: dict[str, Any]) -> Key:
    return document["worker_id"], document["timestamp"]


@pytest.fixture
def import_env(mongod: Mongod, database: Database, tmp_path: Path) -> ImportEnv:
    settings = {
        "mongodb": {"uri": mongod.uri.replace("/?", f"/{database.name}?"), "retention": "60d"},
        "cloudwatch": {"enabled": False},
        "data_dir": str(tmp_path / "data"),
    }
    return ImportEnv(settings, database, tmp_path)


# -- what is written ---------------------------------------------------------------------------------------------------


async def test_the_window_of_the_running_exporter_counts_where_it_is_longer_than_that_of_the_command(
    import_env: ImportEnv,
) -> None:
    await import_env.worker("w000")
    await import_env.events(1, import_env.now - 3 * HOUR, import_env.now - 2 * HOUR)
    import_env.settings["gap_fill_window"] = "90m"
    collection = WorkerMetricsRepository(import_env.database).collection
    collection.gap_fill_window = 4 * HOUR
    await collection.ensure()
    status, out, _ = await import_env.run("6h")
    assert status == 0
    assert "Skipped: 12 events of periods that are left to `serve` (gap_fill_window), or from --until on." in out
    assert await import_env.database[HISTORY].count_documents({}) == 0


async def test_an_empty_history_gets_each_period_once_and_a_second_run_has_nothing_to_do(import_env: ImportEnv) -> None:
    await import_env.worker("w000")
    await import_env.worker("w001", aws_region="us-east-1")
    expected = await import_env.events(2, import_env.now - 5 * DAY, import_env.now - 3 * DAY)
    status, dry, _ = await import_env.run(dry_run=True)
    assert (status, await import_env.documents()) == (0, [])
    assert not (import_env.folder / "data").exists()
    status, out, _ = await import_env.run()
    assert status == 0
    assert out.startswith(dry)
    assert re.search(rf"^{TELEMETRY} +1,152$", out, re.M)
    assert re.search(r"^2 +1,152 +1,152 +1,152 +1,152 +0$", out, re.M), out
    assert out.endswith("1,152 samples written, 0 were there already.\n")
    assert await import_env.cpus() == expected
    documents = await import_env.documents()
    assert {(one["worker_id"], one["region"]) for one in documents} == {("w000", "eu-west-1"), ("w001", "us-east-1")}
    assert all((one["memory_utilization"], one["active_labs_count"]) == (50.0, 2) and "status" not in one for one in documents)
    status, again, _ = await import_env.run()
    assert (status, await import_env.documents()) == (0, documents)
    assert f"Nothing to do: {import_env.database.name}.{HISTORY} lacks no period that the events know.\n" in again
    assert again.endswith("Unchanged: 1,152 periods that the events know and the history has already.\n")


async def test_holes_are_filled_and_a_sample_of_any_content_stays_as_it_is(import_env: ImportEnv) -> None:
    start = import_env.now - 3 * DAY
    expected = await import_env.events(2, start, start + DAY)
    await import_env.run()
    before = {key_of(one): one for one in await import_env.documents()}
    await import_env.database[HISTORY].delete_many({"worker_id": "w001"})
    kept = [{**before["w001", to_datetime(start + k * PERIOD)], "cpu_utilization": 100.0} for k in range(40)]
    bare = {"worker_id": "w001", "timestamp": to_datetime(start + 50 * PERIOD), "status": "stopped"}
    await import_env.database[HISTORY].insert_many([*(dict(one) for one in kept), dict(bare)])
    status, out, _ = await import_env.run()
    assert status == 0
    assert out.endswith(f"{288 - 41} samples written, 0 were there already.\n")
    after = {key_of(one): one for one in await import_env.documents()}
    assert after == before | {key_of(one): one for one in (*kept, bare)}
    assert len(await import_env.documents()) == len(expected)


async def test_events_of_all_kinds_out_of_order_twice_and_malformed_make_the_same_samples(import_env: ImportEnv) -> None:
    start = import_env.now - 4 * DAY
    cloudwatch = {"cpu_utilization": 30.0, "memory_utilization": 0.0, "collected_at": rfc3339(start + 250)}
    created = {"name": "lab 1", "aws_region": "eu-west-3", "status": "pending", "created_at": to_datetime(start - 90 * DAY)}
    w = {"aggregate_id": "w"}
    good = [
        telemetry("w", start + 10, 10.0),
        telemetry("w", start + 200, 20.0, active_labs_count=3),
        {"type": CLOUDWATCH, "data": w | cloudwatch},
        {"type": "cml_worker.status.updated.v1", "data": {**w, "new_status": "stopping", "updated_at": start + 280}},
        {"event_type": "CMLWorkerTerminatedDomainEvent", "payload": {**w, "terminated_at": (start + 310) * 1000}},
        {"type": "cml_worker.created.v1", "data": w | created},
    ]
    bad = [
        telemetry("w", import_env.now + DAY, 99.0),
        telemetry("w", start - 80 * DAY, 99.0),
        telemetry("w", import_env.now - HOUR, 99.0),
        {**telemetry("", start, 99.0), "updated_at": to_datetime(start)},
        {**telemetry("w", start, 99.0), "updated_at": "tomorrow"},
        {**telemetry("w", start + 299, 99.0), "cpu_utilization": "lots", "memory_utilization": 1e300, "active_labs_count": []},
        {"type": TELEMETRY, "data": '{"aggregate_id": "w"}'},
        {"type": "LabStartedDomainEvent", "aggregate_id": "w", "updated_at": to_datetime(start)},
        {"type": {"a": 1}, "aggregate_id": 5},
    ]
    events = [*reversed(good), *bad, *good]
    numbered = [{"_id": number if number % 2 else str(number), **one} for number, one in enumerate(events)]
    await import_env.database[EVENTS].insert_many(numbered)
    status, out, _ = await import_env.run("70d")
    assert status == 0
    assert sorted(await import_env.documents(), key=key_of) == [
        {"worker_id": "w", "region": "eu-west-3", "timestamp": to_datetime(start), "cpu_utilization": 30.0,
         "memory_utilization": 50.0, "active_labs_count": 3, "status": "stopping"},
        {"worker_id": "w", "region": "eu-west-3", "timestamp": to_datetime(start + PERIOD), "status": "terminated"},
    ]  # fmt: skip
    for sentence in (
        "Skipped: 1 event without the id of a worker; the first: _id ",
        "Skipped: 1 event without a valid time; the first: updated_at is 'tomorrow'.",
        "Skipped: 1 event with a text as payload, which is not parsed; the first: _id ",
        "Skipped: 1 event with a time in the future.",
        "Skipped: 3 events from before --since.",
        "Skipped: 1 event of periods that are left to `serve` (gap_fill_window), or from --until on.",
        "Skipped: 1 event without CPU, memory, labs, or status.",
        "Left out: 1 value of cpu_utilization; the first: 'lots', not a number from 0 to 100.",
        "1 worker known only from the events: each gets an entry in the inventory.",
    ):
        assert sentence in out, out
    entry = await import_env.database[INVENTORY].find_one({"_id": "w"})
    assert entry is not None
    assert (entry["name"], entry["status"], entry["region"]) == ("lab 1", "terminated", "eu-west-3")
    assert entry["terminated_at"] == to_datetime(start + 310)


async def test_what_exceeds_the_retention_is_skipped_and_counted(import_env: ImportEnv) -> None:
    import_env.settings["mongodb"]["retention"] = "3d"
    expected = await import_env.events(1, import_env.now - 6 * DAY, import_env.now - 2 * DAY)
    status, out, _ = await import_env.run()
    assert status == 0
    found = await import_env.cpus()
    skipped = re.search(r"^Skipped: (\d+) events older than the retention of the history\.$", out, re.M)
    assert skipped, out
    assert int(skipped[1]) == len(expected) - len(found)
    assert found.items() <= expected.items()
    assert 285 <= len(found) <= 288


async def test_only_the_workers_and_the_window_asked_for_are_imported(import_env: ImportEnv) -> None:
    now = import_env.now
    await import_env.events(3, now - 6 * DAY, now - 2 * DAY)
    status, out, _ = await import_env.run("5d", until=now - 4 * DAY, workers=("w001",))
    assert status == 0
    keys = set(await import_env.cpus())
    assert {worker for worker, _ in keys} == {"w001"}
    assert {at for _, at in keys} <= {to_datetime(at) for at in range(now - 5 * DAY, now - 4 * DAY, PERIOD)}
    assert 287 <= len(keys) <= 288
    assert f"Skipped: {2 * 4 * 288:,} events of workers other than those of --worker." in out


async def test_an_event_without_a_known_region_is_imported_with_an_empty_one(import_env: ImportEnv) -> None:
    await import_env.database[EVENTS].insert_one(telemetry("w", import_env.now - 2 * DAY, 5.0))
    _, out, _ = await import_env.run()
    assert '1 worker without a known region: their samples have the region "".' in out
    assert [one["region"] for one in await import_env.documents()] == [""]


async def test_ids_of_many_types_are_all_read(import_env: ImportEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of two: each begins at an id of the type before it."""
    monkeypatch.setattr("exporter.commands.import_events.scanner.PAGE_EVENTS", 2)
    start = import_env.now - 3 * DAY
    ids: list[object] = [1, 2.5, "a", "b", {"k": 1}, {"k": 2}, ObjectId(), ObjectId(), True, to_datetime(start), b"x", None]
    await import_env.database[EVENTS].insert_many(
        [{"_id": each, **telemetry("w", start + number * PERIOD, 5.0)} for number, each in enumerate(ids)]
    )
    _, out, _ = await import_env.run()
    assert len(await import_env.documents()) == len(ids)
    assert re.search(rf"^{TELEMETRY} +{len(ids)}$", out, re.M)


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_a_missing_collection_and_unknown_types_are_refused_with_the_setting_to_change(import_env: ImportEnv) -> None:
    await import_env.database["manager_events"].insert_one({"type": "Other", "x": 1})
    with pytest.raises(ConfigError, match=r"events.collection: \S+\.domain_events does not exist.*such a name: manager_events"):
        await import_env.run()
    import_env.settings["events"] = {"collection": "manager_events"}
    with pytest.raises(ConfigError, match=r"events.types: no event of .* the first document has type 'Other'; add the types"):
        await import_env.run()
    import_env.settings["events"]["types"] = {"Other": {"cpu": ["x"], "worker_id": ["w"]}}
    status, out, _ = await import_env.run()
    assert status == 0
    assert "Skipped: 1 event without the id of a worker" in out
    import_env.settings["mongodb"]["history"] = None
    with pytest.raises(ConfigError, match=r"mongodb\.history is null"):
        await import_env.run()


async def test_an_empty_collection_is_nothing_to_do(import_env: ImportEnv) -> None:
    await import_env.database.create_collection(EVENTS)
    status, out, _ = await import_env.run()
    assert status == 0
    assert out.startswith("Nothing to do: ")


async def test_the_least_role_with_find_on_the_events_is_enough_and_less_is_named(
    import_env: ImportEnv, mongo_auth: AuthMongod
) -> None:
    name = f"events_{import_env.database.name}"
    import_env.settings["mongodb"]["uri"] = mongo_auth.exporter_uri(name)
    async with connect(mongo_auth.root_uri) as client:
        await client[name][EVENTS].insert_one(telemetry("w", import_env.now - 2 * DAY, 5.0))
        with pytest.raises(IncompatibleStoreError, match=rf"grant it `find` on {name}.domain_events, which only import-events"):
            await import_env.run()
        more = [
            {"resource": {"db": name, "collection": collection}, "actions": list(actions)}
            for collection, actions in IMPORT_PRIVILEGES.items()
        ]
        import_env.settings["mongodb"]["uri"] = mongo_auth.user(name, [*least_role(name), *more], "importer")
        status, _, _ = await import_env.run()
        assert status == 0
        assert await client[name][HISTORY].count_documents({}) == 1
        await client.drop_database(name)


async def test_a_backfill_or_purge_and_an_import_exclude_each_other(
    import_env: ImportEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.QUICK", replace(QUICK, lease=0.4))
    await import_env.database[EVENTS].insert_one(telemetry("w", import_env.now - 2 * DAY, 5.0))
    lease = Lease(import_env.database, owner="a backfill", name=BACKFILL)
    assert await lease.acquire_or_renew()
    with pytest.raises(StoreUnavailableError, match="another backfill, an import of events or a purge is writing old samples"):
        await import_env.run()
    assert await import_env.documents() == []
    await lease.release()
    assert (await import_env.run())[0] == 0


# -- interruptions, and a running exporter -----------------------------------------------------------------------------


def journal_count(import_env: ImportEnv, of: str) -> int:
    file = import_env.folder / "data" / "import-events" / "outbox.db"
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as journal:
        try:
            number: int = journal.execute(f"SELECT COUNT(*) FROM {of}").fetchone()[0]
        except sqlite3.OperationalError:  # it is just being made
            return 0
    return number


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]", within: float = 60) -> None:
    deadline = time.monotonic() + scaled(within)
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def half_moved(env: ImportEnv) -> bool:
    return journal_count(env, "import_plan WHERE complete") > 0 and 0 < journal_count(env, "event_period") < 20_000


MOMENTS: list[Callable[[ImportEnv], object]] = [
    lambda env: journal_count(env, "event_period") > 0,
    lambda env: journal_count(env, "event_period") > 20_000,
    lambda env: journal_count(env, "sample") > 0,
    half_moved,
]
"""The first page is read, many are, samples are in the outbox, half of them have left the journal."""


async def test_killed_at_each_stage_and_gone_on_with_every_period_is_there_once(import_env: ImportEnv) -> None:
    expected = await import_env.events(30, import_env.now - 8 * DAY, import_env.now - 4 * DAY)
    for moment in MOMENTS:
        process = import_env.command("--since", "10d")
        try:
            wait_for(lambda moment=moment: moment(import_env), process)  # type: ignore[misc]
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -9
    process = import_env.command("--since", "10d")
    status, out, _ = ended(process)
    assert status == 0
    assert "Going on with the import of " in out
    found = await import_env.cpus()
    assert len(expected) == 30 * 4 * 288
    assert found == expected


@pytest.mark.nightly("test_killed_at_each_stage_and_gone_on_with_every_period_is_there_once")
async def test_sigterm_ends_it_with_130_and_the_same_command_goes_on(import_env: ImportEnv) -> None:
    expected = await import_env.events(30, import_env.now - 8 * DAY, import_env.now - 4 * DAY)
    process = import_env.command("--since", "10d", "--quiet")
    wait_for(lambda: journal_count(import_env, "event_period") > 0, process)
    process.send_signal(signal.SIGTERM)
    status, _, err = ended(process)
    assert status == 130
    assert re.fullmatch(r"Interrupted: the events are not all read; run the same command to go on\.\n", err)
    status, out, err = ended(import_env.command("--since", "10d", "--quiet"))
    assert (status, err) == (0, "")
    assert re.search(rf"^{TELEMETRY} +{len(expected):,}$", out, re.M), "an event was counted twice or not at all"
    assert await import_env.cpus() == expected


@pytest.mark.nightly("test_killed_at_each_stage_and_gone_on_with_every_period_is_there_once")
async def test_a_mongod_that_goes_away_while_events_are_read_and_written_costs_nothing(
    own_mongod: Mongod, tmp_path: Path
) -> None:
    """Its connections break twice: amid the reading, and amid the writing. The command goes on by itself."""
    uri = own_mongod.uri.replace("/?", "/cml?")
    settings = {"mongodb": {"uri": uri, "retention": "60d"}, "data_dir": str(tmp_path / "data")}
    async with connect(uri) as client:
        env = ImportEnv(settings, client["cml"], tmp_path)
        expected = await env.events(30, env.now - 8 * DAY, env.now - 4 * DAY)
        process = env.command("--since", "10d")
        for table in ("event_period", "sample"):
            wait_for(lambda table=table: journal_count(env, table) > 0, process)  # type: ignore[misc]
            own_mongod.kill()
            own_mongod.start()
        status, _, _ = ended(process)
        assert status == 0
        assert await env.cpus() == expected


async def test_other_flags_begin_a_new_import(import_env: ImportEnv) -> None:
    await import_env.events(30, import_env.now - 8 * DAY, import_env.now - 4 * DAY)
    process = import_env.command("--since", "10d")
    wait_for(lambda: journal_count(import_env, "sample") > 0, process)
    process.kill()
    process.communicate()
    status, out, _ = await import_env.run("7d", workers=("w003",))
    assert status == 0
    assert re.search(r"^The interrupted import of \S+ had other flags or settings; a new one begins\.$", out, re.M)
    assert "w003" in {worker for worker, _ in await import_env.cpus()}


async def test_beside_a_running_exporter_no_sample_comes_twice_and_its_own_stay(
    import_env: ImportEnv, run_exporter: RunExporter
) -> None:
    """The exporter writes the last closed periods; the events know these and those from long before."""
    await import_env.worker("w000", active_labs_count=7)
    import_env.settings |= {"period": "1m", "cloudwatch": {"enabled": False, "interval": "1m"}, "settle_delay": "1m"}
    import_env.settings |= {"absence_timeout": "2m", "gap_fill_window": "3m", "max_age": "10m"}
    exporter = run_exporter({**import_env.settings, "data_dir": str(import_env.folder / "live")})
    now = align(int(time.time()), 60)
    events = [telemetry("w000", at + 5, 1.0) for at in range(now - 2 * HOUR, now, 60)]
    await import_env.database[EVENTS].insert_many(events)
    exporter.wait_for(lambda: 'msg="collection cycle finished"' in exporter.logged(), 90, "observing")
    status, out, _ = await import_env.run("1d")
    assert status == 0
    await _until(lambda: import_env.database[HISTORY].count_documents({"active_labs_count": 7}), 180)
    documents = await import_env.documents()
    assert max(Counter(map(key_of, documents)).values()) == 1
    imported = {at for one in documents if one.get("active_labs_count") == 2 for at in [one["timestamp"]]}
    until = re.search(r"until (\S+Z):", out)
    assert until
    assert imported == {to_datetime(at) for at in range(now - 2 * HOUR, int(datetime.fromisoformat(until[1]).timestamp()), 60)}
    gone = {one["timestamp"] for one in documents if one.get("active_labs_count") == 7}
    assert gone
    assert min(gone) >= datetime.fromisoformat(until[1])
    entry = exporter.get("/api/workers/w000/metrics/history", params={"start": "1d"})
    assert entry.status_code == 200


async def test_a_worker_known_only_from_events_is_found_by_the_api(import_env: ImportEnv, run_exporter: RunExporter) -> None:
    start = import_env.now - 3 * DAY
    await import_env.database[EVENTS].insert_one(telemetry("gone", start + 5, 42.0))
    await import_env.run()
    exporter = run_exporter({**import_env.settings, "data_dir": str(import_env.folder / "live")})
    window = {"start": rfc3339(start), "end": rfc3339(start + PERIOD)}
    answer = exporter.get("/api/workers/gone/metrics/history", params=window)
    assert answer.status_code == 200, answer.text
    assert [row["cpu_utilization"] for row in answer.json()["data"]] == [42.0]


async def _until(condition: Callable[[], Awaitable[object]], within: float) -> None:
    deadline = time.monotonic() + scaled(within)
    while not await condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.5)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=scaled(120))
    print(out, err, file=sys.stderr)
    return process.returncode, out, err
