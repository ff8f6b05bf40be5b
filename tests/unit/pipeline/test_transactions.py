"""Opening the periods of a long stop: in pieces, each of which is kept whatever happens to the next."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.core.model import Fleet, InventoryEntry, Worker
from exporter.core.periods import DAY
from exporter.pipeline import transactions
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.transactions import open_periods
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

    def killed(states: object) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        save(states)  # type: ignore[arg-type]

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
