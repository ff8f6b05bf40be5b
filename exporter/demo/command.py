"""`cml-worker-exporter demo`: a fake AWS, a MongoDB and a simulated manager for the unmodified exporter.

moto's server and the manager run in this process; mongod, the exporter and Prometheus are child processes that end with it,
even when it is killed. All data is in one folder, so that the next start continues where this one ended.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml
from pymongo import AsyncMongoClient, ReplaceOne
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from exporter.core.errors import ConfigError, ExporterError, StoreUnavailableError
from exporter.core.settings_loader import ENV_PREFIX
from exporter.demo import prometheus as prometheus_module
from exporter.demo.documents import worker_documents
from exporter.demo.fleet import World
from exporter.demo.folder import (
    CONFIG,
    ENDPOINTS,
    EXPORTER_LOG,
    MONGODB,
    OUTBOX,
    PROMETHEUS,
    PROMETHEUS_LOG,
    hold_folder,
    open_world,
    write_private_file,
)
from exporter.demo.mongod import Mongod
from exporter.demo.past import HISTORY, STATE, remember
from exporter.demo.ports import HOST, free_port, kept_port, refuse_taken
from exporter.demo.processes import (
    STOP_SECONDS,
    background_task,
    check_mongod,
    child_process,
    raise_when_ended,
    repeat,
    wait_for_first,
    wait_until_ready,
)
from exporter.demo.prometheus import INSTALL, QUERIES, find
from exporter.demo.status_line import end_status, show_status, show_step

EXPORTER = (sys.executable, "-m", "exporter.cli", "serve")
DATABASE = "cml_demo"
"""Database if MONGODB_URI names none; not the manager's name, whose database may hold real data."""
WORKERS = "workers"
PORT = 9877
COLUMNS = 80
CANCEL_SECONDS = 0.5
"""After how long a part that goes on after Ctrl-C is cancelled again."""
STATUS_SECONDS = 2
"""How often the line of state is replaced."""

_Document = dict[str, Any]


def main(arguments: argparse.Namespace) -> int:
    """Run the demo until Ctrl-C or SIGTERM and return the exit status; raises the errors of `run`."""
    directory = arguments.dir.resolve()
    port = arguments.port or (free_port() if arguments.port == 0 else None)
    return asyncio.run(run(directory, fresh=arguments.fresh, port=port))


async def run(directory: Path, *, fresh: bool, port: int | None, command: Sequence[str] = EXPORTER) -> int:
    """Run the demo in `directory` until SIGINT or SIGTERM, then end every child and return 0.

    Args:
        directory: absolute path of the demo's folder; it must be empty or of an earlier demo.
        fresh: remove the earlier demo's data first.
        port: port of the exporter on 127.0.0.1; None: PORT, or if that is taken another one, at the next start the same.
        command: command line of the exporter; `--config.file` is appended.

    Raises:
        ConfigError: the folder, the port or MONGODB_URI cannot be used; nothing was started.
        ExporterError: a part did not start, or ended by itself; all others were ended.
    """
    leaving = asyncio.Event()
    work = asyncio.ensure_future(_run(directory, fresh, port, command, leaving))
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:  # a second Ctrl-C must not interrupt the cleanup
            stopped = True
            cancel()

    def cancel() -> None:
        # Until it is heard: the driver of MongoDB takes a cancellation for a failure of its own call now and then.
        if not (leaving.is_set() or work.done()):
            work.cancel()
            loop.call_later(CANCEL_SECONDS, cancel)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await work
    except asyncio.CancelledError:
        if not stopped:
            raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return 0


async def _run(directory: Path, fresh: bool, port: int | None, command: Sequence[str], leaving: asyncio.Event) -> None:
    """Run all parts and end them; `leaving` is set before the first one is ended."""
    async with AsyncExitStack() as stack:
        try:
            await _run_parts(stack, directory, fresh, port, command)
        except asyncio.CancelledError:
            end_status("Ending all processes …")
            raise
        finally:
            leaving.set()


