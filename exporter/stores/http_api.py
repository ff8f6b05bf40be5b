"""HTTP requests to a store: gzip, basic authentication, and its refusals as errors of the exporter."""

import asyncio
import gzip
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urlencode

import urllib3

from exporter.core import unreachable
from exporter.core.errors import StoreError, StoreUnavailableError

TIMEOUT_SECONDS = 60
_WORDS = 300
"""Characters of a refusal that are shown."""
_TRY_AGAIN = {429, 500, 502, 503, 504}


class HttpRefusalError(StoreError):
    """The store has answered with a status that another attempt would not change."""

    def __init__(self, message: str, status: int, text: str) -> None:
        super().__init__(message, reason="refused")
        self.status = status
        self.text = text
        """The beginning of its answer."""


class HttpApi:
    """The HTTP API at a URL `KIND+http://user:password@host:port/...`; requests run in threads.

    Args:
        url: of the store; its user and password go into the header Authorization.
        name: what it is and where, for messages.

    Raises, from `request`:
        StoreUnavailableError: no answer, or one that says to try again.
        HttpRefusalError: it refuses.
    """

    def __init__(self, url: SplitResult, name: str) -> None:
        self._name = name
        self._base = f"{url.scheme.partition('+')[2]}://{url.hostname}{f':{url.port}' if url.port else ''}"
        user = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
        self._headers = urllib3.make_headers(basic_auth=user) if url.username else {}
        self._pool = urllib3.PoolManager(timeout=TIMEOUT_SECONDS, retries=False, maxsize=1)

    async def request(
        self, method: str, path: str, parameters: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> bytes:
        """Send a request, its body compressed, and return the body of the answer."""
        headers = dict(self._headers)
        if body is not None:
            body = await asyncio.to_thread(gzip.compress, body, 1)
            headers["Content-Encoding"] = "gzip"
        query = f"?{urlencode(parameters)}" if parameters else ""
        try:
            answer = await asyncio.to_thread(
                self._pool.request, method, f"{self._base}{path}{query}", body=body, headers=headers, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise StoreUnavailableError(
                f"{self._name} {unreachable.described(str(error))}; is it running?",
                reason="unavailable",
            ) from error
        if answer.status < 300:
            return answer.data
        text = answer.data[:_WORDS].decode(errors="replace").strip()
        said = f"{self._name} answered {answer.status}: {text}"
        if answer.status in _TRY_AGAIN:
            raise StoreUnavailableError(said, reason="unavailable")
        hint = "; check user and password in the address" if answer.status in (401, 403) else ""
        raise HttpRefusalError(said + hint, answer.status, text)

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()
