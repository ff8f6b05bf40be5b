"""What all work in MongoDB has in common: the client, durable writes, bounded time, the translation of the driver's errors.

Every write waits for the journal of a majority: with the default write concern a standalone mongod loses acknowledged samples
when it is killed (measured: 66–105 documents in a few kills). Every operation runs under `operation`, which bounds its time on
the server too, so that an abandoned insert ends there.
"""

import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import pymongo
from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.asynchronous.pool import AsyncConnection, Pool
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    CollectionInvalid,
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    ExecutionTimeout,
    InvalidName,
    InvalidURI,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
)
from pymongo.monitoring import CommandListener
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import Nearest, Primary, PrimaryPreferred, Secondary, SecondaryPreferred
from pymongo.write_concern import WriteConcern

from exporter.core import unreachable
from exporter.core.errors import ConfigError, FencedError, IncompatibleStoreError, StoreError, StoreUnavailableError
from exporter.storage import tls_files
from exporter.storage.credential_rotation import CredentialRotation

if TYPE_CHECKING:  # a program that uses only WorkerMetricsRepository needs neither pydantic nor yaml
    from exporter.core.settings import Settings

T = TypeVar("T")
Document = dict[str, Any]
Database = AsyncDatabase[Document]
STATE = "cml_exporter_state"
"""The collection with the period and schema of the history, and the leases."""

OPERATION_SECONDS = 30.0
"""How long one operation may take, here and on the server."""
WHOLE_HISTORY_SECONDS = 300.0
"""The same for an operation that scans every bucket, or deletes a worker's."""
# https://github.com/mongodb/specifications/blob/master/source/retryable-writes/retryable-writes.md, and what may succeed later:
# cursor lost, timed out, write concern not met, duplicate upsert, conflict, no majority yet, interrupted.
_TRANSIENT = frozenset(
    {6, 7, 43, 50, 64, 89, 91, 112, 133, 134, 175, 189, 202, 237, 262, 317, 9001}
    | {10058, 10107, 11000, 11600, 11601, 11602, 13388, 13435, 13436}
)
NOT_AUTHORIZED = 13
TRANSACTION_TOO_OLD = 225
"""MongoDB's code for a retryable write with a lower number than its session has seen, see `storage.insert_fence`."""
_INVALID_OPTIONS = 72
_CREDENTIALS = frozenset({18, 8000})  # AuthenticationFailed; Atlas says 8000


def translate(error: Exception, namespace: str, action: str, client: AsyncMongoClient[Any] | None = None) -> StoreError:
    """Return an error of pymongo or bson as a StoreError; the one place that knows them.

    Args:
        error: what the driver raised.
        namespace: database.collection, for the message.
        action: the MongoDB privilege action that was exercised, for the message.
        client: the one that raised it, whose TLS files the message names.
    """
    what = f"`{action}` on {namespace}"
    brief = str(error).partition(", full error:")[0].partition(", Timeout:")[0]
    match error:
        case ServerSelectionTimeoutError() if "Authentication failed" in brief:  # the driver repeats why it left the server
            return _refused_credentials(brief)
        case ServerSelectionTimeoutError() if refusal := tls_files.explain(brief, _ca_file(client)):
            return StoreUnavailableError(f"no MongoDB for {what}: {refusal}", reason="tls")
        case ServerSelectionTimeoutError():  # before its parent AutoReconnect: here nothing was sent
            return StoreUnavailableError(
                f"no MongoDB for {what}: {_plainly(brief)}; check mongodb.uri and the server", reason="unreachable"
            )
        case NetworkTimeout() | WaitQueueTimeoutError() | ExecutionTimeout():
            return StoreUnavailableError(
                f"MongoDB took too long for {what}; it will be tried again: {_plainly(brief)}", reason="timeout"
            )
        case NotPrimaryError():
            return StoreUnavailableError(f"MongoDB has no primary for {what} now; it will be tried again", reason="not_primary")
        case ConnectionFailure() | AutoReconnect():
            return StoreUnavailableError(
                f"the connection broke during {what}; it will be tried again: {_plainly(brief)}", reason="connection"
            )
        case BulkWriteError():
            return _translate_bulk(error, namespace, action)
        case WriteConcernError():
            return StoreUnavailableError(
                f"no majority confirmed {what}; it will be tried again: {brief}", reason="write_concern"
            )
        case OperationFailure():
            return _translate_code(error, namespace, action)
        case ConfigurationError() if type(error.__cause__).__module__.startswith("dns."):
            return StoreUnavailableError(f"no MongoDB for {what}: DNS does not answer ({brief})", reason="unreachable")
        case CollectionInvalid() | ConfigurationError() | InvalidName():
            return IncompatibleStoreError(
                f"MongoDB cannot be used for {what}: {brief}; check mongodb.uri and the server's version"
            )
        case DocumentTooLarge() | BSONError() | OverflowError() | UnicodeError():
            return StoreError(f"{what}: a document cannot be written or read as BSON: {brief}", reason="invalid_document")
    return StoreError(f"{what} failed: {type(error).__name__}: {brief}")


