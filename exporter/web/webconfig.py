"""TLS, basic authentication, headers and rate limit, from a file in the format of Prometheus's exporters (docs/web.md).

Format: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Any other key is refused, because
a protection that is silently left out is worse than none.
"""

import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn

from exporter.core.errors import ConfigError
from exporter.core.yaml_file import parse_yaml, read_text
from exporter.web import tls_options
from exporter.web.toolkit_http import RateLimit, parse_headers, parse_rate_limit

SECTIONS = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
TLS_KEYS = (
    *("cert_file", "key_file", "client_ca_file", "cert", "key", "client_ca", "client_auth_type", "client_allowed_sans"),
    *("min_version", "max_version", "cipher_suites", "prefer_server_cipher_suites", "curve_preferences"),
)
TEXT_KEYS = ("cert_file", "key_file", "client_ca_file", "cert", "key", "client_ca", "client_auth_type")
"""Keys of tls_server_config with one text."""

NONE = "NoClientCert"
CLIENT_AUTH_TYPES: Mapping[str, ssl.VerifyMode] = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
"""RequestClientCert admits every client, with or without a certificate, as NoClientCert does. Without RequireAnyClientCert:
Python's ssl cannot require a certificate without verifying it."""

_BCRYPT = re.compile(r"\$2[abxy]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")


@dataclass(frozen=True, slots=True)
class WebConfig:
    """TLS and users of the HTTP server; by default neither."""

    tls: ssl.SSLContext | None = None
    users: Mapping[str, bytes] = field(default_factory=dict)
    """User name → bcrypt hash."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of every response."""
    rate_limit: RateLimit | None = None
    allowed_sans: frozenset[str] | None = None
    """Subject Alternative Names of the client certificates that are admitted; None: all."""
    files: tuple[Path, ...] = ()
    """The files with certificates and keys; `LiveWebConfig` follows them."""

    def admits(self, certificate: Mapping[str, Any]) -> bool:
        """Return whether a client with this verified certificate may connect."""
        return tls_options.admits(certificate, self.allowed_sans)

    def apply(self, config: uvicorn.Config) -> None:
        """Have the server use this TLS context. Older versions of uvicorn have no argument for one."""
        config.load()
        config.ssl = self.tls


