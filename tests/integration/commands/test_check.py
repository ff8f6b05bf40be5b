"""`check` against real servers: what it says of each fault, its exit status, and that it changes nothing."""

import io
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from exporter.commands.check.command import examine, run
from exporter.commands.check.result import CheckResult
from exporter.core.errors import IncompatibleStoreError
from exporter.core.settings import Settings
from exporter.pipeline.outbox import Outbox
from exporter.storage.lease import Lease
from exporter.storage.mongo import STATE, Document, connect
from exporter.storage.privileges import least_role
from exporter.storage.repository import repository
from tests.fixtures.mongo import AuthMongod
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.ports import free_port

IRELAND, VIRGINIA = "eu-west-1", "us-east-1"
TIMESERIES: Document = {"timeField": "timestamp", "metaField": "worker_id", "granularity": "minutes"}


def aggregate(k: int, region: str = IRELAND, **fields: Any) -> Document:  # noqa: ANN401  # any field of an aggregate
    return {
        "_id": f"worker-{k}",
        "name": f"lab-{k}",
        "aws_region": region,
        "aws_instance_id": instance_id(k),
        "status": "running",
        **fields,
    }


@dataclass(frozen=True)
class CheckEnv:
    """A database with a manager's workers, seen by an administrator, and a CloudWatch that knows them."""

    database: Database[Document]
    aws: FakeCloudWatch
    folder: Path
    server_uri: str

    def settings(self, uri: str | None = None, **sections: Any) -> Settings:  # noqa: ANN401  # whatever a section takes
        return Settings.model_validate(
            {
                "data_dir": self.folder / "data",
                "web": {"listen_address": ["127.0.0.1:0"]},
                **sections,
                "mongodb": {"uri": uri or self.uri, **sections.get("mongodb", {})},
                "cloudwatch": {"endpoint_url": self.aws.url, **sections.get("cloudwatch", {})},
            }
        )

    @property
    def uri(self) -> str:
        return self.server_uri.replace("/?", f"/{self.database.name}?")

    def add_workers(self, *aggregates: Document) -> None:
        """Put workers into the database, and their instances into CloudWatch."""
        self.database["workers"].insert_many(aggregates)
        for worker in aggregates:
            self.aws.add(worker["aws_instance_id"], worker["aws_region"])

    def state(self) -> tuple[Any, list[str]]:
        """Everything that a check could have changed."""
        return self.database.command("dbHash")["collections"], sorted(str(path) for path in self.folder.rglob("*"))


def world(client: MongoClient[Document], uri: str, aws: FakeCloudWatch, folder: Path) -> Iterator[CheckEnv]:
    database = client[f"test_{uuid.uuid4().hex}"]
    yield CheckEnv(database, aws, folder, uri)
    client.drop_database(database.name)


