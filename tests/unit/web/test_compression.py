"""Which bodies are compressed, with what, and that a streamed one is never collected."""

import asyncio
import gzip
import random
import zlib
from collections.abc import Sequence
from typing import Any

import cramjam
import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from exporter.web.compression import MAX_BYTES_IN_LOOP, MIN_BYTES, Compression
from exporter.web.negotiation import preferred_coding

BODY = b'{"cpu_utilization": 45.2}' * 100


@pytest.mark.parametrize(
    ("accept_encoding", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1, zstd;q=0.9", "gzip"),
        ("gzip;q=0.9, zstd;q=1", "zstd"),
        ("gzip;q=0, zstd;q=0", None),
        ("gzip;q=0", None),
        ("zstd;q=0, gzip;q=0.1", "gzip"),
        ("x-gzip", "gzip"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("br", None),
        ("identity, gzip;q=0.5, zstd;q=0.5", None),
        ("identity;q=0.5, gzip;q=0.6", "gzip"),
        ("GZIP", "gzip"),
        ("gzip;q=much", None),
    ],
)
def test_the_coding_is_the_one_that_the_client_weighs_most(accept_encoding: str, coding: str | None) -> None:
    assert preferred_coding(accept_encoding) == coding


async def received(app: Any, accept: str = "gzip", method: str = "GET") -> list[Message]:  # noqa: ANN401 -- any ASGI application
    """What a server gets of a response."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"accept-encoding", accept.encode())]
    await Compression(app)({"type": "http", "method": method, "path": "/", "headers": headers}, receive, send)
    return messages


def headers_of(messages: Sequence[Message]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in messages[0]["headers"]}


def decoded(coding: str, body: bytes) -> bytes:
    return gzip.decompress(body) if coding == "gzip" else bytes(cramjam.zstd.decompress(body))


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("size", [MIN_BYTES, MAX_BYTES_IN_LOOP + 1, 1 << 20])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_body_is_compressed_with_its_length(coding: str, size: int, method: str) -> None:
    body = (BODY * (size // len(BODY) + 1))[:size]
    messages = await received(Response(body, media_type="application/json", headers={"Vary": "Accept"}), coding, method)
    headers = headers_of(messages)
    assert (headers["content-encoding"], headers["vary"]) == (coding, "Accept, Accept-Encoding")
    assert decoded(coding, messages[1]["body"]) == body
    assert headers["content-length"] == str(len(messages[1]["body"]))
    assert len(messages[1]["body"]) < size / 2


@pytest.mark.parametrize(
    "response",
    [
        Response(BODY[: MIN_BYTES - 1], media_type="application/json"),
        Response(BODY, media_type="text/plain; version=0.0.4"),  # /metrics: its worker block is compressed beforehand
        Response(BODY, media_type="application/x-protobuf", headers={"Content-Encoding": "snappy"}),
        Response(
            gzip.compress(random.Random(1).randbytes(9 * MIN_BYTES)),
            media_type="application/json",
            headers={"Content-Encoding": "gzip"},
        ),
        Response(status_code=304, headers={"ETag": 'W/"1"'}),
        Response(status_code=308, headers={"Location": "./"}),
    ],
    ids=["small", "metrics", "remote read", "compressed before", "not modified", "redirect"],
)
async def test_what_is_small_or_compressed_before_passes_as_it_is(response: Response) -> None:
    messages = await received(response)
    assert messages[1]["body"] == response.body
    assert headers_of(messages).get("content-length") == dict(response.headers).get("content-length")


async def test_the_same_address_has_several_representations_also_for_a_client_that_gets_the_plain_one() -> None:
    for response in (Response(BODY, media_type="text/csv; charset=utf-8"), Response(status_code=304, headers={"ETag": '"1"'})):
        assert headers_of(await received(response, ""))["vary"] == "Accept-Encoding"


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_each_part_of_a_stream_is_sent_before_the_next_one_is_made(coding: str) -> None:
    sent: list[Message] = []
    parts = [bytes(f"row {n}\r\n", "ascii") * 20 for n in range(50)]

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/csv"), (b"content-length", b"9")],
            }
        )
        for number, part in enumerate(parts):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            assert plain(coding, b"".join(message.get("body", b"") for message in sent)) == b"".join(parts[: number + 1])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(b"accept-encoding", coding.encode())]}
    await Compression(stream)(scope, asyncio.Queue[Message]().get, send)
    assert "content-length" not in headers_of(sent)
    assert [message.get("more_body") for message in sent[1:]] == [True] * 50 + [False]
    assert decoded(coding, b"".join(message.get("body", b"") for message in sent)) == b"".join(parts)


def plain(coding: str, beginning: bytes) -> bytes:
    """What a client can read of the beginning of a compressed body."""
    if coding == "gzip":
        return zlib.decompressobj(wbits=31).decompress(beginning)
    # cramjam reads whole frames only; this is an empty last block (RFC 8878, 3.1.1.2).
    return bytes(cramjam.zstd.decompress(beginning + b"\x01\x00\x00"))
