"""What the texts of the operating system and of drivers mean when a server cannot be reached: a few plain words. Pure."""

import re
from collections.abc import Sequence

_REASONS: Sequence[tuple[str, str]] = (
    (r"refused|connect call failed|errno 111", "refuses connections"),
    (
        r"not known|name resolution|nodename|getaddrinfo|failed to resolve",
        "has a host name that DNS does not know",
    ),
    (r"timed out|timeout", "does not answer in time"),
    (r"unreachable|no route", "is in a network that cannot be reached"),
    (r"closed|reset|broken pipe|eof", "closes the connection"),
)


def reason(text: str) -> str | None:
    """Return what a driver's text means, as the rest of a sentence about the server; None if it is none of these."""
    return next((words for pattern, words in _REASONS if re.search(pattern, text.lower())), None)


def described(text: str) -> str:
    """Return the same, or that the server does not answer, with the driver's text."""
    return reason(text) or f"does not answer ({text})"
