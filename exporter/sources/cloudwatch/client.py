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
import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.exceptions as boto_errors
import botocore.session
import urllib3.exceptions
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.credentials import CredentialProvider, DeferredRefreshableCredentials
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp

from exporter import __version__
from exporter.core.budget import Budget
from exporter.core.errors import RejectedQuery, SourceError
from exporter.core.model import Answer, Answers, Dimensions, Listing, MetricName, Outcome, Query
from exporter.core.periods import DAY, HOUR, rfc3339, to_datetime, to_seconds
from exporter.core.settings import Role, Settings
from exporter.metrics.telemetry import Telemetry

if TYPE_CHECKING:
    from types_boto3_cloudwatch import CloudWatchClient
    from types_boto3_sts import STSClient

T = TypeVar("T")

MAX_QUERIES = 500
MAX_DATAPOINTS = 100_800
SKEW = 300
"""Seconds CloudWatch's clock may differ from ours (DESIGN section 4, rule 6)."""
THREADS = 16
"""Calls at once in a region: the latency decides, more than 16 gain nothing."""
ATTEMPTS = 4
CONNECT_TIMEOUT, READ_TIMEOUT = 3, 15
LISTED_FOR = 14 * DAY
"""ListMetrics forgets a metric two weeks after its last datapoint."""
INSTANCE_ID = re.compile(r"i-[0-9a-f]{8}([0-9a-f]{9})?")
"""https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html"""
RECENT = 3 * HOUR
"""The only RecentlyActive there is, PT3H."""

_NAMES: Mapping[MetricName, tuple[str, str]] = {
    "cpu": ("AWS/EC2", "CPUUtilization"),
    "memory": ("CWAgent", "mem_used_percent"),
}
_KNOWN_DIMENSIONS = frozenset({"InstanceId", "ImageId", "InstanceType", "AutoScalingGroupName"})
_RESULTS = {"GetMetricData": "MetricDataResults", "ListMetrics": "Metrics"}
"""What a whole answer must have. A 200 whose body was cut parses to an empty one without any error."""


# Pure: queries, pages, dimension sets


def build_queries(queries: Sequence[Query], period: int) -> list[dict[str, Any]]:
    """Write MetricDataQueries for the Average per `period` seconds; the n-th query gets the Id m<n>."""
    return [
        {
            "Id": f"m{number}",
            "MetricStat": {
                "Metric": {
                    "Namespace": _NAMES[query.metric][0],
                    "MetricName": _NAMES[query.metric][1],
                    "Dimensions": [{"Name": name, "Value": value} for name, value in query.dimensions],
                },
                "Period": period,
                "Stat": "Average",
            },
        }
        for number, query in enumerate(queries)
    ]


def merge_pages(
    queries: Sequence[Query], pages: Iterable[Sequence[Mapping[str, Any]]], start: int, end: int
) -> dict[Query, Answer]:
    """Merge the MetricDataResults of all pages into one answer for each query about [start, end).

    A result may go on over several pages; its last StatusCode decides: Complete → ok or empty, PartialData → partial, anything
    else and a query that no page mentions → failed. Values that are not finite or lie outside the window are dropped.

    Args:
        queries: as they were given to `build_queries`.
        pages: one sequence of results a page, their Timestamps in UTC seconds.
        start: first second of the window.
        end: the second after the window.
    """
    statuses: dict[str, str] = {}
    values: dict[str, dict[int, float]] = {}
    for page in pages:
        for result in page:
            statuses[result["Id"]] = result.get("StatusCode", "InternalError")
            points = zip(result.get("Timestamps", ()), result.get("Values", ()), strict=False)
            values.setdefault(result["Id"], {}).update(
                (int(at), float(value)) for at, value in points if start <= at < end and math.isfinite(value)
            )
    answers = {}
    for number, query in enumerate(queries):
        found = values.get(f"m{number}", {})
        answers[query] = Answer(_outcome(statuses.get(f"m{number}"), found), start, end, found)
    return answers


