"""Which account has an instance: the ListMetrics answers of all accounts of a region, each kept until its next one."""

import asyncio
from collections.abc import Callable, Sequence

from exporter.core.errors import SourceError
from exporter.core.model import Listing
from exporter.sources.cloudwatch.accounts import Access, combined
from exporter.sources.cloudwatch.api import CloudWatchApi
from exporter.sources.cloudwatch.errors import PartialListingError
from exporter.sources.cloudwatch.memory_series import LISTING_LAG_SECONDS, LISTING_TTL_SECONDS


class AccountDirectory:
    """The accounts of the instances of every region that has several, and their memory series.

    Args:
        api: makes the ListMetrics calls.
        note: called with region, access, and whether its ListMetrics answered.
        wall: UTC seconds of this host.
    """

    def __init__(self, api: CloudWatchApi, note: Callable[[str, Access, bool], object], wall: Callable[[], float]) -> None:
        self._api = api
        self._note = note
        self._wall = wall
        self._cpu: dict[tuple[str, Access], tuple[float, Listing]] = {}
        """When it was made, and the listing of CPU, which every instance has: it tells where an instance is."""
        self._memory: dict[tuple[str, bool, Access], Listing] = {}

    async def listing(self, region: str, accesses: Sequence[Access], *, recent: bool) -> Listing:
        """List the memory series of a region and the account of each instance, in all accounts at once.

        Raises:
            PartialListingError: some accounts did not answer.
            SourceError: no account has ever answered.
        """
        answers = await asyncio.gather(*(self._refresh(region, access, recent) for access in accesses), return_exceptions=True)
        errors: dict[str, SourceError] = {}
        for access, answer in zip(accesses, answers, strict=True):
            if isinstance(answer, SourceError):
                errors[access.account_id] = answer
            elif answer is not None:
                raise answer
            self._note(region, access, answer is None)
        found = {
            access: (self._cpu[region, access][1], self._memory[region, recent, access])
            for access in accesses
            if (region, access) in self._cpu and (region, recent, access) in self._memory
        }
        if not found:
            raise next(iter(errors.values()))
        listing = combined(found, accesses)
        if errors:
            raise PartialListingError(listing, errors)
        return listing

    async def _refresh(self, region: str, access: Access, recent: bool) -> None:
        made, _ = self._cpu.get((region, access), (0.0, None))
        if not 0 <= self._wall() - made < LISTING_TTL_SECONDS:
            listing = await self._api.list_metrics(region, access, "cpu", recent=False)
            self._cpu[region, access] = self._wall(), listing
        self._memory[region, recent, access] = await self._api.list_metrics(region, access, "memory", recent=recent)

    def coverage(self, region: str, accesses: Sequence[Access]) -> tuple[int, int]:
        """Return the UTC seconds between which an instance with a datapoint is certain to be listed; (0, 0) for none."""
        listings = [self._cpu[region, access][1] for access in accesses if (region, access) in self._cpu]
        if len(listings) < len(accesses):
            return 0, 0
        return max(each.since for each in listings), min(each.date for each in listings) - LISTING_LAG_SECONDS
