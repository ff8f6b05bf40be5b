"""Connections of a real server with small limits: what is closed, when, and what is not."""

import asyncio
import contextlib
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest
import uvicorn
from structlog.testing import capture_logs

from exporter.web import discovery, prometheus_handlers, webconfig
from exporter.web.connections import Connections, Limits, client_of
from tests.helpers.certificates import write_certificate
from tests.helpers.deadlines import scaled
from tests.integration.web.test_routes import Memory, gauges, serving, snapshot, wait_until

PATIENCE_SECONDS = 30.0
"""Until which a limit must have taken effect, scaled; they are far below it on a machine without load."""
SHORT = Limits(request_seconds=1, unread_seconds=1)
REQUEST = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"


class SlowMemory(Memory):
    """A backend whose inventory takes three seconds."""

    async def load(self) -> None:
        await asyncio.sleep(3)


@dataclass
class Served:
    """A server, its address, and the reasons for which it closed connections."""

    port: int
    reasons: list[str] = field(default_factory=list)
    open: list[float] = field(default_factory=list)

    def connect(self, *, receive_bytes: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(scaled(PATIENCE_SECONDS))
        connection.connect(("127.0.0.1", self.port))
        return connection

    def is_open(self) -> int:
        return int(self.open[-1]) if self.open else 0


@contextlib.contextmanager
def served(
    limits: Limits, parts: Memory | None = None, *, trusted: tuple[str, ...] = (), web: webconfig.WebConfig | None = None
) -> Iterator[Served]:
    found = Served(0)
    connections = Connections(limits, opened=found.open.append, closed=found.reasons.append, trusted=trusted)
    with serving(parts or Memory(snapshot=snapshot(gauges("w1"))), connections=connections, web=web) as client:
        found.port = client.base_url.port or 0
        yield found


def ended(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


# -- requests that do not arrive

INCOMPLETE = {
    "silent": b"",
    "half a request line": b"GET /metr",
    "half a header": b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Half: ",
    "half a body": b"POST /api/v1/read HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
    "half a second request": REQUEST + b"GET /metr",
}


@pytest.mark.parametrize("sent", INCOMPLETE.values(), ids=INCOMPLETE)
def test_a_connection_that_sends_no_whole_request_in_time_is_closed(sent: bytes) -> None:
    with served(SHORT) as server:
        begin = time.monotonic()
        connection = server.connect()
        connection.sendall(sent)
        answers = ended(connection).count(b"HTTP/1.1 200")
        assert answers == sent.count(REQUEST)
        assert 1 <= time.monotonic() - begin < scaled(PATIENCE_SECONDS)
        connection.close()
        assert server.reasons == ["incomplete_request"]
        wait_until(lambda: server.is_open() == 0, scaled(PATIENCE_SECONDS))


def test_bytes_that_trickle_in_do_not_extend_the_time() -> None:
    with served(SHORT) as server, server.connect() as connection:
        begin = time.monotonic()
        connection.sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
        with contextlib.suppress(OSError):
            while time.monotonic() - begin < scaled(PATIENCE_SECONDS):
                connection.sendall(b"a")
                time.sleep(0.05)
        assert server.reasons == ["incomplete_request"]


def test_a_tls_handshake_that_does_not_end_in_time_is_closed_and_counts_as_a_connection(tmp_path: Path) -> None:
    write_certificate(tmp_path, "server")
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}")
    with served(SHORT, web=webconfig.load(tmp_path / "web.yml")) as server:
        for sent in (b"", b"\x16\x03\x01", REQUEST):
            with server.connect() as connection:
                wait_until(lambda: server.is_open() == 1, scaled(PATIENCE_SECONDS))
                connection.sendall(sent)
                assert ended(connection)[:1] in (b"", b"\x15")  # 21: an alert of TLS
                wait_until(lambda: server.is_open() == 0, scaled(PATIENCE_SECONDS))
        trust = ssl.create_default_context(cafile=tmp_path / "server.crt")
        for _ in range(3):  # the request arrives in the same packets as the end of the handshake
            with trust.wrap_socket(server.connect(), server_hostname="127.0.0.1") as secure:
                secure.sendall(REQUEST)
                assert secure.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_connection_that_is_closed_in_its_tls_handshake_delays_no_stop(tmp_path: Path) -> None:
    """`serving` fails when the server waits for it."""
    write_certificate(tmp_path, "server")
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}")
    limits = Limits(per_client=2)
    with served(limits, web=webconfig.load(tmp_path / "web.yml")) as server, contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(server.connect())
        wait_until(lambda: server.is_open() == 2 and len(server.reasons) == 8, scaled(PATIENCE_SECONDS))
        assert set(server.reasons) == {"client_limit"}


