"""The queue of samples for other databases: what each target lacks, and what is deleted."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.core.errors import StoreError
from exporter.core.model import FinalSample
from exporter.pipeline import forward_queue as queue
from exporter.pipeline.forward_queue import Dropped, Waiting
from exporter.pipeline.lifecycle import PendingSample
from exporter.pipeline.outbox import Outbox

P, T = 300, 1_767_225_600


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = Outbox(tmp_path, P)
    yield opened
    opened.close()


def sample(number: int) -> FinalSample:
    return FinalSample("w1", T + number * P, "eu-west-1", float(number), None, number, "running")


def append(outbox: Outbox, targets: tuple[str, ...], numbers: range, at: int = T) -> None:
    with outbox.transaction() as database:
        queue.append(database, targets, [sample(number) for number in numbers], lambda: at)


def append_and_fail(database: sqlite3.Connection) -> None:
    queue.append(database, ("a",), [sample(8)])
    raise sqlite3.OperationalError("disk I/O error")


def read(outbox: Outbox, target: str, after: int = 0, limit: int = 100) -> list[int]:
    with outbox.transaction() as database:
        return [(each.start - T) // P for each in queue.read(database, target, after, limit).samples]


def advance(outbox: Outbox, target: str, last: int) -> None:
    with outbox.transaction() as database:
        queue.advance(database, target, last)


def waiting(outbox: Outbox) -> dict[str, Waiting]:
    with outbox.transaction() as database:
        return queue.waiting(database)


def rows(outbox: Outbox) -> int:
    with outbox.transaction() as database:
        count: int = database.execute("SELECT COUNT(*) FROM forward").fetchone()[0]
    return count


def test_each_target_reads_from_its_own_cursor_and_a_sample_is_deleted_when_all_have_it(outbox: Outbox) -> None:
    append(outbox, ("a", "b"), range(5))
    with outbox.transaction() as database:
        found = queue.read(database, "a", 0, 3)
    assert found.samples == [sample(0), sample(1), sample(2)]
    advance(outbox, "a", found.last)
    assert read(outbox, "a") == [3, 4]
    assert read(outbox, "b") == [0, 1, 2, 3, 4]
    assert rows(outbox) == 5
    advance(outbox, "b", 2)
    assert rows(outbox) == 3
    assert waiting(outbox) == {"a": Waiting(2, T), "b": Waiting(3, T)}


def test_what_was_sent_and_is_not_counted_yet_is_not_read_again(outbox: Outbox) -> None:
    append(outbox, ("a",), range(5))
    assert read(outbox, "a", after=3) == [3, 4]
    advance(outbox, "a", 4)
    advance(outbox, "a", 2)  # an older acknowledgement never moves the cursor back
    assert read(outbox, "a") == [4]


def test_numbers_have_no_holes_after_the_queue_was_empty_a_failure_and_a_restart(outbox: Outbox, tmp_path: Path) -> None:
    append(outbox, ("a",), range(3))
    advance(outbox, "a", 3)
    assert (rows(outbox), waiting(outbox)) == (0, {"a": Waiting(0, None)})
    with pytest.raises(StoreError), outbox.transaction() as database:
        append_and_fail(database)
    outbox.close()
    again = Outbox(tmp_path, P)
    append(again, ("a",), range(3, 5), T + 7)
    assert read(again, "a") == [3, 4]
    assert waiting(again) == {"a": Waiting(2, T + 7)}
    again.close()


def test_a_new_target_gets_what_comes_from_then_on(outbox: Outbox) -> None:
    append(outbox, ("a",), range(3))
    assert read(outbox, "b") == []
    append(outbox, ("a", "b"), range(3, 5))
    assert read(outbox, "b") == [3, 4]


def test_a_removed_target_is_forgotten_with_all_that_only_it_lacked(outbox: Outbox) -> None:
    append(outbox, ("a", "b"), range(5))
    advance(outbox, "b", 4)
    with outbox.transaction() as database:
        assert queue.trim(database, ("b",), 100, T + 1) == ({}, False)
    assert (rows(outbox), waiting(outbox)) == (1, {"b": Waiting(1, T)})
    with outbox.transaction() as database:
        queue.trim(database, (), 100, T + 1)
    assert (rows(outbox), waiting(outbox)) == (0, {})


def test_above_the_limit_the_oldest_are_dropped_and_counted_for_those_who_lacked_them(outbox: Outbox) -> None:
    append(outbox, ("slow", "behind", "fast"), range(10))
    advance(outbox, "behind", 2)
    advance(outbox, "fast", 9)
    with outbox.transaction() as database:
        dropped, more = queue.trim(database, ("slow", "behind", "fast"), 6, T + 1)
    assert (dropped, more) == ({"slow": Dropped(4, T, T + 3 * P), "behind": Dropped(2, T + 2 * P, T + 3 * P)}, False)
    assert read(outbox, "slow") == read(outbox, "behind") == [4, 5, 6, 7, 8, 9]
    assert read(outbox, "fast") == [9]
    assert waiting(outbox)["slow"] == Waiting(6, T)


def test_what_was_mirrored_lately_is_kept_beyond_the_limit(outbox: Outbox) -> None:
    append(outbox, ("a",), range(4))
    append(outbox, ("a",), range(4, 10), T + 500)
    with outbox.transaction() as database:
        assert queue.trim(database, ("a",), 2, T) == ({}, False)
    assert len(read(outbox, "a")) == 10
    with outbox.transaction() as database:
        assert queue.trim(database, ("a",), 2, T + 500) == ({"a": Dropped(4, T, T + 3 * P)}, False)
    assert read(outbox, "a") == [4, 5, 6, 7, 8, 9]
    with outbox.transaction() as database:
        assert queue.trim(database, ("a",), 2, T + 501)[0] == {"a": Dropped(4, T + 4 * P, T + 7 * P)}


def test_large_deletions_are_many_transactions(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "DELETED_AT_ONCE", 4)
    append(outbox, ("a", "b"), range(10))
    steps = []
    with outbox.transaction() as database:
        steps.append(queue.trim(database, ("a", "b"), 3, T + 1))
    with outbox.transaction() as database:
        steps.append(queue.trim(database, ("a", "b"), 3, T + 1))
    assert [(step[0]["a"].samples, step[1]) for step in steps] == [(4, True), (3, False)]
    append(outbox, ("a", "b"), range(10, 20))
    left = []
    for _ in range(4):
        with outbox.transaction() as database:
            left.append(queue.trim(database, (), 3, T + 1)[1])
    assert (left, rows(outbox)) == ([True, True, True, False], 0)


def test_a_sample_enters_the_queue_in_the_transaction_in_which_it_leaves_the_outbox(outbox: Outbox) -> None:
    pending = PendingSample("w1", T, "eu-west-1", ("i-1",), "running", 0, cpu=0.0, final=True)
    with outbox.transaction():
        outbox.open([pending])
    outbox.forward_to = ("a",)
    (found,) = outbox.ready(10)
    with pytest.raises(StoreError, match="another program has changed"):
        outbox.delete([("w1", T), ("w1", T + P)], all_read=True, forward=[found])
    assert rows(outbox) == 0, "it was queued although it is still to be mirrored"
    outbox.ready(10)
    outbox.delete([("w1", T)], all_read=True, forward=[found])
    assert read(outbox, "a") == [0]
    assert outbox.counts()["final"] == 0


def test_without_targets_nothing_is_queued(outbox: Outbox) -> None:
    outbox.delete([], forward=[sample(1)])
    assert rows(outbox) == 0


def test_a_replaced_file_knows_the_targets_again(outbox: Outbox) -> None:
    outbox.forward_to = ("a",)
    outbox.delete([], forward=[sample(1)])
    outbox.replace(StoreError("damaged", reason="damaged"))
    outbox.delete([], forward=[sample(2)])
    assert read(outbox, "a") == [2]
