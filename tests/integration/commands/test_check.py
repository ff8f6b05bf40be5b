"""`check` against real servers: its rows for each fault, its exit status, and that it changes nothing."""

import io
import os
import re
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from exporter.commands.check.command import examine, run
from exporter.commands.check.finding import CheckResult
from exporter.core.errors import IncompatibleStoreError
from exporter.core.settings import WORKER_COLLECTIONS, Settings
from exporter.demo.mongod import Mongod
from exporter.pipeline.outbox import Outbox
from exporter.storage import collection
from exporter.storage.lease import Lease
from exporter.storage.mongo import Document, connect
from exporter.storage.privileges import least_role
from exporter.storage.repository import repository
from tests.fixtures.mongo import AuthMongod
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.ports import free_port

IRELAND, VIRGINIA = "eu-west-1", "us-east-1"
NOBODY = 65534
"""The user id that owns nothing."""
TIMESERIES: Document = {"timeField": "timestamp", "metaField": "worker_id", "granularity": "minutes"}


def worker_document(k: int, region: str = IRELAND, **fields: Any) -> Document:  # noqa: ANN401  # any field of a worker document
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
    """A database with worker documents, an administrator's client for it, and a CloudWatch with their instances."""

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
                "aws": {"sts_endpoint_url": self.aws.url, **sections.get("aws", {})},
            }
        )

    @property
    def uri(self) -> str:
        return self.server_uri.replace("/?", f"/{self.database.name}?")

    def add_workers(self, *documents: Document) -> None:
        """Add workers to the database, and their instances to CloudWatch."""
        self.database["workers"].insert_many(documents)
        for worker in documents:
            self.aws.add(worker["aws_instance_id"], worker["aws_region"])

    def state(self) -> tuple[Any, list[str]]:
        """Return everything that a check could have changed."""
        return self.database.command("dbHash")["collections"], sorted(str(path) for path in self.folder.rglob("*"))


def new_check_env(client: MongoClient[Document], uri: str, aws: FakeCloudWatch, folder: Path) -> Iterator[CheckEnv]:
    database = client[f"test_{uuid.uuid4().hex}"]
    yield CheckEnv(database, aws, folder, uri)
    client.drop_database(database.name)


@pytest.fixture
def check_env(mongod: Any, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> Iterator[CheckEnv]:  # noqa: ANN401
    """Without authentication."""
    with MongoClient[Document](mongod.uri) as client:
        yield from new_check_env(client, mongod.uri, fake_cloudwatch, tmp_path)


@pytest.fixture
def auth_check_env(mongo_rs_auth: AuthMongod, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> Iterator[CheckEnv]:
    """With authentication; the administrator's client is the test's own."""
    with MongoClient[Document](mongo_rs_auth.root_uri) as client:
        yield from new_check_env(client, mongo_rs_auth.mongod.uri, fake_cloudwatch, tmp_path)


async def rows(settings: Settings) -> dict[str, CheckResult]:
    return {result.check: result for result in await examine(settings)}


async def checked(settings: Settings) -> tuple[int, str]:
    out = io.StringIO()
    return await run(settings, out), out.getvalue()


def results(found: dict[str, CheckResult]) -> dict[str, str]:
    return {check: result.status for check, result in found.items()}


# -- no fault --------------------------------------------------------------------------------------------------------


async def test_the_least_role_on_an_empty_database_passes_every_check_and_nothing_changes(
    auth_check_env: CheckEnv, mongo_rs_auth: AuthMongod
) -> None:
    auth_check_env.add_workers(worker_document(1), worker_document(2), worker_document(3, VIRGINIA))
    settings = auth_check_env.settings(mongo_rs_auth.exporter_uri(auth_check_env.database.name))
    before = auth_check_env.state()

    status, text = await checked(settings)

    assert status == 0, text
    assert auth_check_env.state() == before
    assert [line.split()[0] for line in text.splitlines()[:-1]] == ["ok"] * 14
    assert "replica set rs0 of 1" in text
    assert text.splitlines()[-1] == "The exporter would work."
    assert "exporter@" in text
    assert "has every privilege of the least role" in text
    assert "worker_metrics_timeseries will be created (period 5m, retention 30d)" in text
    assert "3 workers (3 running)" in text
    assert "2 of 2 running workers among them" in text
    assert f"arn:aws:iam::123456789012:user/exporter in {IRELAND}, {VIRGINIA}" in text


async def test_aws_bills_one_metric_a_region_and_the_table_says_so(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1), worker_document(2), worker_document(3, VIRGINIA))
    found = await rows(check_env.settings())
    assert check_env.aws.counters()["metrics_billed"] == {IRELAND: 1, VIRGINIA: 1}
    assert check_env.aws.calls == {"GetCallerIdentity": 2, "GetMetricData": 2, "ListMetrics": 2}
    assert re.search(
        r"had \d+\.\d % .*\(this check queried 1 metric: 0\.00001 dollars\)", found[f"CloudWatch CPU, {IRELAND}"].text
    )


async def test_an_existing_history_and_its_writer_are_described_and_not_changed(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1))
    settings = check_env.settings()
    client, database = connect(settings)
    async with client:
        await repository(settings, database, "worker_metrics_timeseries").ensure_collection()
        free = await rows(settings)
        assert await Lease(database, owner="another-exporter@host").acquire_or_renew()
    before = check_env.state()

    found = await rows(settings)

    assert check_env.state() == before
    assert free["lease"] == CheckResult("lease", "ok", "free: the next exporter to start writes the history")
    assert found["history"].text.endswith("is a time-series collection of 5m; it keeps samples for 30d")
    assert found["lease"].status == "ok"
    assert found["lease"].text.startswith("another-exporter@host leads: it writes the history (its lease ends 20")
    assert found["lease"].text.endswith("this one will stand by and expose gauges")
    assert found["privileges"].text == "authentication is off: every client may do everything on this MongoDB"


