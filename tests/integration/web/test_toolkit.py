"""A web configuration file that is shared with Prometheus's own exporters, and what it does on real connections."""

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from exporter.web import webconfig
from exporter.web.pages import templates
from tests.helpers.certificates import write_certificate
from tests.helpers.deadlines import scaled
from tests.integration.web.test_routes import Memory, gauges, hashed, serving, snapshot

TLS = {"cert_file": "server.crt", "key_file": "server.key"}
MUTUAL = {**TLS, "client_ca_file": "client.crt", "client_auth_type": "RequireAndVerifyClientCert"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("server", "client"):
        write_certificate(tmp_path, name)
    return tmp_path


@contextmanager
def served(folder: Path, content: Mapping[str, Any]) -> Iterator[httpx.Client]:
    (folder / "web.yml").write_text(yaml.safe_dump(dict(content)))
    with serving(
        Memory(snapshot=snapshot(gauges("w1"))), web=webconfig.load(folder / "web.yml"), verify=trust(folder)
    ) as client:
        yield client


def trust(folder: Path, **versions: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "server.crt")
    context.load_cert_chain(folder / "client.crt", folder / "client.key")
    for name, version in versions.items():
        setattr(context, name, version)
    return context


def status(client: httpx.Client, context: ssl.SSLContext) -> int:
    with httpx.Client(base_url=client.base_url, verify=context, trust_env=False, timeout=scaled(30)) as other:
        return other.get("/metrics").status_code


def cipher(client: httpx.Client, context: ssl.SSLContext) -> str:
    with (
        socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=scaled(30)) as plain,
        context.wrap_socket(plain, server_hostname=client.base_url.host) as secure,
    ):
        found = secure.cipher()
        assert found is not None
        return found[0]


def test_versions_above_the_maximum_are_refused(folder: Path) -> None:
    with served(folder, {"tls_server_config": {**TLS, "max_version": "TLS12"}}) as client:
        assert status(client, trust(folder, maximum_version=ssl.TLSVersion.TLSv1_2)) == 200
        with pytest.raises(httpx.ConnectError):
            status(client, trust(folder, minimum_version=ssl.TLSVersion.TLSv1_3))


def test_only_the_configured_cipher_suites_are_offered_in_the_configured_order(folder: Path) -> None:
    aes128, aes256 = "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"
    names = [f"TLS_ECDHE_ECDSA_WITH_AES_{size}" for size in ("256_GCM_SHA384", "128_GCM_SHA256")]
    client_order = trust(folder, maximum_version=ssl.TLSVersion.TLSv1_2)
    client_order.set_ciphers(f"{aes128}:{aes256}")
    for prefer, expected in ((True, aes256), (False, aes128)):
        section = {**TLS, "cipher_suites": names, "prefer_server_cipher_suites": prefer}
        with served(folder, {"tls_server_config": section}) as client:
            assert cipher(client, client_order) == expected
            other = trust(folder, maximum_version=ssl.TLSVersion.TLSv1_2)
            other.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305")
            with pytest.raises(httpx.ConnectError):
                status(client, other)


def test_a_curve_that_the_client_does_not_have_is_refused(folder: Path) -> None:
    with served(folder, {"tls_server_config": {**TLS, "curve_preferences": ["CurveP384"]}}) as client:
        assert status(client, trust(folder)) == 200
        other = trust(folder)
        other.set_ecdh_curve("prime256v1")
        with pytest.raises(httpx.ConnectError):
            status(client, other)


@pytest.mark.parametrize(("allowed", "admitted"), [(["127.0.0.1", "prometheus.example.org"], True), (["10.0.0.7"], False)])
def test_only_client_certificates_with_an_allowed_name_are_admitted(folder: Path, allowed: list[str], admitted: bool) -> None:
    with served(folder, {"tls_server_config": {**MUTUAL, "client_allowed_sans": allowed}}) as client:
        if admitted:
            assert status(client, trust(folder)) == 200
        else:
            with pytest.raises(httpx.TransportError):
                status(client, trust(folder))


def test_headers_are_on_every_response_but_do_not_replace_those_of_a_page(folder: Path) -> None:
    headers = {"X-Frame-Options": "deny", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'self'"}
    users = {"alice": hashed("secret").decode()}
    with served(folder, {"http_server_config": {"http2": False, "headers": headers}, "basic_auth_users": users}) as client:
        for response in (
            client.get("/metrics"),
            client.get("/metrics", auth=("alice", "secret")),
            client.get("/nowhere", auth=("alice", "secret")),
        ):
            assert (
                headers.items() <= {name.title().replace("-", "-"): value for name, value in response.headers.items()}.items()
            )
        page = client.get("/", auth=("alice", "secret")).headers
        assert page["x-frame-options"] == "deny"
        assert page.get_list("content-security-policy") == [templates.POLICY]


def test_requests_above_the_rate_limit_get_429_and_are_allowed_again_later(folder: Path) -> None:
    with served(folder, {"rate_limit": {"interval": "2s", "burst": 3}}) as client:
        begin = time.monotonic()
        found = [client.get("/-/healthy").status_code for _ in range(5)]
        if time.monotonic() - begin < 2:
            assert found == [200, 200, 200, 429, 429]
        deadline = time.monotonic() + scaled(60)
        while client.get("/metrics").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert time.monotonic() - begin >= 2
