"""Short runs of `python -m tests.tools.step_downs`; `make reliability` makes them as long as the table of faults says.

What a simulated clock can show of the same, with restarts and a second exporter, is in test_not_writable.py.
"""

import os
from pathlib import Path

import pytest

from tests.fixtures.mongo import need_mongod
from tests.helpers.reliability import RECORD, record
from tests.tools.step_downs import majority_lost, step_downs

LONG = bool(os.environ.get(RECORD))


@pytest.mark.nightly("test_step_downs_lose_and_double_nothing")
@pytest.mark.waits(160)
@pytest.mark.timeout(1800)
def test_step_downs_kills_and_pauses_of_the_primary_lose_and_double_nothing(tmp_path: Path) -> None:
    need_mongod()
    outcome = step_downs(tmp_path, 240 if LONG else 30)
    assert outcome.whole, outcome
    assert sum(outcome.faults.values()) >= (8 if LONG else 1)
    assert outcome.samples > 10 * 60
    assert outcome.observed > 0
    record(
        "step-downs",
        lost=outcome.lost + outcome.without_state,
        doubled=outcome.doubled,
        silence=outcome.silence,
        recovery=outcome.recovery,
        note=f"of {outcome.samples:,}",
    )


@pytest.mark.nightly("test_without_a_majority_no_status_is_lost_by_the_last_leader_its_restart_or_an_exporter_without_a_leader")
@pytest.mark.waits(340)
@pytest.mark.timeout(1800)
def test_a_lost_majority_costs_no_status_and_no_labs(tmp_path: Path) -> None:
    need_mongod()
    outcome = majority_lost(tmp_path, 360 if LONG else 120)
    assert outcome.whole, outcome
    assert outcome.states > 10, "the worker documents changed, and the exporter saw it"
    record(
        "majority-lost-6-minutes",
        lost=outcome.lost + outcome.without_state,
        doubled=outcome.doubled,
        silence=outcome.silence,
        recovery=outcome.recovery,
        note=f"of {outcome.samples:,}",
    )
