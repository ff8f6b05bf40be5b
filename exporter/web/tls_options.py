"""TLS options of the web configuration file of Prometheus's exporters: the names are those of Go, the effect is OpenSSL's."""

import ssl
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from exporter.core import logs
from exporter.core.errors import ConfigError

VERSIONS: Mapping[str, ssl.TLSVersion] = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
OLD_VERSIONS = ("TLS10", "TLS11")
"""Accepted as a minimum, and raised to TLS12: RFC 8996 forbids them."""

CIPHERS: Mapping[str, str] = {
    f"TLS_{kind}_WITH_{cipher}": f"{kind.replace('_', '-')}-{openssl}".removeprefix("RSA-")
    for kind in ("ECDHE_ECDSA", "ECDHE_RSA", "RSA")
    for cipher, openssl in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("AES_128_CBC_SHA", "AES128-SHA"),
        ("AES_256_CBC_SHA", "AES256-SHA"),
        *((("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),) if kind != "RSA" else ()),
    )
}
"""Go's name of a cipher suite up to TLS 1.2 → OpenSSL's name."""
CIPHERS_13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
"""Cipher suites of TLS 1.3, which are always offered, as by Go."""
CURVES: Mapping[str, str] = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}

_log = logs.get("webconfig")


def apply(context: ssl.SSLContext, section: Mapping[str, object]) -> None:
    """Set versions, cipher suites and curves of a context as `tls_server_config` says.

    Raises:
        ConfigError: a value is not supported, or nothing is left to offer.
    """
    minimum, maximum = _minimum(section), _version(section, "max_version", "TLS13")
    if maximum < minimum:
        raise ConfigError("tls_server_config.max_version: it is lower than min_version; no client could connect")
    context.minimum_version, context.maximum_version = minimum, maximum
    _set_ciphers(context, _names(section, "cipher_suites", (*CIPHERS, *CIPHERS_13)))
    if flag(section, "prefer_server_cipher_suites", default=True):
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    _set_curves(context, [CURVES[name] for name in _names(section, "curve_preferences", tuple(CURVES))])


def flag(section: Mapping[str, object], key: str, *, default: bool) -> bool:
    """Return a boolean of `tls_server_config`; raises ConfigError."""
    value = section.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"tls_server_config.{key}: it must be true or false")
    return value


def texts(section: Mapping[str, object], key: str) -> list[str]:
    """Return a list of texts of `tls_server_config`, an absent one as an empty list; raises ConfigError."""
    value = section.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f"tls_server_config.{key}: it must be a list of texts, such as [a, b]")
    return list(value)


def admits(certificate: Mapping[str, Any], allowed: frozenset[str] | None) -> bool:
    """Return whether a client certificate has one of the allowed Subject Alternative Names; None allows all certificates.

    Args:
        certificate: as `ssl.SSLSocket.getpeercert` returns it.
        allowed: DNS names, IP addresses, e-mail addresses and URIs.
    """
    if allowed is None:
        return True
    names = [(kind, str(name)) for kind, name in certificate.get("subjectAltName", ())]
    wanted = {"DNS", "email", "URI"}
    return any(
        _address(name) in allowed if kind == "IP Address" else kind in wanted and name in allowed for kind, name in names
    )


def _address(text: str) -> str:
    try:
        return str(ip_address(text.strip()))  # OpenSSL writes IPv6 addresses in full and in capitals, Go does not
    except ValueError:
        return text


def _minimum(section: Mapping[str, object]) -> ssl.TLSVersion:
    if section.get("min_version") in OLD_VERSIONS:
        _log.warning("min_version raised to TLS12; TLS 1.0 and 1.1 are not offered", min_version=str(section["min_version"]))
        return ssl.TLSVersion.TLSv1_2
    return _version(section, "min_version", "TLS12")


def _version(section: Mapping[str, object], key: str, default: str) -> ssl.TLSVersion:
    name = section.get(key, default)
    if not isinstance(name, str) or name not in VERSIONS:
        raise ConfigError(f"tls_server_config.{key}: {name} is not supported; supported are {', '.join(VERSIONS)}")
    return VERSIONS[name]


def _names(section: Mapping[str, object], key: str, known: Sequence[str]) -> list[str]:
    names = texts(section, key)
    for name in names:
        if name not in known:
            raise ConfigError(f"tls_server_config.{key}: {name} is not supported; supported are {', '.join(known)}")
    return names


def _set_ciphers(context: ssl.SSLContext, names: Sequence[str]) -> None:
    if not names:
        return
    old = [CIPHERS[name] for name in names if name in CIPHERS]
    if not old and context.maximum_version < ssl.TLSVersion.TLSv1_3:
        raise ConfigError("tls_server_config.cipher_suites: none of them is for TLS 1.2, which max_version requires; add one")
    if not old:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return
    try:
        context.set_ciphers(":".join(old))
    except ssl.SSLError as error:
        raise ConfigError(
            "tls_server_config.cipher_suites: this machine's OpenSSL supports none of them; add another one"
        ) from error


def _set_curves(context: ssl.SSLContext, curves: Sequence[str]) -> None:
    """Set the curves of the key exchange; of several only the first, where Python's ssl has no function for several."""
    if not curves:
        return
    several: Any = getattr(context, "set_groups", None)  # since Python 3.15
    if several is not None:
        several(":".join(curves))
        return
    if len(curves) > 1:
        _log.warning("only the first of curve_preferences is used; this version of Python cannot set several", curve=curves[0])
    try:
        context.set_ecdh_curve(curves[0])
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"tls_server_config.curve_preferences: this machine's OpenSSL does not support {curves[0]}"
        ) from error
