"""Query CloudWatch, and STS for the identity: every call in a thread, with a deadline, a rate limit and the budget.

boto's calls block, so each runs in a thread of its own, at most 16 at once in a region: a region that hangs delays no other.

Limits (https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/cloudwatch_limits.html): 500 queries and 100,800
datapoints a call, 50 GetMetricData and 25 ListMetrics requests a second and region.

Billing (https://aws.amazon.com/cloudwatch/pricing/): 0.01 dollars per 1,000 metrics requested using GetMetricData. AWS does not
document whether pages and retries are billed. Each further page repeats all queries, so the exporter counts all queries of
every request that was answered with 200, also of pages and of bodies that arrived truncated. It does not count requests that
were refused (throttled, denied, invalid) or not answered. The estimate is therefore rather too high than too low; the fake
CloudWatch of the tests counts the same way.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from exporter.core.budget import Budget, ReaderBudget
from exporter.core.clock import check_skew
from exporter.core.errors import SourceError
from exporter.core.model import Listing, MetricQuery, MetricResults
from exporter.core.periods import to_datetime, to_seconds
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch.accounts import UNNAMED_ACCOUNT, Access
from exporter.sources.cloudwatch.answers import RESULT_KEYS, Malformed
from exporter.sources.cloudwatch.errors import (
    FOREIGN_ERRORS,
    DeadlinePassedError,
    QueriesNotInsertedError,
    are_credentials_stale,
    error_code,
    is_unparsable,
    translate,
)
from exporter.sources.cloudwatch.memory_series import LISTED_FOR_SECONDS, RECENTLY_ACTIVE_SECONDS
from exporter.sources.cloudwatch.queries import (
    build_queries,
    cloudwatch_metrics,
    merge_pages,
    owners,
    queries_as_json,
    series_by_instance,
)
from exporter.sources.cloudwatch.sessions import ClientFactory
from exporter.sources.cloudwatch.transport import (
    ATTEMPTS,
    CallContext,
    RegionState,
    RequestHooks,
    TokenBucket,
    run_in_thread,
)

T = TypeVar("T")

if TYPE_CHECKING:
    from types_boto3_cloudwatch import CloudWatchClient
    from types_boto3_sts import STSClient


class CloudWatchApi:
    """The calls to the accounts of every region, for one event loop.

    At most 16 calls run at once in a region and account. Further calls wait in the order they came, so live queries, which come
    before gap filling, are answered first. A call that misses its deadline is abandoned: its place is free at once, its thread
    ends at its next byte, request or read timeout.

    Args:
        settings: endpoints.
        telemetry: counts every request.
        budget: daily budget of GetMetricData.
        wall: this host's clock in UTC seconds, which CloudWatch's clock is compared with.
        deadline: seconds for a call with all its pages and retries; waiting for a place does not count.
        rate: requests per second, region and account, retries included.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        budget: Budget,
        wall: Callable[[], float],
        deadline: float,
        rate: float,
    ) -> None:
        self._telemetry = telemetry
        self._metrics = cloudwatch_metrics(settings.cloudwatch)
        self._wall = wall
        self._deadline = deadline
        self._rate = rate
        self._states: dict[tuple[str, Access], RegionState] = {}
        self._call = CallContext()
        self._clients = ClientFactory(
            settings, lambda client, state: RequestHooks(client, state, self._call, self._telemetry, budget)
        )

    async def get_metric_data(
        self,
        region: str,
        access: Access,
        queries: Sequence[MetricQuery],
        start: int,
        end: int,
        period: int,
        readers: ReaderBudget | None = None,
    ) -> MetricResults:
        """Make one GetMetricData call and merge its pages; the arguments are those of `CloudWatch.get_metric_data`.

        Raises:
            RejectedQueryError: CloudWatch refuses the content.
            ReaderBudgetError: `readers` does not pay for the call.
            SourceError: there is no answer.
        """

        def call(state: RegionState) -> MetricResults:
            try:
                self._call.query_list = queries_as_json(queries, period, self._metrics, linked=access.linked)
                date, pages = self._metric_data_pages(state, [], start, end)
            except QueriesNotInsertedError:
                self._call.query_list = b""
                built = build_queries(queries, period, self._metrics, linked=access.linked)
                date, pages = self._metric_data_pages(state, built, start, end)
            malformed = Malformed()
            by_query = merge_pages(queries, _consumed(pages), start, end, period, self._metrics, malformed)
            self._telemetry.parts_were_malformed(region, malformed)
            return MetricResults(date, by_query)

        return await self._run(region, access, "GetMetricData", call, len(queries), readers)

    async def list_metrics(self, region: str, access: Access, metric: str, *, recent: bool) -> Listing:
        """List the series of a metric and the accounts of their instances, from all pages.

        Args:
            region: AWS region.
            access: the accounts.
            metric: as in MetricQuery; CPU is one that every running instance has.
            recent: only series with a datapoint in the last 3 hours, else in the last 14 days.

        Raises:
            SourceError: there is no complete answer.
        """

        def call(state: RegionState) -> Listing:
            client: CloudWatchClient = self._clients.client(state, "cloudwatch")
            listed = self._metrics[metric]
            only: dict[str, object] = {"RecentlyActive": "PT3H"} if recent else {}
            if access.linked:
                only["IncludeLinkedAccounts"] = True
            if listed.further:
                only["Dimensions"] = [{"Name": name, "Value": value} for name, value in listed.further]
            date, pages = self._pages(
                state, client.list_metrics, "ListMetrics", Namespace=listed.namespace, MetricName=listed.name, **only
            )
            malformed, key = Malformed(), RESULT_KEYS["ListMetrics"]
            series = series_by_instance((each for page in pages for each in page[key]), listed, malformed)
            accounts = dict.fromkeys(series, access.account_id)
            if access.linked:
                owned = ((page[key], page.get("OwningAccounts", ())) for page in pages)
                accounts = dict.fromkeys(series, UNNAMED_ACCOUNT) | owners(owned, listed, malformed)
            self._telemetry.parts_were_malformed(region, malformed)
            since = date - (RECENTLY_ACTIVE_SECONDS if recent else LISTED_FOR_SECONDS)
            return Listing(date, since, series, accounts)

        return await self._run(region, access, "ListMetrics", call)

    async def identity(self, region: str, access: Access) -> str:
        """Return the ARN of the identity that queries CloudWatch in a region.

        Raises:
            SourceError: the credentials are missing or refused.
        """

        def call(state: RegionState) -> str:
            client: STSClient = self._clients.client(state, "sts")
            return str(client.get_caller_identity()["Arn"])

        return await self._run(region, access, "GetCallerIdentity", call)

    async def close(self) -> None:
        """Close all connections and abandon the calls that still run."""
        for state in self._states.values():
            state.forget()

    def _state(self, region: str, access: Access) -> RegionState:
        state = self._states.get((region, access))
        if state is None:
            state = self._states[region, access] = RegionState(region, TokenBucket(self._rate), access.role, access.name)
            self._telemetry.region_is_known(region, RESULT_KEYS)
        return state

    async def _run(
        self,
        region: str,
        access: Access,
        operation: str,
        call: Callable[[RegionState], T],
        queries: int = 0,
        readers: ReaderBudget | None = None,
    ) -> T:
        state = self._state(region, access)

        def work() -> T:
            self._call.until = time.monotonic() + self._deadline
            self._call.queries, self._call.readers = queries, readers
            return call(state)

        async with state.slots:
            try:
                async with asyncio.timeout(self._deadline):
                    return await run_in_thread(work, f"cloudwatch-{region}")
            except TimeoutError as error:
                raise translate(DeadlinePassedError(), region, operation, state.account) from error
            except FOREIGN_ERRORS as error:
                if is_unparsable(error):
                    self._telemetry.request_failures.labels(operation, region, error_code(error)).inc()
                translated = translate(error, region, operation, state.account)
                if are_credentials_stale(translated):
                    state.forget()
                raise translated from error

    def _metric_data_pages(
        self, state: RegionState, queries: list[dict[str, Any]], start: int, end: int
    ) -> tuple[int, list[dict[str, Any]]]:
        """Return the pages of GetMetricData for these queries, or, with none, for those that `RequestHooks` inserts."""
        client: CloudWatchClient = self._clients.client(state, "cloudwatch")
        return self._pages(
            state,
            client.get_metric_data,
            "GetMetricData",
            MetricDataQueries=queries,
            StartTime=to_datetime(start),
            EndTime=to_datetime(end),
            ScanBy="TimestampAscending",
        )

    def _pages(
        self, state: RegionState, call: Callable[..., Any], operation: str, **arguments: object
    ) -> tuple[int, list[dict[str, Any]]]:
        """Return CloudWatch's clock at the first page, and all pages."""
        date, pages = 0, []
        while True:
            began = self._wall()
            page = call(**arguments)
            if RESULT_KEYS[operation] not in page:
                raise SourceError(
                    "cloudwatch",
                    "IncompleteBody",
                    f"CloudWatch in {state.region}: the answer to {operation} was empty or cut in all {ATTEMPTS} attempts; "
                    "the exporter tries again in the next cycle, check proxies if this continues",
                    region=state.region,
                )
            date = date or self._date(state.region, page["ResponseMetadata"]["HTTPHeaders"], began)
            pages.append(page)
            if not page.get("NextToken"):
                return date, pages
            if page["NextToken"] == arguments.get("NextToken"):  # each repetition would be billed, until the deadline
                raise SourceError(
                    "cloudwatch",
                    "RepeatedPage",
                    f"CloudWatch in {state.region}: {operation} sent the same page twice; the exporter tries again in the next "
                    "cycle, check cloudwatch.endpoint_url and proxies if this continues",
                    region=state.region,
                )
            arguments["NextToken"] = page["NextToken"]

    def _date(self, region: str, headers: Mapping[str, str], began: float) -> int:
        ended = self._wall()
        try:
            date = to_seconds(parsedate_to_datetime(headers.get("date", "")))
        except ValueError as error:
            raise SourceError(
                "cloudwatch",
                "NoDate",
                f"CloudWatch in {region}: the answer has no readable Date header, so the age of its values is unknown; "
                "check cloudwatch.endpoint_url and proxies",
                region=region,
            ) from error
        check_skew("cloudwatch", date, began, ended, region=region)
        return date


def _consumed(pages: Sequence[dict[str, Any]]) -> Iterator[Iterator[Any]]:
    """Yield the results of each page of GetMetricData and drop each once it is used: a full answer is many megabytes."""
    for page in pages:
        results = page.pop(RESULT_KEYS["GetMetricData"])
        results.reverse()
        yield (results.pop() for _ in range(len(results)))
