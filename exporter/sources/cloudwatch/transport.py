"""Request hooks, rate limit and deadline of CloudWatch calls."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.exceptions as boto_errors
import urllib3.exceptions
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.utils import parse_timestamp

from exporter.core.budget import Budget
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch.errors import _BudgetSpent, _DeadlinePassed

if TYPE_CHECKING:
    from types_boto3_cloudwatch import CloudWatchClient
    from types_boto3_sts import STSClient

T = TypeVar("T")
THREADS = 16
"""Calls at once in a region: the latency decides, more than 16 gain nothing."""
ATTEMPTS = 4
_RESULTS = {"GetMetricData": "MetricDataResults", "ListMetrics": "Metrics"}
"""What a whole answer must have. A 200 whose body was cut parses to an empty one without any error."""


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
class CallContext(threading.local):
    """What the thread is at: each call has a thread, and botocore's hooks run in it."""

    until: float = 0
    queries: int = 0


@dataclass
class RegionState:
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


class RequestHooks:
    """What happens around every HTTP request of one client, retries included: pace, deadline, counters, whole bodies."""

    def __init__(
        self, client: "CloudWatchClient | STSClient", home: RegionState, call: CallContext, telemetry: Telemetry, budget: Budget
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


async def _in_thread(work: Callable[[], T], name: str) -> T:
    """Run `work` in a thread of its own and wait for it.

    Not in a ThreadPoolExecutor: an abandoned call would keep one of its threads, and the interpreter would wait for it at exit.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle_delay(result: T | None, error: Exception | None) -> None:
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
            loop.call_soon_threadsafe(settle_delay, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await outcome
