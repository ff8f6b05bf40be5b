"""Which account has an instance: the ListMetrics answers of all accounts of a region, each kept until its next one."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from exporter.core.errors import SourceError
from exporter.core.model import Listing
from exporter.sources.cloudwatch.accounts import UNNAMED_ACCOUNT, Access, combined
from exporter.sources.cloudwatch.api import CloudWatchApi
from exporter.sources.cloudwatch.errors import PartialListingError
from exporter.sources.cloudwatch.memory_series import LISTING_LAG_SECONDS, LISTING_TTL_SECONDS

RELIST_SECONDS = 60
"""How long an account that answered is not asked again while another one fails: HTTP readers would repeat it at will."""


class AccountDirectory:
    """The accounts of the instances of every region that has several, and their series.

    Args:
        api: makes the ListMetrics calls.
        note: called with region, access, metric, and whether its ListMetrics answered.
        wall: UTC seconds of this host.
    """

    def __init__(self, api: CloudWatchApi, note: Callable[[str, Access, str, bool], object], wall: Callable[[], float]) -> None:
        self._api = api
        self._note = note
        self._wall = wall
        self._cpu: dict[tuple[str, Access], tuple[float, Listing]] = {}
        """When it was made, and the listing of CPU, which every instance has: it tells where an instance is."""
        self._series: dict[tuple[str, str, bool, Access], tuple[float, Listing]] = {}

    async def listing(self, region: str, accesses: Sequence[Access], metric: str, *, recent: bool) -> Listing:
        """List the series of a metric in a region and the account of each instance, in all accounts at once.

        Args:
            region: AWS region.
            accesses: of the region.
            metric: as in MetricQuery. Only with that of memory are the instances without it looked up, too.
            recent: only series with a datapoint in the last 3 hours, else in the last 14 days.

        Raises:
            PartialListingError: some accounts did not answer.
            SourceError: no account has ever answered.
        """
        refreshes = (self._refresh(region, access, metric, recent) for access in accesses)
        answers = await asyncio.gather(*refreshes, return_exceptions=True)
        errors: dict[str, SourceError] = {}
        for access, answer in zip(accesses, answers, strict=True):
            if isinstance(answer, SourceError):
                errors[access.account_id] = answer
            elif answer is not None:
                raise answer
            self._note(region, access, metric, answer is None)
        found = {
            access: (self._cpu.get((region, access), (0.0, Listing()))[1], self._series[region, metric, recent, access][1])
            for access in accesses
            if (metric != "memory" or (region, access) in self._cpu) and (region, metric, recent, access) in self._series
        }
        if not found:
            raise next(iter(errors.values()))
        listing = combined(found, accesses)
        if errors:
            raise PartialListingError(listing, errors)
        return listing

    async def _refresh(self, region: str, access: Access, metric: str, recent: bool) -> None:
        made, before = self._cpu.get((region, access), (0.0, Listing()))
        if metric == "memory" and not 0 <= self._wall() - made < LISTING_TTL_SECONDS:
            listing = await self._api.list_metrics(region, access, "cpu", recent=False)
            # An instance never changes its account, so one whose owner is malformed this time stays where it was.
            owner_of = {
                instance: before.accounts.get(instance, account) if account == UNNAMED_ACCOUNT else account
                for instance, account in listing.accounts.items()
            }
            self._cpu[region, access] = self._wall(), replace(listing, accounts=owner_of)
        key = region, metric, recent, access
        if key in self._series and 0 <= self._wall() - self._series[key][0] < RELIST_SECONDS:
            return  # another account failed, and this one is asked again with it
        listing = await self._api.list_metrics(region, access, metric, recent=recent)
        self._series[key] = self._wall(), listing

    def coverage(self, region: str, accesses: Sequence[Access]) -> tuple[int, int]:
        """Return the UTC seconds between which an instance with a datapoint is certain to be listed; (0, 0) for none."""
        listings = [self._cpu[region, access][1] for access in accesses if (region, access) in self._cpu]
        if len(listings) < len(accesses):
            return 0, 0
        return max(each.since for each in listings), min(each.date for each in listings) - LISTING_LAG_SECONDS
