"""Runs seeds: python -m tests.simulation --first 0 --count 300."""

import argparse
import sys
import time
from collections import Counter

import pytest

from tests.simulation import Scenario, run
from tests.simulation.mutants import MUTANTS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description="Simulate the sample lifecycle with faults."
    )
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--count", type=int, default=300, metavar="N", help="how many seeds")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every seed, and all violations of a failing one")
    parser.add_argument(
        "--mutants", action="store_true", help="break the rules one by one: each mutant must be noticed within --count seeds"
    )
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.count)
    return _mutants(seeds) if arguments.mutants else _seeds(seeds, verbose=arguments.verbose)


def _mutants(seeds: range) -> int:
    missed = 0
    for name, mutate in MUTANTS.items():
        for seed in seeds:
            with pytest.MonkeyPatch.context() as patch:
                mutate(patch)
                violations = run(Scenario.of(seed)).violations
            if violations:
                kinds = Counter(violation.partition(":")[0] for violation in violations)
                print(f"noticed by seed {seed:3d}  {name}  {dict(kinds)}", flush=True)
                break
        else:
            missed += 1
            print(f"NOT NOTICED         {name}", flush=True)
    return 1 if missed else 0


def _seeds(seeds: range, *, verbose: bool) -> int:
    began, broken = time.monotonic(), list[int]()
    totals: Counter[str] = Counter()
    for seed in seeds:
        scenario = Scenario.of(seed)
        started = time.monotonic()
        world = run(scenario)
        totals.update(world.figures)
        totals["samples"] += len(world.mongodb.documents)
        if world.violations:
            broken.append(seed)
            kinds = Counter(violation.partition(":")[0] for violation in world.violations)
            print(f"BROKEN {scenario}: {dict(kinds)}", flush=True)
            for violation in world.violations[: 20 if verbose else 2]:
                print(f"    {violation}", flush=True)
        elif verbose:
            print(f"ok {scenario}, {time.monotonic() - started:.1f} s", flush=True)
    print(
        f"{len(seeds)} seeds from {seeds.start}: {len(broken)} broken {broken or ''} "
        f"{dict(totals)} in {time.monotonic() - began:.0f} s"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
