"""`backfill` against a real mongod and the fake CloudWatch: the set is the ledger's, the calls are the plan's."""

import io
import re
import signal
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from exporter.commands.backfill import command as command_module
from exporter.commands.backfill.fetcher import CONCURRENT_CALLS, RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.backfill.planner import Options
from exporter.core.errors import ConfigError, IncompatibleStoreError, OutboxLockedError, StoreUnavailableError
from exporter.core.periods import DAY, HOUR, align, rfc3339, to_datetime
from exporter.demo.mongod import Mongod
from exporter.pipeline.mirror import Mirror
from exporter.pipeline.outbox import Outbox
from exporter.storage.inventory import INVENTORY
from exporter.storage.lease import BACKFILL, Lease
from exporter.storage.mongo import Database
from exporter.storage.repository import WorkerMetricsRepository
from tests.fixtures.mongo import AuthMongod, connect
from tests.fixtures.process import RunCommand
from tests.helpers.cases import by_day
from tests.helpers.expected_history import Member, Point, assert_true, expected_history, points_of
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.fleet_env import PERIOD, REGIONS, FleetEnv, ended, fast_settings, seconds_of, wait_for
from tests.tools import backfill_crash_tests

QUICK = RetryPolicy(mongodb=1, lease=0.4, calls=(0.05, 0.1, 0.1))
PLANNED = re.compile(r"^(?:all|\S+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d.]+)$", re.MULTILINE)


class BackfillEnv(FleetEnv):
    """Runs backfills."""

    async def run(self, since: str = "1d", **options: Any) -> tuple[int, str, str]:  # noqa: ANN401  # Options' fields
        """Run one backfill in this process: exit status, output, errors."""
        out, err = io.StringIO(), io.StringIO()
        begin = int(time.time()) - seconds_of(since)
        wanted = Options(begin, since, **options)
        status = await command_module.run(self.parsed, wanted, out, err, GracefulStop(), QUICK)
        return status, out.getvalue(), err.getvalue()

    async def points(self) -> list[Point]:
        return points_of(await self.documents())


