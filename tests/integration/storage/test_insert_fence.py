"""The fence on the server: an insert that arrives after another attempt began is refused, whoever sent it and however late."""

import asyncio
import socket
import struct
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import Binary

from exporter.core.errors import FencedError, StoreUnavailableError
from exporter.demo.mongod import Mongod
from exporter.storage import insert_fence, sample_writer
from exporter.storage.lease import INSERT, Lease
from exporter.storage.mongo import STATE, Database, Document, connect_uri
from exporter.storage.repository import WorkerMetricsRepository
from tests.fixtures.mongo import AuthMongod, connect, need_mongod
from tests.helpers.certificates import write_certificate
from tests.helpers.mongo_proxy import HoldingProxy, command_without_session
from tests.helpers.mongod import FAIL_POINTS, NO_TTL
from tests.helpers.ports import free_port
from tests.integration.storage.test_repository import START, batch, keys, repository, sample, stored

LEASE = {"_id": f"lease:{INSERT}"}


@pytest.fixture
def own_rs(tmp_path: Path) -> Iterator[Mongod]:
    """A replica set of one node of this test alone, to be killed and restarted."""
    need_mongod()
    with Mongod(tmp_path / "rs", free_port(), replica_set=True, parameters=NO_TTL | FAIL_POINTS) as server:
        yield server


@pytest.fixture
async def history(rs_database: Database) -> WorkerMetricsRepository:
    """A history on a replica set."""
    repo = repository(rs_database)
    await repo.ensure_collection()
    return repo


async def expire(database: Database) -> None:
    """Make the lease for inserting expire on MongoDB's clock, without waiting."""
    await database[STATE].update_one(LEASE, {"$set": {"expires": datetime.now(UTC) - timedelta(seconds=1)}})


async def take_over(database: Database) -> WorkerMetricsRepository:
    """Let another writer take the lease and store a batch."""
    await expire(database)
    other = repository(database)
    assert await other.writer.insert_missing(batch(workers=3, periods=4)) == (12, [])
    return other


# -- a late insert of an earlier holder


async def test_an_insert_of_a_writer_that_was_paused_until_another_took_over_is_refused(
    history: WorkerMetricsRepository, rs_database: Database
) -> None:
    wanted = batch(workers=3, periods=4)
    async with history.writer.insert_lease():
        assert await history.writer.existing_keys(keys(wanted)) == set()
        await take_over(rs_database)
        with pytest.raises(FencedError, match="nothing of it is written, and it starts over") as caught:
            await history.writer.insert(wanted, within=lambda: 20)
        assert caught.value.reason == "fenced"
    assert await stored(rs_database) == Counter(keys(wanted))
    assert await history.writer.insert_missing(wanted) == (0, [])  # and the next attempt of it works


async def test_it_is_refused_however_many_documents_and_whatever_the_uri_says_about_retries(
    mongo_rs: Mongod, rs_database: Database, history: WorkerMetricsRepository
) -> None:
    async with connect(f"{mongo_rs.uri}&retryWrites=false") as client:
        writer = repository(client[rs_database.name]).writer
        async with writer.insert_lease():
            await take_over(rs_database)
            for wanted in ([sample("w0")], batch(workers=30, periods=50)):
                with pytest.raises(FencedError):
                    await writer.insert(wanted, within=lambda: 20)
    assert await stored(rs_database) == Counter(keys(batch(workers=3, periods=4)))