@pytest.fixture
def check_env(mongod: Any, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> Iterator[CheckEnv]:  # noqa: ANN401
    """Without authentication."""
    with MongoClient[Document](mongod.uri) as client:
        yield from world(client, mongod.uri, fake_cloudwatch, tmp_path)


@pytest.fixture
def secured(mongo_auth: AuthMongod, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> Iterator[CheckEnv]:
    """With authentication; the administrator's client is the test's own."""
    with MongoClient[Document](mongo_auth.root_uri) as client:
        yield from world(client, mongo_auth.mongod.uri, fake_cloudwatch, tmp_path)


async def rows(settings: Settings) -> dict[str, CheckResult]:
    return {finding.what: finding for finding in await examine(settings)}


async def checked(settings: Settings) -> tuple[int, str]:
    out = io.StringIO()
    return await run(settings, out), out.getvalue()


def results(found: dict[str, CheckResult]) -> dict[str, str]:
    return {what: finding.result for what, finding in found.items()}


# -- all is fine -------------------------------------------------------------------------------------------------------


async def test_a_newcomer_with_the_least_role_sees_only_ok_and_nothing_has_changed(
    secured: CheckEnv, mongo_auth: AuthMongod
) -> None:
    secured.add_workers(aggregate(1), aggregate(2), aggregate(3, VIRGINIA))
    settings = secured.settings(mongo_auth.exporter_uri(secured.database.name))
    before = secured.state()

    status, text = await checked(settings)

    assert status == 0, text
    assert secured.state() == before
    assert [line.split()[0] for line in text.splitlines()[:-1]] == ["ok"] * 14
    assert text.splitlines()[-1] == "The exporter would work."
    assert "exporter@" in text
    assert "has all privileges of the least role" in text
    assert "worker_metrics_timeseries will be created (period 5m, retention 30d)" in text
    assert "3 workers (3 running)" in text
    assert "2 of 2 running workers among them" in text
    assert f"arn:aws:iam::123456789012:user/exporter in {IRELAND}, {VIRGINIA}" in text


async def test_aws_bills_one_metric_a_region_and_the_table_says_so(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1), aggregate(2), aggregate(3, VIRGINIA))
    found = await rows(check_env.settings())
    assert check_env.aws.counters()["metrics_billed"] == {IRELAND: 1, VIRGINIA: 1}
    assert check_env.aws.calls == {"GetCallerIdentity": 2, "GetMetricData": 2, "ListMetrics": 2}
    assert re.search(
        r"had \d+\.\d % .*\(this check queried 1 metric: 0\.00001 dollars\)", found[f"CloudWatch CPU, {IRELAND}"].text
    )


async def test_an_existing_history_and_its_writer_are_described_and_left_alone(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1))
    settings = check_env.settings()
    client, database = connect(settings)
    async with client:
        await repository(settings, database, "worker_metrics_timeseries").ensure_collection()
        free = await rows(settings)
        assert await Lease(database, owner="somebody@elsewhere").acquire_or_renew()
    before = check_env.state()

    found = await rows(settings)

    assert check_env.state() == before
    assert free["lease"] == CheckResult("lease", "ok", "free: the next exporter to start writes the history")
    assert found["history"].text.endswith("is a time-series collection of 5m; it keeps samples for 30d")
    assert found["lease"].result == "ok"
    assert found["lease"].text.startswith("somebody@elsewhere writes the history (its lease ends 20")
    assert found["privileges"].text == "authentication is off: every client has every privilege"


