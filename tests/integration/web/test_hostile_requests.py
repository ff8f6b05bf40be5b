"""Clients that hang up, and worker ids that are awkward in a path: no traceback, no unreachable worker."""

import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from exporter.web.live_config import LiveWebConfig
from tests.helpers.certificates import write_certificate
from tests.integration.web.test_routes import Memory, Serve, gauges, serve, snapshot  # noqa: F401  # serve is a fixture

RESET = struct.pack("ii", 1, 0)
ABORTED = {
    "body": b"POST /api/v1/read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc",
    "chunk": b"POST /api/v1/read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    "header": b"GET /metr",
    "response": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "pipeline": b"GET /api/workers HTTP/1.1\r\nHost: x\r\n\r\n" * 20,
    "reload": b"POST /-/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
}


def settle(client_is_answered: Callable[[], object]) -> None:
    """Give the server the time to notice; a request that is answered afterwards shows that it did."""
    time.sleep(0.3)
    client_is_answered()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("request_bytes", ABORTED.values(), ids=ABORTED)
def test_an_aborted_request_is_no_error(
    serve: Serve,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    request_bytes: bytes,
    reset: bool,
) -> None:
    client = serve(Memory(snapshot=snapshot(*(gauges(f"w{number}") for number in range(2000)))))
    with caplog.at_level(logging.WARNING):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as aborted:
            aborted.sendall(request_bytes)
            time.sleep(0.1)
            if reset:
                aborted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        settle(lambda: client.get("/-/healthy"))
    logged = {record.getMessage() for record in caplog.records if record.exc_info is None or record.exc_info[0] is None}
    assert len(logged) == len({record.getMessage() for record in caplog.records}), "a traceback"
    # Of pipelined requests uvicorn tells only the last one that the client has gone.
    assert logged <= ({"ASGI callable returned without completing response."} if b"\r\nGET" in request_bytes else set())


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x00", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 100])
def test_an_aborted_handshake_is_no_traceback(
    serve: Serve,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    sent: bytes,
) -> None:
    write_certificate(tmp_path, "server")
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}")
    trust = ssl.create_default_context(cafile=tmp_path / "server.crt")
    client = serve(Memory(), web=LiveWebConfig(tmp_path / "web.yml"), verify=trust)
    with caplog.at_level(logging.WARNING):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as aborted:
            aborted.sendall(sent)
            time.sleep(0.1)
        settle(lambda: client.get("/-/healthy"))
    assert [record for record in caplog.records if record.exc_info] == []
    assert "Traceback" not in caplog.text


AWKWARD = [
    "a/b",
    "/",
    "a\nb",
    "a\n",
    "\n",
    "\r\n",
    "../x",
    "a/../b",
    "a?b#c",
    "x/metrics/history",
    " ",
    "ü/%2F",
    "region/r/workers/x",
]


@pytest.mark.parametrize("worker_id", AWKWARD)
def test_a_worker_with_any_id_is_reachable(serve: Serve, worker_id: str) -> None:  # noqa: F811
    client = serve(Memory(snapshot=snapshot(gauges(worker_id))))
    path = quote(worker_id, safe="")
    for route in (f"/api/workers/{path}/metrics/history", f"/workers/{path}/metrics/history"):
        assert client.get(route, params={"format": "json"}).json()["worker"]["worker_id"] == worker_id
        assert client.get(route, params={"format": "csv"}).status_code == 200
    resources = client.get(f"/api/workers/region/eu-west-1/workers/{path}/resources")
    assert resources.status_code == 503  # found; there is no CloudWatch in this test
    assert [row["worker_id"] for row in client.get("/api/workers").json()["data"]] == [worker_id]
    assert client.get("/api/workers/nobody%0A/metrics/history").status_code == 404


def test_an_unknown_worker_with_a_line_break_is_refused_in_one_sentence(serve: Serve) -> None:  # noqa: F811
    client = serve(Memory(snapshot=snapshot(gauges("w1"))))
    response = client.get("/api/workers/a%0D%0ASet-Cookie:%20x/metrics/history")
    assert response.status_code == 404
    assert response.json()["detail"].startswith("Unknown worker a\r\nSet-Cookie: x;")
    assert "set-cookie" not in response.headers