async def _run_parts(stack: AsyncExitStack, directory: Path, fresh: bool, port: int | None, command: Sequence[str]) -> None:
    try:
        from exporter.demo.aws import FakeAws  # moto takes a second to import, and only the demo needs it
    except ModuleNotFoundError as error:
        raise ConfigError(f"the demo needs {error.name}; pip install 'cml-worker-exporter[demo]'") from error
    if port is not None:
        refuse_taken(port)
    stack.enter_context(hold_folder(directory))
    await _predecessor_gone(directory / MONGODB)
    world = open_world(directory, fresh=fresh)
    listen = f"{HOST}:{kept_port(directory, 'exporter', PORT) if port is None else port}"
    show_step("Starting MongoDB and a fake AWS with the datapoints of the last day …")
    aws = FakeAws(world, port=kept_port(directory, "aws"))
    published = asyncio.get_running_loop().run_in_executor(None, aws.publish, int(time.time()))  # while mongod starts
    uri, mongod = _start_mongodb(stack, directory)
    database = await _open_database(stack, uri, world, fresh)
    await published
    aws_url = aws.start()
    stack.callback(aws.stop)
    show_step("Writing the worker documents and, at the first start, two weeks of history …")
    await _manage(database, world)
    await remember(database, world)
    background = [
        stack.enter_context(background_task(repeat(lambda: 5, lambda: asyncio.to_thread(aws.publish, int(time.time()))))),
        stack.enter_context(background_task(repeat(lambda: random.uniform(30, 60), lambda: _manage(database, world)))),
    ]
    if mongod is not None:
        background.append(stack.enter_context(background_task(repeat(lambda: 1, lambda: check_mongod(mongod)))))
    config = directory / CONFIG
    write_private_file(config, _config(directory, uri, aws_url, listen))
    show_step("Starting the exporter …")
    log = directory / EXPORTER_LOG
    exporter = await stack.enter_async_context(child_process([*command, "--config.file", str(config)], _environment(), log))
    background.append(stack.enter_context(background_task(raise_when_ended(exporter, "the exporter", log))))
    await wait_for_first(wait_until_ready(f"http://{listen}/-/ready", "the exporter", log), background)
    endpoints = {"exporter": f"http://{listen}", "mongodb": uri, "aws": aws_url}
    program = find()
    if program:
        show_step("Starting Prometheus …")
        log = directory / PROMETHEUS_LOG
        address = f"{HOST}:{kept_port(directory, 'prometheus', 9090)}"
        start = prometheus_module.command(program, directory / PROMETHEUS, listen, address)
        prometheus = await stack.enter_async_context(child_process(start, _environment(), log))
        background.append(stack.enter_context(background_task(raise_when_ended(prometheus, "Prometheus", log))))
        await wait_for_first(wait_until_ready(f"http://{address}/-/ready", "Prometheus", log), background)
        endpoints["prometheus"] = f"http://{address}"
    stack.callback((directory / ENDPOINTS).unlink, missing_ok=True)
    write_private_file(directory / ENDPOINTS, json.dumps(endpoints, indent=2) + "\n")
    end_status(banner(directory, endpoints))
    status = repeat(lambda: STATUS_SECONDS, lambda: show_state(database, endpoints["exporter"]))
    try:
        await wait_for_first(status, background)
    except ExporterError:
        end_status("Ending all processes …")
        raise


def _start_mongodb(stack: AsyncExitStack, directory: Path) -> tuple[str, Mongod | None]:
    """Return a connection string with a database: MONGODB_URI, else that of a new mongod that ends with the stack."""
    given = os.environ.get("MONGODB_URI")
    if given:
        return with_database(given), None
    mongod = Mongod(directory / MONGODB, kept_port(directory, "mongodb"), replica_set=True)
    stack.callback(mongod.stop)
    mongod.start()
    return with_database(mongod.uri), mongod


def with_database(uri: str) -> str:
    """Return the connection string with a database: its own, else DATABASE.

    Raises:
        ConfigError: it is not a connection string.
    """
    try:
        meaning = parse_uri(uri)
    except PyMongoError as error:
        raise ConfigError(f"MONGODB_URI is not a connection string of MongoDB: {error}") from error
    if meaning["database"]:
        return uri
    parts = urlsplit(uri)
    query = parts.query
    if meaning["username"] and "authsource" not in query.lower():
        query += ("&" if query else "") + "authSource=admin"  # the driver's default while the string named no database
    return urlunsplit(parts._replace(path=f"/{DATABASE}", query=query))


async def _predecessor_gone(data: Path) -> None:
    """Wait until the mongod of a demo that was just killed has closed its files."""
    lock = data / "mongod.lock"
    text = lock.read_text().strip() if lock.is_file() else ""
    deadline = time.monotonic() + STOP_SECONDS
    while text.isdigit() and _is_mongod(text) and time.monotonic() < deadline:  # noqa: ASYNC110  # it is no child, so no event tells its end
        await asyncio.sleep(0.1)


def _is_mongod(pid: str) -> bool:
    try:
        return "mongod" in Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return False


async def _open_database(stack: AsyncExitStack, uri: str, world: World, fresh: bool) -> AsyncDatabase[_Document]:
    """Return the demo's database, with `fresh` dropped first; refuse a database that holds other data.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
        ConfigError: the database holds other data, or the data of another folder's demo.
    """
    client: AsyncMongoClient[_Document] = AsyncMongoClient(uri, serverSelectionTimeoutMS=5000)
    stack.push_async_callback(client.close)
    database = client.get_default_database()
    mark = {"_id": "world", "seed": world.seed, "start": world.start}
    try:
        found = await database[STATE].find_one({"_id": "world"})
        if found is None and await database.list_collection_names():
            raise ConfigError(f"MONGODB_URI: database {database.name} is not empty and not of a demo; name another database")
        if found is not None and fresh:
            await client.drop_database(database.name)
        elif found not in (None, mark):
            raise ConfigError(f"database {database.name} holds the data of another demo; start over with --fresh")
        await database[STATE].replace_one({"_id": "world"}, mark, upsert=True)
    except PyMongoError as error:
        raise StoreUnavailableError(f"the demo cannot use MongoDB: {error}; check MONGODB_URI or unset it") from error
    return database


