"""Choose the memory series of each instance, and cache the ListMetrics results they are chosen from.

The agent of an instance may publish memory under several dimension sets. One rule decides which of them counts, for the gauges,
the history, and `/resources` alike. It depends only on what CloudWatch has, not on the order of answers or on earlier cycles:

1. `ranked` puts the listed sets in one order, the same for every consumer.
2. `series_to_query` says how far down that order a query must go.
3. `series_value` takes the datapoint of the first set in that order that has one. A set counts only where every set before it
   is certain to have no datapoint: it had none in the last periods either, or the period is so old that none comes any more.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

from exporter.core.async_cache import AsyncCache
from exporter.core.model import Dimensions, Listing, MetricQuery, MetricResult, MetricResults
from exporter.core.periods import DAY, HOUR, align
from exporter.sources.cloudwatch.errors import PartialListingError
from exporter.sources.cloudwatch.queries import instance_queries
from exporter.sources.protocols import ListingSource

LISTING_TTL_SECONDS = 600
"""Age up to which a ListMetrics result is used."""
LISTING_LAG_SECONDS = 1200
"""ListMetrics shows a new metric up to 15 minutes late; 5 more for the difference between clocks."""
LISTED_FOR_SECONDS = 14 * DAY
"""ListMetrics lists a metric until two weeks after its last datapoint."""
RECENTLY_ACTIVE_SECONDS = 3 * HOUR
"""The only value of RecentlyActive that AWS accepts, PT3H."""
SILENT_PERIODS = 3
"""A series is silent in a period if it has no datapoint in it, nor in this many before it."""
_KNOWN_DIMENSIONS = frozenset({"InstanceId", "ImageId", "InstanceType", "AutoScalingGroupName"})
"""Dimensions that the CloudWatch agent appends by default."""
_UNLISTED = Listing()
"""Stands for a listing before the first."""


# -- the rule ----------------------------------------------------------------------------------------------------------


def ranked(sets: Iterable[Dimensions], instance_type: str | None) -> tuple[Dimensions, ...]:
    """Return the dimension sets of one instance, each once, the most likely one first.

    Sets whose InstanceType is not another than the worker's come first, then those with the fewest unusual dimensions (more of
    them mean a part of the host), then those with the fewest dimensions, then the lexically first. CloudWatch does not
    distinguish the order of dimensions, so neither does this.

    Args:
        sets: as listed, in any order.
        instance_type: the worker's instance type, None when unknown.
    """

    def rank(dimensions: Dimensions) -> tuple[bool, int, int, Dimensions]:
        stated = dict(dimensions).get("InstanceType")
        mismatch = None not in (instance_type, stated) and stated != instance_type
        return mismatch, sum(name not in _KNOWN_DIMENSIONS for name, _ in dimensions), len(dimensions), _key(dimensions)

    return tuple(sorted({_key(dimensions): dimensions for dimensions in sets}.values(), key=rank))


def series_to_query(candidates: Sequence[Dimensions], active: Collection[Dimensions]) -> tuple[Dimensions, ...]:
    """Return the first series that is known to be active and those before it; each further one would be billed in vain.

    Args:
        candidates: of one instance, as `ranked` returns them.
        active: the series of the region that have published lately.
    """
    for number, dimensions in enumerate(candidates, 1):
        if dimensions in active:
            return tuple(candidates[:number])
    return tuple(candidates)


def series_value(results: Iterable[MetricResult], start: int, *, date: int, period: int) -> float | None:
    """Return the value in percent of one period, None if no series has one that counts.

    What counts once does so in every later answer, whatever the other series publish then: so each consumer, and an exporter
    that has just started, finds the same value.

    Args:
        results: of one metric of one instance, its series in the order of `ranked`.
        start: of the period, in UTC seconds.
        date: CloudWatch's clock at the answer, in UTC seconds.
        period: seconds.
    """
    for result in results:
        value = result.values.get(start)
        if value is not None:  # nearly always that of the first
            return value
        is_old = start < align(date, period) - (SILENT_PERIODS + 1) * period
        if not result.complete or not (is_old or _is_silent(result, start, period)):
            return None
    return None


def series_values(results: Iterable[MetricResult], *, date: int, period: int) -> dict[int, float]:
    """Return period start → percent, oldest first, of all periods that have a `series_value`; the arguments are the same."""
    results = tuple(results)
    values = {
        start: series_value(results, start, date=date, period=period)
        for start in sorted({start for result in results for start in result.values})
    }
    return {start: value for start, value in values.items() if value is not None}


def has_published(result: MetricResult, date: int, period: int) -> bool:
    """Return whether a complete result shows that its series has published lately; `date` is CloudWatch's clock then."""
    last = align(date, period) - period
    # The datapoint of the last period may not be published yet.
    values = result.values
    return (
        result.complete and result.end > last and (last in values or last - period in values or max(values, default=0) > last)
    )


