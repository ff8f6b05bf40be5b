"""CloudWatch of every region and account: the queries of a call are divided among the accounts, and the answers joined.

Where a region has one account, which is nearly always, its calls go straight to `api`. Where it has several, by `aws.roles` or
`aws.linked_accounts`, ListMetrics tells which account has an instance. Each query goes to one account only, so no metric is
billed twice, and an account that fails makes only the results of its own queries fail.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from exporter.core.budget import Budget, ReaderBudget
from exporter.core.errors import ReaderBudgetError, SourceError
from exporter.core.model import Listing, MetricQuery, MetricResults
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch.accounts import Access, accesses, by_account, divided, merged, unlisted_results
from exporter.sources.cloudwatch.api import CloudWatchApi
from exporter.sources.cloudwatch.directory import AccountDirectory
from exporter.sources.cloudwatch.errors import is_refused
from exporter.sources.cloudwatch.malformed import MalformedInstances
from exporter.sources.cloudwatch.queries import check_limits

CALL_SECONDS = 60.0
"""Limit for a call with all its pages and retries."""


class CloudWatch:
    """CloudWatch, for one event loop."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        *,
        budget: Budget | None = None,
        wall: Callable[[], float] = time.time,
        deadline: float = CALL_SECONDS,
        rate: float = 25,
    ) -> None:
        """Prepare; the first call of a region opens its connections.

        Args:
            settings: endpoints, roles, and accounts.
            telemetry: counts every request.
            budget: daily budget of GetMetricData; unlimited by default.
            wall: this host's clock in UTC seconds, which CloudWatch's clock is compared with.
            deadline: seconds for a call with all its pages and retries; waiting for a place does not count.
            rate: requests per second, region and account, retries included.
        """
        self._settings = settings.aws
        self._telemetry = telemetry
        self._wall = wall
        self._api = CloudWatchApi(settings, telemetry, Budget(wall=wall) if budget is None else budget, wall, deadline, rate)
        self._malformed = MalformedInstances()
        self._directory = AccountDirectory(self._api, self._note_listing, wall)

    def accesses(self, region: str) -> tuple[Access, ...]:
        """Return the accesses of a region, at least one."""
        return accesses(self._settings, region)

    async def get_metric_data(
        self,
        region: str,
        queries: Sequence[MetricQuery],
        start: int,
        end: int,
        period: int,
        *,
        readers: ReaderBudget | None = None,
    ) -> MetricResults:
        """Return the statistic of each query in the periods of [start, end), from all pages.

        Args:
            region: AWS region of the instances.
            queries: 1 to 500, each once.
            start: UTC second, a multiple of `period`.
            end: UTC second, a multiple of `period`.
            period: seconds.
            readers: pays for a call on behalf of HTTP readers; None: the budget of the day does.

        Returns:
            A result for every query, which may be partial or failed, and CloudWatch's clock at the first page. The result of
            a malformed instance id is empty. What an account's failure leaves without a result is failed.

        Raises:
            RejectedQueryError: CloudWatch refuses the content for another reason than a malformed instance id.
            ReaderBudgetError: `readers` does not pay for the call.
            SourceError: there is no answer from any account.
            ValueError: the queries exceed the limits of one call.
        """
        check_limits(queries, start, end, period)
        access, *others = self.accesses(region)
        if not others and not access.linked:
            return await self._query(region, access, queries, start, end, period, readers)
        return await self._query_accounts(region, queries, start, end, period, readers)

    async def _query(
        self,
        region: str,
        access: Access,
        queries: Sequence[MetricQuery],
        start: int,
        end: int,
        period: int,
        readers: ReaderBudget | None,
    ) -> MetricResults:
        async def call(some: Sequence[MetricQuery]) -> MetricResults:
            return await self._api.get_metric_data(region, access, some, start, end, period, readers)

        return await self._malformed.query(call, queries, start, end, int(self._wall()))

    async def _query_accounts(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int, readers: ReaderBudget | None
    ) -> MetricResults:
        """Send each query to the account that has its instance, all accounts at once."""
        ways = self.accesses(region)
        since, until = self._directory.coverage(region, ways)
        groups, unlisted = divided(queries, ways, known=since <= start)
        parts: list[MetricResults] = []
        failed: list[tuple[Sequence[MetricQuery], SourceError]] = []
        if unlisted:
            parts.append(MetricResults(until, unlisted_results(unlisted, since, until, start, end)))

        async def query(access: Access, some: Sequence[MetricQuery]) -> None:
            names = {each.account or access.account_id for each in some}
            try:
                answer = await self._query(region, access, some, start, end, period, readers)
            except ReaderBudgetError as error:  # says nothing about the account
                failed.insert(0, (some, error))
            except SourceError as error:
                if len(names) > 1 and is_refused(error):  # perhaps for one source account, which is no longer linked
                    await asyncio.gather(*(query(access, part) for part in by_account(some)))
                    return
                failed.append((some, error))
                self._telemetry.accounts_answered(region, names, access.name, "GetMetricData", ok=False)
            else:
                parts.append(answer)
                self._telemetry.accounts_answered(region, names, access.name, "GetMetricData", ok=True)

        await asyncio.gather(*(query(access, some) for access, some in groups))
        if not parts or (failed and isinstance(failed[0][1], ReaderBudgetError)):
            raise failed[0][1]
        return merged(parts, failed, start, end)

    def _note_listing(self, region: str, access: Access, metric: str, ok: bool) -> None:  # a callback
        if access.account_id:
            self._telemetry.accounts_answered(region, [access.account_id], access.name, f"ListMetrics {metric}", ok=ok)

    @property
    def malformed(self) -> frozenset[str]:
        """Instance ids that CloudWatch has refused; they are no longer sent."""
        return self._malformed.known

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        """List the memory series of all instances of a region; see `list_metric`."""
        return await self.list_metric(region, "memory", recent=recent)

    async def list_metric(self, region: str, metric: str, *, recent: bool) -> Listing:
        """List the series of a metric of all instances of a region and their accounts, from all pages.

        Args:
            region: AWS region.
            metric: as in MetricQuery.
            recent: only series with a datapoint in the last 3 hours, else in the last 14 days.

        Raises:
            PartialListingError: some of several accounts did not answer.
            SourceError: there is no complete answer.
        """
        access, *others = self.accesses(region)
        if others or access.linked:
            return await self._directory.listing(region, (access, *others), metric, recent=recent)
        listing = await self._api.list_metrics(region, access, metric, recent=recent)
        return replace(listing, accounts={}, account=access.account_id)

    async def identity(self, region: str, access: Access) -> str:
        """Return the ARN of the identity that queries CloudWatch in a region.

        Args:
            region: AWS region.
            access: one of `accesses`.

        Raises:
            SourceError: the credentials are missing or refused.
        """
        return await self._api.identity(region, access)

    async def close(self) -> None:
        """Close all connections and abandon the calls that still run."""
        await self._api.close()
