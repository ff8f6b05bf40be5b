"""The web configuration file: its keys, and the error message for each mistake."""

import ssl
from pathlib import Path

import pytest
import uvicorn
import yaml
from starlette.applications import Starlette

from exporter.core.errors import ConfigError
from exporter.web import tls_options, webconfig
from exporter.web.toolkit_http import RateLimit
from tests.helpers.certificates import write_certificate

HASH = "$2b$04$HhHEu6fPXD4KWiv08UHUW.a5YNSIXAuaxjGsV8ZdlijS.zLHBWhQq"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    write_certificate(folder, "server")
    write_certificate(folder, "other")
    write_certificate(folder, "locked", password=b"secret")
    (folder / "garbage.pem").write_text("nothing\n")
    (folder / "binary.pem").write_bytes(b"\xff\xfe\x00")
    return folder


def load(folder: Path, text: str) -> webconfig.WebConfig:
    file = folder / "web.yml"
    file.write_text(text)
    return webconfig.load(file)


def test_relative_paths_are_relative_to_the_folder_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = load(folder, "tls_server_config: {cert_file: server.crt, key_file: server.key}")
    assert config.tls is not None
    assert config.tls.minimum_version == ssl.TLSVersion.TLSv1_2
    assert config.tls.verify_mode == ssl.CERT_NONE


def test_every_supported_key_takes_effect(folder: Path) -> None:
    config = load(
        folder,
        f"""
tls_server_config:
  cert_file: {folder}/server.crt
  key_file: server.key
  client_ca_file: other.crt
  client_auth_type: RequireAndVerifyClientCert
  min_version: TLS13
basic_auth_users:
  alice: {HASH}
""",
    )
    assert config.tls is not None
    assert config.tls.minimum_version == ssl.TLSVersion.TLSv1_3
    assert config.tls.verify_mode == ssl.CERT_REQUIRED
    assert [dict(pair[0] for pair in ca["subject"])["commonName"] for ca in config.tls.get_ca_certs()] == ["other"]  # type: ignore[misc]
    assert config.users == {"alice": HASH.encode()}
    server = uvicorn.Config(Starlette(), log_config=None)
    config.apply(server)
    assert server.ssl is config.tls


@pytest.mark.parametrize("text", ["", "tls_server_config:\nbasic_auth_users:\n", "tls_server_config: {}"])
def test_an_empty_file_means_plain_http_without_users(folder: Path, text: str) -> None:
    assert load(folder, text) == webconfig.WebConfig()
    server = uvicorn.Config(Starlette(), log_config=None)
    webconfig.WebConfig().apply(server)
    assert server.ssl is None


@pytest.mark.parametrize("prefix", ["$2a$", "$2b$", "$2y$"])
def test_hashes_of_every_bcrypt_variant_are_accepted(folder: Path, prefix: str) -> None:
    assert load(folder, f"basic_auth_users: {{bob: {prefix}{HASH[4:]}}}").users == {"bob": (prefix + HASH[4:]).encode()}


FULL = """
tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: other.crt
  client_allowed_sans: [prometheus.example.org, 10.0.0.7]
  min_version: TLS12
  max_version: TLS13
  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, TLS_AES_128_GCM_SHA256]
  prefer_server_cipher_suites: false
  curve_preferences: [CurveP256]
http_server_config:
  http2: false
  headers:
    Content-Security-Policy: "default-src 'none'"
    X-Frame-Options: deny
    X-Content-Type-Options: nosniff
    X-XSS-Protection: ""
    Strict-Transport-Security: max-age=63072000
basic_auth_users: {}
rate_limit: {interval: 100ms, burst: 20}
"""


