"""A fast fake CloudWatch and STS over HTTP, for load and fault tests, with a ledger of the final values.

GetMetricData and ListMetrics are answered in the protocol of the request: awsJson1_0 (botocore), Smithy RPC v2 CBOR (the SDK
for Go), or the query protocol (older SDKs for Java). STS and IAM speak the query protocol. The fake stores no datapoints: a
value is a pure function of (seed, instance, metric, start of its native period), and when it becomes visible follows from the
instance's settings, so `ledger` returns the final values of any window.

In a test:

    with FakeCloudWatch(now=clock) as aws:
        aws.add("i-0a", runs=[(start, end)])
        aws.fault("GetMetricData", "throttle", 2)

For load: python -m tests.helpers.fake_cloudwatch --port 5602 --workers 2000 --latency 0.1 --regions eu-west-1,us-east-1
`instance_id(k)` names its instances; `fleet` describes them. GET /ctl returns the counters; POST /ctl, too, as they were before
a reset, with "brief" without `queried`, and takes any of
{"fault": {"operation": "GetMetricData", "mode": "throttle", "count": 3, "region": "*"}, "clear": true, "reset": true,
"set": {"latency": 0.2, "offset": 60, "skew": 0, ...}, "add": [{"id": "i-0a", "region": "eu-west-1", "runs": [[0, null]]}]}.

Accounts: an instance is in one account, `home` unless given. The keys of the environment are those of `home`, keys from
AssumeRole those of the role's account; each sees its own instances alone. An account in `links` is a monitoring account (AWS
calls it that): with IncludeLinkedAccounts its ListMetrics lists its source accounts too, and a query with an AccountId is
answered from that account. Without the link AWS refuses the whole call, and so does this. `denied` accounts refuse everything.

Billed, as the exporter counts it: all queries of every GetMetricData request that was sent a 200, so each page counts, and so
do bodies cut short; refused, cut or hanging ones do not. `calls` counts every request that arrived.
"""

import argparse
import asyncio
import base64
import contextlib
import functools
import itertools
import json
import random
import re
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import formatdate
from typing import Any, Literal, Self
from urllib.parse import parse_qsl

import cbor2

from exporter.core.model import Dimensions, MetricName
from tests.helpers.deadlines import scaled

Run = tuple[int | None, int | None]
ALWAYS: tuple[Run, ...] = ((None, None),)
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
MAX_QUERIES, MAX_DATAPOINTS, LISTED = 500, 100_800, 500
DAY = 86400
HOME = "123456789012"
NAMES: Mapping[tuple[str, str], MetricName] = {("AWS/EC2", "CPUUtilization"): "cpu", ("CWAgent", "mem_used_percent"): "memory"}
_SETTABLE = {"latency", "offset", "skew", "drip", "page_datapoints", "list_lag", "role_seconds", "page_series"}
_INSTANCE = re.compile(r"i-[0-9a-f]+")
_ID = re.compile(r"[a-z][a-zA-Z0-9_]*")
_SCOPE = re.compile(r"Credential=([^/,]+)/\d+/([^/]+)/")
_TABLE = 1 << 16
_RPC_V2 = "/service/GraniteServiceVersion20100801/operation/"
_METRIC_OPERATIONS = ("GetMetricData", "ListMetrics")
_CONTENT_TYPES = {"json": "application/x-amz-json-1.0", "cbor": "application/cbor", "query": "text/xml"}
_EXTRA = {"json": "", "cbor": "smithy-protocol: rpc-v2-cbor\r\n", "query": ""}
_STS = "https://sts.amazonaws.com/doc/2011-06-15/"
_IAM = "https://iam.amazonaws.com/doc/2010-05-08/"
_CLOUDWATCH = "http://monitoring.amazonaws.com/doc/2010-08-01/"

_Result = tuple[str, str, list[tuple[int, float]], bool]
"""One query of GetMetricData: id, label, (period start, value) of the page, whether it is complete."""


def instance_id(k: int) -> str:
    """The k-th instance of a fleet."""
    return f"i-{k:017x}"


@functools.cache
def _table() -> list[float]:
    values = [round(0.5 + 99 * j / _TABLE, 4) for j in range(_TABLE)]
    random.Random(0).shuffle(values)
    return values


@dataclass(frozen=True, slots=True)
class Series:
    """One memory series of an instance: its dimension set, and when the agent published under it."""

    dimensions: Dimensions
    runs: tuple[Run, ...] = ALWAYS
    plus: float = 0
    """Added to every value, so that a test can tell the series of one instance apart; `ledger` knows nothing of it."""


