"""CPU of opening a day of gaps, per worker: row by row as it once was, and as runs that SQLite expands; and of the kept fleet.

    python -m bench.gaps [--workers 1000] [--profile]

Both ways open the same rows in an outbox of their own, alternately in one run, so that a busy machine slows both.
"""

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path

from exporter.core.instances import instances_during, updated_entry
from exporter.core.model import Fleet, InventoryEntry, Worker
from exporter.core.periods import align_up
from exporter.pipeline.fleet_store import FleetStore
from exporter.pipeline.gap_filling import PIECE_WORKERS
from exporter.pipeline.lifecycle import PendingSample, Rules
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.transactions import open_gaps, open_periods

NOW = 1_767_225_600 + 12
RULES = Rules()
ROUNDS = 3


def fleet_of(count: int) -> Fleet:
    workers = (
        Worker(f"4ad5e0e2-0000-4000-8000-{n:012d}", "eu-west-1", f"i-{n:017x}", "running", name=f"cml {n}", active_labs=n % 7)
        for n in range(count)
    )
    return Fleet(NOW, tuple(workers))


def row_by_row(outbox: Outbox, workers: Sequence[Worker], entries: dict[str, InventoryEntry]) -> int:
    """Open the same gaps with an object and a row for each period, 500 workers per transaction, and an index by time."""
    opened = 0
    with outbox.transaction() as database:
        database.execute("CREATE INDEX sample_start ON sample(start)")
    for first in range(0, len(workers), 500):
        samples = []
        for worker in workers[first : first + 500]:
            for start in range(align_up(NOW - RULES.gap_fill_window, RULES.period), NOW - 12 - RULES.period, RULES.period):
                region, instances = instances_during(entries[worker.id], worker, start, start + RULES.period)
                if instances:
                    samples.append(PendingSample(worker.id, start, region, instances))
        with outbox.transaction():
            opened += outbox.open(samples)
    return opened


def as_runs(outbox: Outbox, workers: Sequence[Worker], entries: dict[str, InventoryEntry]) -> int:
    """Open them as the exporter does."""
    opened = 0
    for first in range(0, len(workers), PIECE_WORKERS):
        opened += open_gaps(outbox, workers[first : first + PIECE_WORKERS], entries, {}, NOW, RULES)[0]
    return opened


def keep_all(outbox: Outbox, fleet: Fleet) -> None:
    """Save every worker of a read, as it once was."""
    with outbox.transaction() as database:
        database.execute("DELETE FROM fleet")
        rows = [(worker.id, dumps(asdict(worker)), fleet.date, None) for worker in fleet.workers]
        database.executemany("INSERT INTO fleet VALUES(?,?,?,?)", rows)


def cpu_of(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(way: Callable[[Outbox, Sequence[Worker], dict[str, InventoryEntry]], int], fleet: Fleet) -> tuple[float, int]:
    """Return CPU seconds and rows of one way in a new outbox."""
    entries = {worker.id: updated_entry(None, worker, fleet.date) for worker in fleet.workers}
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(Path(folder), RULES.period)
        list(open_periods(outbox, fleet, {}, RULES))
        rows: list[int] = []
        seconds = cpu_of(lambda: rows.append(way(outbox, fleet.workers, entries)))
        outbox.close()
    return seconds, rows[0]


def kept_fleet(fleet: Fleet) -> None:
    """Print the CPU of saving a read: all of it, then with one worker in a hundred changed."""
    changed = replace(fleet, workers=tuple(replace(w, cpu=1.0) if n % 100 == 0 else w for n, w in enumerate(fleet.workers)))
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(Path(folder), RULES.period)
        store = FleetStore(outbox)
        before = cpu_of(lambda: keep_all(outbox, fleet))
        first = cpu_of(lambda: store.keep(fleet.workers, NOW, {}))
        after = cpu_of(lambda: store.keep(changed.workers, NOW, {}))
        outbox.close()
    print(f"kept fleet, ms: every worker {before * 1000:.0f}, first read {first * 1000:.0f}, 1 % changed {after * 1000:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gaps", description="Measure the CPU of opening gaps.")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--profile", action="store_true", help="show where the time of both ways goes")
    arguments = parser.parse_args()
    fleet = fleet_of(arguments.workers)
    milliseconds: dict[str, list[float]] = {}
    rows = set[int]()
    for _ in range(ROUNDS):
        for way in (row_by_row, as_runs):
            profile = cProfile.Profile() if arguments.profile else None
            if profile:
                profile.enable()
            seconds, opened = measure(way, fleet)
            if profile:
                profile.disable()
                pstats.Stats(profile).sort_stats("tottime").print_stats(10)
            rows.add(opened)
            milliseconds.setdefault(way.__name__, []).append(seconds * 1000 / arguments.workers)
    assert len(rows) == 1, f"both ways must open the same rows: {rows}"
    before, after = (statistics.median(values) for values in milliseconds.values())
    print(f"{arguments.workers} workers x 24 h x 5 min, {rows.pop()} rows; CPU ms a worker, median of {ROUNDS}:")
    print(f"row by row {before:.2f}, as runs {after:.2f}, ratio {before / after:.1f}")
    kept_fleet(fleet)


if __name__ == "__main__":
    main()
