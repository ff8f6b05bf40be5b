"""Find the memory series of each instance in ListMetrics results, and cache those results."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

from exporter.core.async_cache import AsyncCache
from exporter.core.model import Dimensions, Listing, MetricQuery
from exporter.core.periods import DAY, HOUR
from exporter.sources.cloudwatch.queries import instance_queries
from exporter.sources.protocols import ListingSource

LISTING_TTL_SECONDS = 600
"""Age up to which a ListMetrics result is used."""
LISTED_FOR_SECONDS = 14 * DAY
"""ListMetrics lists a metric until two weeks after its last datapoint."""
RECENTLY_ACTIVE_SECONDS = 3 * HOUR
"""The only value of RecentlyActive that AWS accepts, PT3H."""
_KNOWN_DIMENSIONS = frozenset({"InstanceId", "ImageId", "InstanceType", "AutoScalingGroupName"})
"""Dimensions that the CloudWatch agent appends by default."""


def memory_series(
    listing: Listing, worker_instance_id: str, instance_type: str | None, silent: Collection[Dimensions]
) -> tuple[Dimensions, ...]:
    """Return the dimension sets under which the agent of an instance most likely publishes memory now.

    Sets whose InstanceType is not another than the worker's come first, then those with the fewest unusual dimensions (more of
    them mean a part of the host), then those with the fewest dimensions. Sets that tie are all returned, in lexical order; the
    caller queries each and keeps the newest datapoint.

    Args:
        listing: a ListMetrics result.
        worker_instance_id: the worker's instance.
        instance_type: the worker's instance type, None when unknown.
        silent: sets without recent datapoints; used only if the instance has no others.
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
    """Return every dimension set that is listed for an instance, the most likely active ones first."""
    sets: dict[Dimensions, None] = {}
    for listing in listings:
        sets |= dict.fromkeys(memory_series(listing, instance_id, instance_type, silent))
        sets |= dict.fromkeys(listing.series.get(instance_id, ()))
    return tuple(sets)


class MemorySeriesIndex:
    """Cache of ListMetrics results by region, and the memory queries that follow from them.

    There is one in a process. It belongs to one event loop.

    Args:
        source: CloudWatch.
        monotonic: clock in seconds that measures the age of a listing.
    """

    def __init__(self, source: ListingSource, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._cache: AsyncCache[tuple[str, bool], Listing] = AsyncCache(monotonic=monotonic)
        self._newest: dict[tuple[str, bool], Listing] = {}
        self._silent: defaultdict[str, set[Dimensions]] = defaultdict(set)

    async def listing(self, region: str, *, recent: bool) -> Listing:
        """Return a listing at most LISTING_TTL_SECONDS old.

        Args:
            region: AWS region.
            recent: only series with a datapoint in the last 3 hours, else in the last 14 days.

        Raises:
            SourceError: CloudWatch does not answer; `listings` still returns the previous listing.
        """
        return await self._cache.get((region, recent), lambda: self._list(region, recent), LISTING_TTL_SECONDS)

    def listings(self, region: str) -> tuple[Listing, Listing]:
        """Return the newest listing of recent series and of all series, at any age; empty listings before the first."""
        return self._newest.get((region, True), Listing()), self._newest.get((region, False), Listing())

    def queries(
        self, region: str, instance_id: str, instance_type: str | None, *, thorough: bool = False
    ) -> tuple[MetricQuery, ...]:
        """Return the queries of an instance: its CPU, and its memory under the listed series.

        Args:
            region: AWS region of the instance.
            instance_id: the EC2 instance.
            instance_type: decides between several series; None when unknown.
            thorough: every listed series, else only the most likely active ones.
        """
        listings, silent = self.listings(region), self._silent[region]
        if thorough:
            return instance_queries(instance_id, all_memory_series(listings, instance_id, instance_type, silent))
        likely = (memory_series(each, instance_id, instance_type, silent) for each in listings)
        return instance_queries(instance_id, next(filter(None, likely), ()))

    def mark_silent(self, region: str, series: Dimensions) -> None:
        """Prefer other series of the instance until the next recent listing, because this one has no recent datapoints."""
        self._silent[region].add(series)

    async def _list(self, region: str, recent: bool) -> Listing:
        listing = self._newest[region, recent] = await self._source.list_memory(region, recent=recent)
        if recent:
            self._silent[region].clear()
        return listing
