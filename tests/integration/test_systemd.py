"""The exporter as a service of systemd: a real datagram socket receives its notifications, a real socket is handed over."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path

import httpx
import pytest

from exporter import app
from exporter.commands.serve import collecting
from exporter.core.settings import Settings
from exporter.web.systemd import Notifier, inherited_sockets
from tests.fixtures.process import RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.exporter_process import COMMAND, READY_WITHIN, STOP_WITHIN
from tests.helpers.reliability import record
from tests.integration.web.test_routes import Serve, serve, wait_until  # noqa: F401  # serve is a fixture

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
QUIET = {"mongodb": {"uri": "mongodb://127.0.0.1:1/cml", "history": None}, "cloudwatch": {"enabled": False}}


class ServiceManager:
    """The end of the notification socket that belongs to systemd."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        while message := self._socket.recv(4096):
            self.messages.append(message.decode())

    def states(self) -> list[str]:
        """The messages without those of the watchdog."""
        return [message for message in self.messages if message != "WATCHDOG=1"]

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@pytest.fixture(
    params=[
        "path",
        pytest.param("abstract", marks=pytest.mark.nightly("test_systemd_is_told_of_start_life_reload_and_stop")),
    ]
)
def manager(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServiceManager]:
    unique = f"{os.getpid()}-{time.monotonic_ns()}"
    manager = ServiceManager(f"@cml-{unique}" if request.param == "abstract" else str(tmp_path / "notify"))
    yield manager
    manager.close()


def test_systemd_is_told_of_start_life_reload_and_stop(run_exporter: RunExporter, manager: ServiceManager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "600000"}
    exporter = run_exporter(QUIET, env=environment)
    assert manager.states() == ["READY=1"]
    exporter.wait_for(lambda: manager.messages.count("WATCHDOG=1") >= 3, 20, "feeding the watchdog")
    os.kill(exporter.pid, signal.SIGHUP)
    exporter.wait_for(lambda: len(manager.states()) == 3, 20, "reporting the reload")
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", manager.states()[1])
    assert manager.states()[2] == "READY=1"
    assert exporter.stop() == 0
    assert manager.states()[3:] == ["STOPPING=1"]