def test_a_file_with_every_key_that_other_exporters_know_is_accepted(folder: Path) -> None:
    config = load(folder, FULL)
    assert config.tls is not None
    assert config.tls.maximum_version == ssl.TLSVersion.TLSv1_3
    old = [cipher["name"] for cipher in config.tls.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert old == ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-SHA"]
    assert not config.tls.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert config.allowed_sans == frozenset({"prometheus.example.org", "10.0.0.7"})
    assert config.rate_limit == RateLimit(0.1, 20)
    assert config.headers == {
        "Content-Security-Policy": "default-src 'none'",
        "X-Frame-Options": "deny",
        "X-Content-Type-Options": "nosniff",
        "Strict-Transport-Security": "max-age=63072000",
    }


@pytest.mark.parametrize("name", tls_options.CIPHERS)
def test_every_cipher_suite_has_a_name_that_openssl_knows(name: str) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(tls_options.CIPHERS[name] + ":@SECLEVEL=0")


def test_certificates_in_the_file_itself(folder: Path) -> None:
    texts = {key: (folder / name).read_text() for key, name in (("cert", "server.crt"), ("key", "server.key"))}
    texts["client_ca"] = (folder / "other.crt").read_text()
    config = load(folder, yaml.safe_dump({"tls_server_config": {**texts, "client_auth_type": "RequireAndVerifyClientCert"}}))
    assert config.tls is not None
    assert len(config.tls.get_ca_certs()) == 1


def test_old_versions_as_a_minimum_are_raised_and_suites_of_tls_13_alone_leave_only_that(folder: Path) -> None:
    assert load(folder, f"tls_server_config: {{{PAIR}, min_version: TLS10}}").tls.minimum_version == ssl.TLSVersion.TLSv1_2  # type: ignore[union-attr]
    only = load(folder, f"tls_server_config: {{{PAIR}, cipher_suites: [TLS_AES_128_GCM_SHA256]}}")
    assert only.tls is not None
    assert only.tls.minimum_version == ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("rate_limit: {interval: 1m30s, burst: 3}", RateLimit(90, 3)),
        ("rate_limit: {interval: 1.5h, burst: 3}", RateLimit(5400, 3)),
        ("rate_limit: {interval: 0, burst: 3}", None),
        ("rate_limit: {interval: 0s, burst: 3}", None),
        ("rate_limit: {}", None),
    ],
)
def test_durations_of_a_rate_limit_are_those_of_go(folder: Path, text: str, limit: RateLimit | None) -> None:
    assert load(folder, text).rate_limit == limit


@pytest.mark.parametrize(
    ("names", "allowed", "admitted"),
    [
        ([("DNS", "a.example.org")], {"a.example.org"}, True),
        ([("DNS", "a.example.org")], {"A.example.org", "*.example.org"}, False),
        ([("IP Address", "2001:DB8:0:0:0:0:0:7")], {"2001:db8::7"}, True),
        ([("email", "ops@example.org"), ("URI", "spiffe://x/y")], {"spiffe://x/y"}, True),
        ([("DirName", "a.example.org")], {"a.example.org"}, False),
        ([], {"a.example.org"}, False),
        ([("DNS", "a.example.org")], set(), False),
        ([], None, True),
    ],
)
def test_names_of_client_certificates_match_exactly(
    names: list[tuple[str, str]], allowed: set[str] | None, admitted: bool
) -> None:
    certificate = {"subjectAltName": tuple(names)}
    assert tls_options.admits(certificate, None if allowed is None else frozenset(allowed)) is admitted


