"""Which form of an answer a client likes best (RFC 9110, 12.5). Pure."""

import re
from collections.abc import Sequence


def prefers_gzip(accept_encoding: str) -> bool:
    """Read an Accept-Encoding header: gzip unless it is not accepted, or identity is liked better."""
    weights = _weights(accept_encoding)
    weight = next((weights[coding] for coding in ("gzip", "x-gzip", "*") if coding in weights), 0)
    return weight > 0 and weight >= weights.get("identity", 0)


def prefers_csv(accept: str) -> bool:
    """Read an Accept header: CSV only for who names it, and does not like JSON as much."""
    weights = _weights(accept)
    csv = weights.get("text/csv", 0)
    if "application/json" in weights:
        return csv > weights["application/json"]
    return csv > 0 and csv >= next((weights[kind] for kind in ("application/*", "*/*") if kind in weights), 0)


def _weights(header: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weights[name] = _weight(parameters)
    return weights


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            # What is not a weight is taken for a refusal, since the plain form suits everybody.
            return float(value) if re.fullmatch(r"\s*[01](\.\d{0,3})?", value) else 0
    return 1
