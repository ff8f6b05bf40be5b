"""The figures and the outcome of one collection cycle."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from exporter.core.budget import BudgetState
from exporter.core.errors import SourceError
from exporter.pipeline.decided_values import ValueChange


@dataclass(slots=True)
class CycleStats:
    """The figures of one collection cycle, for its log line."""

    workers: int = 0
    calls: int = 0
    datapoints: int = 0
    finalized: int = 0
    dropped: int = 0
    absent: int = 0
    failed: int = 0
    budget: BudgetState = "ok"
    changes: list[ValueChange] = field(default_factory=list)
    """The values that came or changed after they were decided."""


@dataclass(slots=True)
class Cycle:
    """One collection cycle under way: what it began with, and the result of each region."""

    now: int
    """MongoDB's time in UTC seconds."""
    began: float
    """UTC seconds of this host."""
    instance_types: Mapping[str, str | None]
    stats: CycleStats
    running: AbstractSet[str] = frozenset()
    """The ids of the workers that are polled in every cycle."""
    failures: dict[str, SourceError] = field(default_factory=dict)
    """The last error by region."""
    ended: dict[str, float] = field(default_factory=dict)
    """When the last call of a region ended, in UTC seconds of this host."""