def test_without_systemd_and_with_a_lost_socket_it_runs_all_the_same(run_exporter: RunExporter, tmp_path: Path) -> None:
    exporter = run_exporter(QUIET, env={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert exporter.get("/-/healthy").status_code == 200
    assert exporter.logged().count("systemd was not notified") == 1
    assert exporter.stop() == 0


def test_the_watchdog_of_another_process_is_not_fed() -> None:
    mine = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000"}
    assert Notifier(mine).watchdog_seconds == 30
    assert Notifier(mine | {"WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 30
    assert Notifier(mine | {"WATCHDOG_PID": "1"}).watchdog_seconds is None
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_seconds is None
    assert Notifier({}).watchdog_seconds is None


def test_sockets_of_another_process_are_not_taken() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web", "HOME": "/"}
    assert inherited_sockets(environment) == []
    assert environment == {"HOME": "/"}, "a child process could take them for its own"


def test_a_socket_of_systemd_is_used_in_place_of_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as taken:
        port = listener.getsockname()[1]
        config = tmp_path / "exporter.yml"
        config.write_text(
            f"mongodb: {{uri: 'mongodb://127.0.0.1:1/cml', history: null}}\ncloudwatch: {{enabled: false}}\n"
            f"data_dir: {tmp_path / 'data'}\nweb: {{listen_address: '127.0.0.1:{taken.getsockname()[1]}'}}\n"
        )
        # As systemd does: the socket is descriptor 3, LISTEN_PID the process itself.
        script = f'exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", script, "bash", *COMMAND, "serve", "--config.file", str(config)],
                pass_fds=(listener.fileno(),),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
            )
        try:
            wait_until(lambda: "listening" in log.read_text() or process.poll() is not None, READY_WITHIN)
            # The connection waits in the socket that systemd holds, also before the exporter accepts.
            response = httpx.get(f"http://127.0.0.1:{port}/-/healthy", timeout=READY_WITHIN, trust_env=False)
            assert response.status_code == 200, log.read_text()
            assert f"addresses=127.0.0.1:{port} " in log.read_text()
            process.terminate()
            assert process.wait(scaled(STOP_WITHIN)) == 0
            assert "Traceback" not in log.read_text()
        finally:
            process.kill()
            process.wait()


# -- a loop that hangs


class Routes:
    """The backend of a real exporter, for `serve`."""

    def __init__(self, exporter: app.Exporter) -> None:
        self._exporter = exporter

    def backend(self) -> object:
        return self._exporter.backend


@pytest.fixture
def exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[app.Exporter]:
    """A real exporter in threads of this process, whose event loop reports life every third of a second."""
    monkeypatch.setattr(app, "BEAT_INTERVAL_SECONDS", 1.0)
    exporter = app.build(Settings.model_validate({**QUIET, "data_dir": str(tmp_path / "data")}))
    with collecting(exporter):
        wait_until(lambda: exporter._bridge.loop is not None)
        yield exporter


def test_healthy_is_503_while_the_collectors_event_loop_is_blocked(serve: Serve, exporter: app.Exporter) -> None:  # noqa: F811
    client = serve(Routes(exporter))
    assert client.get("/-/healthy").status_code == 200
    released = threading.Event()
    loop = exporter._bridge.loop
    assert loop is not None
    loop.call_soon_threadsafe(released.wait)  # as a computation that never ends
    try:
        wait_until(lambda: client.get("/-/healthy").status_code == 503, 30)
        assert "the collector's event loop for" in client.get("/-/healthy").text
    finally:
        released.set()
        began = time.monotonic()
    wait_until(lambda: client.get("/-/healthy").status_code == 200, 30)
    record("loop-hangs", recovery=time.monotonic() - began)


@pytest.mark.parametrize("end", ["returned", "hangs"])
def test_healthy_is_503_when_a_single_loop_has_ended_or_hangs(
    tmp_path: Path,
    serve: Serve,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    monkeypatch.setattr("exporter.pipeline.collector.MIN_INTERVAL_SECONDS", 1)
    settings = {**QUIET, "period": "1m", "data_dir": str(tmp_path / "data")}
    exporter = app.build(Settings.model_validate(settings))
    now = [time.monotonic()]
    exporter.liveness._monotonic = lambda: now[0]

    async def stops() -> None:
        await exporter.collector.observed.wait()

    async def hangs() -> None:
        exporter.collector.observed.set()
        await exporter.collector.reobserve.wait()

    if end == "returned":
        exporter.collector.poll_forever = stops  # type: ignore[method-assign]
        exporter.liveness.expect("polling", 300)
    else:
        exporter.collector.observe = hangs  # type: ignore[method-assign]
    with collecting(exporter):
        client = serve(Routes(exporter))
        wait_until(exporter.collector.observed.is_set, 30)
        assert client.get("/-/healthy").status_code == 200
        time.sleep(0.5)
        now[0] += 901
        response = client.get("/-/healthy")
        assert response.status_code == 503
        assert ("polling for 901 s" if end == "returned" else "observing for 901 s") in response.text


# -- the unit files


def unit(name: str) -> RawConfigParser:
    class Repeated(dict[str, object]):
        """Keys may be repeated, as in SystemCallFilter; the last one is enough for these tests."""

    parser = RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


def test_the_unit_matches_what_the_exporter_speaks() -> None:
    service = unit("cml-worker-exporter.service")["Service"]
    assert service["Type"] == "notify"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["Restart"] == "on-failure"
    assert "serve --config.file" in service["ExecStart"]
    assert unit("cml-worker-exporter.socket")["Socket"]["ListenStream"] == "9877"


def test_systemd_itself_finds_no_mistake_in_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not on this machine; install it with: apt-get install systemd")
    for name in ("cml-worker-exporter.service", "cml-worker-exporter.socket"):
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(re.sub(r"^ExecStart=.*", "ExecStart=/bin/true", text, flags=re.MULTILINE))
        result = subprocess.run([analyze, "verify", tmp_path / name], capture_output=True, text=True, check=False)
        assert result.stderr == ""
        assert result.returncode == 0
    exposure = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", tmp_path / "cml-worker-exporter.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert exposure.returncode == 0, exposure.stdout + exposure.stderr  # above 2.0 of 10
