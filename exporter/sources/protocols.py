"""Protocols of the sources, as narrow as the pipeline needs them."""

from collections.abc import Sequence
from typing import Protocol

from exporter.core.model import Fleet, Listing, MetricQuery, MetricResults


class FleetSource(Protocol):
    """Reads the worker documents (the manager's aggregates)."""

    async def read(self) -> Fleet:
        """Return all workers, or raise SourceError."""


class ListingSource(Protocol):
    """Lists memory series; CloudWatch does."""

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        """List the memory series of a region, or raise SourceError."""


class MetricSource(ListingSource, Protocol):
    """Reads CPU and memory; CloudWatch does."""

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        """Return a result per query of one GetMetricData call, or raise SourceError."""
