"""Workers in several AWS accounts: by roles, and by a monitoring account; whole, exactly once, and billed once."""

import io
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from exporter.commands import estimate
from exporter.commands.check.command import examine
from exporter.core.periods import DAY, align, rfc3339
from exporter.core.settings import Settings
from exporter.sources.cloudwatch.directory import RELIST_SECONDS
from exporter.sources.cloudwatch.memory_series import LISTING_TTL_SECONDS
from exporter.storage.mongo import Database
from exporter.web.application import create_app
from tests.fixtures.process import RunCommand, RunExporter
from tests.helpers.expected_history import Member, assert_true, expected_history
from tests.helpers.fake_cloudwatch import HOME, FakeCloudWatch, OtherSeries, instance_id
from tests.helpers.in_process_exporter import DECIDED, PERIOD, Clock, InProcessExporter, series
from tests.helpers.reliability import record

REGION, OTHER = "eu-west-1", "us-east-1"
FIRST, SECOND = "111111111111", "222222222222"
ROLES: dict[str, Any] = {
    "roles": [
        {"role_arn": f"arn:aws:iam::{FIRST}:role/reader", "account": "production"},
        {"role_arn": f"arn:aws:iam::{SECOND}:role/reader", "external_id": "customer-7"},
    ]
}
LINKED: dict[str, Any] = {"linked_accounts": True}
WAYS = pytest.mark.parametrize("aws", [ROLES, LINKED], ids=["roles", "linked accounts"])
OF_COMMANDS = pytest.mark.parametrize(
    "aws",
    [
        pytest.param(ROLES, id="roles"),
        pytest.param(
            LINKED,
            id="linked accounts",
            marks=pytest.mark.nightly("test_every_worker_has_its_gauges_its_account_and_its_history_and_is_billed_once"),
        ),
    ],
)
"""Of what starts processes: which way an account is read by is the concern of a client that all commands have in common."""


async def fleet(database: Database, fake: FakeCloudWatch, began: int) -> list[Member]:
    """Three workers in each account, one of them without an agent, and one worker that is in neither; in two regions."""
    fake.links[HOME] = (FIRST, SECOND)
    members = []
    for k in range(6):
        member = Member(f"worker-{k}", instance_id(k), OTHER if k >= 4 else REGION, began)
        fake.add(member.instance_id, member.region, runs=[(began, None)], agent=k % 3 < 2, account=(FIRST, SECOND)[k % 2])
        members.append(member)
    nowhere = Member("nowhere", instance_id(99), REGION, began)
    fake.add(nowhere.instance_id, REGION, runs=[(began, None)], account="333333333333")
    await database["workers"].insert_many([member.aggregate() for member in (*members, nowhere)])
    return members


def of(members: list[Member], account: str) -> set[str]:
    return {member.worker_id for k, member in enumerate(members) if (FIRST, SECOND)[k % 2] == account}


def shown(text: str, metric: str) -> set[str]:
    """The workers that have a series of a metric, whose only labels are worker_id and region."""
    found = series(text, f"{metric}{{")
    workers = {re.fullmatch(r'\w+{region="[^"]+",worker_id="([^"]+)"}', name) for name in found}
    assert None not in workers, found
    return {match[1] for match in workers if match}


def accounts(text: str) -> dict[str, str]:
    """Worker id → account_id of cml_worker_info."""
    infos = [dict(re.findall(r'(\w+)="([^"]*)"', name)) for name in series(text, "cml_worker_info{")]
    return {labels["worker_id"]: labels["account_id"] for labels in infos}


def up(exporter: InProcessExporter, account: str, name: str = "", region: str = REGION) -> float | None:
    labels = {"account_id": account, "account": name or account, "region": region}
    return exporter.value("cml_exporter_cloudwatch_account_up", **labels)


@asynccontextmanager
async def opened(
    folder: Path,
    database: Database,
    fake: FakeCloudWatch,
    clock: Clock,
    aws: Mapping[str, Any],
    **more: Any,  # noqa: ANN401
) -> AsyncIterator[InProcessExporter]:
    exporter = InProcessExporter(folder, database, fake, clock, aws=aws, **more)
    try:
        await exporter.history.ensure_collection()
        yield exporter
    finally:
        await exporter.close()


