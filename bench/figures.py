"""What a row of the benchmark returns: figures with their samples, targets as ratios of two figures, and what was skipped."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured quantity of one subject; `samples` are in `unit`."""

    row: str
    case: str
    """Size and circumstances, such as "1,000 workers, 0 ms"."""
    name: str
    subject: str
    """What was measured: "exporter", "YACE 0.67.0", "bare client"."""
    unit: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Identify the figure in another run."""
        return self.row, self.case, self.name, self.subject


@dataclass(frozen=True)
class Skipped:
    """A part of a row that could not be measured, and why."""

    row: str
    what: str
    reason: str


@dataclass(frozen=True)
class Target:
    """At most `at_most` times the figure of `reference`, or at most `at_most` units when there is no reference."""

    row: str
    case: str
    name: str
    subject: str
    reference: str
    at_most: float


EXPORTER, WITHOUT_HISTORY = "exporter", "exporter without history"
YACE, CLOUDWATCH_EXPORTER, BARE_CLIENT = "YACE", "cloudwatch_exporter", "bare client"
BARE_INSERT, BARE_QUERY = "bare insert_many", "bare query"
VERSION, IMPORT = "--version", "importing the settings"
REFERENCES = (YACE, BARE_CLIENT, BARE_QUERY, BARE_INSERT)
"""Subjects that the exporter is divided by in the tables."""


def _size(samples: float) -> str:
    """Return the case of a history of so many million samples."""
    return f"{samples:g} million samples"


_READS = (
    ("history", "one worker, 30 days"),
    ("history", "one worker, 30 days by hour"),
    ("remote_read", "all workers, 24 hours"),
    ("remote_read", "one worker, 30 days"),
    ("statistics", "100 workers, a day by hour"),
)
_CYCLE = ("1,000 workers, 0 ms", "10,000 workers, 0 ms")
_MIRROR = [
    f"{_size(size)}, {case}" for size in (1, 10, 50) for case in ("10,000 workers × 1 period", "40 workers × 250 periods")
]
_BACKFILL = [f"{_size(size)}, 100 workers, 8 days" for size in (1, 10, 50)]
TARGETS: Sequence[Target] = (
    Target("cycle", _CYCLE[0], "CPU", EXPORTER, YACE, 2.5),
    Target("cycle", _CYCLE[0], "CPU", WITHOUT_HISTORY, YACE, 1.5),
    Target("cycle", _CYCLE[1], "CPU", WITHOUT_HISTORY, BARE_CLIENT, 4),
    Target("cycle", _CYCLE[1], "CPU", EXPORTER, BARE_CLIENT, 7),
    Target("cycle", _CYCLE[1], "RSS", EXPORTER, "", 160),
    *(Target("cycle", case, "idle CPU a minute", EXPORTER, "", 0.05) for case in _CYCLE),
    Target("scrape", _CYCLE[0], "gzip, p50", EXPORTER, "", 1),
    Target("scrape", _CYCLE[0], "gzip, p99", EXPORTER, "", 20),
    Target("scrape", _CYCLE[0], "identity, size of CPU and memory", EXPORTER, YACE, 1.5),
    Target("start", "10,000 workers, 100 ms", "every CPU value", EXPORTER, "", 10),
    Target("cli", "a process", "CPU", VERSION, IMPORT, 1.5),
    Target("cli", "a process", "wall", VERSION, IMPORT, 1.5),
    *(Target(row, _size(size), name, EXPORTER, BARE_QUERY, 1.5) for row, name in _READS for size in (1, 10, 50)),
    *(Target("mirror", case, "own CPU", EXPORTER, BARE_INSERT, 2) for case in _MIRROR),
    *(Target("mirror", case, "wall", EXPORTER, BARE_INSERT, 1.3) for case in _MIRROR),
    *(Target("backfill", case, "CPU", EXPORTER, BARE_INSERT, 2) for case in _BACKFILL),
    *(Target("backfill", case, "wall", EXPORTER, BARE_INSERT, 1.3) for case in _BACKFILL),
)
"""What is aimed at on two cores; a target whose figures a run did not measure does not appear in its report."""


@dataclass(frozen=True)
class Result:
    """A target with what a run measured; `value` is the ratio, or the figure itself without a reference."""

    target: Target
    value: float
    unit: str
    """Of the value; empty for a ratio."""

    @property
    def is_met(self) -> bool:
        return self.value <= self.target.at_most


def results(figures: Iterable[Figure], targets: Sequence[Target] = TARGETS) -> list[Result]:
    """Compare figures with the targets; a target without its figures is left out."""
    by_key = {figure.key: figure for figure in figures}
    found = []
    for target in targets:
        own = by_key.get((target.row, target.case, target.name, target.subject))
        reference = by_key.get((target.row, target.case, target.name, target.reference))
        if own and not target.reference:
            found.append(Result(target, own.median, own.unit))
        elif own and reference and reference.median:
            found.append(Result(target, own.median / reference.median, ""))
    return found