def _outcome(status: str | None, values: Mapping[int, float]) -> Outcome:
    if status == "Complete":
        return "ok" if values else "empty"
    return "partial" if status == "PartialData" else "failed"


def check_limits(queries: Sequence[Query], start: int, end: int, period: int) -> None:
    """Refuse what one GetMetricData call cannot answer.

    CloudWatch rounds a start time silently, hence the aligned window.

    Raises:
        ValueError: no query, more than 500, one twice, more than 100,800 datapoints, or a window that is empty or not aligned.
    """
    if not 0 < len(queries) <= MAX_QUERIES:
        raise ValueError(f"{len(queries)} queries; a call takes 1 to {MAX_QUERIES}")
    if len(set(queries)) < len(queries):
        raise ValueError("the same query twice in one call; AWS would bill both")
    if start >= end or start % period or end % period:
        raise ValueError(f"[{start}, {end}) is not a window of whole periods of {period} s")
    if (points := len(queries) * ((end - start) // period)) > MAX_DATAPOINTS:
        raise ValueError(f"{points} datapoints; a call answers at most {MAX_DATAPOINTS}")


def instance_queries(instance_id: str, series: Iterable[Dimensions] = ()) -> tuple[Query, ...]:
    """Return what an instance is asked for: its CPU, and its memory under each of these dimension sets."""
    cpu = Query(instance_id, "cpu", (("InstanceId", instance_id),))
    return cpu, *(Query(instance_id, "memory", dimensions) for dimensions in series)


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


def _by_instance(metrics: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Dimensions, ...]]:
    """Group listed metrics by InstanceId, each set once; metrics without an instance are not ours."""
    found: dict[str, dict[Dimensions, None]] = {}
    for metric in metrics:
        dimensions = tuple((each["Name"], each["Value"]) for each in metric.get("Dimensions", ()))
        instance = dict(dimensions).get("InstanceId")
        if instance:
            found.setdefault(instance, {})[dimensions] = None
    return {instance: tuple(sets) for instance, sets in found.items()}


# Foreign errors: translated here and nowhere else


class _DeadlinePassed(Exception):
    """The call's own deadline; not an error botocore retries."""


class _BudgetSpent(Exception):
    """The day's budget does not pay for the request; it was not sent."""


_FOREIGN = (boto_errors.BotoCoreError, boto_errors.ClientError, ResponseParserError, _DeadlinePassed, _BudgetSpent, OSError)
"""What a call may raise; an OSError comes from a credentials or token file."""

_DENIED = "{action} is not allowed ({message}); allow this action in the IAM policy of the exporter"
_EXPIRED = "the session token has expired; renew the AWS credentials, or let the exporter assume a role that renews itself"
_KEYS = (
    "AWS does not know or accept the access key; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, "
    "and that the account has region {region} enabled"
)
_CLOCK = "AWS refuses the signature for its time ({message}); set this machine's clock (NTP)"
_THROTTLED = (
    "AWS throttled {action} in all attempts; it is asked again at the next round, raise cloudwatch.interval or the account's "
    "quota if this goes on"
)
_REJECTED = "AWS refuses the content of {action} ({message}); check the instance ids of the workers in this call"
_THEIRS = (
    "AWS had an internal error ({code}); it is asked again at the next round, see https://health.aws.amazon.com if it goes on"
)
_NETWORK = (
    "{endpoint} cannot be reached; check that the region exists and is spelled correctly, cloudwatch.endpoint_url, DNS and "
    "the network"
)
_SLOW = "no answer in time; it is asked again at the next round, check the network and cloudwatch.endpoint_url if it goes on"
_CUT = (
    "the connection was closed before the answer was complete; it is asked again at the next round, check proxies if it goes on"
)
_NO_KEYS = (
    "no AWS credentials were found; give the exporter an instance profile or a service account's role, or set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
_SOURCE = (
    "the AWS credentials cannot be read ({message}); check where they come from: environment, ~/.aws, instance profile, "
    "token file"
)
_REGION = "{region!r} is not a region; correct the region of the workers that name it"
_GARBLED = "the answer is not AWS's ({message}); check cloudwatch.endpoint_url and proxies"
_SPENT = "cloudwatch.max_usd_per_day does not pay for {action} any more; it goes on after 00:00 UTC, or raise it"
_OTHER = "{action} failed ({message}); it is asked again at the next round"

_BY_CODE: Mapping[str, str] = {
    code: sentence
    for sentence, codes in {
        _DENIED: "AccessDenied AccessDeniedException UnauthorizedOperation NotAuthorized AuthorizationError",
        _EXPIRED: "ExpiredToken ExpiredTokenException TokenRefreshRequired",
        _KEYS: "InvalidClientTokenId UnrecognizedClientException InvalidAccessKeyId AuthFailure SignatureDoesNotMatch "
        "OptInRequired InvalidSignatureException IncompleteSignature IncompleteSignatureException MissingAuthenticationToken "
        "MissingAuthenticationTokenException RegionDisabledException",
        _CLOCK: "RequestTimeTooSkewed RequestExpired RequestInTheFuture",
        _THROTTLED: "Throttling ThrottlingException ThrottledException RequestThrottled RequestThrottledException "
        "RequestLimitExceeded TooManyRequestsException LimitExceededException SlowDown 429",
        _REJECTED: "ValidationError ValidationException InvalidParameterValue InvalidParameterValueException "
        "InvalidParameterCombination InvalidParameterCombinationException MissingParameter MissingRequiredParameter "
        "MissingRequiredParameterException SerializationException",
        _THEIRS: "InternalFailure InternalServiceFault InternalServiceError InternalServiceException InternalError "
        "ServiceUnavailable ServiceUnavailableException 500 502 503 504",
    }.items()
    for code in codes.split()
}
_BY_CLASS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    ((boto_errors.NoCredentialsError, boto_errors.NoAuthTokenError), _NO_KEYS),
    (
        (
            boto_errors.PartialCredentialsError,
            boto_errors.CredentialRetrievalError,
            boto_errors.MetadataRetrievalError,
            boto_errors.TokenRetrievalError,
            boto_errors.SSOError,
            boto_errors.LoginError,
            boto_errors.ProfileNotFound,
            boto_errors.ConfigNotFound,
            boto_errors.ConfigParseError,
            boto_errors.InvalidConfigError,
            boto_errors.RefreshWithMFAUnsupportedError,
        ),
        _SOURCE,
    ),
    (
        (
            boto_errors.InvalidRegionError,
            boto_errors.UnknownRegionError,
            boto_errors.NoRegionError,
            boto_errors.EndpointProviderError,
        ),
        _REGION,
    ),
    (_BudgetSpent, _SPENT),
    ((_DeadlinePassed, boto_errors.ReadTimeoutError, boto_errors.ConnectTimeoutError), _SLOW),
    (boto_errors.ConnectionError, _NETWORK),
    ((boto_errors.ConnectionClosedError, boto_errors.ResponseStreamingError, boto_errors.IncompleteReadError), _CUT),
    (ResponseParserError, _GARBLED),
    (boto_errors.BotoCoreError, _OTHER),
    (OSError, _SOURCE),
)
"""First match wins; the last but one catches what botocore may invent."""


def translate(error: Exception, region: str, operation: str) -> SourceError:
    """Turn an error of boto into ours: one sentence with the way out.

    Args:
        error: one of `_FOREIGN`.
        region: where.
        operation: what was being done; a ClientError knows better (AssumeRole on the way to GetMetricData).

    Returns:
        RejectedQuery when CloudWatch refuses the content of GetMetricData, else SourceError.
    """
    message, code = " ".join(str(error).split()), type(error).__name__.lstrip("_")
    endpoint = getattr(error, "kwargs", {}).get("endpoint_url", "the endpoint")
    if isinstance(error, boto_errors.ClientError):
        details = error.response.get("Error", {})
        code, message, operation = details.get("Code", code), details.get("Message", message), error.operation_name
        sentence = _BY_CODE.get(code, _OTHER)
        # The same code is used for a wrong secret and for a wrong clock.
        if sentence is _KEYS and ("xpired" in message or "not yet current" in message):
            sentence = _CLOCK
    else:
        sentence = next(sentence for classes, sentence in _BY_CLASS if isinstance(error, classes))
    service = "sts" if operation in ("AssumeRole", "GetCallerIdentity") else "cloudwatch"
    text = sentence.format(
        action=f"{service}:{operation}", message=message.rstrip("."), code=code, region=region, endpoint=endpoint
    )
    raised = RejectedQuery if sentence is _REJECTED and operation == "GetMetricData" else SourceError
    return raised("cloudwatch", code, f"CloudWatch in {region}: {text}", region=region)


# I/O


class TokenBucket:
    """Spread requests: `rate` a second in the long run, that many at once after a pause.

    First come, first served; safe for threads.
    """

    def __init__(self, rate: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._tokens = rate
        self._at = monotonic()

    def take(self) -> float:
        """Take a token and return the seconds to wait before using it."""
        with self._lock:
            now = self._monotonic()
            self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate) - 1
            self._at = now
            return max(0.0, -self._tokens / self._rate)


@dataclass
class _Call(threading.local):
    """What the thread is at: each call has a thread, and botocore's hooks run in it."""

    until: float = 0
    queries: int = 0


@dataclass
class _Home:
    """All that belongs to a region; it lives as long as the process."""

    region: str
    bucket: TokenBucket
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(THREADS))
    lock: threading.Lock = field(default_factory=threading.Lock)
    session: boto3.Session | None = None
    clients: dict[str, Any] = field(default_factory=dict)

    def forget(self) -> None:
        """Close the clients. The next call reads the credentials anew, which may have been renewed in a file."""
        clients, self.clients, self.session = self.clients, {}, None
        for client in clients.values():
            client.close()


