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

TARGETS: Sequence[Target] = (
    Target("cycle", "1,000 workers, 0 ms", "CPU", EXPORTER, YACE, 2.5),
    Target("cycle", "1,000 workers, 0 ms", "CPU", WITHOUT_HISTORY, YACE, 1.5),
    Target("cycle", "10,000 workers, 0 ms", "CPU", WITHOUT_HISTORY, BARE_CLIENT, 4),
    Target("cycle", "10,000 workers, 0 ms", "CPU", EXPORTER, BARE_CLIENT, 7),
    Target("cycle", "10,000 workers, 0 ms", "RSS", EXPORTER, "", 160),
    Target("cycle", "10,000 workers, 100 ms", "RSS", EXPORTER, "", 160),
)
"""The targets of issue 14; a target whose figures a run did not measure does not appear in its report."""


@dataclass(frozen=True)
class Result:
    """A target with what a run measured; `value` is the ratio, or the figure itself without a reference."""

    target: Target
    value: float

    @property
    def is_met(self) -> bool:
        return self.value <= self.target.at_most


def results(figures: Iterable[Figure], targets: Sequence[Target] = TARGETS) -> list[Result]:
    """Compare figures with the targets; a target without its figures is left out."""
    by_key = {figure.key: figure.median for figure in figures}
    found = []
    for target in targets:
        own = by_key.get((target.row, target.case, target.name, target.subject))
        reference = by_key.get((target.row, target.case, target.name, target.reference)) if target.reference else 1
        if own is not None and reference:
            found.append(Result(target, own / reference))
    return found