@dataclass(frozen=True, slots=True)
class OtherSeries:
    """One series of an instance beside CPU and memory; `ledger` knows nothing of it."""

    namespace: str
    name: str
    dimensions: Dimensions
    value: float
    """The Average of every period; every other statistic is `STATISTICS` more."""
    runs: tuple[Run, ...] = ALWAYS


STATISTICS: Mapping[str, float] = {"Average": 0, "Minimum": -1, "Maximum": 1, "p95": 0.5, "Sum": 100}


@dataclass(frozen=True, slots=True)
class Instance:
    """What CloudWatch has of one instance. Times are UTC seconds; None is open-ended."""

    id: str
    region: str
    runs: tuple[Run, ...]
    """A native period that starts in [from, to) has a datapoint."""
    memory: tuple[Series, ...]
    """Empty: no agent."""
    lag: int
    """A datapoint is visible this many seconds after its period's end."""
    revise: int
    """Until this many seconds after its period's end, half of the final value is shown."""
    late: Mapping[tuple[MetricName, int], int]
    """(metric, period start) → further seconds until it is visible."""
    lost: frozenset[tuple[MetricName, int]]
    """Datapoints that never appear."""
    revised: Mapping[tuple[MetricName, int], int]
    """(metric, period start) → what counts there instead of `revise`."""
    account: str = ""
    """The account that it is in; empty: `home`."""
    others: tuple[OtherSeries, ...] = ()


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
    assumed: list[tuple[str, str | None]] = field(default_factory=list)
    """(role, external id) of every AssumeRole."""
    tokens: list[str] = field(default_factory=list)
    """The token of every AssumeRoleWithWebIdentity."""
    keys: list[str] = field(default_factory=list)
    """Access keys, in the order they came into use."""


@dataclass(frozen=True)
class _Request:
    region: str
    key: str
    operation: str
    protocol: Literal["json", "cbor", "query"]
    body: Mapping[str, Any]
    partial: bool = False
    """Whether a fault leaves out the newest datapoints."""

    @property
    def is_json(self) -> bool:
        return self.protocol == "json"

    @property
    def is_cloudwatch(self) -> bool:
        return self.protocol != "query" or self.operation in _METRIC_OPERATIONS


@dataclass
class _Reply:
    status: int
    content_type: str
    body: bytes
    extra: str = ""


class _RefusedError(Exception):
    """A request that AWS answers with an error: code, message."""