async def test_on_a_standalone_server_only_the_deadline_stops_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What remains without a fence: documented in docs/deploy.md, and named by `check`."""
    repo = repository(database)
    await repo.ensure_collection()
    wanted = batch(workers=3, periods=4)
    async with repo.writer.insert_lease():
        await take_over(database)
        await repo.writer.insert(wanted, within=lambda: 20)
    assert set((await stored(database)).values()) == {2}


async def test_a_lease_that_another_process_took_before_the_fence_was_raised_inserts_nothing(
    history: WorkerMetricsRepository, rs_database: Database
) -> None:
    fence = history.writer._fence
    assert await fence.lease.acquire_or_renew()
    await take_over(rs_database)
    with pytest.raises(FencedError):
        await fence.raise_number()


async def test_two_copies_of_one_process_share_the_owner_but_no_number(
    history: WorkerMetricsRepository, rs_database: Database
) -> None:
    """A forked process, or a cloned machine: MongoDB would take an equal number for a repetition, and drop the insert."""
    copy = repository(rs_database)
    copy.writer._lease._owner = history.writer._lease._owner
    async with history.writer.insert_lease():
        async with copy.writer.insert_lease():
            assert await copy.writer.insert([sample("w1")], within=lambda: 20) == []
        with pytest.raises(FencedError):
            await history.writer.insert([sample("w1"), sample("w2")], within=lambda: 20)
    assert await stored(rs_database) == Counter([("w1", START)])


# -- a late insert of this writer


@pytest.mark.parametrize("kind", ["replica set", "standalone"])
async def test_an_insert_that_the_network_delivers_after_it_was_repeated(request: pytest.FixtureRequest, kind: str) -> None:
    server: Mongod = request.getfixturevalue("mongo_rs" if kind == "replica set" else "mongod")
    name, wanted = f"test_{uuid.uuid4().hex}", batch(workers=10, periods=20)
    async with HoldingProxy(server.port) as proxy, connect(proxy.uri) as client, connect(server.uri) as direct:
        repo = repository(client[name])
        await repo.ensure_collection()
        proxy.hold(2)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await repo.writer.insert_missing(wanted)
        assert await repo.writer.insert_missing(wanted) == (len(wanted), [])
        late = await proxy.deliver()
        counts = await stored(direct[name])
        await direct.drop_database(name)
    if kind == "replica set":
        assert [reply["code"] for reply in late] == [225, 225]
        assert counts == Counter(keys(wanted))
    else:  # a proxy has received it; a kernel drops it, see test_network_cuts.py
        assert set(counts.values()) == {3}


async def test_it_is_refused_after_the_server_was_killed_and_started_again(own_rs: Mongod) -> None:
    wanted = batch(workers=3, periods=4)
    async with HoldingProxy(own_rs.port) as proxy, connect(proxy.uri, patience=20) as client, connect(own_rs.uri) as direct:
        repo = repository(client["cml"])
        await repo.ensure_collection()
        proxy.hold()
        with pytest.raises(StoreUnavailableError):
            await repo.writer.insert_missing(wanted)
        async with repo.writer.insert_lease():  # raised, but nothing is inserted under the new number
            pass
        own_rs.kill()
        await asyncio.to_thread(own_rs.start)
        assert [reply["code"] for reply in await proxy.deliver()] == [225]
        assert await repo.writer.insert_missing(wanted) == (len(wanted), [])
        assert await stored(direct["cml"]) == Counter(keys(wanted))


# -- the session and its numbers


async def test_all_writers_use_the_session_of_the_lease_and_growing_numbers(
    history: WorkerMetricsRepository, rs_database: Database
) -> None:
    documents = []
    for repo in (history, repository(rs_database), history):
        await repo.writer.insert_missing(batch(workers=2, periods=2))
        documents.append(await rs_database[STATE].find_one(LEASE) or {})
    assert len({bytes(each["lsid"]) for each in documents}) == 1
    numbers = [each["raised"] for each in documents]
    assert numbers == sorted(set(numbers))
    assert [each["number"] for each in documents] == [number >> 24 for number in numbers] == [1, 2, 3]


async def test_a_lease_that_was_restored_from_an_older_backup_gets_a_new_session_and_the_old_one_stays_closed(
    mongo_rs: Mongod, rs_database: Database
) -> None:
    """The table of sessions is in no dump of the database, so its numbers are ahead of the restored lease."""
    async with HoldingProxy(mongo_rs.port) as proxy, connect(proxy.uri) as client:
        repo = repository(client[rs_database.name])
        await repo.ensure_collection()
        await repo.writer.insert_missing([sample("w0")])
        before = await rs_database[STATE].find_one(LEASE)
        assert before is not None
        await repo.writer.insert_missing([sample("w1")])
        proxy.hold()
        with pytest.raises(StoreUnavailableError):
            await repo.writer.insert_missing([sample("w2")])
        await rs_database[STATE].replace_one(LEASE, before)
        for worker, repo in (("w2", repository(rs_database)), ("w3", repository(rs_database))):
            assert await repo.writer.insert_missing([sample(worker)]) == (1, [])
        assert [reply["code"] for reply in await proxy.deliver()] == [225]
    after = await rs_database[STATE].find_one(LEASE)
    assert after is not None
    assert after["lsid"] != before["lsid"]
    assert await stored(rs_database) == Counter([(f"w{n}", START) for n in range(4)])


async def test_it_is_kept_while_nothing_is_inserted(own_rs: Mongod, monkeypatch: pytest.MonkeyPatch) -> None:
    """MongoDB forgets a session after 30 minutes without use, and its number with it."""
    async with HoldingProxy(own_rs.port) as proxy, connect(proxy.uri) as client, connect(own_rs.uri) as direct:
        config, admin = direct["config"], direct["admin"]
        repo = repository(client["cml"])
        await repo.ensure_collection()
        proxy.hold()
        with pytest.raises(StoreUnavailableError):
            await repo.writer.insert_missing([sample()])
        assert await repo.writer.insert_missing([sample()]) == (1, [])

        async def half_an_hour() -> None:
            """What MongoDB does when it expires: the TTL index removes the session, the reaper its number."""
            await admin.command("refreshLogicalSessionCacheNow")
            await config["system.sessions"].delete_many({"lastUse": {"$lte": datetime.now(UTC) + timedelta(seconds=1)}})
            await used()
            await admin.command("refreshLogicalSessionCacheNow")
            old = {"q": {}, "u": {"$set": {"lastWriteDate": datetime(2020, 1, 1, tzinfo=UTC)}}, "multi": True}
            for command in (
                {"update": "transactions", "updates": [old], "$db": "config"},
                {"reapLogicalSessionCacheNow": 1, "$db": "admin"},
            ):
                assert (await command_without_session(own_rs.port, command))["ok"] == 1

        async def numbers() -> int:
            lsid = (await direct["cml"][STATE].find_one(LEASE) or {})["lsid"]
            return await config["transactions"].count_documents({"_id.id": Binary(bytes(lsid), 4)})

        used: Callable[[], Any] = repo.writer.keep_fence
        monkeypatch.setattr(insert_fence, "KEEP_SECONDS", 0)
        await half_an_hour()
        assert await numbers() == 1
        assert [reply["code"] for reply in await proxy.deliver()] == [225]
        assert await stored(direct["cml"]) == Counter([("w1", START)])

        monkeypatch.setattr(insert_fence, "KEEP_SECONDS", 3600)  # the counterproof: it was used a moment ago
        await half_an_hour()
        assert await numbers() == 0


async def test_the_least_role_raises_the_fence(mongo_rs_auth: AuthMongod) -> None:
    async with connect(mongo_rs_auth.exporter_uri("least_fence")) as client:
        database = client["least_fence"]
        repo = repository(database)
        async with repo.writer.insert_lease():
            await repo.ensure_collection()
            await take_over(database)
            with pytest.raises(FencedError):
                await repo.writer.insert([sample()], within=lambda: 20)
        await repo.writer.keep_fence()


# -- deadline and sockets


class Boottime:
    """A clock of the machine that jumps when a chunk has been inserted: the machine was suspended."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_after_a_pause_between_two_chunks_the_second_is_not_sent(
    history: WorkerMetricsRepository, rs_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, insert = Boottime(), history.writer._fence.insert

    async def insert_then_sleep(collection: str, documents: list[Document]) -> None:
        await insert(collection, documents)
        clock.now += 19.5

    monkeypatch.setattr(sample_writer, "boottime", clock)
    monkeypatch.setattr(sample_writer, "DOCUMENTS_PER_INSERT", 1000)
    monkeypatch.setattr(history.writer._fence, "insert", insert_then_sleep)
    wanted = batch(workers=30, periods=100)
    async with history.writer.insert_lease():
        with pytest.raises(StoreUnavailableError, match="the time for this insert was over") as caught:
            await history.writer.insert(wanted, within=lambda: 20)
    assert caught.value.reason == "lease"
    assert sum((await stored(rs_database)).values()) == 2000  # after the first, half a second was left for the second
    assert await Lease(rs_database, owner="other", name=INSERT).acquire_or_renew()  # nothing is under way