def _is_silent(result: MetricResult, start: int, period: int) -> bool:
    """Return whether a series has no datapoint in the period at `start`, nor in the SILENT_PERIODS before it."""
    first = start - SILENT_PERIODS * period
    return result.start <= first and not any(at in result.values for at in range(first, start + 1, period))


def _key(dimensions: Dimensions) -> Dimensions:
    """Return a dimension set as CloudWatch compares it: in any order."""
    return tuple(sorted(dimensions))


# -- the listings ------------------------------------------------------------------------------------------------------


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
        self._suggested: dict[str, str] = {}
        self._active: defaultdict[str, set[Dimensions]] = defaultdict(set)
        self._usual: dict[tuple[str, str, str | None, bool, bool], tuple[MetricQuery, ...]] = {}
        """Instance, what else its queries follow from → queries that do not depend on what is active; empty after a listing."""

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
        return self._newest.get((region, True), _UNLISTED), self._newest.get((region, False), _UNLISTED)

    def account_of(self, region: str, instance_id: str) -> str | None:
        """Return the account of an instance as far as it was listed or suggested; else as `MetricQuery.account`."""
        recent, every = self.listings(region)
        listed = recent.account_of(instance_id) or every.account_of(instance_id)
        return listed or self._suggested.get(instance_id, recent.account)

    def suggest_account(self, instance_id: str, account: str) -> None:
        """Remember the account of an instance that the inventory knows: ListMetrics forgets it after two weeks."""
        if self._suggested.get(instance_id) != account:
            self._suggested[instance_id] = account
            self._usual.clear()

    def queries(
        self, region: str, instance_id: str, instance_type: str | None, *, since: int | None = None
    ) -> tuple[MetricQuery, ...]:
        """Return the queries of an instance: its CPU, and its memory under the listed series, in the order of `ranked`.

        Args:
            region: AWS region of the instance.
            instance_id: the EC2 instance.
            instance_type: decides between several series; None when unknown.
            since: every series that may have a datapoint from this UTC second on; None: only those that may count now.
        """
        recent, every = self.listings(region)
        is_covered = since is not None and recent.date >= 0 and recent.since <= since
        key = region, instance_id, instance_type, since is None, is_covered
        if key in self._usual:
            return self._usual[key]
        account = self.account_of(region, instance_id)
        recent_sets, all_sets = (listing.series.get(instance_id, ()) for listing in (recent, every))
        if since is not None:
            candidates = queried = ranked(recent_sets if is_covered else recent_sets + all_sets, instance_type)
        else:
            # Silent for hours: it may come back.
            candidates = ranked(recent_sets, instance_type) if recent_sets else ranked(all_sets, instance_type)[:1]
            queried = series_to_query(candidates, self._active[region])
        queries = instance_queries(instance_id, queried, account)
        if since is not None or len(candidates) < 2:
            self._usual[key] = queries
        return queries

    def note_activity(self, region: str, results: MetricResults, period: int) -> None:
        """Remember which memory series have published lately, until `forget_activity`.

        Args:
            region: AWS region of the results.
            results: of one call.
            period: of the queries, in seconds.
        """
        active = self._active[region]
        for query, result in results.by_query.items():
            if query.metric == "memory" and has_published(result, results.date_of(query), period):
                active.add(query.dimensions)

    def forget_activity(self) -> None:
        """Forget which memory series have published: the next results must show it again, else it is not known."""
        self._active.clear()

    async def _list(self, region: str, recent: bool) -> Listing:
        try:
            listing = await self._source.list_memory(region, recent=recent)
        except PartialListingError as error:  # raised all the same, so that the accounts that failed are soon asked again
            self._newest[region, recent] = error.listing
            raise
        finally:
            self._usual.clear()
        self._newest[region, recent] = listing
        return listing
