"""TLS and basic authentication, from a file in the format of Prometheus's exporters (docs/web.md).

Format: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Only the keys below are supported.
Any other key is refused, because a protection that is silently left out is worse than none.
"""

import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from exporter.core.errors import ConfigError
from exporter.core.yaml_file import parse_yaml, read_text

SECTIONS = ("tls_server_config", "basic_auth_users")
TLS_KEYS = ("cert_file", "key_file", "client_ca_file", "client_auth_type", "min_version")

CLIENT_AUTH_TYPES: Mapping[str, ssl.VerifyMode] = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
"""Without RequestClientCert and RequireAnyClientCert: Python's ssl cannot request a certificate without verifying it."""

MIN_VERSIONS: Mapping[str, ssl.TLSVersion] = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}

Choice = TypeVar("Choice", ssl.VerifyMode, ssl.TLSVersion)

_BCRYPT = re.compile(r"\$2[abxy]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")


@dataclass(frozen=True, slots=True)
class WebConfig:
    """TLS and users of the HTTP server; by default neither."""

    tls: ssl.SSLContext | None = None
    users: Mapping[str, bytes] = field(default_factory=dict)
    """User name → bcrypt hash."""
    files: tuple[Path, ...] = ()
    """The files with certificates and keys; `LiveWebConfig` follows them."""

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
        files = tuple(path.parent / str(value) for key, value in tls.items() if key.endswith("_file"))
        return WebConfig(_tls(tls, path.parent) if tls else None, _users(users), files)
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
    for key, value in section.items():
        if not isinstance(value, str) or not value:
            raise ConfigError(f"tls_server_config.{key}: must be a string")
    files = {key: folder / str(value) for key, value in section.items() if key.endswith("_file")}
    for key in ("cert_file", "key_file"):
        if key not in files:
            raise ConfigError(f"tls_server_config.{key} is missing; TLS needs both cert_file and key_file")
    version = _choice(section, "min_version", MIN_VERSIONS, "TLS12")
    verify = _choice(section, "client_auth_type", CLIENT_AUTH_TYPES, "NoClientCert")
    authority = files.get("client_ca_file")
    if authority is None and verify != ssl.CERT_NONE:
        raise ConfigError(
            "tls_server_config.client_ca_file is missing; client_auth_type needs it to verify client certificates"
        )
    if authority is not None and verify == ssl.CERT_NONE:
        raise ConfigError(
            "tls_server_config.client_auth_type: client_ca_file alone does not verify clients; "
            "set client_auth_type to RequireAndVerifyClientCert"
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = version
    context.verify_mode = verify
    if authority is not None:
        _trust(context, authority, "client_ca_file")
    _present(context, files["cert_file"], files["key_file"])
    return context


def _choice(section: Mapping[str, object], key: str, choices: Mapping[str, Choice], default: str) -> Choice:
    value = str(section.get(key, default))
    if value not in choices:
        raise ConfigError(f"tls_server_config.{key}: {value} is not supported; supported are {', '.join(choices)}")
    return choices[value]


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
