"""`verify` against a real mongod and the fake CloudWatch: each difference is named exactly, and no call is paid for twice."""

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pymongo import AsyncMongoClient

from exporter.commands.backfill.fetcher import CONCURRENT_CALLS, RetryPolicy
from exporter.commands.backfill.interruption import GracefulStop
from exporter.commands.verify import command as command_module
from exporter.commands.verify.compare import KINDS
from exporter.commands.verify.planner import Options
from exporter.core.errors import ConfigError, OutboxLockedError, SourceError, StoreUnavailableError
from exporter.core.periods import DAY, HOUR, MINUTE, align, rfc3339, to_datetime
from exporter.demo.mongod import Mongod
from exporter.storage.inventory import INVENTORY
from exporter.storage.mongo import Database, Document
from exporter.storage.repository import WorkerMetricsRepository
from tests.fixtures.mongo import AuthMongod, connect
from tests.fixtures.process import RunCommand
from tests.helpers.cases import by_day
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.exporter_process import COMMAND
from tests.helpers.fake_cloudwatch import FakeCloudWatch, Series
from tests.helpers.fleet_env import PERIOD, REGIONS, FleetEnv, ended, fast_settings, seconds_of, wait_for

HISTORY = "worker_metrics_timeseries"
MEASURED = """
import atexit, re, sys
from pathlib import Path
from exporter.cli import main
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr))
main(sys.argv[1:])
"""
"""Runs a command and writes its peak memory in KiB; that of getrusage would be at least the test's own."""
QUICK = RetryPolicy(mongodb=1, lease=0.4, calls=(0.05, 0.1, 0.1))
PLANNED = re.compile(r"^(?:all|\S+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d.]+)$", re.MULTILINE)


class VerifyEnv(FleetEnv):
    """Runs comparisons."""

    async def fill(self, members: Sequence[Member], span: int = DAY, period: int = PERIOD, **more: object) -> None:
        """Write the history as CloudWatch has it, of the last `span` seconds."""
        await WorkerMetricsRepository(self.database, period=period).ensure_collection()
        now = align(int(time.time()), period)
        ledger = self.fake.ledger(now - span, now, period)
        documents = []
        for member in members:
            for start in range(now - span, now, period):
                values = {
                    field: ledger[key]
                    for field, metric in (("cpu_utilization", "cpu"), ("memory_utilization", "memory"))
                    if (key := (member.instance_id, metric, start)) in ledger
                }
                sample = {"worker_id": member.worker_id, "region": member.region, "timestamp": to_datetime(start)}
                documents.append({**sample, **values, **more})
        await self.database[HISTORY].insert_many(documents)

    async def run(self, since: str = "20h", **options: Any) -> tuple[int, str, str]:  # noqa: ANN401  # Options' fields
        """Run one comparison in this process: exit status, output, errors."""
        out, err = io.StringIO(), io.StringIO()
        wanted = Options(int(time.time()) - seconds_of(since), since, **{"quiet": True, **options})
        status = await command_module.run(self.parsed, wanted, out, err, GracefulStop(), QUICK)
        return status, out.getvalue(), err.getvalue()

    async def result(self, since: str = "20h", **options: Any) -> tuple[int, dict[str, Any]]:  # noqa: ANN401
        status, out, _ = await self.run(since, json=True, **options)
        return status, json.loads(out)

    async def change(self, worker_id: str, start: int, **fields: object) -> None:
        """Replace one sample by hand, None: without the field."""
        history = self.database[HISTORY]
        found = await self.remove(worker_id, start)
        await history.insert_one({name: value for name, value in (found | fields).items() if value is not None})

    async def remove(self, worker_id: str, start: int) -> dict[str, Any]:
        """Delete one sample by hand and return it; before MongoDB 7 only all samples of a worker can be deleted."""
        history = self.database[HISTORY]
        samples = await history.find({"worker_id": worker_id}, {"_id": 0}).to_list(None)
        kept = [sample for sample in samples if sample["timestamp"] != to_datetime(start)]
        (found,) = (sample for sample in samples if sample["timestamp"] == to_datetime(start))
        await history.delete_many({"worker_id": worker_id})
        await history.insert_many([dict(sample) for sample in kept])
        return found


