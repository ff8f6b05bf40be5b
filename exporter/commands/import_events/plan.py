"""The plan of an import: the window, what the events know for it, and what is skipped and why. Pure: no I/O and no clock."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter.commands.backfill.plan import counted
from exporter.core.periods import align, align_up, format_duration, rfc3339

SKIPPED: Mapping[str, str] = {
    "no_worker_id": "without the id of a worker",
    "no_time": "without a valid time",
    "text_payload": "with a text as payload, which is not parsed",
    "other_worker": "of workers other than those of --worker",
    "future": "with a time in the future",
    "before_since": "from before --since",
    "retention": "older than the retention of the history",
    "recent": "of periods that are left to `serve` (gap_fill_window), or from --until on",
    "no_value": "without CPU, memory, labs, or status",
}
"""Why an event makes no sample, as the rest of a sentence that begins with the number of events."""
MALFORMED = ("no_worker_id", "no_time", "text_payload")
"""Those that a correct event does not have; the first of each is shown."""


@dataclass(frozen=True, slots=True)
class Window:
    """The periods that begin in [start, until), which an import may write; UTC seconds."""

    since: int
    """The first period that begins after the requested start."""
    start: int
    """The same without what is older than the retention."""
    until: int
    now: int
    """MongoDB's clock."""
    period: int
    """Seconds."""

    def period_of(self, at: int) -> int | str:
        """Return the start of the period that contains the millisecond `at`, or the reason in SKIPPED why it is left out."""
        second = at // 1000
        if second > self.now:
            return "future"
        start = align(second, self.period)
        if start >= self.until:
            return "recent"
        if start < self.since:
            return "before_since"
        return start if start >= self.start else "retention"


def window(since: int, until: int, now: int, period: int, gap_fill_window: int, retention: int | None) -> Window:
    """Return the window of an import; `serve` writes periods that begin within `gap_fill_window` itself, as in `backfill`.

    Args:
        since, until: requested, in UTC seconds.
        now: MongoDB's clock, in UTC seconds.
        period: resolution of the history in seconds.
        gap_fill_window: age in seconds up to which `serve` fills gaps.
        retention: of the collection in seconds; None: samples are kept permanently.
    """
    first = align_up(since, period)
    start = first if retention is None else max(first, align_up(now - retention, period))
    end = min(align(until, period), align_up(now - gap_fill_window, period))
    return Window(first, start, max(start, end), now, period)


@dataclass
class Tally:
    """How many events were read, by type and by what became of them; `examples` has the first malformed one of each kind."""

    types: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    """By the reasons of SKIPPED."""
    invalid: Counter[str] = field(default_factory=Counter)
    """Values left out, by field."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason of SKIPPED or field → the first of its kind."""

    @property
    def events(self) -> int:
        """The number of events of the configured types."""
        return self.types.total()


@dataclass(frozen=True, slots=True)
class Missing:
    """What the history lacks and the events know."""

    workers: int = 0
    periods: int = 0
    cpu: int = 0
    """Periods with a CPU utilization; the others alike."""
    memory: int = 0
    labs: int = 0
    status: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of one command line, as the journal keeps it."""

    target: str
    """The collections and the period of the samples, in words."""
    wanted: str
    """The flags and the events' fields, as text: another import has another plan."""
    window: Window
    complete: bool = False
    """Whether all events are read and compared with the history."""
    present: int = 0
    """Periods that the events know and the history has."""


def notes(plan: Plan, tally: Tally, new_workers: int, without_region: int) -> list[str]:
    """Return one sentence for each reason why events make no sample, and for what the operator should know."""
    found = []
    for reason, what in SKIPPED.items():
        if count := tally.skipped[reason]:
            example = f"; the first: {tally.examples[reason]}" if reason in MALFORMED else ""
            found.append(f"Skipped: {counted(count, 'event')} {what}{example}.")
    for name, count in sorted(tally.invalid.items()):
        found.append(f"Left out: {counted(count, 'value')} of {name}; the first: {tally.examples[name]}.")
    if plan.present:
        found.append(f"Unchanged: {counted(plan.present, 'period')} that the events know and the history has already.")
    if new_workers:
        found.append(f"{counted(new_workers, 'worker')} known only from the events: each gets an entry in the inventory.")
    if without_region:
        found.append(f'{counted(without_region, "worker")} without a known region: their samples have the region "".')
    return found


def heading(plan: Plan, namespace: str) -> str:
    """Return what is written where, and from when until when."""
    span = plan.window
    periods = f"periods of {format_duration(span.period)} from {rfc3339(span.start)} until {rfc3339(span.until)}"
    return f"Plan for {namespace}, {periods}:"
