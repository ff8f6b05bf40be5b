"""Every response of a real server has the security headers: pages, data, errors, and what is no HTTP at all."""

import gzip
import socket

import httpx
import pytest

from exporter.core.settings import WebSettings
from exporter.web.pages import templates
from exporter.web.routes import ROUTES
from exporter.web.security_headers import SECURITY_HEADERS
from exporter.web.webconfig import WebConfig
from tests.helpers.fleets import fleet
from tests.integration.web.test_routes import NOW, Memory, Serve, hashed, serve, snapshot  # noqa: F401  # a fixture

DATA = SECURITY_HEADERS["Content-Security-Policy"]
WORKER = fleet(1, NOW)[0].worker


def address(template: str) -> str:
    values = {"{worker_id}": WORKER.id, "{region}": WORKER.region, "{name}": next(iter(templates.STATIC))}
    for placeholder, value in values.items():
        template = template.replace(placeholder, value)
    return template


def check(response: httpx.Response) -> None:
    headers = response.headers
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    assert headers.get_list("referrer-policy") == ["no-referrer"]
    (policy,) = headers.get_list("content-security-policy")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    media_type = headers.get("content-type", "").partition(";")[0]
    expected = {"text/html": "private, no-cache", "image/svg+xml": "private, max-age=30"}.get(media_type, "no-store")
    if media_type in ("text/css", "text/javascript"):
        expected = "public, max-age=31536000, immutable" if "v" in response.url.params else "no-cache"
    assert headers.get_list("cache-control") == [expected]
    assert policy == DATA or media_type in ("text/html", "image/svg+xml")


def test_every_route_has_them(serve: Serve) -> None:  # noqa: F811
    client = serve(Memory(snapshot=snapshot(*fleet(2, NOW))))
    for endpoint in ROUTES:
        check(client.request(endpoint.method, address(endpoint.template)))
        if endpoint.method == "GET":
            check(client.head(address(endpoint.template)))


def test_a_file_is_kept_only_under_the_address_of_its_version(serve: Serve) -> None:  # noqa: F811
    """While replicas are updated one by one, a page of the new one may load its files from the old one."""
    client = serve(Memory(snapshot=snapshot(*fleet(2, NOW))))
    name, file = next(iter(templates.STATIC.items()))
    check(client.get(f"/static/{name}?v={file.version}"))
    other = client.get(f"/static/{name}?v=other")
    assert (other.status_code, other.headers["cache-control"]) == (200, "no-cache")


def test_errors_have_them_too(serve: Serve) -> None:  # noqa: F811
    settings = WebSettings(cors_origins=["https://ui.example.org"])
    client = serve(Memory(snapshot=snapshot(*fleet(2, NOW))), settings=settings)
    preflight = {"Origin": "https://other.example.org", "Access-Control-Request-Method": "GET"}
    for response, status in (
        (client.get("/nowhere"), 404),
        (client.get("/nowhere", headers={"Accept": "text/html"}), 404),
        (client.delete("/api/workers"), 405),
        (client.get("/api/workers?limit=0"), 400),
        (client.get("/api/workers", headers={"X-Large": "x" * 70_000}), 431),
        (client.options("/api/workers", headers=preflight), 400),
    ):
        assert response.status_code == status
        check(response)


def test_a_request_without_a_password_and_a_bug_have_them(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    parts = Memory(snapshot=snapshot(*fleet(2, NOW)))
    client = serve(parts, web=WebConfig(users={"alice": hashed("secret")}))
    refused = client.get("/api/workers")
    assert refused.status_code == 401
    check(refused)
    parts.failure = KeyError("a bug")
    broken = client.get(f"/api/workers/{WORKER.id}/metrics/history", auth=("alice", "secret"))
    assert broken.status_code == 500
    check(broken)


def test_what_is_no_http_gets_an_error_with_them(serve: Serve) -> None:  # noqa: F811
    url = serve(Memory()).base_url
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(b"what is this\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    assert answer.startswith("HTTP/1.1 400 ")
    for name, value in SECURITY_HEADERS.items():
        assert f"\r\n{name.lower()}: {value}\r\n" in answer


def test_large_bodies_are_compressed_and_head_has_the_same_headers(serve: Serve) -> None:  # noqa: F811
    client = serve(Memory(snapshot=snapshot(*fleet(200, NOW))))
    for path in ("/api/workers", "/api/workers?format=csv", "/openapi.json", "/"):
        plain = client.get(path, headers={"Accept-Encoding": "identity"})
        with client.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as response:
            raw = b"".join(response.iter_raw())
        assert "content-encoding" not in plain.headers
        assert (response.headers["content-encoding"], response.headers["content-length"]) == ("gzip", str(len(raw)))
        assert len(gzip.decompress(raw)) == len(plain.content)
        assert len(raw) < len(plain.content) / 3
        head = client.head(path, headers={"Accept-Encoding": "gzip"})
        assert (head.headers["content-length"], head.headers["content-encoding"]) == (str(len(raw)), "gzip")
        assert all("Accept-Encoding" in each.headers["vary"] for each in (plain, response, head))


def test_a_page_that_has_not_changed_is_still_a_304(serve: Serve) -> None:  # noqa: F811
    client = serve(Memory(snapshot=snapshot(*fleet(2, NOW))))
    page = client.get("/")
    assert page.headers["content-encoding"] == "gzip"
    again = client.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "Accept-Encoding" in again.headers["vary"]
    check(client.get("/", headers={"If-None-Match": '"other"'}))
