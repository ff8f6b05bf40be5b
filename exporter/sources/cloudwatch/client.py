"""CloudWatch, and STS for the role and the identity: the only module that touches boto3.

Pure: `build_queries` and `merge_pages` around GetMetricData, `memory_series` over a listing. `CloudWatch` does the I/O: boto's
blocking calls run in threads of their own, at most 16 at once in a region, so that a region that hangs delays no other.

Limits (https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/cloudwatch_limits.html): 500 queries and 100,800
datapoints a call, 50 GetMetricData and 25 ListMetrics requests a second and region.

What is billed (https://aws.amazon.com/cloudwatch/pricing/: 0.01 dollars per 1,000 metrics requested using GetMetricData): AWS
says nothing of pages and retries. Each further page repeats all queries, so every request that got a 200 counts with all its
queries, each page and a body that arrived truncated included; one refused (throttled, denied, invalid) or never answered does
not count. This leans to the high side, and the fake CloudWatch of the tests counts the same way.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.exceptions as boto_errors
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialProvider, DeferredRefreshableCredentials
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError

from exporter import __version__
from exporter.core.budget import Budget
from exporter.core.clock import check_skew
from exporter.core.errors import SourceError
from exporter.core.model import Listing, MetricQuery, MetricResults
from exporter.core.periods import to_datetime, to_seconds
from exporter.core.settings import Role, Settings
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch.errors import _BY_CODE, _EXPIRED, _FOREIGN, _KEYS, _DeadlinePassed, translate
from exporter.sources.cloudwatch.malformed import MalformedInstances
from exporter.sources.cloudwatch.memory_series import LISTED_FOR_SECONDS, RECENTLY_ACTIVE_SECONDS
from exporter.sources.cloudwatch.queries import _NAMES, _by_instance, build_queries, check_limits, merge_pages
from exporter.sources.cloudwatch.transport import (
    _RESULTS,
    ATTEMPTS,
    THREADS,
    CallContext,
    RegionState,
    RequestHooks,
    TokenBucket,
    _in_thread,
    _raw_timestamp,
)

T = TypeVar("T")

if TYPE_CHECKING:
    from types_boto3_cloudwatch import CloudWatchClient
    from types_boto3_sts import STSClient

CONNECT_TIMEOUT, READ_TIMEOUT = 3, 15


class _AssumedRole(CredentialProvider):
    """Credentials of a role, renewed by botocore before they expire."""

    METHOD = "cml-assume-role"

    def __init__(self, sts: "Callable[[], STSClient]", role: Role) -> None:
        super().__init__()
        self._sts = sts
        self._role = role

    def load(self) -> DeferredRefreshableCredentials:
        """Return credentials that are fetched when first needed."""
        return DeferredRefreshableCredentials(refresh_using=self._fetch, method=self.METHOD)

    def _fetch(self) -> dict[str, str]:
        request: dict[str, Any] = {"RoleArn": self._role.role_arn, "RoleSessionName": "cml-worker-exporter"}
        if self._role.external_id:
            request["ExternalId"] = self._role.external_id.get_secret_value()
        keys = self._sts().assume_role(**request)["Credentials"]
        expires: datetime = keys["Expiration"]
        return {
            "access_key": keys["AccessKeyId"],
            "secret_key": keys["SecretAccessKey"],
            "token": keys["SessionToken"],
            "expiry_time": expires.isoformat(),
        }


class CloudWatch:
    """CloudWatch of every region, for one event loop.

    Every call runs in a thread of its own, at most 16 a region; further calls wait in the order they came, so what is asked
    first (live before healing) is answered first. A call that misses its deadline is abandoned: its thread ends at its next
    byte, request or read timeout, it never holds a place.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        *,
        budget: Budget | None = None,
        wall: Callable[[], float] = time.time,
        deadline: float = 60,
        rate: float = 25,
    ) -> None:
        """Open nothing yet.

        Args:
            settings: endpoint and role.
            telemetry: counts every request.
            budget: pays for GetMetricData; by default without a limit.
            wall: the local clock, in UTC seconds, that CloudWatch's is compared with.
            deadline: seconds a call may take with all its pages and retries, from when it is its turn.
            rate: requests a second and region, retries included.
        """
        self._endpoint = settings.cloudwatch.endpoint_url
        self._roles = settings.aws.roles
        self._telemetry = telemetry
        self._budget = Budget(wall=wall) if budget is None else budget
        self._wall = wall
        self._deadline = deadline
        self._rate = rate
        self._homes: dict[str, RegionState] = {}
        self._call = CallContext()
        self._malformed = MalformedInstances()
        # Sessions are one a region; what they load from botocore's data files is the same for all.
        self._loader: Loader = botocore.session.Session().get_component("data_loader")

    async def get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], start: int, end: int, period: int
    ) -> MetricResults:
        """Ask for the Average of each query in the periods of [start, end); follow all pages.

        Args:
            region: where the instances run.
            queries: 1 to 500, each once.
            start: UTC second, a multiple of `period`.
            end: UTC second, a multiple of `period`.
            period: seconds.

        Returns:
            A result for every query, which may be partial or failed, and CloudWatch's clock at the first page. The result of
            a malformed instance id is empty.

        Raises:
            RejectedQueryError: CloudWatch refuses the content for another reason than a malformed instance id.
            SourceError: there is no answer.
            ValueError: more than one call may ask.
        """
        check_limits(queries, start, end, period)
        call = partial(self._get_metric_data, region, start=start, end=end, period=period)
        return await self._malformed.query(call, queries, start, end, int(self._wall()))

    async def _get_metric_data(
        self, region: str, queries: Sequence[MetricQuery], *, start: int, end: int, period: int
    ) -> MetricResults:
        def ask(home: RegionState) -> MetricResults:
            client: CloudWatchClient = self._client(home, "cloudwatch")
            date, pages = self._pages(
                home,
                client.get_metric_data,
                "GetMetricData",
                MetricDataQueries=build_queries(queries, period),
                StartTime=to_datetime(start),
                EndTime=to_datetime(end),
                ScanBy="TimestampAscending",
            )
            return MetricResults(date, merge_pages(queries, pages, start, end))

        return await self._run(region, "GetMetricData", ask, len(queries))

    @property
    def malformed(self) -> frozenset[str]:
        """Instance ids that CloudWatch refused so far; they are no longer sent."""
        return self._malformed.known

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        """List the memory series of all instances of a region; follow all pages.

        Args:
            region: which.
            recent: only series with a datapoint in the last 3 hours, else in the last 14 days.

        Raises:
            SourceError: there is no complete answer.
        """

        def ask(home: RegionState) -> Listing:
            client: CloudWatchClient = self._client(home, "cloudwatch")
            namespace, name = _NAMES["memory"]
            only = {"RecentlyActive": "PT3H"} if recent else {}
            date, pages = self._pages(home, client.list_metrics, "ListMetrics", Namespace=namespace, MetricName=name, **only)
            return Listing(
                date,
                date - (RECENTLY_ACTIVE_SECONDS if recent else LISTED_FOR_SECONDS),
                _by_instance(m for page in pages for m in page),
            )

        return await self._run(region, "ListMetrics", ask)

    async def identity(self, region: str) -> str:
        """Return the ARN that CloudWatch of the region is asked as.

        Raises:
            SourceError: the credentials are missing or refused.
        """

        def ask(home: RegionState) -> str:
            client: STSClient = self._client(home, "sts")
            return str(client.get_caller_identity()["Arn"])

        return await self._run(region, "GetCallerIdentity", ask)

    async def close(self) -> None:
        """Close all connections; what still runs is abandoned."""
        for home in self._homes.values():
            home.forget()

    async def _run(self, region: str, operation: str, ask: Callable[[RegionState], T], queries: int = 0) -> T:
        home = self._homes.get(region)
        if home is None:
            home = self._homes[region] = RegionState(region, TokenBucket(self._rate))

        def work() -> T:
            self._call.until = time.monotonic() + self._deadline
            self._call.queries = queries
            return ask(home)

        async with home.slots:
            try:
                async with asyncio.timeout(self._deadline):
                    return await _in_thread(work, f"cloudwatch-{region}")
            except TimeoutError as error:
                raise translate(_DeadlinePassed(), region, operation) from error
            except _FOREIGN as error:
                if isinstance(error, ResponseParserError):  # the only failure of an attempt that botocore tells no hook of
                    self._telemetry.request_failures.labels(operation, region, "ResponseParserError").inc()
                translated = translate(error, region, operation)
                if _BY_CODE.get(translated.code) in (_EXPIRED, _KEYS):
                    home.forget()
                raise translated from error

    def _pages(
        self, home: RegionState, call: Callable[..., Any], operation: str, **arguments: object
    ) -> tuple[int, list[Sequence[Mapping[str, Any]]]]:
        date, pages = 0, []
        while True:
            page = call(**arguments)
            if _RESULTS[operation] not in page:
                raise SourceError(
                    "cloudwatch",
                    "IncompleteBody",
                    f"CloudWatch in {home.region}: {operation} was answered {ATTEMPTS} times with a body that is empty or cut; "
                    "it is asked again at the next round, check proxies if it goes on",
                    region=home.region,
                )
            date = date or self._date(home.region, page["ResponseMetadata"]["HTTPHeaders"])
            pages.append(page[_RESULTS[operation]])
            if not page.get("NextToken"):
                return date, pages
            arguments["NextToken"] = page["NextToken"]

    def _date(self, region: str, headers: Mapping[str, str]) -> int:
        ours = self._wall()
        try:
            date = to_seconds(parsedate_to_datetime(headers.get("date", "")))
        except ValueError as error:
            raise SourceError(
                "cloudwatch",
                "NoDate",
                f"CloudWatch in {region}: the answer has no readable Date header, so its values cannot be judged; "
                "check cloudwatch.endpoint_url and proxies",
                region=region,
            ) from error
        check_skew("cloudwatch", date, ours, region=region)
        return date

    def _client(self, home: RegionState, service: str) -> Any:  # noqa: ANN401  # boto3 makes its clients at run time
        with home.lock:
            client = home.clients.get(service)
            if client is None:  # `forget` may come from another thread at any point: nothing is read twice
                session = home.session or self._session(home)
                client = self._connect(home, session, service)
                home.session, home.clients[service] = session, client
            return client

    def _session(self, home: RegionState) -> boto3.Session:
        session = botocore.session.Session()
        session.register_component("data_loader", self._loader)
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_raw_timestamp)
        role = next((role for role in self._roles if not role.regions or home.region in role.regions), None)
        if role:
            provider = _AssumedRole(lambda: self._role_client(home), role)
            session.get_component("credential_provider").insert_before("env", provider)
        return _with_credentials(session)

    def _role_client(self, home: RegionState) -> "STSClient":
        """STS with the credentials of the machine, in a session whose timestamps are datetimes: botocore wants an expiry."""
        with home.lock:
            if "assume-role" not in home.clients:
                session = botocore.session.Session()
                session.register_component("data_loader", self._loader)
                home.clients["assume-role"] = self._connect(home, _with_credentials(session), "sts")
            client: STSClient = home.clients["assume-role"]
            return client

    def _connect(self, home: RegionState, session: boto3.Session, service: str) -> Any:  # noqa: ANN401  # as _client
        config = Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            max_pool_connections=THREADS,
            # 500 queries are checked by CloudWatch anyway; here it takes a third of a call's time.
            parameter_validation=service != "cloudwatch",
            tcp_keepalive=True,
            user_agent_extra=f"cml-worker-exporter/{__version__}",
        )
        try:
            client = session.client(service, region_name=home.region, endpoint_url=self._endpoint, config=config)  # type: ignore[call-overload]  # the service is a variable
        except boto_errors.BotoCoreError:
            raise
        except ValueError as error:
            raise SourceError(
                "cloudwatch",
                "InvalidEndpoint",
                f"CloudWatch in {home.region}: {self._endpoint} is not an address; correct cloudwatch.endpoint_url",
                region=home.region,
            ) from error
        RequestHooks(client, home, self._call, self._telemetry, self._budget)
        return client


def _with_credentials(session: botocore.session.Session) -> boto3.Session:
    """Refuse a session without credentials: it would never look for them again."""
    if session.get_credentials() is None:
        raise boto_errors.NoCredentialsError
    return boto3.Session(botocore_session=session)
