"""Whether a replica set can acknowledge writes: it needs a primary, and a majority that confirms what the primary has.

A read with read concern "linearizable" waits for that majority and changes nothing, so `check` needs no further privilege.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import pymongo
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from exporter.storage.mongo import Database, Document

MAJORITY_SECONDS = 5.0
"""How long the majority may take; it normally takes milliseconds."""
_CONNECT_SECONDS = 2.0
_REMEDY = "start the others; until then nothing can be written, and samples wait in the outbox of a running exporter"


async def majority_problem(database: Database, collection: str, hello: Mapping[str, Any]) -> str | None:
    """Return why a replica set cannot acknowledge writes, None where it can.

    Args:
        database: of the exporter.
        collection: one that the exporter may read.
        hello: the answer to that command, of the member that the exporter would use.
    """
    name, members = hello["setName"], [*hello.get("hosts", ()), *hello.get("passives", ()), *hello.get("arbiters", ())]
    if not hello.get("isWritablePrimary"):
        if hello.get("primary"):
            return (
                f"mongodb.uri leads to {hello.get('me')}, a secondary of replica set {name}, which cannot write; "
                f"remove directConnection from it, or name the primary {hello['primary']}"
            )
        return await _without_majority(name, members)
    reading = database.get_collection(
        collection, read_preference=ReadPreference.PRIMARY, read_concern=ReadConcern("linearizable")
    )
    try:
        with pymongo.timeout(MAJORITY_SECONDS):
            await reading.find_one({}, {"_id": 1})
    except PyMongoError as error:
        # Any other error is not about the majority; the check of the worker documents reports it.
        return await _without_majority(name, members) if error.timeout else None
    return None


async def missing_primary(client: AsyncMongoClient[Document]) -> str | None:
    """Return the problem of a replica set in which the driver found no primary; None where the driver found no replica set."""
    topology = client.topology_description
    if topology.topology_type_name != "ReplicaSetNoPrimary":
        return None
    addresses = (f"{host}:{port}" for host, port in topology.server_descriptions())
    return await _without_majority(topology.replica_set_name or "", addresses)


async def _without_majority(name: str, members: Iterable[str]) -> str:
    members = sorted(members)
    answering = await asyncio.gather(*map(_accepts_connections, members))
    silent = [member for member, answers in zip(members, answering, strict=True) if not answers]
    count = len(members) - len(silent)
    found = f"{count} of {len(members)} members {'answers' if count == 1 else 'answer'}"
    if not silent:
        return (
            f"replica set {name} does not confirm writes within {MAJORITY_SECONDS:g} s, although {found}: it may be locked "
            f"(fsyncLock), overloaded, or electing a primary; until then samples wait in the outbox of a running exporter"
        )
    found += f", not {', '.join(silent)}"
    return f"replica set {name} has no majority: {found}; {_REMEDY}"


async def _accepts_connections(member: str) -> bool:
    host, _, port = member.rpartition(":")
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
