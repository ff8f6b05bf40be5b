"""What a `verify` has found, as text and as JSON. Pure, but for printing the text."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TextIO

from exporter.commands import terminal
from exporter.commands.backfill.plan import Plan, counted
from exporter.commands.backfill.report import RunState, counter_sum, spent
from exporter.commands.terminal import say
from exporter.commands.verify.compare import DIFFERENCES, KINDS, NOT_ASKED, Example, Kind, Tally
from exporter.core.model import METRICS
from exporter.core.periods import rfc3339
from exporter.metrics.telemetry import Telemetry

COLUMNS: tuple[Kind, ...] = ("equal", *DIFFERENCES, "document")
_REASONS = {
    "document": "without a datapoint in CloudWatch may be the worker document's own: not compared",
    "unlisted": "of memory series that CloudWatch no longer lists: not compared",
    "coarse": "for which CloudWatch only has coarser datapoints: not compared",
    "no_instance": "of workers without a known instance and region: not compared",
}
"""Why values are not compared, as the rest of a sentence that begins with their number."""


class VerifyProgress:
    """The progress of a run, see `Progressing`."""

    command, unit = "verify", "periods"

    def __init__(self, state: RunState, telemetry: Telemetry) -> None:
        self._state, self._telemetry = state, telemetry

    @property
    def finished(self) -> int:
        """The number of periods that are compared."""
        return self._state.answered

    @property
    def total(self) -> int | None:
        """The number of periods of the calls of this run."""
        return self._state.total

    @property
    def detail(self) -> str:
        """The calls sent so far, every retry included, and their price."""
        return spent(self._telemetry)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run, and of the interrupted one that it continued."""

    plan: Plan
    namespace: str
    tally: Tally
    state: RunState
    telemetry: Telemetry
    malformed: frozenset[str]
    """Instance ids that CloudWatch refuses."""

    @property
    def complete(self) -> bool:
        """Whether all that the plan has was compared."""
        return not self.state.calls_left

    @property
    def equal(self) -> bool:
        """Whether all was compared and is equal; nothing is not equal to anything."""
        return self.complete and self.tally.compared > 0 and not self.tally.differs

    @property
    def verdict(self) -> str:
        """One sentence: equal or not, and whether anything is left."""
        tally = self.tally
        if tally.differs:
            found = [f"{tally.total(kind):,} {kind}" for kind in DIFFERENCES if tally.total(kind)]
            if tally.duplicates:
                found.append(counted(tally.duplicates, "duplicate"))
            text = f"Not equal: {', '.join(found)}."
        elif not self.complete:
            text = f"No difference in the {counted(tally.total('equal'), 'value')} that could be compared."
        elif not tally.compared:
            return "Nothing was compared."
        elif tally.total("document", "unlisted", *NOT_ASKED):
            text = f"All {counted(tally.total('equal'), 'value')} that can be compared are equal."
        else:
            text = f"All equal: {counted(tally.total('equal'), 'value')}."
        return f"{text} {spent(self.telemetry)}."

    @property
    def incomplete(self) -> str | None:
        """What is left and why; None: nothing."""
        if self.complete:
            return None
        why = f", because {self.state.call_failures[-1]}" if self.state.call_failures else ""
        return f"Incomplete: {self.state.left} are not compared{why}; run the same command to go on."

    def notes(self) -> Iterator[str]:
        """Yield one sentence for each reason why values were not compared."""
        for kind, why in _REASONS.items():
            if count := self.tally.total(kind):
                yield f"{counted(count, 'value')} {why}."
        if self.tally.unaligned:
            yield f"{counted(self.tally.unaligned, 'sample')} of times that are not the start of a period: not compared."
        if self.state.expired:
            yield f"{counted(self.state.expired, 'period')} expired since the plan was made: not compared."
        if self.malformed:
            yield f"CloudWatch refuses the malformed instance ids {', '.join(sorted(self.malformed))}: it has nothing of them."


def print_text(result: Result, out: TextIO) -> None:
    """Print the figures per metric, the first examples of each difference, and the verdict."""
    rows = [(metric, *(f"{result.tally.counts[metric][kind]:,}" for kind in COLUMNS)) for metric in METRICS]
    terminal.print_table(("metric", *COLUMNS), rows, out)
    for note in result.notes():
        say(note, out)
    shown = [example for example in result.tally.examples if example.kind != "document"]
    for (kind, metric), group in groupby(
        sorted(shown, key=lambda one: (one.kind, one.metric)), key=lambda one: (one.kind, one.metric)
    ):
        examples = [*group]
        found = result.tally.counts[metric][kind] if metric else result.tally.duplicates
        say(_heading(kind, metric, len(examples), found), out)
        for example in examples:
            say(f"  {example.worker_id}  {rfc3339(example.start)}  {_values(example)}", out)
    say(result.verdict, out)


def _heading(kind: str, metric: str, shown: int, found: int) -> str:
    what = "duplicate samples" if kind == "duplicate" else f"{metric} {kind} (history, CloudWatch)"
    return f"{what}:" if shown >= found else f"{what}, the first {shown} of {found:,}:"


def _values(example: Example) -> str:
    if example.kind == "duplicate":
        return f"{example.samples} samples"
    absent = "no value" if example.samples else "no sample"
    history = absent if example.history is None else f"{example.history:.10g}"
    return f"{history}  {'none' if example.cloudwatch is None else f'{example.cloudwatch:.10g}'}"


def to_json(result: Result) -> str:
    """Return the result as one JSON object; docs/verify.md describes it."""
    plan, state, tally = result.plan, result.state, result.tally
    body = {
        "history": result.namespace,
        "period_seconds": plan.period,
        "since": rfc3339(plan.since),
        "until": rfc3339(plan.until),
        "complete": result.complete,
        "equal": result.equal,
        "periods_compared": tally.compared,
        "periods_left": state.total - state.answered,
        "periods_expired": state.expired,
        "calls_left": state.calls_left,
        "calls_made": counter_sum(result.telemetry.requests, operation="GetMetricData"),
        "dollars": result.telemetry.dollars,
        "metrics": {metric: _kinds(tally, KINDS + NOT_ASKED, metric) for metric in METRICS},
        "duplicates": tally.duplicates,
        "unaligned": tally.unaligned,
        "examples": [_example(example) for example in tally.examples],
        "notes": [*plan.notes, *result.notes()],
        "failures": state.call_failures,
    }
    return json.dumps(body, indent=2)


def _kinds(tally: Tally, kinds: Sequence[str], metric: Any) -> dict[str, int]:  # noqa: ANN401  # one of METRICS
    return {kind: tally.counts[metric][kind] for kind in kinds}


def _example(example: Example) -> dict[str, Any]:
    return {
        "kind": example.kind,
        "metric": example.metric or None,
        "worker_id": example.worker_id,
        "timestamp": rfc3339(example.start),
        "history": example.history,
        "cloudwatch": example.cloudwatch,
        "samples": example.samples,
    }
