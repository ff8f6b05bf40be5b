"""A few simulated hours with faults (docs/sample-lifecycle.md); `make simulate` runs hundreds of seeds."""

import pytest

from tests.simulation import Scenario, run
from tests.simulation.mutants import MUTANTS

HOURS = 3

AT_NIGHT = pytest.mark.nightly("test_a_broken_rule_is_noticed")
"""Of the broken rules `make test` tries two: they test the simulation, not the exporter."""
FURTHER_SEEDS = pytest.mark.nightly("test_nothing_is_lost_doubled_or_invented")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=FURTHER_SEEDS)])
def test_nothing_is_lost_doubled_or_invented(seed: int) -> None:
    scenario = Scenario.of(seed, hours=HOURS)
    print(scenario)
    world = run(scenario)
    assert world.violations == []
    assert len(world.mongodb.documents) > 400, "else nothing was simulated"


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(4, id="paused while it encodes"),
        pytest.param(67, id="parts of a call that are answered at different times", marks=FURTHER_SEEDS),
        pytest.param(2076, id="the clock is read while a cycle runs", marks=FURTHER_SEEDS),
    ],
)
def test_what_once_failed(seed: int) -> None:
    assert run(Scenario.of(seed)).violations == []


@pytest.mark.parametrize(
    ("rule", "seed"),
    [
        pytest.param("2: status for every period since the last observation", 0, marks=AT_NIGHT),
        ("3: gaps only after the newest sample", 0),
        pytest.param("4: only the instance of the tick", 1, marks=AT_NIGHT),
        pytest.param("4: an instance without its region is a candidate", 4, marks=AT_NIGHT),
        pytest.param("5: nothing after the status was first seen", 0, marks=AT_NIGHT),
        pytest.param("7: late values are not confirmed", 3, marks=AT_NIGHT),
        pytest.param("7: a missing datapoint is absent at once", 0, marks=AT_NIGHT),
        pytest.param("8: unlisted memory is absent at once", 9, marks=AT_NIGHT),
        ("12: does not wait for running inserts", 3),
        pytest.param("12: read back majority-committed data", 3, marks=AT_NIGHT),
        pytest.param("12: late inserts are not refused", 1, marks=AT_NIGHT),
        pytest.param("14: periods are opened only under the lease", 0, marks=AT_NIGHT),
    ],
)
def test_a_broken_rule_is_noticed(rule: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        MUTANTS[rule](patch)
        assert run(Scenario.of(seed, hours=HOURS)).violations


def test_a_seed_gives_the_same_world_each_time() -> None:
    first, second = (run(Scenario.of(3, hours=1)) for _ in range(2))
    assert first.figures == second.figures
    assert first.mongodb.documents == second.mongodb.documents