def test_a_request_that_takes_long_to_answer_is_not_closed() -> None:
    with served(SHORT, SlowMemory(snapshot=snapshot(gauges("w1")))) as server, server.connect() as connection:
        connection.sendall(b"GET /api/workers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in ended(connection)
        assert server.reasons == []


def test_an_idle_connection_is_kept_beyond_the_time_of_a_request_but_not_for_ever() -> None:
    with served(SHORT) as server, server.connect() as connection:
        connection.sendall(REQUEST)
        begin = time.monotonic()
        assert ended(connection).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - begin > 3  # uvicorn's default: 5 s; that of `serve` is above Prometheus's
        assert server.reasons == []


# -- headers


def headers_of(size: int) -> bytes:
    start, end = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: ", b"\r\n\r\n"
    return start + b"a" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize(("size", "status"), [(60_000, 200), (65_536, 200), (66_000, 431), (300_000, 431)])
def test_headers_of_more_than_64_kilobytes_are_refused(size: int, status: int) -> None:
    with served(Limits()) as server, server.connect() as connection:
        connection.sendall(headers_of(size))
        answer = ended(connection)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        if status == 431:
            assert b"application/problem+json" in answer
            assert b"The headers of a request may have 65536 bytes in all." in answer
        assert server.reasons == (["header_bytes"] if status == 431 else [])


def test_many_short_headers_count_together_and_bodies_do_not() -> None:
    with served(Limits()) as server:
        with server.connect() as connection:
            connection.sendall(b"GET /-/healthy HTTP/1.1\r\n" + b"A: b\r\n" * 12_000 + b"\r\n")
            assert ended(connection).startswith(b"HTTP/1.1 431 ")
        url = f"http://127.0.0.1:{server.port}/api/v1/read"
        with httpx.Client(trust_env=False, timeout=scaled(PATIENCE_SECONDS)) as client:
            for _ in range(3):
                assert client.post(url, content=b"x" * 500_000).status_code == 400
                assert client.post(url, content=iter([b"x" * 10_000] * 50)).status_code == 400
                assert client.post(url, content=b"x" * 2_000_000).status_code == 413


ENDLESS = {
    "header": (b"GET /metrics HTTP/1.1\r\nX: ", b"a" * 65536),
    "headers": (b"GET /metrics HTTP/1.1\r\n", b"A: b\r\n" * 10_000),
    "request line": (b"GET /metrics?", b"a" * 65536),
    "trailer": (b"POST /api/v1/read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 65536),
    "chunk extension": (b"POST /api/v1/read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 65536),
    "empty lines": (b"", b"\r\n" * 30_000),
}


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends_is_cut_off(start: bytes, more: bytes) -> None:
    with served(Limits()) as server, server.connect() as connection:
        connection.sendall(start)
        with pytest.raises(OSError, match=r"reset|pipe|aborted"):
            connection.sendall(more * ((1 << 28) // len(more)))
        assert server.reasons == ["header_bytes"]


# -- requests before the response of the first


def test_every_response_has_the_time_of_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where uvicorn's loop renews no header: it would wake ten times a second."""

    async def on_tick(server: uvicorn.Server, counter: int) -> bool:
        return server.should_exit

    monkeypatch.setattr(uvicorn.Server, "on_tick", on_tick)
    with served(Limits()) as server, server.connect() as connection:
        for _ in range(2):
            before = int(time.time())
            connection.sendall(REQUEST)
            (sent,) = re.findall(rb"\r\ndate: ([^\r]+)\r\n", connection.recv(1 << 16))
            assert before <= parsedate_to_datetime(sent.decode()).timestamp() <= time.time()
            time.sleep(1.1)


def test_a_few_pipelined_requests_are_answered_in_their_order() -> None:
    with served(Limits()) as server, server.connect() as connection:
        paths = ["/-/healthy", "/nowhere", "/metrics", "/-/ready"] * 4
        lines = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths]
        lines[-1] = lines[-1].replace("Host", "Connection: close\r\nHost")
        connection.sendall("".join(lines).encode())
        answer = ended(connection)
        assert re.findall(rb"HTTP/1\.1 (\d+) ", answer) == [b"200", b"404", b"200", b"200"] * 4
        assert server.reasons == []


def test_many_pipelined_requests_are_cut_off() -> None:
    with served(Limits()) as server, server.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /api/workers HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000)
        assert ended(connection).count(b"HTTP/1.1") <= Limits().pipelined + 1
        assert server.reasons == ["pipelined"]


# -- responses that are not read


def large() -> Memory:
    return Memory(snapshot=snapshot(*(gauges(f"w{number:05}") for number in range(5000))))


def test_a_response_that_is_not_read_ends_the_connection() -> None:
    with served(SHORT, large()) as server, server.connect(receive_bytes=4096) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: server.reasons == ["unread"], scaled(PATIENCE_SECONDS))
        wait_until(lambda: server.is_open() == 0, scaled(PATIENCE_SECONDS))


def test_a_response_that_is_not_read_before_the_connection_is_closed_ends_it_too() -> None:
    with served(SHORT, large()) as server, server.connect(receive_bytes=4096) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        wait_until(lambda: server.reasons == ["unread"], scaled(PATIENCE_SECONDS))
        wait_until(lambda: server.is_open() == 0, scaled(PATIENCE_SECONDS))


def test_a_client_that_reads_slowly_gets_the_whole_response() -> None:
    limit = scaled(1)
    limits = replace(SHORT, unread_seconds=limit)
    with served(limits, large()) as server, server.connect(receive_bytes=65536) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received, begin = 0, time.monotonic()
        while piece := connection.recv(65536):  # 30 times, or more
            received += len(piece)
            if time.monotonic() - begin < 4 * limit:
                time.sleep(limit / 10)
        assert server.reasons == []
        assert received > 2_000_000
        assert time.monotonic() - begin > 2 * limit


def test_a_client_holds_a_bounded_number_of_bytes() -> None:
    limits = replace(Limits(), unread_bytes=2 << 20)  # of each response its first part waits, about a megabyte
    with served(limits, large()) as server, contextlib.ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(server.connect(receive_bytes=4096))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: len(server.reasons) >= 10, scaled(PATIENCE_SECONDS))
        assert set(server.reasons) == {"unread_bytes"}
        assert server.is_open() >= 1  # a single response is never too large


# -- how many


def test_of_too_many_connections_of_a_client_those_without_a_request_are_closed() -> None:
    with served(replace(Limits(), per_client=10)) as server, contextlib.ExitStack() as stack:
        busy = stack.enter_context(server.connect())
        busy.sendall(REQUEST)
        assert busy.recv(65536).startswith(b"HTTP/1.1 200")
        silent = [stack.enter_context(server.connect()) for _ in range(40)]
        wait_until(lambda: len(server.reasons) == 31, scaled(PATIENCE_SECONDS))
        assert server.is_open() == 10
        assert set(server.reasons) == {"client_limit"}
        busy.sendall(REQUEST)
        assert busy.recv(65536).startswith(b"HTTP/1.1 200")
        silent[-1].sendall(REQUEST)
        assert silent[-1].recv(65536).startswith(b"HTTP/1.1 200")


def test_a_trusted_proxy_has_the_connections_of_many_clients() -> None:
    limits = replace(Limits(), per_client=10, connections=30)
    with served(limits, trusted=("127.0.0.0/8",)) as server, contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(server.connect())
        wait_until(lambda: len(server.reasons) == 10, scaled(PATIENCE_SECONDS))
        assert set(server.reasons) == {"connection_limit"}


def test_a_shortage_of_descriptors_is_counted_logged_and_closes_connections_that_wait() -> None:
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    limits = replace(Limits(), descriptors=lowest + 132)  # 100 for both ends of 50 connections, and what is kept free
    with capture_logs() as log, served(limits) as server, contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(server.connect())
        time.sleep(1.5)  # until they are not young any more
        for _ in range(20):
            stack.enter_context(server.connect())
        wait_until(lambda: "descriptors" in server.reasons, scaled(PATIENCE_SECONDS))
        assert server.is_open() < 45
        connection = stack.enter_context(server.connect())
        connection.sendall(REQUEST)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    (logged,) = [entry for entry in log if entry.get("reason") == "descriptors"]  # once a minute, not for every connection
    assert (logged["event"], logged["log_level"]) == ("connection closed", "warning")


def test_connections_that_end_are_forgotten() -> None:
    with served(Limits()) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(server.connect())
            wait_until(lambda: server.is_open() == 20, scaled(PATIENCE_SECONDS))
        wait_until(lambda: server.is_open() == 0, scaled(PATIENCE_SECONDS))


# -- clients that hang up


SLOW_REQUEST = b"GET /api/workers/w1/metrics/history HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_a_request_that_waits_is_dropped_when_its_client_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.web.admission.MAX_RUNNING", 1)
    with served(Limits(), SlowMemory(snapshot=snapshot(gauges("w1")))) as server, server.connect() as first:
        first.sendall(SLOW_REQUEST)
        wait_until(lambda: server.is_open() == 1, scaled(PATIENCE_SECONDS))
        time.sleep(0.5)
        for _ in range(20):
            with server.connect() as connection:
                connection.sendall(SLOW_REQUEST)
        begin = time.monotonic()
        with server.connect() as last:
            last.settimeout(scaled(120))
            last.sendall(SLOW_REQUEST)
            assert b"200 OK" in ended(last)
        assert time.monotonic() - begin < scaled(40)  # those that hung up would have taken 60 s
        assert b"200 OK" in ended(first)


