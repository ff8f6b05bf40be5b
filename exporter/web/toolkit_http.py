"""`http_server_config` and `rate_limit` of the web configuration file of Prometheus's exporters: parsing, ASGI middleware."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from exporter.core.errors import ConfigError
from exporter.web.security_headers import with_headers

HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
    "X-XSS-Protection": (),
    "Strict-Transport-Security": (),
}
"""Header that may be set → its values; any value where there are none."""

_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:h|ms|m|s|us|µs|ns))+")
_PART = re.compile(r"(\d+(?:\.\d*)?)(h|ms|m|s|us|µs|ns)")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket for all requests together."""

    interval: float
    """Seconds after which one more request is allowed."""
    burst: int
    """Requests that are allowed at once."""


class HttpConfig(Protocol):
    """What the middleware reads of the web configuration."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of every response."""

    @property
    def rate_limit(self) -> RateLimit | None:
        """The limit of requests; None: no limit."""


def parse_headers(section: Mapping[str, object]) -> dict[str, str]:
    """Return the headers of `http_server_config`; a blank one is not set.

    Raises:
        ConfigError: HTTP/2 is turned on, or a header or its value is not supported.
    """
    http2 = section.get("http2", False)
    if not isinstance(http2, bool):
        raise ConfigError("http_server_config.http2: it must be true or false")
    if http2:
        raise ConfigError(
            "http_server_config.http2: this exporter speaks HTTP/1.1 only; remove the key or set it to false, "
            "clients that prefer HTTP/2 fall back"
        )
    given = section.get("headers")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ConfigError("http_server_config.headers must hold names and values")
    return {name: value for name, value in given.items() if _is_set(name, value)}


def _is_set(name: object, value: object) -> bool:
    key = f"http_server_config.headers.{name}"
    if name not in HEADERS:
        raise ConfigError(f"{key} cannot be set; supported are {', '.join(HEADERS)}")
    if not isinstance(value, str) or not value.isascii() or not (value.isprintable()):
        raise ConfigError(f"{key}: it must be a text of one line in ASCII; put quotes around a number")
    allowed = HEADERS[str(name)]
    if value and allowed and value not in allowed:
        raise ConfigError(f"{key}: {value!r} is not supported; supported are {', '.join(allowed)}")
    return bool(value)


def parse_rate_limit(section: Mapping[str, object]) -> RateLimit | None:
    """Return the limit of `rate_limit`; None without an interval.

    Raises:
        ConfigError: a value is invalid, or no request would be allowed.
    """
    interval = _seconds(section.get("interval", 0))
    burst = section.get("burst", 0)
    if not isinstance(burst, int) or isinstance(burst, bool) or burst < 0:
        raise ConfigError("rate_limit.burst: it must be a number of requests")
    if not interval:
        return None
    if not burst:
        raise ConfigError("rate_limit.burst: 0 refuses every request; write how many are allowed at once, such as 20")
    return RateLimit(interval, burst)


def _seconds(value: object) -> float:
    """Return the seconds of a duration of Go, such as 1s, 100ms, or 1m30s."""
    if isinstance(value, int) and value == 0:
        return 0
    if not isinstance(value, str) or not (_DURATION.fullmatch(value) or value == "0"):
        raise ConfigError(
            f"rate_limit.interval: {value!r} is not a duration; write one such as 1s, 100ms or 1m30s, or 0 for none"
        )
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(value))


class ToolkitHttp:
    """ASGI middleware that sets the configured headers, and refuses requests above the rate limit.

    Args:
        app: the application.
        current: returns the web configuration as of now.
        refusal: the response with status 429.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(
        self, app: ASGIApp, current: Callable[[], HttpConfig], refusal: ASGIApp, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._current, self._refusal, self._monotonic = app, current, refusal, monotonic
        self._limit: RateLimit | None = None
        self._tokens = self._filled_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application, unless there were too many."""
        config = self._current()
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not self._allows(config.rate_limit):
            await self._refusal(scope, receive, send)
        else:
            await self._app(scope, receive, with_headers(send, config.headers) if config.headers else send)

    def _allows(self, limit: RateLimit | None) -> bool:
        """Take a token, if there is one."""
        now = self._monotonic()
        if limit != self._limit:
            self._limit, self._tokens, self._filled_at = limit, float(limit.burst) if limit else 0.0, now
        if limit is None:
            return True
        self._tokens = min(float(limit.burst), self._tokens + (now - self._filled_at) / limit.interval)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
