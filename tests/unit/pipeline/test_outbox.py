"""The outbox: whole transactions, one owner, nothing lost by a restart, and errors that say what to do."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.core.errors import IncompatibleStoreError, OutboxLockedError, StoreError
from exporter.core.model import FinalSample, PendingQuery, Worker
from exporter.core.periods import to_datetime
from exporter.pipeline.dropped_periods import forget, of_worker
from exporter.pipeline.gaps import Gap
from exporter.pipeline.history_watch import load_mark
from exporter.pipeline.lifecycle import PendingSample, WorkerState
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_file import DAMAGED

T, P = 1_767_225_600, 300
ROW = PendingSample("w1", T, "eu-west-1", ("i-2", "i-1"), "running", 3, own_cpu=1.5, own_memory=2.5)
READY = ROW._replace(cpu=1.5, memory=2.5, final=True)
BARE = PendingSample("w1", T, "eu-west-1", ("i-2", "i-1"))
GAP = Gap("w1", "eu-west-1", ("i-2", "i-1"), T, T + 4 * P)
STATE = WorkerState("w1", "eu-west-1", ("i-2", "i-1"), "stopped", T - 5, T - 3, T)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = Outbox(tmp_path / "data", P)
    yield opened
    opened.close()


def put(outbox: Outbox, *rows: PendingSample) -> int:
    with outbox.transaction():
        return outbox.open(rows)


def counted(outbox: Outbox) -> dict[str, int]:
    """What `counts` should say."""
    found = dict(outbox._db.execute("SELECT state, COUNT(*) FROM sample GROUP BY state"))
    return {"observed": found.get(0, 0), "final": found.get(1, 0), "rejected": found.get(2, 0)}


# -- what is kept ------------------------------------------------------------------------------------------------------


def final(outbox: Outbox) -> list[PendingSample]:
    """The final rows with all their columns."""
    return outbox._rows("state=1 ORDER BY worker, start", ())


def test_a_row_comes_back_as_it_was_opened(outbox: Outbox) -> None:
    bare = PendingSample("w2", T + P, "us-east-1", ())
    assert put(outbox, ROW, bare) == 2
    assert outbox.open_rows("w1", T, T + P) == [ROW]
    assert outbox.open_rows("w2", 0, 1 << 40) == [bare]


def test_a_row_is_opened_once(outbox: Outbox) -> None:
    put(outbox, ROW)
    assert put(outbox, ROW._replace(status="stopped"), ROW._replace(start=T + P)) == 1
    assert outbox.open_rows("w1", 0, 1 << 40) == [ROW, ROW._replace(start=T + P)]


def test_a_window_of_open_rows_has_its_start_but_not_its_end(outbox: Outbox) -> None:
    put(outbox, *(ROW._replace(start=T + n * P) for n in range(4)))
    assert [row.start for row in outbox.open_rows("w1", T + P, T + 3 * P)] == [T + P, T + 2 * P]


def test_a_row_that_is_final_when_it_is_opened_is_ready_and_not_open(outbox: Outbox) -> None:
    put(outbox, READY)
    assert final(outbox) == [READY]
    assert outbox.open_rows("w1", 0, 1 << 40) == []


def test_the_state_of_a_worker_comes_back(outbox: Outbox) -> None:
    with outbox.transaction():
        outbox.save_states([STATE, STATE._replace(worker_id="w2", instances=())])
    assert outbox.states() == {"w1": STATE, "w2": STATE._replace(worker_id="w2", instances=())}
    with outbox.transaction():
        outbox.save_states([STATE._replace(next=T + P)])
        outbox.delete_states(["w2"])
    assert outbox.states() == {"w1": STATE._replace(next=T + P)}


def test_new_times_alone_are_saved_for_all_workers_together_whatever_their_ids_are(outbox: Outbox) -> None:
    names = ["w1", 'quotes " and \\', "\U0001f600 and ü", "line\nbreak", "a\x00b"]
    known = {name: STATE._replace(worker_id=name) for name in names}
    with outbox.transaction():
        outbox.save_states(known.values())
    later = {name: state._replace(seen=T + 2 * P, next=T + P) for name, state in known.items()}
    later["w1"] = later["w1"]._replace(status="stopped", idle_since=T + P)
    new = STATE._replace(worker_id="w9")
    with outbox.transaction():
        outbox.save_states([*later.values(), new], known)
    assert outbox.states() == {**later, "w9": new}


def test_deleting_the_state_of_a_worker_leaves_its_rows(outbox: Outbox) -> None:
    put(outbox, ROW)
    with outbox.transaction():
        outbox.save_states([STATE])
        outbox.delete_states(["w1"])
    assert outbox.open_rows("w1", 0, 1 << 40) == [ROW]


def test_each_process_is_an_owner_of_its_own_and_only_the_same_folder_has_the_same_identity(tmp_path: Path) -> None:
    owners, folders = [], []
    Outbox(tmp_path / "a", P).close()
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    for name in ("a", "a", "copy"):
        outbox = Outbox(tmp_path / name, P)
        owners.append(outbox.owner)
        folders.append(outbox.folder)
        outbox.close()
    assert len(set(owners)) == 3
    assert folders[0] == folders[1] != folders[2]
    assert None not in folders


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    before = Outbox(tmp_path, P)
    put(before, ROW, READY._replace(start=T + P), READY._replace(start=T + 2 * P))
    with before.transaction():
        before.save_states([STATE])
    before.set_aside([("w1", T + 2 * P)])
    counts = before.counts()
    before.close()

    after = Outbox(tmp_path, P)
    assert after.open_rows("w1", 0, 1 << 40) == [ROW]
    assert final(after) == [READY._replace(start=T + P)]
    assert after.states() == {"w1": STATE}
    assert after.counts() == counts == {"observed": 1, "final": 1, "rejected": 1}
    after.close()


def test_a_process_killed_within_a_transaction_leaves_none_of_it(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from exporter.pipeline.lifecycle import PendingSample
from exporter.pipeline.outbox import Outbox
outbox = Outbox(Path({str(tmp_path)!r}), {P})
with outbox.transaction():
    outbox.open([PendingSample("w1", {T}, "eu-west-1", ("i-1",), "running")])
with outbox.transaction():
    outbox.open([PendingSample("w1", {T + P}, "eu-west-1", ("i-1",), "running")])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    outbox = Outbox(tmp_path, P)
    assert [row.start for row in outbox.open_rows("w1", 0, 1 << 40)] == [T]
    assert outbox.counts() == counted(outbox)
    outbox.close()


# -- gaps --------------------------------------------------------------------------------------------------------------


def test_the_rows_of_a_gap_are_those_that_do_not_exist_yet(outbox: Outbox) -> None:
    put(outbox, ROW._replace(start=T + P), READY._replace(start=T + 2 * P))
    with outbox.transaction():
        added = outbox.open_gaps([GAP, GAP, GAP._replace(worker_id="w2", start=T, end=T + P)])
    assert added == 3
    assert outbox.open_rows("w2", 0, 1 << 40) == [BARE._replace(worker_id="w2")]
    assert outbox.open_rows("w1", 0, 1 << 40) == [BARE, ROW._replace(start=T + P), BARE._replace(start=T + 3 * P)]
    assert outbox.counts() == counted(outbox)


def test_dropped_rows_are_remembered_as_runs_over_a_restart_and_forgotten_in_time(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, P)
    rows = [BARE._replace(start=T + n * P) for n in range(4)]
    put(outbox, *rows, ROW, BARE._replace(worker_id="w2"))
    with outbox.transaction():
        assert outbox.update([row._replace(final=True) for row in (rows[3], rows[1], rows[2])]) == 3
    outbox.close()
    again = Outbox(tmp_path, P)
    dropped = Gap("w1", "eu-west-1", ("i-2", "i-1"), T + P, T + 4 * P)
    assert of_worker(again._db, "w1") == [dropped]
    assert of_worker(again._db, "w2") == []
    with again.transaction() as database:
        forget(database, T + 4 * P)
    assert of_worker(again._db, "w1") == [dropped]
    with again.transaction() as database:
        forget(database, T + 4 * P + 1)
    assert of_worker(again._db, "w1") == []
    again.close()


# -- deciding and mirroring --------------------------------------------------------------------------------------------


def test_the_worker_documents_own_values_are_written_to_the_open_row_that_contains_their_time(outbox: Outbox) -> None:
    put(outbox, ROW._replace(own_cpu=None, own_memory=None), READY._replace(start=T + P))
    worker = Worker("w1", "eu-west-1", "i-1", "running", cpu=7.0, memory=8.0)
    with outbox.transaction():
        outbox.update_own([replace(worker, collected_at=T + P - 1), replace(worker, collected_at=T + P, cpu=9.0), worker], P)
    assert outbox.open_rows("w1", T, T + P) == [ROW._replace(own_cpu=7.0, own_memory=8.0)]
    with outbox.transaction():
        outbox.update_own([replace(worker, cpu=1.0)], P, {("w1", T)})
    assert outbox.open_rows("w1", T, T + P) == [ROW._replace(own_cpu=7.0, own_memory=8.0)], "it was opened with this read"
    assert final(outbox) == [READY._replace(start=T + P)], "a final row does not change"


def test_a_pending_query_has_all_candidates_of_the_open_rows_from_the_oldest_on(outbox: Outbox) -> None:
    put(
        outbox,
        ROW._replace(start=T + P, instances=("i-3",)),
        ROW,
        ROW._replace(start=T + 2 * P, region="us-east-1", instances=("i-9",)),
        READY._replace(start=T - P),
        ROW._replace(worker_id="w2", start=T + P),
    )
    assert sorted(outbox.pending_queries(), key=lambda one: (one.worker_id, one.region)) == [
        PendingQuery("w1", "eu-west-1", ("i-1", "i-2", "i-3"), T),
        PendingQuery("w1", "us-east-1", ("i-9",), T + 2 * P),
        PendingQuery("w2", "eu-west-1", ("i-1", "i-2"), T + P),
    ]


def test_final_rows_become_ready_undecided_ones_keep_what_is_decided_empty_ones_are_dropped(outbox: Outbox) -> None:
    nothing = PendingSample("w3", T, "eu-west-1", ("i-3",))
    put(outbox, ROW, ROW._replace(worker_id="w2"), nothing)
    with outbox.transaction():
        dropped = outbox.update([READY, ROW._replace(worker_id="w2", cpu=4.0), nothing._replace(final=True)])
    assert dropped == 1
    assert final(outbox) == [READY]
    assert outbox.all_open_rows(10) == [ROW._replace(worker_id="w2", cpu=4.0)]
    assert outbox.counts() == counted(outbox) == {"observed": 1, "final": 1, "rejected": 0}


def test_rows_are_ready_worker_by_worker_in_time_order(outbox: Outbox) -> None:
    put(outbox, *(READY._replace(worker_id=w, start=T + n * P) for n in (2, 0, 1) for w in ("w2", "w1")))
    assert [(row.worker_id, row.start) for row in outbox.ready(5)] == [
        ("w1", T), ("w1", T + P), ("w1", T + 2 * P), ("w2", T), ("w2", T + P),
    ]  # fmt: skip


def test_a_ready_row_has_the_fields_of_the_customers_record(outbox: Outbox) -> None:
    full = PendingSample("w1", T, "eu-west-1", ("i-1",), "running", 0, own_cpu=1.0, cpu=2.5, memory=None, final=True)
    put(outbox, full)
    assert outbox.ready(10) == [FinalSample("w1", T, "eu-west-1", 2.5, None, 0, "running")]
    assert outbox.ready(10)[0].timestamp == to_datetime(T).replace(tzinfo=None)


def test_only_final_rows_are_deleted(outbox: Outbox) -> None:
    put(outbox, ROW, READY._replace(start=T + P))
    outbox.delete([("w1", T), ("w1", T + P)])
    assert outbox.open_rows("w1", 0, 1 << 40) == [ROW]
    assert outbox.counts() == counted(outbox) == {"observed": 1, "final": 0, "rejected": 0}


def test_all_rows_that_were_read_are_deleted_and_no_others(outbox: Outbox) -> None:
    rows = [READY._replace(worker_id=worker, start=T + at * P) for worker in ("w1", "w2", "w3") for at in range(4)]
    put(outbox, *rows, ROW._replace(worker_id="w0", start=T + P), READY._replace(worker_id="w0", start=T + 2 * P))
    outbox.set_aside([("w0", T + 2 * P)])
    outbox.delete([row[:2] for row in outbox.ready(5, T + P)], all_read=True)  # three of w1, two of w2
    assert [row[:2] for row in outbox.ready(20)] == [("w1", T), *((w, T + at * P) for w, at in LEFT)]
    assert outbox.counts() == counted(outbox) == {"observed": 1, "final": 7, "rejected": 1}
    outbox.delete([row[:2] for row in outbox.ready(20)], all_read=True)
    assert outbox.counts() == counted(outbox) == {"observed": 1, "final": 0, "rejected": 1}


LEFT = [("w2", 0), ("w2", 3), *(("w3", at) for at in range(4))]

LATER = FinalSample("w1", T + P, "eu-west-1")


def add_later(outbox: Outbox) -> None:
    with outbox.transaction():
        outbox.add_final([LATER])


def open_later(outbox: Outbox) -> None:
    put(outbox, READY._replace(start=T + P))


def finalize_later(outbox: Outbox) -> None:
    with outbox.transaction():
        outbox.update([READY._replace(start=T + P)])


@pytest.mark.parametrize("become_final", [add_later, open_later, finalize_later])
def test_a_row_that_becomes_final_among_those_that_were_read_is_not_deleted_with_them(
    outbox: Outbox, become_final: Callable[[Outbox], None]
) -> None:
    put(outbox, READY, READY._replace(start=T + 2 * P))
    if become_final is finalize_later:
        put(outbox, ROW._replace(start=T + P))
    rows = outbox.ready(10)
    become_final(outbox)
    outbox.delete([row[:2] for row in rows], all_read=True)
    assert [row[:2] for row in outbox.ready(10)] == [LATER[:2]]
    assert outbox.counts() == counted(outbox) == {"observed": 0, "final": 1, "rejected": 0}


def test_rows_in_a_new_file_are_not_those_that_were_read(outbox: Outbox) -> None:
    put(outbox, READY, READY._replace(start=T + P))
    rows = outbox.ready(10)
    outbox.replace(StoreError("damaged"))
    put(outbox, ROW._replace(worker_id="w0"), ROW._replace(worker_id="w1"))
    with outbox.transaction() as database:  # not through the outbox, which would notice
        database.execute("UPDATE sample SET state=1")
    outbox.delete([row[:2] for row in rows], all_read=True)
    assert [row.worker_id for row in outbox.ready(10)] == ["w0"]


def test_deleting_what_another_program_has_changed_meanwhile_fails_and_changes_nothing(outbox: Outbox) -> None:
    put(outbox, READY, READY._replace(start=T + P), READY._replace(worker_id="w2"))
    rows = outbox.ready(3)
    with outbox.transaction() as database:
        database.execute("DELETE FROM sample WHERE start=?", (T + P,))
    with pytest.raises(StoreError, match="3 mirrored rows were to be deleted, 2 were found"):
        outbox.delete([row[:2] for row in rows], all_read=True)
    assert [row.worker_id for row in outbox.ready(10)] == ["w1", "w2"]


def test_a_rejected_row_is_set_aside(outbox: Outbox) -> None:
    put(outbox, READY, READY._replace(start=T + P))
    outbox.set_aside([("w1", T)])
    assert [row.start for row in outbox.ready(10)] == [T + P]
    assert outbox.counts() == counted(outbox) == {"observed": 0, "final": 1, "rejected": 1}
    outbox.delete([("w1", T)])
    assert outbox.counts()["rejected"] == 1, "until the operator has inspected it"
    assert outbox.oldest() == T + P, "a rejected row does not count"


def test_the_oldest_row_may_be_open_or_final(outbox: Outbox) -> None:
    assert outbox.oldest() is None
    put(outbox, ROW, READY._replace(worker_id="w2", start=T - P))
    assert outbox.oldest() == T - P


def test_open_rows_of_some_workers_are_those_of_the_region_and_window(outbox: Outbox) -> None:
    rows = [ROW._replace(worker_id=worker, start=T + at * P) for worker in ("w1", "w2", "w3") for at in range(3)]
    put(
        outbox,
        *rows,
        ROW._replace(worker_id="w4", region="us-east-1", start=T + P),
        ROW._replace(worker_id="w2", start=T + 3 * P, final=True),
    )
    found = outbox.open_rows_of(["w4", "w2", "unknown", "w1"], "eu-west-1", T + P, T + 3 * P)
    assert [(row.worker_id, row.start) for row in found] == [("w1", T + P), ("w1", T + 2 * P), ("w2", T + P), ("w2", T + 2 * P)]


def test_expired_rows_are_those_of_the_given_workers_that_began_before(outbox: Outbox) -> None:
    put(outbox, ROW, ROW._replace(start=T + P), ROW._replace(worker_id="w2"), READY._replace(start=T - P))
    assert outbox.expired(["w1", "unknown"], T + P) == [ROW]


# -- transactions ------------------------------------------------------------------------------------------------------


class Interruption(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, Interruption])
def test_a_transaction_that_fails_is_undone_as_a_whole(outbox: Outbox, error: type[BaseException]) -> None:
    put(outbox, ROW, READY._replace(start=T + P))
    before = outbox.counts()
    with pytest.raises(error), outbox.transaction():  # noqa: PT012  # the transaction is what is tested
        outbox.open([ROW._replace(start=T + 5 * P)])
        outbox.update([READY])
        outbox.save_states([STATE])
        raise error
    assert outbox.all_open_rows(10) == [ROW]
    assert outbox.states() == {}
    assert outbox.counts() == counted(outbox) == before
    assert put(outbox, ROW._replace(start=T + 5 * P)) == 1, "and the next transaction works"


def test_counts_follow_every_change(outbox: Outbox) -> None:
    for n in range(40):
        put(outbox, *(ROW._replace(worker_id=f"w{w}", start=T + n * P) for w in range(5)), READY._replace(start=T + n * P))
        rows = outbox.all_open_rows(3)
        with outbox.transaction():
            outbox.update([row._replace(final=True) for row in rows])
        outbox.delete([row[:2] for row in outbox.ready(2)])
        assert outbox.counts() == counted(outbox)


def test_a_full_disk_says_so_undoes_the_transaction_and_passes(outbox: Outbox) -> None:
    put(outbox, ROW)
    (pages,) = outbox._db.execute("PRAGMA page_count").fetchone()
    outbox._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match="the disk is full; make room") as full:
        put(outbox, *(ROW._replace(start=T + n * P) for n in range(1, 2000)))
    assert full.value.reason == "disk_full"
    assert outbox.all_open_rows(10) == [ROW]
    assert outbox.counts() == counted(outbox)

    outbox._db.execute("PRAGMA max_page_count=1000000")
    assert put(outbox, ROW._replace(start=T + P)) == 1


def test_an_sqlite_error_of_a_read_is_translated_too(outbox: Outbox) -> None:
    outbox._db.execute("ALTER TABLE sample RENAME TO elsewhere")
    with pytest.raises(StoreError, match=r"outbox\.db: no such table: sample"):
        outbox.ready(10)


# -- the folder --------------------------------------------------------------------------------------------------------


def test_one_process_holds_the_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from exporter.pipeline.outbox import Outbox; "
            f"outbox = Outbox(Path({str(tmp_path)!r}), {P}); print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(
            OutboxLockedError, match=rf"{tmp_path} is in use by the exporter with process id {holder.pid}; stop"
        ):
            Outbox(tmp_path, P)
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    Outbox(tmp_path, P).close()  # the lock of a killed process is free
    assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_folder_is_held_within_one_process_too(outbox: Outbox) -> None:
    with pytest.raises(OutboxLockedError):
        Outbox(outbox.path.parent, P)


def test_a_folder_that_cannot_be_made_says_which(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        StoreError, match=rf"data_dir: cannot write to {tmp_path}/file/data \(Not a directory\); let this user write"
    ):
        Outbox(tmp_path / "file" / "data", P)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_says_which(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"Permission denied"):
        Outbox(tmp_path, P)


def test_a_file_that_cannot_be_opened_releases_the_lock(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").mkdir()
    with pytest.raises(StoreError, match="check the disk and the permissions of data_dir"):
        Outbox(tmp_path, P)
    (tmp_path / "outbox.db").rmdir()
    Outbox(tmp_path, P).close()


def test_a_folder_of_another_period_is_rejected_and_not_changed(tmp_path: Path) -> None:
    first = Outbox(tmp_path, 60)
    put(first, ROW)
    first.close()
    with pytest.raises(IncompatibleStoreError, match="holds samples of 1m but period is 5m; set period back, or") as misfit:
        Outbox(tmp_path, P)
    assert misfit.value.reason == "period"
    again = Outbox(tmp_path, 60)
    assert again.all_open_rows(10) == [ROW]
    again.close()


def test_two_folders_are_two_owners(tmp_path: Path) -> None:
    first, second = Outbox(tmp_path / "a", P), Outbox(tmp_path / "b", P)
    assert first.owner != second.owner
    first.close()
    second.close()


@pytest.mark.parametrize("value", ["", "yesterday", "1 2 3", None])
def test_what_was_spent_is_counted_from_zero_where_it_cannot_be_read(outbox: Outbox, value: str | None) -> None:
    outbox.keep_spent(86400, 7)
    with outbox.transaction() as database:
        database.execute("UPDATE meta SET value=? WHERE key='spent'", (value,))
    assert outbox.spent() == (0, 0)


@pytest.mark.parametrize("value", ["", "[1]", '{"namespace": "db.h"}'])
def test_a_marker_that_cannot_be_read_is_damage(outbox: Outbox, value: str) -> None:
    with outbox.transaction() as database:
        database.execute("INSERT OR REPLACE INTO meta(key, value) VALUES('history_mark',?)", (value,))
    with pytest.raises(StoreError) as caught:
        load_mark(outbox, "db.h")
    assert caught.value.reason == DAMAGED