async def test_a_replica_set_is_called_one(mongo_rs: Any, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> None:  # noqa: ANN401
    settings = Settings.model_validate({"mongodb": {"uri": mongo_rs.uri}, "data_dir": tmp_path})
    assert "replica set rs0 of 1" in (await rows(settings))["MongoDB"].text


# -- MongoDB -----------------------------------------------------------------------------------------------------------


async def test_a_wrong_password_fails_the_check_without_being_shown(secured: CheckEnv, mongo_auth: AuthMongod) -> None:
    mongo_auth.exporter_uri(secured.database.name)
    uri = mongo_auth.uri("exporter", "wr0ng-s3cret", secured.database.name)

    status, text = await checked(secured.settings(uri))

    assert status == 1
    assert "MongoDB refuses the credentials" in text
    assert "check user, password and authSource in mongodb.uri" in text
    assert "wr0ng-s3cret" not in text
    assert re.search(r"^skipped +workers +because MongoDB failed$", text, re.MULTILINE)
    assert re.search(
        r"^skipped +CloudWatch CPU +because the workers, and so their regions, could not be read$", text, re.MULTILINE
    )
    assert text.splitlines()[-1] == "1 of 12 checks failed."


async def test_a_server_with_authentication_wants_a_user(secured: CheckEnv) -> None:
    found = await rows(secured.settings())
    assert found["MongoDB"].result == "ok"
    assert found["workers"].result == "FAIL"
    assert found["privileges"] == CheckResult(
        "privileges", "FAIL", "mongodb.uri names no user, but MongoDB requires one; put user, password and authSource into it"
    )


@pytest.mark.parametrize(
    ("collection", "action"),
    [
        ("worker_metrics_timeseries", "insert"),
        ("worker_metrics_timeseries", "createCollection"),
        ("worker_metrics_inventory", "update"),
        ("cml_exporter_state", "insert"),
    ],
)
async def test_a_missing_privilege_fails_the_check_and_is_named(
    secured: CheckEnv, mongo_auth: AuthMongod, collection: str, action: str
) -> None:
    secured.add_workers(aggregate(1))
    name = secured.database.name
    role = least_role(name)
    for privilege in role:
        if privilege["resource"]["collection"] == collection:
            privilege["actions"].remove(action)

    found = await rows(secured.settings(mongo_auth.user(name, role)))

    lacks = f"exporter@{name} lacks {action} on {name}.{collection}; grant it the least role that README.md shows"
    assert found["privileges"] == CheckResult("privileges", "FAIL", lacks)
    assert [what for what, finding in found.items() if finding.result == "FAIL"] == ["privileges"]


async def test_who_may_not_read_the_workers_is_told_and_the_rest_is_checked(secured: CheckEnv, mongo_auth: AuthMongod) -> None:
    name = secured.database.name
    role = [privilege for privilege in least_role(name) if privilege["resource"]["collection"] != "workers"]
    found = await rows(secured.settings(mongo_auth.user(name, role)))
    assert found["workers"].text == (
        f"MongoDB does not allow this user `find` on {name}.workers; grant it the least role that README.md shows"
    )
    assert f"find on {name}.workers" in found["privileges"].text
    assert found["history"].result == "ok"
    assert found["CloudWatch CPU"].result == "skipped"


async def test_the_built_in_roles_are_understood(secured: CheckEnv, mongo_auth: AuthMongod) -> None:
    """readWrite lacks collMod, which only a change of the retention needs; root lacks nothing."""
    secured.add_workers(aggregate(1))
    name = secured.database.name
    secured.database.command("createUser", "rw", pwd="rw", roles=["readWrite"])
    for user, result in {"rw": "warn", "root": "ok"}.items():
        uri = mongo_auth.uri(user, user, name) + f"&authSource={'admin' if user == 'root' else name}"
        found = await rows(secured.settings(uri))
        assert found["privileges"].result == result, found["privileges"]
    lacking = await rows(secured.settings(mongo_auth.uri("rw", "rw", name)))
    assert f"rw@{name} lacks collMod on {name}.worker_metrics_timeseries: serve works without" in lacking["privileges"].text


async def test_collmod_is_needed_once_the_retention_is_to_be_lengthened(secured: CheckEnv, mongo_auth: AuthMongod) -> None:
    secured.add_workers(aggregate(1))
    secured.database.create_collection("worker_metrics_timeseries", timeseries=TIMESERIES, expireAfterSeconds=86400)
    secured.database.command("createUser", "rw", pwd="rw", roles=["readWrite"])
    uri = mongo_auth.uri("rw", "rw", secured.database.name)
    found = await rows(secured.settings(uri, mongodb={"retention": "60d"}))
    assert found["history"].text.endswith("it keeps samples for 1d, which will be lengthened to 60d")
    assert found["privileges"].result == "FAIL"


@pytest.mark.parametrize("fault", ["normal collection", "other fields", "other period", "other schema"])
async def test_a_history_that_serve_would_refuse_is_refused_in_the_same_words(check_env: CheckEnv, fault: str) -> None:
    check_env.add_workers(aggregate(1))
    settings = check_env.settings()
    if fault == "normal collection":
        check_env.database["worker_metrics_timeseries"].insert_one({})
    elif fault == "other fields":
        check_env.database.create_collection("worker_metrics_timeseries", timeseries={"timeField": "at"})
    elif fault == "other schema":
        check_env.database[STATE].insert_one({"_id": "history:worker_metrics_timeseries", "schema": 2, "period": 300})
    else:
        client, database = connect(settings)
        async with client:
            minutes = check_env.settings(period="1m")
            await repository(minutes, database, "worker_metrics_timeseries").ensure_collection()

    status, text = await checked(settings)

    client, database = connect(settings)
    async with client:
        with pytest.raises(IncompatibleStoreError) as refusal:
            await repository(settings, database, "worker_metrics_timeseries").ensure_collection()
    assert status == 1
    assert re.search(rf"^FAIL +history +{re.escape(str(refusal.value))}$", text, re.MULTILINE), text
    assert text.splitlines()[-1] == "1 of 12 checks failed."


async def test_a_shorter_retention_is_a_warning(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1))
    check_env.database.create_collection("worker_metrics_timeseries", timeseries=TIMESERIES, expireAfterSeconds=86400 * 90)
    found = await rows(check_env.settings(mongodb={"retention": "30d"}))
    assert found["history"].result == "warn"
    assert found["history"].text.endswith("to shorten it, run: cml-worker-exporter retention --set 30d --yes")
    assert (await rows(check_env.settings()))["history"].result == "ok"


