"""The real application under a real uvicorn on a free port, queried with httpx."""

import asyncio
import base64
import csv
import gzip
import io
import json
import logging
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import bcrypt
import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from exporter.core.condition import Condition
from exporter.core.distribution import Distribution
from exporter.core.errors import StoreUnavailableError
from exporter.core.liveness import Liveness
from exporter.core.model import (
    ExporterMetrics,
    Fleet,
    InstanceInterval,
    InventoryEntry,
    Snapshot,
    Worker,
    WorkerFacts,
    WorkerGauges,
)
from exporter.core.settings import WebSettings
from exporter.history.reader import HistoryReader
from exporter.metrics.gzip_member import deflated
from exporter.metrics.worker_block import WorkerBlock
from exporter.storage.rows import HistoryRow
from exporter.web import auth, routes, webconfig
from exporter.web.application import DEFAULTS, PROBES, create_app
from exporter.web.backend import Backend, HourlyAggregates
from exporter.web.connections import Connections, Limits
from exporter.web.http_protocol import protect
from exporter.web.live_config import LiveWebConfig
from tests.helpers.certificates import write_certificate
from tests.helpers.deadlines import scaled
from tests.helpers.in_process_exporter import DirectBridge

NOW = 1_790_000_000
DAY, HOUR = 86400, 3600
STOPPED_WITHIN_SECONDS = 60


def gauges(worker_id: str, **changes: Any) -> WorkerGauges:  # noqa: ANN401 -- fields of both records
    names = {"cpu", "cpu_time", "memory", "memory_time", "show_state"}
    worker = Worker(id=worker_id, region="eu-west-1", instance_id=f"i-{worker_id}", status="running", active_labs=3)
    worker = replace(worker, **{name: value for name, value in changes.items() if name not in names})
    values = {"show_state": True, "cpu": 45.25, "cpu_time": NOW - 200}
    return WorkerGauges(worker, NOW - 10, **(values | {name: changes[name] for name in names & changes.keys()}))


def snapshot(*workers: WorkerGauges) -> Snapshot:
    return WorkerBlock().snapshot(workers, fresh_until=NOW + 60)


def entry(worker_id: str, **changes: Any) -> InventoryEntry:  # noqa: ANN401 -- fields of the record
    known = InventoryEntry(
        worker_id=worker_id,
        region="us-east-1",
        name=f"name of {worker_id}",
        instance_type="c5.xlarge",
        cml_version="2.7",
        created_at=NOW - 9 * DAY,
        terminated_at=NOW - 2 * DAY,
        status="terminated",
        first_seen=NOW - 8 * DAY,
        last_seen=NOW - 2 * DAY,
        instances=(
            InstanceInterval("i-old", "us-east-1", NOW - 8 * DAY, NOW - 5 * DAY),
            InstanceInterval("i-new", "us-east-1", NOW - 5 * DAY, NOW),
        ),
    )
    return replace(known, **changes)


@dataclass
class Memory:
    """In-memory stand-ins for the parts of an exporter that a backend reads; tests set their state."""

    retention: int | None = 30 * DAY
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    snapshot: Snapshot | None = None
    ready: bool = True
    sources: dict[str, str | None] = field(default_factory=dict)
    time: float = NOW
    known: list[InventoryEntry] = field(default_factory=list)
    newest: dict[str, int] = field(default_factory=dict)
    fleet: Fleet = field(default_factory=lambda: Fleet(0, (), namespace="cml_cloud_manager.cml_workers"))
    failure: Exception | None = None
    liveness: Liveness = field(default_factory=Liveness)
    hourly: HourlyAggregates | None = None
    hourly_price: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Gauge("cml_exporter_leader", "Whether it is the leader.", registry=self.registry).set(1)

    def backend(self) -> Backend:
        return Backend(
            period=300,
            collector=self,
            telemetry=self,
            reader=HistoryReader(period=300, history=self, archive=None, wanted_retention=DAY, wall=self.now),
            bridge=DirectBridge(),
            client=self,
            history=self,
            hourly=self.hourly,
            hourly_price=self.hourly_price,
            inventory=self,
            fleet_inventory=self,
            liveness=self.liveness,
            wall=self.now,
        )

    def now(self) -> float:
        return self.time

    async def close(self) -> None:
        pass

    # -- the collector and the telemetry

    @property
    def observed(self) -> asyncio.Event:
        event = asyncio.Event()
        if self.ready:
            event.set()
        return event

    @property
    def conditions(self) -> Mapping[str, Condition]:
        return {part: Condition(error, NOW - 3 * HOUR) for part, error in self.sources.items()}

    def rendered(self, max_age: float) -> ExporterMetrics:
        text = generate_latest(self.registry)
        return ExporterMetrics(text, deflated(text))

    # -- the inventory

    @property
    def entries(self) -> Mapping[str, InventoryEntry]:
        return {entry.worker_id: entry for entry in self.known}

    async def load(self) -> None:
        if self.failure:
            raise self.failure

    async def read(self, worker_id: str) -> InventoryEntry | None:
        await self.load()
        return self.entries.get(worker_id)

    # -- the history

    async def current_retention(self) -> int | None:
        return self.retention

    async def read_samples(self, worker_id: str, start: int, end: int, *, limit: int) -> tuple[list[HistoryRow], int | None]:
        return [], None

    async def read_statistics(
        self,
        worker_id: str,
        start: int,
        end: int,
        interval: int,
        *,
        limit: int,
        zone: ZoneInfo | None = None,
        wanted: Distribution | None = None,
    ) -> tuple[list[HistoryRow], int | None]:
        return [], None

    async def latest_timestamps(self, worker_ids: Collection[str]) -> Mapping[str, int]:
        return {worker_id: self.newest[worker_id] for worker_id in worker_ids if worker_id in self.newest}

    async def columns(
        self, worker_ids: Collection[str], start: int, end: int, field: str | None
    ) -> AsyncIterator[tuple[str, str, Sequence[int], Sequence[Any]]]:
        nothing: list[tuple[str, str, Sequence[int], Sequence[Any]]] = []
        for each in nothing:
            yield each


