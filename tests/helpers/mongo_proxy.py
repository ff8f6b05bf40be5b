"""A TCP proxy in front of a real mongod that cuts the client's connection around an insert.

It parses only the start of a message: every message begins with its length, and the first key of the body names the command
(https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/).
"""

import asyncio
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Cut = Literal["before", "torn", "mid", "after"]
"""Where an insert is cut: before mongod, after half of it, before its reply, after its reply, which is not forwarded."""
CUTS: tuple[Cut, ...] = ("before", "torn", "mid", "after")

_HEADER = struct.Struct("<iiii")  # length, request id, response to, opcode
_OP_MSG = 2013
_BODY = _HEADER.size + 4 + 1 + 4  # flags, section kind, length of the document


@dataclass
class MongoProxy:
    """Listens on a free port of 127.0.0.1 and forwards to mongod's `target` port; use it as an async context manager."""

    target: int
    collection: str = "worker_metrics_timeseries"
    port: int = 0
    cuts: int = 0
    """How many inserts were cut so far."""
    inserts: int = 0
    """How many inserts into the collection passed by, cut or not."""
    _plan: list[Cut] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _connections: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    def cut(self, *plan: Cut) -> None:
        """Cut the next inserts, one for each argument."""
        self._plan.extend(plan)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        try:
            while True:
                request = await _message(reader)
                cut = self._next_cut(request)
                if cut == "before":
                    return
                up_writer.write(request[: len(request) // 2] if cut == "torn" else request)
                await up_writer.drain()
                if cut in ("torn", "mid"):
                    return
                reply = await _message(up_reader)
                if cut == "after":
                    return
                writer.write(reply)
                # The driver's monitor sends one request and then reads a stream of replies: moreToCome, bit 1 of the flags.
                while struct.unpack_from("<i", reply, _HEADER.size)[0] & 2:
                    reply = await _message(up_reader)
                    writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            up_writer.close()

    def _next_cut(self, request: bytes) -> Cut | None:
        _, _, _, opcode = _HEADER.unpack_from(request)
        name = b"\x02insert\x00" + struct.pack("<i", len(self.collection) + 1) + self.collection.encode() + b"\x00"
        if opcode != _OP_MSG or request[_BODY : _BODY + len(name)] != name:
            return None
        self.inserts += 1
        if not self._plan:
            return None
        self.cuts += 1
        return self._plan.pop(0)


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    (length,) = struct.unpack("<i", head)
    return head + await reader.readexactly(length - 4)