async def test_clocks_that_differ_fail_the_check(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1))
    found = {each.what: each for each in await examine(check_env.settings(), lambda: time.time() + timedelta(hours=1).seconds)}
    assert found["MongoDB clock"].result == "FAIL"
    assert "set both clocks (NTP), they may differ by 5m" in found["MongoDB clock"].text
    assert "set this machine's clock (NTP)" in found[f"CloudWatch CPU, {IRELAND}"].text


async def test_malformed_aggregates_are_counted_with_their_reasons(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1, cpu_utilization="lots"))
    check_env.database["workers"].insert_many([{"_id": "lost"}, {"_id": "", "aws_region": IRELAND}])
    found = await rows(check_env.settings())
    assert found["workers"].result == "warn"
    assert "1 worker (1 running); 2 worker documents left out: no_id 1, no_region 1; " in found["workers"].text
    assert "'lost' has no region and is left out" in found["workers"].text
    assert "'lots'" in found["workers"].text


# -- AWS ---------------------------------------------------------------------------------------------------------------


async def test_an_expired_token_is_said_once_with_the_way_out(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1))
    check_env.aws.fault("*", "expired_token", 100)
    status, text = await checked(check_env.settings())
    assert status == 1
    assert text.count("the session token has expired; renew the AWS credentials") == 1
    assert re.search(r"^FAIL +AWS identity, eu-west-1 ", text, re.MULTILINE)
    assert re.search(r"^skipped +CloudWatch CPU, eu-west-1 +because AWS identity failed$", text, re.MULTILINE)


async def test_denied_list_metrics_fails_only_the_memory(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1))
    check_env.aws.fault("ListMetrics", "access_denied", 100)
    found = await rows(check_env.settings())
    assert [what for what, finding in found.items() if finding.result == "FAIL"] == [f"CloudWatch memory, {IRELAND}"]
    assert "cloudwatch:ListMetrics is not allowed" in found[f"CloudWatch memory, {IRELAND}"].text
    assert "allow this action in the IAM policy of the exporter" in found[f"CloudWatch memory, {IRELAND}"].text


async def test_without_sts_the_exporter_still_works(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1))
    check_env.aws.fault("GetCallerIdentity", "access_denied", 100)
    status, text = await checked(check_env.settings())
    assert status == 0
    assert re.search(r"^warn +AWS identity, eu-west-1 .*CloudWatch answers", text, re.MULTILINE)


async def test_a_region_that_does_not_exist_fails_beside_one_that_does(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1), aggregate(2, "EU (Ireland)"))
    status, text = await checked(check_env.settings())
    assert status == 1
    assert "'EU (Ireland)' is not a region; correct the region of the workers that name it" in text
    assert re.search(r"^ok +CloudWatch CPU, eu-west-1 ", text, re.MULTILINE)


async def test_an_endpoint_nobody_listens_on_is_named(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1))
    url = f"http://127.0.0.1:{free_port()}"
    found = await rows(check_env.settings(cloudwatch={"endpoint_url": url}))
    assert results(found)[f"AWS identity, {IRELAND}"] == "FAIL"
    assert url in found[f"AWS identity, {IRELAND}"].text
    assert "cannot be reached; check" in found[f"AWS identity, {IRELAND}"].text


async def test_running_workers_without_an_agent_are_named(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1), aggregate(2), aggregate(3, status="stopped"))
    for k in (2, 3):
        check_env.aws.change(instance_id(k), memory=())
    found = (await rows(check_env.settings()))[f"CloudWatch memory, {IRELAND}"]
    assert found.result == "warn"
    assert "1 of 2 running workers among them; no memory for lab-2 (" in found.text
    assert "lab-3" not in found.text


async def test_a_running_worker_cloudwatch_does_not_know_is_a_warning(check_env: CheckEnv) -> None:
    check_env.database["workers"].insert_one(aggregate(1))
    found = (await rows(check_env.settings()))[f"CloudWatch CPU, {IRELAND}"]
    assert found.result == "warn"
    assert f"lab-1 ({instance_id(1)}) is running and has no datapoint in the last 30m" in found.text


