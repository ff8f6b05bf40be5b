"""The web configuration file as it is now: every change counts from the next connection or request on.

As in Prometheus's exporters no signal is needed: before each handshake and each request the files are compared by time and
inode, which takes microseconds, and read again when one has changed. A wrong file changes nothing.
"""

import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from exporter.core import logs
from exporter.core.errors import ConfigError
from exporter.web import webconfig
from exporter.web.auth import BasicAuth
from exporter.web.webconfig import WebConfig

Stamp = tuple[int, int, int]
"""Time of change in nanoseconds, inode, and size of a file."""
EMPTY_SECONDS = 1.0
"""Age from which an empty file is meant to be empty. A program that writes a file truncates it first: read in between, it would
be reported as wrong."""
RETRY_SECONDS = 1.0
"""Pause before a file that could not be read is tried again."""

_log = logs.get("webconfig")


class LiveWebConfig:
    """Follows the web configuration file and the certificates it names. Belongs to the web server's event loop.

    Args:
        path: of the file; None: plain HTTP without users.

    Raises:
        ConfigError: a file cannot be read or is invalid.
    """

    def __init__(self, path: Path | None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path, self._monotonic = path, monotonic
        self._stamps: list[Stamp] = []
        self._last_read: tuple[WebConfig | None, list[Stamp]] = None, []
        """What `read` returned last, and the stamps of right before it."""
        self._retry_at = 0.0
        self._repeats = logs.Repeats()
        self._config = WebConfig()
        if path is not None:
            self._config = webconfig.load(path)
            self._stamps = self._current_stamps()
        self.on_reload: Callable[[bool], object] = lambda successful: None
        """Called after the file was read again because it had changed."""
        self.tls = _LiveContext.following(self.current) if self._config.tls else None
        """The TLS context for the server; None for plain HTTP."""

    def current(self) -> WebConfig:
        """Return the configuration of the files as they are now, or the last valid one."""
        if self._path is None:
            return self._config
        stamps = self._current_stamps()
        if stamps != self._stamps and not _is_being_written(stamps[0]) and self._monotonic() >= self._retry_at:
            self._stamps = stamps
            try:
                self.use(self.read())
                _log.info("web configuration reloaded", file=str(self._path))
                self.on_reload(True)
            except ConfigError as error:
                if isinstance(error.__cause__, OSError):  # it may be readable soon, such as with more descriptors
                    self._stamps, self._retry_at = [], self._monotonic() + RETRY_SECONDS
                if self._repeats.is_due(str(error)):
                    _log.error(
                        "web configuration not reloaded; the last valid one stays in use",
                        error=str(error),
                        **self._repeats.count,
                    )
                self.on_reload(False)
        return self._config

    @property
    def users(self) -> Mapping[str, bytes]:
        """User name → bcrypt hash, as of now."""
        return self.current().users

    def admits(self, certificate: Mapping[str, Any]) -> bool:
        """Return whether a client with this verified certificate may connect now."""
        return self.current().admits(certificate)

    def read(self) -> WebConfig:
        """Return the configuration of the files; nothing changes yet.

        Raises:
            ConfigError: a file is invalid, or TLS or the authentication was turned off or TLS on, which needs a restart.
        """
        if self._path is None:
            return self._config
        stamps = self._current_stamps()
        new = webconfig.load(self._path)
        if self._config.users and not new.users:  # also a file of which only the beginning was written
            raise ConfigError(f"{self._path}: it has no basic_auth_users any more; restart the exporter to end authentication")
        if (new.tls is None) != (self._config.tls is None):
            raise ConfigError(
                f"{self._path}: tls_server_config was {'added' if new.tls else 'removed'}; restart the exporter to "
                f"{'begin' if new.tls else 'end'} TLS"
            )
        self._last_read = new, stamps
        return new

    def use(self, config: WebConfig) -> None:
        """Use a configuration that `read` returned, from the next connection on; what changed since is read again."""
        self._config = config
        self._repeats.reset()
        if self._path is not None:
            last, stamps = self._last_read
            self._stamps = stamps if last is config and len(stamps) == 1 + len(config.files) else []

    def apply(self, config: uvicorn.Config) -> None:
        """Have the server use the TLS context."""
        WebConfig(self.tls).apply(config)

    def _current_stamps(self) -> list[Stamp]:
        assert self._path is not None
        return [_stamp(file) for file in (self._path, *self._config.files)]


def _is_being_written(stamp: Stamp) -> bool:
    changed, inode, size = stamp
    return inode != 0 and size == 0 and abs(time.time() - changed / 1e9) < EMPTY_SECONDS


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return 0, 0, 0  # it is being replaced, or missing; `read` says which
    return max(found.st_mtime_ns, found.st_ctime_ns), found.st_ino, found.st_size


class _LiveContext(ssl.SSLContext):
    """A TLS context whose connections are made by the context of the current configuration."""

    _current: Callable[[], WebConfig]

    @classmethod
    def following(cls, current: Callable[[], WebConfig]) -> "_LiveContext":
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context._current = current
        return context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:  # noqa: ANN401  # those of SSLContext.wrap_bio
        """Begin a connection; event loops call this once for each."""
        context = self._current().tls
        assert context is not None  # `read` refuses a file that ends TLS
        return context.wrap_bio(*arguments, **options)


class LiveAuth:
    """ASGI middleware: basic authentication by the users of now, if there are any.

    Args:
        app: the protected application.
        users: returns name → bcrypt hash.
        refusal: the response with status 401.
        exempt: paths that need no password.
    """

    def __init__(
        self, app: ASGIApp, users: Callable[[], Mapping[str, bytes]], refusal: ASGIApp, exempt: frozenset[str] = frozenset()
    ) -> None:
        self._app, self._users, self._refusal, self._exempt = app, users, refusal, exempt
        self._guard: tuple[Mapping[str, bytes], ASGIApp] = {}, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application, or answer it with the refusal."""
        if scope["type"] != "http" or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
            return
        users = self._users()
        if users != self._guard[0]:  # a changed user must not be accepted by a remembered password
            self._guard = users, BasicAuth(self._app, users, self._refusal) if users else self._app
        await self._guard[1](scope, receive, send)
