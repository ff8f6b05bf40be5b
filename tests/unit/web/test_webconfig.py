"""The web configuration file: its keys, and the error message for each mistake."""

import ssl
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette

from exporter.core.errors import ConfigError
from exporter.web import webconfig
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


PAIR = "cert_file: server.crt, key_file: server.key"
MISTAKES = {
    "[]": (
        "a web configuration must hold keys and values; put quotes around keys that are numbers; docs/web.md shows an example"
    ),
    "tls_config: {}": "tls_config is not supported in a web configuration; supported are tls_server_config, basic_auth_users",
    "tls_server_config: server.crt": (
        "tls_server_config must hold keys and values; put quotes around keys that are numbers; docs/web.md shows an example"
    ),
    "tls_server_config: {cert: abc}": (
        "cert is not supported in tls_server_config; "
        "supported are cert_file, key_file, client_ca_file, client_auth_type, min_version"
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
    f"tls_server_config: {{{PAIR}, min_version: TLS10}}": (
        "tls_server_config.min_version: TLS10 is not supported; supported are TLS12, TLS13"
    ),
    f"tls_server_config: {{{PAIR}, client_auth_type: RequireAnyClientCert}}": (
        "tls_server_config.client_auth_type: RequireAnyClientCert is not supported; "
        "supported are NoClientCert, VerifyClientCertIfGiven, RequireAndVerifyClientCert"
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
    assert str(caught.value).startswith(f"{folder}/web.yml, line 3, column 1: this is not valid YAML")
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
        ConfigError, match=rf"web\.yml, line {line}, column \d+: .*{key} is given twice; docs/web\.md"
    ) as caught:
        load(folder, text)
    assert HASH not in str(caught.value)