async def compared(exporter: InProcessExporter, fake: FakeCloudWatch, members: list[Member]) -> int:
    """Compare the history of these workers with the ledger; return how many samples that are final were compared."""
    now, ids = int(exporter.clock()), {member.worker_id for member in members}
    documents = [one for one in await exporter.documents() if one["worker_id"] in ids]
    final = align(now - DECIDED - PERIOD, PERIOD)
    return assert_true(documents, expected_history(fake, members, align(now, PERIOD)), final)


@WAYS
async def test_every_worker_has_its_gauges_its_account_and_its_history_and_is_billed_once(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, aws: dict[str, Any]
) -> None:
    members = await fleet(database, fake, int(clock()) - 3600)
    async with opened(tmp_path, database, fake, clock, aws) as exporter:
        await exporter.round(10)
        everyone = {member.worker_id for member in members}
        text = await exporter.scrape()
        assert shown(text, "cml_worker_cpu_utilization_ratio") == everyone
        assert shown(text, "cml_worker_memory_utilization_ratio") == everyone - {"worker-2", "worker-5"}
        expected = {f"worker-{k}": (FIRST, SECOND)[k % 2] for k in range(6)} | {"nowhere": ""}
        assert accounts(text) == expected
        assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 1
        if aws is ROLES:
            assert (up(exporter, FIRST, "production"), up(exporter, SECOND)) == (1, 1)
            assert set(fake.counters()["assumed"]) == {
                (f"arn:aws:iam::{FIRST}:role/reader", None),
                (f"arn:aws:iam::{SECOND}:role/reader", "customer-7"),
            }
        fake.reset()
        await exporter.round()
        queried = fake.queried
        assert set(queried.values()) == {1}, "each metric once in a cycle"
        assert sorted(name for _, name, _ in queried) == sorted(
            member.instance_id for k, member in enumerate(members) for _ in range(2 if k % 3 < 2 else 1)
        ), "and nothing of the worker that is in no account"
        by = {HOME} if aws is LINKED else {FIRST, SECOND}
        assert {account for account, _, _ in queried} == by
        assert exporter.telemetry.metrics_requested.labels(REGION)._value.get() > 0
        await exporter.round(10)
        assert await compared(exporter, fake, members) > 60
        documents = await exporter.documents(worker_id="nowhere")
        assert documents, "its status and labs are in the history all the same"
        assert all("cpu_utilization" not in document for document in documents)
        entry = await database["worker_metrics_inventory"].find_one({"_id": "worker-1"})
        assert entry is not None
        assert entry["account_id"] == SECOND
        assert not exporter.errors


@pytest.mark.parametrize(
    "from_the_start",
    [False, pytest.param(True, marks=pytest.mark.nightly("test_a_failing_account_hides_no_other_and_loses_nothing"))],
)
async def test_a_failing_account_hides_no_other_and_loses_nothing(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, from_the_start: bool
) -> None:
    members = await fleet(database, fake, int(clock()) - 3600)
    async with opened(tmp_path, database, fake, clock, ROLES) as exporter:
        if not from_the_start:
            await exporter.round(2)
        fake.denied.add(FIRST)
        await exporter.round(8)

        text = await exporter.scrape()
        assert shown(text, "cml_worker_cpu_utilization_ratio") == of(members, SECOND)
        assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 0
        assert (up(exporter, FIRST, "production"), up(exporter, SECOND)) == (0, 1)
        error = exporter.collector.healthy[f"cloudwatch {REGION}"] or ""
        assert f"CloudWatch in {REGION}, account production: " in error
        assert "is not allowed" in error
        second = [member for member in members if member.worker_id in of(members, SECOND)]
        assert await compared(exporter, fake, second) > 15, "also of the worker without an agent"
        before = int(clock())
        decided = [one for one in await exporter.documents() if one["worker_id"] in of(members, FIRST)]
        assert all("cpu_utilization" in one for one in decided), "what was not asked is not recorded as absent"

        fake.denied.clear()
        await exporter.round(10)
        assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 1
        assert up(exporter, FIRST, "production") == 1
        await compared(exporter, fake, members)
        assert int(clock()) > before
        assert exporter.value("cml_exporter_samples_unavailable_total", metric="cpu") == 0
    record("account-fails", lost=0, doubled=0)