class FakeCloudWatch:
    """The server, in a thread of its own between start() and stop(); a context manager.

    Attributes that may change while it runs: latency (seconds before each answer), offset (seconds added to the clock),
    skew (seconds the Date header is off), drip (seconds between the bytes of a slow-drip), page_datapoints, page_series (of a
    ListMetrics page), list_lag (seconds until ListMetrics lists a new series), role_seconds (how long a role's keys live),
    memory_metric and memory_dimension (what the agents publish memory as; before `add`), lie (operation, request, and the
    parsed body of a good answer → what is sent instead: the same object, changed in place, another one, or raw bytes).
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
        self.period = period
        self.latency = latency
        self.offset = 0.0
        self.skew = 0.0
        self.drip = 0.05
        self.page_datapoints = MAX_DATAPOINTS
        self.page_series = LISTED
        self.list_lag = list_lag
        self.role_seconds = 3600
        self.memory_metric, self.memory_dimension = ("CWAgent", "mem_used_percent"), "InstanceId"
        self.lie: Callable[[str, Any, Any], object] | None = None
        self.port = port
        self.home = HOME
        self.links: dict[str, tuple[str, ...]] = {}
        """Monitoring account → its source accounts."""
        self.denied: set[str] = set()
        """Accounts whose CloudWatch refuses every call."""
        self.refused_roles: set[str] = set()
        """ARNs of roles that may not be assumed."""
        self._roles_of_keys: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self.instances: dict[tuple[str, str], Instance] = {}
        self._now = now
        self._counters = _Counters()
        self._faults: dict[str, list[_Fault]] = {}
        self._bases: dict[tuple[str, str], int] = {}
        self._listings: dict[int, list[tuple[dict[str, Any], str | None]]] = {}
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

    # Instances and faults

    def now(self) -> float:
        return self._now() + self.offset

    def add(
        self,
        id: str,
        region: str = "eu-west-1",
        *,
        runs: Iterable[Run] = ALWAYS,
        agent: bool = True,
        memory: Sequence[Series] | None = None,
        instance_type: str = "m5.2xlarge",
        lag: int = 60,
        revise: int = 0,
        late: Mapping[tuple[MetricName, int], int] | None = None,
        lost: Iterable[tuple[MetricName, int]] = (),
        revised: Mapping[tuple[MetricName, int], int] | None = None,
        account: str = "",
        others: Sequence[OtherSeries] = (),
    ) -> Instance:
        """Add an instance or replace one; `memory` overrides the one series that `agent` gives it."""
        if memory is None:
            usual = (("ImageId", "ami-0c"), (self.memory_dimension, id), ("InstanceType", instance_type))
            memory = [Series(usual)] if agent else []
        exceptions = dict(late or {}), frozenset(lost), dict(revised or {})
        instance = Instance(id, region, tuple(runs), tuple(memory), lag, revise, *exceptions, account, tuple(others))
        self.instances[region, id] = instance
        return instance

    def change(self, id: str, region: str = "eu-west-1", **changes: Any) -> Instance:  # noqa: ANN401  # fields of Instance
        """Replace fields of an instance, such as runs=((start, end),)."""
        instance = replace(self.instances[region, id], **changes)
        self.instances[region, id] = instance
        return instance

    def value(self, id: str, metric: MetricName, start: int) -> float:
        """The final percent of the native period that starts at `start`, whether the instance ran or not."""
        base = self._bases.get((id, metric))
        if base is None:
            base = self._bases[id, metric] = zlib.crc32(f"{self.seed}/{id}/{metric}".encode())
        return _table()[(base + start // self.period * 40503) % _TABLE]

    def ledger(self, start: int, end: int, period: int | None = None) -> dict[tuple[str, MetricName, int], float]:
        """The final values of [start, end): (instance, metric, period start) → percent, averaged over `period` seconds.

        Late datapoints are in it, lost ones are not.
        """
        step = period or self.period
        final: dict[tuple[str, MetricName, int], float] = {}
        metrics: tuple[MetricName, MetricName] = ("cpu", "memory")
        for instance in list(self.instances.values()):
            for metric in metrics:
                starts: set[int] = set()
                for runs in [ALWAYS] if metric == "cpu" else [series.runs for series in instance.memory]:
                    for low, high in _overlaps(instance.runs, runs, start, end):
                        starts.update(range(_up(low, self.period), high, self.period))
                kept = sorted(at for at in starts if (metric, at) not in instance.lost)
                for at, value in self._average([(at, self.value(instance.id, metric, at)) for at in kept], step):
                    final[instance.id, metric, at] = value
        return final

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
            "assumed": list(now.assumed),
            "tokens": list(now.tokens),
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

    # GetMetricData

    def _get_metric_data(self, region: str, account: str, body: Mapping[str, Any]) -> tuple[list[_Result], str]:
        """Return the results of one page, and the token of the next one or ""."""
        queries = body["MetricDataQueries"]
        for query in queries:
            if query.get("AccountId", account) not in (account, *self.links.get(account, ())):
                raise _RefusedError("ValidationError", f"The account {query['AccountId']} is not linked to this account.")
        limit = min(self.page_datapoints, body.get("MaxDatapoints") or MAX_DATAPOINTS)
        self._check(queries, body, limit)
        token = (
            base64.b64decode(body["NextToken"]).decode().split(",")
            if body.get("NextToken")
            else ["0", "0", str(int(self.now()))]
        )
        number, skip, now = map(int, token)  # all pages show one moment
        results: list[_Result] = []
        descending = body.get("ScanBy") != "TimestampAscending"
        while number < len(queries) and limit > 0:
            query = queries[number]
            points = self._points(
                region, query.get("AccountId", account), query["MetricStat"], int(body["StartTime"]), int(body["EndTime"]), now
            )
            if descending:
                points.reverse()
            page = points[skip : skip + limit]
            limit -= len(page)
            whole = skip + len(page) == len(points)
            results.append((query["Id"], query.get("Label") or query["MetricStat"]["Metric"]["MetricName"], page, whole))
            number, skip = (number + 1, 0) if whole else (number, skip + len(page))
        more = number < len(queries)
        return results, base64.b64encode(f"{number},{skip},{now}".encode()).decode() if more else ""

    def _check(self, queries: Sequence[Mapping[str, Any]], body: Mapping[str, Any], limit: int) -> None:
        if not 0 < len(queries) <= MAX_QUERIES:
            raise _RefusedError("ValidationError", "The collection MetricDataQueries must not have a size greater than 500.")
        if len({query["Id"] for query in queries}) < len(queries):
            raise _RefusedError("ValidationError", "The values for parameter id in MetricDataQueries are not unique.")
        if not 0 < limit <= MAX_DATAPOINTS:
            raise _RefusedError("ValidationError", "MaxDatapoints must be between 1 and 100800.")
        if body["StartTime"] >= body["EndTime"]:
            raise _RefusedError("ValidationError", "The parameter StartTime must be less than the parameter EndTime.")
        for query in queries:
            period = query["MetricStat"]["Period"]
            if not _ID.fullmatch(query["Id"]) or period <= 0 or (period % 60 and period not in (1, 5, 10, 20, 30)):
                raise _RefusedError("ValidationError", f"Id or Period of {query['Id']} is not valid.")
            for dimension in query["MetricStat"]["Metric"]["Dimensions"]:
                if dimension["Name"] == "InstanceId" and not _INSTANCE.fullmatch(dimension["Value"]):
                    raise _RefusedError(
                        "ValidationError", f"The value {dimension['Value']!r} for dimension InstanceId is not valid."
                    )

    def _points(
        self, region: str, account: str, stat: Mapping[str, Any], start: int, end: int, now: int
    ) -> list[tuple[int, float]]:
        metric = stat["Metric"]
        dimensions = {each["Name"]: each["Value"] for each in metric["Dimensions"]}
        if (metric["Namespace"], metric["MetricName"]) == self.memory_metric:
            name: MetricName = "memory"
        elif NAMES.get((metric["Namespace"], metric["MetricName"])) == "cpu" and stat["Stat"] == "Average":
            name = "cpu"
        else:
            return self._other_points(region, account, stat, dimensions, start, end, now)
        instance = self.instances.get((region, dimensions.get("InstanceId" if name == "cpu" else self.memory_dimension, "")))
        if instance is None or (instance.account or self.home) != account:
            return []
        if name == "cpu":
            series = Series((), ALWAYS if len(dimensions) == 1 else ())
        else:
            series = next((each for each in instance.memory if dict(each.dimensions) == dimensions), Series((), ()))
        age = now - start
        finest = 60 if age < 15 * DAY else 300 if age < 63 * DAY else 3600
        step = max(stat["Period"], self.period, finest)
        start -= start % finest
        points = self._average(self._visible(instance, name, series.runs, _up(start, step), end, now), step)
        return [(at, value + series.plus) for at, value in points] if series.plus else points

    def _other_points(
        self,
        region: str,
        account: str,
        stat: Mapping[str, Any],
        dimensions: Mapping[str, str],
        start: int,
        end: int,
        now: int,
    ) -> list[tuple[int, float]]:
        metric, step = stat["Metric"], max(stat["Period"], self.period)
        here = [one for one in list(self.instances.values()) if (one.account or self.home) == account]
        for instance in here:
            for other in instance.others:
                found = (other.namespace, other.name, dict(other.dimensions))
                if instance.region == region and found == (metric["Namespace"], metric["MetricName"], dimensions):
                    until = min(end, now - instance.lag - step + 1)
                    runs = _overlaps(instance.runs, other.runs, start, until)
                    value = other.value + STATISTICS[stat["Stat"]]
                    return [(at, value) for low, high in runs for at in range(_up(low, step), high, step)]
        return []

    def _visible(
        self, instance: Instance, metric: MetricName, runs: tuple[Run, ...], start: int, end: int, now: int
    ) -> list[tuple[int, float]]:
        """Native datapoints of [start, end) as they are seen at `now`."""
        length = self.period
        starts: list[int] = []
        for low, high in _overlaps(instance.runs, runs, start, min(end, now - instance.lag - length + 1)):
            starts += range(_up(low, length), high, length)
        if instance.late or instance.lost:
            late = instance.late
            starts = [
                at
                for at in starts
                if (metric, at) not in instance.lost and now >= at + length + instance.lag + late.get((metric, at), 0)
            ]
        newest, revise, revised = now - length, instance.revise, instance.revised
        return [
            (at, value if newest - at >= (revised.get((metric, at), revise) if revised else revise) else value / 2)
            for at in starts
            for value in [self.value(instance.id, metric, at)]
        ]

    def _average(self, points: list[tuple[int, float]], step: int) -> list[tuple[int, float]]:
        if step == self.period:
            return points
        buckets: dict[int, list[float]] = {}
        for at, value in points:
            buckets.setdefault(at - at % step, []).append(value)
        return [(at, sum(values) / len(values)) for at, values in buckets.items()]

    # ListMetrics

    def _list_metrics(self, region: str, account: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("RecentlyActive") not in (None, "PT3H"):
            raise _RefusedError("InvalidParameterValue", "RecentlyActive must be PT3H.")
        if body.get("NextToken"):
            listing, offset = map(int, body["NextToken"].split(":"))
        else:
            listing, offset = time.monotonic_ns(), 0
            window = 3 * 3600 if body.get("RecentlyActive") else 14 * DAY
            linked = bool(body.get("IncludeLinkedAccounts"))
            seen = {account, *(self.links.get(account, ()) if linked else ())}
            if body.get("OwningAccount") and linked:
                seen &= {body["OwningAccount"]}
            self._listings[listing] = [
                (
                    {
                        "Namespace": namespace,
                        "MetricName": name,
                        "Dimensions": [{"Name": n, "Value": v} for n, v in dimensions],
                    },
                    owner if linked else None,
                )
                for owner, (namespace, name), dimensions in self._listed(region, window)
                if owner in seen
                and body.get("Namespace") in (None, namespace)
                and body.get("MetricName") in (None, name)
                and all(_has_dimension(dimensions, each) for each in body.get("Dimensions", ()))
            ]
        metrics = self._listings[listing]
        page = metrics[offset : offset + self.page_series]
        answer: dict[str, Any] = {"Metrics": [metric for metric, _ in page]}
        if any(owner for _, owner in page):
            answer["OwningAccounts"] = [owner for _, owner in page]
        if offset + self.page_series < len(metrics):
            answer["NextToken"] = f"{listing}:{offset + self.page_series}"
        else:
            del self._listings[listing]
        return answer

    def _listed(self, region: str, window: int) -> Iterator[tuple[str, tuple[str, str], Dimensions]]:
        cpu, memory = next(iter(NAMES)), self.memory_metric
        for instance in list(self.instances.values()):
            if instance.region != region:
                continue
            if self._is_active(instance, ALWAYS, window):
                yield instance.account or self.home, cpu, (("InstanceId", instance.id),)
            for series in instance.memory:
                if self._is_active(instance, series.runs, window):
                    yield instance.account or self.home, memory, series.dimensions
            for other in instance.others:
                if self._is_active(instance, other.runs, window):
                    yield instance.account or self.home, (other.namespace, other.name), other.dimensions

    def _is_active(self, instance: Instance, runs: tuple[Run, ...], window: int) -> bool:
        """Whether a datapoint became visible within the window, and the first one so long ago that it got listed."""
        now = int(self.now())
        newest = now - instance.lag - self.period
        return any(
            _up(low, self.period) <= newest - self.list_lag and min(newest, high - 1) - newest > -window
            for low, high in _overlaps(instance.runs, runs, 0, newest + 1)
        )

    # STS

    def _get_caller_identity(self, key: str) -> bytes:
        arn = f"arn:aws:iam::{self.home}:user/exporter"
        if key in self._roles_of_keys:
            arn = f"{self._roles_of_keys[key].replace(':iam:', ':sts:').replace(':role/', ':assumed-role/')}/session"
        account = arn.split(":")[4]
        return _xml("GetCallerIdentity", f"<Arn>{arn}</Arn><UserId>AIDA</UserId><Account>{account}</Account>")

    def _assume_role(self, operation: str, body: Mapping[str, str]) -> bytes:
        self._counters.assumed.append((body["RoleArn"], body.get("ExternalId")))
        if operation == "AssumeRoleWithWebIdentity":
            self._counters.tokens.append(body["WebIdentityToken"])
        key = f"ASIA{next(self._numbers):016d}"
        self._roles_of_keys[key] = body["RoleArn"]
        # botocore compares it with the machine's clock, so the fake's own plays no part
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.role_seconds))
        return _xml(
            operation,
            f"<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            f"<SessionToken>t</SessionToken><Expiration>{expires}</Expiration></Credentials>"
            f"<AssumedRoleUser><AssumedRoleId>AROA:s</AssumedRoleId><Arn>{body['RoleArn']}</Arn></AssumedRoleUser>",
        )

    def _account(self, key: str) -> str:
        """The account of an access key."""
        return self._roles_of_keys[key].split(":")[4] if key in self._roles_of_keys else self.home

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
                    await self._answer(_parse(path, headers, body), writer)
                finally:
                    self._counters.concurrent -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client went away, or a fault closed the connection
        finally:
            writer.close()

    async def _answer(self, request: _Request, writer: asyncio.StreamWriter) -> None:
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
        reply = _failure(mode, request) or self._reply(replace(request, partial=mode == "partial"))
        if mode == "empty":
            reply.body = b""
        if self.lie and reply.status == 200 and request.is_json:
            told = self.lie(request.operation, request.body, json.loads(reply.body))
            reply.body = told if isinstance(told, bytes) else json.dumps(told).encode()
        if reply.status == 200 and request.operation == "GetMetricData":
            counters.metrics_billed[request.region] += len(request.body["MetricDataQueries"])
            for query in request.body["MetricDataQueries"]:
                metric = query["MetricStat"]["Metric"]
                instance = next((each["Value"] for each in metric["Dimensions"] if each["Name"] == "InstanceId"), "")
                counters.queried[self._account(request.key), instance, metric["MetricName"]] += 1
        reply.extra += f"Date: {formatdate(self.now() + self.skew, usegmt=True)}\r\n"
        await _write(writer, reply, cut_at=len(reply.body) // 2 if mode == "trunc" else None, drip=self._drip(mode))
        counters.last_answer = time.monotonic()

    def _drip(self, mode: str | None) -> float | None:
        return self.drip if mode == "slow-drip" else None

    def _next_fault(self, request: _Request) -> str | None:
        for operation in (request.operation, "*"):
            for fault in self._faults.get(operation, ()):
                if fault.count > 0 and fault.region in ("*", request.region):
                    fault.count -= 1
                    self._counters.faults += 1
                    return fault.mode
        return None

    def _reply(self, request: _Request) -> _Reply:
        if request.operation.startswith("AssumeRole") and request.body["RoleArn"] in self.refused_roles:
            return _error(request, 403, "AccessDenied", f"not authorized to perform: sts:{request.operation}")
        account = self._account(request.key)
        if request.is_cloudwatch and account in self.denied:
            return _error(request, 400, "AccessDeniedException", f"{request.operation} is not allowed in {account}")
        try:
            if request.operation == "GetMetricData":
                results, token = self._get_metric_data(request.region, account, request.body)
                body = _METRIC_DATA[request.protocol](_partial(results) if request.partial else results, token)
            elif request.operation == "ListMetrics":
                body = _METRICS[request.protocol](self._list_metrics(request.region, account, request.body))
            elif request.operation in ("AssumeRole", "AssumeRoleWithWebIdentity"):
                body = self._assume_role(request.operation, request.body)
            elif request.operation == "GetCallerIdentity":
                body = self._get_caller_identity(request.key)
            elif request.operation == "ListAccountAliases":
                body = _xml(request.operation, "<IsTruncated>false</IsTruncated><AccountAliases/>", _IAM)
            else:
                raise _RefusedError("InvalidAction", f"{request.operation} is not a valid action.")
        except _RefusedError as refused:
            return _error(request, 400, *refused.args)
        return _Reply(200, _CONTENT_TYPES[request.protocol], body, _EXTRA[request.protocol])

    def _control(self, method: str, body: bytes) -> _Reply:
        order = json.loads(body) if method == "POST" else {}
        if unknown := set(order) - {"fault", "clear", "reset", "set", "add", "brief"} | set(order.get("set", {})) - _SETTABLE:
            return _Reply(400, "text/plain", f"unknown: {', '.join(sorted(unknown))}\n".encode())
        if order.get("clear"):
            self.clear()
        if "fault" in order:
            self.fault(**order["fault"])
        for name, value in order.get("set", {}).items():
            setattr(self, name, value)
        for instance in order.get("add", ()):
            self.add(**{**instance, "runs": [tuple(run) for run in instance.get("runs", ALWAYS)]})
        counters = self.counters()
        if order.get("brief"):
            del counters["queried"]  # tens of thousands of entries
        if order.get("reset"):
            self.reset()
        return _Reply(200, "application/json", json.dumps(counters).encode())


def fleet(fake: FakeCloudWatch, count: int, regions: Sequence[str]) -> None:
    """Add instances 0 to count − 1, which always ran: the k-th in regions[k % len(regions)], an agent in all but k % 50 == 49.

    Every tenth agent publishes by InstanceId alone, the others with ImageId and InstanceType.
    """
    for k in range(count):
        memory = [Series((("InstanceId", instance_id(k)),))] if k % 10 == 0 else None
        fake.add(instance_id(k), regions[k % len(regions)], agent=k % 50 != 49, memory=memory)


def _up(time: int, step: int) -> int:
    return time + -time % step


def _overlaps(one: tuple[Run, ...], other: tuple[Run, ...], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where runs of both overlap within [start, end)."""
    for a, b in one:
        for c, d in other:
            low = max(start, a or start, c or start)
            high = min(end, end if b is None else b, end if d is None else d)
            if low < high:
                yield low, high