class _Wire:
    """What happens around every HTTP request of one client, retries included: pace, deadline, counters, whole bodies."""

    def __init__(
        self, client: "CloudWatchClient | STSClient", home: _Home, call: _Call, telemetry: Telemetry, budget: Budget
    ) -> None:
        self._http = client._endpoint.http_session  # type: ignore[union-attr]  # botocore has no public way
        self._home = home
        self._call = call
        self._telemetry = telemetry
        self._budget = budget
        service = client.meta.service_model.service_id.hyphenize()
        hooks: dict[str, Callable[..., Any]] = {
            "before-send": self.send,
            "response-received": self.received,
            "needs-retry": self.is_incomplete,
        }
        for event, hook in hooks.items():
            client.meta.events.register(f"{event}.{service}", hook)

    def send(self, request: AWSPreparedRequest, event_name: str, **_: object) -> AWSResponse:
        """Send in botocore's stead: its read timeout counts per recv, so a slow drip would keep the thread for ever."""
        time.sleep(self._home.bucket.take())
        if time.monotonic() >= self._call.until:
            raise _DeadlinePassed
        operation = event_name.rpartition(".")[2]
        price = self._call.queries if operation == "GetMetricData" else 0
        if not self._budget.take(price):
            raise _BudgetSpent
        self._telemetry.requests.labels(operation, self._home.region).inc()
        request.stream_output = True
        billed = False
        try:
            response = self._http.send(request)
            billed = response.status_code == 200
        finally:
            if not billed:
                self._budget.give_back(price)
        if billed and price:
            self._telemetry.metrics_were_requested(self._home.region, price)
        body = _Body(response.raw, self._call.until)
        whole = AWSResponse(response.url, response.status_code, response.headers, body)
        try:
            len(whole.content)  # reads it here, where a failure is still retried
        except urllib3.exceptions.ReadTimeoutError as error:
            raise boto_errors.ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except urllib3.exceptions.HTTPError as error:
            raise boto_errors.ConnectionClosedError(endpoint_url=request.url, error=error, request=request) from error
        return whole

    def received(
        self,
        parsed_response: Mapping[str, Any] | None,
        exception: Exception | None,
        response_dict: Mapping[str, Any] | None,
        event_name: str,
        **_: object,
    ) -> None:
        """Count an attempt that failed by its code, whether it is tried again or not."""
        operation = event_name.rpartition(".")[2]
        code = None
        if exception is not None:
            code = type(exception).__name__.lstrip("_")
        elif parsed_response is not None and "Error" in parsed_response:
            code = parsed_response["Error"].get("Code") or "Unknown"
        elif response_dict is not None and _incomplete(operation, response_dict["status_code"], parsed_response):
            code = "IncompleteBody"
        if code:
            self._telemetry.request_failures.labels(operation, self._home.region, code).inc()

    def is_incomplete(
        self, response: tuple[AWSResponse, Mapping[str, Any]] | None, attempts: int, event_name: str, **_: object
    ) -> float | None:
        """Return the seconds to wait before asking again for a body that was cut or empty; botocore takes it for a success."""
        if response is None or attempts >= ATTEMPTS:
            return None
        http, parsed = response
        return 0.1 * 2**attempts if _incomplete(event_name.rpartition(".")[2], http.status_code, parsed) else None


