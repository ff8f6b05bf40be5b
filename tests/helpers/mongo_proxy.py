"""TCP proxies in front of a real mongod that pass whole messages on; one of them cuts the client's connection around an insert.

They parse only the start of a message: every message begins with its length, and the first key of the body names the command
(https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/).
"""

import asyncio
import struct
from types import TracebackType
from typing import Literal, Self

import bson

from exporter.storage.mongo import Document

Cut = Literal["before", "torn", "mid", "after"]
"""Where an insert is cut: before mongod, after half of it, before its reply, after its reply, which is not forwarded."""
CUTS: tuple[Cut, ...] = ("before", "torn", "mid", "after")

_HEADER = struct.Struct("<iiii")  # length, request id, response to, opcode
_OP_MSG = 2013
_BODY = _HEADER.size + 4 + 1 + 4  # flags, section kind, length of the document
_MORE_TO_COME = 2


class MongoProxy:
    """Listens on a free port of 127.0.0.1 and forwards to mongod's `target` port; use it as an async context manager.

    It passes everything on; a subclass says which requests it interferes with.

    Args:
        target: mongod's port.
        database: the database that `uri` names, if any.
    """

    collection = "worker_metrics_timeseries"

    def __init__(self, target: int, database: str = "") -> None:
        self.target = target
        self.database = database
        self.port = 0
        self.inserts = 0
        """How many inserts into the collection passed by, cut or not."""
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/{self.database}?directConnection=true"

    async def _interfere(self, request: bytes, up_reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> bool:
        """Return whether the client's connection ends here; False: the request is passed on, and its replies too."""
        return False

    def _replied(self, request: bytes) -> None:
        """Called when a reply to the request has arrived and is not passed on yet."""

    def _is_command(self, request: bytes, command: bytes) -> bool:
        """Return whether the request is this command on the collection."""
        name = self.collection.encode() + b"\x00"
        start = b"\x02" + command + b"\x00" + struct.pack("<i", len(name)) + name
        return bool(_HEADER.unpack_from(request)[3] == _OP_MSG) and request.startswith(start, _BODY)

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
                request = await read_message(reader)
                if await self._interfere(request, up_reader, up_writer):
                    return
                up_writer.write(request)
                await up_writer.drain()
                more = True
                while more:  # the driver's monitor sends one request and receives a stream of replies
                    reply = await read_message(up_reader)
                    self._replied(request)
                    more = bool(struct.unpack_from("<i", reply, _HEADER.size)[0] & _MORE_TO_COME)
                    writer.write(reply)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            up_writer.close()


class CuttingProxy(MongoProxy):
    """Cuts the client's connection around the inserts that `cut` plans."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.cuts = 0
        """How many inserts were cut so far."""
        self._plan: list[Cut] = []

    def cut(self, *plan: Cut) -> None:
        """Cut the next inserts, one for each argument."""
        self._plan.extend(plan)

    async def _interfere(self, request: bytes, up_reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> bool:
        cut = self._next_cut(request)
        if cut is None:
            return False
        await pass_until(cut, request, up_writer)
        if cut == "after":
            await read_message(up_reader)
        return True

    def _next_cut(self, request: bytes) -> Cut | None:
        if not self._is_command(request, b"insert"):
            return None
        self.inserts += 1
        if not self._plan:
            return None
        self.cuts += 1
        return self._plan.pop(0)


async def pass_until(cut: Cut, request: bytes, up_writer: asyncio.StreamWriter) -> None:
    """Pass on what mongod receives of a request that is cut there."""
    if cut != "before":
        up_writer.write(request[: len(request) // 2] if cut == "torn" else request)
        await up_writer.drain()


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """Read one message of the wire protocol.

    Raises:
        asyncio.IncompleteReadError: the connection ended before.
    """
    head = await reader.readexactly(4)
    (length,) = struct.unpack("<i", head)
    return head + await reader.readexactly(length - 4)


class HoldingProxy(MongoProxy):
    """Holds inserts back as a kernel does without an answer: the client loses its connection, MongoDB gets the insert later."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.held: list[bytes] = []
        """The inserts that were held back and are not delivered yet."""
        self._hold = 0

    def hold(self, count: int = 1) -> None:
        """Hold the next `count` inserts back."""
        self._hold += count

    async def deliver(self) -> list[Document]:
        """Deliver what was held back, and return MongoDB's replies."""
        replies = [await _exchange(self.target, request) for request in self.held]
        self.held.clear()
        return replies

    async def _interfere(self, request: bytes, up_reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> bool:
        if not self._hold or not self._is_command(request, b"insert"):
            return False
        self._hold -= 1
        self.held.append(request)
        return True


async def command_without_session(port: int, command: Document) -> Document:
    """Run a command on the server at `port` of 127.0.0.1 outside of any session, unlike the driver, and return the reply."""
    body = struct.pack("<iB", 0, 0) + bson.encode(command)
    return await _exchange(port, _HEADER.pack(_HEADER.size + len(body), 1, 0, _OP_MSG) + body)


async def _exchange(port: int, request: bytes) -> Document:
    """Send a message on a connection of its own and return the reply to it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        return bson.decode((await read_message(reader))[_HEADER.size + 5 :])
    finally:
        writer.close()
