"""A few hours of a hostile world (docs/life-of-a-sample.md); `make simulate` runs hundreds of seeds."""

import pytest

from tests.simulation import Scenario, run
from tests.simulation.mutants import MUTANTS

SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_doubled_or_invented(seed: int) -> None:
    scenario = Scenario.of(seed)
    print(scenario)
    world = run(scenario)
    assert world.violations == []
    assert len(world.mongodb.documents) > 500, "else the world stood still"


def test_a_seed_gives_the_same_world_each_time() -> None:
    first, second = (run(Scenario.of(3, hours=2)) for _ in range(2))
    assert first.figures == second.figures
    assert first.mongodb.documents == second.mongodb.documents
