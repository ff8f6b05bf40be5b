"""The web configuration file changes while a real server runs: users, client CA, version, certificate; SIGHUP; reload."""

import os
import signal
import ssl
import time
from pathlib import Path

import httpx
import pytest

from exporter.core.errors import ConfigError
from exporter.web import webconfig
from exporter.web.live_config import EMPTY_SECONDS, LiveWebConfig
from tests.fixtures.process import RunExporter
from tests.helpers.certificates import write_certificate
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.reliability import record
from tests.integration.web.test_routes import Memory, Serve, hashed, serve, trusting, wait_until  # noqa: F401  # serve is a fixture

PAIR = "cert_file: server.crt, key_file: server.key"
NOWHERE = "mongodb://127.0.0.1:1/cml"
QUIET = {"mongodb": {"uri": NOWHERE, "history": None}, "cloudwatch": {"enabled": False}}


@pytest.fixture
def web(tmp_path: Path) -> Path:
    for name in ("server", "client", "other"):
        write_certificate(tmp_path, name)
    return tmp_path / "web.yml"


def users(**passwords: str) -> str:
    return f"basic_auth_users: {{{', '.join(f'{name}: {hashed(word).decode()}' for name, word in passwords.items())}}}\n"


def status(client: httpx.Client, auth: tuple[str, str] | None = None) -> int:
    return client.get("/metrics", auth=auth).status_code


def connects(url: httpx.URL, context: ssl.SSLContext) -> bool:
    try:
        with httpx.Client(base_url=url, verify=context, trust_env=False) as fresh:
            return fresh.get("/-/healthy").status_code == 200
    except httpx.TransportError:
        return False


def test_users_count_from_the_next_request_on(serve: Serve, web: Path) -> None:  # noqa: F811
    web.write_text("")
    live = LiveWebConfig(web)
    results: list[bool] = []
    live.on_reload = results.append
    client = serve(Memory(), web=live)
    assert status(client) == 200
    web.write_text(users(alice="one"))
    assert status(client) == 401
    assert status(client, ("alice", "one")) == 200
    web.write_text(users(alice="two", bob="three"))
    assert status(client, ("alice", "one")) == 401, "the accepted password was remembered beyond the change"
    assert status(client, ("alice", "two")) == 200
    assert status(client, ("bob", "three")) == 200
    web.write_text("basic_auth_users: {alice: plaintext}")
    assert status(client, ("alice", "two")) == 200, "a wrong file must change nothing"
    assert status(client, ("alice", "plaintext")) == 401
    web.unlink()
    assert status(client) == 401, "a missing file must not open the exporter"
    for beginning in ("", "basic_auth_users:\n"):
        web.write_text(beginning)
        time.sleep(EMPTY_SECONDS + 0.2)
        assert status(client) == 401, "a file of which the beginning was written must not open the exporter"
    web.write_text(users(carol="four"))
    wait_until(lambda: status(client, ("carol", "four")) == 200)
    assert (results[:3], results[-1]) == ([True, True, False], True)


def test_a_file_that_cannot_be_read_for_a_while_is_read_again(web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.write_text(users(alice="one"))
    live = LiveWebConfig(web)
    load = webconfig.load

    def refuse(path: Path) -> webconfig.WebConfig:
        raise ConfigError(f"{path}: too many open files") from OSError(24, "Too many open files")

    monkeypatch.setattr(webconfig, "load", refuse)
    web.write_text(users(bob="two"))
    assert set(live.users) == {"alice"}
    monkeypatch.setattr(webconfig, "load", load)
    wait_until(lambda: set(live.users) == {"bob"})


def test_what_is_written_between_the_read_and_the_use_is_not_undone(web: Path) -> None:
    web.write_text(users(alice="one", revoked="two"))
    live = LiveWebConfig(web)
    old = live.read()
    web.write_text(users(alice="one"))
    assert set(live.users) == {"alice"}
    live.use(old)
    wait_until(lambda: set(live.users) == {"alice"})


def test_client_ca_client_auth_and_version_count_from_the_next_connection_on(serve: Serve, web: Path) -> None:  # noqa: F811
    web.write_text(f"tls_server_config: {{{PAIR}}}")
    anonymous, known = trusting(web.parent), trusting(web.parent, client=True)
    first = serve(Memory(), web=LiveWebConfig(web), verify=anonymous)
    assert first.get("/-/healthy").status_code == 200
    url = first.base_url
    web.write_text(f"tls_server_config: {{{PAIR}, client_ca_file: ca.pem, client_auth_type: RequireAndVerifyClientCert}}")
    assert connects(url, anonymous), "ca.pem is missing, so nothing changes"
    authority = web.parent / "ca.pem"
    authority.write_bytes((web.parent / "other.crt").read_bytes())
    web.touch()
    assert not connects(url, known), "the client's certificate is not from this CA"
    authority.write_bytes((web.parent / "client.crt").read_bytes())  # the CA alone, web.yml stays
    assert connects(url, known)
    assert not connects(url, anonymous)
    old = trusting(web.parent)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    web.write_text(f"tls_server_config: {{{PAIR}}}")
    assert connects(url, old)
    web.write_text(f"tls_server_config: {{{PAIR}, min_version: TLS13}}")
    assert not connects(url, old)
    assert connects(url, trusting(web.parent))


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [("", f"tls_server_config: {{{PAIR}}}", "begin"), (f"tls_server_config: {{{PAIR}}}", "", "end")],
)
def test_tls_cannot_begin_or_end_without_a_restart(web: Path, before: str, after: str, word: str) -> None:
    web.write_text(before)
    live = LiveWebConfig(web)
    web.write_text(after)
    with pytest.raises(ConfigError, match=f"restart the exporter to {word} TLS"):
        live.read()
    assert (live.current().tls is None) == (before == "")


