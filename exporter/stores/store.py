"""What every store of copies can do, and the samples that it takes.

A store is idempotent: a sample that is written twice is there once, because its key is the worker and the time. So whoever is
not sure that a write happened repeats it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from exporter.core.errors import StoreError

Values = list[float | None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one worker in one region as columns of equal length, oldest first."""

    worker_id: str
    region: str
    info: Mapping[str, str]
    """Further labels of the worker, such as its name; for stores of Prometheus's series."""
    times: list[int]
    """Starts of the periods, in milliseconds since 1970."""
    numbers: Mapping[str, Values]
    """Of each of METRIC_FIELDS the values; utilizations in percent, None where there is none."""
    statuses: list[str | None]


class RefusedSamplesError(StoreError):
    """A store refuses samples for what they are: it would refuse them again. `reason` is one of FORWARD_REFUSALS."""

    def __init__(self, message: str, *, reason: str, samples: int | None = None) -> None:
        super().__init__(message, reason=reason)
        self.samples = samples
        """How many it refuses, and has all others; None: which ones it refuses is unknown, and it has perhaps none."""


class Store(Protocol):
    """A database that takes copies of samples.

    Raises, from every method:
        StoreUnavailableError: it does not answer, or says that it cannot answer now; whether a write happened is unknown.
        RefusedSamplesError: from `write`, see there.
        StoreError: it refuses; the message has its words and what to do.
    """

    settle_seconds: float
    """After how long an acknowledged write survives a crash of the store."""
    wants_labels: bool
    """Whether it stores the `info` of a batch."""

    @property
    def name(self) -> str:
        """What it is and where, without a password."""

    async def prepare(self) -> None:
        """Create what is missing: a database, a table."""

    async def ping(self) -> None:
        """Find out whether it answers and accepts user and password; changes nothing."""

    async def write(self, batches: Sequence[Batch]) -> None:
        """Write samples; when this returns, the store has acknowledged them."""

    async def run_id(self) -> str:
        """Return what changes when the store has restarted; always the same where `settle_seconds` is 0."""

    async def count(self, workers: Sequence[str], since: int, until: int) -> int:
        """Return how many samples of some workers it has in [since, until), UTC seconds, after all that was acknowledged."""

    async def close(self) -> None:
        """Release connections."""