def load(path: Path) -> WebConfig:
    """Read the web configuration file and the certificates it names.

    Raises:
        ConfigError: a file cannot be read or is invalid; the message names the file, the key and what to do.
    """
    text = read_text(path, "web.config_file")
    try:
        content = parse_yaml(text, str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}; docs/web.md shows an example") from error.__cause__
    try:
        tree = _mapping(content, "a web configuration", SECTIONS)
        tls = _mapping(tree.get("tls_server_config"), "tls_server_config", TLS_KEYS)
        users = _mapping(tree.get("basic_auth_users"), "basic_auth_users")
        http = _mapping(tree.get("http_server_config"), "http_server_config", ("http2", "headers"))
        rate_limit = _mapping(tree.get("rate_limit"), "rate_limit", ("interval", "burst"))
        files = tuple(path.parent / str(value) for key, value in tls.items() if key.endswith("_file"))
        return WebConfig(
            _tls(tls, path.parent) if tls else None,
            _users(users),
            headers=parse_headers(http),
            rate_limit=parse_rate_limit(rate_limit),
            allowed_sans=_allowed_sans(tls),
            files=files,
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _mapping(value: object, name: str, supported: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a section as a dict, an absent one as an empty dict; refuse other values and unsupported keys."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(
            f"{name} must hold keys and values; put quotes around keys that are numbers; docs/web.md shows an example"
        )
    for key in value:
        if supported is not None and key not in supported:
            raise ConfigError(f"{key} is not supported in {name}; supported are {', '.join(supported)}")
    return value


# -- basic_auth_users


def _users(users: Mapping[str, object]) -> dict[str, bytes]:
    for name, hash in users.items():
        if ":" in name:
            raise ConfigError(
                f"basic_auth_users: the user name {name!r} contains a colon, which HTTP does not allow; choose another name"
            )
        if not isinstance(hash, str) or not _BCRYPT.fullmatch(hash):
            raise ConfigError(f"basic_auth_users.{name}: this is not a bcrypt hash; make one with: htpasswd -nBC 10 {name}")
    return {name: str(hash).encode() for name, hash in users.items()}


# -- tls_server_config


def _tls(section: Mapping[str, object], folder: Path) -> ssl.SSLContext:
    for key in TEXT_KEYS:
        if key in section and (not isinstance(section[key], str) or not section[key]):
            raise ConfigError(f"tls_server_config.{key}: must be a string")
    files = {key: folder / str(section[key]) for key in TEXT_KEYS if key.endswith("_file") and key in section}
    for key in ("cert", "key", "client_ca"):
        if key in section and f"{key}_file" in section:
            raise ConfigError(f"tls_server_config.{key}: {key}_file is given, too; remove one of them")
        if key != "client_ca" and key not in section and f"{key}_file" not in section:
            raise ConfigError(f"tls_server_config.{key}_file is missing; TLS needs both cert_file and key_file")
    verify = _verify_mode(section)
    authority = files.get("client_ca_file")
    if authority is None and "client_ca" not in section and verify != ssl.CERT_NONE:
        raise ConfigError(
            "tls_server_config.client_ca_file is missing; client_auth_type needs it to verify client certificates"
        )
    if (authority is not None or "client_ca" in section) and section.get("client_auth_type", NONE) == NONE:
        raise ConfigError(
            "tls_server_config.client_auth_type: client_ca_file alone does not verify clients; "
            "set client_auth_type to RequireAndVerifyClientCert"
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls_options.apply(context, section)
    context.verify_mode = verify
    with _inline(section) as texts:
        if authority is not None or "client_ca" in texts:
            _trust(context, authority or texts["client_ca"], "client_ca_file" if authority else "client_ca")
        _present(context, files.get("cert_file") or texts["cert"], files.get("key_file") or texts["key"])
    return context


def _verify_mode(section: Mapping[str, object]) -> ssl.VerifyMode:
    value = str(section.get("client_auth_type", NONE))
    if value not in CLIENT_AUTH_TYPES:
        supported = ", ".join(CLIENT_AUTH_TYPES)
        raise ConfigError(f"tls_server_config.client_auth_type: {value} is not supported; supported are {supported}")
    return CLIENT_AUTH_TYPES[value]


def _allowed_sans(section: Mapping[str, object]) -> frozenset[str] | None:
    if "client_allowed_sans" not in section or section["client_allowed_sans"] is None:
        return None
    if section.get("client_auth_type") != "RequireAndVerifyClientCert":
        raise ConfigError(
            "tls_server_config.client_allowed_sans: it needs client_auth_type RequireAndVerifyClientCert, "
            "else a client could connect without a certificate"
        )
    return frozenset(tls_options.texts(section, "client_allowed_sans"))


@contextmanager
def _inline(section: Mapping[str, object]) -> Iterator[Mapping[str, Path]]:
    """Write the certificates and keys of the file itself to files that only this user can read, and remove them afterwards.

    Python's ssl reads a private key only from a file.
    """
    keys = [key for key in ("cert", "key", "client_ca") if key in section]
    if not keys:
        yield {}
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(TemporaryDirectory(prefix="cml-worker-exporter-"))
            files = {key: Path(folder, key) for key in keys}
            for key, file in files.items():
                file.touch(0o600)
                file.write_text(str(section[key]))
        except OSError as error:
            raise ConfigError(
                f"tls_server_config.{keys[0]}: no temporary file can be written for it ({error.strerror or error}); "
                f"use {keys[0]}_file, or give the exporter a writable TMPDIR"
            ) from error
        try:
            yield files
        except ConfigError as error:
            text = str(error)
            for key, file in files.items():
                text = text.replace(str(file), f"the text of {key}").replace(f"_config.{key}_file:", f"_config.{key}:")
            raise ConfigError(text) from error


def _trust(context: ssl.SSLContext, file: Path, key: str) -> None:
    name = f"tls_server_config.{key}"
    text = read_text(file, name)
    try:
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{name}: {file} contains no certificate in PEM format") from error


def _present(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    name = "tls_server_config.key_file"
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, "cert_file")
    read_text(key, name)

    def encrypted() -> str:
        # Without this callback OpenSSL would prompt for the password on the terminal.
        raise ConfigError(f"{name}: {key} is encrypted; decrypt it with: openssl pkey -in {key} -out <file>")

    try:
        context.load_cert_chain(certificate, key, encrypted)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{name}: {key} does not match the certificate in {certificate}") from error
        raise ConfigError(f"{name}: {key} contains no private key in PEM format that matches {certificate}") from error