@pytest.mark.parametrize("file", ["web.yml", "server.crt", "server.key", "other.crt"])
def test_a_byte_order_mark_and_crlf_are_fine_in_every_file(web: Path, serve: Serve, file: str) -> None:  # noqa: F811
    web.write_text(
        "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n  client_ca_file: other.crt\n"
        "  client_auth_type: VerifyClientCertIfGiven\n"
    )
    trust = trusting(web.parent)
    path = web.parent / file
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert serve(Memory(), web=LiveWebConfig(web), verify=trust).get("/-/healthy").status_code == 200


# -- SIGHUP and POST /-/reload of the real process


def value(exporter: ExporterProcess, name: str) -> float:
    return exporter.metrics()[f"cml_exporter_config_last_reload_{name}"]


@pytest.mark.waits(15)
def test_a_reload_applies_what_is_safe_and_names_what_waits(run_exporter: RunExporter) -> None:
    exporter = run_exporter({**QUIET, "web": {"enable_lifecycle": True}})
    assert value(exporter, "successful") == 1
    started = value(exporter, "success_timestamp_seconds")
    text = exporter.config.read_text()
    exporter.config.write_text(f"{text}\nlog: {{level: debug}}\nperiod: 1m\n")
    response = exporter.post("/-/reload")
    assert response.status_code == 200
    assert response.text == "Reloaded; changed settings: log.level; wait for a restart: period.\n"
    exporter.wait_for(lambda: value(exporter, "success_timestamp_seconds") > started, 10, "showing the time of the reload")
    exporter.config.write_text(text.replace("history: null", "histry: null"))
    refused = exporter.post("/-/reload")
    assert refused.status_code == 500
    sentence = f"Not reloaded, nothing has changed: {exporter.config}:5: mongodb.histry is not a setting"
    assert refused.json()["detail"].startswith(sentence)
    exporter.wait_for(lambda: value(exporter, "successful") == 0, 10, "showing the failed reload")
    assert "configuration not reloaded" in exporter.logged()
    exporter.config.write_text(text)
    assert exporter.post("/-/reload").text == "Reloaded; changed settings: log.level.\n"
    exporter.wait_for(lambda: value(exporter, "successful") == 1, 10, "showing the reload")


@pytest.mark.waits(12)
def test_a_reload_by_http_is_off_by_default_and_by_its_flag_on(run_exporter: RunExporter) -> None:
    exporter = run_exporter(QUIET)
    refused = exporter.post("/-/reload")
    assert refused.status_code == 403
    assert "--web.enable-lifecycle" in refused.json()["detail"]
    assert exporter.get("/-/reload").status_code == 405


@pytest.mark.waits(15)
def test_sighup_reloads_and_a_wrong_file_ends_nothing(run_exporter: RunExporter, tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    web.write_text("")
    exporter = run_exporter({**QUIET, "web": {"config_file": str(web)}})
    text = exporter.config.read_text()
    exporter.config.write_text(f"{text}\nlog: {{level: debug}}\n")
    os.kill(exporter.pid, signal.SIGHUP)
    exporter.wait_for(lambda: "changed settings: log.level" in exporter.logged(), 20, "reloading")
    web.write_text("nonsense: 1")
    os.kill(exporter.pid, signal.SIGHUP)
    exporter.wait_for(lambda: value(exporter, "successful") == 0, 20, "showing the failed reload")
    for _ in range(5):
        exporter.get("/metrics")
    assert exporter.logged().count("nonsense is not supported") <= 2, "said once per reading, not at each request"
    web.write_text(users(alice="one"))
    assert exporter.get("/metrics").status_code == 401
    assert exporter.stop() == 0
    assert "Traceback" not in exporter.logged()
    record("reload-of-a-wrong-file", note="no restart")