@contextmanager
def serving(
    parts: Memory,
    *,
    web: webconfig.WebConfig | LiveWebConfig | None = None,
    settings: WebSettings = DEFAULTS,
    connections: Connections | None = None,
    **options: Any,  # noqa: ANN401 -- of httpx.Client
) -> Iterator[httpx.Client]:
    """Serve the backend of `parts` while the block runs; yields a client."""
    web = web or webconfig.WebConfig()
    current = web.current if isinstance(web, LiveWebConfig) else lambda: web
    app = create_app(parts.backend(), settings, users=lambda: web.users, http=current)
    config = uvicorn.Config(app, log_config=None, lifespan="off", access_log=False)
    web.apply(config)
    protect(config, connections if connections is not None else Connections(Limits()), admits=web.admits)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started)
            url = f"{'https' if web.tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, trust_env=False, timeout=scaled(10), **options) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(STOPPED_WITHIN_SECONDS)
            if stuck := thread.is_alive():
                server.force_exit = True
                thread.join()
            assert not stuck, "the server still waits for a connection that has ended"


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + scaled(seconds)
    while not condition():
        assert time.monotonic() < deadline, "the condition was not true in time"
        time.sleep(0.005)


Serve = Callable[..., httpx.Client]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serving`, until the test ends."""
    with ExitStack() as stack:
        yield lambda backend, **options: stack.enter_context(serving(backend, **options))


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client for a small fleet that no test changes."""
    backend = Memory(
        snapshot=snapshot(gauges("w1"), gauges("w2", region="us-east-1"), gauges("w3", status="stopped")),
        known=[entry("w0")],
        newest={"w0": NOW},
    )
    with serving(backend) as client:
        yield client


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    """A client for an exporter with the users alice and bøb."""
    users = {"alice": hashed("secret"), "bøb": hashed("pass:wörd")}
    with serving(Memory(), web=webconfig.WebConfig(users=users)) as client:
        yield client


def problem(response: httpx.Response, status: int) -> str:
    """Check that a response is a problem; return its detail."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body.keys() == {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert body["detail"].endswith((".", "…"))
    return str(body["detail"])


# -- /metrics


def flushed(body: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush(zlib.Z_SYNC_FLUSH) + packer.flush()


def raw_metrics(client: httpx.Client) -> bytes:
    with client.stream("GET", "/metrics", headers={"Accept-Encoding": "gzip"}) as response:
        return b"".join(response.iter_raw())


def test_metrics_are_the_worker_block_and_the_exporter_metrics_compressed_or_not(serve: Serve) -> None:
    client = serve(Memory(snapshot=snapshot(*(gauges(f"w{i:04}") for i in range(1000)))))
    plain = client.get("/metrics", headers={"Accept-Encoding": "identity"})
    zipped = client.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw_metrics(client)) == plain.content
    for response in (plain, zipped):
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert response.headers["vary"] == "Accept-Encoding"
    families = {family.name: family.samples for family in text_string_to_metric_families(plain.text)}
    assert len(families["cml_worker_cpu_utilization_ratio"]) == 1000
    assert families["cml_exporter_leader"][0].value == 1


def test_a_flushed_worker_block_and_the_exporter_metrics_form_one_gzip_member(serve: Serve) -> None:
    block = snapshot(*(gauges(f"w{i:04}") for i in range(1000)))
    client = serve(Memory(snapshot=replace(block, gzipped=flushed(block.body))))
    plain = client.get("/metrics", headers={"Accept-Encoding": "identity"})
    reader = zlib.decompressobj(31)
    assert reader.decompress(raw_metrics(client)) == plain.content
    assert (reader.eof, reader.unused_data) == (True, b"")  # the checksum is right, and no bytes are left


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"),
        ("GZIP;Q=1", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate, gzip;q=0.5", "gzip"),
        ("*", "gzip"),
        ("gzip, identity", "gzip"),
        ("identity;q=0.5, gzip;q=0.7", "gzip"),
        ("identity;q=0.7, gzip;q=0.5", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip; q=0.000, *", None),
        ("*;q=0", None),
        ("gzip;q=much", None),
        ("br", None),
        ("", None),
    ],
)
def test_accept_encoding_is_read_with_its_weights(client: httpx.Client, accept: str, encoding: str | None) -> None:
    response = client.get("/metrics", headers={"Accept-Encoding": accept})
    assert response.headers.get("content-encoding") == encoding
    assert "cml_worker_info{" in response.text


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_families_are_selected_by_name(client: httpx.Client, encoding: str) -> None:
    def names(*wanted: str) -> set[str]:
        params = httpx.QueryParams([("name[]", name) for name in wanted])
        response = client.get("/metrics", params=params, headers={"Accept-Encoding": encoding})
        assert response.status_code == 200
        assert response.headers.get("content-encoding", "identity") == encoding
        return {family.name for family in text_string_to_metric_families(response.text)}

    both = {"cml_worker_info", "cml_exporter_leader"}
    assert names(*both) == both
    assert names("cml_worker_status", "nonsense") == {"cml_worker_status"}
    assert names("nonsense") == set()
    assert len(names()) > 2
    assert client.get("/metrics?module=x").text == client.get("/metrics").text
    assert client.get("/metrics", params={"name[]": "x" * 5000}).status_code == 400


def test_openmetrics_is_never_sent(client: httpx.Client) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = client.get("/metrics", headers={"Accept": accept})
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_a_worker_block_that_is_overdue_for_renewal_is_left_out(serve: Serve, encoding: str) -> None:
    backend = Memory(snapshot=snapshot(gauges("w1")))
    client = serve(backend, headers={"Accept-Encoding": encoding})
    assert "cml_worker_" in client.get("/metrics").text
    backend.time = NOW + 60
    text = client.get("/metrics").text
    assert "cml_worker_" not in text
    assert "cml_exporter_leader 1.0" in text


def test_metrics_work_before_the_first_cycle_and_without_mongodb(serve: Serve) -> None:
    text = serve(Memory(ready=False, failure=StoreUnavailableError("MongoDB is down."))).get("/metrics").text
    assert "cml_exporter_leader 1.0" in text


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/-/ready", "/api/workers"])
def test_head_is_get_without_the_body(client: httpx.Client, path: str) -> None:
    head, get = (client.request(method, path, headers={"Accept-Encoding": "identity"}) for method in ("HEAD", "GET"))
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]


# -- health


def test_healthy_is_200_even_if_every_source_fails(serve: Serve) -> None:
    response = serve(Memory(ready=False, sources={"mongodb": "MongoDB is down."})).get("/-/healthy")
    assert response.status_code == 200
    assert "healthy" in response.text


def test_healthy_is_503_and_names_the_loop_that_hangs(serve: Serve) -> None:
    parts = Memory()
    now = [0.0]
    parts.liveness = Liveness(lambda: now[0])
    beat = parts.liveness.expect("polling", 300)
    client = serve(parts)
    assert client.get("/-/healthy").status_code == 200
    now[0] = 900
    assert client.get("/-/healthy").status_code == 200
    now[0] = 901
    response = client.get("/-/healthy")
    assert response.status_code == 503
    assert response.text == "CML worker exporter hangs; without progress: polling for 901 s. Restart it.\n"
    beat()
    assert client.get("/-/healthy").status_code == 200


def test_ready_is_200_after_the_first_read_and_shows_each_source(serve: Serve) -> None:
    backend = Memory(ready=False)
    client = serve(backend)
    assert client.get("/-/ready").status_code == 503
    assert client.get("/-/ready").json() == {"ready": False, "status": "starting", "sources": {}}
    backend.ready, backend.sources = True, {"mongodb": "MongoDB is down.", "cloudwatch eu-west-1": None}
    response = client.get("/-/ready")
    assert response.status_code == 200
    assert response.json() == {
        "ready": True,
        "status": "degraded",
        "sources": {
            "cloudwatch eu-west-1": {"ok": True, "error": None, "note": None},
            "mongodb": {"ok": False, "error": "MongoDB is down.", "note": None},
        },
    }


# -- /api/workers


def test_a_worker_is_listed_with_all_known_values_and_null_for_the_others(serve: Serve) -> None:
    facts = WorkerFacts(ready=True, nodes_running=2, license_status="expired", idle_pause_at=NOW)
    known = gauges("w1", name="one", last_activity_at=NOW, facts=facts, extra=(("cml_worker_disk", 7.5),))
    backend = Memory(snapshot=snapshot(known), known=[entry("w1", region="eu-west-1")])
    answer = serve(backend).get("/api/workers").json()
    assert answer == {
        "data": [
            {
                "worker_id": "w1",
                "name": "one",
                "region": "eu-west-1",
                "status": "running",
                "instance_id": "i-w1",
                "private_ip": None,
                "instance_type": None,
                "cml_version": None,
                "cpu_utilization": 45.25,
                "cpu_time": "2026-09-21T14:10:00Z",
                "memory_utilization": None,
                "memory_time": None,
                "active_labs_count": 3,
                "nodes_running": 2,
                "nodes_total": None,
                "ready": True,
                "uptime_seconds": None,
                "disk_used_bytes": None,
                "disk_total_bytes": None,
                "memory_total_bytes": None,
                "licensed": None,
                "license_status": "expired",
                "service_status": None,
                "ec2_instance_check": None,
                "ec2_system_check": None,
                "detailed_monitoring": None,
                "auto_pauses": None,
                "idle_pause_at": "2026-09-21T14:13:20Z",
                "last_activity_at": "2026-09-21T14:13:20Z",
                "created_at": None,
                "terminated_at": None,
                "observed_at": "2026-09-21T14:13:10Z",
                "extra": {"cml_worker_disk": 7.5},
                "first_seen": "2026-09-13T14:13:20Z",
                "last_seen": "2026-09-19T14:13:20Z",
                "instances": [
                    {
                        "instance_id": "i-old",
                        "region": "us-east-1",
                        "first_seen": "2026-09-13T14:13:20Z",
                        "last_seen": "2026-09-16T14:13:20Z",
                    },
                    {
                        "instance_id": "i-new",
                        "region": "us-east-1",
                        "first_seen": "2026-09-16T14:13:20Z",
                        "last_seen": "2026-09-21T14:13:20Z",
                    },
                ],
            }
        ],
        "next": None,
        "source": "mongodb",
        "resolution_seconds": 300,
    }


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ({"route_prefix": "/lab/metrics"}, "/lab/metrics"),
        ({"external_url": "https://cml.example.org/exporter/"}, "/exporter"),
        ({"external_url": "https://cml.example.org/exporter/", "route_prefix": "/"}, ""),
        ({"external_url": "https://cml.example.org"}, ""),
    ],
    ids=["prefix", "of the URL", "stripped by the proxy", "none"],
)
def test_all_routes_are_below_the_prefix(serve: Serve, given: dict[str, str], prefix: str) -> None:
    parts = Memory(snapshot=snapshot(gauges("w1")))
    client = serve(parts, settings=WebSettings.model_validate(given))
    for path in (
        "/",
        "/metrics",
        "/-/healthy",
        "/api/workers",
        "/api/workers/w1/metrics/history",
        "/workers/w1/metrics/history",
    ):
        assert client.get(prefix + path).status_code == 200, path
        assert not prefix or client.get(path).status_code == 404
    page = client.get(prefix + "/api").text
    links = re.findall(r'<a href="([^"]+)"', page)
    assert "./metrics" in links
    assert all(link.startswith(("./", "#")) for link in links), "they hold behind any proxy"
    (server,) = client.get(prefix + "/openapi.json").json()["servers"]
    assert server["url"] == given.get("external_url", f"{client.base_url}".rstrip("/") + prefix).rstrip("/")
    if prefix:
        answer = client.get(prefix)
        assert (answer.status_code, answer.headers["Location"]) == (308, f"./{prefix.rpartition('/')[2]}/")
        assert client.get(prefix, follow_redirects=True).url.path == prefix + "/"


def test_a_slash_too_many_is_nothing_and_no_redirect_to_another_host(serve: Serve) -> None:
    answer = serve(Memory(snapshot=snapshot())).get("/metrics/", headers={"Host": "evil.example.org"})
    assert (answer.status_code, "Location" in answer.headers) == (404, False)


@pytest.mark.parametrize("allowed", [True, False])
def test_credentials_of_pages_are_allowed_only_where_that_is_set(serve: Serve, allowed: bool) -> None:
    settings = WebSettings(cors_origins=["https://manager.example.org"], cors_credentials=allowed)
    client = serve(Memory(snapshot=snapshot()), settings=settings)
    headers = client.get("/api/workers", headers={"Origin": "https://manager.example.org", "Cookie": "s=1"}).headers
    assert headers["Access-Control-Allow-Origin"] == "https://manager.example.org"
    assert headers.get("Access-Control-Allow-Credentials") == ("true" if allowed else None)
    foreign = client.get("/api/workers", headers={"Origin": "https://evil.example.org"}).headers
    assert "Access-Control-Allow-Origin" not in foreign


def test_workers_that_are_gone_are_listed_while_they_have_history(serve: Serve) -> None:
    backend = Memory(
        snapshot=snapshot(gauges("w5")),
        known=[
            entry("w1"),
            entry("w2", status="running", terminated_at=None),
            entry("w3"),
            entry("w4", last_seen=NOW - 31 * DAY),
            entry("w6"),
        ],
        newest={"w1": NOW - 3 * DAY, "w2": NOW - 2 * DAY, "w3": NOW - 31 * DAY, "w4": NOW - 31 * DAY},
    )
    rows = {row["worker_id"]: row for row in serve(backend).get("/api/workers").json()["data"]}
    assert list(rows) == ["w1", "w2", "w5"]  # w3: only expired samples, w6: none at all
    assert rows["w1"].keys() == rows["w5"].keys()
    assert rows["w1"]["name"] == "name of w1"
    assert rows["w1"]["status"] == "terminated"
    assert rows["w1"]["instance_id"] == "i-new"
    assert rows["w2"]["status"] is None  # it left the fleet, so its status is unknown
    assert rows["w2"]["last_seen"] == "2026-09-19T14:13:20Z"
    assert rows["w5"]["first_seen"] is None  # the inventory has not met it yet


def test_values_that_left_metrics_are_null_while_their_times_stay(serve: Serve) -> None:
    backend = Memory(snapshot=snapshot(gauges("w1"), gauges("w2", show_state=False)))
    client = serve(backend)
    kept, hidden = client.get("/api/workers").json()["data"]
    assert (kept["status"], kept["active_labs_count"]) == ("running", 3)
    assert (hidden["status"], hidden["active_labs_count"], hidden["cpu_utilization"]) == (None, None, 45.25)
    backend.time = NOW + 60
    stale = client.get("/api/workers").json()["data"][0]
    assert (stale["status"], stale["cpu_utilization"], stale["cpu_time"]) == (None, None, "2026-09-21T14:10:00Z")


def test_pages_are_sorted_and_hold_every_worker_once(serve: Serve) -> None:
    ids = [f"w/{i:04}é" for i in range(1000)]
    backend = Memory(
        snapshot=snapshot(*map(gauges, reversed(ids[::2]))),
        known=[entry(worker_id) for worker_id in ids[1::2]],
        newest=dict.fromkeys(ids, NOW),
    )
    client = serve(backend)
    found: list[str] = []
    parameters = {"limit": "300"}
    sizes = []
    while True:
        page = client.get("/api/workers", params=parameters).json()
        sizes.append(len(page["data"]))
        found += [row["worker_id"] for row in page["data"]]
        if page["next"] is None:
            break
        parameters["cursor"] = page["next"]
    assert found == ids
    assert sizes == [300, 300, 300, 100]
    assert len(client.get("/api/workers").json()["data"]) == 500
    assert client.get("/api/workers", params={"limit": 1000}).json()["next"] is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=running", ["w1", "w2"]),
        ("status=stopped&status=terminated", ["w0", "w3"]),
        ("region=eu-west-1", ["w1", "w3"]),
        ("region=eu-west-1&status=stopped", ["w3"]),
        ("region=mars", []),
        ("status=running&limit=1", ["w1"]),
    ],
)
def test_workers_are_filtered_by_status_and_region(client: httpx.Client, query: str, expected: list[str]) -> None:
    rows = client.get(f"/api/workers?{query}").json()["data"]
    assert [row["worker_id"] for row in rows] == expected


@pytest.mark.parametrize(
    ("query", "allowed"),
    [
        ("limit=0", "limit must be a whole number from 1 to 1000."),
        ("limit=1001", "limit must be a whole number from 1 to 1000."),
        ("limit=many", "limit must be a whole number from 1 to 1000."),
        ("limit=", "limit must be a whole number from 1 to 1000."),
        ("limit=1e2", "limit must be a whole number from 1 to 1000."),
        ("limit=٣", "limit must be a whole number from 1 to 1000."),
        ("cursor=%00%ff", "cursor must be the value of next on the previous page."),
        ("cursor=_w", "cursor must be the value of next on the previous page."),
        (
            "status=Running",
            "status must be one of pending, starting, running, stopping, stopped, shutting-down, terminated, failed, unknown; "
            "repeat the parameter for several.",
        ),
        (
            "offset=5",
            "offset is not a parameter of this route; allowed are limit, cursor, status, region, name, fields, format.",
        ),
        ("format=xml", "format must be json or csv."),
    ],
)
def test_an_invalid_parameter_is_refused_with_the_allowed_values(client: httpx.Client, query: str, allowed: str) -> None:
    assert problem(client.get(f"/api/workers?{query}"), 400) == allowed


@pytest.fixture(scope="module")
def named() -> Iterator[httpx.Client]:
    """A client for workers of which two share a name, and one has gone."""
    workers = (gauges("w1", name="lab, 1"), gauges("w2", name="twin", region="us-east-1"), gauges("w3", name="twin"))
    with serving(Memory(snapshot=snapshot(*workers), known=[entry("w0")], newest={"w0": NOW})) as client:
        yield client


def test_a_worker_is_had_by_its_id_or_name_as_the_list_has_it(named: httpx.Client) -> None:
    rows = {row["worker_id"]: row for row in named.get("/api/workers").json()["data"]}
    assert rows.keys() == {"w0", "w1", "w2", "w3"}
    for worker_id, row in rows.items():
        assert named.get(f"/api/workers/{worker_id}").json() == row
    assert named.get("/api/workers/lab%2C%201").json() == rows["w1"]
    assert problem(named.get("/api/workers/twin"), 400) == "2 workers are called twin; use an id, such as w2."
    assert "Unknown worker w9" in problem(named.get("/api/workers/w9"), 404)
    assert problem(named.get("/api/workers/"), 404).startswith("The address ends before the id of a worker; ")


PAST = "name%20of%20w0"


@pytest.mark.parametrize(
    "address",
    ["/api/workers/{}", "/api/workers/{}/metrics/history", "/workers/{}", "/workers/{}/chart.svg", "/compare?worker={}"],
)
def test_every_route_of_a_worker_takes_its_name_too_also_that_of_a_past_one(named: httpx.Client, address: str) -> None:
    for name, worker_id in (("lab%2C%201", "w1"), (PAST, "w0")):
        by_name, by_id = named.get(address.format(name)), named.get(address.format(worker_id))
        assert (by_name.status_code, by_name.headers["content-type"]) == (200, by_id.headers["content-type"])
        assert worker_id in by_name.text or "chart.svg" in address
    assert problem(named.get(address.format("twin")), 400) == "2 workers are called twin; use an id, such as w2."
    assert "Unknown worker lab" in problem(named.get(address.format("lab")), 404)


def test_workers_separated_by_commas_are_refused_with_what_to_write(named: httpx.Client) -> None:
    refused = problem(named.get("/api/metrics/history?worker=w1,w2"), 404)
    assert refused == "Unknown worker w1,w2; give worker= once for each of several."
    assert len(named.get("/api/metrics/history?worker=lab,%201").json()["data"]) == 1, "a name with a comma"


def test_a_past_name_of_several_workers_is_refused_and_a_present_worker_comes_first() -> None:
    past = [replace(entry("w0"), name="one"), replace(entry("w7"), name="two"), replace(entry("w8"), name="two")]
    with serving(Memory(snapshot=snapshot(gauges("w1", name="one")), known=past)) as client:
        assert client.get("/api/workers/one").json()["worker_id"] == "w1"
        assert problem(client.get("/api/workers/two"), 400) == "2 workers are called two; use an id, such as w7."


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("name=twin", ["w2", "w3"]),
        ("name=twin&region=us-east-1", ["w2"]),
        ("name=name%20of%20w0&name=lab,%201", ["w0", "w1"]),
        ("name=twi", []),
    ],
)
def test_workers_are_looked_up_by_name(named: httpx.Client, query: str, expected: list[str]) -> None:
    assert [row["worker_id"] for row in named.get(f"/api/workers?{query}").json()["data"]] == expected


def test_fields_are_selected_and_the_id_is_always_there(named: httpx.Client) -> None:
    page = named.get("/api/workers?fields=name,status").json()
    assert page.keys() == {"data", "next", "source", "resolution_seconds"}
    assert page["data"][1] == {"worker_id": "w1", "name": "lab, 1", "status": "running"}
    assert named.get("/api/workers/w1?fields=cpu_utilization").json() == {"worker_id": "w1", "cpu_utilization": 45.25}
    assert named.get("/api/workers/w1?fields=name,%20status").json() == named.get("/api/workers/w1?fields=name,status").json()
    for path in ("/api/workers", "/api/workers/w1"):
        assert problem(named.get(f"{path}?fields=name,cpu"), 400).startswith(
            "fields has no cpu; allowed are worker_id, region, "
        )
        assert problem(named.get(f"{path}?fields="), 400).startswith("fields has no empty name; ")
    assert problem(named.get("/api/workers?cursor="), 400) == "cursor must be the value of next on the previous page."


def test_workers_are_csv_by_parameter_or_header_with_the_next_page_in_headers(named: httpx.Client) -> None:
    first = named.get("/api/workers?format=csv&limit=2&fields=name,cpu_utilization,extra,instances")
    assert first.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert "Accept" in first.headers["vary"]
    lines = list(csv.reader(io.StringIO(first.text, newline="")))
    assert lines[0] == ["worker_id", "name", "cpu_utilization", "extra", "instances"]
    assert lines[1][:4] == ["w0", "name of w0", "", "{}"]
    assert [each["instance_id"] for each in json.loads(lines[1][4])] == ["i-old", "i-new"]
    assert lines[2] == ["w1", "lab, 1", "45.25", "{}", "[]"]
    address = re.fullmatch('<(.+)>; rel="next"', first.headers["link"])
    assert address is not None
    second = named.get(f"/api/workers{address[1]}")
    assert [line[0] for line in csv.reader(io.StringIO(second.text, newline=""))] == ["worker_id", "w2", "w3"]
    assert "link" not in second.headers
    by_header = named.get("/api/workers", headers={"Accept": "text/csv"})
    whole = list(csv.DictReader(io.StringIO(by_header.text, newline="")))
    assert whole[0].keys() == named.get("/api/workers").json()["data"][0].keys()
    assert named.get("/api/workers?format=json", headers={"Accept": "text/csv"}).json()["data"]


# -- errors


def test_an_unavailable_mongodb_is_a_503_with_retry_after(serve: Serve) -> None:
    backend = Memory(
        snapshot=snapshot(gauges("w1")), failure=StoreUnavailableError("The history does not answer; start MongoDB.")
    )
    response = serve(backend).get("/api/workers")
    assert problem(response, 503) == "The history does not answer; start MongoDB."
    assert response.headers["retry-after"] == "10"


def test_workers_before_the_first_cycle_are_a_503_with_retry_after(serve: Serve) -> None:
    response = serve(Memory(ready=False)).get("/api/workers")
    assert "not been read yet" in problem(response, 503)
    assert response.headers["retry-after"] == "10"


def test_an_unknown_route_is_a_404(client: httpx.Client) -> None:
    assert problem(client.get("/metricz"), 404) == "There is nothing at /metricz; the page at /api lists the routes."


def test_an_unsupported_method_is_a_405(client: httpx.Client) -> None:
    response = client.post("/metrics")
    assert problem(response, 405) == "/metrics does not support POST, only GET and HEAD."
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_a_bug_is_a_500_without_details_and_is_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    backend = Memory(snapshot=snapshot(), failure=RuntimeError("the secret cause"))
    with caplog.at_level(logging.ERROR):
        response = serve(backend).get("/api/workers")
        assert problem(response, 500) == "Internal error; the log of the exporter has the details."
        wait_until(lambda: "the secret cause" in caplog.text)  # logged once the response is sent


# -- CORS


def test_pages_from_the_listed_origins_may_read_responses(serve: Serve) -> None:
    client = serve(Memory(), settings=WebSettings(cors_origins=["https://manager.example.org"]))
    allowed = client.get("/-/ready", headers={"Origin": "https://manager.example.org"})
    other = client.get("/-/ready", headers={"Origin": "https://elsewhere.example.org"})
    assert allowed.headers["access-control-allow-origin"] == "https://manager.example.org"
    assert "access-control-allow-origin" not in other.headers


def test_without_origins_no_page_may_read_responses(client: httpx.Client) -> None:
    response = client.get("/-/ready", headers={"Origin": "https://manager.example.org"})
    assert "access-control-allow-origin" not in response.headers


def test_a_preflight_passes_although_it_carries_no_credentials(serve: Serve) -> None:
    client = serve(
        Memory(),
        settings=WebSettings(cors_origins=["https://manager.example.org"]),
        web=webconfig.WebConfig(users={"alice": hashed("secret")}),
    )
    headers = {
        "Origin": "https://manager.example.org",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }
    response = client.options("/api/workers", headers=headers)
    assert response.status_code == 200
    assert "authorization" in response.headers["access-control-allow-headers"].lower()
    refused = client.get("/api/workers", headers={"Origin": "https://manager.example.org"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://manager.example.org"


# -- basic authentication


def hashed(password: str, cost: int = 4) -> bytes:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost))


GUARDED = [endpoint.path for endpoint in routes.ROUTES if endpoint.path not in PROBES]


@pytest.mark.parametrize("path", [*GUARDED, "/nowhere", "/-/healthy/", "/-/ready/../metrics", "//-/ready"])
def test_every_route_but_the_probes_requires_a_user_once_users_are_configured(guarded: httpx.Client, path: str) -> None:
    response = guarded.get(path)
    assert problem(response, 401) == "This exporter requires a user name and a password; they are missing or wrong."
    assert response.headers["www-authenticate"].startswith("Basic realm=")


@pytest.mark.parametrize("auth", [("alice", "secret"), ("bøb", "pass:wörd")])
def test_a_user_with_the_right_password_is_accepted_every_time(guarded: httpx.Client, auth: tuple[str, str]) -> None:
    headers = {"Authorization": "Basic " + base64.b64encode(":".join(auth).encode()).decode()}
    assert [guarded.get("/metrics", headers=headers).status_code for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic !!!",
        "Basic \xff",
        "Bearer YWxpY2U6c2VjcmV0",
        "Basic " + base64.b64encode(b"alice").decode(),
        "Basic " + base64.b64encode(b"alice:").decode(),
        "Basic " + base64.b64encode(b"alice:wrong").decode(),
        "Basic " + base64.b64encode(b"alice:" + b"s" * 500).decode(),
        "Basic " + base64.b64encode(b"alice:secret\x00").decode(),
        "Basic " + base64.b64encode(b"carol:secret").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:secret").decode(),
        "Basic " + base64.b64encode(b":secret").decode(),
    ],
)
def test_other_credentials_are_refused_even_after_a_user_was_accepted(guarded: httpx.Client, header: str) -> None:
    assert guarded.get("/metrics", auth=("alice", "secret")).status_code == 200
    assert guarded.get("/metrics", headers=[(b"Authorization", header.encode("latin-1"))]).status_code == 401


@pytest.mark.parametrize("prefix", ["", "/workers"])
@pytest.mark.parametrize("path", PROBES)
def test_probes_need_no_password_unless_that_is_set(serve: Serve, path: str, prefix: str) -> None:
    web = webconfig.WebConfig(users={"alice": hashed("secret")})
    client = serve(Memory(), web=web, settings=WebSettings(route_prefix=prefix or "/"))
    assert client.get(prefix + path).status_code == 200
    assert client.head(prefix + path).status_code == 200
    assert client.get(prefix + "/metrics").status_code == 401
    strict = serve(Memory(), web=web, settings=WebSettings(route_prefix=prefix or "/", probes_need_auth=True))
    assert strict.get(prefix + path).status_code == 401
    assert strict.get(prefix + path, auth=("alice", "secret")).status_code == 200


def test_bytes_after_the_72nd_are_ignored_as_in_bcrypt(serve: Serve) -> None:
    client = serve(Memory(), web=webconfig.WebConfig(users={"alice": hashed("s" * 72)}))
    assert client.get("/metrics", auth=("alice", "s" * 100)).status_code == 200
    assert client.get("/metrics", auth=("alice", "s" * 71)).status_code == 401


def test_bcrypt_runs_once_for_each_password_right_or_wrong(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    compare, compared = auth._matches, list[bytes]()

    def counted(password: bytes, hash: bytes | None, cost: int) -> bool:
        compared.append(password)
        return compare(password, hash, cost)

    monkeypatch.setattr(auth, "_matches", counted)
    client = serve(Memory(), web=webconfig.WebConfig(users={"alice": hashed("secret")}))

    def statuses(user: str, *passwords: str) -> list[int]:
        return [client.get("/metrics", auth=(user, password)).status_code for password in passwords]

    assert statuses("alice", *["secret"] * 5) == [200] * 5
    assert compared == [b"secret"]
    assert statuses("alice", *["wrong", "false"] * 3) == [401] * 6
    assert compared == [b"secret", b"wrong", b"false"]
    assert statuses("carol", *["secret", "wrong"] * 3) == [401] * 6
    assert compared[3:] == [b"secret", b"wrong"], "of an unknown user too, and what is another user's counts for no other"
    assert statuses("alice", "secret") == [200]
    assert len(compared) == 5


# -- TLS


@pytest.fixture
def web(tmp_path: Path) -> Path:
    write_certificate(tmp_path, "server")
    write_certificate(tmp_path, "client")
    file = tmp_path / "web.yml"
    file.write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}")
    return file


def trusting(folder: Path, *, client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "server.crt")
    if client:
        context.load_cert_chain(folder / "client.crt", folder / "client.key")
    return context


def test_https_with_a_password_from_the_web_configuration(serve: Serve, web: Path) -> None:
    web.write_text(f"{web.read_text()}\nbasic_auth_users: {{alice: {hashed('secret').decode()}}}")
    client = serve(Memory(snapshot=snapshot(gauges("w1"))), web=webconfig.load(web), verify=trusting(web.parent))
    assert client.get("/metrics").status_code == 401
    assert "cml_worker_info" in client.get("/metrics", auth=("alice", "secret")).text


def test_a_client_without_an_accepted_certificate_is_refused(serve: Serve, web: Path) -> None:
    web.write_text(
        "tls_server_config: {cert_file: server.crt, key_file: server.key, "
        "client_ca_file: client.crt, client_auth_type: RequireAndVerifyClientCert}"
    )
    config = webconfig.load(web)
    assert serve(Memory(), web=config, verify=trusting(web.parent, client=True)).get("/-/healthy").status_code == 200
    with pytest.raises(httpx.TransportError):
        serve(Memory(), web=config, verify=trusting(web.parent)).get("/-/healthy")


def test_tls_older_than_the_minimum_is_refused(serve: Serve, web: Path) -> None:
    web.write_text("tls_server_config: {cert_file: server.crt, key_file: server.key, min_version: TLS13}")
    old = trusting(web.parent)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(httpx.TransportError):
        serve(Memory(), web=webconfig.load(web), verify=old).get("/-/healthy")


def test_a_renewed_certificate_is_used_without_a_restart(serve: Serve, web: Path) -> None:
    client = serve(Memory(), web=LiveWebConfig(web), verify=trusting(web.parent))
    assert client.get("/-/healthy").status_code == 200

    def answers(trust: ssl.SSLContext) -> bool:
        try:
            with httpx.Client(base_url=client.base_url, verify=trust, trust_env=False) as fresh:
                return fresh.get("/-/healthy").status_code == 200
        except httpx.ConnectError:
            return False

    old = trusting(web.parent)
    key = (web.parent / "server.key").read_bytes()
    write_certificate(web.parent, "server")
    new_key = (web.parent / "server.key").read_bytes()
    (web.parent / "server.key").write_bytes(key)
    assert answers(old)  # the new certificate does not match the old key, so the old pair stays in use
    (web.parent / "server.key").write_bytes(new_key)
    assert answers(trusting(web.parent))
    assert not answers(old)
