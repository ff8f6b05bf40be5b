"""The fake CloudWatch's HTTP server, with its faults, its counters, and the orders of /ctl."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any, Self

from tests.helpers.deadlines import scaled
from tests.helpers.fake_cloudwatch.api import Api
from tests.helpers.fake_cloudwatch.protocols import (
    CONTENT_TYPES,
    EXTRA,
    IAM,
    METRIC_DATA,
    METRICS,
    RefusedError,
    Reply,
    Request,
    error,
    failure,
    parse,
    partial,
    xml,
)

MODES = (
    "throttle",
    "429",
    "internal",
    "500",
    "hang",
    "cut",
    "trunc",
    "empty",
    "partial",
    "slow-drip",
    "access_denied",
    "expired_token",
    "bad_credentials",
    "validation",
)
_SETTABLE = {"latency", "offset", "skew", "drip", "page_datapoints", "list_lag", "role_seconds", "page_series"}
_ORDERS = {"fault", "clear", "reset", "set", "add", "brief"}


@dataclass
class _Fault:
    mode: str
    count: int
    region: str


@dataclass
class _Counters:
    calls: Counter[str] = field(default_factory=Counter)
    by_region: dict[str, Counter[str]] = field(default_factory=dict)
    metrics_billed: Counter[str] = field(default_factory=Counter)
    queried: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(account of the keys, instance, metric) → how often it was billed."""
    faults: int = 0
    connections: int = 0
    first_request: float | None = None
    """Monotonic seconds."""
    last_answer: float = 0
    concurrent: int = 0
    max_concurrent: int = 0
    keys: list[str] = field(default_factory=list)
    """Access keys, in the order they came into use."""


