"""The demo's two parts as processes of their own, for `docker compose --profile demo`: the fake AWS and the simulated manager.

    python -m exporter.demo.services fake-aws --listen 0.0.0.0:5000
    python -m exporter.demo.services manager --alive /tmp/alive

Both read MONGODB_URI and take the world from there: whichever starts first makes it, so restarts and new containers go on with
the same fleet. Unlike `cml-worker-exporter demo` they start no MongoDB and no exporter.
"""

import argparse
import asyncio
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient, ReplaceOne, ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from exporter.core.errors import ConfigError, ExporterError, StoreUnavailableError
from exporter.demo.fleet import World, aggregates, fleet
from exporter.demo.past import SEED, STATE, remember

WORKERS = "workers"
_PUBLISH_SECONDS = 5.0
_WRITE_SECONDS = (30.0, 60.0)
"""Between these the manager waits, as the real one does."""

_Document = dict[str, Any]
_Database = AsyncDatabase[_Document]


def main(words: Sequence[str] | None = None) -> int:
    """Run one of the services until SIGTERM or SIGINT and return the exit status; 1, with the reason, when it cannot go on."""
    parser = argparse.ArgumentParser(prog="python -m exporter.demo.services", description="Parts of the demo; see MONGODB_URI.")
    services = parser.add_subparsers(required=True, metavar="service")
    aws = services.add_parser("fake-aws", help="CloudWatch and STS, with the fleet's datapoints")
    aws.add_argument("--listen", default="127.0.0.1:5000", metavar="HOST:PORT", help="(default: 127.0.0.1:5000)")
    aws.set_defaults(run=lambda options, database: fake_aws(database, options.listen))
    manager = services.add_parser("manager", help="the application that writes the workers' aggregates")
    manager.add_argument("--alive", type=Path, metavar="FILE", help="touched after every writing, for health checks")
    manager.set_defaults(run=lambda options, database: manage(database, options.alive))
    options = parser.parse_args(words)
    try:
        return asyncio.run(_until_stopped(lambda database: options.run(options, database)))
    except ExporterError as error:
        print(error, file=sys.stderr)
        return 1


async def fake_aws(database: _Database, listen: str) -> None:
    """Serve CloudWatch on host:port and publish what becomes due; never returns.

    Raises:
        ConfigError: `listen` is no host:port, or cannot be listened on.
        StoreUnavailableError: MongoDB does not answer.
    """
    from exporter.demo.aws import FakeAws  # moto takes a second and 100 MB to import, and the manager needs none of it

    host, port = _address(listen)
    aws = FakeAws(await shared_world(database), host, port)
    await asyncio.to_thread(aws.publish, int(time.time()))
    print(f"fake AWS: listening on {aws.start()}", flush=True)
    try:
        while True:
            await asyncio.sleep(_PUBLISH_SECONDS)
            await asyncio.to_thread(aws.publish, int(time.time()))
    finally:
        aws.stop()


async def manage(database: _Database, alive: Path | None = None) -> None:
    """Write the fleet's past, then every aggregate again and again, as the manager does; never returns.

    Raises:
        ConfigError: `workers` holds documents that are not the demo's.
        StoreUnavailableError: MongoDB does not answer.
    """
    world = await shared_world(database)
    await _refuse_strangers(database, world)
    await remember(database, world)
    while True:
        documents = aggregates(world, int(time.time()))
        writes = [ReplaceOne({"_id": id}, each, upsert=True) for id, each in documents.items()]
        await _answered(database[WORKERS].bulk_write(writes))
        if alive:
            await asyncio.to_thread(alive.touch)
        await asyncio.sleep(random.uniform(*_WRITE_SECONDS))


async def shared_world(database: _Database) -> World:
    """Return the database's world, created if it is absent: both services, and their restarts, get the same.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
    """
    new = {"seed": SEED, "start": int(time.time())}
    found = await _answered(
        database[STATE].find_one_and_update(
            {"_id": "world"}, {"$setOnInsert": new}, upsert=True, return_document=ReturnDocument.AFTER
        )
    )
    return World(seed=int(found["seed"]), start=int(found["start"]))


async def _refuse_strangers(database: _Database, world: World) -> None:
    ids = [worker.id for worker in fleet(world)]
    stranger = await _answered(database[WORKERS].find_one({"_id": {"$nin": ids}}, {"_id": 1}))
    if stranger is not None:
        raise ConfigError(
            f"{database.name}.{WORKERS} holds workers that are not the demo's, such as {stranger['_id']}; "
            "give the demo a database of its own in MONGODB_URI"
        )


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    try:
        if not host:
            raise ValueError("there is no host")
        with socket.socket() as probe:  # moto itself would wait for ever
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"--listen: {listen!r} cannot be listened on ({error}); write host:port, such as 0.0.0.0:5000"
        ) from error
    return host, int(port)


async def _answered(work: Awaitable[Any]) -> Any:  # noqa: ANN401  # whatever MongoDB answers
    try:
        return await work
    except PyMongoError as error:
        raise StoreUnavailableError(f"the demo cannot use MongoDB: {error}; check MONGODB_URI") from error


async def _until_stopped(service: Callable[[_Database], Awaitable[None]]) -> int:
    """Run a service until a signal; what it raises goes on."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        async with AsyncMongoClient[_Document](_uri()) as client:
            await service(client.get_default_database())
    except asyncio.CancelledError:
        return 0
    except PyMongoError as error:
        raise ConfigError(f"MONGODB_URI is no usable connection string: {error}") from error
    return 0


def _uri() -> str:
    uri = os.environ.get("MONGODB_URI")
    if not uri:
        raise ConfigError("MONGODB_URI is not set; it says which MongoDB and database the demo may use")
    return uri


if __name__ == "__main__":
    sys.exit(main())
