"""How often a file that MongoDB's refusal made worth reading is read."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pymongo import AsyncMongoClient

from exporter.storage import credential_rotation
from exporter.storage.credential_rotation import FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS, CredentialRotation

URI = "mongodb://user:pw@127.0.0.1:1/"


def event(name: str, code: int = 18) -> Any:  # noqa: ANN401  # an event of the driver
    return SimpleNamespace(command_name=name, failure={"code": code})


async def test_while_the_file_is_unchanged_the_waits_double_up_to_their_limit_and_end_with_an_accepted_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads, waits = list[str](), list[float]()
    sleep = asyncio.sleep

    def read() -> str:
        reads.append(URI)
        return URI

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            rotation.succeeded(event("find"))
        await sleep(0)

    rotation = CredentialRotation(read, URI)
    monkeypatch.setattr(credential_rotation, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": wait}))
    async with AsyncMongoClient[Any](URI, connect=False) as client:
        rotation.attach(client)
        rotation.failed(event("saslStart"))
        rotation.failed(event("saslStart"))  # of another connection: one task follows the file
        await cast(asyncio.Task[None], rotation._following)
    assert waits == [FIRST_WAIT_SECONDS * factor for factor in (1, 2, 4, 8)] + [MAX_WAIT_SECONDS] * 4
    assert len(reads) == 8


@pytest.mark.parametrize(("name", "code", "follows"), [("find", 13, True), ("find", 11600, False), ("saslContinue", 0, True)])
async def test_only_a_refusal_has_the_file_read(name: str, code: int, follows: bool) -> None:
    rotation = CredentialRotation(lambda: URI, URI)
    rotation.failed(event(name, code))
    assert (rotation._following is not None) == follows
    if rotation._following is not None:
        rotation._following.cancel()
