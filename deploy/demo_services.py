"""The fake AWS and the simulated manager as separate processes, for `docker compose --profile demo`.

    python deploy/demo_services.py fake-aws --listen 0.0.0.0:5000
    python deploy/demo_services.py manager --alive /tmp/alive

Both read the world from the database in MONGODB_URI; the first to start creates it. Restarts and new containers therefore
continue with the same fleet. Unlike `cml-worker-exporter demo` they start neither MongoDB nor the exporter.
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
from exporter.demo.documents import worker_documents
from exporter.demo.fleet import World, fleet
from exporter.demo.past import SEED, STATE, remember

WORKERS = "workers"
_PUBLISH_SECONDS = 5.0
_WRITE_SECONDS = (30.0, 60.0)
"""Shortest and longest pause of the manager between two writes, as in the real one."""

_Document = dict[str, Any]
_Database = AsyncDatabase[_Document]


def main(words: Sequence[str] | None = None) -> int:
    """Run a service until SIGTERM or SIGINT and return the exit status: 1, with a message, when it cannot continue."""
    parser = argparse.ArgumentParser(prog="demo_services.py", description="Parts of the demo; see MONGODB_URI.")
    services = parser.add_subparsers(required=True, metavar="service")
    aws = services.add_parser("fake-aws", help="CloudWatch and STS, with the fleet's datapoints")
    aws.add_argument("--listen", default="127.0.0.1:5000", metavar="HOST:PORT", help="(default: 127.0.0.1:5000)")
    aws.set_defaults(run=lambda options, database: fake_aws(database, options.listen))
    manager = services.add_parser("manager", help="the application that writes the worker documents")
    manager.add_argument("--alive", type=Path, metavar="FILE", help="touched after every write, for health checks")
    manager.set_defaults(run=lambda options, database: manage(database, options.alive))
    options = parser.parse_args(words)
    try:
        return asyncio.run(_until_stopped(lambda database: options.run(options, database)))
    except ExporterError as error:
        print(error, file=sys.stderr)
        return 1


async def fake_aws(database: _Database, listen: str) -> None:
    """Serve CloudWatch and STS on host:port and publish datapoints when they are due; never returns.

    Raises:
        ConfigError: `listen` is not host:port, or is in use.
        StoreUnavailableError: MongoDB does not answer.
    """
    from exporter.demo.aws import FakeAws  # moto takes a second and 100 MB to import, which the manager does not need

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
    """Write the fleet's past, then all worker documents every 30 to 60 seconds, as the manager does; never returns.

    Raises:
        ConfigError: `workers` holds documents of other workers.
        StoreUnavailableError: MongoDB does not answer.
    """
    world = await shared_world(database)
    await _refuse_other_workers(database, world)
    await remember(database, world)
    while True:
        documents = worker_documents(world, int(time.time()))
        writes = [ReplaceOne({"_id": id}, each, upsert=True) for id, each in documents.items()]
        await _answered(database[WORKERS].bulk_write(writes))
        if alive:
            await asyncio.to_thread(alive.touch)
        await asyncio.sleep(random.uniform(*_WRITE_SECONDS))


async def shared_world(database: _Database) -> World:
    """Return the world of the database, created if there is none; both services and their restarts share it.

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


async def _refuse_other_workers(database: _Database, world: World) -> None:
    ids = [worker.id for worker in fleet(world)]
    other = await _answered(database[WORKERS].find_one({"_id": {"$nin": ids}}, {"_id": 1}))
    if other is not None:
        raise ConfigError(
            f"{database.name}.{WORKERS} holds workers that are not the demo's, such as {other['_id']}; "
            "give the demo a database of its own in MONGODB_URI"
        )


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    try:
        if not host:
            raise ValueError("there is no host")
        with socket.socket() as probe:  # moto would hang if the port is taken
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"--listen: {listen!r} cannot be listened on ({error}); write host:port, such as 0.0.0.0:5000"
        ) from error
    return host, int(port)


async def _answered(work: Awaitable[Any]) -> Any:  # noqa: ANN401  # MongoDB's answers have no common type
    try:
        return await work
    except PyMongoError as error:
        raise StoreUnavailableError(f"the demo cannot use MongoDB: {error}; check MONGODB_URI") from error


async def _until_stopped(service: Callable[[_Database], Awaitable[None]]) -> int:
    """Run a service until SIGINT or SIGTERM; its errors propagate."""
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
        raise ConfigError(f"MONGODB_URI is not a connection string of MongoDB: {error}") from error
    return 0


def _uri() -> str:
    uri = os.environ.get("MONGODB_URI")
    if not uri:
        raise ConfigError("MONGODB_URI is not set; set it to the MongoDB and database that the demo may use")
    return uri


if __name__ == "__main__":
    sys.exit(main())