async def test_a_standalone_server_is_warned_about_with_what_remains_and_what_to_do(check_env: CheckEnv) -> None:
    found = (await rows(check_env.settings()))["MongoDB"]
    assert found.status == "warn"
    assert "a standalone server cannot refuse late inserts, so an exporter or a job that is paused" in found.text
    assert "a replica set of one node can: docs/deploy.md" in found.text
    settings = check_env.settings()
    without = settings.model_copy(update={"mongodb": settings.mongodb.model_copy(update={"history": None})})
    assert (await rows(without))["MongoDB"].status == "ok"


async def test_a_replica_set_is_named_as_such(mongo_rs: Any, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> None:  # noqa: ANN401
    settings = Settings.model_validate({"mongodb": {"uri": mongo_rs.uri}, "data_dir": tmp_path})
    assert "replica set rs0 of 1" in (await rows(settings))["MongoDB"].text


# -- MongoDB -----------------------------------------------------------------------------------------------------------


async def test_a_wrong_password_fails_the_check_and_is_not_shown(auth_check_env: CheckEnv, mongo_rs_auth: AuthMongod) -> None:
    mongo_rs_auth.exporter_uri(auth_check_env.database.name)
    uri = mongo_rs_auth.uri("exporter", "wr0ng-s3cret", auth_check_env.database.name)

    status, text = await checked(auth_check_env.settings(uri))

    assert status == 1
    assert "MongoDB refuses the credentials" in text
    assert "check user, password and authSource in mongodb.uri" in text
    assert "wr0ng-s3cret" not in text
    assert re.search(r"^skipped +workers +because MongoDB failed$", text, re.MULTILINE)
    assert re.search(r"^skipped +CloudWatch CPU +because the workers could not be read$", text, re.MULTILINE)
    assert text.splitlines()[-1] == "1 of 12 checks failed."


async def test_aws_is_asked_without_mongodb_too(check_env: CheckEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", VIRGINIA)
    check_env.aws.add(instance_id(1), VIRGINIA)
    found = await rows(check_env.settings("mongodb://127.0.0.1:1/"))
    assert found["MongoDB"].status == "FAIL"
    assert found["AWS identity"].status == "ok"
    assert found["AWS identity"].text.endswith(f" in {VIRGINIA}")
    assert found[f"CloudWatch memory, {VIRGINIA}"].text.startswith("ListMetrics works: 1 instance")
    assert check_env.aws.metrics_billed == 0


async def test_a_server_with_authentication_requires_a_user(auth_check_env: CheckEnv) -> None:
    found = await rows(auth_check_env.settings())
    assert found["MongoDB"].status == "ok"  # as a server; nothing else can be told without a user
    assert found["workers"].status == "FAIL"
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
    auth_check_env: CheckEnv, mongo_rs_auth: AuthMongod, collection: str, action: str
) -> None:
    auth_check_env.add_workers(worker_document(1))
    name = auth_check_env.database.name
    role = least_role(name)
    for privilege in role:
        if privilege["resource"]["collection"] == collection:
            privilege["actions"].remove(action)

    found = await rows(auth_check_env.settings(mongo_rs_auth.user(name, role)))

    lacks = (
        f"MongoDB does not allow this user `{action}` on {name}.{collection}; grant it the least role that "
        f"docs/manager.md shows (the user is exporter@{name})"
    )
    assert found["privileges"] == CheckResult("privileges", "FAIL", lacks)
    assert [check for check, result in found.items() if result.status == "FAIL"] == ["privileges"]


async def test_without_the_privilege_to_read_the_workers_the_rest_is_checked(
    auth_check_env: CheckEnv, mongo_rs_auth: AuthMongod
) -> None:
    name = auth_check_env.database.name
    role = [each for each in least_role(name) if each["resource"]["collection"] not in WORKER_COLLECTIONS]
    found = await rows(auth_check_env.settings(mongo_rs_auth.user(name, role)))
    assert found["workers"].text == (
        f"MongoDB does not allow this user `find` on {name}.workers; grant it the least role that docs/manager.md shows"
    )
    assert f"`find` on {name}.workers" in found["privileges"].text
    assert found["history"].status == "ok"
    assert found["CloudWatch CPU"].status == "skipped"


async def test_the_built_in_roles_are_understood(auth_check_env: CheckEnv, mongo_rs_auth: AuthMongod) -> None:
    """readWrite lacks collMod, which only a change of the retention needs; root lacks nothing."""
    auth_check_env.add_workers(worker_document(1))
    name = auth_check_env.database.name
    auth_check_env.database.command("createUser", "rw", pwd="rw", roles=["readWrite"])
    for user, result in {"rw": "warn", "root": "ok"}.items():
        uri = mongo_rs_auth.uri(user, user, name) + f"&authSource={'admin' if user == 'root' else name}"
        found = await rows(auth_check_env.settings(uri))
        assert found["privileges"].status == result, found["privileges"]
    lacking = await rows(auth_check_env.settings(mongo_rs_auth.uri("rw", "rw", name)))
    assert f"rw@{name} lacks `collMod` on {name}.worker_metrics_timeseries: serve works without" in lacking["privileges"].text


async def test_collmod_is_required_when_the_retention_will_be_lengthened(
    auth_check_env: CheckEnv, mongo_rs_auth: AuthMongod
) -> None:
    auth_check_env.add_workers(worker_document(1))
    auth_check_env.database.create_collection("worker_metrics_timeseries", timeseries=TIMESERIES, expireAfterSeconds=86400)
    auth_check_env.database.command("createUser", "rw", pwd="rw", roles=["readWrite"])
    uri = mongo_rs_auth.uri("rw", "rw", auth_check_env.database.name)
    found = await rows(auth_check_env.settings(uri, mongodb={"retention": "60d"}))
    assert found["history"].text.endswith("it keeps samples for 1d, which will be lengthened to 60d")
    assert found["privileges"].status == "FAIL"


@pytest.mark.parametrize(
    ("collection", "action"),
    [
        ("", "listCollections"),
        ("cml_exporter_state", "find"),
        ("cml_exporter_state", "update"),
        ("worker_metrics_timeseries", "createIndex"),
    ],
)
async def test_a_missing_privilege_is_refused_in_the_words_of_serve(
    auth_check_env: CheckEnv, mongo_rs_auth: AuthMongod, collection: str, action: str
) -> None:
    name = auth_check_env.database.name
    role = least_role(name)
    for privilege in role:
        if privilege["resource"]["collection"] == collection:
            privilege["actions"].remove(action)
    role = [privilege for privilege in role if privilege["actions"]]
    settings = auth_check_env.settings(mongo_rs_auth.user(name, role))
    before = auth_check_env.state()

    found = await rows(settings)

    assert auth_check_env.state() == before
    words = await refusal_of_serve(settings)
    assert f"`{action}` on {name}." in words
    failed = [result.text for result in found.values() if result.status == "FAIL"]
    assert any(text.startswith(words) for text in failed), failed


async def refusal_of_serve(settings: Settings) -> str:
    """Return the sentence with which `serve` refuses the history."""
    client, database = connect(settings)
    async with client:
        with pytest.raises(IncompatibleStoreError) as refusal:
            await repository(settings, database, "worker_metrics_timeseries").ensure_collection()
    return str(refusal.value)


async def spoil(check_env: CheckEnv, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring the history into a state that `serve` refuses."""
    name = "worker_metrics_timeseries"
    match fault:
        case "normal collection":
            check_env.database[name].insert_one({})
        case "view":
            check_env.database.create_collection(name, viewOn="workers", pipeline=[])
        case "other fields":
            check_env.database.create_collection(name, timeseries={"timeField": "at"})
        case "other period":
            client, database = connect(check_env.settings())
            async with client:
                await repository(check_env.settings(period="1m"), database, name).ensure_collection()
        case "other schema":
            check_env.database["cml_exporter_state"].insert_one({"_id": f"history:{name}", "schema": 2, "period": 300})
        case "old server":
            monkeypatch.setattr(collection, "MIN_WIRE_VERSION", 99)


@pytest.mark.parametrize("fault", ["normal collection", "view", "other fields", "other period", "other schema", "old server"])
async def test_a_history_that_serve_would_refuse_is_refused_in_the_same_words(
    check_env: CheckEnv, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_env.add_workers(worker_document(1))
    settings = check_env.settings()
    await spoil(check_env, fault, monkeypatch)
    before = check_env.state()

    status, text = await checked(settings)

    assert check_env.state() == before
    assert status == 1
    assert re.search(rf"^FAIL +history +{re.escape(await refusal_of_serve(settings))}$", text, re.MULTILINE), text
    assert text.splitlines()[-1] == "1 of 12 checks failed."


async def test_another_granularity_is_a_warning_in_the_words_of_serve(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1))
    hours = TIMESERIES | {"granularity": "hours"}
    check_env.database.create_collection("worker_metrics_timeseries", timeseries=hours, expireAfterSeconds=86400 * 30)
    settings = check_env.settings()
    found = (await rows(settings))["history"]
    client, database = connect(settings)
    async with client:
        history = repository(settings, database, "worker_metrics_timeseries").collection
        await history.ensure()
    assert found.status == "warn"
    assert history.notices
    assert found.text.endswith(history.notices[0])


async def test_a_shorter_retention_is_a_warning(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1))
    check_env.database.create_collection("worker_metrics_timeseries", timeseries=TIMESERIES, expireAfterSeconds=86400 * 90)
    found = await rows(check_env.settings(mongodb={"retention": "30d"}))
    assert found["history"].status == "warn"
    assert found["history"].text.endswith("to shorten it, run: cml-worker-exporter retention --set 30d --yes")
    assert (await rows(check_env.settings()))["history"].status == "ok"


async def test_clocks_that_differ_fail_the_check(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1))
    found = {each.check: each for each in await examine(check_env.settings(), lambda: time.time() + timedelta(hours=1).seconds)}
    assert found["MongoDB clock"].status == "FAIL"
    assert "set both clocks (NTP), they may differ by 5m" in found["MongoDB clock"].text
    assert "set this machine's clock (NTP)" in found[f"CloudWatch CPU, {IRELAND}"].text


async def test_malformed_worker_documents_are_counted_with_their_reasons(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1, cpu_utilization="lots"))
    check_env.database["workers"].insert_many([{"_id": "lost"}, {"_id": "", "aws_region": IRELAND}])
    found = await rows(check_env.settings())
    assert found["workers"].status == "warn"
    assert "2 workers (1 running, 1 unknown); 1 worker document left out: no_id 1; " in found["workers"].text
    assert "'lost' has no region, so CloudWatch is not queried for it" in found["workers"].text
    assert "'lots'" in found["workers"].text
    assert {name for name in found if name.startswith("CloudWatch")} == {
        f"CloudWatch {what}, {IRELAND}" for what in ("CPU", "memory")
    }


async def test_workers_without_any_region_are_reported_and_not_queried(check_env: CheckEnv) -> None:
    check_env.database["workers"].insert_one({"_id": "lost", "status": "running", "aws_instance_id": "i-1"})
    found = await rows(check_env.settings())
    assert found["CloudWatch CPU"] == CheckResult("CloudWatch CPU", "warn", "not queried: no worker document has a region")


# -- AWS ---------------------------------------------------------------------------------------------------------------


async def test_an_expired_token_is_reported_once_with_its_remedy(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1))
    check_env.aws.fault("*", "expired_token", 100)
    status, text = await checked(check_env.settings())
    assert status == 1
    assert text.count("the session token has expired; renew the AWS credentials") == 1
    assert re.search(r"^FAIL +AWS identity, eu-west-1 ", text, re.MULTILINE)
    assert re.search(r"^skipped +CloudWatch CPU, eu-west-1 +because AWS identity failed$", text, re.MULTILINE)


async def test_denied_list_metrics_fails_only_the_memory(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1))
    check_env.aws.fault("ListMetrics", "access_denied", 100)
    found = await rows(check_env.settings())
    assert [check for check, result in found.items() if result.status == "FAIL"] == [f"CloudWatch memory, {IRELAND}"]
    assert "cloudwatch:ListMetrics is not allowed" in found[f"CloudWatch memory, {IRELAND}"].text
    assert "allow this action in the IAM policy of the exporter" in found[f"CloudWatch memory, {IRELAND}"].text


async def test_without_sts_the_exporter_still_works(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1))
    check_env.aws.fault("GetCallerIdentity", "access_denied", 100)
    status, text = await checked(check_env.settings())
    assert status == 0
    assert re.search(r"^warn +AWS identity, eu-west-1 .*CloudWatch itself answers", text, re.MULTILINE)


async def test_what_is_no_region_is_named_beside_one_that_is(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1), worker_document(2, "EU (Ireland)"))
    status, text = await checked(check_env.settings())
    assert status == 0
    assert "'worker-2': aws_region is 'EU (Ireland)', not an AWS region such as eu-west-1" in text
    assert re.search(r"^ok +CloudWatch CPU, eu-west-1 ", text, re.MULTILINE)


async def test_an_endpoint_that_refuses_connections_is_named(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1))
    url = f"http://127.0.0.1:{free_port()}"
    found = await rows(check_env.settings(cloudwatch={"endpoint_url": url}))
    assert results(found)["AWS identity"] == "ok", "an endpoint of CloudWatch is none of STS"
    assert url in found[f"CloudWatch CPU, {IRELAND}"].text
    assert "cannot be reached; check" in found[f"CloudWatch CPU, {IRELAND}"].text

    found = await rows(check_env.settings(cloudwatch={"endpoint_url": url}, aws={"sts_endpoint_url": {IRELAND: url}}))
    assert results(found)[f"AWS identity, {IRELAND}"] == "FAIL"
    assert url in found[f"AWS identity, {IRELAND}"].text
    assert "cannot be reached; check" in found[f"AWS identity, {IRELAND}"].text


async def test_running_workers_without_an_agent_are_named(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1), worker_document(2), worker_document(3, status="stopped"))
    for k in (2, 3):
        check_env.aws.change(instance_id(k), memory=())
    found = (await rows(check_env.settings()))[f"CloudWatch memory, {IRELAND}"]
    assert found.status == "warn"
    assert "1 of 2 running workers among them; no memory for lab-2 (" in found.text
    assert "lab-3" not in found.text


async def test_a_running_worker_cloudwatch_does_not_know_is_a_warning(check_env: CheckEnv) -> None:
    check_env.database["workers"].insert_one(worker_document(1))
    found = (await rows(check_env.settings()))[f"CloudWatch CPU, {IRELAND}"]
    assert found.status == "warn"
    assert f"lab-1 ({instance_id(1)}) is running and has no datapoint in the last 30m" in found.text


async def test_without_workers_cloudwatch_is_not_queried_and_the_table_says_so(check_env: CheckEnv) -> None:
    status, text = await checked(check_env.settings())
    assert status == 0
    assert re.search(r"^warn +workers .*holds no worker document; check the database in mongodb\.uri", text, re.MULTILINE)
    assert text.count("not queried: without workers no region is known") == 3
    assert check_env.aws.calls == {}


async def test_the_collection_of_the_newer_manager_is_found_and_named(check_env: CheckEnv) -> None:
    check_env.database["cml_workers"].insert_one(worker_document(1))
    found = await rows(check_env.settings())
    assert (found["workers"].status, found["privileges"].status) == ("ok", "ok")
    assert f"{check_env.database.name}.cml_workers holds 1 worker" in found["workers"].text
    found = await rows(check_env.settings(mongodb={"workers": "machines"}))
    assert found["workers"].status == "warn"
    assert found["workers"].text.endswith("set mongodb.workers to cml_workers")


async def test_with_cloudwatch_disabled_aws_is_not_called(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1))
    found = await rows(check_env.settings(cloudwatch={"enabled": False}))
    assert [found[check].status for check in ("AWS identity", "CloudWatch CPU", "CloudWatch memory")] == ["skipped"] * 3
    assert check_env.aws.calls == {}


async def test_without_a_history_only_the_privilege_to_read_is_required(
    auth_check_env: CheckEnv, mongo_rs_auth: AuthMongod
) -> None:
    auth_check_env.add_workers(worker_document(1))
    name = auth_check_env.database.name
    uri = mongo_rs_auth.user(name, [{"resource": {"db": name, "collection": "workers"}, "actions": ["find"]}])
    found = await rows(auth_check_env.settings(uri, mongodb={"history": None}))
    assert [found[check].status for check in ("history", "privileges", "lease")] == ["skipped", "ok", "skipped"]


# -- this machine ------------------------------------------------------------------------------------------------------


async def test_a_folder_held_by_a_running_exporter_is_a_warning(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1))
    settings = check_env.settings()
    outbox = Outbox(settings.data_dir, settings.period)
    try:
        status, text = await checked(settings)
    finally:
        outbox.close()
    assert status == 0
    assert re.search(r"^warn +data folder +an exporter is running here \(process id \d+\)", text, re.MULTILINE)
    assert (await rows(settings))["data folder"].text == f"{settings.data_dir} can be written, no exporter holds it"


async def test_an_outbox_of_another_period_fails_the_check(check_env: CheckEnv) -> None:
    settings = check_env.settings()
    Outbox(settings.data_dir, 60).close()
    before = check_env.state()
    found = (await rows(settings))["data folder"]
    assert check_env.state() == before
    with pytest.raises(IncompatibleStoreError) as refusal:
        Outbox(settings.data_dir, settings.period)
    assert found == CheckResult("data folder", "FAIL", str(refusal.value))


async def test_a_damaged_outbox_is_a_warning_because_serve_replaces_it(check_env: CheckEnv) -> None:
    settings = check_env.settings()
    settings.data_dir.mkdir()
    (settings.data_dir / "outbox.db").write_text("this is no database at all, just words" * 100)
    found = (await rows(settings))["data folder"]
    assert found.status == "warn"
    assert "is damaged (file is not a database); the exporter sets it aside" in found.text
    Outbox(settings.data_dir, settings.period).close()
    found = (await rows(settings))["data folder"]
    assert found.status == "warn"
    assert re.search(r"outbox\.db\.damaged-\S+ was damaged and set aside", found.text)


async def test_an_outbox_of_a_later_release_fails_the_check_in_the_words_of_serve(check_env: CheckEnv) -> None:
    settings = check_env.settings()
    Outbox(settings.data_dir, settings.period).close()
    with closing(sqlite3.connect(settings.data_dir / "outbox.db")) as database:
        database.executescript("ALTER TABLE sample RENAME COLUMN labs TO active_labs; PRAGMA user_version=2")
    found = (await rows(settings))["data folder"]
    with pytest.raises(IncompatibleStoreError) as refusal:
        Outbox(settings.data_dir, settings.period)
    assert found == CheckResult("data folder", "FAIL", str(refusal.value))


async def test_a_replica_set_that_confirms_no_write_fails_the_check(check_env: CheckEnv, mongo_rs: Mongod) -> None:
    settings = check_env.settings(mongodb={"uri": mongo_rs.uri})
    assert (await rows(settings))["MongoDB"].status == "ok"
    with MongoClient[dict[str, Any]](mongo_rs.uri) as client:
        client.admin.command("fsync", lock=True)
        try:
            found = (await rows(settings))["MongoDB"]
        finally:
            client.admin.command("fsyncUnlock")
    assert found.status == "FAIL"
    assert "does not confirm writes within 5 s, although 1 of 1 members answers: it may be locked (fsyncLock)" in found.text


async def test_a_file_in_place_of_the_folder_fails_the_check(check_env: CheckEnv, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = (await rows(check_env.settings(data_dir=tmp_path / "file" / "data")))["data folder"]
    assert found.status == "FAIL"
    assert found.text == f"data_dir: {tmp_path / 'file'} is not a folder; move it away or set another data_dir"


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be a user who may not read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; that of the test may be root's alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("mode", "data_dir", "problem"),
    [
        (
            0o000,
            "folder/data",
            "{}/folder/data cannot be examined (Permission denied); give this user its folder or set another",
        ),
        (0o555, "folder/data", "{}/folder cannot be written by this user; give this user the folder or set another data_dir"),
        (0o555, "folder", "{}/folder cannot be written by this user; give this user the folder or set another data_dir"),
        (0o755, "n" * 300, "{}/" + "n" * 300 + " cannot be examined (File name too long); give this user its folder"),
    ],
)
async def test_a_folder_that_this_user_may_not_use_fails_the_check_and_every_other_check_is_made(
    check_env: CheckEnv, open_folder: Path, mode: int, data_dir: str, problem: str
) -> None:
    check_env.add_workers(worker_document(1))
    (open_folder / "folder").mkdir()
    (open_folder / "folder").chmod(mode)
    settings = check_env.settings(data_dir=open_folder / data_dir, cloudwatch={"enabled": False})
    with ordinary_user():
        status, text = await checked(settings)
    (open_folder / "folder").chmod(0o755)
    assert status == 1
    assert re.search(rf"^FAIL +data folder +data_dir: {re.escape(problem.format(open_folder))}", text, re.MULTILINE), text
    assert re.search(r"^ok +workers ", text, re.MULTILINE)
    assert text.splitlines()[-1] == "1 of 12 checks failed."


async def test_a_taken_port_fails_the_check(check_env: CheckEnv) -> None:
    address = check_env.aws.url.removeprefix("http://")
    found = (await rows(check_env.settings(web={"listen_address": [address]})))["web server"]
    assert found.status == "FAIL"
    assert f"cannot listen on {address}" in found.text


# -- layout -----------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_a_narrow_terminal_wraps_and_loses_no_character(check_env: CheckEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    check_env.add_workers(worker_document(1))
    out = Terminal()
    assert await run(check_env.settings(), out) == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).splitlines()
    assert max(map(len, lines)) <= 60
    found = "".join(line.split("│")[3].strip() for line in lines if line.count("│") == 4)
    for result in await examine(check_env.settings()):
        if result.check in ("workers", "history", "AWS identity"):
            assert result.text.replace(" ", "") in found.replace(" ", "")


async def test_a_workers_name_cannot_send_control_characters_to_the_terminal(check_env: CheckEnv) -> None:
    check_env.add_workers(worker_document(1, name="\x1b[2Jlab\nFAIL everything"))
    _, text = await checked(check_env.settings())
    assert "\x1b" not in text
    assert "\nFAIL everything" not in text