async def test_readers_do_not_have_an_account_that_answers_listed_again_and_again_while_another_fails(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = await fleet(database, fake, int(clock()) - 3600)
    listed: list[str] = []

    def note(operation: str, request: Mapping[str, Any], body: Any) -> Any:  # noqa: ANN401  # whatever CloudWatch answers
        if operation == "ListMetrics":
            listed.append(request["MetricName"])
        return body

    async with opened(tmp_path, database, fake, clock, ROLES) as exporter:
        await exporter.round(2)
        fake.denied.add(FIRST)
        clock.now += LISTING_TTL_SECONDS  # what was listed while both answered is too old
        fake.lie = note
        worker = next(member for member in members if member.worker_id in of(members, SECOND) and member.region == REGION)
        path = f"/api/workers/region/{REGION}/workers/{worker.worker_id}/resources?start_time=10m&end_time="
        transport = httpx.ASGITransport(app=create_app(exporter.backend))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
            for number in range(24):  # of other windows, so that no cache helps
                clock.now += 2 * RELIST_SECONDS / 24
                window = rfc3339(align(int(clock()), PERIOD) - number * PERIOD)
                assert (await client.get(path + window)).status_code == 200
    assert 2 <= listed.count("mem_used_percent") <= 3, "once a minute, and no more"
    assert listed.count("CPUUtilization") <= 1


async def test_a_role_that_cannot_be_assumed_hides_no_other(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = await fleet(database, fake, int(clock()) - 3600)
    fake.refused_roles.add(f"arn:aws:iam::{FIRST}:role/reader")
    async with opened(tmp_path, database, fake, clock, ROLES) as exporter:
        await exporter.round(2)
        assert shown(await exporter.scrape(), "cml_worker_cpu_utilization_ratio") == of(members, SECOND)
        assert "sts:AssumeRole is not allowed" in (exporter.collector.healthy[f"cloudwatch {REGION}"] or "")


async def test_a_source_account_that_is_no_longer_linked_hides_no_other(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = await fleet(database, fake, int(clock()) - 3600)
    async with opened(tmp_path, database, fake, clock, LINKED) as exporter:
        await exporter.round()
        fake.links[HOME] = (SECOND,)  # the listings know it not yet, so that AWS refuses whole calls
        await exporter.round()
        assert fake.calls["GetMetricData"] > 0
        newest = exporter.collector.snapshot
        assert newest is not None
        times = {gauge.worker.id: gauge.cpu_time for gauge in newest.workers}
        assert {id_ for id_, at in times.items() if at == align(int(clock()), PERIOD)} == of(members, SECOND)
        assert (up(exporter, FIRST), up(exporter, SECOND)) == (0, 1)


async def test_an_instance_that_appears_later_is_found_in_its_account(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    await fleet(database, fake, int(clock()) - 3600)
    async with opened(tmp_path, database, fake, clock, ROLES) as exporter:
        await exporter.round(2)
        fake.list_lag = 600
        late = Member("late", instance_id(50), REGION, align(int(clock()), PERIOD) + PERIOD)
        fake.add(late.instance_id, runs=[(late.created, None)], account=SECOND)
        await database["workers"].insert_one(late.aggregate())
        await exporter.round(1)
        fake.reset()
        await exporter.round(1)
        assert late.instance_id not in {name for _, name, _ in fake.queried}, "not listed yet: nothing is billed"
        await exporter.round(12)
        assert accounts(await exporter.scrape())["late"] == SECOND
        assert await compared(exporter, fake, [late]) > 5


async def test_a_terminated_worker_keeps_its_account_over_a_restart(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    await fleet(database, fake, int(clock()) - 3600)
    async with opened(tmp_path, database, fake, clock, ROLES) as exporter:
        await exporter.round(3)
    fake.denied |= {FIRST, SECOND}  # so that no listing tells it again
    async with opened(tmp_path, database, fake, clock, ROLES) as again:
        await again.collector.restore()
        await again.round()
        assert accounts(await again.scrape())["worker-1"] == SECOND


@OF_COMMANDS
async def test_the_estimate_is_what_the_accounts_bill_together(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, aws: dict[str, Any]
) -> None:
    await fleet(database, fake, int(clock()) - DAY)
    async with opened(tmp_path, database, fake, clock, aws) as exporter:
        await exporter.round(8)
        billed = fake.metrics_billed
        await exporter.round(4)
        listings = {region: await exporter.cloudwatch.list_memory(region, recent=True) for region in (REGION, OTHER)}
        fleet_now = await exporter.collector._observer._source.read()
        found = estimate.estimate(fleet_now, listings, exporter.collector._rules)
        assert fake.metrics_billed - billed == 4 * found.usage.metrics == 4 * 10


def settings_of(folder: Path, database: Database, fake: FakeCloudWatch, uri: str, aws: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mongodb": {"uri": uri},
        "cloudwatch": {"endpoint_url": fake.url},
        "aws": {"sts_endpoint_url": fake.url, **aws},
        "data_dir": str(folder / "data"),
        "web": {"listen_address": ["127.0.0.1:0"]},
    }


async def uri_of(database: Database) -> str:
    host, port = await database.client.address or ("", 0)
    return f"mongodb://{host}:{port}/{database.name}?directConnection=true"


@WAYS
async def test_check_knows_the_accounts(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, aws: dict[str, Any]
) -> None:
    await fleet(database, fake, int(clock()) - 3600)
    settings = Settings.model_validate(settings_of(tmp_path, database, fake, await uri_of(database), aws))

    rows = {row.check: row for row in await examine(settings, clock)}
    first = "production" if aws is ROLES else FIRST
    green = {f"CloudWatch CPU, {region}, account {name}" for region in (REGION, OTHER) for name in (first, SECOND)}
    assert {name: rows[name].status for name in green} == dict.fromkeys(green, "ok"), rows
    assert rows[f"AWS accounts, {REGION}"].status == "warn"
    assert "nowhere" in rows[f"AWS accounts, {REGION}"].text
    assert rows[f"AWS accounts, {OTHER}"].text == "every running worker was found, in 2 accounts"
    assert rows["AWS identity"].status == "ok"

    if aws is ROLES:
        fake.denied.add(FIRST)
        rows = {row.check: row for row in await examine(settings, clock)}
        assert rows[f"AWS accounts, {REGION}"].status == "FAIL"
        assert "account production" in rows[f"AWS accounts, {REGION}"].text
        assert rows[f"CloudWatch CPU, {REGION}, account {SECOND}"].status == "ok"


@pytest.mark.nightly("test_every_worker_has_its_gauges_its_account_and_its_history_and_is_billed_once")
@OF_COMMANDS
async def test_the_exporter_as_a_process_shows_both_accounts_and_answers_resources(
    database: Database, fake_cloudwatch: FakeCloudWatch, run_exporter: RunExporter, tmp_path: Path, aws: dict[str, Any]
) -> None:
    fake = fake_cloudwatch
    members = await fleet(database, fake, int(fake.now()) - 3600)
    settings = settings_of(tmp_path, database, fake, await uri_of(database), aws)
    exporter = run_exporter({name: section for name, section in settings.items() if name not in ("data_dir", "web")})
    everyone = {member.worker_id for member in members}
    exporter.wait_for(
        lambda: shown(exporter.get("/metrics").text, "cml_worker_cpu_utilization_ratio") == everyone, 60, "showing all workers"
    )
    fake.reset()
    for member in members[:2]:
        path = f"/api/workers/region/{member.region}/workers/{member.worker_id}/resources?start_time=10m"
        answer = exporter.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.json()["avg_cpu_utilization"] is not None
    assert set(fake.queried.values()) == {1}
    if aws is ROLES:
        fake.refused_roles.add(f"arn:aws:iam::{FIRST}:role/reader")
        fake.role_seconds = 60
    assert exporter.stop() == 0
    if aws is ROLES:
        exporter.start()
        second = of(members, SECOND)
        exporter.wait_for(
            lambda: shown(exporter.get("/metrics").text, "cml_worker_cpu_utilization_ratio") == second, 60, "showing the others"
        )
        assert "account production: sts:AssumeRole is not allowed" in exporter.logged()
        assert "Traceback" not in exporter.logged()
        assert exporter.stop() == 0


@OF_COMMANDS
async def test_backfill_and_verify_ask_each_account_for_its_own_workers(
    database: Database,
    fake_cloudwatch: FakeCloudWatch,
    run_command: RunCommand,
    tmp_path: Path,
    aws: dict[str, Any],
) -> None:
    fake = fake_cloudwatch
    began = align(int(fake.now()), PERIOD) - 3 * DAY
    members = await fleet(database, fake, began)
    await database["workers"].delete_one({"_id": "nowhere"})
    settings = settings_of(tmp_path, database, fake, await uri_of(database), aws)
    exporter = InProcessExporter(tmp_path / "serve", database, fake, Clock(fake.now()), aws=aws)
    await exporter.history.ensure_collection()
    await exporter.close()
    config = tmp_path / "settings.yml"
    config.write_text(json.dumps(settings))
    fake.reset()

    done = run_command("backfill", "--config.file", config, "--since", "3d")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(fake.queried.values()) == {1}, "one account each, one call"
    samples = await database["worker_metrics_timeseries"].find({}, {"_id": 0}).to_list(None)
    ledger = fake.ledger(began, int(fake.now()))
    for member in members:
        mine = [one for one in samples if one["worker_id"] == member.worker_id]
        assert len(mine) > 500
        for one in mine:
            start = int(one["timestamp"].timestamp())
            assert one["cpu_utilization"] == ledger[member.instance_id, "cpu", start]
            assert one.get("memory_utilization") == ledger.get((member.instance_id, "memory", start))

    done = run_command("verify", "--config.file", config, "--since", "3d")
    table = re.search(r"^cpu +([\d,]+) +[\d,]+ +(\d+) +(\d+) +\d+ ", done.stdout, re.MULTILINE)
    assert table, done.stdout + done.stderr
    assert (int(table[1].replace(",", "")) > 3000, table[2], table[3]) == (True, "0", "0"), "serve fills the last day"
    assert set(fake.queried.values()) == {2}, "once by each of the two commands"


@pytest.mark.nightly("test_backfill_and_verify_ask_each_account_for_its_own_workers")
async def test_the_commands_say_which_account_fails_and_do_the_others(
    database: Database,
    fake_cloudwatch: FakeCloudWatch,
    run_command: RunCommand,
    tmp_path: Path,
) -> None:
    fake = fake_cloudwatch
    members = await fleet(database, fake, align(int(fake.now()), PERIOD) - 2 * DAY)
    await database["workers"].delete_one({"_id": "nowhere"})
    settings = settings_of(tmp_path, database, fake, await uri_of(database), ROLES)
    exporter = InProcessExporter(tmp_path / "serve", database, fake, Clock(fake.now()), aws=ROLES)
    await exporter.history.ensure_collection()
    await exporter.close()
    config = tmp_path / "settings.yml"
    config.write_text(json.dumps(settings))
    fake.denied.add(FIRST)

    done = run_command("estimate", "--config.file", config)
    assert done.returncode == 0, done.stderr
    assert "account production: " in done.stdout
    assert "its workers are not in the estimate" in done.stdout

    done = run_command("backfill", "--config.file", config, "--since", "2d")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "account production: " in done.stdout
    assert set(await database["worker_metrics_timeseries"].distinct("worker_id")) == of(members, SECOND)

    done = run_command("verify", "--config.file", config, "--since", "2d")
    assert done.returncode in (1, 3), done.stdout + done.stderr
    assert "account production: " in done.stdout

    fake.denied.clear()
    done = run_command("backfill", "--config.file", config, "--since", "2d")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(await database["worker_metrics_timeseries"].distinct("worker_id")) == {one.worker_id for one in members}


DISK = {
    "namespace": "CWAgent",
    "metric": "disk_used_percent",
    "dimensions": {"path": "/"},
    "name": "cml_worker_root_disk_ratio",
    "help": "Root file system in use, 0 to 1.",
    "unit": "percent",
}
NETWORK = {
    "namespace": "AWS/EC2",
    "metric": "NetworkIn",
    "name": "cml_worker_network_in_bytes",
    "help": "Bytes received in the newest period.",
    "unit": "Bytes",
}
EXTRA: dict[str, Any] = {"extra": [DISK, NETWORK]}


async def fleet_with_disks(database: Database, fake: FakeCloudWatch, began: int) -> list[Member]:
    """The same fleet; each worker has a disk, and EC2's network, in its own account."""
    members = await fleet(database, fake, began)
    for number, ((region, name), one) in enumerate(list(fake.instances.items())):
        others = (
            OtherSeries("CWAgent", "disk_used_percent", (("InstanceId", name), ("path", "/")), 10.0 + number),
            OtherSeries("CWAgent", "disk_used_percent", (("InstanceId", name), ("path", "/boot")), 99.0),
            OtherSeries("AWS/EC2", "NetworkIn", (("InstanceId", name),), 1000.0 + number),
        )
        fake.instances[region, name] = replace(one, others=others)
    return members


@WAYS
async def test_a_further_metric_is_asked_in_the_account_of_its_instance_and_billed_once(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, aws: dict[str, Any]
) -> None:
    members = await fleet_with_disks(database, fake, int(clock()) - 3600)
    everyone = {member.worker_id for member in members}
    async with opened(tmp_path, database, fake, clock, aws, cloudwatch=EXTRA) as exporter:
        await exporter.round(8)
        text = await exporter.scrape()
        for metric, first in (("cml_worker_root_disk_ratio", 0.10), ("cml_worker_network_in_bytes", 1000)):
            assert shown(text, metric) == everyone
            step = 0.01 if metric.endswith("ratio") else 1
            assert sorted(series(text, f"{metric}{{").values()) == pytest.approx([first + step * k for k in range(6)])
        fake.reset()
        await exporter.round()
        assert set(fake.queried.values()) == {1}, "each metric once in a cycle, in one account"
        further = {(account, name) for account, name, metric in fake.queried if metric in ("disk_used_percent", "NetworkIn")}
        homes = {member.instance_id: HOME if aws is LINKED else (FIRST, SECOND)[k % 2] for k, member in enumerate(members)}
        assert further == {(home, name) for name, home in homes.items()}, "and nothing of the worker that is in no account"
        assert await compared(exporter, fake, members) > 30
        assert not exporter.errors


async def test_an_account_that_fails_hides_no_further_metric_of_another(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = await fleet_with_disks(database, fake, int(clock()) - 3600)
    fake.denied.add(FIRST)
    async with opened(tmp_path, database, fake, clock, ROLES, cloudwatch=EXTRA) as exporter:
        await exporter.round(3)
        text = await exporter.scrape()
        assert shown(text, "cml_worker_root_disk_ratio") == of(members, SECOND)
        assert shown(text, "cml_worker_network_in_bytes") == of(members, SECOND)
        fake.denied.clear()
        await exporter.round(4)
        fake.denied.add(FIRST)  # the listings that its series are in stay in use
        await exporter.round(1)
        fake.denied.clear()
        await exporter.round(1)
        text = await exporter.scrape()
        assert shown(text, "cml_worker_root_disk_ratio") == {member.worker_id for member in members}
        assert up(exporter, FIRST, "production") == 1


@OF_COMMANDS
async def test_estimate_and_check_know_the_further_metrics_of_each_account(
    tmp_path: Path, database: Database, fake_cloudwatch: FakeCloudWatch, aws: dict[str, Any]
) -> None:
    fake = fake_cloudwatch
    await fleet_with_disks(database, fake, int(fake.now()) - DAY)
    sections = settings_of(tmp_path, database, fake, await uri_of(database), aws)
    sections["cloudwatch"] |= EXTRA
    settings = Settings.model_validate(sections)

    async def estimated() -> tuple[str, int]:
        out = io.StringIO()
        await estimate.run(settings, out)
        row = next(line for line in out.getvalue().splitlines() if "a cycle (every" in line)
        return out.getvalue(), int(re.findall(r"[\d.,]+", row.split(")")[1])[1])

    text, metrics = await estimated()
    assert "12 of the metrics of a cycle are those of cloudwatch.extra" in text
    assert metrics == 6 + 4 + 12, "nothing of the worker that is in no account"
    rows = {row.check: row for row in await examine(settings, fake.now)}
    found = rows[f"CloudWatch extra cml_worker_root_disk_ratio, {REGION}"]
    assert (found.status, "is listed for 4 of 4 running workers" in found.text) == ("ok", True), found

    if aws is ROLES:
        fake.denied.add(FIRST)
        text, metrics = await estimated()
        assert (metrics, text.count("account production: ")) == (3 + 2 + 6, 2), "told once for each region"
        every = [row for row in await examine(settings, fake.now) if row.check.startswith("CloudWatch extra")]
        assert {row.status for row in every} == {"ok"}, "told once, with the accounts"
        assert any("is listed for 2 of 2 running workers" in row.text for row in every)


async def test_a_malformed_owner_costs_only_itself_and_an_instance_stays_where_it_was(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    members = await fleet(database, fake, int(clock()) - 3600)
    async with opened(tmp_path, database, fake, clock, LINKED) as exporter:
        await exporter.round(2)

        def lie(operation: str, body: Any, answer: Any) -> Any:  # noqa: ANN401
            if operation == "ListMetrics" and answer.get("OwningAccounts"):
                answer["OwningAccounts"][0] = {"Id": FIRST}
            return answer

        fake.lie = lie
        await exporter.round(8)
        assert exporter.value("cml_exporter_cloudwatch_malformed_total", kind="listed_metric")
        text = await exporter.scrape()
        assert shown(text, "cml_worker_cpu_utilization_ratio") == {member.worker_id for member in members}
        assert accounts(text) == {f"worker-{k}": (FIRST, SECOND)[k % 2] for k in range(6)} | {"nowhere": ""}
        assert await compared(exporter, fake, members) > 30