def _plainly(brief: str) -> str:
    """Return what the driver says about a connection as a few words, without its timeouts, classes and numbers."""
    brief = re.sub(r" \(configured timeouts: [^)]*\)", "", brief)
    servers = sorted(set(re.findall(r"([\w.\[\]-]+:\d+): ", brief)))
    if "replica set" in brief.lower() or "primary" in brief.lower():
        return "no member of the replica set is its primary" + (f", of {', '.join(servers)}" if servers else "")
    words = unreachable.reason(brief)
    if words is None:
        return brief
    return f"{servers[0] if len(servers) == 1 else 'each of ' + ', '.join(servers) if servers else 'the server'} {words}"


def without_hosts(text: str, client: AsyncMongoClient[Any]) -> str:
    """Return a text without the addresses of MongoDB's servers: what answers over HTTP may say that one fails, not where."""
    for host, port in client.topology_description.server_descriptions():
        text = text.replace(f"{host}:{port}", "a server").replace(f"'{host}'", "its host")
    text = re.sub(r"each of a server(, a server)*", "each server", text)
    return re.sub(r", of a server(, a server)*", "", text)


def _ca_file(client: AsyncMongoClient[Any] | None) -> str | None:
    return None if client is None else client.options._options.get("tlscafile")


def _translate_bulk(error: BulkWriteError, namespace: str, action: str) -> StoreError:
    details = error.details or {}
    failed = details.get("writeErrors", [])
    for one in failed:
        if one.get("code") == NOT_AUTHORIZED:
            return missing_privileges([(action, namespace)])
    if failed:
        brief = f"{len(failed)} write errors, the first with code {failed[0].get('code')}: {str(failed[0].get('errmsg'))[:200]}"
        return StoreUnavailableError(
            f"`{action}` on {namespace} succeeded in part; it will be tried again: {brief}", reason="write_error"
        )
    return StoreUnavailableError(
        f"no majority confirmed `{action}` on {namespace}; it will be tried again: {details.get('writeConcernErrors')}",
        reason="write_concern",
    )


def _translate_code(error: OperationFailure, namespace: str, action: str) -> StoreError:
    brief = str(error).partition(", full error:")[0]
    if error.code == NOT_AUTHORIZED:
        return missing_privileges([(action, namespace)])
    if error.code in _CREDENTIALS:
        return _refused_credentials(brief)
    if error.code == TRANSACTION_TOO_OLD:
        return FencedError(
            f"MongoDB refused `{action}` on {namespace}: another process, or a later attempt of this one, has begun to insert "
            "since; nothing of it is written, and it starts over",
            reason="fenced",
        )
    if error.code in _TRANSIENT or error.has_error_label("RetryableWriteError"):
        return StoreUnavailableError(
            f"`{action}` on {namespace} did not succeed; it will be tried again: {brief}",
            reason="timeout" if error.code == 50 else "transient",
        )
    if error.code == _INVALID_OPTIONS:
        return IncompatibleStoreError(f"MongoDB refuses the options of `{action}` on {namespace}: {brief}", reason="options")
    return StoreError(f"`{action}` on {namespace} failed with code {error.code}: {brief}")


def _refused_credentials(brief: str) -> IncompatibleStoreError:
    return IncompatibleStoreError(
        f"MongoDB refuses the credentials ({brief}); check user, password and authSource in mongodb.uri", reason="credentials"
    )


def missing_privileges(missing: Iterable[tuple[str, str]]) -> IncompatibleStoreError:
    """Return the error for privileges that the MongoDB user lacks.

    Args:
        missing: (action, database.collection), at least one.
    """
    listed = ", ".join(f"`{action}` on {namespace}" for action, namespace in missing)
    return IncompatibleStoreError(
        f"MongoDB does not allow this user {listed}; grant it the least role that docs/manager.md shows",
        reason="not_authorized",
    )


async def may_see_all_operations(database: Database) -> bool:
    """Return whether the user may see the running operations of every user; without authentication everybody may.

    Raises:
        PyMongoError: MongoDB does not answer.
    """
    answer = await database.client.admin.command("connectionStatus", showPrivileges=True)
    granted = answer["authInfo"].get("authenticatedUserPrivileges", ())
    if not answer["authInfo"]["authenticatedUsers"]:
        return True
    return any(
        "inprog" in each["actions"] and (each["resource"].get("cluster") or each["resource"].get("anyResource"))
        for each in granted
    )


ReadMode = Primary | PrimaryPreferred | Secondary | SecondaryPreferred | Nearest
_BEHIND: Mapping[str, type[PrimaryPreferred | Secondary | SecondaryPreferred | Nearest]] = {
    "primaryPreferred": PrimaryPreferred,
    "secondary": Secondary,
    "secondaryPreferred": SecondaryPreferred,
    "nearest": Nearest,
}
"""Read preferences whose answer may be behind."""