async def test_without_workers_cloudwatch_is_not_asked_and_that_is_said(check_env: CheckEnv) -> None:
    status, text = await checked(check_env.settings())
    assert status == 0
    assert re.search(r"^warn +workers .*holds no worker document; correct mongodb\.uri", text, re.MULTILINE)
    assert text.count("not queried: without workers no region is known") == 3
    assert check_env.aws.calls == {}


async def test_with_cloudwatch_disabled_aws_is_left_alone(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1))
    found = await rows(check_env.settings(cloudwatch={"enabled": False}))
    assert [found[what].result for what in ("AWS identity", "CloudWatch CPU", "CloudWatch memory")] == ["skipped"] * 3
    assert check_env.aws.calls == {}


async def test_without_a_history_only_reading_is_needed(secured: CheckEnv, mongo_auth: AuthMongod) -> None:
    secured.add_workers(aggregate(1))
    name = secured.database.name
    uri = mongo_auth.user(name, [{"resource": {"db": name, "collection": "workers"}, "actions": ["find"]}])
    found = await rows(secured.settings(uri, mongodb={"history": None}))
    assert [found[what].result for what in ("history", "privileges", "lease")] == ["skipped", "ok", "skipped"]


# -- this machine ------------------------------------------------------------------------------------------------------


async def test_a_folder_held_by_a_running_exporter_is_a_warning(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1))
    settings = check_env.settings()
    outbox = Outbox(settings.data_dir, settings.period)
    try:
        status, text = await checked(settings)
    finally:
        outbox.close()
    assert status == 0
    assert re.search(r"^warn +data folder +an exporter is running here \(process id \d+\)", text, re.MULTILINE)
    assert (await rows(settings))["data folder"].text == f"{settings.data_dir} can be written, and no exporter runs in it"


async def test_an_outbox_of_another_period_fails_the_check(check_env: CheckEnv) -> None:
    settings = check_env.settings()
    Outbox(settings.data_dir, 60).close()
    before = check_env.state()
    found = (await rows(settings))["data folder"]
    assert check_env.state() == before
    with pytest.raises(IncompatibleStoreError) as refusal:
        Outbox(settings.data_dir, settings.period)
    assert found == CheckResult("data folder", "FAIL", str(refusal.value))


async def test_a_damaged_outbox_fails_the_check(check_env: CheckEnv) -> None:
    settings = check_env.settings()
    settings.data_dir.mkdir()
    (settings.data_dir / "outbox.db").write_text("this is no database at all, just words" * 100)
    found = (await rows(settings))["data folder"]
    assert found.result == "FAIL"
    assert "move it away: what it held is read from CloudWatch anew" in found.text


async def test_a_file_in_place_of_the_folder_fails_the_check(check_env: CheckEnv, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = (await rows(check_env.settings(data_dir=tmp_path / "file" / "data")))["data folder"]
    assert found.result == "FAIL"
    assert found.text == f"data_dir: {tmp_path / 'file'} is not a folder; move it away or set another data_dir"


async def test_a_taken_port_fails_the_check(check_env: CheckEnv) -> None:
    address = check_env.aws.url.removeprefix("http://")
    found = (await rows(check_env.settings(web={"listen_address": [address]})))["web server"]
    assert found.result == "FAIL"
    assert f"cannot listen on {address}" in found.text


# -- words and paper ---------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_a_narrow_terminal_wraps_and_loses_no_character(check_env: CheckEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    monkeypatch.setenv("TERM", "xterm")
    check_env.add_workers(aggregate(1))
    out = Terminal()
    assert await run(check_env.settings(), out) == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).splitlines()
    assert max(map(len, lines)) <= 44
    found = "".join(line.split("│")[3].strip() for line in lines if line.count("│") == 4)
    for finding in await examine(check_env.settings()):
        if finding.what in ("workers", "history", "AWS identity"):
            assert finding.text.replace(" ", "") in found.replace(" ", "")


async def test_a_foreign_name_cannot_play_with_the_terminal(check_env: CheckEnv) -> None:
    check_env.add_workers(aggregate(1, name="\x1b[2Jlab\nFAIL everything"))
    _, text = await checked(check_env.settings())
    assert "\x1b" not in text
    assert "\nFAIL everything" not in text