def linger(sock: socket.socket) -> tuple[int, int]:
    on, seconds = struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    return on, seconds


@pytest.fixture(params=["plain", "TLS"])
async def lingering_uri(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The connection string of a server without and with TLS."""
    need_mongod()
    options, query = [], ""
    if request.param == "TLS":
        write_certificate(tmp_path, "mongod")
        pem = tmp_path / "mongod.pem"
        pem.write_bytes((tmp_path / "mongod.crt").read_bytes() + (tmp_path / "mongod.key").read_bytes())
        options = ["--tlsMode", "preferTLS", "--tlsCertificateKeyFile", str(pem)]
        query = f"&tls=true&tlsCAFile={tmp_path / 'mongod.crt'}"
    server = Mongod(tmp_path / "tls", free_port(), options=options)
    with server:
        yield server.uri + query


async def test_every_socket_drops_what_it_has_not_delivered_when_it_is_closed(lingering_uri: str) -> None:
    client, database = connect_uri(lingering_uri)
    async with client:
        await asyncio.gather(*(database.command("ping") for _ in range(5)))
        topology: Any = client._topology
        (server,) = topology._servers.values()
        sockets = [connection.conn.sock for connection in server.pool.conns]
        assert sockets
        assert {linger(sock) for sock in sockets} == {(1, 0)}


async def test_a_library_client_of_its_own_drops_too(mongod: Mongod) -> None:
    async with WorkerMetricsRepository.connect(mongod.uri) as repo:
        await repo.collection.database.command("ping")
        topology: Any = repo.collection.database.client._topology
        (server,) = topology._servers.values()
        assert {linger(connection.conn.sock) for connection in server.pool.conns} == {(1, 0)}
