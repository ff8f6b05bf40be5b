"""The series of the further metrics of `cloudwatch.extra`: which dimension sets of an instance are queried."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence

from exporter.core.async_cache import AsyncCache
from exporter.core.errors import SourceError
from exporter.core.metric_settings import CloudWatchGauge
from exporter.core.model import Dimensions, Listing, MetricQuery, MetricResults
from exporter.sources.cloudwatch.errors import PartialListingError
from exporter.sources.cloudwatch.memory_series import LISTING_TTL_SECONDS, has_published, ranked, series_to_query

ListMetric = Callable[[str, str], Awaitable[Listing]]
"""Region, name of a gauge → its series with a datapoint in the last 3 hours; raises SourceError."""


class ExtraSeries:
    """Cache of ListMetrics results by region and gauge, and the queries that follow from them, by the rule of memory series.

    It belongs to one event loop.

    Args:
        gauges: the metrics of `cloudwatch.extra`.
        list_metric: calls ListMetrics.
        account_of: (region, instance) → its account, as in MetricQuery; by default there is only one.
        monotonic: clock in seconds that measures the age of a listing.
    """

    def __init__(
        self,
        gauges: Sequence[CloudWatchGauge],
        list_metric: ListMetric,
        *,
        account_of: Callable[[str, str], str | None] = lambda region, instance: "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.gauges = tuple(gauges)
        self._list_metric = list_metric
        self._account_of = account_of
        self._cache: AsyncCache[tuple[str, str], Listing] = AsyncCache(monotonic=monotonic)
        self._newest: dict[tuple[str, str], Listing] = {}
        self._active: defaultdict[tuple[str, str], set[Dimensions]] = defaultdict(set)

    @property
    def listings(self) -> Collection[Listing]:
        """The newest listing of each region and gauge."""
        return self._newest.values()

    async def refresh(self, region: str) -> None:
        """List every metric of a region that is not listed at most LISTING_TTL_SECONDS ago; an old listing stays in use.

        Raises:
            PartialListingError: some of several accounts did not answer.
            SourceError: CloudWatch does not answer; the other metrics are listed all the same.
        """

        async def refresh_one(name: str) -> None:
            async def load() -> Listing:
                return await self._list_metric(region, name)

            try:
                self._newest[region, name] = await self._cache.get((region, name), load, LISTING_TTL_SECONDS)
            except PartialListingError as error:  # raised all the same, so that the accounts that failed are soon asked again
                self._newest[region, name] = error.listing
                raise

        names = [gauge.name for gauge in self.gauges if gauge.listed]
        for result in await asyncio.gather(*map(refresh_one, names), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def queries(
        self, region: str, instance_id: str, instance_type: str | None, *, most_likely: bool = False
    ) -> tuple[MetricQuery, ...]:
        """Return the queries of an instance for all gauges; of several series those that may count now.

        Args:
            region: AWS region of the instance.
            instance_id: the EC2 instance.
            instance_type: decides between several series; None when unknown.
            most_likely: only the first series of each gauge, which is what a cycle queries when it has settled.
        """
        found: list[MetricQuery] = []
        account = self._account_of(region, instance_id)
        for gauge in self.gauges:
            sets: tuple[Dimensions, ...] = (((gauge.dimension, instance_id),),)
            if gauge.listed:
                listing = self._newest.get((region, gauge.name), Listing())
                sets = ranked(listing.series.get(instance_id, ()), instance_type)
                sets = sets[:1] if most_likely else series_to_query(sets, self._active[region, gauge.name])
            found += (MetricQuery(instance_id, gauge.name, dimensions, account) for dimensions in sets)
        return tuple(found)

    def note_activity(self, region: str, results: MetricResults, period: int) -> None:
        """Remember which series have published lately, until `forget_activity`; as `MemorySeriesIndex.note_activity`."""
        for query, result in results.by_query.items():
            if has_published(result, results.date_of(query), period):
                self._active[region, query.metric].add(query.dimensions)

    def forget_activity(self) -> None:
        """Forget which series have published: the next results must show it again, else it is not known."""
        self._active.clear()

    def assumed(self, instance_id: str) -> tuple[MetricQuery, ...]:
        """Return one query per gauge, as if the instance published each; for an estimate where nothing can be listed."""
        return tuple(MetricQuery(instance_id, gauge.name, ((gauge.dimension, instance_id),)) for gauge in self.gauges)


async def refreshed(series: ExtraSeries, region: str) -> SourceError | None:
    """List every metric of a region; return the error instead of raising it."""
    try:
        await series.refresh(region)
    except SourceError as error:
        return error
    return None
