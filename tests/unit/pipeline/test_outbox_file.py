"""The file of the outbox: damage of every kind, files of later releases, and a full disk."""

import errno
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exporter.core.errors import IncompatibleStoreError, OutboxLockedError, StoreError
from exporter.core.model import Worker
from exporter.pipeline.fleet_store import FleetStore
from exporter.pipeline.lifecycle import PendingSample, WorkerState
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_file import aside_files

T, P = 1_767_225_600, 300
PAGE_BYTES = 4096
ROW = PendingSample("w1", T, "eu-west-1", ("i-2", "i-1"), "running", 3, own_cpu=1.5, own_memory=2.5)
WORKER = Worker("w1", "eu-west-1", "i-1", "running")


def put(outbox: Outbox, *rows: PendingSample) -> int:
    with outbox.transaction():
        return outbox.open(rows)


def fill(folder: Path) -> Path:
    """Make an outbox with a thousand samples; return its file."""
    outbox = Outbox(folder, P)
    put(outbox, *(ROW._replace(worker_id=f"worker-{number}") for number in range(1000)))
    outbox.close()
    return outbox.path


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(sql)


def damage(path: Path, how: str) -> None:
    """Damage an outbox in one way."""
    whole = path.read_bytes()
    half = len(whole) // PAGE_BYTES // 2 * PAGE_BYTES
    match how:
        case "not a database":
            path.write_bytes(b"this is no database at all" * 100)
        case "short text":
            path.write_text("hello")
        case "truncated":
            path.write_bytes(whole[: half + 100])
        case "truncated at a page":
            path.write_bytes(whole[:half])
        case "malformed pages":
            path.write_bytes(whole[: 3 * PAGE_BYTES] + b"\xa5" * (len(whole) - 3 * PAGE_BYTES))
        case "one page that is not read at the start":
            with closing(sqlite3.connect(path)) as database:
                (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name='worker'").fetchone()
            at = (page - 1) * PAGE_BYTES
            path.write_bytes(whole[:at] + b"\xa5" * PAGE_BYTES + whole[at + PAGE_BYTES :])
        case "zeroed header":
            path.write_bytes(b"\x00" * PAGE_BYTES + whole[PAGE_BYTES:])
        case "foreign database":
            path.unlink()
            change(path, "CREATE TABLE photos(name TEXT)")
        case "other columns":
            change(path, "DROP TABLE worker; CREATE TABLE worker(id TEXT, colour TEXT)")
        case "no primary key":
            change(path, "ALTER TABLE sample RENAME TO old; CREATE TABLE sample AS SELECT * FROM old; DROP TABLE old")
        case "other types":
            change(path, "UPDATE meta SET value='five minutes' WHERE key='period'")
        case _:
            raise ValueError(how)


DAMAGES = (
    "not a database",
    "short text",
    "truncated",
    "truncated at a page",
    "malformed pages",
    "one page that is not read at the start",
    "zeroed header",
    "foreign database",
    "other columns",
    "no primary key",
    "other types",
)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_set_aside_under_a_dated_name_and_an_empty_one_takes_its_place(tmp_path: Path, how: str) -> None:
    path = fill(tmp_path)
    damage(path, how)
    damaged = path.read_bytes()
    with capture_logs() as events:
        second = Outbox(tmp_path, P)
    try:
        assert second.replaced == 1
        assert second.counts() == {"observed": 0, "final": 0, "rejected": 0}
        assert put(second, ROW) == 1
        (kept,) = aside_files(tmp_path)
        assert re.fullmatch(r"outbox\.db\.damaged-\d{8}T\d{6}Z", kept.name)
        assert kept.read_bytes() == damaged, "set aside as it was"
        (event,) = events
        assert event["event"] == "damaged outbox set aside; continued with an empty one"
        assert event["log_level"] == "error"
        assert event["kept"] == str(kept)
    finally:
        second.close()
    third = Outbox(tmp_path, P)
    assert (third.replaced, third.all_open_rows(10)) == (0, [ROW])
    third.close()


def test_an_empty_file_and_a_file_without_any_table_are_a_new_outbox(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").touch()
    first = Outbox(tmp_path, P)
    assert first.replaced == 0
    first.close()


def test_damage_found_in_use_is_set_aside_too_and_the_owner_stays(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, P)
    put(outbox, ROW)
    owner = outbox.owner
    outbox._db.execute("UPDATE sample SET instances=NULL")
    with pytest.raises(IncompatibleStoreError, match="a row cannot be read") as found:
        outbox.all_open_rows(10)
    assert found.value.reason == "damaged"
    outbox.replace(found.value)
    assert put(outbox, ROW) == 1
    assert (outbox.owner, outbox.replaced, len(aside_files(tmp_path))) == (owner, 1, 1)
    outbox.close()
    with pytest.raises(IncompatibleStoreError, match="holds samples of 5m"):
        Outbox(tmp_path, 60)


def test_an_outbox_that_cannot_be_replaced_fails_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path, P)
    put(outbox, ROW)
    error = IncompatibleStoreError("damaged", reason="damaged")

    def full(*_: object) -> sqlite3.Connection:
        raise StoreError("the disk is full", reason="disk_full")

    with monkeypatch.context() as patch:
        patch.setattr("exporter.pipeline.outbox_file.open_database", full)
        with pytest.raises(StoreError, match="the disk is full"):
            outbox.replace(error)
    for use in (lambda: outbox.all_open_rows(10), lambda: put(outbox, ROW)):
        with pytest.raises(IncompatibleStoreError) as closed:
            use()
        assert closed.value.reason == "damaged"
    outbox.replace(error)
    assert put(outbox, ROW) == 1
    assert (outbox.replaced, len(aside_files(tmp_path))) == (1, 1)
    outbox.close()


def test_several_set_aside_within_a_second_keep_their_own_names(tmp_path: Path) -> None:
    for _ in range(3):
        (tmp_path / "outbox.db").write_text("hello")
        Outbox(tmp_path, P).close()
        (tmp_path / "outbox.db").unlink()
    assert len(aside_files(tmp_path)) == 3


def test_a_later_release_that_added_columns_and_tables_can_be_rolled_back_without_loss(tmp_path: Path) -> None:
    first = Outbox(tmp_path, P)
    put(first, ROW)
    FleetStore(first).keep([WORKER], T, {})
    first.close()
    tables = ("sample", "worker", "fleet", "meta", "dropped")
    change(first.path, "".join(f"ALTER TABLE {table} ADD COLUMN later TEXT;" for table in tables))
    change(first.path, "CREATE TABLE later(id TEXT); PRAGMA user_version=99")
    second = Outbox(tmp_path, P)
    try:
        assert (second.replaced, second.all_open_rows(10)) == (0, [ROW])
        assert FleetStore(second).last() == (T, (WORKER,), {})
        assert put(second, ROW._replace(worker_id="another")) == 1
        FleetStore(second).keep([WORKER], T + 1, {})
        with second.transaction():
            second.save_states([WorkerState(WORKER.id, "eu-west-1", (), "running", 0, T, T)])
        second.keep_spent(T, 3)
        assert second.states().keys() == {WORKER.id}
    finally:
        second.close()
    with closing(sqlite3.connect(first.path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (99,), "the later release finds its own number"


def test_a_fleet_written_by_a_later_release_is_read_without_its_unknown_keys(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, P)
    FleetStore(outbox).keep([WORKER], T, {})
    outbox._db.execute("UPDATE fleet SET worker=json_set(worker, '$.later', json('[1]'), '$.facts.later', 2)")
    assert FleetStore(outbox).last() == (T, (WORKER,), {})
    outbox.close()


def test_a_later_release_with_other_tables_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    path = fill(tmp_path)
    change(path, "ALTER TABLE sample RENAME COLUMN labs TO active_labs; PRAGMA user_version=2")
    before = path.read_bytes()
    with pytest.raises(IncompatibleStoreError, match=r"later release \(schema 2, this one knows 1\).*start that release") as no:
        Outbox(tmp_path, P)
    assert no.value.reason == "schema"
    assert path.read_bytes() == before
    assert aside_files(tmp_path) == []


def test_an_outbox_of_the_first_release_is_used_as_it_is(tmp_path: Path) -> None:
    path = fill(tmp_path)
    change(path, "PRAGMA user_version=0")
    outbox = Outbox(tmp_path, P)
    assert (outbox.replaced, outbox.counts()["observed"]) == (0, 1000)
    outbox.close()


def test_a_full_disk_does_not_take_the_lock_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("exporter.pipeline.outbox_file.os.write", full)
    outbox = Outbox(tmp_path, P)
    with pytest.raises(OutboxLockedError):
        Outbox(tmp_path, P)
    outbox.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SQLITE_FULL", "disk_full"),
        ("SQLITE_CORRUPT_INDEX", "damaged"),
        ("SQLITE_NOTADB", "damaged"),
        ("SQLITE_READONLY_DBMOVED", "read_only"),
        ("SQLITE_IOERR_WRITE", "io"),
        ("SQLITE_BUSY", "outbox"),
    ],
)
def test_each_error_of_sqlite_has_the_reason_of_the_metric(tmp_path: Path, name: str, reason: str) -> None:
    class Failing:
        def execute(self, *_: object) -> None:
            error = sqlite3.OperationalError("it failed")
            error.sqlite_errorname = name
            raise error

        def close(self) -> None: ...

    outbox = Outbox(tmp_path, P)
    outbox._db.close()
    outbox._db = Failing()  # type: ignore[assignment]
    with pytest.raises(StoreError) as failed:
        outbox.oldest() if outbox.counts()["final"] else outbox.pending_queries()
    assert failed.value.reason == reason
    outbox.close()