def test_connections_that_are_cut_off_are_no_errors_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    # A response is written piece by piece, so of each connection only the first piece is unread: some 400 kB, or more.
    limits = replace(Limits(), unread_bytes=1 << 20)
    with served(limits, large()) as server, contextlib.ExitStack() as stack:
        for _ in range(10):
            connection = stack.enter_context(server.connect(receive_bytes=4096))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        wait_until(lambda: len(server.reasons) >= 5, scaled(PATIENCE_SECONDS))
        time.sleep(1)
    assert not [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/-/ready"])
def test_scrapes_and_probes_wait_for_no_other_request(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr("exporter.web.admission.MAX_RUNNING", 2)
    monkeypatch.setattr("exporter.web.admission.MAX_WAITING", 5)
    with served(Limits(), SlowMemory(snapshot=snapshot(gauges("w1")))) as server, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(server.connect()) for _ in range(10)]
        for connection in waiting:
            connection.sendall(b"GET /api/workers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        begin = time.monotonic()
        assert (
            httpx.get(f"http://127.0.0.1:{server.port}{path}", trust_env=False, timeout=scaled(PATIENCE_SECONDS)).status_code
            == 200
        )
        assert time.monotonic() - begin < scaled(2.5)
        answers = [ended(connection) for connection in waiting]
        refused = [answer for answer in answers if b"429 Too Many Requests" in answer]
        assert len(refused) == 3
        assert all(b"retry-after: 1" in answer.lower() for answer in refused)
        assert sum(b"200 OK" in answer for answer in answers) == 7


@contextlib.contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> Iterator[list[object]]:
    """Have every call of a function wait in the thread that makes it until the block ends; yields the calls' arguments."""
    real, calls, go_on = getattr(target, name), list[object](), threading.Event()

    def waiting(*arguments: object) -> object:
        calls.append(arguments)
        assert go_on.wait(10 * scaled(PATIENCE_SECONDS))
        return real(*arguments)

    monkeypatch.setattr(target, name, waiting)
    try:
        yield calls
    finally:
        go_on.set()


def test_selections_by_name_are_made_one_at_a_time_few_wait_per_client_and_no_scrape_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served(Limits()) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(12)]
        with held_up(monkeypatch, prometheus_handlers, "select") as calls:
            for connection in connections:
                connection.sendall(b"GET /metrics?name[]=cml_worker_info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            wait_until(lambda: len(select.select(connections, (), (), 0)[0]) == 3, scaled(PATIENCE_SECONDS))
            wait_until(lambda: bool(calls), scaled(PATIENCE_SECONDS))
            scrape = httpx.get(f"http://127.0.0.1:{server.port}/metrics", trust_env=False, timeout=scaled(PATIENCE_SECONDS))
            assert scrape.status_code == 200
        answers = [ended(connection) for connection in connections]
    refused = [answer for answer in answers if b"429 Too Many Requests" in answer]
    assert len(refused) == 3, "one runs, eight wait"
    assert all(b"retry-after: " in answer.lower() and b"waiting already" in answer for answer in refused)
    whole = [answer for answer in answers if b"200 OK" in answer]
    assert len(whole) == 9
    assert all(b"cml_worker_info{" in answer for answer in whole)


def test_a_selection_by_name_whose_client_hung_up_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Limits()) as server:
        with held_up(monkeypatch, prometheus_handlers, "select") as calls, contextlib.ExitStack() as stack:
            for _ in range(9):
                connection = stack.enter_context(server.connect())
                connection.sendall(b"GET /metrics?name[]=cml_worker_info HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: bool(calls), scaled(PATIENCE_SECONDS))
            stack.close()
            wait_until(lambda: server.is_open() == 0, scaled(PATIENCE_SECONDS))
        url = f"http://127.0.0.1:{server.port}/metrics?name[]=cml_worker_info"
        assert httpx.get(url, trust_env=False, timeout=scaled(PATIENCE_SECONDS)).status_code == 200
    assert len(calls) == 2, "the one that ran, and the last"


def test_targets_are_made_in_a_thread_that_no_scrape_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.web.admission.MAX_RUNNING", 2)
    monkeypatch.setattr("exporter.web.admission.MAX_WAITING", 5)
    with served(Limits()) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(10)]
        with held_up(monkeypatch, discovery, "targets") as calls:
            for connection in connections:
                connection.sendall(b"GET /sd/workers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            wait_until(lambda: len(select.select(connections, (), (), 0)[0]) == 3, scaled(PATIENCE_SECONDS))
            wait_until(lambda: len(calls) == 2, scaled(PATIENCE_SECONDS))
            for path in ("/metrics", "/-/healthy"):
                answer = httpx.get(f"http://127.0.0.1:{server.port}{path}", trust_env=False, timeout=scaled(PATIENCE_SECONDS))
                assert answer.status_code == 200
        answers = [ended(connection) for connection in connections]
    assert sum(b"429 Too Many Requests" in answer for answer in answers) == 3, "two run, five wait"
    assert sum(b"200 OK" in answer for answer in answers) == 7


@pytest.mark.parametrize(
    ("peer", "client"),
    [(("unknown", 0), "unknown"), (("x" * 900, 0), "x" * 64), (("::ffff:10.0.0.1", 1), "10.0.0.1"), (("fd00::7", 1), "fd00::")],
)
def test_what_limits_are_shared_by(peer: tuple[str, int], client: str) -> None:
    assert client_of(peer) == client


@pytest.mark.parametrize("trusted", ["fd00::7", "fd00::/64", "10.0.0.0/8"])
def test_a_proxy_is_trusted_by_its_address_also_with_ipv6(trusted: str) -> None:
    connections = Connections(Limits(), trusted=(trusted,))
    peers = [("fd00::7", 1), ("fd00:0:0:1::7", 1), ("10.1.2.3", 1), ("192.0.2.1", 1)]
    found = [connections._is_trusted(client_of(peer)) for peer in peers]
    assert found == ([False, False, True, False] if trusted.startswith("10") else [True, False, False, False])
