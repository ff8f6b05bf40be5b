"""A short run of `python -m tests.tools.shard_crash_tests`; SHARD_KILL_ROUNDS makes it longer, KILL_SEED repeats one."""

import os
import random
from pathlib import Path

import pytest

from tests.fixtures.mongo import need_mongod
from tests.tools import shard_crash_tests


@pytest.mark.nightly("test_from_four_to_five_shards_nothing_is_lost_doubled_or_billed_twice")
@pytest.mark.timeout(1800)
@pytest.mark.waits(150)
async def test_after_kills_and_another_number_of_shards_the_history_equals_the_ledger(tmp_path: Path) -> None:
    need_mongod()
    rounds = int(os.environ.get("SHARD_KILL_ROUNDS", "2"))
    seed = int(os.environ.get("KILL_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    options = shard_crash_tests.Options(seed, rounds, workers=30 * rounds, hours=4)
    figures = await shard_crash_tests.run(options, tmp_path)
    assert figures.kills == rounds // 2 * 4 + rounds // 2 * 5
    assert sum(figures.by_shard) == 30 * rounds
    assert figures.samples > 500 * rounds