@pytest.fixture
def env(mongod: Mongod, database: Database, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> VerifyEnv:
    return VerifyEnv(fast_settings(mongod, database, fake_cloudwatch, tmp_path), database, fake_cloudwatch, tmp_path)


def planned(out: str) -> tuple[int, int, int, int, float]:
    """Workers, periods, calls, metrics billed, dollars: the last row of the plan."""
    *whole, dollars = PLANNED.findall(out)[-1]
    workers, periods, calls, metrics = (int(figure.replace(",", "")) for figure in whole)
    return workers, periods, calls, metrics, float(dollars)


def ago(seconds: int) -> int:
    """The start of a period that began so long ago."""
    return align(int(time.time()) - seconds, PERIOD)


def kinds(result: dict[str, Any], metric: str) -> dict[str, int]:
    return {kind: count for kind, count in result["metrics"][metric].items() if count}


def named(result: dict[str, Any]) -> set[tuple[str, str, str, str]]:
    return {(one["kind"], one["metric"], one["worker_id"], one["timestamp"]) for one in result["examples"]}


# -- equal, and each kind of difference --------------------------------------------------------------------------------


async def test_an_equal_history_is_equal_at_the_price_that_was_told_before(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(8, regions=REGIONS[:2]))
    status, dry, _ = await env.run(dry_run=True)
    assert (status, env.fake.metrics_billed) == (0, 0)
    assert not (env.folder / "data").exists()
    before = await env.documents()
    status, out, err = await env.run()
    assert (status, err) == (0, "")
    workers, periods, calls, metrics, dollars = planned(out)
    told = planned(dry)
    assert (told[0], *told[2:]) == (workers, calls, metrics, dollars)
    assert told[1] == pytest.approx(periods, abs=8)  # a period may end in between
    assert (workers, calls, metrics) == (8, 2, 14)
    assert (env.fake.calls["GetMetricData"], env.fake.metrics_billed) == (calls, metrics)
    assert dollars == pytest.approx(metrics / 1000 * 0.01)
    assert re.search(rf"^cpu +{periods:,} +0 +0 +0 +0 +0$", out, re.M)
    assert out.endswith(f"All equal: {periods + periods * 6 // 8:,} values. 2 calls, 0.00014 dollars.\n")
    assert await env.documents() == before


async def test_each_difference_is_named_exactly_and_nothing_else(env: VerifyEnv) -> None:
    members = await env.fleet(5)
    await env.fill(members)
    history, at = env.database[HISTORY], ago(10 * HOUR)
    cpu = await history.find_one({"worker_id": "w000", "timestamp": to_datetime(at)})
    assert cpu is not None
    await env.change("w000", at, cpu_utilization=99.875)  # different
    await env.change("w001", at, memory_utilization=None)  # missing: no value
    await env.remove("w002", at)  # missing: no sample
    await env.change("w003", at, memory_utilization=7.0)  # extra: it has no agent
    await env.change("w003", at + PERIOD, memory_utilization=8.0, status="running")  # maybe the worker document's own
    again = await history.find_one({"worker_id": "w004", "timestamp": to_datetime(at)}, {"_id": 0})
    assert again is not None
    await history.insert_one(again)  # twice
    await history.insert_one({**again, "timestamp": to_datetime(at + 1)})  # between two periods
    status, result = await env.result()
    when = rfc3339(at)
    assert status == 1
    assert named(result) == {
        ("different", "cpu", "w000", when),
        ("missing", "memory", "w001", when),
        ("missing", "cpu", "w002", when),
        ("missing", "memory", "w002", when),
        ("extra", "memory", "w003", when),
        ("document", "memory", "w003", rfc3339(at + PERIOD)),
        ("duplicate", None, "w004", when),
    }
    assert (result["duplicates"], result["unaligned"], result["complete"], result["equal"]) == (1, 1, True, False)
    different = next(one for one in result["examples"] if one["kind"] == "different")
    assert (different["history"], different["cloudwatch"], different["samples"]) == (99.875, cpu["cpu_utilization"], 1)
    assert [one["samples"] for one in result["examples"] if one["kind"] == "missing"] == [1, 0, 0]
    for metric in ("cpu", "memory"):
        assert set(result["metrics"][metric]) == {*KINDS, "coarse", "no_instance"}
        assert sum(result["metrics"][metric].values()) == result["periods_compared"]
    status, out, _ = await env.run()
    assert status == 1
    assert f"cpu different (history, CloudWatch):\n  w000  {when}  99.875  {cpu['cpu_utilization']:.10g}\n" in out
    assert f"  w001  {when}  no value  " in out
    assert f"  w002  {when}  no sample  " in out
    assert f"  w003  {when}  7  none\n" in out
    assert f"duplicate samples:\n  w004  {when}  2 samples\n" in out
    assert "\n1 value without a datapoint in CloudWatch may be the worker document's own: not compared." in out
    assert "Not equal: 3 missing, 1 extra, 1 different, 1 duplicate." in out


async def test_duplicates_are_found_where_nothing_is_compared_too(env: VerifyEnv) -> None:
    """In the newest periods, whose values may not be final, and of a worker that nothing but the history knows."""
    members = await env.fleet(2)
    await env.fill(members)
    history, now = env.database[HISTORY], align(int(time.time()), PERIOD)
    newest = await history.find_one({"worker_id": "w001", "timestamp": to_datetime(now - PERIOD)}, {"_id": 0})
    assert newest is not None
    await history.insert_one(newest)
    stranger = {"worker_id": "stranger", "timestamp": to_datetime(now - 10 * HOUR), "cpu_utilization": 1.0}
    await history.insert_many([dict(stranger) for _ in range(3)])
    status, result = await env.result()
    assert (status, result["duplicates"], result["equal"], result["complete"]) == (1, 3, False, True)
    assert {(one["worker_id"], one["timestamp"], one["samples"]) for one in result["examples"]} == {
        ("stranger", rfc3339(now - 10 * HOUR), 3),
        ("w001", rfc3339(now - PERIOD), 2),
    }
    status, result = await env.result(workers=("w000",))
    assert (status, result["duplicates"], result["equal"]) == (0, 0, True)


async def test_what_cloudwatch_revised_since_an_equal_verify_is_told_from_what_was_changed_by_hand(env: VerifyEnv) -> None:
    members = await env.fleet(2)
    await env.fill(members)
    assert (await env.run())[0] == 0
    at = ago(5 * HOUR)
    revised, lost = members[0].instance_id, members[1].instance_id
    env.fake.change(revised, revised={("cpu", at): 30 * DAY})  # CloudWatch shows half of it now
    env.fake.change(lost, lost=frozenset({("memory", at)}))
    await env.change("w001", at - PERIOD, cpu_utilization=1e-3)
    status, result = await env.result("19h")  # with other flags the answers of the earlier run still count
    assert status == 1
    assert named(result) == {
        ("revised", "cpu", "w000", rfc3339(at)),
        ("revised", "memory", "w001", rfc3339(at)),
        ("different", "cpu", "w001", rfc3339(at - PERIOD)),
    }
    _, again = await env.result()
    assert named(again) == named(result)


async def test_the_newest_periods_are_not_compared_because_they_may_not_be_final(env: VerifyEnv) -> None:
    members = await env.fleet(1)
    await env.fill(members)
    for start in range(ago(20 * MINUTE), ago(0), PERIOD):
        await env.remove("w000", start)
    status, result = await env.result()
    assert (status, result["equal"]) == (0, True)
    assert result["until"] <= rfc3339(ago(20 * MINUTE))
    status, out, _ = await env.run("1h", dry_run=True)
    assert "Plan for " in out
    env.settings["absence_timeout"], env.settings["gap_fill_window"] = "1h", "2h"
    status, out, _ = await env.run("1h")
    assert (status, env.fake.metrics_billed) == (3, 2)
    assert out.startswith("Nothing to compare: ")
    assert "The last 1h2" in out
    assert "write an earlier --since." in out
    assert "equal" not in out


async def test_a_replaced_a_terminated_and_a_departed_worker_are_compared_on_their_own_instances(env: VerifyEnv) -> None:
    now = ago(0)
    switch, end, seen = now - 10 * HOUR, now - 6 * HOUR, now - 8 * HOUR
    for name, runs in (("i-0a", [(None, switch)]), ("i-0b", [(switch, end)]), ("i-0c", [(None, seen + PERIOD)])):
        env.fake.add(name, runs=runs)
    member = Member("w", "i-0b", REGIONS[0], now - 2 * DAY)
    await env.database["workers"].insert_one(member.aggregate(status="terminated", terminated_at=to_datetime(end - 30)))
    both = [("i-0a", now - 2 * DAY, switch), ("i-0b", switch + MINUTE, end)]
    await env.database[INVENTORY].insert_many(
        [entry_of("w", both, end), entry_of("gone", [("i-0c", now - 2 * DAY, seen)], seen)]
    )
    await env.fill([replace(member, instance_id="i-0a"), Member("gone", "i-0c", REGIONS[0], 0)])
    await env.database[HISTORY].delete_many({"worker_id": "w"})
    ledger = env.fake.ledger(now - DAY, now)
    await env.database[HISTORY].insert_many(
        {
            "worker_id": "w",
            "region": REGIONS[0],
            "timestamp": to_datetime(start),
            "cpu_utilization": ledger[name, "cpu", start],
            "memory_utilization": ledger[name, "memory", start],
        }
        for start in range(now - DAY, end, PERIOD)
        for name in ["i-0b" if start >= switch else "i-0a"]
    )
    status, result = await env.result()
    assert (status, named(result)) == (0, set())
    assert kinds(result, "cpu")["equal"] == pytest.approx((14 + 12) * HOUR // PERIOD, abs=3)
    assert env.fake.metrics_billed == 6
    # A sample from after the end is compared as well: CloudWatch has nothing there.
    late = to_datetime(end + HOUR)
    await env.database[HISTORY].insert_one({"worker_id": "w", "region": "", "timestamp": late, "cpu_utilization": 1.0})
    status, result = await env.result()
    assert (status, named(result)) == (1, {("extra", "cpu", "w", rfc3339(end + HOUR))})


def entry_of(worker_id: str, instances: Sequence[tuple[str, int, int]], last_seen: int) -> dict[str, Any]:
    return {
        "_id": worker_id,
        "worker_id": worker_id,
        "region": REGIONS[0],
        "status": "running",
        "first_seen": to_datetime(last_seen),
        "last_seen": to_datetime(last_seen),
        "instances": [
            {"id": name, "region": REGIONS[0], "from": to_datetime(first), "to": to_datetime(last)}
            for name, first, last in instances
        ],
    }


async def test_what_cloudwatch_has_only_coarser_or_no_longer_lists_is_not_comparable(env: VerifyEnv) -> None:
    env.settings["period"] = "1m"
    env.fake.period = 60
    (member,) = await env.fleet(1, age=20 * DAY)
    await env.fill([member], 2 * HOUR, 60)
    status, result = await env.result("19d")
    assert status == 1  # most of the last fifteen days is missing
    assert kinds(result, "cpu")["coarse"] == pytest.approx(4 * DAY // 60, abs=20)
    assert kinds(result, "cpu")["missing"] == pytest.approx((15 * DAY - 2 * HOUR) // 60, abs=60)
    assert f"{2 * kinds(result, 'cpu')['coarse']:,} values for which CloudWatch only has coarser datapoints" in str(
        result["notes"]
    )


async def test_memory_of_a_series_that_is_no_longer_listed_is_not_comparable(env: VerifyEnv) -> None:
    (member,) = await env.fleet(1)
    now = ago(0)
    env.fake.add(member.instance_id, memory=[Series((("InstanceId", member.instance_id),), ((None, now - 16 * DAY),))])
    await env.fill([member], 20 * DAY)
    status, result = await env.result("19d")
    assert (status, named(result)) == (0, set())
    assert kinds(result, "memory")["unlisted"] == pytest.approx(3 * DAY // PERIOD, abs=3)
    assert env.fake.metrics_billed == 1


async def test_nothing_compared_is_not_equal(env: VerifyEnv) -> None:
    await WorkerMetricsRepository(env.database).ensure_collection()
    await env.database["workers"].insert_one({"_id": "lost", "status": "running", "aws_instance_id": "i-lost"})
    status, out, _ = await env.run()
    assert status == 3
    assert out.endswith("Nothing was compared.\n")
    status, result = await env.result()
    assert (status, result["equal"], result["periods_compared"]) == (3, False, 0)


async def test_workers_that_cannot_be_asked_for_are_counted_or_named(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(2))
    await env.database["workers"].insert_one({"_id": "lost", "status": "running", "aws_instance_id": "i-lost"})
    stranger = {"worker_id": "stranger", "region": "", "timestamp": to_datetime(ago(3 * HOUR)), "cpu_utilization": 1.0}
    await env.database[HISTORY].insert_one(stranger)
    status, result = await env.result()
    assert status == 0
    assert kinds(result, "cpu")["no_instance"] == pytest.approx(20 * HOUR // PERIOD, abs=6)
    assert "1 worker of the history (stranger) neither in the worker documents nor in the inventory: not compared." in str(
        result["notes"]
    )


async def test_nothing_past_retention_is_missing(env: VerifyEnv) -> None:
    env.settings["mongodb"]["retention"] = "1d"
    await env.fill(await env.fleet(1), 2 * DAY)
    await env.database.command("collMod", HISTORY, expireAfterSeconds=DAY)
    status, out, _ = await env.run("2d")
    assert status == 0
    assert "The history keeps samples for 1d: nothing before" in out


async def test_non_numeric_values_of_other_programs_are_missing_values(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(1))
    at = ago(4 * HOUR)
    await env.change("w000", at, cpu_utilization="42")
    await env.change("w000", at + PERIOD, cpu_utilization=float("nan"))
    status, result = await env.result()
    assert status == 1
    assert named(result) == {("missing", "cpu", "w000", rfc3339(start)) for start in (at, at + PERIOD)}


# -- the sample and the price ------------------------------------------------------------------------------------------


async def test_a_sample_of_the_workers_costs_in_proportion(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(40), 4 * HOUR)
    _, whole, _ = await env.run("3h", dry_run=True)
    _, tenth, _ = await env.run("3h", dry_run=True, percent=10)
    assert (planned(whole)[0], planned(whole)[3]) == (40, 70)
    assert planned(tenth)[0] == 4
    assert planned(tenth)[3] <= 8
    assert "A sample of 4 workers of 40; another day draws other workers." in tenth
    status, out, _ = await env.run("3h", percent=10)
    assert status == 0
    assert env.fake.metrics_billed == planned(out)[3] == planned(tenth)[3]


async def test_a_plan_that_costs_too_much_is_refused_before_anything_is_asked(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(4))
    with pytest.raises(ConfigError, match=r"more than --max-usd 1e-05 allows; .* compare less with --sample 5% or --worker"):
        await env.run(max_usd=0.00001)
    env.settings["cloudwatch"]["max_usd_per_day"] = 0.00002
    with pytest.raises(ConfigError, match=r"cloudwatch\.max_usd_per_day \(2e-05\)"):
        await env.run()
    assert env.fake.metrics_billed == 0
    assert (await env.run(max_usd=0.01))[0] == 0
    assert (await env.run(workers=("w001",)))[0] == 0


@pytest.mark.parametrize("sample", ["5", "0%", "101%", "x%", "-1%", "nan%"])
def test_a_sample_that_is_no_percentage_is_a_wrong_command_line(run_here: RunCommand, sample: str) -> None:
    done = run_here("verify", "--since", "1d", f"--sample={sample}")
    assert done.returncode == 2
    assert f"argument --sample: '{sample}' is no percentage above 0; write a number and %, such as 5%" in done.stderr


async def test_no_history_no_cloudwatch_and_an_unknown_worker_are_refused_each_in_a_sentence(env: VerifyEnv) -> None:
    await env.fleet(1)
    with pytest.raises(Exception, match=rf"{HISTORY} does not exist yet; `serve` creates it"):
        await env.run()
    await WorkerMetricsRepository(env.database).ensure_collection()
    with pytest.raises(ConfigError, match="--worker: 'w999' is neither among the worker documents nor in the inventory"):
        await env.run(workers=("w999",))
    for section, key, value, sentence in [
        ("cloudwatch", "enabled", False, "cloudwatch.enabled is false"),
        ("mongodb", "history", None, "mongodb.history is null"),
    ]:
        env.settings[section] = {**env.settings[section], key: value}
        with pytest.raises(ConfigError, match=sentence):
            await env.run()


async def test_the_least_role_is_enough(env: VerifyEnv, mongo_auth: AuthMongod) -> None:
    members = await env.fleet(1)
    name = f"least_{env.database.name}"
    env.settings["mongodb"]["uri"] = mongo_auth.exporter_uri(name)
    async with connect(mongo_auth.root_uri) as client:
        env.database = client[name]
        await client[name]["workers"].insert_one(members[0].aggregate())
        await env.fill(members)
        assert (await env.run("3h"))[0] == 0
        await client.drop_database(name)


# -- CloudWatch or MongoDB away ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode",
    by_day(
        ["cut", "partial", "throttle"],
        ["cut", "trunc", "partial", "throttle", "internal", "500", "empty"],
        pytest.mark.nightly("test_calls_that_fail_once_are_repeated"),
    ),
)
async def test_calls_that_fail_once_are_repeated(env: VerifyEnv, mode: str) -> None:
    await env.fill(await env.fleet(4, regions=REGIONS[:2]))
    env.fake.fault("GetMetricData", mode, 2)
    status, out, err = await env.run()
    assert (status, err) == (0, "")
    assert "All equal: " in out


async def test_cloudwatch_away_before_the_plan_is_an_error_and_nothing_is_compared(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(2))
    env.fake.stop()
    with pytest.raises(SourceError, match="CloudWatch in eu-west-1"):
        await env.run()


@pytest.mark.parametrize(
    "mode",
    by_day(
        ["access_denied", "partial"],
        ["throttle", "access_denied", "partial", "cut"],
        pytest.mark.nightly("test_cloudwatch_away_in_a_region_is_never_equal_and_the_next_run_asks_that_alone"),
    ),
)
async def test_cloudwatch_away_in_a_region_is_never_equal_and_the_next_run_asks_that_alone(env: VerifyEnv, mode: str) -> None:
    await env.fill(await env.fleet(8, regions=REGIONS[:2]))
    env.fake.fault("GetMetricData", mode, 99, region=REGIONS[1])
    status, out, err = await env.run()
    assert status == 3
    left = planned(out)[1] // 2
    assert re.search(rf"^Incomplete: 1 call and {left:,} periods are not compared, because .+; run the same command", err, re.M)
    assert re.search(rf"^cpu +{left:,} +0 +0 +0 +0 +0$", out, re.M)
    assert f"No difference in the {2 * left:,} values that could be compared." in out
    assert "ll equal" not in out
    env.fake.clear()
    env.fake.reset()
    status, again, _ = await env.run()
    assert status == 0
    assert "1 call left" in again
    assert {region: calls["GetMetricData"] for region, calls in env.fake.counters()["by_region"].items()} == {REGIONS[1]: 1}
    assert re.search(rf"^cpu +{2 * left:,} +0 +0 +0 +0 +0$", again, re.M)  # both runs together
    status, fresh, _ = await env.run()
    assert (status, "Going on" in fresh) == (0, False)


async def test_a_difference_in_an_incomplete_comparison_is_a_difference(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(2, regions=REGIONS[:2]))
    await env.change("w000", ago(5 * HOUR), cpu_utilization=99.875)
    env.fake.fault("GetMetricData", "access_denied", 99, region=REGIONS[1])
    status, result = await env.result()
    assert (status, result["complete"], result["equal"], result["calls_left"]) == (1, False, False, 1)
    assert result["periods_left"] > 0
    assert len(result["failures"]) == 1


async def test_cloudwatch_gone_between_plan_and_calls_counts_everything_as_left(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(8, regions=REGIONS))
    env.fake.fault("GetMetricData", "cut", 999)
    status, result = await env.result()
    assert (status, result["complete"], result["periods_compared"], result["calls_left"]) == (3, False, 0, 4)
    assert result["periods_left"] == pytest.approx(8 * 20 * HOUR // PERIOD, abs=60)


async def test_a_malformed_instance_id_costs_no_other_worker_its_comparison(env: VerifyEnv) -> None:
    members = await env.fleet(3)
    await env.fill(members)
    await env.database["workers"].insert_one({**members[0].aggregate(), "_id": "bad", "aws_instance_id": "not-an-instance"})
    status, out, _ = await env.run()
    assert status == 0
    assert "CloudWatch refuses the malformed instance ids not-an-instance: it has nothing of them." in out
    assert "All equal: " in out


def on_server(mongod: Mongod, client: AsyncMongoClient[Document], fake: FakeCloudWatch, folder: Path) -> VerifyEnv:
    return VerifyEnv(fast_settings(mongod, client["verify"], fake, folder), client["verify"], fake, folder)


async def test_mongodb_away_while_answers_come_loses_no_answer(
    own_mongod: Mongod, fake_cloudwatch: FakeCloudWatch, tmp_path: Path
) -> None:
    async with connect(own_mongod.uri, patience=1) as client:
        env = on_server(own_mongod, client, fake_cloudwatch, tmp_path)
        await env.fill(await env.fleet(4, regions=REGIONS))
        env.fake.latency = 1
        process = env.command("verify", "--since", "20h", "--json")
        wait_for(lambda: env.fake.calls["GetMetricData"] >= CONCURRENT_CALLS)
        own_mongod.kill()
        own_mongod.start()
        status, out, err = ended(process)
        assert (status, json.loads(out)["equal"]) == (0, True), err
        assert env.fake.calls["GetMetricData"] == 4


@pytest.mark.waits(20)
async def test_mongodb_away_for_good_ends_it_and_the_paid_answers_are_kept(
    own_mongod: Mongod, fake_cloudwatch: FakeCloudWatch, tmp_path: Path
) -> None:
    async with connect(own_mongod.uri, patience=1) as client:
        env = on_server(own_mongod, client, fake_cloudwatch, tmp_path)
        await env.fill(await env.fleet(2))
        env.settings["mongodb"]["uri"] = own_mongod.uri.replace("/?", "/verify?serverSelectionTimeoutMS=500&")
        env.fake.latency = 1
        out, err = io.StringIO(), io.StringIO()
        wanted = Options(int(time.time()) - HOUR, "1h", quiet=True)
        env.fake.fault("GetMetricData", "throttle", 1)
        task = asyncio.create_task(command_module.run(env.parsed, wanted, out, err, GracefulStop(), QUICK))
        await asyncio.to_thread(wait_for, lambda: env.fake.calls["GetMetricData"])
        own_mongod.kill()
        with pytest.raises(StoreUnavailableError):
            await task
        assert "Incomplete: 1 call and " in err.getvalue()
        own_mongod.start()


# -- interruptions -----------------------------------------------------------------------------------------------------


async def test_of_two_at_once_on_one_machine_the_second_is_told(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(2))
    env.fake.latency = 0.5
    first = env.command("verify", "--since", "6h")
    wait_for(lambda: env.fake.calls["ListMetrics"] > 0)
    with pytest.raises(OutboxLockedError, match=f"another verify is running here; .*process id {first.pid}"):
        await env.run("6h")
    assert ended(first)[0] == 0


@pytest.mark.parametrize(
    "number",
    by_day(
        [signal.SIGKILL],
        [signal.SIGINT, signal.SIGTERM, signal.SIGKILL],
        pytest.mark.nightly("test_an_interrupted_run_goes_on_and_pays_for_no_finished_call_twice"),
    ),
)
async def test_an_interrupted_run_goes_on_and_pays_for_no_finished_call_twice(env: VerifyEnv, number: signal.Signals) -> None:
    """Of a call for each region, two at once, in the order of the regions: a stop lets the first two end.

    The killed one has finished those and has the other two under way, which hang.
    """
    killed = number == signal.SIGKILL
    await env.fill(await env.fleet(12, regions=REGIONS))
    await env.change("w001", ago(5 * HOUR), cpu_utilization=99.875)
    if killed:
        for region in sorted(REGIONS)[CONCURRENT_CALLS:]:
            env.fake.fault("GetMetricData", "hang", region=region)
    else:
        env.fake.latency = 0.6
    process = env.command("verify", "--since", "20h")
    wait_for(lambda: env.fake.calls["GetMetricData"] >= (len(REGIONS) if killed else CONCURRENT_CALLS))
    process.send_signal(number)
    status, out, err = ended(process)
    made = env.fake.calls["GetMetricData"]
    env.fake.latency = 0
    env.fake.reset()
    again, result = await env.result()
    assert (again, named(result)) == (1, {("different", "cpu", "w001", result["examples"][0]["timestamp"])})
    assert (result["complete"], len(result["examples"])) == (True, 1)
    assert kinds(result, "cpu")["equal"] + 1 == planned(out)[1]
    assert env.fake.calls["GetMetricData"] == len(REGIONS) - CONCURRENT_CALLS
    if killed:
        assert (status, made) == (-number, len(REGIONS))
    else:
        assert (status, made) == (130, CONCURRENT_CALLS)
        assert re.search(r"^Interrupted: 2 calls and [\d,]+ periods are left; run the same command to go on\.$", err, re.M)


async def test_other_flags_replace_an_unfinished_plan(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(4, regions=REGIONS[:2]))
    env.fake.fault("GetMetricData", "access_denied", 99, region=REGIONS[1])
    assert (await env.run())[0] == 3
    env.fake.clear()
    for options in ({"percent": 50.0}, {"workers": ("w000",)}):
        status, out, _ = await env.run("19h", **options)
        assert status == 0
        assert "Going on" not in out
    status, out, _ = await env.run()
    assert (status, "Going on" in out) == (0, False)


# -- the process -------------------------------------------------------------------------------------------------------


async def test_json_is_alone_on_standard_output_and_the_progress_plain_where_there_is_no_terminal(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(2))
    status, out, err = ended(env.command("verify", "--since", "20h", "--json"))
    assert status == 0
    assert json.loads(out)["equal"] is True
    assert err.startswith("Plan for ")
    assert "\x1b" not in out + err
    status, out, err = ended(env.command("verify", "--since", "20h", "--quiet"))
    assert (status, err) == (0, "")
    assert "All equal: " in out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        pytest.param(("--json",), marks=pytest.mark.nightly("test_a_reader_that_has_gone_ends_it_quietly_and_costs_no_result")),
    ],
)
async def test_a_reader_that_has_gone_ends_it_quietly_and_costs_no_result(env: VerifyEnv, arguments: tuple[str, ...]) -> None:
    await env.fill(await env.fleet(2))
    file = env.folder / "config.yaml"
    file.write_text(yaml.safe_dump(env.settings))
    words = [*COMMAND, "verify", "--config.file", str(file), "--since", "20h", "--quiet", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    done = completed(words, env.folder, writer)
    os.close(writer)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    billed = env.fake.metrics_billed
    assert billed == (4 if arguments else 0)  # the plan is printed before anything is spent
    assert (await env.run())[0] == 0
    assert env.fake.metrics_billed == 4


async def test_a_full_disk_under_the_output_is_a_sentence_and_costs_no_result(env: VerifyEnv) -> None:
    await env.fill(await env.fleet(2))
    file = env.folder / "config.yaml"
    file.write_text(yaml.safe_dump(env.settings))
    full = os.open("/dev/full", os.O_WRONLY)
    words = [*COMMAND, "verify", "--config.file", str(file), "--since", "20h", "--quiet", "--json"]
    done = completed(words, env.folder, full)
    os.close(full)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("cml-worker-exporter: cannot write the result (No space left on device)")
    assert "Traceback" not in done.stderr
    assert (await env.run())[0] == 0
    assert env.fake.metrics_billed == 4


async def test_an_error_is_no_difference_for_the_exit_status(env: VerifyEnv, run_command: RunCommand) -> None:
    await env.fill(await env.fleet(1))
    env.settings["cloudwatch"]["endpoint_url"] = f"http://127.0.0.1:{closed_port()}"
    status, out, err = ended(env.command("verify", "--since", "20h"))
    assert (status, out) == (3, "")
    assert err.startswith("cml-worker-exporter: CloudWatch in eu-west-1")
    assert run_command("verify", "--since", "20h").returncode == 3  # no uri


def completed(words: Sequence[str], folder: Path, stdout: int = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=folder, timeout=scaled(240), check=False)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.nightly("test_memory_does_not_grow_with_the_history")
async def test_a_thousand_workers_are_compared_in_bounded_memory(env: VerifyEnv) -> None:
    members = await env.fleet(1000)
    await env.fill(members, 8 * HOUR)
    await env.change("w500", ago(4 * HOUR), cpu_utilization=99.875)
    file = env.folder / "config.yaml"
    file.write_text(yaml.safe_dump(env.settings))
    words = [sys.executable, "-c", MEASURED, "verify", "--config.file", str(file), "--since", "7h", "--json", "--quiet"]
    done = completed(words, env.folder)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert named(result) == {("different", "cpu", "w500", result["examples"][0]["timestamp"])}
    assert result["periods_compared"] == pytest.approx(1000 * 7 * HOUR // PERIOD, rel=0.1)
    assert (result["calls_made"], env.fake.metrics_billed) == (4, 1750)
    assert int(done.stderr.split()[-1]) < 250_000  # 150,000 also for a whole week, 2 million samples


async def test_memory_of_another_agent_is_compared(env: VerifyEnv) -> None:
    env.fake.memory_metric, env.fake.memory_dimension = ("Lab/Linux", "MemoryUsed"), "host"
    env.settings["cloudwatch"]["memory"] = {"namespace": "Lab/Linux", "metric": "MemoryUsed", "dimension": "host"}
    members = await env.fleet(3)
    await env.fill(members)
    assert (await env.result())[0] == 0
    start = align(int(time.time()) - 10 * HOUR, PERIOD)
    await env.change("w001", start, memory_utilization=12.5)
    assert (await env.result())[0] == 1
