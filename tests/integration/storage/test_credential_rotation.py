"""A password or user that changes while the exporter runs: clients, lease and routes go on with the new content of uri_file."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from pymongo import AsyncMongoClient, MongoClient

from exporter.core.errors import ConfigError, IncompatibleStoreError, StoreError
from exporter.core.settings import Settings
from exporter.storage import credential_rotation
from exporter.storage.credential_rotation import rotation_of
from exporter.storage.lease import Lease
from exporter.storage.mongo import Document, connect
from tests.fixtures.mongo import AuthMongod
from tests.fixtures.process import RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.reliability import record


class Account:
    """A MongoDB user with the least role, and the file with its connection string."""

    def __init__(self, mongo_auth: AuthMongod, database: str, file: Path) -> None:
        self.server, self.database, self.file = mongo_auth, database, file
        self.write(mongo_auth.exporter_uri(database))

    def write(self, uri: str) -> None:
        self.file.write_text(f"{uri}\n")

    def change_password(self, password: str) -> None:
        with MongoClient[Document](self.server.root_uri) as client:
            client[self.database].command("updateUser", "exporter", pwd=password)

    def replace_user(self, name: str, password: str) -> None:
        """Make a second user with the same role and drop the first, as tools that issue short-lived users do."""
        with MongoClient[Document](self.server.root_uri) as client:
            client[self.database].command("createUser", name, pwd=password, roles=["exporter"])
            client[self.database].command("dropUser", "exporter")

    def uri(self, password: str, user: str = "exporter") -> str:
        return self.server.uri(user, password, self.database)

    @property
    def settings(self) -> Settings:
        return Settings.model_validate({"mongodb": {"uri_file": str(self.file)}})


@pytest.fixture
def account(mongo_auth: AuthMongod, tmp_path: Path, request: pytest.FixtureRequest) -> Account:
    return Account(mongo_auth, f"rot_{abs(hash(request.node.nodeid)) % 10**10}", tmp_path / "uri")


async def refused(action: Callable[[], object]) -> str:
    with pytest.raises(StoreError) as caught:
        await action()  # type: ignore[misc]
    return caught.value.reason


async def renewed(lease: Lease) -> bool:
    """Renew until it succeeds: after a refusal the driver leaves the server alone until its next heartbeat, up to 10 s."""
    async with asyncio.timeout(scaled(30)):
        while True:
            try:
                return await lease.acquire_or_renew()
            except IncompatibleStoreError:  # refused; any other error fails the test
                await asyncio.sleep(0.05)


def new_connections(client: AsyncMongoClient[Document]) -> object:
    """Have the client authenticate again at its next operation."""
    return credential_rotation._renew_connections(client)


async def test_a_new_password_in_the_file_is_used_after_the_first_refusal(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credential_rotation, "FIRST_WAIT_SECONDS", 0.05)
    client, database = connect(account.settings)
    async with client:
        lease = Lease(database, owner="one")
        assert await lease.acquire_or_renew()
        session = client.start_session()
        before = session.session_id
        changed = asyncio.Event()
        rotation = rotation_of(client)
        assert rotation is not None
        rotation.on_change = changed.set

        account.change_password("second: p@ss/word")
        await new_connections(client)  # type: ignore[misc]
        assert await refused(lease.acquire_or_renew) == "credentials"
        await asyncio.sleep(0.3)  # the file is read several times and still has the old password
        assert not changed.is_set()
        account.write(account.uri("second: p@ss/word"))
        async with asyncio.timeout(scaled(20)):
            await changed.wait()
        assert await renewed(lease)
        await database["cml_exporter_state"].find_one({}, session=session)
        assert session.session_id == before, "sessions of the client must survive a rotation"
        await session.end_session()


async def test_a_user_that_was_dropped_is_replaced_on_open_connections_too(account: Account) -> None:
    client, database = connect(account.settings)
    async with client:
        lease = Lease(database, owner="one")
        assert await lease.acquire_or_renew()
        account.replace_user("exporter2", "other")
        account.write(account.uri("other", "exporter2"))
        assert await refused(lease.acquire_or_renew) in ("not_authorized", "credentials")
        assert await renewed(lease)
        status = await database.command("connectionStatus")
        assert [user["user"] for user in status["authInfo"]["authenticatedUsers"]] == ["exporter2"]


@pytest.mark.parametrize("content", ["", "hunter2", "mongodb://exporter:hun@ter2:x@127.0.0.1", None])
async def test_a_file_that_cannot_be_used_changes_nothing_and_is_not_printed(account: Account, content: str | None) -> None:
    client, database = connect(account.settings)
    async with client:
        rotation = rotation_of(client)
        assert rotation is not None
        good = account.file.read_text()
        if content is None:
            account.file.unlink()
        else:
            account.file.write_text(content)
        with pytest.raises(ConfigError) as caught:
            await rotation.refresh()
        assert "hun" not in str(caught.value)
        await new_connections(client)  # type: ignore[misc]
        assert await Lease(database, owner="one").acquire_or_renew()
        account.file.write_text(good)
        assert not await rotation.refresh()


async def test_without_a_refusal_the_file_is_not_read(account: Account) -> None:
    client, database = connect(account.settings)
    async with client:
        account.file.unlink()
        lease = Lease(database, owner="one")
        for _ in range(3):
            assert await lease.acquire_or_renew()


def test_a_connection_string_in_the_settings_themselves_has_no_rotation() -> None:
    client, _ = connect(Settings.model_validate({"mongodb": {"uri": "mongodb://127.0.0.1:1"}}))
    assert rotation_of(client) is None


@pytest.mark.waits(20)
def test_a_running_exporter_goes_on_in_all_its_clients(account: Account, run_exporter: RunExporter) -> None:
    with MongoClient[Document](account.server.root_uri) as root:
        root[account.database].workers.insert_one({"_id": "w1", "status": "running", "aws_region": "eu-west-1"})
        exporter = run_exporter(
            {"mongodb": {"uri_file": str(account.file)}, "cloudwatch": {"enabled": False}, "period": "1m"},
        )
        exporter.wait_for(lambda: exporter.metrics().get("cml_exporter_leader") == 1, 30, "the leader")
        history = "/api/workers/w1/metrics/history?start=-1h"
        assert exporter.get(history).status_code == 200
        account.replace_user("exporter2", "other")
        exporter.wait_for(lambda: exporter.get(history).status_code == 503, 30, "refused")
        account.write(account.uri("other", "exporter2"))
        written = time.monotonic()
        exporter.wait_for(lambda: exporter.get(history).status_code == 200, 60, "answering from the history again")
        recovery = time.monotonic() - written
        exporter.wait_for(lambda: exporter.logged().count("new MongoDB credentials in use") == 2, 60, "rotated in both clients")
        root[account.database].workers.insert_one({"_id": "w2", "status": "running", "aws_region": "eu-west-1"})
        listed: Callable[[], object] = lambda: 'worker_id="w2"' in exporter.get("/metrics").text  # noqa: E731
        exporter.wait_for(listed, 120, "reading the worker documents with the new user")
        exporter.wait_for(lambda: exporter.metrics().get("cml_exporter_leader") == 1, 30, "the leader again")
        assert "Traceback" not in exporter.logged()
        assert quote("p@ss/word", safe="") not in exporter.logged()
    record("password-rotated", recovery=recovery, note="no restart")


@pytest.mark.nightly("test_a_running_exporter_goes_on_in_all_its_clients")
@pytest.mark.waits(35)
def test_started_with_refused_credentials_it_waits_for_the_file(account: Account, run_exporter: RunExporter) -> None:
    with MongoClient[Document](account.server.root_uri) as root:
        root[account.database]["workers"].insert_one({"_id": "w1", "status": "running"})  # without workers nobody leads
    good = account.file.read_text()
    account.write(account.uri("wrong"))
    exporter = run_exporter({"mongodb": {"uri_file": str(account.file)}, "cloudwatch": {"enabled": False}})
    assert "refuses the credentials" in exporter.logged()
    account.write(good)
    exporter.wait_for(lambda: exporter.metrics().get("cml_exporter_leader") == 1, 60, "the leader")
    assert isinstance(exporter.get("/-/ready"), httpx.Response)
