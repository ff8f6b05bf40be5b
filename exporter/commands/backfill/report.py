"""What a run has done so far: the state that its parts share, and the sentences made of it."""

from dataclasses import dataclass, field

from prometheus_client import Counter

from exporter.commands.backfill.journal import Journal
from exporter.commands.backfill.plan import counted
from exporter.core.errors import StoreError
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch.client import CloudWatch


@dataclass
class RunState:
    """The figures of one run, in periods unless they say otherwise."""

    total: int = 0
    """Periods of the calls of this run."""
    answered: int = 0
    """Periods that CloudWatch answered or no longer keeps."""
    expired: int = 0
    """Periods that CloudWatch deleted between plan and call."""
    calls_left: int = 0
    """Calls that are not done."""
    call_failures: list[str] = field(default_factory=list)
    """Why calls were not completed, one sentence each without a full stop."""
    failure: StoreError | None = None
    """The failure of the journal or of MongoDB that ended the run."""

    @property
    def left(self) -> str:
        """The calls that are not done, and their periods."""
        return f"{counted(self.calls_left, 'call')} and {counted(self.total - self.answered, 'period')}"


@dataclass
class BackfillState(RunState):
    """The figures of a backfill."""

    empty: int = 0
    """Periods for which CloudWatch has no datapoint."""


def spent(telemetry: Telemetry) -> str:
    """Return the calls sent so far, every retry included, and their price."""
    requests = counter_sum(telemetry.requests, operation="GetMetricData")
    return f"{counted(requests, 'call')}, {telemetry.dollars:.5f} dollars"


class RunReport:
    """Words and figures about a run, for the progress bar and the last lines."""

    command, unit = "backfill", "periods"

    def __init__(self, state: BackfillState, journal: Journal, cloudwatch: CloudWatch, telemetry: Telemetry) -> None:
        self.state = state
        self._journal, self._cloudwatch, self._telemetry = journal, cloudwatch, telemetry

    @property
    def finished(self) -> int:
        """The number of periods that are answered and whose samples are in the history."""
        return max(0, self.state.answered - self._journal.waiting)

    @property
    def total(self) -> int | None:
        """The number of periods of the calls of this run."""
        return self.state.total

    @property
    def detail(self) -> str:
        """The calls sent so far, every retry included, and their price."""
        return spent(self._telemetry)

    @property
    def left(self) -> str:
        """The work that is not done."""
        return f"{self.state.left} are left, {self._journal.waiting:,} samples wait"

    @property
    def summary(self) -> str:
        """The work that was done, in one line."""
        present = counter_sum(self._telemetry.mirror_samples, result="already_present")
        text = (
            f"{self._telemetry.mirrored:,} samples written, {present:,} were there already, "
            f"{self.state.empty:,} periods empty; {self.detail}."
        )
        if self.state.expired:
            text += f" {counted(self.state.expired, 'period')} expired in CloudWatch meanwhile."
        if self._cloudwatch.malformed:
            text += f" Skipped malformed instance ids: {', '.join(sorted(self._cloudwatch.malformed))}."
        if self._journal.rejected:
            text += f" MongoDB rejects {counted(self._journal.rejected, 'sample')}; they are kept in {self._journal.path}."
        return text


def counter_sum(counter: Counter, **labels: str) -> int:
    """Return the sum of a counter's series that have these labels."""
    samples = [sample for family in counter.collect() for sample in family.samples]
    return int(sum(sample.value for sample in samples if labels.items() <= sample.labels.items()))
