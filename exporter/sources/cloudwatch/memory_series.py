"""Find the memory metric of each instance in ListMetrics answers."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from exporter.core.async_cache import AsyncCache
from exporter.core.model import Dimensions, Listing, MetricQuery
from exporter.core.periods import DAY, HOUR
from exporter.sources.cloudwatch.queries import instance_queries

LISTING_TTL_SECONDS = 600
"""How long a ListMetrics result is used."""


LISTED_FOR_SECONDS = 14 * DAY
"""ListMetrics forgets a metric two weeks after its last datapoint."""
RECENTLY_ACTIVE_SECONDS = 3 * HOUR
"""The only RecentlyActive there is, PT3H."""
_KNOWN_DIMENSIONS = frozenset({"InstanceId", "ImageId", "InstanceType", "AutoScalingGroupName"})


def memory_series(
    listing: Listing, worker_instance_id: str, instance_type: str | None, silent: Collection[Dimensions]
) -> tuple[Dimensions, ...]:
    """Choose the dimension sets under which the agent of an instance most likely publishes its memory now.

    Best is the set whose InstanceType is not another than the worker's, then the one with the fewest dimensions that are not
    the agent's usual ones (more of them mean a part of the host), then the one with the fewest. Sets that tie are all returned,
    in lexical order: ask each, keep the newest.

    Args:
        listing: what ListMetrics listed.
        worker_instance_id: the worker's instance.
        instance_type: the worker's, None when unknown.
        silent: sets known to have nothing new; passed over while the instance has others.
    """
    listed = listing.series.get(worker_instance_id, ())
    candidates = [dimensions for dimensions in listed if dimensions not in silent] or list(listed)

    def rank(dimensions: Dimensions) -> tuple[bool, int, int]:
        stated = dict(dimensions).get("InstanceType")
        mismatch = None not in (instance_type, stated) and stated != instance_type
        return mismatch, sum(name not in _KNOWN_DIMENSIONS for name, _ in dimensions), len(dimensions)

    best = min(map(rank, candidates), default=None)
    return tuple(sorted(dimensions for dimensions in candidates if rank(dimensions) == best))


def all_memory_series(
    listings: Iterable[Listing], instance_id: str, instance_type: str | None, silent: Collection[Dimensions] = ()
) -> tuple[Dimensions, ...]:
    """Return every dimension set that is listed for an instance, those that most likely are alive first."""
    sets: dict[Dimensions, None] = {}
    for listing in listings:
        sets |= dict.fromkeys(memory_series(listing, instance_id, instance_type, silent))
        sets |= dict.fromkeys(listing.series.get(instance_id, ()))
    return tuple(sets)


class ListingSource(Protocol):
    """Where listings come from."""

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        """List the memory series of a region, or raise SourceError."""


class MemorySeriesIndex:
    """ListMetrics results by region and the memory series they hold; the one cache of them in a process.

    Belongs to one event loop.

    Args:
        source: CloudWatch.
        monotonic: seconds, for the age of a listing.
    """

    def __init__(self, source: ListingSource, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._cache: AsyncCache[tuple[str, bool], Listing] = AsyncCache(monotonic=monotonic)
        self._newest: dict[tuple[str, bool], Listing] = {}
        self._silent: defaultdict[str, set[Dimensions]] = defaultdict(set)

    async def listing(self, region: str, *, recent: bool) -> Listing:
        """Return a listing at most LISTING_TTL_SECONDS old.

        Args:
            region: which.
            recent: only series with a datapoint in the last 3 hours, else in the last 14 days.

        Raises:
            SourceError: CloudWatch does not answer; `listings` still has the one before.
        """
        return await self._cache.get((region, recent), lambda: self._list(region, recent), LISTING_TTL_SECONDS)

    def listings(self, region: str) -> tuple[Listing, Listing]:
        """Return the newest listing of recent series and the newest of all, whatever their age; empty ones before the first."""
        return self._newest.get((region, True), Listing()), self._newest.get((region, False), Listing())

    def queries(
        self, region: str, instance_id: str, instance_type: str | None, *, thorough: bool = False
    ) -> tuple[MetricQuery, ...]:
        """Return the queries of an instance: CPU, and its memory as listed.

        Args:
            region: where the instance runs.
            instance_id: which.
            instance_type: decides between several series; None when unknown.
            thorough: every listed series, else only those most likely to be alive.
        """
        listings, silent = self.listings(region), self._silent[region]
        if thorough:
            return instance_queries(instance_id, all_memory_series(listings, instance_id, instance_type, silent))
        likely = (memory_series(each, instance_id, instance_type, silent) for each in listings)
        return instance_queries(instance_id, next(filter(None, likely), ()))

    def mark_silent(self, region: str, series: Dimensions) -> None:
        """Prefer another series of the instance until the next listing: this one had no datapoint in the last periods."""
        self._silent[region].add(series)

    async def _list(self, region: str, recent: bool) -> Listing:
        listing = self._newest[region, recent] = await self._source.list_memory(region, recent=recent)
        if recent:
            self._silent[region].clear()
        return listing
