"""The TLS files that a MongoDB connection string names: checked before the driver reads them.

The driver raises another kind of error for each mistake, names no file in most of them, and asks for the password of an
encrypted key at the terminal. Here every mistake is one sentence with the option and the file.
"""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qsl

from exporter.core.errors import ConfigError

AUTHORITY, IDENTITY, REVOCATIONS = "tlsCAFile", "tlsCertificateKeyFile", "tlsCRLFile"
PASSWORD = "tlsCertificateKeyFilePassword"


def options_of(uri: str) -> dict[str, str]:
    """Return the options of a connection string by lower-case name, without asking DNS."""
    query = uri.partition("?")[2].replace(";", "&")
    return {key.lower(): value for key, value in parse_qsl(query)}


def check(uri: str, name: str) -> None:
    """Check the TLS files of a connection string.

    Args:
        uri: the connection string.
        name: what the error message calls it.

    Raises:
        ConfigError: a file is missing, not PEM, encrypted, or its key does not belong to its certificate.
    """
    options = options_of(uri)
    password = options.get(PASSWORD.lower())
    checks: dict[str, Callable[[str, Path], None]] = {
        AUTHORITY: _load_certificates,
        IDENTITY: lambda what, file: _load_identity(what, file, password),
        REVOCATIONS: _load_certificates,
    }
    for option, load in checks.items():
        if given := options.get(option.lower()):
            what = f"{name}: {option} {given}"
            try:
                load(what, Path(given))
            except ssl.SSLError as error:
                raise ConfigError(f"{what} is damaged ({error.reason}); write the PEM file anew") from error
            except OSError as error:
                raise ConfigError(f"{what} cannot be read: {error.strerror}") from error


def _load_certificates(what: str, file: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError as error:
        raise ConfigError(f"{what} contains no certificate in PEM format") from error


def _load_identity(what: str, file: Path, password: str | None) -> None:
    def encrypted() -> NoReturn:
        # Without this callback OpenSSL would prompt for the password on the terminal.
        raise ConfigError(f"{what} is encrypted; add {PASSWORD} to the connection string, or decrypt the key with openssl pkey")

    text = file.read_bytes()
    for part, words in ((b"CERTIFICATE-----", "certificate"), (b"PRIVATE KEY-----", "private key")):
        if part not in text:
            raise ConfigError(f"{what} contains no {words} in PEM format; it must hold the certificate and its private key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(file, password=password or encrypted)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{what} holds a private key that does not belong to its certificate") from error
        if password:
            raise ConfigError(f"{what} cannot be decrypted with {PASSWORD}, or is no PEM file") from error
        raise


def explain(brief: str, ca_file: str | None) -> str | None:
    """Return why the certificate of a server was refused, and what to do; None for another error.

    Args:
        brief: the driver's sentence.
        ca_file: the value of tlsCAFile; None where the connection string has none.
    """
    if "certificate verify failed" not in brief.lower():
        return None
    server = brief.partition(": [SSL")[0]
    reason = brief.lower().partition("certificate verify failed: ")[2].partition(" (_ssl")[0].rstrip(".") or "unknown reason"
    trust = f"{AUTHORITY} {ca_file}" if ca_file else f"the CAs of the system ({AUTHORITY} is not set)"
    if "mismatch" in reason:
        return (
            f"the certificate of {server} is valid by {trust}, but for another host ({reason}); write a host name of the "
            "certificate into mongodb.uri, or issue one for this name"
        )
    if "expired" in reason or "not yet valid" in reason:
        return f"the certificate of {server} is refused by {trust} ({reason}); renew it, or correct the clock"
    return f"the certificate of {server} is refused by {trust} ({reason}); set {AUTHORITY} to the file of the CA that issued it"
