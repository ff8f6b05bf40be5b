"""The interfaces of the sources, as narrow as the pipeline needs them."""

from collections.abc import Sequence
from typing import Protocol

from exporter.core.model import (
    Fleet,
    Listing,
    MetricQuery,
    MetricResults,
)

# -- the sources, as narrow as they are needed -------------------------------------------------------------------------


class FleetSource(Protocol):
    """Where the aggregates come from."""

    async def read(self) -> Fleet:
        """Read all of them, or raise SourceError."""


class MetricSource(Protocol):
    """Where CPU and memory come from."""

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        """Ask one call's worth of queries, or raise SourceError."""

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        """List the memory series of a region, or raise SourceError."""