@pytest.fixture
def backfill_env(mongod: Mongod, database: Database, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> BackfillEnv:
    settings = fast_settings(mongod, database, fake_cloudwatch, tmp_path)
    return BackfillEnv(settings, database, fake_cloudwatch, tmp_path)


def planned(out: str) -> tuple[int, int, int, int, float]:
    """Workers, periods missing, calls, metrics billed, dollars: the last row of the table."""
    *whole, dollars = PLANNED.findall(out)[-1]
    workers, periods, calls, metrics = (int(figure.replace(",", "")) for figure in whole)
    return workers, periods, calls, metrics, float(dollars)


def due(fake: FakeCloudWatch, members: Sequence[Member], out: str) -> set[Point]:
    """The ledger of the plan's window."""
    found = re.search(r"from (\S+Z) until (\S+Z)", out)
    assert found, out
    since, until = found.groups()
    return {
        point
        for point in expected_history(fake, members, align(int(time.time()), PERIOD))
        if since <= rfc3339(point[1]) < until
    }


async def test_an_empty_history_becomes_the_ledger_by_the_calls_and_the_price_the_dry_run_told(
    backfill_env: BackfillEnv,
) -> None:
    members = await backfill_env.fleet(10, regions=REGIONS[:2])
    status, dry, _ = await backfill_env.run("2d", dry_run=True)
    assert (status, backfill_env.fake.metrics_billed, await backfill_env.documents()) == (0, 0, [])
    status, out, _ = await backfill_env.run("2d")
    assert status == 0
    workers, periods, calls, metrics, dollars = planned(out)
    assert planned(dry) == (workers, periods, calls, metrics, dollars)
    assert (workers, calls, metrics) == (10, 2, 18)
    assert periods == pytest.approx(10 * 573, abs=20)
    assert (backfill_env.fake.calls["GetMetricData"], backfill_env.fake.metrics_billed) == (calls, metrics)
    assert dollars == pytest.approx(metrics / 1000 * 0.01)
    expected = due(backfill_env.fake, members, out)
    assert assert_true(await backfill_env.documents(), expected, int(time.time())) == periods == len(expected)
    assert f"{periods:,} samples written, 0 were there already, 0 periods empty; 2 calls, 0.00018 dollars." in out
    assert all("status" not in one and "active_labs_count" not in one for one in await backfill_env.documents())


async def test_a_history_that_is_dropped_in_the_middle_ends_the_run_and_the_next_one_fills_all(
    backfill_env: BackfillEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = await backfill_env.fleet(6, regions=REGIONS[:2])
    delete, batches = Outbox.delete, []

    def counted(self: Outbox, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        delete(self, *arguments, **options)
        batches.append(1)
        if len(batches) == 1:
            with MongoClient[dict[str, Any]](backfill_env.parsed.mongodb_uri) as client:
                client[backfill_env.database.name]["worker_metrics_timeseries"].drop()

    monkeypatch.setattr(Outbox, "delete", counted)
    monkeypatch.setattr(command_module, "Mirror", partial(Mirror, batch=500))
    with pytest.raises(IncompatibleStoreError, match=r"dropped or replaced while this ran.*it makes a new plan"):
        await backfill_env.run("2d")
    status, out, _ = await backfill_env.run("2d")
    assert status == 0
    assert assert_true(await backfill_env.documents(), due(backfill_env.fake, members, out), int(time.time())) > 3000
    status, out, _ = await backfill_env.run("2d")
    assert out.startswith("Nothing to do: ")


async def test_a_worker_without_a_region_is_named_and_costs_nothing(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(2)
    await backfill_env.database["workers"].insert_one({"_id": "lost", "status": "running", "aws_instance_id": "i-lost"})
    status, out, _ = await backfill_env.run("2h", dry_run=True)
    assert status == 0
    assert "1 worker without a region cannot be filled; the manager must write it." in " ".join(out.split())
    assert planned(out)[0] == 2


async def test_a_whole_history_is_left_alone_and_costs_nothing(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(3)
    await backfill_env.run("8h")
    before, billed = await backfill_env.documents(), backfill_env.fake.metrics_billed
    status, out, _ = await backfill_env.run("6h")
    assert (status, backfill_env.fake.metrics_billed, await backfill_env.documents()) == (0, billed, before)
    assert out.startswith("Nothing to do: ")


async def test_holes_are_filled_and_no_sample_that_is_there_changes_or_comes_twice(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(4)
    await backfill_env.run("12h")
    history = backfill_env.database["worker_metrics_timeseries"]
    before = await backfill_env.documents()
    mine = sorted((one for one in before if one["worker_id"] == "w001"), key=lambda one: one["timestamp"])
    changed = {**mine[20], "cpu_utilization": 99.5, "status": "running"}
    await history.delete_many({"worker_id": "w001"})
    await history.insert_many([dict(one) for one in (changed, *mine[21:40], *mine[60:])])
    status, out, _ = await backfill_env.run("11h")
    assert status == 0
    assert planned(out)[:2] == (1, 20 + 20 - sum(one["timestamp"] < since_of(out) for one in mine))
    expected = {key_of(one): one for one in before if one["worker_id"] != "w001" or one["timestamp"] >= since_of(out)}
    expected[key_of(changed)] = changed
    after = await backfill_env.documents()
    assert len(after) == len(expected)
    assert {key_of(one): one for one in after} == expected


def key_of(document: dict[str, Any]) -> tuple[str, Any]:
    return document["worker_id"], document["timestamp"]


def since_of(out: str) -> Any:  # noqa: ANN401  # a datetime, as the documents' keys
    found = re.search(r"from (\S+Z) until", out)
    assert found, out
    return datetime.fromisoformat(found[1])


async def test_the_least_role_is_enough(backfill_env: BackfillEnv, mongo_auth: AuthMongod) -> None:
    members = await backfill_env.fleet(1)
    name = f"least_{backfill_env.database.name}"
    backfill_env.settings["mongodb"]["uri"] = mongo_auth.exporter_uri(name)
    async with connect(mongo_auth.root_uri) as client:
        await client[name]["workers"].insert_one(members[0].aggregate())
        status, out, _ = await backfill_env.run("3h")
        assert status == 0
        assert await client[name]["worker_metrics_timeseries"].count_documents({}) == planned(out)[1]
        await client.drop_database(name)


async def test_a_dry_run_leaves_nothing_behind(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(2)
    await backfill_env.run(dry_run=True)
    assert not (backfill_env.folder / "data").exists()
    assert await backfill_env.database.list_collection_names() == ["workers"]


async def test_cloudwatch_without_data_is_no_failure_and_nothing_is_invented(backfill_env: BackfillEnv) -> None:
    members = await backfill_env.fleet(3)
    for member in members:
        backfill_env.fake.change(member.instance_id, runs=((None, 0),))
    status, out, _ = await backfill_env.run()
    assert status == 0
    assert await backfill_env.documents() == []
    assert re.search(r"^0 samples written, 0 were there already, (\d+) periods empty", out, re.MULTILINE)


@pytest.mark.parametrize(
    "mode",
    by_day(
        ["cut", "partial"],
        ["cut", "trunc", "partial", "throttle", "internal"],
        pytest.mark.nightly("test_calls_that_fail_once_are_asked_again_until_the_set_is_the_ledger"),
    ),
)
async def test_calls_that_fail_once_are_asked_again_until_the_set_is_the_ledger(backfill_env: BackfillEnv, mode: str) -> None:
    members = await backfill_env.fleet(4, regions=REGIONS[:2])
    backfill_env.fake.fault("GetMetricData", mode, 2)
    status, out, err = await backfill_env.run("6h")
    assert (status, err) == (0, "")
    expected = due(backfill_env.fake, members, out)
    assert assert_true(await backfill_env.documents(), expected, int(time.time())) == len(expected)


async def test_what_cloudwatch_never_answers_is_left_undone_and_the_next_run_asks_that_alone(backfill_env: BackfillEnv) -> None:
    members = await backfill_env.fleet(8, regions=REGIONS[:2])
    backfill_env.fake.fault("GetMetricData", "access_denied", 99, region=REGIONS[1])
    status, out, err = await backfill_env.run("6h")
    assert status == 1
    assert re.search(
        r"^Incomplete: 1 call and \d+ periods are left, .*GetMetricData is not allowed.* Run it again\.$", err, re.M
    )
    assert {one["region"] for one in await backfill_env.documents()} == {REGIONS[0]}
    backfill_env.fake.clear()
    backfill_env.fake.reset()
    status, again, _ = await backfill_env.run("6h")
    assert status == 0
    assert "1 call left" in again
    assert {region: calls["GetMetricData"] for region, calls in backfill_env.fake.counters()["by_region"].items()} == {
        REGIONS[1]: 1
    }
    expected = due(backfill_env.fake, members, out)
    assert assert_true(await backfill_env.documents(), expected, int(time.time())) == len(expected)


async def test_of_a_partial_answer_only_the_unanswered_metrics_are_asked_again(backfill_env: BackfillEnv) -> None:
    """The fake's partial mode marks every metric, so the plan's metrics are billed twice and no more."""
    await backfill_env.fleet(4)
    backfill_env.fake.fault("GetMetricData", "partial", 1)
    _, out, _ = await backfill_env.run("6h")
    assert backfill_env.fake.metrics_billed == 2 * planned(out)[3]


async def test_a_replaced_and_a_stopped_instance_are_asked_for_the_time_they_ran(backfill_env: BackfillEnv) -> None:
    """The inventory saw w run on i-a, then on i-b; in between nobody looked, and both were up for an hour."""
    now = align(int(time.time()), PERIOD)
    switch, stop = now - 10 * HOUR, now - 3 * HOUR
    backfill_env.fake.add("i-0a", runs=[(None, switch + HOUR)])
    backfill_env.fake.add("i-0b", runs=[(switch, stop)])
    member = Member("w", "i-0b", REGIONS[0], now - 2 * DAY)
    await backfill_env.database["workers"].insert_one(member.aggregate(status="stopped"))
    sightings = [
        {"id": "i-0a", "region": REGIONS[0], "from": to_datetime(now - 2 * DAY), "to": to_datetime(switch)},
        {"id": "i-0b", "region": REGIONS[0], "from": to_datetime(switch + HOUR), "to": to_datetime(now)},
    ]
    await backfill_env.database[INVENTORY].insert_one(entry_of("w", sightings, now))
    status, out, _ = await backfill_env.run("1d")
    assert status == 0
    assert planned(out)[3] == 4
    ledger = backfill_env.fake.ledger(now - DAY, now)
    expected = set()
    for at in range(now - DAY, now, PERIOD):
        running = "i-0b" if at >= switch else "i-0a"  # the newer one wins
        if (running, "cpu", at) in ledger:
            expected.add(("w", at, ledger[running, "cpu", at], ledger[running, "memory", at]))
    found = {point for point in await backfill_env.points() if point[1] >= now - DAY}
    assert found == {point for point in expected if point[1] >= min(at for _, at, _, _ in found)}
    assert len(found) >= (21 * HOUR) // PERIOD - 1
    assert max(at for _, at, _, _ in found) == stop - PERIOD


async def test_a_worker_that_is_gone_is_filled_until_it_was_last_seen(backfill_env: BackfillEnv) -> None:
    now = align(int(time.time()), PERIOD)
    backfill_env.fake.add("i-0a")
    seen = now - 5 * HOUR + 7
    sightings = [{"id": "i-0a", "region": REGIONS[0], "from": to_datetime(now - DAY), "to": to_datetime(seen)}]
    await backfill_env.database[INVENTORY].insert_one(entry_of("gone", sightings, seen, created_at=to_datetime(now - 8 * HOUR)))
    await backfill_env.fleet(1)
    status, _, _ = await backfill_env.run("1d", workers=("gone",))
    assert status == 0
    starts = sorted(at for worker, at, _, _ in await backfill_env.points() if worker == "gone")
    assert starts == list(range(now - 8 * HOUR, align(seen, PERIOD) + PERIOD, PERIOD))
    assert {worker for worker, _, _, _ in await backfill_env.points()} == {"gone"}


def entry_of(worker_id: str, instances: list[dict[str, Any]], last_seen: int, **more: object) -> dict[str, Any]:
    return {
        "_id": worker_id,
        "worker_id": worker_id,
        "region": REGIONS[0],
        "status": "running",
        "first_seen": to_datetime(last_seen),
        "last_seen": to_datetime(last_seen),
        "instances": instances,
        **more,
    }


async def test_a_malformed_instance_id_costs_nobody_else_a_sample(backfill_env: BackfillEnv) -> None:
    members = await backfill_env.fleet(5)
    bad = [{**members[0].aggregate(), "_id": f"bad{n}", "aws_instance_id": f"not-an-instance-{n}"} for n in range(2)]
    await backfill_env.database["workers"].insert_many(bad)
    status, out, err = await backfill_env.run("6h")
    assert (status, err) == (0, "")
    assert "Skipped malformed instance ids: not-an-instance-0, not-an-instance-1." in out
    expected = due(backfill_env.fake, members, out)
    assert assert_true(await backfill_env.documents(), expected, int(time.time())) == len(expected)


async def test_beyond_the_retention_nothing_is_filled_and_a_sentence_says_so(backfill_env: BackfillEnv) -> None:
    backfill_env.settings["mongodb"]["retention"] = "1d"
    await backfill_env.fleet(1)
    _, out, _ = await backfill_env.run("3d", dry_run=True)
    assert planned(out)[1] == pytest.approx(285, abs=2)
    assert "The history keeps samples for 1d: nothing before" in out


@pytest.mark.parametrize("since", ["words", "0d", "2999-01-01T00:00:00Z"])
def test_a_since_that_is_no_past_time_is_a_wrong_command_line(run_here: RunCommand, since: str) -> None:
    done = run_here("backfill", "--since", since)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("cml-worker-exporter backfill: error: argument --since: ")


async def test_a_since_within_heal_is_nothing_to_do(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(1)
    backfill_env.settings["gap_fill_window"] = "2h"
    status, out, _ = await backfill_env.run("1h")
    assert status == 0
    assert out.startswith("Nothing to do: ")
    told = f"1 worker document in {backfill_env.database.name}.workers.\n"
    assert out.endswith("The last 2h (gap_fill_window) are filled by `serve` itself.\n" + told)


async def test_the_window_of_the_running_exporter_counts_where_it_is_longer_than_that_of_the_command(
    backfill_env: BackfillEnv,
) -> None:
    await backfill_env.fleet(1)
    collection = WorkerMetricsRepository(backfill_env.database).collection
    collection.gap_fill_window = 4 * HOUR
    await collection.ensure()
    status, out, _ = await backfill_env.run("3h")
    assert status == 0
    told = f"1 worker document in {backfill_env.database.name}.workers.\n"
    assert out.endswith("The last 4h (gap_fill_window) are filled by `serve` itself.\n" + told)
    assert await backfill_env.documents() == []


async def test_an_unknown_worker_no_history_and_no_cloudwatch_are_refused_each_in_a_sentence(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(1)
    with pytest.raises(ConfigError, match="--worker: 'w999' is neither among the worker documents nor in the inventory"):
        await backfill_env.run(workers=("w999",))
    for section, key, value, sentence in [
        ("cloudwatch", "enabled", False, "cloudwatch.enabled is false"),
        ("mongodb", "history", None, "mongodb.history is null"),
    ]:
        backfill_env.settings[section] = {**backfill_env.settings[section], key: value}
        with pytest.raises(ConfigError, match=sentence):
            await backfill_env.run()


async def test_a_history_of_another_period_is_refused_by_the_dry_run_too(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(1)
    await backfill_env.run("4h")
    backfill_env.settings["period"] = "1m"
    for dry_run in (True, False):
        with pytest.raises(IncompatibleStoreError, match="holds samples of 5m, but period is 1m"):
            await backfill_env.run("3h", dry_run=dry_run)


async def test_a_plan_that_costs_too_much_is_refused_before_anything_is_asked(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(4)
    with pytest.raises(
        ConfigError, match=r"costs 0\.0001 dollars, more than --max-usd 1e-05 allows; agree with a higher --max-usd"
    ):
        await backfill_env.run(max_usd=0.00001)
    backfill_env.settings["cloudwatch"]["max_usd_per_day"] = 0.00002
    with pytest.raises(ConfigError, match=r"cloudwatch\.max_usd_per_day \(2e-05\)"):
        await backfill_env.run()
    assert backfill_env.fake.metrics_billed == 0
    status, _, _ = await backfill_env.run(max_usd=0.01)
    assert status == 0


# -- two at once, interruptions ----------------------------------------------------------------------------------------


async def test_of_two_backfills_on_one_machine_the_second_is_told(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(2)
    backfill_env.fake.latency = 0.3
    first = backfill_env.command("backfill", "--since", "6h")
    wait_for(lambda: backfill_env.fake.calls["ListMetrics"] > 0)
    with pytest.raises(OutboxLockedError, match=f"another backfill is running here; .*process id {first.pid}"):
        await backfill_env.run("6h")
    assert ended(first)[0] == 0


async def test_of_two_backfills_on_two_machines_the_second_is_told(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(1)
    lease = Lease(backfill_env.database, owner="another machine", name=BACKFILL)
    assert await lease.acquire_or_renew()
    with pytest.raises(StoreUnavailableError, match="another backfill, an import of events or a purge is writing old samples"):
        await backfill_env.run("6h")
    assert backfill_env.fake.metrics_billed == 0
    await lease.release()
    status, _, _ = await backfill_env.run("6h")
    assert status == 0


async def test_sigterm_ends_it_with_130_keeps_what_was_asked_and_the_same_command_goes_on(backfill_env: BackfillEnv) -> None:
    members = await backfill_env.fleet(12, regions=REGIONS)
    backfill_env.fake.latency = 0.6
    process = backfill_env.command("backfill", "--since", "1d")
    wait_for(lambda: backfill_env.fake.calls["GetMetricData"] >= CONCURRENT_CALLS)
    process.send_signal(signal.SIGTERM)
    status, out, err = ended(process)
    assert status == 130
    assert re.search(r"^Interrupted: 2 calls and [\d,]+ periods are left, [\d,]+ samples wait; run the same command", err, re.M)
    assert backfill_env.fake.calls["GetMetricData"] == CONCURRENT_CALLS
    backfill_env.fake.latency = 0
    status, again, _ = await backfill_env.run("1d")
    assert status == 0
    assert "2 calls left" in again
    assert (backfill_env.fake.calls["GetMetricData"], backfill_env.fake.metrics_billed) == planned(out)[2:4]
    expected = due(backfill_env.fake, members, out)
    assert assert_true(await backfill_env.documents(), expected, int(time.time())) == len(expected)


async def test_other_parameters_replace_an_unfinished_plan_once_its_samples_are_written(backfill_env: BackfillEnv) -> None:
    await backfill_env.fleet(12, regions=REGIONS)
    backfill_env.fake.latency = 0.6
    process = backfill_env.command("backfill", "--since", "1d")
    wait_for(lambda: backfill_env.fake.calls["GetMetricData"] >= CONCURRENT_CALLS)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    backfill_env.fake.latency = 0
    status, out, _ = await backfill_env.run("20h", workers=("w003",))
    assert status == 0
    assert re.search(r"^The interrupted plan of \S+ was for --since 1d into \S+ .*; it is replaced by a new one\.$", out, re.M)
    kept = {point[0] for point in await backfill_env.points()}
    assert "w003" in kept
    assert len(kept) >= 3 * CONCURRENT_CALLS


async def test_a_run_with_nothing_to_do_leaves_no_plan_that_the_next_one_would_go_on_with(backfill_env: BackfillEnv) -> None:
    members = await backfill_env.fleet(2)
    await backfill_env.run("3h")
    for _ in range(2):
        status, out, _ = await backfill_env.run("2h")
        assert (status, out.startswith("Nothing to do: ")) == (0, True)
    await backfill_env.database["worker_metrics_timeseries"].delete_many({"worker_id": members[0].worker_id})
    status, out, _ = await backfill_env.run("2h")
    assert "interrupted" not in out
    assert (status, planned(out)[0]) == (0, 1)
    status, out, _ = await backfill_env.run("1h", workers=("w001",))
    assert out.startswith("Nothing to do: ")


@pytest.mark.waits(40)
async def test_killed_twice_with_a_live_exporter_beside_it_the_set_is_the_ledger(tmp_path: Path, aws_credentials: None) -> None:
    """Calls made = the plan's, plus at each kill those that were under way: asked, but their answer not yet in the journal."""
    options = backfill_crash_tests.Options(workers=16, days=2, regions=4, latency=0.4)
    figures = await backfill_crash_tests.run(options, tmp_path, say=print)
    assert figures.kills == 2
    assert figures.calls == figures.planned_calls + figures.under_way
    assert figures.under_way <= 2 * CONCURRENT_CALLS
    assert figures.samples == figures.ledger > 8000


async def test_memory_of_another_agent_is_filled_and_a_stored_plan_belongs_to_its_metric(backfill_env: BackfillEnv) -> None:
    fake = backfill_env.fake
    fake.memory_metric, fake.memory_dimension = ("Lab/Linux", "MemoryUsed"), "host"
    members = await backfill_env.fleet(4)
    fake.fault("GetMetricData", "internal", 100)
    status, out, _ = await backfill_env.run("6h")  # by the default metric; nothing is listed, and no call is answered
    assert (status, planned(out)[3]) == (1, 4)
    fake.clear()

    backfill_env.settings["cloudwatch"]["memory"] = {"namespace": "Lab/Linux", "metric": "MemoryUsed", "dimension": "host"}
    status, out, _ = await backfill_env.run("6h")
    assert status == 0
    assert planned(out)[3] == 4 + 3, "the plan of the other metric is not continued"
    assert_true(await backfill_env.documents(), due(fake, members, out), int(time.time()))