PAIR = "cert_file: server.crt, key_file: server.key"
MISTAKES = {
    "[]": (
        "a web configuration must hold keys and values; put quotes around keys that are numbers; docs/web.md shows an example"
    ),
    "tls_config: {}": "tls_config is not supported in a web configuration; "
    "supported are tls_server_config, http_server_config, basic_auth_users, rate_limit",
    "tls_server_config: server.crt": (
        "tls_server_config must hold keys and values; put quotes around keys that are numbers; docs/web.md shows an example"
    ),
    "tls_server_config: {certificate: abc}": (
        "certificate is not supported in tls_server_config; supported are cert_file, key_file, client_ca_file, cert, key, "
        "client_ca, client_auth_type, client_allowed_sans, min_version, max_version, cipher_suites, "
        "prefer_server_cipher_suites, curve_preferences"
    ),
    "tls_server_config: {cert: abc}": "tls_server_config.key_file is missing; TLS needs both cert_file and key_file",
    "tls_server_config: {cert: abc, key: abc}": (
        "tls_server_config.cert: the text of cert contains no certificate in PEM format"
    ),
    "tls_server_config: {cert_file: server.crt, key: abc}": (
        "tls_server_config.key: the text of key contains no private key in PEM format that matches {folder}/server.crt"
    ),
    "tls_server_config: {cert: abc, cert_file: server.crt, key_file: server.key}": (
        "tls_server_config.cert: cert_file is given, too; remove one of them"
    ),
    "tls_server_config: {cert_file: 7, key_file: server.key}": "tls_server_config.cert_file: must be a string",
    "tls_server_config: {cert_file: server.crt}": (
        "tls_server_config.key_file is missing; TLS needs both cert_file and key_file"
    ),
    "tls_server_config: {cert_file: no.crt, key_file: server.key}": (
        "tls_server_config.cert_file: cannot read {folder}/no.crt: No such file or directory"
    ),
    "tls_server_config: {cert_file: server.crt, key_file: .}": (
        "tls_server_config.key_file: cannot read {folder}: Is a directory"
    ),
    "tls_server_config: {cert_file: garbage.pem, key_file: server.key}": (
        "tls_server_config.cert_file: {folder}/garbage.pem contains no certificate in PEM format"
    ),
    "tls_server_config: {cert_file: binary.pem, key_file: server.key}": (
        "tls_server_config.cert_file: {folder}/binary.pem is not a text file in UTF-8"
    ),
    "tls_server_config: {cert_file: server.crt, key_file: garbage.pem}": (
        "tls_server_config.key_file: {folder}/garbage.pem contains no private key in PEM format "
        "that matches {folder}/server.crt"
    ),
    "tls_server_config: {cert_file: server.crt, key_file: other.key}": (
        "tls_server_config.key_file: {folder}/other.key does not match the certificate in {folder}/server.crt"
    ),
    "tls_server_config: {cert_file: locked.crt, key_file: locked.key}": (
        "tls_server_config.key_file: {folder}/locked.key is encrypted; "
        "decrypt it with: openssl pkey -in {folder}/locked.key -out <file>"
    ),
    f"tls_server_config: {{{PAIR}, min_version: SSL30}}": (
        "tls_server_config.min_version: SSL30 is not supported; supported are TLS12, TLS13"
    ),
    f"tls_server_config: {{{PAIR}, max_version: TLS11}}": (
        "tls_server_config.max_version: TLS11 is not supported; supported are TLS12, TLS13"
    ),
    f"tls_server_config: {{{PAIR}, min_version: TLS13, max_version: TLS12}}": (
        "tls_server_config.max_version: it is lower than min_version; no client could connect"
    ),
    f"tls_server_config: {{{PAIR}, cipher_suites: TLS_AES_128_GCM_SHA256}}": (
        "tls_server_config.cipher_suites: it must be a list of texts, such as [a, b]"
    ),
    f"tls_server_config: {{{PAIR}, cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]}}": (
        "tls_server_config.cipher_suites: TLS_RSA_WITH_RC4_128_SHA is not supported; supported are "
        + ", ".join((*tls_options.CIPHERS, *tls_options.CIPHERS_13))
    ),
    f"tls_server_config: {{{PAIR}, cipher_suites: [TLS_AES_128_GCM_SHA256], max_version: TLS12}}": (
        "tls_server_config.cipher_suites: none of them is for TLS 1.2, which max_version requires; add one"
    ),
    f"tls_server_config: {{{PAIR}, curve_preferences: [CurveP224]}}": (
        "tls_server_config.curve_preferences: CurveP224 is not supported; supported are CurveP256, CurveP384, CurveP521, X25519"
    ),
    f"tls_server_config: {{{PAIR}, prefer_server_cipher_suites: often}}": (
        "tls_server_config.prefer_server_cipher_suites: it must be true or false"
    ),
    f"tls_server_config: {{{PAIR}, client_allowed_sans: [a.example.org]}}": (
        "tls_server_config.client_allowed_sans: it needs client_auth_type RequireAndVerifyClientCert, "
        "else a client could connect without a certificate"
    ),
    "http_server_config: {http2: true}": (
        "http_server_config.http2: this exporter speaks HTTP/1.1 only; remove the key or set it to false, "
        "clients that prefer HTTP/2 fall back"
    ),
    "http_server_config: {headers: {Server: none}}": (
        "http_server_config.headers.Server cannot be set; supported are Content-Security-Policy, X-Frame-Options, "
        "X-Content-Type-Options, X-XSS-Protection, Strict-Transport-Security"
    ),
    "http_server_config: {headers: {X-Frame-Options: always}}": (
        "http_server_config.headers.X-Frame-Options: 'always' is not supported; supported are deny, sameorigin"
    ),
    "http_server_config: {headers: {X-XSS-Protection: 0}}": (
        "http_server_config.headers.X-XSS-Protection: it must be a text of one line in ASCII; put quotes around a number"
    ),
    "rate_limit: {interval: 5, burst: 1}": (
        "rate_limit.interval: 5 is not a duration; write one such as 1s, 100ms or 1m30s, or 0 for none"
    ),
    "rate_limit: {interval: 1s}": ("rate_limit.burst: 0 refuses every request; write how many are allowed at once, such as 20"),
    "rate_limit: {interval: 1s, burst: many}": "rate_limit.burst: it must be a number of requests",
    f"tls_server_config: {{{PAIR}, client_auth_type: RequireAnyClientCert}}": (
        "tls_server_config.client_auth_type: RequireAnyClientCert is not supported; "
        "supported are NoClientCert, RequestClientCert, VerifyClientCertIfGiven, RequireAndVerifyClientCert"
    ),
    f"tls_server_config: {{{PAIR}, client_auth_type: RequireAndVerifyClientCert}}": (
        "tls_server_config.client_ca_file is missing; client_auth_type needs it to verify client certificates"
    ),
    f"tls_server_config: {{{PAIR}, client_ca_file: other.crt}}": (
        "tls_server_config.client_auth_type: client_ca_file alone does not verify clients; "
        "set client_auth_type to RequireAndVerifyClientCert"
    ),
    f"tls_server_config: {{{PAIR}, client_ca_file: garbage.pem, client_auth_type: RequireAndVerifyClientCert}}": (
        "tls_server_config.client_ca_file: {folder}/garbage.pem contains no certificate in PEM format"
    ),
    "basic_auth_users: [alice]": (
        "basic_auth_users must hold keys and values; put quotes around keys that are numbers; docs/web.md shows an example"
    ),
    "basic_auth_users: {alice: secret}": (
        "basic_auth_users.alice: this is not a bcrypt hash; make one with: htpasswd -nBC 10 alice"
    ),
    f"basic_auth_users: {{alice: {HASH[:-1]}}}": (
        "basic_auth_users.alice: this is not a bcrypt hash; make one with: htpasswd -nBC 10 alice"
    ),
    "basic_auth_users: {alice: 12}": (
        "basic_auth_users.alice: this is not a bcrypt hash; make one with: htpasswd -nBC 10 alice"
    ),
    f"basic_auth_users: {{'al:ice': {HASH}}}": (
        "basic_auth_users: the user name 'al:ice' contains a colon, which HTTP does not allow; choose another name"
    ),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_each_mistake_is_reported_with_file_key_and_what_to_do(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert str(caught.value) == f"{folder}/web.yml: " + MISTAKES[text].replace("{folder}", str(folder))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^web.config_file: cannot read .*/web\.yml: No such file or directory$",
    ):
        webconfig.load(tmp_path / "web.yml")


def test_broken_yaml_is_located_but_never_quoted(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder, f"basic_auth_users:\n  alice: [{HASH}\n")
    assert str(caught.value).startswith(f"{folder}/web.yml:3:1: this is not valid YAML")
    assert str(caught.value).endswith("; docs/web.md shows an example")
    assert HASH not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (f"basic_auth_users:\n  alice: {HASH}\n  alice: {HASH}\n", 3, "alice"),
        ("tls_server_config: {}\nbasic_auth_users: {}\ntls_server_config: {}\n", 3, "tls_server_config"),
        ("tls_server_config:\n  min_version: TLS13\n  min_version: TLS12\n", 3, "min_version"),
    ],
)
def test_a_key_given_twice_is_refused(folder: Path, text: str, line: int, key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"web\.yml:{line}: .*{key} is given twice; the first is in line [12]; docs/web\.md"
    ) as caught:
        load(folder, text)
    assert HASH not in str(caught.value)


def test_only_certificates_within_the_file_need_a_temporary_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(webconfig, "TemporaryDirectory", full)
    assert load(folder, "tls_server_config: {cert_file: server.crt, key_file: server.key}").tls is not None
    with pytest.raises(
        ConfigError, match=r"tls_server_config.cert: no temporary file .* \(No space left on device\); use cert_file"
    ):
        load(folder, "tls_server_config: {cert: abc, key: abc}")
