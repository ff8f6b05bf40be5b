"""New user and password from `mongodb.uri_file` when MongoDB refuses the old ones, in the client that runs already.

The client keeps its sessions, its view of the servers, and its running operations; a new client would end inserts that are
running. The driver has no public way to change the credentials of a client, so this module is the one place that uses private
attributes of it; a test fails when a new version of pymongo renames them.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from exporter.core import logs
from exporter.core.errors import ConfigError
from exporter.storage import tls_files

FIRST_WAIT_SECONDS = 1.0
"""Wait before the file is read again when it still has the refused credentials; doubled after each reading."""
MAX_WAIT_SECONDS = 15.0
"""The longest of these waits: Kubernetes writes a changed secret into the pod up to a minute late."""

_AUTHENTICATION = frozenset({"saslstart", "saslcontinue", "authenticate"})
_REFUSALS = frozenset({13, 18, 391, 8000})
"""Unauthorized (also on a connection whose user was dropped), AuthenticationFailed, ReauthenticationRequired, AtlasError."""
_USER_INFO = re.compile(r"(?<=://)[^@/]*@")

_log = logs.get("mongodb")


class CredentialRotation(CommandListener):
    """Listens to the commands of one client; reads the file again when the credentials are refused, until it has others.

    Belongs to the event loop of the client. While the file is unchanged it is read with growing waits, and no longer once
    MongoDB has accepted a command. A file that cannot be used changes nothing.

    Args:
        read: returns the connection string of the file; raises ConfigError.
        uri: the connection string that the client was made with.
    """

    def __init__(self, read: Callable[[], str], uri: str) -> None:
        self._read, self._uri = read, uri
        self._client: AsyncMongoClient[Any] | None = None
        self._refused = False
        self._complaint = ""
        self._following: asyncio.Task[None] | None = None
        self.on_change: Callable[[], object] = lambda: None
        """Called after new credentials are in use."""

    def attach(self, client: AsyncMongoClient[Any]) -> None:
        """Set the client that receives new credentials."""
        self._client = client

    async def refresh(self) -> bool:
        """Read the file and use its user and password; return whether they are others than before.

        Raises:
            ConfigError: the file cannot be read, or does not hold a connection string; nothing has changed.
        """
        uri = await asyncio.to_thread(self._read)
        if uri == self._uri or self._client is None:
            return False
        credentials = await _credentials(uri)
        if _USER_INFO.sub("", uri) != _USER_INFO.sub("", self._uri):
            _log.warning("uri_file names other servers or options, too; only its user and password are used until a restart")
        _replace(self._client, credentials, from_dns=uri.startswith("mongodb+srv:") and "authsource=" not in uri.lower())
        self._uri = uri
        await _renew_connections(self._client)
        _log.info("new MongoDB credentials in use", user=getattr(credentials, "username", None))
        self.on_change()
        return True

    # -- the listener; the driver calls it on the client's event loop

    def started(self, event: CommandStartedEvent) -> None:
        """Ignore the start of a command."""

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Note that MongoDB accepts the credentials; a step of the authentication alone does not show that."""
        if event.command_name.lower() not in _AUTHENTICATION:
            self._refused = False

    def failed(self, event: CommandFailedEvent) -> None:
        """Begin to read the file again after a refusal. The driver hides the error of a failed authentication."""
        if event.command_name.lower() not in _AUTHENTICATION and event.failure.get("code") not in _REFUSALS:
            return
        self._refused = True
        if self._following is None or self._following.done():
            self._following = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        """Read the file until it has new credentials, or MongoDB accepts the old ones."""
        seconds = FIRST_WAIT_SECONDS
        while self._refused:
            try:
                if await self.refresh():
                    self._complaint = ""
                    return
            except ConfigError as error:
                if str(error) != self._complaint:
                    _log.warning("MongoDB refuses the credentials and uri_file has no usable ones", error=str(error))
                self._complaint = str(error)
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, MAX_WAIT_SECONDS)


def rotation_of(client: AsyncMongoClient[Any]) -> CredentialRotation | None:
    """Return the rotation of a client; None where the connection string is not in a file."""
    found = (each for each in client.options.event_listeners if isinstance(each, CredentialRotation))
    return next(found, None)


async def _credentials(uri: str) -> Any:  # noqa: ANN401  # a private type of the driver
    """Return the driver's credentials of a connection string; raises ConfigError."""
    tls_files.check(uri, "mongodb.uri_file")  # the driver would ask for the password of a key at the terminal
    try:
        parsed: AsyncMongoClient[Any] = AsyncMongoClient(uri, connect=False)  # the only public parser; it sends nothing
    except (PyMongoError, ValueError, OSError) as error:
        # The driver's sentence may repeat a part of the password.
        raise ConfigError(f"mongodb.uri_file does not hold a MongoDB connection string ({type(error).__name__})") from None
    try:
        return parsed.options.pool_options._credentials
    finally:
        await parsed.close()


def _replace(client: AsyncMongoClient[Any], new: Any, *, from_dns: bool) -> None:  # noqa: ANN401
    options = client.options.pool_options  # shared by the pools of all servers
    old = options._credentials
    if from_dns and new is not None and old is not None:
        # The database of the users may be in a DNS record, which the new string does not show.
        new = new._replace(source=old.source)
    setattr(options, "_PoolOptions__credentials", new)  # noqa: B010  # ruff would mangle the name


async def _renew_connections(client: AsyncMongoClient[Any]) -> None:
    """Close every idle connection, and every busy one after its operation: those of a dropped user are useless."""
    if client._topology is not None:
        for server in list(client._topology._servers.values()):
            await server.pool.reset_without_pause()