class _Body:
    """A response's body, read until the deadline of its call."""

    def __init__(self, raw: Any, until: float) -> None:  # noqa: ANN401  # urllib3's response, which has no narrower public type
        self._raw = raw
        self._until = until

    def stream(self) -> Iterator[bytes]:
        """Yield the body as it comes, the way AWSResponse reads it."""
        while chunk := self._raw.read1(65536):
            if time.monotonic() >= self._until:
                self._raw.close()
                raise _DeadlinePassed
            yield chunk


def _incomplete(operation: str, status: int, parsed: Mapping[str, Any] | None) -> bool:
    return status == 200 and operation in _RESULTS and _RESULTS[operation] not in (parsed or {})


def _raw_timestamp(value: float | str) -> float:
    """Keep CloudWatch's seconds: turning them into datetimes takes half the time of a call."""
    return value if isinstance(value, int | float) else parse_timestamp(value).timestamp()


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
        self._homes: dict[str, _Home] = {}
        self._call = _Call()
        # Sessions are one a region; what they load from botocore's data files is the same for all.
        self._loader: Loader = botocore.session.Session().get_component("data_loader")

    async def get_metric_data(self, region: str, queries: Sequence[Query], start: int, end: int, period: int) -> Answers:
        """Ask for the Average of each query in the periods of [start, end); follow all pages.

        Args:
            region: where the instances run.
            queries: 1 to 500, each once.
            start: UTC second, a multiple of `period`.
            end: UTC second, a multiple of `period`.
            period: seconds.

        Returns:
            An answer for every query, which may be partial or failed, and CloudWatch's clock at the first page.

        Raises:
            RejectedQuery: CloudWatch refuses the content; one malformed instance id fails the whole call.
            SourceError: there is no answer.
            ValueError: more than one call may ask.
        """
        check_limits(queries, start, end, period)

        def ask(home: _Home) -> Answers:
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
            return Answers(date, merge_pages(queries, pages, start, end))

        return await self._run(region, "GetMetricData", ask, len(queries))

    async def list_memory(self, region: str, *, recent: bool) -> Listing:
        """List the memory series of all instances of a region; follow all pages.

        Args:
            region: which.
            recent: only series with a datapoint in the last 3 hours, else in the last 14 days.

        Raises:
            SourceError: there is no complete answer.
        """

        def ask(home: _Home) -> Listing:
            client: CloudWatchClient = self._client(home, "cloudwatch")
            namespace, name = _NAMES["memory"]
            only = {"RecentlyActive": "PT3H"} if recent else {}
            date, pages = self._pages(home, client.list_metrics, "ListMetrics", Namespace=namespace, MetricName=name, **only)
            return Listing(date, date - (RECENT if recent else LISTED_FOR), _by_instance(m for page in pages for m in page))

        return await self._run(region, "ListMetrics", ask)

    async def identity(self, region: str) -> str:
        """Return the ARN that CloudWatch of the region is asked as.

        Raises:
            SourceError: the credentials are missing or refused.
        """

        def ask(home: _Home) -> str:
            client: STSClient = self._client(home, "sts")
            return str(client.get_caller_identity()["Arn"])

        return await self._run(region, "GetCallerIdentity", ask)

    async def close(self) -> None:
        """Close all connections; what still runs is abandoned."""
        for home in self._homes.values():
            home.forget()

    async def _run(self, region: str, operation: str, ask: Callable[[_Home], T], queries: int = 0) -> T:
        home = self._homes.get(region)
        if home is None:
            home = self._homes[region] = _Home(region, TokenBucket(self._rate))

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
        self, home: _Home, call: Callable[..., Any], operation: str, **arguments: object
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
        if abs(date - ours) > SKEW:
            raise SourceError(
                "cloudwatch",
                "ClockSkew",
                f"CloudWatch in {region} says it is {rfc3339(date)}, this machine says {rfc3339(ours)}; "
                f"set this machine's clock (NTP), they may differ by {SKEW} s",
                region=region,
            )
        return date

    def _client(self, home: _Home, service: str) -> Any:  # noqa: ANN401  # boto3 makes its clients at run time
        with home.lock:
            client = home.clients.get(service)
            if client is None:  # `forget` may come from another thread at any point: nothing is read twice
                session = home.session or self._session(home)
                client = self._connect(home, session, service)
                home.session, home.clients[service] = session, client
            return client

    def _session(self, home: _Home) -> boto3.Session:
        session = botocore.session.Session()
        session.register_component("data_loader", self._loader)
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_raw_timestamp)
        role = next((role for role in self._roles if not role.regions or home.region in role.regions), None)
        if role:
            provider = _AssumedRole(lambda: self._role_client(home), role)
            session.get_component("credential_provider").insert_before("env", provider)
        return _with_credentials(session)

    def _role_client(self, home: _Home) -> "STSClient":
        """STS with the credentials of the machine, in a session whose timestamps are datetimes: botocore wants an expiry."""
        with home.lock:
            if "assume-role" not in home.clients:
                session = botocore.session.Session()
                session.register_component("data_loader", self._loader)
                home.clients["assume-role"] = self._connect(home, _with_credentials(session), "sts")
            client: STSClient = home.clients["assume-role"]
            return client

    def _connect(self, home: _Home, session: boto3.Session, service: str) -> Any:  # noqa: ANN401  # as _client
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
        _Wire(client, home, self._call, self._telemetry, self._budget)
        return client


def _with_credentials(session: botocore.session.Session) -> boto3.Session:
    """Refuse a session without credentials: it would never look for them again."""
    if session.get_credentials() is None:
        raise boto_errors.NoCredentialsError
    return boto3.Session(botocore_session=session)


async def _in_thread(work: Callable[[], T], name: str) -> T:
    """Run `work` in a thread of its own and wait for it.

    Not in a ThreadPoolExecutor: an abandoned call would keep one of its threads, and the interpreter would wait for it at exit.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if outcome.done():  # abandoned
            return
        if error:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # a T whenever there is no error

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  # raised again where it is waited for
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await outcome
