"""The exporter as a real process: start, query, stop, kill, pause."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.helpers.deadlines import pause, scaled

COMMAND = (sys.executable, "-m", "exporter.cli")
READY_WITHIN = 30.0
STOP_WITHIN = 20.0
_LISTENING = re.compile(r"addresses\W+127\.0\.0\.1:(\d+)")


class ExporterProcess:
    """One `cml-worker-exporter serve`: its folder, and the process that runs in it now.

    Attributes:
        directory: its folder: config.yaml, the data folder, the log.
        data_dir: the outbox's folder.
        log: standard output and error of all its runs, one after the other.
        port: of 127.0.0.1; 0 until the first run has logged its port.
        launcher: a command that runs the exporter's command, such as one that sets limits; none by default.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Write the configuration; nothing runs yet. The log level must include info, because "listening" names the port."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        settings = {"data_dir": str(directory / "data"), **settings}
        self.config = directory / "config.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.data_dir = Path(settings["data_dir"])
        self.log = directory / "exporter.log"
        addresses = settings.get("web", {}).get("listen_address")
        self._addressed = bool(addresses)
        self.port = int(addresses[0].rpartition(":")[2]) if addresses else 0
        self.launcher: tuple[str, ...] = ()
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._http: httpx.Client | None = None
        self._begin = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the exporter is not running; call start()"
        return self._process.pid

    def start(self, *flags: str, wait: bool = True) -> None:
        """Start it with further `flags`, on the port it had before if any; `wait` until /-/ready answers 200."""
        assert not self.running, "it runs already"
        self._begin = self.log.stat().st_size if self.log.exists() else 0
        # Port 0 is chosen by the kernel at the moment of listening: no other test can take it in between.
        address = [] if self._addressed else ["--web.listen-address", f"127.0.0.1:{self.port}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.launcher, *COMMAND, "serve", "--config.file", str(self.config), *address, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                cwd=self.directory,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self, within: float = READY_WITHIN) -> None:
        """Wait until /-/ready answers 200: it listens, and has tried to read the worker documents once."""
        self.wait_for(self._is_ready, within, "ready")

    def wait_for(self, condition: Callable[[], object], within: float, what: str) -> None:
        """Poll until `condition` holds; fail with the log when it does not in time, or the exporter ends before."""
        within = scaled(within)
        began = time.monotonic()
        while not condition():
            waited = time.monotonic() - began
            assert self.running, f"the exporter ended before it was {what}:\n{self.tail()}"
            assert waited < within, f"the exporter was not {what} within {within:g} s:\n{self.tail()}"
            time.sleep(pause(waited))

    def get(self, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401  # the options of httpx.Client.get
        """GET a path of it."""
        return self._client().get(path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401  # the options of httpx.Client.post
        """POST to a path of it."""
        return self._client().post(path, **options)

    def _client(self) -> httpx.Client:
        if self._http is None:
            self._http = httpx.Client(base_url=self.url, trust_env=False, timeout=scaled(10))
        return self._http

    def metrics(self) -> dict[str, float]:
        """/metrics as {'name{labels}': value}, labels as they are written there."""
        lines = self.get("/metrics").text.splitlines()
        return {
            series: float(value) for series, _, value in (line.rpartition(" ") for line in lines if line[:1] not in ("", "#"))
        }

    def logged(self) -> str:
        """What the current run has logged so far, or the last one."""
        return self.log.read_bytes()[self._begin :].decode(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 40) -> str:
        """The end of `logged`, for messages."""
        return "\n".join(self.logged().splitlines()[-lines:])

    def stop(self, within: float = STOP_WITHIN) -> int:
        """End it with SIGTERM and return its exit status; fail when it does not end in time."""
        process = self._process
        assert process is not None, "it was never started"
        process.send_signal(signal.SIGCONT)  # a paused process would never receive SIGTERM
        process.terminate()
        within = scaled(within)
        try:
            status = process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the exporter did not end within {within:g} s of SIGTERM:\n{self.tail()}") from None
        self._disconnect()
        return status

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would; harmless when it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._disconnect()

    def wait(self, within: float = STOP_WITHIN) -> int:
        """Wait until it ends by itself and return its exit status."""
        assert self._process is not None, "it was never started"
        within = scaled(within)
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the exporter still runs after {within:g} s:\n{self.tail()}") from None

    def pause(self) -> None:
        """Stop it with SIGSTOP: it holds its sockets and locks but does nothing, like a machine that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    @property
    def is_paused(self) -> bool:
        """Whether SIGSTOP has stopped it (proc(5): state T)."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def resume(self) -> None:
        """Resume a paused exporter."""
        os.kill(self.pid, signal.SIGCONT)

    def _is_ready(self) -> bool:
        if not self._addressed and not self._found_port():
            return False
        try:
            return self.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _found_port(self) -> bool:
        """Read the port from the log. Not that of an earlier run, whose port another process may have taken."""
        found = _LISTENING.search(self.logged())
        if found:
            self.port = int(found[1])
        return found is not None

    def _disconnect(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None
