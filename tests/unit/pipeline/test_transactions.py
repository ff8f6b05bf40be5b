"""Opening the periods of a long stop: in pieces, each of which is kept whatever happens to the next."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.core.model import Fleet, InventoryEntry, MetricResult, MetricResults, Worker
from exporter.core.periods import DAY
from exporter.pipeline import transactions
from exporter.pipeline.decided_values import DecidedValues
from exporter.pipeline.lifecycle import FirstSeenValues, Rules
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.planning import MetricDataCall
from exporter.pipeline.transactions import apply_results, open_periods
from exporter.sources.cloudwatch.queries import instance_queries
from tests.unit.pipeline.test_lifecycle import RULES, P, T

WORKERS = tuple(Worker(f"w{number}", "eu-west-1", f"i-{number}", "running", active_labs=1) for number in range(10))
STOPPED_AT, BACK_AT = T + 12, T + DAY // 2 + 12
NO_INVENTORY: dict[str, InventoryEntry] = {}


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = Outbox(tmp_path / "data", P)
    list(open_periods(opened, Fleet(STOPPED_AT, WORKERS), NO_INVENTORY, RULES))
    yield opened
    opened.close()


def rows(outbox: Outbox) -> list[tuple[object, ...]]:
    return list(outbox._select("SELECT * FROM sample ORDER BY worker, start"))


def back(outbox: Outbox, rules: Rules = RULES) -> int:
    return sum(piece.samples for piece in open_periods(outbox, Fleet(BACK_AT, WORKERS), NO_INVENTORY, rules))


def test_pieces_open_what_one_transaction_opens(outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Outbox(tmp_path / "other", P)
    list(open_periods(other, Fleet(STOPPED_AT, WORKERS), NO_INVENTORY, RULES))
    expected = back(other)
    monkeypatch.setattr(transactions, "PIECE_SAMPLES", 100)
    assert back(outbox) == expected > 1000
    assert rows(outbox) == rows(other)
    assert outbox.states() == other.states()
    assert outbox.counts() == other.counts()
    other.close()


def test_what_is_open_when_it_is_killed_is_not_opened_again(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "PIECE_SAMPLES", 100)
    save, left = outbox.save_states, [3]

    def killed(states: object, known: object) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        save(states, known)  # type: ignore[arg-type]

    before = len(rows(outbox))
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "save_states", killed)
        with pytest.raises(KeyboardInterrupt):
            back(outbox)
    kept = len(rows(outbox)) - before
    assert kept >= 300
    total = back(outbox)
    assert total > 500
    assert len(rows(outbox)) == before + kept + total
    assert len({(row[0], row[1]) for row in rows(outbox)}) == len(rows(outbox))


def answer(outbox: Outbox, age: int, running: set[str], first_seen: FirstSeenValues) -> set[tuple[str, int]]:
    """Apply an answer `age` seconds after T + P; return the keys of the rows whose CPU is open after it."""
    queries = {worker.id: instance_queries(f"i-{worker.id[1:]}") for worker in WORKERS}
    call = MetricDataCall("eu-west-1", T - P, T + P, queries)
    found = {each: MetricResult("ok", T - P, T + P, {T - P: 5.0, T: 5.0}) for each in call.queries}
    results, decided = MetricResults(T + P + age, found), DecidedValues(P, 12 * P)
    apply_results(outbox, call, results, (), first_seen, decided, RULES, running)
    return {(row.worker_id, row.start) for row in outbox.all_open_rows(1000) if row.cpu is None}


def test_samples_that_the_next_cycle_sees_on_time_are_compared_with_no_earlier_answer(outbox: Outbox) -> None:
    list(open_periods(outbox, Fleet(T + P + 12, WORKERS), NO_INVENTORY, RULES))
    everyone = {worker.id for worker in WORKERS}
    first_seen: FirstSeenValues = {}
    assert answer(outbox, 30, everyone - {"w0"}, first_seen) == {(name, T) for name in everyone}, "T - P is decided"
    assert {key[:2] for key in first_seen} == {("w0", T)}, (
        "the next answer is on time for T, except for the worker that is polled more rarely"
    )
    answer(outbox, 31, everyone, first_seen)
    assert {key[:2] for key in first_seen} == {(name, T) for name in everyone}, "what is decided is not remembered"


def test_a_value_is_final_with_the_first_answer_after_settle_delay(outbox: Outbox) -> None:
    list(open_periods(outbox, Fleet(T + P + 12, WORKERS), NO_INVENTORY, RULES))
    everyone = {worker.id for worker in WORKERS}
    first_seen: FirstSeenValues = {}
    for age in (0, 180, RULES.settle_delay - 1):
        assert {start for _, start in answer(outbox, age, everyone, first_seen)} >= {T}
    assert answer(outbox, RULES.settle_delay + 60, everyone, first_seen) == set()