def read_preference(settings: "Settings") -> ReadMode:
    """Return the member of a replica set that answers queries which may be behind, as the driver names it."""
    kind = _BEHIND.get(settings.mongodb.read_preference)
    return Primary() if kind is None else kind(max_staleness=settings.mongodb.max_staleness)


@asynccontextmanager
async def operation(
    database: Database, collection: str, action: str, seconds: float | Callable[[], float] = OPERATION_SECONDS
) -> AsyncIterator[None]:
    """Bound what runs inside to `seconds`, on the server too, and translate its errors.

    Args:
        database: where it runs; its client's serverSelectionTimeoutMS is how long to look for a server.
        collection: its name, for the message.
        action: the MongoDB privilege action it exercises, for the message.
        seconds: the limit; or a function that returns it, or raises, asked when the server is found: whoever waited or was
            paused until then has less time left.

    Raises:
        StoreError: or one of its kinds, see `translate`.
    """
    try:
        # Inside pymongo.timeout its seconds replace serverSelectionTimeoutMS, so find the server first; that sends nothing.
        await database.client.is_primary
        # Unlike socketTimeoutMS this sends maxTimeMS along, so that the server ends what the exporter no longer waits for.
        with pymongo.timeout(seconds() if callable(seconds) else seconds):
            yield
    except (PyMongoError, BSONError, OverflowError, UnicodeError) as error:
        raise translate(error, f"{database.name}.{collection}", action, database.client) from error


def durable(database: Database) -> Database:
    """Return the database with the options of all work: primary, journal of a majority, aware UTC dates."""
    return database.with_options(
        codec_options=database.codec_options.with_options(tz_aware=True, tzinfo=UTC),
        read_preference=ReadPreference.PRIMARY,
        write_concern=WriteConcern("majority", j=True),
        read_concern=ReadConcern("local"),
    )


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Split `items` into parts of `size`; the last may be shorter."""
    return [items[at : at + size] for at in range(0, len(items), size)]


class DroppingPool(Pool):
    """Connections whose kernel drops what it has not delivered when the driver closes them.

    By default (no SO_LINGER) the kernel of a closed connection goes on to deliver, for a quarter of an hour after a network
    outage: an insert that the exporter has given up, read back and repeated would arrive then. With a linger time of 0 closing
    sends a reset and nothing else. The driver closes a connection when an operation on it fails or takes too long. It has no
    option for its sockets and no event that shows one; `_pool_class` is its place for such a pool (MongoClient.__init__), and
    unlike a patched function it changes this client alone.
    """

    async def connect(self, *args: Any, **kwargs: Any) -> AsyncConnection:  # noqa: ANN401  # the parameters differ by version
        """Connect, and set SO_LINGER before any command but the handshake is sent; raises ConnectionFailure."""
        connection = await super().connect(*args, **kwargs)
        connection.conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return connection


DEFAULT_DATABASE = "cml_cloud_manager"


def connect(settings: "Settings") -> tuple[AsyncMongoClient[Document], Database]:
    """Make the MongoDB client and its database of the settings; nothing is sent yet.

    Raises:
        ConfigError: the connection string is malformed.
    """
    uri = settings.mongodb_uri
    if settings.mongodb.uri_file is None:
        return connect_uri(uri, "mongodb.uri")
    rotation = CredentialRotation(lambda: settings.mongodb_uri, uri)
    client, database = connect_uri(uri, "mongodb.uri_file", (rotation,))
    rotation.attach(client)
    return client, database


def connect_uri(
    uri: str, name: str = "uri", listeners: Sequence[CommandListener] = ()
) -> tuple[AsyncMongoClient[Document], Database]:
    """Make the MongoDB client and its database; nothing is sent yet.

    Args:
        uri: the connection string; without a database it means DEFAULT_DATABASE.
        name: what the error message calls the string.
        listeners: are told of every command.

    Raises:
        ConfigError: the connection string is malformed, or names a TLS file or a mechanism that cannot be used.
    """
    tls_files.check(uri, name)
    if tls_files.options_of(uri).get("authmechanism") == "MONGODB-AWS" and find_spec("pymongo_auth_aws") is None:
        raise ConfigError(
            f"{name}: MONGODB-AWS needs a further package; install it with: pip install 'cml-worker-exporter[aws]'"
        )
    try:
        client: AsyncMongoClient[Document] = AsyncMongoClient(
            uri,
            tz_aware=True,
            serverSelectionTimeoutMS=5000,
            connectTimeoutMS=5000,
            appname="cml-worker-exporter",
            _pool_class=DroppingPool,
            event_listeners=listeners,
        )
        return client, client.get_default_database(DEFAULT_DATABASE)
    except (InvalidURI, ConfigurationError, ValueError) as error:
        # The driver's sentence may repeat a part of the password, so it is not printed.
        raise ConfigError(
            f"{name} is not a MongoDB connection string ({type(error).__name__}); it looks like "
            "mongodb://user:password@host:27017/database, with / : @ and % in user and password written as %2F %3A %40 %25"
        ) from None
