"""A response whose body is several byte strings that stay where they are."""

from collections.abc import Mapping, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class PartsResponse(Response):
    """Sends the parts of a body one after the other, without joining them.

    All scrapes send the same worker block, of megabytes. A copy for each would take milliseconds of the event loop, and memory
    for as long as a client does not read it.
    """

    def __init__(self, parts: Sequence[bytes | memoryview], media_type: str, headers: Mapping[str, str]) -> None:
        length = str(sum(len(part) for part in parts))
        super().__init__(None, media_type=media_type, headers={**headers, "Content-Length": length})
        self._parts = [part for part in parts if part]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
