"""Compare samples of the history with what CloudWatch has for the same periods. Pure: no I/O and no clock.

What can be told apart, and what cannot: a sample does not say where its values are from. CloudWatch's value wins whenever there
is one (rule 9 of docs/sample-lifecycle.md), so a value for which CloudWatch has no datapoint may be the worker document's own,
but only in a sample that was observed, and an observed sample has a status. Whether CloudWatch revised a value, one look cannot
tell; the answer that an earlier `verify` got can.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from exporter.commands.backfill.plan import Answer
from exporter.core.model import METRICS, MetricName

Kind = Literal["neither", "equal", "document", "unlisted", "revised", "extra", "missing", "different"]
"""What one metric of one period is found to be, the least serious first:

neither: neither side has a value;
equal: both have the same one;
document: the history has one and CloudWatch none, and it may be the worker document's own;
unlisted: the history has one, and ListMetrics no longer names the series it may be from, so that CloudWatch was not asked;
revised: there is a difference, but none to what CloudWatch answered the first `verify` that asked: CloudWatch changed it;
extra: the history has one and CloudWatch none, in a sample without a status;
missing: CloudWatch has one and the history none;
different: both have one, and they differ.
"""
KINDS: tuple[Kind, ...] = ("neither", "equal", "document", "unlisted", "revised", "extra", "missing", "different")
DIFFERENCES: tuple[Kind, ...] = ("missing", "extra", "different", "revised")
NOT_ASKED = ("coarse", "no_instance")
"""Why CloudWatch cannot be asked for a period: it only has datapoints of a coarser resolution; no instance or region of the
worker is known. `plan` counts them."""
MAX_EXAMPLES = 10
"""Examples kept of each kind and metric."""
REL_TOL = 1e-9
"""Relative tolerance of equality: the average of several datapoints may differ in its last bits."""
SINGLE_PRECISION = 1e-6
"""Tolerance for earlier answers, which are kept with 24 bits."""
UNKNOWN, NO_DATAPOINT = math.inf, math.nan
"""Earlier answers that are no value; CloudWatch has neither of them as a value."""

EarlierAnswer = Callable[[MetricName, int], float]
"""(metric, period start) → CloudWatch's value at the first `verify` that asked, NO_DATAPOINT, or UNKNOWN."""


class Stored(NamedTuple):
    """A sample as the history has it; utilizations in percent, None where it has no number."""

    time: int
    """Milliseconds since 1970."""
    cpu: float | None
    memory: float | None
    observed: bool
    """Whether it has a status: only then the worker document was read for it."""


class Example(NamedTuple):
    """One difference."""

    kind: str
    """A Kind, or "duplicate"."""
    metric: str
    """Empty for a duplicate."""
    worker_id: str
    start: int
    """Of the period, in UTC seconds."""
    history: float | None
    cloudwatch: float | None
    samples: int
    """How many the history has of this worker and period."""