async def _manage(database: AsyncDatabase[_Document], world: World) -> None:
    """Write every worker document once, as the manager does; print a warning if MongoDB does not answer."""
    documents = worker_documents(world, int(time.time()))
    try:
        await database[WORKERS].bulk_write([ReplaceOne({"_id": id}, each, upsert=True) for id, each in documents.items()])
    except PyMongoError as error:
        print(f"the simulated manager could not write the worker documents: {error}", file=sys.stderr)


def _environment() -> dict[str, str]:
    """Return the exporter's environment: without the user's AWS variables and exporter settings, except those of the log."""
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("AWS_", ENV_PREFIX)) or name.startswith(f"{ENV_PREFIX}LOG__")
    }
    return kept | {
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _config(directory: Path, uri: str, aws_url: str, listen: str) -> str:
    def section(**settings: object) -> str:
        return yaml.safe_dump(settings, sort_keys=False)

    return (
        "# Written by `cml-worker-exporter demo` at every start; changes are overwritten.\n"
        + section(mongodb={"uri": uri}, cloudwatch={"endpoint_url": aws_url}, aws={"sts_endpoint_url": aws_url})
        + "# The fake CloudWatch never publishes late, so a short absence timeout is safe: the last day is filled within two\n"
        "# minutes. Keep the default of 1h with AWS.\n"
        + section(absence_timeout="10m")
        + "# An hour more than the default, so that a whole day of 288 samples is filled at the first start.\n"
        + section(gap_fill_window="25h")
        + "# US dollars per hour; an example, take what you pay.\n"
        + section(workers={"hourly_price": {"m5zn.metal": 3.96, "c5.metal": 4.08}})
        + section(data_dir=str(directory / OUTBOX), web={"listen_address": [listen]})
    )


def banner(directory: Path, endpoints: Mapping[str, str]) -> str:
    """Return what the demo prints when everything runs, in lines of at most 80 columns unless the name of a folder is long."""
    url, folder = endpoints["exporter"], _shown(directory)
    lines = [
        "",
        f"The demo runs. Open {url}/",
        "",
        "In another shell:",
        "",
        f"  curl -s {url}/metrics | grep ^cml_worker_cpu",
        f"  curl -s '{url}/api/workers?limit=2'",
        f"  {_shown(Path(sys.executable).parent)}/cml-worker-exporter export --since -1h \\",
        f"    --format csv --config.file {folder / CONFIG}",
        "",
        "What you will see:",
        "",
        "  now          12 workers in two regions, their CPU and memory, and on the page",
        "               of each worker two weeks of history, with labs and status",
        "  in 15 min    the first new samples of running workers: a period of 5 min, and",
        "               some more until its values are final; then one every 5 minutes",
        "",
        *_queries(endpoints),
        f"All addresses are in {folder / ENDPOINTS}: MongoDB is",
        f"{_mongodb(endpoints)}, AWS {endpoints['aws']}.",
        f"The exporter's log is {folder / EXPORTER_LOG}.",
        "",
        f"Ctrl-C ends all processes. The data stays in {folder} for the next start;",
        "--fresh (`make demo ARGS=--fresh`) starts over.",
        "",
    ]
    return "\n".join(lines)


def _mongodb(endpoints: Mapping[str, str]) -> str:
    """Return the connection string as it may be shown: without a password."""
    uri = endpoints["mongodb"]
    return "that of your MONGODB_URI" if "@" in uri else uri.partition("?")[0]


def _queries(endpoints: Mapping[str, str]) -> list[str]:
    if "prometheus" not in endpoints:
        return ["Prometheus is not on PATH, so the demo runs without it:", f"  {INSTALL}", ""]
    lines = [f"Prometheus: {endpoints['prometheus']}/ Three queries worth trying:", ""]
    for what, query in QUERIES.items():
        lines += [textwrap.fill(what, COLUMNS, initial_indent="  # ", subsequent_indent="  # "), textwrap.indent(query, "  ")]
    return [*lines, ""]


async def show_state(database: AsyncDatabase[_Document], url: str) -> None:
    """Replace the line of state: the page, which a small terminal no longer shows, and how many samples the history has now."""
    try:
        samples = f"{await database[HISTORY].estimated_document_count():,} samples"
    except PyMongoError:
        samples = "MongoDB does not answer"
    show_status(f"{time.strftime('%H:%M:%S')}  {url}/  {samples}; Ctrl-C ends it")


def _shown(path: Path) -> Path:
    """Return the path relative to the current folder if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
