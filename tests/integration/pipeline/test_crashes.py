"""A short run of `python -m tests.tools.crash_tests`; KILL_ROUNDS and KILL_SEED make it longer or repeat one."""

import os
import random
from pathlib import Path

import pytest

from tests.fixtures.mongo import need_mongod
from tests.tools import crash_tests


@pytest.mark.timeout(1200)  # with many rounds
@pytest.mark.waits(45)
async def test_after_kills_with_inserts_in_flight_and_a_lost_outbox_the_history_equals_the_ledger(tmp_path: Path) -> None:
    need_mongod()
    rounds = int(os.environ.get("KILL_ROUNDS", "2"))
    seed = int(os.environ.get("KILL_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    figures = await crash_tests.run(crash_tests.Options(seed, rounds, workers=30, lose_outbox_at=rounds // 2), tmp_path)
    if rounds >= 6:  # of a few kills none may be within an insert; test_takeover.py has one that always is
        assert figures.in_flight > 0
    assert figures.outboxes_lost == 1
    assert figures.samples > 1000 * rounds
