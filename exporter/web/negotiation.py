"""Content negotiation (RFC 9110, 12.5): which representation a client prefers. Pure functions of header values."""

import re
from collections.abc import Sequence
from typing import Literal

Coding = Literal["gzip", "zstd"]
"""A content coding that bodies are compressed with."""


def prefers_gzip(accept_encoding: str) -> bool:
    """Return whether to compress, from an Accept-Encoding header: if gzip is accepted and identity does not weigh more."""
    weights = _weights(accept_encoding)
    gzip = next((weights[coding] for coding in ("gzip", "x-gzip", "*") if coding in weights), 0)
    return gzip > 0 and gzip >= weights.get("identity", 0)


def preferred_coding(accept_encoding: str) -> Coding | None:
    """Return the coding to compress with, from an Accept-Encoding header; None: none is accepted, or identity weighs more.

    Of two with the same weight it is zstd, which is smaller in less time. `*` stands for gzip, which all clients know.
    """
    weights = _weights(accept_encoding)
    zstd = weights.get("zstd", 0)
    gzip = next((weights[coding] for coding in ("gzip", "x-gzip", "*") if coding in weights), 0)
    if not max(zstd, gzip) or max(zstd, gzip) < weights.get("identity", 0):
        return None
    return "zstd" if zstd >= gzip else "gzip"


def prefers_csv(accept: str) -> bool:
    """Return whether to send CSV instead of JSON, from an Accept header: only if the client names CSV and prefers it.

    With equal weights JSON wins if the client names it too, and CSV wins over a wildcard, which is less specific.
    """
    weights = _weights(accept)
    csv = weights.get("text/csv", 0)
    if "application/json" in weights:
        return csv > weights["application/json"]
    return csv > 0 and csv >= next((weights[kind] for kind in ("application/*", "*/*") if kind in weights), 0)


def sends_csv(wanted: str | None, accept: str) -> bool:
    """Return whether to send CSV: `wanted` is the format in the query; None: the Accept header decides."""
    return wanted == "csv" or (wanted is None and prefers_csv(accept))


def prefers_html(accept: str) -> bool:
    """Return whether to send an error as a page, from an Accept header: only if the client, a browser, names HTML."""
    weights = _weights(accept)
    html = weights.get("text/html", 0)
    return html > 0 and html >= max(weights.get("application/json", 0), weights.get("application/problem+json", 0))


def _weights(header: str) -> dict[str, float]:
    """Return name, in lower case → weight of the items of an Accept or Accept-Encoding header."""
    weights: dict[str, float] = {}
    for item in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in item.split(";"))
        weights[name] = _weight(parameters)
    return weights


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            # A malformed weight counts as a refusal: every client can read the plain form.
            return float(value) if re.fullmatch(r"\s*[01](\.\d{0,3})?", value) else 0
    return 1
