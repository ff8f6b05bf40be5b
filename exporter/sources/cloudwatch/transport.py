"""Request hooks, rate limit and deadline of CloudWatch calls."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.exceptions as boto_errors
import urllib3.exceptions
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.utils import parse_timestamp

from exporter.core.aws_settings import Role
from exporter.core.budget import Budget, ReaderBudget
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch.answers import RESULT_KEYS, parse_body
from exporter.sources.cloudwatch.errors import (
    BodyTooLargeError,
    BudgetSpentError,
    DeadlinePassedError,
    QueriesNotInsertedError,
    ReaderBudgetSpentError,
    error_code,
)

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from types_boto3_cloudwatch import CloudWatchClient
    from types_boto3_sts import STSClient

T = TypeVar("T")
THREADS = 16
"""Concurrent calls per region; more than 16 gain nothing, because the latency dominates."""
ATTEMPTS = 4
"""Attempts per request, the first included."""
MAX_BODY_BYTES = 32 * 1024 * 1024
"""The largest body that is read. One of 100,800 datapoints has 4 MB."""
NO_QUERIES = b'"MetricDataQueries": []'
"""What botocore writes into the body of a request for an empty list of queries."""


class TokenBucket:
    """A rate limit: `rate` requests per second on average, and bursts of that many after a pause.

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
class CallContext(threading.local):
    """The call that runs in this thread: its deadline, number of queries, and budget if it is on behalf of HTTP readers.

    botocore's hooks run in the same thread.
    """

    until: float = 0
    queries: int = 0
    readers: ReaderBudget | None = None
    query_list: bytes = b""
    """The JSON of MetricDataQueries that `insert_queries` is to put into the request; empty: botocore writes them."""
    is_inserted: bool = False


@dataclass
class RegionState:
    """Session, clients, rate limit and places of one region and role; kept as long as the process runs."""

    region: str
    bucket: TokenBucket
    role: Role | None = None
    """The role to assume; None: the exporter's own credentials."""
    account: str = ""
    """What errors call the account; empty where there is only one."""
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(THREADS))
    lock: threading.Lock = field(default_factory=threading.Lock)
    session: boto3.Session | None = None
    clients: dict[str, Any] = field(default_factory=dict)

    def forget(self) -> None:
        """Close the clients, so that the next call reads the credentials again; a file may hold new ones."""
        clients, self.clients, self.session = self.clients, {}, None
        for client in clients.values():
            client.close()


class RequestHooks:
    """Hooks around every HTTP request of one client, retries included: rate limit, deadline, counters, complete bodies."""

    def __init__(
        self,
        client: "CloudWatchClient | STSClient | BaseClient",
        state: RegionState,
        call: CallContext,
        telemetry: Telemetry,
        budget: Budget,
    ) -> None:
        self._http = client._endpoint.http_session  # type: ignore[union-attr]  # botocore has no public accessor
        self._state = state
        self._call = call
        self._telemetry = telemetry
        self._budget = budget
        service = client.meta.service_model.service_id.hyphenize()
        hooks: dict[str, Callable[..., Any]] = {
            "before-call": self.insert_queries,
            "before-send": self.send,
            "before-parse": parse_body,
            "response-received": self.received,
            "needs-retry": self.is_incomplete,
        }
        for event, hook in hooks.items():
            client.meta.events.register(f"{event}.{service}", hook)

    def insert_queries(self, params: MutableMapping[str, Any], **_: object) -> None:
        """Put the queries of the call into the body of its request, which botocore then signs and sends.

        The caller has handed botocore an empty list of queries: its serializer takes several times as long as orjson.
        """
        if self._call.query_list:
            body = params.get("body")
            if isinstance(body, bytes) and body.count(NO_QUERIES) == 1:
                params["body"] = body.replace(NO_QUERIES, b'"MetricDataQueries": ' + self._call.query_list)
                self._call.is_inserted = True

    def send(self, request: AWSPreparedRequest, event_name: str, **_: object) -> AWSResponse:
        """Send instead of botocore: its read timeout counts per recv, so a slow server would hold the thread indefinitely."""
        if self._call.query_list and not self._call.is_inserted:
            raise QueriesNotInsertedError
        time.sleep(self._state.bucket.take())
        if time.monotonic() >= self._call.until:
            raise DeadlinePassedError
        operation = event_name.rpartition(".")[2]
        price = self._call.queries if operation == "GetMetricData" else 0
        readers = self._call.readers
        budget = self._budget if readers is None else readers
        if not budget.take(price):
            if readers is None:
                raise BudgetSpentError
            self._telemetry.reader_requests_refused.inc()
            raise ReaderBudgetSpentError
        self._telemetry.requests.labels(operation, self._state.region).inc()
        request.stream_output = True
        billed = False
        try:
            response = self._http.send(request)
            billed = response.status_code == 200
        finally:
            if not billed:
                budget.give_back(price)
        if billed and price:
            self._telemetry.metrics_were_requested(self._state.region, price)
        body = _Body(response.raw, self._call.until)
        whole = AWSResponse(response.url, response.status_code, response.headers, body)
        try:
            len(whole.content)  # read here, where botocore still retries a failure
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
        """Count a failed attempt by its error code, whether botocore retries it or not."""
        operation = event_name.rpartition(".")[2]
        code = None
        if isinstance(exception, QueriesNotInsertedError):
            return  # nothing was sent
        if exception is not None:
            code = error_code(exception)
        elif parsed_response is not None and "Error" in parsed_response:
            code = parsed_response["Error"].get("Code") or "Unknown"
        elif response_dict is not None and _incomplete(operation, response_dict["status_code"], parsed_response):
            code = "IncompleteBody"
        if code:
            self._telemetry.request_failures.labels(operation, self._state.region, code).inc()

    def is_incomplete(
        self, response: tuple[AWSResponse, Mapping[str, Any]] | None, attempts: int, event_name: str, **_: object
    ) -> float | None:
        """Return the seconds to wait before a retry when the body was cut or empty, which botocore takes for a success."""
        if response is None or attempts >= ATTEMPTS:
            return None
        http, parsed = response
        return 0.1 * 2**attempts if _incomplete(event_name.rpartition(".")[2], http.status_code, parsed) else None


class _Body:
    """Body of a response, read until the deadline of its call."""

    def __init__(self, raw: Any, until: float) -> None:  # noqa: ANN401  # urllib3's response, which has no narrower public type
        self._raw = raw
        self._until = until

    def stream(self) -> Iterator[bytes]:
        """Yield the body in chunks as they arrive; AWSResponse reads it through this."""
        size = 0
        while chunk := self._raw.read1(65536):
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                self._raw.close()
                raise BodyTooLargeError
            if time.monotonic() >= self._until:
                self._raw.close()
                raise DeadlinePassedError
            yield chunk


def _incomplete(operation: str, status: int, parsed: Mapping[str, Any] | None) -> bool:
    return status == 200 and operation in RESULT_KEYS and RESULT_KEYS[operation] not in (parsed or {})


def timestamp_seconds(value: float | str) -> float:
    """Parse a timestamp into UTC seconds; botocore's datetimes would take half the time of a call."""
    return value if isinstance(value, int | float) else parse_timestamp(value).timestamp()


async def run_in_thread(work: Callable[[], T], name: str) -> T:
    """Run `work` in a new thread and return its result, or raise its exception.

    A ThreadPoolExecutor does not fit: an abandoned call would hold one of its threads, and the interpreter would wait for that
    thread at exit.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: Exception | None) -> None:
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
        except Exception as error:  # noqa: BLE001  # raised again in the coroutine
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no coroutine waits
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await outcome