@dataclass
class Tally:
    """What a comparison found."""

    periods: int = 0
    """Periods of one worker that were compared, or found to be not comparable."""
    counts: dict[MetricName, Counter[str]] = field(default_factory=lambda: {metric: Counter() for metric in METRICS})
    """Metric → how many periods are of each Kind, or one of NOT_ASKED."""
    duplicates: int = 0
    """Samples beyond the first of their worker and period."""
    unaligned: int = 0
    """Samples whose time is not the start of a period."""
    examples: list[Example] = field(default_factory=list)
    """The first MAX_EXAMPLES of each kind and metric, by worker and time."""

    def add(self, other: "Tally") -> None:
        """Add the figures of another comparison, and keep the first examples of both."""
        self.periods += other.periods
        self.duplicates += other.duplicates
        self.unaligned += other.unaligned
        for metric, counts in other.counts.items():
            self.counts[metric] += counts
        self.examples = _first(self.examples + other.examples)

    def total(self, *kinds: str) -> int:
        """Return how many values of both metrics are of one of these kinds."""
        return sum(counts[kind] for counts in self.counts.values() for kind in kinds)

    @property
    def compared(self) -> int:
        """The number of periods that CloudWatch was asked for."""
        return self.periods - sum(self.counts["cpu"][reason] for reason in NOT_ASKED)

    @property
    def differs(self) -> bool:
        """Whether the history is not what CloudWatch has, or has a sample twice."""
        return bool(self.total(*DIFFERENCES) or self.duplicates)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON's types, for `from_json`."""
        return {
            "periods": self.periods,
            "counts": self.counts,
            "duplicates": self.duplicates,
            "unaligned": self.unaligned,
            "examples": self.examples,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Tally":
        """Return what `to_json` returned."""
        counts = {metric: Counter(body["counts"][metric]) for metric in METRICS}
        examples = [Example(*each) for each in body["examples"]]
        return cls(body["periods"], counts, body["duplicates"], body["unaligned"], examples)


def classify(
    history: float | None,
    cloudwatch: float | None,
    *,
    observed: bool,
    listed: bool = True,
    earlier: float = UNKNOWN,
    tolerance: float = REL_TOL,
) -> Kind:
    """Return what one metric of one period is found to be.

    Args:
        history: percent.
        cloudwatch: percent.
        observed: whether the sample has a status.
        listed: whether CloudWatch was asked for every series that may have a datapoint.
        earlier: CloudWatch's answer to the first `verify` that asked, or UNKNOWN.
        tolerance: relative, of equality.
    """
    if history is None and cloudwatch is None:
        return "neither"
    if history is not None and cloudwatch is not None and math.isclose(history, cloudwatch, rel_tol=tolerance):
        return "equal"
    kind: Kind
    if cloudwatch is None:
        if not listed:
            return "unlisted"
        kind = "document" if observed else "extra"
    else:
        kind = "missing" if history is None else "different"
    if kind in DIFFERENCES and earlier != UNKNOWN:
        value = None if math.isnan(earlier) else earlier
        before = classify(history, value, observed=observed, listed=listed, tolerance=SINGLE_PRECISION)
        if before not in DIFFERENCES:
            return "revised"
    return kind


def compare(answer: Answer, samples: Iterable[Stored], earlier: EarlierAnswer, listed_from: int, period: int) -> Tally:
    """Compare one answer of CloudWatch with the samples of the same worker in the same periods.

    Of several samples of one period the one that differs most seriously counts, so that no copy hides another.

    Args:
        answer: CloudWatch's values for whole periods.
        samples: in any order.
        earlier: CloudWatch's answers to the first `verify` that asked.
        listed_from: UTC second from which on ListMetrics names every memory series.
        period: resolution in seconds.
    """
    tally, worker_id = Tally(), answer.gap_query.worker_id
    copies: dict[int, list[Stored]] = {}
    for sample in samples:
        if sample.time % (period * 1000):
            tally.unaligned += 1
        else:
            copies.setdefault(sample.time // 1000, []).append(sample)
    for start in answer.starts(period):
        tally.periods += 1
        found = copies.get(start, [])
        if len(found) > 1:
            tally.duplicates += len(found) - 1
            tally.examples.append(Example("duplicate", "", worker_id, start, None, None, len(found)))
        for metric in METRICS:
            cloudwatch = (answer.cpu if metric == "cpu" else answer.memory).get(start)
            listed, before = metric == "cpu" or start >= listed_from, earlier(metric, start)
            kind, history = _most_serious(found, metric, cloudwatch, listed, before)
            tally.counts[metric][kind] += 1
            if kind in DIFFERENCES or kind == "document":
                tally.examples.append(Example(kind, metric, worker_id, start, history, cloudwatch, len(found)))
    tally.examples = _first(tally.examples)
    return tally


def _most_serious(
    found: Sequence[Stored], metric: MetricName, cloudwatch: float | None, listed: bool, earlier: float
) -> tuple[Kind, float | None]:
    """Return the most serious kind of all samples of a period, and the value of that sample."""
    if not found:
        return classify(None, cloudwatch, observed=False, listed=listed, earlier=earlier), None
    values = [(sample.cpu if metric == "cpu" else sample.memory, sample.observed) for sample in found]
    kinds = [
        (classify(value, cloudwatch, observed=observed, listed=listed, earlier=earlier), value) for value, observed in values
    ]
    return max(kinds, key=lambda each: KINDS.index(each[0])) if len(kinds) > 1 else kinds[0]


def _first(examples: Iterable[Example]) -> list[Example]:
    """Return the first MAX_EXAMPLES of each kind and metric, by worker and time."""
    kept: list[Example] = []
    number: Counter[tuple[str, str]] = Counter()
    for example in sorted(examples, key=lambda one: (one.worker_id, one.start, one.metric, one.kind)):
        number[example.kind, example.metric] += 1
        if number[example.kind, example.metric] <= MAX_EXAMPLES:
            kept.append(example)
    return kept