def _has_dimension(dimensions: Dimensions, wanted: Mapping[str, str]) -> bool:
    """Whether a series has a dimension of ListMetrics: by name, and by value where one is given."""
    return any(name == wanted["Name"] and wanted.get("Value") in (None, value) for name, value in dimensions)


def _parse(path: str, headers: Mapping[str, str], body: bytes) -> _Request:
    scope = _SCOPE.search(headers.get("authorization", ""))
    key, region = scope.groups() if scope else ("", "")
    if "x-amz-target" in headers:
        return _Request(region, key, headers["x-amz-target"].rpartition(".")[2], "json", json.loads(body))
    if path.startswith(_RPC_V2):
        fields = cbor2.loads(body) if body else {}
        for name in ("StartTime", "EndTime"):
            if name in fields:
                fields[name] = fields[name].timestamp()
        return _Request(region, key, path.removeprefix(_RPC_V2), "cbor", fields)
    form = dict(parse_qsl(body.decode()))
    operation = form.get("Action", "?")
    return _Request(region, key, operation, "query", _query_fields(form) if operation in _METRIC_OPERATIONS else form)


def _failure(mode: str | None, request: _Request) -> _Reply | None:
    if mode == "500":
        return _Reply(503, "text/html", b"<html>Service Unavailable</html>")
    if mode == "429":
        return _Reply(429, "application/x-amz-json-1.0", b"{}")
    denied = f"User: arn:aws:iam::123456789012:user/exporter is not authorized to perform: {request.operation}"
    failures = {
        "throttle": (400, "Throttling", "Rate exceeded"),
        "internal": (500, "InternalFailure" if request.protocol == "query" else "InternalServiceFault", "The request failed."),
        "access_denied": (403 if request.protocol == "query" else 400, "AccessDenied", denied),
        "expired_token": (403, "ExpiredToken", "The security token included in the request is expired"),
        "bad_credentials": (
            403,
            "InvalidClientTokenId" if request.protocol == "query" else "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        "validation": (400, "ValidationError", "The request is not valid."),
    }
    return _error(request, *failures[mode]) if mode in failures else None


def _error(request: _Request, status: int, code: str, message: str) -> _Reply:
    extra = f"x-amzn-query-error: {code};Sender\r\n{_EXTRA[request.protocol]}"
    fields = {"__type": f"com.amazonaws.cloudwatch#{code}", "message": message}
    if request.protocol == "json":
        return _Reply(status, _CONTENT_TYPES["json"], json.dumps(fields).encode(), extra)
    if request.protocol == "cbor":
        return _Reply(status, _CONTENT_TYPES["cbor"], cbor2.dumps(fields), extra)
    error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
    return _Reply(status, "text/xml", f"<ErrorResponse>{error}<RequestId>r</RequestId></ErrorResponse>".encode())


def _xml(operation: str, result: str, namespace: str = _STS) -> bytes:
    return (
        f'<{operation}Response xmlns="{namespace}"><{operation}Result>{result}</{operation}Result>'
        f"<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></{operation}Response>"
    ).encode()


def _partial(results: list[_Result]) -> list[_Result]:
    """Every series without its newest datapoint, marked as PartialData."""
    cut = []
    for id, label, page, _ in results:
        newest = max(page, default=None)
        cut.append((id, label, [point for point in page if point != newest], False))
    return cut


# The protocols


def _json_metric_data(results: list[_Result], token: str) -> bytes:
    times: dict[tuple[int, ...], str] = {}
    texts = []
    for id, label, page, whole in results:
        key = tuple(at for at, _ in page)
        if key not in times:
            times[key] = ",".join([f"{at / 1e9!r}E9" for at in key])
        values = ",".join([repr(value) for _, value in page])
        texts.append(
            f'{{"Id":"{id}","Label":"{label}","Timestamps":[{times[key]}],"Values":[{values}],'
            f'"StatusCode":"{"Complete" if whole else "PartialData"}"}}'
        )
    more = f',"NextToken":"{token}"' if token else ""
    return ('{"MetricDataResults":[' + ",".join(texts) + '],"Messages":[]' + more + "}").encode()


def _cbor_metric_data(results: list[_Result], token: str) -> bytes:
    tags: dict[int, cbor2.CBORTag] = {at: cbor2.CBORTag(1, at) for *_, page, _ in results for at, _ in page}
    answer: dict[str, Any] = {
        "MetricDataResults": [
            {
                "Id": id,
                "Label": label,
                "Timestamps": [tags[at] for at, _ in page],
                "Values": [value for _, value in page],
                "StatusCode": "Complete" if whole else "PartialData",
            }
            for id, label, page, whole in results
        ],
        "Messages": [],
    }
    return cbor2.dumps({**answer, "NextToken": token} if token else answer)


def _xml_metric_data(results: list[_Result], token: str) -> bytes:
    texts = []
    for id, label, page, whole in results:
        times = "".join([f"<member>{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(at))}</member>" for at, _ in page])
        values = "".join([f"<member>{value!r}</member>" for _, value in page])
        texts.append(
            f"<member><Id>{id}</Id><Label>{label}</Label><Timestamps>{times}</Timestamps><Values>{values}</Values>"
            f"<StatusCode>{'Complete' if whole else 'PartialData'}</StatusCode></member>"
        )
    more = f"<NextToken>{token}</NextToken>" if token else ""
    return _xml("GetMetricData", f"<MetricDataResults>{''.join(texts)}</MetricDataResults><Messages/>{more}", _CLOUDWATCH)


def _xml_metrics(answer: Mapping[str, Any]) -> bytes:
    texts = []
    for metric in answer["Metrics"]:
        dimensions = "".join(
            [f"<member><Name>{each['Name']}</Name><Value>{each['Value']}</Value></member>" for each in metric["Dimensions"]]
        )
        texts.append(
            f"<member><Namespace>{metric['Namespace']}</Namespace><MetricName>{metric['MetricName']}</MetricName>"
            f"<Dimensions>{dimensions}</Dimensions></member>"
        )
    more = f"<NextToken>{answer['NextToken']}</NextToken>" if "NextToken" in answer else ""
    return _xml("ListMetrics", f"<Metrics>{''.join(texts)}</Metrics>{more}", _CLOUDWATCH)


_METRIC_DATA: Mapping[str, Callable[[list[_Result], str], bytes]] = {
    "json": _json_metric_data,
    "cbor": _cbor_metric_data,
    "query": _xml_metric_data,
}
_METRICS: Mapping[str, Callable[[Mapping[str, Any]], bytes]] = {
    "json": lambda answer: json.dumps(answer).encode(),
    "cbor": cbor2.dumps,
    "query": _xml_metrics,
}


def _query_fields(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a CloudWatch request in the query protocol (`A.member.1.B=x`), as the other protocols have them."""
    tree: dict[str, Any] = {}
    for path, value in form.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = _QUERY_TYPES.get(name, str)(value)

    def lists(node: Any) -> Any:  # noqa: ANN401  # a tree of mappings
        if not isinstance(node, dict):
            return node
        if "member" in node:
            return [lists(each) for _, each in sorted(node["member"].items(), key=lambda item: int(item[0]))]
        return {name: lists(each) for name, each in node.items()}

    fields: dict[str, Any] = lists(tree)
    for query in fields.get("MetricDataQueries", ()):
        query["MetricStat"]["Metric"].setdefault("Dimensions", [])
    return fields


def _query_time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


_QUERY_TYPES: Mapping[str, Callable[[str], object]] = {
    "Period": int,
    "MaxDatapoints": int,
    "StartTime": _query_time,
    "EndTime": _query_time,
    "ReturnData": lambda text: text == "true",
    "IncludeLinkedAccounts": lambda text: text == "true",
}


async def _write(writer: asyncio.StreamWriter, reply: _Reply, *, cut_at: int | None = None, drip: float | None = None) -> None:
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


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A fast fake CloudWatch with a fleet that always ran.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2000)
    parser.add_argument("--regions", default="eu-west-1")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--period", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    fake = FakeCloudWatch(port=arguments.port, latency=arguments.latency, period=arguments.period, seed=arguments.seed)
    fleet(fake, arguments.workers, arguments.regions.split(","))
    serving = asyncio.create_task(fake.serve(lambda: print(fake.url, flush=True)))
    for ending in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(ending, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


if __name__ == "__main__":
    asyncio.run(_main())
