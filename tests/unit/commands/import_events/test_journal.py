"""The journal as a law: the samples are those of the newest values, whatever the order and however often an event comes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.commands.import_events.events import VALUES, Observation
from exporter.commands.import_events.journal import EventJournal
from exporter.commands.import_events.plan import Missing, Plan, Tally, Window, notes, window
from exporter.core.errors import OutboxLockedError
from exporter.core.periods import DAY
from exporter.pipeline.lifecycle import PendingSample

P = 300
NOW = 1_764_000_000
WINDOW = Window(NOW - 10 * DAY, NOW - 10 * DAY, NOW - DAY, NOW, P)
PLAN = Plan("h with periods of 5m", "--since 10d", WINDOW)

observations = st.builds(
    Observation,
    st.sampled_from(["a", "b"]),
    st.integers(0, 20).map(lambda minute: (NOW - 2 * DAY) * 1000 + minute * 60_000),
    st.none() | st.sampled_from([0.0, 1.5, 99.0]),
    st.none() | st.sampled_from([2.0, 3.0]),
    st.none() | st.integers(0, 3),
    st.none() | st.sampled_from(["running", "stopped"]),
    st.none() | st.sampled_from(["eu-west-1", "us-east-1"]),
)


@contextmanager
def opened(observed: Iterable[Observation], pages: int = 1) -> Iterator[EventJournal]:
    """A journal with these observations, put in so many pages."""
    events = list(observed)
    with TemporaryDirectory() as folder:
        journal = EventJournal(Path(folder), P)
        journal.begin(PLAN)
        for page in range(pages):
            journal.put(((WINDOW.period_of(one.at), one) for one in events[page::pages]), b"x", Tally())  # type: ignore[misc]
        yield journal
        journal.close()


def moved(journal: EventJournal) -> dict[tuple[str, int], PendingSample]:
    while journal.move(2, 0)[0]:
        pass
    return {(row.worker_id, row.start): row for row in journal.outbox._rows("state=1", ())}


def expected(events: Iterable[Observation]) -> dict[tuple[str, int], PendingSample]:
    """By the rule: of each value the newest in the period, on a tie the greatest; of the region the newest of all."""
    events = list(events)
    samples = {}
    for worker in {one.worker_id for one in events}:
        mine = [one for one in events if one.worker_id == worker]
        region = max(((one.at, one.region) for one in mine if one.region is not None), default=(0, ""))[1]
        for start in {one.at // 1000 // P * P for one in mine}:
            within = [one for one in mine if one.at // 1000 // P * P == start]
            cpu, memory, labs, status = (
                max(((one.at, value) for one in within if (value := getattr(one, name)) is not None), default=(0, None))[1]
                for name in VALUES
            )
            samples[worker, start] = PendingSample(worker, start, region, (), status, labs, cpu=cpu, memory=memory, final=True)
    return samples


@given(st.lists(observations, max_size=25), st.randoms(use_true_random=False), st.integers(1, 4))
def test_neither_order_nor_repetition_nor_paging_changes_a_sample(
    events: list[Observation],
    random: Random,
    pages: int,
) -> None:
    shuffled = [*events, *random.sample(events, len(events) // 2)]
    random.shuffle(shuffled)
    with opened(shuffled, pages) as journal:
        assert moved(journal) == expected(events)


def test_an_interrupted_import_finds_its_plan_position_and_tally(tmp_path: Path) -> None:
    journal = EventJournal(tmp_path, P)
    assert journal.plan() is None
    journal.begin(PLAN)
    assert (journal.plan(), journal.progress()) == (PLAN, (None, Tally()))
    tally = Tally()
    tally.types["T"], tally.skipped["future"], tally.examples["no_time"] = 3, 2, "é"
    journal.put([(NOW - 2 * DAY, Observation("a", 1, cpu=1.0))], b"here", tally)
    journal.close()
    again = EventJournal(tmp_path, P)
    assert (again.plan(), again.progress()) == (PLAN, (b"here", tally))
    assert again.missing() == Missing(1, 1, cpu=1)
    again.discard({"a": {NOW - 2 * DAY, NOW}})
    found = again.plan()
    assert found is not None
    assert (found.present, again.missing()) == (1, Missing())
    again.finish()
    assert again.plan() is None
    again.close()


def test_a_second_import_on_the_machine_is_told(tmp_path: Path) -> None:
    journal = EventJournal(tmp_path, P)
    with pytest.raises(OutboxLockedError, match="another import of events is running here"):
        EventJournal(tmp_path, P)
    journal.close()


def test_known_workers_keep_their_region_and_the_others_become_entries_of_the_inventory() -> None:
    start = NOW - 2 * DAY
    events = [
        Observation("known", start * 1000, cpu=1.0, region="told"),
        Observation("bare", start * 1000, cpu=1.0, region="told"),
        Observation("gone", start * 1000, cpu=1.0, region="eu-west-1", name="n"),
        Observation("gone", (start + 60) * 1000, status="terminated"),
        Observation("dark", start * 1000, cpu=1.0),
    ]
    with opened(events) as journal:
        journal.complete({"known": "us-east-1", "bare": "", "elsewhere": "r"})
        (dark, gone) = journal.unknown_workers()
        assert (gone.worker_id, gone.region, gone.name, gone.status) == ("gone", "eu-west-1", "n", "terminated")
        assert (gone.first_seen, gone.last_seen, gone.terminated_at) == (start, start + 60, start + 60)
        assert (dark.worker_id, dark.region, dark.status, dark.terminated_at) == ("dark", "", "unknown", None)
        assert journal.without_region() == 1
        assert {key[0]: row.region for key, row in moved(journal).items()} == {
            "known": "us-east-1",
            "bare": "told",
            "gone": "eu-west-1",
            "dark": "",
        }


def test_what_the_retention_overtook_is_not_moved() -> None:
    starts = [NOW - 2 * DAY + k * P for k in range(4)]
    with opened([Observation("a", start * 1000, cpu=1.0) for start in starts]) as journal:
        assert journal.move(10, starts[2]) == (4, 2)
        assert sorted(row.start for row in journal.outbox.ready(10)) == starts[2:]


@pytest.mark.parametrize(
    ("ago", "expected_place"),
    [(-1, "future"), (0, "recent"), (DAY - P, "recent"), (DAY, "recent"), (DAY + P, NOW - DAY - P), (10 * DAY, NOW - 10 * DAY),
     (10 * DAY + 1, "retention"), (20 * DAY, "retention"), (20 * DAY + 1, "before_since")],
)  # fmt: skip
def test_the_window_says_which_period_or_why_not(ago: int, expected_place: int | str) -> None:
    span = window(NOW - 20 * DAY, NOW, NOW, P, DAY, 10 * DAY)
    assert span.period_of((NOW - ago) * 1000) == expected_place


def test_the_window_ends_where_serve_fills_itself_or_at_until() -> None:
    now = NOW + 7
    assert window(NOW - 9 * DAY - 1, now, now, P, DAY, None) == Window(NOW - 9 * DAY, NOW - 9 * DAY, NOW - DAY + P, now, P)
    assert window(NOW - 9 * DAY, NOW - 5 * DAY + 7, now, P, DAY, None).until == NOW - 5 * DAY
    assert window(NOW - DAY // 2, now, now, P, DAY, None).until == NOW - DAY // 2  # empty, not negative


def test_each_reason_is_a_sentence() -> None:
    tally = Tally()
    tally.types["T"] = 9
    tally.skipped.update({"future": 1, "no_time": 2})
    tally.invalid["cpu"] = 1
    tally.examples |= {"no_time": "updated_at is 'x'", "cpu": "'y', not a number"}
    assert notes(Plan("t", "w", WINDOW, present=1), tally, 2, 1) == [
        "Skipped: 2 events without a valid time; the first: updated_at is 'x'.",
        "Skipped: 1 event with a time in the future.",
        "Left out: 1 value of cpu; the first: 'y', not a number.",
        "Unchanged: 1 period that the events know and the history has already.",
        "2 workers known only from the events: each gets an entry in the inventory.",
        '1 worker without a known region: their samples have the region "".',
    ]