class FakeCloudWatch(Api):
    """The server, in a thread of its own between start() and stop(); a context manager.

    Attributes that may change while it runs, beside those of `Api` and `Instances`: latency (seconds before each answer), skew
    (seconds the Date header is off), drip (seconds between the bytes of a slow-drip), lie (operation, request, and the parsed
    body of a good answer → what is sent instead: the same object, changed in place, another one, or raw bytes).
    """

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        seed: int = 0,
        period: int = 300,
        latency: float = 0,
        list_lag: int = 0,
        port: int = 0,
    ) -> None:
        """`period` is the native one of every instance: 300 as in basic monitoring, 60 as in detailed."""
        self.seed = seed
        super().__init__(now, seed, period, list_lag)
        self.latency = latency
        self.skew = 0.0
        self.drip = 0.05
        self.lie: Callable[[str, Any, Any], object] | None = None
        self.port = port
        self.denied: set[str] = set()
        """Accounts whose CloudWatch refuses every call."""
        self.refused_roles: set[str] = set()
        """ARNs of roles that may not be assumed."""
        self._counters = _Counters()
        self._faults: dict[str, list[_Fault]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    # Start and stop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve(ready.set)), name="fake-cloudwatch")
        self._thread.start()
        if not ready.wait(scaled(10)):
            raise RuntimeError(f"the fake CloudWatch did not come up on port {self.port}")
        return self

    def stop(self) -> None:
        if self._thread and self._loop and self._stopping:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def serve(self, ready: Callable[[], None]) -> None:
        """Serve until stop(), or until this is cancelled."""
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._counters.connections += 1
            task = asyncio.create_task(self._connection(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self.port, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        ready()
        try:
            await self._stopping.wait()
        finally:
            server.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    # Faults and counters

    def fault(self, operation: str, mode: str, count: int = 1, region: str = "*") -> None:
        """Let the next `count` requests of an operation ("*": any) fail; several apply in the order they were added."""
        if mode not in MODES:
            raise ValueError(f"{mode} is not one of {MODES}")
        self._faults.setdefault(operation, []).append(_Fault(mode, count, region))

    def clear(self) -> None:
        """Forget all faults."""
        self._faults.clear()

    def reset(self) -> None:
        """Count from 0 again."""
        kept = self._counters.concurrent
        self._counters = _Counters(concurrent=kept, max_concurrent=kept)
        self.assumed.clear()
        self.tokens.clear()

    def counters(self) -> dict[str, Any]:
        """What happened since the start or reset(), by name."""
        now = self._counters
        return {
            "calls": dict(now.calls),
            "by_region": {region: dict(calls) for region, calls in list(now.by_region.items())},
            "metrics_billed": dict(now.metrics_billed),
            "queried": [[*key, count] for key, count in list(now.queried.items())],
            "faults": now.faults,
            "connections": now.connections,
            "first_request": now.first_request,
            "span": 0 if now.first_request is None else max(0, now.last_answer - now.first_request),
            "concurrent": now.concurrent,
            "max_concurrent": now.max_concurrent,
            "assumed": list(self.assumed),
            "tokens": list(self.tokens),
            "keys": list(now.keys),
        }

    @property
    def calls(self) -> Mapping[str, int]:
        return self._counters.calls

    @property
    def queried(self) -> Counter[tuple[str, str, str]]:
        return self._counters.queried

    @property
    def metrics_billed(self) -> int:
        return self._counters.metrics_billed.total()

    # HTTP

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if ": " in line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if path == "/ctl":
                    await _write(writer, self._control(method, body))
                    continue
                self._counters.concurrent += 1
                self._counters.max_concurrent = max(self._counters.max_concurrent, self._counters.concurrent)
                try:
                    await self._answer(parse(path, headers, body), writer)
                finally:
                    self._counters.concurrent -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client went away, or a fault closed the connection
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        counters = self._counters
        if counters.first_request is None:
            counters.first_request = time.monotonic()
        counters.calls[request.operation] += 1
        counters.by_region.setdefault(request.region, Counter())[request.operation] += 1
        if not counters.keys or counters.keys[-1] != request.key:
            counters.keys.append(request.key)
        mode = self._next_fault(request)
        await asyncio.sleep(self.latency)
        if mode == "hang":
            await asyncio.Event().wait()
        if mode == "cut":
            writer.transport.abort()
            raise ConnectionAbortedError
        reply = failure(mode, request) or self._reply(replace(request, partial=mode == "partial"))
        if mode == "empty":
            reply.body = b""
        if self.lie and reply.status == 200 and request.is_json:
            told = self.lie(request.operation, request.body, json.loads(reply.body))
            reply.body = told if isinstance(told, bytes) else json.dumps(told).encode()
        if reply.status == 200 and request.operation == "GetMetricData":
            self._bill(request)
        reply.extra += f"Date: {formatdate(self.now() + self.skew, usegmt=True)}\r\n"
        await _write(writer, reply, cut_at=len(reply.body) // 2 if mode == "trunc" else None, drip=self._drip(mode))
        counters.last_answer = time.monotonic()

    def _bill(self, request: Request) -> None:
        queries, account = request.body["MetricDataQueries"], self.account_of(request.key)
        self._counters.metrics_billed[request.region] += len(queries)
        queried = self._counters.queried
        for query in queries:
            metric = query["MetricStat"]["Metric"]
            instance = next((each["Value"] for each in metric["Dimensions"] if each["Name"] == "InstanceId"), "")
            queried[account, instance, metric["MetricName"]] += 1

    def _drip(self, mode: str | None) -> float | None:
        return self.drip if mode == "slow-drip" else None

    def _next_fault(self, request: Request) -> str | None:
        for operation in (request.operation, "*"):
            for fault in self._faults.get(operation, ()):
                if fault.count > 0 and fault.region in ("*", request.region):
                    fault.count -= 1
                    self._counters.faults += 1
                    return fault.mode
        return None

    def _reply(self, request: Request) -> Reply:
        if request.operation.startswith("AssumeRole") and request.body["RoleArn"] in self.refused_roles:
            return error(request, 403, "AccessDenied", f"not authorized to perform: sts:{request.operation}")
        account = self.account_of(request.key)
        if request.is_cloudwatch and account in self.denied:
            return error(request, 400, "AccessDeniedException", f"{request.operation} is not allowed in {account}")
        try:
            if request.operation == "GetMetricData":
                results, token = self.get_metric_data(request.region, account, request.body)
                body = METRIC_DATA[request.protocol](partial(results) if request.partial else results, token)
            elif request.operation == "ListMetrics":
                body = METRICS[request.protocol](self.list_metrics(request.region, account, request.body))
            elif request.operation in ("AssumeRole", "AssumeRoleWithWebIdentity"):
                body = self.assume_role(request.operation, request.body)
            elif request.operation == "GetCallerIdentity":
                body = self.get_caller_identity(request.key)
            elif request.operation == "ListAccountAliases":
                body = xml(request.operation, "<IsTruncated>false</IsTruncated><AccountAliases/>", IAM)
            else:
                raise RefusedError("InvalidAction", f"{request.operation} is not a valid action.")
        except RefusedError as refused:
            return error(request, 400, *refused.args)
        return Reply(200, CONTENT_TYPES[request.protocol], body, EXTRA[request.protocol])

    def _control(self, method: str, body: bytes) -> Reply:
        order = json.loads(body) if method == "POST" else {}
        if unknown := set(order) - _ORDERS | set(order.get("set", {})) - _SETTABLE:
            return Reply(400, "text/plain", f"unknown: {', '.join(sorted(unknown))}\n".encode())
        if order.get("clear"):
            self.clear()
        if "fault" in order:
            self.fault(**order["fault"])
        for name, value in order.get("set", {}).items():
            setattr(self, name, value)
        self.add_described(order.get("add", ()))
        counters = self.counters()
        if order.get("brief"):
            del counters["queried"]  # tens of thousands of entries
        if order.get("reset"):
            self.reset()
        return Reply(200, "application/json", json.dumps(counters).encode())


async def _write(writer: asyncio.StreamWriter, reply: Reply, *, cut_at: int | None = None, drip: float | None = None) -> None:
    head = (
        f"HTTP/1.1 {reply.status} X\r\nContent-Type: {reply.content_type}\r\nContent-Length: {len(reply.body)}\r\n"
        f"x-amzn-RequestId: r\r\n{reply.extra}\r\n"
    ).encode()
    if drip is not None:
        writer.write(head)
        for byte in reply.body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(drip)
        return
    writer.write(head + reply.body[:cut_at])
    await writer.drain()
    if cut_at is not None:
        raise ConnectionAbortedError
