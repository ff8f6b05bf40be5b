"""Measures the exporter side by side with its peers, and with the bare calls that it is built on.

    make bench                                   small sizes: half an hour, most of it whole minutes of cycles
    make bench ARGS="--only cycle,scrape"        some rows
    make bench ARGS="--full --json after.json"   every size and latency: two hours
    make bench ARGS="--before ../old --page"     cells "before → after" with another checkout of this repository in the same
                                                 minutes, and docs/benchmarks.md written anew
    make bench ARGS="--checkout ../other"        another checkout in columns of its own

All numbers are medians; ratios are of figures of the same run. CPU seconds are read from outside the processes, so they depend
little on what else the machine does; wall times do. YACE is built by `go build`, cloudwatch_exporter fetched by Maven, both
once, into ~/.cache; where Go, Java, or Maven is missing, only that peer is skipped, with the reason. py-spy says where the CPU
goes, if it is installed. 50 million samples (--samples 50000000) take a quarter of an hour to write.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import machine
from bench.builds import build_of, python_build
from bench.context import Context
from bench.figures import Figure, Skipped
from bench.peers import UnavailablePeerError
from bench.report import BEFORE, PAGE, Run, print_run, write_page
from bench.rows import FAILED, ROWS
from bench.rows import run as run_rows
from bench.subjects import Build

FULL_SIZES, FULL_LATENCIES, FULL_SAMPLES = (100, 1000, 10_000), (0.0, 0.1), (1_000_000, 10_000_000)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    rows = "".join(f"  {name:10} {row.question}\n" for name, row in ROWS.items())
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"rows:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--only", metavar="ROW,…", help="rows to run, separated by commas; default: all")
    made.add_argument("--full", action="store_true", help="all sizes and latencies")
    made.add_argument("--sizes", metavar="N,…", type=_integers, help="workers of the cycle and scrape rows; default: 100,1000")
    made.add_argument("--latencies", metavar="SECONDS,…", type=_numbers, help="of the fake CloudWatch; default: 0")
    made.add_argument("--samples", metavar="N,…", type=_integers, help="sizes of the history; default: 1000000")
    made.add_argument("--cycles", type=int, default=5, help="minutes measured per row and size, after the warm-up")
    made.add_argument("--warm-up", type=int, default=3, help="minutes before that, which do not count")
    made.add_argument("--repeat", type=int, default=5, help="samples of every other figure")
    made.add_argument(
        "--subjects", metavar="NAME,…", type=_names, default=(), help="what takes part in cycles of a minute; default: all"
    )
    made.add_argument("--no-peers", action="store_true", help="leave out YACE and cloudwatch_exporter")
    made.add_argument("--checkout", metavar="DIR", type=Path, action="append", default=[], help="measure this checkout too")
    made.add_argument("--python", metavar="PROGRAM", action="append", default=[], help="measure with this Python too")
    made.add_argument("--json", metavar="FILE", type=Path, help="write the results")
    made.add_argument(
        "--before", metavar="DIR|FILE", type=Path, help="another checkout, measured in this run, or an earlier --json"
    )
    made.add_argument("--page", action="store_true", help="write docs/benchmarks.md")
    made.add_argument(
        "--from", metavar="FILE", type=Path, nargs="+", dest="source", help="measure nothing; report these results"
    )
    return made


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(each) for each in text.split(","))


def main(arguments: Sequence[str] | None = None, page: Path = PAGE) -> int:
    """Run the chosen rows, and report; returns the exit status, which is 1 when a row failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child processes are terminated too
    made = parser()
    options = made.parse_args(arguments)
    names = options.only.split(",") if options.only else list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        made.error(f"no row {', '.join(unknown)}; rows are {', '.join(ROWS)}")
    if options.source:
        run = Run.from_json(options.source[0].read_text())
        for further in options.source[1:]:
            run = run.merged(Run.from_json(further.read_text()))
    else:
        run = measure(options, names)
    if options.json:
        options.json.write_text(run.to_json())
    run, before = run.split()
    if options.before and options.before.is_file():
        before = Run.from_json(options.before.read_text())
    print_run(run, before, Console(soft_wrap=True, width=None if sys.stdout.isatty() else 180))
    if options.page:
        write_page(run, before, page)
    return int(any(skipped.what == FAILED for skipped in run.skipped))


def measure(options: argparse.Namespace, names: Sequence[str]) -> Run:
    """Run the chosen rows."""
    began, load, (stolen, ticks) = time.monotonic(), machine.load(), machine.stolen()
    skipped: list[Skipped] = []
    builds = [Build(), *(build_of(tree) for tree in options.checkout)]
    about: dict[str, Any] = {}
    if options.before and options.before.is_dir():
        old = build_of(options.before)
        builds.append(replace(old, label=BEFORE))
        about["before"] = old.label
    for python in options.python:
        try:
            builds.append(python_build(python))
        except UnavailablePeerError as error:
            skipped.append(Skipped("all", python, str(error)))
    context = Context(
        sizes=options.sizes or (FULL_SIZES if options.full else Context.sizes),
        latencies=options.latencies or (FULL_LATENCIES if options.full else Context.latencies),
        samples=options.samples or (FULL_SAMPLES if options.full else Context.samples),
        warm_up=options.warm_up,
        cycles=options.cycles,
        repeat=options.repeat,
        builds=builds,
        peers=not options.no_peers,
        subjects=options.subjects,
        full=options.full,
    )
    figures: list[Figure] = []
    with context.stack:
        for found in run_rows(context, names):
            if isinstance(found, Figure):
                figures.append(found)
            else:
                skipped.append(found)
                context.progress(f"skipped {found.what}: {found.reason}")
    later, total = machine.stolen()
    about |= {
        "date": machine.now(),
        "commit": machine.commit(),
        "command": machine.command(),
        "seconds": round(time.monotonic() - began, 1),
        "machine": machine.machine(),
        "load": {"before": load, "after": machine.load(), "stolen": (later - stolen) / max(1, total - ticks)},
        "versions": machine.versions(),
    }
    return Run(about, figures, skipped)


if __name__ == "__main__":
    sys.exit(main())
